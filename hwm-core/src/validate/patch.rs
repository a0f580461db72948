//! The rules of a change: a merge patch (RFC 7396) over the resource as it reads back.

use std::collections::BTreeMap;

use serde_json::Value;

use super::object::Object;
use super::reader::Context;
use super::{Rules, config, limits, metadata, text};
use crate::config::Config;
use crate::error::Violation;
use crate::lifecycle::Desired;
use crate::resource::{Record, Resource};
use crate::units::Timestamp;

/// What a `PATCH` changes; none where it changes nothing.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Patch {
    /// The new name.
    pub name: Option<String>,
    /// The new description, or none any more.
    pub description: Option<Option<String>>,
    /// All of the metadata as it is to be.
    pub metadata: Option<BTreeMap<String, String>>,
    /// The whole config as it is to be, with its secrets.
    pub config: Option<Config>,
    /// The state that was asked for, also where the resource is in it.
    pub status: Option<Desired>,
}

impl Patch {
    /// Whether it changes and asks for nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Reads the body of `PATCH /resources/:id`.
///
/// Objects merge, arrays replace, null removes. A config that changes is judged as a whole, under the rules of
/// now; one that does not is left alone. What cannot be changed may be sent as it reads back, and `***` keeps
/// a stored secret. `lastHealthCheck` may be any time, as it moves without the resource being changed.
///
/// # Errors
/// Every broken rule.
pub fn patch(record: &Record, body: &Value, rules: &Rules) -> Result<Patch, Vec<Violation>> {
    // Nothing of a record can fail to be written; if it did, everything would count as changed.
    let shown = serde_json::to_value(Resource::from(record)).unwrap_or_default();
    let merged = merge(&shown, body, Nulls::Stay);
    let cx = Context::new(rules, Some(&record.config));
    let read = read(&cx, record, &shown, &merged, body);
    cx.finish(read)
}

fn read(cx: &Context<'_>, record: &Record, shown: &Value, merged: &Value, body: &Value) -> Option<Patch> {
    let fields = cx.root(body).object()?;
    let result = cx.root(merged).object()?;
    let name = fields.given("name", |f| text::line(f, limits::NAME));
    let description = fields.given("description", |f| {
        if f.value.is_null() {
            return Some(None);
        }
        text::prose(f, limits::DESCRIPTION).map(Some)
    });
    let metadata = fields.given("metadata", |f| {
        if f.value.is_null() {
            return Some(BTreeMap::new());
        }
        metadata(&result.field("metadata"))
    });
    let config = fields.given("config", |_| {
        let field = result.field("config");
        // Nulls stayed in it, so that the removal of an unknown field is a difference, and refused.
        if Some(field.value) == shown.get("config") {
            return None;
        }
        config(&field, Some(record.config.resource_type()))
    });
    let status = fields.given("status", |f| {
        f.word(&[("running", Desired::Running), ("stopped", Desired::Stopped)])
    });
    for name in UNWRITABLE {
        unchanged(&fields, name, shown, body);
    }
    fields.finish_beside(&UNWRITABLE);
    Some(Patch {
        name: name.filter(|name| *name != record.name),
        description: description.filter(|description| *description != record.description),
        metadata: metadata.filter(|metadata| *metadata != record.metadata),
        config: config.filter(|config| *config != record.config),
        status,
    })
}

/// What a change may name only as it is.
const UNWRITABLE: [&str; 13] = [
    "resourceType",
    "nodeId",
    "_id",
    "createdAt",
    "createdBy",
    "deletedAt",
    "errorMessage",
    "lastHealthCheck",
    "owner",
    "restartRequired",
    "runtime",
    "updatedAt",
    "updatedBy",
];

/// Reports a field that would change and cannot.
fn unchanged(fields: &Object<'_>, name: &'static str, shown: &Value, body: &Value) {
    let message = match name {
        "resourceType" => "cannot be changed: create another resource",
        "nodeId" => "cannot be changed, as a resource stays on its node: create another",
        "owner" => "cannot be changed: a resource belongs to the caller who created it",
        _ => "is set by the server: leave it out",
    };
    let Some(patch) = body.get(name) else { return };
    let is = shown.get(name).unwrap_or(&Value::Null);
    let stays = match name {
        "lastHealthCheck" => patch.is_null() || patch.as_str().is_some_and(|t| Timestamp::parse(t).is_some()),
        _ => merge(is, patch, Nulls::Remove) == *is,
    };
    if !stays {
        fields.broken(name, message);
    }
}

/// What becomes of a null in a merge.
#[derive(Clone, Copy, PartialEq)]
enum Nulls {
    /// It removes, as RFC 7396 has it.
    Remove,
    /// It stays, so that a reader tells the removal of a field from a name that no field has.
    Stay,
}

fn merge(target: &Value, patch: &Value, nulls: Nulls) -> Value {
    let Value::Object(patch) = patch else {
        return patch.clone();
    };
    let mut merged = target.as_object().cloned().unwrap_or_default();
    for (name, value) in patch {
        if value.is_null() && nulls == Nulls::Remove {
            merged.remove(name);
        } else {
            let merged_value = merge(merged.get(name).unwrap_or(&Value::Null), value, nulls);
            merged.insert(name.clone(), merged_value);
        }
    }
    Value::Object(merged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn it_merges_as_the_examples_of_rfc_7396() {
        for (target, patch, result) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
            (
                json!({"a": {"b": "c"}}),
                json!({"a": {"b": "d", "c": null}}),
                json!({"a": {"b": "d"}}),
            ),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({"a": "b"}), json!(["c"]), json!(["c"])),
            (json!({"a": "foo"}), json!(null), json!(null)),
            (json!({"a": "foo"}), json!("bar"), json!("bar")),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
            (json!([1, 2]), json!({"a": "b", "c": null}), json!({"a": "b"})),
            (
                json!({}),
                json!({"a": {"bb": {"ccc": null}}}),
                json!({"a": {"bb": {}}}),
            ),
        ] {
            assert_eq!(merge(&target, &patch, Nulls::Remove), result, "{target} {patch}");
        }
    }
}
