//! What a client may send, and what it is told when it may not.
#![allow(clippy::unwrap_used, reason = "the helpers of tests fail by it, as tests do")]

mod bodies;
mod fields;
mod generators;
mod patches;
mod properties;
mod rules;
mod samples;
