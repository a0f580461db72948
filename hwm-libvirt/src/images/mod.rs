//! Base images: fetched once however many ask, checked, and kept as read-only volumes.
//!
//! A volume has no metadata in libvirt, so each image has a second, small volume that says what it is (`record`):
//! it is written before the image, and again when the image is whole. What no such record names is not ours and is
//! never touched.

mod fetch;
mod prune;
mod record;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use hwm_core::backend::{BackendError, BackendErrorKind, ProgressSink, Result};
use tokio::sync::watch;

use crate::catalog::{Catalog, Image, ImageFormat};
use crate::connection::{Connection, Fault};

pub use prune::StoredImage;
pub(crate) use record::Kept;

/// How long a short call may take.
const SHORT: Duration = Duration::from_secs(30);

/// An image that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BaseImage {
    /// Where it is kept.
    pub(crate) kept: Kept,
    /// Its volume's path.
    pub(crate) path: String,
    /// Its layout.
    pub(crate) format: ImageFormat,
    /// The size of the disk in it, in bytes.
    pub(crate) virtual_size: u64,
}

/// How far a fetch is.
#[derive(Debug, Clone)]
enum Fetch {
    Running(String, Option<u8>),
    Done(Result<BaseImage>),
}

/// The images of a pool.
#[derive(Clone)]
pub(crate) struct Images {
    shared: Arc<Shared>,
}

struct Shared {
    connection: Connection,
    catalog: Catalog,
    pool: String,
    owner: String,
    cache: PathBuf,
    http: OnceLock<reqwest::Client>,
    present: Mutex<HashMap<String, BaseImage>>,
    fetches: Mutex<HashMap<String, watch::Receiver<Fetch>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Images {
    pub(crate) fn new(
        connection: Connection,
        catalog: Catalog,
        pool: &str,
        owner: &str,
        cache: &Path,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                connection,
                catalog,
                pool: pool.to_owned(),
                owner: owner.to_owned(),
                cache: cache.to_owned(),
                http: OnceLock::new(),
                present: Mutex::default(),
                fetches: Mutex::default(),
            }),
        }
    }

    pub(crate) fn catalog(&self) -> &Catalog {
        &self.shared.catalog
    }

    /// What is known of an image without asking anyone.
    pub(crate) fn known(&self, name: &str) -> Option<BaseImage> {
        lock(&self.shared.present).get(name).cloned()
    }

    /// The image's volume; fetched if it is not there. Dropping the future leaves a fetch that others may wait for.
    pub(crate) async fn ensure(&self, image: &Image, progress: &ProgressSink) -> Result<BaseImage> {
        let name = image.name.as_str();
        if let Some(base) = self.known(name) {
            if self.shared.exists(&base.kept.volume).await? {
                return Ok(base);
            }
            lock(&self.shared.present).remove(name);
        }
        let mut fetch = self.join(image);
        loop {
            let now = fetch.borrow_and_update().clone();
            match now {
                Fetch::Done(result) => return result,
                Fetch::Running(message, percent) => progress.report(message, percent),
            }
            if fetch.changed().await.is_err() {
                let failed = "the fetch broke off";
                return Err(error(BackendErrorKind::Failed, image, failed));
            }
        }
    }

    /// The fetch that is under way, or a new one.
    fn join(&self, image: &Image) -> watch::Receiver<Fetch> {
        let mut fetches = lock(&self.shared.fetches);
        let name = image.name.as_str().to_owned();
        if let Some(running) = fetches.get(&name) {
            return running.clone();
        }
        let (tell, told) = watch::channel(Fetch::Running(format!("looking for image {name}"), None));
        fetches.insert(name.clone(), told.clone());
        let (shared, image) = (self.shared.clone(), image.clone());
        tokio::spawn(async move {
            let result = shared.fetch(&image, &tell).await;
            if let Ok(base) = &result {
                lock(&shared.present).insert(name.clone(), base.clone());
            }
            lock(&shared.fetches).remove(&name);
            tell.send_replace(Fetch::Done(result));
        });
        told
    }
}

fn error(kind: BackendErrorKind, image: &Image, message: impl Into<String>) -> BackendError {
    BackendError::new(kind, format!("fetching image {}", image.name), message)
}

impl Shared {
    async fn call<T: Send + 'static>(
        &self,
        doing: &str,
        work: impl FnOnce(&crate::connection::Host, &str) -> std::result::Result<T, Fault> + Send + 'static,
    ) -> Result<T> {
        let pool = self.pool.clone();
        self.connection
            .run(doing, SHORT, None, move |host| work(host, &pool))
            .await
    }

    async fn exists(&self, volume: &str) -> Result<bool> {
        let volume = volume.to_owned();
        self.call("looking for an image", move |host, pool| {
            Ok(host.volume_facts(pool, &volume)?.is_some())
        })
        .await
    }
}
