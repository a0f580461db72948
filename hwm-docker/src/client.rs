//! The one way to the engine: connections, the API version, deadlines, and what its failures mean.
//!
//! bollard speaks through our own transport, for three reasons: its requests leave out the API version
//! that was negotiated; it refuses to be made while the socket is absent; and its readers fail a whole
//! answer at one unknown enum value (Podman has some) and start streams only when they are polled. So
//! bollard sends commands, and what is observed is read here, tolerantly.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hwm_core::backend::{BackendError, BackendErrorKind, Result};
use hyper::body::{Body, Incoming};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// The newest API version that we know.
const NEWEST: u32 = 53;
/// The oldest that has all we need: one-shot stats and device requests (engine 20.10).
const OLDEST: u32 = 41;
/// How much longer a change may take than a look.
const CHANGE_FACTOR: u32 = 3;
/// The most that is read of an answer that is not a stream.
const ANSWER_LIMIT: usize = 64 << 20;
const MESSAGE_LIMIT: usize = 2000;

/// Where the engine listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// A socket of this machine.
    Unix(PathBuf),
    /// Host and port, without TLS.
    Tcp(String, u16),
}

impl Endpoint {
    /// Reads `unix://PATH` or `tcp://HOST:PORT`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if let Some(path) = text.strip_prefix("unix://") {
            return path.starts_with('/').then(|| Self::Unix(path.into()));
        }
        let rest = text
            .strip_prefix("tcp://")
            .or_else(|| text.strip_prefix("http://"))?;
        let (host, port) = rest.trim_end_matches('/').rsplit_once(':')?;
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let valid = !bare.is_empty()
            && bare
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':'));
        Some(Self::Tcp(valid.then(|| bare.to_owned())?, port.parse().ok()?))
    }

    /// Whether the engine sees this machine's files and ports.
    pub(crate) fn is_local(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Tcp(host, _) => matches!(host.as_str(), "localhost" | "127.0.0.1" | "::1"),
        }
    }

    pub(crate) fn socket(&self) -> Option<&Path> {
        match self {
            Self::Unix(path) => Some(path),
            Self::Tcp(..) => None,
        }
    }

    /// The host under which published ports answer.
    pub(crate) fn host(&self) -> &str {
        match self {
            Self::Unix(_) => "127.0.0.1",
            Self::Tcp(host, _) => host,
        }
    }
}

/// Why the engine did not do what it was asked to.
#[derive(Debug)]
pub(crate) enum Fault {
    /// It was not reached, or the connection broke.
    Away(String),
    /// It answered with a refusal.
    Refused {
        /// HTTP status.
        status: u16,
        /// Its words.
        message: String,
    },
    /// It answered something that cannot be read.
    Unreadable(String),
    /// It is too old.
    TooOld(String),
}

impl Fault {
    /// Whether it says that there is no such thing.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }

    pub(crate) fn has_status(&self, wanted: u16) -> bool {
        matches!(self, Self::Refused { status, .. } if *status == wanted)
    }

    pub(crate) fn message(&self) -> &str {
        match self {
            Self::Away(m) | Self::Unreadable(m) | Self::TooOld(m) => m,
            Self::Refused { message, .. } => message,
        }
    }

    /// What it means to the manager.
    pub(crate) fn during(self, doing: impl Into<String>) -> BackendError {
        let kind = match &self {
            Self::Away(_) => BackendErrorKind::Unavailable,
            Self::Unreadable(_) => BackendErrorKind::Failed,
            Self::TooOld(_) => BackendErrorKind::Unsupported,
            Self::Refused { status, message } => kind_of(*status, message),
        };
        let message = match self {
            Self::Unreadable(m) => format!("the engine's answer cannot be read: {m}"),
            Self::Refused { status, message } if message.is_empty() => {
                format!("the engine answered {status} without a reason")
            }
            Self::Away(message) | Self::TooOld(message) | Self::Refused { message, .. } => message,
        };
        BackendError::new(kind, doing, tidy(&message))
    }
}

