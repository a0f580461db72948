//! Claims: what a workload holds on its node, and who would be in the way. Pure.
//!
//! A claim is a key that the store makes unique when it commits. This file says which keys a config
//! needs and how a key that was taken is explained; it keeps no copy of who holds what.

use std::fmt;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::config::{Config, IpMode, NetworkMode, PortRequest, Protocol};
use crate::id::{GpuUuid, NodeId, ResourceId};
use crate::refusal::{Conflict, ConflictKind, Holder};
use crate::units::{Bytes, Cores};

/// Something of a node that is held.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClaimKey {
    /// A port of the node.
    Port(Protocol, u16),
    /// An address on a VLAN; VLAN 0 is untagged.
    Address(u16, Ipv4Addr),
    /// A part of a GPU. A whole card is all of its parts.
    Gpu(GpuUuid, String),
    /// A folder that only the holder may write to.
    Volume(String),
    /// A share of the node's CPU.
    Cpu,
    /// A share of the node's memory.
    Ram,
    /// A share of the node's disk.
    Disk,
}

/// What of a node is shared out by amount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pool {
    /// CPU, in billionths of a core.
    Cpu,
    /// Memory, in bytes.
    Ram,
    /// Disk, in bytes.
    Disk,
}

impl Pool {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Cpu, Self::Ram, Self::Disk];

    /// The key under which shares of it are held.
    pub const fn key(self) -> ClaimKey {
        match self {
            Self::Cpu => ClaimKey::Cpu,
            Self::Ram => ClaimKey::Ram,
            Self::Disk => ClaimKey::Disk,
        }
    }

    /// An amount of it, for people.
    pub(crate) fn amount(self, amount: u64) -> String {
        match self {
            Self::Cpu => format!("{} CPU cores", Cores(amount).as_f64()),
            Self::Ram => format!("{} MB of memory", Bytes(amount).as_mb()),
            Self::Disk => format!("{} GB of disk", Bytes(amount).as_gb()),
        }
    }
}

impl ClaimKey {
    /// The pool this is a share of; none where the key has one holder.
    pub const fn pool(&self) -> Option<Pool> {
        match self {
            Self::Cpu => Some(Pool::Cpu),
            Self::Ram => Some(Pool::Ram),
            Self::Disk => Some(Pool::Disk),
            Self::Port(..) | Self::Address(..) | Self::Gpu(..) | Self::Volume(_) => None,
        }
    }

    /// Whether it is given back while the resource is down.
    pub const fn is_for_running_only(&self) -> bool {
        match self {
            Self::Cpu | Self::Ram => true,
            Self::Disk | Self::Port(..) | Self::Address(..) | Self::Gpu(..) | Self::Volume(_) => false,
        }
    }

    /// What kind of conflict it makes when it is taken.
    pub const fn conflict_kind(&self) -> ConflictKind {
        match self {
            Self::Port(..) => ConflictKind::Port,
            Self::Address(..) => ConflictKind::Address,
            Self::Gpu(..) => ConflictKind::Gpu,
            Self::Volume(_) => ConflictKind::Volume,
            Self::Cpu | Self::Ram | Self::Disk => ConflictKind::Capacity,
        }
    }

    /// The key for people.
    pub fn describe(&self) -> String {
        match self {
            Self::Port(protocol, port) => format!("host port {port}/{}", protocol.as_str()),
            Self::Address(0, address) => format!("address {address} on the untagged network"),
            Self::Address(vlan, address) => format!("address {address} on VLAN {vlan}"),
            Self::Gpu(card, part) => format!("{part} of {card}"),
            Self::Volume(path) => format!("writing to {path}"),
            Self::Cpu => "CPU".to_owned(),
            Self::Ram => "memory".to_owned(),
            Self::Disk => "disk".to_owned(),
        }
    }

    fn remedy(&self) -> &'static str {
        match self {
            Self::Port(..) => "delete the holder, choose another hostPort, or leave hostPort out",
            Self::Address(..) => "delete the holder, or choose another address",
            Self::Gpu(..) => "delete the holder, or ask for another GPU",
            Self::Volume(_) => "delete the holder, or mount the folder readOnly",
            Self::Cpu | Self::Ram | Self::Disk => "stop or delete other resources, or ask for less",
        }
    }
}

