//! What is not ours looks as much like ours as it can, and stays as it is.

use hwm_core::backend::{Backend, BackendErrorKind, StopOptions};

use crate::lab::{Lab, call, new_id, virsh};

fn planted(name: &str, uuid: &str, metadata: &str) -> String {
    format!(
        "<domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid><metadata>{metadata}</metadata>\
         <memory unit='MiB'>16</memory><os><type arch='x86_64' machine='q35'>hvm</type></os></domain>"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn lookalikes_are_never_touched() {
    let lab = Lab::new("foreign").await;
    let backend = &lab.backend;
    let ours = lab.machine();
    backend.create(&call(1), &ours).await.unwrap();
    let namespace = "https://hwm.rs/libvirt/domain/1";
    let owner = &lab.options.owner;
    let other = "00000000-0000-4000-8000-000000000000";

    let mut planted_ones = Vec::new();
    for i in 0..50 {
        let id = new_id();
        let text = id.to_string();
        let metadata = match i % 5 {
            0 => String::new(),
            1 => format!(
                "<x:machine xmlns:x='https://example.org' owner='{owner}' resource='{text}' generation='1'/>"
            ),
            2 => {
                format!("<h:machine xmlns:h='{namespace}' owner='another' resource='{text}' generation='1'/>")
            }
            3 => format!(
                "<h:machine xmlns:h='{namespace}' owner='{owner}' resource='{other}' generation='1'/>"
            ),
            _ => format!("<h:machine xmlns:h='{namespace}' owner='{owner}' generation='x'/>"),
        };
        // Every other one has our name but not our UUID.
        let uuid = if i % 2 == 0 {
            text.clone()
        } else {
            uuid::Uuid::new_v4().to_string()
        };
        let file = lab.folder().join("planted.xml");
        std::fs::write(&file, planted(&format!("hwm-{text}"), &uuid, &metadata)).unwrap();
        let said = virsh(&["define", file.to_str().unwrap()]);
        assert!(!said.contains("error"), "{said}");
        virsh(&[
            "vol-create-as",
            &lab.options.pool,
            &format!("hwm-{text}.qcow2"),
            "1M",
            "--format",
            "qcow2",
        ]);
        planted_ones.push((id, uuid));
    }
    let volume_only = new_id();
    let seed = format!("hwm-{volume_only}-seed.img");
    virsh(&["vol-create-as", &lab.options.pool, &seed, "2M"]);
    planted_ones.push((volume_only, String::new()));
    let state = || {
        let mut state: Vec<String> = planted_ones
            .iter()
            .filter(|(_, uuid)| !uuid.is_empty())
            .map(|(_, uuid)| virsh(&["dumpxml", uuid]))
            .collect();
        state.push(virsh(&["vol-list", &lab.options.pool]));
        state
    };
    let before = state();

    let owned = backend.owned().await.unwrap();
    assert_eq!(owned.iter().map(|o| o.id).collect::<Vec<_>>(), [ours.id]);
    let ids: Vec<_> = planted_ones.iter().map(|(id, _)| *id).collect();
    assert_eq!(backend.inspect(&ids).await.unwrap(), []);
    assert_eq!(backend.metrics(&ids).await.unwrap(), []);
    for id in &ids {
        let mut machine = ours.clone();
        machine.id = *id;
        let refused = backend.create(&call(1), &machine).await.unwrap_err();
        assert_eq!(refused.kind, BackendErrorKind::Conflict, "{refused}");
        assert!(backend.start(&call(1), &machine).await.is_err());
        let stop = StopOptions {
            force: true,
            grace: None,
        };
        backend.stop(&call(1), *id, stop).await.unwrap();
        backend.remove(&call(1), *id).await.unwrap();
    }
    assert!(before == state(), "something that is not ours was changed");

    for (id, uuid) in &planted_ones {
        if !uuid.is_empty() {
            virsh(&["undefine", uuid]);
        }
        virsh(&[
            "vol-delete",
            "--pool",
            &lab.options.pool,
            &format!("hwm-{id}.qcow2"),
        ]);
    }
    virsh(&["vol-delete", "--pool", &lab.options.pool, &seed]);
    lab.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_do_to_ours_is_mended() {
    let lab = Lab::new("drift").await;
    let backend = &lab.backend;
    let machine = lab.machine();
    let id = machine.id;
    let text = id.to_string();
    backend.create(&call(1), &machine).await.unwrap();

    // Undefined: the volumes are still known to be ours, and the disk is kept.
    virsh(&["undefine", &text]);
    assert_eq!(lab.observed(id).await, None);
    assert_eq!(backend.owned().await.unwrap().len(), 1);
    backend.create(&call(1), &machine).await.unwrap();
    backend.start(&call(1), &machine).await.unwrap();
    assert_eq!(backend.owned().await.unwrap().len(), 1);

    // Undefined while it runs, and then switched off: gone from libvirt, and removed with its volumes.
    virsh(&["undefine", &text]);
    virsh(&["destroy", &text]);
    backend.remove(&call(2), id).await.unwrap();
    assert_eq!(backend.owned().await.unwrap(), []);

    // A volume removed behind our back comes back with the next create, and is said to be missing at a start.
    let second = lab.machine();
    backend.create(&call(1), &second).await.unwrap();
    virsh(&[
        "vol-delete",
        "--pool",
        &lab.options.pool,
        &format!("hwm-{}.qcow2", second.id),
    ]);
    let missing = backend.start(&call(1), &second).await.unwrap_err();
    assert_eq!(missing.kind, BackendErrorKind::NotFound, "{missing}");
    backend.create(&call(1), &second).await.unwrap();
    backend.start(&call(1), &second).await.unwrap();
    lab.clean().await;
}
