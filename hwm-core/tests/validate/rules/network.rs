//! Addresses of machines, ports of containers.

use hwm_core::validate::create_request;
use serde_json::json;

use super::{all, container, machine, refuses, set, takes};
use crate::samples::{self, violations};

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
