//! What runs virtual machines.

use std::sync::Arc;

use hwm_core::backend::Backend;
use hwm_core::testing::sim::Sim;
use hwm_core::validate::Rules;

use super::Place;
use crate::failure::Failure;
use crate::flags::Machines;

/// Chooses, and says what was taken and why. A catalogue of images becomes what `rules` allows.
pub(super) async fn choose(
    wanted: Machines,
    place: &Place<'_>,
    rules: &mut Rules,
    sim: Option<&Sim>,
) -> Result<Option<Arc<dyn Backend>>, Failure> {
    match wanted {
        Machines::None => {
            tracing::info!("machines: none, as asked");
            Ok(None)
        }
        Machines::Sim => {
            tracing::warn!("machines: SIMULATED, as asked; no machine is really run");
            Ok(sim.map(Sim::machines))
        }
        Machines::Libvirt => real::asked(place, rules).map(Some),
        Machines::Auto => real::auto(place, rules).await,
    }
}

#[cfg(feature = "libvirt")]
pub(crate) mod real {
    use std::path::PathBuf;
    use std::time::Duration;

    use hwm_core::id::NodeId;
    use hwm_libvirt::{ClearPassword, DomainType, Libvirt, LibvirtOptions};

    use super::super::{Candidate, take_what_answers};
    use super::{Arc, Backend, Failure, Place, Rules};
    use crate::flags;

    /// The folder of the data directory where downloads are kept until they are whole.
    pub(crate) const IMAGE_CACHE: &str = "image-cache";

    /// Where images come from and are kept; all else is the default.
    pub(crate) fn images(flags: &flags::Images, node: &NodeId, cache: PathBuf) -> LibvirtOptions {
        let path = || format!("/var/lib/libvirt/images/{}", flags.pool);
        LibvirtOptions {
            uri: flags.libvirt_uri.clone(),
            image_catalog: flags.image_catalog.clone(),
            pool: flags.pool.clone(),
            pool_path: flags.pool_path.clone().unwrap_or_else(path),
            cache_dir: cache,
            ..LibvirtOptions::new(node.as_str())
        }
    }

    pub(super) fn asked(place: &Place<'_>, rules: &mut Rules) -> Result<Arc<dyn Backend>, Failure> {
        tracing::info!(
            "machines: libvirt at {}, as asked",
            place.flags.images.libvirt_uri
        );
        libvirt(place, rules)
    }

    pub(super) async fn auto(
        place: &Place<'_>,
        rules: &mut Rules,
    ) -> Result<Option<Arc<dyn Backend>>, Failure> {
        let candidate = Candidate {
            kind: "machines",
            name: "libvirt",
            at: &place.flags.images.libvirt_uri,
            // It proves whether KVM works before it answers.
            patience: Duration::from_secs(15),
            advice: "start it, name it with --libvirt-uri, or try --machines sim",
        };
        take_what_answers(libvirt(place, rules)?, place, &candidate).await
    }

    fn libvirt(place: &Place<'_>, rules: &mut Rules) -> Result<Arc<dyn Backend>, Failure> {
        let flags = place.flags;
        let mut options = LibvirtOptions {
            bridge: flags.bridge.clone(),
            domain_type: match flags.domain_type {
                flags::DomainType::Auto => DomainType::Auto,
                flags::DomainType::Kvm => DomainType::Kvm,
                flags::DomainType::Qemu => DomainType::Qemu,
            },
            ..images(&flags.images, place.node, place.data.folder(IMAGE_CACHE)?)
        };
        if let Some(pattern) = &flags.vlan_bridge {
            options.vlan_bridge.clone_from(pattern);
        }
        if flags.clear_password {
            options.clear_password = ClearPassword::EraseAfterBoot;
        }
        let backend = Libvirt::new(options).map_err(|source| Failure::Backend {
            what: "libvirt",
            source: Box::new(source),
        })?;
        let images = backend.catalog().images().iter();
        let names = images.flat_map(|image| std::iter::once(&image.name).chain(&image.aliases));
        rules.os_images = names.map(|name| name.as_str().to_owned()).collect();
        Ok(Arc::new(backend))
    }
}

#[cfg(not(feature = "libvirt"))]
mod real {
    use super::{Arc, Backend, Failure, Place, Rules};

    pub(super) fn asked(_: &Place<'_>, _: &mut Rules) -> Result<Arc<dyn Backend>, Failure> {
        Err(Failure::Choice {
            what: "this server was built without libvirt: build it with --features libvirt".to_owned(),
        })
    }

    pub(super) async fn auto(_: &Place<'_>, _: &mut Rules) -> Result<Option<Arc<dyn Backend>>, Failure> {
        tracing::info!(
            "machines: none, because this server was built without libvirt; build it with --features libvirt, \
             or try --machines sim"
        );
        Ok(None)
    }
}