/// What an engine's refusal means. It says 500 for most things; its words tell them apart.
pub(crate) fn kind_of(status: u16, message: &str) -> BackendErrorKind {
    let says = |words: &[&str]| words.iter().any(|w| message.contains(w));
    if says(&["no space left on device", "disk quota exceeded"]) {
        return BackendErrorKind::NoSpace;
    }
    if says(&["port is already allocated", "address already in use"]) {
        return BackendErrorKind::Conflict;
    }
    if message.contains("containerd") && says(&["transport is closing", "error while dialing", "Unavailable"])
    {
        return BackendErrorKind::Unavailable;
    }
    if says(&[
        "unauthorized",
        "authentication required",
        "no basic auth credentials",
        "access denied",
        "access to the resource is denied",
    ]) {
        return BackendErrorKind::Denied;
    }
    match status {
        400 | 406 => BackendErrorKind::Invalid,
        401 | 403 => BackendErrorKind::Denied,
        404 => BackendErrorKind::NotFound,
        409 => BackendErrorKind::Conflict,
        501 => BackendErrorKind::Unsupported,
        502..=504 => BackendErrorKind::Unavailable,
        _ if says(&["manifest unknown", "not found: manifest", "No such image"]) => {
            BackendErrorKind::NotFound
        }
        _ => BackendErrorKind::Failed,
    }
}

/// One printable line of bounded length.
pub(crate) fn tidy(message: &str) -> String {
    let mut line: String = message
        .trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MESSAGE_LIMIT)
        .collect();
    if message.trim().chars().nth(MESSAGE_LIMIT).is_some() {
        line.push('…');
    }
    line
}

impl From<bollard::errors::Error> for Fault {
    fn from(error: bollard::errors::Error) -> Self {
        use bollard::errors::Error;
        match error {
            Error::DockerResponseServerError { status_code, message } => Self::Refused {
                status: status_code,
                message,
            },
            Error::JsonDataError { message, .. } => Self::Unreadable(message),
            Error::JsonSerdeError { err } => Self::Unreadable(err.to_string()),
            Error::IOError { err } => Self::from(err),
            Error::HyperResponseError { err } => Self::from(err),
            Error::DockerStreamError { error } => Self::Refused {
                status: 500,
                message: error,
            },
            other => Self::Away(other.to_string()),
        }
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        match error.get_ref().and_then(|e| e.downcast_ref::<TooOld>()) {
            Some(old) => Self::TooOld(old.to_string()),
            None => Self::Away(match error.kind() {
                io::ErrorKind::NotFound => "its socket does not exist: is the engine running?".to_owned(),
                io::ErrorKind::ConnectionRefused => {
                    "nothing listens on its socket: is the engine running?".to_owned()
                }
                io::ErrorKind::PermissionDenied => "no permission to use its socket".to_owned(),
                _ => error.to_string(),
            }),
        }
    }
}

impl From<hyper::Error> for Fault {
    fn from(error: hyper::Error) -> Self {
        Self::Away(format!("the connection to the engine broke: {error}"))
    }
}

#[derive(Debug, thiserror::Error)]
#[error("it speaks API version {0}, and 1.{OLDEST} (engine 20.10) is the oldest that hwm can use")]
struct TooOld(String);

#[derive(serde::Deserialize)]
struct VersionAnswer {
    #[serde(rename = "ApiVersion")]
    api: String,
}

struct Link {
    endpoint: Endpoint,
    /// The minor part of API version 1.x in use; 0 until it was asked for.
    minor: AtomicU32,
}

impl Link {
    async fn send<B>(&self, request: Request<B>) -> io::Result<Response<Incoming>>
    where
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let answer = match &self.endpoint {
            Endpoint::Unix(path) => talk(UnixStream::connect(path).await?, request).await,
            Endpoint::Tcp(host, port) => {
                talk(TcpStream::connect((host.as_str(), *port)).await?, request).await
            }
        };
        answer.map_err(|e| io::Error::new(io::ErrorKind::BrokenPipe, e))
    }

    /// The API version that both sides know, asked for once per connection loss.
    async fn minor(&self) -> io::Result<u32> {
        let known = self.minor.load(Ordering::Relaxed);
        if known != 0 {
            return Ok(known);
        }
        let request = Request::get("/version")
            .header(header::HOST, "engine")
            .body(Full::<Bytes>::default())
            .map_err(io::Error::other)?;
        let body = self.send(request).await?.into_body();
        let body = Limited::new(body, 1 << 20)
            .collect()
            .await
            .map_err(io::Error::other)?;
        let answer: VersionAnswer = serde_json::from_slice(&body.to_bytes())
            .map_err(|_| io::Error::other("what listens there is no container engine"))?;
        let offered = answer.api.strip_prefix("1.").and_then(|m| m.parse::<u32>().ok());
        match offered {
            Some(minor) if minor >= OLDEST => {
                let minor = minor.min(NEWEST);
                self.minor.store(minor, Ordering::Relaxed);
                Ok(minor)
            }
            _ => Err(io::Error::other(TooOld(answer.api))),
        }
    }

    /// Sends a request under the negotiated version.
    async fn exchange<B>(&self, mut request: Request<B>) -> io::Result<Response<Incoming>>
    where
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let minor = self.minor().await?;
        let asked = request.uri().path_and_query().map_or("/", |p| p.as_str());
        *request.uri_mut() = format!("/v1.{minor}{}", without_version(asked))
            .parse::<Uri>()
            .map_err(io::Error::other)?;
        request
            .headers_mut()
            .insert(header::HOST, HeaderValue::from_static("engine"));
        let answer = self.send(request).await;
        if answer.is_err() {
            // Another version may be there when it is back.
            self.minor.store(0, Ordering::Relaxed);
        }
        answer
    }
}

