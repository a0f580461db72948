//! Base images: fetched once however many ask, checked, and kept as read-only volumes.
//!
//! A volume has no metadata in libvirt, so each image has a second, small volume that says what it is: it is
//! written before the image (`ready: false`), and again when the image is whole. What no such record names is
//! not ours and is never touched.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hwm_core::backend::{BackendError, BackendErrorKind, ProgressSink, Result};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::catalog::{Catalog, Checksum, Digest, Image, ImageFormat, ImageSource};
use crate::connection::{Connection, Fault, Source};
use crate::domain::{VolumeSpec, volume_xml};
use crate::download::{self, Downloaded};
use crate::qcow2;

/// How long one transfer may take.
const TRANSFER: Duration = Duration::from_secs(3600);
/// How long a short call may take.
const SHORT: Duration = Duration::from_secs(30);
const RECORD_BYTES: u64 = 4096;

/// An image that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BaseImage {
    /// Its volume's path.
    pub(crate) path: String,
    /// Its layout.
    pub(crate) format: ImageFormat,
    /// The size of the disk in it, in bytes.
    pub(crate) virtual_size: u64,
}

/// What the small volume beside an image says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    owner: String,
    volume: String,
    digest: String,
    virtual_size: u64,
    ready: bool,
}

/// How far a fetch is.
#[derive(Debug, Clone)]
enum Fetch {
    Running(String, Option<u8>),
    Done(Result<BaseImage>),
}

/// The images of a pool.
#[derive(Clone)]
pub(crate) struct Images {
    shared: Arc<Shared>,
}

