//! What is kept in memory is never older than what was answered.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hwm_core::lifecycle::Phase;
use hwm_core::resource::Record;
use hwm_core::store::{CommitError, ListQuery, PruneLimits, RecordWrite, Store, Transaction};
use hwm_core::units::Timestamp;
use hwm_store::{SealingKey, SqliteStore};

mod common;
use common::{Random, record, times};

const WRITERS: u64 = 4;
const EACH: u64 = 6;

fn write(record: Record, expected: Option<u64>) -> Transaction {
    Transaction {
        records: vec![RecordWrite { record, expected }],
        ..Transaction::default()
    }
}

/// The resource's revision, 0 where it is not there, and a check that it is all of one revision.
async fn revision(store: &SqliteStore, n: u64) -> u64 {
    let Some(found) = store.record(record(n).id).await.unwrap() else {
        return 0;
    };
    assert_eq!(found.name, format!("revision {}", found.revision));
    assert_eq!(found.config, record(n).config, "its secrets are there");
    found.revision
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn reads_keep_up_with_what_was_answered() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&folder.path().join("hwm.db"), SealingKey::from_bytes([7; 32])).unwrap();
    let answered: Arc<[AtomicU64]> = (0..WRITERS * EACH).map(|_| AtomicU64::new(0)).collect();
    let over = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let (store, answered) = (store.clone(), answered.clone());
        writers.push(tokio::spawn(async move {
            let mut random = Random(writer);
            for _ in 0..times(300) {
                let n = writer * EACH + random.below(EACH);
                let before = answered[n as usize].load(Ordering::SeqCst);
                let next = Record {
                    revision: before + 1,
                    name: format!("revision {}", before + 1),
                    ..record(n)
                };
                if random.below(4) == 0 {
                    // One that is refused changes nothing.
                    let wrong = store.commit(write(next.clone(), Some(before + 7))).await;
                    assert!(matches!(wrong, Err(CommitError::Stale { .. })), "{wrong:?}");
                    assert_eq!(revision(&store, n).await, before);
                }
                store
                    .commit(write(next, (before > 0).then_some(before)))
                    .await
                    .unwrap();
                answered[n as usize].store(before + 1, Ordering::SeqCst);
                assert_eq!(
                    revision(&store, n).await,
                    before + 1,
                    "a writer reads what it wrote"
                );
            }
        }));
    }
    let mut readers = Vec::new();
    for reader in 0..4 {
        let (store, answered, over) = (store.clone(), answered.clone(), over.clone());
        readers.push(tokio::spawn(async move {
            let mut random = Random(100 + reader);
            let mut reads = 0;
            while !over.load(Ordering::SeqCst) {
                let n = random.below(WRITERS * EACH);
                let least = answered[n as usize].load(Ordering::SeqCst);
                let found = revision(&store, n).await;
                assert!(found >= least, "{least} was answered and then {found} was read");
                if random.below(8) == 0 {
                    let page = store
                        .list(ListQuery {
                            limit: 100,
                            ..ListQuery::default()
                        })
                        .await
                        .unwrap();
                    let listed = page.records.iter().find(|r| r.id == record(n).id);
                    let listed = listed.map_or(0, |record| record.revision);
                    assert!(listed >= found, "{found} was read and then {listed} was listed");
                    assert!(revision(&store, n).await >= listed, "{listed} was listed");
                }
                reads += 1;
                tokio::task::yield_now().await;
            }
            reads
        }));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    over.store(true, Ordering::SeqCst);
    for reader in readers {
        assert!(reader.await.unwrap() > 0);
    }
}

#[tokio::test]
async fn what_was_pruned_is_not_remembered() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&folder.path().join("hwm.db"), SealingKey::from_bytes([7; 32])).unwrap();
    let deleted = Record {
        phase: Phase::Deleted,
        deleted_at: Some(Timestamp::from_millis(1)),
        ..record(1)
    };
    store.commit(write(deleted, None)).await.unwrap();
    assert!(store.record(record(1).id).await.unwrap().is_some());
    let all = Timestamp::from_millis(i64::MAX);
    let limits = PruneLimits {
        operations: all,
        events: all,
        remembered: all,
        deleted: all,
    };
    assert_eq!(store.prune(limits).await, Ok(1));
    assert_eq!(store.record(record(1).id).await, Ok(None));
}
