//! A simulated node with the API in front of it, and callers of every kind.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt as _;
use hwm_core::env::{BoxFuture, Environment, SystemEnvironment};
use hwm_core::manager::Manager;
use hwm_core::store::memory::MemoryStore;
use hwm_core::testing::sim::{Sim, SimOptions, parse_cards};
use hwm_core::units::Timestamp;
use hwm_http::Options;
use hwm_http::auth::{Auth, Claims, sign_hs256};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::schema;

pub(crate) const SECRET: &[u8] = b"a shared secret of thirty-two bytes, or a little more";

/// The system's time, shifted at will.
#[derive(Default)]
pub(crate) struct Clock(AtomicI64);

impl Clock {
    pub(crate) fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_millis() as i64, Ordering::SeqCst);
    }
}

impl Environment for Clock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(SystemEnvironment.now().as_millis() + self.0.load(Ordering::SeqCst))
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<()> {
        SystemEnvironment.sleep(duration)
    }

    fn random(&self) -> u128 {
        SystemEnvironment.random()
    }

    fn spawn(&self, task: BoxFuture<()>) {
        SystemEnvironment.spawn(task);
    }
}

pub(crate) struct House {
    pub(crate) sim: Sim,
    pub(crate) app: Router,
    pub(crate) clock: Arc<Clock>,
    pub(crate) options: Options,
}

pub(crate) async fn house() -> House {
    house_with(|_| {}).await
}

pub(crate) async fn house_with(change: impl FnOnce(&mut Options)) -> House {
    let clock = Arc::new(Clock::default());
    let sim = Sim::new(
        Arc::new(SystemEnvironment),
        SimOptions {
            cards: parse_cards("sim:a30*2").unwrap(),
            ..SimOptions::default()
        },
    );
    let manager = Manager::builder(Arc::new(MemoryStore::new()), "node-1".into())
        .backend(sim.containers())
        .backend(sim.machines())
        .accelerators(sim.accelerators())
        .build()
        .await
        .unwrap();
    let mut options = Options {
        caller_rate: None,
        address_rate: None,
        environment: clock.clone(),
        stream_check: Duration::from_millis(50),
        first_message_time: Duration::from_millis(300),
        ..Options::new(Auth::hs256(SECRET).unwrap())
    };
    change(&mut options);
    while !manager.readiness().await.ready {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let app = hwm_http::router(manager, options.clone());
    House {
        sim,

        app,
        clock,
        options,
    }
}

/// A caller: where it belongs, and one role.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Who {
    pub(crate) org: &'static str,
    pub(crate) group: &'static str,
    pub(crate) user: &'static str,
    pub(crate) role: &'static str,
}

pub(crate) const ADMIN: Who = Who {
    org: "acme",
    group: "web",
    user: "ann",
    role: "universe.owner",
};

impl Who {
    pub(crate) const fn ann(role: &'static str) -> Self {
        Self { role, ..ADMIN }
    }

    pub(crate) fn claims(self) -> Claims {
        Claims {
            sub: self.user.into(),
            username: self.user.into(),
            status: "active".into(),
            roles: vec!["no.such-role".into(), self.role.into()],
            org_id: self.org.into(),
            group_id: self.group.into(),
            user_id: self.user.into(),
            exp: SystemEnvironment.now().as_millis() as u64 / 1000 + 3600,
            ..Claims::default()
        }
    }

    pub(crate) fn token(self) -> String {
        sign_hs256(SECRET, &self.claims()).unwrap()
    }
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) bytes: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|v| v.to_str().unwrap())
    }

    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{}", self.text());
        self
    }

    /// The error's code, where it is an error.
    #[track_caller]
    pub(crate) fn code(&self) -> String {
        self.json()["code"].as_str().unwrap().to_owned()
    }
}

/// A request, put together bit by bit.
pub(crate) struct Ask<'a> {
    house: &'a House,
    request: axum::http::request::Builder,
    body: Body,
    pub(crate) method: String,
    pub(crate) path: String,
}

impl Ask<'_> {
    pub(crate) fn token(self, token: &str) -> Self {
        self.header("authorization", &format!("Bearer {token}"))
    }

    pub(crate) fn by(self, who: Who) -> Self {
        self.token(&who.token())
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.request = self.request.header(name, value);
        self
    }

    pub(crate) fn json(self, body: &Value) -> Self {
        self.header("content-type", "application/json")
            .body(body.to_string())
    }

    pub(crate) fn body(mut self, body: impl Into<Body>) -> Self {
        self.body = body.into();
        self
    }

    /// Sends it; the answer is the document's: its status is listed, its body fits.
    pub(crate) async fn send(self) -> Answer {
        let (method, path) = (self.method.clone(), self.path.clone());
        let answer = self.send_unchecked().await;
        schema::check(&method, &path, &answer);
        answer
    }

    pub(crate) async fn send_unchecked(self) -> Answer {
        let request = self.request.body(self.body).unwrap();
        let response = self.house.app.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        // What streams has no end to wait for.
        let streams = parts
            .headers
            .get("content-type")
            .is_some_and(|v| v.as_bytes().starts_with(b"text/event-stream"));
        let bytes = if streams {
            Vec::new()
        } else {
            body.collect().await.unwrap().to_bytes().to_vec()
        };
        Answer {
            status: parts.status,
            headers: parts.headers,
            bytes,
        }
    }
}

impl House {
    pub(crate) fn ask(&self, method: &str, path: &str) -> Ask<'_> {
        Ask {
            house: self,
            request: Request::builder().method(method).uri(path),
            body: Body::empty(),
            method: method.to_owned(),
            path: path.to_owned(),
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path).by(ADMIN).send().await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask("POST", path).by(ADMIN).json(body).send().await
    }

    /// Makes a resource of ann's and waits until it runs.
    pub(crate) async fn make(&self, body: &Value) -> Value {
        let answer = self
            .ask("POST", "/resources")
            .by(ADMIN)
            .header("prefer", "wait=10")
            .json(body)
            .send()
            .await
            .expect(201);
        let resource = answer.json();
        assert_eq!(resource["status"], "running", "{resource:#}");
        resource
    }

    pub(crate) async fn container(&self) -> String {
        id(&self.make(&container()).await)
    }

    pub(crate) async fn machine(&self) -> String {
        id(&self.make(&machine()).await)
    }

    /// Deletes and waits until it is gone, so that the node does not fill up.
    pub(crate) async fn remove(&self, id: &str) {
        self.ask("DELETE", &format!("/resources/{id}"))
            .by(ADMIN)
            .header("prefer", "wait=10")
            .send()
            .await;
    }
}

pub(crate) fn id(resource: &Value) -> String {
    resource["_id"].as_str().unwrap().to_owned()
}

/// A container that runs a shell, so that there is something to talk to.
pub(crate) fn container() -> Value {
    json!({
        "name": "web",
        "resourceType": "application-container",
        "config": {
            "type": "application-container",
            "registry": "docker-hub",
            "imageName": "busybox",
            "containerPorts": [{ "containerPort": 80 }],
            "cpuCores": 0.5,
            "ramLimit": 0.25,
        },
    })
}

pub(crate) fn machine() -> Value {
    json!({
        "name": "vm",
        "resourceType": "virtual-machine",
        "config": {
            "type": "virtual-machine",
            "osImage": "debian-12",
            "vcpus": 1,
            "ramMB": 1024,
            "diskGB": 10,
            "networkConfig": { "mode": "bridge-vlan", "ipMode": "dhcp" },
        },
    })
}
