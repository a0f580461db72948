//! Lists: filters, sorting, pages, counts, against what a plain filter and sort say.

use std::cmp::Ordering;

use super::fixtures::{Random, commit, config, create, drawn_record, nonzero, owner, record, resource};
use crate::access::Visibility;
use crate::config::ResourceType;
use crate::id::BackendName;
use crate::lifecycle::{Phase, Status};
use crate::resource::Record;
use crate::store::{
    Counts, Cursor, ListPage, ListQuery, Position, RecordWrite, SortBy, SortOrder, Store, Transaction,
};

const SORTS: [SortBy; 4] = [SortBy::CreatedAt, SortBy::UpdatedAt, SortBy::Name, SortBy::Status];
const ORDERS: [SortOrder; 2] = [SortOrder::Asc, SortOrder::Desc];

fn compare(query: &ListQuery, a: &Record, b: &Record) -> Ordering {
    let by_key = match query.sort_by {
        SortBy::CreatedAt => a.created_at.cmp(&b.created_at),
        SortBy::UpdatedAt => a.updated_at.cmp(&b.updated_at),
        SortBy::Name => a.name.chars().cmp(b.name.chars()),
        SortBy::Status => a.status().as_str().cmp(b.status().as_str()),
    };
    let ascending = by_key.then(a.id.cmp(&b.id));
    match query.order {
        SortOrder::Asc => ascending,
        SortOrder::Desc => ascending.reverse(),
    }
}

fn expected(query: &ListQuery, all: &[Record]) -> (Vec<Record>, Counts) {
    let mut selected: Vec<Record> = all.iter().filter(|r| query.selects(r)).cloned().collect();
    selected.sort_by(|a, b| compare(query, a, b));
    let mut counts = Counts::default();
    for record in &mut selected {
        *counts.by_status.entry(record.status()).or_default() += 1;
        *counts.by_type.entry(record.config.resource_type()).or_default() += 1;
        record.config.forget_secrets();
    }
    (selected, counts)
}

async fn list(store: &impl Store, query: &ListQuery) -> ListPage {
    let page = store.list(query.clone()).await;
    page.expect("a store that is well can be listed")
}

/// One page against the plain answer.
async fn check(store: &impl Store, query: &ListQuery, all: &[Record]) {
    let (selected, counts) = expected(query, all);
    let page = list(store, query).await;
    let Position::Offset(offset) = query.position else {
        panic!("pages by cursor are checked by walking")
    };
    let start = selected.len().min(usize::try_from(offset).unwrap_or(usize::MAX));
    let end = selected.len().min(start.saturating_add(query.limit as usize));
    assert_eq!(
        ids(&page.records),
        ids(&selected[start..end]),
        "the page of {query:?}"
    );
    assert_eq!(page.records, selected[start..end], "the records of {query:?}");
    assert_eq!(page.total, selected.len() as u64, "the total of {query:?}");
    assert_eq!(nonzero(page.counts), counts, "the counts of {query:?}");
    let next = (start < end && end < selected.len()).then(|| query.sort_by.cursor(&selected[end - 1]));
    assert_eq!(page.next, next, "where the page after {query:?} begins");
}

fn ids(records: &[Record]) -> Vec<u128> {
    records.iter().map(|r| r.id.as_u128()).collect()
}

/// All pages by cursor together are the whole.
async fn walk(store: &impl Store, query: &ListQuery, all: &[Record]) {
    let (selected, counts) = expected(query, all);
    let mut query = query.clone();
    let mut seen = Vec::new();
    loop {
        let page = list(store, &query).await;
        assert_eq!(page.total, selected.len() as u64, "the total of {query:?}");
        assert_eq!(nonzero(page.counts), counts, "the counts of {query:?}");
        seen.extend(ids(&page.records));
        assert!(seen.len() <= selected.len(), "a walk by cursor ends: {query:?}");
        match page.next {
            Some(next) => query.position = Position::After(next),
            None => break,
        }
    }
    assert_eq!(
        seen,
        ids(&selected),
        "the pages of a walk are the whole: {query:?}"
    );
}

