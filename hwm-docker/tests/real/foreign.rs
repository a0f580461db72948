use std::collections::{BTreeMap, HashMap};

use bollard::models::ContainerCreateBody;
use hwm_core::backend::{Backend, BackendErrorKind};
use serde_json::json;

use crate::lab::*;

fn planted(labels: &[(&str, String)]) -> ContainerCreateBody {
    ContainerCreateBody {
        image: Some("hwm-test/busybox:1".into()),
        cmd: Some(vec!["sleep".into(), "600".into()]),
        labels: Some(
            labels
                .iter()
                .map(|(k, v)| ((*k).to_owned(), v.clone()))
                .collect::<HashMap<_, _>>(),
        ),
        ..ContainerCreateBody::default()
    }
}

/// Fifty containers that look like ours, in every way but the one that counts, and what they must stay.
#[tokio::test]
async fn lookalikes_are_never_touched_nor_shown() {
    let lab = lab();
    let docker = raw();
    let tag = format!("hwm-lookalike-{}", uuid::Uuid::new_v4());
    let workload = application("busybox", json!({}));
    let id = workload.id.to_string();
    for n in 0..50 {
        let mut labels = vec![("test", tag.clone())];
        match n % 5 {
            // Our resource, another owner.
            0 => labels.extend([
                ("io.hwm.owner", format!("{}x", lab.owner)),
                ("io.hwm.resource", id.clone()),
            ]),
            // Our owner, no resource.
            1 => labels.push(("io.hwm.owner", lab.owner.clone())),
            // Our owner, a resource that is none.
            2 => labels.extend([
                ("io.hwm.owner", lab.owner.clone()),
                ("io.hwm.resource", format!("{id}/../x")),
            ]),
            // Our resource, no owner.
            3 => labels.push(("io.hwm.resource", id.clone())),
            // No labels but a name like ours.
            _ => {}
        }
        plant(
            &docker,
            &format!("hwm-{}-{n}", uuid::Uuid::now_v7()),
            planted(&labels),
        )
        .await;
    }
    let state = || async {
        let mut state = BTreeMap::new();
        for c in containers(&raw(), &format!("test={tag}")).await {
            let found = raw()
                .inspect_container(c.id.as_ref().unwrap(), None)
                .await
                .unwrap();
            let now = found.state.unwrap();
            state.insert(
                c.id.unwrap(),
                (now.pid, now.started_at, found.name, found.host_config),
            );
        }
        state
    };
    let before = state().await;
    assert_eq!(before.len(), 50);
    lab.up(&workload).await;
    let owned: Vec<_> = lab
        .backend
        .owned()
        .await
        .unwrap()
        .into_iter()
        .map(|o| o.id)
        .collect();
    assert_eq!(owned, [workload.id]);
    lab.backend.stop(&call(), workload.id, at_once()).await.unwrap();
    lab.backend.start(&call(), &workload).await.unwrap();
    lab.backend.remove(&call(), workload.id).await.unwrap();
    lab.backend.remove(&call(), new_id()).await.unwrap();
    assert_eq!(lab.backend.owned().await.unwrap(), []);
    assert_eq!(state().await, before);
    for id in before.keys() {
        remove(&docker, id).await;
    }
}

#[tokio::test]
async fn something_else_under_our_name_is_a_conflict_and_stays() {
    let lab = lab();
    let docker = raw();
    let workload = application("busybox", json!({}));
    let name = format!("hwm-{}", workload.id);
    let labels = [
        ("io.hwm.owner", "somebody else".to_owned()),
        ("io.hwm.resource", workload.id.to_string()),
    ];
    plant(&docker, &name, planted(&labels)).await;
    let create = lab.backend.create(&call(), &workload).await.unwrap_err();
    let start = lab.backend.start(&call(), &workload).await.unwrap_err();
    for error in [create, start] {
        assert_eq!(error.kind, BackendErrorKind::Conflict);
        assert!(error.message.contains(&name), "{error}");
    }
    lab.backend.stop(&call(), workload.id, at_once()).await.unwrap();
    lab.backend.remove(&call(), workload.id).await.unwrap();
    assert_eq!(lab.backend.inspect(&[workload.id]).await.unwrap(), []);
    let found = docker.inspect_container(&name, None).await.unwrap();
    assert_eq!(found.state.unwrap().running, Some(true));
    remove(&docker, &name).await;
}

#[tokio::test]
async fn a_container_of_ours_that_was_renamed_is_found_and_removed() {
    let lab = lab();
    let workload = application("busybox", json!({}));
    lab.up(&workload).await;
    let options = bollard::query_parameters::RenameContainerOptionsBuilder::default()
        .name(&format!("renamed-{}", workload.id))
        .build();
    raw()
        .rename_container(&format!("hwm-{}", workload.id), options)
        .await
        .unwrap();
    lab.seen(workload.id).await;
    lab.gone(workload.id).await;
}
