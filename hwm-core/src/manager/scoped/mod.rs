//! The manager as one caller may use it.

mod journal;
mod resources;
mod running;
mod snapshots;

use std::fmt;
use std::sync::Arc;

use super::api::RequestOptions;
use super::submit::Asking;
use super::{Core, Result};
use crate::access::{Permission, Principal, Visibility};
use crate::error::Error;
use crate::id::ResourceId;
use crate::lifecycle::Phase;
use crate::resource::Record;

/// The manager as one caller may use it. What the caller may not see does not exist for it:
/// [`Error::NotFound`]. What it may see but not do is [`Error::Forbidden`].
///
/// Every future may be dropped at any await. A request whose future was dropped may or may not have been
/// accepted; with an [`Idempotency`](super::Idempotency) key it can be repeated.
#[derive(Clone)]
pub struct Scoped {
    core: Arc<Core>,
    principal: Arc<Principal>,
}

impl fmt::Debug for Scoped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scoped")
            .field("principal", &self.principal)
            .finish_non_exhaustive()
    }
}

impl Scoped {
    pub(super) fn new(core: Arc<Core>, principal: Arc<Principal>) -> Self {
        Self { core, principal }
    }

    /// Whose view this is.
    pub fn principal(&self) -> &Principal {
        &self.principal
    }

    pub(super) fn asking<'a>(&'a self, options: &'a RequestOptions) -> Asking<'a> {
        Asking {
            principal: &self.principal,
            options,
        }
    }

    pub(super) fn accepting(&self) -> Result<()> {
        if self.core.stopping.is_cancelled() {
            Err(Error::ShuttingDown)
        } else {
            Ok(())
        }
    }

    pub(super) fn forbidden(&self, action: &str, needs: &str) -> Error {
        Error::Forbidden {
            action: action.to_owned(),
            reason: format!("it needs a role such as {needs}"),
        }
    }

    pub(super) fn may_create(&self) -> Result<()> {
        if self.principal.may(Permission::Write, &self.principal.owner) {
            return Ok(());
        }
        Err(self.forbidden(
            "creating a resource",
            "member.editor, with the ids of that scope in the token",
        ))
    }

    pub(super) fn view(&self, permission: Permission, action: &str) -> Result<Visibility> {
        let needs = if permission == Permission::Administer {
            "member.owner"
        } else {
            "member.viewer"
        };
        self.principal
            .visibility(permission)
            .ok_or_else(|| self.forbidden(action, needs))
    }

    /// A resource that the caller may see; of a deleted one there is nothing to see.
    pub(super) async fn visible(&self, id: ResourceId) -> Result<Record> {
        self.view(Permission::Read, "seeing resources")?;
        match self.core.store.record(id).await? {
            Some(record)
                if record.phase != Phase::Deleted && self.principal.may(Permission::Read, &record.owner) =>
            {
                Ok(record)
            }
            _ => Err(Error::resource_not_found(id)),
        }
    }

    pub(super) async fn writable(&self, id: ResourceId, action: &str) -> Result<Record> {
        let record = self.visible(id).await?;
        self.require(&record, Permission::Write, action)?;
        Ok(record)
    }

    pub(super) fn require(&self, record: &Record, permission: Permission, action: &str) -> Result<()> {
        if self.principal.may(permission, &record.owner) {
            return Ok(());
        }
        if !self.principal.may(Permission::Read, &record.owner) {
            return Err(Error::resource_not_found(record.id));
        }
        let needs = if permission == Permission::Administer {
            "member.owner"
        } else {
            "member.editor"
        };
        Err(self.forbidden(action, needs))
    }
}

fn unsupported(what: &str, record: &Record) -> Error {
    Error::Unsupported {
        what: format!("{what} for {}", record.config.resource_type()),
        reason: format!("backend {} does not offer it", record.backend),
    }
}
