//! The simulator keeps every promise of a backend, at any speed, and does what it says it does.
#![allow(clippy::unwrap_used)]

mod sim {
    mod conformance;
    mod consoles;
    mod flaws;
    mod gpus;
    mod world;
}
