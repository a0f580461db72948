//! Models: paths of this host, or fetched once into a cache that containers share.
//!
//! A fetched model is a folder `<cache>/<key>`, complete or absent: it is filled beside, as
//! `<key>.part`, and renamed. A fetch that broke goes on where it ended if the server can.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::StreamExt;
use hwm_core::backend::{BackendError, BackendErrorKind, ProgressSink, Result};
use hwm_core::secret::Secret;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::{ObjectStore, ObjectStoreExt};
use reqwest::{StatusCode, Url, header};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncWriteExt, BufWriter};

use crate::flight::Flights;
use crate::paths::Roots;
use crate::sources::Sources;
use crate::spec::{BindMount, MODELS, ModelMount};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// A server that sends nothing for so long is given up.
const STALL: Duration = Duration::from_secs(60);
const TRIES: usize = 3;
/// Which version of the file the partial one is of.
const VALIDATOR: &str = "validator";
const PARTIAL: &str = "partial";

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
                BackendError::new(BackendErrorKind::Failed, doing, format!("{}: {help}", cause(&e)))
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

/// The innermost cause, which says what went wrong.
fn cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
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

/// One fetch under way.
struct Fetch {
    remote: Remote,
    done: PathBuf,
    part: PathBuf,
    doing: String,
    http: reqwest::Client,
    s3: S3,
    progress: ProgressSink,
}

/// Why a try ended, and whether another may help.
enum Stop {
    ForGood(BackendError),
    ForNow(BackendError),
}

impl Fetch {
    async fn run(self) -> Result<()> {
        let io = |e: io::Error| disk(&self.doing, &e);
        if exists(&self.done).await? {
            return Ok(());
        }
        let files = self.part.join("files");
        tokio::fs::create_dir_all(&files).await.map_err(io)?;
        match self.remote.shape.clone() {
            Shape::File(name) => {
                let partial = self.part.join(PARTIAL);
                self.file(&partial).await?;
                self.verify(&partial).await?;
                tokio::fs::rename(&partial, files.join(name)).await.map_err(io)?;
            }
            Shape::Folder => self.folder(&files).await?,
        }
        tokio::fs::rename(&files, &self.done).await.map_err(io)?;
        tokio::fs::remove_dir_all(&self.part).await.map_err(io)
    }

    async fn file(&self, partial: &Path) -> Result<()> {
        if self.remote.url.scheme() == "s3" {
            let (store, path) = self.bucket()?;
            return self.object(&store, &path, partial, &mut Told::default()).await;
        }
        let mut last = None;
        for attempt in 0..TRIES {
            if attempt > 0 {
                tokio::time::sleep(Duration::from_secs(1 << attempt)).await;
            }
            match self.over_http(partial).await {
                Ok(()) => return Ok(()),
                Err(Stop::ForGood(error)) => return Err(error),
                Err(Stop::ForNow(error)) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| self.failed(BackendErrorKind::Failed, "it was never tried")))
    }

    fn failed(&self, kind: BackendErrorKind, message: impl Into<String>) -> BackendError {
        BackendError::new(kind, self.doing.clone(), message)
    }

    fn stopped(&self, error: &io::Error) -> Stop {
        Stop::ForGood(disk(&self.doing, error))
    }

