//! Files that are not what they should be, and disks that are full.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use hwm_core::access::Visibility;
use hwm_core::lifecycle::Phase;
use hwm_core::store::{
    ClaimFilter, CommitError, EventQuery, ListQuery, OperationQuery, PruneLimits, RecordWrite, Store,
    StoreError, Transaction,
};
use hwm_core::units::Timestamp;
use hwm_store::{OpenError, SealingKey, SqliteStore};
use rusqlite::Connection;
use tempfile::TempDir;

mod common;
use common::{Random, record, times};

fn key() -> SealingKey {
    SealingKey::from_bytes([7; 32])
}

fn open(path: &Path) -> Result<SqliteStore, OpenError> {
    SqliteStore::open(path, key())
}

fn created(n: u64) -> Transaction {
    let records = vec![RecordWrite {
        record: record(n),
        expected: None,
    }];
    let notes = vec![("count".to_owned(), n.to_string())];
    Transaction {
        records,
        notes,
        ..Transaction::default()
    }
}

/// A closed store with so many records, numbered from 1.
async fn store_with(records: u64) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hwm.db");
    let store = open(&path).unwrap();
    for n in 1..=records {
        store.commit(created(n)).await.unwrap();
    }
    (folder, path)
}

async fn refused(path: &Path) -> OpenError {
    let before = std::fs::read(path).unwrap();
    let error = open(path).expect_err("it is refused");
    assert_eq!(
        std::fs::read(path).unwrap(),
        before,
        "what is refused is left as it was"
    );
    error
}

#[tokio::test]
async fn it_is_there_again_when_it_is_opened_again() {
    use std::os::unix::fs::MetadataExt;
    let (_folder, path) = store_with(3).await;
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    let store = open(&path).unwrap();
    assert_eq!(store.record(record(2).id).await, Ok(Some(record(2))));
    assert_eq!(store.check().await, Ok(()));
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    drop(store);
    drop(open(&path).unwrap());
    assert_eq!(
        std::fs::metadata(&path).unwrap().mode() & 0o777,
        0o600,
        "others lose their access"
    );
}

#[tokio::test]
async fn a_store_that_is_open_is_not_opened_again() {
    let (_folder, path) = store_with(1).await;
    let first = open(&path).unwrap();
    let error = open(&path).unwrap_err();
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    first.commit(created(2)).await.unwrap();
    drop(first);
    let again = open(&path).unwrap();
    assert_eq!(again.record(record(2).id).await, Ok(Some(record(2))));
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let (_folder, path) = store_with(1).await;
    Connection::open(&path)
        .unwrap()
        .pragma_update(None, "user_version", 99)
        .unwrap();
    let error = refused(&path).await;
    assert!(
        matches!(
            error,
            OpenError::Newer {
                found: 99,
                known: 1,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("use the newer hwm"), "{error}");
}

#[tokio::test]
async fn what_is_no_store_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("notes.txt");
    std::fs::write(&text, "dear diary, ".repeat(1000)).unwrap();
    let error = refused(&text).await;
    assert!(matches!(error, OpenError::NotAStore { .. }), "{error}");

    let other = folder.path().join("other.db");
    Connection::open(&other)
        .unwrap()
        .execute_batch("CREATE TABLE bookmarks (url)")
        .unwrap();
    let error = refused(&other).await;
    assert!(matches!(error, OpenError::NotAStore { .. }), "{error}");

    let (_folder, path) = store_with(5).await;
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..50]).unwrap();
    refused(&path).await;

    assert!(open(folder.path()).is_err(), "a folder is no store");
    assert!(
        open(&folder.path().join("missing/hwm.db")).is_err(),
        "a folder is not made"
    );
}

#[tokio::test]
async fn another_key_is_refused() {
    let (_folder, path) = store_with(1).await;
    let error = SqliteStore::open(&path, SealingKey::from_bytes([8; 32])).unwrap_err();
    assert!(matches!(error, OpenError::WrongKey { .. }), "{error}");
    assert!(open(&path).is_ok(), "the right key still opens it");
}

#[tokio::test]
async fn secrets_are_nowhere_in_the_clear() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hwm.db");
    let store = open(&path).unwrap();
    for n in 1..50 {
        store.commit(created(n)).await.unwrap();
    }
    let clear = |folder: &Path| {
        let files = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path());
        let shows = |file: &PathBuf| std::fs::read(file).unwrap().windows(7).any(|w| w == b"canary-");
        files.filter(shows).collect::<Vec<_>>()
    };
    assert_eq!(clear(folder.path()), [] as [PathBuf; 0], "while it is open");
    let debug = format!("{store:?}");
    drop(store);
    assert_eq!(clear(folder.path()), [] as [PathBuf; 0], "when it is closed");
    assert!(!debug.contains("canary"));
}