/// Drops the `/v1.53` that another release of bollard may put in front.
fn without_version(path: &str) -> &str {
    path.strip_prefix("/v1.")
        .and_then(|rest| rest.find('/').map(|at| (&rest[..at], &rest[at..])))
        .filter(|(version, _)| version.bytes().all(|b| b.is_ascii_digit()))
        .map_or(path, |(_, rest)| rest)
}

async fn talk<S, B>(stream: S, request: Request<B>) -> hyper::Result<Response<Incoming>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the answer's body, or when this future is dropped.
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::trace!(%error, "a connection to the container engine ended");
        }
    });
    sender.send_request(request).await
}

/// A client of one engine. Cheap to clone; connects anew for every request.
#[derive(Clone)]
pub(crate) struct Client {
    link: Arc<Link>,
    docker: bollard::Docker,
    patience: Duration,
}

impl Client {
    /// A client whose looks take at most `patience`.
    pub(crate) fn new(
        endpoint: Endpoint,
        patience: Duration,
    ) -> std::result::Result<Self, bollard::errors::Error> {
        let link = Arc::new(Link {
            endpoint,
            minor: AtomicU32::new(0),
        });
        let transport = Arc::clone(&link);
        let docker = bollard::Docker::connect_with_custom_transport(
            move |request: bollard::BollardRequest| {
                let link = Arc::clone(&transport);
                async move { link.exchange(request).await.map_err(bollard::errors::Error::from) }
            },
            Some("http://engine"),
            // Deadlines are ours: bollard's would cut a long stop.
            u64::from(u32::MAX),
            bollard::API_DEFAULT_VERSION,
        )?;
        Ok(Self {
            link,
            docker,
            patience,
        })
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.link.endpoint
    }

    /// The most that a change may take which does not wait for a workload.
    pub(crate) fn change_limit(&self) -> Duration {
        self.patience.saturating_mul(CHANGE_FACTOR)
    }

    /// Does something that only looks.
    pub(crate) async fn look<T>(
        &self,
        doing: &str,
        call: impl Future<Output = std::result::Result<T, Fault>>,
    ) -> Result<T> {
        within(self.patience, doing, call).await
    }

    /// Does something that changes something and does not wait for a workload.
    pub(crate) async fn change<T>(
        &self,
        doing: &str,
        call: impl Future<Output = std::result::Result<T, Fault>>,
    ) -> Result<T> {
        within(self.change_limit(), doing, call).await
    }

    /// For commands.
    pub(crate) fn docker(&self) -> &bollard::Docker {
        &self.docker
    }

    /// The minor part of the API version in use.
    pub(crate) async fn api_minor(&self) -> std::result::Result<u32, Fault> {
        Ok(self.link.minor().await?)
    }

    /// Sends a request and returns when the head of a good answer is there.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        headers: &[(&'static str, String)],
        body: Vec<u8>,
    ) -> std::result::Result<Response<Incoming>, Fault> {
        let mut request = Request::builder()
            .method(method)
            .uri(with_query(path, query))
            .header(header::CONTENT_TYPE, "application/json");
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let request = request
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| Fault::Unreadable(e.to_string()))?;
        let answer = self.link.exchange(request).await?;
        let status = answer.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(answer);
        }
        let body = Limited::new(answer.into_body(), 1 << 20)
            .collect()
            .await
            .map_err(|e| Fault::Away(format!("the connection to the engine broke: {e}")))?
            .to_bytes();
        Err(Fault::Refused {
            status: status.as_u16(),
            message: message_of(&body),
        })
    }

    /// Opens a stream that the engine writes.
    pub(crate) async fn open(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> std::result::Result<Response<Incoming>, Fault> {
        self.send(Method::GET, path, query, &[], Vec::new()).await
    }

    /// Reads a JSON answer.
    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> std::result::Result<T, Fault> {
        let answer = self.open(path, query).await?;
        let body = Limited::new(answer.into_body(), ANSWER_LIMIT)
            .collect()
            .await
            .map_err(|e| Fault::Away(format!("the connection to the engine broke: {e}")))?
            .to_bytes();
        serde_json::from_slice(&body).map_err(|e| Fault::Unreadable(e.to_string()))
    }
}