fn visibilities() -> Vec<Visibility> {
    let mut all = vec![Visibility::All];
    for org in ["", "o1", "o3"] {
        let org_id = org.to_owned();
        all.push(Visibility::Organization {
            org_id: org_id.clone(),
        });
        for group in ["", "g1"] {
            let (org_id, group_id) = (org_id.clone(), group.to_owned());
            all.push(Visibility::Group {
                org_id: org_id.clone(),
                group_id: group_id.clone(),
            });
            for (user, agent) in [("", ""), ("u1", ""), ("", "a1"), ("u1", "a1"), ("u3", "a3")] {
                all.push(Visibility::Member {
                    org_id: org_id.clone(),
                    group_id: group_id.clone(),
                    user_id: user.to_owned(),
                    agent_id: agent.to_owned(),
                });
            }
        }
    }
    all
}

fn drawn_query(random: &mut Random, visibilities: &[Visibility]) -> ListQuery {
    let types = match random.below(4) {
        0 => vec![*random.pick(&ResourceType::ALL)],
        1 => vec![
            ResourceType::InferenceContainer,
            ResourceType::ApplicationContainer,
        ],
        _ => Vec::new(),
    };
    let search = random.one_in(3).then(|| {
        let texts = [
            "web",
            "WEB",
            "äR",
            "r 100%",
            "_",
            "%",
            "end of",
            "\"quoted\"",
            "日本",
            "",
            "nothing",
            "x",
        ];
        (*random.pick(&texts)).to_owned()
    });
    ListQuery {
        visibility: random.pick(visibilities).clone(),
        types,
        status: random.one_in(3).then(|| *random.pick(&Status::ALL)),
        node: random.one_in(3).then(|| super::fixtures::node(random.below(4))),
        search,
        include_deleted: random.one_in(2),
        sort_by: *random.pick(&SORTS),
        order: *random.pick(&ORDERS),
        position: Position::Offset(0),
        limit: 1 + random.below(20) as u32,
    }
}

pub(super) async fn pages_agree_with_a_plain_sort(store: &impl Store) {
    let mut random = Random(2);
    let mut all: Vec<Record> = (0..240).map(|n| drawn_record(&mut random, n)).collect();
    check(store, &ListQuery::default(), &[]).await;
    // Not in the order of their ids.
    for chunk in 0..5 {
        let records = all
            .iter()
            .skip(chunk)
            .step_by(5)
            .rev()
            .cloned()
            .map(create)
            .collect();
        commit(
            store,
            Transaction {
                records,
                ..Transaction::default()
            },
        )
        .await;
    }
    let visibilities = visibilities();
    for round in 0..3 {
        for visibility in &visibilities {
            for (sort_by, order) in SORTS.into_iter().flat_map(|s| ORDERS.map(|o| (s, o))) {
                let visibility = visibility.clone();
                let query = ListQuery {
                    visibility,
                    sort_by,
                    order,
                    ..ListQuery::default()
                };
                check(store, &query, &all).await;
            }
        }
        for _ in 0..150 {
            let mut query = drawn_query(&mut random, &visibilities);
            walk(store, &query, &all).await;
            query.position = Position::Offset(random.below(60));
            check(store, &query, &all).await;
        }
        for position in [
            Position::Offset(u64::MAX),
            Position::Offset(240),
            Position::Offset(239),
        ] {
            check(
                store,
                &ListQuery {
                    position,
                    include_deleted: true,
                    ..ListQuery::default()
                },
                &all,
            )
            .await;
        }
        if round < 2 {
            change(store, &mut random, &mut all).await;
        }
    }
    unfit_cursors_select_nothing(store).await;
}

