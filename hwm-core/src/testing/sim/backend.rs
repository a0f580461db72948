//! The two simulated backends.

use std::collections::VecDeque;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::stream;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;

use super::facets;
use super::run::is_up;
use super::world::{Daemon, Key, Stage, World, image_of};
use super::{Busy, Inner};
use crate::backend::{
    Backend, BackendError, BackendErrorKind, BackendEvent, BackendInfo, BackendReport, Call, CheckReport,
    Facets, LogLine, LogQuery, Observed, ProgressSink, Result, StopOptions, Stream, Workload,
};
use crate::config::{Config, PortRequest, PullPolicy, RegistryAuth, ResourceType};
use crate::error::Violation;
use crate::id::{BackendName, ResourceId};
use crate::metrics::Metrics;
use crate::units::Timestamp;

/// A daemon of the simulated node, as one owner uses it.
#[derive(Clone)]
pub(super) struct SimBackend {
    pub(super) inner: Arc<Inner>,
    pub(super) daemon: Daemon,
    owner: Arc<str>,
}

/// How long a workload that ignores the request to end is waited for.
const DEFAULT_GRACE: std::time::Duration = std::time::Duration::from_secs(10);

impl SimBackend {
    pub(super) fn new(inner: Arc<Inner>, daemon: Daemon, owner: &str) -> Self {
        Self {
            inner,
            daemon,
            owner: Arc::from(owner),
        }
    }

    pub(super) fn key(&self, id: ResourceId) -> Key {
        Key {
            daemon: self.daemon,
            owner: Arc::clone(&self.owner),
            id,
        }
    }

    pub(super) fn begin(&self, id: ResourceId, doing: &str) -> Busy {
        self.inner.begin(&self.key(id), doing)
    }

    /// Asks the daemon something that changes nothing.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        doing: String,
        answer: impl FnOnce(&mut World, Timestamp) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = Arc::clone(&self.inner);
        self.inner
            .serve(self.daemon, doing, async move { inner.at(answer) })
            .await
    }
}

#[async_trait]
impl Backend for SimBackend {
    fn info(&self) -> BackendInfo {
        match self.daemon {
            Daemon::Machines => BackendInfo {
                name: BackendName::new("sim-machines"),
                types: vec![ResourceType::VirtualMachine],
            },
            Daemon::Containers | Daemon::Gpus => BackendInfo {
                name: BackendName::new("sim-containers"),
                types: vec![
                    ResourceType::ApplicationContainer,
                    ResourceType::InferenceContainer,
                ],
            },
        }
    }

    fn facets(&self) -> Facets {
        facets::of(self)
    }

    async fn probe(&self) -> Result<BackendReport> {
        let daemon = self.daemon;
        self.ask("asking the simulated daemon".to_owned(), move |world, _| {
            Ok(BackendReport {
                version: "sim 1".to_owned(),
                capacity: world.capacity,
                epoch: Some(world.epoch(daemon)),
                simulated: true,
            })
        })
        .await
    }

    async fn check(&self, planned: &Workload) -> Result<CheckReport> {
        let planned = planned.clone();
        self.ask(format!("checking {}", planned.id), move |world, _| {
            Ok(check(world, &planned))
        })
        .await
    }

    async fn create(&self, call: &Call, workload: &Workload) -> Result<()> {
        let doing = format!("making {}", workload.id);
        let _busy = self.begin(workload.id, &doing);
        let (inner, key, workload) = (Arc::clone(&self.inner), self.key(workload.id), workload.clone());
        let (generation, progress) = (call.generation, call.progress.clone());
        self.inner
            .serve(self.daemon, doing.clone(), async move {
                inner.at(|world, _| world.fence(&key, generation, &doing))?;
                inner.meet_fate(&workload.name, &progress).await?;
                inner.fetch(&workload.config, &progress, &doing).await?;
                if key.daemon == Daemon::Machines {
                    inner.at(|world, _| {
                        world.fence(&key, generation, &doing)?;
                        has_space(world, &doing)?;
                        world.make(&key, &workload, Stage::Disk);
                        Ok(())
                    })?;
                    inner.pass().await;
                }
                inner.at(|world, _| {
                    world.fence(&key, generation, &doing)?;
                    has_space(world, &doing)?;
                    world.make(&key, &workload, Stage::Made);
                    Ok(())
                })
            })
            .await
    }

