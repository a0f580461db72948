//! Every field of every request: left out, null, of a wrong type, or of a name that is not known. Each has
//! its documented default or is a refusal that names it. The tables are checked to be complete.

use std::collections::{BTreeMap, BTreeSet};

use hwm_core::config::{Config, ResourceType};
use hwm_core::resource::Resource;
use hwm_core::validate::create_request;
use serde_json::{Value, json};

use crate::samples;

/// What becomes of a field that is left out.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Omitted {
    /// It is refused, naming the field.
    Refused,
    /// It is refused, naming another field that is now missing its other half.
    RefusedAt(&'static str),
    /// It reads back as this.
    Default(Value),
    /// It stays away.
    Nothing,
}

use Omitted::{Default, Nothing, Refused, RefusedAt};

/// The fields of a create that are the same for every kind.
fn common() -> Vec<(&'static str, Omitted)> {
    vec![
        ("name", Refused),
        ("description", Nothing),
        ("resourceType", Refused),
        ("nodeId", Nothing),
        ("config", Refused),
        ("config.type", Refused),
        ("metadata", Default(json!({}))),
        ("metadata.team", Nothing),
        ("autoStart", Default(json!(true))),
    ]
}

fn machine() -> Vec<(&'static str, Omitted)> {
    vec![
        ("config.osImage", Refused),
        ("config.vcpus", Refused),
        ("config.ramMB", Refused),
        ("config.diskGB", Refused),
        ("config.gpuConfig", Nothing),
        ("config.gpuConfig.enabled", Refused),
        ("config.gpuConfig.mode", Refused),
        ("config.gpuConfig.deviceIds", Refused),
        ("config.gpuConfig.migProfile", Refused),
        ("config.networkConfig", Refused),
        ("config.networkConfig.mode", Refused),
        ("config.networkConfig.ipMode", Refused),
        ("config.networkConfig.ipAddress", Refused),
        ("config.networkConfig.netmask", Refused),
        ("config.networkConfig.gateway", Refused),
        ("config.networkConfig.vlanId", Nothing),
        ("config.networkConfig.dns", Nothing),
        ("config.cloudInit", Nothing),
        ("config.cloudInit.hostname", Nothing),
        ("config.cloudInit.sshPublicKey", Nothing),
        ("config.cloudInit.username", Nothing),
        ("config.cloudInit.password", Nothing),
    ]
}

/// The fields that both kinds of container have.
fn containers() -> Vec<(&'static str, Omitted)> {
    vec![
        ("config.registryAuth", Nothing),
        ("config.registryAuth.username", Refused),
        ("config.registryAuth.password", Refused),
        ("config.registryAuth.token", Nothing),
        ("config.cpuCores", Nothing),
        ("config.ramLimit", Nothing),
        ("config.gpuConfig.enabled", Refused),
        ("config.gpuConfig.mode", Refused),
        ("config.gpuConfig.count", Nothing),
        ("config.gpuConfig.migProfile", Refused),
        ("config.environment", Nothing),
        ("config.environment.GREETING", Nothing),
        ("config.pullPolicy", Default(json!("missing"))),
        ("config.command", Nothing),
        ("config.args", Nothing),
        ("config.shmSizeMB", Nothing),
        ("config.restartPolicy", Default(json!("no"))),
    ]
}

fn application() -> Vec<(&'static str, Omitted)> {
    vec![
        ("config.registry", Refused),
        ("config.imageName", Refused),
        ("config.imageTag", Default(json!("latest"))),
        ("config.containerPorts", Nothing),
        ("config.containerPorts[].containerPort", Refused),
        ("config.containerPorts[].hostPort", Nothing),
        ("config.containerPorts[].protocol", Default(json!("tcp"))),
        ("config.gpuDeviceIds", Nothing),
        ("config.gpuConfig", Nothing),
        ("config.volumes", Nothing),
        ("config.volumes[].hostPath", Refused),
        ("config.volumes[].containerPath", Refused),
        ("config.volumes[].readOnly", Default(json!(false))),
        ("config.networkMode", Default(json!("bridge"))),
    ]
}

fn inference() -> Vec<(&'static str, Omitted)> {
    vec![
        ("config.modelId", Refused),
        ("config.modelPath", Refused),
        ("config.dockerImage", Refused),
        ("config.containerPort", Refused),
        ("config.gpuDeviceIds", Refused),
        ("config.gpuConfig", RefusedAt("config.gpuDeviceIds")),
        ("config.gpuMemoryLimit", Nothing),
        ("config.healthCheckPath", Default(json!("/health"))),
        ("config.healthCheckIntervalSeconds", Default(json!(10))),
        ("config.healthCheckDeadlineSeconds", Default(json!(600))),
    ]
}

