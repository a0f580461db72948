//! The suite that every [`Backend`] must pass: each check is a promise of [`crate::backend`].
//!
//! ```
//! use std::sync::Arc;
//! use hwm_core::env::SystemEnvironment;
//! use hwm_core::testing::backend_suite::{self, Fixture, samples};
//! use hwm_core::testing::sim::{Sim, SimOptions};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let sim = Sim::new(Arc::new(SystemEnvironment), SimOptions::default());
//! let fixture = Fixture::new(sim.containers(), |id| samples::container(id, &["sleep", "infinity"]))
//!     .script(|id, script| samples::container(id, &["sh", "-c", script]));
//! let report = backend_suite::run(&fixture).await;
//! assert!(report.broken.is_empty(), "{report}");
//! # }
//! ```
//!
//! What a fixture does not offer is not checked, and the [`Report`] says so: let your test assert that
//! [`Report::unchecked`] is what you expect.

mod conduct;
mod facets;
mod lifecycle;
pub mod samples;
mod streams;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::backend::{Backend, BackendError, Call, Observed, ObservedState, StopOptions, Workload};
use crate::env::{Environment, Ids, SystemEnvironment};
use crate::id::{ResourceId, SnapshotId};

type Sample = Box<dyn Fn(ResourceId) -> Workload + Send + Sync>;
type Script = Box<dyn Fn(ResourceId, &str) -> Workload + Send + Sync>;
type Change = Box<dyn Fn(&Workload) -> Workload + Send + Sync>;

/// A backend, and workloads that it can be tried with.
pub struct Fixture {
    backend: Arc<dyn Backend>,
    env: Arc<dyn Environment>,
    lasting: Sample,
    script: Option<Script>,
    refused: Option<Sample>,
    changed: Option<Change>,
    live: Option<Change>,
    stranger: Option<Arc<dyn Backend>>,
    stop: StopOptions,
    patience: Duration,
    timeout: Duration,
}

impl Fixture {
    /// A backend, and a workload that keeps running until it is stopped.
    pub fn new(
        backend: Arc<dyn Backend>,
        lasting: impl Fn(ResourceId) -> Workload + Send + Sync + 'static,
    ) -> Self {
        Self {
            backend,
            env: Arc::new(SystemEnvironment),
            lasting: Box::new(lasting),
            script: None,
            refused: None,
            changed: None,
            live: None,
            stranger: None,
            stop: StopOptions {
                force: false,
                grace: Some(Duration::from_secs(1)),
            },
            patience: Duration::from_secs(20),
            timeout: Duration::from_secs(120),
        }
    }

    /// A workload that runs a script with `/bin/sh` and ends with its exit code. The scripts use `echo`,
    /// `sleep` and `exit`.
    #[must_use]
    pub fn script(mut self, script: impl Fn(ResourceId, &str) -> Workload + Send + Sync + 'static) -> Self {
        self.script = Some(Box::new(script));
        self
    }

    /// A workload that the backend cannot make, whatever is tried, for example with an image that does not
    /// exist.
    #[must_use]
    pub fn refused(mut self, refused: impl Fn(ResourceId) -> Workload + Send + Sync + 'static) -> Self {
        self.refused = Some(Box::new(refused));
        self
    }

    /// A change of a workload's config that takes effect at the next start.
    #[must_use]
    pub fn changed(mut self, change: impl Fn(&Workload) -> Workload + Send + Sync + 'static) -> Self {
        self.changed = Some(Box::new(change));
        self
    }

    /// A change of a workload's config that can be made while it runs.
    #[must_use]
    pub fn live(mut self, change: impl Fn(&Workload) -> Workload + Send + Sync + 'static) -> Self {
        self.live = Some(Box::new(change));
        self
    }

    /// The same daemon, as somebody with another owner label uses it.
    #[must_use]
    pub fn stranger(mut self, stranger: Arc<dyn Backend>) -> Self {
        self.stranger = Some(stranger);
        self
    }

    /// How workloads are stopped; with a second of grace unless told otherwise.
    #[must_use]
    pub fn stop(mut self, stop: StopOptions) -> Self {
        self.stop = stop;
        self
    }

    /// How long what must happen by itself may take; 20 s unless told otherwise.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// How long a call may take; 120 s unless told otherwise.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Whose time is waited in; the system's unless told otherwise.
    #[must_use]
    pub fn environment(mut self, env: Arc<dyn Environment>) -> Self {
        self.env = env;
        self
    }
}

/// What the suite found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// The promises that were kept.
    pub kept: Vec<&'static str>,
    /// The promises that could not be checked: the backend has no such facet, or the fixture no such
    /// workload.
    pub unchecked: Vec<&'static str>,
    /// The promises that were broken, and how.
    pub broken: Vec<(&'static str, String)>,
}

impl Report {
    /// Panics when a promise was broken, or when others than these could not be checked.
    ///
    /// # Panics
    ///
    /// As said; the message names the promises.
    pub fn expect(&self, unchecked: &[&str]) {
        assert!(self.broken.is_empty() && self.unchecked == unchecked, "{self}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} promises kept", self.kept.len())?;
        for promise in &self.unchecked {
            writeln!(f, "not checked: {promise}")?;
        }
        for (promise, how) in &self.broken {
            writeln!(f, "BROKEN: {promise}\n        {how}")?;
        }
        Ok(())
    }
}

/// What a check comes to.
enum Verdict {
    Kept,
    NotOffered,
}

/// Why a promise is broken.
struct Broken(String);

impl From<BackendError> for Broken {
    fn from(error: BackendError) -> Self {
        Self(format!("a call failed ({:?}): {error}", error.kind))
    }
}

