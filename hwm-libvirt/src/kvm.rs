//! KVM or emulation. That `/dev/kvm` is there proves nothing: on some hosts guests then hang, so KVM is tried.

use std::time::{Duration, Instant};

use hwm_core::backend::Result;

use crate::connection::{Connection, Fault, Host};
use crate::domain::{Hypervisor, kvm_probe_xml};
use crate::options::DomainType;

/// How long the firmware of the trial machine may take to say a word; it takes a tenth of a second.
const TRIAL: Duration = Duration::from_secs(10);

/// What domains run on, as the operator says or as a trial shows.
pub(crate) async fn choose(connection: &Connection, wanted: DomainType) -> Result<Hypervisor> {
    match wanted {
        DomainType::Kvm => return Ok(Hypervisor::Kvm),
        DomainType::Qemu => return Ok(Hypervisor::Qemu),
        DomainType::Auto => {}
    }
    let tried = connection
        .run("trying KVM", TRIAL * 3, None, |host| {
            if host.domain_capabilities(Hypervisor::Kvm.as_str())?.is_none() {
                return Ok(Err("libvirt's host has no KVM".to_owned()));
            }
            Ok(trial(host).map_err(|fault| fault.message))
        })
        .await?;
    Ok(match tried {
        Ok(()) => {
            tracing::info!("machines run on KVM: a trial machine started");
            Hypervisor::Kvm
        }
        Err(reason) => {
            tracing::warn!(reason, "machines are emulated, which is slow");
            Hypervisor::Qemu
        }
    })
}

/// Starts a machine without a disk and waits for its firmware to write on the serial line.
fn trial(host: &Host) -> std::result::Result<(), Fault> {
    let name = format!("hwm-kvm-trial-{}", uuid::Uuid::new_v4().simple());
    let xml = kvm_probe_xml(&name).map_err(|e| Fault::other(e.to_string()))?;
    let uuid = host.start_transient(&xml)?;
    let spoke = host.open_transient_console(uuid).and_then(|console| {
        let deadline = Instant::now() + TRIAL;
        let mut buffer = [0; 64];
        let spoke = loop {
            match console.receive(&mut buffer) {
                Ok(Some(n)) if n > 0 => break Ok(()),
                Err(fault) => break Err(fault),
                Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
                Ok(_) => break Err(Fault::other("a trial machine on KVM did not start")),
            }
        };
        console.close();
        spoke
    });
    let _ = host.destroy_transient(uuid);
    spoke
}
