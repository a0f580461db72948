//! What must not be forgotten when the process dies: which slices are ours, which cards are handed over,
//! which are out of use, and the cards' indexes.
//!
//! One file for each, replaced as a whole and flushed before anything is done to a card. A file that cannot be
//! understood is never deleted: it puts its card out of use, with the reason.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use hwm_core::id::ResourceId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A slice that is ours, or that may be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SliceEntry {
    pub(crate) card: String,
    /// The card's number of the profile.
    pub(crate) profile: u32,
    pub(crate) name: String,
    pub(crate) start: u32,
    pub(crate) size: u32,
    pub(crate) owner: ResourceId,
    pub(crate) generation: u64,
    /// The boot in which it was written; instances do not outlive one.
    pub(crate) boot: String,
    /// Places, as (profile, start), of the instances that were on the card before.
    pub(crate) before: Vec<(u32, u32)>,
    pub(crate) stage: SliceStage,
    /// The virtual function or mediated device that was given a type, for a machine.
    #[serde(default)]
    pub(crate) vgpu: Option<Vgpu>,
}

/// How far a slice is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum SliceStage {
    /// It is about to be made.
    Intended,
    /// The GPU instance is made; its compute instance may be.
    Made {
        /// Id of the GPU instance.
        instance: u32,
        /// UUID, once it is whole.
        uuid: Option<String>,
    },
    /// Nobody can tell whether what is there is ours.
    Doubtful {
        /// Why.
        reason: String,
    },
}

/// How a slice reaches a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Vgpu {
    /// A virtual function that stays on its driver.
    Function(String),
    /// A mediated device, by UUID.
    Mdev(String),
}

/// A card that is handed to a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HandoverEntry {
    pub(crate) card: String,
    pub(crate) owner: ResourceId,
    pub(crate) generation: u64,
    pub(crate) boot: String,
    /// The functions, with the drivers that they had.
    pub(crate) functions: Vec<(String, Option<String>)>,
    /// Whether NVML saw the card before.
    pub(crate) managed: bool,
}

/// A card that is out of use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct QuarantineEntry {
    pub(crate) card: String,
    pub(crate) reason: String,
}

/// A card that was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CardEntry {
    pub(crate) index: u32,
    pub(crate) uuid: String,
    pub(crate) address: String,
    pub(crate) model: String,
    pub(crate) memory: Option<u64>,
    /// Its number in `/dev/nvidiaN`.
    pub(crate) minor: Option<u32>,
    /// The parts that a claim of the whole names. Once named they stay.
    pub(crate) parts: Vec<String>,
}

/// What a kind of file holds, by card and place.
pub(crate) trait Entry: Serialize + DeserializeOwned {
    const KIND: &'static str;
    /// Whether the key ends in a place on the card.
    const PLACED: bool = false;
    fn key(&self) -> String;
}

impl Entry for SliceEntry {
    const KIND: &'static str = "slice";
    const PLACED: bool = true;
    fn key(&self) -> String {
        format!("{}.{}", self.card, self.start)
    }
}

impl Entry for HandoverEntry {
    const KIND: &'static str = "handover";
    fn key(&self) -> String {
        self.card.clone()
    }
}

impl Entry for QuarantineEntry {
    const KIND: &'static str = "quarantine";
    fn key(&self) -> String {
        self.card.clone()
    }
}

impl Entry for CardEntry {
    const KIND: &'static str = "card";
    fn key(&self) -> String {
        self.uuid.clone()
    }
}

/// A file that is no entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unreadable {
    pub(crate) card: String,
    pub(crate) reason: String,
}

/// The folder of entries.
#[derive(Debug, Clone)]
pub(crate) struct Journal {
    folder: PathBuf,
}

