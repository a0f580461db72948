//! Generated transactions on a store and on the memory store: both answer the same.

use super::fixtures::{
    Random, at, claim, drawn_record, dump, event, node, operation, remembered, resource, snapshot,
};
use crate::config::Protocol;
use crate::event::NewEvent;
use crate::id::{GpuUuid, SnapshotId};
use crate::ledger::{Claim, ClaimKey, Pool, PoolLimit};
use crate::lifecycle::Phase;
use crate::operation::OperationStatus;
use crate::resource::Record;
use crate::store::memory::MemoryStore;
use crate::store::{CommitError, PruneLimits, RecordWrite, Release, Store, Transaction};

const RESOURCES: u64 = 8;

fn drawn_key(random: &mut Random) -> ClaimKey {
    match random.below(6) {
        0 => ClaimKey::Port(Protocol::Tcp, 80 + random.below(3) as u16),
        1 => ClaimKey::Gpu(GpuUuid::new("GPU-1"), format!("slot-{}", random.below(2))),
        2 => ClaimKey::Volume(format!("/v{}", random.below(2))),
        3 => ClaimKey::Cpu,
        4 => ClaimKey::Ram,
        _ => ClaimKey::Disk,
    }
}

fn some<T>(random: &mut Random, most: u64, mut one: impl FnMut(&mut Random) -> T) -> Vec<T> {
    (0..random.below(most + 1)).map(|_| one(random)).collect()
}

/// What `current` has is mostly, not always, what is expected.
fn drawn(random: &mut Random, current: &[Option<Record>]) -> Transaction {
    let records = some(random, 2, |random| {
        let n = random.below(RESOURCES);
        let known = current[n as usize].as_ref().map(|r| r.revision);
        let expected = if random.one_in(9) {
            random.one_in(2).then_some(3)
        } else {
            known
        };
        let record = Record {
            revision: 1 + random.below(4),
            ..drawn_record(random, n)
        };
        RecordWrite { record, expected }
    });
    let claims = some(random, 3, |random| Claim {
        node: node(random.below(2)),
        ..claim(drawn_key(random), random.below(RESOURCES), 1 + random.below(6))
    });
    let release = some(random, 2, |random| Release {
        holder: resource(random.below(RESOURCES)),
        keys: random.one_in(2).then(|| some(random, 3, drawn_key)),
    });
    let limits = Pool::ALL.map(|pool| PoolLimit { pool, limit: 12 });
    let statuses = [
        OperationStatus::Pending,
        OperationStatus::Running,
        OperationStatus::Succeeded,
    ];
    Transaction {
        records,
        operations: some(random, 2, |random| {
            // An operation keeps its resource.
            let n = random.below(12);
            operation(n, n % RESOURCES, *random.pick(&statuses))
        }),
        release,
        claim: claims,
        limits: if random.one_in(5) {
            Vec::new()
        } else {
            limits.to_vec()
        },
        snapshots: some(random, 1, |random| {
            let n = random.below(6);
            snapshot(n, n % RESOURCES, random.below(4) as i64)
        }),
        forget_snapshots: some(random, 1, |random| SnapshotId::from_u128(random.below(6).into())),
        events: some(random, 2, |random| event(random.below(60) as i64)),
        remember: random
            .one_in(6)
            .then(|| remembered(random.pick::<&str>(&["k0", "k1", "k2"]), random.below(60) as i64)),
        notes: some(random, 1, |random| {
            (
                (*random.pick(&["k0", "k1", "k2"])).to_owned(),
                random.below(9).to_string(),
            )
        }),
    }
}

/// The answer without event numbers; which of several exceeded pools is named is left open.
fn comparable(
    answer: Result<Vec<crate::event::StoredEvent>, CommitError>,
) -> Result<Vec<NewEvent>, Option<CommitError>> {
    match answer {
        Ok(events) => Ok(events.into_iter().map(|e| e.event).collect()),
        Err(CommitError::Exceeded { .. }) => Err(None),
        Err(error) => Err(Some(error)),
    }
}

pub(super) async fn agree_with_the_memory_store(store: &impl Store, seed: u64) {
    let reference = MemoryStore::new();
    let mut random = Random(seed);
    for round in 0..120 {
        let mut current = Vec::new();
        for n in 0..RESOURCES {
            current.push(reference.record(resource(n)).await.expect("memory can be read"));
        }
        let transaction = drawn(&mut random, &current);
        let wanted = comparable(reference.commit(transaction.clone()).await);
        let found = comparable(store.commit(transaction.clone()).await);
        assert_eq!(
            found, wanted,
            "seed {seed}, round {round}: the answer to {transaction:?}"
        );
        if random.one_in(20) {
            let mut limit = || at(random.below(30) as i64);
            let limits = PruneLimits {
                operations: limit(),
                events: limit(),
                remembered: limit(),
                deleted: limit(),
            };
            let (found, wanted) = (store.prune(limits).await, reference.prune(limits).await);
            assert_eq!(found, wanted, "seed {seed}, round {round}: what {limits:?} drops");
        }
        if round % 8 == 0 || round == 119 {
            let (found, wanted) = (dump(store, RESOURCES).await, dump(&reference, RESOURCES).await);
            assert_eq!(found, wanted, "seed {seed}, round {round}: what is there");
        }
    }
    let deleted = store
        .ids_in_phases(&"docker".into(), &[Phase::Deleted], None, 10)
        .await;
    let wanted = reference
        .ids_in_phases(&"docker".into(), &[Phase::Deleted], None, 10)
        .await;
    assert_eq!(deleted, wanted, "seed {seed}: the ids of what is deleted");
}
