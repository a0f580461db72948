//! The lab's libvirt, and a server on it with a pool and an owner label of its own.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use hwm_core::env::{Environment, SystemEnvironment};
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};

use crate::common::daemons::{domains, pool, remove_machines, variable, volumes};
use crate::common::{Server, program};

/// The tests share a libvirtd that some of them stop, and two cores: one at a time.
static ONE: Mutex<()> = Mutex::const_new(());

/// A place for servers; what a test that failed left in libvirt goes with it.
pub(crate) struct Lab {
    pub(crate) node: String,
    pub(crate) folder: tempfile::TempDir,
    _one: MutexGuard<'static, ()>,
}

impl Lab {
    pub(crate) async fn new() -> Self {
        let one = ONE.lock().await;
        let node = format!("test-{:016x}", SystemEnvironment.random() as u64);
        let folder = tempfile::tempdir().unwrap();
        // Nothing boots from it, and so it takes no CPU.
        let empty = folder.path().join("empty.img");
        std::fs::File::create(&empty).unwrap().set_len(1 << 20).unwrap();
        let image = |name: &str, format: &str, path: &str| {
            format!(
                "[[image]]\nname = \"{name}\"\nformat = \"{format}\"\nsource = \"file://{path}\"\nuser = \"root\"\n"
            )
        };
        let catalog = [
            image("tiny", "qcow2", &variable("HWM_TEST_GUEST")),
            image("empty", "raw", empty.to_str().unwrap()),
        ];
        std::fs::write(folder.path().join("images.toml"), catalog.concat()).unwrap();
        Self {
            node,
            folder,
            _one: one,
        }
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub(crate) fn pool(&self) -> String {
        pool(&self.node)
    }

    /// What says where libvirt and its images are.
    pub(crate) fn images(&self) -> Vec<String> {
        let catalog = self.folder.path().join("images.toml");
        let pairs = [
            ("--libvirt-uri", variable("HWM_TEST_LIBVIRT_URI")),
            ("--image-catalog", catalog.to_str().unwrap().to_owned()),
            ("--pool", self.pool()),
        ];
        pairs
            .into_iter()
            .flat_map(|(flag, value)| [flag.to_owned(), value])
            .collect()
    }

    pub(crate) fn start(&self) -> Server {
        let mut command = program();
        command
            .args([
                "--listen",
                "127.0.0.1:0",
                "--containers",
                "none",
                "--gpus",
                "none",
            ])
            .args([
                "--machines",
                "libvirt",
                "--caller-rate",
                "0",
                "--node-id",
                &self.node,
            ])
            .args(self.images())
            .args(["--bridge", &variable("HWM_TEST_BRIDGE")])
            .args(["--domain-type", &variable("HWM_TEST_DOMAIN_TYPE")])
            .arg("--data-dir")
            .arg(self.data());
        Server::spawn(&mut command)
    }

    /// The domains that carry our label, whatever they do.
    pub(crate) fn domains(&self) -> BTreeSet<String> {
        domains(&self.node)
    }

    /// The volumes in our pool, but for images.
    pub(crate) fn volumes(&self) -> Vec<String> {
        volumes(&self.node)
    }

    /// Nothing of ours is in libvirt.
    pub(crate) fn assert_empty(&self) {
        assert_eq!(self.domains(), BTreeSet::new());
        assert_eq!(self.volumes(), Vec::<String>::new());
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        remove_machines(&self.node);
    }
}

/// An address on the lab's bridge, each another; others' tests take 10 to 89, and DHCP what is above 99.
fn address() -> (String, String) {
    static NEXT: AtomicU8 = AtomicU8::new(0);
    let net = variable("HWM_TEST_BRIDGE_NET");
    let host = 200 + NEXT.fetch_add(1, Ordering::Relaxed) % 50;
    (format!("{net}.{host}"), format!("{net}.1"))
}

/// The body of a machine with a static address.
pub(crate) fn machine(name: &str, image: &str) -> Value {
    let (address, gateway) = address();
    json!({
        "name": name,
        "resourceType": "virtual-machine",
        "config": {
            "type": "virtual-machine",
            "osImage": image,
            "vcpus": 1,
            "ramMB": 512,
            "diskGB": 10,
            "networkConfig": {
                "mode": "bridge-vlan",
                "ipMode": "static",
                "ipAddress": address,
                "netmask": "255.255.255.0",
                "gateway": gateway,
            },
        },
    })
}

/// A key pair for SSH.
pub(crate) struct Key(PathBuf);

impl Key {
    pub(crate) fn make(folder: &Path) -> (Self, String) {
        let path = folder.join("key");
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "me at home", "-f"])
            .arg(&path)
            .status();
        assert!(made.unwrap().success());
        let public = std::fs::read_to_string(path.with_extension("pub")).unwrap();
        (Self(path), public.trim().to_owned())
    }

    /// What a command prints, run as `alice` over SSH; none where there is no login.
    pub(crate) fn ssh(&self, address: &str, command: &str) -> Option<String> {
        let mut ssh = Command::new("ssh");
        ssh.arg("-i").arg(&self.0).args(["-F", "none"]);
        for option in [
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "BatchMode=yes",
            "ConnectTimeout=5",
            "LogLevel=ERROR",
        ] {
            ssh.args(["-o", option]);
        }
        let output = ssh.arg(format!("alice@{address}")).arg(command).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success().then_some(said)
    }

    /// The same, as soon as there is a login.
    pub(crate) async fn ssh_soon(&self, address: &str, command: &str) -> String {
        let begun = Instant::now();
        loop {
            if let Some(said) = self.ssh(address, command) {
                return said;
            }
            assert!(
                begun.elapsed() < Duration::from_secs(120),
                "no login at {address}"
            );
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}
