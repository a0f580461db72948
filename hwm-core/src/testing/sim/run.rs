//! Bringing workloads up, and what they then do by themselves.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::{Either, select};

use super::shell::{self, Statement, Surroundings};
use super::world::{Guest, Key};
use super::{Inner, World};
use crate::backend::LogStream;
use crate::config::Config;
use crate::units::Timestamp;

impl Inner {
    /// Brings a workload up, and lets it run.
    pub(super) fn launch(self: &Arc<Self>, key: &Key) {
        let now = self.env.now();
        // Eight characters is all that the screen's protocol takes.
        let password = format!("{:08x}", self.env.random() as u32);
        let (down, script) = {
            let mut world = self.lock();
            let Some(down) = world.bring_up(key, now, password) else {
                return;
            };
            let guest = world.guests.get_mut(key);
            let script = guest.and_then(|g| {
                let script = shell::script_of(&program(&g.workload.config));
                if script.is_none() && key.daemon == super::Daemon::Containers {
                    let text = format!("{} is up (simulated)", g.workload.name);
                    g.log.write(now, LogStream::Stdout, &text);
                }
                script
            });
            (down, script)
        };
        let Some(script) = script else { return };
        let (inner, key) = (Arc::clone(self), key.clone());
        self.env.spawn(Box::pin(async move {
            let work = Box::pin(inner.run_script(&key, script));
            let stopped = Box::pin(down.cancelled());
            if let Either::Right((code, _)) = select(stopped, work).await {
                let now = inner.env.now();
                let mut world = inner.lock();
                let cause = (code != 0).then(|| last_words(world.guests.get(&key), code));
                world.end(&key, now, Some(code), cause);
            }
        }));
    }

    async fn run_script(&self, key: &Key, script: Vec<Statement>) -> i64 {
        let mut code = 0;
        for statement in script {
            if !statement.runs_after(code) {
                continue;
            }
            let now = self.env.now();
            let done = {
                let mut world = self.lock();
                let Some(guest) = world.guests.get_mut(key) else {
                    break;
                };
                let done = run_in(guest, &statement, now, None, "/");
                for (stream, text) in [
                    (LogStream::Stdout, &done.stdout),
                    (LogStream::Stderr, &done.stderr),
                ] {
                    if !text.is_empty() {
                        guest.log.write(now, stream, text);
                    }
                }
                done
            };
            code = done.code;
            self.take(done.takes).await;
            if done.exits {
                break;
            }
        }
        code
    }
}

/// Runs a statement inside a workload.
pub(super) fn run_in(
    guest: &mut Guest,
    statement: &Statement,
    now: Timestamp,
    size: Option<(u16, u16)>,
    working_dir: &str,
) -> shell::Done {
    let environment = environment(&guest.workload.config);
    let cpus = match &guest.workload.config {
        Config::Machine(m) => m.vcpus,
        other => other.cpu().map_or(256, |c| c.as_f64().ceil() as u32),
    };
    let mut around = Surroundings {
        files: &mut guest.files,
        environment,
        working_dir,
        now,
        cpus,
        size,
    };
    shell::run(statement, &mut around)
}

fn program(config: &Config) -> Vec<String> {
    let (command, args) = match config {
        Config::Machine(_) => return Vec::new(),
        Config::Container(c) => (&c.command, &c.args),
        Config::Inference(c) => (&c.command, &c.args),
    };
    let command = command.iter().flatten();
    command.chain(args.iter().flatten()).cloned().collect()
}

fn environment(config: &Config) -> BTreeMap<String, String> {
    match config {
        Config::Machine(_) => BTreeMap::new(),
        Config::Container(c) => c.environment.clone(),
        Config::Inference(c) => {
            let mut environment = c.environment.clone();
            environment
                .entry("MODEL_PATH".to_owned())
                .or_insert_with(|| "/models".to_owned());
            let limit = c
                .gpu_memory_limit
                .map(|mb| ("HWM_GPU_MEMORY_LIMIT_MB".to_owned(), mb.to_string()));
            environment.extend(limit);
            environment
        }
    }
}

fn last_words(guest: Option<&Guest>, code: i64) -> String {
    let last = guest.and_then(|g| g.log.iter().next_back());
    match last {
        Some(line) => format!("exit code {code}: {}", line.message),
        None => format!("exit code {code}"),
    }
}

/// Whether a world has a workload that is up.
pub(super) fn is_up(world: &World, key: &Key) -> bool {
    world.guests.get(key).is_some_and(Guest::is_up)
}
