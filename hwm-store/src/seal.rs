//! Secrets are sealed (XChaCha20-Poly1305) with a key that lives outside the database file, each bound to
//! its resource, so that neither a copy of the file nor a blob moved to another row gives one away.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use chacha20poly1305::aead::{Aead, Generate, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use hwm_core::config::Config;
use hwm_core::id::ResourceId;
use hwm_core::secret::Secret;
use hwm_core::store::StoreError;
use zeroize::Zeroizing;

use crate::error::OpenError;

const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 24;

/// The first byte of what is sealed: how it is sealed.
const XCHACHA20_POLY1305: u8 = 1;

/// The key that secrets are sealed with. Without it they cannot be read: keep a copy apart from copies of
/// the store.
#[derive(Clone)]
pub struct SealingKey {
    cipher: XChaCha20Poly1305,
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealingKey(***)")
    }
}

impl SealingKey {
    /// A key from its 32 bytes, for services that keep it elsewhere than in a file.
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        let bytes = Zeroizing::new(bytes);
        let cipher = XChaCha20Poly1305::new((&*bytes).into());
        Self { cipher }
    }

    /// Reads the key file, or makes a random key in a new one: 32 bytes, mode 0600, on the disk before this
    /// returns. Of several that make the same file at once all get the one key.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or made, is not 32 bytes long, or may be read by others than its owner.
    pub fn load_or_create(path: &Path) -> Result<Self, OpenError> {
        let io = |source| OpenError::Io {
            path: path.to_owned(),
            source,
        };
        match File::open(path) {
            Ok(file) => Self::load(path, file),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                create(path).map_err(io)?;
                Self::load(path, File::open(path).map_err(io)?)
            }
            Err(error) => Err(io(error)),
        }
    }

    fn load(path: &Path, file: File) -> Result<Self, OpenError> {
        let io = |source| OpenError::Io {
            path: path.to_owned(),
            source,
        };
        let bad = |reason| OpenError::BadKey {
            path: path.to_owned(),
            reason,
        };
        let metadata = file.metadata().map_err(io)?;
        if !metadata.is_file() {
            return Err(bad("it is not a file"));
        }
        if metadata.mode() & 0o077 != 0 {
            return Err(bad("others than its owner may use it; set its mode to 0600"));
        }
        let mut bytes = Zeroizing::new(Vec::with_capacity(KEY_BYTES + 1));
        file.take(KEY_BYTES as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(io)?;
        match <[u8; KEY_BYTES]>::try_from(bytes.as_slice()) {
            Ok(bytes) => Ok(Self::from_bytes(bytes)),
            Err(_) => Err(bad("it is not 32 bytes long; restore it from a backup")),
        }
    }

    fn seal(&self, plain: &[u8], bound_to: &[u8]) -> Result<Vec<u8>, StoreError> {
        let nonce = XNonce::generate();
        let payload = Payload {
            msg: plain,
            aad: bound_to,
        };
        let sealed = self.cipher.encrypt(&nonce, payload);
        let sealed = sealed.map_err(|_| StoreError::new("sealing secrets", "they are too long"))?;
        let mut blob = Vec::with_capacity(1 + NONCE_BYTES + sealed.len());
        blob.push(XCHACHA20_POLY1305);
        blob.extend_from_slice(&nonce);
        blob.extend_from_slice(&sealed);
        Ok(blob)
    }

    fn unseal(&self, blob: &[u8], bound_to: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (kind, rest) = blob.split_first()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_BYTES>()?;
        if *kind != XCHACHA20_POLY1305 {
            return None;
        }
        let payload = Payload {
            msg: sealed,
            aad: bound_to,
        };
        self.cipher
            .decrypt(nonce.into(), payload)
            .ok()
            .map(Zeroizing::new)
    }

    /// Something that only this key unseals.
    pub(crate) fn check_value(&self) -> Result<Vec<u8>, StoreError> {
        self.seal(CHECK, CHECK)
    }

    /// Whether this key sealed a check value.
    pub(crate) fn made(&self, check_value: &[u8]) -> bool {
        self.unseal(check_value, CHECK)
            .is_some_and(|plain| plain.as_slice() == CHECK)
    }

    /// The secrets of a config, sealed; none when it has none.
    pub(crate) fn seal_config(&self, id: ResourceId, config: &Config) -> Result<Option<Vec<u8>>, StoreError> {
        let secrets = config.secrets();
        if secrets.is_empty() {
            return Ok(None);
        }
        let plain: BTreeMap<&str, &str> = secrets.iter().map(|(path, s)| (*path, s.expose())).collect();
        let plain = serde_json::to_vec(&plain).map(Zeroizing::new);
        let plain = plain.map_err(|e| StoreError::new("sealing secrets", e.to_string()))?;
        self.seal(&plain, &bound_to(id)).map(Some)
    }

    /// Puts the secrets back into a config that was sealed for this resource.
    pub(crate) fn unseal_config(
        &self,
        id: ResourceId,
        blob: &[u8],
        config: &mut Config,
    ) -> Result<(), StoreError> {
        let damaged = || {
            let message = "they were not sealed for it with this key, or are damaged: restore a backup";
            StoreError::new(format!("unsealing the secrets of resource {id}"), message)
        };
        let plain = self.unseal(blob, &bound_to(id)).ok_or_else(damaged)?;
        let secrets: BTreeMap<String, Secret> = serde_json::from_slice(&plain).map_err(|_| damaged())?;
        config.restore_secrets(secrets);
        Ok(())
    }
}

