//! Models: paths of this host, or fetched once into a cache that containers share.
//!
//! A fetched model is a folder `<cache>/<key>`, complete or absent: it is filled beside, as
//! `<key>.part`, and renamed. A fetch that broke goes on where it ended if the server can.

mod fetch;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hwm_core::backend::{BackendError, BackendErrorKind, ProgressSink, Result};
use hwm_core::secret::Secret;
use reqwest::Url;
use sha2::{Digest, Sha256};

use crate::flight::Flights;
use crate::paths::Roots;
use crate::root_of;
use crate::sources::Sources;
use crate::spec::{BindMount, MODELS, ModelMount};
use fetch::Fetch;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// A server that sends nothing for so long is given up.
const STALL: Duration = Duration::from_secs(60);

/// Where a model comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A path of this host.
    Local(String),
    Remote(Remote),
}

/// A model to be fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Remote {
    /// Without fragment.
    url: Url,
    /// SHA-256 that the file must have, in lower-case hex.
    sha256: Option<String>,
    shape: Shape,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Shape {
    /// One file, and what it is called.
    File(String),
    /// Everything under a prefix of a bucket.
    Folder,
}

/// Reads `modelPath`. The error says what is wrong with it.
pub(crate) fn origin(path: &str, sources: &Sources) -> std::result::Result<Origin, String> {
    if path.starts_with('/') {
        return Ok(Origin::Local(path.to_owned()));
    }
    if let Some(rest) = path.strip_prefix("file://") {
        return match rest.starts_with('/') {
            true => Ok(Origin::Local(rest.to_owned())),
            false => Err("must be file:/// and an absolute path".to_owned()),
        };
    }
    let mut url = sources.admit(path).map_err(|e| e.to_string())?;
    let sha256 = match url.fragment() {
        None => None,
        Some(fragment) => {
            let hex = fragment
                .strip_prefix("sha256=")
                .unwrap_or_default()
                .to_ascii_lowercase();
            let valid = hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit());
            Some(
                valid
                    .then_some(hex)
                    .ok_or("may only have a fragment #sha256= and 64 hex digits")?,
            )
        }
    };
    url.set_fragment(None);
    let name = url.path().rsplit('/').next().unwrap_or_default();
    let shape = match (name.is_empty(), url.scheme()) {
        (false, _) => Shape::File(file_name(name)),
        (true, "s3") if sha256.is_none() => Shape::Folder,
        (true, "s3") => return Err("a folder has no checksum: name a file".to_owned()),
        (true, _) => return Err("names a folder: over HTTP only a file can be fetched".to_owned()),
    };
    Ok(Origin::Remote(Remote { url, sha256, shape }))
}

/// A name that is safe in a path, in MODEL_PATH and in a shell.
fn file_name(segment: &str) -> String {
    let safe: String = segment
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') {
                c
            } else {
                '_'
            }
        })
        .take(200)
        .collect();
    match safe.as_str() {
        "" | "." | ".." => "model".to_owned(),
        _ => safe,
    }
}

impl Remote {
    /// The folder's name in the cache.
    fn key(&self) -> String {
        let mut digest = Sha256::new();
        digest.update(self.url.as_str().as_bytes());
        digest.update([0]);
        digest.update(self.sha256.as_deref().unwrap_or_default().as_bytes());
        hex(&digest.finalize())
    }