    async fn start(&self, call: &Call, workload: &Workload) -> Result<()> {
        let doing = format!("starting {}", workload.id);
        let _busy = self.begin(workload.id, &doing);
        let (inner, key, workload) = (Arc::clone(&self.inner), self.key(workload.id), workload.clone());
        let (generation, progress) = (call.generation, call.progress.clone());
        self.inner
            .serve(self.daemon, doing.clone(), async move {
                let differs = inner.at(|world, _| {
                    world.fence(&key, generation, &doing)?;
                    Ok(world.guest(&key, &doing)?.differs(&workload))
                })?;
                if differs {
                    inner.fetch(&workload.config, &progress, &doing).await?;
                }
                let up = inner.at(|world, now| {
                    world.fence(&key, generation, &doing)?;
                    if world.guest(&key, &doing)?.differs(&workload) {
                        world.end(&key, now, Some(143), None);
                        world.make_again(&key, &workload);
                    }
                    let guest = world.guest(&key, &doing)?;
                    guest.workload.generation = workload.generation;
                    if guest.is_up() {
                        return Ok(true);
                    }
                    world.may_start(&key, &workload, &doing)?;
                    Ok(false)
                })?;
                if up {
                    return Ok(());
                }
                let boot = inner.lock().latency.boot;
                if key.daemon == Daemon::Machines && !boot.is_zero() {
                    progress.report("booting", None);
                    inner.take(boot).await;
                }
                inner.at(|world, _| {
                    world.fence(&key, generation, &doing)?;
                    world.guest(&key, &doing)?;
                    world.may_start(&key, &workload, &doing)
                })?;
                if !is_up(&inner.lock(), &key) {
                    inner.launch(&key);
                }
                Ok(())
            })
            .await
    }

    async fn stop(&self, call: &Call, id: ResourceId, options: StopOptions) -> Result<()> {
        let doing = format!("stopping {id}");
        let _busy = self.begin(id, &doing);
        let (inner, key, generation) = (Arc::clone(&self.inner), self.key(id), call.generation);
        self.inner
            .serve(self.daemon, doing.clone(), async move {
                let takes = inner.at(|world, _| {
                    world.fence(&key, generation, &doing)?;
                    Ok(match world.guests.get(&key) {
                        Some(guest) if guest.is_up() && !options.force => {
                            let grace = options.grace.unwrap_or(DEFAULT_GRACE);
                            let asked = world.latency.stop;
                            Some(if guest.stubborn { grace } else { asked.min(grace) })
                        }
                        Some(_) | None => None,
                    })
                })?;
                if let Some(takes) = takes {
                    inner.take(takes).await;
                }
                inner.at(|world, now| {
                    world.fence(&key, generation, &doing)?;
                    let killed = options.force || world.guests.get(&key).is_some_and(|g| g.stubborn);
                    world.end(&key, now, Some(if killed { 137 } else { 143 }), None);
                    Ok(())
                })
            })
            .await
    }

    async fn remove(&self, call: &Call, id: ResourceId) -> Result<()> {
        let doing = format!("removing {id}");
        let _busy = self.begin(id, &doing);
        let (inner, key, generation) = (Arc::clone(&self.inner), self.key(id), call.generation);
        self.inner
            .serve(self.daemon, doing.clone(), async move {
                // A machine's domain goes before its disk.
                let has_disk = inner.at(|world, now| {
                    world.fence(&key, generation, &doing)?;
                    world.end(&key, now, Some(137), None);
                    let is_machine = key.daemon == Daemon::Machines;
                    let guest = world.guests.get_mut(&key).filter(|_| is_machine);
                    Ok(guest.map(|g| g.stage = Stage::Disk).is_some())
                })?;
                if has_disk {
                    inner.pass().await;
                }
                inner.at(|world, _| {
                    world.fence(&key, generation, &doing)?;
                    world.remove(&key);
                    Ok(())
                })
            })
            .await
    }

    async fn inspect(&self, ids: &[ResourceId]) -> Result<Vec<Observed>> {
        let keys: Vec<Key> = ids.iter().map(|id| self.key(*id)).collect();
        self.ask("inspecting".to_owned(), move |world, _| {
            Ok(keys.iter().filter_map(|key| world.observed(key)).collect())
        })
        .await
    }

