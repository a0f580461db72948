use std::collections::BTreeMap;
use std::io::Read;

use fatfs::{FileSystem, FsOptions};
use hwm_core::config::{CloudInit, NetworkConfig, NetworkKind};
use hwm_core::secret::Secret;
use hwm_core::units::Bytes;
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::Value;

use super::*;
use crate::catalog::Catalog;

const ID: ResourceId = ResourceId::from_u128(0x0190_0000_0000_7000_8000_00aa_bbcc_ddee);

fn machine(os: &str, static_address: bool, init: Option<CloudInit>) -> MachineConfig {
    MachineConfig {
        os_image: os.to_owned(),
        vcpus: 2,
        ram: Bytes::from_mb(1024),
        disk: Bytes::from_whole_gb(10),
        gpu_config: None,
        network_config: NetworkConfig {
            mode: NetworkKind::BridgeVlan,
            ip_mode: if static_address {
                IpMode::Static
            } else {
                IpMode::Dhcp
            },
            ip_address: static_address.then_some([192, 168, 100, 10].into()),
            netmask: static_address.then_some([255, 255, 255, 0].into()),
            gateway: static_address.then_some([192, 168, 100, 1].into()),
            vlan_id: None,
            dns: if static_address {
                vec![[9, 9, 9, 9].into()]
            } else {
                Vec::new()
            },
        },
        cloud_init: init,
    }
}

fn init() -> CloudInit {
    CloudInit {
        hostname: Some("web-1".into()),
        ssh_public_key: Some(
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFakeFakeFakeFakeFakeFakeFakeFakeFakeFake me@home".into(),
        ),
        username: Some("alice".into()),
        password: Some(Secret::new("hunter2")),
    }
}

fn seed(config: &MachineConfig) -> Result<Seed, SeedError> {
    let catalog = Catalog::built_in().unwrap();
    let image = catalog.find(&config.os_image).unwrap();
    Seed::new(
        ID,
        "Demo VM",
        config,
        image,
        ClearPassword::EraseAfterBoot,
        *b"saltsaltsalt",
    )
}

fn shown(seed: &Seed) -> String {
    format!(
        "{}\n---\n{}\n---\n{}",
        seed.meta_data, *seed.user_data, seed.network_config
    )
}

#[test]
fn a_static_linux_machine_has_user_key_hash_and_address() {
    insta::assert_snapshot!(shown(&seed(&machine("debian-12", true, Some(init()))).unwrap()));
}

#[test]
fn a_dhcp_machine_without_cloud_init_keeps_the_images_own_user() {
    insta::assert_snapshot!(shown(&seed(&machine("ubuntu-22.04", false, None)).unwrap()));
}

#[test]
fn windows_is_told_in_cloudbase_inits_words() {
    insta::assert_snapshot!(shown(
        &seed(&machine("windows-server-2022", true, Some(init()))).unwrap()
    ));
}

#[test]
fn a_clear_password_is_refused_unless_the_operator_chose_it() {
    let catalog = Catalog::built_in().unwrap();
    let image = catalog.find("windows-server-2019").unwrap();
    let config = machine("windows-server-2019", false, Some(init()));
    let refused = Seed::new(ID, "x", &config, image, ClearPassword::Refuse, [0; 12]);
    assert_eq!(refused.err(), Some(SeedError::ClearPassword));
}

#[test]
fn a_key_that_would_bring_a_second_line_is_refused() {
    let mut init = init();
    init.ssh_public_key = Some("ssh-ed25519 AAAA me\nssh-ed25519 AAAA evil".into());
    let refused = seed(&machine("debian-12", true, Some(init)));
    assert_eq!(
        refused.err(),
        Some(SeedError::ControlCharacter("cloudInit.sshPublicKey"))
    );
}

#[test]
fn host_names_come_out_of_labels() {
    assert_eq!(host_name("Demo Ubuntu GPU Server", ID), "demo-ubuntu-gpu-server");
    assert_eq!(host_name("  --Ä--  ", ID), "vm-00aabbccddee");
    assert_eq!(host_name("42", ID), "vm-00aabbccddee");
    assert_eq!(host_name(&"a ".repeat(100), ID).len(), 63);
}

fn files(image: &[u8]) -> BTreeMap<String, String> {
    let disk = std::io::Cursor::new(image[..MARKER_OFFSET as usize].to_vec());
    let file_system = FileSystem::new(disk, FsOptions::new()).unwrap();
    assert_eq!(file_system.volume_label(), "CIDATA");
    let root = file_system.root_dir();
    root.iter()
        .map(|entry| {
            let entry = entry.unwrap();
            let mut text = String::new();
            entry.to_file().read_to_string(&mut text).unwrap();
            (entry.file_name(), text)
        })
        .collect()
}