const CHECK: &[u8] = b"hwm sealing key";

fn bound_to(id: ResourceId) -> Vec<u8> {
    [b"hwm resource ".as_slice(), &id.as_u128().to_be_bytes()].concat()
}

/// Makes the file whole under another name first, so that a crash leaves no part of a key.
fn create(path: &Path) -> std::io::Result<()> {
    let key = Zeroizing::new(<[u8; KEY_BYTES]>::generate());
    let unique = u64::from_ne_bytes(<[u8; 8]>::generate());
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{unique:016x}"));
    let draft = PathBuf::from(name);
    let made = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&draft)?;
        file.write_all(key.as_slice())?;
        file.sync_all()?;
        // Unlike a rename, a link never takes the place of a key that somebody else made meanwhile.
        match std::fs::hard_link(&draft, path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    })();
    let removed = std::fs::remove_file(&draft);
    made?;
    removed?;
    sync_folder_of(path)
}

/// Makes the entry of a new file durable.
pub(crate) fn sync_folder_of(path: &Path) -> std::io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_file_is_made_once_and_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let first = SealingKey::load_or_create(&path).unwrap();
        let second = SealingKey::load_or_create(&path).unwrap();
        assert!(second.made(&first.check_value().unwrap()));
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!((metadata.len(), metadata.mode() & 0o777), (32, 0o600));
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            1,
            "no draft is left"
        );
    }

    #[test]
    fn all_who_make_the_file_at_once_get_one_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let keys: Vec<SealingKey> = std::thread::scope(|scope| {
            let makers: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| SealingKey::load_or_create(&path).unwrap()))
                .collect();
            makers.into_iter().map(|m| m.join().unwrap()).collect()
        });
        let check = keys[0].check_value().unwrap();
        assert!(keys.iter().all(|k| k.made(&check)));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        for length in [0, 31, 33] {
            std::fs::write(&path, vec![7; length]).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
            let refused = SealingKey::load_or_create(&path).unwrap_err().to_string();
            assert!(refused.contains("32 bytes"), "{refused}");
        }
        std::fs::write(&path, [7; 32]).unwrap();
        for mode in [0o644, 0o640, 0o602] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            let refused = SealingKey::load_or_create(&path).unwrap_err().to_string();
            assert!(refused.contains("0600"), "{refused}");
        }
        let refused = SealingKey::load_or_create(folder.path());
        assert!(refused.is_err(), "a folder is no key");
    }

    #[test]
    fn what_is_sealed_opens_only_where_it_belongs() {
        let key = SealingKey::from_bytes([1; 32]);
        let blob = key.seal(b"canary", b"a").unwrap();
        assert!(!blob.windows(6).any(|w| w == b"canary"));
        assert_eq!(key.unseal(&blob, b"a").unwrap().as_slice(), b"canary");
        assert!(key.unseal(&blob, b"b").is_none(), "another resource");
        assert!(
            SealingKey::from_bytes([2; 32]).unseal(&blob, b"a").is_none(),
            "another key"
        );
        for i in 0..blob.len() {
            let mut damaged = blob.clone();
            damaged[i] ^= 1;
            assert!(key.unseal(&damaged, b"a").is_none(), "byte {i}");
            assert!(key.unseal(&blob[..i], b"a").is_none(), "the first {i} bytes");
        }
    }

    #[test]
    fn a_key_shows_nothing() {
        assert_eq!(
            format!("{:?}", SealingKey::from_bytes([42; 32])),
            "SealingKey(***)"
        );
    }
}
