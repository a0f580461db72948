//! What a guest reads at its first boot: a NoCloud seed, as cloud-init and cloudbase-init understand it.
//!
//! The documents are written from typed values by a YAML library, so no value can end its place; a password
//! goes in as a salted hash where the guest can take one.

mod image;

use std::net::Ipv4Addr;

use hwm_core::config::{IpMode, MachineConfig};
use hwm_core::id::ResourceId;
use serde::Serialize;
use sha_crypt::{PasswordHasher, ShaCrypt};
use zeroize::Zeroizing;

use crate::catalog::{Guest, Image};
use crate::mac::MacAddress;

pub(crate) use image::{MARKER_BYTES, MARKER_OFFSET};
pub(crate) use image::{Marker, SEED_BYTES, seed_image};

/// The three documents of a seed. They hold secrets and have no `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Seed {
    /// Which instance this is.
    pub meta_data: String,
    /// Users, keys and host name.
    pub user_data: Zeroizing<String>,
    /// Netplan's form, version 2.
    pub network_config: String,
}

/// Whether a clear-text password may be written for a guest that takes no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClearPassword {
    /// A machine that would need one is refused.
    #[default]
    Refuse,
    /// It is written, and erased once the guest has booted.
    EraseAfterBoot,
}

/// Why no seed can be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SeedError {
    /// A value holds what could end its line on the guest.
    #[error("{0} holds a control character")]
    ControlCharacter(&'static str),
    /// The guest takes a password only in clear.
    #[error(
        "this guest takes a password only in clear text, which this server does not write: leave cloudInit.password out"
    )]
    ClearPassword,
    /// The static address is not whole.
    #[error("a static network needs ipAddress, netmask and gateway")]
    Address,
    /// The password could not be hashed.
    #[error("the password could not be hashed")]
    Hash,
    /// A document could not be written.
    #[error("a document could not be written")]
    Write,
}

#[derive(Serialize)]
struct MetaData<'a> {
    #[serde(rename = "instance-id")]
    instance_id: String,
    #[serde(rename = "local-hostname")]
    local_hostname: &'a str,
    #[serde(rename = "public-keys", skip_serializing_if = "Vec::is_empty")]
    public_keys: Vec<&'a str>,
}

#[derive(Serialize)]
struct LinuxUserData<'a> {
    hostname: &'a str,
    preserve_hostname: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    users: Vec<LinuxUser<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ssh_pwauth: Option<bool>,
}

#[derive(Serialize)]
struct LinuxUser<'a> {
    name: &'a str,
    shell: &'static str,
    sudo: &'static str,
    lock_passwd: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    hashed_passwd: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ssh_authorized_keys: Vec<&'a str>,
}

#[derive(Serialize)]
struct WindowsUserData<'a> {
    set_hostname: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    users: Vec<WindowsUser<'a>>,
}

#[derive(Serialize)]
struct WindowsUser<'a> {
    name: &'a str,
    primary_group: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    passwd: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ssh_authorized_keys: Vec<&'a str>,
}

#[derive(Serialize)]
struct NetworkConfig {
    version: u8,
    ethernets: Ethernets,
}

#[derive(Serialize)]
struct Ethernets {
    primary: Ethernet,
}

#[derive(Serialize)]
struct Ethernet {
    #[serde(rename = "match")]
    matches: Match,
    dhcp4: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    addresses: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    routes: Vec<Route>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nameservers: Option<NameServers>,
}

#[derive(Serialize)]
struct Match {
    macaddress: String,
}

#[derive(Serialize)]
struct Route {
    to: &'static str,
    via: Ipv4Addr,
}

#[derive(Serialize)]
struct NameServers {
    addresses: Vec<Ipv4Addr>,
}

