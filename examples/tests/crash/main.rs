//! A server that dies at any step of any action on the real engine: what it acknowledged is completed by the next one, and
//! nothing else happened.
//!
//! The points are those of `hwm_core::testing::faults`: before and after every commit of the store and every changing
//! call of the backend. Each is a process that is really aborted. Not a `#[test]`: this program is also the process
//! that dies. Some points of each action are tried, others each time; with `HWM_TEST_FULL` all
//! are.
//! `HWM_CRASH=stop:3` tries one again.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test program reports, and stops where it must not go on"
)]

mod child;
#[path = "../common/mod.rs"]
mod common;
mod engine;
#[cfg(feature = "libvirt")]
mod machines;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use hwm_core::env::{Environment, SystemEnvironment};
use serde_json::Value;

use engine::Engine;

const NAME: &str = "a_kill_at_any_step_loses_nothing_and_leaves_nothing";
/// What is done when the process dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    Create,
    Start,
    Stop,
    Restart,
    Update,
    Delete,
}

impl Act {
    const ALL: [Self; 6] = [
        Self::Create,
        Self::Start,
        Self::Stop,
        Self::Restart,
        Self::Update,
        Self::Delete,
    ];

    const fn word(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Update => "update",
            Self::Delete => "delete",
        }
    }

    fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|act| act.word() == word)
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = arguments.iter().skip(1).map(String::as_str).collect();
    match words.as_slice() {
        ["child", engine, data, node, act, point] => {
            let engine = Engine::parse(engine).unwrap();
            child::act(
                engine,
                Path::new(data),
                node,
                Act::parse(act).unwrap(),
                point.parse().ok(),
            );
        }
        ["next", engine, data, node] => child::next(Engine::parse(engine).unwrap(), Path::new(data), node),
        // What `cargo test -- --list` and filters ask of a test program.
        ["--list", ..] => println!("{NAME}: test"),
        [filter, ..] if !filter.starts_with('-') && !NAME.contains(filter) => {}
        _ => return parent(),
    }
    ExitCode::SUCCESS
}

fn parent() -> ExitCode {
    let one = std::env::var("HWM_CRASH").ok();
    let one = one.as_deref().and_then(|text| text.split_once(':'));
    let (mut tried, mut wrong) = (0, Vec::new());
    for engine in Engine::all() {
        for act in Act::ALL {
            if one.is_some_and(|(word, _)| word != act.word()) {
                continue;
            }
            let points = match one {
                Some((_, point)) => vec![point.parse().unwrap()],
                None => chosen(Run::new(engine).act(act, None).points, engine.sample()),
            };
            for point in points {
                tried += 1;
                let complaints = Run::new(engine).dies(act, point);
                println!(
                    "{engine:?} {}:{point} {}",
                    act.word(),
                    if complaints.is_empty() { "ok" } else { "WRONG" }
                );
                wrong.extend(
                    complaints
                        .into_iter()
                        .map(|c| format!("{engine:?} {}:{point}: {c}", act.word())),
                );
            }
        }
    }
    let verdict = if wrong.is_empty() && tried > 0 {
        "ok"
    } else {
        "FAILED"
    };
    println!("{}\ntest {NAME} ... {verdict} ({tried} points)", wrong.join("\n"));
    ExitCode::from(u8::from(verdict != "ok"))
}

/// All points, or some that are others each time.
fn chosen(points: u64, sample: usize) -> Vec<u64> {
    assert!(points > 4, "only {points} points are passed");
    if std::env::var_os("HWM_TEST_FULL").is_some() {
        return (0..points).collect();
    }
    let mut some = BTreeSet::new();
    while some.len() < sample {
        some.insert((SystemEnvironment.random() % u128::from(points)) as u64);
    }
    some.into_iter().collect()
}

/// One data directory with an owner label of its own.
struct Run {
    engine: Engine,
    folder: tempfile::TempDir,
    node: String,
}

/// What a child told before it ended or died.
#[derive(Default)]
struct Told {
    /// The resource that was there before, or was acknowledged.
    id: Option<String>,
    acknowledged: bool,
    points: u64,
    ended: bool,
}

