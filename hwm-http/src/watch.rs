//! Ends what stays open when its caller may not have it any more.

use std::time::Duration;

use hwm_core::Error;
use hwm_core::id::ResourceId;

use crate::auth::Caller;
use crate::state::Shared;

/// Why a stream or a socket was ended from this side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lost {
    /// The server stops.
    Shutdown,
    /// The token has expired, or its key is gone.
    Token,
    /// The resource is gone, or out of the caller's sight.
    Resource,
}

impl Lost {
    pub(crate) const fn reason(self) -> &'static str {
        match self {
            Self::Shutdown => "the server is stopping",
            Self::Token => "the token is not accepted any more",
            Self::Resource => "the resource is gone",
        }
    }
}

/// Completes when `caller` may not have something of `resource` any more: at once when the server stops or
/// the token expires, within [`Options::stream_check`](crate::Options::stream_check) otherwise.
pub(crate) async fn lost(api: Shared, caller: Caller, resource: Option<ResourceId>) -> Lost {
    let environment = api.options.environment.clone();
    loop {
        let left = caller.identity.credential.expires.since(environment.now());
        let nap = api.options.stream_check.min(left.max(Duration::from_millis(10)));
        tokio::select! {
            () = api.options.shutdown.cancelled() => return Lost::Shutdown,
            () = tokio::time::sleep(nap) => {}
        }
        if !caller.identity.still_holds(&api) {
            return Lost::Token;
        }
        if let Some(id) = resource {
            match caller.scoped.get(id, false).await {
                Ok(found) if found.resource.deleted_at.is_none() => {}
                Ok(_) | Err(Error::NotFound { .. } | Error::Forbidden { .. }) => return Lost::Resource,
                // The store will be back, or the server goes; neither says that access was lost.
                Err(_) => {}
            }
        }
    }
}
