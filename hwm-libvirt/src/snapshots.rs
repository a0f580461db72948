//! Snapshots inside the machine's disk.
//!
//! With memory, libvirt takes memory and disk at one moment. Without memory, libvirt has no snapshot inside the
//! disk of a machine that runs: QEMU's monitor takes it, while the guest's file systems are frozen where its agent
//! can, and libvirt is given the record, so that listing, going back and removing are the same for both.

use async_trait::async_trait;
use hwm_core::backend::{Call, Result, SnapshotReport, SnapshotSpec, Snapshots, Workload};
use hwm_core::id::{ResourceId, SnapshotId};
use hwm_core::snapshot::Consistency;
use hwm_core::units::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::agent;
use crate::backend::Libvirt;
use crate::catalog::Bus;
use crate::connection::{DomainState, Fault, FaultKind, Host};
use crate::domain::{
    DomainSeen, METADATA_NAMESPACE, Tag, disk_name, disk_snapshot_record_xml, domain_name, snapshot_memory,
    snapshot_xml, tag_xml,
};
use crate::lifecycle::{Found, Place};
use crate::turns::hold;

type Faulty<T> = std::result::Result<T, Fault>;

/// Room that a snapshot without memory needs at least: the disk's tables.
const TABLES: u64 = 16 << 20;

fn found(place: &Place, host: &Host) -> Faulty<(DomainSeen, Tag)> {
    match place.find(host)? {
        Found::Domain(seen, tag) => Ok((*seen, tag)),
        Found::Volumes | Found::Nothing | Found::Foreign(_) => {
            Err(Fault::new(FaultKind::NotFound, "the machine does not exist"))
        }
    }
}

/// Why a machine's memory cannot be kept; none where it can.
fn memory_refusal(seen: &DomainSeen) -> Option<&'static str> {
    if seen.host_devices {
        Some("a machine with a device of the host cannot keep its memory")
    } else if seen.uefi {
        Some("QEMU cannot keep the memory of a machine with UEFI firmware inside its disk")
    } else {
        None
    }
}

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "return")]
    value: Option<Value>,
    error: Option<MonitorError>,
}

#[derive(Deserialize)]
struct MonitorError {
    desc: String,
}

fn monitor(host: &Host, id: ResourceId, command: &str, arguments: Value) -> Faulty<Value> {
    let mut request = json!({ "execute": command });
    if !arguments.is_null() {
        request["arguments"] = arguments;
    }
    let answer: Answer = serde_json::from_str(&host.monitor(id, &request.to_string())?)
        .map_err(|_| Fault::other("QEMU's answer cannot be read"))?;
    match answer {
        Answer {
            error: Some(error), ..
        } if error.desc.contains("No space") => Err(Fault::new(FaultKind::NoSpace, error.desc)),
        Answer {
            error: Some(error), ..
        } => Err(Fault::other(error.desc)),
        Answer { value, .. } => Ok(value.unwrap_or(Value::Null)),
    }
}

/// The name by which QEMU knows the machine's disk, and the snapshots in it.
fn disk_node(host: &Host, id: ResourceId) -> Faulty<(String, Vec<String>)> {
    let nodes = monitor(host, id, "query-named-block-nodes", Value::Null)?;
    let file = disk_name(id);
    let is_disk = |node: &&Value| {
        node["drv"] == "qcow2"
            && node["image"]["filename"]
                .as_str()
                .is_some_and(|name| name.ends_with(&file))
    };
    let node = nodes
        .as_array()
        .and_then(|nodes| nodes.iter().find(is_disk))
        .ok_or_else(|| Fault::other("QEMU does not name the machine's disk"))?;
    let name = node["node-name"].as_str().unwrap_or_default().to_owned();
    let snapshots = node["image"]["snapshots"].as_array().into_iter().flatten();
    let names = snapshots
        .filter_map(|s| s["name"].as_str().map(str::to_owned))
        .collect();
    Ok((name, names))
}

/// Thaws when it goes, whatever happened in between.
struct Frozen<'a> {
    host: &'a Host,
    id: ResourceId,
}