    async fn over_http(&self, partial: &Path) -> std::result::Result<(), Stop> {
        let validator_file = self.part.join(VALIDATOR);
        let have = tokio::fs::metadata(partial).await.map_or(0, |m| m.len());
        let validator = tokio::fs::read_to_string(&validator_file).await.ok();
        let mut request = self.http.get(self.remote.url.clone());
        if let Some(validator) = validator.filter(|_| have > 0) {
            request = request
                .header(header::RANGE, format!("bytes={have}-"))
                .header(header::IF_RANGE, validator);
        }
        let answer = request.send().await.map_err(|e| self.broken(&e))?;
        let status = answer.status();
        let resumed = status == StatusCode::PARTIAL_CONTENT && starts_at(&answer, have);
        if status == StatusCode::RANGE_NOT_SATISFIABLE {
            // The partial file is of no use.
            tokio::fs::remove_file(partial)
                .await
                .map_err(|e| self.stopped(&e))?;
            return Err(Stop::ForNow(
                self.failed(BackendErrorKind::Failed, "the server has another file now"),
            ));
        }
        if !resumed && status != StatusCode::OK {
            return Err(self.refused(status));
        }
        let begin = if resumed { have } else { 0 };
        let total = answer.content_length().map(|rest| begin + rest);
        let etag = answer.headers().get(header::ETAG).and_then(|v| v.to_str().ok());
        // A weak tag does not promise the same bytes.
        match etag.filter(|tag| !tag.starts_with("W/")) {
            Some(tag) => tokio::fs::write(&validator_file, tag)
                .await
                .map_err(|e| self.stopped(&e))?,
            None => {
                let gone = tokio::fs::remove_file(&validator_file).await;
                if let Err(error) = gone.or_else(|e| {
                    if e.kind() == io::ErrorKind::NotFound {
                        Ok(())
                    } else {
                        Err(e)
                    }
                }) {
                    return Err(self.stopped(&error));
                }
            }
        }
        let file = tokio::fs::OpenOptions::new()
            .create(true)
            .write(true)
            .append(resumed)
            .truncate(!resumed)
            .open(partial)
            .await
            .map_err(|e| self.stopped(&e))?;
        let mut file = BufWriter::with_capacity(1 << 20, file);
        let mut told = Told::default();
        let mut done = begin;
        let mut body = answer.bytes_stream();
        let mut broke = None;
        while let Some(chunk) = body.next().await {
            match chunk {
                Ok(chunk) => {
                    file.write_all(&chunk).await.map_err(|e| self.stopped(&e))?;
                    done += chunk.len() as u64;
                    told.report(&self.progress, done, total);
                }
                Err(error) => {
                    broke = Some(self.broken(&error));
                    break;
                }
            }
        }
        file.flush().await.map_err(|e| self.stopped(&e))?;
        file.get_ref().sync_all().await.map_err(|e| self.stopped(&e))?;
        match broke {
            Some(stop) => Err(stop),
            None if total.is_some_and(|total| total != done) => Err(Stop::ForNow(
                self.failed(BackendErrorKind::Failed, "the connection ended early"),
            )),
            None => Ok(()),
        }
    }

    fn broken(&self, error: &reqwest::Error) -> Stop {
        let message = cause(error);
        // A redirect to where we may not go will not change by asking again.
        if error.is_redirect() || message.contains("no public address") {
            return Stop::ForGood(self.failed(BackendErrorKind::Denied, message));
        }
        Stop::ForNow(self.failed(BackendErrorKind::Failed, message))
    }

    fn refused(&self, status: StatusCode) -> Stop {
        let message = format!("the server answered {status}");
        match status.as_u16() {
            404 | 410 => Stop::ForGood(self.failed(BackendErrorKind::NotFound, message)),
            401 | 403 => Stop::ForGood(self.failed(BackendErrorKind::Denied, message)),
            408 | 425 | 429 | 500.. => Stop::ForNow(self.failed(BackendErrorKind::Failed, message)),
            _ => Stop::ForGood(self.failed(BackendErrorKind::Failed, message)),
        }
    }

    /// Compares the file with the checksum that was given.
    async fn verify(&self, file: &Path) -> Result<()> {
        let Some(expected) = self.remote.sha256.clone() else {
            return Ok(());
        };
        let path = file.to_owned();
        let found = tokio::task::spawn_blocking(move || sha256(&path))
            .await
            .map_err(|e| self.failed(BackendErrorKind::Failed, e.to_string()))?
            .map_err(|e| disk(&self.doing, &e))?;
        if found == expected {
            return Ok(());
        }
        tokio::fs::remove_file(file)
            .await
            .map_err(|e| disk(&self.doing, &e))?;
        let message = format!("its SHA-256 is {found}, and modelPath says {expected}");
        Err(self.failed(BackendErrorKind::Invalid, message))
    }

