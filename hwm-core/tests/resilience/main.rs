//! Bad days of the manager, on the simulated node: it is killed, its calls fail, hang and are repeated, and
//! many callers race. Afterwards nothing is orphaned, lost, doubled or stuck, and what was acknowledged is
//! done or undone.
#![allow(clippy::unwrap_used)]

mod crash;
mod house;
mod model;
mod races;
