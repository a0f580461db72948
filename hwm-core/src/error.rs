//! What can go wrong, in the contract's words.

use std::time::Duration;

use crate::backend::{BackendError, BackendErrorKind};
use crate::id::{BackendName, ResourceId};
use crate::lifecycle::Phase;
pub use crate::refusal::{Conflict, ConflictKind, Holder, Violation};
use crate::store::StoreError;

/// Everything that a call to hwm can fail with.
///
/// `Display` says what was being done, to what, and the way out; a cause, where there is one, is in
/// [`source`](std::error::Error::source).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The request breaks rules; all of them are listed.
    #[error("the request breaks {} rule{}", .0.len(), if .0.len() == 1 { "" } else { "s" })]
    Validation(Vec<Violation>),
    /// There is no such thing, or the caller may not see it.
    #[error("{what} not found")]
    NotFound {
        /// The thing, for example `resource 0190…`.
        what: String,
    },
    /// The caller may see the thing but not do this to it.
    #[error("{action} is not allowed: {reason}")]
    Forbidden {
        /// What was tried.
        action: String,
        /// Which role would allow it.
        reason: String,
    },
    /// The resource's state does not allow the action.
    #[error("cannot {action} a resource that is {phase}: {reason}")]
    InvalidState {
        /// What was asked for, as a verb.
        action: &'static str,
        /// The state, after the operations that are queued.
        phase: Phase,
        /// Why, and the way out.
        reason: &'static str,
    },
    /// Something is held by another resource, or there is not enough of it.
    #[error("{0}")]
    Conflict(Box<Conflict>),
    /// Too many operations wait on the resource.
    #[error("resource {resource} already has {limit} operations waiting: wait for one, or cancel one")]
    TooManyOperations {
        /// The resource.
        resource: ResourceId,
        /// The most that may wait.
        limit: usize,
    },
    /// An idempotency key was used before with another request.
    #[error("this Idempotency-Key was used before with another request: use a new key")]
    IdempotencyMismatch,
    /// The resource is not at the revision that the caller named.
    #[error("resource {resource} has changed: read it again and repeat the request")]
    PreconditionFailed {
        /// The resource.
        resource: ResourceId,
    },
    /// This node cannot do that.
    #[error("{what} is not supported: {reason}")]
    Unsupported {
        /// What was asked for.
        what: String,
        /// Why not, and the way out.
        reason: String,
    },
    /// The backend does not answer at present.
    #[error("backend {backend} is away: {reason}")]
    BackendUnavailable {
        /// The backend.
        backend: BackendName,
        /// What it or the connection said.
        reason: String,
        /// When to try again.
        retry_after: Duration,
    },
    /// The backend tried and failed.
    #[error("backend {backend} failed")]
    Backend {
        /// The backend.
        backend: BackendName,
        /// What it said.
        source: BackendError,
    },
    /// It took longer than it may.
    #[error("{what} took longer than {} s", limit.as_secs())]
    Timeout {
        /// What was being done.
        what: String,
        /// How long it was given.
        limit: Duration,
    },
    /// The store failed.
    #[error("the store failed")]
    Store(#[from] StoreError),
    /// The manager is shutting down.
    #[error("the manager is shutting down: try again when it is back")]
    ShuttingDown,
}

impl Error {
    /// The contract's stable word for this error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Validation(_) => "VALIDATION_FAILED",
            Self::NotFound { .. } => "NOT_FOUND",
            Self::Forbidden { .. } => "FORBIDDEN",
            Self::InvalidState { .. } => "INVALID_STATE",
            Self::Conflict(conflict) => match conflict.kind {
                ConflictKind::Gpu => "GPU_CONFLICT",
                ConflictKind::Port => "PORT_CONFLICT",
                ConflictKind::Address => "ADDRESS_CONFLICT",
                ConflictKind::Volume => "VOLUME_CONFLICT",
                ConflictKind::Capacity => "INSUFFICIENT_CAPACITY",
            },
            Self::TooManyOperations { .. } => "TOO_MANY_OPERATIONS",
            Self::IdempotencyMismatch => "IDEMPOTENCY_MISMATCH",
            Self::PreconditionFailed { .. } => "PRECONDITION_FAILED",
            Self::Unsupported { .. } => "UNSUPPORTED",
            Self::BackendUnavailable { .. } | Self::ShuttingDown => "BACKEND_UNAVAILABLE",
            Self::Backend { source, .. } => source.kind.code(),
            Self::Timeout { .. } => "TIMEOUT",
            Self::Store(_) => "INTERNAL",
        }
    }

    /// What a backend's error means to the caller of the manager.
    pub(crate) fn from_backend(backend: &BackendName, error: BackendError) -> Self {
        match error.kind {
            BackendErrorKind::Unavailable => Self::BackendUnavailable {
                backend: backend.clone(),
                reason: error.message,
                retry_after: Duration::from_secs(5),
            },
            BackendErrorKind::Unsupported => Self::Unsupported {
                what: error.doing,
                reason: error.message,
            },
            BackendErrorKind::NotFound
            | BackendErrorKind::NotRunning
            | BackendErrorKind::Invalid
            | BackendErrorKind::Conflict
            | BackendErrorKind::Denied
            | BackendErrorKind::NoSpace
            | BackendErrorKind::Timeout
            | BackendErrorKind::Superseded
            | BackendErrorKind::Failed => Self::Backend {
                backend: backend.clone(),
                source: error,
            },
        }
    }

    pub(crate) fn resource_not_found(id: ResourceId) -> Self {
        Self::NotFound {
            what: format!("resource {id}"),
        }
    }
}
