//! For tests of hwm and of what is built on it: a simulator, a replayable environment, faults, and the
//! suites that every backend and every store must pass.

pub mod backend_suite;
pub mod env;
pub mod faults;
pub mod sim;
pub mod store_suite;
