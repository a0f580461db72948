use std::sync::{Arc, Mutex};
use std::time::Duration;

use bollard::query_parameters::RemoveImageOptionsBuilder;
use hwm_core::backend::{Backend, BackendErrorKind, Call, ProgressSink, Workload};
use serde_json::json;

use crate::lab::*;

/// Tests that remove images from the engine take turns.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A report of progress.
type Told = (String, Option<u8>);

async fn forget(image: &str) {
    let options = RemoveImageOptionsBuilder::default().force(true).build();
    // It may not be there.
    let _ = raw().remove_image(image, Some(options), None).await;
}

async fn is_there(image: &str) -> bool {
    raw().inspect_image(image).await.is_ok()
}

fn private(registry: &str, image: &str, change: serde_json::Value) -> Workload {
    let mut config = json!({"registry": "private", "imageName": format!("{registry}/hwm-test/{image}"), "pullPolicy": "missing"});
    merge(&mut config, change);
    application(image, config)
}

fn login(password: &str) -> serde_json::Value {
    json!({"registryAuth": {"username": variable("HWM_TEST_REGISTRY_USER"), "password": password}})
}

#[tokio::test]
async fn a_private_image_is_pulled_with_progress_once_for_many() {
    let _turn = TURN.lock().await;
    let lab = lab();
    let registry = variable("HWM_TEST_REGISTRY");
    let image = format!("{registry}/hwm-test/layers:1");
    let password = variable("HWM_TEST_REGISTRY_PASSWORD");
    forget(&image).await;
    forget("hwm-test/layers:1").await;
    let told: Arc<Mutex<Vec<Told>>> = Arc::default();
    let creates = (0..6).map(|_| {
        let told = Arc::clone(&told);
        let call = Call {
            progress: ProgressSink::new(move |message, percent| {
                told.lock().unwrap().push((message, percent))
            }),
            ..call()
        };
        let workload = private(&registry, "layers", login(&password));
        let backend = lab.backend.clone();
        async move {
            backend.create(&call, &workload).await.unwrap();
            backend.remove(&call, workload.id).await.unwrap();
        }
    });
    futures_util::future::join_all(creates).await;
    assert!(is_there(&image).await);
    let told = told.lock().unwrap();
    assert!(
        told.iter().any(|(message, _)| message.contains(&image)),
        "{told:?}"
    );
    assert!(told.iter().any(|(_, percent)| percent.is_some()), "{told:?}");
    assert!(!format!("{told:?}").contains(&password));
}

#[tokio::test]
async fn wrong_credentials_are_denied_and_appear_nowhere() {
    let _turn = TURN.lock().await;
    let lab = lab();
    let registry = variable("HWM_TEST_REGISTRY");
    let image = format!("{registry}/hwm-test/infer:1");
    forget(&image).await;
    let canary = "canary-5f0c9a";
    for auth in [
        login(canary),
        json!({"registryAuth": {"token": canary}}),
        json!({}),
    ] {
        let workload = private(&registry, "infer", auth);
        let error = lab.backend.create(&call(), &workload).await.unwrap_err();
        assert_eq!(error.kind, BackendErrorKind::Denied, "{error}");
        assert!(error.doing.contains(&image), "{error}");
        assert!(!format!("{error:?} {workload:?}").contains(canary), "{error:?}");
        assert_eq!(lab.backend.inspect(&[workload.id]).await.unwrap(), []);
    }
    assert!(!is_there(&image).await);
}

#[tokio::test]
async fn credentials_of_one_do_not_open_the_registry_for_another() {
    let _turn = TURN.lock().await;
    let lab = lab();
    let registry = variable("HWM_TEST_REGISTRY");
    let image = format!("{registry}/hwm-test/stubborn:1");
    forget(&image).await;
    let good = private(
        &registry,
        "stubborn",
        login(&variable("HWM_TEST_REGISTRY_PASSWORD")),
    );
    let mut always = login("wrong");
    merge(&mut always, json!({"pullPolicy": "always"}));
    let bad = private(&registry, "stubborn", always);
    let (first, second) = (call(), call());
    let (good_result, bad_result) = tokio::join!(
        lab.backend.create(&first, &good),
        lab.backend.create(&second, &bad)
    );
    good_result.unwrap();
    assert_eq!(bad_result.unwrap_err().kind, BackendErrorKind::Denied);
    lab.gone(good.id).await;
    forget(&image).await;
}

#[tokio::test]
async fn the_pull_policy_decides_who_asks_the_registry() {
    let _turn = TURN.lock().await;
    let lab = lab();
    let registry = variable("HWM_TEST_REGISTRY_OPEN");
    let image = format!("{registry}/hwm-test/busybox:1");
    forget(&image).await;
    let never = private(&registry, "busybox", json!({"pullPolicy": "never"}));
    let error = lab.backend.create(&call(), &never).await.unwrap_err();
    assert_eq!(error.kind, BackendErrorKind::NotFound, "{error}");
    assert!(!is_there(&image).await);
    let always = private(&registry, "busybox", json!({"pullPolicy": "always"}));
    lab.backend.create(&call(), &always).await.unwrap();
    assert!(is_there(&image).await);
    lab.gone(always.id).await;
    let missing = private(&registry, "busybox", json!({"imageTag": "no-such-tag"}));
    let error = lab.backend.create(&call(), &missing).await.unwrap_err();
    assert_eq!(error.kind, BackendErrorKind::NotFound, "{error}");
    forget(&image).await;
}

#[tokio::test]
async fn an_image_is_named_by_its_digest() {
    let _turn = TURN.lock().await;
    let lab = lab();
    let registry = variable("HWM_TEST_REGISTRY_OPEN");
    let by_tag = private(&registry, "httpd", json!({}));
    lab.backend.create(&call(), &by_tag).await.unwrap();
    lab.gone(by_tag.id).await;
    let image = format!("{registry}/hwm-test/httpd:1");
    let digests = raw().inspect_image(&image).await.unwrap().repo_digests.unwrap();
    let digest = digests
        .iter()
        .find_map(|d| d.strip_prefix(&format!("{registry}/hwm-test/httpd@")))
        .unwrap();
    forget(&image).await;
    let by_digest = private(&registry, "httpd", json!({"imageTag": digest}));
    lab.up(&by_digest).await;
    lab.gone(by_digest.id).await;
    forget(&format!("{registry}/hwm-test/httpd@{digest}")).await;
}

#[tokio::test]
async fn a_registry_that_does_not_answer_is_a_failure_that_names_the_image() {
    let lab = lab();
    let nobody = format!("127.0.0.1:{}", free_port());
    let workload = private(&nobody, "busybox", json!({}));
    let call = call();
    let create = lab.backend.create(&call, &workload);
    let error = tokio::time::timeout(Duration::from_secs(30), create)
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(error.kind, BackendErrorKind::Failed, "{error}");
    assert!(error.doing.contains(&nobody), "{error}");
}
