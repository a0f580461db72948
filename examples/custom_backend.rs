//! A backend of your own: application containers as child processes of this one, and the suite that says
//! whether it keeps a backend's promises.
//!
//! It is a toy: there are no images, limits or networks, and its processes end with it. A real backend marks
//! what it makes with the owner label and the resource's id, and finds it again after a crash.
//!
//! ```text
//! cargo run --example custom_backend
//! cargo test --example custom_backend
//! ```
#![expect(clippy::print_stdout, reason = "it is for people")]

use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use hwm_core::access::Principal;
use hwm_core::backend::{
    Backend, BackendError, BackendErrorKind, BackendEvent, BackendInfo, BackendReport, Call, CheckReport,
    LogLevel, LogLine, LogQuery, LogStream, Observed, ObservedState, Result, StopOptions, Stream, Workload,
};
use hwm_core::config::{Config, ResourceType};
use hwm_core::env::{Environment, SystemEnvironment};
use hwm_core::id::ResourceId;
use hwm_core::manager::{Manager, RequestOptions};
use hwm_core::metrics::Metrics;
use hwm_core::store::memory::MemoryStore;
use hwm_core::validate::{Rules, create_request};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::Command;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

/// Child processes.
#[derive(Clone)]
struct Processes {
    state: Arc<Mutex<State>>,
    events: broadcast::Sender<BackendEvent>,
}

#[derive(Default)]
struct State {
    entries: BTreeMap<ResourceId, Entry>,
    /// The newest generation seen, of what was removed too.
    fences: BTreeMap<ResourceId, u64>,
}

struct Entry {
    workload: Workload,
    seen: Observed,
    log: Vec<LogLine>,
    /// Told to end.
    stop: CancellationToken,
    /// Moves with every line, and when it has ended.
    changed: watch::Sender<()>,
}

