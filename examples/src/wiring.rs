//! Which backends and GPUs, and why.

mod containers;
mod gpus;
pub(crate) mod machines;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hwm_core::accelerator::Accelerators;
use hwm_core::backend::Backend;
use hwm_core::env::SystemEnvironment;
use hwm_core::id::NodeId;
use hwm_core::testing::sim::{Sim, SimOptions};
use hwm_core::validate::Rules;

use crate::datadir::DataDir;
use crate::demo;
use crate::failure::Failure;
use crate::flags::{Containers, Gpus, Machines, Serve};

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
    let mut rules = rules(flags, data)?;

    let cards = match &gpus {
        Gpus::Sim(cards) => cards.iter().map(gpus::simulated).collect(),
        Gpus::Auto | Gpus::Nvml | Gpus::None => Vec::new(),
    };
    let simulates =
        containers == Containers::Sim || machines == Machines::Sim || matches!(gpus, Gpus::Sim(_));
    let sim = simulates.then(|| {
        let options = SimOptions {
            owner: node.to_string(),
            cards,
            mig_on_demand: flags.gpu_switch_mig,
            ..SimOptions::lifelike()
        };
        Sim::new(Arc::new(SystemEnvironment), options)
    });

    let place = Place { flags, data, node };
    let mut backends = Vec::new();
    backends.extend(containers::choose(containers, &place, &rules, sim.as_ref()).await?);
    backends.extend(machines::choose(machines, &place, &mut rules, sim.as_ref()).await?);
    let accelerators = gpus::choose(&gpus, &place, sim.as_ref()).await?;
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

/// What every choice depends on.
struct Place<'a> {
    flags: &'a Serve,
    data: &'a DataDir,
    node: &'a NodeId,
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
            let cards = hwm_gpu::boards::parse_cards(demo::CARDS)
                .map_err(|e| Failure::Choice { what: e.to_string() })?;
            gpus = Gpus::Sim(cards);
        }
        Gpus::Sim(_) => {}
        Gpus::Nvml | Gpus::None => return Err(contradicts("--gpus (HWM_GPUS), or name a simulated set")),
    }
    Ok((containers, machines, gpus))
}

fn rules(flags: &Serve, data: &DataDir) -> Result<Rules, Failure> {
    let roots = |given: &[PathBuf], default: &str| -> Result<Vec<PathBuf>, Failure> {
        match given {
            [] => Ok(vec![data.folder(default)?]),
            given => given
                .iter()
                .map(spellings)
                .collect::<Result<Vec<_>, _>>()
                .map(|all| all.concat()),
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

/// A root as the operator spells it, and what it is without links where that differs: clients name paths under either.
fn spellings(root: &PathBuf) -> Result<Vec<PathBuf>, Failure> {
    let unusable = |source| Failure::Root {
        path: root.clone(),
        source,
    };
    let given = std::path::absolute(root).map_err(unusable)?;
    let real = root.canonicalize().map_err(unusable)?;
    Ok(if given == real {
        vec![given]
    } else {
        vec![given, real]
    })
}

/// The version of a backend that answers, or why it does not.
async fn answer(backend: &dyn Backend, limit: Duration) -> Result<String, String> {
    match tokio::time::timeout(limit, backend.probe()).await {
        Ok(Ok(report)) => Ok(report.version),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", limit.as_secs())),
    }
}

/// What `auto` makes of a real backend. One that was used on this data directory before is taken even when
/// it does not answer: on a host that boots it may start after us.
async fn take_what_answers(
    backend: Arc<dyn Backend>,
    place: &Place<'_>,
    what: &Candidate<'_>,
) -> Result<Option<Arc<dyn Backend>>, Failure> {
    let Candidate { kind, name, at, .. } = what;
    let note = format!("used-{name}");
    match answer(&*backend, what.patience).await {
        Ok(version) => {
            place.data.note(&note)?;
            tracing::info!("{kind}: {name} ({version}), because it answers");
            Ok(Some(backend))
        }
        Err(reason) if place.data.is_noted(&note) => {
            tracing::warn!(
                "{kind}: {name}, because it was used here before, though it does not answer at {at} ({reason})"
            );
            Ok(Some(backend))
        }
        Err(reason) => {
            let advice = what.advice;
            tracing::info!("{kind}: none, because {name} does not answer at {at} ({reason}); {advice}");
            Ok(None)
        }
    }
}

/// A real backend that `auto` looks at.
struct Candidate<'a> {
    kind: &'a str,
    name: &'a str,
    at: &'a str,
    patience: Duration,
    advice: &'a str,
}

/// The host's name, for people.
pub(crate) fn hostname() -> Option<String> {
    let name = std::fs::read_to_string(Path::new("/proc/sys/kernel/hostname")).ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}
