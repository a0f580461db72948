//! The image catalogue: which operating systems a machine can be made from, and what each needs.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, de};

const BUILT_IN: &str = include_str!("catalog.toml");

/// The images that machines can be made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Catalog {
    images: Vec<Image>,
}

/// An image that machines can be made from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// Its name, as `osImage` gives it.
    pub name: ImageName,
    /// Other names for it.
    #[serde(default)]
    pub aliases: Vec<ImageName>,
    /// How its bytes are laid out. Never guessed from the bytes.
    pub format: ImageFormat,
    /// Where its bytes come from.
    pub source: ImageSource,
    /// What its bytes must hash to; may be left out for a file of this host only.
    pub checksum: Option<Checksum>,
    /// The user that is made where a machine names none.
    pub user: String,
    /// Which family of guests it is.
    #[serde(default)]
    pub guest: Guest,
    /// What starts it.
    #[serde(default)]
    pub firmware: Firmware,
    /// Whether it wants a TPM.
    #[serde(default)]
    pub tpm: bool,
    /// How its disk and network are attached.
    #[serde(default)]
    pub bus: Bus,
}

/// How the bytes of an image are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// QEMU's own, without a backing file.
    Qcow2,
    /// A disk, byte by byte.
    Raw,
}

impl ImageFormat {
    /// libvirt's word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
        }
    }
}

/// Which family of guests an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Guest {
    /// Linux with cloud-init.
    #[default]
    Linux,
    /// Windows with cloudbase-init.
    Windows,
}

/// What starts a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Firmware {
    /// SeaBIOS.
    #[default]
    Bios,
    /// OVMF.
    Uefi,
}

/// How disk and network are attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bus {
    /// virtio, for guests that have its drivers.
    #[default]
    Virtio,
    /// SATA and e1000e, for guests that do not.
    Sata,
}

/// Where the bytes of an image come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageSource {
    /// `https://`, or `http://` on loopback.
    Url(String),
    /// `file://`: a file of the host that hwm runs on.
    File(PathBuf),
    /// The operator has to supply it, for its licence.
    Operator,
}

/// What the bytes of an image must hash to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checksum {
    /// Known beforehand: `sha256:…` or `sha512:…`.
    Pinned(Digest),
    /// In a list of checksums at this URL, as its distributor publishes it.
    Listed(String),
}

/// A digest of an image.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Digest {
    /// SHA-256, in lower-case hexadecimal.
    Sha256(String),
    /// SHA-512, in lower-case hexadecimal.
    Sha512(String),
}

impl Digest {
    /// The hexadecimal digits.
    pub fn hex(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::Sha512(hex) => hex,
        }
    }

    fn from_hex(hex: &str) -> Option<Self> {
        if !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let hex = hex.to_ascii_lowercase();
        match hex.len() {
            64 => Some(Self::Sha256(hex)),
            128 => Some(Self::Sha512(hex)),
            _ => None,
        }
    }

    /// The digest of `file` in a list as `sha256sum` (`digest  file`) or BSD's tools (`SHA256 (file) = digest`)
    /// write it.
    pub fn find_in_list(list: &str, file: &str) -> Option<Self> {
        list.lines().find_map(|line| {
            let line = line.trim();
            if let Some((name, digest)) = line
                .split_once(" (")
                .and_then(|(_, rest)| rest.split_once(") = "))
            {
                return (name == file).then(|| Self::from_hex(digest)).flatten();
            }
            let (digest, name) = line.split_once(char::is_whitespace)?;
            let name = name.trim_start().trim_start_matches('*').trim_start_matches("./");
            (name == file).then(|| Self::from_hex(digest)).flatten()
        })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha256(hex) => write!(f, "sha256:{hex}"),
            Self::Sha512(hex) => write!(f, "sha512:{hex}"),
        }
    }
}

impl FromStr for Digest {
    type Err = CatalogError;

    fn from_str(text: &str) -> Result<Self, CatalogError> {
        let found = text
            .split_once(':')
            .and_then(|(kind, hex)| Self::from_hex(hex).filter(|d| d.to_string().starts_with(kind)));
        found.ok_or_else(|| CatalogError(format!("{text:?} is neither sha256:… nor sha512:…")))
    }
}

/// A name of an image: lower-case letters, digits, `.`, `_` and `-`, 64 at most.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageName(String);

impl ImageName {
    /// The text itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for ImageName {
    type Err = CatalogError;

    fn from_str(text: &str) -> Result<Self, CatalogError> {
        let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
        let first = text.bytes().next();
        if text.len() <= 64 && text.bytes().all(ok) && first.is_some_and(|b| b.is_ascii_alphanumeric()) {
            Ok(Self(text.to_owned()))
        } else {
            Err(CatalogError(format!("{text:?} is no name for an image")))
        }
    }
}

impl FromStr for ImageSource {
    type Err = CatalogError;

    fn from_str(text: &str) -> Result<Self, CatalogError> {
        let loopback = ["http://127.0.0.1", "http://localhost", "http://[::1]"]
            .iter()
            .filter_map(|host| text.strip_prefix(host))
            .any(|rest| rest.starts_with([':', '/']));
        if text == "operator" {
            Ok(Self::Operator)
        } else if text.starts_with("https://") || loopback {
            Ok(Self::Url(text.to_owned()))
        } else if let Some(path) = text.strip_prefix("file://").filter(|p| p.starts_with('/')) {
            Ok(Self::File(path.into()))
        } else {
            Err(CatalogError(format!(
                "source {text:?} must be https://…, file:///… or operator"
            )))
        }
    }
}

