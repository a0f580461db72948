//! A truthful simulator of one node: containers, machines and GPUs that share a world.
//!
//! The world outlives managers: a test drops one, starts the next on the same store and the same [`Sim`],
//! and finds what a real node would show. Nothing happens in it but what calls, time and the test cause.
//!
//! ```
//! use std::sync::Arc;
//! use hwm_core::env::SystemEnvironment;
//! use hwm_core::testing::sim::{Sim, SimOptions};
//!
//! let sim = Sim::new(Arc::new(SystemEnvironment), SimOptions::default());
//! let (containers, machines, gpus) = (sim.containers(), sim.machines(), sim.accelerators());
//! assert_eq!(gpus.inventory().cards.len(), 0);
//! # drop((containers, machines));
//! ```
//!
//! # What is true of it
//!
//! * A container whose command is a shell or one of a handful of commands does what they do and ends when
//!   they end; any other runs until it is stopped. Machines run until they are stopped.
//! * Calls take time as [`Latency`] says, have their effect in the middle of it, and lose their answer when
//!   the daemon goes away meanwhile. Dropping a call's future ends it where it is, or, after
//!   [`Sim::set_detached`], only the waiting for it.
//! * Workloads of other owner labels ([`Sim::plant_foreign`], [`Sim::containers_of`]) are on the same node
//!   and stand in the way as ours do.
//! * What a manager does that the contracts forbid is recorded: [`Sim::breaches`] is empty in the end.

mod accelerators;
mod backend;
mod boards;
mod cards;
mod console;
mod facets;
mod gpus;
mod plan;
mod rfb;
mod run;
mod shell;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

pub use boards::{InvalidCards, SimBoard, SimCard, SimProfile, SimUnits, parse_cards};
pub use world::{Daemon, Fate, Latency, Presence};

use crate::accelerator::{AcceleratorEvent, Accelerators};
use crate::backend::{
    Backend, BackendError, BackendErrorKind, LogStream, Observed, ProgressSink, Result, Workload,
};
use crate::config::Protocol;
use crate::env::Environment;
use crate::id::{GpuUuid, ResourceId, SnapshotId};
use crate::ledger::Capacity;
use crate::units::Timestamp;
use gpus::Gpus;
use world::{Guest, Key, Stage, World};

/// What a simulated node is like.
#[derive(Debug, Clone)]
pub struct SimOptions {
    /// The owner label of what [`Sim::containers`] and [`Sim::machines`] make.
    pub owner: String,
    /// What the node has: 256 cores, 2 TiB of memory and 100 TiB of disk unless told otherwise.
    pub capacity: Capacity,
    /// How long things take; nothing takes time unless told otherwise.
    pub latency: Latency,
    /// The GPUs; none unless told otherwise.
    pub cards: Vec<SimCard>,
    /// Whether MIG mode may be switched for a request, on cards that can without a reset.
    pub mig_on_demand: bool,
}

impl Default for SimOptions {
    fn default() -> Self {
        Self {
            owner: "hwm".to_owned(),
            capacity: world::default_capacity(),
            latency: Latency::default(),
            cards: Vec::new(),
            mig_on_demand: true,
        }
    }
}

impl SimOptions {
    /// A node that takes about as long as a real one, for demonstrations.
    pub fn lifelike() -> Self {
        Self {
            latency: Latency {
                call: Duration::from_millis(20),
                jitter: Duration::from_millis(30),
                pull: Duration::from_millis(1500),
                boot: Duration::from_secs(2),
                stop: Duration::from_millis(300),
            },
            ..Self::default()
        }
    }
}

/// A simulated node. Clones are the same node.
#[derive(Clone)]
pub struct Sim {
    inner: Arc<Inner>,
    owner: Arc<str>,
}

pub(in crate::testing) struct Inner {
    env: Arc<dyn Environment>,
    world: Mutex<World>,
    detached: AtomicBool,
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run_of(&self, daemon: Daemon) -> u64 {
        self.lock().daemon(daemon).run
    }

    /// Half of what a call takes.
    async fn pass(&self) {
        let (call, jitter) = {
            let world = self.lock();
            (world.latency.call, world.latency.jitter)
        };
        let extra = match u64::try_from(jitter.as_micros()).unwrap_or(u64::MAX) {
            0 => Duration::ZERO,
            most => Duration::from_micros(self.env.random() as u64 % most),
        };
        let half = (call + extra) / 2;
        if !half.is_zero() {
            self.env.sleep(half).await;
        }
    }

