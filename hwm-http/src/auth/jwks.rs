//! A JWKS file, read again when it changes.

use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant, SystemTime};

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};

use super::AuthError;
use super::jwt::Key;

/// How often the file is looked at, at most.
const LOOK_EVERY: Duration = Duration::from_millis(500);

pub(super) struct JwksFile {
    path: PathBuf,
    read: RwLock<Read>,
}

struct Read {
    keys: Arc<Vec<Key>>,
    stamp: Option<Stamp>,
    looked: Instant,
}

/// What tells one version of a file from the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: SystemTime,
    size: u64,
    #[cfg(unix)]
    inode: u64,
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(path).ok()?;
        Some(Self {
            modified: metadata.modified().ok()?,
            size: metadata.len(),
            #[cfg(unix)]
            inode: std::os::unix::fs::MetadataExt::ino(&metadata),
        })
    }
}

impl JwksFile {
    pub(super) fn open(path: &Path) -> Result<Self, AuthError> {
        let stamp = Stamp::of(path);
        Ok(Self {
            path: path.to_owned(),
            read: RwLock::new(Read {
                keys: Arc::new(load(path)?),
                stamp,
                looked: Instant::now(),
            }),
        })
    }

    /// The keys as the file has them now, or had them when it could be read last.
    pub(super) fn keys(&self) -> Arc<Vec<Key>> {
        {
            let read = self.read.read().unwrap_or_else(|e| e.into_inner());
            if read.looked.elapsed() < LOOK_EVERY {
                return read.keys.clone();
            }
        }
        let mut read = self.read.write().unwrap_or_else(|e| e.into_inner());
        if read.looked.elapsed() >= LOOK_EVERY {
            read.looked = Instant::now();
            let stamp = Stamp::of(&self.path);
            if stamp != read.stamp {
                match load(&self.path) {
                    Ok(keys) => {
                        tracing::info!(path = %self.path.display(), keys = keys.len(), "read the JWKS file again");
                        read.keys = Arc::new(keys);
                    }
                    Err(error) => tracing::warn!(%error, "the keys that were read before stay"),
                }
                read.stamp = stamp;
            }
        }
        read.keys.clone()
    }
}

impl std::fmt::Debug for JwksFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JwksFile").field("path", &self.path).finish()
    }
}

fn load(path: &Path) -> Result<Vec<Key>, AuthError> {
    let unusable = |reason: &str| AuthError::Jwks {
        path: path.to_owned(),
        reason: reason.to_owned(),
    };
    let text = std::fs::read(path).map_err(|source| AuthError::ReadJwks {
        path: path.to_owned(),
        source,
    })?;
    let set: JwkSet = serde_json::from_slice(&text).map_err(|e| unusable(&e.to_string()))?;
    let keys: Vec<Key> = set.keys.iter().filter_map(usable).collect();
    if keys.is_empty() {
        return Err(unusable("it has no key for RS256, ES256 or EdDSA signatures"));
    }
    Ok(keys)
}

/// A public key for signatures, bound to the algorithm of its kind. A symmetric key in a file that is
/// meant to be public is never used.
fn usable(jwk: &Jwk) -> Option<Key> {
    if !matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature)) {
        return None;
    }
    let (algorithm, named) = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => (Algorithm::RS256, KeyAlgorithm::RS256),
        AlgorithmParameters::EllipticCurve(p) if p.curve == EllipticCurve::P256 => {
            (Algorithm::ES256, KeyAlgorithm::ES256)
        }
        AlgorithmParameters::OctetKeyPair(p) if p.curve == EllipticCurve::Ed25519 => {
            (Algorithm::EdDSA, KeyAlgorithm::EdDSA)
        }
        _ => return None,
    };
    if jwk.common.key_algorithm.is_some_and(|given| given != named) {
        return None;
    }
    let key = DecodingKey::from_jwk(jwk).ok()?;
    Some(Key::new(jwk.common.key_id.clone(), algorithm, key))
}
