//! What holds for every request, valid or not.

use hwm_core::config::{Config, ResourceType};
use hwm_core::error::Violation;
use hwm_core::resource::Resource;
use hwm_core::validate::{create_request, exec_request, patch, snapshot_request, stop_arguments};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::fields::{self, Omitted};
use crate::generators::{any_json, config, kind, valid};
use crate::samples;

fn parsed(config: &Value) -> Config {
    let body = json!({"name": "x", "resourceType": config["type"], "config": config});
    create_request(&body, &samples::rules()).unwrap().config
}

fn told<T>(result: Result<T, Vec<Violation>>) -> Vec<Violation> {
    result.err().unwrap_or_default()
}

/// Everything that is said about a body, whatever it was meant to be.
fn all_told(body: &Value) -> Vec<Violation> {
    let rules = samples::rules();
    let mut found = told(create_request(body, &rules));
    for kind in ResourceType::ALL {
        let record = samples::record(samples::of(kind).remove(0));
        found.extend(told(patch(&record, body, &rules)));
    }
    found.extend(told(snapshot_request(body)));
    found.extend(told(stop_arguments(body)));
    found.extend(told(exec_request(body)));
    found
}

/// What turns one value into another as a merge patch, by RFC 7396.
fn difference(from: &Value, to: &Value) -> Value {
    let (Value::Object(from), Value::Object(to)) = (from, to) else {
        return to.clone();
    };
    let gone = from.keys().filter(|name| !to.contains_key(*name));
    let mut patch: Map<_, _> = gone.map(|name| (name.clone(), Value::Null)).collect();
    for (name, value) in to {
        match from.get(name) {
            Some(old) if old == value => {}
            Some(old) => drop(patch.insert(name.clone(), difference(old, value))),
            None => drop(patch.insert(name.clone(), value.clone())),
        }
    }
    Value::Object(patch)
}

proptest! {
    #[test]
    fn no_json_makes_it_panic(body in any_json()) {
        all_told(&body);
    }

    #[test]
    fn a_valid_request_with_any_json_at_any_place_makes_it_neither_panic_nor_show_a_value(
        body in valid(), at: prop::sample::Index, junk in any_json(),
    ) {
        let places = fields::places(&body);
        let canary = "canary-7d1f";
        let with_junk = fields::with(&body, at.get::<fields::Place>(&places), junk);
        all_told(&with_junk);
        let with_canary = fields::with(&body, at.get::<fields::Place>(&places), json!(canary));
        for violation in all_told(&with_canary) {
            prop_assert!(!violation.to_string().contains(canary), "{}", violation);
        }
    }

    #[test]
    fn a_valid_request_is_taken_and_its_config_reads_back_as_it_is(body in valid()) {
        let request = create_request(&body, &samples::rules()).unwrap();
        let written = samples::sent(&request.config);
        prop_assert_eq!(parsed(&written), request.config.clone());
        let stored: Config = serde_json::from_value(written).unwrap();
        prop_assert_eq!(stored, request.config);
    }

    #[test]
    fn an_empty_patch_is_the_identity(body in valid()) {
        let request = create_request(&body, &samples::rules()).unwrap();
        let record = samples::record(request.config);
        let rules = samples::rules();
        for body in [json!({}), json!({"config": {}}), json!({"config": {"type": record.config.resource_type()}})] {
            prop_assert!(patch(&record, &body, &rules).unwrap().is_empty());
        }
        let mut shown = serde_json::to_value(Resource::from(&record)).unwrap();
        shown.as_object_mut().unwrap().remove("status");
        prop_assert!(patch(&record, &shown, &rules).unwrap().is_empty());
    }

    #[test]
    fn a_merge_patch_leads_from_any_config_to_any_other(
        (from, to) in kind().prop_flat_map(|kind| (config(kind), config(kind)))
    ) {
        let (from, to) = (parsed(&from), parsed(&to));
        if let (Config::Machine(from), Config::Machine(to)) = (&from, &to) {
            prop_assume!(from.disk <= to.disk);
        }
        let (shown, wanted) = (serde_json::to_value(&from).unwrap(), samples::sent(&to));
        let body = json!({ "config": difference(&shown, &wanted) });
        let taken = patch(&samples::record(from.clone()), &body, &samples::rules()).unwrap();
        prop_assert_eq!(taken.config.unwrap_or(from), to);
    }

    #[test]
    fn a_valid_request_without_one_field_has_its_default_or_is_refused_by_name(
        body in valid(), at: prop::sample::Index,
    ) {
        let kind = ResourceType::parse(body["resourceType"].as_str().unwrap()).unwrap();
        let table = fields::table(kind);
        let places: Vec<_> = fields::places(&body)
            .into_iter()
            .filter(|place| table.contains_key(fields::field(place).as_str()))
            .collect();
        let place = at.get(&places);
        let path = fields::path(place);
        let found = samples::violations(&fields::without(&body, place));
        match &table[fields::field(place).as_str()] {
            // What only an enabled gpuConfig needs is not needed by another.
            Omitted::Refused if path.starts_with("config.gpuConfig.") && found.is_empty() => {
                prop_assert_eq!(&body["config"]["gpuConfig"]["enabled"], &json!(false));
            }
            // A token needs no user name.
            Omitted::Refused if path == "config.registryAuth.username" && found.is_empty() => {
                prop_assert!(body["config"]["registryAuth"].get("token").is_some());
            }
            Omitted::Refused => prop_assert!(fields::names(&found, &path), "{}: {:?}", path, found),
            Omitted::RefusedAt(other) => {
                prop_assert!(fields::names(&found, other), "{}: {:?}", path, found);
            }
            // A user name without its token has nothing to prove it.
            Omitted::Nothing if path == "config.registryAuth.token" && !found.is_empty() => {
                prop_assert!(fields::names(&found, "config.registryAuth.password"), "{:?}", found);
            }
            Omitted::Default(_) | Omitted::Nothing => prop_assert_eq!(found, [""; 0]),
        }
    }

    #[test]
    fn a_valid_request_with_one_wrong_type_or_unknown_field_is_refused_by_name(
        body in valid(), at: prop::sample::Index, other: prop::sample::Index,
    ) {
        let places = fields::places(&body);
        let place = at.get(&places);
        let value = fields::at(&mut body.clone(), place).clone();
        let wrong = other.get(&fields::other_types(&value)).clone();
        let found = samples::violations(&fields::with(&body, place, wrong));
        let path = fields::path(place);
        prop_assert!(fields::names(&found, &path), "{}: {:?}", path, found);
        let name = place.last().unwrap();
        if value.is_object() && name != "environment" && name != "metadata" {
            let mut body = body.clone();
            fields::at(&mut body, place).as_object_mut().unwrap().insert("vcpuss".to_owned(), Value::Null);
            let found = samples::violations(&body);
            prop_assert!(fields::names(&found, &format!("{path}.vcpuss")), "{:?}", found);
        }
    }
}
