//! Records, revisions, atomicity.

use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::future::{join, join_all};

use super::fixtures::{
    Random, claim, commit, config, create, drawn_record, dump, event, operation, record, remembered,
    resource, snapshot,
};
use crate::config::{Config, ResourceType};
use crate::id::SnapshotId;
use crate::ledger::{ClaimKey, Pool, PoolLimit};
use crate::lifecycle::Phase;
use crate::operation::OperationStatus;
use crate::resource::{Applied, Record};
use crate::store::{CommitError, ListQuery, RecordWrite, Release, Store, StoreError, Transaction};

fn write(record: Record, expected: Option<u64>) -> Transaction {
    Transaction {
        records: vec![RecordWrite { record, expected }],
        ..Transaction::default()
    }
}

pub(super) async fn records_read_back(store: &impl Store) {
    let mut random = Random(1);
    let mut all: Vec<Record> = (0..40).map(|n| drawn_record(&mut random, n)).collect();
    for record in &mut all {
        if record.phase == Phase::Deleted {
            record.phase = Phase::Running;
        }
        record.name.push_str(" \u{0} ' \u{10ffff}");
    }
    let records = all.iter().cloned().map(create).collect();
    let transaction = Transaction {
        records,
        ..Transaction::default()
    };
    commit(store, transaction).await;
    for record in all {
        let found = store.record(record.id).await;
        assert_eq!(
            found,
            Ok(Some(record)),
            "a record reads back as it was written, secrets included"
        );
    }
    assert_eq!(
        store.record(resource(99)).await,
        Ok(None),
        "what was never written is not there"
    );
}

pub(super) async fn secrets_are_where_they_must_be(store: &impl Store) {
    for (n, kind) in ResourceType::ALL.into_iter().enumerate() {
        let mut record = record(n as u64);
        record.config = config(kind);
        record.applied = Some(Applied {
            config: config(kind),
            generation: 1,
        });
        commit(store, write(record.clone(), None)).await;

        let found = read(store, &record).await;
        assert_eq!(
            found.config, record.config,
            "record() answers a config with its secrets"
        );
        let applied = found.applied.map(|a| a.config);
        assert!(
            applied.is_some_and(|c| has_only_marks(&c)),
            "what was applied is kept without secrets"
        );

        let page = store
            .list(ListQuery::default())
            .await
            .expect("a store that is well can be listed");
        let marked = page.records.iter().all(|r| has_only_marks(&r.config));
        assert!(marked, "lists have marks in the place of secrets");

        // A health tick keeps them, and so does a change that goes back and forth.
        record.revision = 2;
        record.missed_health_checks = 1;
        commit(store, write(record.clone(), Some(1))).await;
        assert_eq!(
            read(store, &record).await.config,
            record.config,
            "a write keeps secrets"
        );

        record.revision = 3;
        record.phase = Phase::Deleted;
        commit(store, write(record.clone(), Some(2))).await;
        let found = read(store, &record).await;
        assert!(
            has_only_marks(&found.config),
            "a deleted record has lost its secrets"
        );
    }
}

async fn read(store: &impl Store, record: &Record) -> Record {
    let found = store
        .record(record.id)
        .await
        .expect("a store that is well can be read");
    found.expect("what was committed is there")
}

fn has_only_marks(config: &Config) -> bool {
    config.secrets().values().all(|s| s.is_redacted())
}

pub(super) async fn revisions_are_expected(store: &impl Store) {
    let stale = |n| Err(CommitError::Stale { id: resource(n) });
    let at_revision = |revision| Record {
        revision,
        ..record(1)
    };
    let result = store.commit(write(at_revision(5), Some(4))).await;
    assert_eq!(result, stale(1), "a record that is not there has no revision");
    commit(store, write(at_revision(5), None)).await;
    let result = store.commit(write(at_revision(5), None)).await;
    assert_eq!(result, stale(1), "a record that is there is not made again");
    for wrong in [0, 4, 6, u64::MAX] {
        let result = store.commit(write(at_revision(7), Some(wrong))).await;
        assert_eq!(result, stale(1), "another revision is stale");
    }
    commit(store, write(at_revision(u64::MAX), Some(5))).await;
    commit(store, write(at_revision(8), Some(u64::MAX))).await;

    let twice = |second| Transaction {
        records: vec![
            RecordWrite {
                record: at_revision(9),
                expected: Some(8),
            },
            RecordWrite {
                record: at_revision(10),
                expected: Some(second),
            },
        ],
        ..Transaction::default()
    };
    let result = store.commit(twice(8)).await;
    assert_eq!(
        result,
        stale(1),
        "a second write in one transaction follows the first"
    );
    commit(store, twice(9)).await;

    let mut deleted = at_revision(11);
    deleted.phase = Phase::Deleted;
    commit(store, write(deleted, Some(10))).await;
    let result = store.commit(write(at_revision(1), None)).await;
    assert_eq!(result, stale(1), "a deleted record is still there");
}