/// The one spelling of a key, as stores keep it: `port/tcp/8080`, `gpu/GPU-…/slot-3`.
impl fmt::Display for ClaimKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(protocol, port) => write!(f, "port/{}/{port}", protocol.as_str()),
            Self::Address(vlan, address) => write!(f, "address/{vlan}/{address}"),
            Self::Gpu(card, part) => write!(f, "gpu/{card}/{part}"),
            Self::Volume(path) => write!(f, "volume/{path}"),
            Self::Cpu => f.write_str("cpu"),
            Self::Ram => f.write_str("ram"),
            Self::Disk => f.write_str("disk"),
        }
    }
}

/// A text that is no claim key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a claim key: {0}")]
pub struct InvalidClaimKey(String);

impl FromStr for ClaimKey {
    type Err = InvalidClaimKey;

    fn from_str(text: &str) -> Result<Self, InvalidClaimKey> {
        // A key has one spelling, or two holders could have the same one.
        parse(text)
            .filter(|key| key.to_string() == text)
            .ok_or_else(|| InvalidClaimKey(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<ClaimKey> {
    let (kind, rest) = text.split_once('/').unwrap_or((text, ""));
    Some(match kind {
        "cpu" => ClaimKey::Cpu,
        "ram" => ClaimKey::Ram,
        "disk" => ClaimKey::Disk,
        "volume" => ClaimKey::Volume(rest.to_owned()),
        _ => {
            let (of, what) = rest.split_once('/')?;
            match (kind, of) {
                ("port", "tcp") => ClaimKey::Port(Protocol::Tcp, what.parse().ok()?),
                ("port", "udp") => ClaimKey::Port(Protocol::Udp, what.parse().ok()?),
                ("address", vlan) => ClaimKey::Address(vlan.parse().ok()?, what.parse().ok()?),
                ("gpu", card) => ClaimKey::Gpu(GpuUuid::new(card), what.to_owned()),
                _ => return None,
            }
        }
    })
}

impl Serialize for ClaimKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ClaimKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// A key held by a resource.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Claim {
    /// The node whose it is.
    pub node: NodeId,
    /// What is held.
    pub key: ClaimKey,
    /// Who holds it.
    pub holder: ResourceId,
    /// How much, for a share of a pool; 1 otherwise.
    pub amount: u64,
}

/// The most that may be held of a pool, together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolLimit {
    /// The pool.
    pub pool: Pool,
    /// The most, in the pool's unit.
    pub limit: u64,
}

/// What a node has to share out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Capacity {
    /// Physical CPU, before overcommit.
    pub cpu: Cores,
    /// Memory.
    pub ram: Bytes,
    /// Disk.
    pub disk: Bytes,
}

impl Capacity {
    /// Field by field the larger.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            cpu: self.cpu.max(other.cpu),
            ram: self.ram.max(other.ram),
            disk: self.disk.max(other.disk),
        }
    }

    /// How much of a pool there is, in the pool's unit.
    pub const fn of(&self, pool: Pool) -> u64 {
        match pool {
            Pool::Cpu => self.cpu.0,
            Pool::Ram => self.ram.0,
            Pool::Disk => self.disk.0,
        }
    }

    /// The limits that the store enforces: CPU times the overcommit ratio, the rest as it is.
    pub fn limits(&self, cpu_overcommit: f64) -> Vec<PoolLimit> {
        Pool::ALL
            .into_iter()
            .map(|pool| {
                let ratio = if pool == Pool::Cpu { cpu_overcommit } else { 1.0 };
                PoolLimit {
                    pool,
                    limit: (self.of(pool) as f64 * ratio) as u64,
                }
            })
            .collect()
    }
}

/// Everything that a config needs of a node, GPUs and chosen ports aside.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Demand {
    /// Keys with one holder.
    pub exclusive: Vec<ClaimKey>,
    /// Ports whose number the node chooses, as indexes into [`Config::port_requests`].
    pub open_ports: Vec<usize>,
    /// Shares of pools that are held as long as the resource exists.
    pub lasting: Vec<(Pool, u64)>,
    /// Shares of pools that are held while it is up.
    pub running: Vec<(Pool, u64)>,
}