impl Run {
    fn new(engine: Engine) -> Self {
        Self {
            engine,
            folder: tempfile::tempdir().unwrap(),
            node: format!("crash-{:016x}", SystemEnvironment.random() as u64),
        }
    }

    /// Runs this program as a child; answers its lines and whether it came to its end.
    fn child(&self, words: &[&str]) -> (String, bool) {
        let output = Command::new(std::env::current_exe().unwrap())
            .arg(words[0])
            .args([self.engine.word()])
            .arg(self.folder.path())
            .arg(&self.node)
            .args(&words[1..])
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        (String::from_utf8(output.stdout).unwrap(), output.status.success())
    }

    /// Acts, and dies at a point where one is given.
    fn act(&self, act: Act, point: Option<u64>) -> Told {
        let point = point.map_or_else(|| "none".to_owned(), |point| point.to_string());
        let (lines, ended) = self.child(&["child", act.word(), &point]);
        let mut told = Told {
            ended,
            ..Told::default()
        };
        for line in lines.lines() {
            match line.split_once(' ').unwrap_or((line, "")) {
                ("id", id) => told.id = Some(id.to_owned()),
                ("acknowledged", _) => told.acknowledged = true,
                ("points", points) => told.points = points.parse().unwrap(),
                other => panic!("a child says {other:?}"),
            }
        }
        told
    }

    /// Lets a process die at a point, starts the next one, and looks at what then is; answers what is wrong.
    fn dies(&self, act: Act, point: u64) -> Vec<String> {
        let told = self.act(act, Some(point));
        let (lines, ended) = self.child(&["next"]);
        if !ended {
            return vec!["the next process fails".to_owned()];
        }
        let after: Value = serde_json::from_str(&lines).unwrap();
        let mut wrong = self.complaints(act, &told, &after);
        // It passes fewer points when something else came in between; then there was nothing to survive.
        if told.ended && !told.acknowledged {
            wrong.push("it lived and acknowledged nothing".to_owned());
        }
        wrong
    }

    fn complaints(&self, act: Act, told: &Told, after: &Value) -> Vec<String> {
        let mut wrong = Vec::new();
        let resources = after["resources"].as_array().unwrap();
        let recorded: BTreeSet<String> = resources
            .iter()
            .map(|r| r["_id"].as_str().unwrap().to_owned())
            .collect();
        let found = self.engine.found(&self.node);
        if found.keys().cloned().collect::<BTreeSet<_>>() != recorded {
            wrong.push(format!("the engine has {found:?}, the store {recorded:?}"));
        }
        for resource in resources {
            let (id, status) = (
                resource["_id"].as_str().unwrap(),
                resource["status"].as_str().unwrap(),
            );
            let runs = found.get(id).is_some_and(|seen| seen.runs);
            if !["running", "stopped"].contains(&status) || runs != (status == "running") {
                wrong.push(format!("it is {status}, and on the engine {:?}", found.get(id)));
            }
            if found
                .get(id)
                .is_some_and(|seen| seen.memory_mb != resource["memoryMB"].as_u64().unwrap())
            {
                wrong.push(format!(
                    "it has {:?}, and is to have {} MB",
                    found.get(id),
                    resource["memoryMB"]
                ));
            }
        }
        let held = after["claims"].as_u64().unwrap();
        if (held == 0) != recorded.is_empty() {
            wrong.push(format!("{held} claims are held for {} resources", recorded.len()));
        }
        let left = self.engine.other_leftovers(&self.node, &recorded);
        if !left.is_empty() {
            wrong.push(format!("it leaves {left:?}"));
        }
        if told.acknowledged {
            let id = told.id.as_deref().unwrap();
            let one = resources.iter().find(|r| r["_id"] == id);
            let done = match (act, one) {
                (Act::Delete, one) => one.is_none(),
                (Act::Stop, Some(one)) => one["status"] == "stopped",
                (Act::Update, Some(one)) => one["memoryMB"] == child::OTHER_MB,
                (Act::Create | Act::Start | Act::Restart, Some(one)) => one["status"] == "running",
                (_, None) => false,
            };
            if !done {
                wrong.push(format!("it was acknowledged, and is {one:?}"));
            }
        }
        wrong
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.engine.clean(&self.node);
    }
}