impl Seed {
    /// The seed of a machine. `salt` is random, and only its first 12 bytes matter: what they encode to is the
    /// longest salt that libcrypt reads. `name` is the host name's stand-in.
    ///
    /// # Errors
    /// A value that no seed may carry.
    pub(crate) fn new(
        id: ResourceId,
        name: &str,
        config: &MachineConfig,
        image: &Image,
        clear: ClearPassword,
        salt: [u8; 12],
    ) -> Result<Self, SeedError> {
        let init = config.cloud_init.as_ref();
        let fallback = host_name(name, id);
        let hostname = init.and_then(|i| i.hostname.as_deref()).unwrap_or(&fallback);
        let key = init.and_then(|i| i.ssh_public_key.as_deref()).map(str::trim);
        let user = init.and_then(|i| i.username.as_deref()).unwrap_or(&image.user);
        let password = init.and_then(|i| i.password.as_ref()).map(|p| p.expose());
        for (what, value) in [
            ("cloudInit.hostname", Some(hostname)),
            ("cloudInit.sshPublicKey", key),
            ("cloudInit.username", Some(user)),
        ] {
            if value.is_some_and(|v| v.chars().any(char::is_control)) {
                return Err(SeedError::ControlCharacter(what));
            }
        }
        let keys: Vec<&str> = key.into_iter().collect();
        let user_data = match image.guest {
            Guest::Linux => yaml(&LinuxUserData {
                hostname,
                preserve_hostname: false,
                users: if init.is_some() {
                    vec![LinuxUser {
                        name: user,
                        shell: "/bin/bash",
                        sudo: "ALL=(ALL) NOPASSWD:ALL",
                        lock_passwd: password.is_none(),
                        hashed_passwd: password.map(|p| hash(p, salt)).transpose()?,
                        ssh_authorized_keys: keys.clone(),
                    }]
                } else {
                    Vec::new()
                },
                ssh_pwauth: password.map(|_| true),
            })?,
            Guest::Windows => {
                if password.is_some() && clear == ClearPassword::Refuse {
                    return Err(SeedError::ClearPassword);
                }
                yaml(&WindowsUserData {
                    set_hostname: hostname,
                    users: if init.is_some() {
                        vec![WindowsUser {
                            name: user,
                            primary_group: "Administrators",
                            passwd: password,
                            ssh_authorized_keys: keys.clone(),
                        }]
                    } else {
                        Vec::new()
                    },
                })?
            }
        };
        Ok(Self {
            meta_data: yaml(&MetaData {
                instance_id: format!("hwm-{id}"),
                local_hostname: hostname,
                public_keys: keys,
            })?,
            user_data: Zeroizing::new(format!("#cloud-config\n{user_data}")),
            network_config: yaml(&network_config(id, config)?)?,
        })
    }
}

fn yaml(document: &impl Serialize) -> Result<String, SeedError> {
    // Whole values on one line each: not every guest's reader knows folded text.
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
    serde_saphyr::to_string_with_options(document, options).map_err(|_| SeedError::Write)
}

fn hash(password: &str, salt: [u8; 12]) -> Result<String, SeedError> {
    ShaCrypt::SHA512
        .hash_password_with_salt(password.as_bytes(), &salt)
        .map(|hash| hash.as_str().to_owned())
        .map_err(|_| SeedError::Hash)
}

fn network_config(id: ResourceId, config: &MachineConfig) -> Result<NetworkConfig, SeedError> {
    let network = &config.network_config;
    let (dhcp4, addresses, routes) = match network.ip_mode {
        IpMode::Dhcp => (true, Vec::new(), Vec::new()),
        IpMode::Static => {
            let (Some(address), Some(mask), Some(via)) =
                (network.ip_address, network.netmask, network.gateway)
            else {
                return Err(SeedError::Address);
            };
            let net = ipnet::Ipv4Net::with_netmask(address, mask).map_err(|_| SeedError::Address)?;
            let route = Route { to: "0.0.0.0/0", via };
            (false, vec![net.to_string()], vec![route])
        }
    };
    Ok(NetworkConfig {
        version: 2,
        ethernets: Ethernets {
            primary: Ethernet {
                matches: Match {
                    macaddress: MacAddress::of(id).to_string(),
                },
                dhcp4,
                addresses,
                routes,
                nameservers: (!network.dns.is_empty()).then(|| NameServers {
                    addresses: network.dns.clone(),
                }),
            },
        },
    })
}

/// A host name out of a label: its letters, digits and dashes, or the end of the id where none are left.
fn host_name(label: &str, id: ResourceId) -> String {
    let kept: String = label
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '-'
            }
        })
        .collect();
    let words: Vec<&str> = kept.split('-').filter(|w| !w.is_empty()).collect();
    let name: String = words.join("-").chars().take(63).collect();
    let name = name.trim_end_matches('-');
    if name.is_empty() || name.bytes().all(|b| b.is_ascii_digit()) {
        let id = id.to_string();
        format!("vm-{}", &id[id.len() - 12..])
    } else {
        name.to_owned()
    }
}

#[cfg(test)]
mod tests;
