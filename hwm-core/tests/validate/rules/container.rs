//! Containers: image, limits, process.

use hwm_core::config::Config;
use hwm_core::validate::create_request;
use serde_json::{Value, json};

use super::{all, container, inference, refuses, set, takes, texts};
use crate::samples;

#[test]
fn an_image_name_suits_its_registry() {
    for (registry, takes, refuses) in [
        (
            "docker-hub",
            &[
                "nginx",
                "library/nginx",
                "docker.io/library/nginx",
                "bitnami/redis-cluster",
                "a__b/c-d.e",
            ][..],
            &[
                ("ghcr.io/owner/name", "set registry to \"private\""),
                ("localhost/app", "set registry to \"private\""),
                ("nginx:1.25", "put it into imageTag"),
                ("nginx@sha256:abc", "put it into imageTag"),
                ("Nginx", "must be a valid image reference"),
                ("", "between 1 and 700 characters"),
                ("a//b", "must be a valid image reference"),
                ("../../volumes", "must be a valid image reference"),
                ("a/../b", "must be a valid image reference"),
                ("nginx\n", "must be a valid image reference"),
                ("nginx --privileged", "must be a valid image reference"),
                ("-nginx", "must be a valid image reference"),
            ][..],
        ),
        (
            "ghcr",
            &["owner/name", "ghcr.io/owner/name", "owner/team/name"][..],
            &[
                ("name", "must be owner/name or ghcr.io/owner/name"),
                ("ghcr.io/name", "must be owner/name or ghcr.io/owner/name"),
                ("quay.io/owner/name", "set registry to \"private\""),
                ("docker.io/owner/name", "set registry to \"private\""),
                ("Owner/name", "must be a valid image reference"),
            ][..],
        ),
        (
            "private",
            &[
                "registry.example.com/app",
                "registry:5000/team/app",
                "localhost/app",
                "10.0.0.1:5000/a/b/c",
            ][..],
            &[
                ("app", "must be host[:port]/path"),
                ("team/app", "must be host[:port]/path"),
                ("registry:5000", "put it into imageTag"),
                ("registry:0/app", "a port between 1 and 65535"),
                ("registry:65536/app", "a port between 1 and 65535"),
                ("https://registry.example.com/app", "must"),
                ("user:pass@registry.example.com/app", "must"),
                ("registry.example.com/app:1", "put it into imageTag"),
            ][..],
        ),
    ] {
        let body = set(container(), "/config/registry", json!(registry));
        self::takes(&body, "/config/imageName", takes.iter().map(|name| json!(name)));
        self::refuses(
            &body,
            "/config/imageName",
            refuses.iter().map(|(name, words)| (json!(name), *words)),
        );
    }
    refuses(
        &container(),
        "/config/registry",
        all(
            ["hub", "dockerhub"],
            "must be \"docker-hub\", \"ghcr\" or \"private\"",
        ),
    );
}

#[test]
fn a_tag_is_a_tag_or_a_digest() {
    let digest = format!("sha256:{}", "0a".repeat(32));
    takes(
        &container(),
        "/config/imageTag",
        texts(["latest", "1.25-alpine", "_x", "V1", &"x".repeat(128), &digest]),
    );
    refuses(
        &container(),
        "/config/imageTag",
        all(
            [
                "",
                ".a",
                "-a",
                "a b",
                "a/b",
                "a:b",
                "ü",
                "a\n",
                &"x".repeat(129),
                "sha256:abc",
                &digest.to_uppercase(),
                &format!("sha512:{}", "0a".repeat(64)),
                &format!("1.2@{digest}"),
            ],
            "must be a tag",
        ),
    );
}

#[test]
fn credentials_are_a_user_with_a_password_or_a_token() {
    let pointer = "/config/registryAuth";
    takes(
        &container(),
        pointer,
        [
            json!({}),
            json!({"token": "t"}),
            json!({"username": "u", "token": "t"}),
            json!({"username": "u", "password": "p:w ü"}),
        ],
    );
    refuses(
        &container(),
        pointer,
        [
            (json!({"username": "u"}), "password: is required with username"),
            (json!({"password": "p"}), "username: is required with password"),
            (
                json!({"username": "u", "password": "p", "token": "t"}),
                "token: must not be given beside password",
            ),
            (
                json!({"username": "u:v", "token": "t"}),
                "username: must not contain ':'",
            ),
            (json!({"token": ""}), "token: must not be empty"),
            (json!({"token": "a\nb"}), "token: must not contain control"),
            (json!({"token": "***"}), "token: must be the secret itself"),
        ],
    );
}

