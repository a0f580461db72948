//! Claims and pools.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use futures_util::future::join_all;

use super::fixtures::{claim, commit, node, resource};
use crate::config::Protocol;
use crate::id::GpuUuid;
use crate::ledger::{Claim, ClaimKey, Pool, PoolLimit};
use crate::store::{ClaimFilter, CommitError, Release, Store, Transaction};

fn port(n: u16) -> ClaimKey {
    ClaimKey::Port(Protocol::Tcp, n)
}

fn claims(claim: Vec<Claim>) -> Transaction {
    Transaction {
        claim,
        ..Transaction::default()
    }
}

fn limited(claim: Vec<Claim>, limit: u64) -> Transaction {
    let limits = vec![PoolLimit {
        pool: Pool::Cpu,
        limit,
    }];
    Transaction {
        claim,
        limits,
        ..Transaction::default()
    }
}

fn released(holder: u64, keys: Option<Vec<ClaimKey>>) -> Release {
    Release {
        holder: resource(holder),
        keys,
    }
}

async fn all(store: &impl Store, n: u64) -> Vec<Claim> {
    let all = store.claims(&node(n), ClaimFilter::All).await;
    all.expect("a store that is well answers its claims")
}

pub(super) async fn keys_have_one_holder(store: &impl Store) {
    let mine = claim(port(80), 1, 1);
    commit(store, claims(vec![mine.clone()])).await;
    commit(store, claims(vec![mine.clone()])).await;
    assert_eq!(
        all(store, 0).await,
        std::slice::from_ref(&mine),
        "taking what one has changes nothing"
    );

    let held = CommitError::Held {
        key: port(80),
        holder: resource(1),
    };
    let result = store
        .commit(claims(vec![claim(port(81), 2, 1), claim(port(80), 2, 1)]))
        .await;
    assert_eq!(result, Err(held), "a key that is held names its holder");
    assert_eq!(
        all(store, 0).await,
        std::slice::from_ref(&mine),
        "and nothing of the rest was taken"
    );

    // The same port of another protocol or another node is another key.
    let elsewhere = Claim {
        node: node(1),
        ..claim(port(80), 2, 1)
    };
    let udp = claim(ClaimKey::Port(Protocol::Udp, 80), 2, 1);
    commit(store, claims(vec![elsewhere.clone(), udp.clone()])).await;
    assert_eq!(all(store, 0).await, [mine, udp]);
    assert_eq!(all(store, 1).await, [elsewhere]);
    assert_eq!(
        all(store, 2).await,
        [],
        "a node that nobody claims of has no claims"
    );
}

pub(super) async fn release_comes_before_claim(store: &impl Store) {
    commit(
        store,
        claims(vec![
            claim(port(80), 1, 1),
            claim(port(81), 1, 1),
            claim(ClaimKey::Cpu, 1, 4),
        ]),
    )
    .await;
    let swap = Transaction {
        release: vec![released(1, Some(vec![port(80), port(99)])), released(9, None)],
        claim: vec![claim(port(80), 2, 1)],
        ..Transaction::default()
    };
    commit(store, swap).await;
    let expected = [
        claim(port(80), 2, 1),
        claim(port(81), 1, 1),
        claim(ClaimKey::Cpu, 1, 4),
    ];
    assert_eq!(
        all(store, 0).await,
        expected,
        "what is given back can be taken at once"
    );

    let result = store.commit(claims(vec![claim(port(81), 2, 1)])).await;
    assert!(
        matches!(result, Err(CommitError::Held { .. })),
        "what was not named is kept"
    );
    let others = Transaction {
        release: vec![released(3, Some(vec![port(81)]))],
        ..Transaction::default()
    };
    commit(store, others).await;
    assert_eq!(
        all(store, 0).await,
        expected,
        "nobody gives back what another has"
    );

    let everything = Transaction {
        release: vec![released(1, None)],
        ..Transaction::default()
    };
    commit(store, everything).await;
    assert_eq!(all(store, 0).await, [claim(port(80), 2, 1)], "all is all");
}

pub(super) async fn pools_keep_their_limits(store: &impl Store) {
    let used = async || {
        let pools = store
            .pools(&node(0))
            .await
            .expect("a store that is well answers its pools");
        assert_eq!(pools.len(), Pool::ALL.len(), "every pool is answered");
        pools[&Pool::Cpu]
    };
    let exceeded = |requested, used, limit| {
        Err(CommitError::Exceeded {
            pool: Pool::Cpu,
            requested,
            used,
            limit,
        })
    };
    let cpu = |holder, amount| vec![claim(ClaimKey::Cpu, holder, amount)];
    assert_eq!(used().await, 0);
    commit(store, limited(cpu(1, 6), 10)).await;
    assert_eq!(store.commit(limited(cpu(2, 5), 10)).await, exceeded(5, 6, 10));
    commit(store, limited(cpu(2, 4), 10)).await;
    assert_eq!(used().await, 10, "a pool may be full");

    // Taking again sets; it does not add.
    commit(store, limited(cpu(1, 6), 10)).await;
    assert_eq!(store.commit(limited(cpu(1, 7), 10)).await, exceeded(1, 10, 10));
    commit(store, limited(cpu(1, 3), 10)).await;
    assert_eq!(used().await, 7);

    // What does not grow is not judged, also when the limit has come down.
    commit(store, limited(cpu(1, 2), 1)).await;
    assert_eq!(store.commit(limited(cpu(1, 3), 1)).await, exceeded(1, 6, 1));
    let swap = Transaction {
        release: vec![released(2, None)],
        ..limited(cpu(3, 4), 1)
    };
    commit(store, swap).await;
    assert_eq!(used().await, 6);

    commit(store, claims(cpu(4, 1_000))).await;
    assert_eq!(used().await, 1_006, "a pool without a limit is not judged");
    let result = store.commit(claims(cpu(5, u64::MAX))).await;
    assert_eq!(
        result,
        exceeded(u64::MAX, 1_006, u64::MAX),
        "more than a number holds is never there"
    );
    let elsewhere = Claim {
        node: node(1),
        ..claim(ClaimKey::Cpu, 5, u64::MAX)
    };
    commit(store, claims(vec![elsewhere])).await;
    let pools = store
        .pools(&node(1))
        .await
        .expect("a store that is well answers its pools");
    assert_eq!(pools[&Pool::Cpu], u64::MAX, "nodes are apart");

    let everything = Transaction {
        release: (1..=5).map(|holder| released(holder, None)).collect(),
        ..Transaction::default()
    };
    commit(store, everything).await;
    assert_eq!(used().await, 0, "what is given back is free");
}

