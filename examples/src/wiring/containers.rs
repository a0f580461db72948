//! What runs containers.

use std::sync::Arc;
use std::time::Duration;

use hwm_core::backend::Backend;
use hwm_core::testing::sim::Sim;
use hwm_core::validate::Rules;
use hwm_docker::{DockerBackend, DockerOptions};

use super::{Candidate, Place, take_what_answers};
use crate::failure::Failure;
use crate::flags::Containers;

/// Chooses, and says what was taken and why.
pub(super) async fn choose(
    wanted: Containers,
    place: &Place<'_>,
    rules: &Rules,
    sim: Option<&Sim>,
) -> Result<Option<Arc<dyn Backend>>, Failure> {
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
            docker(place, rules).map(Some)
        }
        Containers::Auto => {
            let candidate = Candidate {
                kind: "containers",
                name: "docker",
                at: host(place).unwrap_or("the local socket"),
                patience: Duration::from_secs(3),
                advice: "start it, name it with --docker-host, or try --containers sim",
            };
            take_what_answers(docker(place, rules)?, place, &candidate).await
        }
    }
}

fn host<'a>(place: &Place<'a>) -> Option<&'a str> {
    place.flags.docker_host.as_deref().filter(|host| !host.is_empty())
}

fn docker(place: &Place<'_>, rules: &Rules) -> Result<Arc<dyn Backend>, Failure> {
    let options = DockerOptions {
        host: host(place).map(str::to_owned),
        volume_roots: rules.volume_roots.clone(),
        model_roots: rules.model_roots.clone(),
        model_sources: rules.model_sources.clone(),
        allow_host_network: rules.host_network,
        advertise: place.flags.advertise.clone(),
        ..DockerOptions::new(place.node.as_str(), place.data.path())
    };
    let backend = DockerBackend::new(options).map_err(|source| Failure::Backend {
        what: "the container engine",
        source: Box::new(source),
    })?;
    Ok(Arc::new(backend))
}
