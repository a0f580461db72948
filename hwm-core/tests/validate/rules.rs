//! The contract's rules, one table each: what is taken, and what is refused with which words.

use hwm_core::config::Config;
use hwm_core::validate::{Rules, create_request};
use serde_json::{Value, json};

use crate::samples::{self, PUBLIC_KEY, violations};

fn machine() -> Value {
    samples::body(&Config::Machine(samples::machine()))
}

fn container() -> Value {
    samples::body(&Config::Container(samples::container()))
}

fn inference() -> Value {
    samples::body(&Config::Inference(samples::inference()))
}

fn set(mut body: Value, pointer: &str, value: Value) -> Value {
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    match body.pointer_mut(parent).unwrap() {
        Value::Object(map) => map.insert(name.to_owned(), value),
        other => panic!("{parent} is no object: {other}"),
    };
    body
}

fn path(pointer: &str) -> String {
    pointer[1..].replace('/', ".")
}

/// Values that a field takes.
fn takes(body: &Value, pointer: &str, values: impl IntoIterator<Item = Value>) {
    for value in values {
        let found = violations(&set(body.clone(), pointer, value.clone()));
        assert_eq!(found, [""; 0], "{pointer} = {value}");
    }
}

/// Values that a field refuses, with words that the violation contains.
fn refuses(body: &Value, pointer: &str, values: impl IntoIterator<Item = (Value, &'static str)>) {
    let path = path(pointer);
    for (value, words) in values {
        let found = violations(&set(body.clone(), pointer, value.clone()));
        let named = |v: &String| v.starts_with(&path) && v.contains(words);
        assert!(found.iter().any(named), "{pointer} = {value}: {found:?}");
    }
}

fn texts<const N: usize>(texts: [&str; N]) -> [Value; N] {
    texts.map(Value::from)
}

fn all<const N: usize>(texts: [&str; N], words: &'static str) -> Vec<(Value, &'static str)> {
    texts.into_iter().map(|text| (text.into(), words)).collect()
}

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

#[test]
fn an_image_is_one_of_the_operators_catalogue() {
    takes(
        &machine(),
        "/config/osImage",
        texts([
            "ubuntu-22.04",
            "ubuntu-20.04",
            "centos-8",
            "centos-7",
            "windows-server-2022",
            "windows-server-2019",
            "debian-12",
            "debian-11",
        ]),
    );
    refuses(
        &machine(),
        "/config/osImage",
        all(["Debian-12", "", "../debian-12"], "must be \"centos-7\","),
    );
    let mut rules = samples::rules();
    rules.os_images = ["tiny".to_owned()].into();
    let body = set(machine(), "/config/osImage", json!("tiny"));
    assert!(create_request(&body, &rules).is_ok());
    let found = create_request(&machine(), &rules).unwrap_err();
    assert_eq!(found[0].to_string(), "config.osImage: must be \"tiny\"");
}

#[test]
fn the_size_of_a_machine_has_bounds() {
    for (field, low, high) in [
        ("vcpus", 1, 128),
        ("ramMB", 512, 67_108_864),
        ("diskGB", 10, 1_048_576),
    ] {
        let pointer = format!("/config/{field}");
        takes(&machine(), &pointer, [json!(low), json!(high), json!(low as f64)]);
        for value in [
            json!(low - 1),
            json!(high + 1),
            json!(-1),
            json!(u64::MAX),
            json!(1e300),
        ] {
            refuses(&machine(), &pointer, [(value, "must be between")]);
        }
        refuses(
            &machine(),
            &pointer,
            [(json!(low as f64 + 0.5), "not a fraction")],
        );
    }
}

#[test]
fn the_gpus_of_a_machine_are_named_or_one_slice() {
    let gpu = "/config/gpuConfig";
    takes(
        &machine(),
        gpu,
        [
            json!({"enabled": false}),
            json!({"enabled": false, "mode": "mig", "deviceIds": ["0"]}),
            json!({"enabled": true, "mode": "passthrough", "deviceIds": ["0", "GPU-1", "0000:3b:00.0",
                "GPU-5c0f1d2e-0000-1111-2222-333344445555"]}),
            json!({"enabled": true, "mode": "mig", "migProfile": "1g.5gb", "deviceIds": []}),
        ],
    );
    refuses(
        &machine(),
        gpu,
        [
            (json!({}), "enabled: is required: true or false"),
            (
                json!({"enabled": true}),
                "mode: is required: \"passthrough\" or \"mig\"",
            ),
            (
                json!({"enabled": true, "mode": "whole"}),
                "mode: must be \"passthrough\" or \"mig\"",
            ),
            (
                json!({"enabled": true, "mode": "passthrough"}),
                "deviceIds: is required",
            ),
            (
                json!({"enabled": true, "mode": "passthrough", "deviceIds": []}),
                "deviceIds: is required",
            ),
            (
                json!({"enabled": true, "mode": "passthrough", "deviceIds": ["0"], "migProfile": "1g"}),
                "migProfile: has no meaning",
            ),
            (json!({"enabled": true, "mode": "mig"}), "migProfile: is required"),
            (
                json!({"enabled": true, "mode": "mig", "migProfile": "1g", "deviceIds": ["0"]}),
                "deviceIds: has no meaning",
            ),
            (
                json!({"enabled": true, "mode": "mig", "migProfile": "all"}),
                "migProfile: must be a MIG profile",
            ),
            (
                json!({"enabled": true, "mode": "passthrough", "deviceIds": ["0", "GPU-0"]}),
                "deviceIds[1]: repeats config.gpuConfig.deviceIds[0]",
            ),
            (
                json!({"enabled": true, "mode": "passthrough", "deviceIds": ["a b"]}),
                "deviceIds[0]: must be the index",
            ),
            (json!({"enabled": "yes"}), "enabled: must be true or false"),
        ],
    );
}

#[test]
fn a_static_address_fits_its_subnet() {
    let network = |ip: &str, mask: &str, gateway: &str| json!({"mode": "bridge-vlan", "ipMode": "static", "ipAddress": ip, "netmask": mask, "gateway": gateway});
    let pointer = "/config/networkConfig";
    takes(
        &machine(),
        pointer,
        [
            network("192.168.100.10", "255.255.255.0", "192.168.100.1"),
            network("10.0.0.1", "255.255.255.252", "10.0.0.2"),
            network("10.1.2.3", "255.0.0.0", "10.255.255.254"),
            network("100.64.0.255", "255.255.254.0", "100.64.1.0"),
        ],
    );
    refuses(
        &machine(),
        pointer,
        [
            (
                network("10.0.0.5", "255.0.255.0", "10.0.0.1"),
                "netmask: must be a mask of leading ones",
            ),
            (
                network("10.0.0.5", "0.0.0.0", "10.0.0.1"),
                "netmask: must leave room",
            ),
            (
                network("10.0.0.4", "255.255.255.254", "10.0.0.5"),
                "netmask: must leave room",
            ),
            (
                network("10.0.0.5", "255.255.255.255", "10.0.0.5"),
                "netmask: must leave room",
            ),
            (
                network("10.0.0.5", "255.255.255.0", "10.0.1.1"),
                "gateway: must be inside the subnet",
            ),
            (
                network("10.0.0.5", "255.255.255.0", "10.0.0.5"),
                "gateway: must be another address",
            ),
            (
                network("10.0.0.0", "255.255.255.0", "10.0.0.1"),
                "ipAddress: must not be the network address of 10.0.0.0/24",
            ),
            (
                network("10.0.0.255", "255.255.255.0", "10.0.0.1"),
                "ipAddress: must not be the broadcast address of 10.0.0.0/24",
            ),
            (
                network("10.0.0.5", "255.255.255.0", "10.0.0.0"),
                "gateway: must not be the network",
            ),
            (
                network("10.0.0.5", "255.255.255.0", "10.0.0.255"),
                "gateway: must not be the broadcast",
            ),
            (
                network("127.0.0.5", "255.0.0.0", "127.0.0.1"),
                "ipAddress: must be the address of a host",
            ),
            (
                network("224.0.0.5", "255.0.0.0", "224.0.0.1"),
                "ipAddress: must be the address of a host",
            ),
            (
                network("0.0.0.5", "255.0.0.0", "0.0.0.1"),
                "ipAddress: must be the address of a host",
            ),
            (
                network("10.0.0.256", "255.0.0.0", "10.0.0.1"),
                "ipAddress: must be an IPv4 address",
            ),
            (
                network("10.0.0.05", "255.0.0.0", "10.0.0.1"),
                "ipAddress: must be an IPv4 address",
            ),
            (
                network("10.0.0.5/24", "255.0.0.0", "10.0.0.1"),
                "ipAddress: must be an IPv4 address",
            ),
            (
                network("fe80::1", "255.0.0.0", "10.0.0.1"),
                "ipAddress: must be an IPv4 address",
            ),
            (
                network("", "255.0.0.0", "10.0.0.1"),
                "ipAddress: must be an IPv4 address",
            ),
            (
                network("10.0.0.5", "24", "10.0.0.1"),
                "netmask: must be an IPv4 address",
            ),
        ],
    );
}

#[test]
fn a_static_address_needs_all_three_parts_and_a_dynamic_one_none() {
    let pointer = "/config/networkConfig";
    let found = violations(&set(
        machine(),
        pointer,
        json!({"mode": "bridge-vlan", "ipMode": "static"}),
    ));
    assert_eq!(
        found,
        ["ipAddress", "netmask", "gateway"].map(|name| format!(
            "config.networkConfig.{name}: is required: an IPv4 address such as 192.168.100.10"
        ))
    );
    takes(
        &machine(),
        pointer,
        [
            json!({"mode": "bridge-vlan", "ipMode": "dhcp"}),
            json!({"mode": "bridge-vlan", "ipMode": "dhcp", "ipAddress": null, "dns": [], "vlanId": 4094}),
            json!({"mode": "bridge-vlan", "ipMode": "dhcp", "vlanId": 1, "dns": ["1.1.1.1", "127.0.0.53"]}),
        ],
    );
    for name in ["ipAddress", "netmask", "gateway"] {
        let mut network = json!({"mode": "bridge-vlan", "ipMode": "dhcp"});
        network[name] = json!("10.0.0.1");
        refuses(
            &machine(),
            pointer,
            [(network, "has no meaning with ipMode \"dhcp\": remove it, or")],
        );
    }
    refuses(
        &machine(),
        pointer,
        [
            (
                json!({"mode": "nat", "ipMode": "dhcp"}),
                "mode: must be \"bridge-vlan\"",
            ),
            (
                json!({"mode": "bridge-vlan", "ipMode": "auto"}),
                "ipMode: must be \"static\" or \"dhcp\"",
            ),
            (json!({"ipMode": "dhcp"}), "mode: is required"),
            (json!({"mode": "bridge-vlan"}), "ipMode: is required"),
            (
                json!({"mode": "bridge-vlan", "ipMode": "dhcp", "vlanId": 0}),
                "vlanId: must be between 1 and 4094",
            ),
            (
                json!({"mode": "bridge-vlan", "ipMode": "dhcp", "vlanId": 4095}),
                "vlanId: must be between 1 and 4094",
            ),
            (
                json!({"mode": "bridge-vlan", "ipMode": "dhcp", "dns": ["one.one.one.one"]}),
                "dns[0]: must be an IPv4 address",
            ),
            (
                json!({"mode": "bridge-vlan", "ipMode": "dhcp", "dns": ["1.1.1.1", "224.0.0.1"]}),
                "dns[1]: must be the address of one",
            ),
            (
                json!({"mode": "bridge-vlan", "ipMode": "dhcp", "dns": ["1.1.1.1", "8.8.8.8", "1.1.1.1"]}),
                "dns[2]: repeats config.networkConfig.dns[0]",
            ),
            (
                json!({"mode": "bridge-vlan", "ipMode": "dhcp", "dns": vec!["1.1.1.1"; 9]}),
                "dns: must have at most 8 items",
            ),
        ],
    );
}

#[test]
fn a_host_name_is_one_of_rfc_1123() {
    let label = "x".repeat(63);
    let name = [label.as_str(); 3].join(".") + "." + &"x".repeat(61);
    let pointer = "/config/cloudInit/hostname";
    takes(
        &machine(),
        pointer,
        texts([
            "a",
            "3com",
            "web-1.example.com",
            "WEB",
            "1.2.3.4.5",
            &label,
            &name,
        ]),
    );
    refuses(
        &machine(),
        pointer,
        all(
            [
                "",
                "-a",
                "a-",
                "a_b",
                "a..b",
                "a.",
                ".a",
                "a b",
                "a\nb",
                "ü",
                &format!("{label}x"),
                &format!("{name}x"),
            ],
            "must be a host name (RFC 1123)",
        ),
    );
    refuses(&machine(), pointer, all(["192.168.0.1"], "not an IP address"));
}

#[test]
fn a_public_key_is_one_line_in_openssh_format() {
    let pointer = "/config/cloudInit/sshPublicKey";
    let rsa = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABgQDPHb3Wp74bdAUEHE3FxNRfoP1byMck++24cTZiauJCtVZ8rxFuAELv4\
        Sx7ERBDFZpuNDbmR1Aw2CJ4O3hidgQU0k+rpht2FFFDrT2agnpo4O9ZWnfIpuWl4PiS+jWqU/TUPYwxu6jnmIto3M1gqmb4XxCRg\
        jAiiUcys0RYpAIMduJwOUn13Ff+LgHnc+XOi+/yWjfirOgR99WPkxNWfVcJ/4jKxcMWofcVB3D4NU5WeUiwsxp0pWo4AhWDq2v4a\
        kkmsYJbo9KWZICSZVmjQPSCtKEQ0Qs+jVUzvm/8K/3S10/eHcJQ4XmJM0VyqFLHCIFfVWcD/979xc+yr8w6Erh7/0yoHmMz/oahT\
        ZrVVcJcMnIqfk3hgjueHIPD1QH0UeowtnzXLE5o+qgpQt6DIQHtcq+0CAWJrfmYGQVsMGnKsRLYF93pzSoTmNTFedkawidu3UR/J\
        rP4mz495ufmSUyGmtYE8o9pCXC56tC5xHl3GBk9t7nApbkGJtS/KS1Sbkk=";
    let ecdsa = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBNq0+DJg6Wb11Nn0qT6P\
        e2b1cwgqk7fjrvGv+143gxWKgpxXasn4MIE7UIlkzVYi6zqSFMUGrH08VivaBPrfXpw= me";
    takes(
        &machine(),
        pointer,
        texts([PUBLIC_KEY, rsa, ecdsa, &format!("{PUBLIC_KEY}\n")]),
    );
    let request = create_request(
        &set(machine(), pointer, format!(" {PUBLIC_KEY}\r\n").into()),
        &samples::rules(),
    );
    let Ok(Config::Machine(read)) = request.map(|r| r.config) else {
        panic!("not a machine")
    };
    assert_eq!(
        read.cloud_init.unwrap().ssh_public_key.as_deref(),
        Some(PUBLIC_KEY)
    );
    refuses(
        &machine(),
        pointer,
        all(
            [
                &format!("{PUBLIC_KEY}\n{PUBLIC_KEY}"),
                &format!("{PUBLIC_KEY}\r{PUBLIC_KEY}"),
                &format!("{PUBLIC_KEY} x\ncommand=\"sh\" {PUBLIC_KEY}"),
                &format!("{PUBLIC_KEY}\0"),
                &format!("{PUBLIC_KEY}\u{2028}x"),
            ],
            "one key on one line",
        ),
    );
    refuses(
        &machine(),
        pointer,
        all(
            [
                "",
                "AAAA",
                "ssh-ed25519",
                "ssh-ed25519 AAAA",
                &format!("command=\"sh\" {PUBLIC_KEY}"),
                &PUBLIC_KEY.replace("ssh-ed25519 ", "ssh-rsa "),
                "made-up@example.com AAAAE21hZGUtdXBAZXhhbXBsZS5jb20=",
                "-----BEGIN OPENSSH PRIVATE KEY-----",
            ],
            "must be a public key in OpenSSH format",
        ),
    );
    refuses(
        &machine(),
        pointer,
        all(
            [&format!("{PUBLIC_KEY}{}", "x".repeat(8192))],
            "at most 8192 bytes",
        ),
    );
}

#[test]
fn a_user_name_is_safe_in_every_shell() {
    let pointer = "/config/cloudInit/username";
    takes(
        &machine(),
        pointer,
        texts(["ubuntu", "Administrator", "_apt", "a.b-c_1", &"x".repeat(32)]),
    );
    refuses(
        &machine(),
        pointer,
        all(
            [
                "",
                "1a",
                "-a",
                ".a",
                "a.",
                "a b",
                "a:b",
                "a\nb",
                "a$",
                "ü",
                &"x".repeat(33),
            ],
            "must be a user name",
        ),
    );
}

#[test]
fn a_password_is_one_line() {
    let pointer = "/config/cloudInit/password";
    takes(
        &machine(),
        pointer,
        texts(["x", "pässword ✓ \"'$(x)", &"x".repeat(127)]),
    );
    refuses(
        &machine(),
        pointer,
        all(["", &"x".repeat(128)], "between 1 and 127 characters"),
    );
    refuses(&machine(), pointer, all(["a\nb", "a\0", "\u{7f}"], "line breaks"));
    refuses(&machine(), pointer, all(["***"], "none is stored"));
}

#[test]
fn an_image_name_suits_its_registry() {
    for (registry, takes, refuses) in [
        (
            "docker-hub",
            &[
                "nginx",
                "library/nginx",
                "docker.io/library/nginx",
                "bitnami/redis-cluster",
                "a__b/c-d.e",
            ][..],
            &[
                ("ghcr.io/owner/name", "set registry to \"private\""),
                ("localhost/app", "set registry to \"private\""),
                ("nginx:1.25", "put it into imageTag"),
                ("nginx@sha256:abc", "put it into imageTag"),
                ("Nginx", "must be a valid image reference"),
                ("", "between 1 and 700 characters"),
                ("a//b", "must be a valid image reference"),
                ("../../volumes", "must be a valid image reference"),
                ("a/../b", "must be a valid image reference"),
                ("nginx\n", "must be a valid image reference"),
                ("nginx --privileged", "must be a valid image reference"),
                ("-nginx", "must be a valid image reference"),
            ][..],
        ),
        (
            "ghcr",
            &["owner/name", "ghcr.io/owner/name", "owner/team/name"][..],
            &[
                ("name", "must be owner/name or ghcr.io/owner/name"),
                ("ghcr.io/name", "must be owner/name or ghcr.io/owner/name"),
                ("quay.io/owner/name", "set registry to \"private\""),
                ("docker.io/owner/name", "set registry to \"private\""),
                ("Owner/name", "must be a valid image reference"),
            ][..],
        ),
        (
            "private",
            &[
                "registry.example.com/app",
                "registry:5000/team/app",
                "localhost/app",
                "10.0.0.1:5000/a/b/c",
            ][..],
            &[
                ("app", "must be host[:port]/path"),
                ("team/app", "must be host[:port]/path"),
                ("registry:5000", "put it into imageTag"),
                ("registry:0/app", "a port between 1 and 65535"),
                ("registry:65536/app", "a port between 1 and 65535"),
                ("https://registry.example.com/app", "must"),
                ("user:pass@registry.example.com/app", "must"),
                ("registry.example.com/app:1", "put it into imageTag"),
            ][..],
        ),
    ] {
        let body = set(container(), "/config/registry", json!(registry));
        self::takes(&body, "/config/imageName", takes.iter().map(|name| json!(name)));
        self::refuses(
            &body,
            "/config/imageName",
            refuses.iter().map(|(name, words)| (json!(name), *words)),
        );
    }
    refuses(
        &container(),
        "/config/registry",
        all(
            ["hub", "dockerhub"],
            "must be \"docker-hub\", \"ghcr\" or \"private\"",
        ),
    );
}

#[test]
fn a_tag_is_a_tag_or_a_digest() {
    let digest = format!("sha256:{}", "0a".repeat(32));
    takes(
        &container(),
        "/config/imageTag",
        texts(["latest", "1.25-alpine", "_x", "V1", &"x".repeat(128), &digest]),
    );
    refuses(
        &container(),
        "/config/imageTag",
        all(
            [
                "",
                ".a",
                "-a",
                "a b",
                "a/b",
                "a:b",
                "ü",
                "a\n",
                &"x".repeat(129),
                "sha256:abc",
                &digest.to_uppercase(),
                &format!("sha512:{}", "0a".repeat(64)),
                &format!("1.2@{digest}"),
            ],
            "must be a tag",
        ),
    );
}

#[test]
fn credentials_are_a_user_with_a_password_or_a_token() {
    let pointer = "/config/registryAuth";
    takes(
        &container(),
        pointer,
        [
            json!({}),
            json!({"token": "t"}),
            json!({"username": "u", "token": "t"}),
            json!({"username": "u", "password": "p:w ü"}),
        ],
    );
    refuses(
        &container(),
        pointer,
        [
            (json!({"username": "u"}), "password: is required with username"),
            (json!({"password": "p"}), "username: is required with password"),
            (
                json!({"username": "u", "password": "p", "token": "t"}),
                "token: must not be given beside password",
            ),
            (
                json!({"username": "u:v", "token": "t"}),
                "username: must not contain ':'",
            ),
            (json!({"token": ""}), "token: must not be empty"),
            (json!({"token": "a\nb"}), "token: must not contain control"),
            (json!({"token": "***"}), "token: must be the secret itself"),
        ],
    );
}

#[test]
fn ports_are_in_range_and_not_repeated() {
    let pointer = "/config/containerPorts";
    takes(
        &container(),
        pointer,
        [
            json!([]),
            json!([{"containerPort": 1}, {"containerPort": 65535, "hostPort": 65535}]),
            json!([{"containerPort": 53, "hostPort": 53, "protocol": "tcp"},
                {"containerPort": 53, "hostPort": 53, "protocol": "udp"}]),
        ],
    );
    refuses(
        &container(),
        pointer,
        [
            (
                json!([{}]),
                "[0].containerPort: is required: an integer between 1 and 65535",
            ),
            (
                json!([{"containerPort": 0}]),
                "[0].containerPort: must be between 1 and 65535",
            ),
            (
                json!([{"containerPort": 65536}]),
                "[0].containerPort: must be between 1 and 65535",
            ),
            (
                json!([{"containerPort": 1}, {"containerPort": 2, "hostPort": 0}]),
                "[1].hostPort: must be between 1 and 65535",
            ),
            (
                json!([{"containerPort": 1, "protocol": "sctp"}]),
                "[0].protocol: must be \"tcp\" or \"udp\"",
            ),
            (
                json!([{"containerPort": 1}, {"containerPort": 1}]),
                "[1].containerPort: repeats config.containerPorts[0].containerPort",
            ),
            (
                json!([{"containerPort": 1, "hostPort": 9}, {"containerPort": 2}, {"containerPort": 3, "hostPort": 9}]),
                "[2].hostPort: repeats config.containerPorts[0].hostPort",
            ),
            (
                json!(vec![json!({"containerPort": 1}); 257]),
                ": must have at most 256 items",
            ),
            (json!([80]), "[0]: must be an object, not a number"),
            (json!(["80:80"]), "[0]: must be an object, not a string"),
        ],
    );
}

#[test]
fn the_hosts_network_is_a_matter_of_policy_and_none_publishes_nothing() {
    let mut rules = samples::rules();
    let mut body = container();
    body["config"]["networkMode"] = json!("host");
    body["config"]["containerPorts"] = json!([{"containerPort": 80}, {"containerPort": 81, "hostPort": 81}]);
    assert!(
        violations(&body)[0].starts_with("config.networkMode: \"host\" is refused by this node's policy")
    );
    rules.host_network = true;
    assert!(create_request(&body, &rules).is_ok());
    body["config"]["containerPorts"][0]["hostPort"] = json!(8080);
    let found = create_request(&body, &rules).unwrap_err();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].field, "config.containerPorts[0].hostPort");
    body["config"]["networkMode"] = json!("none");
    let found = violations(&body);
    assert!(found[0].starts_with("config.containerPorts: has no meaning with networkMode \"none\""));
    body["config"]["containerPorts"] = json!([]);
    assert_eq!(violations(&body), [""; 0]);
    refuses(
        &container(),
        "/config/networkMode",
        all(
            ["overlay", "container:x"],
            "must be \"bridge\", \"host\" or \"none\"",
        ),
    );
}

