//! `server images`: fetches, lists and removes the images that machines are made from, beside a server or without one.

use std::path::Path;

use crate::failure::Failure;
use crate::flags::ImagesRequest;

#[cfg(not(feature = "libvirt"))]
pub(crate) fn run(_: &ImagesRequest, _: &Path) -> Result<(), Failure> {
    Err(Failure::Choice {
        what: "this server was built without libvirt: build it with --features libvirt".to_owned(),
    })
}

#[cfg(feature = "libvirt")]
pub(crate) use real::run;

#[cfg(feature = "libvirt")]
mod real {
    use std::io::Write;
    use std::sync::Mutex;

    use hwm_core::backend::{BackendError, ProgressSink};
    use hwm_core::env::SystemEnvironment;
    use hwm_libvirt::{Libvirt, StoredImage};

    use super::{Failure, ImagesRequest, Path};
    use crate::datadir;
    use crate::flags::ImagesAction;
    use crate::wiring::machines::real::{IMAGE_CACHE, images};

    pub(crate) fn run(request: &ImagesRequest, data_dir: &Path) -> Result<(), Failure> {
        let at = match &request.action {
            ImagesAction::List { at } | ImagesAction::Pull { at, .. } | ImagesAction::Prune { at, .. } => at,
        };
        let data_dir = datadir::make(data_dir)?;
        let node = datadir::node_id(&data_dir, at.node_id.as_deref(), &SystemEnvironment)?;
        let options = images(&at.images, &node, data_dir.join(IMAGE_CACHE));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|source| Failure::System {
                doing: "cannot start threads",
                source,
            })?;
        runtime.block_on(act(options, &request.action))
    }

    async fn act(options: hwm_libvirt::LibvirtOptions, action: &ImagesAction) -> Result<(), Failure> {
        let libvirt = Libvirt::new(options).map_err(unusable)?;
        match action {
            ImagesAction::List { .. } => print(&libvirt.stored_images().await.map_err(unusable)?),
            ImagesAction::Prune { all, .. } => print(&libvirt.prune_images(*all).await.map_err(unusable)?),
            ImagesAction::Pull { names, .. } => {
                for name in names {
                    libvirt.pull_image(name, &progress()).await.map_err(unusable)?;
                    note(&format!("{name} is there"));
                }
                Ok(())
            }
        }
    }

    fn unusable(source: BackendError) -> Failure {
        Failure::Backend {
            what: "libvirt",
            source: Box::new(source),
        }
    }

    /// Says what is being done, and every tenth of it.
    fn progress() -> ProgressSink {
        let last = Mutex::new(String::new());
        ProgressSink::new(move |message, percent| {
            let said = match percent {
                Some(percent) if percent % 10 == 0 => format!("{message} ({percent} %)"),
                Some(_) => return,
                None => message,
            };
            let mut last = last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if *last != said {
                note(&said);
                *last = said;
            }
        })
    }

    fn note(text: &str) {
        // Whoever does not read it does not miss it.
        let _ = writeln!(std::io::stderr(), "{text}");
    }

    /// One line each: name, digest, size, what it serves.
    fn print(images: &[StoredImage]) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        for image in images {
            let disks = match image.disks {
                1 => "1 disk".to_owned(),
                n => format!("{n} disks"),
            };
            let current = if image.current { "current" } else { "old" };
            writeln!(
                out,
                "{}  {}  {} MB  {current}  {disks}  {}",
                image.name,
                image.digest,
                image.size.0 >> 20,
                image.owner
            )
            .map_err(|source| Failure::System {
                doing: "cannot print the images",
                source,
            })?;
        }
        Ok(())
    }
}
