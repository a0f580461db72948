//! The images that are stored, and the removal of those that serve nobody any more.

use std::collections::{BTreeMap, BTreeSet};

use hwm_core::backend::Result;
use hwm_core::units::Bytes;

use super::record::{Content, Record, image_of, read, write};
use super::{Images, SHORT};
use crate::catalog::{Catalog, Checksum};
use crate::connection::{Fault, Host};
use crate::domain::DiskFiles;

/// An image that is stored in the pool.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoredImage {
    /// Its name in the catalogue that it was fetched by.
    pub name: String,
    /// The volume that holds it.
    pub volume: String,
    /// What its bytes hash to: `sha256:…` or `sha512:…`.
    pub digest: String,
    /// What it takes of the pool.
    pub size: Bytes,
    /// The manager that fetched it: only that one removes it.
    pub owner: String,
    /// How many disks, whoever's, are made from it.
    pub disks: usize,
    /// Whether it is what the catalogue has: the version that it pins, else the newest that was stored.
    pub current: bool,
}

/// A stored image with its record.
struct Found {
    image: StoredImage,
    name: String,
    record: Record,
    path: String,
}

impl Images {
    /// The images that are whole, whoever fetched them.
    pub(crate) async fn stored(&self) -> Result<Vec<StoredImage>> {
        let catalog = self.catalog().clone();
        let found = self
            .shared
            .call("looking at the stored images", move |host, pool| {
                found(host, pool, &catalog)
            })
            .await?;
        Ok(found.into_iter().map(|f| f.image).collect())
    }

    /// Removes what we fetched, nobody needs, and the catalogue has no more; or all of it that nobody needs.
    pub(crate) async fn prune(&self, all: bool) -> Result<Vec<StoredImage>> {
        let catalog = self.catalog().clone();
        let owner = self.shared.owner.clone();
        let pool = self.shared.pool.clone();
        let removed = self
            .shared
            .connection
            .run("removing images", SHORT * 4, None, move |host| {
                let mut removed = Vec::new();
                for candidate in found(host, &pool, &catalog)? {
                    let wanted = candidate.image.current && !all;
                    if candidate.image.owner == owner && candidate.image.disks == 0 && !wanted {
                        removed.extend(retire(host, &pool, candidate)?);
                    }
                }
                Ok(removed)
            })
            .await?;
        Ok(removed)
    }
}

fn found(host: &Host, pool: &str, catalog: &Catalog) -> std::result::Result<Vec<Found>, Fault> {
    // What others have put upon an image is seen only after that.
    host.refresh_pool(pool)?;
    let disks = host.disk_files()?;
    let mut all = Vec::new();
    for name in host.volume_names(pool)? {
        let Some(image) = image_of(&name) else { continue };
        let Content::Record(record) = read(host, pool, &name)? else {
            continue;
        };
        let Some(facts) = host.volume_facts(pool, &record.volume)?.filter(|_| record.ready) else {
            continue;
        };
        all.push(Found {
            image: StoredImage {
                name: image.to_owned(),
                volume: record.volume.clone(),
                digest: record.digest.clone(),
                size: Bytes(facts.allocation),
                owner: record.owner.clone(),
                disks: disks_on(&disks, &facts.path).len(),
                current: false,
            },
            path: facts.path,
            name,
            record,
        });
    }
    let mut newest: BTreeMap<String, i64> = BTreeMap::new();
    for found in &all {
        let stored = newest.entry(found.image.name.clone()).or_insert(i64::MIN);
        *stored = (*stored).max(found.record.stored);
    }
    for found in &mut all {
        let known = catalog
            .images()
            .iter()
            .find(|i| i.name.as_str() == found.image.name);
        found.image.current = known.is_some_and(|known| match &known.checksum {
            Some(Checksum::Pinned(digest)) => digest.to_string() == found.record.digest,
            Some(Checksum::Listed(_)) | None => newest.get(&found.image.name) == Some(&found.record.stored),
        });
    }
    Ok(all)
}

/// The disks that read a file, of volumes and of domains, each once.
fn disks_on<'a>(disks: &'a [DiskFiles], path: &str) -> BTreeSet<&'a str> {
    disks
        .iter()
        .filter(|disk| disk.reads.iter().any(|file| file == path))
        .map(|disk| disk.disk.as_str())
        .collect()
}

/// Removes an image, unless a disk turns up that was made on it meanwhile. Whoever makes one looks at the record
/// afterwards (`Kept::holds`), so one of the two sees the other.
fn retire(host: &Host, pool: &str, candidate: Found) -> std::result::Result<Option<StoredImage>, Fault> {
    let Found {
        image,
        name,
        record,
        path,
    } = candidate;
    let retiring = Record {
        retiring: true,
        ..record.clone()
    };
    write(host, pool, &name, &retiring)?;
    host.refresh_pool(pool)?;
    if !disks_on(&host.disk_files()?, &path).is_empty() {
        write(host, pool, &name, &record)?;
        return Ok(None);
    }
    // Somebody may have said meanwhile that it stays.
    match read(host, pool, &name)? {
        Content::Record(now) if now == retiring => {}
        Content::Record(_) | Content::Nothing | Content::Foreign => return Ok(None),
    }
    host.delete_volume(pool, &record.volume)?;
    host.delete_volume(pool, &name)?;
    Ok(Some(image))
}