fn message_of(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Refusal {
        message: String,
    }
    serde_json::from_slice::<Refusal>(body)
        .map_or_else(|_| String::from_utf8_lossy(body).into_owned(), |r| r.message)
}

fn with_query(path: &str, query: &[(&str, &str)]) -> String {
    if query.is_empty() {
        return path.to_owned();
    }
    match reqwest::Url::parse_with_params("http://engine/", query) {
        Ok(url) => format!("{path}?{}", url.query().unwrap_or_default()),
        Err(_) => path.to_owned(),
    }
}

/// Gives a call to the engine its deadline and its name.
pub(crate) async fn within<T>(
    limit: Duration,
    doing: &str,
    call: impl Future<Output = std::result::Result<T, Fault>>,
) -> Result<T> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => answer.map_err(|fault| fault.during(doing)),
        Err(_) => Err(late(limit, doing)),
    }
}

/// An engine that keeps silent is away.
pub(crate) fn late(limit: Duration, doing: &str) -> BackendError {
    BackendError::new(
        BackendErrorKind::Unavailable,
        doing,
        format!("the engine did not answer within {} s", limit.as_secs_f32()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_socket_or_a_host_with_a_port() {
        assert_eq!(
            Endpoint::parse("unix:///run/x.sock"),
            Some(Endpoint::Unix("/run/x.sock".into()))
        );
        assert_eq!(
            Endpoint::parse("tcp://[::1]:2375"),
            Some(Endpoint::Tcp("::1".into(), 2375))
        );
        for bad in [
            "",
            "unix://relative",
            "tcp://",
            "tcp://host",
            "tcp://a/b:1",
            "ssh://x:1",
            "npipe://x",
        ] {
            assert_eq!(Endpoint::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_version_in_front_of_a_path_is_replaced() {
        assert_eq!(without_version("/v1.53/containers/json"), "/containers/json");
        assert_eq!(without_version("/v1.x/containers"), "/v1.x/containers");
        assert_eq!(without_version("/volumes"), "/volumes");
    }

    #[test]
    fn the_engines_words_tell_its_500s_apart() {
        use BackendErrorKind::*;
        for (status, message, kind) in [
            (500, "write /x: no space left on device", NoSpace),
            (
                500,
                "driver failed: Bind for 0.0.0.0:80 failed: port is already allocated",
                Conflict,
            ),
            (
                500,
                "Get http://r/v2/: unauthorized: authentication required",
                Denied,
            ),
            (404, "pull access denied for x, repository does not exist", Denied),
            (500, "manifest unknown: manifest unknown", NotFound),
            (404, "No such container", NotFound),
            (500, "OCI runtime create failed", Failed),
            (503, "shutting down", Unavailable),
        ] {
            assert_eq!(kind_of(status, message), kind, "{message}");
        }
    }

    #[test]
    fn a_message_is_one_line_of_bounded_length() {
        assert_eq!(tidy(" a\nb\u{1b}[31m "), "a b [31m");
        assert_eq!(tidy(&"x".repeat(5000)).chars().count(), MESSAGE_LIMIT + 1);
    }

    #[tokio::test]
    async fn an_absent_socket_is_away_and_says_so() {
        let client = Client::new(
            Endpoint::Unix("/nonexistent/docker.sock".into()),
            Duration::from_secs(1),
        )
        .unwrap();
        let fault = client.get::<serde_json::Value>("/info", &[]).await.unwrap_err();
        let error = fault.during("asking");
        assert_eq!(error.kind, BackendErrorKind::Unavailable);
        assert!(error.message.contains("socket does not exist"), "{error}");
        let fault: Fault = client
            .docker()
            .remove_container("x", None)
            .await
            .unwrap_err()
            .into();
        assert!(matches!(fault, Fault::Away(_)), "{fault:?}");
    }
}
