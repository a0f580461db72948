//! The state of the simulated node, and how it changes. No async; every change is whole.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use super::gpus::Gpus;
use crate::backend::{
    BackendError, BackendErrorKind, BackendEvent, LogLevel, LogLine, LogStream, Observed, ObservedState,
    Result, Workload,
};
use crate::config::{Config, Protocol, Registry};
use crate::id::{ResourceId, SnapshotId};
use crate::ledger::Capacity;
use crate::units::{Bytes, Cores, Timestamp};

/// What on the simulated node a manager speaks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Daemon {
    /// The container engine. Its containers end when it restarts.
    Containers,
    /// The hypervisor's daemon. Its machines live on when it restarts.
    Machines,
    /// The GPU driver.
    Gpus,
}

impl Daemon {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Containers, Self::Machines, Self::Gpus];
}

/// Whether and how a daemon answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Presence {
    /// It answers.
    #[default]
    Up,
    /// It refuses connections.
    Away,
    /// It takes calls and does not answer until it is up again.
    Hung,
}

/// What becomes of a workload when it is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// Making it does not get on until the fate changes.
    Held {
        /// How far it is, for people.
        message: String,
        /// The same in percent.
        percent: Option<u8>,
    },
    /// Making it fails.
    Fails(BackendError),
}

pub(super) struct DaemonState {
    pub(super) presence: watch::Sender<Presence>,
    /// Connections of an earlier run are lost.
    pub(super) run: u64,
    pub(super) events: broadcast::Sender<(Arc<str>, BackendEvent)>,
}

impl Default for DaemonState {
    fn default() -> Self {
        Self {
            presence: watch::Sender::default(),
            run: 0,
            events: broadcast::Sender::new(128),
        }
    }
}

/// What names a workload: the daemon that has it, whose it is by its label, and its resource.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) daemon: Daemon,
    pub(super) owner: Arc<str>,
    pub(super) id: ResourceId,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// A machine's disk is there, its domain is not.
    Disk,
    /// All of it is there.
    Made,
}

/// A file system, as far as the simulation has one.
pub(super) type Files = BTreeMap<String, String>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SimSnapshot {
    pub(super) files: Files,
    pub(super) running: bool,
    pub(super) memory: bool,
}

pub(super) struct Guest {
    pub(super) workload: Workload,
    pub(super) stage: Stage,
    pub(super) runtime_id: String,
    pub(super) state: ObservedState,
    pub(super) started_at: Option<Timestamp>,
    pub(super) ended_at: Option<Timestamp>,
    /// Cancelled when it goes down; another at each start.
    pub(super) down: CancellationToken,
    pub(super) log: Log,
    pub(super) files: Files,
    pub(super) snapshots: BTreeMap<SnapshotId, SimSnapshot>,
    pub(super) screen_password: Option<String>,
    pub(super) healthy: bool,
    pub(super) stubborn: bool,
}

impl Guest {
    pub(super) fn is_up(&self) -> bool {
        self.state == ObservedState::Running
    }

    fn fingerprint(&self) -> String {
        format!(
            "{} {:?} {:?} {:?} {:?} {:?}",
            self.runtime_id, self.state, self.started_at, self.ended_at, self.workload, self.files
        )
    }

    /// Whether it has to be made again for what is wanted now.
    pub(super) fn differs(&self, wanted: &Workload) -> bool {
        let given = &self.workload;
        given.config != wanted.config || given.ports != wanted.ports || given.grants != wanted.grants
    }
}

/// The newest lines that a workload wrote.
pub(super) struct Log {
    lines: VecDeque<LogLine>,
    /// How many lines were dropped in front of the first.
    dropped: u64,
    /// Moves when there is something new to see: a line, or the end.
    pub(super) changed: watch::Sender<u64>,
}

const KEPT_LINES: usize = 20_000;

impl Log {
    pub(super) fn new() -> Self {
        Self {
            lines: VecDeque::new(),
            dropped: 0,
            changed: watch::Sender::default(),
        }
    }

