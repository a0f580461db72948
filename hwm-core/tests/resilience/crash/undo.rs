//! Every step fails, before and after its effect, for good and for a while; every step and every undo is
//! made twice.

use hwm_core::testing::faults::{Edge, Fault, Point};

use super::acts::{Act, Told, perform, prepare, verdict};
use crate::house::{Kind, World, run};

fn points(kind: Kind, act: Act) -> Vec<Point> {
    run(async {
        let world = World::new(3);
        let before = prepare(&world, kind, act).await;
        let life = world.begin().await;
        perform(&life, kind, act, &before, &Told::default()).await;
        assert!(life.converge().await);
        life.faults.points()
    })
}

/// Lets these faults happen. Without a crash, what the store or a backend refused for good may leave the
/// resource failed; it may not leave anything behind.
fn suffer(kind: Kind, act: Act, plan: &[(u64, Fault)], all_after: Option<Fault>) -> Vec<String> {
    run(async {
        let world = World::new(3);
        let before = prepare(&world, kind, act).await;
        let life = world.begin().await;
        for (at, fault) in plan {
            life.faults.at(*at, *fault);
        }
        if let Some(fault) = all_after {
            let first = plan.first().map_or(0, |(at, _)| *at);
            // What undoes the step fails a few times too.
            life.faults
                .decide(move |n, point| (n > first && n < first + 6 && point.of != "store").then_some(fault));
        }
        let told = Told::default();
        perform(&life, kind, act, &before, &told).await;
        life.converge().await;
        life.kill();
        world.recover().await;
        verdict(&world, act, &before, &told, true).await
    })
}

fn all(kind: Kind, fault: Fault, edges: &[Edge], all_after: Option<Fault>) {
    let mut wrong = Vec::new();
    for act in Act::all_of(kind) {
        for (at, point) in points(kind, act).iter().enumerate() {
            if !edges.contains(&point.edge) {
                continue;
            }
            let complaints = suffer(kind, act, &[(at as u64, fault)], all_after);
            wrong.extend(
                complaints
                    .into_iter()
                    .map(|c| format!("{act:?} of {kind:?}, {fault:?} {at} {point}: {c}")),
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

#[test]
fn a_step_that_fails_for_good_is_undone() {
    for kind in Kind::ALL {
        all(kind, Fault::Fail, &[Edge::Before, Edge::After], None);
    }
}

#[test]
fn a_step_that_fails_for_a_while_is_made_again() {
    for kind in Kind::ALL {
        all(kind, Fault::Away, &[Edge::Before, Edge::After], None);
    }
}

#[test]
fn a_step_made_twice_is_made_once() {
    for kind in Kind::ALL {
        all(kind, Fault::Repeat, &[Edge::Before], None);
    }
}

#[test]
fn an_undo_made_twice_is_made_once() {
    for kind in Kind::ALL {
        all(kind, Fault::Fail, &[Edge::After], Some(Fault::Repeat));
    }
}

#[test]
fn a_step_that_never_answers_is_given_up_and_undone() {
    for kind in Kind::ALL {
        let mut wrong = Vec::new();
        for act in Act::all_of(kind) {
            for (at, point) in points(kind, act)
                .iter()
                .enumerate()
                .filter(|(_, p)| p.of != "store")
            {
                let complaints = suffer(kind, act, &[(at as u64, Fault::Hang)], None);
                wrong.extend(
                    complaints
                        .into_iter()
                        .map(|c| format!("{act:?} of {kind:?}, hung {at} {point}: {c}")),
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
}
