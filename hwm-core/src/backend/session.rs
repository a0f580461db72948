//! Commands, consoles, and the sessions that people have with them.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::Result;

/// A command to run to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// For `/bin/sh -c`.
    pub command: String,
    /// Where to run it; the workload's default when absent.
    pub working_dir: Option<String>,
    /// How long it may take before it is killed.
    pub timeout: Duration,
    /// How many bytes of each of the two outputs are kept.
    pub output_limit: usize,
}

/// What a command did.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ExecOutput {
    /// Both outputs in the order in which they came.
    pub output: String,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Exit code.
    pub exit_code: i64,
    /// Whether output was cut at the limit.
    pub truncated: bool,
}

/// A command to run with someone at the other end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecSession {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Whether it gets a terminal; then all output is standard output.
    pub tty: bool,
    /// The terminal's size at first.
    pub size: Option<TerminalSize>,
}

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// Which console of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ConsoleKind {
    /// The screen.
    #[default]
    Vnc,
    /// The serial line.
    Serial,
}

/// What goes into a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Input {
    /// Bytes.
    Data(Vec<u8>),
    /// No more bytes will come; output goes on.
    Close,
    /// The terminal has another size.
    Resize(TerminalSize),
}

/// What comes out of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Output {
    /// Bytes of standard output, of a terminal or of a console.
    Stdout(Vec<u8>),
    /// Bytes of standard error.
    Stderr(Vec<u8>),
    /// The command ended; the last frame.
    Exit(i64),
}

/// Two bounded channels of frames: who does not read, stops the other side from writing. Dropping the
/// session ends it on the backend too.
#[derive(Debug)]
pub struct Session {
    /// Frames towards the workload.
    pub input: mpsc::Sender<Input>,
    /// Frames from the workload; the channel closes when it is over.
    pub output: mpsc::Receiver<Result<Output>>,
}

/// The two ends that a backend keeps of a [`Session`].
#[derive(Debug)]
pub struct SessionPeer {
    /// Frames from the client; `None` when it has gone.
    pub input: mpsc::Receiver<Input>,
    /// Frames to the client; an error when it has gone.
    pub output: mpsc::Sender<Result<Output>>,
}

impl Session {
    /// How many frames may be under way in each direction.
    pub const CREDIT: usize = 32;

    /// A session and the peer that serves it.
    pub fn pair() -> (Self, SessionPeer) {
        let (to_backend, input) = mpsc::channel(Self::CREDIT);
        let (output, from_backend) = mpsc::channel(Self::CREDIT);
        (
            Self {
                input: to_backend,
                output: from_backend,
            },
            SessionPeer { input, output },
        )
    }
}
