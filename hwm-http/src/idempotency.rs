//! `Idempotency-Key`: the same request twice has one effect.
//!
//! What the manager commits it remembers itself, in the same commit. This file reads the key, and remembers
//! the answers of requests that commit nothing.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, Weak};

use axum::http::{HeaderMap, HeaderName, Method, Uri};
use hwm_core::manager::Idempotency;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use crate::auth::Caller;
use crate::error::ApiError;

const HEADER: HeaderName = HeaderName::from_static("idempotency-key");
const LONGEST: usize = 255;

/// The key of a request, where it has one.
pub(crate) fn key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let mut values = headers.get_all(HEADER).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let key = value
        .to_str()
        .ok()
        .filter(|k| !k.is_empty() && k.len() <= LONGEST && values.next().is_none());
    match key {
        Some(key) => Ok(Some(key.to_owned())),
        None => Err(ApiError::malformed(format!(
            "Idempotency-Key must be given once, with 1 to {LONGEST} printable characters"
        ))),
    }
}

/// A digest of all that makes a request what it is.
pub(crate) fn fingerprint(method: &Method, uri: &Uri, body: &[u8]) -> String {
    let mut hash = Sha256::new();
    for part in [method.as_str(), uri.path(), uri.query().unwrap_or_default()] {
        // None of these can hold a NUL.
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    hash.update(body);
    hex(&hash.finalize())
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Requests under way, by caller and key, so that the second waits for the first.
#[derive(Default)]
pub(crate) struct InFlight(Mutex<HashMap<(String, String), Weak<Turn>>>);

type Turn = tokio::sync::Mutex<()>;

impl InFlight {
    fn lock_for(&self, caller: &Caller, key: &str) -> Arc<Turn> {
        let principal = caller.principal();
        let key = (
            format!("{}\n{}", principal.owner.org_id, principal.subject),
            key.to_owned(),
        );
        let mut map = self.0.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(lock) = map.get(&key).and_then(Weak::upgrade) {
            return lock;
        }
        map.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::new(Turn::default());
        map.insert(key, Arc::downgrade(&lock));
        lock
    }

    /// Does `work` once for each key: the second time its answer is the first one's.
    pub(crate) async fn once<T, F>(
        &self,
        caller: &Caller,
        idempotency: Option<&Idempotency>,
        work: impl FnOnce() -> F,
    ) -> Result<T, ApiError>
    where
        T: Serialize + DeserializeOwned,
        F: Future<Output = Result<T, ApiError>>,
    {
        let Some(idempotency) = idempotency else {
            return work().await;
        };
        let lock = self.lock_for(caller, &idempotency.key);
        let _held = lock.lock().await;
        let corrupt = |e: serde_json::Error| ApiError::internal(format!("a remembered answer: {e}"));
        if let Some(answer) = caller.scoped.recall(idempotency).await? {
            return serde_json::from_value(answer).map_err(corrupt);
        }
        let answer = work().await?;
        let value = serde_json::to_value(&answer).map_err(corrupt)?;
        caller.scoped.remember(idempotency.clone(), value).await?;
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_that_differ_anywhere_have_other_fingerprints() {
        let of = |method: Method, uri: &'static str, body: &[u8]| {
            fingerprint(&method, &Uri::from_static(uri), body)
        };
        let first = of(Method::POST, "/resources?x=1", b"{}");
        assert_eq!(first, of(Method::POST, "/resources?x=1", b"{}"));
        for other in [
            of(Method::PATCH, "/resources?x=1", b"{}"),
            of(Method::POST, "/resource?x=1", b"{}"),
            of(Method::POST, "/resources", b"{}"),
            of(Method::POST, "/resources?x=1", b"{ }"),
        ] {
            assert_ne!(first, other);
        }
        assert_eq!(first.len(), 64);
    }

    #[test]
    fn a_key_is_short_printable_and_given_once() {
        let read = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(HEADER, value.parse().unwrap());
            }
            key(&headers)
        };
        assert_eq!(read(&[]).unwrap(), None);
        assert_eq!(read(&["abc"]).unwrap().as_deref(), Some("abc"));
        assert!(read(&[""]).is_err());
        assert!(read(&[&"x".repeat(256)]).is_err());
        assert!(read(&["a", "a"]).is_err());
        assert!(read(&["é"]).is_err());
    }
}
