//! libvirt's errors, sorted by what can be done about them.

use hwm_core::backend::{BackendError, BackendErrorKind};
use virt::error::{Error, ErrorNumber};

/// What kind of failure libvirt met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum FaultKind {
    /// The connection is lost.
    Gone,
    /// There is no such domain, volume, pool or snapshot.
    NotFound,
    /// There is one already.
    Exists,
    /// It cannot be done in this state.
    State,
    /// libvirt or QEMU cannot do that.
    Unsupported,
    /// It refuses what was asked for.
    Invalid,
    /// The machine does not run.
    NotRunning,
    /// It may not.
    Denied,
    /// No space is left.
    NoSpace,
    /// The guest agent does not answer.
    Agent,
    /// Something took too long.
    Timeout,
    /// A newer generation was seen.
    Superseded,
    /// Anything else.
    Other,
}

/// A failure, in libvirt's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Fault {
    pub(crate) kind: FaultKind,
    pub(crate) message: String,
}

impl Fault {
    pub(crate) fn new(kind: FaultKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    pub(crate) fn other(message: impl Into<String>) -> Self {
        Self::new(FaultKind::Other, message)
    }

    /// As the trait's error.
    pub(crate) fn into_backend(self, doing: &str) -> BackendError {
        let kind = match self.kind {
            FaultKind::Gone => BackendErrorKind::Unavailable,
            FaultKind::NotFound => BackendErrorKind::NotFound,
            FaultKind::Exists => BackendErrorKind::Conflict,
            FaultKind::Unsupported => BackendErrorKind::Unsupported,
            FaultKind::Invalid => BackendErrorKind::Invalid,
            FaultKind::NotRunning => BackendErrorKind::NotRunning,
            FaultKind::Denied => BackendErrorKind::Denied,
            FaultKind::NoSpace => BackendErrorKind::NoSpace,
            FaultKind::Timeout | FaultKind::Agent => BackendErrorKind::Timeout,
            FaultKind::Superseded => BackendErrorKind::Superseded,
            FaultKind::State | FaultKind::Other => BackendErrorKind::Failed,
        };
        BackendError::new(kind, doing, self.message)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let message = error.message().to_owned();
        let lower = message.to_lowercase();
        let has = |parts: &[&str]| parts.iter().any(|part| lower.contains(part));
        let kind = match error.code() {
            ErrorNumber::NoConnect | ErrorNumber::InvalidConn => FaultKind::Gone,
            ErrorNumber::Rpc => FaultKind::Gone,
            ErrorNumber::NoDomain
            | ErrorNumber::NoStorageVolume
            | ErrorNumber::NoStoragePool
            | ErrorNumber::NoDomainSnapshot
            | ErrorNumber::NoNwfilter
            | ErrorNumber::NoDomainMetadata => FaultKind::NotFound,
            ErrorNumber::DomExist | ErrorNumber::StorageVolExist => FaultKind::Exists,
            ErrorNumber::AuthFailed
            | ErrorNumber::AuthCancelled
            | ErrorNumber::AuthUnavailable
            | ErrorNumber::AccessDenied
            | ErrorNumber::OperationDenied => FaultKind::Denied,
            ErrorNumber::NoSupport
            | ErrorNumber::ConfigUnsupported
            | ErrorNumber::OperationUnsupported
            | ErrorNumber::ArgumentUnsupported => FaultKind::Unsupported,
            ErrorNumber::XmlError | ErrorNumber::XmlDetail | ErrorNumber::XmlInvalidSchema => {
                FaultKind::Invalid
            }
            ErrorNumber::AgentUnresponsive
            | ErrorNumber::AgentUnsynced
            | ErrorNumber::AgentCommandTimeout => FaultKind::Agent,
            ErrorNumber::OperationTimeout => FaultKind::Timeout,
            ErrorNumber::OperationInvalid => FaultKind::State,
            _ if has(&["no space left", "disk quota exceeded"]) => FaultKind::NoSpace,
            ErrorNumber::SystemError
                if has(&[
                    "failed to connect socket",
                    "end of file",
                    "connection reset",
                    "broken pipe",
                ]) =>
            {
                FaultKind::Gone
            }
            ErrorNumber::InternalError if has(&["client socket is closed", "connection closed"]) => {
                FaultKind::Gone
            }
            _ => FaultKind::Other,
        };
        // What QEMU says of a full pool comes in many wrappings.
        let kind = match kind {
            FaultKind::Other | FaultKind::State if has(&["no space left"]) => FaultKind::NoSpace,
            kind => kind,
        };
        Self { kind, message }
    }
}
