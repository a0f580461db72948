//! Records that were read lately, decoded. Reading a row and decoding it costs most of a request for one
//! resource, and clients ask for the same few again and again.
//!
//! Groups of commits are numbered. What is kept bears the number of the last group that was in the file before
//! it was read, and each id bears the number of the last group that wrote it, or is about to. What is kept is
//! good while its own number is not the smaller, so a read that began after a commit was answered sees it. Ids
//! share their numbers with others of the same hash, which may make a good record seem old, never the other
//! way around.
//!
//! This is right because nobody else writes to the file: see [`schema::open_writer`](crate::schema::open_writer).
//! Secrets are kept as they are stored: sealed.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hwm_core::id::ResourceId;
use hwm_core::resource::Record;
use hwm_core::store::StoreError;
use quick_cache::sync::Cache;

use crate::error::unreadable;

/// How many are kept; a record takes a few KiB.
const MOST: usize = 2048;

/// How many numbers the ids share.
const NUMBERS: usize = 4096;

/// A row of a record, decoded.
pub(crate) struct Row {
    text: Box<str>,
    /// Without its secrets.
    pub(crate) record: Record,
    /// The secrets.
    pub(crate) sealed: Option<Box<[u8]>>,
    as_of: AsOf,
}

/// The last group that was in the file before a read began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct AsOf(u64);

pub(crate) struct Recent {
    rows: Cache<u128, Arc<Row>>,
    /// The last group that is in the file.
    committed: AtomicU64,
    /// The last group that wrote an id of each hash.
    written: Box<[AtomicU64]>,
    /// The last group that may have written any id.
    written_any: AtomicU64,
    hasher: RandomState,
}

impl Recent {
    pub(crate) fn new() -> Self {
        Self {
            rows: Cache::new(MOST),
            committed: AtomicU64::new(0),
            written: (0..NUMBERS).map(|_| AtomicU64::new(0)).collect(),
            written_any: AtomicU64::new(0),
            hasher: RandomState::new(),
        }
    }

    fn written(&self, id: ResourceId) -> &AtomicU64 {
        &self.written[self.hasher.hash_one(id.as_u128()) as usize % NUMBERS]
    }

    /// To be asked before a read of the file begins.
    pub(crate) fn now(&self) -> AsOf {
        AsOf(self.committed.load(Ordering::SeqCst))
    }

    /// The row as the file has it, if it is kept.
    pub(crate) fn get(&self, id: ResourceId) -> Option<Arc<Row>> {
        let row = self.rows.get(&id.as_u128())?;
        let written = self.written(id).load(Ordering::SeqCst);
        let written = written.max(self.written_any.load(Ordering::SeqCst));
        (row.as_of.0 >= written).then_some(row)
    }

    /// Keeps what a read that began at `as_of` has found. Text that is already decoded is not decoded again,
    /// however old it is.
    pub(crate) fn keep(
        &self,
        as_of: AsOf,
        id: ResourceId,
        text: &str,
        sealed: Option<&[u8]>,
    ) -> Result<Arc<Row>, StoreError> {
        let kept = self.rows.get(&id.as_u128());
        let same = kept.filter(|row| *row.text == *text && row.sealed.as_deref() == sealed);
        let record = match &same {
            Some(row) if row.as_of >= as_of => return Ok(row.clone()),
            Some(row) => row.record.clone(),
            None => serde_json::from_str(text).map_err(|e| unreadable("a resource", e))?,
        };
        let row = Arc::new(Row {
            text: text.into(),
            record,
            sealed: sealed.map(Box::from),
            as_of,
        });
        self.rows.insert(id.as_u128(), row.clone());
        Ok(row)
    }

    /// Begins a group that writes these. Until the guard is dropped, which must be when the group is in the file
    /// or never will be, they are read from the file.
    pub(crate) fn writing(&self, ids: impl Iterator<Item = ResourceId>) -> Writing<'_> {
        let writing = self.next();
        ids.for_each(|id| self.written(id).store(writing.group, Ordering::SeqCst));
        writing
    }

    /// As [`writing`](Self::writing), for a group that writes nobody knows which.
    pub(crate) fn writing_any(&self) -> Writing<'_> {
        let writing = self.next();
        self.written_any.store(writing.group, Ordering::SeqCst);
        writing
    }

    fn next(&self) -> Writing<'_> {
        Writing {
            recent: self,
            group: self.committed.load(Ordering::SeqCst) + 1,
        }
    }
}

/// A group that is being written.
pub(crate) struct Writing<'a> {
    recent: &'a Recent,
    group: u64,
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.recent.committed.store(self.group, Ordering::SeqCst);
    }
}