#[test]
fn limits_are_numbers_above_zero() {
    for (field, high) in [("cpuCores", 4096), ("ramLimit", 65_536)] {
        let pointer = format!("/config/{field}");
        for body in [container(), inference()] {
            takes(&body, &pointer, [json!(0.001), json!(0.5), json!(2), json!(high)]);
            for value in [json!(0), json!(-1), json!(1e-9), json!(high + 1), json!(1e300)] {
                refuses(&body, &pointer, [(value, "must be between 0.001 and")]);
            }
            refuses(&body, &pointer, all(["2", "2g"], "must be a number between"));
        }
    }
    for body in [container(), inference()] {
        takes(&body, "/config/shmSizeMB", [json!(1), json!(67_108_864)]);
        refuses(
            &body,
            "/config/shmSizeMB",
            [(json!(0), "must be between 1 and 67108864")],
        );
    }
    takes(
        &inference(),
        "/config/gpuMemoryLimit",
        [json!(1), json!(16_777_216)],
    );
    refuses(
        &inference(),
        "/config/gpuMemoryLimit",
        [(json!(0), "must be between 1 and 16777216")],
    );
}

#[test]
fn the_gpus_of_a_container_are_named_or_chosen() {
    let mut body = container();
    body["config"]["gpuDeviceIds"] = json!([]);
    takes(
        &body,
        "/config/gpuConfig",
        [
            json!({"enabled": false}),
            json!({"enabled": true, "mode": "whole"}),
            json!({"enabled": true, "mode": "whole", "count": 8}),
            json!({"enabled": true, "mode": "mig", "migProfile": "1g.10gb+me"}),
        ],
    );
    refuses(
        &body,
        "/config/gpuConfig",
        [
            (
                json!({"enabled": true}),
                "mode: is required: \"whole\" or \"mig\"",
            ),
            (
                json!({"enabled": true, "mode": "whole", "count": 0}),
                "count: must be between 1 and 64",
            ),
            (
                json!({"enabled": true, "mode": "whole", "migProfile": "1g"}),
                "migProfile: has no meaning with mode \"whole\"",
            ),
            (json!({"enabled": true, "mode": "mig"}), "migProfile: is required"),
            (
                json!({"enabled": true, "mode": "mig", "migProfile": "1g", "count": 1}),
                "count: has no meaning with mode \"mig\"",
            ),
            (
                json!({"enabled": true, "mode": "passthrough"}),
                "mode: must be \"whole\" or \"mig\"",
            ),
        ],
    );
    takes(&container(), "/config/gpuConfig", [json!({"enabled": false})]);
    refuses(
        &container(),
        "/config/gpuConfig",
        [(
            json!({"enabled": true, "mode": "whole"}),
            "must not be enabled beside gpuDeviceIds: remove one of the two",
        )],
    );
    refuses(
        &container(),
        "/config/gpuDeviceIds",
        [
            (json!(["0", "1", "gpu-0"]), "[2]: repeats config.gpuDeviceIds[0]"),
            (json!(["MIG-a", "mig-A"]), "[1]: repeats config.gpuDeviceIds[0]"),
            (json!([0]), "[0]: must be the name of a GPU, not a number"),
            (json!([""]), "[0]: must be the index, UUID or PCI address"),
            (json!(["all\n"]), "[0]: must be the index"),
        ],
    );
}

