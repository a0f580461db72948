//! Where things come from: volumes, models, images, health.

use hwm_core::config::Config;
use hwm_core::validate::{Rules, create_request};
use serde_json::json;

use super::{all, container, inference, refuses, set, takes, texts};
use crate::samples;

#[test]
fn a_volume_lies_inside_a_volume_root() {
    let volume = |host: &str| json!([{"hostPath": host, "containerPath": "/data"}]);
    let pointer = "/config/volumes";
    takes(
        &container(),
        pointer,
        ["/srv/volumes/a", "/srv/volumes/a b/ü", "/srv//volumes/a/"].map(volume),
    );
    for (host, words) in [
        ("/", "must not be /, a socket"),
        ("//", "must not be /, a socket"),
        ("/etc", "must not be in /etc"),
        ("/etc/", "must not be in /etc"),
        ("/etc/shadow", "must not be in /etc"),
        ("/proc/1/root", "must not be in /proc"),
        ("/sys", "must not be in /sys"),
        ("/dev/nvidia0", "must not be in /dev"),
        ("/var/run/docker.sock", "a socket that controls the host"),
        ("/run/docker.sock", "a socket that controls the host"),
        ("/run", "a folder that holds one"),
        ("/var", "a folder that holds one"),
        (
            "/run/containerd/containerd.sock",
            "a socket that controls the host",
        ),
        ("/srv/volumes", "must be inside a volume root: /srv/volumes"),
        ("/srv", "must be inside a volume root"),
        ("/srv/volumes2", "must be inside a volume root"),
        ("/home/me", "must be inside a volume root"),
        ("/srv/volumes/../other", "must not contain \".\" or \"..\""),
        ("/srv/volumes/./a", "must not contain \".\" or \"..\""),
        ("srv/volumes/a", "must be an absolute path"),
        ("", "must be an absolute path"),
        ("~/a", "must be an absolute path"),
        (
            "/srv/volumes/a:/etc",
            "must not contain control characters or ':'",
        ),
        ("/srv/volumes/a\0", "must not contain control characters or ':'"),
        ("/srv/volumes/a\n", "must not contain control characters or ':'"),
    ] {
        refuses(&container(), pointer, [(volume(host), words)]);
    }
    refuses(
        &container(),
        pointer,
        [(
            volume(&format!("/srv/volumes/{}", "x".repeat(4096))),
            "at most 4095 bytes",
        )],
    );
    let found = create_request(&container(), &Rules::default()).unwrap_err();
    assert_eq!(
        found[0].to_string(),
        "config.volumes[0].hostPath: cannot be used on this node: the operator must set a volume root"
    );
}

#[test]
fn no_volume_root_opens_what_stays_closed() {
    let mut rules = samples::rules();
    rules.volume_roots = vec!["/".into(), "/run".into(), "relative".into()];
    for host in [
        "/",
        "/etc/a",
        "/proc/1",
        "/sys/x",
        "/dev/x",
        "/boot/x",
        "/run/docker.sock",
        "/var/run",
    ] {
        let mut body = container();
        body["config"]["volumes"][0]["hostPath"] = json!(host);
        assert!(create_request(&body, &rules).is_err(), "{host}");
    }
    let mut body = container();
    body["config"]["volumes"][0]["hostPath"] = json!("/data//x/");
    let Ok(Config::Container(read)) = create_request(&body, &rules).map(|r| r.config) else {
        panic!("refused")
    };
    assert_eq!(read.volumes[0].host_path, "/data/x");
}

#[test]
fn a_volume_is_seen_at_a_folder_of_its_own() {
    let volume = |path: &str| json!([{"hostPath": "/srv/volumes/a", "containerPath": path}]);
    let pointer = "/config/volumes";
    takes(
        &container(),
        pointer,
        ["/data", "/etc/app", "/dev/shm", "/run/x"].map(volume),
    );
    for path in ["/", "//", "/proc", "/proc/sys", "/sys/", "/dev"] {
        refuses(
            &container(),
            pointer,
            [(volume(path), "must not be /, /dev, /proc or /sys")],
        );
    }
    for path in ["data", "/a/../proc", "/a:/b", ""] {
        refuses(&container(), pointer, [(volume(path), "containerPath: must")]);
    }
    refuses(
        &container(),
        pointer,
        [(
            json!([{"hostPath": "/srv/volumes/a", "containerPath": "/x/"},
                {"hostPath": "/srv/volumes/b", "containerPath": "/x"}]),
            "[1].containerPath: repeats config.volumes[0].containerPath",
        )],
    );
}

