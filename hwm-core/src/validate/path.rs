//! The rules of paths, as far as they can be told from their text. Links are resolved by the node.

use std::path::{Path, PathBuf};

use super::limits;
use super::reader::Field;

/// Trees of the host that no workload sees, wherever the volume roots are.
const CLOSED_TREES: [&str; 5] = ["/boot", "/dev", "/etc", "/proc", "/sys"];
/// Sockets of the host that would hand over the host; nor may a folder that holds one be mounted.
const SOCKETS: [&str; 8] = [
    "/run/containerd",
    "/run/docker.sock",
    "/run/libvirt",
    "/run/podman",
    "/var/run/containerd",
    "/var/run/docker.sock",
    "/var/run/libvirt",
    "/var/run/podman",
];
/// Trees of a container that the engine makes itself.
const ENGINE_TREES: [&str; 2] = ["/proc", "/sys"];

/// A folder of the host under a volume root.
pub(super) fn volume(field: &Field<'_>) -> Option<String> {
    let path = absolute(field)?;
    let roots = &field.cx.rules.volume_roots;
    under(field, &path, &roots.iter().collect::<Vec<_>>(), "volume root")?;
    Some(path)
}

/// Where a container sees a volume.
pub(super) fn mount_point(field: &Field<'_>) -> Option<String> {
    let path = absolute(field)?;
    let at = Path::new(&path);
    if path == "/" || path == "/dev" || ENGINE_TREES.iter().any(|tree| at.starts_with(tree)) {
        return field.refuse("must not be /, /dev, /proc or /sys: choose a folder of its own");
    }
    Some(path)
}

/// Reports a path that is not strictly inside one of the roots.
pub(super) fn under(field: &Field<'_>, path: &str, roots: &[&PathBuf], what: &str) -> Option<()> {
    let path = Path::new(path);
    if let Some(tree) = CLOSED_TREES.iter().find(|tree| path.starts_with(tree)) {
        return field.refuse(format!("must not be in {tree} of the host"));
    }
    let exposes = |socket: &str| path.starts_with(socket) || Path::new(socket).starts_with(path);
    if SOCKETS.into_iter().any(exposes) {
        return field.refuse("must not be /, a socket that controls the host, or a folder that holds one");
    }
    let roots: Vec<_> = roots.iter().filter(|root| root.is_absolute()).collect();
    if roots.is_empty() {
        return field.refuse(format!(
            "cannot be used on this node: the operator must set a {what}"
        ));
    }
    if roots
        .iter()
        .any(|root| path.starts_with(root) && path != root.as_path())
    {
        return Some(());
    }
    let names: Vec<_> = roots.iter().map(|root| root.display().to_string()).collect();
    field.refuse(format!("must be inside a {what}: {}", names.join(", ")))
}

/// An absolute path in its one spelling: repeated and trailing slashes are cut off, `.` and `..` refused.
pub(super) fn absolute(field: &Field<'_>) -> Option<String> {
    absolute_text(field, field.text_that_is("an absolute path")?)
}

/// The same for a text that was part of the value.
pub(super) fn absolute_text(field: &Field<'_>, text: &str) -> Option<String> {
    if !text.starts_with('/') {
        return field.refuse("must be an absolute path: it begins with \"/\"");
    }
    if text.len() > limits::PATH {
        return field.refuse(format!("must have at most {} bytes", limits::PATH));
    }
    // Engines and mount tables read a colon as the end of the path.
    if text.chars().any(|c| c.is_control() || c == ':') {
        return field.refuse("must not contain control characters or ':'");
    }
    if text.split('/').any(|part| part == "." || part == "..") {
        return field.refuse("must not contain \".\" or \"..\": write the path that is meant");
    }
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty()).collect();
    Some(format!("/{}", parts.join("/")))
}
