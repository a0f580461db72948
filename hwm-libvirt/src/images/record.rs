//! The small volumes that say what the image volumes are.

use hwm_core::backend::{BackendError, BackendErrorKind, Result};
use serde::{Deserialize, Serialize};

use super::{BaseImage, Shared, error};
use crate::catalog::{Image, ImageFormat};
use crate::connection::{Fault, FaultKind, Host};
use crate::domain::{VolumeSpec, volume_xml};

const RECORD_BYTES: u64 = 4096;

/// What the small volume beside an image says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) owner: String,
    pub(super) volume: String,
    pub(super) digest: String,
    pub(super) virtual_size: u64,
    pub(super) ready: bool,
    /// When it was stored, in milliseconds since 1970.
    #[serde(default)]
    pub(super) stored: i64,
    /// It is about to be removed, unless a machine turns out to need it.
    #[serde(default)]
    pub(super) retiring: bool,
}

/// Where an image is kept: the volume with its bytes, and the one with its record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) volume: String,
    pub(crate) record: String,
}

impl Kept {
    /// Whether the image is there to stay; asked when a disk on it has been made, because until then nobody could
    /// see that it is needed.
    pub(crate) fn holds(&self, host: &Host, pool: &str) -> std::result::Result<bool, Fault> {
        let record = match read(host, pool, &self.record)? {
            Content::Record(record) => record,
            Content::Nothing | Content::Foreign => return Ok(false),
        };
        let stays = record.ready && !record.retiring && record.volume == self.volume;
        Ok(stays && host.which_volumes(pool, std::slice::from_ref(&self.volume))? == [true])
    }
}

/// What the volume of a record's name holds.
pub(super) enum Content {
    /// There is no such volume, or it was made and not written before a crash.
    Nothing,
    Record(Record),
    /// Something that is not hwm's.
    Foreign,
}

pub(super) fn read(host: &Host, pool: &str, name: &str) -> std::result::Result<Content, Fault> {
    let bytes = match host.download(pool, name, 0, RECORD_BYTES) {
        Ok(bytes) => bytes,
        Err(fault) if fault.kind == FaultKind::NotFound => return Ok(Content::Nothing),
        Err(fault) => return Err(fault),
    };
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    Ok(match serde_json::from_slice(&bytes[..end]) {
        Ok(record) => Content::Record(record),
        Err(_) if end == 0 => Content::Nothing,
        Err(_) => Content::Foreign,
    })
}

pub(super) fn write(host: &Host, pool: &str, name: &str, record: &Record) -> std::result::Result<(), Fault> {
    let mut bytes = serde_json::to_vec(record).map_err(|e| Fault::other(e.to_string()))?;
    bytes.resize(RECORD_BYTES as usize, 0);
    if host.volume_facts(pool, name)?.is_none() {
        let xml = volume_xml(&VolumeSpec {
            name: name.to_owned(),
            capacity: RECORD_BYTES,
            format: ImageFormat::Raw,
            backing: None,
            read_only: false,
        })
        .map_err(|e| Fault::other(e.to_string()))?;
        host.create_volume(pool, &xml)?;
    }
    host.upload(pool, name, RECORD_BYTES, &mut &bytes[..])
}

pub(super) fn record_name(image: &str, digest: &str) -> String {
    format!("hwm-image-{image}-{}.json", &digest[..16])
}

/// The image that a volume of this name is the record of.
pub(super) fn image_of(record: &str) -> Option<&str> {
    let (image, digest) = record
        .strip_prefix("hwm-image-")?
        .strip_suffix(".json")?
        .rsplit_once('-')?;
    (digest.len() == 16 && digest.bytes().all(|b| b.is_ascii_hexdigit())).then_some(image)
}

impl Shared {
    /// An image that is in the pool already; `digest` where it is known which.
    pub(super) async fn present(&self, image: &Image, digest: Option<&str>) -> Result<Option<BaseImage>> {
        let names = match digest {
            Some(digest) => vec![record_name(image.name.as_str(), digest)],
            None => {
                let mut names = self
                    .call("looking for an image", |host, pool| host.volume_names(pool))
                    .await?;
                names.retain(|name| image_of(name) == Some(image.name.as_str()));
                names
            }
        };
        for name in names {
            let looked = name.clone();
            let content = self
                .call("looking for an image", move |host, pool| {
                    read(host, pool, &looked)
                })
                .await?;
            let record = match content {
                Content::Nothing => continue,
                Content::Record(record) => record,
                Content::Foreign => return Err(foreign(image, &name)),
            };
            if let Some(found) = self.take(image, name, record).await? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The image of a record, where it is whole. What a fetch of ours left that broke off is removed.
    async fn take(&self, image: &Image, name: String, record: Record) -> Result<Option<BaseImage>> {
        let volume = record.volume.clone();
        let facts = self
            .call("looking for an image", move |host, pool| {
                host.volume_facts(pool, &volume)
            })
            .await?;
        match facts {
            Some(facts) if record.ready => {
                let kept = Kept {
                    volume: record.volume.clone(),
                    record: name.clone(),
                };
                let virtual_size = record.virtual_size;
                if record.retiring {
                    let stays = Record {
                        retiring: false,
                        ..record
                    };
                    self.call("keeping an image", move |host, pool| {
                        write(host, pool, &name, &stays)
                    })
                    .await?;
                }
                Ok(Some(BaseImage {
                    kept,
                    path: facts.path,
                    format: image.format,
                    virtual_size,
                }))
            }
            _ if record.owner == self.owner => {
                self.call("removing a broken image", move |host, pool| {
                    host.delete_volume(pool, &record.volume)?;
                    host.delete_volume(pool, &name)
                })
                .await?;
                Ok(None)
            }
            _ => {
                let message = format!(
                    "{} is fetching it into the same pool: try again later",
                    record.owner
                );
                Err(error(BackendErrorKind::Conflict, image, message))
            }
        }
    }
}

fn foreign(image: &Image, name: &str) -> BackendError {
    error(
        BackendErrorKind::Conflict,
        image,
        format!("the pool has a volume {name} that is not hwm's: remove or rename it"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_known_by_its_name() {
        let name = record_name("debian-12", &"a".repeat(64));
        assert_eq!(image_of(&name), Some("debian-12"));
        assert_eq!(image_of("hwm-image-debian-12.json"), None);
        assert_eq!(
            image_of("hwm-image-debian-12-0123456789abcdef-01234567.img"),
            None
        );
    }

    #[test]
    fn a_record_of_an_older_release_stays() {
        let old = r#"{"owner":"o","volume":"v","digest":"sha256:00","virtual_size":1,"ready":true}"#;
        let record: Record = serde_json::from_str(old).unwrap();
        assert!(record.ready && !record.retiring);
    }
}
