use super::*;
use proptest::prelude::*;
use serde_json::json;

fn any_key() -> impl Strategy<Value = ClaimKey> {
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)];
    prop_oneof![
        (protocol, any::<u16>()).prop_map(|(p, n)| ClaimKey::Port(p, n)),
        (0u16..4095, any::<u32>()).prop_map(|(v, a)| ClaimKey::Address(v, Ipv4Addr::from(a))),
        ("GPU-[0-9a-f]{8}", "slot-[0-9]{1,2}").prop_map(|(c, p)| ClaimKey::Gpu(GpuUuid::new(c), p)),
        "/.*".prop_map(ClaimKey::Volume),
        Just(ClaimKey::Cpu),
        Just(ClaimKey::Ram),
        Just(ClaimKey::Disk),
    ]
}

proptest! {
    #[test]
    fn a_key_reads_back(key in any_key()) {
        prop_assert_eq!(key.to_string().parse::<ClaimKey>().unwrap(), key);
    }

    #[test]
    fn every_port_of_the_range_is_tried_once(first in 1u16.., len in 0u16..500, seed: u128) {
        let last = first.saturating_add(len);
        let mut tried: Vec<u16> = port_candidates(first..=last, seed).collect();
        tried.sort_unstable();
        prop_assert_eq!(tried, (first..=last).collect::<Vec<_>>());
    }
}

#[test]
fn an_empty_range_of_ports_has_no_candidates() {
    let (first, last) = (9000, 8000);
    assert_eq!(port_candidates(first..=last, 7).count(), 0);
}

#[test]
fn cpu_may_be_overcommitted_and_the_rest_not() {
    let capacity = Capacity {
        cpu: Cores::whole(4),
        ram: Bytes(100),
        disk: Bytes(200),
    };
    let limits: Vec<u64> = capacity.limits(2.0).into_iter().map(|l| l.limit).collect();
    assert_eq!(limits, [Cores::whole(8).0, 100, 200]);
}

fn config(config: serde_json::Value) -> Config {
    let rules = crate::validate::Rules {
        volume_roots: vec!["/srv".into()],
        host_network: true,
        ..Default::default()
    };
    let body = json!({"name": "x", "resourceType": config["type"], "config": config});
    crate::validate::create_request(&body, &rules).unwrap().config
}

fn machine(network: serde_json::Value) -> Config {
    config(json!({
        "type": "virtual-machine", "osImage": "debian-12", "vcpus": 4, "ramMB": 512, "diskGB": 10,
        "networkConfig": network,
    }))
}

fn container(rest: serde_json::Value) -> Config {
    let mut all = json!({"type": "application-container", "registry": "docker-hub", "imageName": "nginx"});
    for (name, value) in rest.as_object().unwrap() {
        all[name] = value.clone();
    }
    config(all)
}

fn demand(config: &Config) -> Demand {
    Demand::of(config, |path| format!("/real{path}"))
}

#[test]
fn a_machine_claims_its_static_address_on_its_vlan_and_its_size() {
    let address = Ipv4Addr::new(192, 168, 100, 10);
    let mut network = json!({
        "mode": "bridge-vlan", "ipMode": "static", "ipAddress": address,
        "netmask": "255.255.255.0", "gateway": "192.168.100.1",
    });
    let untagged = demand(&machine(network.clone()));
    assert_eq!(untagged.exclusive, [ClaimKey::Address(0, address)]);
    network["vlanId"] = json!(100);
    let tagged = demand(&machine(network));
    assert_eq!(tagged.exclusive, [ClaimKey::Address(100, address)]);
    assert_eq!(tagged.lasting, [(Pool::Disk, 10 << 30)]);
    assert_eq!(
        tagged.running,
        [(Pool::Cpu, 4_000_000_000), (Pool::Ram, 512 << 20)]
    );
    let dynamic = machine(json!({"mode": "bridge-vlan", "ipMode": "dhcp"}));
    assert_eq!(demand(&dynamic).exclusive, []);
}

