use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use hwm_core::backend::{Backend, BackendErrorKind, ObservedState};
use serde_json::json;

use crate::lab::*;

/// An engine of this test's own, so that it may be frozen and killed.
struct Engine {
    dir: PathBuf,
}

impl Engine {
    fn up() -> Self {
        let dir = PathBuf::from(format!("/tmp/hwm-docker-{}", std::process::id()));
        let engine = Self { dir };
        engine.lab(&["up", "docker"]);
        engine
    }

    fn lab(&self, words: &[&str]) {
        let status = Command::new(variable("HWM_TEST_LAB"))
            .args(words)
            .args(["--dir", self.dir.to_str().unwrap()])
            .status();
        assert!(status.unwrap().success(), "the lab cannot {words:?}");
    }

    fn signal(&self, signal: &str) {
        let pid = std::fs::read_to_string(self.dir.join("dockerd.pid")).unwrap();
        let status = Command::new("kill").args([signal, pid.trim()]).status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // What is left is found by the next `up` there.
        let _ = Command::new(variable("HWM_TEST_LAB"))
            .args(["down", "--dir", self.dir.to_str().unwrap()])
            .status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_frozen_or_killed_is_away_and_heals() {
    let engine = tokio::task::spawn_blocking(Engine::up).await.unwrap();
    let host = format!("unix://{}", engine.dir.join("docker.sock").display());
    let pid_file = engine.dir.join("docker/pid");
    let lab = lab_with(|o| {
        o.host = Some(host);
        o.pid_file = Some(pid_file);
        o.patience = Duration::from_secs(4);
    });
    let workload = application("busybox", json!({}));
    lab.up(&workload).await;
    let before = lab.backend.probe().await.unwrap().epoch;

    engine.signal("-STOP");
    let begun = Instant::now();
    for error in [
        lab.backend.probe().await.map(drop).unwrap_err(),
        lab.backend.inspect(&[workload.id]).await.map(drop).unwrap_err(),
        lab.backend
            .stop(&call(), workload.id, at_once())
            .await
            .unwrap_err(),
    ] {
        assert_eq!(error.kind, BackendErrorKind::Unavailable, "{error}");
    }
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    engine.signal("-CONT");
    let after = lab.backend.probe().await.unwrap().epoch;
    assert_eq!(after, before, "nothing restarted");
    assert_eq!(lab.seen(workload.id).await.state, ObservedState::Running);

    let mut events = lab.backend.events().await.unwrap();
    engine.lab(&["stop", "docker", "KILL"]);
    let end = tokio::time::timeout(Duration::from_secs(5), async {
        while futures_util::StreamExt::next(&mut events).await.is_some() {}
    });
    end.await.expect("the events end with the engine");
    let error = lab.backend.start(&call(), &workload).await.unwrap_err();
    assert_eq!(error.kind, BackendErrorKind::Unavailable, "{error}");
    engine.lab(&["start", "docker"]);
    assert_ne!(
        lab.backend.probe().await.unwrap().epoch,
        before,
        "the engine restarted"
    );
    lab.backend.start(&call(), &workload).await.unwrap();
    assert_eq!(lab.seen(workload.id).await.state, ObservedState::Running);
    lab.backend.remove(&call(), workload.id).await.unwrap();
    assert_eq!(lab.backend.owned().await.unwrap(), []);
}
