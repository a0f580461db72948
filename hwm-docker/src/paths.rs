//! Paths of the host that workloads may see: under a root of the operator, once links are resolved.

use std::ffi::OsString;
use std::io;
use std::path::{Component, Path, PathBuf};

/// Trees that no workload sees, whatever the roots are, unless a root lies inside of one.
const FORBIDDEN: [&str; 10] = [
    "/etc",
    "/proc",
    "/sys",
    "/dev",
    "/boot",
    "/run",
    "/var/run",
    "/var/lib/docker",
    "/var/lib/containerd",
    "/var/lib/containers",
];

/// Why a path is not handed to a workload. For people; the operator's roots are no secret.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PathRefusal {
    #[error("must be an absolute path without `..`")]
    NotPlain,
    #[error("must lie under {0}, after links are resolved")]
    Outside(String),
    #[error("lies where no workload may look")]
    Forbidden,
    #[error("must be a folder or a regular file")]
    WrongKind,
    #[error("does not exist")]
    Absent,
    #[error("cannot be looked at: {0}")]
    Io(#[from] io::Error),
}

/// Folders of the host under which workloads may see paths.
#[derive(Debug, Clone, Default)]
pub(crate) struct Roots {
    roots: Vec<PathBuf>,
    /// The engine's socket: neither it nor a folder that holds it is handed out.
    socket: Option<PathBuf>,
}

impl Roots {
    pub(crate) fn new(roots: impl IntoIterator<Item = PathBuf>, socket: Option<&Path>) -> Self {
        Self {
            roots: roots.into_iter().collect(),
            socket: socket.map(Path::to_owned),
        }
    }

    /// The path without links, if it is allowed. What does not exist yet is taken as it is written.
    /// Blocks on the file system.
    pub(crate) fn resolve(&self, path: &str) -> Result<PathBuf, PathRefusal> {
        let path = Path::new(path);
        let plain = path
            .components()
            .all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
        if !path.is_absolute() || !plain {
            return Err(PathRefusal::NotPlain);
        }
        let resolved = settle(path)?;
        let roots: Vec<PathBuf> = self.roots.iter().filter_map(|r| settle(r).ok()).collect();
        let under: Vec<&PathBuf> = roots.iter().filter(|root| resolved.starts_with(root)).collect();
        if under.is_empty() || resolved == Path::new("/") {
            return Err(PathRefusal::Outside(self.names()));
        }
        let open = |tree: &Path| under.iter().any(|root| root.starts_with(tree) && **root != *tree);
        let forbidden = FORBIDDEN
            .iter()
            .map(Path::new)
            .any(|tree| (resolved.starts_with(tree) && !open(tree)) || tree.starts_with(&resolved));
        let socket = self.socket.as_deref().and_then(|s| settle(s).ok());
        if forbidden || socket.is_some_and(|socket| socket.starts_with(&resolved)) {
            return Err(PathRefusal::Forbidden);
        }
        match resolved.symlink_metadata() {
            Ok(found) if found.is_dir() || found.is_file() => Ok(resolved),
            Ok(_) => Err(PathRefusal::WrongKind),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(resolved),
            Err(e) => Err(e.into()),
        }
    }

    /// The same for a path that must exist.
    pub(crate) fn resolve_existing(&self, path: &str) -> Result<PathBuf, PathRefusal> {
        let resolved = self.resolve(path)?;
        if resolved.try_exists()? {
            Ok(resolved)
        } else {
            Err(PathRefusal::Absent)
        }
    }

    /// The same, with missing folders made.
    pub(crate) fn prepare(&self, path: &str) -> Result<PathBuf, PathRefusal> {
        let resolved = self.resolve(path)?;
        if !resolved.try_exists()? {
            std::fs::create_dir_all(&resolved)?;
        }
        // Someone may have put a link in while it was made.
        let again = self.resolve_existing(path)?;
        if again == resolved {
            Ok(resolved)
        } else {
            Err(PathRefusal::Outside(self.names()))
        }
    }

    fn names(&self) -> String {
        if self.roots.is_empty() {
            return "a root, and this node has none".to_owned();
        }
        let names: Vec<_> = self.roots.iter().map(|r| r.display().to_string()).collect();
        names.join(" or ")
    }
}

