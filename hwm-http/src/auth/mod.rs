//! Who is asking: bearer tokens, checked against keys of the operator's choice.

mod caller;
mod jwks;
pub mod jwt;
mod visitor;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hwm_core::units::Timestamp;
use jsonwebtoken::{Algorithm, DecodingKey};

pub(crate) use caller::{Caller, Identity};
use jwks::JwksFile;
pub use jwt::{Claims, sign_hs256};
use jwt::{Expectations, Key, Refused, Verified};
pub(crate) use visitor::Visitor;

/// The shortest shared secret, in bytes.
pub const SHORTEST_SECRET: usize = 16;
/// RFC 7518 asks for a secret as long as the hash.
const GOOD_SECRET: usize = 32;

/// Why keys cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// The shared secret is too short to be one.
    #[error(
        "the shared secret has {0} bytes: at least {SHORTEST_SECRET} are needed, 32 random ones are good"
    )]
    ShortSecret(usize),
    /// The PEM text holds no RSA, P-256 or Ed25519 public key.
    #[error("not a PEM public key (RSA, P-256 or Ed25519)")]
    Pem,
    /// The JWKS file cannot be read.
    #[error("cannot read the JWKS file {}", path.display())]
    ReadJwks {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no JWKS, or holds no key for RS256, ES256 or EdDSA signatures.
    #[error("the JWKS file {} cannot be used: {reason}", path.display())]
    Jwks {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// Whose tokens are accepted.
///
/// Every key is bound to one algorithm, so a token cannot choose how it is checked; `alg: none` has no key
/// at all. `exp` is required. `jku`, `jwk`, `x5u` and `x5c` in a token's header are ignored, a `crit` header
/// is refused. A token that names an audience is accepted only where [`Auth::audience`] names the same.
#[derive(Clone)]
pub struct Auth {
    keys: Vec<Key>,
    files: Vec<Arc<JwksFile>>,
    expectations: Expectations,
}

impl Auth {
    /// Tokens signed with HS256 and a shared secret.
    ///
    /// # Errors
    /// [`AuthError::ShortSecret`] below 16 bytes; below 32, as RFC 7518 asks, a warning is logged.
    pub fn hs256(secret: &[u8]) -> Result<Self, AuthError> {
        if secret.len() < SHORTEST_SECRET {
            return Err(AuthError::ShortSecret(secret.len()));
        }
        if secret.len() < GOOD_SECRET {
            tracing::warn!(
                bytes = secret.len(),
                "the shared secret is short: 32 random bytes are good"
            );
        }
        let key = DecodingKey::from_secret(secret);
        Ok(Self::of(vec![Key::new(None, Algorithm::HS256, key)]))
    }

    /// Tokens signed with the private half of a public key: RS256, ES256 or EdDSA, as the key is.
    ///
    /// # Errors
    /// [`AuthError::Pem`] when the text holds no such key.
    pub fn public_key_pem(pem: &[u8]) -> Result<Self, AuthError> {
        let candidates = [
            (Algorithm::RS256, DecodingKey::from_rsa_pem(pem)),
            (Algorithm::ES256, DecodingKey::from_ec_pem(pem)),
            (Algorithm::EdDSA, DecodingKey::from_ed_pem(pem)),
        ];
        candidates
            .into_iter()
            .find_map(|(algorithm, key)| key.ok().map(|key| Key::new(None, algorithm, key)))
            .map(|key| Self::of(vec![key]))
            .ok_or(AuthError::Pem)
    }

    /// Tokens signed with a key of a JWKS file. The file is read again when it changes; while it cannot be
    /// read or used, the keys that were read last stay.
    ///
    /// # Errors
    /// When the file cannot be read, or holds no usable key.
    pub fn jwks_file(path: &Path) -> Result<Self, AuthError> {
        let file = JwksFile::open(path)?;
        Ok(Self {
            files: vec![Arc::new(file)],
            ..Self::of(Vec::new())
        })
    }

    fn of(keys: Vec<Key>) -> Self {
        Self {
            keys,
            files: Vec::new(),
            expectations: Expectations::default(),
        }
    }

    /// Accepts the other's tokens too; what is expected of tokens stays this one's.
    #[must_use]
    pub fn or(mut self, other: Self) -> Self {
        self.keys.extend(other.keys);
        self.files.extend(other.files);
        self
    }

    /// Demands this audience; more calls allow more.
    #[must_use]
    pub fn audience(mut self, audience: impl Into<String>) -> Self {
        self.expectations.audiences.push(audience.into());
        self
    }

    /// Demands this issuer; more calls allow more.
    #[must_use]
    pub fn issuer(mut self, issuer: impl Into<String>) -> Self {
        self.expectations.issuers.push(issuer.into());
        self
    }

    /// By how much clocks may differ when `exp` and `nbf` are judged; 5 s unless changed.
    #[must_use]
    pub fn leeway(mut self, leeway: Duration) -> Self {
        self.expectations.leeway = leeway;
        self
    }

    pub(crate) fn verify(&self, token: &str, now: Timestamp) -> Result<Verified, Refused> {
        let header = jwt::Header::peek(token)?;
        let read_again: Vec<_> = self.files.iter().map(|file| file.keys()).collect();
        let keys = self
            .keys
            .iter()
            .chain(read_again.iter().flat_map(|keys| keys.iter()));
        jwt::verify(token, &header, keys, &self.expectations, now)
    }
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auth")
            .field("keys", &self.keys.len())
            .field("files", &self.files)
            .field("expectations", &self.expectations)
            .finish()
    }
}
