//! Slices for machines: a virtual function that is given a vGPU type, or a mediated device.
//!
//! Which of the two is told from sysfs, not from the card. Both keep to the type whose name ends in the
//! slice's own size, such as `NVIDIA A100-1-5C` for 1g.5gb.

use std::fs;

use hwm_core::accelerator::Attachment;
use hwm_core::backend::{BackendError, BackendErrorKind};

use crate::engine::{Answer, Engine};
use crate::journal::{SliceEntry, Vgpu};
use crate::sysfs;

impl Engine {
    /// Gives a slice a way into a machine, or finds the one that it has.
    pub(crate) fn attach_vgpu(&mut self, entry: &mut SliceEntry, doing: &str) -> Answer<Attachment> {
        let address = self
            .card(&entry.card)
            .map(|c| c.address.clone())
            .unwrap_or_default();
        match &entry.vgpu {
            Some(Vgpu::Function(function)) if self.current_type(function).is_some() => {
                return Ok(Attachment::VirtualFunction {
                    function: function.clone(),
                });
            }
            Some(Vgpu::Mdev(uuid)) if self.host.mdev(uuid).exists() => {
                return Ok(Attachment::Mdev { uuid: uuid.clone() });
            }
            Some(_) | None => {}
        }
        let suffix = suffix(&entry.name);
        for function in self.host.virtual_functions(&address) {
            let folder = self.host.device(&function).join("nvidia");
            let creatable = sysfs::text(&folder.join("creatable_vgpu_types")).unwrap_or_default();
            let Some(id) = creatable.lines().find_map(|line| type_id(line, &suffix)) else {
                continue;
            };
            if self.current_type(&function).is_some() {
                continue;
            }
            // Remembered first: a function with a type is given back by whoever is remembered for it.
            entry.vgpu = Some(Vgpu::Function(function.clone()));
            self.record(entry, doing)?;
            sysfs::write(&folder.join("current_vgpu_type"), &id)
                .map_err(|e| refused(doing, &function, &e))?;
            return Ok(Attachment::VirtualFunction { function });
        }
        self.attach_mdev(entry, &address, &suffix, doing)
    }

    fn attach_mdev(
        &mut self,
        entry: &mut SliceEntry,
        address: &str,
        suffix: &str,
        doing: &str,
    ) -> Answer<Attachment> {
        // Ampere and newer offer mediated devices on virtual functions, older cards on the card itself.
        let parents = self
            .host
            .virtual_functions(address)
            .into_iter()
            .chain([address.to_owned()]);
        for parent in parents {
            let types = fs::read_dir(self.host.device(&parent).join("mdev_supported_types"));
            for kind in types
                .into_iter()
                .flatten()
                .filter_map(Result::ok)
                .map(|e| e.path())
            {
                let name = sysfs::text(&kind.join("name")).unwrap_or_default();
                let free = sysfs::text(&kind.join("available_instances")).and_then(|n| n.parse::<u32>().ok());
                if !name.ends_with(suffix) || free.unwrap_or(0) == 0 {
                    continue;
                }
                // The resource's own id: a UUID, and the same one when this is done again.
                let uuid = entry.owner.to_string();
                entry.vgpu = Some(Vgpu::Mdev(uuid.clone()));
                self.record(entry, doing)?;
                sysfs::write(&kind.join("create"), &uuid).map_err(|e| refused(doing, &parent, &e))?;
                return Ok(Attachment::Mdev { uuid });
            }
        }
        let message =
            format!("no virtual function or mediated device of the card takes a vGPU type …{suffix} now");
        Err(BackendError::new(BackendErrorKind::Unsupported, doing, message))
    }

    /// Takes a slice's way into a machine back.
    pub(crate) fn detach_vgpu(&mut self, entry: &mut SliceEntry, doing: &str) -> Answer<()> {
        match &entry.vgpu {
            Some(Vgpu::Function(function)) if self.current_type(function).is_some() => {
                let file = self.host.device(function).join("nvidia/current_vgpu_type");
                sysfs::write(&file, "0").map_err(|e| refused(doing, function, &e))?;
            }
            Some(Vgpu::Mdev(uuid)) if self.host.mdev(uuid).exists() => {
                let file = self.host.mdev(uuid).join("remove");
                sysfs::write(&file, "1").map_err(|e| refused(doing, uuid, &e))?;
            }
            Some(_) | None => {}
        }
        entry.vgpu = None;
        self.record(entry, doing)
    }

    fn current_type(&self, function: &str) -> Option<String> {
        let file = self.host.device(function).join("nvidia/current_vgpu_type");
        sysfs::text(&file).filter(|t| !t.is_empty() && t != "0")
    }
}

fn refused(doing: &str, what: &str, error: &std::io::Error) -> BackendError {
    BackendError::new(
        BackendErrorKind::Failed,
        doing,
        format!("the kernel refused it for {what}: {error}"),
    )
}

/// What the name of a profile's vGPU type ends in: `-1-5C` for `1g.5gb`, `-1-5CME` with media engines.
fn suffix(profile: &str) -> String {
    let (plain, attributes) = profile.split_at(profile.find(['+', '-']).unwrap_or(profile.len()));
    let (slices, memory) = plain.split_once("g.").unwrap_or((plain, ""));
    let media = if attributes == "+me" { "ME" } else { "" };
    format!("-{slices}-{}C{media}", memory.trim_end_matches("gb"))
}

/// The number of a type in a line such as `558 : NVIDIA A100-1-5C`.
fn type_id(line: &str, suffix: &str) -> Option<String> {
    let (id, name) = line.split_once(':')?;
    let id = id.trim();
    (name.trim().ends_with(suffix) && id.bytes().all(|b| b.is_ascii_digit()) && !id.is_empty())
        .then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_has_a_vgpu_type() {
        assert_eq!(suffix("1g.5gb"), "-1-5C");
        assert_eq!(suffix("1g.10gb+me"), "-1-10CME");
        assert_eq!(type_id("558 : NVIDIA A100-1-5C", "-1-5C").as_deref(), Some("558"));
        assert_eq!(type_id("559 : NVIDIA A100-1-5CME", "-1-5C"), None);
        assert_eq!(type_id("ID    : vGPU Name", "-1-5C"), None);
    }
}