struct Shared {
    connection: Connection,
    catalog: Catalog,
    pool: String,
    owner: String,
    cache: PathBuf,
    http: reqwest::Client,
    present: Mutex<HashMap<String, (String, BaseImage)>>,
    fetches: Mutex<HashMap<String, watch::Receiver<Fetch>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Images {
    pub(crate) fn new(
        connection: Connection,
        catalog: Catalog,
        pool: &str,
        owner: &str,
        cache: &Path,
    ) -> Result<Self> {
        let http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(20))
            .read_timeout(Duration::from_secs(60))
            .user_agent(concat!("hwm/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::custom(download::follow))
            .build()
            .map_err(|e| BackendError::new(BackendErrorKind::Failed, "preparing downloads", e.to_string()))?;
        Ok(Self {
            shared: Arc::new(Shared {
                connection,
                catalog,
                pool: pool.to_owned(),
                owner: owner.to_owned(),
                cache: cache.to_owned(),
                http,
                present: Mutex::default(),
                fetches: Mutex::default(),
            }),
        })
    }

    pub(crate) fn catalog(&self) -> &Catalog {
        &self.shared.catalog
    }

    /// What is known of an image without asking anyone.
    pub(crate) fn known(&self, name: &str) -> Option<BaseImage> {
        lock(&self.shared.present).get(name).map(|(_, base)| base.clone())
    }

    /// The image's volume; fetched if it is not there. Dropping the future leaves a fetch that others may wait for.
    pub(crate) async fn ensure(&self, image: &Image, progress: &ProgressSink) -> Result<BaseImage> {
        let name = image.name.as_str();
        let known = lock(&self.shared.present).get(name).cloned();
        if let Some((volume, base)) = known {
            if self.shared.exists(&volume).await? {
                return Ok(base);
            }
            lock(&self.shared.present).remove(name);
        }
        let mut fetch = self.join(image);
        loop {
            let now = fetch.borrow_and_update().clone();
            match now {
                Fetch::Done(result) => return result,
                Fetch::Running(message, percent) => progress.report(message, percent),
            }
            if fetch.changed().await.is_err() {
                let failed = "the fetch broke off";
                return Err(error(BackendErrorKind::Failed, image, failed));
            }
        }
    }

    /// The fetch that is under way, or a new one.
    fn join(&self, image: &Image) -> watch::Receiver<Fetch> {
        let mut fetches = lock(&self.shared.fetches);
        let name = image.name.as_str().to_owned();
        if let Some(running) = fetches.get(&name) {
            return running.clone();
        }
        let (tell, told) = watch::channel(Fetch::Running(format!("looking for image {name}"), None));
        fetches.insert(name.clone(), told.clone());
        let (shared, image) = (self.shared.clone(), image.clone());
        tokio::spawn(async move {
            let result = shared.fetch(&image, &tell).await;
            if let Ok((volume, base)) = &result {
                lock(&shared.present).insert(name.clone(), (volume.clone(), base.clone()));
            }
            lock(&shared.fetches).remove(&name);
            tell.send_replace(Fetch::Done(result.map(|(_, base)| base)));
        });
        told
    }
}

fn error(kind: BackendErrorKind, image: &Image, message: impl Into<String>) -> BackendError {
    BackendError::new(kind, format!("fetching image {}", image.name), message)
}

fn record_name(image: &Image, digest: &str) -> String {
    format!("hwm-image-{}-{}.json", image.name, &digest[..16])
}

impl Shared {
    async fn call<T: Send + 'static>(
        &self,
        doing: &str,
        work: impl FnOnce(&crate::connection::Host, &str) -> std::result::Result<T, Fault> + Send + 'static,
    ) -> Result<T> {
        let pool = self.pool.clone();
        self.connection
            .run(doing, SHORT, None, move |host| work(host, &pool))
            .await
    }

    async fn exists(&self, volume: &str) -> Result<bool> {
        let volume = volume.to_owned();
        self.call("looking for an image", move |host, pool| {
            Ok(host.volume_facts(pool, &volume)?.is_some())
        })
        .await
    }

    /// The record of an image that is whole; and, of one that is not, what is left to remove.
    async fn read_record(&self, image: &Image, name: String) -> Result<Option<Record>> {
        let read = self
            .call("looking for an image", {
                let name = name.clone();
                move |host, pool| match host.volume_facts(pool, &name)? {
                    Some(_) => host.download(pool, &name, 0, RECORD_BYTES).map(Some),
                    None => Ok(None),
                }
            })
            .await?;
        let Some(bytes) = read else { return Ok(None) };
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        match serde_json::from_slice(&bytes[..end]) {
            Ok(record) => Ok(Some(record)),
            // Made and not written before a crash: it holds nothing, so it is nobody's loss.
            Err(_) if end == 0 => Ok(None),
            Err(_) => Err(error(
                BackendErrorKind::Conflict,
                image,
                format!("the pool has a volume {name} that is not hwm's: remove or rename it"),
            )),
        }
    }

    /// An image that is in the pool already; `digest` where it is known which.
    async fn present(&self, image: &Image, digest: Option<&str>) -> Result<Option<(String, BaseImage)>> {
        let names = match digest {
            Some(digest) => vec![record_name(image, digest)],
            None => {
                let lead = format!("hwm-image-{}-", image.name);
                let mut names = self
                    .call("looking for an image", |host, pool| host.volume_names(pool))
                    .await?;
                let is_record = |name: &String| {
                    let digest = name
                        .strip_prefix(&lead)
                        .and_then(|rest| rest.strip_suffix(".json"));
                    digest.is_some_and(|d| d.len() == 16 && d.bytes().all(|b| b.is_ascii_hexdigit()))
                };
                names.retain(is_record);
                names
            }
        };
        for name in names {
            let Some(record) = self.read_record(image, name.clone()).await? else {
                continue;
            };
            let volume = record.volume.clone();
            let facts = self
                .call("looking for an image", move |host, pool| {
                    host.volume_facts(pool, &volume)
                })
                .await?;
            match facts {
                Some(facts) if record.ready => {
                    let base = BaseImage {
                        path: facts.path,
                        format: image.format,
                        virtual_size: record.virtual_size,
                    };
                    return Ok(Some((record.volume, base)));
                }
                // Left by a fetch of ours that broke off.
                _ if record.owner == self.owner => {
                    self.call("removing a broken image", move |host, pool| {
                        host.delete_volume(pool, &record.volume)?;
                        host.delete_volume(pool, &name)
                    })
                    .await?;
                }
                _ => {
                    let message = format!(
                        "{} is fetching it into the same pool: try again later",
                        record.owner
                    );
                    return Err(error(BackendErrorKind::Conflict, image, message));
                }
            }
        }
        Ok(None)
    }

    async fn fetch(&self, image: &Image, tell: &watch::Sender<Fetch>) -> Result<(String, BaseImage)> {
        let say = |message: String, percent: Option<u8>| {
            tell.send_replace(Fetch::Running(message, percent));
        };
        let pinned = match &image.checksum {
            Some(Checksum::Pinned(digest)) => Some(digest.clone()),
            Some(Checksum::Listed(_)) | None => None,
        };
        // A file may have been replaced, so only what it is now is looked for.
        if (pinned.is_some() || !matches!(image.source, ImageSource::File(_)))
            && let Some(found) = self.present(image, pinned.as_ref().map(Digest::hex)).await?
        {
            return Ok(found);
        }
        let file = match &image.source {
            ImageSource::Operator => {
                return Err(error(
                    BackendErrorKind::Invalid,
                    image,
                    "its licence does not let hwm fetch it: put a file:// source for it into the image catalogue",
                ));
            }
            ImageSource::File(path) => download::hash(path, pinned.as_ref(), &say).await,
            ImageSource::Url(url) => self.download(image, url, &say).await,
        }
        .map_err(|e| error(e.kind, image, e.message))?;
        if let Some(found) = self.present(image, Some(file.digest.hex())).await? {
            file.discard();
            return Ok(found);
        }
        let stored = self.store(image, &file, tell).await;
        if stored.is_ok() {
            file.discard();
        }
        stored
    }

    async fn download(
        &self,
        image: &Image,
        url: &str,
        say: &(dyn Fn(String, Option<u8>) + Send + Sync),
    ) -> std::result::Result<Downloaded, BackendError> {
        let expected = match &image.checksum {
            Some(Checksum::Pinned(digest)) => digest.clone(),
            Some(Checksum::Listed(list)) => download::listed(&self.http, list, url).await?,
            None => {
                return Err(error(
                    BackendErrorKind::Invalid,
                    image,
                    "the catalogue has no checksum for it",
                ));
            }
        };
        download::fetch(&self.http, url, &expected, &self.cache, image.name.as_str(), say).await
    }

    /// Puts a checked file into the pool.
    async fn store(
        &self,
        image: &Image,
        file: &Downloaded,
        tell: &watch::Sender<Fetch>,
    ) -> Result<(String, BaseImage)> {
        let inspected = qcow2::inspect(&file.head, file.size, image.format).map_err(|refusal| {
            error(
                BackendErrorKind::Invalid,
                image,
                format!("it is refused: {refusal}"),
            )
        })?;
        let size = file.size;
        let room = self
            .call("looking for room", |host, pool| host.pool_facts(pool))
            .await?;
        if room.available < size {
            return Err(error(
                BackendErrorKind::NoSpace,
                image,
                format!("it takes {size} bytes, and the pool has {} left", room.available),
            ));
        }
        let nonce = uuid::Uuid::new_v4().simple().to_string();
        let digest = file.digest.hex().to_owned();
        let mut record = Record {
            owner: self.owner.clone(),
            volume: format!("hwm-image-{}-{}-{}.img", image.name, &digest[..16], &nonce[..8]),
            digest: file.digest.to_string(),
            virtual_size: inspected.virtual_size,
            ready: false,
        };
        let name = record_name(image, &digest);
        self.write_record(image, &name, &record).await?;
        let spec = VolumeSpec {
            name: record.volume.clone(),
            capacity: size,
            // The bytes are stored as they are; what is inside is said where the volume is used.
            format: ImageFormat::Raw,
            backing: None,
            read_only: true,
        };
        let xml = volume_xml(&spec).map_err(|e| error(BackendErrorKind::Invalid, image, e.to_string()))?;
        let (pool, volume, path) = (self.pool.clone(), record.volume.clone(), file.path.clone());
        let (tell, label) = (tell.clone(), image.name.to_string());
        let facts = self
            .connection
            .run(&format!("storing image {label}"), TRANSFER, None, move |host| {
                host.create_volume(&pool, &xml)?;
                let file = std::fs::File::open(&path).map_err(|e| Fault::other(e.to_string()))?;
                let mut source = Progressing {
                    file,
                    sent: 0,
                    size,
                    percent: None,
                    tell,
                    label,
                };
                host.upload(&pool, &volume, size, &mut source)?;
                if source.sent != size {
                    return Err(Fault::other("the file changed while it was stored"));
                }
                host.volume_facts(&pool, &volume)
            })
            .await?
            .ok_or_else(|| error(BackendErrorKind::Failed, image, "its volume went away"))?;
        record.ready = true;
        self.write_record(image, &name, &record).await?;
        let base = BaseImage {
            path: facts.path,
            format: image.format,
            virtual_size: inspected.virtual_size,
        };
        Ok((record.volume, base))
    }

    async fn write_record(&self, image: &Image, name: &str, record: &Record) -> Result<()> {
        let mut bytes =
            serde_json::to_vec(record).map_err(|e| error(BackendErrorKind::Failed, image, e.to_string()))?;
        bytes.resize(RECORD_BYTES as usize, 0);
        let xml = volume_xml(&VolumeSpec {
            name: name.to_owned(),
            capacity: RECORD_BYTES,
            format: ImageFormat::Raw,
            backing: None,
            read_only: false,
        })
        .map_err(|e| error(BackendErrorKind::Invalid, image, e.to_string()))?;
        let name = name.to_owned();
        self.call("recording an image", move |host, pool| {
            if host.volume_facts(pool, &name)?.is_none() {
                host.create_volume(pool, &xml)?;
            }
            host.upload(pool, &name, RECORD_BYTES, &mut &bytes[..])
        })
        .await
    }
}

/// A file that says how much of it was read.
struct Progressing {
    file: std::fs::File,
    sent: u64,
    size: u64,
    percent: Option<u8>,
    tell: watch::Sender<Fetch>,
    label: String,
}

impl Source for Progressing {
    fn read(&mut self, buffer: &mut [u8]) -> std::result::Result<usize, Fault> {
        let n = std::io::Read::read(&mut self.file, buffer).map_err(|e| Fault::other(e.to_string()))?;
        self.sent += n as u64;
        let percent = u8::try_from((self.sent * 100).checked_div(self.size).unwrap_or(100)).ok();
        if percent != self.percent {
            self.percent = percent;
            let message = format!("storing image {}", self.label);
            self.tell.send_replace(Fetch::Running(message, percent));
        }
        Ok(n)
    }
}