#[test]
fn an_inference_container_has_a_gpu() {
    let mut body = inference();
    for (ids, config) in [
        (json!(null), json!(null)),
        (json!([]), json!(null)),
        (json!([]), json!({"enabled": false})),
    ] {
        body["config"]["gpuDeviceIds"] = ids;
        body["config"]["gpuConfig"] = config;
        assert_eq!(
            violations(&body),
            [
                "config.gpuDeviceIds: is required: name at least one GPU, or enable gpuConfig and the node chooses"
            ]
        );
    }
    body["config"]["gpuConfig"] = json!({"enabled": true, "mode": "whole"});
    assert_eq!(violations(&body), [""; 0]);
}

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
fn the_environment_takes_what_a_process_can_have() {
    for body in [container(), inference()] {
        takes(
            &body,
            "/config/environment",
            [
                json!({"PATH": "/bin", "empty": "", "a.b-c": "x=y\nz", "_": "ü"}),
                json!({"X": "v".repeat(131_069)}),
                json!({"MODEL_PATH": "/elsewhere", "LD_PRELOAD": "x.so"}),
            ],
        );
        refuses(
            &body,
            "/config/environment",
            [
                (json!({"": "x"}), "[\"\"]: must have a name"),
                (json!({"A=B": "x"}), "must have a name"),
                (json!({"A\0": "x"}), "must have a name"),
                (json!({"A B": "x"}), "must have a name"),
                (json!({"A\nB": "x"}), "must have a name"),
                (json!({"x".repeat(257): "x"}), "must have a name"),
                (json!({"A": "x\0"}), ".A: must not contain NUL"),
                (json!({"A": 1}), ".A: must be a string, not a number"),
                (json!({"A": true}), ".A: must be a string, not a boolean"),
                (json!({"A": "x".repeat(131_070)}), ".A: must have at most"),
                (json!({"HWM_GPU_MEMORY_LIMIT_MB": "1"}), "HWM_ is reserved"),
                (
                    json!({"NVIDIA_VISIBLE_DEVICES": "all"}),
                    "use gpuDeviceIds or gpuConfig",
                ),
                (
                    json!({"A": "x".repeat(120_000), "B": "x".repeat(120_000), "C": "x".repeat(60_000)}),
                    ": must have at most 262144 bytes in all",
                ),
                (
                    (0..1025).map(|i| (format!("V{i}"), json!(""))).collect::<Value>(),
                    ": must have at most 1024 entries",
                ),
            ],
        );
    }
}

