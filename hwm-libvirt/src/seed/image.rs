//! The seed as a disk: a small FAT file system labelled `CIDATA`, and behind it the mark of whose it is.

use std::io::{self, Cursor, Write};

use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions};
use hwm_core::id::ResourceId;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::Seed;

/// Where the file system ends and the mark begins.
pub(crate) const MARKER_OFFSET: u64 = 1 << 20;
/// How many bytes the mark has.
pub(crate) const MARKER_BYTES: u64 = 4096;
/// The size of a seed, in bytes.
pub(crate) const SEED_BYTES: u64 = MARKER_OFFSET + MARKER_BYTES;

const LABEL: [u8; 11] = *b"CIDATA     ";

/// Whose a seed is, and with it the other volumes of the machine. libvirt keeps no metadata of volumes, so this
/// is what tells ours from others' when the domain itself was undefined behind our back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Marker {
    /// The manager's owner label.
    pub owner: String,
    /// The machine.
    pub resource: ResourceId,
}

impl Marker {
    /// Reads the mark from the bytes behind a seed's file system; none where they are not a mark.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        serde_json::from_slice(&bytes[..end]).ok()
    }
}

/// The seed as the bytes of a disk.
///
/// # Errors
/// More data than a seed has room for, or an owner label longer than the mark.
pub(crate) fn seed_image(seed: &Seed, marker: &Marker) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(vec![0; SEED_BYTES as usize]);
    let (disk, mark) = bytes.split_at_mut(MARKER_OFFSET as usize);
    fatfs::format_volume(
        Cursor::new(&mut *disk),
        FormatVolumeOptions::new()
            .fat_type(FatType::Fat12)
            .volume_id(0x0068_776d)
            .volume_label(LABEL),
    )?;
    {
        let file_system = FileSystem::new(Cursor::new(&mut *disk), FsOptions::new())?;
        let root = file_system.root_dir();
        for (name, text) in [
            ("meta-data", seed.meta_data.as_str()),
            ("user-data", seed.user_data.as_str()),
            ("network-config", seed.network_config.as_str()),
        ] {
            root.create_file(name)?.write_all(text.as_bytes())?;
        }
    }
    let json = serde_json::to_vec(marker)?;
    mark.get_mut(..json.len())
        .ok_or_else(|| io::Error::other("the owner label is too long"))?
        .copy_from_slice(&json);
    Ok(bytes)
}
