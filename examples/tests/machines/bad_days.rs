use std::process::Command;
use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::common::daemons::{variable, virsh};
use crate::common::{Client, answer, until};
use crate::lab::{Lab, machine};

/// libvirtd, ended by a signal; running again when this goes.
struct Away;

fn lab_script(arguments: &[&str]) {
    let done = Command::new(variable("HWM_TEST_LAB"))
        .args(arguments)
        .args(["--dir", &variable("HWM_TEST_LAB_DIR")])
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

fn signal(name: &str) {
    let pid = std::fs::read_to_string(variable("HWM_TEST_LIBVIRT_PIDFILE")).unwrap();
    let done = Command::new("kill")
        .args([&format!("-{name}"), pid.trim()])
        .status();
    assert!(done.unwrap().success());
}

impl Away {
    fn killed() -> Self {
        signal("KILL");
        Self
    }

    fn hung() -> Self {
        signal("STOP");
        Self
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        let pid = std::fs::read_to_string(variable("HWM_TEST_LIBVIRT_PIDFILE")).unwrap_or_default();
        let _ = Command::new("kill").args(["-CONT", pid.trim()]).status();
        lab_script(&["start", "libvirt"]);
    }
}

async fn status_of(client: &Client, path: &str) -> String {
    client.get(path).await["status"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_libvirtd_that_goes_away_is_told_and_waited_for() {
    let lab = Lab::new().await;
    let server = lab.start();
    let client = server.client(&lab.data());
    let (_, made) = client
        .act(Method::POST, "/resources", Some(&machine("old", "empty")))
        .await;
    assert_eq!(made["status"], "running", "{made}");
    let old = format!("/resources/{}", made["_id"].as_str().unwrap());

    for (how, away) in [("killed", Away::killed as fn() -> Away), ("hung", Away::hung)] {
        // In the middle of a create.
        let body = machine(how, "empty");
        let request = client.request(Method::POST, "/resources").json(&body);
        let (status, made) = answer(request).await.unwrap();
        assert_eq!(status, StatusCode::CREATED, "{made}");
        let path = format!("/resources/{}", made["_id"].as_str().unwrap());
        let gone = away();
        let begun = Instant::now();
        until("the server knows", Duration::from_secs(60), || async {
            let request = client.request(Method::POST, "/resources");
            let (status, refused) = answer(request.json(&machine("late", "empty"))).await.unwrap();
            (status, refused["code"].as_str())
                == (StatusCode::SERVICE_UNAVAILABLE, Some("BACKEND_UNAVAILABLE"))
        })
        .await;
        println!(
            "{how}: refused as BACKEND_UNAVAILABLE after {:?}",
            begun.elapsed()
        );
        let (status, ready) = answer(client.request(Method::GET, "/ready")).await.unwrap();
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{ready}");
        // What the store knows is answered as ever.
        assert_eq!(client.get(&old).await["name"], "old");
        drop(gone);
        let begun = Instant::now();
        until(
            "the create goes on by itself",
            Duration::from_secs(120),
            || async { status_of(&client, &path).await == "running" },
        )
        .await;
        println!("{how}: went on after {:?}", begun.elapsed());
        assert_eq!(
            status_of(&client, &old).await,
            "running",
            "machines outlive libvirtd"
        );
    }
    for resource in client.resources().await {
        let path = format!("/resources/{}", resource["_id"].as_str().unwrap());
        let (status, _) = client.act(Method::DELETE, &path, None).await;
        assert_eq!(status, StatusCode::OK);
    }
    until("all is gone", Duration::from_secs(60), || async {
        lab.domains().is_empty()
    })
    .await;
    lab.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_do_to_a_domain_is_seen_and_mended() {
    let lab = Lab::new().await;
    let server = lab.start();
    let client = server.client(&lab.data());
    let (_, made) = client
        .act(Method::POST, "/resources", Some(&machine("drifts", "empty")))
        .await;
    assert_eq!(made["status"], "running", "{made}");
    let id = made["_id"].as_str().unwrap();
    let path = format!("/resources/{id}");

    // Switched off: it was up and broke.
    virsh(&["destroy", id]);
    let begun = Instant::now();
    until("it is known to be down", Duration::from_secs(5), || async {
        status_of(&client, &path).await == "error"
    })
    .await;
    println!("seen after {:?}", begun.elapsed());
    let shown = client.get(&path).await;
    assert!(
        shown["errorMessage"].as_str().unwrap().contains("switched off"),
        "{shown}"
    );
    let (status, _) = client.act(Method::POST, &format!("{path}/start"), None).await;
    assert_eq!(
        (status, status_of(&client, &path).await.as_str()),
        (StatusCode::OK, "running")
    );

    // Undefined and switched off: gone, and should run, so it is made again on the disk that it had.
    virsh(&["undefine", id]);
    virsh(&["destroy", id]);
    until("it runs again", Duration::from_secs(100), || async {
        lab.domains().len() == 1 && status_of(&client, &path).await == "running"
    })
    .await;
    let (status, _) = client
        .act(
            Method::POST,
            &format!("{path}/stop"),
            Some(&json!({ "force": true })),
        )
        .await;
    assert_eq!(status, StatusCode::OK);

    // A domain of its name that is not ours is in nobody's way: a delete leaves it.
    virsh(&["undefine", id]);
    let planted = format!(
        "<domain type='qemu'><name>hwm-{id}</name><memory unit='MiB'>16</memory>\
         <os><type arch='x86_64' machine='q35'>hvm</type></os></domain>"
    );
    let file = lab.folder.path().join("planted.xml");
    std::fs::write(&file, planted).unwrap();
    virsh(&["define", file.to_str().unwrap()]);
    let (_, started) = client.act(Method::POST, &format!("{path}/start"), None).await;
    println!("{started}");
    let shown = client.get(&path).await;
    assert_eq!(shown["status"], "failed", "{shown}");
    assert!(
        shown["errorMessage"].as_str().unwrap().contains("is not hwm's"),
        "{shown}"
    );
    assert!(virsh(&["list", "--all", "--name"]).contains(&format!("hwm-{id}")));
    virsh(&["undefine", &format!("hwm-{id}")]);
    let (status, _) = client.act(Method::DELETE, &path, None).await;
    assert_eq!(status, StatusCode::OK);
    until("its volumes are gone", Duration::from_secs(30), || async {
        lab.volumes().is_empty()
    })
    .await;
    lab.assert_empty();
}
