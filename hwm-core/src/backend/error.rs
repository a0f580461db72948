//! How a backend's call fails.

use serde::{Deserialize, Serialize};

/// What kind of failure a backend met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum BackendErrorKind {
    /// It does not answer. Trying again helps when it is back.
    Unavailable,
    /// There is no such workload, image, snapshot or file.
    NotFound,
    /// The workload does not run, so it has no console and takes no commands.
    NotRunning,
    /// It refuses the config: trying again does not help.
    Invalid,
    /// Something that is not ours is in the way: a name, a port.
    Conflict,
    /// It may not: wrong credentials, no permission.
    Denied,
    /// This host cannot do that.
    Unsupported,
    /// No space is left.
    NoSpace,
    /// It took too long.
    Timeout,
    /// A newer generation was seen.
    Superseded,
    /// Anything else that failed.
    Failed,
}

impl BackendErrorKind {
    /// The contract's stable word for it.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Unavailable => "BACKEND_UNAVAILABLE",
            Self::NotRunning => "INVALID_STATE",
            Self::Unsupported => "UNSUPPORTED",
            Self::Timeout => "TIMEOUT",
            Self::NotFound
            | Self::Invalid
            | Self::Conflict
            | Self::Denied
            | Self::NoSpace
            | Self::Superseded
            | Self::Failed => "BACKEND_FAILED",
        }
    }
}

/// A failure of a backend. Its text holds no secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{doing}{}{message}", if doing.is_empty() { "" } else { ": " })]
pub struct BackendError {
    /// What kind.
    pub kind: BackendErrorKind,
    /// What was being done, to what, for example `pulling image nginx:alpine`; empty where the message says it.
    pub doing: String,
    /// What went wrong, and the way out where one is known.
    pub message: String,
}

impl BackendError {
    /// A failure.
    pub fn new(kind: BackendErrorKind, doing: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            kind,
            doing: doing.into(),
            message: message.into(),
        }
    }

    /// Whether the same call can succeed later without anyone changing the request.
    pub const fn is_retryable(&self) -> bool {
        match self.kind {
            BackendErrorKind::Unavailable => true,
            BackendErrorKind::NotFound
            | BackendErrorKind::NotRunning
            | BackendErrorKind::Invalid
            | BackendErrorKind::Conflict
            | BackendErrorKind::Denied
            | BackendErrorKind::Unsupported
            | BackendErrorKind::NoSpace
            | BackendErrorKind::Timeout
            | BackendErrorKind::Superseded
            | BackendErrorKind::Failed => false,
        }
    }
}
