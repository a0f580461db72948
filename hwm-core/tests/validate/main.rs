//! What a client may send, and what it is told when it may not.

mod bodies;
mod fields;
mod patches;
mod properties;
mod rules;
mod samples;
