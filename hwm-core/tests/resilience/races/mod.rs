//! Many callers at once.

mod idempotency;
mod late;
mod limits;
mod one_resource;

use std::time::Duration;

use hwm_core::testing::faults::{Fault, Faults};

use crate::house::World;

/// Lets every call of the store and the backends take up to so many milliseconds, so that callers overlap
/// in every way.
fn jitter(world: &World, faults: &Faults, most: u64) {
    faults.of_reads_too(true);
    let env = world.env.clone();
    faults.decide(move |_, _| Some(Fault::Delay(Duration::from_millis(env.random_below(most)))));
}
