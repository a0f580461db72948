//! Looks at the first bytes of a disk image before anything opens it: QEMU would follow what a header names.

use crate::catalog::ImageFormat;

/// How many bytes of an image [`inspect`] needs, where the image has so many.
pub(crate) const HEADER_BYTES: usize = 64 * 1024;

const MAGIC: u32 = 0x5146_49fb;
const INCOMPATIBLE_KNOWN: u64 = 0b1_1011;
const EXTERNAL_DATA_FILE: u64 = 1 << 2;
const EXTENSION_END: u32 = 0;
const EXTENSION_DATA_FILE: u32 = 0x4441_5441;

/// What a header says of its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Inspected {
    /// The size of the disk that a guest sees, in bytes.
    pub virtual_size: u64,
}

/// Why an image is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// It is not in the format that the catalogue says.
    #[error("it is not {expected}, as the catalogue says it is")]
    NotTheFormat {
        /// The catalogue's word.
        expected: &'static str,
    },
    /// It looks like a disk in another format, which something could open as that.
    #[error("it is declared raw and begins like {0}")]
    Disguised(&'static str),
    /// It reads from a file beside itself.
    #[error("it names a backing file")]
    BackingFile,
    /// It keeps its data in a file beside itself.
    #[error("it names an external data file")]
    DataFile,
    /// It is encrypted.
    #[error("it is encrypted")]
    Encrypted,
    /// It needs something that is not known to be harmless.
    #[error("it needs features that are not known: {0:#x}")]
    UnknownFeatures(u64),
    /// Its header contradicts itself.
    #[error("its header is broken: {0}")]
    Broken(&'static str),
}

/// Judges an image of `size` bytes by its `head`: the first [`HEADER_BYTES`], or all of it where it is shorter.
///
/// # Errors
/// Why it is not used. Nothing is opened and nothing is followed.
pub(crate) fn inspect(head: &[u8], size: u64, format: ImageFormat) -> Result<Inspected, Refusal> {
    match format {
        ImageFormat::Raw => match disguise(head) {
            Some(other) => Err(Refusal::Disguised(other)),
            None => Ok(Inspected { virtual_size: size }),
        },
        ImageFormat::Qcow2 => qcow2(head),
    }
}

fn disguise(head: &[u8]) -> Option<&'static str> {
    const SIGNS: [(usize, &[u8], &str); 13] = [
        (0, b"QFI\xfb", "qcow2"),
        (0, b"QED\0", "qed"),
        (0, b"KDMV", "vmdk"),
        (0, b"COWD", "vmdk"),
        (0, b"# Disk DescriptorFile", "vmdk"),
        (0, b"vhdxfile", "vhdx"),
        (0, b"conectix", "vhd"),
        (0, b"WithoutFreeSpace", "parallels"),
        (0, b"WithouFreSpacExt", "parallels"),
        (0, b"Bochs Virtual HD Image", "bochs"),
        (0, b"#!/bin/sh\n#V2.0 Format", "cloop"),
        (0, b"LUKS\xba\xbe", "luks"),
        (64, b"\x7f\x10\xda\xbe", "vdi"),
    ];
    SIGNS
        .iter()
        .find(|(at, sign, _)| head.get(*at..).is_some_and(|rest| rest.starts_with(sign)))
        .map(|(_, _, name)| *name)
}

fn u32_at(head: &[u8], at: usize) -> Result<u32, Refusal> {
    head.get(at..)
        .and_then(<[u8]>::first_chunk)
        .map(|b| u32::from_be_bytes(*b))
        .ok_or(Refusal::Broken("it ends too early"))
}

fn u64_at(head: &[u8], at: usize) -> Result<u64, Refusal> {
    head.get(at..)
        .and_then(<[u8]>::first_chunk)
        .map(|b| u64::from_be_bytes(*b))
        .ok_or(Refusal::Broken("it ends too early"))
}

fn qcow2(head: &[u8]) -> Result<Inspected, Refusal> {
    if u32_at(head, 0).ok() != Some(MAGIC) {
        return Err(Refusal::NotTheFormat { expected: "qcow2" });
    }
    let version = u32_at(head, 4)?;
    let cluster_bits = u32_at(head, 20)?;
    if !(9..=21).contains(&cluster_bits) {
        return Err(Refusal::Broken("cluster size"));
    }
    if u64_at(head, 8)? != 0 || u32_at(head, 16)? != 0 {
        return Err(Refusal::BackingFile);
    }
    if u32_at(head, 32)? != 0 {
        return Err(Refusal::Encrypted);
    }
    let extensions = match version {
        2 => 72,
        3 => {
            let incompatible = u64_at(head, 72)?;
            if incompatible & EXTERNAL_DATA_FILE != 0 {
                return Err(Refusal::DataFile);
            }
            if incompatible & !INCOMPATIBLE_KNOWN != 0 {
                return Err(Refusal::UnknownFeatures(incompatible & !INCOMPATIBLE_KNOWN));
            }
            let length = u32_at(head, 100)? as usize;
            if length < 104 || !length.is_multiple_of(8) {
                return Err(Refusal::Broken("header length"));
            }
            length
        }
        _ => return Err(Refusal::Broken("version")),
    };
    refuse_data_file_extension(head, extensions, 1 << cluster_bits)?;
    Ok(Inspected {
        virtual_size: u64_at(head, 24)?,
    })
}

