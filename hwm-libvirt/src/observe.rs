//! What is: machines, events, figures and addresses. Reading is bulk: one call for all domains, and one more for
//! each domain whose definition is not known yet.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use hwm_core::backend::{BackendEvent, Observed, ObservedState, Result, Stream};
use hwm_core::id::ResourceId;
use hwm_core::metrics::{CpuMetrics, DiskMetrics, MemoryMetrics, Metrics, NetworkMetrics};
use hwm_core::units::{Bytes, Cores, Timestamp};
use tokio::sync::broadcast;

use crate::agent;
use crate::backend::{Inner, QUICK, lock};
use crate::connection::{ConnectionEvent, DomainState, DomainStats, StateReason};
use crate::domain::{DomainSeen, Started, Tag, console_log_name, domain_name, resource_of};
use crate::lifecycle::Found;
use crate::mac::MacAddress;
use crate::usage::{self, Usage};

/// How long and how often an address is looked for after a machine started.
const ADDRESS_SEARCH: (Duration, Duration) = (Duration::from_secs(600), Duration::from_secs(2));
/// How many of a console's last bytes go into the reason of a crash.
const LAST_WORDS: u64 = 2048;

/// What is remembered between calls. All of it can be found again.
pub(crate) struct Observations {
    events: Mutex<broadcast::Receiver<ConnectionEvent>>,
    tags: Mutex<HashMap<ResourceId, Option<Tag>>>,
    cpu: Mutex<HashMap<ResourceId, (Instant, u64)>>,
    addresses: Mutex<HashMap<ResourceId, Ipv4Addr>>,
    searching: Mutex<HashSet<ResourceId>>,
    strays: Mutex<HashMap<ResourceId, bool>>,
    pub(crate) usage: Usage,
}

pub(crate) fn now() -> Started {
    Started {
        millis: jiff::Timestamp::now().as_millisecond(),
    }
}

impl Observations {
    pub(crate) fn new(events: broadcast::Receiver<ConnectionEvent>) -> Self {
        Self {
            events: Mutex::new(events),
            tags: Mutex::default(),
            cpu: Mutex::default(),
            addresses: Mutex::default(),
            searching: Mutex::default(),
            strays: Mutex::default(),
            usage: Usage::default(),
        }
    }

    /// Forgets what may have changed by our own doing.
    pub(crate) fn forget(&self, id: ResourceId) {
        lock(&self.tags).remove(&id);
        lock(&self.cpu).remove(&id);
        lock(&self.addresses).remove(&id);
        lock(&self.strays).remove(&id);
        self.usage.forget(id);
    }

    /// Forgets what libvirt's events say has changed; all of it where they do not come.
    fn catch_up(&self, listening: bool) {
        if !listening {
            lock(&self.tags).clear();
            lock(&self.strays).clear();
        }
        let mut events = lock(&self.events);
        loop {
            match events.try_recv() {
                Ok(ConnectionEvent::Domain {
                    name,
                    redefined: true,
                }) => {
                    if let Some(id) = resource_of(&name) {
                        lock(&self.tags).remove(&id);
                        lock(&self.strays).remove(&id);
                    }
                }
                Ok(ConnectionEvent::Domain { .. }) => {}
                Ok(ConnectionEvent::Lost) | Err(broadcast::error::TryRecvError::Lagged(_)) => {
                    lock(&self.tags).clear();
                    lock(&self.strays).clear();
                }
                Err(broadcast::error::TryRecvError::Empty | broadcast::error::TryRecvError::Closed) => break,
            }
        }
    }
}

impl Inner {
    /// The figures of the domains that carry our names, by machine.
    async fn all_stats(&self, figures: bool) -> Result<BTreeMap<ResourceId, DomainStats>> {
        let all = self
            .ask("asking libvirt for all domains", move |host| {
                host.all_stats(figures)
            })
            .await?;
        self.observations.catch_up(self.connection.is_listening());
        Ok(all
            .into_iter()
            .filter_map(|stats| {
                let id = resource_of(&stats.name).filter(|id| domain_name(*id) == stats.name)?;
                Some((id, stats))
            })
            .collect())
    }

