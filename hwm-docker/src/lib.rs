//! Containers for hwm, on Docker (engine 20.10 or newer) or Podman.
//!
//! [`DockerBackend`] is a [`Backend`] for application and inference containers. It needs no engine to be
//! made: while there is none, its calls fail with
//! [`Unavailable`](hwm_core::backend::BackendErrorKind::Unavailable).
//!
//! ```
//! use hwm_docker::{DockerBackend, DockerOptions};
//!
//! let options = DockerOptions {
//!     volume_roots: vec!["/srv/hwm/volumes".into()],
//!     ..DockerOptions::new("node-1", "/srv/hwm")
//! };
//! let backend = DockerBackend::new(options)?;
//! # Ok::<(), hwm_docker::OptionsError>(())
//! ```
#![forbid(unsafe_code)]

mod cgroup;
mod check;
mod client;
mod engine;
mod exec;
mod fence;
mod flight;
mod frames;
mod health;
mod image;
mod kill;
mod lifecycle;
mod live;
mod logs;
mod models;
mod observe;
mod paths;
mod sources;
mod spec;
mod stats;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hwm_core::backend::{
    Backend, BackendEvent, BackendInfo, BackendReport, Call, CheckReport, Exec, ExecOutput, ExecRequest,
    ExecSession, Facets, Health, HealthReport, LiveUpdate, LogLine, LogQuery, Observed, Result, Session,
    StopOptions, Stream, Workload,
};
use hwm_core::config::{Config, HealthCheck, ResourceType};
use hwm_core::id::{BackendName, ResourceId};
use hwm_core::metrics::Metrics;
use hwm_core::secret::Secret;

use crate::client::{Client, Endpoint};
use crate::engine::Engine;
use crate::fence::Fence;
use crate::image::Images;
use crate::models::Models;
use crate::observe::{Container, LastWords};
use crate::paths::Roots;
use crate::sources::Sources;
use crate::spec::{Policy, container_name};
use crate::stats::{Node, Sampler};

pub use crate::spec::GpuAttachment;

/// How a [`DockerBackend`] works. All but the owner has a default.
#[derive(Debug, Clone)]
pub struct DockerOptions {
    /// The backend's name on the node; `docker` by default.
    pub name: BackendName,
    /// Where the engine listens: `unix:///path` or `tcp://host:port` (without TLS). `DOCKER_HOST`, or else
    /// the local socket, when absent.
    pub host: Option<String>,
    /// Tells this manager's containers from those of others: usually the node's id.
    pub owner: String,
    /// Folders under which volumes may lie; none by default.
    pub volume_roots: Vec<PathBuf>,
    /// Folders under which local models may lie, besides the volume roots; none by default.
    pub model_roots: Vec<PathBuf>,
    /// Where fetched models are kept.
    pub model_cache: PathBuf,
    /// URL prefixes from which models may be fetched; `s3://` and `https://` by default. Only public
    /// addresses are connected to, and those of hosts that a prefix names.
    pub model_sources: Vec<String>,
    /// Settings of S3 by their names without `AWS_`, such as `endpoint` or `region`; those of the
    /// environment's `AWS_*` variables where absent.
    pub s3: BTreeMap<String, Secret>,
    /// Whether containers may use the host's network; not by default.
    pub allow_host_network: bool,
    /// How long a container may take to end when asked; 10 s by default.
    pub stop_grace: Duration,
    /// The address that ports are published on; all by default.
    pub publish_address: IpAddr,
    /// How clients reach published ports, in endpoints; `127.0.0.1`, or the engine's host, by default.
    pub advertise: Option<String>,
    /// How many processes a container may have; 4096 by default.
    pub pids_limit: u32,
    /// Whether a small init reaps processes and forwards signals in each container; it does by default.
    pub init: bool,
    /// Size of one file of a container's log in MB, and how many are kept; 16 and 4 by default.
    pub log_files: (u32, u32),
    /// How long the engine may take to answer a question; 20 s by default, and three times that for changes.
    /// One that takes longer counts as away.
    pub patience: Duration,
    /// How GPUs are attached; found out from the engine when absent.
    pub gpus: Option<GpuAttachment>,
    /// The engine's pid file, which tells when it restarted; `/var/run/docker.pid` when absent.
    pub pid_file: Option<PathBuf>,
}

impl DockerOptions {
    /// The defaults, for a manager with that owner label; fetched models go to `<data>/model-cache`.
    pub fn new(owner: impl Into<String>, data: impl AsRef<Path>) -> Self {
        Self {
            name: BackendName::new("docker"),
            host: None,
            owner: owner.into(),
            volume_roots: Vec::new(),
            model_roots: Vec::new(),
            model_cache: data.as_ref().join("model-cache"),
            model_sources: vec!["s3://".to_owned(), "https://".to_owned()],
            s3: BTreeMap::new(),
            allow_host_network: false,
            stop_grace: Duration::from_secs(10),
            publish_address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            advertise: None,
            pids_limit: 4096,
            init: true,
            log_files: (16, 4),
            patience: Duration::from_secs(20),
            gpus: None,
            pid_file: None,
        }
    }
}

