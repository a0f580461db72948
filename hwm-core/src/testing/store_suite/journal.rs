//! Operations, events, remembered answers, notes, snapshots, and pruning.

use super::fixtures::{
    at, commit, create, dump, event, operation, owner, record, remembered, resource, snapshot,
};
use crate::access::Visibility;
use crate::id::{OperationId, SnapshotId};
use crate::lifecycle::Phase;
use crate::operation::{OperationRecord, OperationStatus};
use crate::resource::Record;
use crate::snapshot::SnapshotState;
use crate::store::{CommitError, EventPage, EventQuery, OperationQuery, PruneLimits, Store, Transaction};

fn query(of: Option<u64>, unfinished: bool) -> OperationQuery {
    OperationQuery {
        visibility: Visibility::All,
        resource: of.map(resource),
        unfinished,
        offset: 0,
        limit: 100,
    }
}

fn write(operations: Vec<OperationRecord>) -> Transaction {
    Transaction {
        operations,
        ..Transaction::default()
    }
}

async fn ids(store: &impl Store, query: OperationQuery) -> (Vec<u128>, u64) {
    let page = store
        .operations(query)
        .await
        .expect("a store that is well answers its operations");
    (
        page.operations.iter().map(|o| o.id.as_u128()).collect(),
        page.total,
    )
}

pub(super) async fn operations_keep_their_order(store: &impl Store) {
    // Ids of one millisecond are in no order; the commits are.
    let pending = |n, of| operation(n, of, OperationStatus::Pending);
    commit(store, write(vec![pending(5, 1), pending(3, 1)])).await;
    commit(store, write(vec![pending(9, 2)])).await;
    commit(store, write(vec![pending(1, 1)])).await;
    assert_eq!(
        ids(store, query(None, false)).await,
        (vec![1, 9, 3, 5], 4),
        "newest first"
    );
    assert_eq!(
        ids(store, query(Some(1), false)).await,
        (vec![1, 3, 5], 3),
        "newest first"
    );
    assert_eq!(
        ids(store, query(Some(1), true)).await,
        (vec![5, 3, 1], 3),
        "the queue of a resource"
    );
    assert_eq!(
        ids(store, query(None, true)).await,
        (vec![1, 9, 3, 5], 4),
        "newest first"
    );

    let mut ended = operation(3, 1, OperationStatus::Failed);
    ended.progress.message = "it was \"not\" to be\n".to_owned();
    commit(store, write(vec![ended.clone()])).await;
    assert_eq!(
        store.operation(ended.id).await,
        Ok(Some(ended)),
        "an operation reads back"
    );
    assert_eq!(store.operation(OperationId::from_u128(77)).await, Ok(None));
    assert_eq!(
        ids(store, query(Some(1), true)).await,
        (vec![5, 1], 2),
        "what ended is not unfinished"
    );
    assert_eq!(
        ids(store, query(Some(1), false)).await,
        (vec![1, 3, 5], 3),
        "and keeps its place"
    );
    assert_eq!(ids(store, query(Some(7), true)).await, (vec![], 0));

    let page = OperationQuery {
        offset: 1,
        limit: 2,
        ..query(None, false)
    };
    assert_eq!(ids(store, page).await, (vec![9, 3], 4), "a page of them");
    let page = OperationQuery {
        offset: 1,
        limit: 1,
        ..query(Some(1), true)
    };
    assert_eq!(ids(store, page).await, (vec![1], 2), "a page of the queue");
    let page = OperationQuery {
        offset: u64::MAX,
        ..query(None, false)
    };
    assert_eq!(ids(store, page).await, (vec![], 4), "nothing after the last");
}

pub(super) async fn operations_are_seen_by_whom_they_belong_to(store: &impl Store) {
    let owners = [
        ["o", "g", "u", "a"],
        ["o", "g", "u", ""],
        ["o", "g", "", "a"],
        ["o", "g", "x", "x"],
        ["o", "", "u", "a"],
        ["p", "g", "u", "a"],
        ["", "", "", ""],
    ];
    let operations = (0..).zip(owners).map(|(n, ids)| {
        let status = if n % 2 == 0 {
            OperationStatus::Pending
        } else {
            OperationStatus::Succeeded
        };
        OperationRecord {
            owner: owner(ids),
            ..operation(n, n, status)
        }
    });
    let operations: Vec<OperationRecord> = operations.collect();
    commit(store, write(operations.clone())).await;
    let mut views = vec![Visibility::All];
    for [org, group, user, agent] in [
        ["o", "g", "u", "a"],
        ["o", "g", "", "a"],
        ["", "", "", ""],
        ["z"; 4],
    ] {
        let [org_id, group_id, user_id, agent_id] = [org, group, user, agent].map(str::to_owned);
        views.push(Visibility::Organization {
            org_id: org_id.clone(),
        });
        views.push(Visibility::Group {
            org_id: org_id.clone(),
            group_id: group_id.clone(),
        });
        views.push(Visibility::Member {
            org_id,
            group_id,
            user_id,
            agent_id,
        });
    }
    for visibility in views {
        for unfinished in [false, true] {
            for resource in [None, Some(0), Some(5)] {
                let query = OperationQuery {
                    visibility: visibility.clone(),
                    ..query(resource, unfinished)
                };
                let seen = |o: &&OperationRecord| {
                    visibility.includes(&o.owner)
                        && !(unfinished && o.status.is_final())
                        && query.resource.is_none_or(|r| r == o.resource)
                };
                let seen: Vec<u128> = operations
                    .iter()
                    .rev()
                    .filter(seen)
                    .map(|o| o.id.as_u128())
                    .collect();
                let total = seen.len() as u64;
                assert_eq!(ids(store, query.clone()).await, (seen, total), "{query:?}");
            }
        }
    }
}

