//! Makes and unmakes MIG slices, so that after a crash at any point ours is found again.
//!
//! ```text
//! journal: intended ─ create GPU instance ─ journal: made ─ create compute instance ─ journal: made, uuid
//!                                                        unmake: compute instance ─ GPU instance ─ forget
//! ```
//!
//! An intent holds the boot and the instances that were there before. What is found at its place later is ours
//! when the boot is the same, exactly one instance came since that no entry explains, and it is at that place
//! with that profile. Anything else that is there is in doubt: the slots are out of use, and it is reported.

use std::thread;
use std::time::{Duration, Instant};

use hwm_core::accelerator::{Attachment, DeviceGrant};
use hwm_core::backend::{BackendError, BackendErrorKind};
use hwm_core::config::ResourceType;
use hwm_core::id::{GpuUuid, ResourceId};
use nvml_wrapper::error::NvmlError;

use crate::engine::{Answer, Engine, unwritten};
use crate::journal::{SliceEntry, SliceStage};
use crate::nvml::failed;
use crate::nvml::ffi;
use crate::nvml::read::SeenSlice;

/// A slice to make or unmake.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) card: String,
    pub(crate) profile: String,
    pub(crate) start: u32,
    pub(crate) size: u32,
}

impl Wanted {
    fn label(&self) -> String {
        format!("{} at slot {} of {}", self.profile, self.start, self.card)
    }

    const fn overlaps(&self, start: u32, size: u32) -> bool {
        self.start < start + size && start < self.start + self.size
    }
}

impl Engine {
    /// Makes a slice for a workload, or finds the one that was made before.
    pub(crate) fn make(
        &mut self,
        owner: ResourceId,
        generation: u64,
        wanted: &Wanted,
        to: ResourceType,
    ) -> Answer<DeviceGrant> {
        let doing = format!("making {}", wanted.label());
        self.fence(owner, generation)?;
        if let Some(quarantine) = self.quarantines.get(&wanted.card) {
            return Err(BackendError::new(
                BackendErrorKind::Conflict,
                doing,
                format!("the card is out of use: {}", quarantine.reason),
            ));
        }
        let slices = self.reread(&wanted.card)?;
        let key = (wanted.card.clone(), wanted.start);
        self.settle(&key, &slices, &doing)?;
        if let Some(entry) = self.slices.get(&key).cloned() {
            if let SliceStage::Doubtful { reason } = &entry.stage {
                return Err(BackendError::new(
                    BackendErrorKind::Conflict,
                    doing,
                    reason.clone(),
                ));
            }
            if entry.owner != owner {
                let message = format!("the slice there is still {}'s", entry.owner);
                return Err(BackendError::new(BackendErrorKind::Conflict, doing, message));
            }
            if let Some(found) = slices.iter().find(|s| self.is_ours(&entry, s)) {
                let (id, stage) = (found.instance.id, entry.stage.clone());
                if entry.name == wanted.profile {
                    let entry = SliceEntry {
                        generation,
                        stage,
                        ..entry
                    };
                    return self.complete(entry, id, to, &doing);
                }
            }
        }
        let in_the_way = slices
            .iter()
            .find(|s| wanted.overlaps(s.instance.start, s.instance.size));
        if let Some(slice) = in_the_way {
            return Err(BackendError::new(
                BackendErrorKind::Conflict,
                doing,
                self.what_is_there(slice, wanted),
            ));
        }
        self.switch_on(&wanted.card, &doing)?;
        let entry = self.intend(owner, generation, wanted, &doing)?;
        let made = self.with_device(&wanted.card, "making a GPU instance on", |s, d| {
            ffi::create_instance(s.nvml(), d, entry.profile, entry.start, entry.size)
        });
        match made {
            Ok(()) => {
                // What stands at the place now is what was just made. Should it not be seen, the intent stays, and
                // is settled at the next look.
                let slices = self.reread(&wanted.card)?;
                let place = (entry.profile, entry.start, entry.size);
                let made = slices
                    .iter()
                    .map(|s| &s.instance)
                    .find(|i| (i.profile, i.start, i.size) == place);
                let Some(id) = made.map(|i| i.id) else {
                    return Err(BackendError::new(
                        BackendErrorKind::Failed,
                        doing,
                        "NVML made it and does not list it",
                    ));
                };
                let entry = SliceEntry {
                    stage: SliceStage::Made {
                        instance: id,
                        uuid: None,
                    },
                    ..entry
                };
                self.record(&entry, &doing)?;
                self.complete(entry, id, to, &doing)
            }
            Err(error) => Err(self.not_made(entry, error)),
        }
    }

