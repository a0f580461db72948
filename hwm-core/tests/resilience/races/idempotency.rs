//! The same request twice has one effect, also when the manager dies in between.

use serde_json::json;

use hwm_core::manager::{Accepted, Idempotency, RequestOptions, Result};
use hwm_core::testing::faults::Fault;

use super::jitter;
use crate::house::{Kind, Life, World, oracle, request, run, seeds};

fn keyed() -> RequestOptions {
    RequestOptions {
        idempotency: Some(Idempotency {
            key: "k".into(),
            fingerprint: "f".into(),
        }),
        ..RequestOptions::default()
    }
}

async fn ask(life: &Life, kind: Kind) -> Result<Accepted> {
    let wanted = request("w", kind.resource_type(), kind.config(), true);
    life.admin.create(wanted, keyed()).await
}

fn kind_of(seed: u64) -> Kind {
    Kind::ALL[(seed % 4) as usize]
}

#[test]
fn two_requests_at_once_with_one_key_have_one_effect() {
    seeds::each(1000, |seed| {
        run(async {
            let kind = kind_of(seed);
            let world = World::new(seed);
            let life = world.begin().await;
            jitter(&world, &life.faults, 4);
            let (a, b) = futures_util::join!(ask(&life, kind), ask(&life, kind));
            let mut wrong = Vec::new();
            match (a, b) {
                (Ok(a), Ok(b)) if a == b => {}
                other => wrong.push(format!("{other:?}")),
            }
            life.converge().await;
            life.kill();
            let count = oracle::records(&world).await.len();
            if count != 1 {
                wrong.push(format!("there are {count} resources"));
            }
            wrong.extend(oracle::complaints(&world).await);
            wrong
        })
    });
}

#[test]
fn a_request_repeated_after_a_crash_has_one_effect() {
    seeds::each(1000, |seed| {
        run(async {
            let kind = kind_of(seed);
            let world = World::new(seed);
            let life = world.begin().await;
            let point = world.env.random_below(24);
            life.faults.at(point, Fault::Crash);
            let first = life.attempt(async {
                let answer = ask(&life, kind).await;
                life.finish().await;
                answer
            });
            let first = first.await.map(|answer| answer.map_err(|e| e.to_string()));
            life.kill();
            let next = world.begin().await;
            let second = ask(&next, kind).await.map_err(|e| e.to_string());
            let mut wrong = Vec::new();
            match (&first, &second) {
                (None, Ok(_)) => {}
                (Some(first), second) if first == second => {}
                other => wrong.push(format!("killed at {point}: {other:?}")),
            }
            let mismatch = RequestOptions {
                idempotency: Some(Idempotency {
                    key: "k".into(),
                    fingerprint: "another".into(),
                }),
                ..RequestOptions::default()
            };
            let other = request("other", kind.resource_type(), kind.config(), true);
            match next.admin.create(other, mismatch).await {
                Err(error) if error.code() == "IDEMPOTENCY_MISMATCH" => {}
                other => wrong.push(format!("another request under the same key: {other:?}")),
            }
            next.converge().await;
            next.kill();
            let records = oracle::records(&world).await;
            if records.len() != 1 {
                wrong.push(format!("there are {} resources", records.len()));
            }
            wrong.extend(oracle::complaints(&world).await);
            wrong
        })
    });
}

#[test]
fn an_action_repeated_with_its_key_after_a_crash_has_one_effect() {
    seeds::each(500, |seed| {
        run(async {
            let world = World::new(seed);
            let life = world.begin().await;
            let wanted = request("w", "application-container", Kind::Container.config(), true);
            let made = life
                .admin
                .create(wanted, RequestOptions::default())
                .await
                .unwrap();
            life.converge().await;
            life.kill();
            let id = made.resource.id;
            let patch = json!({ "metadata": { "n": "1" }, "config": { "cpuCores": 3 } });
            let life = world.begin().await;
            let point = world.env.random_below(14);
            life.faults.at(point, Fault::Crash);
            let first = life.attempt(async {
                let answer = life.admin.update(id, patch.clone(), keyed()).await;
                life.finish().await;
                answer
            });
            let first = first.await.map(|answer| answer.map_err(|e| e.to_string()));
            life.kill();
            let next = world.begin().await;
            let second = next
                .admin
                .update(id, patch.clone(), keyed())
                .await
                .map_err(|e| e.to_string());
            let mut wrong = Vec::new();
            match (&first, &second) {
                (None, Ok(_)) => {}
                (Some(first), second) if first == second => {}
                other => wrong.push(format!("killed at {point}: {other:?}")),
            }
            next.converge().await;
            let (operations, _) = next.admin.operations(Some(id), 0, 100).await.unwrap();
            let updates = operations
                .iter()
                .filter(|o| o.action == hwm_core::lifecycle::Action::Update)
                .count();
            if updates != 1 {
                wrong.push(format!("there are {updates} updates"));
            }
            next.kill();
            wrong.extend(oracle::complaints(&world).await);
            wrong
        })
    });
}