pub(super) async fn races_do_not_exceed(store: &impl Store) {
    let shares = (0..60).map(|n| store.commit(limited(vec![claim(ClaimKey::Cpu, n, 3)], 31)));
    let won = join_all(shares).await.iter().filter(|r| r.is_ok()).count();
    assert_eq!(won, 10, "as many get a share as there are");
    let pools = store
        .pools(&node(0))
        .await
        .expect("a store that is well answers its pools");
    assert_eq!(pools[&Pool::Cpu], 30, "and no more is claimed");

    let takers = (0..60).map(|n| store.commit(claims(vec![claim(port(80), n, 1)])));
    let results = join_all(takers).await;
    let winner: Vec<usize> = (0..results.len()).filter(|n| results[*n].is_ok()).collect();
    assert_eq!(winner.len(), 1, "one of many gets the key");
    let held = Err(CommitError::Held {
        key: port(80),
        holder: resource(winner[0] as u64),
    });
    let rest = results.into_iter().filter(Result::is_err);
    assert!({ rest }.all(|r| r == held), "and all others are told who");
}

pub(super) async fn filters_select(store: &impl Store) {
    let card = |c: &str, part: &str| ClaimKey::Gpu(GpuUuid::new(c), part.to_owned());
    let volume = |path: &str| ClaimKey::Volume(path.to_owned());
    let keys = [
        port(8),
        port(80),
        port(8080),
        ClaimKey::Port(Protocol::Udp, 80),
        ClaimKey::Address(0, Ipv4Addr::new(10, 0, 0, 1)),
        ClaimKey::Address(100, Ipv4Addr::new(10, 0, 0, 1)),
        card("GPU-1", "slot-0"),
        card("GPU-1", "slot-10"),
        card("GPU-10", "slot-0"),
        card("gpu-1", "slot-0"),
        volume("/srv/100%"),
        volume("/srv/100%/a_b"),
        volume("/srv/100_/axb"),
        volume("/srv/a'b\"c\\d"),
        volume("/srv/[a-z]*?"),
        volume("/srv/äö 日本/\u{10ffff}\u{10ffff}"),
        volume("/SRV"),
        volume("/"),
        volume(""),
    ];
    let mut placed: Vec<Claim> = keys
        .iter()
        .enumerate()
        .map(|(n, key)| claim(key.clone(), n as u64 % 4, 1))
        .collect();
    placed.extend((0..4).map(|n| claim(ClaimKey::Ram, n, n + 1)));
    placed.push(Claim {
        node: node(1),
        ..claim(port(80), 0, 1)
    });
    commit(store, claims(placed.clone())).await;
    placed.pop();
    placed.sort();

    assert_eq!(
        all(store, 0).await,
        placed,
        "claims come in the order of their keys and holders"
    );
    let select = async |filter: ClaimFilter, wanted: &dyn Fn(&Claim) -> bool| {
        let found = store.claims(&node(0), filter.clone()).await;
        let expected: Vec<Claim> = placed.iter().filter(|c| wanted(c)).cloned().collect();
        assert_eq!(found, Ok(expected), "{filter:?}");
    };
    for n in 0..5 {
        select(ClaimFilter::Holder(resource(n)), &|c| c.holder == resource(n)).await;
    }
    let prefixes = [
        "",
        "port/",
        "port/tcp/8",
        "port/tcp/80",
        "gpu/",
        "gpu/GPU-1",
        "gpu/GPU-1/",
        "GPU",
        "ram",
        "volume/",
        "volume//srv/100%",
        "volume//srv/100_",
        "volume//srv/%",
        "volume//srv/a'",
        "volume//srv/a'b\"c\\",
        "volume//srv/[",
        "volume//srv/äö 日本/\u{10ffff}",
        "volume//SRV",
        "%",
        "_",
        "x",
    ];
    for prefix in prefixes {
        let filter = ClaimFilter::Prefix(prefix.to_owned());
        select(filter, &|c| c.key.to_string().starts_with(prefix)).await;
    }
    let wanted = [
        port(80),
        port(81),
        ClaimKey::Ram,
        volume("/srv/100%"),
        volume("/srv/100%"),
        volume("/srv/x"),
    ];
    let chosen: BTreeSet<ClaimKey> = wanted.iter().cloned().collect();
    select(ClaimFilter::Keys(wanted.to_vec()), &|c| chosen.contains(&c.key)).await;
    select(ClaimFilter::Keys(keys.to_vec()), &|c| keys.contains(&c.key)).await;
    select(ClaimFilter::Keys(Vec::new()), &|_| false).await;
}