/// What is wrong with [`DockerOptions`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OptionsError {
    /// The host is neither `unix:///path` nor `tcp://host:port`.
    #[error("the engine's host {0:?} must be unix:///path or tcp://host:port")]
    Host(String),
    /// The owner is empty or has a character that a label filter cannot hold.
    #[error("the owner must not be empty and must have printable characters only")]
    Owner,
    /// A model source is no URL prefix.
    #[error("the model source {0:?} must be a URL prefix such as https:// or s3://bucket/")]
    Source(String),
    /// An HTTP client could not be made.
    #[error("making an HTTP client")]
    Http(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Runs containers. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct DockerBackend(Arc<Inner>);

pub(crate) struct Inner {
    options: DockerOptions,
    policy: Policy,
    client: Client,
    engine: Engine,
    fence: Fence,
    images: Images,
    models: Arc<Models>,
    volume_roots: Roots,
    words: LastWords,
    sampler: Sampler,
    prober: health::Prober,
    advertise: String,
}

impl std::fmt::Debug for DockerBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DockerBackend")
            .field("endpoint", self.0.client.endpoint())
            .field("options", &self.0.options)
            .finish_non_exhaustive()
    }
}

impl DockerBackend {
    /// A backend with these options. The engine need not be there.
    pub fn new(options: DockerOptions) -> std::result::Result<Self, OptionsError> {
        if options.owner.is_empty() || options.owner.chars().any(char::is_control) {
            return Err(OptionsError::Owner);
        }
        let host = options.host.clone().or_else(|| std::env::var("DOCKER_HOST").ok());
        let host = host.filter(|h| !h.is_empty()).unwrap_or_else(default_host);
        let endpoint = Endpoint::parse(&host).ok_or(OptionsError::Host(host))?;
        let sources = Sources::parse(&options.model_sources).map_err(OptionsError::Source)?;
        let volume_roots = Roots::new(options.volume_roots.clone(), endpoint.socket());
        let model_roots = options.model_roots.iter().chain(&options.volume_roots).cloned();
        let model_roots = Roots::new(model_roots, endpoint.socket());
        let s3 = Arc::new(options.s3.clone());
        let models = Models::new(model_roots, options.model_cache.clone(), sources, s3);
        let advertise = options
            .advertise
            .clone()
            .unwrap_or_else(|| endpoint.host().to_owned());
        Ok(Self(Arc::new(Inner {
            policy: Policy {
                owner: options.owner.clone(),
                pids_limit: options.pids_limit,
                init: options.init,
                publish: options.publish_address,
                log_file_mb: options.log_files.0,
                log_files: options.log_files.1,
            },
            engine: Engine::new(options.gpus, options.pid_file.clone()),
            client: Client::new(endpoint, options.patience).map_err(|e| OptionsError::Http(Box::new(e)))?,
            fence: Fence::default(),
            images: Images::default(),
            models: Arc::new(models),
            volume_roots,
            words: LastWords::default(),
            sampler: Sampler::default(),
            prober: health::Prober::new().map_err(|e| OptionsError::Http(Box::new(e)))?,
            advertise,
            options,
        })))
    }
}

/// The innermost cause of an error, which says what went wrong.
fn root_of(error: &dyn std::error::Error) -> String {
    let mut root = error;
    while let Some(source) = root.source() {
        root = source;
    }
    root.to_string()
}

/// Docker's socket, or Podman's where only that is there.
fn default_host() -> String {
    let docker = "/var/run/docker.sock";
    let podman = "/run/podman/podman.sock";
    let socket = if !Path::new(docker).exists() && Path::new(podman).exists() {
        podman
    } else {
        docker
    };
    format!("unix://{socket}")
}

impl Inner {
    async fn observed(&self, containers: Vec<(ResourceId, Container)>) -> Vec<Observed> {
        let looks = containers.iter().map(|(id, container)| {
            observe::observe(&self.client, &self.words, &self.advertise, *id, container)
        });
        futures_util::future::join_all(looks).await
    }
}

#[async_trait]
impl Backend for DockerBackend {
    fn info(&self) -> BackendInfo {
        BackendInfo {
            name: self.0.options.name.clone(),
            types: vec![
                ResourceType::ApplicationContainer,
                ResourceType::InferenceContainer,
            ],
        }
    }

    fn facets(&self) -> Facets {
        let live = !self.0.engine.is_podman();
        Facets {
            exec: Some(Arc::new(self.clone())),
            live_update: live.then(|| Arc::new(self.clone()) as Arc<dyn LiveUpdate>),
            health: Some(Arc::new(self.clone())),
            ..Facets::default()
        }
    }

    async fn probe(&self) -> Result<BackendReport> {
        self.0.engine.probe(&self.0.client).await
    }

    async fn check(&self, planned: &Workload) -> Result<CheckReport> {
        self.0.check(planned).await
    }

    async fn create(&self, call: &Call, workload: &Workload) -> Result<()> {
        self.0.create(call, workload).await
    }

