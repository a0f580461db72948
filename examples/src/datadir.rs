//! The data directory: its lock, the node's id, and files that only their owner reads.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use hwm_core::env::Environment;
use hwm_core::id::NodeId;

use crate::failure::Failure;

/// The data directory, ours until this is dropped.
pub(crate) struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Makes the directory where there is none, and locks it.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let path = make(path)?;
        let lock_path = path.join("lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(|source| failed("opening", &lock_path, source))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Who holds it is only for the message.
                let _ = lock.read_to_string(&mut holder);
                let holder = match holder.trim() {
                    "" => "unknown".to_owned(),
                    known => known.to_owned(),
                };
                return Err(Failure::Locked { path, holder });
            }
            Err(TryLockError::Error(source)) => return Err(failed("locking", &lock_path, source)),
        }
        lock.set_len(0)
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .map_err(|source| failed("writing", &lock_path, source))?;
        Ok(Self { path, _lock: lock })
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps a note for later starts.
    pub(crate) fn note(&self, name: &str) -> Result<(), Failure> {
        keep(&self.join(name), String::new).map(|_| ())
    }

    /// Whether an earlier start kept a note.
    pub(crate) fn is_noted(&self, name: &str) -> bool {
        self.join(name).exists()
    }

    /// A path in it.
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A folder in it, made where there is none.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf, Failure> {
        let path = self.join(name);
        match DirBuilder::new().mode(0o755).create(&path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(failed("making", &path, error)),
            _ => Ok(path),
        }
    }

    /// The node's id, as `node_id` has it.
    pub(crate) fn node_id(&self, asked: Option<&str>, env: &dyn Environment) -> Result<NodeId, Failure> {
        node_id(&self.path, asked, env)
    }
}

/// The id of the node whose data directory this is: the one kept there, or `asked`, or a new one; kept from then on.
pub(crate) fn node_id(
    data_dir: &Path,
    asked: Option<&str>,
    env: &dyn Environment,
) -> Result<NodeId, Failure> {
    if let Some(asked) = asked
        && !is_node_id(asked)
    {
        return Err(Failure::NodeId(asked.to_owned()));
    }
    let path = data_dir.join("node-id");
    let made = || match asked {
        Some(asked) => asked.to_owned(),
        None => format!("node-{:012x}", env.random() >> 80),
    };
    let (kept, _) = keep(&path, || format!("{}\n", made()))?;
    let kept = kept.trim();
    match asked {
        Some(asked) if asked != kept => Err(Failure::OtherNode {
            kept: kept.to_owned(),
            asked: asked.to_owned(),
        }),
        _ => Ok(NodeId::new(kept)),
    }
}

/// Makes a directory that only its owner may enter, where there is none, and answers its real path.
pub(crate) fn make(path: &Path) -> Result<PathBuf, Failure> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| failed("making", path, source))?;
    path.canonicalize()
        .map_err(|source| failed("finding", path, source))
}

/// What a file holds that only its owner reads; made with `content`, on the disk before this returns, where
/// there is none. Answers whether it was made. Of several that make it at once all get the same content.
pub(crate) fn keep(path: &Path, content: impl FnOnce() -> String) -> Result<(String, bool), Failure> {
    match fs::read_to_string(path) {
        Ok(text) => return Ok((text, false)),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(source) => return Err(failed("reading", path, source)),
    }
    let own = path.with_extension(format!("new-{}", std::process::id()));
    let text = content();
    let made = write_whole(&own, &text).and_then(|()| match fs::hard_link(&own, path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    });
    // A name that could not be removed is in nobody's way.
    let _ = fs::remove_file(&own);
    match made {
        Ok(true) => Ok((text, true)),
        Ok(false) => match fs::read_to_string(path) {
            Ok(text) => Ok((text, false)),
            Err(source) => Err(failed("reading", path, source)),
        },
        Err(source) => Err(failed("making", path, source)),
    }
}

fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

fn is_node_id(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    (1..=64).contains(&text.len()) && text.chars().all(allowed)
}

fn failed(doing: &'static str, path: &Path, source: io::Error) -> Failure {
    Failure::DataDir {
        doing,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use hwm_core::env::SystemEnvironment;

    use super::*;

    #[test]
    fn a_directory_has_one_server() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDir::open(dir.path()).unwrap();
        let refused = DataDir::open(dir.path()).err().unwrap().to_string();
        assert!(
            refused.contains(&format!("process {}", std::process::id())),
            "{refused}"
        );
        drop(first);
        assert!(DataDir::open(dir.path()).is_ok());
    }

    #[test]
    fn a_node_id_is_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        let id = data.node_id(None, &SystemEnvironment).unwrap();
        assert!(id.as_str().starts_with("node-"));
        assert_eq!(data.node_id(None, &SystemEnvironment).unwrap(), id);
        assert_eq!(data.node_id(Some(id.as_str()), &SystemEnvironment).unwrap(), id);
        assert!(data.node_id(Some("other"), &SystemEnvironment).is_err());
        assert!(data.node_id(Some("no/path"), &SystemEnvironment).is_err());
    }

    #[test]
    fn what_is_made_is_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let data = make(&dir.path().join("a/b")).unwrap();
        assert_eq!(data.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        let file = data.join("secret");
        assert_eq!(
            keep(&file, || "one".to_owned()).unwrap(),
            ("one".to_owned(), true)
        );
        assert_eq!(
            keep(&file, || "two".to_owned()).unwrap(),
            ("one".to_owned(), false)
        );
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&data).unwrap().count(), 1);
    }
}
