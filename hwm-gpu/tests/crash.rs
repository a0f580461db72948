//! A process that dies at any call to NVML, before or after the call's effect, leaves nothing that the next one
//! does not find. Each point is a real process that is really aborted.
//!
//! Not a `#[test]`: this program is also the process that dies. With `HWM_TEST_FULL` every point is tried, else
//! every one of the calls that change a card and every eleventh of the rest.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test program reports, and stops where it must not go on"
)]

mod common;

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use common::*;
use hwm_core::accelerator::{Accelerators, Attachment, GpuHealth, Placement};
use hwm_core::backend::BackendErrorKind;
use hwm_core::config::ResourceType;
use hwm_gpu::{HostRoots, NvmlAccelerators, Options};
use hwm_gpu_fake::{Fault, FaultKind};

const PROFILE: &str = "2g.10gb";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    match arguments.get(1).map(String::as_str) {
        Some("die") => runtime.block_on(child(Path::new(&arguments[2]), &arguments[3])),
        // What `cargo test -- --list` and filters ask of a test program.
        Some("--list") => println!("a_crash_at_any_call_loses_nothing: test"),
        Some(filter) if !filter.starts_with('-') && !"a_crash_at_any_call_loses_nothing".contains(filter) => {
        }
        _ => runtime.block_on(parent()),
    }
    ExitCode::SUCCESS
}

fn options(folder: &Path) -> Options {
    let mut options = Options::new(folder.join("state"));
    options.library = Some(folder.join("libnvidia-ml.so.1"));
    options.roots = HostRoots {
        sys: folder.join("sys"),
        proc: folder.join("proc"),
        dev: folder.join("dev"),
    };
    options
}

/// Opens the GPUs and makes or releases a slice, or hands a card over or takes it back.
async fn child(folder: &Path, action: &str) {
    let gpus = NvmlAccelerators::open(options(folder)).await.unwrap();
    let (place, to) = wanted(&gpus, action);
    match action {
        "make" | "hand over" => drop(gpus.prepare(&call(1), resource(1), &place, to).await.unwrap()),
        _ => gpus.release(&call(2), resource(1), &place).await.unwrap(),
    }
}

/// What an action is about, and for whom.
fn wanted(gpus: &NvmlAccelerators, action: &str) -> (Placement, ResourceType) {
    let (request, to) = match action {
        "make" | "release" => (slice(PROFILE), CONTAINER),
        _ => (named("0"), MACHINE),
    };
    (gpus.plan(&request, to, &[]).unwrap().remove(0), to)
}

/// Runs a child; whether it came to its end.
fn run(folder: &Path, action: &str) -> bool {
    let own = std::env::current_exe().expect("this program");
    let status = Command::new(own)
        .args(["die".as_ref(), folder.as_os_str(), action.as_ref()])
        .stderr(Stdio::null())
        .status();
    status.expect("the child runs").success()
}

async fn parent() {
    let step = if std::env::var_os("HWM_TEST_FULL").is_some() {
        1
    } else {
        11
    };
    let mut points = 0;
    for action in ["make", "release", "hand over", "take back"] {
        for kind in [FaultKind::AbortBefore, FaultKind::AbortAfter] {
            for n in (1..).step_by(step) {
                if !dies_at(
                    action,
                    &Fault {
                        function: "*".to_owned(),
                        call: Some(n),
                        kind: kind.clone(),
                    },
                )
                .await
                {
                    println!("{action}, {kind:?}: up to call {n}");
                    break;
                }
                points += 1;
            }
            for function in CHANGES {
                let fault = Fault {
                    function: (*function).to_owned(),
                    call: Some(1),
                    kind: kind.clone(),
                };
                points += usize::from(dies_at(action, &fault).await);
            }
        }
    }
    assert!(points > 40, "only {points} points were tried");
    println!("test a_crash_at_any_call_loses_nothing ... ok ({points} points)");
}

/// What changes a card.
const CHANGES: &[&str] = &[
    "nvmlDeviceCreateGpuInstanceWithPlacement",
    "nvmlGpuInstanceCreateComputeInstance",
    "nvmlComputeInstanceDestroy",
    "nvmlGpuInstanceDestroy",
    "nvmlShutdown",
];

/// Lets a child die at a call; false where it does not come to it.
async fn dies_at(action: &str, fault: &Fault) -> bool {
    match action {
        "make" | "release" => dies_at_a_slice(action, fault).await,
        _ => dies_at_a_handover(action, fault).await,
    }
}