#[test]
fn a_model_comes_from_under_a_root_or_from_an_allowed_source() {
    let pointer = "/config/modelPath";
    takes(
        &inference(),
        pointer,
        texts([
            "/srv/models/llama",
            "/srv/volumes/llama",
            "file:///srv/models/llama",
            "s3://bucket/llama/8b",
            &format!("https://example.com/x.gguf#sha256={}", "0a".repeat(32)),
            "https://huggingface.co/x/resolve/main/y.gguf?download=true",
        ]),
    );
    for (path, words) in [
        (
            "/srv/models",
            "must be inside a model root or volume root: /srv/models, /srv/volumes",
        ),
        ("/home/me/llama", "must be inside a model root"),
        ("/etc/passwd", "must not be in /etc"),
        ("/srv/models/../../etc/passwd", "must not contain"),
        ("file:///etc/passwd", "must not be in /etc"),
        ("file://srv/models/llama", "must be an absolute path"),
        ("file://localhost/srv/models/llama", "must be an absolute path"),
        ("file:///srv/models/%2e%2e/x", "without '%'"),
        ("file:///srv/models/../x", "must not contain"),
        ("llama", "must be an absolute path, or a URL"),
        ("", "must be an absolute path, or a URL"),
        ("ftp://example.com/x", "must be an absolute path, or a URL"),
        ("https:///x", "must"),
        ("s3:///x", "must"),
        ("http://example.com/x", "allowed are s3://, https://"),
        ("https://169.254.169.254/latest", "on a public address"),
        ("https://localhost/x", "on a public address"),
        ("https://10.0.0.1/x", "on a public address"),
        ("https://[::1]/x", "on a public address"),
        ("https://0x7f.1/x", "on a public address"),
        ("https://user:pass@example.com/x", "must not contain credentials"),
        (
            "https://example.com/x#y",
            "nothing after '#' but the file's checksum",
        ),
        (
            "https://example.com/x#sha256=abc",
            "nothing after '#' but the file's checksum",
        ),
        (
            "https://example.com\\@evil.com/",
            "must not contain spaces, backslashes",
        ),
        ("https://exam\tple.com/", "must not contain spaces, backslashes"),
        ("https://example.com/\n", "must not contain spaces, backslashes"),
    ] {
        refuses(&inference(), pointer, [(json!(path), words)]);
    }
    let mut rules = samples::rules();
    rules.model_sources = vec!["http://10.0.0.5:9000/models".to_owned()];
    let read = |url: &str| create_request(&set(inference(), pointer, json!(url)), &rules);
    assert!(read("http://10.0.0.5:9000/models/x").is_ok());
    for url in [
        "http://10.0.0.5:9001/models/x",
        "http://10.0.0.5:9000/models/../x",
        "s3://b/x",
    ] {
        assert!(read(url).is_err(), "{url}");
    }
    rules.model_sources.clear();
    let found = create_request(&set(inference(), pointer, json!("s3://b/x")), &rules).unwrap_err();
    assert!(found[0].message.contains("allowed are none"), "{found:?}");
    let found = create_request(&inference(), &Rules::default()).unwrap_err();
    assert!(
        found[0].message.contains("the operator must set a model root"),
        "{found:?}"
    );
}

#[test]
fn an_inference_container_names_its_image_in_full() {
    let digest = format!("sha256:{}", "0a".repeat(32));
    takes(
        &inference(),
        "/config/dockerImage",
        texts([
            "vllm/vllm-openai",
            "nvcr.io/nim/meta/llama:1.0",
            "localhost:5000/x:y",
            &format!("vllm/vllm-openai:v1@{digest}"),
            &format!("vllm/vllm-openai@{digest}"),
        ]),
    );
    refuses(
        &inference(),
        "/config/dockerImage",
        all(
            [
                "",
                "Vllm/x",
                "a b",
                "x:",
                "x:tag!",
                "x:ü",
                "x@sha256:abc",
                "../x",
                "https://x.com/y",
                "x\n",
                "registry:99999/x",
                &format!("x@{}", digest.to_uppercase().replace("SHA", "sha")),
            ],
            "must",
        ),
    );
    takes(&inference(), "/config/containerPort", [json!(1), json!(65535)]);
    refuses(
        &inference(),
        "/config/containerPort",
        [
            (json!(0), "must be between 1 and 65535"),
            (json!(65536), "must be between 1 and 65535"),
        ],
    );
    takes(
        &inference(),
        "/config/modelId",
        texts(["meta-llama/Llama-3.1-8B", "my model"]),
    );
    refuses(
        &inference(),
        "/config/modelId",
        all(["", " ", "a\nb", &"x".repeat(254)], "must"),
    );
}

#[test]
fn a_health_check_is_a_path_an_interval_and_a_deadline() {
    takes(
        &inference(),
        "/config/healthCheckPath",
        texts(["/", "/health", "/v1/x?y=%20z"]),
    );
    refuses(
        &inference(),
        "/config/healthCheckPath",
        all(
            ["", "health", "//evil.com/", "http://x/", "@evil"],
            "must begin with one \"/\"",
        ),
    );
    refuses(
        &inference(),
        "/config/healthCheckPath",
        all(
            ["/a b", "/a\r\nHost: x", "/a\0", "/ü", "/a#b", "/a\\b"],
            "must be printable ASCII",
        ),
    );
    for (field, high) in [
        ("healthCheckIntervalSeconds", 3600),
        ("healthCheckDeadlineSeconds", 86_400),
    ] {
        let pointer = format!("/config/{field}");
        takes(&inference(), &pointer, [json!(1), json!(high)]);
        refuses(
            &inference(),
            &pointer,
            [
                (json!(0), "must be between 1"),
                (json!(high + 1), "must be between 1"),
            ],
        );
    }
}