impl Demand {
    /// What `config` needs. `resolve` turns a writable host path into the path after links.
    pub fn of(config: &Config, resolve: impl Fn(&str) -> String) -> Self {
        let mut demand = Self::default();
        for (i, port) in config.port_requests().iter().enumerate() {
            match (publishes(config), port.host_port) {
                (Publishes::Chosen, Some(host)) => demand.exclusive.push(ClaimKey::Port(port.protocol, host)),
                (Publishes::Chosen, None) => demand.open_ports.push(i),
                // On the host's network the port inside is the port of the node.
                (Publishes::Same, _) => demand
                    .exclusive
                    .push(ClaimKey::Port(port.protocol, port.container_port)),
            }
        }
        if let Config::Machine(machine) = config {
            let network = &machine.network_config;
            if let (IpMode::Static, Some(address)) = (network.ip_mode, network.ip_address) {
                demand
                    .exclusive
                    .push(ClaimKey::Address(network.vlan_id.unwrap_or(0), address));
            }
        }
        if let Config::Container(container) = config {
            let writable = container.volumes.iter().filter(|v| !v.read_only);
            demand
                .exclusive
                .extend(writable.map(|v| ClaimKey::Volume(resolve(&v.host_path))));
        }
        demand.exclusive.sort();
        demand.exclusive.dedup();
        demand.lasting.extend(config.disk().map(|d| (Pool::Disk, d.0)));
        demand.running.extend(config.cpu().map(|c| (Pool::Cpu, c.0)));
        demand.running.extend(config.ram().map(|r| (Pool::Ram, r.0)));
        demand
    }
}

enum Publishes {
    Chosen,
    Same,
}

fn publishes(config: &Config) -> Publishes {
    match config {
        Config::Container(c) if c.network_mode == NetworkMode::Host => Publishes::Same,
        Config::Machine(_) | Config::Container(_) | Config::Inference(_) => Publishes::Chosen,
    }
}

/// A port of a container and the port of the node that leads to it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortBinding {
    /// The port inside.
    pub container_port: u16,
    /// The port on the node.
    pub host_port: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
}

impl PortBinding {
    /// The binding of a request whose host port is settled.
    pub fn new(request: &PortRequest, host_port: u16) -> Self {
        Self {
            container_port: request.container_port,
            host_port,
            protocol: request.protocol,
        }
    }

    /// The claim for it.
    pub const fn key(&self) -> ClaimKey {
        ClaimKey::Port(self.protocol, self.host_port)
    }
}

/// The ports of a range in the order in which they are tried, beginning where `seed` says, so that two
/// callers at the same time rarely try the same. An empty range has none.
pub fn port_candidates(range: RangeInclusive<u16>, seed: u128) -> impl Iterator<Item = u16> {
    let first = *range.start();
    let size = range.len() as u32;
    let offset = (seed % u128::from(size.max(1))) as u32;
    (0..size).map(move |i| first + ((offset + i) % size) as u16)
}

/// Explains a key that has another holder.
pub fn held(key: &ClaimKey, holder: ResourceId, name: &str) -> Conflict {
    Conflict {
        kind: key.conflict_kind(),
        wanted: key.describe(),
        holders: vec![Holder {
            resource_id: holder,
            name: name.to_owned(),
            holds: key.describe(),
        }],
        remedy: key.remedy().to_owned(),
    }
}

/// Explains a pool that has too little left.
pub fn exceeded(pool: Pool, requested: u64, used: u64, limit: u64) -> Conflict {
    let free = limit.saturating_sub(used);
    Conflict {
        kind: ConflictKind::Capacity,
        wanted: pool.amount(requested),
        holders: Vec::new(),
        remedy: format!(
            "{} of {} are free; {}",
            pool.amount(free),
            pool.amount(limit),
            pool.key().remedy()
        ),
    }
}

#[cfg(test)]
mod tests;
