//! Any JSON, and valid requests of every kind.

use hwm_core::config::ResourceType;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{Map, Value, json};

use crate::samples::PUBLIC_KEY;

/// Any JSON, with names and texts that mean something among those that do not.
pub(crate) fn any_json() -> impl Strategy<Value = Value> {
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
    let fixed = (
        11u32..=126,
        any::<u32>(),
        8u32..=28,
        any::<u16>(),
        prop::option::of(1u16..=4094),
    )
        .prop_map(|(first, rest, prefix, host, vlan)| {
            let mask = u32::MAX << (32 - prefix);
            let network = (first << 24 | rest & 0x00ff_ffff) & mask;
            let gateway = network + !mask - 1;
            let ip = network + 1 + u32::from(host) % (!mask - 2);
            let address = |n: u32| std::net::Ipv4Addr::from(n).to_string();
            let mut network = json!({
                "mode": "bridge-vlan", "ipMode": "static",
                "ipAddress": address(ip), "netmask": address(mask), "gateway": address(gateway),
            });
            if let Some(vlan) = vlan {
                network["vlanId"] = json!(vlan);
            }
            network
        });
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

pub(crate) fn config(kind: ResourceType) -> BoxedStrategy<Value> {
    match kind {
        ResourceType::VirtualMachine => machine(),
        ResourceType::ApplicationContainer => application(),
        ResourceType::InferenceContainer => inference(),
    }
}

pub(crate) fn kind() -> impl Strategy<Value = ResourceType> {
    select(ResourceType::ALL.to_vec())
}

/// A valid create.
pub(crate) fn valid() -> impl Strategy<Value = Value> {
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