    async fn owned(&self) -> Result<Vec<Observed>> {
        let (daemon, owner) = (self.daemon, Arc::clone(&self.owner));
        self.ask("listing what is ours".to_owned(), move |world, _| {
            let ours = world
                .guests
                .keys()
                .filter(|k| k.daemon == daemon && k.owner == owner);
            Ok(ours.filter_map(|key| world.observed(key)).collect())
        })
        .await
    }

    async fn events(&self) -> Result<Stream<BackendEvent>> {
        let daemon = self.daemon;
        let receiver = self
            .ask("listening for events".to_owned(), move |world, _| {
                Ok(world.daemon(daemon).events.subscribe())
            })
            .await?;
        let owner = Arc::clone(&self.owner);
        Ok(Box::pin(stream::unfold(
            (receiver, owner),
            |(mut receiver, owner)| async {
                loop {
                    match receiver.recv().await {
                        Ok((of, event)) if of == owner => return Some((event, (receiver, owner))),
                        Ok(_) => {}
                        // Whoever reads too slowly has missed something: as when the connection is lost.
                        Err(RecvError::Lagged(_) | RecvError::Closed) => return None,
                    }
                }
            },
        )))
    }

    async fn logs(&self, id: ResourceId, query: LogQuery) -> Result<Stream<Result<LogLine>>> {
        let key = self.key(id);
        let reader = self
            .ask(format!("reading the log of {id}"), move |world, _| {
                Ok(LogReader::open(world, key, query))
            })
            .await?;
        let inner = Arc::clone(&self.inner);
        Ok(Box::pin(stream::unfold(
            (reader, inner),
            |(mut reader, inner)| async {
                let line = reader.next(&inner).await?;
                Some((Ok(line), (reader, inner)))
            },
        )))
    }

    async fn metrics(&self, ids: &[ResourceId]) -> Result<Vec<(ResourceId, Metrics)>> {
        let keys: Vec<Key> = ids.iter().map(|id| self.key(*id)).collect();
        self.ask("measuring".to_owned(), move |world, now| {
            let up = keys
                .iter()
                .filter_map(|key| Some((key.id, world.guests.get(key).filter(|g| g.is_up())?)));
            Ok(up
                .map(|(id, guest)| (id, facets::measure(guest, now, world.capacity)))
                .collect())
        })
        .await
    }
}

struct LogReader {
    key: Key,
    query: LogQuery,
    ready: VecDeque<LogLine>,
    next: u64,
    changed: Option<watch::Receiver<u64>>,
    boot: Option<Timestamp>,
}

impl LogReader {
    fn open(world: &World, key: Key, query: LogQuery) -> Self {
        let guest = world.guests.get(&key);
        let mut ready = VecDeque::new();
        if let Some(guest) = guest {
            let in_time = |line: &&LogLine| {
                query.since.is_none_or(|since| line.timestamp >= since)
                    && query.until.is_none_or(|until| line.timestamp < until)
            };
            let tail = query.tail.map_or(usize::MAX, |n| n as usize);
            for line in guest.log.iter().rev().filter(in_time).take(tail) {
                ready.push_front(line.clone());
            }
        }
        let follows = guest.filter(|g| query.follow && g.is_up());
        Self {
            ready,
            next: guest.map_or(0, |g| g.log.end()),
            changed: follows.map(|g| g.log.changed.subscribe()),
            boot: guest.and_then(|g| g.started_at),
            key,
            query,
        }
    }

    async fn next(&mut self, inner: &Inner) -> Option<LogLine> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                let late = self.query.until.is_some_and(|until| line.timestamp >= until);
                let early = self.query.since.is_some_and(|since| line.timestamp < since);
                if late {
                    return None;
                }
                if early {
                    continue;
                }
                return Some(line);
            }
            let changed = self.changed.as_mut()?;
            changed.borrow_and_update();
            let over = {
                let world = inner.lock();
                let guest = world.guests.get(&self.key)?;
                self.next = self.next.max(guest.log.first());
                while let Some(line) = guest.log.get(self.next) {
                    self.ready.push_back(line.clone());
                    self.next += 1;
                }
                !guest.is_up() || guest.started_at != self.boot
            };
            if self.ready.is_empty() {
                if over {
                    return None;
                }
                changed.changed().await.ok()?;
            }
        }
    }
}

fn has_space(world: &World, doing: &str) -> Result<()> {
    if world.full {
        return Err(BackendError::new(
            BackendErrorKind::NoSpace,
            doing,
            "no space left on device",
        ));
    }
    Ok(())
}

