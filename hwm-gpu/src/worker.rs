//! The thread that NVML is called on. Calls block, and some have hung for ever: whoever waits for one waits no
//! longer than a deadline, and what nobody waits for any more is not begun.

use std::fs::File;
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
    /// None only while it is dropped.
    jobs: Option<Sender<Job>>,
    thread: Option<thread::JoinHandle<()>>,
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
    /// Starts the thread. It ends when the worker is dropped, after what it is at; until then it keeps `lock`.
    pub(crate) fn start(engine: Engine, lock: File) -> std::io::Result<Self> {
        let (jobs, work) = channel();
        let busy = Arc::new(Busy {
            begun: Instant::now(),
            since: AtomicU64::new(0),
        });
        let patience = engine.options.patience;
        let shared = busy.clone();
        let thread = thread::Builder::new()
            .name("hwm-nvml".to_owned())
            .spawn(move || {
                run(engine, &work, &shared);
                drop(lock);
            })?;
        Ok(Self {
            jobs: Some(jobs),
            thread: Some(thread),
            busy,
            patience,
        })
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
        self.jobs
            .as_ref()
            .ok_or_else(gone)?
            .send(job)
            .map_err(|_| gone())?;
        match tokio::time::timeout(limit, waits).await {
            Ok(answer) => answer.map_err(|_| gone())?,
            Err(_) => {
                let message = format!("NVML did not answer within {limit:?}");
                Err(BackendError::new(BackendErrorKind::Timeout, doing, message))
            }
        }
    }

    /// Whether NVML hangs, and since when.
    pub(crate) fn hung(&self) -> Option<Duration> {
        Some(self.busy.duration()).filter(|d| *d > self.patience)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.jobs = None;
        // So that who opens the GPUs next finds them free. A thread that hangs is left behind, with its lock.
        for _ in 0..500 {
            if self.thread.as_ref().is_none_or(thread::JoinHandle::is_finished) {
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
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
