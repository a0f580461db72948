//! What the processes run on, and what looks at it past hwm.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use hwm_core::backend::Backend;
use hwm_core::validate::Rules;
use hwm_docker::{DockerBackend, DockerOptions};
use serde_json::{Value, json};

#[cfg(feature = "libvirt")]
use crate::common::daemons::remove_machines;
use crate::common::daemons::{containers, docker, variable};
#[cfg(feature = "libvirt")]
use crate::machines;

/// What runs workloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    Docker,
    #[cfg(feature = "libvirt")]
    Libvirt,
}

/// A workload as the engine has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) runs: bool,
    pub(crate) memory_mb: u64,
}

impl Engine {
    /// Those that are built in; `HWM_CRASH_ENGINE` names one of them.
    pub(crate) fn all() -> Vec<Self> {
        let mut all = vec![
            Self::Docker,
            #[cfg(feature = "libvirt")]
            Self::Libvirt,
        ];
        if let Ok(one) = std::env::var("HWM_CRASH_ENGINE") {
            all.retain(|engine| engine.word() == one);
        }
        all
    }

    /// How many points of each action are tried when not all are: what takes long is tried less.
    pub(crate) const fn sample(self) -> usize {
        match self {
            Self::Docker => 5,
            #[cfg(feature = "libvirt")]
            Self::Libvirt => 2,
        }
    }

    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            #[cfg(feature = "libvirt")]
            Self::Libvirt => "libvirt",
        }
    }

    pub(crate) fn parse(word: &str) -> Option<Self> {
        Self::all().into_iter().find(|engine| engine.word() == word)
    }

    pub(crate) fn backend(self, data: &Path, node: &str) -> Arc<dyn Backend> {
        match self {
            Self::Docker => {
                let options = DockerOptions {
                    host: Some(variable("HWM_TEST_DOCKER_HOST")),
                    ..DockerOptions::new(node, data)
                };
                Arc::new(DockerBackend::new(options).unwrap())
            }
            #[cfg(feature = "libvirt")]
            Self::Libvirt => machines::backend(data, node),
        }
    }

    pub(crate) fn rules(self) -> Rules {
        match self {
            Self::Docker => Rules::default(),
            #[cfg(feature = "libvirt")]
            Self::Libvirt => machines::rules(),
        }
    }

    /// A resource whose memory can be changed to others while it runs.
    pub(crate) fn body(self) -> Value {
        match self {
            Self::Docker => json!({
                "name": "crash",
                "resourceType": "application-container",
                "config": {
                    "type": "application-container", "registry": "docker-hub", "pullPolicy": "never",
                    "imageName": "hwm-test/busybox", "imageTag": "1", "command": ["sleep", "100000"],
                    "containerPorts": [{ "containerPort": 80 }], "cpuCores": 0.1, "ramLimit": 0.5,
                },
            }),
            #[cfg(feature = "libvirt")]
            Self::Libvirt => machines::body(),
        }
    }

    /// The part of a config that gives it so much memory.
    pub(crate) fn memory(self, mb: u64) -> Value {
        match self {
            Self::Docker => json!({ "ramLimit": mb as f64 / 1024.0 }),
            #[cfg(feature = "libvirt")]
            Self::Libvirt => json!({ "ramMB": mb }),
        }
    }

    /// Everything that carries the owner label, by resource.
    pub(crate) fn found(self, node: &str) -> BTreeMap<String, Seen> {
        match self {
            Self::Docker => containers(node)
                .iter()
                .map(|name| {
                    let seen = docker(&["inspect", "-f", "{{.State.Running}} {{.HostConfig.Memory}}", name]);
                    let (runs, memory) = seen.trim().split_once(' ').unwrap();
                    let seen = Seen {
                        runs: runs == "true",
                        memory_mb: memory.parse::<u64>().unwrap() >> 20,
                    };
                    (name.trim_start_matches("hwm-").to_owned(), seen)
                })
                .collect(),
            #[cfg(feature = "libvirt")]
            Self::Libvirt => machines::found(node),
        }
    }

    /// What else is left of resources that are not among `recorded`.
    pub(crate) fn other_leftovers(
        self,
        #[cfg_attr(not(feature = "libvirt"), allow(unused_variables))] node: &str,
        #[cfg_attr(not(feature = "libvirt"), allow(unused_variables))] recorded: &BTreeSet<String>,
    ) -> Vec<String> {
        match self {
            Self::Docker => Vec::new(),
            #[cfg(feature = "libvirt")]
            Self::Libvirt => machines::leftovers(node, recorded),
        }
    }

    /// Removes what a run left.
    pub(crate) fn clean(self, node: &str) {
        match self {
            Self::Docker => {
                for name in containers(node) {
                    docker(&["rm", "-f", &name]);
                }
            }
            #[cfg(feature = "libvirt")]
            Self::Libvirt => remove_machines(node),
        }
    }
}
