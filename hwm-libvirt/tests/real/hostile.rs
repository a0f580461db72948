//! Images made to have QEMU read what is not theirs: each is refused before anything opens it.

use std::path::Path;
use std::process::Command;

use hwm_core::backend::{Backend, BackendErrorKind, ProgressSink};

use crate::lab::{Lab, call, config, virsh};

const CANARY: &[u8] = b"canary-of-the-host";

fn qemu_img(folder: &Path, arguments: &[&str]) {
    let done = Command::new("qemu-img")
        .current_dir(folder)
        .args(arguments)
        .output()
        .unwrap();
    assert!(done.status.success(), "{arguments:?}: {done:?}");
}

/// Makes the images, and answers the name and the format under which a catalogue has each.
fn make(folder: &Path) -> Vec<(&'static str, &'static str)> {
    let mut canary = CANARY.repeat(1 << 16);
    canary.resize(1 << 21, b'c');
    std::fs::write(folder.join("canary"), canary).unwrap();
    let mut made = Vec::new();
    // By QEMU's own tool.
    for (name, catalogued, arguments) in [
        ("backing-raw", "qcow2", "-f qcow2 -b canary -F raw"),
        ("backing-old", "qcow2", "-f qcow2 -o compat=0.10 -b canary -F raw"),
        (
            "backing-large-clusters",
            "qcow2",
            "-f qcow2 -o cluster_size=2M -b canary -F raw",
        ),
        ("backing-shadow", "qcow2", "-f qcow2 -u -b /etc/shadow -F raw 1M"),
        (
            "backing-nbd",
            "qcow2",
            "-f qcow2 -u -b nbd://127.0.0.1/x -F raw 1M",
        ),
        (
            "backing-json",
            "qcow2",
            "-f qcow2 -u -b json:{\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":\"canary\"}} -F raw 1M",
        ),
        ("backing-fd", "qcow2", "-f qcow2 -u -b /proc/self/fd/0 -F raw 1M"),
        (
            "data-raw",
            "qcow2",
            "-f qcow2 -o data_file=data-1,data_file_raw=on 1M",
        ),
        ("data-plain", "qcow2", "-f qcow2 -o data_file=data-2 1M"),
        (
            "encrypted",
            "qcow2",
            "-f qcow2 --object secret,id=s,data=s -o encrypt.format=aes,encrypt.key-secret=s 1M",
        ),
        ("disguised-qcow2", "raw", "-f qcow2 1M"),
        ("disguised-backing", "raw", "-f qcow2 -b canary -F raw"),
        ("disguised-qed", "raw", "-f qed 1M"),
        ("disguised-vmdk", "raw", "-f vmdk 1M"),
        (
            "disguised-vmdk-flat",
            "raw",
            "-f vmdk -o subformat=monolithicFlat 1M",
        ),
        ("disguised-vhdx", "raw", "-f vhdx 1M"),
        ("disguised-vpc", "raw", "-f vpc 1M"),
        ("disguised-vdi", "raw", "-f vdi 1M"),
        ("disguised-parallels", "raw", "-f parallels 1M"),
        ("vmdk", "qcow2", "-f vmdk 1M"),
        ("qed", "qcow2", "-f qed 1M"),
    ] {
        let mut words: Vec<&str> = arguments.split(' ').collect();
        let size = words.pop_if(|w| *w == "1M");
        words.push(name);
        words.extend(size);
        qemu_img(folder, &[&["create", "-q"][..], &words].concat());
        made.push((name, catalogued));
    }
    // By hand: what no tool makes.
    qemu_img(folder, &["create", "-q", "-f", "qcow2", "plain", "1M"]);
    qemu_img(
        folder,
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            "data_file=data-3",
            "data",
            "1M",
        ],
    );
    let header = |name: &'static str, of: &str, at: usize, bytes: &[u8]| {
        let mut image = std::fs::read(folder.join(of)).unwrap();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        std::fs::write(folder.join(name), image).unwrap();
        name
    };
    let by_hand = [
        header("data-unmarked", "data", 79, &[0]),
        header("backing-without-length", "plain", 8, &0x200u64.to_be_bytes()),
        header("backing-without-place", "plain", 16, &9u32.to_be_bytes()),
        header("luks-inside", "plain", 32, &2u32.to_be_bytes()),
        header("unknown-feature", "plain", 72, &[0x80]),
        header("version-4", "plain", 4, &4u32.to_be_bytes()),
        header("huge-clusters", "plain", 20, &63u32.to_be_bytes()),
        header("short-header", "plain", 100, &8u32.to_be_bytes()),
        header("endless-extension", "plain", 112, b"abcd\xff\xff\xff\xff"),
    ];
    made.extend(by_hand.map(|name| (name, "qcow2")));
    std::fs::write(folder.join("cut-off"), b"QFI\xfb\0\0\0\x03").unwrap();
    std::fs::write(folder.join("nothing"), b"").unwrap();
    std::fs::write(
        folder.join("disguised-luks"),
        [&b"LUKS\xba\xbe\0\x01"[..], &[0; 504]].concat(),
    )
    .unwrap();
    let descriptor =
        "# Disk DescriptorFile\nversion=1\ncreateType=\"monolithicFlat\"\nRW 2048 FLAT \"canary\" 0\n";
    std::fs::write(folder.join("disguised-descriptor"), descriptor).unwrap();
    made.extend([
        ("cut-off", "qcow2"),
        ("nothing", "qcow2"),
        ("disguised-descriptor", "raw"),
        ("disguised-luks", "raw"),
        ("canary", "qcow2"),
    ]);
    made
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_reads_other_files_is_refused() {
    let mut made = Vec::new();
    let lab = Lab::with("hostile", |options| {
        let catalog = options.image_catalog.clone().unwrap();
        let folder = catalog.parent().unwrap().to_owned();
        made = make(&folder);
        let entry = |(name, format): &(&str, &str)| {
            format!(
                "[[image]]\nname = \"{name}\"\nformat = \"{format}\"\nuser = \"u\"\nsource = \"file://{}/{name}\"\n",
                folder.display()
            )
        };
        let mut text: Vec<String> = made.iter().map(entry).collect();
        text.push(entry(&("missing", "qcow2")));
        text.push(entry(&("empty.img", "raw")));
        std::fs::write(catalog, text.concat()).unwrap();
    })
    .await;
    assert!(made.len() >= 30, "{} images", made.len());
    let backend = &lab.backend;
    for (name, _) in &made {
        let refused = backend.pull_image(name, &ProgressSink::default()).await;
        let refused = refused.expect_err(name);
        assert_eq!(refused.kind, BackendErrorKind::Invalid, "{name}: {refused}");
        assert!(!refused.message.contains("canary-of"), "{refused}");
    }
    let missing = backend
        .pull_image("missing", &ProgressSink::default())
        .await
        .unwrap_err();
    assert_eq!(missing.kind, BackendErrorKind::NotFound);
    assert!(!virsh(&["vol-list", &lab.options.pool]).contains("hwm-image"));

    // The layout of what a disk is made on is written down, and not looked for in its bytes.
    let mut machine = lab.machine();
    config(&mut machine).os_image = "empty.img".into();
    backend.create(&call(1), &machine).await.unwrap();
    let disk = format!("hwm-{}.qcow2", machine.id);
    let xml = virsh(&["vol-dumpxml", "--pool", &lab.options.pool, &disk]);
    let backing = xml.split_once("<backingStore>").unwrap().1;
    assert!(backing.contains("<format type='raw'/>"), "{xml}");
    lab.clean().await;
}
