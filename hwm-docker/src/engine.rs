//! What the engine says about itself and its node.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use hwm_core::backend::{BackendReport, Result};
use hwm_core::ledger::Capacity;
use hwm_core::units::{Bytes, Cores};
use serde::Deserialize;

use crate::client::{Client, Endpoint};
use crate::spec::GpuAttachment;

/// How old an answer of the engine about itself may be.
const FRESH: Duration = Duration::from_secs(30);
/// The first API version that takes CDI devices.
const CDI_SINCE: u32 = 44;
/// How the NVIDIA hook is called; an engine that finds it attaches GPUs without naming a runtime.
const NVIDIA_HOOK: &str = "nvidia-container-runtime-hook";

/// What `/version` answers, as far as it matters here.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Version {
    version: Option<String>,
    components: Option<Vec<Component>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Component {
    name: Option<String>,
}

/// What `/info` answers, as far as it matters here.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Info {
    #[serde(rename = "NCPU")]
    cpus: Option<u64>,
    mem_total: Option<u64>,
    docker_root_dir: Option<PathBuf>,
    runtimes: Option<BTreeMap<String, serde_json::Value>>,
    live_restore_enabled: Option<bool>,
    #[serde(rename = "CDISpecDirs")]
    cdi_spec_dirs: Option<Vec<PathBuf>>,
}

impl Info {
    /// CPUs of the node; the most that one container may have.
    pub(crate) fn cpu(&self) -> Option<Cores> {
        let cpus = self.cpus.and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0);
        cpus.map(Cores::whole)
    }

    pub(crate) fn memory(&self) -> Option<Bytes> {
        self.mem_total.filter(|m| *m > 0).map(Bytes)
    }
}

/// What is known of the engine.
#[derive(Debug, Clone)]
pub(crate) struct About {
    pub(crate) info: Info,
    /// How it attaches GPUs; none where it cannot.
    pub(crate) gpus: Option<GpuAttachment>,
    version: String,
    podman: bool,
}

/// The engine's answers about itself, asked for anew now and then.
pub(crate) struct Engine {
    known: Mutex<Option<(Instant, About)>>,
    gpus: Option<GpuAttachment>,
    pid_file: Option<PathBuf>,
}

impl Engine {
    pub(crate) fn new(gpus: Option<GpuAttachment>, pid_file: Option<PathBuf>) -> Self {
        Self {
            known: Mutex::new(None),
            gpus,
            pid_file,
        }
    }

    /// What is known of the engine, at most half a minute old.
    pub(crate) async fn about(&self, client: &Client) -> Result<About> {
        if let Some((at, about)) = &*self.known.lock().unwrap_or_else(PoisonError::into_inner)
            && at.elapsed() < FRESH
        {
            return Ok(about.clone());
        }
        self.ask(client).await
    }

    /// Whether it is known to be Podman, which cannot change limits of what runs.
    pub(crate) fn is_podman(&self) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.as_ref().is_some_and(|(_, about)| about.podman)
    }

    async fn ask(&self, client: &Client) -> Result<About> {
        let ask = async {
            let minor = client.api_minor().await?;
            let (version, info) = futures_util::future::try_join(
                client.get::<Version>("/version", &[]),
                client.get::<Info>("/info", &[]),
            )
            .await?;
            Ok((minor, version, info))
        };
        let (minor, version, info) = client.look("asking the engine about itself", ask).await?;
        let components = version.components.unwrap_or_default();
        let podman = components
            .iter()
            .any(|c| c.name.as_deref().is_some_and(|n| n.contains("Podman")));
        let local = client.endpoint().is_local();
        let about = About {
            gpus: self.gpus.or_else(|| detect_gpus(&info, minor, local, has_hook)),
            version: format!(
                "{}{} (API 1.{minor})",
                if podman { "Podman " } else { "" },
                version.version.unwrap_or_else(|| "unknown".to_owned())
            ),
            podman,
            info,
        };
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), about.clone()));
        Ok(about)
    }

    /// Asks whether the engine answers, and what the node has.
    pub(crate) async fn probe(&self, client: &Client) -> Result<BackendReport> {
        let about = self.ask(client).await?;
        let local = client.endpoint().is_local();
        let root = about.info.docker_root_dir.clone().filter(|_| local);
        let (endpoint, pid_file) = (client.endpoint().clone(), self.pid_file.clone());
        let survives = about.podman || about.info.live_restore_enabled == Some(true);
        let (disk, epoch) = tokio::task::spawn_blocking(move || {
            let disk = root.as_deref().and_then(disk_of).unwrap_or_default();
            (
                disk,
                local
                    .then(|| epoch(&endpoint, pid_file.as_deref(), survives))
                    .flatten(),
            )
        })
        .await
        .unwrap_or_default();
        Ok(BackendReport {
            version: about.version,
            capacity: Capacity {
                cpu: about.info.cpu().unwrap_or_default(),
                ram: about.info.memory().unwrap_or_default(),
                disk,
            },
            epoch,
            simulated: false,
        })
    }
}