    fn what_is_there(&self, slice: &SeenSlice, wanted: &Wanted) -> String {
        let i = &slice.instance;
        let ours = self
            .slices
            .get(&(wanted.card.clone(), i.start))
            .filter(|e| self.is_ours(e, slice));
        match ours {
            Some(entry) => format!("instance {} at slot {} is {}'s slice", i.id, i.start, entry.owner),
            None => format!(
                "instance {} at slot {} is there, which hwm did not make",
                i.id, i.start
            ),
        }
    }

    /// Switches MIG on where that is wanted and live; both of NVML's answers must be good.
    fn switch_on(&mut self, card: &str, doing: &str) -> Answer<()> {
        let Some(seen) = self.seen(card) else {
            return Ok(());
        };
        let refuse = |message: &str| Err(BackendError::new(BackendErrorKind::Unsupported, doing, message));
        match seen.mig {
            Some(true) => return Ok(()),
            None => return refuse("the card has no MIG"),
            Some(false) if !seen.live => {
                return refuse("MIG is off, and switching it on needs a reset of the card");
            }
            Some(false) if !self.options.switch_mig => {
                return refuse("MIG is off, and hwm may not switch it on");
            }
            Some(false) => {}
        }
        self.with_device(card, "switching MIG on for", |_, d| {
            match d.set_mig_mode(true)? {
                0 => Ok(()),
                status => Err(NvmlError::from(status)),
            }
        })?;
        self.forget_facts(card);
        self.reread(card)?;
        if self.seen(card).is_some_and(|s| s.mig == Some(true)) {
            return Ok(());
        }
        refuse("NVML switched MIG on and the card says that it is off")
    }

    fn intend(
        &mut self,
        owner: ResourceId,
        generation: u64,
        wanted: &Wanted,
        doing: &str,
    ) -> Answer<SliceEntry> {
        let seen = self.seen(&wanted.card);
        let geometry = seen.and_then(|s| s.geometry.clone());
        let profile = geometry
            .as_ref()
            .and_then(|g| g.profiles().get(g.named(&wanted.profile)?));
        let Some(profile) = profile.filter(|p| u32::from(p.size) == wanted.size) else {
            return Err(BackendError::new(
                BackendErrorKind::Invalid,
                doing,
                "the card has no such profile",
            ));
        };
        let before = seen.map(|s| {
            s.instances
                .iter()
                .map(|s| (s.instance.profile, s.instance.start))
                .collect()
        });
        let entry = SliceEntry {
            card: wanted.card.clone(),
            profile: profile.id,
            name: profile.name.clone(),
            start: wanted.start,
            size: wanted.size,
            owner,
            generation,
            boot: self.boot.clone(),
            before: before.unwrap_or_default(),
            stage: SliceStage::Intended,
            vgpu: None,
        };
        self.record(&entry, doing)?;
        Ok(entry)
    }