    async fn start(&self, call: &Call, workload: &Workload) -> Result<()> {
        self.0.start(call, workload).await
    }

    async fn stop(&self, call: &Call, id: ResourceId, options: StopOptions) -> Result<()> {
        self.0.stop(call, id, options).await
    }

    async fn remove(&self, call: &Call, id: ResourceId) -> Result<()> {
        self.0.remove(call, id).await
    }

    async fn inspect(&self, ids: &[ResourceId]) -> Result<Vec<Observed>> {
        let found = observe::inspect(&self.0.client, &self.0.options.owner, ids).await?;
        Ok(self.0.observed(found).await)
    }

    async fn owned(&self) -> Result<Vec<Observed>> {
        let found = observe::owned(&self.0.client, &self.0.options.owner).await?;
        Ok(self.0.observed(found).await)
    }

    async fn events(&self) -> Result<Stream<BackendEvent>> {
        observe::events(&self.0.client, &self.0.options.owner).await
    }

    async fn logs(&self, id: ResourceId, query: LogQuery) -> Result<Stream<Result<LogLine>>> {
        let found = observe::inspect(&self.0.client, &self.0.options.owner, &[id]).await?;
        match found.first() {
            Some((_, container)) => logs::read(&self.0.client, &container.id, query).await,
            None => Ok(Box::pin(futures_util::stream::empty())),
        }
    }

    async fn metrics(&self, ids: &[ResourceId]) -> Result<Vec<(ResourceId, Metrics)>> {
        let found = observe::inspect(&self.0.client, &self.0.options.owner, ids).await?;
        let about = self.0.engine.about(&self.0.client).await?;
        let node = Node {
            cpu: about.info.cpu(),
            memory: about.info.memory(),
        };
        self.0.sampler.metrics(&self.0.client, node, found).await
    }
}

#[async_trait]
impl Exec for DockerBackend {
    async fn run(&self, id: ResourceId, request: ExecRequest) -> Result<ExecOutput> {
        let doing = format!("running a command in {}", container_name(id));
        let container = self.0.existing(id, &doing).await?;
        exec::run(&self.0.client, &container.id, request).await
    }

    async fn open(&self, id: ResourceId, request: ExecSession) -> Result<Session> {
        let doing = format!("opening a session in {}", container_name(id));
        let container = self.0.existing(id, &doing).await?;
        exec::open(&self.0.client, &container.id, request).await
    }
}

#[async_trait]
impl LiveUpdate for DockerBackend {
    fn is_live(&self, from: &Config, to: &Config) -> bool {
        live::is_live(from, to)
    }

    async fn update(&self, call: &Call, workload: &Workload) -> Result<()> {
        self.0.update(call, workload).await
    }
}

#[async_trait]
impl Health for DockerBackend {
    async fn check(&self, id: ResourceId, check: &HealthCheck) -> Result<HealthReport> {
        let doing = format!("checking the health of {}", container_name(id));
        let container = self.0.existing(id, &doing).await?;
        let endpoint = self.0.client.endpoint();
        self.0
            .prober
            .check(&container, check, endpoint.host(), endpoint.is_local())
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hwm_core::backend::BackendErrorKind;

    #[test]
    fn wrong_options_are_named() {
        let with = |change: &dyn Fn(&mut DockerOptions)| {
            let mut options = DockerOptions::new("me", "/nonexistent");
            options.host = Some("unix:///nonexistent/docker.sock".into());
            change(&mut options);
            DockerBackend::new(options).map(drop)
        };
        assert!(with(&|_| ()).is_ok());
        assert!(matches!(
            with(&|o| o.host = Some("ssh://x".into())),
            Err(OptionsError::Host(_))
        ));
        assert!(matches!(with(&|o| o.owner.clear()), Err(OptionsError::Owner)));
        let source = with(&|o| o.model_sources.push("ftp://x".into()));
        assert!(matches!(source, Err(OptionsError::Source(s)) if s == "ftp://x"));
    }

    #[tokio::test]
    async fn without_an_engine_every_call_says_that_it_is_away() {
        let mut options = DockerOptions::new("me", "/nonexistent");
        options.host = Some("unix:///nonexistent/docker.sock".into());
        let backend = DockerBackend::new(options).unwrap();
        let id = ResourceId::from_u128(1);
        let call = Call::new(1, Duration::from_secs(5));
        let away =
            |error: hwm_core::backend::BackendError| assert_eq!(error.kind, BackendErrorKind::Unavailable);
        away(backend.probe().await.unwrap_err());
        away(backend.remove(&call, id).await.unwrap_err());
        away(backend.stop(&call, id, StopOptions::default()).await.unwrap_err());
        away(backend.inspect(&[id]).await.unwrap_err());
        away(backend.owned().await.unwrap_err());
        away(backend.events().await.err().unwrap());
        away(backend.logs(id, LogQuery::default()).await.err().unwrap());
        away(backend.metrics(&[id]).await.unwrap_err());
    }
}
