//! The suite for backends finds what is wrong with one: each flaw here breaks a promise, and is reported as that.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures_util::StreamExt;
use hwm_core::backend::{
    Backend, BackendError, BackendErrorKind, BackendEvent, BackendInfo, BackendReport, Call, CheckReport,
    Facets, LogLine, LogQuery, LogStream, Observed, ObservedState, Result, StopOptions, Stream, Workload,
};
use hwm_core::id::ResourceId;
use hwm_core::metrics::Metrics;
use hwm_core::testing::backend_suite;
use hwm_core::testing::env::SimEnvironment;

use super::conformance::{containers, node, slow};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Flaw {
    EpochMoves,
    CheckMakes,
    CreateStarts,
    StartsAnew,
    ForceIsIgnored,
    StopOfNothingFails,
    IdentityChanges,
    ChangesAreIgnored,
    RemoveOnlyStops,
    RemovedForEver,
    RefusedForNow,
    ShowsWhatIsNot,
    OneAtATime,
    NoFence,
    LateCreate,
    HalfMadeIsInTheWay,
    StopOnce,
    ShowsStrangers,
    TakesStrangers,
    ExitCodeLost,
    NoLastWords,
    Silent,
    OneStream,
    TailIsIgnored,
    FollowIsIgnored,
    NoLogIsAnError,
    FiguresOfNothing,
}

/// What the suite has to say of each.
const BREAKS: [(Flaw, &str); 27] = [
    (
        Flaw::EpochMoves,
        "probe answers, and its epoch stays while nothing restarts",
    ),
    (Flaw::CheckMakes, "check changes nothing"),
    (
        Flaw::CreateStarts,
        "create makes without starting, and inspect tells the generation",
    ),
    (
        Flaw::StartsAnew,
        "start brings up, stop brings down, and both may be repeated",
    ),
    (Flaw::ForceIsIgnored, "a forced stop brings down"),
    (Flaw::StopOfNothingFails, "stopping what does not exist succeeds"),
    (Flaw::IdentityChanges, "what is started again keeps its identity"),
    (
        Flaw::ChangesAreIgnored,
        "a config that changed is applied at the next start",
    ),
    (
        Flaw::RemoveOnlyStops,
        "remove removes what runs, what is stopped and what is gone",
    ),
    (Flaw::RemovedForEver, "what was removed can be made again"),
    (
        Flaw::RefusedForNow,
        "a workload that cannot be made fails for good, and leaves nothing",
    ),
    (
        Flaw::ShowsWhatIsNot,
        "inspect shows exactly what exists of what was asked for",
    ),
    (Flaw::OneAtATime, "workloads do not wait for each other"),
    (
        Flaw::NoFence,
        "an older generation is refused and changes nothing",
    ),
    (
        Flaw::LateCreate,
        "a create that comes after its delete makes nothing",
    ),
    (Flaw::HalfMadeIsInTheWay, "a dropped create can be repeated"),
    (Flaw::StopOnce, "a dropped stop can be repeated"),
    (Flaw::ShowsStrangers, "owned finds what is ours and nothing else"),
    (
        Flaw::TakesStrangers,
        "what carries another owner label is never touched",
    ),
    (
        Flaw::ExitCodeLost,
        "inspect tells the exit code of what ended by itself",
    ),
    (Flaw::NoLastWords, "what ended badly says why"),
    (Flaw::Silent, "events hint at a death"),
    (Flaw::OneStream, "a log has every line, with stream and time"),
    (Flaw::TailIsIgnored, "a log can be cut by tail, since and until"),
    (
        Flaw::FollowIsIgnored,
        "following a log brings what comes, and ends with the workload",
    ),
    (Flaw::NoLogIsAnError, "a workload that does not exist has no log"),
    (
        Flaw::FiguresOfNothing,
        "metrics are of what runs, and of nothing else",
    ),
];