    /// Gives an instance what it lacks to be a slice, and grants it.
    fn complete(
        &mut self,
        mut entry: SliceEntry,
        id: u32,
        to: ResourceType,
        doing: &str,
    ) -> Answer<DeviceGrant> {
        let card = entry.card.clone();
        let slices = self.reread(&card)?;
        let found = slices
            .iter()
            .find(|s| s.instance.id == id && s.instance.start == entry.start);
        let bare = found.is_some_and(|s| s.instance.compute.is_empty());
        // A machine's guest makes its own compute instances.
        let for_machine = to == ResourceType::VirtualMachine;
        if bare && !for_machine {
            let made = self.with_device(&card, "making a compute instance on", |s, d| {
                ffi::create_compute(s.nvml(), d, id)
            });
            if let Err(error) = made {
                // It is ours beyond doubt. Where it will not go now, the release that follows tries again.
                let gone = self.with_device(&card, "undoing a GPU instance on", |s, d| {
                    ffi::destroy_instance(s.nvml(), d, id)
                });
                if gone.is_ok() {
                    self.forget(&entry);
                }
                self.refresh();
                return Err(error);
            }
        }
        let uuid = self
            .reread(&card)?
            .into_iter()
            .find(|s| s.instance.id == id)
            .and_then(|s| s.uuid);
        if uuid.is_none() && !for_machine {
            return Err(BackendError::new(
                BackendErrorKind::Failed,
                doing,
                "the slice is made and NVML does not list it",
            ));
        }
        entry.stage = SliceStage::Made {
            instance: id,
            uuid: uuid.clone(),
        };
        self.record(&entry, doing)?;
        let attachment = if for_machine {
            self.attach_vgpu(&mut entry, doing)?
        } else {
            Attachment::Runtime
        };
        let memory = self.seen(&card).and_then(|s| {
            let geometry = s.geometry.as_ref()?;
            Some(geometry.profiles().iter().find(|p| p.id == entry.profile)?.memory)
        });
        self.publish();
        Ok(DeviceGrant {
            card: GpuUuid::new(&*card),
            uuid: uuid.unwrap_or_else(|| format!("{card}/{}@{}", entry.name, entry.start)),
            memory,
            attachment,
        })
    }

