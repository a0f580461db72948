//! The server on a real libvirt, with nothing but an HTTP client: from POST to SSH, kills, bad days.
//!
//! `scripts/lab up libvirt` starts a private libvirtd and says where it is (`HWM_TEST_*`).
#![allow(clippy::unwrap_used, reason = "what a test cannot go on without ends it")]
#![allow(clippy::print_stdout, reason = "how long things take is worth a line")]

#[path = "../common/mod.rs"]
mod common;

mod bad_days;
mod kills;
mod lab;
mod socket;
mod walk;
