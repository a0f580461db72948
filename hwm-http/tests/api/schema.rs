//! Holds answers against the document: the status is listed, and the body fits its schema. Knows as much of
//! JSON Schema as the document uses, and refuses what it does not know.

use std::sync::LazyLock;

use serde_json::{Map, Value};

use crate::house::Answer;

static DOCUMENT: LazyLock<Value> = LazyLock::new(|| serde_json::to_value(hwm_http::document()).unwrap());

pub(crate) fn document() -> &'static Value {
    &DOCUMENT
}

/// The template that a path fits, and its operation.
fn operation(method: &str, path: &str) -> Option<&'static Value> {
    let path = path.split('?').next().unwrap();
    let templates = DOCUMENT["paths"].as_object().unwrap();
    templates
        .iter()
        .filter(|(template, _)| {
            let (a, b): (Vec<_>, Vec<_>) = (template.split('/').collect(), path.split('/').collect());
            a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| a.starts_with('{') || a == b)
        })
        .find_map(|(_, methods)| methods.get(method.to_ascii_lowercase()))
}

#[track_caller]
pub(crate) fn check(method: &str, path: &str, answer: &Answer) {
    let status = answer.status.as_u16();
    let Some(operation) = operation(method, path) else {
        assert!(
            matches!(status, 200 | 204 | 404 | 405),
            "{method} {path} {status}"
        );
        return;
    };
    let response = &operation["responses"][status.to_string()];
    assert!(
        response.is_object(),
        "{method} {path}: {status} is not documented: {}",
        answer.text()
    );
    assert!(answer.headers.contains_key("x-correlation-id"));
    let Some(content) = response.get("content") else {
        assert!(answer.bytes.is_empty(), "{method} {path} {status}: a body");
        return;
    };
    let media = answer.header("content-type").unwrap().split(';').next().unwrap();
    let schema = &content[media]["schema"];
    assert!(
        schema.is_object(),
        "{method} {path} {status}: {media} is not documented"
    );
    if media == "application/json" {
        let body = answer.json();
        if let Err(problem) = fits(schema, &body) {
            panic!("{method} {path} {status}: {problem}\n{body:#}");
        }
    }
}

fn fits(schema: &Value, value: &Value) -> Result<(), String> {
    let schema = schema.as_object().ok_or("a schema that is no object")?;
    for (keyword, rule) in schema {
        one(schema, keyword, rule, value).map_err(|problem| {
            if problem.starts_with('.') || problem.starts_with('[') {
                problem
            } else {
                format!(": {keyword}: {problem}")
            }
        })?;
    }
    Ok(())
}

fn one(schema: &Map<String, Value>, keyword: &str, rule: &Value, value: &Value) -> Result<(), String> {
    let need = |ok: bool| {
        if ok {
            Ok(())
        } else {
            Err(format!("{rule} is not {value}"))
        }
    };
    match keyword {
        "description" | "format" | "default" | "propertyNames" | "title" | "example" | "examples" => Ok(()),
        "$ref" => {
            let pointer = rule.as_str().unwrap().trim_start_matches('#');
            fits(DOCUMENT.pointer(pointer).unwrap(), value)
        }
        "type" => {
            let named = |name: &str| match name {
                "null" => value.is_null(),
                "boolean" => value.is_boolean(),
                "integer" => value.is_u64() || value.is_i64(),
                "number" => value.is_number(),
                "string" => value.is_string(),
                "array" => value.is_array(),
                "object" => value.is_object(),
                _ => false,
            };
            need(match rule {
                Value::String(name) => named(name),
                Value::Array(names) => names.iter().any(|n| named(n.as_str().unwrap())),
                _ => false,
            })
        }
        "enum" => need(rule.as_array().unwrap().contains(value)),
        "minimum" => need(value.as_f64().is_none_or(|v| v >= rule.as_f64().unwrap())),
        "maximum" => need(value.as_f64().is_none_or(|v| v <= rule.as_f64().unwrap())),
        "minLength" => need(
            value
                .as_str()
                .is_none_or(|s| s.chars().count() as u64 >= rule.as_u64().unwrap()),
        ),
        "maxLength" => need(
            value
                .as_str()
                .is_none_or(|s| s.chars().count() as u64 <= rule.as_u64().unwrap()),
        ),
        "maxItems" => need(
            value
                .as_array()
                .is_none_or(|a| a.len() as u64 <= rule.as_u64().unwrap()),
        ),
        "pattern" => {
            let Some(text) = value.as_str() else {
                return Ok(());
            };
            let outer = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
            need(match rule.as_str().unwrap() {
                "^/" => text.starts_with('/'),
                "^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$" => {
                    outer(text.chars().next()) && outer(text.chars().last())
                }
                other => panic!("a pattern that is not checked: {other}"),
            })
        }
        "required" => {
            let Some(fields) = value.as_object() else {
                return Ok(());
            };
            match rule
                .as_array()
                .unwrap()
                .iter()
                .find(|n| !fields.contains_key(n.as_str().unwrap()))
            {
                Some(missing) => Err(format!("{missing} is missing")),
                None => Ok(()),
            }
        }
        "properties" => {
            let Some(fields) = value.as_object() else {
                return Ok(());
            };
            for (name, schema) in rule.as_object().unwrap() {
                if let Some(value) = fields.get(name) {
                    fits(schema, value).map_err(|p| format!(".{name}{p}"))?;
                }
            }
            Ok(())
        }
        "additionalProperties" => {
            let Some(fields) = value.as_object() else {
                return Ok(());
            };
            let known = schema.get("properties").and_then(Value::as_object);
            for (name, value) in fields {
                if known.is_some_and(|k| k.contains_key(name)) {
                    continue;
                }
                match rule {
                    Value::Bool(true) => {}
                    Value::Bool(false) => return Err(format!(".{name}: unknown")),
                    schema => fits(schema, value).map_err(|p| format!(".{name}{p}"))?,
                }
            }
            Ok(())
        }
        "items" => {
            for (i, item) in value.as_array().into_iter().flatten().enumerate() {
                fits(rule, item).map_err(|p| format!("[{i}]{p}"))?;
            }
            Ok(())
        }
        "allOf" => rule
            .as_array()
            .unwrap()
            .iter()
            .try_for_each(|schema| fits(schema, value)),
        "oneOf" => {
            let results: Vec<_> = rule.as_array().unwrap().iter().map(|s| fits(s, value)).collect();
            match results.iter().filter(|r| r.is_ok()).count() {
                1 => Ok(()),
                n => Err(format!("{n} of the schemas fit: {results:?}")),
            }
        }
        other => panic!("a keyword that is not checked: {other}"),
    }
}
