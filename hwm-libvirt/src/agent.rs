//! The guest agent: facts about a guest, frozen file systems, and commands.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hwm_core::backend::{
    BackendError, BackendErrorKind, Exec, ExecOutput, ExecRequest, ExecSession, Result, Session,
};
use hwm_core::id::ResourceId;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::backend::Libvirt;
use crate::connection::{Fault, FaultKind, Host};
use crate::lifecycle::Found;

/// How long the agent may take to answer a short question, in seconds.
const ANSWER: i32 = 3;
/// How long it may take to freeze or thaw, in seconds.
pub(crate) const FREEZE: i32 = 10;

#[derive(Deserialize)]
struct Answer<T> {
    #[serde(rename = "return")]
    value: T,
}

/// One command, as JSON in and out.
fn ask<T: DeserializeOwned>(
    host: &Host,
    id: ResourceId,
    command: &str,
    arguments: Value,
    seconds: i32,
) -> std::result::Result<T, Fault> {
    let mut request = json!({ "execute": command });
    if !arguments.is_null() {
        request["arguments"] = arguments;
    }
    let text = host.agent(id, &request.to_string(), seconds)?;
    let answer: Answer<T> =
        serde_json::from_str(&text).map_err(|_| Fault::other("the guest agent's answer cannot be read"))?;
    Ok(answer.value)
}

/// Whether the agent answers.
pub(crate) fn answers(host: &Host, id: ResourceId) -> bool {
    ask::<Value>(host, id, "guest-ping", Value::Null, ANSWER).is_ok()
}

/// Freezes the guest's file systems, and answers how many. Who freezes must thaw.
pub(crate) fn freeze(host: &Host, id: ResourceId) -> std::result::Result<i64, Fault> {
    ask(host, id, "guest-fsfreeze-freeze", Value::Null, FREEZE)
}

/// Whether they are frozen, as far as the agent says.
pub(crate) fn is_frozen(host: &Host, id: ResourceId) -> bool {
    ask::<String>(host, id, "guest-fsfreeze-status", Value::Null, ANSWER).is_ok_and(|s| s == "frozen")
}

