//! NVML without a GPU: the C functions of `libnvidia-ml.so.1`, answered from a file.
//!
//! The file is a [`World`]: the cards, their MIG instances, who uses them, what happened to them, and which
//! calls are to fail. Every process that loads the library works on the same file under a lock, so a process
//! may be killed at any call and the next one finds what the killed one left, as with a real card.
//!
//! Where the world comes from, in this order:
//!
//! 1. `world.json` in the folder of the library itself, which [`World::create`] writes for tests;
//! 2. the file that `HWM_FAKE_NVML` names;
//! 3. a list of boards in `HWM_FAKE_NVML`, such as `sim:a100-40gb+mig*2`; then nothing is kept.
//!
//! What is modelled: placements, refusal of overlap and of engines that ran out, instance ids by place,
//! `IN_USE` while a compute instance exists or a process runs, mode changes that need a reset on Ampere and
//! none later, UUIDs that are new each time, cards that are lost or bound elsewhere, telemetry that moves.

mod abi;
mod mig;
mod session;
pub mod world;

pub use world::{Card, ComputeInstance, Event, Fault, FaultKind, GpuInstance, Process, World};