pub(crate) fn table(kind: ResourceType) -> BTreeMap<&'static str, Omitted> {
    let own = match kind {
        ResourceType::VirtualMachine => machine(),
        ResourceType::ApplicationContainer => [containers(), application()].concat(),
        ResourceType::InferenceContainer => [containers(), inference()].concat(),
    };
    let mut table = BTreeMap::new();
    for (path, omitted) in [common(), own].concat() {
        assert!(
            table.insert(path, omitted).is_none(),
            "{path} is in the table twice"
        );
    }
    table
}

/// A place in a body: names, and indexes written as numbers.
pub(crate) type Place = Vec<String>;

/// The places of every field of an object, items of arrays included.
pub(crate) fn places(value: &Value) -> Vec<Place> {
    let inner = |name: String, value: &Value| {
        let below = places(value).into_iter();
        let mut found: Vec<Place> = below.map(|rest| [vec![name.clone()], rest].concat()).collect();
        found.insert(0, vec![name]);
        found
    };
    match value {
        Value::Object(map) => map.iter().flat_map(|(name, v)| inner(name.clone(), v)).collect(),
        Value::Array(items) => {
            let items = items.iter().enumerate();
            items.flat_map(|(i, v)| inner(i.to_string(), v)).collect()
        }
        _ => Vec::new(),
    }
}

fn is_index(part: &str) -> bool {
    part.bytes().all(|b| b.is_ascii_digit())
}

/// The path of a place, as violations write it.
pub(crate) fn path(place: &[String]) -> String {
    place.iter().fold(String::new(), |path, part| {
        match (path.as_str(), is_index(part)) {
            (_, true) => format!("{path}[{part}]"),
            ("", false) => part.clone(),
            (_, false) => format!("{path}.{part}"),
        }
    })
}

/// The path with indexes left out, as the tables write it.
pub(crate) fn field(place: &[String]) -> String {
    let path = path(place);
    let mut parts = path.split('[');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |field, part| {
        format!("{field}[]{}", part.split_once(']').map_or("", |(_, rest)| rest))
    })
}

pub(crate) fn at<'v>(body: &'v mut Value, place: &[String]) -> &'v mut Value {
    place.iter().fold(body, |value, part| match value {
        Value::Array(items) => &mut items[part.parse::<usize>().unwrap()],
        value => value.get_mut(part.as_str()).unwrap(),
    })
}

pub(crate) fn without(body: &Value, place: &[String]) -> Value {
    let mut body = body.clone();
    let (last, parent) = place.split_last().unwrap();
    at(&mut body, parent).as_object_mut().unwrap().remove(last);
    body
}

pub(crate) fn with(body: &Value, place: &[String], value: Value) -> Value {
    let mut body = body.clone();
    *at(&mut body, place) = value;
    body
}

/// Whether some violation is about exactly this path.
pub(crate) fn names(violations: &[String], path: &str) -> bool {
    violations.iter().any(|v| v.starts_with(&format!("{path}: ")))
}

fn samples() -> impl Iterator<Item = (ResourceType, Config, Value)> {
    ResourceType::ALL.into_iter().flat_map(|kind| {
        let samples = samples::of(kind).into_iter();
        samples.map(move |config| (kind, config.clone(), samples::body(&config)))
    })
}

