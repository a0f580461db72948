//! What there is only so much of is never handed out twice, and never withheld.

use futures_util::future::join_all;
use serde_json::{Value, json};

use hwm_core::error::Error;
use hwm_core::ledger::Capacity;
use hwm_core::manager::RequestOptions;
use hwm_core::testing::sim::SimOptions;
use hwm_core::units::{Bytes, Cores};

use super::jitter;
use crate::house::{World, oracle, request, run, seeds};

fn container(extra: Value) -> Value {
    let mut config = json!({ "type": "application-container", "registry": "docker-hub", "imageName": "a" });
    for (key, value) in extra.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

/// `callers` ask for the same at once: exactly `fit` get it, and the others are told why not.
fn race(
    seed: u64,
    callers: usize,
    fit: usize,
    code: &str,
    kind: &str,
    config: &(dyn Fn(usize) -> Value + Sync),
) -> Vec<String> {
    run(async {
        let options = SimOptions {
            capacity: Capacity {
                cpu: Cores::whole(2),
                ram: Bytes::from_whole_gb(8),
                disk: Bytes::from_whole_gb(1000),
            },
            ..SimOptions::default()
        };
        let world = World::with(seed, options);
        let life = world.begin().await;
        jitter(&world, &life.faults, 4);
        let ask = |n: usize| {
            let wanted = request("w", kind, config(n), true);
            life.admin.create(wanted, RequestOptions::default())
        };
        let answers = join_all((0..callers).map(ask)).await;
        let mut wrong = Vec::new();
        let accepted = answers.iter().filter(|a| a.is_ok()).count();
        if accepted != fit {
            wrong.push(format!("{accepted} of {callers} were accepted, and {fit} fit"));
        }
        for error in answers.iter().filter_map(|a| a.as_ref().err()) {
            if error.code() != code || !matches!(error, Error::Conflict(_)) {
                wrong.push(format!("refused with {}: {error}", error.code()));
            }
        }
        life.converge().await;
        life.kill();
        wrong.extend(oracle::complaints(&world).await);
        wrong
    })
}

#[test]
fn cpu_is_never_handed_out_beyond_its_limit() {
    // Two cores, claimed four times over.
    seeds::each(1000, |seed| {
        race(
            seed,
            12,
            8,
            "INSUFFICIENT_CAPACITY",
            "application-container",
            &|_| container(json!({ "cpuCores": 1 })),
        )
    });
}

#[test]
fn memory_is_never_handed_out_beyond_its_limit() {
    seeds::each(300, |seed| {
        race(
            seed,
            9,
            5,
            "INSUFFICIENT_CAPACITY",
            "application-container",
            &|_| container(json!({ "ramLimit": 1.5 })),
        )
    });
}

#[test]
fn a_host_port_has_one_holder() {
    let ports = json!({ "containerPorts": [{ "containerPort": 80, "hostPort": 8080 }] });
    seeds::each(300, |seed| {
        race(seed, 6, 1, "PORT_CONFLICT", "application-container", &|_| {
            container(ports.clone())
        })
    });
}

#[test]
fn ports_that_the_node_chooses_never_collide() {
    seeds::each(300, |seed| {
        race(seed, 10, 10, "", "application-container", &|_| {
            container(json!({ "containerPorts": [{ "containerPort": 80 }, { "containerPort": 81 }] }))
        })
    });
}

#[test]
fn a_folder_has_one_writer() {
    let volumes = json!({ "volumes": [{ "hostPath": "/srv/hwm/volumes/a", "containerPath": "/a" }] });
    seeds::each(300, |seed| {
        race(seed, 6, 1, "VOLUME_CONFLICT", "application-container", &|_| {
            container(volumes.clone())
        })
    });
}

#[test]
fn an_address_has_one_holder() {
    let config = json!({
        "type": "virtual-machine", "osImage": "debian-12", "vcpus": 1, "ramMB": 512, "diskGB": 10,
        "networkConfig": {
            "mode": "bridge-vlan", "ipMode": "static", "ipAddress": "192.168.7.10",
            "netmask": "255.255.255.0", "gateway": "192.168.7.1", "vlanId": 7,
        },
    });
    seeds::each(300, |seed| {
        race(seed, 6, 1, "ADDRESS_CONFLICT", "virtual-machine", &|_| {
            config.clone()
        })
    });
}

#[test]
fn seven_slices_have_seven_holders() {
    let slice = json!({ "gpuConfig": { "enabled": true, "mode": "mig", "migProfile": "1g.5gb" } });
    seeds::each(200, |seed| {
        race(seed, 20, 7, "GPU_CONFLICT", "application-container", &|_| {
            container(slice.clone())
        })
    });
}

#[test]
fn a_card_goes_whole_or_not_at_all() {
    // Two A30s, and every caller is content with either.
    seeds::each(300, |seed| {
        race(seed, 8, 2, "GPU_CONFLICT", "application-container", &|_| {
            container(json!({ "gpuConfig": { "enabled": true, "mode": "whole" } }))
        })
    });
    // One card under all of its names.
    seeds::each(300, |seed| {
        race(seed, 6, 1, "GPU_CONFLICT", "application-container", &|n| {
            let name = ["1", "GPU-1"][n % 2];
            container(json!({ "gpuDeviceIds": [name] }))
        })
    });
}
