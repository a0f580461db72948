//! The server as a program, on simulated backends: its flags, its lock, its tokens, its end.
#![allow(clippy::unwrap_used, reason = "what a test cannot go on without ends it")]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use common::{Client, Server, answer, data_dir, program, run, token, until};
use reqwest::{Method, StatusCode};
use serde_json::json;

const SIMULATED: [&str; 6] = ["--containers", "sim", "--machines", "sim", "--gpus", "sim:a30"];

fn container(name: &str) -> serde_json::Value {
    json!({
        "name": name,
        "resourceType": "application-container",
        "config": { "type": "application-container", "registry": "docker-hub", "imageName": "nginx" },
    })
}

#[tokio::test]
async fn a_ready_server_prints_one_line_and_its_secrets_are_its_own() {
    let (_folder, data) = data_dir();
    let server = Server::start(&data, &SIMULATED);
    let mode = |name: &str| fs::metadata(data.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        [mode("jwt-secret"), mode("sealing-key"), mode("hwm.db")],
        [0o600; 3]
    );

    let told = Instant::now();
    while !server.stderr().contains("eyJ") && told.elapsed() < Duration::from_secs(10) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let stderr = server.stderr();
    assert!(stderr.contains("SIMULATED"), "{stderr}");
    let admin = stderr
        .lines()
        .find(|l| l.starts_with("eyJ"))
        .expect("a token is printed");
    let client = Client::new(&server.url, admin);
    let (status, made) = client
        .act(Method::POST, "/resources", Some(&container("web")))
        .await;
    assert_eq!(
        (status, &made["status"]),
        (StatusCode::CREATED, &json!("running"))
    );
    assert_eq!(server.stdout(), format!("listening on {}\n", server.url));
    drop(server);

    let again = Server::start(&data, &SIMULATED);
    assert!(!again.stderr().contains("eyJ"), "the token is printed once");
    assert_eq!(
        client.at(&again.url).get("/nodes").await["data"][0]["id"],
        made["nodeId"]
    );
}

#[test]
fn the_second_server_of_a_data_directory_is_refused() {
    let (_folder, data) = data_dir();
    let first = Server::start(&data, &SIMULATED);
    let mut second = program();
    second
        .args(["--listen", "127.0.0.1:0", "--data-dir"])
        .arg(&data)
        .args(SIMULATED);
    let (status, out, err) = run(&mut second);
    assert_eq!((status.code(), out.as_str()), (Some(1), ""));
    assert!(err.contains(&format!("process {}", first.pid())), "{err}");
}

#[test]
fn a_node_keeps_its_id_and_refuses_another() {
    let (_folder, data) = data_dir();
    drop(Server::start(
        &data,
        &[&SIMULATED[..], &["--node-id", "rack-7"]].concat(),
    ));
    assert_eq!(fs::read_to_string(data.join("node-id")).unwrap(), "rack-7\n");
    drop(Server::start(&data, &SIMULATED));
    let mut other = program();
    other
        .args(["--node-id", "rack-8", "--data-dir"])
        .arg(&data)
        .args(SIMULATED);
    let (status, _, err) = run(&mut other);
    assert!(!status.success() && err.contains("rack-7"), "{err}");
}

