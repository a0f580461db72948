use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::common::daemons::{variable, virsh};
use crate::common::{Client, answer, until};
use crate::lab::{Key, Lab, machine};
use crate::socket::Socket;

const CANARY: &str = "canary-4f1c7d9e";

async fn log(client: &Client, path: &str) -> String {
    let logs = client.get(&format!("{path}/logs")).await;
    let lines = logs["logs"].as_array().unwrap().iter();
    lines
        .map(|l| format!("{}\n", l["message"].as_str().unwrap()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_lives_its_life_over_http() {
    let lab = Lab::new().await;
    let server = lab.start();
    let client = server.client(&lab.data());
    let (key, public) = Key::make(lab.folder.path());
    let mut body = machine("web", "tiny");
    body["config"]["cloudInit"] = json!({
        "hostname": "web-1", "username": "alice", "sshPublicKey": public, "password": CANARY,
    });
    let address = body["config"]["networkConfig"]["ipAddress"]
        .as_str()
        .unwrap()
        .to_owned();

    let begun = Instant::now();
    let (status, made) = client.act(Method::POST, "/resources", Some(&body)).await;
    assert_eq!(
        (status, &made["status"]),
        (StatusCode::CREATED, &json!("running")),
        "{made}"
    );
    println!("running after {:?}", begun.elapsed());
    let path = format!("/resources/{}", made["_id"].as_str().unwrap());
    assert_eq!(made["runtime"]["endpoint"], format!("{address}:22"));
    assert_eq!(made["config"]["cloudInit"]["password"], "***");

    // As the seed says.
    assert_eq!(key.ssh_soon(&address, "hostname").await, "web-1");
    println!("SSH after {:?}", begun.elapsed());
    let run = |command: &str| {
        key.ssh(&address, command)
            .unwrap_or_else(|| panic!("{command} failed"))
    };
    assert!(run("ip -4 -o address").contains(&format!("{address}/24")));
    assert_eq!(run("blockdev --getsize64 /dev/vda"), (10u64 << 30).to_string());

    let said = log(&client, &path).await;
    assert!(said.contains("guest ready"), "{said}");
    let status = client.get(&format!("{path}/status")).await;
    assert_eq!(status["status"], "running");
    consoles(&client, &server.url, &path).await;

    let command = json!({ "command": "echo out; echo err >&2; exit 3" });
    let (status, done) = client
        .act(Method::POST, &format!("{path}/exec"), Some(&command))
        .await;
    assert_eq!(status, StatusCode::OK, "{done}");
    assert_eq!(
        (&done["stdout"], &done["stderr"], &done["exitCode"]),
        (&json!("out\n"), &json!("err\n"), &json!(3))
    );
    let metrics = &client.get(&format!("{path}/metrics")).await["metrics"];
    assert_eq!(metrics["memory"]["totalMB"], 512, "{metrics}");

    snapshot(&client, &path, &run).await;

    // More of it while it runs.
    let started = client.get(&path).await["runtime"]["startedAt"].clone();
    let more = json!({ "config": { "vcpus": 2, "diskGB": 11 } });
    let (status, changed) = client.act(Method::PATCH, &path, Some(&more)).await;
    assert_eq!(
        (status, &changed["restartRequired"]),
        (StatusCode::OK, &json!(false)),
        "{changed}"
    );
    assert_eq!(run("blockdev --getsize64 /dev/vda"), (11u64 << 30).to_string());
    assert_eq!(client.get(&path).await["runtime"]["startedAt"], started);
    // And what has to wait for the next start.
    let later = json!({ "config": { "ramMB": 768 } });
    let (_, changed) = client.act(Method::PATCH, &path, Some(&later)).await;
    assert_eq!(changed["restartRequired"], true, "{changed}");

    // Its address is its own.
    let mut other = body.clone();
    other["name"] = json!("other");
    let (status, refused) = client.act(Method::POST, "/resources", Some(&other)).await;
    assert_eq!(
        (status, &refused["code"]),
        (StatusCode::CONFLICT, &json!("ADDRESS_CONFLICT"))
    );
    assert_eq!(refused["details"]["holders"][0]["name"], "web", "{refused}");

    let begun = Instant::now();
    let (status, _) = client.act(Method::POST, &format!("{path}/stop"), None).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(client.get(&path).await["status"], "stopped");
    println!("shut down in {:?}", begun.elapsed());
    let (status, refused) = answer(client.request(Method::GET, &format!("{path}/console")))
        .await
        .unwrap();
    assert_eq!(
        (status, &refused["code"]),
        (StatusCode::CONFLICT, &json!("INVALID_STATE"))
    );
    let (status, _) = client.act(Method::POST, &format!("{path}/start"), None).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(key.ssh_soon(&address, "cat /disk/file").await, "old");
    let again = client.get(&path).await;
    assert_eq!(
        (&again["status"], &again["restartRequired"]),
        (&json!("running"), &json!(false))
    );
    let memory = run("sed -n 's/MemTotal: *\\([0-9]*\\).*/\\1/p' /proc/meminfo");
    assert!(memory.parse::<u32>().unwrap() > 600_000, "{memory}");

    secrets(&lab, &server.stderr(), &[made, changed, again]);

    // A console is cut when its machine goes.
    let opened = client.get(&format!("{path}/console?type=serial")).await;
    let line = Socket::open(opened["url"].as_str().unwrap()).await.ok().unwrap();
    let (status, _) = client.act(Method::DELETE, &path, None).await;
    assert_eq!(status, StatusCode::OK);
    line.ends(Duration::from_secs(5)).await;
    let (status, _) = answer(client.request(Method::GET, &path)).await.unwrap();
    assert_eq!(status, StatusCode::NOT_FOUND);
    lab.assert_empty();
    let claimed = &client.get("/nodes").await["data"][0]["claimed"];
    assert_eq!(claimed["ramMB"].as_f64(), Some(0.0), "{claimed}");
    let free = client.request(Method::POST, "/resources?dryRun=true").json(&body);
    let (status, plan) = answer(free).await.unwrap();
    assert_eq!(status, StatusCode::OK, "the address is free again: {plan}");
}

/// The screen and the serial line, by the tickets that the API gives.
async fn consoles(client: &Client, server: &str, path: &str) {
    let screen = client.get(&format!("{path}/console")).await;
    assert_eq!(screen["type"], "vnc");
    assert_eq!(screen["password"].as_str().unwrap().len(), 8);
    let url = screen["url"].as_str().unwrap();
    let mut vnc = Socket::open(url).await.ok().unwrap();
    let hello = vnc.read(Duration::from_secs(10), |b| b.len() >= 12).await;
    assert_eq!(&hello[..4], b"RFB ");
    assert_eq!(Socket::open(url).await.err(), Some(401), "a ticket is good once");

    // Several viewers of one line, which has a past.
    let mut lines = Vec::new();
    for _ in 0..2 {
        let serial = client.get(&format!("{path}/console?type=serial")).await;
        let mut line = Socket::open(serial["url"].as_str().unwrap()).await.ok().unwrap();
        line.says(Duration::from_secs(20), "guest ready").await;
        lines.push(line);
    }
    // A new line, so that the prompt is written once more.
    for (typed, answer) in [("\n", "login:"), ("root\n", "# ")] {
        lines[0].send(typed.as_bytes()).await;
        lines[0].says(Duration::from_secs(20), answer).await;
    }
    lines[0].send(b"echo sum=$((40+2))\n").await;
    for line in &mut lines {
        line.says(Duration::from_secs(20), "sum=42").await;
    }

    // A ticket is bound to its resource and its purpose.
    for (what, wanted) in [("logs", 401), ("console", 101)] {
        let asked = json!({ "for": what });
        let (status, ticket) = client
            .act(Method::POST, &format!("{path}/tickets"), Some(&asked))
            .await;
        assert_eq!(status, StatusCode::CREATED);
        let ticket = ticket["ticket"].as_str().unwrap();
        let base = server.replace("http", "ws");
        let opened = Socket::open(&format!("{base}{path}/console?type=serial&ticket={ticket}")).await;
        assert_eq!(opened.err().unwrap_or(101), wanted, "a ticket for {what}");
    }
}

async fn snapshot(client: &Client, path: &str, run: &dyn Fn(&str) -> String) {
    run("echo old >/disk/file; sync");
    let wanted = json!({ "name": "before", "description": "as it was" });
    let (status, taken) = client
        .act(Method::POST, &format!("{path}/snapshots"), Some(&wanted))
        .await;
    assert_eq!(status, StatusCode::CREATED, "{taken}");
    assert_eq!(taken["snapshot"]["consistency"], "memory", "{taken}");
    let id = taken["snapshot"]["id"].as_str().unwrap();
    run("echo new >/disk/file; sync");
    let listed = client.get(&format!("{path}/snapshots")).await;
    assert_eq!(listed["snapshots"][0]["name"], "before");
    let one = format!("{path}/snapshots/{id}");
    let (status, _) = client.act(Method::POST, &format!("{one}/restore"), None).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(client.get(path).await["status"], "running");
    assert_eq!(run("cat /disk/file"), "old");
    let (status, _) = client.act(Method::DELETE, &one, None).await;
    assert_eq!(status, StatusCode::OK);
    let listed = client.get(&format!("{path}/snapshots")).await;
    assert_eq!(listed["snapshots"], json!([]));
}

/// The password is nowhere in clear: not in the store, the traces, answers, libvirt's files, or a command line.
fn secrets(lab: &Lab, traces: &str, answers: &[Value]) {
    assert!(!traces.contains(CANARY));
    assert!(answers.iter().all(|a| !a.to_string().contains(CANARY)));
    let folders = [
        lab.data(),
        format!("{}/libvirt", variable("HWM_TEST_LAB_DIR")).into(),
    ];
    for folder in &folders {
        // Image volumes hold no more than what the tests put there, and they are large.
        let found = std::process::Command::new("grep")
            .args(["-rlaF", "--exclude=hwm-image-*", "--exclude=guest.qcow2", CANARY])
            .arg(folder)
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&found.stdout), "", "it is in clear");
    }
    let seeds: Vec<String> = lab.volumes().into_iter().filter(|v| v.contains("seed")).collect();
    assert_eq!(seeds.len(), 1, "the seed was among what was looked through");
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        for file in ["cmdline", "environ"] {
            let bytes = std::fs::read(process.path().join(file)).unwrap_or_default();
            assert!(!String::from_utf8_lossy(&bytes).contains(CANARY), "{process:?}");
        }
    }
}

