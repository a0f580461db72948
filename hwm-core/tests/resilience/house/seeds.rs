//! Many runs, each a function of its seed.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|n| n.parse().unwrap())
}

/// Runs `test` with so many seeds, or as many as `HWM_SEEDS` says.
pub(crate) fn many(usual: u64, test: impl Fn(u64) -> Vec<String> + Sync) {
    each(number("HWM_SEEDS").unwrap_or(usual), test);
}

/// Runs `test` with so many seeds on every core, or with the one that `HWM_SEED` names. `test` answers what
/// is wrong.
pub(crate) fn each(count: u64, test: impl Fn(u64) -> Vec<String> + Sync) {
    if let Some(seed) = number("HWM_SEED") {
        let wrong = test(seed);
        assert!(wrong.is_empty(), "seed {seed}:\n{}", wrong.join("\n"));
        return;
    }
    let (next, failed) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= count || failed.lock().unwrap().len() >= 3 {
                return;
            }
            let wrong = test(seed);
            if !wrong.is_empty() {
                failed
                    .lock()
                    .unwrap()
                    .push(format!("seed {seed}:\n{}", wrong.join("\n")));
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(
        failed.is_empty(),
        "replay with HWM_SEED=…\n{}",
        failed.join("\n\n")
    );
}