    async fn take(&self, duration: Duration) {
        if !duration.is_zero() {
            self.env.sleep(duration).await;
        }
    }

    /// Waits until the daemon takes the call.
    async fn reach(&self, daemon: Daemon, doing: &str) -> Result<()> {
        let mut presence = self.lock().daemon(daemon).presence.subscribe();
        loop {
            match *presence.borrow_and_update() {
                Presence::Up => return Ok(()),
                Presence::Away => return Err(away(doing)),
                Presence::Hung => {}
            }
            if presence.changed().await.is_err() {
                return Err(away(doing));
            }
        }
    }

    /// Waits or fails as the name's fate is.
    async fn meet_fate(&self, name: &str, progress: &ProgressSink) -> Result<()> {
        let mut fates = self.lock().fates.subscribe();
        loop {
            match fates.borrow_and_update().get(name) {
                None => return Ok(()),
                Some(Fate::Fails(error)) => return Err(error.clone()),
                Some(Fate::Held { message, percent }) => progress.report(message, *percent),
            }
            if fates.changed().await.is_err() {
                return Ok(());
            }
        }
    }

    /// Serves one call: waits for the daemon, works, answers. Without its caller it goes on only when
    /// calls are detached.
    async fn serve<T: Send + 'static>(
        self: &Arc<Self>,
        daemon: Daemon,
        doing: String,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let inner = Arc::clone(self);
        let lost = doing.clone();
        let whole = async move {
            inner.reach(daemon, &doing).await?;
            let run = inner.run_of(daemon);
            inner.pass().await;
            // What a restart of the daemon cut off in the first half never arrived.
            if inner.run_of(daemon) != run {
                return Err(away(&doing));
            }
            inner.reach(daemon, &doing).await?;
            let answer = work.await;
            inner.pass().await;
            inner.reach(daemon, &doing).await?;
            if inner.run_of(daemon) != run {
                return Err(away(&doing));
            }
            answer
        };
        if !self.detached.load(Ordering::SeqCst) {
            return whole.await;
        }
        let (answer, answered) = oneshot::channel();
        self.env.spawn(Box::pin(async move {
            // A caller that has gone wants no answer.
            let _ = answer.send(whole.await);
        }));
        answered.await.unwrap_or_else(|_| Err(away(&lost)))
    }

    /// The moment at which a call changes the world.
    fn at<T>(&self, change: impl FnOnce(&mut World, Timestamp) -> Result<T>) -> Result<T> {
        let now = self.env.now();
        change(&mut self.lock(), now)
    }

    /// Marks that a changing call for `key` is under way, and records when there is another.
    fn begin(self: &Arc<Self>, key: &Key, doing: &str) -> Busy {
        let mut world = self.lock();
        let calls = world.busy.entry(key.clone()).or_insert(0);
        *calls += 1;
        if *calls > 1 {
            world
                .breaches
                .push(format!("{doing}, while another change of it was under way"));
        }
        Busy {
            inner: Arc::clone(self),
            key: key.clone(),
        }
    }
}

struct Busy {
    inner: Arc<Inner>,
    key: Key,
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut world = self.inner.lock();
        if let Some(calls) = world.busy.get_mut(&self.key) {
            *calls -= 1;
            if *calls == 0 {
                world.busy.remove(&self.key);
            }
        }
    }
}

fn away(doing: &str) -> BackendError {
    BackendError::new(
        BackendErrorKind::Unavailable,
        doing,
        "the simulated daemon does not answer",
    )
}

/// What of one owner is on the node, for comparing with a store.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Holdings {
    /// Containers, by resource.
    pub containers: BTreeSet<ResourceId>,
    /// Machines, by resource.
    pub machines: BTreeSet<ResourceId>,
    /// Disks of machines without a domain, by resource.
    pub stray_disks: BTreeSet<ResourceId>,
    /// Snapshots, by machine.
    pub snapshots: BTreeSet<(ResourceId, SnapshotId)>,
    /// What runs.
    pub running: BTreeSet<ResourceId>,
    /// Devices that are prepared: owner, and UUID of card or MIG instance.
    pub devices: BTreeSet<(ResourceId, String)>,
    /// MIG instances that were made for a workload, by UUID.
    pub instances: BTreeSet<String>,
}