#[tokio::test]
async fn a_sealed_secret_opens_in_no_other_record() {
    let (_folder, path) = store_with(2).await;
    let db = Connection::open(&path).unwrap();
    let swap = "UPDATE records SET sealed = (SELECT sealed FROM records WHERE name = 'resource 1') \
                WHERE name = 'resource 2'";
    assert_eq!(db.execute(swap, []).unwrap(), 1);
    drop(db);
    let store = open(&path).unwrap();
    assert_eq!(store.record(record(1).id).await, Ok(Some(record(1))));
    let error = store.record(record(2).id).await.unwrap_err();
    assert!(error.to_string().contains("unsealing"), "{error}");
}

#[tokio::test]
async fn a_deleted_record_has_no_sealed_secrets() {
    let (_folder, path) = store_with(1).await;
    let store = open(&path).unwrap();
    let mut deleted = record(1);
    deleted.revision = 2;
    deleted.phase = Phase::Deleted;
    let records = vec![RecordWrite {
        record: deleted,
        expected: Some(1),
    }];
    store
        .commit(Transaction {
            records,
            ..Transaction::default()
        })
        .await
        .unwrap();
    drop(store);
    let db = Connection::open(&path).unwrap();
    let count = "SELECT count(*) FROM records WHERE sealed IS NOT NULL";
    assert_eq!(db.query_row(count, [], |row| row.get::<_, i64>(0)).unwrap(), 0);
}

/// Everything that can be read, and one commit. Errors are answers; a panic or a hang is not.
async fn use_all(store: &SqliteStore, records: u64) -> Vec<StoreError> {
    let mut errors = Vec::new();
    for n in 1..=records {
        errors.extend(store.record(record(n).id).await.err());
    }
    for search in [None, Some("resource".to_owned()), Some("x".to_owned())] {
        let query = ListQuery {
            search,
            limit: 200,
            include_deleted: true,
            ..ListQuery::default()
        };
        errors.extend(store.list(query).await.err());
    }
    let node = record(1).node;
    errors.extend(store.claims(&node, ClaimFilter::All).await.err());
    errors.extend(store.pools(&node).await.err());
    let query = OperationQuery {
        visibility: Visibility::All,
        resource: None,
        unfinished: false,
        offset: 0,
        limit: 100,
    };
    errors.extend(store.operations(query).await.err());
    errors.extend(store.events(EventQuery { after: 0, limit: 100 }).await.err());
    errors.extend(
        store
            .ids_in_phases(&"docker".into(), &Phase::ALL, None, 100)
            .await
            .err(),
    );
    errors.extend(store.note("count").await.err());
    if let Err(CommitError::Store(error)) = store.commit(created(records + 1)).await {
        errors.push(error);
    }
    errors.extend(store.check().await.err());
    errors
}

#[tokio::test]
async fn a_damaged_file_is_an_error_and_never_a_panic() {
    const RECORDS: u64 = 40;
    const MUTANTS: u64 = 400;
    let (folder, path) = store_with(RECORDS).await;
    let whole = std::fs::read(&path).unwrap();
    let mut random = Random(1);
    let (mut refused, mut failing) = (0, 0);
    for mutant in 0..times(MUTANTS) {
        let mut damaged = whole.clone();
        for _ in 0..=random.below(8) {
            let at = random.below(damaged.len() as u64) as usize;
            damaged[at] ^= 1 << random.below(8);
        }
        if mutant % 5 == 0 {
            // A page that was never written.
            let page = random.below(damaged.len() as u64 / 4096) as usize * 4096;
            damaged[page..page + 4096].fill(0);
        }
        let path = folder.path().join(format!("{mutant}.db"));
        std::fs::write(&path, &damaged).unwrap();
        match open(&path) {
            Err(_) => refused += 1,
            Ok(store) => {
                let errors = use_all(&store, RECORDS).await;
                assert!(
                    !errors.iter().any(|e| e.message.contains("ended")),
                    "a thread has panicked: {errors:?}"
                );
                failing += u64::from(!errors.is_empty());
            }
        }
        std::fs::remove_file(&path).unwrap();
    }
    assert!(
        refused > 0 && failing > MUTANTS / 4,
        "damage is seen: {refused} refused, {failing} failing"
    );
}