pub(super) async fn failed_transactions_leave_nothing(store: &impl Store) {
    let everything = Transaction {
        records: vec![create(record(1)), create(record(2))],
        operations: vec![operation(1, 1, OperationStatus::Running)],
        claim: vec![
            claim(ClaimKey::Volume("/a".into()), 1, 1),
            claim(ClaimKey::Ram, 1, 60),
        ],
        snapshots: vec![snapshot(1, 1, 0)],
        events: vec![event(1), event(2)],
        remember: Some(remembered("k0", 1)),
        notes: vec![("k0".to_owned(), "one".to_owned())],
        ..Transaction::default()
    };
    commit(store, everything).await;
    let before = dump(store, 6).await;

    let changed = |n| Record {
        revision: 2,
        name: "changed".into(),
        phase: Phase::Running,
        ..record(n)
    };
    let all_but = |spoil: fn(&mut Transaction)| {
        let mut transaction = Transaction {
            records: vec![
                RecordWrite {
                    record: changed(1),
                    expected: Some(1),
                },
                create(record(3)),
            ],
            operations: vec![
                operation(1, 1, OperationStatus::Succeeded),
                operation(2, 3, OperationStatus::Pending),
            ],
            release: vec![Release {
                holder: resource(1),
                keys: None,
            }],
            claim: vec![claim(ClaimKey::Disk, 3, 5), claim(ClaimKey::Cpu, 3, 5)],
            limits: vec![PoolLimit {
                pool: Pool::Ram,
                limit: 100,
            }],
            snapshots: vec![snapshot(2, 1, 0)],
            forget_snapshots: vec![SnapshotId::from_u128(1)],
            events: vec![event(3)],
            remember: Some(remembered("k1", 1)),
            notes: vec![
                ("k0".to_owned(), "two".to_owned()),
                ("k1".to_owned(), "two".to_owned()),
            ],
        };
        spoil(&mut transaction);
        transaction
    };
    let stale = all_but(|t| {
        t.records.push(RecordWrite {
            record: record(2),
            expected: Some(7),
        })
    });
    let held = all_but(|t| {
        t.claim.push(claim(ClaimKey::Volume("/b".into()), 3, 1));
        t.claim.push(claim(ClaimKey::Volume("/b".into()), 4, 1));
    });
    let exceeded = all_but(|t| t.claim.push(claim(ClaimKey::Ram, 3, 101)));
    let key_taken = all_but(|t| t.remember = Some(remembered("k0", 1)));
    for transaction in [stale, held, exceeded, key_taken] {
        let refused = store.commit(transaction).await;
        assert!(refused.is_err(), "a transaction with a fault in it is refused");
        assert_eq!(
            dump(store, 6).await,
            before,
            "a refused transaction leaves nothing: {refused:?}"
        );
    }

    // The order of reasons: the key, then the revision, then the claims, then the pools.
    let mut all_wrong = all_but(|t| {
        t.remember = Some(remembered("k0", 1));
        t.records.push(RecordWrite {
            record: record(2),
            expected: Some(7),
        });
        t.claim.push(claim(ClaimKey::Ram, 3, 101));
        t.claim.push(claim(ClaimKey::Volume("/b".into()), 3, 1));
        t.claim.push(claim(ClaimKey::Volume("/b".into()), 4, 1));
    });
    assert_eq!(
        store.commit(all_wrong.clone()).await,
        Err(CommitError::Remembered)
    );
    all_wrong.remember = None;
    assert_eq!(
        store.commit(all_wrong.clone()).await,
        Err(CommitError::Stale { id: resource(2) })
    );
    all_wrong.records.pop();
    let held = CommitError::Held {
        key: ClaimKey::Volume("/b".into()),
        holder: resource(3),
    };
    assert_eq!(store.commit(all_wrong.clone()).await, Err(held));
    all_wrong.claim.pop();
    let exceeded = CommitError::Exceeded {
        pool: Pool::Ram,
        requested: 41,
        used: 60,
        limit: 100,
    };
    assert_eq!(store.commit(all_wrong.clone()).await, Err(exceeded));
    assert_eq!(
        dump(store, 6).await,
        before,
        "a refused transaction leaves nothing"
    );

    commit(store, all_but(|_| ())).await;
    assert_ne!(
        dump(store, 6).await,
        before,
        "and without its fault it is committed"
    );
}

