//! Why the server does not start.

use std::io;
use std::path::PathBuf;

use hwm_http::auth::AuthError;
use hwm_store::OpenError;

/// Why the server does not start, or a token is not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("cannot use the data directory: {doing} {}", path.display())]
    DataDir {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("another server (process {holder}) uses the data directory {}: stop it, or name another with --data-dir", path.display())]
    Locked { path: PathBuf, holder: String },
    #[error(
        "the data directory belongs to node {kept}, not to {asked}: leave --node-id out, or name another --data-dir"
    )]
    OtherNode { kept: String, asked: String },
    #[error("{0} is not a node id: 1 to 64 letters, digits, dots, dashes and underscores")]
    NodeId(String),
    #[error("the root {} cannot be used", path.display())]
    Root { path: PathBuf, source: io::Error },
    #[error("cannot read the shared secret in {}", path.display())]
    Secret { path: PathBuf, source: io::Error },
    #[error("tokens are signed elsewhere here (--jwks): ask whoever holds the private key")]
    NoSecret,
    #[error("cannot tell whose tokens to accept")]
    Auth(#[from] AuthError),
    #[error("the store cannot be opened")]
    Store(#[from] OpenError),
    #[error("{what}")]
    Choice { what: String },
    #[error("{what} cannot be used")]
    Backend {
        what: &'static str,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("cannot listen on {address}")]
    Listen { address: String, source: io::Error },
    #[error("cannot serve TLS with {} and {}", certificate.display(), key.display())]
    Tls {
        certificate: PathBuf,
        key: PathBuf,
        source: io::Error,
    },
    #[error("the manager cannot start")]
    Manager(#[from] hwm_core::Error),
    #[error("{doing}")]
    System { doing: &'static str, source: io::Error },
}