    pub(super) fn write(&mut self, now: Timestamp, stream: LogStream, text: &str) {
        let level = match stream {
            LogStream::Stderr => LogLevel::Warn,
            LogStream::Stdout | LogStream::Console | LogStream::System => LogLevel::Info,
        };
        for message in text.lines() {
            if self.lines.len() == KEPT_LINES {
                self.lines.pop_front();
                self.dropped += 1;
            }
            self.lines.push_back(LogLine {
                timestamp: now,
                stream,
                level,
                message: message.to_owned(),
            });
        }
        self.touch();
    }

    pub(super) fn touch(&self) {
        self.changed.send_modify(|version| *version += 1);
    }

    /// Number of the line that comes next.
    pub(super) fn end(&self) -> u64 {
        self.dropped + self.lines.len() as u64
    }

    pub(super) fn first(&self) -> u64 {
        self.dropped
    }

    pub(super) fn get(&self, number: u64) -> Option<&LogLine> {
        let index = number.checked_sub(self.dropped)?;
        self.lines.get(usize::try_from(index).ok()?)
    }

    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = &LogLine> {
        self.lines.iter()
    }

    pub(super) fn clear(&mut self) {
        self.dropped = self.end();
        self.lines.clear();
        self.touch();
    }
}

/// How long things take on the simulated node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Latency {
    /// Every call: half before its effect, half after it.
    pub call: Duration,
    /// Up to so much more for every call, at random.
    pub jitter: Duration,
    /// Fetching an image.
    pub pull: Duration,
    /// Bringing a machine up.
    pub boot: Duration,
    /// What a workload takes to end when it is asked to.
    pub stop: Duration,
}

pub(super) struct World {
    pub(super) boot: u64,
    pub(super) containers: DaemonState,
    pub(super) machines: DaemonState,
    pub(super) gpu_driver: DaemonState,
    pub(super) guests: BTreeMap<Key, Guest>,
    /// The newest generation seen, of what was removed too.
    pub(super) fences: BTreeMap<Key, u64>,
    pub(super) images: BTreeSet<String>,
    pub(super) broken_images: BTreeMap<String, (BackendErrorKind, String)>,
    /// User and password that a registry asks for, by host.
    pub(super) registries: BTreeMap<String, (String, String)>,
    pub(super) foreign_ports: BTreeSet<(Protocol, u16)>,
    pub(super) links: BTreeMap<String, String>,
    pub(super) foreign: Vec<(Key, String)>,
    pub(super) busy: BTreeMap<Key, u32>,
    /// What the manager did that its contract forbids.
    pub(super) breaches: Vec<String>,
    pub(super) capacity: Capacity,
    pub(super) latency: Latency,
    pub(super) full: bool,
    /// By name of the workload.
    pub(super) fates: watch::Sender<BTreeMap<String, Fate>>,
    pub(super) gpus: Gpus,
    made: u64,
}

impl World {
    pub(super) fn new(capacity: Capacity, latency: Latency, gpus: Gpus) -> Self {
        Self {
            boot: 1,
            containers: DaemonState::default(),
            machines: DaemonState::default(),
            gpu_driver: DaemonState::default(),
            guests: BTreeMap::new(),
            fences: BTreeMap::new(),
            images: BTreeSet::new(),
            broken_images: BTreeMap::new(),
            registries: BTreeMap::new(),
            foreign_ports: BTreeSet::new(),
            links: BTreeMap::new(),
            foreign: Vec::new(),
            busy: BTreeMap::new(),
            breaches: Vec::new(),
            capacity,
            latency,
            full: false,
            fates: watch::Sender::default(),
            gpus,
            made: 0,
        }
    }

    pub(super) fn daemon(&self, daemon: Daemon) -> &DaemonState {
        match daemon {
            Daemon::Containers => &self.containers,
            Daemon::Machines => &self.machines,
            Daemon::Gpus => &self.gpu_driver,
        }
    }

    pub(super) fn daemon_mut(&mut self, daemon: Daemon) -> &mut DaemonState {
        match daemon {
            Daemon::Containers => &mut self.containers,
            Daemon::Machines => &mut self.machines,
            Daemon::Gpus => &mut self.gpu_driver,
        }
    }