impl<'a> Frozen<'a> {
    /// Freezes where the agent can. A freeze that was not answered may still have happened, so it is thawed too.
    fn new(host: &'a Host, id: ResourceId) -> Option<Self> {
        if !agent::answers(host, id) {
            return None;
        }
        let frozen = Self { host, id };
        // By an earlier call whose process was killed.
        if agent::is_frozen(host, id) {
            let _ = agent::thaw(host, id);
        }
        match agent::freeze(host, id) {
            Ok(count) if count > 0 => Some(frozen),
            Ok(_) | Err(_) => None,
        }
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        for _ in 0..3 {
            match agent::thaw(self.host, self.id) {
                Ok(_) => return,
                Err(fault) => tracing::warn!(%fault, id = %self.id, "thawing the guest's file systems"),
            }
        }
    }
}

fn allocation(place: &Place, host: &Host) -> u64 {
    let facts = host.volume_facts(&place.pool, &disk_name(place.id));
    facts.ok().flatten().map_or(0, |f| f.allocation)
}

/// Takes a snapshot; all of it on one thread, so that no freeze outlives who asked for it.
fn take(place: &Place, host: &Host, spec: &SnapshotSpec, ram: Bytes) -> Faulty<SnapshotReport> {
    let id = place.id;
    let (seen, _) = found(place, host)?;
    let name = spec.id.to_string();
    let is_up = host.state(id)? == Some(DomainState::Up);
    if let Some(xml) = host.snapshot_xml(id, &name)? {
        // It was taken by an earlier call. How the file systems were is not recorded, so the least is said.
        let consistency = match (snapshot_memory(&xml), is_up) {
            (Some(true), _) => Consistency::Memory,
            _ if recorded_cold(&xml) => Consistency::Filesystem,
            _ => Consistency::Crash,
        };
        return Ok(SnapshotReport {
            disk_size: None,
            consistency,
        });
    }
    let memory = match (is_up, spec.memory, memory_refusal(&seen)) {
        (false, Some(true), _) => {
            return Err(Fault::new(
                FaultKind::Invalid,
                "a machine that does not run has no memory to keep",
            ));
        }
        (true, Some(true), Some(reason)) => return Err(Fault::new(FaultKind::Unsupported, reason)),
        (true, None | Some(true), None) => true,
        (true, Some(false), _) | (true, None, Some(_)) | (false, _, _) => false,
    };
    let needed = TABLES + if memory { ram.0 } else { 0 };
    let room = host.pool_facts(&place.pool)?;
    if room.available < needed {
        return Err(Fault::new(
            FaultKind::NoSpace,
            format!(
                "the snapshot may take {needed} bytes, and the pool has {} left",
                room.available
            ),
        ));
    }
    let before = allocation(place, host);
    let consistency = if memory || !is_up {
        let xml = snapshot_xml(spec.id, seen.bus, memory).map_err(|e| Fault::other(e.to_string()))?;
        host.create_snapshot(id, &xml, false)?;
        if memory {
            Consistency::Memory
        } else {
            Consistency::Filesystem
        }
    } else {
        take_disk(host, id, spec.id, seen.bus)?
    };
    Ok(SnapshotReport {
        disk_size: Some(Bytes(allocation(place, host).saturating_sub(before))),
        consistency,
    })
}

/// A record made by libvirt of a machine that was down has no record of ours that it was up.
fn recorded_cold(xml: &str) -> bool {
    !xml.contains(WHILE_RUNNING)
}

/// Said in the record of a snapshot that was taken without memory of a machine that ran.
const WHILE_RUNNING: &str = "taken while it ran";

fn take_disk(host: &Host, id: ResourceId, snapshot: SnapshotId, bus: Bus) -> Faulty<Consistency> {
    let domain = host
        .domain_xml(id, false)?
        .ok_or_else(|| Fault::new(FaultKind::NotFound, "the machine does not exist"))?;
    let (node, taken) = disk_node(host, id)?;
    let name = snapshot.to_string();
    let frozen = Frozen::new(host, id);
    let consistency = if frozen.is_some() {
        Consistency::Filesystem
    } else {
        Consistency::Crash
    };
    if !taken.contains(&name) {
        let arguments = json!({ "device": node, "name": name });
        monitor(host, id, "blockdev-snapshot-internal-sync", arguments)?;
    }
    drop(frozen);
    let seconds = jiff::Timestamp::now().as_second();
    let record = disk_snapshot_record_xml(snapshot, bus, seconds, WHILE_RUNNING, &domain);
    let recorded = record
        .map_err(|e| Fault::other(e.to_string()))
        .and_then(|xml| host.create_snapshot(id, &xml, true));
    if let Err(fault) = recorded {
        let arguments = json!({ "device": node, "name": name });
        let _ = monitor(host, id, "blockdev-snapshot-delete-internal-sync", arguments);
        return Err(fault);
    }
    Ok(consistency)
}

