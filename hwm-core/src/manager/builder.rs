//! Wiring: what a manager is made of, and the settings it works by.

use std::collections::HashMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use super::counters::CounterSet;
use super::slot::Slot;
use super::{Core, Manager, Result};
use crate::accelerator::Accelerators;
use crate::backend::Backend;
use crate::env::{Environment, Ids, SystemEnvironment};
use crate::error::Error;
use crate::id::NodeId;
use crate::store::{EventQuery, Store};
use crate::validate::Rules;

/// How a manager works. Durations are wall-clock time of its environment.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Settings {
    /// The most operations that may wait on one resource, the running one included.
    pub queue_limit: usize,
    /// The most changing calls under way on one backend.
    pub parallel_calls: usize,
    /// How many cores may be claimed for each one that there is.
    pub cpu_overcommit: f64,
    /// The ports of the node that are chosen from.
    pub port_range: RangeInclusive<u16>,
    /// How long an accepted operation waits for a backend that is away, from its acceptance.
    pub operation_deadline: Duration,
    /// The most that one call that makes a workload may take: image pulls, disks.
    pub create_timeout: Duration,
    /// The most that any other changing call may take, grace aside.
    pub change_timeout: Duration,
    /// The most that a call that asks may take.
    pub read_timeout: Duration,
    /// Grace for a stop that does not name one.
    pub stop_grace: Duration,
    /// How long a resource that is stopped keeps its GPUs: none is for good, zero is not at all.
    pub hold_gpus: Option<Duration>,
    /// Time between two looks at whether a backend answers.
    pub probe_interval: Duration,
    /// Time between two comparisons of everything with the backends.
    pub resync_interval: Duration,
    /// How long finished operations are kept.
    pub keep_operations: Duration,
    /// How long events are kept.
    pub keep_events: Duration,
    /// How long answers to idempotency keys are kept.
    pub keep_answers: Duration,
    /// How long records of deleted resources are kept.
    pub keep_deleted: Duration,
    /// Time between two prunings.
    pub prune_interval: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(24 * 3600);
        Self {
            queue_limit: 8,
            parallel_calls: 16,
            cpu_overcommit: 4.0,
            port_range: 30_000..=39_999,
            operation_deadline: Duration::from_secs(3600),
            create_timeout: Duration::from_secs(3600),
            change_timeout: Duration::from_secs(120),
            read_timeout: Duration::from_secs(10),
            stop_grace: Duration::from_secs(10),
            hold_gpus: None,
            probe_interval: Duration::from_secs(5),
            resync_interval: Duration::from_secs(60),
            keep_operations: 30 * DAY,
            keep_events: 7 * DAY,
            keep_answers: DAY,
            keep_deleted: 30 * DAY,
            prune_interval: Duration::from_secs(3600),
        }
    }
}

impl Settings {
    fn check(&self) -> Result<()> {
        let unsupported = |what: &str, reason: &str| {
            Err(Error::Unsupported {
                what: what.to_owned(),
                reason: reason.to_owned(),
            })
        };
        if self.port_range.is_empty() {
            return unsupported("an empty settings.port_range", "name at least one port");
        }
        if self.queue_limit == 0 || self.parallel_calls == 0 {
            return unsupported(
                "a settings.queue_limit or settings.parallel_calls of 0",
                "nothing would ever be done: allow at least 1",
            );
        }
        if !(self.cpu_overcommit.is_finite() && self.cpu_overcommit > 0.0) {
            return unsupported(
                "this settings.cpu_overcommit",
                "it must be a number above 0, such as 4 for four claimed cores to each one",
            );
        }
        Ok(())
    }
}

/// Puts a manager together. What is not given has a default, save the store and at least one backend.
pub struct Builder {
    store: Arc<dyn Store>,
    node: NodeId,
    hostname: String,
    backends: Vec<Arc<dyn Backend>>,
    accelerators: Option<Arc<dyn Accelerators>>,
    env: Arc<dyn Environment>,
    rules: Rules,
    settings: Settings,
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("node", &self.node)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl Builder {
    pub(super) fn new(store: Arc<dyn Store>, node: NodeId) -> Self {
        Self {
            store,
            hostname: node.to_string(),
            node,
            backends: Vec::new(),
            accelerators: None,
            env: Arc::new(SystemEnvironment),
            rules: Rules::default(),
            settings: Settings::default(),
        }
    }

    /// Adds what runs workloads. Of two that run the same type the first is taken.
    #[must_use]
    pub fn backend(mut self, backend: Arc<dyn Backend>) -> Self {
        self.backends.push(backend);
        self
    }

    /// Sets what hands out GPUs; none without.
    #[must_use]
    pub fn accelerators(mut self, accelerators: Arc<dyn Accelerators>) -> Self {
        self.accelerators = Some(accelerators);
        self
    }

    /// Sets the node's host name, for people.
    #[must_use]
    pub fn hostname(mut self, hostname: impl Into<String>) -> Self {
        self.hostname = hostname.into();
        self
    }

    /// Sets where time, randomness and tasks come from; the system by default.
    #[must_use]
    pub fn environment(mut self, env: Arc<dyn Environment>) -> Self {
        self.env = env;
        self
    }

    /// Sets what the operator allows in configs.
    #[must_use]
    pub fn rules(mut self, rules: Rules) -> Self {
        self.rules = rules;
        self
    }

    /// Sets how the manager works.
    #[must_use]
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// Starts the manager: takes up what an earlier one left unfinished, and begins to watch the backends.
    /// Returns before that is done.
    ///
    /// # Errors
    /// When the store does not answer, and [`Error::Unsupported`] for settings that no manager can work by.
    pub async fn build(self) -> Result<Manager> {
        self.settings.check()?;
        let counters = Arc::new(CounterSet::default());
        let slots = self
            .backends
            .into_iter()
            .map(|b| {
                Arc::new(Slot::new(
                    b,
                    self.env.clone(),
                    counters.clone(),
                    self.settings.parallel_calls,
                ))
            })
            .collect();
        let newest = self
            .store
            .events(EventQuery {
                after: u64::MAX,
                limit: 1,
            })
            .await?
            .newest;
        let core = Arc::new(Core {
            ids: Ids::new(self.env.clone()),
            env: self.env,
            store: self.store,
            node: self.node,
            hostname: self.hostname,
            slots,
            accelerators: self.accelerators,
            rules: self.rules,
            settings: self.settings,
            counters,
            lanes: Mutex::new(HashMap::new()),
            monitors: Mutex::new(HashMap::new()),
            fallen: Mutex::new(HashMap::new()),
            progress: Mutex::new(HashMap::new()),
            stopping: CancellationToken::new(),
            newest: watch::Sender::new(newest),
            ended: broadcast::Sender::new(1024),
            tasks: tokio_util::task::TaskTracker::new(),
        });
        core.recover().await?;
        core.watch_backends();
        Ok(Manager { core })
    }
}
