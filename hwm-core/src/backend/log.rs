//! Logs, and which part of them.

use serde::{Deserialize, Serialize};

use crate::units::Timestamp;

/// Which lines of a log.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LogQuery {
    /// Only the last so many.
    pub tail: Option<u32>,
    /// Only from this moment on.
    pub since: Option<Timestamp>,
    /// Only before this moment.
    pub until: Option<Timestamp>,
    /// Whether to go on with what comes.
    pub follow: bool,
}

/// Where a line of a log came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// The serial console.
    Console,
    /// hwm or the backend.
    System,
}

/// How serious a line of a log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum LogLevel {
    /// The usual.
    Info,
    /// Worth a look; what came on standard error.
    Warn,
    /// Something failed.
    Error,
}

/// A line of a log, without its line end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LogLine {
    /// When it was written.
    pub timestamp: Timestamp,
    /// Where it came from.
    pub stream: LogStream,
    /// How serious it is.
    pub level: LogLevel,
    /// The line; bytes that are no UTF-8 are replaced.
    pub message: String,
}