/// What `server images` does, beside a server that runs.
#[tokio::test(flavor = "multi_thread")]
async fn images_are_fetched_ahead_and_removed_when_nobody_needs_them() {
    let lab = Lab::new().await;
    let server = lab.start();
    let client = server.client(&lab.data());
    let images = |arguments: &[&str]| {
        let mut command = crate::common::program();
        command.arg("images").args(arguments).args(lab.images());
        let (status, out, err) = crate::common::run(command.arg("--data-dir").arg(lab.data()));
        assert!(status.success(), "{err}");
        (out, err)
    };
    let (_, said) = images(&["pull", "tiny", "empty"]);
    assert!(said.contains("100 %"), "progress is told: {said}");
    let stored = virsh(&["vol-list", &lab.pool()]);
    let names = stored.lines().filter(|l| l.trim().starts_with("hwm-image-"));
    assert_eq!(names.count(), 4, "two images, and what says what they are");

    let (_, made) = client
        .act(Method::POST, "/resources", Some(&machine("user", "empty")))
        .await;
    assert_eq!(made["status"], "running", "{made}");
    let (listed, _) = images(&["list"]);
    let line = listed.lines().find(|l| l.starts_with("empty")).unwrap();
    assert!(line.contains("1 disk"), "{listed}");
    assert_eq!(images(&["prune"]).0, "", "all of it is current");
    let (removed, _) = images(&["prune", "--all"]);
    assert!(removed.starts_with("tiny"), "{removed}");
    assert_eq!(
        removed.lines().count(),
        1,
        "what a machine needs stays: {removed}"
    );

    // A new version under the same name: machines keep theirs until they go.
    std::fs::write(lab.folder.path().join("empty.img"), vec![1; 1 << 20]).unwrap();
    images(&["pull", "empty"]);
    assert_eq!(images(&["prune"]).0, "", "the old one is still needed");
    let path = format!("/resources/{}", made["_id"].as_str().unwrap());
    client.act(Method::DELETE, &path, None).await;
    until("the machine is gone", Duration::from_secs(20), || async {
        lab.domains().is_empty()
    })
    .await;
    assert_eq!(images(&["prune"]).0.lines().count(), 1);
    let (listed, _) = images(&["list"]);
    assert_eq!(listed.lines().count(), 1, "the new one: {listed}");
}
