//! What the simulated backends can do beyond the basic methods.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::{Either, select};

use super::backend::SimBackend;
use super::console;
use super::run::run_in;
use super::shell;
use super::world::{Daemon, Guest, SimSnapshot};
use crate::backend::{
    BackendError, BackendErrorKind, Call, Exec, ExecOutput, ExecRequest, ExecSession, Facets, Health,
    HealthReport, LiveUpdate, ObservedState, Result, Session, SnapshotReport, SnapshotSpec, Snapshots,
    Workload,
};
use crate::config::{Config, HealthCheck};
use crate::id::{ResourceId, SnapshotId};
use crate::ledger::Capacity;
use crate::metrics::{CpuMetrics, DiskMetrics, MemoryMetrics, Metrics, NetworkMetrics};
use crate::snapshot::Consistency;
use crate::units::{Bytes, Timestamp};

pub(super) fn of(backend: &SimBackend) -> Facets {
    let me = Arc::new(backend.clone());
    match backend.daemon {
        Daemon::Machines => Facets {
            exec: None,
            console: Some(Arc::clone(&me) as _),
            snapshots: Some(Arc::clone(&me) as _),
            live_update: Some(me),
            health: None,
        },
        Daemon::Containers | Daemon::Gpus => Facets {
            exec: Some(Arc::clone(&me) as _),
            console: None,
            snapshots: None,
            live_update: Some(Arc::clone(&me) as _),
            health: Some(me),
        },
    }
}

#[async_trait]
impl Exec for SimBackend {
    async fn run(&self, id: ResourceId, request: ExecRequest) -> Result<ExecOutput> {
        let doing = format!("running a command in {id}");
        let (key, asked) = (self.key(id), doing.clone());
        let down = self
            .ask(doing.clone(), move |world, _| {
                Ok(world.running(&key, &asked)?.down.clone())
            })
            .await?;
        let key = self.key(id);
        let work = Box::pin(async {
            let mut output = Collected::new(request.output_limit);
            let directory = request.working_dir.as_deref().unwrap_or("/");
            for statement in shell::parse(&request.command) {
                if !statement.runs_after(output.code) {
                    continue;
                }
                let done = self.inner.at(|world, now| {
                    let guest = world.running(&key, &doing)?;
                    Ok(run_in(guest, &statement, now, None, directory))
                })?;
                output.add(&done);
                self.inner.take(done.takes).await;
                if done.exits {
                    break;
                }
            }
            Ok(output.finish())
        });
        let limit = Box::pin(select(
            self.inner.env.sleep(request.timeout),
            Box::pin(down.cancelled()),
        ));
        match select(work, limit).await {
            Either::Left((output, _)) => output,
            Either::Right((Either::Left(_), _)) => Err(BackendError::new(
                BackendErrorKind::Timeout,
                doing.clone(),
                format!(
                    "it took longer than {} s and was killed",
                    request.timeout.as_secs_f64()
                ),
            )),
            Either::Right((Either::Right(_), _)) => Err(BackendError::new(
                BackendErrorKind::NotRunning,
                doing.clone(),
                "the workload ended meanwhile",
            )),
        }
    }

    async fn open(&self, id: ResourceId, request: ExecSession) -> Result<Session> {
        let doing = format!("opening a terminal in {id}");
        let key = self.key(id);
        let down = self
            .ask(doing.clone(), move |world, _| {
                Ok(world.running(&key, &doing)?.down.clone())
            })
            .await?;
        let (session, peer) = Session::pair();
        let terminal = console::exec(Arc::clone(&self.inner), self.key(id), request, down, peer);
        self.inner.env.spawn(Box::pin(terminal));
        Ok(session)
    }
}

struct Collected {
    output: ExecOutput,
    limit: usize,
    code: i64,
}

impl Collected {
    fn new(limit: usize) -> Self {
        Self {
            output: ExecOutput::default(),
            limit,
            code: 0,
        }
    }

    fn add(&mut self, done: &shell::Done) {
        let output = &mut self.output;
        for (text, kept) in [
            (&done.stdout, &mut output.stdout),
            (&done.stderr, &mut output.stderr),
        ] {
            let mut fits = text.len().min(self.limit.saturating_sub(kept.len()));
            while !text.is_char_boundary(fits) {
                fits -= 1;
            }
            output.truncated |= fits < text.len();
            kept.push_str(&text[..fits]);
            output.output.push_str(&text[..fits]);
        }
        self.code = done.code;
    }

