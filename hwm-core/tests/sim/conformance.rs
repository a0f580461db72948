use std::sync::Arc;
use std::time::Duration;

use hwm_core::backend::{Backend, BackendErrorKind, Workload};
use hwm_core::config::Config;
use hwm_core::testing::backend_suite::{self, Fixture, samples};
use hwm_core::testing::env::SimEnvironment;
use hwm_core::testing::sim::{Latency, Sim, SimOptions};
use hwm_core::units::{Bytes, Cores};

pub(crate) fn node(seed: u64, latency: Latency) -> (Sim, Arc<SimEnvironment>) {
    let env = Arc::new(SimEnvironment::new(seed));
    let options = SimOptions {
        latency,
        ..SimOptions::default()
    };
    (Sim::new(env.clone(), options), env)
}

fn more_memory(workload: &Workload) -> Workload {
    let mut changed = workload.clone();
    match &mut changed.config {
        Config::Machine(m) => m.ram = Bytes::from_mb(1024),
        Config::Container(c) => {
            c.ram_limit = Some(Bytes::from_mb(128));
            c.cpu_cores = Some(Cores::whole(1));
        }
        Config::Inference(_) => {}
    }
    changed
}

/// The simulator's containers, as `backend` shows them.
pub(crate) fn containers(sim: &Sim, backend: Arc<dyn Backend>, env: Arc<SimEnvironment>) -> Fixture {
    sim.break_image("nosuch:latest", BackendErrorKind::NotFound, "manifest unknown");
    Fixture::new(backend, |id| samples::container(id, &["sleep", "infinity"]))
        .script(|id, script| samples::container(id, &["sh", "-c", script]))
        .refused(|id| samples::container_of(id, "nosuch", &[]))
        .changed(|workload| {
            let mut changed = workload.clone();
            if let Config::Container(c) = &mut changed.config {
                c.environment.insert("CHANGED".into(), "yes".into());
            }
            changed
        })
        .live(more_memory)
        .stranger(sim.containers_of("somebody-else"))
        .environment(env)
}

fn machines(sim: &Sim, env: Arc<SimEnvironment>) -> Fixture {
    Fixture::new(sim.machines(), |id| samples::machine(id, "debian-12"))
        .changed(more_memory)
        .live(more_memory)
        .stranger(sim.machines_of("somebody-else"))
        .environment(env)
}

pub(crate) fn slow() -> Latency {
    Latency {
        call: Duration::from_millis(20),
        jitter: Duration::from_millis(50),
        pull: Duration::from_millis(200),
        boot: Duration::from_millis(300),
        stop: Duration::from_millis(100),
    }
}

const NO_CONSOLE: [&str; 5] = [
    "a snapshot can be taken, restored and removed, each repeatedly",
    "removing a workload removes its snapshots",
    "the screen speaks RFB",
    "the serial console can be opened",
    "a console of what is not running fails",
];

const NO_SCRIPT_NO_EXEC: [&str; 12] = [
    "a workload that cannot be made fails for good, and leaves nothing",
    "inspect tells the exit code of what ended by itself",
    "what ended badly says why",
    "events hint at a death",
    "a log has every line, with stream and time",
    "a log can be cut by tail, since and until",
    "following a log brings what comes, and ends with the workload",
    "exec tells exit code, output and error output",
    "exec kills a command that outlives its timeout",
    "exec cuts output at the limit, and says so",
    "exec in what is not running fails",
    "an exec session carries input, output and the exit code",
];

#[tokio::test(start_paused = true)]
async fn simulated_containers_keep_every_promise() {
    for (seed, latency) in [(1, Latency::default()), (2, slow()), (3, slow())] {
        let (sim, env) = node(seed, latency);
        backend_suite::run(&containers(&sim, sim.containers(), env))
            .await
            .expect(&NO_CONSOLE);
        assert_eq!(sim.breaches(), [""; 0]);
        assert_eq!(sim.holdings(), hwm_core::testing::sim::Holdings::default());
    }
}

#[tokio::test(start_paused = true)]
async fn simulated_machines_keep_every_promise() {
    for (seed, latency) in [(1, Latency::default()), (2, slow()), (3, slow())] {
        let (sim, env) = node(seed, latency);
        backend_suite::run(&machines(&sim, env))
            .await
            .expect(&NO_SCRIPT_NO_EXEC);
        assert_eq!(sim.breaches(), [""; 0]);
        assert_eq!(sim.holdings(), hwm_core::testing::sim::Holdings::default());
    }
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_goes_on_without_its_caller_keeps_every_promise() {
    let (sim, env) = node(4, slow());
    sim.set_detached(true);
    backend_suite::run(&containers(&sim, sim.containers(), env))
        .await
        .expect(&NO_CONSOLE);
    let (sim, env) = node(5, slow());
    sim.set_detached(true);
    backend_suite::run(&machines(&sim, env))
        .await
        .expect(&NO_SCRIPT_NO_EXEC);
}
