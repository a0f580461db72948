//! The backend on a real engine. Needs the variables that `scripts/lab up docker registry` writes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod conformance;
mod engine_down;
mod exec;
mod faults;
mod foreign;
mod images;
mod inference;
mod lab;
mod lifecycle;
mod logs;
mod observe;
mod privilege;
mod proxy;
mod volumes;
