//! How GPUs are asked for.

use serde_json::json;

use super::{container, inference, machine, refuses, takes};
use crate::samples::violations;

#[test]
fn the_gpus_of_a_machine_are_named_or_one_slice() {
    let gpu = "/config/gpuConfig";
    takes(
        &machine(),
        gpu,
        [
            json!({"enabled": false}),
            json!({"enabled": false, "mode": "mig", "deviceIds": ["0"]}),
            json!({"enabled": true, "mode": "passthrough", "deviceIds": ["0", "GPU-1", "0000:3b:00.0",
                "GPU-5c0f1d2e-0000-1111-2222-333344445555"]}),
            json!({"enabled": true, "mode": "mig", "migProfile": "1g.5gb", "deviceIds": []}),
        ],
    );
    refuses(
        &machine(),
        gpu,
        [
            (json!({}), "enabled: is required: true or false"),
            (
                json!({"enabled": true}),
                "mode: is required: \"passthrough\" or \"mig\"",
            ),
            (
                json!({"enabled": true, "mode": "whole"}),
                "mode: must be \"passthrough\" or \"mig\"",
            ),
            (
                json!({"enabled": true, "mode": "passthrough"}),
                "deviceIds: is required",
            ),
            (
                json!({"enabled": true, "mode": "passthrough", "deviceIds": []}),
                "deviceIds: is required",
            ),
            (
                json!({"enabled": true, "mode": "passthrough", "deviceIds": ["0"], "migProfile": "1g"}),
                "migProfile: has no meaning",
            ),
            (json!({"enabled": true, "mode": "mig"}), "migProfile: is required"),
            (
                json!({"enabled": true, "mode": "mig", "migProfile": "1g", "deviceIds": ["0"]}),
                "deviceIds: has no meaning",
            ),
            (
                json!({"enabled": true, "mode": "mig", "migProfile": "all"}),
                "migProfile: must be a MIG profile",
            ),
            (
                json!({"enabled": true, "mode": "passthrough", "deviceIds": ["0", "GPU-0"]}),
                "deviceIds[1]: repeats config.gpuConfig.deviceIds[0]",
            ),
            (
                json!({"enabled": true, "mode": "passthrough", "deviceIds": ["a b"]}),
                "deviceIds[0]: must be the index",
            ),
            (json!({"enabled": "yes"}), "enabled: must be true or false"),
        ],
    );
}

#[test]
fn the_gpus_of_a_container_are_named_or_chosen() {
    let mut body = container();
    body["config"]["gpuDeviceIds"] = json!([]);
    takes(
        &body,
        "/config/gpuConfig",
        [
            json!({"enabled": false}),
            json!({"enabled": true, "mode": "whole"}),
            json!({"enabled": true, "mode": "whole", "count": 8}),
            json!({"enabled": true, "mode": "mig", "migProfile": "1g.10gb+me"}),
        ],
    );
    refuses(
        &body,
        "/config/gpuConfig",
        [
            (
                json!({"enabled": true}),
                "mode: is required: \"whole\" or \"mig\"",
            ),
            (
                json!({"enabled": true, "mode": "whole", "count": 0}),
                "count: must be between 1 and 64",
            ),
            (
                json!({"enabled": true, "mode": "whole", "migProfile": "1g"}),
                "migProfile: has no meaning with mode \"whole\"",
            ),
            (json!({"enabled": true, "mode": "mig"}), "migProfile: is required"),
            (
                json!({"enabled": true, "mode": "mig", "migProfile": "1g", "count": 1}),
                "count: has no meaning with mode \"mig\"",
            ),
            (
                json!({"enabled": true, "mode": "passthrough"}),
                "mode: must be \"whole\" or \"mig\"",
            ),
        ],
    );
    takes(&container(), "/config/gpuConfig", [json!({"enabled": false})]);
    refuses(
        &container(),
        "/config/gpuConfig",
        [(
            json!({"enabled": true, "mode": "whole"}),
            "must not be enabled beside gpuDeviceIds: remove one of the two",
        )],
    );
    refuses(
        &container(),
        "/config/gpuDeviceIds",
        [
            (json!(["0", "1", "gpu-0"]), "[2]: repeats config.gpuDeviceIds[0]"),
            (json!(["MIG-a", "mig-A"]), "[1]: repeats config.gpuDeviceIds[0]"),
            (json!([0]), "[0]: must be the name of a GPU, not a number"),
            (json!([""]), "[0]: must be the index, UUID or PCI address"),
            (json!(["all\n"]), "[0]: must be the index"),
        ],
    );
}

#[test]
fn an_inference_container_has_a_gpu() {
    let mut body = inference();
    for (ids, config) in [
        (json!(null), json!(null)),
        (json!([]), json!(null)),
        (json!([]), json!({"enabled": false})),
    ] {
        body["config"]["gpuDeviceIds"] = ids;
        body["config"]["gpuConfig"] = config;
        assert_eq!(
            violations(&body),
            [
                "config.gpuDeviceIds: is required: name at least one GPU, or enable gpuConfig and the node chooses"
            ]
        );
    }
    body["config"]["gpuConfig"] = json!({"enabled": true, "mode": "whole"});
    assert_eq!(violations(&body), [""; 0]);
}
