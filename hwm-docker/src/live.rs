//! Changes to limits while a container runs.

use bollard::models::ContainerUpdateBody;
use hwm_core::config::Config;

use crate::client::{Client, Fault};
use crate::observe::{Container, HostConfig};
use crate::spec::Limits;

/// Whether two configs differ in limits only, and in none that would have to be lifted: an engine can
/// change a limit of what runs and cannot take it away.
pub(crate) fn is_live(from: &Config, to: &Config) -> bool {
    let lifted = (from.cpu().is_some() && to.cpu().is_none()) || (from.ram().is_some() && to.ram().is_none());
    !lifted && without_limits(from) == without_limits(to)
}

/// The config as JSON, where secrets are marks: what was applied holds none.
fn without_limits(config: &Config) -> Option<serde_json::Value> {
    let mut config = config.clone();
    match &mut config {
        Config::Container(c) => (c.cpu_cores, c.ram_limit) = (None, None),
        Config::Inference(c) => (c.cpu_cores, c.ram_limit) = (None, None),
        Config::Machine(_) => return None,
    }
    serde_json::to_value(config).ok()
}

/// What has to be done to a container's limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Nothing,
    Update,
    /// A limit is to be lifted: only another container has none.
    Remake,
}

/// Compares a container's limits with the wanted ones.
pub(crate) fn change(has: &HostConfig, wanted: Limits) -> Change {
    let set = |limit: Option<i64>| limit.filter(|l| *l > 0);
    let pairs = [
        (set(has.nano_cpus), wanted.nano_cpus),
        (set(has.memory), wanted.memory),
    ];
    if pairs
        .iter()
        .any(|(has, wanted)| has.is_some() && wanted.is_none())
    {
        Change::Remake
    } else if pairs.iter().any(|(has, wanted)| has != wanted) {
        Change::Update
    } else {
        Change::Nothing
    }
}

/// Sets a container's limits.
pub(crate) async fn update(client: &Client, container: &Container, limits: Limits) -> Result<(), Fault> {
    let body = ContainerUpdateBody {
        nano_cpus: limits.nano_cpus,
        memory: limits.memory,
        memory_swap: limits.memory,
        ..ContainerUpdateBody::default()
    };
    Ok(client.docker().update_container(&container.id, body).await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(change: serde_json::Value) -> Config {
        let mut json = json!({
            "type": "application-container", "registry": "docker-hub", "imageName": "nginx",
            "registryAuth": {"username": "me", "password": "one"}, "cpuCores": 1, "ramLimit": 1,
        });
        for (key, value) in change.as_object().unwrap() {
            json[key] = value.clone();
        }
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn only_limits_change_live_and_they_are_not_lifted() {
        let from = config(json!({}));
        for (change, live) in [
            (json!({}), true),
            (json!({"cpuCores": 2}), true),
            (json!({"ramLimit": 0.5, "cpuCores": 0.25}), true),
            (
                json!({"registryAuth": {"username": "me", "password": "two"}}),
                true,
            ),
            (json!({"ramLimit": null}), false),
            (json!({"imageTag": "2", "cpuCores": 2}), false),
            (json!({"environment": {"A": "b"}}), false),
        ] {
            assert_eq!(is_live(&from, &config(change.clone())), live, "{change}");
        }
        assert!(is_live(&config(json!({"ramLimit": null})), &from));
    }

    #[test]
    fn a_lifted_limit_needs_another_container() {
        let has = |nano_cpus, memory| {
            serde_json::from_value::<HostConfig>(json!({"NanoCpus": nano_cpus, "Memory": memory})).unwrap()
        };
        let wanted = Limits {
            nano_cpus: Some(5),
            memory: None,
        };
        assert_eq!(change(&has(5, 0), wanted), Change::Nothing);
        assert_eq!(change(&has(0, 0), wanted), Change::Update);
        assert_eq!(change(&has(5, 7), wanted), Change::Remake);
    }
}