/// Extensions lie between the header and the end of the first cluster; each is padded to eight bytes.
fn refuse_data_file_extension(head: &[u8], mut at: usize, cluster: usize) -> Result<(), Refusal> {
    let end = cluster.min(head.len());
    while at + 8 <= end {
        let length = u32_at(head, at + 4)? as usize;
        match u32_at(head, at)? {
            EXTENSION_END => break,
            EXTENSION_DATA_FILE => return Err(Refusal::DataFile),
            _ => {}
        }
        if length > end - at - 8 {
            return Err(Refusal::Broken("an extension that ends outside"));
        }
        at += 8 + length.next_multiple_of(8);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(version: u32) -> Vec<u8> {
        let mut head = vec![0; 65_536];
        head[..4].copy_from_slice(b"QFI\xfb");
        head[4..8].copy_from_slice(&version.to_be_bytes());
        head[20..24].copy_from_slice(&16u32.to_be_bytes());
        head[24..32].copy_from_slice(&(3u64 << 30).to_be_bytes());
        head[100..104].copy_from_slice(&112u32.to_be_bytes());
        head
    }

    fn put(mut head: Vec<u8>, at: usize, bytes: &[u8]) -> Result<Inspected, Refusal> {
        head[at..at + bytes.len()].copy_from_slice(bytes);
        inspect(&head, 1 << 20, ImageFormat::Qcow2)
    }

    #[test]
    fn a_plain_image_tells_its_size() {
        for version in [2, 3] {
            let seen = inspect(&header(version), 1 << 20, ImageFormat::Qcow2).unwrap();
            assert_eq!(seen.virtual_size, 3 << 30);
        }
    }

    #[test]
    fn what_reads_other_files_is_refused() {
        assert_eq!(
            put(header(3), 8, &[0, 0, 0, 0, 0, 0, 2, 0]),
            Err(Refusal::BackingFile)
        );
        assert_eq!(put(header(2), 16, &[0, 0, 0, 9]), Err(Refusal::BackingFile));
        assert_eq!(put(header(3), 79, &[4]), Err(Refusal::DataFile));
        assert_eq!(
            put(header(3), 112, b"DATA\0\0\0\x0b/etc/shadow"),
            Err(Refusal::DataFile)
        );
        assert_eq!(
            put(header(3), 112, b"\x68\x03\xf8\x57\0\0\0\x05abcde\0\0\0DATA"),
            Err(Refusal::DataFile)
        );
        assert_eq!(put(header(2), 72, b"DATA\0\0\0\x01/"), Err(Refusal::DataFile));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        assert_eq!(put(header(3), 35, &[2]), Err(Refusal::Encrypted));
        assert_eq!(put(header(3), 72, &[1]), Err(Refusal::UnknownFeatures(1 << 56)));
        assert_eq!(put(header(4), 0, b"Q"), Err(Refusal::Broken("version")));
        assert_eq!(put(header(3), 23, &[63]), Err(Refusal::Broken("cluster size")));
        assert_eq!(
            put(header(3), 112, b"abcd\xff\xff\xff\xff"),
            Err(Refusal::Broken("an extension that ends outside"))
        );
        assert_eq!(
            inspect(b"MZ", 2, ImageFormat::Qcow2),
            Err(Refusal::NotTheFormat { expected: "qcow2" })
        );
    }

    #[test]
    fn a_raw_disk_that_looks_like_another_format_is_refused() {
        assert_eq!(
            inspect(&header(3), 1 << 20, ImageFormat::Raw),
            Err(Refusal::Disguised("qcow2"))
        );
        assert_eq!(
            inspect(b"# Disk DescriptorFile\nversion=1", 30, ImageFormat::Raw),
            Err(Refusal::Disguised("vmdk"))
        );
        assert!(inspect(&[0; 512], 512, ImageFormat::Raw).is_ok());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut head in proptest::collection::vec(any::<u8>(), 0..400), magic: bool) {
            if magic && head.len() >= 4 {
                head[..4].copy_from_slice(b"QFI\xfb");
            }
            let _ = inspect(&head, 400, ImageFormat::Qcow2);
            let _ = inspect(&head, 400, ImageFormat::Raw);
        }

        #[test]
        fn no_image_with_a_backing_file_passes(offset in 1u64.., size: u32, version in 2u32..=3) {
            let mut head = header(version);
            head[8..16].copy_from_slice(&offset.to_be_bytes());
            head[16..20].copy_from_slice(&size.to_be_bytes());
            prop_assert_eq!(inspect(&head, 1 << 20, ImageFormat::Qcow2), Err(Refusal::BackingFile));
        }
    }
}
