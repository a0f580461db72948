//! One fetch of a model: over HTTP or from S3, taken up where it broke, checked, and then put in its place whole.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt;
use hwm_core::backend::{BackendError, BackendErrorKind, ProgressSink, Result};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::{ObjectStore, ObjectStoreExt};
use reqwest::{StatusCode, header};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncWriteExt, BufWriter};

use super::{Remote, S3, STALL, Shape, disk, exists, file_name, hex};
use crate::root_of;

const TRIES: usize = 3;
/// Which version of the file the partial one is of.
const VALIDATOR: &str = "validator";
const PARTIAL: &str = "partial";

/// One fetch under way.
pub(super) struct Fetch {
    pub(super) remote: Remote,
    pub(super) done: PathBuf,
    pub(super) part: PathBuf,
    pub(super) doing: String,
    pub(super) http: reqwest::Client,
    pub(super) s3: S3,
    pub(super) progress: ProgressSink,
}

/// Why a try ended, and whether another may help.
enum Stop {
    ForGood(BackendError),
    ForNow(BackendError),
}

impl Fetch {
    pub(super) async fn run(self) -> Result<()> {
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
        let message = root_of(error);
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
