//! What can be chosen about the API.

use std::sync::Arc;
use std::time::Duration;

use hwm_core::env::{Environment, SystemEnvironment};
use tokio_util::sync::CancellationToken;

use crate::auth::Auth;

/// What can be chosen about the API. Start from [`Options::new`] and change fields.
#[derive(Clone)]
pub struct Options {
    /// Whose tokens are accepted.
    pub auth: Auth,
    /// Which web pages of other origins may call the API.
    pub cors: Cors,
    /// Origins (`https://portal.example`) whose pages may open WebSockets, besides those of the same host.
    pub origins: Vec<String>,
    /// The largest body, in bytes.
    pub body_limit: usize,
    /// How long a client may take to send a body.
    pub body_time: Duration,
    /// How long an answer may take. Streams are not cut, and commands have a limit of their own.
    pub answer_time: Duration,
    /// How fast one caller may ask; without limit when none.
    pub caller_rate: Option<Rate>,
    /// How fast one address may ask, judged before tokens are; without limit when none. Needs a server
    /// that hands connections over with `into_make_service_with_connect_info::<SocketAddr>()`.
    pub address_rate: Option<Rate>,
    /// The address under which clients reach the API, for example `https://hwm.example/api`; taken from
    /// each request's `Host` when none.
    pub public_url: Option<String>,
    /// Whether the server itself speaks TLS; matters only without `public_url`.
    pub tls: bool,
    /// The version that the document and `/health` show.
    pub version: String,
    /// How often an event stream sends a sign of life.
    pub heartbeat: Duration,
    /// How often an open stream checks that its caller may still have it.
    pub stream_check: Duration,
    /// How long an upgraded connection may take to send its token.
    pub first_message_time: Duration,
    /// The time of day and randomness.
    pub environment: Arc<dyn Environment>,
    /// Ends every stream and WebSocket when cancelled; cancel it when the server is to stop.
    pub shutdown: CancellationToken,
}

impl Options {
    /// The defaults: no other origin, 1 MiB, 60 s an answer, 500 requests a second and caller.
    pub fn new(auth: Auth) -> Self {
        Self {
            auth,
            cors: Cors::Off,
            origins: Vec::new(),
            body_limit: 1 << 20,
            body_time: Duration::from_secs(20),
            answer_time: Duration::from_secs(60),
            caller_rate: Some(Rate {
                per_second: 500,
                burst: 1000,
            }),
            address_rate: Some(Rate {
                per_second: 2000,
                burst: 4000,
            }),
            public_url: None,
            tls: false,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            heartbeat: Duration::from_secs(15),
            stream_check: Duration::from_secs(2),
            first_message_time: Duration::from_secs(10),
            environment: Arc::new(SystemEnvironment),
            shutdown: CancellationToken::new(),
        }
    }
}

/// Which web pages of other origins may call the API.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Cors {
    /// None.
    #[default]
    Off,
    /// Those of these origins, for example `https://portal.example`.
    Origins(Vec<String>),
    /// All. Tokens travel in a header that a foreign page does not have, so this shares no session.
    Any,
}

/// How fast someone may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Requests a second in the long run; 0 counts as 1.
    pub per_second: u32,
    /// Requests at once; 0 counts as 1.
    pub burst: u32,
}