    /// For people: without the query, which may hold a signature.
    fn shown(&self) -> String {
        let mut url = self.url.clone();
        url.set_query(None);
        url.to_string()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Settings of S3, by their names without `AWS_`; the environment's where absent.
pub(crate) type S3 = Arc<BTreeMap<String, Secret>>;

/// Has models on this host.
pub(crate) struct Models {
    roots: Roots,
    cache: PathBuf,
    sources: Sources,
    s3: S3,
    fetches: Flights<String, ()>,
    http: OnceLock<reqwest::Client>,
}

impl Models {
    pub(crate) fn new(roots: Roots, cache: PathBuf, sources: Sources, s3: S3) -> Self {
        Self {
            roots,
            cache,
            sources,
            s3,
            fetches: Flights::default(),
            http: OnceLock::new(),
        }
    }

    /// What fetches; made at the first fetch, because it needs certificates that a host may lack and who has all models
    /// does not need.
    fn http(&self, doing: &str) -> Result<reqwest::Client> {
        if let Some(client) = self.http.get() {
            return Ok(client.clone());
        }
        let client = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(STALL)
            .dns_resolver(self.sources.resolver())
            .redirect(self.sources.redirects())
            .referer(false)
            // A proxy would resolve names where we cannot look.
            .no_proxy()
            .build()
            .map_err(|e| {
                let help =
                    "a host without certificates of public authorities needs Debian's ca-certificates, or the like";
                BackendError::new(BackendErrorKind::Failed, doing, format!("{}: {help}", root_of(&e)))
            })?;
        Ok(self.http.get_or_init(|| client).clone())
    }

    /// What stands against a `modelPath`, if anything, and what a local one is after links are resolved.
    /// Blocks on the file system.
    pub(crate) fn check(&self, path: &str) -> std::result::Result<Option<PathBuf>, String> {
        match origin(path, &self.sources)? {
            Origin::Local(path) => self
                .roots
                .resolve_existing(&path)
                .map(Some)
                .map_err(|e| e.to_string()),
            Origin::Remote(_) => Ok(None),
        }
    }

    /// Has the model on this host and says how it is mounted.
    pub(crate) async fn ensure(&self, path: &str, progress: &ProgressSink) -> Result<ModelMount> {
        let invalid = |message: String| {
            BackendError::new(
                BackendErrorKind::Invalid,
                "looking for the model",
                format!("modelPath {message}"),
            )
        };
        match origin(path, &self.sources).map_err(invalid)? {
            Origin::Local(path) => {
                let roots = self.roots.clone();
                let found = tokio::task::spawn_blocking(move || roots.resolve_existing(&path)).await;
                let found = found.map_err(|e| invalid(e.to_string()))?;
                Ok(local_mount(found.map_err(|e| invalid(e.to_string()))?))
            }
            Origin::Remote(remote) => {
                let mount = self.cached_mount(&remote);
                if !exists(&mount.mount.source).await? {
                    self.fetch(remote, progress).await?;
                }
                Ok(mount)
            }
        }
    }

    fn cached_mount(&self, remote: &Remote) -> ModelMount {
        ModelMount {
            mount: BindMount {
                source: self.cache.join(remote.key()),
                target: MODELS.to_owned(),
                read_only: true,
            },
            path: match &remote.shape {
                Shape::File(name) => format!("{MODELS}/{name}"),
                Shape::Folder => MODELS.to_owned(),
            },
        }
    }

    async fn fetch(&self, remote: Remote, progress: &ProgressSink) -> Result<()> {
        let doing = format!("fetching model {}", remote.shown());
        let http = self.http(&doing)?;
        let (cache, s3) = (self.cache.clone(), Arc::clone(&self.s3));
        self.fetches
            .join(remote.key(), progress, |progress| {
                Box::pin(async move {
                    let fetch = Fetch {
                        done: cache.join(remote.key()),
                        part: cache.join(format!("{}.part", remote.key())),
                        doing,
                        remote,
                        http,
                        s3,
                        progress,
                    };
                    fetch.run().await
                })
            })
            .await
    }
}

async fn exists(path: &Path) -> Result<bool> {
    tokio::fs::try_exists(path)
        .await
        .map_err(|e| disk("looking for a fetched model", &e))
}

fn local_mount(source: PathBuf) -> ModelMount {
    let name = source
        .file_name()
        .filter(|_| source.is_file())
        .map(|n| n.to_string_lossy().into_owned());
    let target = name.map_or_else(|| MODELS.to_owned(), |name| format!("{MODELS}/{name}"));
    ModelMount {
        mount: BindMount {
            source,
            target: target.clone(),
            read_only: true,
        },
        path: target,
    }
}

fn disk(doing: &str, error: &io::Error) -> BackendError {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => BackendErrorKind::NoSpace,
        io::ErrorKind::PermissionDenied => BackendErrorKind::Denied,
        _ => BackendErrorKind::Failed,
    };
    BackendError::new(kind, doing, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources() -> Sources {
        Sources::parse(&["s3://".into(), "https://".into()]).unwrap()
    }

    fn remote(path: &str) -> Remote {
        match origin(path, &sources()).unwrap() {
            Origin::Remote(remote) => remote,
            Origin::Local(path) => unreachable!("{path} is local"),
        }
    }

    #[test]
    fn a_model_path_is_local_or_remote() {
        for path in ["/m/x", "file:///m/x"] {
            assert_eq!(origin(path, &sources()), Ok(Origin::Local("/m/x".into())));
        }
        assert_eq!(
            remote("https://h/a/m.bin?token=1").shape,
            Shape::File("m.bin".into())
        );
        assert_eq!(remote("s3://bucket/llm/").shape, Shape::Folder);
        for bad in [
            "relative/x",
            "file://host/x",
            "https://h/folder/",
            "https://h/m.bin#md5=1",
            "https://h/m.bin#sha256=12",
            "s3://bucket/llm/#sha256=0000000000000000000000000000000000000000000000000000000000000000",
            "http://h/m.bin",
        ] {
            assert!(origin(bad, &sources()).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_key_moves_with_url_and_checksum() {
        let zeros = "0".repeat(64);
        let plain = remote("https://h/m.bin");
        let summed = remote(&format!("https://h/m.bin#sha256={zeros}"));
        assert_ne!(plain.key(), summed.key());
        assert_ne!(plain.key(), remote("https://h/n.bin").key());
        assert_eq!(plain.key(), remote("https://h/m.bin").key());
        assert_eq!(
            remote("https://h/m.bin?signature=secret").shown(),
            "https://h/m.bin"
        );
    }

    #[test]
    fn a_file_name_is_safe() {
        assert_eq!(file_name("m-1_2.gguf"), "m-1_2.gguf");
        assert_eq!(file_name("a%2fb$(x)"), "a_2fb__x_");
        assert_eq!(file_name(".."), "model");
    }
}