    /// Unmakes a workload's slice. What is not provably ours stays.
    pub(crate) fn unmake(
        &mut self,
        owner: ResourceId,
        generation: u64,
        wanted: &Wanted,
        limit: Duration,
    ) -> Answer<()> {
        let doing = format!("removing {}", wanted.label());
        self.fence(owner, generation)?;
        let key = (wanted.card.clone(), wanted.start);
        let Some(entry) = self.slices.get(&key).filter(|e| e.owner == owner) else {
            return Ok(());
        };
        if entry.boot != self.boot {
            // Instances do not outlive a boot. What is there now is somebody else's.
            let entry = entry.clone();
            self.remove(&entry, &doing)?;
            self.publish();
            return Ok(());
        }
        let slices = self.reread(&wanted.card)?;
        self.settle(&key, &slices, &doing)?;
        let Some(mut entry) = self.slices.get(&key).cloned() else {
            return Ok(());
        };
        if let SliceStage::Doubtful { reason } = &entry.stage {
            return Err(BackendError::new(BackendErrorKind::Failed, doing, reason.clone()));
        }
        if entry.vgpu.is_some() {
            self.detach_vgpu(&mut entry, &doing)?;
        }
        let deadline = Instant::now() + limit;
        loop {
            let slices = self.reread(&wanted.card)?;
            let Some(found) = slices.iter().find(|s| self.is_ours(&entry, s)) else {
                break;
            };
            let id = found.instance.id;
            let gone = self.with_device(&wanted.card, "removing an instance of", |s, d| {
                ffi::destroy_compute(s.nvml(), d, id)?;
                // From here on its UUID is gone, so the entry must not ask for it.
                Ok(())
            });
            if gone.is_ok() {
                entry.stage = SliceStage::Made {
                    instance: id,
                    uuid: None,
                };
                self.record(&entry, &doing)?;
            }
            let gone = gone.and_then(|()| {
                self.with_device(&wanted.card, "removing an instance of", |s, d| {
                    ffi::destroy_instance(s.nvml(), d, id)
                })
            });
            match gone {
                Ok(()) => {}
                // What ran in it may still be ending.
                Err(error) if error.kind == BackendErrorKind::Conflict && Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(100));
                }
                Err(mut error) => {
                    if error.kind == BackendErrorKind::Conflict {
                        error.message = format!("{}: {}", error.message, self.who_uses(&wanted.card, id));
                    }
                    self.refresh();
                    return Err(error);
                }
            }
        }
        self.remove(&entry, &doing)?;
        self.publish();
        Ok(())
    }

    fn who_uses(&mut self, card: &str, instance: u32) -> String {
        let running = self.with_device(card, "asking who uses", |_, d| d.running_compute_processes());
        let pids: Vec<String> = running
            .unwrap_or_default()
            .into_iter()
            .filter(|p| p.gpu_instance_id.is_none_or(|i| i == instance))
            .map(|p| p.pid.to_string())
            .collect();
        if pids.is_empty() {
            "nobody can be named".to_owned()
        } else {
            format!("held by pid {}", pids.join(", "))
        }
    }

    pub(crate) fn record(&mut self, entry: &SliceEntry, doing: &str) -> Answer<()> {
        self.journal.put(entry).map_err(|e| unwritten(doing, &e))?;
        self.slices
            .insert((entry.card.clone(), entry.start), entry.clone());
        Ok(())
    }

    pub(crate) fn remove(&mut self, entry: &SliceEntry, doing: &str) -> Answer<()> {
        self.journal.remove(entry).map_err(|e| unwritten(doing, &e))?;
        self.slices.remove(&(entry.card.clone(), entry.start));
        Ok(())
    }

    /// Removes an entry of which nothing is left; where that fails, the next look settles it again.
    pub(crate) fn forget(&mut self, entry: &SliceEntry) {
        if let Err(error) = self.remove(entry, "forgetting a slice") {
            tracing::warn!(%error, card = entry.card, "an entry outlives its slice");
        }
    }
}

/// Grants an instance that hwm did not make and may hand out.
pub(crate) fn existing(engine: &mut Engine, card: &str, uuid: &str) -> Answer<DeviceGrant> {
    let slices = engine.reread(card)?;
    let doing = format!("granting {uuid}");
    let Some(slice) = slices.iter().find(|s| s.uuid.as_deref() == Some(uuid)) else {
        return Err(BackendError::new(
            BackendErrorKind::NotFound,
            doing,
            "the instance is gone",
        ));
    };
    let memory = engine.seen(card).and_then(|s| {
        let geometry = s.geometry.as_ref()?;
        Some(
            geometry
                .profiles()
                .iter()
                .find(|p| p.id == slice.instance.profile)?
                .memory,
        )
    });
    Ok(DeviceGrant {
        card: GpuUuid::new(card),
        uuid: uuid.to_owned(),
        memory,
        attachment: Attachment::Runtime,
    })
}

/// Grants a whole card to a container.
pub(crate) fn whole(engine: &mut Engine, card: &str) -> Answer<DeviceGrant> {
    let doing = format!("granting {card}");
    if let Some(quarantine) = engine.quarantines.get(card) {
        return Err(BackendError::new(
            BackendErrorKind::Conflict,
            doing,
            quarantine.reason.clone(),
        ));
    }
    engine.reread(card)?;
    let seen = engine.seen(card);
    if seen.is_some_and(|s| s.mig == Some(true)) {
        return Err(failed(doing, &NvmlError::InUse)).map_err(|mut e: BackendError| {
            e.message = "the card is in MIG mode, so no container can use the whole of it".to_owned();
            e
        });
    }
    let memory = seen.and_then(|s| s.memory);
    Ok(DeviceGrant {
        card: GpuUuid::new(card),
        uuid: card.to_owned(),
        memory,
        attachment: Attachment::Runtime,
    })
}
