//! The bodies of stop, exec and snapshots.

use std::time::Duration;

use hwm_core::error::Violation;
use hwm_core::operation::Arguments;
use hwm_core::snapshot::SnapshotRequest;
use hwm_core::validate::{exec_request, snapshot_request, stop_arguments};
use serde_json::{Value, json};

fn told<T>(result: Result<T, Vec<Violation>>) -> Vec<String> {
    let found = result.err().unwrap_or_default();
    found.iter().map(ToString::to_string).collect()
}

#[test]
fn a_stop_without_a_body_is_a_stop_with_the_defaults() {
    for body in [
        Value::Null,
        json!({}),
        json!({"force": null, "timeoutSeconds": null}),
    ] {
        assert_eq!(stop_arguments(&body), Ok(Arguments::default()));
    }
    let body = json!({"force": true, "timeoutSeconds": 0});
    let expected = Arguments {
        force: true,
        grace_seconds: Some(0),
        ..Arguments::default()
    };
    assert_eq!(stop_arguments(&body), Ok(expected));
}

#[test]
fn everything_wrong_with_a_stop_is_named_together() {
    let body = json!({"force": "yes", "timeoutSeconds": 3601, "grace": 1});
    assert_eq!(
        told(stop_arguments(&body)),
        [
            "force: must be true or false, not a string",
            "timeoutSeconds: must be between 0 and 3600",
            "grace: is not a known field: known are force, timeoutSeconds",
        ]
    );
    assert_eq!(
        told(stop_arguments(&json!([]))),
        ["must be an object, not an array"]
    );
}

#[test]
fn a_command_has_a_minute_unless_the_client_says_otherwise() {
    let request = exec_request(&json!({"command": "ls\n-l"})).unwrap();
    assert_eq!((request.command.as_str(), request.working_dir), ("ls\n-l", None));
    assert_eq!(
        (request.timeout, request.output_limit),
        (Duration::from_secs(60), 1_048_576)
    );
    let request =
        exec_request(&json!({"command": "ls", "workingDir": "/a b/../c", "timeoutSeconds": 3600.0})).unwrap();
    assert_eq!(request.working_dir.as_deref(), Some("/a b/../c"));
    assert_eq!(request.timeout, Duration::from_secs(3600));
}

#[test]
fn everything_wrong_with_a_command_is_named_together() {
    for (body, message) in [
        (json!({}), "command: is required: a string"),
        (
            json!({"command": ""}),
            "command: must not be empty: it has between 1 and 131071 bytes",
        ),
        (json!({"command": "a\0b"}), "command: must not contain NUL"),
        (
            json!({"command": "x".repeat(131_072)}),
            "command: must have between 1 and 131071 bytes",
        ),
        (
            json!({"command": ["ls"]}),
            "command: must be a string, not an array",
        ),
        (
            json!({"command": "ls", "workingDir": "tmp"}),
            "workingDir: must be an absolute path: it begins with \"/\"",
        ),
        (
            json!({"command": "ls", "workingDir": "/a\0"}),
            "workingDir: must not contain NUL",
        ),
        (
            json!({"command": "ls", "timeoutSeconds": 0}),
            "timeoutSeconds: must be between 1 and 3600",
        ),
        (
            json!({"command": "ls", "timeout_seconds": 1}),
            "timeout_seconds: is not a known field: did you mean timeoutSeconds?",
        ),
    ] {
        assert_eq!(told(exec_request(&body)), [message]);
    }
    let body = json!({"workingDir": 1, "timeoutSeconds": "1", "x": 1});
    assert_eq!(told(exec_request(&body)).len(), 4);
}

#[test]
fn a_snapshot_needs_only_a_name() {
    let expected = SnapshotRequest {
        name: "before the upgrade".to_owned(),
        description: None,
        memory: None,
    };
    assert_eq!(
        snapshot_request(&json!({"name": "before the upgrade", "memory": null})),
        Ok(expected)
    );
    let body = json!({"name": "x", "description": "a\nb", "memory": false});
    let request = snapshot_request(&body).unwrap();
    assert_eq!(
        (request.description.as_deref(), request.memory),
        (Some("a\nb"), Some(false))
    );
}

#[test]
fn everything_wrong_with_a_snapshot_is_named_together() {
    let body = json!({"name": "", "description": "x".repeat(501), "memory": 1, "id": "x"});
    assert_eq!(
        told(snapshot_request(&body)),
        [
            "name: must not be empty: it has between 1 and 100 characters",
            "description: must have at most 500 characters",
            "memory: must be true or false, not a number",
            "id: is not a known field: known are name, description, memory",
        ]
    );
}
