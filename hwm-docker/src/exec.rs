//! Commands inside a container: to their end, or with someone at the other end.

use std::time::Duration;

use bollard::models::ExecConfig;
use bytes::BytesMut;
use http::Method;
use hwm_core::backend::{
    BackendError, BackendErrorKind, ExecOutput, ExecRequest, ExecSession, Input, Output, Result, Session,
    SessionPeer, TerminalSize,
};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;

use crate::client::{Client, Fault, late};
use crate::frames::{Channel, Frames};
use crate::kill::{kill, mark};

/// How often a silent command is looked at: what it left in the background may hold its output open.
const LOOK: Duration = Duration::from_secs(1);
const CHUNK: usize = 16 << 10;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ExecState {
    #[serde(default)]
    pub(crate) running: bool,
    #[serde(default)]
    exit_code: Option<i64>,
}

pub(crate) type Io = TokioIo<Upgraded>;

/// A command that runs. Killed when it is dropped, unless it ended.
struct Running {
    client: Client,
    container: String,
    id: String,
    mark: String,
    ended: bool,
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (client, container) = (self.client.clone(), self.container.clone());
            let (id, mark) = (self.id.clone(), self.mark.clone());
            runtime.spawn(async move { kill(&client, &container, &id, &mark).await });
        }
    }
}

impl Running {
    async fn begin(
        client: &Client,
        container: &str,
        mut config: ExecConfig,
        doing: &str,
    ) -> Result<(Self, Io)> {
        let tty = config.tty == Some(true);
        let mark = mark();
        config.env = Some(vec![mark.clone()]);
        let id = create(client, container, config, doing).await?;
        let io = client.change(doing, attach(client, &id, tty)).await?;
        let running = Self {
            client: client.clone(),
            container: container.to_owned(),
            id,
            mark,
            ended: false,
        };
        Ok((running, io))
    }

    async fn state(&self, doing: &str) -> Result<ExecState> {
        state(&self.client, &self.id, doing).await
    }

    /// The exit code, once the output ended.
    async fn exit_code(&mut self, doing: &str) -> Result<i64> {
        let mut pause = Duration::from_millis(2);
        loop {
            let state = self.state(doing).await?;
            if !state.running {
                self.ended = true;
                return state.exit_code.ok_or_else(|| {
                    BackendError::new(BackendErrorKind::Failed, doing, "it ended without an exit code")
                });
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOK);
        }
    }

    /// Kills it, and says whether that is proved.
    async fn kill(mut self) -> bool {
        let gone = kill(&self.client, &self.container, &self.id, &self.mark).await;
        self.ended = true;
        gone
    }
}

pub(crate) async fn state(client: &Client, id: &str, doing: &str) -> Result<ExecState> {
    client
        .look(doing, client.get(&format!("/exec/{id}/json"), &[]))
        .await
}

pub(crate) async fn create(
    client: &Client,
    container: &str,
    config: ExecConfig,
    doing: &str,
) -> Result<String> {
    let made = async { Ok(client.docker().create_exec(container, config).await?) };
    let limit = client.change_limit();
    match tokio::time::timeout(limit, made).await {
        Ok(Ok(made)) => Ok(made.id),
        Ok(Err(fault)) => Err(not_running(fault, doing)),
        Err(_) => Err(late(limit, doing)),
    }
}

/// Docker calls a container that does not run a conflict, Podman an improper state.
fn not_running(fault: Fault, doing: &str) -> BackendError {
    let stopped = fault.has_status(409) || fault.message().contains("container state improper");
    let mut error = fault.during(doing);
    if stopped {
        error.kind = BackendErrorKind::NotRunning;
    }
    error
}

pub(crate) async fn attach(client: &Client, id: &str, tty: bool) -> std::result::Result<Io, Fault> {
    let body = serde_json::json!({ "Detach": false, "Tty": tty }).to_string();
    let headers = [
        ("connection", "Upgrade".to_owned()),
        ("upgrade", "tcp".to_owned()),
    ];
    let path = format!("/exec/{id}/start");
    let answer = client
        .send(Method::POST, &path, &[], &headers, body.into_bytes())
        .await?;
    Ok(TokioIo::new(hyper::upgrade::on(answer).await?))
}

/// Both outputs, cut at the limit.
struct Collected {
    limit: usize,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    both: Vec<u8>,
    truncated: bool,
}

impl Collected {
    fn take(&mut self, channel: Channel, data: &[u8]) {
        let kept = match channel {
            Channel::Stdout => &mut self.stdout,
            Channel::Stderr => &mut self.stderr,
        };
        let room = self.limit.saturating_sub(kept.len()).min(data.len());
        self.truncated |= room < data.len();
        kept.extend_from_slice(&data[..room]);
        self.both.extend_from_slice(&data[..room]);
    }

    fn done(self, exit_code: i64) -> ExecOutput {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        ExecOutput {
            output: text(self.both),
            stdout: text(self.stdout),
            stderr: text(self.stderr),
            exit_code,
            truncated: self.truncated,
        }
    }
}