    /// Fails when a newer generation was seen, and remembers this one.
    pub(super) fn fence(&mut self, key: &Key, generation: u64, doing: &str) -> Result<()> {
        let newest = self.fences.entry(key.clone()).or_insert(0);
        if generation < *newest {
            return Err(BackendError::new(
                BackendErrorKind::Superseded,
                doing,
                format!("generation {generation} is older than {newest}, which was seen"),
            ));
        }
        *newest = generation;
        Ok(())
    }

    pub(super) fn guest(&mut self, key: &Key, doing: &str) -> Result<&mut Guest> {
        self.guests
            .get_mut(key)
            .filter(|g| g.stage == Stage::Made)
            .ok_or_else(|| BackendError::new(BackendErrorKind::NotFound, doing, "there is no such workload"))
    }

    pub(super) fn running(&mut self, key: &Key, doing: &str) -> Result<&mut Guest> {
        let guest = self.guest(key, doing)?;
        if guest.is_up() {
            Ok(guest)
        } else {
            Err(BackendError::new(
                BackendErrorKind::NotRunning,
                doing,
                "it is not running",
            ))
        }
    }

    /// The half-made or whole workload, made as far as `stage`.
    pub(super) fn make(&mut self, key: &Key, workload: &Workload, stage: Stage) {
        self.made += 1;
        let runtime_id = match key.daemon {
            // The engine numbers containers; a machine's UUID is chosen by who defines it.
            Daemon::Containers | Daemon::Gpus => container_id(self.made),
            Daemon::Machines => key.id.to_string(),
        };
        let guest = self.guests.entry(key.clone()).or_insert_with(|| Guest {
            workload: workload.clone(),
            stage,
            runtime_id,
            state: ObservedState::Created,
            started_at: None,
            ended_at: None,
            down: CancellationToken::new(),
            log: Log::new(),
            files: first_files(&workload.config, key.id),
            snapshots: BTreeMap::new(),
            screen_password: None,
            healthy: true,
            stubborn: false,
        });
        let finished = guest.stage == Stage::Disk && stage == Stage::Made;
        if finished {
            guest.stage = Stage::Made;
            guest.workload = workload.clone();
        }
        self.tell(key);
    }

    /// Gives a workload that is down the config that is wanted now. A machine keeps its disk; a container
    /// is another one afterwards.
    pub(super) fn make_again(&mut self, key: &Key, workload: &Workload) {
        self.made += 1;
        let made = self.made;
        if let Some(guest) = self.guests.get_mut(key) {
            guest.workload = workload.clone();
            if key.daemon == Daemon::Containers {
                guest.runtime_id = container_id(made);
                guest.state = ObservedState::Created;
                guest.started_at = None;
                guest.ended_at = None;
                guest.files = first_files(&workload.config, key.id);
                guest.log.clear();
            }
        }
    }

    /// Checks that nothing stands in the way of `workload` coming up.
    pub(super) fn may_start(&mut self, key: &Key, workload: &Workload, doing: &str) -> Result<()> {
        let conflict = |message: String| Err(BackendError::new(BackendErrorKind::Conflict, doing, message));
        for port in &workload.ports {
            if self.foreign_ports.contains(&(port.protocol, port.host_port)) {
                return conflict(format!(
                    "port {}/{} of the node is in use by a process that is not ours",
                    port.host_port,
                    port.protocol.as_str()
                ));
            }
        }
        let others = self.guests.iter().filter(|(k, g)| *k != key && g.is_up());
        for (other, guest) in others {
            for port in &workload.ports {
                let same = |p: &&crate::ledger::PortBinding| p.key() == port.key();
                if guest.workload.ports.iter().any(|p| same(&p)) {
                    return conflict(format!(
                        "port {} of the node is in use by {}",
                        port.host_port, other.id
                    ));
                }
            }
            for grant in &workload.grants {
                if guest.workload.grants.iter().any(|g| g.uuid == grant.uuid) {
                    self.breaches.push(format!(
                        "{} was given device {} while {} runs with it",
                        key.id, grant.uuid, other.id
                    ));
                    return conflict(format!("device {} is in use by {}", grant.uuid, other.id));
                }
            }
        }
        self.gpus.may_use(key.id, workload, doing)
    }

