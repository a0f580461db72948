//! The committed document is the one that the code makes, and it says what it should.
//!
//! `UPDATE_OPENAPI=1 cargo test -p hwm-http --test openapi` writes it anew.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

fn made() -> Value {
    serde_json::to_value(hwm_http::document()).unwrap()
}

#[test]
fn the_committed_document_is_fresh() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json");
    let made = format!("{}\n", hwm_http::document().to_pretty_json().unwrap());
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == made,
        "openapi.json is stale: run UPDATE_OPENAPI=1 cargo test -p hwm-http --test openapi"
    );
}

#[test]
fn every_reference_leads_somewhere() {
    let document = made();
    let mut references = BTreeSet::new();
    visit(&document, &mut |value| {
        if let Some(Value::String(reference)) = value.get("$ref") {
            references.insert(reference.clone());
        }
    });
    assert!(references.len() > 20);
    for reference in references {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
}

#[test]
fn every_error_code_is_listed() {
    let document = made();
    let listed: BTreeSet<_> = document["components"]["schemas"]["ErrorCode"]["enum"]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_str().unwrap().to_owned())
        .collect();
    let all: BTreeSet<_> = hwm_http::ErrorCode::ALL
        .into_iter()
        .map(|code| code.as_str().to_owned())
        .collect();
    assert_eq!(listed, all);
    // The words of the contract.
    for word in [
        "VALIDATION_FAILED",
        "NOT_FOUND",
        "INVALID_STATE",
        "GPU_CONFLICT",
        "PORT_CONFLICT",
        "ADDRESS_CONFLICT",
        "INSUFFICIENT_CAPACITY",
        "VOLUME_CONFLICT",
        "IDEMPOTENCY_MISMATCH",
        "TOO_MANY_OPERATIONS",
        "RATE_LIMITED",
        "PAYLOAD_TOO_LARGE",
        "UNSUPPORTED_MEDIA_TYPE",
        "METHOD_NOT_ALLOWED",
        "MALFORMED",
        "TIMEOUT",
        "INTERNAL",
        "UNSUPPORTED",
        "PRECONDITION_FAILED",
        "BACKEND_UNAVAILABLE",
        "BACKEND_FAILED",
        "FORBIDDEN",
        "UNAUTHORIZED",
    ] {
        assert!(listed.contains(word), "{word}");
    }
}

#[test]
fn every_operation_has_an_id_a_tag_and_its_refusals() {
    let document = made();
    let mut ids = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let name = format!("{method} {path}");
            assert!(ids.insert(operation["operationId"].as_str().unwrap()), "{name}");
            assert!(!operation["tags"].as_array().unwrap().is_empty(), "{name}");
            let responses = operation["responses"].as_object().unwrap();
            let open = operation.get("security").is_some();
            assert_eq!(open, path == "/health" || path == "/ready", "{name}");
            if !open {
                for status in ["400", "401", "403", "429", "500", "503", "504"] {
                    assert!(responses.contains_key(status), "{name} {status}");
                }
            }
            for (status, response) in responses {
                let error = status.starts_with(['4', '5']);
                let schema = response.pointer("/content/application~1json/schema/$ref");
                let is_error_body = schema.and_then(Value::as_str) == Some("#/components/schemas/ErrorBody");
                assert_eq!(error, is_error_body, "{name} {status}");
            }
        }
    }
}

/// utoipa lets the second of two schemas of one name win without a word.
#[test]
fn schema_names_are_unique() {
    let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for crate_source in [root.join("src"), root.join("../hwm-core/src")] {
        collect_schemas(&crate_source, &mut names);
    }
    assert!(names.len() > 40, "{}", names.len());
    let doubled: Vec<_> = names.into_iter().filter(|(_, at)| at.len() > 1).collect();
    assert!(doubled.is_empty(), "{doubled:#?}");
}

fn collect_schemas(folder: &Path, names: &mut BTreeMap<String, Vec<String>>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect_schemas(&path, names);
            continue;
        }
        let source = std::fs::read_to_string(&path).unwrap();
        let mut derives = false;
        for line in source.lines() {
            if line.contains("derive(") && line.contains("ToSchema") {
                derives = true;
            }
            let item = line.trim_start_matches("pub(crate) ").trim_start_matches("pub ");
            let declared = item
                .strip_prefix("struct ")
                .or_else(|| item.strip_prefix("enum "));
            if let (true, Some(declared)) = (derives, declared) {
                let end = declared
                    .find(|c: char| !c.is_alphanumeric())
                    .unwrap_or(declared.len());
                names
                    .entry(declared[..end].to_owned())
                    .or_default()
                    .push(path.display().to_string());
                derives = false;
            }
        }
    }
}

fn visit(value: &Value, see: &mut impl FnMut(&Value)) {
    see(value);
    match value {
        Value::Array(items) => items.iter().for_each(|item| visit(item, see)),
        Value::Object(fields) => fields.values().for_each(|field| visit(field, see)),
        _ => {}
    }
}