#[test]
fn a_command_is_a_list_of_texts_and_an_empty_one_is_none() {
    for field in ["command", "args"] {
        let pointer = format!("/config/{field}");
        for body in [container(), inference()] {
            takes(&body, &pointer, [json!(["a", "", "b\nc"]), json!([])]);
            refuses(
                &body,
                &pointer,
                [
                    (json!("sh -c ls"), "must be an array, not a string"),
                    (json!(["a", 1]), "[1]: must be a string, not a number"),
                    (json!(["a\0"]), "[0]: must not contain NUL"),
                    (
                        json!(["x".repeat(131_072)]),
                        "[0]: must have at most 131071 bytes",
                    ),
                    (json!(vec!["x"; 1025]), "must have at most 1024 items"),
                    (
                        json!(vec!["x".repeat(100_000); 3]),
                        "must have at most 262144 bytes in all",
                    ),
                ],
            );
        }
    }
    refuses(
        &container(),
        "/config/command",
        [(json!([""]), "[0]: must name a program")],
    );
    let request = create_request(&set(container(), "/config/args", json!([])), &samples::rules()).unwrap();
    let Config::Container(read) = request.config else {
        panic!("not a container")
    };
    assert_eq!(read.args, None);
}

#[test]
fn policies_are_words_of_the_contract() {
    for body in [container(), inference()] {
        takes(&body, "/config/pullPolicy", texts(["missing", "always", "never"]));
        refuses(
            &body,
            "/config/pullPolicy",
            all(["Always", "ifNotPresent"], "must be \"missing\", \"always\""),
        );
        takes(
            &body,
            "/config/restartPolicy",
            texts(["no", "on-failure", "always"]),
        );
        refuses(
            &body,
            "/config/restartPolicy",
            all(["unless-stopped"], "must be \"no\", \"on-failure\" or"),
        );
    }
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
        ("https://example.com/x#y", "must not contain '#'"),
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
