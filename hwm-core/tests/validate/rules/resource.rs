//! The fields that every kind has.

use serde_json::{Value, json};

use super::{all, machine, refuses, set, takes, texts};
use crate::samples::violations;

#[test]
fn the_example_of_the_contract_reads_as_in_the_contract() {
    let body = set(machine(), "/config/vcpus", json!(129));
    assert_eq!(violations(&body), ["config.vcpus: must be between 1 and 128"]);
}

#[test]
fn everything_wrong_with_a_request_is_named_together() {
    let body = json!({
        "resourceType": "virtual-machine",
        "status": "running",
        "autostart": true,
        "config": {
            "type": "virtual-machine",
            "osImage": "beos",
            "vcpus": "4",
            "ramMB": 511,
            "networkConfig": { "mode": "bridge-vlan", "ipMode": "static", "netmask": "255.0.255.0" },
            "gpu": 1,
        },
    });
    let found = violations(&body);
    for path in [
        "name",
        "status",
        "autostart",
        "config.osImage",
        "config.vcpus",
        "config.ramMB",
        "config.diskGB",
        "config.networkConfig.ipAddress",
        "config.networkConfig.netmask",
        "config.networkConfig.gateway",
        "config.gpu",
    ] {
        assert!(
            found.iter().any(|v| v.starts_with(&format!("{path}: "))),
            "{path}: {found:?}"
        );
    }
    assert_eq!(found.len(), 11, "{found:?}");
}

#[test]
fn a_body_that_is_no_object_is_told_so() {
    for (body, kind) in [
        (json!(null), "null"),
        (json!([]), "an array"),
        (json!("x"), "a string"),
    ] {
        assert_eq!(violations(&body), [format!("must be an object, not {kind}")]);
    }
}

#[test]
fn a_name_has_1_to_100_characters_on_one_line() {
    takes(
        &machine(),
        "/name",
        texts(["x", "Demo Ubuntu GPU Server", "ü✓", &"é".repeat(100)]),
    );
    refuses(
        &machine(),
        "/name",
        all([&"é".repeat(101)], "between 1 and 100 characters"),
    );
    refuses(&machine(), "/name", all(["", " ", "\u{a0}"], "must not be"));
    refuses(
        &machine(),
        "/name",
        all(["a\nb", "a\0", "\u{7f}", "a\u{85}b", "a\u{2028}b"], "line breaks"),
    );
}

#[test]
fn a_description_has_at_most_500_characters() {
    takes(
        &machine(),
        "/description",
        texts(["", "a\n\tb\r\n", &"é".repeat(500)]),
    );
    refuses(
        &machine(),
        "/description",
        all([&"é".repeat(501)], "at most 500 characters"),
    );
    refuses(
        &machine(),
        "/description",
        all(["a\0b", "\u{1b}[2J"], "control characters"),
    );
}

#[test]
fn a_node_is_named_by_printable_ascii() {
    takes(&machine(), "/nodeId", texts(["node-1", "0190-abc_x.y"]));
    refuses(&machine(), "/nodeId", all(["", "a b", "a\n", "ü"], "must"));
}

#[test]
fn metadata_is_a_bounded_object_of_strings() {
    let entries = |n: usize| {
        (0..n)
            .map(|i| (format!("key-{i}"), json!("x")))
            .collect::<Value>()
    };
    takes(
        &machine(),
        "/metadata",
        [json!({}), json!({"a.b/c d": "", "ü": "a\nb"}), entries(64)],
    );
    refuses(
        &machine(),
        "/metadata",
        [
            (entries(65), "at most 64 entries"),
            (json!({"": "x"}), "key of 1 to 128"),
            (json!({"a\nb": "x"}), "control character"),
            (json!({"a": 1}), "must be a string, not a number"),
            (json!({"a": null}), "must be a string, not null"),
            (json!({"a": "\0"}), "NUL"),
            (json!({"a": "x".repeat(4097)}), "at most 4096 bytes"),
        ],
    );
}

#[test]
fn the_type_of_the_config_equals_the_type_of_the_resource() {
    refuses(
        &machine(),
        "/config/type",
        [
            (json!("inference-container"), "must equal resourceType"),
            (
                json!("vm"),
                "must be \"virtual-machine\", \"application-container\" or",
            ),
        ],
    );
    refuses(
        &machine(),
        "/resourceType",
        all(["container", "Virtual-Machine"], "must be \"virtual-machine\""),
    );
}
