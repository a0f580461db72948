//! The backend's process dies before and after every message that it sends to libvirt: the next one completes what
//! was begun or removes it, whichever it is told, and nothing is left.

use std::future::Future;
use std::time::Duration;

use hwm_core::backend::{Backend, Call, SnapshotSpec, Snapshots, StopOptions, Workload};
use hwm_core::id::SnapshotId;
use hwm_core::units::Bytes;
use hwm_libvirt::Libvirt;

use crate::lab::{Lab, call, config, new_id, sampled};
use crate::proxy::{Mode, Proxy};

/// What a backend is told to do.
#[derive(Debug, Clone, Copy)]
enum Act {
    Create,
    Start,
    Stop,
    Snapshot,
    Restore,
    Forget,
    Remove,
}

/// Something done to a machine, and what is done before.
struct Story {
    act: Act,
    before: &'static [Act],
    /// How many of its cuts are made where not all are.
    sample: usize,
}

const STORIES: [Story; 7] = [
    Story {
        act: Act::Create,
        before: &[],
        sample: 24,
    },
    Story {
        act: Act::Remove,
        before: &[Act::Create],
        sample: 16,
    },
    Story {
        act: Act::Start,
        before: &[Act::Create],
        sample: 6,
    },
    Story {
        act: Act::Stop,
        before: &[Act::Create, Act::Start],
        sample: 3,
    },
    Story {
        act: Act::Snapshot,
        before: &[Act::Create, Act::Start],
        sample: 4,
    },
    Story {
        act: Act::Restore,
        before: &[Act::Create, Act::Start, Act::Snapshot],
        sample: 3,
    },
    Story {
        act: Act::Forget,
        before: &[Act::Create, Act::Start, Act::Snapshot],
        sample: 3,
    },
];

async fn act(
    backend: &Libvirt,
    call: &Call,
    machine: &Workload,
    snapshot: &SnapshotSpec,
    what: Act,
) -> hwm_core::backend::Result<()> {
    let id = machine.id;
    let machine = Workload {
        generation: call.generation,
        ..machine.clone()
    };
    match what {
        Act::Create => Backend::create(backend, call, &machine).await,
        Act::Start => backend.start(call, &machine).await,
        Act::Stop => {
            let at_once = StopOptions {
                force: true,
                grace: None,
            };
            backend.stop(call, id, at_once).await
        }
        Act::Snapshot => Snapshots::create(backend, call, &machine, snapshot)
            .await
            .map(drop),
        Act::Restore => backend.restore(call, &machine, snapshot.id).await.map(drop),
        Act::Forget => backend.delete(call, id, snapshot.id).await,
        Act::Remove => backend.remove(call, id).await,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_dies_at_any_message_loses_and_leaks_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let proxy = Proxy::new(folder.path(), &crate::lab::variable("HWM_TEST_LIBVIRT_URI"));
    let lab = Lab::with("cuts", |_| {}).await;
    let options = hwm_libvirt::LibvirtOptions {
        uri: proxy.uri(),
        ..lab.options.clone()
    };
    let fresh = || Libvirt::new(options.clone()).unwrap();
    lab.backend
        .pull_image("empty", &hwm_core::backend::ProgressSink::default())
        .await
        .unwrap();
    let mut made = 0;
    for story in STORIES {
        let prepare = async || {
            let mut machine = lab.machine();
            config(&mut machine).os_image = "empty".into();
            config(&mut machine).ram = Bytes::from_mb(512);
            let snapshot = SnapshotSpec {
                id: SnapshotId::from_u128(new_id().as_u128()),
                name: "cut".into(),
                memory: None,
            };
            for step in story.before {
                act(&lab.backend, &call(1), &machine, &snapshot, *step)
                    .await
                    .unwrap();
            }
            (machine, snapshot)
        };
        // Once to its end, to know how many messages it takes. A backend that has just begun sends more.
        let backend = fresh();
        backend.probe().await.unwrap();
        let (machine, snapshot) = prepare().await;
        proxy.set(Mode::Open);
        act(&backend, &call(2), &machine, &snapshot, story.act)
            .await
            .unwrap();
        let messages = proxy.sent();
        lab.backend.remove(&call(3), machine.id).await.unwrap();
        let cuts: Vec<(usize, bool)> = (1..=messages).flat_map(|at| [(at, false), (at, true)]).collect();
        let sample = sampled(&cuts, story.sample);
        println!(
            "{:?}: {messages} messages, {} of {} cuts",
            story.act,
            sample.len(),
            cuts.len()
        );
        for (at, after) in sample {
            let cut = format!(
                "{:?} cut {} message {at}",
                story.act,
                if after { "after" } else { "before" }
            );
            let (machine, snapshot) = prepare().await;
            let backend = fresh();
            backend.probe().await.unwrap();
            proxy.set(Mode::Cut { at, after });
            let limit = Call::new(2, Duration::from_secs(20));
            let done = act(&backend, &limit, &machine, &snapshot, story.act).await;
            // Messages may be one fewer where something was known already; then it is done.
            assert!(
                done.is_err() || !proxy.is_dead(),
                "{cut}: it did not hear of the cut"
            );
            drop(backend);
            proxy.set(Mode::Open);
            let next = fresh();
            if made % 2 == 0 {
                settled(&cut, || act(&next, &limit, &machine, &snapshot, story.act)).await;
            }
            settled(&cut, || act(&next, &limit, &machine, &snapshot, Act::Remove)).await;
            let id = machine.id.to_string();
            let left = lab.traces(&id);
            assert!(left.is_empty(), "{cut}: {left:?} is left");
            made += 1;
        }
    }
    assert!(made >= 50, "only {made} cuts were made");
    lab.clean().await;
}

/// Repeats what may still meet the end of the call that was cut: libvirtd goes on with it.
async fn settled<F>(what: &str, act: impl Fn() -> F)
where
    F: Future<Output = hwm_core::backend::Result<()>>,
{
    let mut tries = 0;
    while let Err(error) = act().await {
        tries += 1;
        assert!(tries < 10, "{what}: {error}");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}
