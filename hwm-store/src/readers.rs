//! Connections that only read. They see the last commit and never wait for the writer.
//!
//! What reads a row or two runs where it is asked: it takes less time than going to another thread and back.
//! What may look at many rows runs on threads of its own, so that it keeps nobody's runtime busy.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, mpsc};
use std::thread::JoinHandle;

use hwm_core::store::StoreError;
use rusqlite::Connection;
use tokio::sync::oneshot;

use crate::error::OpenError;
use crate::schema::open_reader;

type Job = Box<dyn FnOnce(&Connection) + Send>;

pub(crate) struct Readers {
    here: Vec<Mutex<Connection>>,
    turn: AtomicUsize,
    jobs: Option<mpsc::Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Readers {
    /// As many of each kind as there are processors, within reason.
    pub(crate) fn open(path: &Path) -> Result<Self, OpenError> {
        let processors = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let count = processors.clamp(2, 8);
        let here = (0..count)
            .map(|_| open_reader(path).map(Mutex::new))
            .collect::<Result<_, _>>()?;
        let (jobs, queue) = mpsc::channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        let mut threads = Vec::with_capacity(count);
        for _ in 0..count {
            let db = open_reader(path)?;
            let queue = queue.clone();
            let thread = std::thread::Builder::new()
                .name("hwm-store-reader".to_owned())
                .spawn(move || {
                    while let Some(job) = next(&queue) {
                        job(&db)
                    }
                });
            threads.push(thread.map_err(|source| OpenError::Io {
                path: path.to_owned(),
                source,
            })?);
        }
        Ok(Self {
            here,
            turn: AtomicUsize::new(0),
            jobs: Some(jobs),
            threads,
        })
    }

    /// Runs a read of a row or two.
    pub(crate) fn here<T>(&self, read: impl FnOnce(&Connection) -> T) -> T {
        read(&self.connection())
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        for i in 0..self.here.len() {
            match self.here[(first + i) % self.here.len()].try_lock() {
                Ok(db) => return db,
                Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => {}
            }
        }
        let busy = &self.here[first % self.here.len()];
        busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a read that may look at many rows.
    pub(crate) async fn aside<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let gone = || StoreError::new("reading", "the store's readers have ended: open the store again");
        let (answer, answered) = oneshot::channel::<Result<T, StoreError>>();
        let job: Job = Box::new(move |db| {
            // Whoever asked may have gone before it began.
            if !answer.is_closed() {
                let _ = answer.send(read(db));
            }
        });
        let jobs = self.jobs.as_ref().ok_or_else(gone)?;
        jobs.send(job).map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

fn next(queue: &Mutex<mpsc::Receiver<Job>>) -> Option<Job> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a reader of the store panicked");
            }
        }
    }
}
