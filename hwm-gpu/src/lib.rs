//! NVIDIA GPUs for hwm: whole cards and MIG slices, for containers and machines, in one ledger.

pub mod boards;
pub mod fleet;
pub mod geometry;
