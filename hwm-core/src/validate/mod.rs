//! Finds every violation of a request at once, each with its field path and the way out. Pure.
//!
//! What only the node knows (links in a path, names of GPUs, what else uses a port) is judged there, by
//! [`Backend::check`](crate::backend::Backend) and the accelerators; the rules here need nothing but the
//! request and the operator's [`Rules`].
//!
//! - A field that is null is left out. A field that is left out has its documented default or is refused.
//! - A number is never read from a text; `2.0` is an integer, `2.5` is none.
//! - Messages name the rule, never the value, which may be a secret in the wrong place.
//! - Everything is bounded; see [`limits`].
//!
//! ```
//! use hwm_core::validate::{Rules, create_request};
//! use serde_json::json;
//!
//! let body = json!({
//!     "name": "web",
//!     "resourceType": "application-container",
//!     "config": {
//!         "type": "application-container",
//!         "registry": "docker-hub",
//!         "imageName": "nginx",
//!         "containerPorts": [{ "containerPort": 80 }, { "containerPort": 443, "hostPort": 0 }],
//!         "cpus": 2,
//!     },
//! });
//! let violations = create_request(&body, &Rules::default()).unwrap_err();
//! assert_eq!(violations[0].to_string(), "config.containerPorts[1].hostPort: must be between 1 and 65535");
//! assert!(violations[1].to_string().starts_with("config.cpus: is not a known field"));
//! ```

mod container;
mod gpu;
mod image;
pub mod limits;
mod machine;
mod model;
mod object;
mod patch;
mod path;
mod reader;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::backend::ExecRequest;
use crate::config::{Config, ResourceType};
use crate::error::Violation;
use crate::id::NodeId;
use crate::operation::Arguments;
use crate::secret::{REDACTED, Secret};
use crate::snapshot::SnapshotRequest;

pub use model::is_public;
pub use patch::{Patch, patch};

use reader::{Context, Field};

/// A request to create a resource, valid as far as can be told without the node.
#[derive(Debug, Clone, PartialEq)]
pub struct CreateRequest {
    /// A label, 1..100 characters.
    pub name: String,
    /// For people, at most 500 characters.
    pub description: Option<String>,
    /// Where it is to run; the only node when absent.
    pub node: Option<NodeId>,
    /// What is wanted.
    pub config: Config,
    /// Free for the client.
    pub metadata: BTreeMap<String, String>,
    /// Whether it deploys by itself.
    pub auto_start: bool,
}

/// What the operator allows on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// The names in the image catalogue.
    pub os_images: BTreeSet<String>,
    /// Absolute paths under which folders may be mounted; with none, volumes are refused.
    pub volume_roots: Vec<PathBuf>,
    /// Absolute paths under which models may be, beside the volume roots.
    pub model_roots: Vec<PathBuf>,
    /// Prefixes of URLs from which models may come. A prefix ends at a boundary: `https://a.org/m` permits
    /// `https://a.org/m/x` and neither `https://a.org/mx` nor `https://a.org.evil.com/m`. One without a host
    /// permits every public host.
    pub model_sources: Vec<String>,
    /// Whether containers may use the host's network.
    pub host_network: bool,
}

impl Default for Rules {
    /// The contract's eight images, models from `s3://` and `https://`, no roots, no host networking.
    fn default() -> Self {
        let os_images = [
            "ubuntu-22.04",
            "ubuntu-20.04",
            "centos-8",
            "centos-7",
            "windows-server-2022",
            "windows-server-2019",
            "debian-12",
            "debian-11",
        ];
        Self {
            os_images: os_images.map(str::to_owned).into(),
            volume_roots: Vec::new(),
            model_roots: Vec::new(),
            model_sources: vec!["s3://".to_owned(), "https://".to_owned()],
            host_network: false,
        }
    }
}

const TYPES: [(&str, ResourceType); 3] = [
    ("virtual-machine", ResourceType::VirtualMachine),
    ("application-container", ResourceType::ApplicationContainer),
    ("inference-container", ResourceType::InferenceContainer),
];

/// What of a resource the server alone writes.
const SERVER_FIELDS: [&str; 12] = [
    "_id",
    "createdAt",
    "createdBy",
    "deletedAt",
    "errorMessage",
    "lastHealthCheck",
    "owner",
    "restartRequired",
    "runtime",
    "status",
    "updatedAt",
    "updatedBy",
];

/// Reads the body of `POST /resources`.
///
/// # Errors
/// Every broken rule.
pub fn create_request(body: &Value, rules: &Rules) -> Result<CreateRequest, Vec<Violation>> {
    let cx = Context::new(rules, None);
    let read = create(&cx.root(body));
    cx.finish(read)
}