impl Journal {
    /// Opens the folder, making it where it is missing, and clears what an interrupted write left.
    pub(crate) fn open(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "new") {
                fs::remove_file(path)?;
            }
        }
        Ok(Self {
            folder: folder.to_owned(),
        })
    }

    /// Writes an entry. When this returns it outlives a loss of power.
    pub(crate) fn put<E: Entry>(&self, entry: &E) -> io::Result<()> {
        let path = self.path::<E>(&entry.key());
        let temporary = path.with_extension("new");
        let mut file = File::create(&temporary)?;
        file.write_all(&serde_json::to_vec(entry)?)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        self.sync()
    }

    /// Removes an entry, if it is there.
    pub(crate) fn remove<E: Entry>(&self, entry: &E) -> io::Result<()> {
        match fs::remove_file(self.path::<E>(&entry.key())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        self.sync()
    }

    /// All entries of a kind, and the files that are none.
    pub(crate) fn all<E: Entry>(&self) -> io::Result<(Vec<E>, Vec<Unreadable>)> {
        let (mut entries, mut unreadable) = (Vec::new(), Vec::new());
        let prefix = format!("{}.", E::KIND);
        for file in fs::read_dir(&self.folder)? {
            let file = file?;
            let name = file.file_name().to_string_lossy().into_owned();
            let Some(key) = name.strip_prefix(&prefix).and_then(|n| n.strip_suffix(".json")) else {
                continue;
            };
            match fs::read(file.path()).map(|b| serde_json::from_slice::<E>(&b)) {
                Ok(Ok(entry)) if safe(&entry.key()) == key => entries.push(entry),
                Ok(Ok(_)) => unreadable.push(unknown::<E>(key, &name, "is about something else")),
                Ok(Err(error)) => unreadable.push(unknown::<E>(key, &name, &error.to_string())),
                Err(error) => unreadable.push(unknown::<E>(key, &name, &error.to_string())),
            }
        }
        entries.sort_by_key(Entry::key);
        Ok((entries, unreadable))
    }

    fn path<E: Entry>(&self, key: &str) -> PathBuf {
        // Cards are named by drivers: whatever is no part of a plain name is left out of the file's.
        self.folder.join(format!("{}.{}.json", E::KIND, safe(key)))
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.folder)?.sync_all()
    }
}

fn safe(key: &str) -> String {
    key.chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "-.:".contains(c) {
                c
            } else {
                '_'
            }
        })
        .collect()
}

fn unknown<E: Entry>(key: &str, name: &str, why: &str) -> Unreadable {
    let card = if E::PLACED {
        key.rsplit_once('.').map_or(key, |(card, _)| card)
    } else {
        key
    }
    .to_owned();
    Unreadable {
        card,
        reason: format!("the journal's {name} cannot be understood: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> QuarantineEntry {
        QuarantineEntry {
            card: "GPU-1".into(),
            reason: "it did not come back".into(),
        }
    }

    #[test]
    fn what_is_written_is_read_and_what_is_removed_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        journal.put(&entry()).unwrap();
        assert_eq!(journal.all::<QuarantineEntry>().unwrap(), (vec![entry()], vec![]));
        journal.remove(&entry()).unwrap();
        journal.remove(&entry()).unwrap();
        assert_eq!(journal.all::<QuarantineEntry>().unwrap(), (vec![], vec![]));
    }

    #[test]
    fn an_interrupted_write_leaves_the_entry_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        Journal::open(folder.path()).unwrap().put(&entry()).unwrap();
        fs::write(folder.path().join("quarantine.GPU-1.new"), "{\"card\"").unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        assert_eq!(journal.all::<QuarantineEntry>().unwrap(), (vec![entry()], vec![]));
    }

    #[test]
    fn a_damaged_entry_is_reported_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        let path = folder.path().join("slice.GPU-1.4.json");
        fs::write(&path, "{\"card\"").unwrap();
        let (entries, unreadable) = journal.all::<SliceEntry>().unwrap();
        assert_eq!((entries.len(), unreadable[0].card.as_str()), (0, "GPU-1"));
        assert!(path.exists());
    }
}