async fn events(store: &impl Store, after: u64, limit: u32) -> EventPage {
    let page = store.events(EventQuery { after, limit }).await;
    page.expect("a store that is well answers its events")
}

pub(super) async fn events_are_numbered_for_ever(store: &impl Store) {
    let nothing = EventPage {
        events: Vec::new(),
        gap: false,
        newest: 0,
    };
    assert_eq!(events(store, 0, 10).await, nothing, "before the first event");

    let mut stored = Vec::new();
    for n in 0..5 {
        let events = vec![event(2 * n), event(2 * n + 1)];
        let transaction = Transaction {
            events,
            ..Transaction::default()
        };
        stored.extend(store.commit(transaction).await.expect("events are kept"));
    }
    assert!(stored.is_sorted_by(|a, b| a.id < b.id), "numbers grow");
    assert!(stored.iter().all(|e| e.id > 0), "and begin above 0");
    let times: Vec<_> = stored.iter().map(|e| e.event.time).collect();
    assert_eq!(
        times,
        (0..10).map(at).collect::<Vec<_>>(),
        "a commit answers its events in order"
    );
    let newest = stored[9].id;

    let page = events(store, 0, 100).await;
    assert_eq!(
        page,
        EventPage {
            events: stored.clone(),
            gap: false,
            newest
        }
    );
    let page = events(store, stored[3].id, 2).await;
    assert_eq!(
        page,
        EventPage {
            events: stored[4..6].to_vec(),
            gap: false,
            newest
        }
    );
    let page = events(store, newest, 2).await;
    assert_eq!(
        page,
        EventPage {
            events: Vec::new(),
            gap: false,
            newest
        }
    );

    prune(
        store,
        PruneLimits {
            events: at(4),
            ..nothing_to_prune()
        },
        4,
    )
    .await;
    let page = events(store, 0, 100).await;
    assert_eq!(
        page,
        EventPage {
            events: stored[4..].to_vec(),
            gap: true,
            newest
        }
    );
    assert!(
        events(store, stored[2].id, 100).await.gap,
        "one was dropped after this"
    );
    assert!(
        !events(store, stored[3].id, 100).await.gap,
        "none was dropped after this"
    );

    prune(
        store,
        PruneLimits {
            events: at(1_000),
            ..nothing_to_prune()
        },
        6,
    )
    .await;
    let page = events(store, 0, 100).await;
    assert_eq!(
        page,
        EventPage {
            events: Vec::new(),
            gap: true,
            newest
        },
        "the newest number is kept"
    );
    assert!(!events(store, newest, 100).await.gap);
    let transaction = Transaction {
        events: vec![event(0)],
        ..Transaction::default()
    };
    let stored = store.commit(transaction).await.expect("events are kept");
    assert!(stored[0].id > newest, "a number is not used again");
}

pub(super) async fn answers_are_remembered_once(store: &impl Store) {
    let answer = remembered("user/é\u{0}'%", 1);
    let transaction = Transaction {
        remember: Some(answer.clone()),
        ..Transaction::default()
    };
    commit(store, transaction.clone()).await;
    assert_eq!(
        store.remembered(&answer.key).await,
        Ok(Some(answer)),
        "an answer reads back"
    );
    assert_eq!(store.remembered("user/").await, Ok(None), "a key is a whole key");
    assert_eq!(
        store.commit(transaction).await,
        Err(CommitError::Remembered),
        "once"
    );
}