    /// Brings a workload up. Answers the token that is cancelled when it goes down.
    pub(super) fn bring_up(
        &mut self,
        key: &Key,
        now: Timestamp,
        password: String,
    ) -> Option<CancellationToken> {
        let guest = self.guests.get_mut(key)?;
        guest.state = ObservedState::Running;
        guest.started_at = Some(now);
        guest.down = CancellationToken::new();
        let down = guest.down.clone();
        if key.daemon == Daemon::Machines {
            guest.screen_password = Some(password);
            for line in boot_messages(&guest.workload) {
                guest.log.write(now, LogStream::Console, &line);
            }
        }
        guest.log.touch();
        self.tell(key);
        Some(down)
    }

    /// Takes a workload down, if it is up.
    pub(super) fn end(&mut self, key: &Key, now: Timestamp, exit_code: Option<i64>, cause: Option<String>) {
        let Some(guest) = self.guests.get_mut(key).filter(|g| g.is_up()) else {
            return;
        };
        guest.state = ObservedState::Ended {
            exit_code: if key.daemon == Daemon::Machines {
                None
            } else {
                exit_code
            },
            cause,
        };
        guest.ended_at = Some(now);
        guest.screen_password = None;
        guest.down.cancel();
        guest.log.touch();
        self.tell(key);
    }

    /// Removes a workload whatever it does.
    pub(super) fn remove(&mut self, key: &Key) {
        if let Some(guest) = self.guests.remove(key) {
            guest.down.cancel();
            self.tell(key);
        }
    }

    fn tell(&self, key: &Key) {
        let event = (Arc::clone(&key.owner), BackendEvent { id: key.id });
        // Without a listener nobody is told.
        let _ = self.daemon(key.daemon).events.send(event);
    }

    pub(super) fn observed(&self, key: &Key) -> Option<Observed> {
        let guest = self.guests.get(key)?;
        Some(Observed {
            id: key.id,
            runtime_id: guest.runtime_id.clone(),
            state: guest.state.clone(),
            started_at: guest.started_at,
            ended_at: guest.ended_at,
            endpoint: if guest.is_up() {
                endpoint(&guest.workload)
            } else {
                None
            },
            generation: Some(guest.workload.generation),
        })
    }

    /// The daemon goes and comes: connections are lost, and with the container engine its containers.
    pub(super) fn restart_daemon(&mut self, daemon: Daemon, now: Timestamp) {
        let state = self.daemon_mut(daemon);
        state.run += 1;
        state.events = broadcast::Sender::new(128);
        if daemon == Daemon::Containers {
            self.end_all(daemon, now, 143);
        }
    }

    /// The host goes down and comes up: everything ends, made slices are gone.
    pub(super) fn reboot(&mut self, now: Timestamp) {
        self.boot += 1;
        for daemon in [Daemon::Containers, Daemon::Machines] {
            self.end_all(daemon, now, 255);
        }
        for daemon in Daemon::ALL {
            self.restart_daemon(daemon, now);
        }
        self.gpus.reboot();
    }

    /// Ends everything of a daemon, other owners' too: that is the node's doing, and no manager's.
    fn end_all(&mut self, daemon: Daemon, now: Timestamp, exit_code: i64) {
        let touched = self.changed_foreign();
        let up: Vec<Key> = self
            .guests
            .keys()
            .filter(|k| k.daemon == daemon)
            .cloned()
            .collect();
        for key in up {
            let cause = (daemon == Daemon::Machines).then(|| "the host went down".to_owned());
            self.end(&key, now, Some(exit_code), cause);
        }
        let foreign = std::mem::take(&mut self.foreign);
        self.foreign = foreign
            .into_iter()
            .map(|(key, was)| match self.guests.get(&key) {
                Some(guest) if !touched.contains(&label(&key)) => (key, guest.fingerprint()),
                _ => (key, was),
            })
            .collect();
    }

    pub(super) fn epoch(&self, daemon: Daemon) -> String {
        match daemon {
            Daemon::Containers => format!("boot-{}-run-{}", self.boot, self.containers.run),
            Daemon::Machines | Daemon::Gpus => format!("boot-{}", self.boot),
        }
    }

    pub(super) fn plant(&mut self, key: Key) {
        if let Some(guest) = self.guests.get(&key) {
            let fingerprint = guest.fingerprint();
            self.foreign.push((key, fingerprint));
        }
    }

