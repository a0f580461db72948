use std::os::unix::fs::symlink;

use hwm_core::backend::{Backend, BackendErrorKind, Exec, ExecRequest};
use serde_json::json;

use crate::lab::*;

fn volume(path: &std::path::Path, read_only: bool) -> serde_json::Value {
    json!({"volumes": [{"hostPath": path, "containerPath": "/data", "readOnly": read_only}]})
}

fn request(command: &str) -> ExecRequest {
    ExecRequest {
        command: command.into(),
        working_dir: None,
        timeout: std::time::Duration::from_secs(10),
        output_limit: 1000,
    }
}

#[tokio::test]
async fn a_folder_under_a_root_is_shared_and_stays_when_the_container_goes() {
    let lab = lab();
    let folder = lab.path().join("volumes/made/here, with: odd=name");
    for read_only in [false, true] {
        let workload = application("busybox", volume(&folder, read_only));
        let report = lab.backend.check(&workload).await.unwrap();
        assert_eq!(report.violations, []);
        lab.up(&workload).await;
        let out = lab
            .backend
            .run(workload.id, request("echo x >>/data/file"))
            .await
            .unwrap();
        assert_eq!(out.exit_code == 0, !read_only, "{out:?}");
        lab.gone(workload.id).await;
        assert_eq!(std::fs::read_to_string(folder.join("file")).unwrap(), "x\n");
    }
}

#[tokio::test]
async fn a_link_that_leaves_the_root_is_refused_and_one_inside_is_resolved() {
    let lab = lab();
    let root = lab.path().join("volumes");
    symlink("/etc", root.join("etc")).unwrap();
    std::fs::create_dir(root.join("real")).unwrap();
    symlink(root.join("real"), root.join("link")).unwrap();
    for bad in [
        root.join("etc"),
        root.join("etc/ssh"),
        "/etc".into(),
        "/".into(),
        lab.path().join("models"),
    ] {
        let workload = application("busybox", volume(&bad, true));
        let report = lab.backend.check(&workload).await.unwrap();
        assert_eq!(report.violations.len(), 1, "{bad:?}");
        assert_eq!(report.violations[0].field, "config.volumes[0].hostPath");
        let error = lab.backend.create(&call(), &workload).await.unwrap_err();
        assert_eq!(error.kind, BackendErrorKind::Invalid, "{error}");
        assert_eq!(lab.backend.inspect(&[workload.id]).await.unwrap(), []);
    }
    let workload = application("busybox", volume(&root.join("link"), false));
    let report = lab.backend.check(&workload).await.unwrap();
    let real = root.join("real").canonicalize().unwrap();
    assert_eq!(
        report.resolved_paths[root.join("link").to_str().unwrap()],
        real.to_str().unwrap()
    );
}

#[tokio::test]
async fn a_link_swapped_in_between_create_and_start_is_not_followed() {
    let lab = lab();
    let root = lab.path().join("volumes");
    let folder = root.join("swapped");
    std::fs::create_dir(&folder).unwrap();
    let workload = application("busybox", volume(&folder, true));
    lab.backend.create(&call(), &workload).await.unwrap();
    std::fs::remove_dir(&folder).unwrap();
    symlink("/etc", &folder).unwrap();
    let error = lab.backend.start(&call(), &workload).await.unwrap_err();
    assert_eq!(error.kind, BackendErrorKind::Invalid, "{error}");
    lab.gone(workload.id).await;
}