fn disk_of(path: &Path) -> Option<Bytes> {
    let found = rustix::fs::statvfs(path).ok()?;
    Some(Bytes(found.f_blocks.saturating_mul(found.f_frsize)))
}

/// How the engine hands out GPUs. NVIDIA's runtime knows a slice as soon as it is made; a CDI specification has to be
/// written anew first.
fn detect_gpus(info: &Info, minor: u32, local: bool, has_hook: impl Fn() -> bool) -> Option<GpuAttachment> {
    let registered = info.runtimes.as_ref().is_some_and(|r| r.contains_key("nvidia"));
    if registered || (local && has_hook()) {
        return Some(GpuAttachment::Nvidia);
    }
    let specs = info.cdi_spec_dirs.as_deref().unwrap_or_default();
    let described = || specs.iter().any(|dir| describes_nvidia(dir));
    (minor >= CDI_SINCE && local && described()).then_some(GpuAttachment::Cdi)
}

/// Whether this host has the hook by which an engine without that runtime attaches GPUs.
fn has_hook() -> bool {
    ["/usr/bin", "/usr/local/bin", "/usr/local/nvidia/toolkit"]
        .iter()
        .any(|dir| Path::new(dir).join(NVIDIA_HOOK).exists())
}

fn describes_nvidia(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|entries| {
        entries
            .flatten()
            .any(|e| e.file_name().to_string_lossy().contains("nvidia"))
    })
}

/// Changes when the host boots, and when the engine restarts unless containers survive that.
///
/// The socket is made anew when the engine starts by itself; where systemd keeps the socket open, the
/// process in its pid file tells.
fn epoch(endpoint: &Endpoint, pid_file: Option<&Path>, survives: bool) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let mut epoch = boot.trim().to_owned();
    if survives {
        return Some(epoch);
    }
    if let Some(found) = endpoint.socket().and_then(|s| std::fs::metadata(s).ok()) {
        epoch.push_str(&format!(
            "/{}-{}.{}",
            found.ino(),
            found.mtime(),
            found.mtime_nsec()
        ));
    }
    let pid_file = pid_file.unwrap_or_else(|| Path::new("/var/run/docker.pid"));
    let pid = std::fs::read_to_string(pid_file)
        .ok()
        .and_then(|t| t.trim().parse::<u32>().ok());
    if let Some((pid, started)) = pid.and_then(|pid| Some((pid, started_at(pid)?))) {
        epoch.push_str(&format!("/{pid}-{started}"));
    }
    Some(epoch)
}

/// When a process began, in the kernel's ticks since boot.
fn started_at(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command in parentheses may hold anything; the 22nd field is the 20th behind it.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn info(json: serde_json::Value) -> Info {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn gpus_are_attached_by_what_the_engine_has_and_nvidias_runtime_goes_first() {
        use GpuAttachment::{Cdi, Nvidia};
        let (described, empty) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(described.path().join("nvidia.yaml"), "").unwrap();
        let runtime = json!({"Runtimes": {"nvidia": {}, "runc": {}}, "CDISpecDirs": [described.path()]});
        let specs = json!({"Runtimes": {"runc": {}}, "CDISpecDirs": [empty.path(), described.path()]});
        let nothing = json!({"Runtimes": {"runc": {}}, "CDISpecDirs": [empty.path(), "/no/such/folder"]});
        // What the engine says, its API, whether it is on this host, whether the hook is here; what is chosen.
        for (said, minor, local, hook, chosen) in [
            (&runtime, 41, false, false, Some(Nvidia)),
            (&runtime, 48, true, false, Some(Nvidia)),
            (&specs, 48, true, true, Some(Nvidia)),
            (&specs, 44, true, false, Some(Cdi)),
            (&specs, 43, true, false, None),
            (&specs, 48, false, true, None),
            (&nothing, 48, true, false, None),
            (&json!({"CDISpecDirs": null}), 48, true, false, None),
        ] {
            assert_eq!(
                detect_gpus(&info(said.clone()), minor, local, || hook),
                chosen,
                "{said} {minor} {local} {hook}"
            );
        }
    }

    #[test]
    fn the_epoch_moves_with_the_socket_unless_containers_survive() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        let endpoint = Endpoint::Unix(path.clone());
        let none = dir.path().join("no-pid");
        let of = |survives| epoch(&endpoint, Some(&none), survives);
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let (before, surviving) = (of(false), of(true));
        assert_eq!(before, of(false));
        drop(listener);
        std::fs::rename(&path, dir.path().join("old")).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_ne!(before, of(false));
        assert_eq!(surviving, of(true));
    }

    #[test]
    fn a_process_has_a_start() {
        assert!(started_at(std::process::id()).is_some_and(|t| t > 0));
        assert_eq!(started_at(u32::MAX), None);
    }

    #[test]
    fn unknown_and_null_fields_do_not_matter() {
        let found = info(serde_json::json!({"NCPU": 4, "MemTotal": 1024, "Runtimes": null, "New": {"x": 1}}));
        assert_eq!(found.cpu(), Some(Cores::whole(4)));
        assert_eq!(found.memory(), Some(Bytes(1024)));
    }
}
