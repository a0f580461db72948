//! Tests on a real libvirt and real QEMU machines. `scripts/lab up libvirt` starts a private one; its variables tell
//! where it is. Without them these tests fail: whoever turns the feature on wants them run.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod conformance;
mod console;
mod cuts;
mod drift;
mod faults;
mod foreign;
mod hostile;
mod images;
mod lab;
mod lifecycle;
mod network;
mod privilege;
mod proxy;
mod remote;
mod running;
mod snapshots;
mod stubborn;
