//! A whole Debian on a real libvirt: what cloud-init makes of the seed, and what a snapshot brings back. Its boot
//! takes minutes where it is emulated. `scripts/lab debian-guest` builds the image (HWM_TEST_DEBIAN_GUEST).

#![allow(clippy::unwrap_used, clippy::print_stdout, dead_code)]

#[path = "../real/lab.rs"]
mod lab;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use hwm_core::backend::{Backend, Exec, ExecRequest, ObservedState, SnapshotSpec, Snapshots, StopOptions};
use hwm_core::config::CloudInit;
use hwm_core::id::SnapshotId;
use hwm_core::secret::Secret;
use hwm_core::snapshot::Consistency;
use hwm_core::units::Bytes;

use lab::{Lab, call, config, guest_image, new_id, variable};

fn ssh(folder: &Path, address: &str, command: &str) -> Option<String> {
    let output = Command::new("ssh")
        .args(["-i", folder.join("key").to_str().unwrap(), "-F", "none"])
        .args([
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
        ])
        .args([
            "-o",
            "BatchMode=yes",
            "-o",
            "ConnectTimeout=10",
            "-o",
            "LogLevel=ERROR",
        ])
        .arg(format!("alice@{address}"))
        .arg(command)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    output.status.success().then_some(said)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_debian_guest_is_set_up_and_brought_back() {
    let lab = Lab::with("debian", |options| {
        let catalog = options.image_catalog.clone().unwrap();
        let text = guest_image("debian-12", &variable("HWM_TEST_DEBIAN_GUEST"), "debian");
        std::fs::write(catalog, text).unwrap();
    })
    .await;
    let folder = lab.folder();
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "me at home", "-f"])
        .arg(folder.join("key"))
        .status()
        .unwrap();
    assert!(made.success());
    let mut machine = lab.machine();
    let id = machine.id;
    let wanted = config(&mut machine);
    wanted.ram = Bytes::from_mb(1024);
    wanted.vcpus = 2;
    wanted.cloud_init = Some(CloudInit {
        hostname: Some("deb-1".into()),
        ssh_public_key: Some(
            std::fs::read_to_string(folder.join("key.pub"))
                .unwrap()
                .trim()
                .into(),
        ),
        username: Some("alice".into()),
        password: Some(Secret::new("pässword: '1' #x")),
    });
    let address = wanted.network_config.ip_address.unwrap().to_string();
    let backend = &lab.backend;
    Backend::create(backend, &call(1), &machine).await.unwrap();
    backend.start(&call(1), &machine).await.unwrap();
    let begun = Instant::now();
    while ssh(&folder, &address, "cloud-init status --wait").is_none() {
        assert!(
            begun.elapsed() < Duration::from_secs(900),
            "no login: {}",
            lab.log(id).await
        );
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    println!("SSH after {:?}", begun.elapsed());
    let run = |command: &str| ssh(&folder, &address, command).unwrap_or_else(|| panic!("{command} failed"));
    assert_eq!(run("hostname"), "deb-1");
    assert_eq!(run("whoami"), "alice");
    assert_eq!(run("sudo -n whoami"), "root");
    assert!(run("ip -4 -o address").contains(&address));
    let bytes: u64 = run("df --output=size -B1 / | tail -n 1").trim().parse().unwrap();
    assert!(bytes > 9 << 30, "the root file system has {bytes} bytes");
    assert_eq!(run("cat .ssh/authorized_keys | wc -l"), "1");
    let check = "sudo python3 -W ignore -c 'import crypt, spwd; h = spwd.getspnam(\"alice\").sp_pwdp; \
                 print(crypt.crypt(\"pässword: \\x271\\x27 #x\", h) == h)'";
    assert_eq!(run(check), "True");
    assert_eq!(
        run("sudo cat /var/lib/cloud/data/instance-id"),
        format!("hwm-{id}")
    );

    assert_eq!(run("echo old >file; sync; cat file"), "old");
    let snapshot = |memory| SnapshotSpec {
        id: SnapshotId::from_u128(new_id().as_u128()),
        name: "before".into(),
        memory,
    };
    let whole = snapshot(None);
    let begun = Instant::now();
    let report = Snapshots::create(backend, &call(1), &machine, &whole)
        .await
        .unwrap();
    println!("{report:?} in {:?}", begun.elapsed());
    assert_eq!(report.consistency, Consistency::Memory);
    assert_eq!(run("echo new >file; sync; cat file"), "new");
    let frozen = snapshot(Some(false));
    let report = Snapshots::create(backend, &call(1), &machine, &frozen)
        .await
        .unwrap();
    assert_eq!(report.consistency, Consistency::Filesystem);
    assert!(backend.restore(&call(1), &machine, whole.id).await.unwrap());
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut said = None;
    while said.is_none() && Instant::now() < deadline {
        said = ssh(&folder, &address, "cat file");
    }
    assert_eq!(said.as_deref(), Some("old"));

    let request = ExecRequest {
        command: "cat /home/alice/file; id -u".into(),
        working_dir: None,
        timeout: Duration::from_secs(30),
        output_limit: 1000,
    };
    assert_eq!(backend.run(id, request).await.unwrap().stdout, "old\n0\n");
    backend.stop(&call(1), id, StopOptions::default()).await.unwrap();
    match lab.state(id).await {
        Some(ObservedState::Ended { cause: None, .. }) => {}
        other => panic!("{other:?}"),
    }
    lab.clean().await;
}
