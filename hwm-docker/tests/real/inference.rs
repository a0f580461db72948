use std::sync::{Arc, Mutex};
use std::time::Duration;

use hwm_core::backend::{
    Backend, BackendErrorKind, Call, Exec, ExecRequest, HealthReport, ProgressSink, Workload,
};
use hwm_core::device::{Attachment, DeviceGrant};
use hwm_core::id::GpuUuid;
use hwm_docker::GpuAttachment;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::lab::*;

fn inference(model: &str) -> Workload {
    workload(json!({
        "type": "inference-container", "modelId": "test", "modelPath": model, "pullPolicy": "never",
        "dockerImage": "hwm-test/infer:1", "containerPort": 8000, "gpuDeviceIds": ["0"],
        "gpuMemoryLimit": 4096, "environment": {"READY_AFTER": "1"},
    }))
}

async fn shell(lab: &Lab, workload: &Workload, command: &str) -> String {
    let request = ExecRequest {
        command: command.into(),
        working_dir: None,
        timeout: Duration::from_secs(10),
        output_limit: 1 << 16,
    };
    lab.backend.run(workload.id, request).await.unwrap().output
}

async fn health(lab: &Lab, workload: &Workload) -> HealthReport {
    let check = workload.config.health_check().unwrap();
    let health = lab.backend.facets().health.unwrap();
    health.check(workload.id, &check).await.unwrap()
}

#[tokio::test]
async fn a_model_of_the_host_is_served_once_it_is_healthy() {
    let lab = lab();
    let file = lab.path().join("models/tiny.gguf");
    std::fs::write(&file, "weights").unwrap();
    let workload = inference(&format!("file://{}", file.display()));
    lab.up(&workload).await;
    let first = health(&lab, &workload).await;
    assert!(!first.healthy, "{first:?}");
    let mut last = first;
    for _ in 0..50 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        last = health(&lab, &workload).await;
        if last.healthy {
            break;
        }
    }
    assert!(last.healthy, "{last:?}");
    let out = shell(
        &lab,
        &workload,
        "cat $MODEL_PATH; echo \" $MODEL_PATH $HWM_GPU_MEMORY_LIMIT_MB\"",
    )
    .await;
    assert_eq!(out, "weights /models/tiny.gguf 4096\n");
    let out = shell(&lab, &workload, "echo x >$MODEL_PATH").await;
    assert!(out.contains("Read-only"), "{out}");
    lab.backend.stop(&call(), workload.id, at_once()).await.unwrap();
    let down = health(&lab, &workload).await;
    assert_eq!((down.healthy, down.detail.as_str()), (false, "it does not run"));
    lab.gone(workload.id).await;
}

#[tokio::test]
async fn a_model_outside_of_the_roots_is_refused() {
    let lab = lab();
    std::os::unix::fs::symlink("/etc/passwd", lab.path().join("models/link")).unwrap();
    let link = lab.path().join("models/link");
    for bad in [
        "/etc/passwd",
        "file:///etc",
        link.to_str().unwrap(),
        "http://127.0.0.1:1/x",
        "https://10.0.0.1/x",
    ] {
        let workload = inference(bad);
        let report = lab.backend.check(&workload).await.unwrap();
        assert!(
            report.violations.iter().any(|v| v.field == "config.modelPath"),
            "{bad}: {report:?}"
        );
        let error = lab.backend.create(&call(), &workload).await.unwrap_err();
        assert_eq!(error.kind, BackendErrorKind::Invalid, "{bad}: {error}");
    }
}

#[tokio::test]
async fn grants_reach_the_engine_by_uuid() {
    let lab = lab_with(|o| o.gpus = Some(GpuAttachment::Nvidia));
    std::fs::write(lab.path().join("models/m"), "x").unwrap();
    let mut workload = inference(lab.path().join("models/m").to_str().unwrap());
    assert_eq!(lab.backend.check(&workload).await.unwrap().violations, []);
    lab.backend.create(&call(), &workload).await.unwrap();
    workload.grants = vec![DeviceGrant {
        card: GpuUuid::new("GPU-1"),
        uuid: "MIG-2".into(),
        memory: None,
        attachment: Attachment::Runtime,
    }];
    // No card is here: the start fails, and the container was made anew with the device.
    let error = lab.backend.start(&call(), &workload).await.unwrap_err();
    assert!(
        error.message.contains("gpu") || error.message.contains("nvidia"),
        "{error}"
    );
    let found = raw()
        .inspect_container(&format!("hwm-{}", workload.id), None)
        .await
        .unwrap();
    let requests = found.host_config.unwrap().device_requests.unwrap();
    assert_eq!(requests[0].device_ids.as_deref(), Some(&["MIG-2".to_owned()][..]));
    lab.gone(workload.id).await;
}

