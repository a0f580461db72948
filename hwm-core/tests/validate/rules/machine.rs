//! Virtual machines: image, size, guest.

use hwm_core::config::Config;
use hwm_core::validate::create_request;
use serde_json::json;

use super::{all, machine, refuses, set, takes, texts};
use crate::samples::{self, PUBLIC_KEY};

#[test]
fn an_image_is_one_of_the_operators_catalogue() {
    takes(
        &machine(),
        "/config/osImage",
        texts([
            "ubuntu-22.04",
            "ubuntu-20.04",
            "centos-8",
            "centos-7",
            "windows-server-2022",
            "windows-server-2019",
            "debian-12",
            "debian-11",
        ]),
    );
    refuses(
        &machine(),
        "/config/osImage",
        all(["Debian-12", "", "../debian-12"], "must be \"centos-7\","),
    );
    let mut rules = samples::rules();
    rules.os_images = ["tiny".to_owned()].into();
    let body = set(machine(), "/config/osImage", json!("tiny"));
    assert!(create_request(&body, &rules).is_ok());
    let found = create_request(&machine(), &rules).unwrap_err();
    assert_eq!(found[0].to_string(), "config.osImage: must be \"tiny\"");
}

#[test]
fn the_size_of_a_machine_has_bounds() {
    for (field, low, high) in [
        ("vcpus", 1, 128),
        ("ramMB", 512, 67_108_864),
        ("diskGB", 10, 1_048_576),
    ] {
        let pointer = format!("/config/{field}");
        takes(&machine(), &pointer, [json!(low), json!(high), json!(low as f64)]);
        for value in [
            json!(low - 1),
            json!(high + 1),
            json!(-1),
            json!(u64::MAX),
            json!(1e300),
        ] {
            refuses(&machine(), &pointer, [(value, "must be between")]);
        }
        refuses(
            &machine(),
            &pointer,
            [(json!(low as f64 + 0.5), "not a fraction")],
        );
    }
}

#[test]
fn a_host_name_is_one_of_rfc_1123() {
    let label = "x".repeat(63);
    let name = [label.as_str(); 3].join(".") + "." + &"x".repeat(61);
    let pointer = "/config/cloudInit/hostname";
    takes(
        &machine(),
        pointer,
        texts([
            "a",
            "3com",
            "web-1.example.com",
            "WEB",
            "1.2.3.4.5",
            &label,
            &name,
        ]),
    );
    refuses(
        &machine(),
        pointer,
        all(
            [
                "",
                "-a",
                "a-",
                "a_b",
                "a..b",
                "a.",
                ".a",
                "a b",
                "a\nb",
                "ü",
                &format!("{label}x"),
                &format!("{name}x"),
            ],
            "must be a host name (RFC 1123)",
        ),
    );
    refuses(&machine(), pointer, all(["192.168.0.1"], "not an IP address"));
}

#[test]
fn a_public_key_is_one_line_in_openssh_format() {
    let pointer = "/config/cloudInit/sshPublicKey";
    let rsa = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABgQDPHb3Wp74bdAUEHE3FxNRfoP1byMck++24cTZiauJCtVZ8rxFuAELv4\
        Sx7ERBDFZpuNDbmR1Aw2CJ4O3hidgQU0k+rpht2FFFDrT2agnpo4O9ZWnfIpuWl4PiS+jWqU/TUPYwxu6jnmIto3M1gqmb4XxCRg\
        jAiiUcys0RYpAIMduJwOUn13Ff+LgHnc+XOi+/yWjfirOgR99WPkxNWfVcJ/4jKxcMWofcVB3D4NU5WeUiwsxp0pWo4AhWDq2v4a\
        kkmsYJbo9KWZICSZVmjQPSCtKEQ0Qs+jVUzvm/8K/3S10/eHcJQ4XmJM0VyqFLHCIFfVWcD/979xc+yr8w6Erh7/0yoHmMz/oahT\
        ZrVVcJcMnIqfk3hgjueHIPD1QH0UeowtnzXLE5o+qgpQt6DIQHtcq+0CAWJrfmYGQVsMGnKsRLYF93pzSoTmNTFedkawidu3UR/J\
        rP4mz495ufmSUyGmtYE8o9pCXC56tC5xHl3GBk9t7nApbkGJtS/KS1Sbkk=";
    let ecdsa = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBNq0+DJg6Wb11Nn0qT6P\
        e2b1cwgqk7fjrvGv+143gxWKgpxXasn4MIE7UIlkzVYi6zqSFMUGrH08VivaBPrfXpw= me";
    takes(
        &machine(),
        pointer,
        texts([PUBLIC_KEY, rsa, ecdsa, &format!("{PUBLIC_KEY}\n")]),
    );
    let request = create_request(
        &set(machine(), pointer, format!(" {PUBLIC_KEY}\r\n").into()),
        &samples::rules(),
    );
    let Ok(Config::Machine(read)) = request.map(|r| r.config) else {
        panic!("not a machine")
    };
    assert_eq!(
        read.cloud_init.unwrap().ssh_public_key.as_deref(),
        Some(PUBLIC_KEY)
    );
    refuses(
        &machine(),
        pointer,
        all(
            [
                &format!("{PUBLIC_KEY}\n{PUBLIC_KEY}"),
                &format!("{PUBLIC_KEY}\r{PUBLIC_KEY}"),
                &format!("{PUBLIC_KEY} x\ncommand=\"sh\" {PUBLIC_KEY}"),
                &format!("{PUBLIC_KEY}\0"),
                &format!("{PUBLIC_KEY}\u{2028}x"),
            ],
            "one key on one line",
        ),
    );
    refuses(
        &machine(),
        pointer,
        all(
            [
                "",
                "AAAA",
                "ssh-ed25519",
                "ssh-ed25519 AAAA",
                &format!("command=\"sh\" {PUBLIC_KEY}"),
                &PUBLIC_KEY.replace("ssh-ed25519 ", "ssh-rsa "),
                "made-up@example.com AAAAE21hZGUtdXBAZXhhbXBsZS5jb20=",
                "-----BEGIN OPENSSH PRIVATE KEY-----",
            ],
            "must be a public key in OpenSSH format",
        ),
    );
    refuses(
        &machine(),
        pointer,
        all(
            [&format!("{PUBLIC_KEY}{}", "x".repeat(8192))],
            "at most 8192 bytes",
        ),
    );
}

#[test]
fn a_user_name_is_safe_in_every_shell() {
    let pointer = "/config/cloudInit/username";
    takes(
        &machine(),
        pointer,
        texts(["ubuntu", "Administrator", "_apt", "a.b-c_1", &"x".repeat(32)]),
    );
    refuses(
        &machine(),
        pointer,
        all(
            [
                "",
                "1a",
                "-a",
                ".a",
                "a.",
                "a b",
                "a:b",
                "a\nb",
                "a$",
                "ü",
                &"x".repeat(33),
            ],
            "must be a user name",
        ),
    );
}

#[test]
fn a_password_is_one_line() {
    let pointer = "/config/cloudInit/password";
    takes(
        &machine(),
        pointer,
        texts(["x", "pässword ✓ \"'$(x)", &"x".repeat(127)]),
    );
    refuses(
        &machine(),
        pointer,
        all(["", &"x".repeat(128)], "between 1 and 127 characters"),
    );
    refuses(&machine(), pointer, all(["a\nb", "a\0", "\u{7f}"], "line breaks"));
    refuses(&machine(), pointer, all(["***"], "none is stored"));
}