/// A power cut leaves some beginning of the log, and rubbish after it.
#[tokio::test]
async fn a_log_that_is_cut_off_leaves_the_commits_before() {
    const CUTS: u64 = 150;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hwm.db");
    drop(open(&path).unwrap());
    let store = open(&path).unwrap();
    let mut log_after = Vec::new();
    let log_of = |path: &Path| PathBuf::from(format!("{}-wal", path.display()));
    for n in 1..=30 {
        store.commit(created(n)).await.unwrap();
        log_after.push(std::fs::metadata(log_of(&path)).unwrap().len());
    }
    let (whole, log) = (
        std::fs::read(&path).unwrap(),
        std::fs::read(log_of(&path)).unwrap(),
    );
    drop(store);

    let mut random = Random(2);
    for cut in 0..times(CUTS) {
        let length = random.below(log.len() as u64 + 1);
        let mut log = log.clone();
        let rubbish = &mut log[length as usize..];
        rubbish
            .iter_mut()
            .for_each(|byte| *byte ^= 1 + random.below(255) as u8);
        if random.below(2) == 0 {
            log.truncate(length as usize);
        }
        let path = folder.path().join(format!("{cut}.db"));
        std::fs::write(&path, &whole).unwrap();
        std::fs::write(log_of(&path), &log).unwrap();
        let store = open(&path).unwrap();
        assert_eq!(store.check().await, Ok(()), "cut at {length}");
        let count: u64 = store
            .note("count")
            .await
            .unwrap()
            .map_or(0, |n| n.parse().unwrap());
        let written = log_after.iter().filter(|after| **after <= length).count() as u64;
        assert_eq!(
            count, written,
            "every commit that is whole in the log, and no other: cut at {length}"
        );
        let page = store.list(ListQuery::default()).await.unwrap();
        assert_eq!(page.total, count, "cut at {length}");
    }
}

#[tokio::test]
async fn a_full_disk_fails_commits_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hwm.db");
    let store = SqliteStore::open_limited(&path, key(), Some(1 << 20)).unwrap();
    let mut n = 0;
    let error = loop {
        n += 1;
        match store.commit(created(n)).await {
            Ok(_) => assert!(n < 5_000, "1 MiB does not hold so many"),
            Err(error) => break error,
        }
    };
    assert!(error.to_string().contains("free some space"), "{error}");
    let page = store.list(ListQuery::default()).await.unwrap();
    assert_eq!(
        page.total,
        n - 1,
        "what was acknowledged is there, what was not is not"
    );

    // In a group with one that does not fit, the others are committed.
    let note = |name: &str, length: usize| Transaction {
        notes: vec![(name.to_owned(), "x".repeat(length))],
        ..Transaction::default()
    };
    let small = |name: &str| Transaction {
        notes: vec![("count".to_owned(), name.to_owned())],
        ..Transaction::default()
    };
    let (first, big, last) = tokio::join!(
        store.commit(small("a")),
        store.commit(note("big", 4 << 20)),
        store.commit(small("b"))
    );
    assert!(first.is_ok() && last.is_ok(), "{first:?} {last:?}");
    assert!(matches!(big, Err(CommitError::Store(_))), "{big:?}");
    assert_eq!(store.note("count").await, Ok(Some("b".to_owned())));

    // Space is made: what was deleted goes.
    let never = Timestamp::from_millis(-1);
    let limits = PruneLimits {
        operations: never,
        events: never,
        remembered: never,
        deleted: Timestamp::from_millis(1),
    };
    let mut gone = 0;
    for n in 1..n {
        let mut deleted = record(n);
        (deleted.phase, deleted.revision, deleted.deleted_at) =
            (Phase::Deleted, 2, Some(Timestamp::from_millis(0)));
        let records = vec![RecordWrite {
            record: deleted,
            expected: Some(1),
        }];
        // Moving in an index may need a page that is not there; then it stays.
        if store
            .commit(Transaction {
                records,
                ..Transaction::default()
            })
            .await
            .is_ok()
        {
            gone += store.prune(limits).await.unwrap();
        }
    }
    assert!(gone > n / 2, "{gone} of {n} could be deleted");
    for n in n..n + 5 {
        store.commit(created(n)).await.unwrap();
    }
    assert_eq!(store.check().await, Ok(()));
    drop(store);
    assert!(SqliteStore::open_limited(&path, key(), Some(1 << 20)).is_ok());
}

#[tokio::test]
async fn many_callers_share_a_write_to_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder.path().join("hwm.db")).unwrap();
    let commits = (1..=64u64).map(|caller| {
        let store = store.clone();
        tokio::spawn(async move {
            for round in 0..20 {
                store.commit(created(caller * 1_000 + round)).await.unwrap();
            }
        })
    });
    for commit in commits.collect::<Vec<_>>() {
        commit.await.unwrap();
    }
    let done = store.statistics();
    assert_eq!(done.commits, 64 * 20);
    let per_group = done.commits as f64 / done.groups as f64;
    assert!(per_group >= 8.0, "{per_group} commits in a group");
}