/// Goes back, and answers whether the machine then runs.
fn go_back(place: &Place, host: &Host, snapshot: SnapshotId) -> Faulty<bool> {
    let id = place.id;
    let (_, tag) = found(place, host)?;
    let name = snapshot.to_string();
    let xml = host
        .snapshot_xml(id, &name)?
        .ok_or_else(|| Fault::new(FaultKind::NotFound, format!("there is no snapshot {snapshot}")))?;
    let ran = snapshot_memory(&xml) == Some(true) || !recorded_cold(&xml);
    host.revert(id, &name)?;
    if ran && !place.is_up(host)? {
        host.start(id)?;
    }
    // Going back also brought the metadata of then.
    let tag = Tag {
        started: if ran {
            Some(crate::observe::now())
        } else {
            tag.started
        },
        ..tag
    };
    let xml = tag_xml(&tag).map_err(|e| Fault::other(e.to_string()))?;
    host.set_tag(id, &xml, METADATA_NAMESPACE, ran)?;
    Ok(ran)
}

#[async_trait]
impl Snapshots for Libvirt {
    async fn create(&self, call: &Call, workload: &Workload, spec: &SnapshotSpec) -> Result<SnapshotReport> {
        let inner = &self.inner;
        let doing = format!("taking a snapshot of machine {}", domain_name(workload.id));
        let turn = inner.turn(call, workload.id, &doing).await?;
        let (place, spec) = (inner.place(workload.id), spec.clone());
        let ram = workload.config.ram().unwrap_or_default();
        inner
            .connection
            .run(&doing, call.timeout, hold(&turn), move |host| {
                take(&place, host, &spec, ram)
            })
            .await
    }

    async fn restore(&self, call: &Call, workload: &Workload, snapshot: SnapshotId) -> Result<bool> {
        let inner = &self.inner;
        let doing = format!("going back to a snapshot of machine {}", domain_name(workload.id));
        let turn = inner.turn(call, workload.id, &doing).await?;
        let place = inner.place(workload.id);
        let generation = workload.generation;
        let runs = inner
            .connection
            .run(&doing, call.timeout, hold(&turn), move |host| {
                let runs = go_back(&place, host, snapshot)?;
                let (_, tag) = found(&place, host)?;
                let xml = tag_xml(&Tag { generation, ..tag }).map_err(|e| Fault::other(e.to_string()))?;
                host.set_tag(place.id, &xml, METADATA_NAMESPACE, runs)?;
                Ok(runs)
            })
            .await?;
        inner.observations.forget(workload.id);
        Ok(runs)
    }

    async fn delete(&self, call: &Call, id: ResourceId, snapshot: SnapshotId) -> Result<()> {
        let inner = &self.inner;
        let doing = format!("removing a snapshot of machine {}", domain_name(id));
        let turn = inner.turn(call, id, &doing).await?;
        let place = inner.place(id);
        inner
            .connection
            .run(&doing, call.timeout, hold(&turn), move |host| {
                match place.find(host)? {
                    Found::Domain(..) => {}
                    Found::Volumes | Found::Nothing | Found::Foreign(_) => return Ok(()),
                }
                let name = snapshot.to_string();
                if place.is_up(host)? {
                    // One that was begun and not recorded is only in the disk.
                    let (node, taken) = disk_node(host, id)?;
                    if host.snapshot_xml(id, &name)?.is_none() {
                        // The call that began it may have been killed while the guest was frozen.
                        if agent::is_frozen(host, id) {
                            let _ = agent::thaw(host, id);
                        }
                        if taken.contains(&name) {
                            let arguments = json!({ "device": node, "name": name });
                            monitor(host, id, "blockdev-snapshot-delete-internal-sync", arguments)?;
                        }
                        return Ok(());
                    }
                    if !taken.contains(&name) {
                        return host.delete_snapshot(id, &name, true);
                    }
                }
                host.delete_snapshot(id, &name, false)
            })
            .await
    }

    async fn list(&self, id: ResourceId) -> Result<Vec<SnapshotId>> {
        let place = self.inner.place(id);
        let names = self
            .inner
            .ask("listing snapshots", move |host| match place.find(host)? {
                Found::Domain(..) => host.snapshots(id),
                Found::Volumes | Found::Nothing | Found::Foreign(_) => Ok(Vec::new()),
            })
            .await?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }
}