/// Resolves the links in what exists of a path, and appends the rest.
fn settle(path: &Path) -> io::Result<PathBuf> {
    let mut rest: Vec<OsString> = Vec::new();
    let mut at = path;
    loop {
        match at.canonicalize() {
            Ok(mut found) => {
                found.extend(rest.iter().rev());
                return Ok(found);
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                // A link to nowhere is there, and nobody knows what it will lead to.
                if at.symlink_metadata().is_ok() {
                    return Err(e);
                }
                let (Some(parent), Some(name)) = (at.parent(), at.file_name()) else {
                    return Err(e);
                };
                rest.push(name.to_owned());
                at = parent;
            }
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn root() -> (tempfile::TempDir, Roots, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(real.join("root/data")).unwrap();
        std::fs::create_dir_all(real.join("outside")).unwrap();
        let roots = Roots::new([real.join("root")], None);
        (dir, roots, real)
    }

    fn text(path: PathBuf) -> String {
        path.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_folder_under_a_root_is_allowed_and_so_is_one_to_be_made() {
        let (_dir, roots, real) = root();
        assert_eq!(
            roots.resolve(&text(real.join("root/data"))).unwrap(),
            real.join("root/data")
        );
        let new = real.join("root/a/b");
        assert_eq!(roots.resolve(&text(new.clone())).unwrap(), new);
        assert!(matches!(
            roots.resolve_existing(&text(new.clone())),
            Err(PathRefusal::Absent)
        ));
        assert_eq!(roots.prepare(&text(new.clone())).unwrap(), new);
        assert!(new.is_dir());
    }

    #[test]
    fn a_link_that_leaves_the_root_is_refused_and_one_that_stays_is_resolved() {
        let (_dir, roots, real) = root();
        symlink(real.join("outside"), real.join("root/out")).unwrap();
        symlink("../../../../../../etc", real.join("root/etc")).unwrap();
        symlink(real.join("root/data"), real.join("root/in")).unwrap();
        symlink(real.join("nowhere"), real.join("root/nowhere")).unwrap();
        for bad in [
            "root/out",
            "root/out/sub",
            "root/etc",
            "root/etc/passwd",
            "outside",
        ] {
            let refusal = roots.resolve(&text(real.join(bad))).unwrap_err();
            assert!(matches!(refusal, PathRefusal::Outside(_)), "{bad}: {refusal}");
        }
        assert!(roots.resolve(&text(real.join("root/nowhere"))).is_err());
        assert_eq!(
            roots.resolve(&text(real.join("root/in"))).unwrap(),
            real.join("root/data")
        );
    }

    #[test]
    fn what_only_starts_like_a_root_is_outside() {
        let (_dir, roots, real) = root();
        std::fs::create_dir(real.join("root-2")).unwrap();
        assert!(roots.resolve(&text(real.join("root-2"))).is_err());
    }

    #[test]
    fn dots_and_relative_paths_are_refused() {
        let (_dir, roots, real) = root();
        for bad in [
            text(real.join("root/../outside")),
            "root/data".into(),
            String::new(),
            "..".into(),
        ] {
            assert!(matches!(roots.resolve(&bad), Err(PathRefusal::NotPlain)), "{bad}");
        }
    }

    #[test]
    fn some_places_are_refused_even_under_the_widest_root() {
        let (_dir, _, real) = root();
        let socket = real.join("outside/docker.sock");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let roots = Roots::new([PathBuf::from("/")], Some(&socket));
        for bad in ["/", "/etc", "/etc/passwd", "/proc/1", "/var", "/dev/null"] {
            assert!(roots.resolve(bad).is_err(), "{bad}");
        }
        assert!(matches!(
            roots.resolve(&text(real.join("outside"))),
            Err(PathRefusal::Forbidden)
        ));
        assert!(matches!(
            roots.resolve(&text(socket)),
            Err(PathRefusal::Forbidden)
        ));
        assert!(roots.resolve(&text(real.join("root/data"))).is_ok());
    }

    #[test]
    fn sockets_and_devices_are_no_volumes() {
        let (_dir, roots, real) = root();
        let socket = real.join("root/x.sock");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert!(matches!(
            roots.resolve(&text(socket)),
            Err(PathRefusal::WrongKind)
        ));
    }
}
