//! The store itself: which thread does what.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use hwm_core::event::StoredEvent;
use hwm_core::id::{BackendName, NodeId, OperationId, ResourceId};
use hwm_core::ledger::{Claim, Pool};
use hwm_core::lifecycle::Phase;
use hwm_core::operation::OperationRecord;
use hwm_core::resource::Record;
use hwm_core::snapshot::Snapshot;
use hwm_core::store::{
    ClaimFilter, CommitError, EventPage, EventQuery, ListPage, ListQuery, OperationPage, OperationQuery,
    PruneLimits, Remembered, Result, Store, StoreError, Transaction,
};

use crate::error::{OpenError, failed};
use crate::readers::Readers;
use crate::recent::Recent;
use crate::seal::SealingKey;
use crate::writer::Writer;
use crate::{claims, list, reads, schema};

/// A store in one SQLite file. Clones are the same store; the file is closed when the last is dropped, which
/// waits for the commits that are under way.
#[derive(Clone)]
pub struct SqliteStore {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    key: SealingKey,
    recent: Arc<Recent>,
    // Closed before the writer, whose connection then empties the log into the file.
    readers: Readers,
    writer: Writer,
    // Given up last, when nothing is open any more.
    _lock: File,
}

/// What a store has done since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statistics {
    /// Transactions that were committed.
    pub commits: u64,
    /// Groups that they were written in; each asked the disk once.
    pub groups: u64,
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore")
            .field("path", &self.inner.path)
            .finish_non_exhaustive()
    }
}

impl SqliteStore {
    /// Opens the file, or makes it, with mode 0600, and brings it to the newest schema. Blocks the thread for
    /// as long as that takes: milliseconds, unless the schema changes or a crash left a long log.
    ///
    /// # Errors
    ///
    /// See [`OpenError`]. A file that is refused is left as it was.
    pub fn open(path: &Path, key: SealingKey) -> Result<Self, OpenError> {
        Self::open_limited(path, key, None)
    }

    /// As [`open`](Self::open), and the file does not grow beyond so many bytes (rounded down to pages of 4
    /// KiB): commits that need more fail as on a full disk. Its log may take 64 MiB beside it.
    ///
    /// # Errors
    ///
    /// As for [`open`](Self::open).
    pub fn open_limited(path: &Path, key: SealingKey, most_bytes: Option<u64>) -> Result<Self, OpenError> {
        let (db, lock) = schema::open_writer(path, &key)?;
        if let Some(bytes) = most_bytes {
            let pages = i64::try_from(bytes / 4096).unwrap_or(i64::MAX).max(1);
            db.pragma_update(None, "max_page_count", pages)
                .map_err(|e| OpenError::from_sqlite(path, e))?;
        }
        let readers = Readers::open(path)?;
        let recent = Arc::new(Recent::new());
        let writer = Writer::spawn(db, key.clone(), recent.clone()).map_err(|source| OpenError::Io {
            path: path.to_owned(),
            source,
        })?;
        let inner = Inner {
            path: path.to_owned(),
            key,
            recent,
            readers,
            writer,
            _lock: lock,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// What it has done since it was opened.
    pub fn statistics(&self) -> Statistics {
        let done = self.inner.writer.done();
        Statistics {
            commits: done.commits.load(Ordering::Relaxed),
            groups: done.groups.load(Ordering::Relaxed),
        }
    }

    /// Reads the whole file and checks it against its checksums of structure and its indexes. Takes seconds
    /// per GB.
    ///
    /// # Errors
    ///
    /// When the file is damaged, with what SQLite found.
    pub async fn check(&self) -> Result<()> {
        self.inner
            .readers
            .aside(|db| {
                let doing = "checking the file";
                let found: String = db
                    .query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
                    .map_err(failed(doing))?;
                if found == "ok" {
                    Ok(())
                } else {
                    Err(StoreError::new(doing, found))
                }
            })
            .await
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn commit(&self, transaction: Transaction) -> Result<Vec<StoredEvent>, CommitError> {
        self.inner.writer.commit(transaction).await
    }

    async fn record(&self, id: ResourceId) -> Result<Option<Record>> {
        let Inner {
            readers, recent, key, ..
        } = &*self.inner;
        reads::record(readers, recent, key, id)
    }

    async fn list(&self, query: ListQuery) -> Result<ListPage> {
        let recent = self.inner.recent.clone();
        self.inner
            .readers
            .aside(move |db| list::page(db, &recent, &query))
            .await
    }

    async fn ids_in_phases(
        &self,
        backend: &BackendName,
        phases: &[Phase],
        after: Option<ResourceId>,
        limit: usize,
    ) -> Result<Vec<ResourceId>> {
        let (backend, phases) = (backend.clone(), phases.to_vec());
        let read = move |db: &_| reads::ids_in_phases(db, &backend, &phases, after, limit);
        self.inner.readers.aside(read).await
    }

    async fn claims(&self, node: &NodeId, filter: ClaimFilter) -> Result<Vec<Claim>> {
        match filter {
            ClaimFilter::Holder(_) | ClaimFilter::Keys(_) => {
                self.inner.readers.here(|db| claims::select(db, node, &filter))
            }
            ClaimFilter::All | ClaimFilter::Prefix(_) => {
                let node = node.clone();
                self.inner
                    .readers
                    .aside(move |db| claims::select(db, &node, &filter))
                    .await
            }
        }
    }

    async fn pools(&self, node: &NodeId) -> Result<BTreeMap<Pool, u64>> {
        self.inner.readers.here(|db| claims::pools(db, node))
    }

    async fn operation(&self, id: OperationId) -> Result<Option<OperationRecord>> {
        self.inner.readers.here(|db| reads::operation(db, id))
    }

    async fn operations(&self, query: OperationQuery) -> Result<OperationPage> {
        if query.resource.is_some() && query.unfinished {
            return self.inner.readers.here(|db| reads::operations(db, &query));
        }
        self.inner
            .readers
            .aside(move |db| reads::operations(db, &query))
            .await
    }

    async fn events(&self, query: EventQuery) -> Result<EventPage> {
        self.inner.readers.aside(move |db| reads::events(db, query)).await
    }

    async fn snapshots(&self, resource: ResourceId) -> Result<Vec<Snapshot>> {
        self.inner.readers.here(|db| reads::snapshots(db, resource))
    }

    async fn remembered(&self, key: &str) -> Result<Option<Remembered>> {
        self.inner.readers.here(|db| reads::remembered(db, key))
    }

    async fn note(&self, name: &str) -> Result<Option<String>> {
        self.inner.readers.here(|db| reads::note(db, name))
    }

    async fn prune(&self, limits: PruneLimits) -> Result<u64> {
        let mut gone = 0;
        loop {
            // A little at a time, so that commits do not wait long.
            let pruned = self.inner.writer.prune(limits).await?;
            gone += pruned.gone;
            if !pruned.more {
                return Ok(gone);
            }
        }
    }
}