    /// Our tags of these domains; those that are not ours are left out.
    async fn tags(&self, ids: Vec<ResourceId>) -> Result<HashMap<ResourceId, Tag>> {
        let mut tags = HashMap::new();
        let mut unknown = Vec::new();
        {
            let known = lock(&self.observations.tags);
            for id in ids {
                match known.get(&id) {
                    Some(Some(tag)) => {
                        tags.insert(id, tag.clone());
                    }
                    Some(None) => {}
                    None => unknown.push(id),
                }
            }
        }
        if unknown.is_empty() {
            return Ok(tags);
        }
        let owner = self.options.owner.clone();
        let read = self
            .ask("reading the domains' metadata", move |host| {
                let mut read = Vec::new();
                for id in unknown {
                    let seen = host.domain_xml(id, false)?.as_deref().and_then(DomainSeen::parse);
                    let tag = seen
                        .and_then(|s| s.tag)
                        .filter(|t| t.owner == owner && t.resource == id);
                    read.push((id, tag));
                }
                Ok(read)
            })
            .await?;
        let mut known = lock(&self.observations.tags);
        for (id, tag) in read {
            known.insert(id, tag.clone());
            tags.extend(tag.map(|tag| (id, tag)));
        }
        Ok(tags)
    }

    pub(crate) async fn inspect(self: &Arc<Self>, ids: &[ResourceId]) -> Result<Vec<Observed>> {
        let mut all = self.all_stats(false).await?;
        let wanted: Vec<(ResourceId, DomainStats)> =
            ids.iter().filter_map(|id| Some((*id, all.remove(id)?))).collect();
        self.observe(wanted).await
    }

    pub(crate) async fn owned(self: &Arc<Self>) -> Result<Vec<Observed>> {
        let all = self.all_stats(false).await?;
        let domains: HashSet<ResourceId> = all.keys().copied().collect();
        let mut owned = self.observe(all.into_iter().collect()).await?;
        for id in self.strays(&domains).await? {
            owned.push(Observed {
                id,
                runtime_id: id.to_string(),
                state: ObservedState::Created,
                started_at: None,
                ended_at: None,
                endpoint: None,
                generation: None,
            });
        }
        Ok(owned)
    }

    /// Machines of which only the volumes are left, because the domain was undefined behind our back.
    async fn strays(&self, domains: &HashSet<ResourceId>) -> Result<Vec<ResourceId>> {
        self.pool().await?;
        let pool = self.options.pool.clone();
        let names = self
            .ask("listing the volumes", move |host| host.volume_names(&pool))
            .await?;
        let mut alone: Vec<ResourceId> = names.iter().filter_map(|name| resource_of(name)).collect();
        alone.sort_unstable();
        alone.dedup();
        alone.retain(|id| !domains.contains(id));
        let mut ours = Vec::new();
        for id in alone {
            let known = lock(&self.observations.strays).get(&id).copied();
            let is_ours = match known {
                Some(is_ours) => is_ours,
                None => {
                    let place = self.place(id);
                    let found = self.ask("reading a seed", move |host| place.find(host)).await?;
                    let is_ours = found == Found::Volumes;
                    lock(&self.observations.strays).insert(id, is_ours);
                    is_ours
                }
            };
            if is_ours {
                ours.push(id);
            }
        }
        Ok(ours)
    }

    async fn observe(self: &Arc<Self>, domains: Vec<(ResourceId, DomainStats)>) -> Result<Vec<Observed>> {
        let tags = self.tags(domains.iter().map(|(id, _)| *id).collect()).await?;
        let mut observed = Vec::with_capacity(domains.len());
        for (id, stats) in domains {
            let Some(tag) = tags.get(&id) else { continue };
            let state = match (stats.state, tag.started) {
                (DomainState::Up, _) => ObservedState::Running,
                (DomainState::Down(_), None) => ObservedState::Created,
                (DomainState::Down(reason), Some(_)) => ObservedState::Ended {
                    exit_code: None,
                    cause: self.cause(id, reason).await,
                },
            };
            let address = match (tag.address, &state) {
                (Some(address), _) => Some(address),
                (None, ObservedState::Running) => {
                    let known = lock(&self.observations.addresses).get(&id).copied();
                    if known.is_none() {
                        find_address(self, id);
                    }
                    known
                }
                (None, ObservedState::Created | ObservedState::Ended { .. }) => None,
            };
            observed.push(Observed {
                id,
                runtime_id: id.to_string(),
                state,
                started_at: tag.started.map(|s| Timestamp::from_millis(s.millis)),
                ended_at: None,
                endpoint: address.map(|address| format!("{address}:{}", tag.port)),
                generation: Some(tag.generation),
            });
        }
        Ok(observed)
    }