    fn finish(self) -> ExecOutput {
        ExecOutput {
            exit_code: self.code,
            ..self.output
        }
    }
}

#[async_trait]
impl Snapshots for SimBackend {
    async fn create(&self, call: &Call, workload: &Workload, spec: &SnapshotSpec) -> Result<SnapshotReport> {
        let doing = format!("taking snapshot {} of {}", spec.id, workload.id);
        let _busy = self.begin(workload.id, &doing);
        let (key, generation, spec) = (self.key(workload.id), call.generation, spec.clone());
        self.ask(doing.clone(), move |world, _| {
            world.fence(&key, generation, &doing)?;
            if world.full {
                return Err(BackendError::new(
                    BackendErrorKind::NoSpace,
                    doing,
                    "no space left on device",
                ));
            }
            let guest = world.guest(&key, &doing)?;
            let has_device = !guest.workload.grants.is_empty();
            if spec.memory == Some(true) && has_device {
                return Err(BackendError::new(
                    BackendErrorKind::Unsupported,
                    doing,
                    "a machine with a GPU has no snapshot of its memory: ask for one without",
                ));
            }
            let running = guest.is_up();
            let taken = SimSnapshot {
                files: guest.files.clone(),
                running,
                memory: spec.memory.unwrap_or(running && !has_device) && running,
            };
            let taken = guest.snapshots.entry(spec.id).or_insert(taken);
            let consistency = match (taken.memory, taken.running) {
                (true, _) => Consistency::Memory,
                (false, false) => Consistency::Filesystem,
                (false, true) => Consistency::Crash,
            };
            let written = taken.files.values().map(|f| f.len() as u64).sum::<u64>();
            Ok(SnapshotReport {
                disk_size: Some(Bytes(Bytes::from_mb(64).0 + written)),
                consistency,
            })
        })
        .await
    }

    async fn restore(&self, call: &Call, workload: &Workload, snapshot: SnapshotId) -> Result<bool> {
        let doing = format!("restoring snapshot {snapshot} of {}", workload.id);
        let _busy = self.begin(workload.id, &doing);
        let (key, generation, workload) = (self.key(workload.id), call.generation, workload.clone());
        let inner = Arc::clone(&self.inner);
        self.inner
            .serve(self.daemon, doing.clone(), async move {
                let (was, runs) = inner.at(|world, now| {
                    world.fence(&key, generation, &doing)?;
                    let guest = world.guest(&key, &doing)?;
                    let Some(taken) = guest.snapshots.get(&snapshot).cloned() else {
                        return Err(no_snapshot(snapshot, &doing));
                    };
                    let was = guest.is_up();
                    if taken.memory {
                        world.may_start(&key, &workload, &doing)?;
                    }
                    // Without memory the machine is restored as after a power cut: it is down.
                    if was && !taken.memory {
                        world.end(&key, now, None, None);
                    }
                    let guest = world.guest(&key, &doing)?;
                    guest.files = taken.files;
                    if !guest.is_up() && !taken.memory {
                        guest.state = ObservedState::Ended {
                            exit_code: None,
                            cause: None,
                        };
                    }
                    Ok((was, taken.memory))
                })?;
                if runs && !was {
                    inner.launch(&key);
                }
                Ok(runs)
            })
            .await
    }

    async fn delete(&self, call: &Call, id: ResourceId, snapshot: SnapshotId) -> Result<()> {
        let doing = format!("removing snapshot {snapshot} of {id}");
        let _busy = self.begin(id, &doing);
        let (key, generation) = (self.key(id), call.generation);
        self.ask(doing.clone(), move |world, _| {
            world.fence(&key, generation, &doing)?;
            if let Some(guest) = world.guests.get_mut(&key) {
                guest.snapshots.remove(&snapshot);
            }
            Ok(())
        })
        .await
    }

    async fn list(&self, id: ResourceId) -> Result<Vec<SnapshotId>> {
        let key = self.key(id);
        self.ask(format!("listing the snapshots of {id}"), move |world, _| {
            let guest = world.guests.get(&key);
            Ok(guest.map_or_else(Vec::new, |g| g.snapshots.keys().copied().collect()))
        })
        .await
    }
}

