//! Machines on the lab's libvirt, each run with an owner label and a pool of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use hwm_core::backend::Backend;
use hwm_core::validate::Rules;
use hwm_libvirt::{DomainType, Libvirt, LibvirtOptions};
use serde_json::{Value, json};

use crate::common::daemons::{domains, pool, variable, virsh, volumes};
use crate::engine::Seen;

pub(crate) fn backend(data: &Path, node: &str) -> Arc<dyn Backend> {
    // Nothing boots from it, and so it takes no CPU.
    let image = data.join("empty.img");
    std::fs::File::create(&image).unwrap().set_len(1 << 20).unwrap();
    let catalog = data.join("images.toml");
    let entry = format!(
        "[[image]]\nname = \"empty\"\nformat = \"raw\"\nsource = \"file://{}\"\nuser = \"root\"\n",
        image.display()
    );
    std::fs::write(&catalog, entry).unwrap();
    let mut options = LibvirtOptions::new(node);
    options.uri = variable("HWM_TEST_LIBVIRT_URI");
    options.bridge = variable("HWM_TEST_BRIDGE");
    options.domain_type = DomainType::parse(&variable("HWM_TEST_DOMAIN_TYPE")).unwrap();
    options.image_catalog = Some(catalog);
    options.pool = pool(node);
    options.pool_path = format!("/var/lib/libvirt/images/{}", pool(node));
    options.cache_dir = data.join("cache");
    Arc::new(Libvirt::new(options).unwrap())
}

pub(crate) fn rules() -> Rules {
    Rules {
        os_images: BTreeSet::from(["empty".to_owned()]),
        ..Rules::default()
    }
}

pub(crate) fn body() -> Value {
    json!({
        "name": "crash",
        "resourceType": "virtual-machine",
        "config": {
            "type": "virtual-machine", "osImage": "empty", "vcpus": 1, "ramMB": 1024, "diskGB": 10,
            "networkConfig": { "mode": "bridge-vlan", "ipMode": "dhcp" },
        },
    })
}

/// The domains that carry the owner label, by resource.
pub(crate) fn found(node: &str) -> BTreeMap<String, Seen> {
    let mut found = BTreeMap::new();
    for name in domains(node) {
        let state = virsh(&["domstate", &name]);
        let xml = virsh(&["dumpxml", "--inactive", &name]);
        let memory = xml
            .split("<currentMemory unit='KiB'>")
            .nth(1)
            .and_then(|rest| rest.split('<').next());
        let seen = Seen {
            runs: state.trim() == "running",
            memory_mb: memory.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or_default() >> 10,
        };
        found.insert(name.trim_start_matches("hwm-").to_owned(), seen);
    }
    found
}

/// Volumes of resources that are not among `recorded`: disks, seeds, NVRAM.
pub(crate) fn leftovers(node: &str, recorded: &BTreeSet<String>) -> Vec<String> {
    let mut volumes = volumes(node);
    volumes.retain(|name| !recorded.iter().any(|id| name.contains(id.as_str())));
    volumes
}
