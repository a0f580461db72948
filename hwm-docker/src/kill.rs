//! Ends a command inside a container, with everything that it started.
//!
//! An engine cannot end a command. So every command carries a mark in its environment, which all that it
//! starts inherits. Where the engine is on this machine, what carries the mark is looked for here; else,
//! or where we may not look, a shell in the container does the same.

use std::fs;
use std::time::Duration;

use bollard::models::ExecConfig;
use hwm_core::backend::BackendErrorKind;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::client::Client;
use crate::exec::{attach, create, state};

const MARK: &str = "HWM_EXEC";
const DOING: &str = "killing a command";
const SHELL_DEADLINE: Duration = Duration::from_secs(10);
/// How often is looked again: what is killed may have started something a moment before.
const PASSES: usize = 5;

/// Kills every process group that carries the mark `$1`. Needs nothing of the image but its shell.
const SCRIPT: &str = r#"
for pass in 1 2 3; do
  found=
  for e in /proc/[0-9]*/environ; do
    v=
    while IFS= read -r l || [ -n "$l" ]; do v="$v$l"; done 2>/dev/null <"$e"
    case $v in *"$1"*) ;; *) continue ;; esac
    p=${e#/proc/} p=${p%/environ}
    kill -9 "-$p" 2>/dev/null
    kill -9 "$p" 2>/dev/null && found=1
  done
  [ -n "$found" ] || exit 0
done
"#;

/// A new mark: an entry of an environment.
pub(crate) fn mark() -> String {
    format!("{MARK}={}", uuid::Uuid::new_v4().simple())
}

/// Kills what carries the mark, and answers whether the command is proved gone.
pub(crate) async fn kill(client: &Client, container: &str, exec: &str, mark: &str) -> bool {
    if client.endpoint().is_local() {
        let (id, mark) = (container.to_owned(), mark.to_owned());
        let found = tokio::task::spawn_blocking(move || from_here(&id, &mark)).await;
        if found.unwrap_or(false) && ended(client, exec).await {
            return true;
        }
    }
    // First as the container's user, who may look at its own processes, then as root, who may kill those
    // of others.
    for user in [None, Some("0")] {
        let config = ExecConfig {
            cmd: Some(
                ["/bin/sh", "-c", SCRIPT, "kill", mark]
                    .map(str::to_owned)
                    .to_vec(),
            ),
            user: user.map(str::to_owned),
            attach_stdout: Some(true),
            ..ExecConfig::default()
        };
        let pass = async {
            let killer = create(client, container, config, DOING).await.ok()?;
            let mut io = attach(client, &killer, false).await.ok()?;
            // Its output ends when it does.
            tokio::io::copy(&mut io, &mut tokio::io::sink()).await.ok()
        };
        // A container that is gone took the command with it: the state below tells.
        let _ = tokio::time::timeout(SHELL_DEADLINE, pass).await;
        if ended(client, exec).await {
            return true;
        }
    }
    false
}

/// Whether the engine sees the command ended, within half a second.
async fn ended(client: &Client, exec: &str) -> bool {
    for _ in 0..20 {
        match state(client, exec, DOING).await {
            Ok(state) if state.running => tokio::time::sleep(Duration::from_millis(25)).await,
            Ok(_) => return true,
            Err(error) => return error.kind == BackendErrorKind::NotFound,
        }
    }
    false
}

/// Kills the container's processes that carry the mark, as far as they are seen from here; whether there
/// was one.
fn from_here(container: &str, mark: &str) -> bool {
    let mut any = false;
    for _ in 0..PASSES {
        let Ok(processes) = fs::read_dir("/proc") else {
            break;
        };
        let pids = processes
            .flatten()
            .filter_map(|e| e.file_name().to_str()?.parse().ok())
            .filter_map(Pid::from_raw);
        let killed = pids.filter(|pid| kill_marked(*pid, container, mark)).count();
        if killed == 0 {
            break;
        }
        any = true;
    }
    any
}

/// Kills one process if it is the container's and carries the mark. It is held while it is looked at, so
/// that its number cannot pass to another.
fn kill_marked(pid: Pid, container: &str, mark: &str) -> bool {
    let dir = format!("/proc/{}", pid.as_raw_nonzero());
    let ours = || fs::read_to_string(format!("{dir}/cgroup")).is_ok_and(|c| c.contains(container));
    let marked = || {
        fs::read(format!("{dir}/environ"))
            .is_ok_and(|e| e.split(|b| *b == 0).any(|entry| entry == mark.as_bytes()))
    };
    pidfd_open(pid, PidfdFlags::empty())
        .is_ok_and(|held| ours() && marked() && pidfd_send_signal(&held, Signal::KILL).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn only_what_carries_the_mark_in_that_control_group_is_killed() {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap();
        let ours = groups.lines().next().unwrap().to_owned();
        let (mark, other) = (mark(), mark());
        let (name, value) = mark.split_once('=').unwrap();
        let mut marked = Command::new("sleep").arg("60").env(name, value).spawn().unwrap();
        let mut unmarked = Command::new("sleep").arg("60").spawn().unwrap();
        std::thread::sleep(Duration::from_millis(100));
        assert!(!from_here("no such control group", &mark));
        assert!(!from_here(&ours, &other));
        assert_eq!(marked.try_wait().unwrap(), None);
        assert!(from_here(&ours, &mark));
        assert!(!marked.wait().unwrap().success());
        assert_eq!(unmarked.try_wait().unwrap(), None);
        unmarked.kill().unwrap();
        unmarked.wait().unwrap();
    }
}
