//! The server on a real engine, with nothing but an HTTP client.
//!
//! Reads `HWM_TEST_DOCKER_HOST` and `HWM_TEST_REGISTRY_…`; `scripts/lab up docker registry` makes them.
#![allow(clippy::unwrap_used, reason = "what a test cannot go on without ends it")]

#[path = "../common/mod.rs"]
mod common;
mod drift;
mod lab;
mod secrets;
mod walk;