    /// What was planted and is not as it was.
    pub(super) fn changed_foreign(&self) -> Vec<String> {
        let is_same = |key: &Key, was: &String| self.guests.get(key).is_some_and(|g| g.fingerprint() == *was);
        let changed = self.foreign.iter().filter(|(key, was)| !is_same(key, was));
        changed.map(|(key, _)| label(key)).collect()
    }
}

fn label(key: &Key) -> String {
    format!("{:?}/{}/{}", key.daemon, key.owner, key.id)
}

fn container_id(number: u64) -> String {
    let part = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (n << 7);
    format!(
        "{:016x}{:016x}{:016x}{:016x}",
        part(number),
        number,
        part(!number),
        part(number ^ 0x55)
    )
}

fn first_files(config: &Config, id: ResourceId) -> Files {
    let hostname = match config {
        Config::Machine(m) => m.cloud_init.as_ref().and_then(|c| c.hostname.clone()),
        Config::Container(_) | Config::Inference(_) => None,
    };
    let hostname = hostname.unwrap_or_else(|| format!("hwm-{}", &id.to_string()[24..]));
    Files::from([
        ("/etc/hostname".to_owned(), format!("{hostname}\n")),
        (
            "/etc/os-release".to_owned(),
            "PRETTY_NAME=\"hwm simulation\"\n".to_owned(),
        ),
    ])
}

fn boot_messages(workload: &Workload) -> Vec<String> {
    let Config::Machine(machine) = &workload.config else {
        return Vec::new();
    };
    vec![
        "[    0.000000] Linux version 6.1.0 (hwm simulation)".to_owned(),
        format!("[    0.004212] smp: Brought up 1 node, {} CPUs", machine.vcpus),
        format!("[    0.010333] Memory: {}K available", machine.ram.0 >> 10),
        format!("[    1.204514] systemd[1]: Welcome to {}!", machine.os_image),
        "[    2.871020] cloud-init[412]: finished at datasource DataSourceNoCloud".to_owned(),
    ]
}

fn endpoint(workload: &Workload) -> Option<String> {
    match &workload.config {
        Config::Machine(m) => {
            let leased = || {
                let last = (workload.id.as_u128() % 250) as u8 + 2;
                std::net::Ipv4Addr::new(10, 77, (workload.id.as_u128() >> 8) as u8, last)
            };
            Some(format!(
                "{}:22",
                m.network_config.ip_address.unwrap_or_else(leased)
            ))
        }
        Config::Container(_) | Config::Inference(_) => workload
            .ports
            .first()
            .map(|p| format!("127.0.0.1:{}", p.host_port)),
    }
}

/// The image of a container, as the engine names it, and the registry's host.
pub(super) fn image_of(config: &Config) -> Option<(String, String)> {
    match config {
        Config::Machine(_) => None,
        Config::Container(c) => {
            let separator = if c.image_tag.starts_with("sha256:") {
                '@'
            } else {
                ':'
            };
            let (host, name) = match c.registry {
                Registry::DockerHub => ("docker.io", c.image_name.clone()),
                Registry::Ghcr => {
                    let path = c.image_name.strip_prefix("ghcr.io/").unwrap_or(&c.image_name);
                    ("ghcr.io", format!("ghcr.io/{path}"))
                }
                Registry::Private => {
                    let host = c.image_name.split('/').next().unwrap_or_default();
                    (host, c.image_name.clone())
                }
            };
            Some((format!("{name}{separator}{}", c.image_tag), host.to_owned()))
        }
        Config::Inference(c) => {
            let first = c.docker_image.split('/').next().unwrap_or_default();
            let has_host = c.docker_image.contains('/') && first.contains(['.', ':']);
            let host = if has_host { first } else { "docker.io" };
            Some((c.docker_image.clone(), host.to_owned()))
        }
    }
}

/// The simulated node's size unless another is given.
pub(super) fn default_capacity() -> Capacity {
    Capacity {
        cpu: Cores::whole(256),
        ram: Bytes::from_whole_gb(2048),
        disk: Bytes::from_whole_gb(100 * 1024),
    }
}
