//! Why a store does not open, and how SQLite's failures are told.

use std::path::PathBuf;

use hwm_core::store::StoreError;
use rusqlite::ErrorCode;

/// Why a store or its sealing key could not be opened. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A file could not be read, written or made.
    #[error("cannot open {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is no store of hwm's.
    #[error("{path} is not a store of hwm: {found}; choose another path")]
    NotAStore {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        found: &'static str,
    },
    /// The file was written by a newer hwm.
    #[error("{path} has schema {found}, and this hwm knows up to {known}: use the newer hwm")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// The newest schema that is known here.
        known: i64,
    },
    /// The file may not be written to.
    #[error("{path} is read-only: give its owner write access")]
    ReadOnly {
        /// The file.
        path: PathBuf,
    },
    /// Another store has the file open, in this process or another.
    #[error("{path} is in use: stop what uses it, or choose another path")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file system cannot hold a write-ahead log, which needs shared memory.
    #[error("{path} cannot have a write-ahead log: choose a folder on a local disk")]
    NoLog {
        /// The file.
        path: PathBuf,
    },
    /// The file is damaged.
    #[error("{path} is damaged: restore it from a backup")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The secrets of the file are sealed with another key.
    #[error("{path} is sealed with another key: restore the key that it was made with")]
    WrongKey {
        /// The file.
        path: PathBuf,
    },
    /// A key file does not hold a key, or others may read it.
    #[error("{path} cannot be the sealing key: {reason}")]
    BadKey {
        /// The key file.
        path: PathBuf,
        /// Why not, and the way out.
        reason: &'static str,
    },
    /// The SQLite library can lose commits.
    #[error("SQLite {found} can lose commits: link 3.51.3 or newer")]
    OldSqlite {
        /// Its version.
        found: &'static str,
    },
    /// SQLite refused for another reason.
    #[error("cannot open {path}")]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
}

impl OpenError {
    pub(crate) fn from_sqlite(path: &std::path::Path, source: rusqlite::Error) -> Self {
        let path = path.to_owned();
        match source.sqlite_error_code() {
            Some(ErrorCode::NotADatabase) => {
                let found = "it is no SQLite database";
                Self::NotAStore { path, found }
            }
            Some(ErrorCode::ReadOnly) => Self::ReadOnly { path },
            Some(ErrorCode::DatabaseCorrupt) => Self::Damaged { path, source },
            _ => Self::Sqlite { path, source },
        }
    }
}

/// Tells a failure of SQLite, with the way out where there is one.
pub(crate) fn failed(doing: &str) -> impl Fn(rusqlite::Error) -> StoreError + '_ {
    move |error| {
        let way_out = match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => ": free some space",
            Some(ErrorCode::ReadOnly) => ": give its owner write access",
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => ": restore it from a backup",
            _ => "",
        };
        StoreError::new(doing, format!("{error}{way_out}"))
    }
}

/// Tells that something stored does not read back.
pub(crate) fn unreadable(what: &str, error: impl std::fmt::Display) -> StoreError {
    let message = format!("what is stored does not read back ({error}): restore a backup");
    StoreError::new(format!("reading {what}"), message)
}
