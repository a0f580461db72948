//! Changes to a machine while it runs: CPUs and memory up to what it was started for, and a larger disk.

use async_trait::async_trait;
use hwm_core::backend::{BackendError, BackendErrorKind, Call, LiveUpdate, Result, Workload};
use hwm_core::config::{Config, MachineConfig};

use crate::backend::Libvirt;
use crate::catalog::Bus;
use crate::connection::{Fault, FaultKind};
use crate::domain::{METADATA_NAMESPACE, Tag, disk_name, domain_name, tag_xml};
use crate::lifecycle::Found;
use crate::machine;
use crate::options::LibvirtOptions;
use crate::turns::hold;

/// Whether the change can be made while the machine runs. What was applied holds no secrets, only marks of them.
fn is_live(from: &Config, to: &Config, options: &LibvirtOptions) -> bool {
    let (mut from, mut to) = (from.clone(), to.clone());
    from.forget_secrets();
    to.forget_secrets();
    match (&from, &to) {
        (Config::Machine(from), Config::Machine(to)) => amounts_only(from, to, options),
        (Config::Machine(_) | Config::Container(_) | Config::Inference(_), _) => false,
    }
}

fn amounts_only(from: &MachineConfig, to: &MachineConfig, options: &LibvirtOptions) -> bool {
    let adjusted = MachineConfig {
        vcpus: to.vcpus,
        ram: to.ram,
        disk: to.disk,
        ..from.clone()
    };
    // What the machine has at present, it was started for at least.
    let most_memory = options.live_memory.map_or(from.ram, |most| most.max(from.ram));
    adjusted == *to
        && to.vcpus <= from.vcpus.max(options.live_vcpus)
        && to.ram <= most_memory
        && to.disk >= from.disk
}

#[async_trait]
impl LiveUpdate for Libvirt {
    fn is_live(&self, from: &Config, to: &Config) -> bool {
        is_live(from, to, &self.inner.options)
    }

    async fn update(&self, call: &Call, workload: &Workload) -> Result<()> {
        let inner = &self.inner;
        let id = workload.id;
        let doing = format!("changing machine {}", domain_name(id));
        let turn = inner.turn(call, id, &doing).await?;
        let config = machine::machine(workload)
            .map_err(|f| f.into_backend(&doing))?
            .clone();
        let (place, generation) = (inner.place(id), workload.generation);
        inner
            .connection
            .run(&doing, call.timeout, hold(&turn), move |host| {
                let (seen, tag) = match place.find(host)? {
                    Found::Domain(seen, tag) => (seen, tag),
                    Found::Volumes | Found::Nothing | Found::Foreign(_) => {
                        return Err(Fault::new(FaultKind::NotFound, "the machine does not exist"));
                    }
                };
                if !place.is_up(host)? {
                    return Err(Fault::new(FaultKind::NotRunning, "the machine does not run"));
                }
                host.set_vcpus(id, config.vcpus)?;
                host.set_memory(id, config.ram.0 >> 10)?;
                let disk = host.volume_facts(&place.pool, &disk_name(id))?;
                if disk.is_some_and(|facts| facts.capacity < config.disk.0) {
                    let target = match seen.bus {
                        Bus::Virtio => "vda",
                        Bus::Sata => "sda",
                    };
                    host.resize_disk(id, target, config.disk.0)?;
                }
                let tag = tag_xml(&Tag { generation, ..tag }).map_err(|e| Fault::other(e.to_string()))?;
                host.set_tag(id, &tag, METADATA_NAMESPACE, true)
            })
            .await
            .map_err(|error| match error.kind {
                // The guest holds on to a CPU, or the machine was started for less.
                BackendErrorKind::Invalid | BackendErrorKind::Failed => BackendError::new(
                    BackendErrorKind::Unsupported,
                    error.doing,
                    format!("{}; the change applies at the next start", error.message),
                ),
                _ => error,
            })?;
        inner.observations.forget(id);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use hwm_core::config::{CloudInit, IpMode, NetworkConfig, NetworkKind};
    use hwm_core::secret::Secret;
    use hwm_core::units::Bytes;

    use super::*;

    fn config() -> MachineConfig {
        MachineConfig {
            os_image: "debian-12".into(),
            vcpus: 2,
            ram: Bytes::from_mb(1024),
            disk: Bytes::from_whole_gb(10),
            gpu_config: None,
            network_config: NetworkConfig {
                mode: NetworkKind::BridgeVlan,
                ip_mode: IpMode::Dhcp,
                ip_address: None,
                netmask: None,
                gateway: None,
                vlan_id: None,
                dns: Vec::new(),
            },
            cloud_init: None,
        }
    }

    #[test]
    fn only_amounts_within_the_maximum_are_changed_live() {
        let options = LibvirtOptions::new("n");
        let live = |change: &dyn Fn(&mut MachineConfig)| {
            let mut to = config();
            change(&mut to);
            amounts_only(&config(), &to, &options)
        };
        assert!(live(&|c| c.vcpus = 8));
        assert!(live(&|c| c.vcpus = 1));
        assert!(live(&|c| c.ram = Bytes::from_mb(512)));
        assert!(live(&|c| c.disk = Bytes::from_whole_gb(20)));
        assert!(!live(&|c| c.vcpus = 9));
        assert!(!live(&|c| c.ram = Bytes::from_mb(2048)));
        assert!(!live(&|c| c.disk = Bytes::from_whole_gb(5)));
        assert!(!live(&|c| c.os_image = "debian-11".into()));
        assert!(!live(&|c| c.network_config.vlan_id = Some(5)));
    }

    #[test]
    fn a_password_is_no_difference_to_the_mark_of_it() {
        let mut to = config();
        to.cloud_init = Some(CloudInit {
            password: Some(Secret::new("hunter2")),
            ..CloudInit::default()
        });
        let mut from = Config::Machine(to.clone());
        from.forget_secrets();
        to.vcpus = 4;
        assert!(is_live(&from, &Config::Machine(to), &LibvirtOptions::new("n")));
    }
}