#[test]
fn a_container_claims_the_ports_that_it_names_and_leaves_the_rest_open() {
    let ports = json!([
        {"containerPort": 80},
        {"containerPort": 53, "hostPort": 5353, "protocol": "udp"},
        {"containerPort": 443, "hostPort": 8443},
    ]);
    let bridged = demand(&container(json!({ "containerPorts": ports })));
    assert_eq!(
        bridged.exclusive,
        [
            ClaimKey::Port(Protocol::Tcp, 8443),
            ClaimKey::Port(Protocol::Udp, 5353)
        ]
    );
    assert_eq!(bridged.open_ports, [0]);
    assert_eq!((bridged.lasting, bridged.running), (vec![], vec![]));
}

#[test]
fn on_the_network_of_the_host_a_port_inside_is_a_port_of_the_node() {
    let ports = json!([{"containerPort": 80}, {"containerPort": 81, "hostPort": 81}]);
    let hosted = demand(&container(
        json!({ "networkMode": "host", "containerPorts": ports }),
    ));
    assert_eq!(
        hosted.exclusive,
        [
            ClaimKey::Port(Protocol::Tcp, 80),
            ClaimKey::Port(Protocol::Tcp, 81)
        ]
    );
    assert_eq!(hosted.open_ports, [0; 0]);
}

#[test]
fn only_writable_folders_are_claimed_once_each_and_after_their_links() {
    let volumes = json!([
        {"hostPath": "/srv/a", "containerPath": "/1"},
        {"hostPath": "/srv/a", "containerPath": "/2"},
        {"hostPath": "/srv/b", "containerPath": "/3", "readOnly": true},
    ]);
    assert_eq!(
        demand(&container(json!({ "volumes": volumes }))).exclusive,
        [ClaimKey::Volume("/real/srv/a".to_owned())]
    );
}

#[test]
fn an_inference_container_has_one_port_that_the_node_chooses() {
    let inference = config(json!({
        "type": "inference-container", "modelId": "m", "modelPath": "s3://b/m", "dockerImage": "x",
        "containerPort": 8000, "gpuDeviceIds": ["0"], "cpuCores": 0.5, "ramLimit": 1,
    }));
    let demand = demand(&inference);
    assert_eq!((demand.exclusive, demand.open_ports), (vec![], vec![0]));
    assert_eq!(demand.running, [(Pool::Cpu, 500_000_000), (Pool::Ram, 1 << 30)]);
}

#[test]
fn a_conflict_names_what_was_wanted_who_holds_it_and_the_way_out() {
    let holder = ResourceId::from_u128(7);
    let conflict = held(&ClaimKey::Port(Protocol::Tcp, 8080), holder, "web");
    assert_eq!(conflict.kind, ConflictKind::Port);
    assert_eq!(
        conflict.to_string(),
        format!(
            "host port 8080/tcp cannot be had: held by \"web\" ({holder}); delete the holder, choose another \
             hostPort, or leave hostPort out"
        )
    );
    let conflict = exceeded(Pool::Ram, 4096 << 20, 60 << 30, 62 << 30);
    assert_eq!(
        conflict.to_string(),
        "4096 MB of memory cannot be had; 2048 MB of memory of 63488 MB of memory are free; stop or delete \
         other resources, or ask for less"
    );
    // A node that shrank has nothing free, and less than nothing is not.
    let conflict = exceeded(Pool::Cpu, 1, 9_000_000_000, 8_000_000_000);
    assert!(
        conflict.remedy.starts_with("0 CPU cores of 8 CPU cores"),
        "{conflict}"
    );
}

#[test]
fn a_text_that_is_no_key_is_told_from_one() {
    for text in [
        "",
        "cpu/",
        "cpu/1",
        "volume",
        "port/tcp/080",
        "port/tcp/+80",
        "address/01/1.2.3.4",
        "disks",
        "port/tcp",
        "port/tcp/",
        "port/tcp/65536",
        "port/sctp/1",
        "address/1",
        "address/x/1.2.3.4",
        "address/1/1.2.3",
        "gpu/GPU-1",
        "Port/tcp/1",
    ] {
        assert!(text.parse::<ClaimKey>().is_err(), "{text}");
    }
}
