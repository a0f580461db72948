//! The embedded store of hwm: [`Store`](hwm_core::store::Store) on SQLite, in one file.
//!
//! ```
//! use hwm_core::store::{Store, Transaction};
//! use hwm_store::{SealingKey, SqliteStore};
//!
//! # let folder = tempfile::tempdir()?;
//! # let folder = folder.path();
//! # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
//! let key = SealingKey::load_or_create(&folder.join("store.key"))?;
//! let store = SqliteStore::open(&folder.join("hwm.db"), key)?;
//! let note = ("boot".to_owned(), "1".to_owned());
//! store.commit(Transaction { notes: vec![note], ..Transaction::default() }).await?;
//! assert_eq!(store.note("boot").await?.as_deref(), Some("1"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! * A commit is on the disk when it is answered (write-ahead log, `synchronous = FULL`). Commits that wait
//!   at the same time are written together; see [`Statistics`].
//! * Readers have connections of their own and never wait for a writer. Records that were read lately are kept
//!   in memory, decoded, until they are written again.
//! * One store at a time has a file open, in this process or any other.
//! * Secrets are sealed with a [`SealingKey`] that is kept outside the file.
//! * Lists and their counts cost the same however many resources there are, free text aside. They grow with
//!   the number of different (node, type, status) that a query selects.
#![forbid(unsafe_code)]

mod claims;
mod columns;
mod error;
mod group;
mod list;
mod prune;
mod readers;
mod reads;
mod recent;
mod rows;
mod schema;
mod seal;
mod search;
mod store;
mod writer;

pub use error::OpenError;
pub use seal::SealingKey;
pub use store::{SqliteStore, Statistics};