/// Changes every third record, some in everything that lists look at, some only in when they were changed.
async fn change(store: &impl Store, random: &mut Random, all: &mut [Record]) {
    let mut records = Vec::new();
    for (n, old) in all.iter_mut().enumerate() {
        if !random.one_in(3) {
            continue;
        }
        let expected = Some(old.revision);
        let drawn = drawn_record(random, n as u64);
        *old = if random.one_in(2) {
            let updated_at = drawn.updated_at;
            Record {
                updated_at,
                ..old.clone()
            }
        } else {
            drawn
        };
        old.revision = expected.map_or(1, |r| r + 1);
        let record = old.clone();
        records.push(RecordWrite { record, expected });
    }
    let transaction = Transaction {
        records,
        ..Transaction::default()
    };
    commit(store, transaction).await;
}

async fn unfit_cursors_select_nothing(store: &impl Store) {
    for sort_by in [SortBy::CreatedAt, SortBy::UpdatedAt, SortBy::Status] {
        for key in ["", "later", "9e9", "99999999999999999999999"] {
            let cursor = Cursor {
                key: key.to_owned(),
                id: resource(1),
            };
            let query = ListQuery {
                position: Position::After(cursor),
                sort_by,
                ..ListQuery::default()
            };
            let page = list(store, &query).await;
            assert_eq!(
                page.records,
                [],
                "after a cursor of another sort there is nothing: {query:?}"
            );
            assert_eq!(page.next, None);
            assert!(page.total > 0, "the total does not depend on the page");
        }
    }
}

pub(super) async fn search_is_by_text_alone(store: &impl Store) {
    let names = [
        ("Alpha", None),
        ("alphabet", Some("The first LETTERS")),
        ("ÄPFEL und Öl", None),
        ("100% pure", Some("under_score")),
        ("under score", None),
        ("quote\"d", Some("it's")),
        ("back\\slash", Some("a*b?c[d]")),
        ("СТРОКА", Some("ΟΔΟΣΑ")),
        ("日本語テスト", None),
        ("two", Some("twotwotwo")),
        ("one\ntwo", None),
        ("AND OR NOT", Some("NEAR(a b)")),
    ];
    let all: Vec<Record> = (0..)
        .zip(names)
        .map(|(n, (name, description))| Record {
            name: name.to_owned(),
            description: description.map(str::to_owned),
            ..record(n)
        })
        .collect();
    let records = all.iter().cloned().map(create).collect();
    commit(
        store,
        Transaction {
            records,
            ..Transaction::default()
        },
    )
    .await;

    let found = async |text: &str| {
        let query = ListQuery {
            search: Some(text.to_owned()),
            limit: 200,
            ..ListQuery::default()
        };
        check(store, &query, &all).await;
        list(store, &query).await.total
    };
    let table = [
        ("ALPHA", 2),
        ("alphab", 1),
        ("letters", 1),
        ("äpfel", 1),
        ("ÖL", 1),
        ("100%", 1),
        ("%", 1),
        ("under_score", 1),
        ("_", 1),
        ("under", 2),
        ("te\"d", 1),
        ("\"", 1),
        ("'", 1),
        ("\\", 1),
        ("\\s", 1),
        ("a*b?c[d]", 1),
        ("*", 1),
        ("строка", 1),
        ("οδος", 0),
        ("ΟΔΟΣ", 1),
        ("οδοσα", 1),
        ("日本", 1),
        ("本語テ", 1),
        ("two", 2),
        ("e\nt", 1),
        ("and or not", 1),
        ("near(a", 1),
        ("alpha beta", 0),
        ("lettersalpha", 0),
        ("zzz", 0),
        ("", 12),
        ("a\u{0}b", 0),
        ("\u{0}", 0),
    ];
    for (text, count) in table {
        assert_eq!(found(text).await, count, "search for {text:?}");
    }

    // A new name is found, the old one is not, and a removed description neither.
    let renamed = Record {
        name: "Gamma".to_owned(),
        description: None,
        revision: 2,
        ..all[1].clone()
    };
    let records = vec![RecordWrite {
        record: renamed,
        expected: Some(1),
    }];
    commit(
        store,
        Transaction {
            records,
            ..Transaction::default()
        },
    )
    .await;
    for (text, count) in [
        ("gamma", 1),
        ("alphabet", 0),
        ("letters", 0),
        ("alpha", 1),
        ("mm", 1),
    ] {
        let query = ListQuery {
            search: Some(text.to_owned()),
            ..ListQuery::default()
        };
        assert_eq!(
            list(store, &query).await.total,
            count,
            "search for {text:?} after the change"
        );
    }
}

