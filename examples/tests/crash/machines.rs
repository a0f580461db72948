//! Machines on the lab's libvirt, each run with an owner label and a pool of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use hwm_core::backend::Backend;
use hwm_core::validate::Rules;
use hwm_libvirt::{DomainType, Libvirt, LibvirtOptions};
use serde_json::{Value, json};

use crate::engine::{Seen, variable};

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

/// Volumes of resources that are not among `recorded`: disks, seeds, NVRAM. Images stay for the next machine.
pub(crate) fn leftovers(node: &str, recorded: &BTreeSet<String>) -> Vec<String> {
    volumes(node)
        .into_iter()
        .filter(|name| {
            !name.starts_with("hwm-image-") && !recorded.iter().any(|id| name.contains(id.as_str()))
        })
        .collect()
}

pub(crate) fn clean(node: &str) {
    for domain in domains(node) {
        virsh(&["destroy", &domain]);
        virsh(&["undefine", &domain, "--nvram", "--snapshots-metadata"]);
    }
    for volume in volumes(node) {
        virsh(&["vol-delete", "--pool", &pool(node), &volume]);
    }
    for verb in ["pool-destroy", "pool-delete", "pool-undefine"] {
        virsh(&[verb, &pool(node)]);
    }
}

fn pool(node: &str) -> String {
    format!("hwm-{node}")
}

fn domains(node: &str) -> Vec<String> {
    let all = virsh(&["list", "--all", "--name"]);
    let ours = all
        .lines()
        .filter(|name| name.starts_with("hwm-") && virsh(&["dumpxml", name]).contains(node));
    ours.map(str::to_owned).collect()
}

fn volumes(node: &str) -> Vec<String> {
    virsh(&["pool-refresh", &pool(node)]);
    let all = virsh(&["vol-list", &pool(node)]);
    all.lines()
        .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
        .collect()
}

/// What libvirt's own client says; nothing where it refuses.
fn virsh(words: &[&str]) -> String {
    let output = Command::new("virsh")
        .args(["-q", "-c", &variable("HWM_TEST_LIBVIRT_URI")])
        .args(words)
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}