/// A small HTTP server: counts requests, breaks the first answer half-way where it is told to, knows
/// ranges, and redirects `/redirect`.
struct Server {
    url: String,
    asked: Arc<Mutex<Vec<String>>>,
}

const SIZE: usize = 3 << 20;

fn content() -> Vec<u8> {
    (0..SIZE).map(|i| (i * 7 % 251) as u8).collect()
}

async fn server(break_first: bool, redirect: &'static str) -> Server {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                if stream.read(&mut byte).await.unwrap_or(0) == 0 {
                    break;
                }
                head.push(byte[0]);
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            let nth = {
                let mut log = log.lock().unwrap();
                log.push(head.clone());
                log.len()
            };
            if head.starts_with("GET /redirect") {
                let answer =
                    format!("HTTP/1.1 302 Found\r\nlocation: {redirect}\r\ncontent-length: 0\r\n\r\n");
                let _ = stream.write_all(answer.as_bytes()).await;
                continue;
            }
            let from = head
                .to_ascii_lowercase()
                .split("range: bytes=")
                .nth(1)
                .and_then(|r| r.split('-').next().unwrap().parse::<usize>().ok())
                .unwrap_or(0);
            let status = if from > 0 { "206 Partial Content" } else { "200 OK" };
            let answer = format!(
                "HTTP/1.1 {status}\r\netag: \"v1\"\r\ncontent-range: bytes {from}-{}/{SIZE}\r\ncontent-length: {}\r\n\r\n",
                SIZE - 1,
                SIZE - from
            );
            let _ = stream.write_all(answer.as_bytes()).await;
            let end = if break_first && nth == 1 { SIZE / 2 } else { SIZE };
            let _ = stream.write_all(&content()[from..end]).await;
        }
    });
    Server { url, asked }
}