#[test]
fn limits_are_numbers_above_zero() {
    for (field, high) in [("cpuCores", 4096), ("ramLimit", 65_536)] {
        let pointer = format!("/config/{field}");
        for body in [container(), inference()] {
            takes(&body, &pointer, [json!(0.001), json!(0.5), json!(2), json!(high)]);
            for value in [json!(0), json!(-1), json!(1e-9), json!(high + 1), json!(1e300)] {
                refuses(&body, &pointer, [(value, "must be between 0.001 and")]);
            }
            refuses(&body, &pointer, all(["2", "2g"], "must be a number between"));
        }
    }
    for body in [container(), inference()] {
        takes(&body, "/config/shmSizeMB", [json!(1), json!(67_108_864)]);
        refuses(
            &body,
            "/config/shmSizeMB",
            [(json!(0), "must be between 1 and 67108864")],
        );
    }
    takes(
        &inference(),
        "/config/gpuMemoryLimit",
        [json!(1), json!(16_777_216)],
    );
    refuses(
        &inference(),
        "/config/gpuMemoryLimit",
        [(json!(0), "must be between 1 and 16777216")],
    );
}

#[test]
fn the_environment_takes_what_a_process_can_have() {
    for body in [container(), inference()] {
        takes(
            &body,
            "/config/environment",
            [
                json!({"PATH": "/bin", "empty": "", "a.b-c": "x=y\nz", "_": "ü"}),
                json!({"X": "v".repeat(131_069)}),
                json!({"MODEL_PATH": "/elsewhere", "LD_PRELOAD": "x.so"}),
            ],
        );
        refuses(
            &body,
            "/config/environment",
            [
                (json!({"": "x"}), "[\"\"]: must have a name"),
                (json!({"A=B": "x"}), "must have a name"),
                (json!({"A\0": "x"}), "must have a name"),
                (json!({"A B": "x"}), "must have a name"),
                (json!({"A\nB": "x"}), "must have a name"),
                (json!({"x".repeat(257): "x"}), "must have a name"),
                (json!({"A": "x\0"}), ".A: must not contain NUL"),
                (json!({"A": 1}), ".A: must be a string, not a number"),
                (json!({"A": true}), ".A: must be a string, not a boolean"),
                (json!({"A": "x".repeat(131_070)}), ".A: must have at most"),
                (json!({"HWM_GPU_MEMORY_LIMIT_MB": "1"}), "HWM_ is reserved"),
                (
                    json!({"NVIDIA_VISIBLE_DEVICES": "all"}),
                    "use gpuDeviceIds or gpuConfig",
                ),
                (
                    json!({"A": "x".repeat(120_000), "B": "x".repeat(120_000), "C": "x".repeat(60_000)}),
                    ": must have at most 262144 bytes in all",
                ),
                (
                    (0..1025).map(|i| (format!("V{i}"), json!(""))).collect::<Value>(),
                    ": must have at most 1024 entries",
                ),
            ],
        );
    }
}

#[test]
fn a_command_is_a_list_of_texts_and_an_empty_one_is_none() {
    for field in ["command", "args"] {
        let pointer = format!("/config/{field}");
        for body in [container(), inference()] {
            takes(&body, &pointer, [json!(["a", "", "b\nc"]), json!([])]);
            refuses(
                &body,
                &pointer,
                [
                    (json!("sh -c ls"), "must be an array, not a string"),
                    (json!(["a", 1]), "[1]: must be a string, not a number"),
                    (json!(["a\0"]), "[0]: must not contain NUL"),
                    (
                        json!(["x".repeat(131_072)]),
                        "[0]: must have at most 131071 bytes",
                    ),
                    (json!(vec!["x"; 1025]), "must have at most 1024 items"),
                    (
                        json!(vec!["x".repeat(100_000); 3]),
                        "must have at most 262144 bytes in all",
                    ),
                ],
            );
        }
    }
    refuses(
        &container(),
        "/config/command",
        [(json!([""]), "[0]: must name a program")],
    );
    let request = create_request(&set(container(), "/config/args", json!([])), &samples::rules()).unwrap();
    let Config::Container(read) = request.config else {
        panic!("not a container")
    };
    assert_eq!(read.args, None);
}

#[test]
fn policies_are_words_of_the_contract() {
    for body in [container(), inference()] {
        takes(&body, "/config/pullPolicy", texts(["missing", "always", "never"]));
        refuses(
            &body,
            "/config/pullPolicy",
            all(["Always", "ifNotPresent"], "must be \"missing\", \"always\""),
        );
        takes(
            &body,
            "/config/restartPolicy",
            texts(["no", "on-failure", "always"]),
        );
        refuses(
            &body,
            "/config/restartPolicy",
            all(["unless-stopped"], "must be \"no\", \"on-failure\" or"),
        );
    }
}
