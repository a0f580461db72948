//! The thread that NVML is called on. Calls block, and some have hung for ever: whoever waits for one waits no
//! longer than a deadline, and what nobody waits for any more is not begun.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use hwm_core::backend::{BackendError, BackendErrorKind};
use tokio::sync::oneshot;

use crate::engine::{Answer, Engine};

/// How often events are looked for while there is nothing else to do.
const TICK: Duration = Duration::from_millis(100);

type Job = Box<dyn FnOnce(&mut Engine) + Send>;

/// The thread, as others see it.
pub(crate) struct Worker {
    jobs: Sender<Job>,
    busy: Arc<Busy>,
    patience: Duration,
}

/// Since when the thread is at one thing, in milliseconds after `begun`, plus one; zero while it is at none.
struct Busy {
    begun: Instant,
    since: AtomicU64,
}

impl Busy {
    fn start(&self) {
        self.since
            .store(self.begun.elapsed().as_millis() as u64 + 1, Ordering::Relaxed);
    }

    fn stop(&self) {
        self.since.store(0, Ordering::Relaxed);
    }

    fn duration(&self) -> Duration {
        match self.since.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => self
                .begun
                .elapsed()
                .saturating_sub(Duration::from_millis(since - 1)),
        }
    }
}

impl Worker {
    /// Starts the thread. It ends when the worker is dropped, after what it is at.
    pub(crate) fn start(engine: Engine) -> std::io::Result<Self> {
        let (jobs, work) = channel();
        let busy = Arc::new(Busy {
            begun: Instant::now(),
            since: AtomicU64::new(0),
        });
        let patience = engine.options.patience;
        let shared = busy.clone();
        thread::Builder::new()
            .name("hwm-nvml".to_owned())
            .spawn(move || run(engine, &work, &shared))?;
        Ok(Self { jobs, busy, patience })
    }

    /// Does something on the thread. When the caller's future is dropped before it is begun, it is not done;
    /// once begun it is finished.
    ///
    /// # Errors
    ///
    /// What the body fails with; `Unavailable` at once while NVML hangs; `Timeout` after `limit`.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        doing: &str,
        limit: Duration,
        body: impl FnOnce(&mut Engine) -> Answer<T> + Send + 'static,
    ) -> Answer<T> {
        let hung = self.busy.duration();
        if hung > self.patience {
            let message = format!("NVML has not answered for {} s", hung.as_secs());
            return Err(BackendError::new(BackendErrorKind::Unavailable, doing, message));
        }
        let (answer, waits) = oneshot::channel();
        let job: Job = Box::new(move |engine| {
            if !answer.is_closed() {
                let done = body(engine);
                // Nobody may be waiting any more; what was done is in the journal.
                let _unheard = answer.send(done);
            }
        });
        let gone = || BackendError::new(BackendErrorKind::Unavailable, doing, "the NVML thread has ended");
        self.jobs.send(job).map_err(|_| gone())?;
        match tokio::time::timeout(limit, waits).await {
            Ok(answer) => answer.map_err(|_| gone())?,
            Err(_) => {
                let message = format!("NVML did not answer within {} s", limit.as_secs());
                Err(BackendError::new(BackendErrorKind::Timeout, doing, message))
            }
        }
    }

    /// Whether NVML hangs, and since when.
    pub(crate) fn hung(&self) -> Option<Duration> {
        Some(self.busy.duration()).filter(|d| *d > self.patience)
    }
}

fn run(mut engine: Engine, work: &Receiver<Job>, busy: &Busy) {
    let mut looked = Instant::now();
    loop {
        match work.recv_timeout(TICK) {
            Ok(job) => {
                busy.start();
                job(&mut engine);
                busy.stop();
            }
            Err(RecvTimeoutError::Timeout) => {
                busy.start();
                engine.poll_events();
                if looked.elapsed() >= engine.options.refresh {
                    engine.refresh();
                    looked = Instant::now();
                }
                busy.stop();
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
