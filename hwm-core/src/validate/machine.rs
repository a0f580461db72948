//! The rules of a virtual machine.

use std::net::Ipv4Addr;

use ipnet::{Ipv4Net, ipv4_mask_to_prefix};

use super::object::Object;
use super::reader::{Field, one_of};
use super::{gpu, limits, secret, text};
use crate::config::{CloudInit, Config, IpMode, MachineConfig, NetworkConfig, NetworkKind};
use crate::units::Bytes;

const IP_MODES: [(&str, IpMode); 2] = [("static", IpMode::Static), ("dhcp", IpMode::Dhcp)];

pub(super) fn config(fields: &Object<'_>, previous: Option<&Config>) -> Option<MachineConfig> {
    let previous = match previous {
        Some(Config::Machine(machine)) => Some(machine),
        Some(Config::Container(_) | Config::Inference(_)) | None => None,
    };
    let os_image = fields.required("osImage", |f| os_image(f, previous));
    let vcpus = fields.required("vcpus", |f| f.integer(1..=128));
    let ram = fields.required("ramMB", |f| f.integer(limits::RAM_MB));
    let disk = fields.required("diskGB", |f| disk(f, previous));
    let gpu_config = fields.optional("gpuConfig", gpu::machine);
    let network_config = fields.required("networkConfig", network);
    let cloud_init = fields.optional("cloudInit", cloud_init);
    Some(MachineConfig {
        os_image: os_image?,
        vcpus: vcpus?,
        ram: Bytes::from_mb(ram?),
        disk: disk?,
        gpu_config,
        network_config: network_config?,
        cloud_init,
    })
}

fn os_image(field: &Field<'_>, previous: Option<&MachineConfig>) -> Option<String> {
    let images = &field.cx.rules.os_images;
    let known = one_of(images.iter().map(String::as_str));
    let expected = if images.is_empty() {
        "a name in the operator's image catalogue, which is empty"
    } else {
        &known
    };
    let name = field.text_that_is(expected)?;
    match previous {
        // An image may leave the catalogue; what was made from it stays.
        Some(previous) if previous.os_image == name => {}
        Some(_) => {
            return field.refuse("cannot be changed, as the disk was made from it: create another machine");
        }
        None if images.contains(name) => {}
        None => return field.refuse(format!("must be {expected}")),
    }
    Some(name.to_owned())
}

fn disk(field: &Field<'_>, previous: Option<&MachineConfig>) -> Option<Bytes> {
    let disk = Bytes::from_whole_gb(field.integer(limits::DISK_GB)?);
    match previous {
        Some(previous) if disk < previous.disk => field.refuse(format!(
            "cannot shrink, as that would cut off what the guest wrote: it must be at least {}",
            previous.disk.as_gb()
        )),
        _ => Some(disk),
    }
}

fn network(field: &Field<'_>) -> Option<NetworkConfig> {
    let fields = field.object()?;
    let mode = fields.required("mode", |f| f.word(&[("bridge-vlan", NetworkKind::BridgeVlan)]));
    let ip_mode = fields.required("ipMode", |f| f.word(&IP_MODES));
    let vlan_id = fields.optional("vlanId", |f| f.integer(1..=4094));
    let dns = fields.optional("dns", name_servers);
    let [ip_address, netmask, gateway] = match ip_mode {
        Some(IpMode::Static) => addressing(&fields),
        Some(IpMode::Dhcp) => {
            for name in ["ipAddress", "netmask", "gateway"] {
                fields.field(name);
                fields.absent(
                    name,
                    "has no meaning with ipMode \"dhcp\": remove it, or set ipMode to \"static\"",
                );
            }
            [None; 3]
        }
        None => ["ipAddress", "netmask", "gateway"].map(|name| fields.optional(name, address)),
    };
    fields.finish();
    Some(NetworkConfig {
        mode: mode?,
        ip_mode: ip_mode?,
        ip_address,
        netmask,
        gateway,
        vlan_id,
        dns: dns.unwrap_or_default(),
    })
}

/// A static address, its mask and its gateway, which must fit each other.
fn addressing(fields: &Object<'_>) -> [Option<Ipv4Addr>; 3] {
    let ip_address = fields.required("ipAddress", host_address);
    let netmask = fields.required("netmask", |f| {
        let mask = address(f)?;
        match ipv4_mask_to_prefix(mask) {
            Ok(1..=30) => Some(mask),
            Ok(_) => f.refuse("must leave room for an address and a gateway: 128.0.0.0 to 255.255.255.252"),
            Err(_) => f.refuse("must be a mask of leading ones, such as 255.255.255.0"),
        }
    });
    let gateway = fields.required("gateway", host_address);
    if let (Some(ip), Some(mask)) = (ip_address, netmask)
        && let Ok(subnet) = Ipv4Net::with_netmask(ip, mask)
    {
        let inner = |name: &str, address: Ipv4Addr| {
            if address == subnet.network() {
                fields.broken(
                    name,
                    format!(
                        "must not be the network address of {}: choose a host's",
                        subnet.trunc()
                    ),
                );
            } else if address == subnet.broadcast() {
                fields.broken(
                    name,
                    format!(
                        "must not be the broadcast address of {}: choose a host's",
                        subnet.trunc()
                    ),
                );
            }
        };
        inner("ipAddress", ip);
        match gateway {
            Some(gateway) if !subnet.contains(&gateway) => fields.broken(
                "gateway",
                format!(
                    "must be inside the subnet of ipAddress and netmask, {}",
                    subnet.trunc()
                ),
            ),
            Some(gateway) if gateway == ip => {
                fields.broken("gateway", "must be another address than ipAddress");
            }
            Some(gateway) => inner("gateway", gateway),
            None => {}
        }
    }
    [ip_address, netmask, gateway]
}

fn address(field: &Field<'_>) -> Option<Ipv4Addr> {
    let text = field.text_that_is("an IPv4 address such as 192.168.100.10")?;
    let address = text.parse().ok();
    address.or_else(|| field.refuse("must be an IPv4 address such as 192.168.100.10"))
}

/// An address that a host on a network can have.
fn host_address(field: &Field<'_>) -> Option<Ipv4Addr> {
    let address = address(field)?;
    // 240.0.0.0/4 is reserved, and no guest takes an address of it.
    let reserved = address.octets()[0] == 0 || address.octets()[0] >= 224;
    if reserved || address.is_loopback() {
        return field.refuse("must be the address of a host: not in 0/8, 127/8, multicast or reserved");
    }
    Some(address)
}

fn name_servers(field: &Field<'_>) -> Option<Vec<Ipv4Addr>> {
    let servers = field.items(limits::NAME_SERVERS, |f| {
        let server = address(f)?;
        if server.is_unspecified() || server.is_multicast() || server.is_broadcast() {
            return f.refuse("must be the address of one name server");
        }
        Some(server)
    })?;
    field.distinct(&servers, "", |server| Some(*server));
    Some(servers.into_iter().flatten().collect())
}

fn cloud_init(field: &Field<'_>) -> Option<CloudInit> {
    let fields = field.object()?;
    let hostname = fields.optional("hostname", text::hostname);
    let ssh_public_key = fields.optional("sshPublicKey", text::public_key);
    let username = fields.optional("username", text::username);
    let password = fields.optional("password", |f| {
        secret(f, "cloudInit.password", |f| text::credential(f, limits::PASSWORD))
    });
    fields.finish();
    Some(CloudInit {
        hostname,
        ssh_public_key,
        username,
        password,
    })
}
