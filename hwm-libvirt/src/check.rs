//! What only this host knows of a config: its images, its bridges, what its QEMU can do.

use hwm_core::backend::{Result, Workload};
use hwm_core::config::MachineConfig;
use hwm_core::error::Violation;

use crate::backend::Inner;
use crate::catalog::{Firmware, ImageSource};
use crate::domain::{HostCapabilities, host_capabilities};
use crate::machine;

impl Inner {
    pub(crate) async fn check_machine(
        &self,
        planned: &Workload,
        config: &MachineConfig,
        violations: &mut Vec<Violation>,
    ) -> Result<()> {
        let Some(image) = self.images.catalog().find(&config.os_image).cloned() else {
            let known: Vec<&str> = self
                .images
                .catalog()
                .images()
                .iter()
                .map(|i| i.name.as_str())
                .collect();
            violations.push(Violation::new(
                "config.osImage",
                format!(
                    "this node has no image {:?}; it has {}",
                    config.os_image,
                    known.join(", ")
                ),
            ));
            return Ok(());
        };
        self.pool().await?;
        if image.source == ImageSource::Operator && self.images.known(image.name.as_str()).is_none() {
            violations.push(Violation::new(
                "config.osImage",
                format!(
                    "image {} has to be supplied by the operator of this node",
                    image.name
                ),
            ));
        }
        if let Some(base) = self.images.known(image.name.as_str())
            && base.virtual_size > config.disk.0
        {
            violations.push(Violation::new(
                "config.diskGB",
                format!(
                    "image {} needs at least {}",
                    image.name,
                    base.virtual_size.div_ceil(1 << 30)
                ),
            ));
        }
        if let Err(error) = machine::seed(planned.id, &planned.name, config, &image, &self.options) {
            violations.push(machine::seed_violation(config, &error));
        }
        if let Err(refusal) = self
            .network()
            .await?
            .plug(&self.options, config.network_config.vlan_id)
        {
            let field = match refusal {
                crate::network::Refusal::NoBridge(_) => "config.networkConfig.mode",
                crate::network::Refusal::NoVlan { .. } => "config.networkConfig.vlanId",
            };
            violations.push(Violation::new(field, refusal.to_string()));
        }
        if image.firmware == Firmware::Uefi || image.tpm {
            let hypervisor = self.hypervisor().await?;
            let asked = self.ask("asking what QEMU can do", move |host| {
                host.domain_capabilities(hypervisor.as_str())
            });
            let can: HostCapabilities = asked
                .await?
                .as_deref()
                .and_then(host_capabilities)
                .unwrap_or_default();
            if image.firmware == Firmware::Uefi && !can.firmware.contains("efi") {
                violations.push(Violation::new(
                    "config.osImage",
                    "it needs UEFI: install ovmf on the host",
                ));
            }
            if image.tpm && !can.tpm {
                violations.push(Violation::new(
                    "config.osImage",
                    "it needs a TPM: install swtpm on the host",
                ));
            }
        }
        Ok(())
    }
}