pub(super) async fn notes_and_snapshots_are_kept(store: &impl Store) {
    let note = |name: &str, text: &str| (name.to_owned(), text.to_owned());
    let notes = vec![note("a", "1"), note("b", ""), note("a", "2")];
    commit(
        store,
        Transaction {
            notes,
            ..Transaction::default()
        },
    )
    .await;
    assert_eq!(
        store.note("a").await,
        Ok(Some("2".to_owned())),
        "the last note stands"
    );
    assert_eq!(
        store.note("b").await,
        Ok(Some(String::new())),
        "an empty note is a note"
    );
    assert_eq!(store.note("c").await, Ok(None));

    let mut first = snapshot(9, 1, 1);
    let snapshots = vec![
        snapshot(1, 1, 3),
        snapshot(2, 1, 2),
        first.clone(),
        snapshot(3, 2, 1),
    ];
    // Snapshots belong to a resource; without one they would be dropped with it.
    let records = vec![create(record(1)), create(record(2))];
    commit(
        store,
        Transaction {
            records,
            snapshots,
            ..Transaction::default()
        },
    )
    .await;
    first.state = SnapshotState::Ready;
    let change = Transaction {
        snapshots: vec![first.clone(), snapshot(4, 1, 4)],
        forget_snapshots: [2, 4, 77].map(SnapshotId::from_u128).to_vec(),
        ..Transaction::default()
    };
    commit(store, change).await;
    let found = store.snapshots(resource(1)).await;
    assert_eq!(
        found,
        Ok(vec![first, snapshot(1, 1, 3)]),
        "oldest first, without what is forgotten"
    );
    assert_eq!(store.snapshots(resource(7)).await, Ok(Vec::new()));
}

fn nothing_to_prune() -> PruneLimits {
    let never = at(-1_000_000);
    PruneLimits {
        operations: never,
        events: never,
        remembered: never,
        deleted: never,
    }
}

async fn prune(store: &impl Store, limits: PruneLimits, gone: u64) {
    assert_eq!(store.prune(limits).await, Ok(gone), "{limits:?}");
}

pub(super) async fn pruning_drops_what_is_old_and_over(store: &impl Store) {
    let record_in = |n, phase, deleted_at| Record {
        phase,
        deleted_at,
        ..record(n)
    };
    let ended = |n, seconds| OperationRecord {
        finished_at: Some(at(seconds)),
        ..operation(n, 1, OperationStatus::Cancelled)
    };
    let transaction = Transaction {
        records: vec![
            create(record_in(0, Phase::Running, None)),
            create(record_in(1, Phase::Deleting, Some(at(1)))),
            create(record_in(2, Phase::Deleted, Some(at(1)))),
            create(record_in(3, Phase::Deleted, Some(at(2)))),
            create(record_in(4, Phase::Deleted, Some(at(3)))),
        ],
        operations: vec![
            ended(1, 1),
            ended(2, 2),
            ended(3, 3),
            operation(4, 1, OperationStatus::Pending),
        ],
        snapshots: vec![snapshot(1, 2, 1), snapshot(2, 3, 1), snapshot(3, 0, 1)],
        events: vec![event(1), event(2), event(3)],
        remember: Some(remembered("k0", 1)),
        ..Transaction::default()
    };
    commit(store, transaction).await;
    let later = Transaction {
        remember: Some(remembered("k1", 2)),
        ..Transaction::default()
    };
    commit(store, later).await;

    let before = dump(store, 6).await;
    prune(store, nothing_to_prune(), 0).await;
    assert_eq!(dump(store, 6).await, before, "what is not old stays");

    let second = at(2);
    let limits = PruneLimits {
        operations: second,
        events: second,
        remembered: second,
        deleted: second,
    };
    prune(store, limits, 4).await;
    assert_eq!(
        store.record(resource(2)).await,
        Ok(None),
        "the record that was deleted first is gone"
    );
    assert_eq!(
        store.snapshots(resource(2)).await,
        Ok(Vec::new()),
        "with its snapshots"
    );
    for n in [0, 1, 3, 4] {
        let found = store
            .record(resource(n))
            .await
            .expect("a store that is well can be read");
        assert!(found.is_some(), "record {n} stays");
    }
    for n in [0, 3] {
        let found = store
            .snapshots(resource(n))
            .await
            .expect("a store that is well can be read");
        assert_eq!(found.len(), 1, "the snapshots of what stays, stay");
    }
    assert_eq!(
        ids(store, query(None, false)).await,
        (vec![4, 3, 2], 3),
        "the oldest operation is gone"
    );
    assert_eq!(
        store.remembered("k0").await,
        Ok(None),
        "the oldest answer is gone"
    );
    assert_eq!(store.remembered("k1").await, Ok(Some(remembered("k1", 2))));
    assert!(events(store, 0, 10).await.gap);

    let never = at(1_000_000);
    let limits = PruneLimits {
        operations: never,
        events: never,
        remembered: never,
        deleted: never,
    };
    prune(store, limits, 2 + 2 + 2 + 1).await;
    prune(store, limits, 0).await;
    assert_eq!(
        ids(store, query(None, false)).await,
        (vec![4], 1),
        "what is unfinished stays"
    );
    // What is gone can come again.
    let again = Transaction {
        records: vec![create(record(2))],
        remember: Some(remembered("k0", 9)),
        ..Transaction::default()
    };
    commit(store, again).await;
}
