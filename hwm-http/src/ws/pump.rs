//! Carries frames between a socket and a session, with back-pressure both ways: whoever does not read stops
//! the other side from writing.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use futures_util::{SinkExt as _, Stream, StreamExt as _};
use hwm_core::Error;
use hwm_core::backend::{Input, Output, Session};
use hwm_core::id::ResourceId;
use tokio::sync::mpsc;

use super::short;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::state::Shared;
use crate::watch::{self, Lost};

/// How often an idle socket is asked whether someone is there.
const PING: Duration = Duration::from_secs(20);
/// How long a client may be silent, pings included, unless we are not listening ourselves.
const SILENCE: Duration = Duration::from_secs(60);

/// How frames of a session look on the wire.
pub(crate) trait Framing: Send + Sync + 'static {
    /// What a message means; none where it means nothing.
    ///
    /// # Errors
    /// Why the client broke the protocol.
    fn read(&self, message: Message) -> Result<Option<Input>, &'static str>;

    /// What an output looks like; none where it is not shown.
    fn write(&self, output: Output) -> Option<Message>;

    /// How the client is told that the session failed, before the socket closes.
    fn failure(&self, _error: &ApiError) -> Option<Message> {
        None
    }
}

/// How it ended, and what the close frame says.
struct Ending {
    code: u16,
    reason: String,
}

impl Ending {
    fn new(code: u16, reason: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.into(),
        }
    }
}

impl From<Lost> for Ending {
    fn from(lost: Lost) -> Self {
        let code = match lost {
            Lost::Shutdown => close_code::AWAY,
            Lost::Token | Lost::Resource => close_code::POLICY,
        };
        Self::new(code, lost.reason())
    }
}

/// When the client was heard last; none while we do not listen because the workload does not read.
struct Heard(Mutex<Option<Instant>>);

impl Heard {
    fn set(&self, at: Option<Instant>) {
        *self.0.lock().unwrap_or_else(|e| e.into_inner()) = at;
    }

    fn silent_too_long(&self) -> bool {
        let at = *self.0.lock().unwrap_or_else(|e| e.into_inner());
        at.is_some_and(|at| at.elapsed() > SILENCE)
    }
}

/// Runs until either side ends, the caller loses its access, or the server stops. The session is dropped
/// before the socket is closed.
pub(crate) async fn run(
    api: Shared,
    caller: Caller,
    resource: ResourceId,
    socket: WebSocket,
    session: Session,
    framing: impl Framing,
) {
    let Session { input, output } = session;
    let (mut sink, mut stream) = socket.split();
    let heard = Heard(Mutex::new(Some(Instant::now())));
    let ending = tokio::select! {
        biased;
        lost = watch::lost(api, caller, Some(resource)) => lost.into(),
        ending = from_client(&mut stream, input, &framing, &heard) => ending,
        ending = to_client(&mut sink, output, &framing, &heard) => ending,
    };
    let Some(Ending { code, reason }) = ending else {
        return;
    };
    let frame = Message::Close(Some(CloseFrame {
        code,
        reason: short(&reason).into(),
    }));
    let polite = async {
        if sink.send(frame).await.is_ok() {
            while let Some(Ok(_)) = stream.next().await {}
        }
    };
    drop(tokio::time::timeout(Duration::from_secs(1), polite).await);
}

impl From<Lost> for Option<Ending> {
    fn from(lost: Lost) -> Self {
        Some(lost.into())
    }
}

/// None when the client has gone and there is nobody to say goodbye to.
async fn from_client(
    stream: &mut (impl Stream<Item = Result<Message, axum::Error>> + Unpin),
    input: mpsc::Sender<Input>,
    framing: &impl Framing,
    heard: &Heard,
) -> Option<Ending> {
    loop {
        let message = match stream.next().await {
            Some(Ok(Message::Close(_))) | None => return None,
            Some(Ok(message)) => message,
            Some(Err(_)) => return Some(Ending::new(close_code::PROTOCOL, "the message cannot be read")),
        };
        heard.set(Some(Instant::now()));
        match framing.read(message) {
            Ok(Some(frame)) => {
                heard.set(None);
                // Where nobody takes input any more there may still be output: go on listening.
                drop(input.send(frame).await);
                heard.set(Some(Instant::now()));
            }
            Ok(None) => {}
            Err(problem) => return Some(Ending::new(close_code::PROTOCOL, problem)),
        }
    }
}

async fn to_client(
    sink: &mut (impl futures_util::Sink<Message, Error = axum::Error> + Unpin),
    mut output: mpsc::Receiver<Result<Output, hwm_core::backend::BackendError>>,
    framing: &impl Framing,
    heard: &Heard,
) -> Option<Ending> {
    let mut ping = tokio::time::interval(PING);
    ping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let message = tokio::select! {
            biased;
            frame = output.recv() => match frame {
                Some(Ok(frame @ Output::Exit(_))) => {
                    if let Some(message) = framing.write(frame) {
                        sink.send(message).await.ok()?;
                    }
                    return Some(Ending::new(close_code::NORMAL, "the command has ended"));
                }
                Some(Ok(frame)) => framing.write(frame),
                Some(Err(error)) => {
                    tracing::debug!(%error, "the session failed");
                    let error = ApiError::from(Error::Backend { backend: "session".into(), source: error });
                    if let Some(message) = framing.failure(&error) {
                        sink.send(message).await.ok()?;
                    }
                    return Some(Ending::new(close_code::ERROR, super::refusal(&error)));
                }
                None => return Some(Ending::new(close_code::NORMAL, "the session has ended")),
            },
            _ = ping.tick() => {
                if heard.silent_too_long() {
                    return None;
                }
                Some(Message::Ping(axum::body::Bytes::new()))
            }
        };
        if let Some(message) = message {
            sink.send(message).await.ok()?;
        }
    }
}