/// A card on its way into a machine, or out of it.
async fn dies_at_a_handover(action: &str, fault: &Fault) -> bool {
    let lab = Lab::new("a100-40gb,a30");
    let place = {
        let gpus = lab.open().await;
        let (place, to) = wanted(&gpus, action);
        if action == "take back" {
            gpus.prepare(&call(1), resource(1), &place, to).await.unwrap();
            lab.machine_takes();
        }
        place
    };
    if action == "take back" {
        lab.machine_gives_back();
    }
    lab.edit(|w| w.set_faults(vec![fault.clone()]));
    let finished = run(lab.path(), action);
    lab.heal();
    let point = format!("{action}, {fault:?}");

    // The next process: the card is this machine's and nobody else's, and comes back.
    let gpus = lab.open().await;
    let healthy = gpus.inventory().cards.iter().all(|c| c.health == GpuHealth::Ok);
    assert!(healthy, "{point}: {:?}", gpus.inventory());
    if action == "hand over" {
        let grant = gpus.prepare(&call(1), resource(1), &place, MACHINE).await;
        let grant = grant.unwrap_or_else(|e| panic!("{point}: {e}"));
        let functions = vec![CARD.to_owned(), AUDIO.to_owned()];
        assert_eq!(grant.attachment, Attachment::Vfio { functions }, "{point}");
        let other = gpus.prepare(&call(1), resource(2), &place, MACHINE).await;
        assert_eq!(other.unwrap_err().kind, BackendErrorKind::Conflict, "{point}");
        lab.machine_takes();
        gpus.refresh().await.unwrap();
        lab.machine_gives_back();
    }
    let back = gpus.release(&call(2), resource(1), &place).await;
    back.unwrap_or_else(|e| panic!("{point}: {e}"));
    assert!(gpus.plan(&named("0"), CONTAINER, &[]).is_ok(), "{point}");
    assert_eq!(left(&lab, "handover."), 0, "{point}");
    !finished
}

/// How many entries of a kind are in the journal.
fn left(lab: &Lab, kind: &str) -> usize {
    let files = std::fs::read_dir(lab.path().join("state")).unwrap();
    let names = files.map(|f| f.unwrap().file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(kind)).count()
}

async fn dies_at_a_slice(action: &str, fault: &Fault) -> bool {
    let lab = Lab::new("a100-40gb+mig");
    // A neighbour's instance, which must be there at the end.
    lab.foreign(0, 19, 0);
    drop(lab.open().await);
    lab.heal();
    let place = {
        let gpus = lab.open().await;
        let place = plan(&gpus, &slice(PROFILE));
        if action == "release" {
            gpus.prepare(&call(1), resource(1), &place, CONTAINER)
                .await
                .unwrap();
        }
        place
    };
    lab.edit(|w| w.set_faults(vec![fault.clone()]));
    let finished = run(lab.path(), action);
    lab.heal();
    let point = format!("{action}, {fault:?}");

    // The next process: what it plans is what was planned, ours is found, and none is made twice.
    let gpus = lab.open().await;
    assert!(
        gpus.inventory().cards.iter().all(|c| c.health == GpuHealth::Ok),
        "{point}: {:?}",
        gpus.inventory()
    );
    if action == "make" {
        let grant = gpus.prepare(&call(1), resource(1), &place, CONTAINER).await;
        let grant = grant.unwrap_or_else(|e| panic!("{point}: {e}"));
        assert_eq!(made(&lab.world()), 2, "{point}");
        let ours = gpus.inventory().cards[0]
            .instances
            .iter()
            .filter(|i| i.ours)
            .map(|i| i.uuid.clone())
            .collect::<Vec<_>>();
        assert_eq!(ours, [grant.uuid], "{point}");
        let other = gpus
            .prepare(&call(1), resource(2), &place, CONTAINER)
            .await
            .unwrap_err();
        assert_eq!(other.kind, BackendErrorKind::Conflict, "{point}");
    }
    gpus.release(&call(2), resource(1), &place)
        .await
        .unwrap_or_else(|e| panic!("{point}: {e}"));
    let world = lab.world();
    assert_eq!(made(&world), 1, "{point}");
    assert_eq!(
        (
            world.cards[0].instances[0].profile,
            world.cards[0].instances[0].start
        ),
        (19, 0),
        "{point}"
    );
    assert_eq!(left(&lab, "slice."), 0, "{point}");
    !finished
}
