//! The manager is killed at every commit and before and after every call that changes something, and again
//! while it recovers; calls fail and are repeated at each of them.

mod acts;
mod every_point;
mod undo;
