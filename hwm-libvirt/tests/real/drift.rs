//! Others do to our machines whatever they like, in scripts made up anew: it is seen, what can be proved ours is
//! mended or removed, and what cannot is left.

use hwm_core::backend::{Backend, BackendErrorKind, ObservedState, Workload};

use crate::lab::{Lab, call, config, sampled, virsh};

const SCRIPTS: usize = 200;

/// What somebody does with virsh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    Destroy,
    Undefine,
    DeleteDisk,
    DeleteSeed,
    DeleteLog,
    Autostart,
    Start,
}

const DEEDS: [Deed; 7] = [
    Deed::Destroy,
    Deed::Undefine,
    Deed::DeleteDisk,
    Deed::DeleteSeed,
    Deed::DeleteLog,
    Deed::Autostart,
    Deed::Start,
];

/// The deeds of a script; the same number is the same script.
fn script(number: usize) -> Vec<Deed> {
    let mut state = number as u64 ^ 0x9e37_79b9_7f4a_7c15;
    let mut next = move |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let count = 1 + next(4);
    (0..count).map(|_| DEEDS[next(DEEDS.len())]).collect()
}

fn perform(lab: &Lab, machine: &Workload, deed: Deed) {
    let id = machine.id.to_string();
    let delete = |end: &str| {
        virsh(&[
            "vol-delete",
            "--pool",
            &lab.options.pool,
            &format!("hwm-{id}{end}"),
        ])
    };
    match deed {
        Deed::Destroy => virsh(&["destroy", &id]),
        Deed::Undefine => virsh(&["undefine", &id]),
        Deed::DeleteDisk => delete(".qcow2"),
        Deed::DeleteSeed => delete("-seed.img"),
        Deed::DeleteLog => delete("-console.log"),
        Deed::Autostart => virsh(&["autostart", &id]),
        Deed::Start => virsh(&["start", &id]),
    };
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_others_do_is_seen_and_mended_or_left() {
    let lab = Lab::new("deeds").await;
    let numbers: Vec<usize> = (0..SCRIPTS).collect();
    let (mut mended, mut left) = (0, 0);
    for number in sampled(&numbers, 10) {
        let deeds = script(number);
        let mut machine = lab.machine();
        config(&mut machine).os_image = "empty".into();
        let id = machine.id;
        lab.backend.create(&call(1), &machine).await.unwrap();
        if number % 3 == 0 {
            lab.backend.start(&call(1), &machine).await.unwrap();
        }
        for deed in &deeds {
            perform(&lab, &machine, *deed);
        }
        let what = format!("script {number}: {deeds:?}");

        // What libvirt itself says, and what can be known from it.
        let text = id.to_string();
        let defined = virsh(&["list", "--all", "--uuid"]).contains(&text);
        let running = virsh(&["list", "--uuid"]).contains(&text);
        let traces = lab.traces(&text);
        let proof = defined || traces.iter().any(|t| t.contains("-seed.img"));
        let seen = lab.observed(id).await;
        assert_eq!(seen.is_some(), defined, "{what}");
        assert_eq!(
            seen.is_some_and(|s| s.state == ObservedState::Running),
            running,
            "{what}"
        );
        let owned = lab.backend.owned().await.unwrap();
        assert_eq!(owned.iter().any(|o| o.id == id), proof, "{what}");

        machine.generation = 2;
        let made = lab.backend.create(&call(2), &machine).await;
        if proof || traces.is_empty() {
            made.unwrap_or_else(|e| panic!("{what}: {e}"));
            // Whoever undefined it may have left it running without its disk.
            lab.backend
                .stop(
                    &call(2),
                    id,
                    hwm_core::backend::StopOptions {
                        force: true,
                        grace: None,
                    },
                )
                .await
                .unwrap();
            lab.backend
                .create(&call(2), &machine)
                .await
                .unwrap_or_else(|e| panic!("{what}: {e}"));
            lab.backend
                .start(&call(2), &machine)
                .await
                .unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!(lab.state(id).await, Some(ObservedState::Running), "{what}");
            lab.backend.remove(&call(3), id).await.unwrap();
            assert_eq!(lab.traces(&text), Vec::<String>::new(), "{what}");
            mended += 1;
        } else {
            let refused = made.expect_err(&what);
            assert_eq!(refused.kind, BackendErrorKind::Conflict, "{what}: {refused}");
            lab.backend.remove(&call(3), id).await.unwrap();
            assert_eq!(
                lab.traces(&text),
                traces,
                "{what}: what nobody can prove to be ours stays"
            );
            for end in [".qcow2", "-console.log"] {
                virsh(&[
                    "vol-delete",
                    "--pool",
                    &lab.options.pool,
                    &format!("hwm-{text}{end}"),
                ]);
            }
            left += 1;
        }
    }
    println!("{mended} mended, {left} left alone");
    assert!(mended > 0);
    lab.clean().await;
}
