//! Changes: what merges, what stays, what cannot be changed.

use hwm_core::config::{Config, MachineConfig};
use hwm_core::lifecycle::Desired;
use hwm_core::resource::{Record, Resource, Runtime};
use hwm_core::secret::Secret;
use hwm_core::units::{Bytes, Cores};
use hwm_core::validate::{Patch, Rules, patch};
use serde_json::{Value, json};

use crate::samples;

fn machine() -> Record {
    samples::record(Config::Machine(samples::machine()))
}

fn container() -> Record {
    samples::record(Config::Container(samples::container()))
}

fn inference() -> Record {
    samples::record(Config::Inference(samples::inference()))
}

fn changed(record: &Record, body: Value) -> Patch {
    patch(record, &body, &samples::rules()).unwrap_or_else(|found| panic!("{body}: {found:?}"))
}

fn refused(record: &Record, body: Value) -> Vec<String> {
    let found = patch(record, &body, &samples::rules()).expect_err("was taken");
    found.iter().map(ToString::to_string).collect()
}

/// What a container's config becomes.
fn merged(body: Value) -> hwm_core::config::ContainerConfig {
    match changed(&container(), json!({ "config": body })).config {
        Some(Config::Container(config)) => config,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_empty_patch_changes_nothing() {
    for record in [machine(), container(), inference()] {
        for body in [json!({}), json!({"config": {}, "metadata": {}})] {
            assert!(changed(&record, body).is_empty());
        }
    }
}

#[test]
fn a_resource_sent_back_as_it_reads_changes_nothing() {
    for mut record in [machine(), container(), inference()] {
        record.error_message = Some("why".to_owned());
        record.runtime = Some(Runtime {
            id: "abc".to_owned(),
            endpoint: None,
            allocated_gpu: vec!["GPU-1".to_owned()],
            allocated_cpu: Cores::from_f64(1.5),
            allocated_ram: Bytes::from_gb(0.1),
            started_at: Some(record.created_at),
            stopped_at: None,
        });
        let mut body = serde_json::to_value(Resource::from(&record)).unwrap();
        // A status asks for that state, also where it is the state.
        let status = body.as_object_mut().unwrap().remove("status");
        assert_eq!(status, Some(json!("running")));
        assert!(changed(&record, body).is_empty());
    }
}

#[test]
fn a_config_that_does_not_change_is_not_judged_by_new_rules() {
    let rules = Rules::default();
    let record = container();
    let mut body = serde_json::to_value(Resource::from(&record)).unwrap();
    body["name"] = json!("renamed");
    let taken = patch(&record, &body, &rules).unwrap();
    assert_eq!((taken.name.as_deref(), taken.config), (Some("renamed"), None));
    // One that changes is judged as a whole.
    let found = patch(&record, &json!({"config": {"cpuCores": 2}}), &rules).unwrap_err();
    assert_eq!(found[0].field, "config.volumes[0].hostPath");
}

#[test]
fn name_and_description_follow_the_rules_of_a_create() {
    let record = machine();
    let taken = changed(&record, json!({"name": "new", "description": "also new"}));
    assert_eq!(taken.name.as_deref(), Some("new"));
    assert_eq!(taken.description, Some(Some("also new".to_owned())));
    assert_eq!(
        changed(&record, json!({"description": null})).description,
        Some(None)
    );
    assert_eq!(
        refused(&record, json!({"name": null, "description": 1})),
        [
            "name: must be a string, not null",
            "description: must be a string, not a number"
        ]
    );
    assert_eq!(
        refused(&record, json!({"name": ""})),
        ["name: must not be empty: it has between 1 and 100 characters"]
    );
}

#[test]
fn metadata_merges_and_null_removes_an_entry() {
    let record = machine();
    let metadata = |body: Value| changed(&record, json!({ "metadata": body })).metadata;
    let expect = |value: Value| Some(serde_json::from_value(value).unwrap());
    assert_eq!(
        metadata(json!({"tier": "gold"})),
        expect(json!({"team": "blue", "tier": "gold"}))
    );
    assert_eq!(
        metadata(json!({"team": null, "tier": "gold"})),
        expect(json!({"tier": "gold"}))
    );
    assert_eq!(metadata(json!({"team": null, "other": null})), expect(json!({})));
    assert_eq!(metadata(json!(null)), expect(json!({})));
    assert_eq!(metadata(json!({"other": null})), None);
    assert_eq!(
        refused(&record, json!({"metadata": {"a": 1}})),
        ["metadata.a: must be a string, not a number"]
    );
    assert_eq!(
        refused(&record, json!({"metadata": ["a"]})),
        ["metadata: must be an object of strings, not an array"]
    );
}

#[test]
fn a_status_asks_for_running_or_stopped_and_nothing_else() {
    let record = machine();
    assert_eq!(
        changed(&record, json!({"status": "stopped"})).status,
        Some(Desired::Stopped)
    );
    assert_eq!(
        changed(&record, json!({"status": "running"})).status,
        Some(Desired::Running)
    );
    for status in [json!("queued"), json!("deleted"), json!("Running")] {
        assert_eq!(
            refused(&record, json!({ "status": status })),
            ["status: must be \"running\" or \"stopped\""]
        );
    }
    for status in [json!(null), json!(true)] {
        assert!(refused(&record, json!({ "status": status }))[0].starts_with("status: must be"));
    }
}

#[test]
fn objects_merge_arrays_replace_and_null_removes() {
    let before = samples::container();
    let config = merged(json!({
        "imageTag": null,
        "containerPorts": [{"containerPort": 443}],
        "environment": {"GREETING": null, "NEW": "1"},
        "cpuCores": null,
        "args": ["--quiet"],
    }));
    assert_eq!(config.image_tag, "latest");
    assert_eq!(config.container_ports.len(), 1);
    assert_eq!(
        (
            config.container_ports[0].container_port,
            config.container_ports[0].host_port
        ),
        (443, None)
    );
    assert_eq!(config.environment, [("NEW".to_owned(), "1".to_owned())].into());
    assert_eq!(config.cpu_cores, None);
    assert_eq!(config.args, Some(vec!["--quiet".to_owned()]));
    let expected = hwm_core::config::ContainerConfig {
        image_tag: config.image_tag.clone(),
        container_ports: config.container_ports.clone(),
        environment: config.environment.clone(),
        cpu_cores: None,
        args: config.args.clone(),
        ..before
    };
    assert_eq!(config, expected);
}

#[test]
fn the_merged_config_is_judged_as_a_whole() {
    let record = container();
    assert_eq!(
        refused(
            &record,
            json!({"config": {"gpuConfig": {"enabled": true, "mode": "whole"}}})
        ),
        [
            "config.gpuConfig: must not be enabled beside gpuDeviceIds: remove one of the two (in a PATCH with \
             null)"
        ]
    );
    let config = merged(json!({"gpuDeviceIds": null, "gpuConfig": {"enabled": true, "mode": "whole"}}));
    assert!(config.gpu_device_ids.is_empty() && config.gpu_config.is_some());
    let found = refused(
        &machine(),
        json!({"config": {"networkConfig": {"ipMode": "dhcp"}}}),
    );
    assert_eq!(found.len(), 3, "{found:?}");
    changed(
        &machine(),
        json!({"config": {"networkConfig":
            {"ipMode": "dhcp", "ipAddress": null, "netmask": null, "gateway": null}}}),
    );
    assert_eq!(
        refused(&machine(), json!({"config": {"vcpus": null}})),
        ["config.vcpus: must be an integer between 1 and 128, not null"]
    );
    for config in [json!(null), json!([]), json!("x")] {
        assert!(
            refused(&record, json!({ "config": config }))[0].starts_with("config: must be an object, not")
        );
    }
}

#[test]
fn removing_a_field_that_does_not_exist_is_a_mistake_and_one_that_is_not_set_is_none() {
    let record = container();
    for body in [
        json!({"cpuCore": null}),
        json!({"registryAuth": {"passwd": null}}),
        json!({"unknown": 1}),
    ] {
        let found = refused(&record, json!({ "config": body }));
        assert!(found[0].contains("is not a known field"), "{found:?}");
    }
    assert!(
        changed(
            &record,
            json!({"config": {"gpuConfig": null, "environment": {"X": null}}})
        )
        .is_empty()
    );
    let found = refused(&record, json!({"nmae": null, "autoStart": true}));
    assert_eq!(found.len(), 2, "{found:?}");
}

#[test]
fn what_cannot_be_changed_is_refused_by_name() {
    let record = machine();
    let body = json!({
        "_id": "x",
        "resourceType": "application-container",
        "nodeId": "node-2",
        "owner": {"orgId": "mine"},
        "createdBy": "me",
        "updatedBy": "me",
        "createdAt": "2020-01-01T00:00:00.000Z",
        "updatedAt": null,
        "deletedAt": "2020-01-01T00:00:00.000Z",
        "runtime": {},
        "errorMessage": "x",
        "lastHealthCheck": "yesterday",
        "restartRequired": true,
        "config": {"type": "application-container"},
    });
    let found = refused(&record, body.clone());
    for name in body.as_object().unwrap().keys().filter(|name| *name != "config") {
        assert!(
            found.iter().any(|v| v.starts_with(&format!("{name}: "))),
            "{name}: {found:?}"
        );
    }
    assert!(
        found.contains(&"config.type: must equal resourceType".to_owned()),
        "{found:?}"
    );
    assert_eq!(found.len(), 14, "{found:?}");
    // A health check that passed since the client read moves nothing else.
    assert!(changed(&record, json!({"lastHealthCheck": "2020-01-01T00:00:00Z"})).is_empty());
    assert!(changed(&record, json!({"owner": {"orgId": "org"}, "runtime": null})).is_empty());
}

#[test]
fn the_disk_of_a_machine_keeps_its_image_and_never_shrinks() {
    let record = machine();
    let found = refused(&record, json!({"config": {"osImage": "debian-11", "diskGB": 99}}));
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("config.osImage: cannot be changed, as the disk was made from it"));
    assert!(found[1].starts_with("config.diskGB: cannot shrink") && found[1].ends_with("at least 100"));
    let Some(Config::Machine(MachineConfig { disk, .. })) =
        changed(&record, json!({"config": {"diskGB": 200}})).config
    else {
        panic!("not a machine")
    };
    assert_eq!(disk, Bytes::from_whole_gb(200));
    // An image that left the catalogue still carries the machines made from it.
    let mut rules = samples::rules();
    rules.os_images.clear();
    assert!(patch(&record, &json!({"config": {"vcpus": 2}}), &rules).is_ok());
}

#[test]
fn the_mark_of_a_secret_keeps_what_is_stored() {
    let config = merged(json!({"registryAuth": {"username": "other", "password": "***"}}));
    let auth = config.registry_auth.unwrap();
    assert_eq!(auth.username.as_deref(), Some("other"));
    assert_eq!(auth.password.unwrap().expose(), "hunter2");
    let config = merged(json!({"registryAuth": {"password": "new"}}));
    assert_eq!(config.registry_auth.unwrap().password, Some(Secret::new("new")));
    let config = merged(json!({"registryAuth": {"username": null, "password": null, "token": "t"}}));
    assert_eq!(config.registry_auth.unwrap().token, Some(Secret::new("t")));
    assert_eq!(merged(json!({"registryAuth": null})).registry_auth, None);
    assert_eq!(
        refused(
            &container(),
            json!({"config": {"registryAuth": {"password": null, "token": "***"}}})
        ),
        [
            "config.registryAuth.token: must be the secret itself: \"***\" stands for a stored one, and none \
             is stored"
        ]
    );
    let Some(Config::Machine(read)) = changed(
        &machine(),
        json!({"config": {"vcpus": 8, "cloudInit": {"password": "***"}}}),
    )
    .config
    else {
        panic!("not a machine")
    };
    assert_eq!(
        read.cloud_init.unwrap().password.unwrap().expose(),
        "correct horse"
    );
}

#[test]
fn a_stored_secret_never_follows_the_image_to_another_registry() {
    let moved = "must be given again, as the image now comes from another registry; or remove it with null";
    for body in [
        json!({"imageName": "evil.example.com/team/app"}),
        json!({"imageName": "registry.example.com:5001/team/app"}),
        json!({"registry": "docker-hub", "imageName": "team/app"}),
        json!({"imageName": "evil.example.com/a", "registryAuth": {"username": "robot", "password": "***"}}),
    ] {
        assert_eq!(
            refused(&container(), json!({ "config": body })),
            [format!("config.registryAuth.password: {moved}")]
        );
    }
    assert_eq!(
        refused(
            &inference(),
            json!({"config": {"dockerImage": "evil.example.com/a:b"}})
        ),
        [format!("config.registryAuth.token: {moved}")]
    );
    merged(json!({"imageName": "registry.example.com:5000/other/app"}));
    merged(json!({"imageName": "evil.example.com/a", "registryAuth": null}));
    merged(json!({"imageName": "other.example.com/a", "registryAuth": {"password": "of the other"}}));
}