impl Inner {
    /// Fetches the image of a container as its policy says.
    async fn fetch(&self, config: &Config, progress: &ProgressSink, doing: &str) -> Result<()> {
        let Some((image, host)) = image_of(config) else {
            return Ok(());
        };
        let (policy, auth) = match config {
            Config::Machine(_) => return Ok(()),
            Config::Container(c) => (c.pull_policy, c.registry_auth.as_ref()),
            Config::Inference(c) => (c.pull_policy, c.registry_auth.as_ref()),
        };
        let takes = self.at(|world, _| {
            if let Some((kind, message)) = world.broken_images.get(&image) {
                return Err(BackendError::new(
                    *kind,
                    format!("pulling image {image}"),
                    message.clone(),
                ));
            }
            match (policy, world.images.contains(&image)) {
                (PullPolicy::Missing | PullPolicy::Never, true) => return Ok(None),
                (PullPolicy::Never, false) => {
                    return Err(BackendError::new(
                        BackendErrorKind::NotFound,
                        doing,
                        format!("image {image} is not on the node, and its pull policy is never"),
                    ));
                }
                (PullPolicy::Always, _) | (PullPolicy::Missing, false) => {}
            }
            let wanted = world.registries.get(&host);
            if wanted.is_some_and(|login| !matches_login(login, auth)) {
                return Err(BackendError::new(
                    BackendErrorKind::Denied,
                    format!("pulling image {image}"),
                    format!("{host} refused the credentials"),
                ));
            }
            has_space(world, &format!("pulling image {image}"))?;
            Ok(Some(world.latency.pull))
        })?;
        let Some(takes) = takes else { return Ok(()) };
        const PARTS: u32 = 4;
        for part in 1..=PARTS {
            self.take(takes / PARTS).await;
            let percent = (part * 100 / PARTS) as u8;
            progress.report(
                format!("pulling {image}: {} of {} MB", part * 10, PARTS * 10),
                Some(percent),
            );
        }
        self.at(|world, _| {
            world.images.insert(image);
            Ok(())
        })
    }
}

fn matches_login((user, password): &(String, String), auth: Option<&RegistryAuth>) -> bool {
    auth.is_some_and(|auth| {
        let secret = auth.password.as_ref().or(auth.token.as_ref());
        auth.username.as_deref().is_none_or(|u| u == user) && secret.is_some_and(|s| s.expose() == password)
    })
}

fn check(world: &World, planned: &Workload) -> CheckReport {
    let mut report = CheckReport::default();
    for port in &planned.ports {
        if world.foreign_ports.contains(&(port.protocol, port.host_port)) {
            let requests = planned.config.port_requests();
            let is_its =
                |r: &PortRequest| r.container_port == port.container_port && r.protocol == port.protocol;
            let at = requests.iter().position(is_its);
            let field = at.map_or("config".to_owned(), |i| {
                format!("config.containerPorts[{i}].hostPort")
            });
            let message = format!(
                "port {} of the node is in use by a process that is not ours",
                port.host_port
            );
            report.violations.push(Violation::new(field, message));
        }
    }
    if let Config::Container(container) = &planned.config {
        for (i, volume) in container.volumes.iter().enumerate() {
            let resolved = resolve(world, &volume.host_path);
            if is_forbidden(&resolved) {
                report.violations.push(Violation::new(
                    format!("config.volumes[{i}].hostPath"),
                    "is no folder that workloads may have: choose one under a volume root",
                ));
            }
            report.resolved_paths.insert(volume.host_path.clone(), resolved);
        }
    }
    report
}

/// The path after the links that the test planted, `.` and `..`.
fn resolve(world: &World, path: &str) -> String {
    let mut resolved = PathBuf::from("/");
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => {
                resolved.push(name);
                if let Some(target) = world.links.get(&resolved.to_string_lossy().into_owned()) {
                    resolved = PathBuf::from(target);
                }
            }
            Component::ParentDir => {
                resolved.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    resolved.to_string_lossy().into_owned()
}

fn is_forbidden(path: &str) -> bool {
    let folders = [
        "/etc", "/proc", "/sys", "/dev", "/boot", "/root", "/run", "/var/run",
    ];
    path == "/"
        || folders
            .iter()
            .any(|f| path == *f || path.strip_prefix(f).is_some_and(|r| r.starts_with('/')))
}
