//! Everything has a size: the largest is taken, one more is refused.

use hwm_core::validate::limits;
use serde_json::{Value, json};

use super::{container, inference, machine, refuses, set, takes};

/// A field takes `value(most)` and refuses `value(most + 1)`.
fn ends(body: &Value, pointer: &str, most: usize, value: impl Fn(usize) -> Value) {
    takes(body, pointer, [value(most)]);
    refuses(body, pointer, [(value(most + 1), "must")]);
}

fn text(length: usize) -> Value {
    "x".repeat(length).into()
}

#[test]
fn texts_are_bounded() {
    let path = |length: usize| format!("/{}", "x".repeat(length - 1)).into();
    ends(&machine(), "/nodeId", 253, text);
    ends(&inference(), "/config/modelId", 253, text);
    ends(&inference(), "/config/healthCheckPath", limits::URL, path);
    ends(&inference(), "/config/modelPath", limits::URL, |length| {
        format!("s3://bucket/{}", "x".repeat(length - 12)).into()
    });
    ends(&container(), "/config/registryAuth/username", 256, text);
    ends(&container(), "/config/registryAuth/password", 16_384, text);
    ends(&container(), "/config/gpuDeviceIds", 128, |length| {
        json!(["x".repeat(length)])
    });
    ends(
        &container(),
        "/metadata",
        128,
        |length| json!({"x".repeat(length): ""}),
    );
    ends(
        &container(),
        "/config/environment",
        256,
        |length| json!({"x".repeat(length): ""}),
    );
}

#[test]
fn paths_are_as_long_as_linux_takes_them() {
    let volume = |host: String, inside: String| json!([{"hostPath": host, "containerPath": inside}]);
    let long = |length: usize| "x".repeat(length);
    ends(&container(), "/config/volumes", limits::PATH, |length| {
        volume(format!("/srv/volumes/{}", long(length - 13)), "/data".to_owned())
    });
    ends(&container(), "/config/volumes", limits::PATH, |length| {
        volume("/srv/volumes/a".to_owned(), format!("/{}", long(length - 1)))
    });
    ends(&inference(), "/config/modelPath", limits::PATH, |length| {
        format!("/srv/models/{}", long(length - 12)).into()
    });
}

#[test]
fn lists_are_bounded() {
    let ports = |count: usize| (1..=count).map(|port| json!({ "containerPort": port })).collect();
    ends(&container(), "/config/containerPorts", limits::PORTS, ports);
    ends(&container(), "/config/volumes", limits::VOLUMES, |count| {
        let volume = |i| json!({"hostPath": "/srv/volumes/a", "containerPath": format!("/{i}")});
        (0..count).map(volume).collect()
    });
    let devices = |count: usize| (0..count).map(|index| json!(index.to_string())).collect();
    ends(&container(), "/config/gpuDeviceIds", limits::GPUS, devices);
    ends(&machine(), "/config/gpuConfig/deviceIds", limits::GPUS, devices);
    let servers = |count: usize| (1..=count).map(|i| json!(format!("10.0.0.{i}"))).collect();
    ends(
        &machine(),
        "/config/networkConfig/dns",
        limits::NAME_SERVERS,
        servers,
    );
    let words = |count: usize| vec!["x"; count].into();
    ends(&container(), "/config/command", limits::ARGUMENTS, words);
    ends(&container(), "/config/args", limits::ARGUMENTS, words);
    let entries = |count: usize| {
        (0..count)
            .map(|i| (format!("K{i}"), json!("")))
            .collect::<Value>()
    };
    ends(&container(), "/config/environment", limits::VARIABLES, entries);
    ends(&container(), "/metadata", limits::METADATA_ENTRIES, entries);
}

#[test]
fn an_image_has_a_name_of_at_most_255_characters() {
    ends(&container(), "/config/imageName", 255, |length| {
        format!("registry.example.com:5000/{}", "x".repeat(length)).into()
    });
    ends(&inference(), "/config/dockerImage", 255, |length| {
        format!("localhost/{}:v1", "x".repeat(length)).into()
    });
    let long = |length: usize| format!("{}.example.com/a", "x".repeat(length - 14));
    let body = set(
        container(),
        "/config/imageName",
        json!(long(*limits::IMAGE.end() + 1)),
    );
    refuses(
        &body,
        "/config/imageName",
        [(json!(long(701)), "between 1 and 700 characters")],
    );
}
