use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use hwm_core::backend::{Backend, BackendErrorKind, ProgressSink};
use sha2::{Digest, Sha256};

use crate::lab::{Lab, call, config, variable, virsh};

/// A web server that cuts every answer off after a part, and knows ranges.
fn cutting_server(bytes: Vec<u8>, part: usize) -> (String, Arc<AtomicU32>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/image.qcow2", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicU32::new(0));
    let count = asked.clone();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let mut request = [0; 4096];
            let n = client.read(&mut request).unwrap();
            count.fetch_add(1, Ordering::SeqCst);
            let text = String::from_utf8_lossy(&request[..n]).to_lowercase();
            let from: usize = text
                .split_once("range: bytes=")
                .map_or(0, |(_, rest)| rest.split('-').next().unwrap().parse().unwrap());
            let rest = &bytes[from..];
            let status = if from == 0 {
                "200 OK"
            } else {
                "206 Partial Content"
            };
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", rest.len());
            client.write_all(head.as_bytes()).unwrap();
            let _ = client.write_all(&rest[..rest.len().min(part)]);
        }
    });
    (url, asked)
}

fn image(name: &str, source: &str, checksum: &str) -> String {
    format!(
        "[[image]]\nname = \"{name}\"\nformat = \"qcow2\"\nsource = \"{source}\"\nuser = \"u\"\nchecksum = \"{checksum}\"\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_fetched_once_and_taken_up_where_it_was_cut_off() {
    let bytes = std::fs::read(variable("HWM_TEST_GUEST")).unwrap();
    let digest: String = Sha256::digest(&bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    let part = bytes.len() / 3 + 1;
    let (url, asked) = cutting_server(bytes.clone(), part);
    let (bad, _) = cutting_server(bytes, usize::MAX);
    let lab = Lab::with("images", |options| {
        let catalog = options.image_catalog.clone().unwrap();
        let text = [
            image("good", &url, &format!("sha256:{digest}")),
            image("bad", &bad, &format!("sha256:{}", "0".repeat(64))),
        ];
        std::fs::write(catalog, text.concat()).unwrap();
    })
    .await;
    let backend = &lab.backend;
    let said = Arc::new(AtomicU32::new(0));
    let progress = {
        let said = said.clone();
        ProgressSink::new(move |_, percent| {
            if percent.is_some() {
                said.fetch_add(1, Ordering::SeqCst);
            }
        })
    };
    let all = futures_util::future::join_all((0..8).map(|_| backend.pull_image("good", &progress))).await;
    assert!(all.iter().all(Result::is_ok), "{all:?}");
    assert_eq!(
        asked.load(Ordering::SeqCst),
        3,
        "cut off twice, and then the rest"
    );
    assert!(said.load(Ordering::SeqCst) > 0);

    let mut machine = lab.machine();
    config(&mut machine).os_image = "good".into();
    backend.create(&call(1), &machine).await.unwrap();
    assert_eq!(asked.load(Ordering::SeqCst), 3);

    let refused = backend
        .pull_image("bad", &ProgressSink::default())
        .await
        .unwrap_err();
    assert_eq!(refused.kind, BackendErrorKind::Invalid, "{refused}");
    assert!(refused.message.contains("checksum"), "{refused}");
    assert!(!virsh(&["vol-list", &lab.options.pool]).contains("hwm-image-bad"));
    lab.clean().await;
}