    /// Why a machine that has run does not run, where it did not end well.
    async fn cause(&self, id: ResourceId, reason: StateReason) -> Option<String> {
        let why = match reason {
            StateReason::Shutdown | StateReason::Other => return None,
            StateReason::Destroyed => return Some("it was switched off".into()),
            StateReason::Crashed => "QEMU or the guest crashed",
            StateReason::Failed => "QEMU failed",
        };
        let mut cause = why.to_owned();
        if let Some(said) = self.last_words(id).await {
            cause.push_str("; QEMU said last: ");
            cause.push_str(&said);
        }
        Some(cause)
    }

    /// The end of QEMU's log where libvirt's host is this one, else of the serial console.
    async fn last_words(&self, id: ResourceId) -> Option<String> {
        let path = format!("/var/log/libvirt/qemu/{}.log", domain_name(id));
        let text = match std::fs::read(&path).ok().filter(|_| self.options.is_local()) {
            Some(bytes) => bytes,
            None => {
                let (pool, name) = (self.options.pool.clone(), console_log_name(id));
                self.ask("reading the console's log", move |host| {
                    let size = host.volume_facts(&pool, &name)?.map_or(0, |f| f.allocation);
                    host.download(&pool, &name, size.saturating_sub(LAST_WORDS), LAST_WORDS * 2)
                })
                .await
                .ok()?
            }
        };
        let tail = &text[text.len().saturating_sub(LAST_WORDS as usize)..];
        let text = String::from_utf8_lossy(tail);
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
        let last = lines[lines.len().saturating_sub(5)..].join(" | ");
        (!last.is_empty()).then(|| last.chars().filter(|c| !c.is_control()).take(1000).collect())
    }

    pub(crate) async fn events(&self) -> Result<Stream<BackendEvent>> {
        let events = self.connection.events();
        let hints = self.hints.subscribe();
        // A stream on a connection that is not there would never end.
        self.connection
            .listen("listening to libvirt's events", QUICK)
            .await?;
        // One that has just begun to hang still looks open.
        self.ask("listening to libvirt's events", |host| host.node().map(|_| ()))
            .await?;
        let libvirt = futures_util::stream::unfold(events, |mut events| async move {
            match events.recv().await {
                Ok(ConnectionEvent::Domain { name, .. }) => {
                    let event = resource_of(&name).map(|id| BackendEvent { id });
                    Some((Some(event), events))
                }
                Ok(ConnectionEvent::Lost) | Err(_) => Some((None, events)),
            }
        })
        // The stream ends with the connection, and where events were missed: who listens then looks again.
        .take_while(|event| std::future::ready(event.is_some()))
        .map(Some);
        let own = futures_util::stream::unfold(hints, |mut hints| async move {
            match hints.recv().await {
                Ok(hint) => Some((Some(Some(Some(hint))), hints)),
                Err(_) => None,
            }
        });
        let ended = libvirt.chain(futures_util::stream::once(std::future::ready(None)));
        Ok(futures_util::stream::select(ended, own)
            .take_while(|item| std::future::ready(item.is_some()))
            .filter_map(|item| std::future::ready(item.flatten().flatten()))
            .boxed())
    }

    pub(crate) async fn metrics(self: &Arc<Self>, ids: &[ResourceId]) -> Result<Vec<(ResourceId, Metrics)>> {
        let mut all = self.all_stats(true).await?;
        let taken = Instant::now();
        let running: Vec<(ResourceId, DomainStats)> = ids
            .iter()
            .filter_map(|id| Some((*id, all.remove(id)?)))
            .filter(|(_, stats)| stats.state == DomainState::Up)
            .collect();
        let ours = self.tags(running.iter().map(|(id, _)| *id).collect()).await?;
        let asked = running.iter().map(|(id, _)| *id);
        usage::ask(self, asked.filter(|id| ours.contains_key(id)));
        Ok(running
            .into_iter()
            .filter(|(id, _)| ours.contains_key(id))
            .map(|(id, stats)| {
                let before = stats
                    .cpu_time_ns
                    .and_then(|ns| lock(&self.observations.cpu).insert(id, (taken, ns)));
                (id, figures(&stats, self.observations.usage.of(id), before, taken))
            })
            .collect())
    }
}

