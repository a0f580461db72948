use std::collections::BTreeMap;

use hwm_core::backend::{Backend, Exec, ExecRequest};
use serde_json::{Value, json};

use crate::lab::*;

/// What an engine says of a container, without what differs from one container or engine to the next.
fn settled(mut found: Value, lab: &Lab) -> Value {
    let host = found["HostConfig"].as_object_mut().unwrap();
    for machine in [
        "CgroupParent",
        "MaskedPaths",
        "ReadonlyPaths",
        "ConsoleSize",
        "CgroupnsMode",
        "Runtime",
    ] {
        host.remove(machine);
    }
    host.retain(|_, value| {
        !matches!(value, Value::Null) && *value != json!("") && *value != json!(0) && *value != json!([])
    });
    let text = json!({
        "HostConfig": sorted(found["HostConfig"].clone()),
        "Privileged": found["HostConfig"]["Privileged"],
        "Mounts": found["Mounts"].as_array().unwrap().iter().map(|m| sorted(m.clone())).collect::<Vec<_>>(),
        "User": found["Config"]["User"],
        "Tty": found["Config"]["Tty"],
        "OpenStdin": found["Config"]["OpenStdin"],
        "Env": found["Config"]["Env"],
    })
    .to_string();
    serde_json::from_str(&text.replace(lab.path().to_str().unwrap(), "/LAB")).unwrap()
}

fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let map: BTreeMap<_, _> = map.into_iter().map(|(k, v)| (k, sorted(v))).collect();
            map.into_iter().collect()
        }
        other => other,
    }
}

#[tokio::test]
async fn the_engine_gives_a_container_no_more_than_it_needs() {
    let lab = lab();
    let folder = lab.path().join("volumes/data");
    std::fs::create_dir(&folder).unwrap();
    let workload = application(
        "busybox",
        json!({
            "cpuCores": 0.5, "ramLimit": 0.25, "environment": {"NVIDIA_VISIBLE_DEVICES": "all", "A": "b"},
            "volumes": [{"hostPath": folder, "containerPath": "/data", "readOnly": true}],
            "containerPorts": [{"containerPort": 80, "hostPort": 47_811}],
        }),
    );
    lab.backend.create(&call(), &workload).await.unwrap();
    let found = raw()
        .inspect_container(&format!("hwm-{}", workload.id), None)
        .await
        .unwrap();
    insta::assert_json_snapshot!(settled(serde_json::to_value(found).unwrap(), &lab));
    lab.gone(workload.id).await;
}

#[tokio::test]
async fn inside_there_are_few_capabilities_and_no_way_to_new_ones() {
    let lab = lab();
    let workload = application("busybox", json!({}));
    lab.up(&workload).await;
    let request = ExecRequest {
        command:
            "grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/1/status; mknod /tmp/sda b 8 0; ls /dev"
                .into(),
        working_dir: None,
        timeout: std::time::Duration::from_secs(10),
        output_limit: 10_000,
    };
    let out = lab.backend.run(workload.id, request).await.unwrap().output;
    // The engine's usual set without AUDIT_WRITE, MKNOD, NET_RAW, SETFCAP and SETPCAP.
    assert!(out.contains("CapBnd:\t00000000000404fb"), "{out}");
    assert!(out.contains("CapEff:\t00000000000404fb"), "{out}");
    assert!(out.contains("NoNewPrivs:\t1"), "{out}");
    assert!(out.contains("Operation not permitted"), "{out}");
    assert!(!out.contains("sda\n"), "{out}");
    lab.gone(workload.id).await;
}
