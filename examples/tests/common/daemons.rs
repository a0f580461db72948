//! What the daemons' own clients say: a second opinion, past hwm. `node` is the owner label of a test run's own.

use std::collections::BTreeSet;
use std::process::Command;

/// A variable that the lab sets.
pub(crate) fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: run `scripts/lab up docker registry libvirt --dir DIR` and read DIR/env")
    })
}

/// What Docker's client says.
pub(crate) fn docker(words: &[&str]) -> String {
    let output = Command::new("docker")
        .args(["-H", &variable("HWM_TEST_DOCKER_HOST")])
        .args(words)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{words:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// The names of the containers that carry the label, whatever they do.
pub(crate) fn containers(node: &str) -> BTreeSet<String> {
    let label = format!("label=io.hwm.owner={node}");
    let names = docker(&["ps", "-a", "--format", "{{.Names}}", "--filter", &label]);
    names.lines().map(str::to_owned).collect()
}

/// What libvirt's client says; nothing where it refuses.
pub(crate) fn virsh(words: &[&str]) -> String {
    let output = Command::new("virsh")
        .args(["-q", "-c", &variable("HWM_TEST_LIBVIRT_URI")])
        .args(words)
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// The pool of a test run.
pub(crate) fn pool(node: &str) -> String {
    format!("hwm-{node}")
}

/// The names of the domains that carry the label, whatever they do.
pub(crate) fn domains(node: &str) -> BTreeSet<String> {
    let all = virsh(&["list", "--all", "--name"]);
    let names = all.lines().filter(|name| name.starts_with("hwm-"));
    names
        .filter(|name| virsh(&["dumpxml", name]).contains(node))
        .map(str::to_owned)
        .collect()
}

/// The volumes in the pool, but for images, which stay for the next machine.
pub(crate) fn volumes(node: &str) -> Vec<String> {
    let mut volumes = all_volumes(node);
    volumes.retain(|name| !name.starts_with("hwm-image-"));
    volumes
}

fn all_volumes(node: &str) -> Vec<String> {
    virsh(&["pool-refresh", &pool(node)]);
    let all = virsh(&["vol-list", &pool(node)]);
    let names = all.lines().filter_map(|line| line.split_whitespace().next());
    names.map(str::to_owned).collect()
}

/// Removes the domains that carry the label, and the pool with all that is in it.
pub(crate) fn remove_machines(node: &str) {
    for domain in domains(node) {
        virsh(&["destroy", &domain]);
        virsh(&["undefine", &domain, "--nvram", "--snapshots-metadata"]);
    }
    for volume in all_volumes(node) {
        virsh(&["vol-delete", "--pool", &pool(node), &volume]);
    }
    for verb in ["pool-destroy", "pool-delete", "pool-undefine"] {
        virsh(&[verb, &pool(node)]);
    }
}
