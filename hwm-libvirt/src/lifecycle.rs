//! Making, starting and removing a machine: the steps on libvirt, each of which may be repeated at any time.
//!
//! The domain is defined before its volumes and undefined after them, so a domain with our metadata is the proof
//! that the volumes of its name are ours; where it was undefined behind our back, the mark in the seed is. A
//! domain or a volume of our name with neither is somebody else's, and is never touched.

use std::sync::Arc;
use std::time::Duration;

use hwm_core::id::ResourceId;
use hwm_core::units::Timestamp;
use zeroize::Zeroizing;

use crate::connection::{DomainState, Fault, FaultKind, Host};
use crate::domain::{
    DomainSeen, METADATA_NAMESPACE, Tag, console_log_name, disk_name, domain_name, seed_name, tag_xml,
};
use crate::machine::Parts;
use crate::seed::{MARKER_BYTES, MARKER_OFFSET, Marker};

/// How long a guest may take for its first boot, its restarts in it included.
pub(crate) const FIRST_BOOT: Duration = Duration::from_secs(15 * 60);

type Result<T> = std::result::Result<T, Fault>;

/// Where a machine's volumes are and whose it is.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) pool: String,
    pub(crate) owner: String,
    pub(crate) id: ResourceId,
}

/// What there is of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// Our domain, with what it says of itself.
    Domain(Box<DomainSeen>, Tag),
    /// Our volumes alone: the domain was undefined behind our back.
    Volumes,
    /// Nothing.
    Nothing,
    /// Something that is not ours, in words.
    Foreign(String),
}

impl Place {
    /// Looks at what there is.
    pub(crate) fn find(&self, host: &Host) -> Result<Found> {
        let name = domain_name(self.id);
        if let Some(xml) = host.domain_xml(self.id, false)? {
            let seen = DomainSeen::parse(&xml);
            let tag = seen
                .as_ref()
                .and_then(|s| s.tag.clone())
                .filter(|tag| self.is_ours(tag));
            return Ok(match (seen, tag) {
                (Some(seen), Some(tag)) => Found::Domain(Box::new(seen), tag),
                _ => Found::Foreign(format!("the domain with the UUID {}", self.id)),
            });
        }
        if host.named_domain_xml(&name)?.is_some() {
            return Ok(Found::Foreign(format!("the domain {name}")));
        }
        let names = self.volumes();
        let there = host.which_volumes(&self.pool, &names)?;
        let has_seed = there.last().copied().unwrap_or(false);
        if has_seed && self.is_marked(host)? {
            return Ok(Found::Volumes);
        }
        match names.iter().zip(there).find(|(_, there)| *there) {
            Some((name, _)) => Ok(Found::Foreign(format!("the volume {name} in pool {}", self.pool))),
            None => Ok(Found::Nothing),
        }
    }

    fn is_ours(&self, tag: &Tag) -> bool {
        tag.owner == self.owner && tag.resource == self.id
    }

    /// The volumes in the order in which they are removed: the seed, which proves the others, comes last.
    fn volumes(&self) -> [String; 3] {
        [disk_name(self.id), console_log_name(self.id), seed_name(self.id)]
    }

    fn has_marked_seed(&self, host: &Host) -> Result<bool> {
        let there = host.which_volumes(&self.pool, &[seed_name(self.id)])?;
        Ok(there == [true] && self.is_marked(host)?)
    }

    /// Whether the seed, which is there, says that it is ours.
    fn is_marked(&self, host: &Host) -> Result<bool> {
        let bytes = host.download(&self.pool, &seed_name(self.id), MARKER_OFFSET, MARKER_BYTES)?;
        let marker = Marker::parse(&bytes);
        Ok(marker.is_some_and(|m| m.owner == self.owner && m.resource == self.id))
    }

    fn conflict(what: &str) -> Fault {
        Fault::new(
            FaultKind::Exists,
            format!("{what} is not hwm's: it is left as it is; remove or rename it"),
        )
    }

    /// Makes what is missing of a machine.
    pub(crate) fn make(&self, host: &Host, parts: &Parts, seed: &[u8], generation: u64) -> Result<()> {
        let (define, has_parts) = match self.find(host)? {
            Found::Foreign(what) => return Err(Self::conflict(&what)),
            Found::Domain(_, tag) if tag.generation > generation => return Err(superseded()),
            Found::Domain(..) => (false, true),
            Found::Volumes => (true, true),
            Found::Nothing => (true, false),
        };
        if define {
            host.define(&parts.domain)?;
        }
        let (seed_name, disk_name, log_name) =
            (seed_name(self.id), disk_name(self.id), console_log_name(self.id));
        let there = if has_parts {
            host.which_volumes(&self.pool, &[seed_name.clone(), disk_name.clone(), log_name])?
        } else {
            vec![false; 3]
        };
        let [has_seed, has_disk, has_log] = there[..] else {
            return Err(Fault::other("the volumes cannot be told apart"));
        };
        if !has_seed {
            host.create_volume(&self.pool, &parts.seed)?;
        }
        // A seed that is whole stays as it is.
        if !has_seed || !self.is_marked(host)? {
            let mut bytes = seed;
            host.upload(&self.pool, &seed_name, seed.len() as u64, &mut bytes)?;
        }
        if !has_disk {
            host.create_volume(&self.pool, &parts.disk)?;
            if !parts.base.holds(host, &self.pool)? {
                host.delete_volume(&self.pool, &disk_name)?;
                return Err(Fault::new(FaultKind::Gone, "its image was removed meanwhile"));
            }
        }
        if !has_log {
            host.create_volume(&self.pool, &parts.console_log)?;
        }
        Ok(())
    }