pub(super) async fn one_of_many_wins(store: &impl Store) {
    let creates = (0..40).map(|i| {
        let mut record = record(1);
        record.name = format!("writer {i}");
        store.commit(write(record, None))
    });
    let results = join_all(creates).await;
    let won = results.iter().filter(|r| r.is_ok()).count();
    assert_eq!(won, 1, "one of many who make the same record wins");

    let updates = (0..40).map(|i| {
        let changed = Record {
            revision: 2 + i,
            ..record(1)
        };
        store.commit(write(changed, Some(1)))
    });
    let results = join_all(updates).await;
    let won: Vec<_> = results.iter().enumerate().filter(|(_, r)| r.is_ok()).collect();
    assert_eq!(won.len(), 1, "one of many who change the same revision wins");
    let found = read(store, &record(1)).await;
    assert_eq!(
        found.revision,
        2 + won[0].0 as u64,
        "and it is what the store has"
    );
}

/// Two records change their names together; whoever looks sees both with the same.
pub(super) async fn readers_see_transactions_whole(store: &impl Store) {
    let pair = |round: u64| {
        let named = |n| Record {
            name: format!("round {round}"),
            revision: round + 1,
            ..record(n)
        };
        let expected = round.checked_sub(1).map(|_| round);
        let records = [1, 2].map(|n| RecordWrite {
            record: named(n),
            expected,
        });
        Transaction {
            records: records.into(),
            ..Transaction::default()
        }
    };
    commit(store, pair(0)).await;
    let writer = async {
        for round in 1..60 {
            store.commit(pair(round)).await?;
        }
        Ok::<(), CommitError>(())
    };
    let reader = async {
        for _ in 0..120 {
            let page = store.list(ListQuery::default()).await?;
            let names: Vec<&str> = page.records.iter().map(|r| r.name.as_str()).collect();
            assert_eq!(names.len(), 2, "both are there");
            assert_eq!(names[0], names[1], "a transaction is seen whole");
        }
        Ok::<(), StoreError>(())
    };
    let (wrote, read) = join(writer, reader).await;
    assert_eq!(wrote, Ok(()), "writers are not stopped by readers");
    assert_eq!(read, Ok(()), "readers are not stopped by writers");
}

pub(super) async fn answers_are_seen_at_once(store: &impl Store) {
    let revised = |revision| Record {
        revision,
        ..record(1)
    };
    commit(store, write(revised(1), None)).await;
    let answered = AtomicU64::new(1);
    let writer = async {
        for revision in 2..200 {
            store.commit(write(revised(revision), Some(revision - 1))).await?;
            answered.store(revision, Ordering::SeqCst);
        }
        Ok::<(), CommitError>(())
    };
    let reader = async {
        let mut seen = 0;
        while seen < 199 {
            let least = answered.load(Ordering::SeqCst).max(seen);
            let found = store.record(record(1).id).await?;
            seen = found.map_or(0, |record| record.revision);
            assert!(
                seen >= least,
                "revision {least} was answered or seen, then {seen} was read"
            );
            let page = store.list(ListQuery::default()).await?;
            let listed = page.records.first().map_or(0, |record| record.revision);
            assert!(
                listed >= seen,
                "revision {seen} was read, then {listed} was listed"
            );
            seen = listed;
            tokio::task::yield_now().await;
        }
        Ok::<(), StoreError>(())
    };
    let (wrote, read) = join(writer, reader).await;
    assert_eq!(wrote, Ok(()), "writers are not stopped by readers");
    assert_eq!(read, Ok(()), "readers are not stopped by writers");
}