impl Holdings {
    /// Everything that has a workload or a device.
    pub fn holders(&self) -> BTreeSet<ResourceId> {
        let devices = self.devices.iter().map(|(owner, _)| *owner);
        let workloads = self
            .containers
            .iter()
            .chain(&self.machines)
            .chain(&self.stray_disks);
        workloads.copied().chain(devices).collect()
    }
}

/// Making a node, and what speaks to it.
impl Sim {
    /// A node whose time is that of `env`.
    pub fn new(env: Arc<dyn Environment>, options: SimOptions) -> Self {
        let gpus = Gpus::new(options.cards, options.mig_on_demand);
        let owner = Arc::from(options.owner);
        Self {
            inner: Arc::new(Inner {
                env,
                world: Mutex::new(World::new(options.capacity, options.latency, gpus)),
                detached: AtomicBool::new(false),
            }),
            owner,
        }
    }

    /// What runs application and inference containers.
    pub fn containers(&self) -> Arc<dyn Backend> {
        self.containers_of(&self.owner)
    }

    /// What runs virtual machines.
    pub fn machines(&self) -> Arc<dyn Backend> {
        self.machines_of(&self.owner)
    }

    /// The container engine as somebody else with another owner label uses it.
    pub fn containers_of(&self, owner: &str) -> Arc<dyn Backend> {
        Arc::new(backend::SimBackend::new(
            Arc::clone(&self.inner),
            Daemon::Containers,
            owner,
        ))
    }

    /// The hypervisor as somebody else with another owner label uses it.
    pub fn machines_of(&self, owner: &str) -> Arc<dyn Backend> {
        Arc::new(backend::SimBackend::new(
            Arc::clone(&self.inner),
            Daemon::Machines,
            owner,
        ))
    }

    /// The node's GPUs.
    pub fn accelerators(&self) -> Arc<dyn Accelerators> {
        Arc::new(accelerators::SimAccelerators::new(Arc::clone(&self.inner)))
    }

    fn change<T>(&self, change: impl FnOnce(&mut World, Timestamp) -> T) -> T {
        let now = self.inner.env.now();
        change(&mut self.inner.lock(), now)
    }

    fn key(&self, world: &World, id: ResourceId) -> Key {
        let of = |daemon| Key {
            daemon,
            owner: Arc::clone(&self.owner),
            id,
        };
        let machine = of(Daemon::Machines);
        if world.guests.contains_key(&machine) {
            machine
        } else {
            of(Daemon::Containers)
        }
    }
}

/// What daemons and the host do.
impl Sim {
    /// How long things take from now on.
    pub fn set_latency(&self, latency: Latency) {
        self.change(|world, _| world.latency = latency);
    }

    /// Whether a daemon answers.
    pub fn set_presence(&self, daemon: Daemon, presence: Presence) {
        self.change(|world, _| {
            let state = world.daemon_mut(daemon);
            if presence != Presence::Up {
                state.events = tokio::sync::broadcast::Sender::new(128);
            }
            state.presence.send_replace(presence);
        });
    }

    /// Whether all daemons refuse connections. Workloads go on meanwhile.
    pub fn set_away(&self, away: bool) {
        for daemon in Daemon::ALL {
            self.set_presence(daemon, if away { Presence::Away } else { Presence::Up });
        }
    }

    /// Restarts a daemon: calls under way lose their answer, event streams end, and containers end with
    /// their engine.
    pub fn restart_daemon(&self, daemon: Daemon) {
        self.change(|world, now| world.restart_daemon(daemon, now));
    }

    /// Restarts the host: everything ends, and MIG instances are gone.
    pub fn reboot_host(&self) {
        self.change(World::reboot);
    }

    /// Whether calls go on when their caller has gone, as a daemon does that took the request whole.
    pub fn set_detached(&self, detached: bool) {
        self.inner.detached.store(detached, Ordering::SeqCst);
    }

    /// Whether the node's disk is full: what needs space fails with
    /// [`NoSpace`](BackendErrorKind::NoSpace).
    pub fn set_full(&self, full: bool) {
        self.change(|world, _| world.full = full);
    }

