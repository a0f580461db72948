//! Random days of a node, against a reference that knows only what callers were told and what the test did
//! to the world.

mod day;
mod reference;

use crate::house::{run, seeds};

#[test]
fn random_days_end_as_callers_were_told() {
    seeds::many(1_000, |seed| run(day::live(seed)));
}
