//! The SQLite store keeps what a store promises.

#![allow(clippy::unwrap_used)]

use std::sync::Mutex;

use hwm_core::testing::store_suite;
use hwm_store::{SealingKey, SqliteStore};

async fn run() {
    let folder = tempfile::tempdir().unwrap();
    let made = Mutex::new(0);
    store_suite::run(async || {
        let mut made = made.lock().unwrap();
        *made += 1;
        let path = folder.path().join(format!("{made}.db"));
        SqliteStore::open(&path, SealingKey::from_bytes([7; 32])).unwrap()
    })
    .await;
}

#[tokio::test]
async fn it_keeps_what_a_store_promises() {
    run().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn it_keeps_what_a_store_promises_on_many_threads() {
    run().await;
}
