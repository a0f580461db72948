//! Which backends and GPUs, and why.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hwm_core::accelerator::Accelerators;
use hwm_core::backend::Backend;
use hwm_core::env::SystemEnvironment;
use hwm_core::id::NodeId;
use hwm_core::testing::sim::{Sim, SimOptions, parse_cards};
use hwm_core::validate::Rules;
use hwm_docker::{DockerBackend, DockerOptions};

use crate::datadir::DataDir;
use crate::demo;
use crate::failure::Failure;
use crate::flags::{Containers, Gpus, Machines, Serve};

/// How long `auto` waits for something real to answer.
const ANSWER_TIME: Duration = Duration::from_secs(3);

/// What the manager is given.
pub(crate) struct Wiring {
    pub(crate) backends: Vec<Arc<dyn Backend>>,
    pub(crate) accelerators: Option<Arc<dyn Accelerators>>,
    pub(crate) rules: Rules,
    pub(crate) sim: Option<Sim>,
}

/// Chooses, and says in one line each what was taken and why.
pub(crate) async fn choose(flags: &Serve, data: &DataDir, node: &NodeId) -> Result<Wiring, Failure> {
    let (containers, machines, gpus) = wanted(flags)?;
    let rules = rules(flags, data)?;

    let cards = match &gpus {
        Gpus::Sim(cards) => cards.clone(),
        Gpus::Auto | Gpus::Nvml | Gpus::None => Vec::new(),
    };
    let simulates =
        containers == Containers::Sim || machines == Machines::Sim || matches!(gpus, Gpus::Sim(_));
    let sim = simulates.then(|| {
        let options = SimOptions {
            owner: node.to_string(),
            cards,
            ..SimOptions::lifelike()
        };
        Sim::new(Arc::new(SystemEnvironment), options)
    });

    let mut backends = Vec::new();
    backends.extend(choose_containers(containers, flags, data, node, &rules, sim.as_ref()).await?);
    backends.extend(choose_machines(machines, sim.as_ref())?);
    let accelerators = choose_gpus(&gpus, sim.as_ref())?;
    if simulates {
        tracing::warn!("SIMULATING: nothing that is shown as simulated exists on this host or anywhere");
    }
    Ok(Wiring {
        backends,
        accelerators,
        rules,
        sim,
    })
}

/// What is asked for, the demo's wishes included.
fn wanted(flags: &Serve) -> Result<(Containers, Machines, Gpus), Failure> {
    let (mut containers, mut machines, mut gpus) = (flags.containers, flags.machines, flags.gpus.clone());
    if !flags.demo {
        return Ok((containers, machines, gpus));
    }
    let contradicts = |what: &str| Failure::Choice {
        what: format!("--demo simulates: leave {what} out"),
    };
    match containers {
        Containers::Auto | Containers::Sim => containers = Containers::Sim,
        Containers::Docker | Containers::None => return Err(contradicts("--containers (HWM_CONTAINERS)")),
    }
    match machines {
        Machines::Auto | Machines::Sim => machines = Machines::Sim,
        Machines::Libvirt | Machines::None => return Err(contradicts("--machines (HWM_MACHINES)")),
    }
    match gpus {
        Gpus::Auto => {
            let cards = parse_cards(demo::CARDS).map_err(|e| Failure::Choice { what: e.to_string() })?;
            gpus = Gpus::Sim(cards);
        }
        Gpus::Sim(_) => {}
        Gpus::Nvml | Gpus::None => return Err(contradicts("--gpus (HWM_GPUS), or name a simulated set")),
    }
    Ok((containers, machines, gpus))
}

fn rules(flags: &Serve, data: &DataDir) -> Result<Rules, Failure> {
    let real = |path: &PathBuf| {
        path.canonicalize().map_err(|source| Failure::Root {
            path: path.clone(),
            source,
        })
    };
    let roots = |given: &[PathBuf], default: &str| -> Result<Vec<PathBuf>, Failure> {
        match given {
            [] => Ok(vec![data.folder(default)?]),
            given => given.iter().map(real).collect(),
        }
    };
    let mut rules = Rules {
        volume_roots: roots(&flags.volume_roots, "volumes")?,
        model_roots: roots(&flags.model_roots, "models")?,
        host_network: flags.host_network,
        ..Rules::default()
    };
    if !flags.model_sources.is_empty() {
        rules.model_sources.clone_from(&flags.model_sources);
    }
    Ok(rules)
}