impl From<String> for Broken {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for Broken {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

type Outcome<T = Verdict> = Result<T, Broken>;
type Check<'a> = Pin<Box<dyn Future<Output = Outcome> + Send + 'a>>;
type Promise = (&'static str, for<'a> fn(&'a Bench<'a>) -> Check<'a>);

/// Runs every check, one after the other, and removes what each made. How long each took is told to `tracing`, at
/// level debug.
pub async fn run(fixture: &Fixture) -> Report {
    let mut report = Report::default();
    let promises = lifecycle::PROMISES.iter().chain(conduct::PROMISES);
    for (promise, check) in promises.chain(streams::PROMISES).chain(facets::PROMISES) {
        let bench = Bench {
            ids: Ids::new(fixture.env.clone()),
            fixture,
            made: Mutex::default(),
            polls: AtomicU64::new(0),
        };
        let begun = fixture.env.now();
        let outcome = match check(&bench).await {
            Ok(verdict) => bench.clean().await.map(|()| verdict),
            // What went wrong first is what counts.
            Err(broken) => {
                let _ = bench.clean().await;
                Err(broken)
            }
        };
        let seconds = fixture.env.now().since(begun).as_secs_f32();
        tracing::debug!(promise, seconds, "checked");
        match outcome {
            Ok(Verdict::Kept) => report.kept.push(promise),
            Ok(Verdict::NotOffered) => report.unchecked.push(promise),
            Err(Broken(how)) => report.broken.push((promise, how)),
        }
    }
    report
}

/// What a check works with.
struct Bench<'a> {
    fixture: &'a Fixture,
    ids: Ids,
    made: Mutex<Vec<ResourceId>>,
    polls: AtomicU64,
}

const LAST_GENERATION: u64 = 1_000_000;

impl Bench<'_> {
    fn backend(&self) -> &dyn Backend {
        self.fixture.backend.as_ref()
    }

    fn id(&self) -> ResourceId {
        let id = self.ids.resource();
        self.made.lock().unwrap_or_else(PoisonError::into_inner).push(id);
        id
    }

    fn snapshot_id(&self) -> SnapshotId {
        self.ids.snapshot()
    }

    fn lasting(&self) -> Workload {
        (self.fixture.lasting)(self.id())
    }

    fn script(&self, script: &str) -> Option<Workload> {
        self.fixture.script.as_ref().map(|make| make(self.id(), script))
    }

    fn call(&self, generation: u64) -> Call {
        Call::new(generation, self.fixture.timeout)
    }

    fn stop_options(&self) -> StopOptions {
        self.fixture.stop
    }

    async fn up(&self, workload: &Workload) -> Outcome<Observed> {
        self.backend()
            .create(&self.call(workload.generation), workload)
            .await?;
        self.backend()
            .start(&self.call(workload.generation), workload)
            .await?;
        self.look(workload.id).await
    }

    async fn see(&self, id: ResourceId) -> Outcome<Option<Observed>> {
        let mut seen = self.backend().inspect(&[id]).await?;
        match (seen.pop(), seen.is_empty()) {
            (None, _) => Ok(None),
            (Some(observed), true) if observed.id == id => Ok(Some(observed)),
            (Some(observed), _) => Err(format!(
                "inspect of {id} answers {} things, one of which is {}",
                seen.len() + 1,
                observed.id
            )
            .into()),
        }
    }

    async fn look(&self, id: ResourceId) -> Outcome<Observed> {
        let seen = self.see(id).await?;
        seen.ok_or_else(|| format!("{id} should exist, and inspect does not show it").into())
    }

    async fn expect_running(&self, id: ResourceId) -> Outcome<Observed> {
        let seen = self.look(id).await?;
        ensure(
            seen.state == ObservedState::Running,
            format!("{id} should be running and is {:?}", seen.state),
        )?;
        Ok(seen)
    }

    async fn expect_gone(&self, id: ResourceId) -> Outcome<()> {
        if let Some(seen) = self.see(id).await? {
            return Err(format!("{id} should be gone, and inspect shows {:?}", seen.state).into());
        }
        let owned = self.backend().owned().await?;
        ensure(
            owned.iter().all(|o| o.id != id),
            format!("{id} should be gone, and owned shows it"),
        )
    }

    /// Waits until the workload has ended by itself.
    async fn until_ended(&self, id: ResourceId) -> Outcome<Observed> {
        let until = self.fixture.env.now() + self.fixture.patience;
        loop {
            let seen = self.look(id).await?;
            if matches!(seen.state, ObservedState::Ended { .. }) {
                return Ok(seen);
            }
            if self.fixture.env.now() >= until {
                return Err(format!("{id} should have ended by itself and is {:?}", seen.state).into());
            }
            self.fixture.env.sleep(Duration::from_millis(50)).await;
        }
    }

    /// Another number of polls after which a call is dropped.
    fn next_cut(&self) -> u64 {
        self.polls.fetch_add(1, Ordering::Relaxed)
    }

    async fn clean(&self) -> Outcome<()> {
        let made = std::mem::take(&mut *self.made.lock().unwrap_or_else(PoisonError::into_inner));
        for id in made {
            self.backend().remove(&self.call(LAST_GENERATION), id).await?;
            if let Some(stranger) = &self.fixture.stranger {
                stranger.remove(&self.call(LAST_GENERATION), id).await?;
            }
        }
        Ok(())
    }
}

fn ensure(kept: bool, how: impl Into<String>) -> Outcome<()> {
    if kept { Ok(()) } else { Err(Broken(how.into())) }
}
