use std::collections::BTreeMap;

use hwm_core::testing::faults::{Fault, Faults, Point};

use super::acts::{Act, Before, Told, perform, prepare, verdict};
use crate::house::{Kind, World, run};

/// How long each call takes, so that things overlap.
fn slow() -> hwm_core::testing::sim::Latency {
    hwm_core::testing::sim::Latency {
        call: std::time::Duration::from_millis(10),
        ..Default::default()
    }
}

async fn world(kind: Kind, act: Act) -> (World, Before) {
    let world = World::new(7);
    world.sim.set_latency(slow());
    let before = prepare(&world, kind, act).await;
    (world, before)
}

/// The points that the act passes when nothing goes wrong.
fn points(kind: Kind, act: Act) -> Vec<Point> {
    run(async {
        let (world, before) = world(kind, act).await;
        let life = world.begin().await;
        let told = Told::default();
        perform(&life, kind, act, &before, &told).await;
        assert!(life.converge().await);
        let points = life.faults.points();
        life.kill();
        let wrong = verdict(&world, act, &before, &told, false).await;
        assert_eq!(wrong, [""; 0], "{act:?} of {kind:?} without faults");
        points
    })
}

/// Dies at a point of the act. Answers the points that the recovery passes.
fn die(kind: Kind, act: Act, at: u64, again: Option<u64>) -> (Vec<Point>, Vec<String>) {
    run(async {
        let (world, before) = world(kind, act).await;
        let life = world.begin().await;
        life.faults.at(at, Fault::Crash);
        let told = Told::default();
        let lived = life.attempt(perform(&life, kind, act, &before, &told)).await;
        if lived.is_some() {
            life.converge().await;
            life.kill();
        }
        let faults = Faults::new(world.env.clone());
        if let Some(again) = again {
            faults.at(again, Fault::Crash);
        }
        let mut points = Vec::new();
        if let Some(second) = world.begin_with(faults.clone()).await {
            second.converge().await;
            points = faults.points();
            second.kill();
        }
        world.recover().await;
        (points, verdict(&world, act, &before, &told, false).await)
    })
}

fn every_point(kind: Kind) {
    let mut wrong = Vec::new();
    for act in Act::all_of(kind) {
        let points = points(kind, act);
        assert!(points.len() > 1, "{act:?} of {kind:?} passes {points:?}");
        for (at, point) in points.iter().enumerate() {
            let (_, complaints) = die(kind, act, at as u64, None);
            wrong.extend(
                complaints
                    .into_iter()
                    .map(|c| format!("{act:?} of {kind:?}, killed {at} {point}: {c}")),
            );
        }
    }
    assert!(
        wrong.is_empty(),
        "{} complaints:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

/// Every so manieth pair is tried, or all when all of the tests are wanted.
fn stride() -> u64 {
    if std::env::var_os("HWM_TEST_FULL").is_some() {
        1
    } else {
        8
    }
}

fn every_pair(kind: Kind) {
    let mut wrong = Vec::new();
    let mut pairs = 0;
    let mut alike: BTreeMap<String, usize> = BTreeMap::new();
    for act in Act::all_of(kind) {
        let first = points(kind, act);
        for at in 0..first.len() as u64 {
            let (second, _) = die(kind, act, at, None);
            for again in (0..second.len() as u64).filter(|again| (at + again) % stride() == 0) {
                pairs += 1;
                let (_, complaints) = die(kind, act, at, Some(again));
                for complaint in complaints {
                    *alike.entry(complaint.clone()).or_default() += 1;
                    wrong.push(format!(
                        "{act:?} of {kind:?}, killed {at} and {again}: {complaint}"
                    ));
                }
            }
        }
    }
    assert!(pairs > 0);
    wrong.truncate(40);
    assert!(
        wrong.is_empty(),
        "{} kinds of complaint in {pairs} pairs:\n{}",
        alike.len(),
        wrong.join("\n")
    );
}

#[test]
fn a_container_survives_a_kill_at_every_point() {
    every_point(Kind::Container);
}

#[test]
fn a_container_with_a_slice_survives_a_kill_at_every_point() {
    every_point(Kind::Slice);
}

#[test]
fn a_machine_survives_a_kill_at_every_point() {
    every_point(Kind::Machine);
}

#[test]
fn an_inference_container_survives_a_kill_at_every_point() {
    every_point(Kind::Inference);
}

#[test]
fn a_container_survives_a_kill_at_every_pair_of_points() {
    every_pair(Kind::Container);
}

#[test]
fn a_container_with_a_slice_survives_a_kill_at_every_pair_of_points() {
    every_pair(Kind::Slice);
}

#[test]
fn a_machine_survives_a_kill_at_every_pair_of_points() {
    every_pair(Kind::Machine);
}

#[test]
fn an_inference_container_survives_a_kill_at_every_pair_of_points() {
    every_pair(Kind::Inference);
}