/// A good backend but for one flaw.
struct Flawed {
    inner: Arc<dyn Backend>,
    stranger: Arc<dyn Backend>,
    flaw: Flaw,
    calls: AtomicU64,
    /// What was made first, what is being made, what was stopped or removed.
    first: Mutex<HashMap<ResourceId, Workload>>,
    begun: Mutex<Vec<ResourceId>>,
    ended: Mutex<Vec<ResourceId>>,
}

impl Flawed {
    fn has(&self, flaw: Flaw) -> bool {
        self.flaw == flaw
    }

    /// A number that is another one each time.
    fn next(&self) -> u64 {
        self.calls.fetch_add(1, Ordering::Relaxed)
    }

    fn call(&self, call: &Call) -> Call {
        let mut call = call.clone();
        if self.has(Flaw::NoFence) {
            call.generation = 1;
        }
        call
    }

    fn spoil(&self, mut seen: Vec<Observed>) -> Vec<Observed> {
        for observed in &mut seen {
            if self.has(Flaw::IdentityChanges) {
                observed.runtime_id = format!("{}", self.next());
            }
            if let ObservedState::Ended { exit_code, cause } = &mut observed.state {
                if self.has(Flaw::ExitCodeLost) {
                    *exit_code = Some(0);
                }
                if self.has(Flaw::NoLastWords) {
                    *cause = None;
                }
            }
        }
        seen
    }
}

fn failed(what: &str) -> BackendError {
    BackendError::new(BackendErrorKind::Failed, "being flawed", what)
}

#[async_trait]
impl Backend for Flawed {
    fn info(&self) -> BackendInfo {
        self.inner.info()
    }

    fn facets(&self) -> Facets {
        self.inner.facets()
    }

    async fn probe(&self) -> Result<BackendReport> {
        let mut report = self.inner.probe().await?;
        if self.has(Flaw::EpochMoves) {
            report.epoch = Some(self.next().to_string());
        }
        Ok(report)
    }

    async fn check(&self, planned: &Workload) -> Result<CheckReport> {
        if self.has(Flaw::CheckMakes) {
            let call = Call::new(planned.generation, std::time::Duration::from_secs(60));
            self.inner.create(&call, planned).await?;
        }
        self.inner.check(planned).await
    }

    async fn create(&self, call: &Call, workload: &Workload) -> Result<()> {
        let id = workload.id;
        self.first
            .lock()
            .unwrap()
            .entry(id)
            .or_insert_with(|| workload.clone());
        if self.has(Flaw::RemovedForEver) && self.ended.lock().unwrap().contains(&id) {
            return Err(failed("it was removed"));
        }
        {
            let mut begun = self.begun.lock().unwrap();
            if self.has(Flaw::HalfMadeIsInTheWay) && begun.contains(&id) {
                return Err(failed("it is half made"));
            }
            if self.has(Flaw::OneAtATime) && !begun.is_empty() {
                return Err(failed("another one is being made"));
            }
            begun.push(id);
        }
        let late = self.has(Flaw::LateCreate) && self.ended.lock().unwrap().contains(&id);
        let call = if late {
            Call::new(u64::MAX, call.timeout)
        } else {
            self.call(call)
        };
        let made = self.inner.create(&call, workload).await;
        self.begun.lock().unwrap().retain(|begun| *begun != id);
        if self.has(Flaw::CreateStarts) {
            self.inner.start(&call, workload).await?;
        }
        made.map_err(|mut error| {
            if self.has(Flaw::RefusedForNow) {
                error.kind = BackendErrorKind::Unavailable;
            }
            error
        })
    }

    async fn start(&self, call: &Call, workload: &Workload) -> Result<()> {
        let call = self.call(call);
        if self.has(Flaw::StartsAnew) {
            let at_once = StopOptions {
                force: true,
                grace: None,
            };
            self.inner.stop(&call, workload.id, at_once).await?;
        }
        let first = self.first.lock().unwrap().get(&workload.id).cloned();
        match first {
            Some(first) if self.has(Flaw::ChangesAreIgnored) => self.inner.start(&call, &first).await,
            _ => self.inner.start(&call, workload).await,
        }
    }