fn create(body: &Field<'_>) -> Option<CreateRequest> {
    let fields = body.object()?;
    let name = fields.required("name", |f| text::line(f, limits::NAME));
    let description = fields.optional("description", |f| text::prose(f, limits::DESCRIPTION));
    let resource_type = fields.required("resourceType", |f| f.word(&TYPES));
    let node = fields.optional("nodeId", |f| text::token(f, limits::LABEL));
    let config = fields.required("config", |f| config(f, resource_type));
    let metadata = fields.optional("metadata", metadata);
    let auto_start = fields.optional("autoStart", Field::boolean);
    for name in SERVER_FIELDS {
        let message = match name {
            "owner" => "is the caller, as the token says: leave it out",
            "status" => "is set by the server: leave it out, and set autoStart to false to leave it queued",
            _ => "is set by the server: leave it out",
        };
        fields.absent(name, message);
    }
    fields.finish_beside(&SERVER_FIELDS);
    Some(CreateRequest {
        name: name?,
        description,
        node: node.map(NodeId::new),
        config: config?,
        metadata: metadata.unwrap_or_default(),
        auto_start: auto_start.unwrap_or(true),
    })
}

fn config(field: &Field<'_>, resource_type: Option<ResourceType>) -> Option<Config> {
    let fields = field.object()?;
    let own = fields.required("type", |f| f.word(&TYPES));
    if let (Some(own), Some(resource_type)) = (own, resource_type)
        && own != resource_type
    {
        fields.broken("type", "must equal resourceType");
    }
    let previous = field.cx.previous;
    let config = match resource_type.or(own)? {
        ResourceType::VirtualMachine => machine::config(&fields, previous).map(Config::Machine),
        ResourceType::ApplicationContainer => container::application(&fields).map(Config::Container),
        ResourceType::InferenceContainer => container::inference(&fields).map(Config::Inference),
    };
    fields.finish();
    config
}

fn metadata(field: &Field<'_>) -> Option<BTreeMap<String, String>> {
    field.entries(limits::METADATA_ENTRIES, |key, f| {
        if !limits::METADATA_KEY.contains(&key.chars().count()) || key.chars().any(char::is_control) {
            return f.refuse(format!(
                "must have a key of {} to {} characters, none of them a control character",
                limits::METADATA_KEY.start(),
                limits::METADATA_KEY.end()
            ));
        }
        text::raw(f, limits::METADATA_VALUE)
    })
}

/// A secret; `***` is the one stored under `name`, as [`Config::secrets`] names it.
fn secret(field: &Field<'_>, name: &str, rule: impl Fn(&Field<'_>) -> Option<String>) -> Option<Secret> {
    if field.value.as_str() == Some(REDACTED) {
        let stored = field.cx.previous.and_then(|config| config.secrets().remove(name));
        return stored.cloned().or_else(|| {
            field.refuse("must be the secret itself: \"***\" stands for a stored one, and none is stored")
        });
    }
    rule(field).map(Secret::new)
}

/// Reads the body of `POST /resources/:id/snapshots`.
///
/// # Errors
/// Every broken rule.
pub fn snapshot_request(body: &Value) -> Result<SnapshotRequest, Vec<Violation>> {
    read(body, |body| {
        let fields = body.object()?;
        let name = fields.required("name", |f| text::line(f, limits::NAME));
        let description = fields.optional("description", |f| text::prose(f, limits::DESCRIPTION));
        let memory = fields.optional("memory", Field::boolean);
        fields.finish();
        Some(SnapshotRequest {
            name: name?,
            description,
            memory,
        })
    })
}

/// Reads the body of `POST /resources/:id/stop`. Null stands for no body: the defaults.
///
/// # Errors
/// Every broken rule.
pub fn stop_arguments(body: &Value) -> Result<Arguments, Vec<Violation>> {
    if body.is_null() {
        return Ok(Arguments::default());
    }
    read(body, |body| {
        let fields = body.object()?;
        let force = fields.optional("force", Field::boolean);
        let grace_seconds = fields.optional("timeoutSeconds", |f| f.integer(limits::GRACE));
        fields.finish();
        Some(Arguments {
            force: force.unwrap_or_default(),
            grace_seconds,
            ..Arguments::default()
        })
    })
}

/// Reads the body of `POST /resources/:id/exec`.
///
/// # Errors
/// Every broken rule.
pub fn exec_request(body: &Value) -> Result<ExecRequest, Vec<Violation>> {
    read(body, |body| {
        let fields = body.object()?;
        let command = fields.required("command", |f| text::raw(f, 1..=limits::ARGUMENT));
        let working_dir = fields.optional("workingDir", |f| text::absolute(f, limits::PATH));
        let timeout = fields.optional("timeoutSeconds", |f| f.integer(limits::EXEC_TIMEOUT));
        fields.finish();
        Some(ExecRequest {
            command: command?,
            working_dir,
            timeout: Duration::from_secs(timeout.unwrap_or(limits::EXEC_TIMEOUT_DEFAULT)),
            output_limit: limits::EXEC_OUTPUT,
        })
    })
}

/// Reads a body on which the operator's rules have no bearing.
fn read<T>(body: &Value, read: impl Fn(&Field<'_>) -> Option<T>) -> Result<T, Vec<Violation>> {
    let rules = Rules::default();
    let cx = Context::new(&rules, None);
    let value = read(&cx.root(body));
    cx.finish(value)
}