    /// What the node has from now on.
    pub fn set_capacity(&self, capacity: Capacity) {
        self.change(|world, _| world.capacity = capacity);
    }
}

/// Images, registries, ports and paths.
impl Sim {
    /// Makes every use of an image fail so: a message as the engine would say it.
    pub fn break_image(&self, image: &str, kind: BackendErrorKind, message: &str) {
        let fault = (kind, message.to_owned());
        self.change(|world, _| world.broken_images.insert(image.to_owned(), fault));
    }

    /// Ends what [`break_image`](Self::break_image) began.
    pub fn mend_image(&self, image: &str) {
        self.change(|world, _| world.broken_images.remove(image));
    }

    /// The images that the engine has.
    pub fn images(&self) -> BTreeSet<String> {
        self.change(|world, _| world.images.clone())
    }

    /// Puts an image into the engine without fetching it.
    pub fn load_image(&self, image: &str) {
        self.change(|world, _| world.images.insert(image.to_owned()));
    }

    /// Makes a registry (`docker.io`, `ghcr.io`, `host:port`) ask for a user and a password.
    pub fn protect_registry(&self, host: &str, user: &str, password: &str) {
        let login = (user.to_owned(), password.to_owned());
        self.change(|world, _| world.registries.insert(host.to_owned(), login));
    }

    /// Lets a process that is not ours listen on a port of the node, or end.
    pub fn occupy_port(&self, protocol: Protocol, port: u16, occupied: bool) {
        self.change(|world, _| {
            if occupied {
                world.foreign_ports.insert((protocol, port));
            } else {
                world.foreign_ports.remove(&(protocol, port));
            }
        });
    }

    /// Makes a path of the node a link to another.
    pub fn link(&self, path: &str, target: &str) {
        self.change(|world, _| world.links.insert(path.to_owned(), target.to_owned()));
    }
}

/// What happens to workloads by themselves, or behind the manager's back.
impl Sim {
    /// A workload ends by itself: a container with this exit code, a machine by a crash when it is not 0.
    pub fn kill_workload(&self, id: ResourceId, exit_code: i64) {
        self.change(|world, now| {
            let key = self.key(world, id);
            let crashed = key.daemon == Daemon::Machines && exit_code != 0;
            let cause = crashed.then(|| "the machine crashed".to_owned());
            world.end(&key, now, Some(exit_code), cause);
        });
    }

    /// Somebody removes a workload of ours.
    pub fn remove_behind_back(&self, id: ResourceId) {
        self.change(|world, _| {
            let key = self.key(world, id);
            world.remove(&key);
        });
    }

    /// Somebody stops a workload of ours.
    pub fn stop_behind_back(&self, id: ResourceId) {
        self.change(|world, now| {
            let key = self.key(world, id);
            world.end(&key, now, Some(143), None);
        });
    }

    /// Somebody starts a workload of ours.
    pub fn start_behind_back(&self, id: ResourceId) {
        let inner = &self.inner;
        let key = self.change(|world, _| self.key(world, id));
        inner.launch(&key);
    }

    /// Puts a running workload of another owner on the node that carries the id of one of ours, or of none.
    pub fn plant_foreign(&self, owner: &str, daemon: Daemon, workload: &Workload) {
        let key = Key {
            daemon,
            owner: Arc::from(owner),
            id: workload.id,
        };
        self.change(|world, now| {
            world.make(&key, workload, Stage::Made);
            let _ = world.bring_up(&key, now, String::new());
            world.plant(key);
        });
    }

    /// What was planted and is not as it was; empty when all is well.
    pub fn changed_foreign(&self) -> Vec<String> {
        self.change(|world, _| world.changed_foreign())
    }

    /// What becomes of workloads of this name when they are made from now on; as usual without a fate.
    pub fn set_fate(&self, name: &str, fate: Option<Fate>) {
        self.change(|world, _| {
            world.fates.send_modify(|fates| {
                match fate {
                    Some(fate) => fates.insert(name.to_owned(), fate),
                    None => fates.remove(name),
                };
            });
        });
    }

    /// Whether health checks of a workload succeed.
    pub fn set_healthy(&self, id: ResourceId, healthy: bool) {
        self.with(id, |guest, _| guest.healthy = healthy);
    }

