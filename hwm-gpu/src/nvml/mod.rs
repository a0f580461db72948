//! Everything that speaks to NVML.

pub(crate) mod ffi;
pub(crate) mod read;

use hwm_core::backend::{BackendError, BackendErrorKind};
use nvml_wrapper::error::NvmlError;

/// NVML's answer when a place or an engine is taken, which the wrapper has no word for.
const INSUFFICIENT_RESOURCES: u32 = 23;

/// What a failure of NVML is for the manager.
pub(crate) fn failed(doing: impl Into<String>, error: &NvmlError) -> BackendError {
    let message = match error {
        NvmlError::UnexpectedVariant(INSUFFICIENT_RESOURCES) => {
            "no room is left on the card for that".to_owned()
        }
        other => other.to_string(),
    };
    BackendError::new(kind(error), doing, message)
}

pub(crate) const fn kind(error: &NvmlError) -> BackendErrorKind {
    match error {
        NvmlError::Uninitialized
        | NvmlError::DriverNotLoaded
        | NvmlError::LibraryNotFound
        | NvmlError::LibRmVersionMismatch
        | NvmlError::LibloadingError(_) => BackendErrorKind::Unavailable,
        NvmlError::NoPermission => BackendErrorKind::Denied,
        NvmlError::NotSupported | NvmlError::FailedToLoadSymbol(_) => BackendErrorKind::Unsupported,
        NvmlError::InUse | NvmlError::UnexpectedVariant(INSUFFICIENT_RESOURCES) => BackendErrorKind::Conflict,
        NvmlError::Timeout => BackendErrorKind::Timeout,
        _ => BackendErrorKind::Failed,
    }
}

/// Whether the session itself is of no more use.
pub(crate) const fn ends_session(error: &NvmlError) -> bool {
    matches!(kind(error), BackendErrorKind::Unavailable)
}

/// Text of a driver as it may be shown and stored: no control characters.
pub(crate) fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(96).collect()
}

/// Whether a text is a UUID as drivers write them, so that it may be a name in files and claims.
pub(crate) fn is_uuid(text: &str) -> bool {
    let rest = text.strip_prefix("GPU-").or_else(|| text.strip_prefix("MIG-"));
    rest.is_some_and(|r| r.len() == 36 && r.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-'))
}