/// Thaws them.
pub(crate) fn thaw(host: &Host, id: ResourceId) -> std::result::Result<i64, Fault> {
    ask(host, id, "guest-fsfreeze-thaw", Value::Null, FREEZE)
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct GuestInterface {
    #[serde(default)]
    hardware_address: Option<String>,
    #[serde(default)]
    ip_addresses: Vec<GuestAddress>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct GuestAddress {
    ip_address: String,
}

/// The addresses of the card with this hardware address; none where the agent does not answer.
pub(crate) fn addresses(host: &Host, id: ResourceId, mac: &str) -> Vec<String> {
    let asked: std::result::Result<Vec<GuestInterface>, Fault> =
        ask(host, id, "guest-network-get-interfaces", Value::Null, ANSWER);
    asked
        .unwrap_or_default()
        .into_iter()
        .filter(|i| {
            i.hardware_address
                .as_deref()
                .is_some_and(|m| m.eq_ignore_ascii_case(mac))
        })
        .flat_map(|i| i.ip_addresses)
        .map(|a| a.ip_address)
        .collect()
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct FileSystem {
    #[serde(default)]
    used_bytes: Option<u64>,
    /// The disks that it lies on; none for one in memory or from the network.
    #[serde(default)]
    disk: Vec<Value>,
}

/// What the file systems on the guest's disks hold; none where the agent does not answer or does not know.
pub(crate) fn used_bytes(host: &Host, id: ResourceId) -> Option<u64> {
    let asked: std::result::Result<Vec<FileSystem>, Fault> =
        ask(host, id, "guest-get-fsinfo", Value::Null, ANSWER);
    let used = asked.ok()?.into_iter().filter(|f| !f.disk.is_empty());
    used.map(|f| f.used_bytes).reduce(|a, b| Some(a? + b?))?
}

#[derive(Deserialize)]
struct Started {
    pid: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Status {
    exited: bool,
    #[serde(default)]
    exitcode: Option<i64>,
    #[serde(default)]
    signal: Option<i64>,
    #[serde(default)]
    out_data: String,
    #[serde(default)]
    err_data: String,
    #[serde(default)]
    out_truncated: bool,
    #[serde(default)]
    err_truncated: bool,
}

/// Runs the command in a session of its own, where the guest has the tool for it, so that all of it can be killed.
const WRAPPER: &str = "if [ -n \"$2\" ]; then cd -- \"$2\" || exit 1; fi; \
    if command -v setsid >/dev/null 2>&1; then exec setsid /bin/sh -c \"$1\"; else exec /bin/sh -c \"$1\"; fi";

fn start(host: &Host, id: ResourceId, request: &ExecRequest) -> std::result::Result<i64, Fault> {
    let folder = request.working_dir.as_deref().unwrap_or("");
    let arguments = json!({
        "path": "/bin/sh",
        // Our text is the script; the caller's are its arguments, which no shell reads a second time.
        "arg": ["-c", WRAPPER, "sh", request.command, folder],
        "capture-output": true,
    });
    Ok(ask::<Started>(host, id, "guest-exec", arguments, ANSWER)?.pid)
}

fn kill(host: &Host, id: ResourceId, pid: i64) {
    let script = format!("kill -KILL -- -{pid} 2>/dev/null; kill -KILL {pid} 2>/dev/null");
    let arguments = json!({ "path": "/bin/sh", "arg": ["-c", script] });
    let _ = ask::<Started>(host, id, "guest-exec", arguments, ANSWER);
}

/// At most `limit` bytes of an output, and whether that is less than all.
fn output(data: &str, limit: usize) -> (String, bool) {
    let bytes = STANDARD.decode(data).unwrap_or_default();
    let kept = &bytes[..bytes.len().min(limit)];
    (String::from_utf8_lossy(kept).into_owned(), bytes.len() > limit)
}

#[async_trait]
impl Exec for Libvirt {
    async fn run(&self, id: ResourceId, request: ExecRequest) -> Result<ExecOutput> {
        let inner = &self.inner;
        let doing = "running a command in the machine";
        let deadline = Instant::now() + request.timeout;
        let limit = request.output_limit;
        let place = inner.place(id);
        let pid = inner
            .ask(doing, move |host| {
                if !matches!(place.find(host)?, Found::Domain(..)) || !place.is_up(host)? {
                    return Err(Fault::new(FaultKind::NotRunning, "the machine does not run"));
                }
                start(host, id, &request)
            })
            .await
            .map_err(without_agent)?;
        let mut pause = Duration::from_millis(20);
        loop {
            let polled = inner
                .ask(doing, move |host| {
                    ask::<Status>(host, id, "guest-exec-status", json!({ "pid": pid }), ANSWER)
                })
                .await
                .map_err(without_agent)?;
            if polled.exited {
                let (stdout, out_cut) = output(&polled.out_data, limit);
                let (stderr, err_cut) = output(&polled.err_data, limit);
                return Ok(ExecOutput {
                    output: format!("{stdout}{stderr}"),
                    stdout,
                    stderr,
                    exit_code: polled.exitcode.or(polled.signal.map(|s| 128 + s)).unwrap_or(-1),
                    truncated: out_cut || err_cut || polled.out_truncated || polled.err_truncated,
                });
            }
            if Instant::now() >= deadline {
                let killed = inner.ask(doing, move |host| {
                    kill(host, id, pid);
                    Ok(())
                });
                killed.await?;
                return Err(BackendError::new(
                    BackendErrorKind::Timeout,
                    doing,
                    "the command took too long and was killed",
                ));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }

    async fn open(&self, _: ResourceId, _: ExecSession) -> Result<Session> {
        Err(BackendError::new(
            BackendErrorKind::Unsupported,
            "opening a terminal in the machine",
            "the guest agent has no terminals: use the serial console (console?type=serial)",
        ))
    }
}

/// A guest without an agent cannot run commands, which is no failure of this host.
fn without_agent(error: BackendError) -> BackendError {
    let unsupported = match error.kind {
        BackendErrorKind::Timeout => true,
        BackendErrorKind::Failed => error.message.contains("agent"),
        _ => false,
    };
    if unsupported {
        BackendError::new(
            BackendErrorKind::Unsupported,
            error.doing,
            format!(
                "it needs the QEMU guest agent in the guest, which does not answer: {}",
                error.message
            ),
        )
    } else {
        error
    }
}