fn percent(part: f64, whole: f64) -> Option<f64> {
    (whole > 0.0).then(|| (part / whole * 1e4).round() / 1e2)
}

/// `in_use` is what the guest says that its file systems hold; else what the disk takes on the host is told.
fn figures(
    stats: &DomainStats,
    in_use: Option<u64>,
    before: Option<(Instant, u64)>,
    taken: Instant,
) -> Metrics {
    let cores = stats.vcpus.and_then(|n| u32::try_from(n).ok());
    let usage = before.and_then(|(then, ns)| {
        let spent = stats.cpu_time_ns?.checked_sub(ns)? as f64;
        percent(
            spent,
            taken.duration_since(then).as_nanos() as f64 * f64::from(cores?),
        )
    });
    let total = stats.balloon_kib.map(|kib| kib >> 10);
    // What the guest itself could still use; without its driver nothing true can be said.
    let used = stats
        .usable_kib
        .or(stats.unused_kib)
        .and_then(|free| Some(stats.balloon_kib?.saturating_sub(free) >> 10));
    let gb = |bytes: u64| Bytes(bytes).as_gb();
    let disk_used = in_use.or(stats.disk_allocation);
    Metrics {
        cpu: CpuMetrics {
            cores: cores.map(Cores::whole),
            usage_percent: usage.map(|p| p.min(100.0)),
        },
        memory: MemoryMetrics {
            total_mb: total,
            used_mb: used,
            usage_percent: used
                .zip(total)
                .and_then(|(used, total)| percent(used as f64, total as f64)),
        },
        disk: DiskMetrics {
            total_gb: stats.disk_capacity.map(gb),
            used_gb: disk_used.map(gb),
            usage_percent: disk_used
                .zip(stats.disk_capacity)
                .and_then(|(used, total)| percent(used as f64, total as f64)),
        },
        network: NetworkMetrics {
            rx_bytes: stats.rx_bytes,
            tx_bytes: stats.tx_bytes,
        },
        gpu: None,
        gpus: None,
    }
}

/// Looks for the address that a machine got from the network, in the host's ARP table and through the guest agent,
/// until it is found or the machine is down.
pub(crate) fn find_address(inner: &Arc<Inner>, id: ResourceId) {
    if !lock(&inner.observations.searching).insert(id) {
        return;
    }
    let inner = Arc::downgrade(inner);
    tokio::spawn(async move {
        let deadline = Instant::now() + ADDRESS_SEARCH.0;
        loop {
            tokio::time::sleep(ADDRESS_SEARCH.1).await;
            let Some(inner) = inner.upgrade() else { return };
            let looked = inner.ask("looking for an address", move |host| {
                if host.state(id)? != Some(DomainState::Up) {
                    return Ok(None);
                }
                let mut found = host.arp_addresses(id).unwrap_or_default();
                if found.is_empty() {
                    found = agent::addresses(host, id, &MacAddress::of(id).to_string());
                }
                Ok(Some(found))
            });
            let done = match looked.await {
                Ok(Some(found)) => match found.iter().find_map(|a| usable(a)) {
                    Some(address) => {
                        lock(&inner.observations.addresses).insert(id, address);
                        crate::logs::note(&inner, id, format!("address {address} found"));
                        let _ = inner.hints.send(BackendEvent { id });
                        true
                    }
                    None => Instant::now() > deadline,
                },
                Ok(None) => true,
                Err(_) => Instant::now() > deadline,
            };
            if done {
                lock(&inner.observations.searching).remove(&id);
                return;
            }
        }
    });
}

fn usable(text: &str) -> Option<Ipv4Addr> {
    let address: Ipv4Addr = text.parse().ok()?;
    let unusable = address.is_loopback() || address.is_link_local() || address.is_unspecified();
    (!unusable).then_some(address)
}
