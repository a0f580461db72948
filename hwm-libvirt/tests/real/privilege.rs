//! What a machine may: its whole domain as libvirt has it, and its QEMU as the kernel has it.

use std::collections::HashSet;
use std::path::PathBuf;

use hwm_core::backend::Backend;
use hwm_core::id::ResourceId;

use crate::lab::{Lab, call, config, virsh};

/// The folder in /proc of a machine's QEMU.
pub(crate) fn qemu(id: ResourceId) -> PathBuf {
    let name = format!("guest=hwm-{id}");
    let all = std::fs::read_dir("/proc").unwrap().flatten().map(|e| e.path());
    all.into_iter()
        .find(|process| {
            let command = std::fs::read(process.join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command);
            command.starts_with("/usr/bin/qemu-system") && command.contains(&name)
        })
        .unwrap_or_else(|| panic!("no QEMU of {name}"))
}

/// The inodes of the host's TCP and UDP sockets.
fn sockets_of_the_host() -> HashSet<String> {
    let mut inodes = HashSet::new();
    for table in ["tcp", "tcp6", "udp", "udp6"] {
        let text = std::fs::read_to_string(format!("/proc/net/{table}")).unwrap();
        inodes.extend(
            text.lines()
                .skip(1)
                .filter_map(|line| line.split_whitespace().nth(9).map(str::to_owned)),
        );
    }
    inodes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_may_what_it_must_and_no_more() {
    let lab = Lab::new("least").await;
    let mut machine = lab.machine();
    config(&mut machine).os_image = "empty".into();
    lab.begin(&machine).await;
    let id = machine.id;
    let xml = virsh(&["dumpxml", &id.to_string()]);
    let golden = include_str!("golden/domain.xml");
    let plain = plain(&xml, &lab, id);
    if std::env::var_os("HWM_TEST_WRITE_GOLDEN").is_some() {
        std::fs::write(
            concat!(env!("CARGO_MANIFEST_DIR"), "/tests/real/golden/domain.xml"),
            &plain,
        )
        .unwrap();
    } else {
        for (found, wanted) in plain.lines().zip(golden.lines()) {
            assert_eq!(
                found, wanted,
                "the domain differs from tests/real/golden/domain.xml"
            );
        }
        assert_eq!(plain.lines().count(), golden.lines().count());
    }

    let process = qemu(id);
    let command = std::fs::read(process.join("cmdline")).unwrap();
    let command = String::from_utf8_lossy(&command).replace('\0', " ");
    let sandbox = "-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
    assert!(command.contains(sandbox), "{command}");
    let status = std::fs::read_to_string(process.join("status")).unwrap();
    let user = status.lines().find(|l| l.starts_with("Uid:")).unwrap();
    assert!(user.split_whitespace().skip(1).all(|id| id != "0"), "{user}");
    let of_the_host = sockets_of_the_host();
    for file in std::fs::read_dir(process.join("fd")).unwrap().flatten() {
        let Ok(target) = std::fs::read_link(file.path()) else {
            continue;
        };
        let target = target.to_string_lossy().into_owned();
        if let Some(inode) = target.strip_prefix("socket:[").and_then(|t| t.strip_suffix(']')) {
            assert!(!of_the_host.contains(inode), "QEMU has a socket on the network");
        }
    }
    lab.backend.remove(&call(2), id).await.unwrap();
    lab.clean().await;
}

/// Without what is another each time.
fn plain(xml: &str, lab: &Lab, id: ResourceId) -> String {
    let text = id.to_string();
    let mut plain = String::new();
    for line in xml.lines() {
        let mut line = line
            .replace(&text, "ID")
            .replace(&lab.options.owner, "OWNER")
            .replace(&lab.options.pool, "POOL")
            .replace(&lab.options.bridge, "BRIDGE");
        for (lead, end) in [
            ("<mac address='", "'"),
            ("<target dev='vnet", "'"),
            ("domain type='qemu' id='", "'"),
            ("started=\"", "\""),
            ("address=\"", "\""),
            ("name='IP' value='", "'"),
            ("pc-q35-", "'"),
            ("hwm-image-empty-", ".img"),
            ("/dev/pts/", "'"),
            ("domain-", "/"),
        ] {
            if let Some((before, rest)) = line.split_once(lead)
                && let Some((_, after)) = rest.split_once(end)
            {
                line = format!("{before}{lead}…{end}{after}");
            }
        }
        plain.push_str(line.trim_end());
        plain.push('\n');
    }
    plain
}