fn no_snapshot(snapshot: SnapshotId, doing: &str) -> BackendError {
    BackendError::new(
        BackendErrorKind::NotFound,
        doing,
        format!("there is no snapshot {snapshot}"),
    )
}

#[async_trait]
impl LiveUpdate for SimBackend {
    fn is_live(&self, from: &Config, to: &Config) -> bool {
        let mut changed = from.clone();
        match (&mut changed, to) {
            (Config::Machine(changed), Config::Machine(to)) => {
                changed.vcpus = to.vcpus;
                changed.ram = to.ram;
                // A disk grows while it is used; it never shrinks.
                changed.disk = changed.disk.max(to.disk);
            }
            (Config::Container(changed), Config::Container(to)) => {
                changed.cpu_cores = to.cpu_cores;
                changed.ram_limit = to.ram_limit;
            }
            (Config::Inference(changed), Config::Inference(to)) => {
                changed.cpu_cores = to.cpu_cores;
                changed.ram_limit = to.ram_limit;
            }
            _ => return false,
        }
        // What was applied has marks in place of secrets, and so has what serialises.
        serde_json::to_value(&changed).ok() == serde_json::to_value(to).ok()
    }

    async fn update(&self, call: &Call, workload: &Workload) -> Result<()> {
        let doing = format!("changing {}", workload.id);
        let _busy = self.begin(workload.id, &doing);
        let (key, generation, workload) = (self.key(workload.id), call.generation, workload.clone());
        self.ask(doing.clone(), move |world, _| {
            world.fence(&key, generation, &doing)?;
            let guest = world.guest(&key, &doing)?;
            guest.workload.config = workload.config;
            guest.workload.generation = workload.generation;
            Ok(())
        })
        .await
    }
}

#[async_trait]
impl Health for SimBackend {
    async fn check(&self, id: ResourceId, check: &HealthCheck) -> Result<HealthReport> {
        let (key, path) = (self.key(id), check.path.clone());
        self.ask(format!("asking {id} for its health"), move |world, _| {
            let healthy = world.guests.get(&key).filter(|g| g.is_up()).map(|g| g.healthy);
            Ok(HealthReport {
                healthy: healthy.unwrap_or(false),
                detail: match healthy {
                    Some(true) => format!("GET {path}: 200"),
                    Some(false) => format!("GET {path}: 503"),
                    None => format!("GET {path}: connection refused"),
                },
            })
        })
        .await
    }
}

/// What a running workload uses: figures that are its own, move with the clock, and keep to its limits.
pub(super) fn measure(guest: &Guest, now: Timestamp, node: Capacity) -> Metrics {
    let up = guest
        .started_at
        .map_or(Duration::ZERO, |started| now.since(started));
    let own = (guest.workload.id.as_u128() % 40) as f64;
    let wave = (up.as_secs_f64() / 7.0 + own).sin();
    let cores = guest.workload.config.cpu().unwrap_or(node.cpu);
    let memory = guest.workload.config.ram().unwrap_or(node.ram);
    let used_share = 0.2 + own / 200.0 + 0.05 * wave;
    let used = Bytes((memory.0 as f64 * used_share) as u64);
    let disk = guest.workload.config.disk();
    let written = guest.files.values().map(|f| f.len() as u64).sum::<u64>();
    let on_disk = Bytes(Bytes::from_mb(512).0 + written);
    let millis = up.as_millis() as u64;
    Metrics {
        cpu: CpuMetrics {
            cores: Some(cores),
            usage_percent: Some(round(15.0 + own / 2.0 + 10.0 * wave)),
        },
        memory: MemoryMetrics {
            total_mb: Some(memory.as_mb()),
            used_mb: Some(used.as_mb()),
            usage_percent: Some(round(used_share * 100.0)),
        },
        disk: DiskMetrics {
            total_gb: disk.map(Bytes::as_gb),
            used_gb: Some(on_disk.as_gb()),
            usage_percent: disk.map(|d| round(on_disk.0 as f64 / d.0 as f64 * 100.0)),
        },
        network: NetworkMetrics {
            rx_bytes: Some(millis * (3 + own as u64)),
            tx_bytes: Some(millis * 2),
        },
        gpu: None,
        gpus: None,
    }
}

fn round(percent: f64) -> f64 {
    (percent * 10.0).round() / 10.0
}
