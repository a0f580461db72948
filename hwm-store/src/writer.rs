//! The one thread that writes. What waits when it is free is committed together, so the disk is asked once
//! for many; nobody waits for others to come.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use hwm_core::event::StoredEvent;
use hwm_core::store::{CommitError, PruneLimits, StoreError, Transaction};
use rusqlite::Connection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::error::failed;
use crate::group::{Group, Known};
use crate::prune;
use crate::recent::Recent;
use crate::seal::SealingKey;

/// The most that is committed at once, so that the first does not wait too long.
const GROUP: usize = 256;

/// The most that waits; more callers are held back.
const QUEUE: usize = 1024;

/// After so long without work the memory that work took is given back.
const IDLE: Duration = Duration::from_secs(5);

type Answer<T, E> = oneshot::Sender<Result<T, E>>;

enum Job {
    Commit(Box<Transaction>, Answer<Vec<StoredEvent>, CommitError>),
    Prune(PruneLimits, Answer<prune::Pruned, StoreError>),
}

/// A job and its place in the queue.
type Waiting = (Job, OwnedSemaphorePermit);

/// What the writer has done since the store was opened.
#[derive(Debug, Default)]
pub(crate) struct Done {
    pub(crate) commits: AtomicU64,
    pub(crate) groups: AtomicU64,
}

/// The way to the writing thread. It ends, after what is queued, when this is dropped.
pub(crate) struct Writer {
    jobs: Option<mpsc::Sender<Waiting>>,
    places: Arc<Semaphore>,
    thread: Option<JoinHandle<()>>,
    done: Arc<Done>,
}

impl Writer {
    pub(crate) fn spawn(db: Connection, key: SealingKey, recent: Arc<Recent>) -> std::io::Result<Self> {
        let (jobs, queue) = mpsc::channel();
        let done = Arc::new(Done::default());
        let worker = Worker {
            db,
            key,
            known: Known::default(),
            recent,
            done: done.clone(),
        };
        let thread = std::thread::Builder::new()
            .name("hwm-store-writer".to_owned())
            .spawn(move || worker.run(queue))?;
        Ok(Self {
            jobs: Some(jobs),
            places: Arc::new(Semaphore::new(QUEUE)),
            thread: Some(thread),
            done,
        })
    }

    pub(crate) fn done(&self) -> &Done {
        &self.done
    }

    pub(crate) async fn commit(&self, transaction: Transaction) -> Result<Vec<StoredEvent>, CommitError> {
        self.ask(|answer| Job::Commit(Box::new(transaction), answer))
            .await?
    }

    pub(crate) async fn prune(&self, limits: PruneLimits) -> Result<prune::Pruned, StoreError> {
        self.ask(|answer| Job::Prune(limits, answer)).await?
    }

    async fn ask<T>(&self, job: impl FnOnce(oneshot::Sender<T>) -> Job) -> Result<T, StoreError> {
        let gone = || StoreError::new("committing", "the store's writer has ended: open the store again");
        let (answer, answered) = oneshot::channel();
        let jobs = self.jobs.as_ref().ok_or_else(gone)?;
        let place = self.places.clone().acquire_owned().await.map_err(|_| gone())?;
        jobs.send((job(answer), place)).map_err(|_| gone())?;
        answered.await.map_err(|_| gone())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.jobs = None;
        // Once it has ended, the file is nobody's and another store may open it.
        let thread = self.thread.take();
        if thread.is_some_and(|t| t.join().is_err()) {
            tracing::error!("the store's writer panicked");
        }
    }
}

struct Worker {
    db: Connection,
    key: SealingKey,
    known: Known,
    recent: Arc<Recent>,
    done: Arc<Done>,
}

impl Worker {
    fn run(mut self, queue: mpsc::Receiver<Waiting>) {
        while let Some(first) = self.next(&queue) {
            let mut commits = Vec::new();
            let mut next = Some(first);
            while let Some((job, _place)) = next {
                match job {
                    Job::Commit(transaction, answer) => commits.push((transaction, answer)),
                    Job::Prune(limits, answer) => {
                        self.commit_all(std::mem::take(&mut commits));
                        let pruned = self.prune(&limits);
                        // Whoever asked may have gone.
                        let _ = answer.send(pruned);
                    }
                }
                next = if commits.len() < GROUP {
                    queue.try_recv().ok()
                } else {
                    None
                };
            }
            self.commit_all(commits);
        }
    }