fn sha256() -> String {
    use sha2::Digest;
    sha2::Sha256::digest(content())
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

#[tokio::test]
async fn a_model_is_fetched_once_for_many_and_a_broken_fetch_goes_on() {
    let server = server(true, "/").await;
    let prefix = server.url.clone();
    let lab = lab_with(|o| o.model_sources = vec![prefix]);
    let told: Arc<Mutex<Vec<Option<u8>>>> = Arc::default();
    let sink = Arc::clone(&told);
    let call = Call {
        progress: ProgressSink::new(move |_, percent| sink.lock().unwrap().push(percent)),
        ..call()
    };
    let model = format!("{}/big/model.gguf#sha256={}", server.url, sha256());
    let workloads: Vec<_> = (0..4).map(|_| inference(&model)).collect();
    let creates = workloads.iter().map(|w| lab.backend.create(&call, w));
    for result in futures_util::future::join_all(creates).await {
        result.unwrap();
    }
    let asked = server.asked.lock().unwrap().clone();
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert!(
        asked[1]
            .to_ascii_lowercase()
            .contains(&format!("range: bytes={}-", SIZE / 2)),
        "{}",
        asked[1]
    );
    assert!(told.lock().unwrap().contains(&Some(100)));
    lab.backend.start(&call, &workloads[0]).await.unwrap();
    let out = shell(
        &lab,
        &workloads[0],
        "sha256sum <$MODEL_PATH; echo $MODEL_PATH; ls /models",
    )
    .await;
    assert_eq!(out, format!("{}  -\n/models/model.gguf\nmodel.gguf\n", sha256()));
    let left: Vec<_> = std::fs::read_dir(lab.path().join("model-cache"))
        .unwrap()
        .collect();
    assert_eq!(left.len(), 1, "{left:?}");
    for workload in &workloads {
        lab.gone(workload.id).await;
    }
}

#[tokio::test]
async fn a_model_with_another_checksum_is_refused_and_not_kept() {
    let server = server(false, "/").await;
    let prefix = server.url.clone();
    let lab = lab_with(|o| o.model_sources = vec![prefix]);
    let workload = inference(&format!("{}/m#sha256={}", server.url, "0".repeat(64)));
    let error = lab.backend.create(&call(), &workload).await.unwrap_err();
    assert_eq!(error.kind, BackendErrorKind::Invalid, "{error}");
    assert!(error.message.contains(&sha256()), "{error}");
    assert_eq!(lab.backend.inspect(&[workload.id]).await.unwrap(), []);
}

#[tokio::test]
async fn a_redirect_to_an_address_inside_is_not_followed() {
    let inside = tokio::net::TcpListener::bind("127.0.0.2:0").await.unwrap();
    let target = format!("http://{}/secret", inside.local_addr().unwrap());
    let server = server(false, target.leak()).await;
    let prefix = server.url.clone();
    let lab = lab_with(|o| o.model_sources = vec![prefix, "http://".into()]);
    let workload = inference(&format!("{}/redirect/m", server.url));
    let error = lab.backend.create(&call(), &workload).await.unwrap_err();
    assert_eq!(error.kind, BackendErrorKind::Denied, "{error}");
    let touched = tokio::time::timeout(Duration::from_millis(200), inside.accept()).await;
    assert!(touched.is_err(), "the address inside was connected to");
}

/// A bucket of two objects, as S3 shows it by path.
async fn bucket() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = vec![0; 8192];
            let n = stream.read(&mut head).await.unwrap_or(0);
            let head = String::from_utf8_lossy(&head[..n]).into_owned();
            let object = |key: &str, size: usize| {
                format!(
                    "<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>\
                     <ETag>&quot;1&quot;</ETag><Size>{size}</Size></Contents>"
                )
            };
            let (status, body) = if head.contains("list-type=2") {
                let list = format!(
                    "<?xml version=\"1.0\"?><ListBucketResult><IsTruncated>false</IsTruncated>{}{}</ListBucketResult>",
                    object("llm/config.json", 2),
                    object("llm/weights/part-1.bin", 7)
                );
                ("200 OK", list)
            } else if head.starts_with("GET /models/llm/config.json ") {
                ("200 OK", "{}".to_owned())
            } else if head.starts_with("GET /models/llm/weights/part-1.bin ") {
                ("200 OK", "weights".to_owned())
            } else {
                (
                    "404 Not Found",
                    "<Error><Code>NoSuchKey</Code></Error>".to_owned(),
                )
            };
            let answer = format!(
                "HTTP/1.1 {status}\r\netag: \"1\"\r\nlast-modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n\
                 connection: close\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            // The client may have left.
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    url
}

#[tokio::test]
async fn a_model_in_a_bucket_is_a_file_or_a_folder() {
    let endpoint = bucket().await;
    let lab = lab_with(|o| {
        let settings = [
            ("endpoint", endpoint.as_str()),
            ("allow_http", "true"),
            ("access_key_id", "key"),
            ("secret_access_key", "canary-secret"),
            ("region", "here"),
        ];
        o.s3 = settings
            .map(|(k, v)| (k.to_owned(), hwm_core::secret::Secret::new(v)))
            .into();
        assert!(!format!("{o:?}").contains("canary-secret"));
    });
    let folder = inference("s3://models/llm/");
    lab.up(&folder).await;
    let out = shell(
        &lab,
        &folder,
        "cd $MODEL_PATH; find . -type f | sort; cat weights/part-1.bin",
    )
    .await;
    assert_eq!(out, "./config.json\n./weights/part-1.bin\nweights");
    lab.gone(folder.id).await;
    let file = inference("s3://models/llm/config.json");
    lab.up(&file).await;
    assert_eq!(shell(&lab, &file, "cat $MODEL_PATH").await, "{}");
    lab.gone(file.id).await;
    let error = lab
        .backend
        .create(&call(), &inference("s3://models/none.bin"))
        .await
        .unwrap_err();
    assert_eq!(error.kind, BackendErrorKind::NotFound, "{error}");
}
