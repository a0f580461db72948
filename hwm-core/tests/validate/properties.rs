//! What holds for every request, valid or not.

use hwm_core::config::{Config, ResourceType};
use hwm_core::error::Violation;
use hwm_core::resource::Resource;
use hwm_core::validate::{create_request, exec_request, patch, snapshot_request, stop_arguments};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{Map, Value, json};

use crate::fields::{self, Omitted};
use crate::samples::{self, PUBLIC_KEY};

/// Any JSON, with names and texts that mean something among those that do not.
fn any_json() -> impl Strategy<Value = Value> {
    let name = prop_oneof![
        select(vec![
            "config",
            "type",
            "name",
            "gpuConfig",
            "networkConfig",
            "status",
            "volumes",
            "owner"
        ])
        .prop_map(str::to_owned),
        any::<String>(),
    ];
    let text = prop_oneof![
        select(vec![
            "virtual-machine",
            "***",
            "file://",
            "s3://",
            "/",
            "::1",
            "static",
            "ssh-rsa"
        ])
        .prop_map(str::to_owned),
        any::<String>(),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text.prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 48, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((name.clone(), inner), 0..6)
                .prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

/// Some of these fields, the `needed` ones always.
fn object(
    needed: Vec<(&'static str, BoxedStrategy<Value>)>,
    free: Vec<(&'static str, BoxedStrategy<Value>)>,
) -> BoxedStrategy<Value> {
    let most = free.len();
    subsequence(free, 0..=most)
        .prop_flat_map(move |chosen| {
            let (names, values): (Vec<_>, Vec<_>) = needed.clone().into_iter().chain(chosen).unzip();
            values.prop_map(move |values| {
                let named = names.iter().map(|name| (*name).to_owned());
                Value::Object(named.zip(values).collect::<Map<_, _>>())
            })
        })
        .boxed()
}

fn one_of(values: &[&'static str]) -> BoxedStrategy<Value> {
    select(values.to_vec()).prop_map(Value::from).boxed()
}

fn number(range: std::ops::RangeInclusive<u64>) -> BoxedStrategy<Value> {
    range.prop_map(Value::from).boxed()
}

fn text(pattern: &'static str) -> BoxedStrategy<Value> {
    proptest::string::string_regex(pattern)
        .unwrap()
        .prop_map(Value::from)
        .boxed()
}

fn devices() -> BoxedStrategy<Value> {
    subsequence(vec!["0", "GPU-1", "0000:3b:00.0", "MIG-5c0f"], 1..=4)
        .prop_map(Value::from)
        .boxed()
}

fn gpu_config(whole: &'static str) -> BoxedStrategy<Value> {
    let profile = || text("[1-7]g(\\.[1-9]{1,2}gb)?(\\+me(\\.all)?|-me)?");
    let names = |mode| match mode {
        "passthrough" => object(vec![("deviceIds", devices())], vec![]),
        _ => object(vec![], vec![("count", number(1..=64))]),
    };
    let enabled = |mode: &'static str, rest: BoxedStrategy<Value>| {
        rest.prop_map(move |mut rest| {
            rest["enabled"] = json!(true);
            rest["mode"] = json!(mode);
            rest
        })
    };
    prop_oneof![
        enabled(whole, names(whole)),
        enabled("mig", object(vec![("migProfile", profile())], vec![])),
        object(
            vec![("enabled", Just(json!(false)).boxed())],
            vec![("mode", one_of(&["mig"])), ("migProfile", profile())]
        ),
    ]
    .boxed()
}

fn machine() -> BoxedStrategy<Value> {
    let network = (any::<u32>(), 1u32..=28, any::<u16>(), any::<bool>(), 1u64..=4094).prop_map(
        |(subnet, prefix, host, tagged, vlan)| {
            // The first octet stays in 11..=126, where every address is a host's.
            let mask = u32::MAX << (32 - prefix);
            let base = (subnet & 0x00ff_ffff) | ((11 + (subnet >> 24) % 116) << 24);
            let size = !mask;
            let ip = (base & mask) | (1 + u32::from(host) % (size - 2));
            let gateway = (base & mask) | (size - 1);
            let address = |n: u32| std::net::Ipv4Addr::from(n).to_string();
            let mut network = json!({
                "mode": "bridge-vlan", "ipMode": "static",
                "ipAddress": address(ip), "netmask": address(mask), "gateway": address(gateway),
            });
            if tagged {
                network["vlanId"] = json!(vlan);
            }
            (network, base & mask != 0)
        },
    );
    let fixed = network
        .prop_filter(
            "0.0.0.0/1 and the like have hosts that are none",
            |(network, _)| {
                let first = |name: &str| {
                    network[name]
                        .as_str()
                        .unwrap()
                        .split('.')
                        .next()
                        .unwrap()
                        .to_owned()
                };
                ["ipAddress", "gateway"]
                    .iter()
                    .all(|name| (11..=126).contains(&first(name).parse::<u8>().unwrap()))
            },
        )
        .prop_map(|(network, _)| network);
    let dynamic = object(
        vec![("mode", one_of(&["bridge-vlan"])), ("ipMode", one_of(&["dhcp"]))],
        vec![
            ("vlanId", number(1..=4094)),
            ("dns", Just(json!(["1.1.1.1", "8.8.8.8"])).boxed()),
        ],
    );
    let cloud_init = object(
        vec![],
        vec![
            ("hostname", text("[a-z]{1,9}(-[0-9])?(\\.[a-z]{2,9}){0,2}")),
            ("sshPublicKey", Just(json!(PUBLIC_KEY)).boxed()),
            ("username", text("[a-z_][a-z0-9_-]{0,31}")),
            ("password", text("[ -~]{4,40}")),
        ],
    );
    object(
        vec![
            ("type", one_of(&["virtual-machine"])),
            ("osImage", one_of(&["debian-12"])),
            ("vcpus", number(1..=128)),
            ("ramMB", number(512..=1_000_000)),
            ("diskGB", number(10..=10_000)),
            ("networkConfig", prop_oneof![fixed, dynamic].boxed()),
        ],
        vec![
            ("gpuConfig", gpu_config("passthrough")),
            ("cloudInit", cloud_init),
        ],
    )
}

fn containers() -> Vec<(&'static str, BoxedStrategy<Value>)> {
    let auth = prop_oneof![
        object(
            vec![
                ("username", text("[a-z]{1,9}")),
                ("password", text("[ -~]{4,40}"))
            ],
            vec![]
        ),
        object(
            vec![("token", text("[!-~]{4,40}"))],
            vec![("username", text("[a-z]{1,9}"))]
        ),
    ];
    let amount = || (1u64..=4_096_000).prop_map(|n| json!(n as f64 / 1000.0)).boxed();
    let variables = prop::collection::btree_map("[A-G]{1,3}_[A-Z0-9]{0,9}", "[^\0]{0,20}", 0..5);
    let words = || {
        prop::collection::vec("[^\0]{1,20}", 0..4)
            .prop_map(Value::from)
            .boxed()
    };
    vec![
        ("registryAuth", auth.boxed()),
        ("cpuCores", amount()),
        (
            "ramLimit",
            (1u64..=65_536_000_000)
                .prop_map(|n| json!((n as f64 / 1e6).max(0.001)))
                .boxed(),
        ),
        ("environment", variables.prop_map(|map| json!(map)).boxed()),
        ("pullPolicy", one_of(&["missing", "always", "never"])),
        ("command", words()),
        ("args", words()),
        ("shmSizeMB", number(1..=4096)),
        ("restartPolicy", one_of(&["no", "on-failure", "always"])),
    ]
}

fn application() -> BoxedStrategy<Value> {
    let image = prop_oneof![
        Just(("docker-hub", "nginx")),
        Just(("docker-hub", "docker.io/library/nginx")),
        Just(("ghcr", "owner/name")),
        Just(("private", "registry.example.com:5000/a/b")),
    ];
    let ports = prop::collection::btree_map(1u16.., (any::<bool>(), one_of(&["tcp", "udp"])), 0..5).prop_map(
        |ports| {
            let port = |(port, (published, protocol)): (u16, (bool, Value))| {
                let mut entry = json!({"containerPort": port, "protocol": protocol});
                if published {
                    entry["hostPort"] = json!(port);
                }
                entry
            };
            Value::from(ports.into_iter().map(port).collect::<Vec<_>>())
        },
    );
    let volumes = prop::collection::btree_map("/[a-c]{1,3}", ("[a-z ]{1,9}", any::<bool>()), 0..4).prop_map(
        |volumes| {
            let volume = |(at, (folder, read_only)): (String, (String, bool))| {
                json!({"hostPath": format!("/srv/volumes/{folder}"), "containerPath": at, "readOnly": read_only})
            };
            Value::from(volumes.into_iter().map(volume).collect::<Vec<_>>())
        },
    );
    let gpus = prop_oneof![
        Just(("gpuDeviceIds", json!([]))),
        devices().prop_map(|ids| ("gpuDeviceIds", ids)),
        gpu_config("whole").prop_map(|config| ("gpuConfig", config)),
    ];
    let own = vec![
        ("imageTag", text("[a-z0-9_][a-z0-9._-]{0,20}")),
        ("containerPorts", ports.boxed()),
        ("volumes", volumes.boxed()),
        ("networkMode", one_of(&["bridge"])),
    ];
    let rest = object(
        vec![("type", one_of(&["application-container"]))],
        [containers(), own].concat(),
    );
    (rest, image, gpus)
        .prop_map(|(mut config, (registry, name), (field, gpus))| {
            config["registry"] = json!(registry);
            config["imageName"] = json!(name);
            config[field] = gpus;
            config
        })
        .boxed()
}

fn inference() -> BoxedStrategy<Value> {
    let gpus = prop_oneof![
        devices().prop_map(|ids| ("gpuDeviceIds", ids)),
        gpu_config("whole")
            .prop_filter("it needs a GPU", |config| config["enabled"] == true)
            .prop_map(|config| ("gpuConfig", config)),
    ];
    let needed = vec![
        ("type", one_of(&["inference-container"])),
        ("modelId", text("[a-z][ -~]{0,40}")),
        (
            "modelPath",
            one_of(&[
                "/srv/models/a",
                "file:///srv/volumes/m",
                "s3://bucket/key",
                "https://example.com/m?x=1",
            ]),
        ),
        (
            "dockerImage",
            one_of(&["vllm/vllm-openai:v0.8.0", "localhost:5000/x"]),
        ),
        ("containerPort", number(1..=65_535)),
    ];
    let own = vec![
        ("gpuMemoryLimit", number(1..=100_000)),
        ("healthCheckPath", text("/[a-z]{0,9}(\\?[a-z]=[0-9])?")),
        ("healthCheckIntervalSeconds", number(1..=3600)),
        ("healthCheckDeadlineSeconds", number(1..=86_400)),
    ];
    (object(needed, [containers(), own].concat()), gpus)
        .prop_map(|(mut config, (field, gpus))| {
            config[field] = gpus;
            config
        })
        .boxed()
}

fn config(kind: ResourceType) -> BoxedStrategy<Value> {
    match kind {
        ResourceType::VirtualMachine => machine(),
        ResourceType::ApplicationContainer => application(),
        ResourceType::InferenceContainer => inference(),
    }
}

fn kind() -> impl Strategy<Value = ResourceType> {
    select(ResourceType::ALL.to_vec())
}

/// A valid create.
fn valid() -> impl Strategy<Value = Value> {
    let body = |kind| {
        object(
            vec![
                ("name", text("[^\\p{C}\\p{Z}]{1,100}")),
                ("resourceType", Just(json!(kind)).boxed()),
                ("config", config(kind)),
            ],
            vec![
                ("description", text("[^\\p{C}]{0,500}")),
                ("nodeId", text("[a-z0-9-]{1,36}")),
                (
                    "metadata",
                    prop::collection::btree_map("[a-z][a-z0-9_-]{0,63}", "[^\0]{0,64}", 0..5)
                        .prop_map(|map| json!(map))
                        .boxed(),
                ),
                ("autoStart", any::<bool>().prop_map(Value::from).boxed()),
            ],
        )
    };
    kind().prop_flat_map(body)
}

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