#[test]
fn the_image_holds_the_three_documents_and_the_mark() {
    let seed = seed(&machine("debian-12", true, Some(init()))).unwrap();
    let marker = Marker {
        owner: "node-1".into(),
        resource: ID,
    };
    let image = seed_image(&seed, &marker).unwrap();
    let files = files(&image);
    assert_eq!(
        files.keys().collect::<Vec<_>>(),
        ["meta-data", "network-config", "user-data"]
    );
    assert_eq!(files["user-data"], *seed.user_data);
    assert_eq!(Marker::parse(&image[MARKER_OFFSET as usize..]), Some(marker));
    assert!(!image.windows(7).any(|w| w == b"hunter2"));
}

#[test]
fn what_is_no_mark_is_none() {
    for bytes in [&b""[..], b"\0\0", b"{}", b"{\"owner\":1}", &[0xff; 64]] {
        assert_eq!(Marker::parse(bytes), None);
    }
}

/// Text as hostile as it gets, without the control characters that a seed refuses.
fn hostile() -> impl Strategy<Value = String> {
    prop_oneof![
        "\\PC{1,40}",
        proptest::sample::select(vec![
            "- a",
            "a: b",
            "#cloud-config",
            "{x}",
            "[x]",
            "*a",
            "&a",
            "!!str x",
            "'",
            "\"",
            "|",
            ">",
            "%TAG",
            "---",
            "...",
            "yes",
            "null",
            "~",
            "1e3",
            "0x10",
            "12:30:45",
            "=",
            "<<",
            "$(reboot)",
            "`reboot`",
            "; reboot",
            "]]>",
            "<x/>",
            "\u{2028}",
            "\u{85}x",
            " lead",
            "trail ",
            "runcmd: [reboot]",
            "\u{feff}x",
        ])
        .prop_map(str::to_owned),
    ]
    .prop_filter("refused", |s| !s.chars().any(char::is_control))
}

/// How often `value` stands in `document` as a whole value, and how many values there are.
fn count(document: &Value, value: &str) -> (usize, usize) {
    match document {
        Value::String(s) => (usize::from(s == value), 1),
        Value::Array(items) => sum(items.iter(), value),
        Value::Object(map) => sum(map.values(), value),
        _ => (0, 1),
    }
}

fn sum<'a>(items: impl Iterator<Item = &'a Value>, value: &str) -> (usize, usize) {
    items.fold((0, 0), |(a, b), item| {
        let (c, d) = count(item, value);
        (a + c, b + d)
    })
}

proptest! {
    // Eight times what PROPTEST_CASES says, so 2048 where it says nothing.
    #![proptest_config(ProptestConfig::with_cases(8 * ProptestConfig::default().cases))]
    #[test]
    fn no_value_leaves_its_place(user in hostile(), comment in hostile(), host in hostile()) {
        let plain = CloudInit { password: None, ..init() };
        let mut init = plain.clone();
        let key = format!("ssh-ed25519 AAAA {comment}").trim().to_owned();
        init.username = Some(format!("u{user}"));
        init.ssh_public_key = Some(key.clone());
        init.hostname = Some(format!("h{host}"));
        let plain = seed(&machine("debian-12", true, Some(plain))).unwrap();
        let seed = seed(&machine("debian-12", true, Some(init))).unwrap();
        let read = |text: &str| serde_saphyr::from_str::<Value>(text).expect("what was written can be read");
        let user_data = read(&seed.user_data);
        prop_assert_eq!(count(&user_data, &format!("u{user}")).0, 1);
        prop_assert_eq!(count(&user_data, &key).0, 1);
        prop_assert_eq!(count(&user_data, &format!("h{host}")).0, 1);
        prop_assert_eq!(count(&user_data, "").1, count(&read(&plain.user_data), "").1);
        prop_assert!(seed.user_data.starts_with("#cloud-config\n"));
        let meta_data = read(&seed.meta_data);
        prop_assert_eq!(count(&meta_data, "").1, 3);
        prop_assert_eq!(count(&meta_data, &key).0, 1);
    }
}

#[derive(Deserialize)]
struct HashOnly {
    users: Vec<BTreeMap<String, Value>>,
}

#[test]
fn the_password_is_a_hash_that_libcrypt_can_check() {
    let seed = seed(&machine("debian-12", true, Some(init()))).unwrap();
    let read: HashOnly = serde_saphyr::from_str(&seed.user_data).unwrap();
    let hash = read.users[0]["hashed_passwd"].as_str().unwrap();
    let fields: Vec<&str> = hash.split('$').collect();
    assert_eq!((fields[1], fields[2]), ("6", "rounds=5000"));
    assert_eq!(fields[3].len(), 16, "libcrypt reads 16 characters of salt");
    use sha_crypt::PasswordVerifier;
    let parsed = sha_crypt::PasswordHash::new(hash).unwrap();
    ShaCrypt::SHA512.verify_password(b"hunter2", &parsed).unwrap();
}