/// What a request reads back as: its own fields beside the config as it is written.
fn read_back(body: &Value) -> Result<Value, Vec<String>> {
    let request = create_request(body, &samples::rules())
        .map_err(|found| found.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    Ok(json!({
        "name": request.name,
        "description": request.description,
        "resourceType": request.config.resource_type(),
        "nodeId": request.node,
        "config": samples::sent(&request.config),
        "metadata": request.metadata,
        "autoStart": request.auto_start,
    }))
}

#[test]
fn every_sample_reads_back_as_it_is() {
    for (_, config, body) in samples() {
        let request = create_request(&body, &samples::rules()).unwrap();
        assert_eq!(request, samples::request(config));
        assert_eq!(read_back(&body).unwrap(), body);
    }
}

#[test]
fn the_tables_name_every_field_that_there_is() {
    for kind in ResourceType::ALL {
        let fields: BTreeSet<String> = samples::of(kind)
            .iter()
            .flat_map(|config| places(&samples::body(config)))
            .filter(|place| !is_index(place.last().unwrap()))
            .map(|place| field(&place))
            .collect();
        let known: BTreeSet<String> = table(kind).into_keys().map(str::to_owned).collect();
        assert_eq!(fields, known, "{kind}");
    }
}

/// Whether a place is an entry of an object that the client names freely.
fn is_entry(place: &[String]) -> bool {
    let parent = place.iter().rev().nth(1);
    parent.is_some_and(|name| name == "environment" || name == "metadata")
}

/// Checks what becomes of a request without one of its fields.
pub(crate) fn check_omission(body: &Value, place: &[String], omitted: &Omitted) {
    let path = path(place);
    match (omitted, read_back(body)) {
        (Refused, Err(found)) => assert!(names(&found, &path), "{path}: {found:?}"),
        (RefusedAt(other), Err(found)) => assert!(names(&found, other), "{path}: {found:?}"),
        (Default(value), Ok(back)) => assert_eq!(back.pointer(&pointer(place)), Some(value), "{path}"),
        (Nothing, Ok(back)) => {
            let value = back.pointer(&pointer(place));
            assert!(value.is_none_or(Value::is_null), "{path}: {value:?}");
        }
        (omitted, result) => panic!("{path} was to be {omitted:?}: {result:?}"),
    }
}

#[test]
fn a_field_that_is_left_out_or_null_has_its_default_or_is_refused() {
    for (kind, _, body) in samples() {
        let table = table(kind);
        for place in places(&body) {
            if is_index(place.last().unwrap()) {
                continue;
            }
            let omitted = &table[field(&place).as_str()];
            check_omission(&without(&body, &place), &place, omitted);
            let null = with(&body, &place, Value::Null);
            let omitted = if is_entry(&place) { &Refused } else { omitted };
            check_omission(&null, &place, omitted);
        }
    }
}

fn pointer(place: &[String]) -> String {
    place.iter().map(|part| format!("/{part}")).collect()
}

/// Values of every type, those of the value's own type aside.
pub(crate) fn other_types(value: &Value) -> Vec<Value> {
    let all = [
        json!(true),
        json!(2),
        json!(0.5),
        json!("2"),
        json!([]),
        json!({}),
    ];
    let same = |other: &Value| std::mem::discriminant(other) == std::mem::discriminant(value);
    let mut others: Vec<Value> = all.into_iter().filter(|other| !same(other)).collect();
    if value.is_u64() {
        others.push(json!(2.5));
    }
    others
}

#[test]
fn a_value_of_another_type_is_refused_and_never_converted() {
    for (_, _, body) in samples() {
        for place in places(&body) {
            let path = path(&place);
            let mut copy = body.clone();
            for other in other_types(at(&mut copy, &place)) {
                let found = samples::violations(&with(&body, &place, other.clone()));
                assert!(names(&found, &path), "{path} = {other}: {found:?}");
            }
        }
    }
}

#[test]
fn a_field_that_is_not_known_is_refused_at_every_depth() {
    for (_, _, body) in samples() {
        let objects = places(&body).into_iter().chain([Vec::new()]);
        for place in objects {
            let name = place.last().map_or("", String::as_str);
            let mut copy = body.clone();
            let Value::Object(object) = at(&mut copy, &place) else {
                continue;
            };
            if ["environment", "metadata"].contains(&name) {
                continue;
            }
            for unknown in ["unknownField", "__proto__", "type ", ""] {
                let mut changed = body.clone();
                at(&mut changed, &place)
                    .as_object_mut()
                    .unwrap()
                    .insert(unknown.to_owned(), json!(1));
                let found = samples::violations(&changed);
                let inside = found
                    .iter()
                    .filter(|v| v.contains("is not a known field"))
                    .count();
                assert_eq!((found.len(), inside), (1, 1), "{place:?}: {found:?}");
            }
            assert!(!object.is_empty());
        }
    }
}

#[test]
fn every_field_that_the_server_writes_is_refused_by_name() {
    let mut record = samples::record(Config::Container(samples::container()));
    record.deleted_at = Some(record.created_at);
    record.error_message = Some("x".to_owned());
    let shown = serde_json::to_value(Resource::from(&record)).unwrap();
    let body = samples::body(&record.config);
    let mut refused = Vec::new();
    for (name, value) in shown.as_object().unwrap() {
        if body.get(name).is_some() {
            continue;
        }
        // `runtime` is null in a record that was never deployed; a client would send an object.
        let value = if value.is_null() { json!({}) } else { value.clone() };
        let mut body = body.clone();
        body.as_object_mut().unwrap().insert(name.clone(), value);
        let found = samples::violations(&body);
        assert!(
            names(&found, name) && found[0].contains("leave it out"),
            "{found:?}"
        );
        refused.push(name.as_str());
    }
    assert_eq!(
        refused,
        [
            "_id",
            "createdAt",
            "createdBy",
            "deletedAt",
            "errorMessage",
            "lastHealthCheck",
            "owner",
            "restartRequired",
            "runtime",
            "status",
            "updatedAt",
            "updatedBy"
        ]
    );
}
