//! From a source to a volume: fetched, hashed, looked at, stored.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::Duration;

use hwm_core::backend::{BackendError, BackendErrorKind, Result};
use tokio::sync::watch;

use super::record::{Kept, Record, record_name, write};
use super::{BaseImage, Fetch, Shared, error};
use crate::catalog::{Checksum, Digest, Image, ImageFormat, ImageSource};
use crate::connection::{Fault, Source};
use crate::domain::{VolumeSpec, volume_xml};
use crate::download::{self, Downloaded};
use crate::qcow2;

/// How long one transfer may take.
const TRANSFER: Duration = Duration::from_secs(3600);
/// How often a fetch by another process is looked at.
const LOCK_POLL: Duration = Duration::from_millis(200);

impl Shared {
    /// Fetches an image, unless it is there. Of several processes with the same cache, a server and `images pull`,
    /// one does.
    pub(super) async fn fetch(&self, image: &Image, tell: &watch::Sender<Fetch>) -> Result<BaseImage> {
        let _alone = alone(&self.cache, image, tell).await?;
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
        let http = self.http()?;
        let expected = match &image.checksum {
            Some(Checksum::Pinned(digest)) => digest.clone(),
            Some(Checksum::Listed(list)) => download::listed(http, list, url).await?,
            None => {
                return Err(error(
                    BackendErrorKind::Invalid,
                    image,
                    "the catalogue has no checksum for it",
                ));
            }
        };
        download::fetch(http, url, &expected, &self.cache, image.name.as_str(), say).await
    }

    /// What downloads; made at the first download, because it needs certificates that a host may lack and who has all
    /// images does not need.
    fn http(&self) -> std::result::Result<&reqwest::Client, BackendError> {
        if let Some(client) = self.http.get() {
            return Ok(client);
        }
        let client = download::client()?;
        Ok(self.http.get_or_init(|| client))
    }

    /// Puts a checked file into the pool.
    async fn store(
        &self,
        image: &Image,
        file: &Downloaded,
        tell: &watch::Sender<Fetch>,
    ) -> Result<BaseImage> {
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
            stored: jiff::Timestamp::now().as_millisecond(),
            retiring: false,
            volume: format!("hwm-image-{}-{}-{}.img", image.name, &digest[..16], &nonce[..8]),
            digest: file.digest.to_string(),
            virtual_size: inspected.virtual_size,
            ready: false,
        };
        let name = record_name(image.name.as_str(), &digest);
        self.record(&name, &record).await?;
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
        self.record(&name, &record).await?;
        Ok(BaseImage {
            kept: Kept {
                volume: record.volume,
                record: name,
            },
            path: facts.path,
            format: image.format,
            virtual_size: inspected.virtual_size,
        })
    }

    async fn record(&self, name: &str, record: &Record) -> Result<()> {
        let (name, record) = (name.to_owned(), record.clone());
        self.call("recording an image", move |host, pool| {
            write(host, pool, &name, &record)
        })
        .await
    }
}

/// Waits until no other process with this cache fetches the image.
async fn alone(cache: &Path, image: &Image, tell: &watch::Sender<Fetch>) -> Result<File> {
    let failed = |e: std::io::Error| {
        let message = format!("{}: {e}", cache.display());
        error(BackendErrorKind::Failed, image, message)
    };
    tokio::fs::create_dir_all(cache).await.map_err(failed)?;
    let path = cache.join(format!("{}.lock", image.name));
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(failed)?;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => {
                let message = format!("waiting for another process that fetches image {}", image.name);
                tell.send_replace(Fetch::Running(message, None));
                tokio::time::sleep(LOCK_POLL).await;
            }
            Err(TryLockError::Error(e)) => return Err(failed(e)),
        }
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