impl Processes {
    fn new() -> Self {
        Self {
            state: Arc::default(),
            events: broadcast::Sender::new(256),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses generations older than one that was seen.
    fn fence(&self, call: &Call, id: ResourceId) -> Result<()> {
        let mut state = self.state();
        let newest = state.fences.entry(id).or_default();
        if call.generation < *newest {
            let message = format!("generation {newest} was seen");
            return Err(BackendError::new(
                BackendErrorKind::Superseded,
                format!("changing {id}"),
                message,
            ));
        }
        *newest = call.generation;
        Ok(())
    }

    /// Runs the program of an entry until it ends or is told to.
    async fn run(self, id: ResourceId, mut command: Command, stop: CancellationToken) {
        let piped = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let code = match piped.kill_on_drop(true).spawn() {
            Ok(mut child) => {
                let out = self.copy(id, child.stdout.take(), LogStream::Stdout);
                let err = self.copy(id, child.stderr.take(), LogStream::Stderr);
                tokio::select! {
                    (status, (), ()) = async { tokio::join!(child.wait(), out, err) } => {
                        status.ok().and_then(|s| s.code()).unwrap_or(137)
                    }
                    () = stop.cancelled() => 143,
                }
            }
            Err(_) => 127,
        };
        if let Some(entry) = self.state().entries.get_mut(&id) {
            let last = entry.log.last().map(|line| line.message.clone());
            entry.seen.state = ObservedState::Ended {
                exit_code: Some(code.into()),
                cause: last.filter(|_| code != 0),
            };
            entry.seen.ended_at = Some(SystemEnvironment.now());
            entry.changed.send_replace(());
        }
        // Without a listener nobody is told.
        let _ = self.events.send(BackendEvent { id });
    }

    async fn copy(&self, id: ResourceId, from: Option<impl AsyncRead + Unpin>, to: LogStream) {
        let Some(from) = from else { return };
        let mut lines = BufReader::new(from).lines();
        while let Ok(Some(message)) = lines.next_line().await {
            if let Some(entry) = self.state().entries.get_mut(&id) {
                entry.log.push(LogLine {
                    timestamp: SystemEnvironment.now(),
                    stream: to,
                    level: LogLevel::Info,
                    message,
                });
                entry.changed.send_replace(());
            }
        }
    }

    /// Tells it to end, and waits until it has.
    async fn end(&self, id: ResourceId) {
        loop {
            let mut changed = {
                let state = self.state();
                let up = state
                    .entries
                    .get(&id)
                    .filter(|e| e.seen.state == ObservedState::Running);
                let Some(entry) = up else { return };
                entry.stop.cancel();
                entry.changed.subscribe()
            };
            // An entry that is gone has ended too.
            let _ = changed.changed().await;
        }
    }
}

/// The program of a container and its arguments.
fn command(workload: &Workload) -> Result<Command> {
    let invalid = |message| {
        Err(BackendError::new(
            BackendErrorKind::Invalid,
            "reading the config",
            message,
        ))
    };
    let Config::Container(config) = &workload.config else {
        return invalid("only application containers run here");
    };
    let mut words = config.command.iter().chain(&config.args).flatten();
    let Some(program) = words.next() else {
        return invalid("without an image, config.command says what runs");
    };
    let mut command = Command::new(program);
    command.args(words).envs(&config.environment);
    Ok(command)
}

#[async_trait]
impl Backend for Processes {
    fn info(&self) -> BackendInfo {
        BackendInfo {
            name: "processes".into(),
            types: vec![ResourceType::ApplicationContainer],
        }
    }

    async fn probe(&self) -> Result<BackendReport> {
        Ok(BackendReport {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..BackendReport::default()
        })
    }

    async fn check(&self, planned: &Workload) -> Result<CheckReport> {
        command(planned).map(|_| CheckReport::default())
    }

    async fn create(&self, call: &Call, workload: &Workload) -> Result<()> {
        self.fence(call, workload.id)?;
        command(workload)?;
        let entry = || Entry {
            workload: workload.clone(),
            seen: Observed {
                id: workload.id,
                runtime_id: workload.id.to_string(),
                state: ObservedState::Created,
                started_at: None,
                ended_at: None,
                endpoint: None,
                generation: Some(workload.generation),
            },
            log: Vec::new(),
            stop: CancellationToken::new(),
            changed: watch::Sender::new(()),
        };
        self.state().entries.entry(workload.id).or_insert_with(entry);
        Ok(())
    }

    async fn start(&self, call: &Call, workload: &Workload) -> Result<()> {
        self.fence(call, workload.id)?;
        let command = command(workload)?;
        let mut state = self.state();
        let Some(entry) = state.entries.get_mut(&workload.id) else {
            let doing = format!("starting {}", workload.id);
            return Err(BackendError::new(
                BackendErrorKind::NotFound,
                doing,
                "it was not made",
            ));
        };
        if entry.seen.state != ObservedState::Running {
            entry.workload = workload.clone();
            entry.seen.generation = Some(workload.generation);
            entry.seen.state = ObservedState::Running;
            entry.seen.started_at = Some(SystemEnvironment.now());
            entry.stop = CancellationToken::new();
            tokio::spawn(self.clone().run(workload.id, command, entry.stop.clone()));
        }
        Ok(())
    }

    async fn stop(&self, call: &Call, id: ResourceId, _options: StopOptions) -> Result<()> {
        self.fence(call, id)?;
        self.end(id).await;
        Ok(())
    }

    async fn remove(&self, call: &Call, id: ResourceId) -> Result<()> {
        self.fence(call, id)?;
        self.end(id).await;
        self.state().entries.remove(&id);
        Ok(())
    }

    async fn inspect(&self, ids: &[ResourceId]) -> Result<Vec<Observed>> {
        let state = self.state();
        Ok(ids
            .iter()
            .filter_map(|id| state.entries.get(id))
            .map(|e| e.seen.clone())
            .collect())
    }

    async fn owned(&self) -> Result<Vec<Observed>> {
        Ok(self.state().entries.values().map(|e| e.seen.clone()).collect())
    }

    async fn events(&self) -> Result<Stream<BackendEvent>> {
        let hear = |mut events: broadcast::Receiver<_>| async { Some((events.recv().await.ok()?, events)) };
        Ok(Box::pin(stream::unfold(self.events.subscribe(), hear)))
    }

    async fn logs(&self, id: ResourceId, query: LogQuery) -> Result<Stream<Result<LogLine>>> {
        let fits = move |line: &LogLine| {
            query.since.is_none_or(|since| line.timestamp >= since)
                && query.until.is_none_or(|until| line.timestamp < until)
        };
        let (mut old, next) = match self.state().entries.get(&id) {
            Some(entry) => (entry.log.clone(), entry.log.len()),
            None => return Ok(Box::pin(stream::empty())),
        };
        old.retain(|line| fits(line));
        let cut = old
            .len()
            .saturating_sub(query.tail.map_or(usize::MAX, |tail| tail as usize));
        let old = stream::iter(old.split_off(cut).into_iter().map(Ok));
        if !query.follow {
            return Ok(Box::pin(old));
        }
        let follow = stream::unfold((self.clone(), next), move |(processes, next)| async move {
            loop {
                let mut changed = {
                    let state = processes.state();
                    let entry = state.entries.get(&id)?;
                    if let Some(line) = entry.log.get(next) {
                        let line = Ok(line.clone());
                        drop(state);
                        return Some((line, (processes, next + 1)));
                    }
                    if entry.seen.state != ObservedState::Running {
                        return None;
                    }
                    entry.changed.subscribe()
                };
                changed.changed().await.ok()?;
            }
        });
        Ok(Box::pin(old.chain(follow)))
    }

    async fn metrics(&self, ids: &[ResourceId]) -> Result<Vec<(ResourceId, Metrics)>> {
        let seen = self.inspect(ids).await?;
        let up = seen.into_iter().filter(|o| o.state == ObservedState::Running);
        // A figure that cannot be had is null.
        Ok(up.map(|o| (o.id, Metrics::default())).collect())
    }
}

#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let manager = Manager::builder(Arc::new(MemoryStore::new()), "laptop".into())
        .backend(Arc::new(Processes::new()))
        .build()
        .await?;
    let me = manager.as_principal(Principal::admin("me"));
    let body = serde_json::json!({
        "name": "greeter",
        "resourceType": "application-container",
        "config": {
            "type": "application-container", "registry": "docker-hub", "imageName": "none",
            "command": ["sh", "-c", "echo hello; sleep 1; echo bye"],
        },
    });
    let request = create_request(&body, &Rules::default()).map_err(hwm_core::Error::Validation)?;
    let accepted = me.create(request, RequestOptions::default()).await?;
    if let Some(operation) = accepted.operation {
        me.wait(operation, Duration::from_secs(10)).await?;
    }
    let query = LogQuery {
        follow: true,
        ..LogQuery::default()
    };
    let mut log = me.logs(accepted.resource.id, query).await?;
    while let Some(line) = log.next().await {
        println!("{}", line?.message);
    }
    manager.shutdown(Duration::from_secs(5)).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use hwm_core::testing::backend_suite::{Fixture, run, samples};

    use super::*;

    #[tokio::test]
    async fn processes_keep_the_promises_of_a_backend() {
        let fixture = Fixture::new(Arc::new(Processes::new()), |id| {
            samples::container(id, &["sleep", "100"])
        })
        .script(|id, script| samples::container(id, &["sh", "-c", script]))
        .refused(|id| samples::machine(id, "debian-12"));
        let report = run(&fixture).await;
        assert!(report.broken.is_empty(), "{report}");
    }
}