pub(super) async fn counts_follow_every_change(store: &impl Store) {
    let counts = async |include_deleted| {
        let page = list(
            store,
            &ListQuery {
                include_deleted,
                ..ListQuery::default()
            },
        )
        .await;
        (page.total, nonzero(page.counts))
    };
    let mut resource = Record {
        owner: owner(["o", "g", "u", "a"]),
        ..record(1)
    };
    commit(
        store,
        Transaction {
            records: vec![create(resource.clone())],
            ..Transaction::default()
        },
    )
    .await;
    for phase in Phase::ALL {
        for kind in ResourceType::ALL {
            let expected = Some(resource.revision);
            resource.revision += 1;
            resource.phase = phase;
            resource.config = config(kind);
            let records = vec![RecordWrite {
                record: resource.clone(),
                expected,
            }];
            commit(
                store,
                Transaction {
                    records,
                    ..Transaction::default()
                },
            )
            .await;
            let one = Counts {
                by_status: [(phase.status(), 1)].into(),
                by_type: [(kind, 1)].into(),
            };
            assert_eq!(counts(true).await, (1, one.clone()), "one {kind} that is {phase}");
            let alive = if phase == Phase::Deleted {
                (0, Counts::default())
            } else {
                (1, one)
            };
            assert_eq!(
                counts(false).await,
                alive,
                "one {kind} that is {phase}, deleted ones aside"
            );
        }
    }
    // It moves to another owner.
    for ids in [
        ["", "", "", ""],
        ["o", "", "u", ""],
        ["o", "g", "", "a"],
        ["p", "g", "u", "a"],
    ] {
        let expected = Some(resource.revision);
        resource.revision += 1;
        resource.phase = Phase::Running;
        resource.owner = owner(ids);
        let records = vec![RecordWrite {
            record: resource.clone(),
            expected,
        }];
        commit(
            store,
            Transaction {
                records,
                ..Transaction::default()
            },
        )
        .await;
        for [org, group, user, agent] in [["o", "g", "u", "a"], ["p", "g", "u", "x"], ["", "", "", ""]] {
            let [org_id, group_id, user_id, agent_id] = [org, group, user, agent].map(str::to_owned);
            let visibility = Visibility::Member {
                org_id,
                group_id,
                user_id,
                agent_id,
            };
            check(
                store,
                &ListQuery {
                    visibility,
                    ..ListQuery::default()
                },
                &[resource.clone()],
            )
            .await;
        }
    }
}

pub(super) async fn phases_are_walked_in_order(store: &impl Store) {
    let mut random = Random(3);
    let all: Vec<Record> = (0..60).map(|n| drawn_record(&mut random, n)).collect();
    let records = all.iter().rev().cloned().map(create).collect();
    commit(
        store,
        Transaction {
            records,
            ..Transaction::default()
        },
    )
    .await;
    for backend in ["docker", "libvirt", "none"].map(BackendName::new) {
        for phases in [
            &Phase::ALL[..],
            &[Phase::Running, Phase::Queued],
            &[Phase::Deleted],
            &[],
        ] {
            let wanted = all
                .iter()
                .filter(|r| r.backend == backend && phases.contains(&r.phase));
            let wanted: Vec<_> = wanted.map(|r| r.id).collect();
            for limit in [1, 7, 1000] {
                let mut seen = Vec::new();
                loop {
                    let page = store
                        .ids_in_phases(&backend, phases, seen.last().copied(), limit)
                        .await;
                    let page = page.expect("a store that is well answers its ids");
                    assert!(page.len() <= limit, "no more than asked for");
                    if page.is_empty() {
                        break;
                    }
                    seen.extend(page);
                }
                assert_eq!(
                    seen, wanted,
                    "the ids of {backend} in {phases:?}, {limit} at a time"
                );
            }
        }
    }
}
