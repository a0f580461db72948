//! Callers that race on one resource: there is one order of what was accepted, it agrees with what each
//! caller saw, and the resource ends as the last of it says.

use std::sync::Mutex;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;

use hwm_core::env::Environment;
use hwm_core::lifecycle::{Action, Phase};
use hwm_core::manager::RequestOptions;
use hwm_core::operation::Arguments;

use super::jitter;
use crate::house::{Kind, Life, World, oracle, request, run, seeds};

/// What a caller did, when, and at which revision it says that it happened.
#[derive(Debug, Clone)]
struct Seen {
    what: What,
    begun: i64,
    ended: i64,
    revision: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Read,
    Rename(u64),
    Act(Action),
}

async fn caller(world: &World, life: &Life, id: hwm_core::id::ResourceId, seen: &Mutex<Vec<Seen>>) {
    for _ in 0..4 {
        let now = || world.env.now().as_millis();
        world
            .env
            .sleep(Duration::from_millis(world.env.random_below(30)))
            .await;
        let begun = now();
        let choice = world.env.random_below(20);
        let options = RequestOptions::default();
        let (what, revision) = match choice {
            0..5 => {
                let read = life.admin.get(id, true).await;
                (What::Read, read.ok().map(|v| v.revision))
            }
            5..8 => {
                let name = world.env.random_u64();
                let patch = json!({ "name": name.to_string() });
                let renamed = life.admin.update(id, patch, options).await;
                (What::Rename(name), renamed.ok().map(|a| a.revision))
            }
            19 => {
                let deleted = life.admin.delete(id, options).await;
                (What::Act(Action::Delete), deleted.ok().map(|a| a.revision))
            }
            n => {
                let action = [Action::Start, Action::Stop, Action::Restart][(n % 3) as usize];
                let acted = life.admin.act(id, action, Arguments::default(), options).await;
                (What::Act(action), acted.ok().map(|a| a.revision))
            }
        };
        if let Some(revision) = revision {
            let ended = now();
            seen.lock().unwrap().push(Seen {
                what,
                begun,
                ended,
                revision,
            });
        }
    }
}

fn out_of_order(seen: &[Seen]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (i, a) in seen.iter().enumerate() {
        for b in &seen[i + 1..] {
            let both_change = a.what != What::Read && b.what != What::Read;
            let deletes = [a, b].iter().all(|s| s.what == What::Act(Action::Delete));
            // Deleting what is being deleted joins the removal that is under way.
            if both_change && a.revision == b.revision && !deletes {
                wrong.push(format!("two changes are at one revision: {a:?} {b:?}"));
            }
            let (first, second) = if a.ended < b.begun {
                (a, b)
            } else if b.ended < a.begun {
                (b, a)
            } else {
                continue;
            };
            if first.revision > second.revision {
                wrong.push(format!("{second:?} came after {first:?} and saw less"));
            }
        }
    }
    wrong
}

fn ended_as_told(seen: &[Seen], record: &hwm_core::resource::Record) -> Vec<String> {
    let mut wrong = Vec::new();
    let deleted = seen.iter().any(|s| s.what == What::Act(Action::Delete));
    let acts = seen.iter().filter_map(|s| match s.what {
        What::Act(action) => Some((s.revision, action)),
        What::Read | What::Rename(_) => None,
    });
    let last = acts
        .max_by_key(|(revision, _)| *revision)
        .map(|(_, action)| action);
    let allowed: &[Phase] = match last {
        _ if deleted => &[Phase::Deleted],
        Some(Action::Stop) => &[Phase::Stopped, Phase::Queued],
        _ => &[Phase::Running],
    };
    if !allowed.contains(&record.phase) {
        wrong.push(format!(
            "the last accepted was {last:?}, and it is {} ({:?})",
            record.phase, record.error_message
        ));
    }
    let named = seen.iter().filter_map(|s| match s.what {
        What::Rename(name) => Some((s.revision, name)),
        What::Read | What::Act(_) => None,
    });
    if let Some((_, name)) = named.max_by_key(|(revision, _)| *revision)
        && record.name != name.to_string()
    {
        wrong.push(format!(
            "the last name accepted was {name}, and it is called {}",
            record.name
        ));
    }
    wrong
}

#[test]
fn races_on_one_resource_have_one_order() {
    seeds::many(10_000, |seed| {
        run(async {
            let kind = [Kind::Container, Kind::Machine][(seed % 2) as usize];
            let world = World::new(seed);
            let life = world.begin().await;
            let wanted = request("w", kind.resource_type(), kind.config(), true);
            let made = life
                .admin
                .create(wanted, RequestOptions::default())
                .await
                .unwrap();
            jitter(&world, &life.faults, 6);
            let seen = Mutex::default();
            let callers = (0..3).map(|_| caller(&world, &life, made.resource.id, &seen));
            join_all(callers).await;
            life.converge().await;
            life.kill();
            let seen = seen.into_inner().unwrap();
            let mut wrong = out_of_order(&seen);
            let records = oracle::records(&world).await;
            wrong.extend(ended_as_told(&seen, &records[&made.resource.id]));
            wrong.extend(oracle::complaints(&world).await);
            if !wrong.is_empty() {
                wrong.extend(seen.iter().map(|s| format!("    {s:?}")));
                wrong.extend(oracle::history(&world).await);
            }
            wrong
        })
    });
}
