//! The caller of a request, as handlers get it.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use hwm_core::access::{Permission, Principal};
use hwm_core::manager::Scoped;
use hwm_core::units::Timestamp;

use crate::error::ApiError;
use crate::state::{Api, Shared};

/// Who is asking and what proves it: all that outlives a request in tickets and streams.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) principal: Arc<Principal>,
    pub(crate) credential: Credential,
}

/// The token that proved an identity, kept so that it can be judged again while a stream is open.
#[derive(Clone)]
pub(crate) struct Credential {
    token: Arc<str>,
    pub(crate) expires: Timestamp,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credential")
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// Believes a token, or says why not.
    pub(crate) fn from_token(api: &Api, token: &str) -> Result<Self, ApiError> {
        let now = api.options.environment.now();
        let verified = api
            .options
            .auth
            .verify(token, now)
            .map_err(|refused| ApiError::unauthorized(Some(refused.0)))?;
        Ok(Self {
            principal: Arc::new(verified.principal),
            credential: Credential {
                token: token.into(),
                expires: verified.expires,
            },
        })
    }

    /// The identity that the Authorization header proves; none where there is no such header.
    pub(crate) fn from_headers(api: &Api, headers: &HeaderMap) -> Result<Option<Self>, ApiError> {
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let Some(value) = values.next() else {
            return Ok(None);
        };
        if values.next().is_some() {
            return Err(ApiError::unauthorized(Some("it is given twice")));
        }
        let token = value
            .to_str()
            .ok()
            .and_then(|text| text.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim())
            .ok_or_else(|| ApiError::unauthorized(None))?;
        Self::from_token(api, token).map(Some)
    }

    /// Whether the token would still be accepted: it has not expired and its key is still there.
    pub(crate) fn still_holds(&self, api: &Api) -> bool {
        Self::from_token(api, &self.credential.token).is_ok()
    }
}

/// An authenticated caller within its rate. A handler that takes one answers nobody else.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) identity: Identity,
    /// The manager as the caller may use it.
    pub(crate) scoped: Scoped,
}

impl Caller {
    /// Counts the request and opens the manager for an identity.
    pub(crate) fn admit(api: &Api, identity: Identity) -> Result<Self, ApiError> {
        tracing::Span::current().record("caller", identity.principal.subject.as_str());
        if let Some(limiter) = &api.callers {
            let key = (
                identity.principal.owner.org_id.clone(),
                identity.principal.subject.clone(),
            );
            limiter.check(&key).map_err(ApiError::rate_limited)?;
        }
        let scoped = api.manager.as_principal(identity.principal.clone());
        Ok(Self { identity, scoped })
    }

    pub(crate) fn principal(&self) -> &Principal {
        &self.identity.principal
    }

    /// Refuses a caller none of whose roles grants `permission` anywhere.
    pub(crate) fn require(&self, permission: Permission, what: &str) -> Result<(), ApiError> {
        match self.principal().visibility(permission) {
            Some(_) => Ok(()),
            None => Err(ApiError::forbidden(format!(
                "{what} is not allowed: no role of the caller grants it"
            ))),
        }
    }
}

impl FromRequestParts<Shared> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Shared) -> Result<Self, ApiError> {
        let identity =
            Identity::from_headers(api, &parts.headers)?.ok_or_else(|| ApiError::unauthorized(None))?;
        Self::admit(api, identity)
    }
}
