//! Machines on the host's bridges: VLANs keep them apart, static addresses are reached, and nobody lies about who he is.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use hwm_core::backend::Workload;

use crate::lab::{Lab, config, variable};

/// The first three bytes of the network that the lab has on a VLAN.
fn vlan_net(vlan: u16) -> [u8; 3] {
    let nets = variable("HWM_TEST_VLAN_NETS");
    let lead = format!("{vlan}=");
    let net = nets
        .split_whitespace()
        .find_map(|n| n.strip_prefix(&lead))
        .unwrap();
    let bytes: Vec<u8> = net.split('.').map(|n| n.parse().unwrap()).collect();
    bytes.try_into().unwrap()
}

fn on(lab: &Lab, vlan: u16, net: [u8; 3], host: u8) -> (Workload, String) {
    let mut machine = lab.machine();
    let network = &mut config(&mut machine).network_config;
    let [a, b, c] = net;
    network.vlan_id = Some(vlan);
    network.ip_address = Some([a, b, c, host].into());
    network.gateway = Some([a, b, c, 1].into());
    (machine, format!("{a}.{b}.{c}.{host}"))
}

/// The guest's web page, as this host gets it.
fn page(address: &str) -> Option<String> {
    let address: SocketAddr = format!("{address}:80").parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(3)).ok()?;
    stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

#[tokio::test(flavor = "multi_thread")]
async fn vlans_keep_machines_apart_and_filters_keep_them_honest() {
    let lab = Lab::new("vlan").await;
    let net = vlan_net(100);
    let (one, one_address) = on(&lab, 100, net, 11);
    let (two, two_address) = on(&lab, 100, net, 12);
    // The third has an address of the others' network, so that nothing but the VLAN is between them.
    let (other, other_address) = on(&lab, 200, net, 13);
    for machine in [&one, &two, &other] {
        lab.begin(machine).await;
    }
    for machine in [&one, &two, &other] {
        lab.said(machine.id, "guest ready", Duration::from_secs(180))
            .await;
    }
    let reaches = async |from: &Workload, options: &str, to: &str| {
        let command = format!("ping -c 1 -W 2 {options} {to} >/dev/null && echo yes || echo no");
        lab.run(from.id, &command).await == "yes"
    };
    assert!(reaches(&one, "", &two_address).await, "the same VLAN");
    assert!(reaches(&two, "", &one_address).await, "the same VLAN");
    assert!(!reaches(&one, "", &other_address).await, "another VLAN");
    assert!(!reaches(&other, "", &one_address).await, "another VLAN");
    assert!(!reaches(&other, "", &two_address).await, "another VLAN");
    for address in [&one_address, &two_address] {
        let page = page(address).expect("the host is on the VLAN");
        assert!(page.contains(address.as_str()), "{page}");
    }
    assert_eq!(
        page(&other_address),
        None,
        "the host is on that VLAN with another network"
    );

    // With an address that is not its own, a machine is not heard; with its own it still is.
    let [a, b, c] = net;
    let gateway = format!("{a}.{b}.{c}.1");
    assert!(reaches(&one, "", &gateway).await);
    let stolen = format!("{a}.{b}.{c}.99");
    lab.run(one.id, &format!("ip address add {stolen}/24 dev eth0"))
        .await;
    assert!(
        !reaches(&one, &format!("-I {stolen}"), &gateway).await,
        "a stolen IP address"
    );
    assert!(reaches(&one, &format!("-I {one_address}"), &gateway).await);
    let steal =
        "ip link set eth0 down; ip link set eth0 address 52:00:00:00:00:99; ip link set eth0 up; sleep 1";
    lab.run(two.id, steal).await;
    assert!(!reaches(&two, "", &gateway).await, "a stolen hardware address");
    lab.clean().await;
}
