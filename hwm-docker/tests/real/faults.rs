use std::time::{Duration, Instant};

use futures_util::StreamExt;
use hwm_core::backend::{
    Backend, BackendError, BackendErrorKind, Exec, ExecRequest, LiveUpdate, LogQuery, StopOptions,
};
use hwm_docker::DockerBackend;
use serde_json::json;

use crate::lab::*;
use crate::proxy::{Fault, Proxy};

const PATIENCE: Duration = Duration::from_secs(1);
/// The longest that any call may take with that patience: two looks and a change, and some slack.
const LONGEST: Duration = Duration::from_secs(9);

fn behind_proxy(proxy: &Proxy) -> Lab {
    let host = proxy.host();
    lab_with(|o| {
        o.host = Some(host);
        o.patience = PATIENCE;
        o.stop_grace = Duration::from_secs(1);
    })
}

/// Every method once, each with its outcome and how long it took.
async fn all(
    backend: &DockerBackend,
    up: &hwm_core::backend::Workload,
    new: &hwm_core::backend::Workload,
) -> Vec<(&'static str, Result<bool, BackendError>, Duration)> {
    let request = ExecRequest {
        command: "true".into(),
        working_dir: None,
        timeout: Duration::from_secs(3),
        output_limit: 100,
    };
    let mut outcomes = Vec::new();
    macro_rules! outcome {
        ($name:literal, $call:expr, $empty:expr) => {{
            let begun = Instant::now();
            let result = $call.await.map($empty);
            outcomes.push(($name, result, begun.elapsed()));
        }};
    }
    let call = call();
    outcome!("probe", backend.probe(), |_| false);
    outcome!("check", Backend::check(backend, up), |_| false);
    outcome!("inspect", backend.inspect(&[up.id]), |found| found.is_empty());
    outcome!("owned", backend.owned(), |found| found.is_empty());
    outcome!("events", backend.events(), |_| false);
    let logs = async {
        let mut lines = backend.logs(up.id, LogQuery::default()).await?;
        while let Some(line) = lines.next().await {
            line?;
        }
        Ok(())
    };
    outcome!("logs", logs, |()| false);
    outcome!("metrics", backend.metrics(&[up.id]), |found| found.is_empty());
    outcome!("exec", backend.run(up.id, request), |_| false);
    outcome!("update", backend.update(&call, up), |()| false);
    outcome!("start", backend.start(&call, up), |()| false);
    outcome!("stop", backend.stop(&call, up.id, StopOptions::default()), |()| {
        false
    });
    outcome!("create", backend.create(&call, new), |()| false);
    outcome!("remove", backend.remove(&call, new.id), |()| false);
    outcomes
}

#[tokio::test]
async fn an_engine_that_hangs_breaks_off_or_lies_is_an_error_in_time_and_heals() {
    let dir = tempfile::tempdir().unwrap();
    let proxy = Proxy::new(dir.path());
    let lab = behind_proxy(&proxy);
    let up = application("busybox", json!({"cpuCores": 0.5}));
    let new = application("busybox", json!({}));
    for fault in [
        Fault::Hang,
        Fault::Close,
        Fault::Truncate(0),
        Fault::Truncate(30),
        Fault::Truncate(400),
        Fault::Garbage,
        Fault::Status(500),
        Fault::Status(503),
    ] {
        proxy.set(Fault::None);
        lab.up(&up).await;
        proxy.set(fault);
        for (name, outcome, took) in all(&lab.backend, &up, &new).await {
            assert!(took < LONGEST, "{fault:?}: {name} took {took:?}");
            match outcome {
                // An answer short enough to pass may be right; that there is nothing never is.
                Ok(empty) => assert!(!empty, "{fault:?}: {name} says that there is nothing"),
                Err(error) => {
                    let away = matches!(fault, Fault::Hang | Fault::Close | Fault::Status(503));
                    let kinds: &[_] = match away {
                        true => &[BackendErrorKind::Unavailable],
                        false => &[BackendErrorKind::Unavailable, BackendErrorKind::Failed],
                    };
                    assert!(kinds.contains(&error.kind), "{fault:?}: {name}: {error:?}");
                }
            }
        }
        proxy.set(Fault::None);
        lab.backend.probe().await.unwrap();
        assert_eq!(lab.backend.inspect(&[up.id]).await.unwrap().len(), 1, "{fault:?}");
        lab.gone(new.id).await;
    }
    lab.gone(up.id).await;
}

#[tokio::test]
async fn a_create_that_lands_after_its_caller_gave_up_does_not_outlive_its_removal() {
    let dir = tempfile::tempdir().unwrap();
    let proxy = Proxy::new(dir.path());
    let lab = behind_proxy(&proxy);
    lab.backend.probe().await.unwrap();
    let tries = [0, 20, 60, 120, 250, 500]
        .iter()
        .flat_map(|late| [10, 30, 100, 300].map(|given| (*late, given)));
    let tries = tries.map(|(late, given)| {
        let (lab, proxy) = (&lab, &proxy);
        async move {
            let workload = application("busybox", json!({}));
            proxy.set(Fault::Late(Duration::from_millis(late)));
            let (first, second) = (call_of(1), call_of(2));
            let create = lab.backend.create(&first, &workload);
            let _ = tokio::time::timeout(Duration::from_millis(given), create).await;
            while let Err(error) = lab.backend.remove(&second, workload.id).await {
                assert_eq!(error.kind, BackendErrorKind::Unavailable, "{error}");
            }
        }
    });
    futures_util::stream::iter(tries)
        .buffer_unordered(4)
        .collect::<Vec<()>>()
        .await;
    // Longer than the engine's patience: the removal must not succeed before the create has landed.
    let workload = application("busybox", json!({}));
    proxy.set(Fault::None);
    let create = async {
        tokio::time::sleep(Duration::from_millis(1)).await;
        lab.backend.create(&call_of(1), &workload).await
    };
    proxy.set(Fault::Late(Duration::from_millis(900)));
    let _ = tokio::time::timeout(Duration::from_millis(1500), create).await;
    proxy.set(Fault::None);
    while lab.backend.remove(&call_of(2), workload.id).await.is_err() {}
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(
        containers(&raw(), &format!("io.hwm.owner={}", lab.owner))
            .await
            .len(),
        0
    );
}