impl FromStr for Checksum {
    type Err = CatalogError;

    fn from_str(text: &str) -> Result<Self, CatalogError> {
        match text.parse()? {
            ImageSource::Url(url) => Ok(Self::Listed(url)),
            ImageSource::File(_) | ImageSource::Operator => Err(CatalogError(format!(
                "checksum {text:?} must be sha256:…, sha512:… or https://…"
            ))),
        }
    }
}

fn from_text<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: FromStr<Err = CatalogError>,
    D: Deserializer<'de>,
{
    String::deserialize(deserializer)?
        .parse()
        .map_err(de::Error::custom)
}

impl<'de> Deserialize<'de> for ImageName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer)
    }
}

impl<'de> Deserialize<'de> for ImageSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer)
    }
}

impl<'de> Deserialize<'de> for Checksum {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.parse::<Digest>() {
            Ok(digest) => Ok(Self::Pinned(digest)),
            Err(_) => text.parse().map_err(de::Error::custom),
        }
    }
}

/// A catalogue that cannot be used, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the image catalogue: {0}")]
pub struct CatalogError(String);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CatalogFile {
    image: Vec<Image>,
}

impl Catalog {
    /// The eight OS images of the contract.
    ///
    /// ```
    /// let catalog = hwm_libvirt::Catalog::built_in().unwrap();
    /// assert_eq!(catalog.find("bookworm").unwrap().name.as_str(), "debian-12");
    /// ```
    ///
    /// # Errors
    /// None that a release could have: its catalogue is read by its tests.
    pub fn built_in() -> Result<Self, CatalogError> {
        Self::parse(BUILT_IN)
    }

    /// Reads a catalogue in TOML.
    ///
    /// # Errors
    /// Broken TOML, an unknown field, a name that stands for two images, a download without a checksum.
    pub fn parse(text: &str) -> Result<Self, CatalogError> {
        let images = toml::from_str::<CatalogFile>(text)
            .map_err(|e| CatalogError(e.to_string()))?
            .image;
        let mut names = std::collections::BTreeSet::new();
        for image in &images {
            for name in std::iter::once(&image.name).chain(&image.aliases) {
                if !names.insert(name.as_str()) {
                    return Err(CatalogError(format!("{name} stands for two images")));
                }
            }
            if matches!(image.source, ImageSource::Url(_)) && image.checksum.is_none() {
                return Err(CatalogError(format!(
                    "{} is downloaded and has no checksum",
                    image.name
                )));
            }
        }
        Ok(Self { images })
    }

    /// The image of this name or alias.
    pub fn find(&self, name: &str) -> Option<&Image> {
        self.images
            .iter()
            .find(|image| image.name.as_str() == name || image.aliases.iter().any(|a| a.as_str() == name))
    }

    /// All images, in the catalogue's order.
    pub fn images(&self) -> &[Image] {
        &self.images
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_catalogue_has_the_contracts_eight() {
        let catalog = Catalog::built_in().unwrap();
        for name in [
            "ubuntu-22.04",
            "ubuntu-20.04",
            "centos-8",
            "centos-7",
            "windows-server-2022",
            "windows-server-2019",
            "debian-12",
            "debian-11",
        ] {
            assert!(catalog.find(name).is_some(), "{name}");
        }
        assert_eq!(catalog.images().len(), 8);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let image = |rest: &str| format!("[[image]]\nname = \"a\"\nformat = \"raw\"\nuser = \"u\"\n{rest}");
        let refused = |text: &str| Catalog::parse(text).unwrap_err().to_string();
        assert!(Catalog::parse(&image("source = \"file:///a\"")).is_ok());
        assert!(refused(&image("source = \"file:///a\"\nbuss = \"sata\"")).contains("buss"));
        assert!(refused(&image("source = \"http://example.org/a\"")).contains("https://"));
        assert!(refused(&image("source = \"http://127.0.0.1.example.org/a\"")).contains("https://"));
        assert!(refused(&image("source = \"https://example.org/a\"")).contains("checksum"));
        assert!(refused(&image("source = \"file:///a\"\nchecksum = \"sha256:12\"")).contains("checksum"));
        let twice = format!("{0}\n{0}", image("source = \"operator\""));
        assert!(refused(&twice).contains("two images"));
        for name in ["", "../a", "A", "a/b", "a b", ".a"] {
            assert!(name.parse::<ImageName>().is_err(), "{name}");
        }
    }

    #[test]
    fn both_kinds_of_checksum_lists_are_read() {
        let hex = "a".repeat(64);
        let gnu = format!("{}  other.img\n{hex} *disk.img\n", "b".repeat(64));
        assert_eq!(
            Digest::find_in_list(&gnu, "disk.img"),
            Some(Digest::Sha256(hex.clone()))
        );
        let bsd = format!("# disk.img: 12 bytes\nSHA256 (disk.img) = {hex}\n");
        assert_eq!(Digest::find_in_list(&bsd, "disk.img"), Some(Digest::Sha256(hex)));
        assert_eq!(Digest::find_in_list(&bsd, "isk.img"), None);
        assert_eq!(Digest::find_in_list("zz disk.img", "disk.img"), None);
    }
}