#[tokio::test]
async fn every_kind_of_flag_is_read_from_the_environment() {
    let (_folder, data) = data_dir();
    let secret = "a shared secret of more than 32 bytes";
    let mut command = program();
    command
        .env("HWM_LISTEN", "127.0.0.1:0")
        .env("HWM_DATA_DIR", &data)
        .env("HWM_NODE_ID", "from-env")
        .env("HWM_CONTAINERS", "sim")
        .env("HWM_MACHINES", "none")
        .env("HWM_GPUS", "sim:a100-40gb*2,a30*1")
        .env("HWM_VOLUME_ROOTS", "/tmp,/var/tmp")
        .env("JWT_SECRET", secret);
    let server = Server::spawn(&mut command);
    assert!(
        !data.join("jwt-secret").exists(),
        "no secret is made where one is given"
    );
    let mut token = program();
    token
        .args(["token", "--role", "universe.viewer"])
        .env("HWM_JWT_SECRET", secret);
    let (_, token, _) = run(&mut token);
    let client = Client::new(&server.url, token.trim_end());
    let node = client.get("/nodes/from-env").await;
    assert_eq!(node["gpus"].as_array().unwrap().len(), 3);
    assert_eq!(node["backends"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn auto_never_simulates_and_says_why_there_is_nothing() {
    let (_folder, data) = data_dir();
    let server = Server::start(&data, &["--docker-host", "unix:///nowhere/docker.sock"]);
    let stderr = server.stderr();
    for what in [
        "containers: none, because",
        "/nowhere/docker.sock",
        "machines: none",
        "gpus: none",
    ] {
        assert!(stderr.contains(what), "{what} is not in {stderr}");
    }
    let client = server.client(&data);
    let (status, refused) = client
        .act(Method::POST, "/resources", Some(&container("web")))
        .await;
    assert_eq!(refused["code"], "UNSUPPORTED", "{status} {refused}");
}

#[test]
fn a_host_without_certificates_is_served() {
    let (_folder, data) = data_dir();
    let mut command = program();
    command
        .args(["--listen", "127.0.0.1:0", "--containers", "docker"])
        .args(["--docker-host", "unix:///nowhere/docker.sock", "--data-dir"])
        .arg(&data)
        .env("SSL_CERT_FILE", "/dev/null")
        .env("SSL_CERT_DIR", "/nowhere");
    // It is ready, or this panics with what it said.
    Server::spawn(&mut command);
}

#[tokio::test]
async fn printed_tokens_reach_as_far_as_their_roles() {
    let (_folder, data) = data_dir();
    let server = Server::start(&data, &SIMULATED);
    let of = |arguments: &[&str]| Client::new(&server.url, &token(&data, arguments));
    let ann = of(&["--role", "organization.editor", "--org", "one", "--user", "ann"]);
    let bob = of(&["--role", "organization.owner", "--org", "two", "--user", "bob"]);
    let eve = of(&["--role", "organization.viewer", "--org", "one", "--user", "eve"]);
    let (status, made) = ann.act(Method::POST, "/resources", Some(&container("web"))).await;
    assert_eq!(
        (status, &made["owner"]["orgId"]),
        (StatusCode::CREATED, &json!("one"))
    );
    let path = format!("/resources/{}", made["_id"].as_str().unwrap());
    assert_eq!(
        bob.act(Method::DELETE, &path, None).await.0,
        StatusCode::NOT_FOUND
    );
    assert_eq!(
        eve.act(Method::DELETE, &path, None).await.0,
        StatusCode::FORBIDDEN
    );
    assert_eq!(ann.act(Method::DELETE, &path, None).await.0, StatusCode::OK);

    let mut useless = program();
    useless
        .args(["token", "--role", "group.editor", "--org", "one", "--data-dir"])
        .arg(&data);
    let (status, out, err) = run(&mut useless);
    assert!(
        !status.success() && out.is_empty() && err.contains("--group"),
        "{err}"
    );
}

#[tokio::test]
async fn a_signal_ends_it_well_with_streams_open_and_work_under_way() {
    for signal in ["TERM", "INT"] {
        let (_folder, data) = data_dir();
        let mut server = Server::start(&data, &SIMULATED);
        let client = server.client(&data);
        let mut events = client.request(Method::GET, "/events").send().await.unwrap();
        let waiting = tokio::spawn({
            let client = client.clone();
            async move {
                client
                    .request(Method::POST, "/resources")
                    .json(&container("late"))
                    .send()
                    .await
            }
        });
        assert!(waiting.await.unwrap().unwrap().status().is_success());
        let begun = Instant::now();
        server.signal(signal);
        while let Ok(Some(_)) = events.chunk().await {}
        assert_eq!(
            server.ended(Duration::from_secs(10)).code(),
            Some(0),
            "{}",
            server.stderr()
        );
        assert!(begun.elapsed() < Duration::from_secs(10));

        let again = Server::start(&data, &SIMULATED);
        let client = client.at(&again.url);
        until("what was accepted runs", Duration::from_secs(20), || async {
            client.resources().await.iter().all(|r| r["status"] == "running")
        })
        .await;
    }
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_kill() {
    let (_folder, data) = data_dir();
    let server = Server::start(&data, &SIMULATED);
    let client = server.client(&data);
    let mut names = Vec::new();
    for i in 0..20 {
        let name = format!("web-{i}");
        let (status, _) = answer(client.request(Method::POST, "/resources").json(&container(&name)))
            .await
            .unwrap();
        assert_eq!(status, StatusCode::CREATED);
        names.push(name);
    }
    server.kill();
    let again = Server::start(&data, &SIMULATED);
    let client = client.at(&again.url);
    until("all of them run", Duration::from_secs(30), || async {
        let all = client.resources().await;
        let kept: Vec<&str> = all.iter().filter_map(|r| r["name"].as_str()).collect();
        assert_eq!(kept, names);
        all.iter().all(|r| r["status"] == "running")
    })
    .await;
}

#[tokio::test]
async fn the_demo_shows_its_ten_resources_at_every_start() {
    let (_folder, data) = data_dir();
    for start in ["first", "second"] {
        let server = Server::start(&data, &["--demo"]);
        let client = server.client(&data);
        let list = client.get("/resources?limit=200").await;
        let by_status = &list["statistics"]["byStatus"];
        let wanted = json!({
            "queued": 1, "deploying": 1, "running": 5, "stopping": 0, "stopped": 2, "failed": 1, "error": 0,
        });
        if start == "first" {
            assert_eq!(*by_status, wanted);
        }
        assert_eq!(list["statistics"]["total"], 10);
        until("they are in their statuses", Duration::from_secs(20), || async {
            client.get("/resources").await["statistics"]["byStatus"] == wanted
        })
        .await;
    }
    let mut contradiction = program();
    contradiction
        .args(["--demo", "--containers", "docker", "--data-dir"])
        .arg(&data);
    let (status, _, err) = run(&mut contradiction);
    assert!(!status.success() && err.contains("--containers"), "{err}");
}

#[tokio::test]
async fn https_is_served_with_a_certificate_and_its_key() {
    let (folder, data) = data_dir();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (certificate, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    fs::write(&certificate, made.cert.pem()).unwrap();
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let paths = [certificate.to_str().unwrap(), key.to_str().unwrap()];
    let tls = ["--tls-cert", paths[0], "--tls-key", paths[1]];

    let server = Server::start(&data, &[&SIMULATED[..], &tls[..]].concat());
    let port = server
        .url
        .strip_prefix("https://127.0.0.1:")
        .expect("it says https");
    let trusting = reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([reqwest::Certificate::from_pem(made.cert.pem().as_bytes()).unwrap()])
        .build()
        .unwrap();
    let url = format!("https://localhost:{port}/health");
    assert_eq!(trusting.get(&url).send().await.unwrap().status(), StatusCode::OK);
    drop(server);

    fs::write(&key, "no key").unwrap();
    let mut broken = program();
    broken.args(tls).args(SIMULATED).arg("--data-dir").arg(&data);
    let (status, _, err) = run(&mut broken);
    assert!(!status.success() && err.contains("key.pem"), "{err}");
}

#[test]
fn a_connection_that_does_not_ask_is_closed() {
    let (_folder, data) = data_dir();
    let server = Server::start(&data, &SIMULATED);
    let address = server.url.strip_prefix("http://").unwrap();
    let mut silent = std::net::TcpStream::connect(address).unwrap();
    let mut slow = std::net::TcpStream::connect(address).unwrap();
    slow.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n").unwrap();
    for connection in [&mut silent, &mut slow] {
        connection
            .set_read_timeout(Some(Duration::from_secs(45)))
            .unwrap();
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer).expect("it is closed");
        assert!(!answer.starts_with(b"HTTP/1.1 200"));
    }
}

#[test]
fn what_cannot_be_used_is_refused_with_a_reason() {
    let (folder, data) = data_dir();
    let refused = |arguments: &[&str]| {
        let mut command = program();
        command
            .args(["--listen", "127.0.0.1:0", "--data-dir"])
            .arg(&data)
            .args(arguments);
        let (status, out, err) = run(&mut command);
        assert!(!status.success() && out.is_empty(), "{arguments:?}");
        err
    };
    assert!(refused(&["--listen", "256.0.0.1:1"]).contains("256.0.0.1:1"));
    assert!(refused(&["--gpus", "sim:voodoo"]).contains("no board voodoo"));
    assert!(refused(&["--volume-root", "/no/such/folder"]).contains("/no/such/folder"));
    assert!(refused(&["--jwt-secret-file", "/no/such/file"]).contains("/no/such/file"));
    assert!(refused(&["--jwks", "/no/such/jwks"]).contains("/no/such/jwks"));
    let short = folder.path().join("short");
    fs::write(&short, "short\n").unwrap();
    assert!(refused(&["--jwt-secret-file", short.to_str().unwrap()]).contains("5 bytes"));
    fs::write(data.join("hwm.db"), "this is no database").unwrap();
    assert!(refused(&SIMULATED).contains("hwm.db"));
}