async fn choose_containers(
    wanted: Containers,
    flags: &Serve,
    data: &DataDir,
    node: &NodeId,
    rules: &Rules,
    sim: Option<&Sim>,
) -> Result<Option<Arc<dyn Backend>>, Failure> {
    let host = flags.docker_host.clone().filter(|host| !host.is_empty());
    let place = host.as_deref().unwrap_or("the local socket").to_owned();
    let docker = || -> Result<Arc<dyn Backend>, Failure> {
        let options = DockerOptions {
            host: host.clone(),
            volume_roots: rules.volume_roots.clone(),
            model_roots: rules.model_roots.clone(),
            model_sources: rules.model_sources.clone(),
            allow_host_network: rules.host_network,
            advertise: flags.advertise.clone(),
            ..DockerOptions::new(node.as_str(), data.path())
        };
        let backend = DockerBackend::new(options).map_err(|source| Failure::Backend {
            what: "the container engine",
            source: Box::new(source),
        })?;
        Ok(Arc::new(backend))
    };
    match wanted {
        Containers::None => {
            tracing::info!("containers: none, as asked");
            Ok(None)
        }
        Containers::Sim => {
            tracing::warn!("containers: SIMULATED, as asked; no container is really run");
            Ok(sim.map(Sim::containers))
        }
        Containers::Docker => {
            tracing::info!("containers: docker, as asked");
            docker().map(Some)
        }
        Containers::Auto => {
            let backend = docker()?;
            match answer(&*backend).await {
                Ok(version) => {
                    data.note(USED_DOCKER)?;
                    tracing::info!("containers: docker {version}, because it answers");
                    Ok(Some(backend))
                }
                Err(reason) if data.is_noted(USED_DOCKER) => {
                    tracing::warn!(
                        "containers: docker, because it was used here before, though it does not answer at {place} ({reason})"
                    );
                    Ok(Some(backend))
                }
                Err(reason) => {
                    tracing::info!(
                        "containers: none, because docker does not answer at {place} ({reason}); start it, name it \
                         with --docker-host, or try --containers sim"
                    );
                    Ok(None)
                }
            }
        }
    }
}

/// The name of the note that `auto` took docker once: a host that boots may start it after us.
const USED_DOCKER: &str = "used-docker";

/// The version of a backend that answers, or why it does not.
async fn answer(backend: &dyn Backend) -> Result<String, String> {
    match tokio::time::timeout(ANSWER_TIME, backend.probe()).await {
        Ok(Ok(report)) => Ok(report.version),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("it does not answer within {} s", ANSWER_TIME.as_secs())),
    }
}

fn choose_machines(wanted: Machines, sim: Option<&Sim>) -> Result<Option<Arc<dyn Backend>>, Failure> {
    match wanted {
        Machines::None => {
            tracing::info!("machines: none, as asked");
            Ok(None)
        }
        Machines::Sim => {
            tracing::warn!("machines: SIMULATED, as asked; no machine is really run");
            Ok(sim.map(Sim::machines))
        }
        Machines::Libvirt => Err(Failure::Choice {
            what: "this server was built without libvirt: build it with --features libvirt".to_owned(),
        }),
        Machines::Auto => {
            tracing::info!(
                "machines: none, because this server was built without libvirt; build it with \
                 --features libvirt, or try --machines sim"
            );
            Ok(None)
        }
    }
}

fn choose_gpus(wanted: &Gpus, sim: Option<&Sim>) -> Result<Option<Arc<dyn Accelerators>>, Failure> {
    match wanted {
        Gpus::None => {
            tracing::info!("gpus: none, as asked");
            Ok(None)
        }
        Gpus::Sim(cards) => {
            tracing::warn!(
                "gpus: {} SIMULATED, as asked; no GPU is really there",
                cards.len()
            );
            Ok(sim.map(Sim::accelerators))
        }
        Gpus::Nvml => Err(Failure::Choice {
            what: "this server was built without NVML".to_owned(),
        }),
        Gpus::Auto => {
            tracing::info!("gpus: none, because this server was built without NVML");
            Ok(None)
        }
    }
}

/// The host's name, for people.
pub(crate) fn hostname() -> Option<String> {
    let name = std::fs::read_to_string(Path::new("/proc/sys/kernel/hostname")).ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}
