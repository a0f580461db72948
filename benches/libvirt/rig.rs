//! A server in this process, on the lab's libvirt, with a pool of its own.

use std::sync::Arc;
use std::time::Duration;

use hwm_core::manager::Manager;
use hwm_http::Options;
use hwm_http::auth::{Auth, Claims, sign_hs256};
use hwm_libvirt::{DomainType, Libvirt, LibvirtOptions};
use hwm_store::{SealingKey, SqliteStore};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::Error;
use crate::proxy::Proxy;
use crate::raw::Raw;

const SECRET: &[u8] = b"thirty-two random bytes are good";

pub(crate) struct Rig {
    /// The backend of the server. It reaches libvirt through the proxy, which counts.
    pub(crate) counted: Libvirt,
    pub(crate) proxy: Proxy,
    pub(crate) raw: Raw,
    pub(crate) base: String,
    http: reqwest::Client,
    token: String,
    _folder: tempfile::TempDir,
}

fn variable(name: &str) -> Result<String, Error> {
    std::env::var(name).map_err(|_| format!("{name} is not set: run `scripts/lab up libvirt`").into())
}

impl Rig {
    pub(crate) async fn new() -> Result<Self, Error> {
        let folder = tempfile::tempdir()?;
        let empty = folder.path().join("empty.img");
        std::fs::File::create(&empty)?.set_len(1 << 20)?;
        let catalog = folder.path().join("images.toml");
        let text = format!(
            "[[image]]\nname = \"empty\"\nformat = \"raw\"\nsource = \"file://{}\"\nuser = \"root\"\n",
            empty.display()
        );
        std::fs::write(&catalog, text)?;
        let uri = variable("HWM_TEST_LIBVIRT_URI")?;
        let pool = format!("hwm-bench-{}", std::process::id());
        let options = LibvirtOptions {
            uri: uri.clone(),
            bridge: variable("HWM_TEST_BRIDGE")?,
            domain_type: DomainType::parse(&variable("HWM_TEST_DOMAIN_TYPE")?).ok_or("a domain type")?,
            image_catalog: Some(catalog),
            pool_path: format!("/var/lib/libvirt/images/{pool}"),
            pool: pool.clone(),
            cache_dir: folder.path().join("cache"),
            ..LibvirtOptions::new(pool.clone())
        };
        let proxy = Proxy::new(folder.path(), &uri);
        let counted = Libvirt::new(LibvirtOptions {
            uri: proxy.uri(),
            ..options.clone()
        })?;
        let key = SealingKey::load_or_create(&folder.path().join("key"))?;
        let store = Arc::new(SqliteStore::open(&folder.path().join("hwm.db"), key)?);
        let rules = hwm_core::validate::Rules {
            os_images: ["empty".to_owned()].into(),
            ..Default::default()
        };
        let manager = Manager::builder(store, "node-0".into())
            .backend(Arc::new(Libvirt::new(options)?))
            .rules(rules)
            .build()
            .await?;
        let app = hwm_http::router(
            manager,
            Options {
                caller_rate: None,
                address_rate: None,
                ..Options::new(Auth::hs256(SECRET)?)
            },
        );
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let base = format!("http://{}", listener.local_addr()?);
        let app = app.into_make_service_with_connect_info::<std::net::SocketAddr>();
        tokio::spawn(async move { axum::serve(listener, app).await });
        let token = sign_hs256(
            SECRET,
            &Claims {
                sub: "ann".into(),
                username: "ann".into(),
                status: "active".into(),
                roles: vec!["universe.owner".into()],
                exp: 4_000_000_000,
                ..Claims::default()
            },
        )?;
        let rig = Self {
            counted,
            proxy,
            raw: Raw::open(&uri, &pool)?,
            base,
            http: reqwest::Client::builder()
                .no_proxy()
                .timeout(Duration::from_secs(90))
                .build()?,
            token,
            _folder: folder,
        };
        // The pool and the image are there before anything is measured.
        let made = rig.create("first").await?;
        rig.raw.learn(&made)?;
        rig.delete(&made).await?;
        Ok(rig)
    }

    /// Asks, waits for the operation, and answers the body.
    pub(crate) async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value, Error> {
        let mut request = self
            .http
            .request(method.clone(), format!("{}{path}", self.base))
            .bearer_auth(&self.token)
            .header("prefer", "wait=60");
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await?;
        let status = response.status();
        let body: Value = response.json().await?;
        match status {
            StatusCode::OK | StatusCode::CREATED => Ok(body),
            _ => Err(format!("{method} {path}: {status}: {body}").into()),
        }
    }

    /// Makes a machine, and answers its id when it runs.
    pub(crate) async fn create(&self, name: &str) -> Result<String, Error> {
        let body = json!({
            "name": name,
            "resourceType": "virtual-machine",
            "config": {
                "type": "virtual-machine", "osImage": "empty", "vcpus": 1, "ramMB": 512, "diskGB": 10,
                "networkConfig": { "mode": "bridge-vlan", "ipMode": "dhcp" },
            },
        });
        let made = self.ask(Method::POST, "/resources", Some(body)).await?;
        match (made["status"].as_str(), made["_id"].as_str()) {
            (Some("running"), Some(id)) => Ok(id.to_owned()),
            _ => Err(format!("it does not run: {made}").into()),
        }
    }

    pub(crate) async fn delete(&self, id: &str) -> Result<(), Error> {
        self.ask(Method::DELETE, &format!("/resources/{id}"), None)
            .await
            .map(drop)
    }

    /// Removes what the bench made, the pool included.
    pub(crate) async fn clean(self) -> Result<(), Error> {
        self.raw.clean()
    }
}