    /// The bucket, with the operator's endpoint and credentials.
    fn bucket(&self) -> Result<(impl ObjectStore, object_store::path::Path)> {
        let bucket = self.remote.url.host_str().unwrap_or_default();
        let mut store = AmazonS3Builder::from_env();
        for (name, value) in &*self.s3 {
            let key = name
                .parse::<AmazonS3ConfigKey>()
                .map_err(|e| self.failed(BackendErrorKind::Invalid, e.to_string()))?;
            store = store.with_config(key, value.expose());
        }
        let store = store
            .with_bucket_name(bucket)
            .build()
            .map_err(|e| self.failed(BackendErrorKind::Invalid, e.to_string()))?;
        let path = object_store::path::Path::from_url_path(self.remote.url.path())
            .map_err(|e| self.failed(BackendErrorKind::Invalid, e.to_string()))?;
        Ok((store, path))
    }

    fn store_failed(&self, error: &object_store::Error) -> BackendError {
        let kind = match error {
            object_store::Error::NotFound { .. } => BackendErrorKind::NotFound,
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                BackendErrorKind::Denied
            }
            _ => BackendErrorKind::Failed,
        };
        self.failed(kind, crate::client::tidy(&error.to_string()))
    }

    async fn object(
        &self,
        store: &impl ObjectStore,
        from: &object_store::path::Path,
        to: &Path,
        told: &mut Told,
    ) -> Result<()> {
        let io = |e: io::Error| disk(&self.doing, &e);
        let found = store.get(from).await.map_err(|e| self.store_failed(&e))?;
        let total = found.meta.size;
        let mut file = BufWriter::with_capacity(1 << 20, tokio::fs::File::create(to).await.map_err(io)?);
        let mut chunks = found.into_stream();
        let mut done = 0;
        loop {
            let chunk = match tokio::time::timeout(STALL, chunks.next()).await {
                Ok(Some(chunk)) => chunk.map_err(|e| self.store_failed(&e))?,
                Ok(None) => break,
                Err(_) => return Err(self.failed(BackendErrorKind::Failed, "the store went silent")),
            };
            file.write_all(&chunk).await.map_err(io)?;
            done += chunk.len() as u64;
            told.report(&self.progress, done, Some(total));
        }
        file.flush().await.map_err(io)?;
        file.get_ref().sync_all().await.map_err(io)
    }

    async fn folder(&self, files: &Path) -> Result<()> {
        let io = |e: io::Error| disk(&self.doing, &e);
        let (store, prefix) = self.bucket()?;
        let mut objects = store.list(Some(&prefix));
        let (mut told, mut any) = (Told::default(), false);
        while let Some(object) = objects.next().await {
            let object = object.map_err(|e| self.store_failed(&e))?;
            let below: Vec<String> = object
                .location
                .prefix_match(&prefix)
                .into_iter()
                .flatten()
                .map(|part| file_name(part.as_ref()))
                .collect();
            let Some((name, folders)) = below.split_last() else {
                continue;
            };
            let folder = folders.iter().fold(files.to_owned(), |at, f| at.join(f));
            tokio::fs::create_dir_all(&folder).await.map_err(io)?;
            self.object(&store, &object.location, &folder.join(name), &mut told)
                .await?;
            any = true;
        }
        match any {
            true => Ok(()),
            false => Err(self.failed(BackendErrorKind::NotFound, "there is nothing under that prefix")),
        }
    }
}

/// Whether a partial answer goes on where the partial file ends.
fn starts_at(answer: &reqwest::Response, have: u64) -> bool {
    answer
        .headers()
        .get(header::CONTENT_RANGE)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.strip_prefix("bytes ")?.split_once('-'))
        .is_some_and(|(start, _)| start.parse() == Ok(have))
}

fn sha256(path: &Path) -> io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = io::Read::read(&mut file, &mut buffer)?;
        if n == 0 {
            return Ok(hex(&digest.finalize()));
        }
        digest.update(&buffer[..n]);
    }
}

/// What was reported last, so that progress is told once per MB and percent.
#[derive(Default)]
struct Told(Option<(u64, Option<u8>)>);

impl Told {
    fn report(&mut self, progress: &ProgressSink, done: u64, total: Option<u64>) {
        let percent = total
            .filter(|t| *t > 0)
            .map(|t| u8::try_from(done.saturating_mul(100) / t).unwrap_or(100));
        let now = (done >> 20, percent);
        if self.0 != Some(now) {
            self.0 = Some(now);
            let of = total.map_or_else(String::new, |t| format!(" of {}", t >> 20));
            progress.report(format!("fetching the model: {}{of} MB", now.0), percent);
        }
    }
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