    async fn stop(&self, call: &Call, id: ResourceId, options: StopOptions) -> Result<()> {
        if self.has(Flaw::ForceIsIgnored) && options.force {
            return Ok(());
        }
        if self.has(Flaw::StopOfNothingFails) && self.inner.inspect(&[id]).await?.is_empty() {
            return Err(failed("there is no such workload"));
        }
        if self.has(Flaw::StopOnce) {
            let mut ended = self.ended.lock().unwrap();
            if ended.contains(&id) {
                return Err(failed("it was stopped before"));
            }
            ended.push(id);
        }
        self.inner.stop(&self.call(call), id, options).await
    }

    async fn remove(&self, call: &Call, id: ResourceId) -> Result<()> {
        self.ended.lock().unwrap().push(id);
        let call = self.call(call);
        if self.has(Flaw::RemoveOnlyStops) {
            return self.inner.stop(&call, id, StopOptions::default()).await;
        }
        if self.has(Flaw::TakesStrangers) {
            self.stranger.remove(&call, id).await?;
        }
        self.inner.remove(&call, id).await
    }

    async fn inspect(&self, ids: &[ResourceId]) -> Result<Vec<Observed>> {
        let mut seen = self.inner.inspect(ids).await?;
        if self.has(Flaw::ShowsWhatIsNot)
            && let Some(one) = seen.first().cloned()
        {
            let missing = ids.iter().filter(|id| !seen.iter().any(|o| o.id == **id));
            let made_up: Vec<_> = missing
                .map(|id| Observed {
                    id: *id,
                    ..one.clone()
                })
                .collect();
            seen.extend(made_up);
        }
        Ok(self.spoil(seen))
    }

    async fn owned(&self) -> Result<Vec<Observed>> {
        let mut owned = self.inner.owned().await?;
        if self.has(Flaw::ShowsStrangers) {
            owned.extend(self.stranger.owned().await?);
        }
        Ok(self.spoil(owned))
    }

    async fn events(&self) -> Result<Stream<BackendEvent>> {
        if self.has(Flaw::Silent) {
            return Ok(Box::pin(futures_util::stream::pending()));
        }
        self.inner.events().await
    }

    async fn logs(&self, id: ResourceId, mut query: LogQuery) -> Result<Stream<Result<LogLine>>> {
        if self.has(Flaw::NoLogIsAnError) && self.inner.inspect(&[id]).await?.is_empty() {
            return Err(failed("there is no such workload"));
        }
        if self.has(Flaw::TailIsIgnored) {
            query.tail = None;
        }
        query.follow &= !self.has(Flaw::FollowIsIgnored);
        let lines = self.inner.logs(id, query).await?;
        let one_stream = self.has(Flaw::OneStream);
        Ok(Box::pin(lines.map(move |line| {
            line.map(|mut line| {
                if one_stream {
                    line.stream = LogStream::Stdout;
                }
                line
            })
        })))
    }

    async fn metrics(&self, ids: &[ResourceId]) -> Result<Vec<(ResourceId, Metrics)>> {
        let mut metrics = self.inner.metrics(ids).await?;
        if self.has(Flaw::FiguresOfNothing)
            && let Some((_, figures)) = metrics.first().cloned()
        {
            metrics = ids.iter().map(|id| (*id, figures.clone())).collect();
        }
        Ok(metrics)
    }
}

#[tokio::test(start_paused = true)]
async fn the_suite_names_the_promise_that_a_flaw_breaks() {
    for (seed, (flaw, promise)) in (0..).zip(BREAKS) {
        let (sim, env): (_, Arc<SimEnvironment>) = node(seed, slow());
        let flawed = Flawed {
            inner: sim.containers(),
            stranger: sim.containers_of("somebody-else"),
            flaw,
            calls: AtomicU64::new(0),
            first: Mutex::default(),
            begun: Mutex::default(),
            ended: Mutex::default(),
        };
        let fixture = containers(&sim, Arc::new(flawed), env);
        let report = backend_suite::run(&fixture).await;
        let broken: Vec<_> = report.broken.iter().map(|(promise, _)| *promise).collect();
        assert!(broken.contains(&promise), "{flaw:?} is not found:\n{report}");
    }
}