    /// Whether a workload ignores being asked to end, so that it is killed when its grace is over.
    pub fn set_stubborn(&self, id: ResourceId, stubborn: bool) {
        self.with(id, |guest, _| guest.stubborn = stubborn);
    }

    /// Lets a workload write to its log.
    pub fn write_log(&self, id: ResourceId, stream: LogStream, text: &str) {
        self.with(id, |guest, now| guest.log.write(now, stream, text));
    }

    /// Lets a workload write a file.
    pub fn write_file(&self, id: ResourceId, path: &str, text: &str) {
        self.with(id, |guest, _| {
            guest.files.insert(path.to_owned(), text.to_owned())
        });
    }

    /// Reads a file of a workload.
    pub fn read_file(&self, id: ResourceId, path: &str) -> Option<String> {
        self.with(id, |guest, _| guest.files.get(path).cloned()).flatten()
    }

    fn with<T>(&self, id: ResourceId, change: impl FnOnce(&mut Guest, Timestamp) -> T) -> Option<T> {
        self.change(|world, now| {
            let key = self.key(world, id);
            world.guests.get_mut(&key).map(|guest| change(guest, now))
        })
    }
}

/// What GPUs do.
impl Sim {
    /// Reports something of a card; a fatal one quarantines it.
    pub fn gpu_event(&self, index: u32, fatal: bool, message: &str) {
        self.change(|world, _| world.gpus.report(index, fatal, message));
    }

    /// The card falls off the bus, or comes back.
    pub fn set_gpu_lost(&self, index: u32, lost: bool) {
        self.change(|world, _| world.gpus.set_lost(index, lost));
    }

    /// Whether a quarantined card stays sick when it is looked at again.
    pub fn set_gpu_sick(&self, index: u32, sick: bool) {
        self.change(|world, _| world.gpus.set_sick(index, sick));
    }

    /// Somebody else makes a MIG instance. Answers its UUID; none where it does not fit.
    pub fn plant_instance(&self, index: u32, profile: &str, start: u32) -> Option<String> {
        self.change(|world, _| world.gpus.plant(index, profile, start))
    }

    /// The UUID of a card.
    pub fn gpu_uuid(&self, index: u32) -> Option<GpuUuid> {
        self.change(|world, _| world.gpus.uuid(index))
    }
}

/// What is so.
impl Sim {
    /// What is of a workload, without asking a daemon.
    pub fn look(&self, id: ResourceId) -> Option<Observed> {
        self.change(|world, _| {
            let key = self.key(world, id);
            world.observed(&key)
        })
    }

    /// The workload as it was given last.
    pub fn given(&self, id: ResourceId) -> Option<Workload> {
        self.with(id, |guest, _| guest.workload.clone())
    }

    /// What of our owner label is on the node.
    pub fn holdings(&self) -> Holdings {
        self.change(|world, _| {
            let mut holdings = Holdings::default();
            for (key, guest) in world.guests.iter().filter(|(k, _)| k.owner == self.owner) {
                match (key.daemon, guest.stage) {
                    (Daemon::Machines, Stage::Disk) => holdings.stray_disks.insert(key.id),
                    (Daemon::Machines, Stage::Made) => holdings.machines.insert(key.id),
                    (Daemon::Containers | Daemon::Gpus, _) => holdings.containers.insert(key.id),
                };
                if guest.is_up() {
                    holdings.running.insert(key.id);
                }
                holdings
                    .snapshots
                    .extend(guest.snapshots.keys().map(|s| (key.id, *s)));
            }
            world.gpus.hold(&mut holdings);
            holdings
        })
    }

    /// How many workloads of each resource are there, over both daemons; more than one is a fault.
    pub fn copies(&self) -> BTreeMap<ResourceId, usize> {
        self.change(|world, _| {
            let mut copies = BTreeMap::new();
            for key in world.guests.keys().filter(|k| k.owner == self.owner) {
                *copies.entry(key.id).or_insert(0) += 1;
            }
            copies
        })
    }

    /// What a manager did that the contracts forbid; empty when all is well.
    pub fn breaches(&self) -> Vec<String> {
        self.change(|world, _| world.breaches.clone())
    }

    /// Takes everything that accelerators reported since the beginning.
    pub fn gpu_reports(&self) -> Vec<AcceleratorEvent> {
        self.change(|world, _| world.gpus.reports.clone())
    }
}