    /// Defines the domain as the workload now wants it, and starts it.
    pub(crate) fn start(&self, host: &Host, start: &Start) -> Result<()> {
        let before = match self.find(host)? {
            Found::Foreign(what) => return Err(Self::conflict(&what)),
            Found::Domain(_, tag) if tag.generation > start.tag.generation => return Err(superseded()),
            Found::Domain(_, tag) => tag,
            Found::Volumes | Found::Nothing => {
                return Err(Fault::new(
                    FaultKind::NotFound,
                    "the machine was never made, or was undefined",
                ));
            }
        };
        if host.state(self.id)? == Some(DomainState::Up) {
            return Ok(());
        }
        let disk = disk_name(self.id);
        let Some(facts) = host.volume_facts(&self.pool, &disk)? else {
            return Err(Fault::new(
                FaultKind::NotFound,
                format!("the volume {disk} is gone"),
            ));
        };
        if facts.capacity < start.disk_bytes {
            host.resize_volume(&self.pool, &disk, start.disk_bytes)?;
        }
        if let Some(seed) = start
            .seed_without_password
            .as_ref()
            .filter(|_| has_booted(&before))
        {
            self.erase_password(host, seed)?;
        }
        host.define(&start.domain)?;
        match host.start(self.id) {
            Ok(()) => Ok(()),
            // Somebody else was quicker.
            Err(fault) if host.state(self.id)? == Some(DomainState::Up) => {
                tracing::debug!(%fault, id = %self.id, "started by another");
                Ok(())
            }
            Err(fault) => {
                let tag = Tag {
                    started: before.started,
                    ..start.tag.clone()
                };
                if let Ok(xml) = tag_xml(&tag) {
                    let _ = host.set_tag(self.id, &xml, METADATA_NAMESPACE, false);
                }
                Err(fault)
            }
        }
    }

    /// Replaces the seed by one without a password, also under a machine that runs and has read it.
    pub(crate) fn erase_password(&self, host: &Host, seed: &[u8]) -> Result<()> {
        let name = seed_name(self.id);
        if !self.has_marked_seed(host)? {
            return Ok(());
        }
        let mut bytes = seed;
        host.upload(&self.pool, &name, seed.len() as u64, &mut bytes)
    }

    /// Whether our domain is there and runs. What is not ours is down, as far as we are concerned.
    pub(crate) fn is_up(&self, host: &Host) -> Result<bool> {
        match self.find(host)? {
            Found::Domain(..) => Ok(host.state(self.id)? == Some(DomainState::Up)),
            Found::Volumes | Found::Nothing | Found::Foreign(_) => Ok(false),
        }
    }

    /// Removes everything of a machine, and looks that it is gone.
    pub(crate) fn remove(&self, host: &Host) -> Result<()> {
        let domain = match self.find(host)? {
            Found::Foreign(what) => {
                tracing::warn!(id = %self.id, "{what} is not hwm's and stays");
                return Ok(());
            }
            Found::Nothing => return Ok(()),
            Found::Domain(..) => true,
            Found::Volumes => false,
        };
        if domain {
            host.destroy(self.id)?;
        }
        self.remove_rotated_logs(host)?;
        for name in self.volumes() {
            host.delete_volume(&self.pool, &name)?;
        }
        if domain {
            host.undefine(self.id)?;
        }
        match self.find(host)? {
            Found::Nothing | Found::Foreign(_) => Ok(()),
            Found::Domain(..) | Found::Volumes => Err(Fault::other("parts of the machine are still there")),
        }
    }

    /// virtlogd starts a new file when a log has grown, and keeps the older ones beside it with a number; libvirt
    /// sees them when it looks at the folder again.
    fn remove_rotated_logs(&self, host: &Host) -> Result<()> {
        host.refresh_pool(&self.pool)?;
        let log = console_log_name(self.id);
        let is_rotated = |name: &String| {
            let number = name.strip_prefix(&log).and_then(|rest| rest.strip_prefix('.'));
            number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
        };
        for name in host
            .volume_names(&self.pool)?
            .iter()
            .filter(|name| is_rotated(name))
        {
            host.delete_volume(&self.pool, name)?;
        }
        Ok(())
    }
}

/// A start, ready to be made.
#[derive(Debug, Clone)]
pub(crate) struct Start {
    pub(crate) domain: String,
    pub(crate) tag: Tag,
    pub(crate) disk_bytes: u64,
    /// What the seed becomes once the guest has booted, where it holds a password in clear.
    pub(crate) seed_without_password: Option<Arc<Zeroizing<Vec<u8>>>>,
}

/// Whether the machine ran long enough for its guest to have taken what the seed says.
fn has_booted(tag: &Tag) -> bool {
    let started = tag.started.map(|s| Timestamp::from_millis(s.millis));
    let now = Timestamp::from_millis(crate::observe::now().millis);
    started.is_some_and(|at| now.since(at) >= FIRST_BOOT)
}

fn superseded() -> Fault {
    Fault::new(
        FaultKind::Superseded,
        "a newer generation of the machine was made already",
    )
}
