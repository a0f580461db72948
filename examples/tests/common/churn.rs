//! Clients that make and delete while the server is killed again and again, and what must be true afterwards.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hwm_core::env::{Environment, SystemEnvironment};
use reqwest::{Method, StatusCode};
use serde_json::Value;

use super::{Client, Server, answer, until};

/// Which server is up at present, for clients that outlive servers.
type Address = Arc<Mutex<String>>;

/// How much of it.
pub(crate) struct Storm {
    pub(crate) clients: usize,
    pub(crate) kills: usize,
    /// How long operations may take to end when no more servers are killed.
    pub(crate) patience: Duration,
}

/// What one client made that it did not delete.
#[derive(Default)]
struct Kept {
    acknowledged: BTreeSet<String>,
    deleted: BTreeSet<String>,
}

impl Storm {
    /// Kills servers under clients. What was acknowledged and not deleted then runs, and is answered: its ids.
    pub(crate) async fn rage(
        &self,
        data: &Path,
        start: impl Fn() -> Server,
        body: impl Fn(usize, usize) -> Value + Clone + Send + Sync + 'static,
    ) -> (Server, Client, BTreeSet<String>) {
        let mut server = start();
        let client = server.client(data);
        let address: Address = Arc::new(Mutex::new(server.url.clone()));
        let (over, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let clients: Vec<_> = (0..self.clients)
            .map(|n| {
                let body = body.clone();
                let (client, address) = (client.clone(), address.clone());
                let (over, done) = (over.clone(), done.clone());
                tokio::spawn(async move { churn(n, &body, &client, &address, &over, &done).await })
            })
            .collect();

        for _ in 0..self.kills {
            let pause = 300 + SystemEnvironment.random() as u64 % 2400;
            tokio::time::sleep(Duration::from_millis(pause)).await;
            server.kill();
            server = start();
            address.lock().unwrap().clone_from(&server.url);
        }
        over.store(true, Ordering::SeqCst);
        let mut kept = BTreeSet::new();
        for client in clients {
            let of_client = client.await.unwrap();
            kept.extend(of_client.acknowledged.difference(&of_client.deleted).cloned());
        }

        let client = client.at(&server.url);
        until("every operation has ended", self.patience, || async {
            let operations = client.get("/operations?limit=200").await;
            let all = client.resources().await;
            let busy = ["queued", "deploying", "stopping"];
            operations["data"]
                .as_array()
                .unwrap()
                .iter()
                .all(|o| o["finishedAt"].is_string())
                && all.iter().all(|r| !busy.contains(&r["status"].as_str().unwrap()))
        })
        .await;
        let all = client.resources().await;
        let found: BTreeSet<String> = all
            .iter()
            .map(|r| r["_id"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(found, kept, "what was acknowledged is there, and nothing else");
        for resource in &all {
            assert_eq!(resource["status"], "running", "{resource}");
        }
        assert!(
            done.load(Ordering::SeqCst) > 0,
            "nothing was made and deleted between the kills"
        );
        (server, client, found)
    }
}

/// Deletes resources, and looks that the node's claims are given back.
pub(crate) async fn delete_all(client: &Client, ids: &BTreeSet<String>) {
    for id in ids {
        let (status, _) = client
            .act(Method::DELETE, &format!("/resources/{id}"), None)
            .await;
        assert_eq!(status, StatusCode::OK);
    }
    until("the claims are given back", Duration::from_secs(120), || async {
        let claimed = &client.get("/nodes").await["data"][0]["claimed"];
        claimed["cpuCores"].as_f64().unwrap() + claimed["ramMB"].as_f64().unwrap() == 0.0
    })
    .await;
}

/// Sends until a server answers.
async fn persist(
    client: &Client,
    address: &Address,
    send: impl Fn(&Client) -> reqwest::RequestBuilder,
) -> (StatusCode, Value) {
    loop {
        let now = client.at(&address.lock().unwrap().clone());
        match answer(send(&now)).await {
            Ok((StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS, _)) | Err(_) => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Ok(answered) => return answered,
        }
    }
}

async fn churn(
    number: usize,
    body: &(impl Fn(usize, usize) -> Value + Sync),
    client: &Client,
    address: &Address,
    over: &AtomicBool,
    done: &AtomicUsize,
) -> Kept {
    let mut kept = Kept::default();
    for round in 0.. {
        let body = body(number, round);
        let key = format!("churn-{number}-{round}");
        // Half of them wait, so that deletes meet what runs and what is being made.
        let wait = if (number + round).is_multiple_of(2) {
            "wait=1"
        } else {
            "respond-async"
        };
        let (status, made) = persist(client, address, |c| {
            c.request(Method::POST, "/resources")
                .header("idempotency-key", &key)
                .header("prefer", wait)
                .json(&body)
        })
        .await;
        if made["code"] == "INSUFFICIENT_CAPACITY" {
            // The others hold all of it.
            if over.load(Ordering::SeqCst) {
                return kept;
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
            continue;
        }
        assert_eq!(status, StatusCode::CREATED, "{made}");
        let id = made["_id"].as_str().unwrap().to_owned();
        kept.acknowledged.insert(id.clone());
        if over.load(Ordering::SeqCst) {
            return kept;
        }
        let path = format!("/resources/{id}");
        let (status, gone) = persist(client, address, |c| {
            c.request(Method::DELETE, &path).header("prefer", wait)
        })
        .await;
        assert!(
            [StatusCode::OK, StatusCode::NOT_FOUND].contains(&status),
            "{gone}"
        );
        kept.deleted.insert(id);
        done.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    kept
}