    /// Waits for a job; none when there will be no more.
    fn next(&self, queue: &mpsc::Receiver<Waiting>) -> Option<Waiting> {
        match queue.recv_timeout(IDLE) {
            Ok(job) => return Some(job),
            Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) => {}
        }
        if let Err(error) = self.db.release_memory() {
            tracing::warn!(%error, "the store could not give memory back");
        }
        queue.recv().ok()
    }

    fn commit_all(&mut self, commits: Vec<Asked>) {
        if commits.is_empty() {
            return;
        }
        let transactions: Vec<&Transaction> = commits.iter().map(|(t, _)| &**t).collect();
        let answers = match self.group(&transactions) {
            Ok(answers) => answers,
            // One that cannot be written must not take the others with it.
            Err(_) if transactions.len() > 1 => {
                let alone = transactions.iter().map(|t| self.group(&[*t]));
                alone
                    .map(|a| a.and_then(first).map_err(CommitError::from).and_then(|a| a))
                    .collect()
            }
            Err(error) => vec![Err(error.into())],
        };
        for ((_, answer), result) in commits.into_iter().zip(answers) {
            let _ = answer.send(result);
        }
    }

    /// Commits transactions together: the answer of each, or why none was.
    fn group(&mut self, transactions: &[&Transaction]) -> Result<Vec<Committed>, StoreError> {
        let recent = self.recent.clone();
        let ids = transactions.iter().flat_map(|t| &t.records).map(|w| w.record.id);
        let _writing = recent.writing(ids);
        let answers = self.write(|group| {
            let mut answers = Vec::with_capacity(transactions.len());
            for transaction in transactions {
                match group.apply(transaction) {
                    Err(CommitError::Store(error)) => return Err(error),
                    answer => answers.push(answer),
                }
            }
            let written = answers.iter().any(Result::is_ok);
            Ok((answers, written))
        })?;
        let committed = answers.iter().filter(|a| a.is_ok()).count() as u64;
        self.done.commits.fetch_add(committed, Ordering::Relaxed);
        Ok(answers)
    }

    fn prune(&mut self, limits: &PruneLimits) -> Result<prune::Pruned, StoreError> {
        let recent = self.recent.clone();
        let _writing = recent.writing_any();
        self.write(|group| {
            let pruned = prune::some(group, limits)?;
            Ok((pruned, pruned.gone > 0))
        })
    }

    /// Runs `body` in a transaction of the database, and commits it if anything was written.
    fn write<T>(
        &mut self,
        body: impl FnOnce(&mut Group<'_>) -> Result<(T, bool), StoreError>,
    ) -> Result<T, StoreError> {
        let Self {
            db, key, known, done, ..
        } = self;
        let result = (|| {
            db.execute_batch("BEGIN IMMEDIATE")
                .map_err(failed("beginning a commit"))?;
            let mut group = Group::begin(db, key, known)?;
            let (answer, written) = body(&mut group)?;
            if !written {
                db.execute_batch("ROLLBACK")
                    .map_err(failed("ending a commit that writes nothing"))?;
                return Ok(answer);
            }
            group.finish()?;
            db.execute_batch("COMMIT").map_err(failed("committing"))?;
            done.groups.fetch_add(1, Ordering::Relaxed);
            Ok(answer)
        })();
        if result.is_err() {
            // SQLite may have rolled back already; then there is nothing to do.
            if !db.is_autocommit()
                && let Err(error) = db.execute_batch("ROLLBACK")
            {
                tracing::error!(%error, "the store could not roll back");
            }
            *known = Known::default();
        }
        result
    }
}

/// A transaction, and where its answer goes.
type Asked = (Box<Transaction>, Answer<Vec<StoredEvent>, CommitError>);

type Committed = Result<Vec<StoredEvent>, CommitError>;

fn first(answers: Vec<Committed>) -> Result<Committed, StoreError> {
    let missing = || StoreError::new("committing", "the group lost an answer");
    answers.into_iter().next().ok_or_else(missing)
}