/// Runs `/bin/sh -c` to its end, or kills it. Dropping the future kills it too.
pub(crate) async fn run(client: &Client, container: &str, request: ExecRequest) -> Result<ExecOutput> {
    let doing = format!("running a command in {container}");
    let config = ExecConfig {
        cmd: Some(vec!["/bin/sh".to_owned(), "-c".to_owned(), request.command]),
        working_dir: request.working_dir,
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        ..ExecConfig::default()
    };
    let deadline = tokio::time::sleep(request.timeout);
    tokio::pin!(deadline);
    let (mut running, io) = Running::begin(client, container, config, &doing).await?;
    let mut frames = Frames::new(io);
    let mut collected = Collected {
        limit: request.output_limit,
        stdout: Vec::new(),
        stderr: Vec::new(),
        both: Vec::new(),
        truncated: false,
    };
    let ended = async {
        loop {
            match tokio::time::timeout(LOOK, frames.next()).await {
                Ok(Some(Ok((channel, data)))) => collected.take(channel, &data),
                Ok(Some(Err(fault))) => return Err(fault.during(&doing)),
                Ok(None) => break,
                Err(_) if running.state(&doing).await?.running => {}
                Err(_) => break,
            }
        }
        running.exit_code(&doing).await
    };
    let outcome = tokio::select! {
        outcome = ended => Some(outcome),
        () = &mut deadline => None,
    };
    match outcome {
        Some(exit_code) => Ok(collected.done(exit_code?)),
        None => {
            let killed = running.kill().await;
            let end = if killed {
                "was killed"
            } else {
                "could not be killed"
            };
            let message = format!("it ran longer than {} s and {end}", request.timeout.as_secs_f32());
            Err(BackendError::new(BackendErrorKind::Timeout, doing, message))
        }
    }
}

/// Opens an interactive session.
pub(crate) async fn open(client: &Client, container: &str, request: ExecSession) -> Result<Session> {
    let doing = format!("opening a session in {container}");
    let config = ExecConfig {
        cmd: Some(request.command),
        tty: Some(request.tty),
        attach_stdin: Some(true),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        ..ExecConfig::default()
    };
    let (running, io) = Running::begin(client, container, config, &doing).await?;
    if let Some(size) = request.size.filter(|_| request.tty) {
        resize(client, &running.id, size).await;
    }
    let (session, peer) = Session::pair();
    tokio::spawn(serve(running, io, peer, request.tty));
    Ok(session)
}

async fn resize(client: &Client, id: &str, size: TerminalSize) {
    let options = bollard::query_parameters::ResizeExecOptionsBuilder::default()
        .w(i32::from(size.width))
        .h(i32::from(size.height))
        .build();
    let ask = client.docker().resize_exec(id, options);
    // A size that comes after the end, or is lost, hurts nobody.
    match tokio::time::timeout(client.change_limit(), ask).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "resizing a terminal"),
        Err(_) => tracing::debug!("resizing a terminal took too long"),
    }
}

/// Carries frames both ways until the command ends or the client leaves.
async fn serve(mut running: Running, io: Io, peer: SessionPeer, tty: bool) {
    let (reader, writer) = tokio::io::split(io);
    let SessionPeer { input, output } = peer;
    let (client, id) = (running.client.clone(), running.id.clone());
    let forward = async {
        feed(&client, &id, writer, input).await;
        std::future::pending::<()>().await
    };
    let ended = tokio::select! {
        ended = drain(reader, &output, tty) => ended,
        () = forward => Ok(()),
        () = output.closed() => return,
    };
    let last = match ended {
        Ok(()) => running
            .exit_code("waiting for a session to end")
            .await
            .map(Output::Exit),
        Err(fault) => Err(fault.during("reading a session")),
    };
    // The client may have left meanwhile.
    let _ = output.send(last).await;
}

async fn feed(client: &Client, id: &str, mut writer: WriteHalf<Io>, mut input: mpsc::Receiver<Input>) {
    let mut open = true;
    while let Some(frame) = input.recv().await {
        match frame {
            Input::Data(data) if open => {
                open = writer.write_all(&data).await.is_ok() && writer.flush().await.is_ok()
            }
            Input::Data(_) => {}
            Input::Close => {
                open = false;
                if let Err(error) = writer.shutdown().await {
                    tracing::debug!(%error, "closing the input of a session");
                }
            }
            Input::Resize(size) => resize(client, id, size).await,
        }
    }
    // The writer stays open: closing it would be an end of input that nobody asked for.
    std::future::pending::<()>().await
}

async fn drain(
    mut reader: ReadHalf<Io>,
    output: &mpsc::Sender<Result<Output>>,
    tty: bool,
) -> std::result::Result<(), Fault> {
    if tty {
        let mut buffer = BytesMut::with_capacity(CHUNK);
        loop {
            buffer.clear();
            buffer.reserve(CHUNK);
            match reader.read_buf(&mut buffer).await {
                Ok(0) => return Ok(()),
                Ok(_) if output.send(Ok(Output::Stdout(buffer.to_vec()))).await.is_err() => return Ok(()),
                Ok(_) => {}
                Err(e) => return Err(Fault::Away(e.to_string())),
            }
        }
    }
    let mut frames = Frames::new(reader);
    while let Some(frame) = frames.next().await {
        let (channel, data) = frame?;
        let frame = match channel {
            Channel::Stdout => Output::Stdout(data.to_vec()),
            Channel::Stderr => Output::Stderr(data.to_vec()),
        };
        if output.send(Ok(frame)).await.is_err() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_beyond_the_limit_is_cut_and_said_to_be() {
        let mut collected = Collected {
            limit: 4,
            stdout: Vec::new(),
            stderr: Vec::new(),
            both: Vec::new(),
            truncated: false,
        };
        collected.take(Channel::Stdout, b"abc");
        collected.take(Channel::Stderr, b"xy");
        assert!(!collected.truncated);
        collected.take(Channel::Stdout, b"def");
        let done = collected.done(3);
        assert_eq!((done.stdout.as_str(), done.stderr.as_str()), ("abcd", "xy"));
        assert_eq!(done.output, "abcxyd");
        assert!(done.truncated);
        assert_eq!(done.exit_code, 3);
    }
}
