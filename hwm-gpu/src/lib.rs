//! NVIDIA GPUs for hwm: whole cards and MIG slices, for containers and machines, in one ledger.
//!
//! [`NvmlAccelerators`] is core's [`Accelerators`](hwm_core::accelerator::Accelerators) over NVML and sysfs.
//! Below it, pure and usable alone: [`geometry`] (how cards are cut), [`boards`] (the cards that have a name),
//! [`fleet`] (where a slice goes) and [`topology`] (which whole cards go together).
//!
//! # Guarantees
//!
//! * What is about to be done to a card is in the journal before it is done, flushed to the disk; after a crash
//!   at any point the next call or look finds what was done and completes it or undoes it.
//! * An instance that hwm did not make is counted as taken and never destroyed. Where nobody can tell whose one
//!   is, its slots are out of use until an operator has looked.
//! * A card that was passed through counts as free only when its functions are back on their drivers, nobody
//!   holds them, and NVML answers. Else it is out of use, with the reason, until it is recovered.
//! * NVML is called on one thread. A call that hangs costs its caller the deadline and nobody else anything.
//! * No NVIDIA library is needed to build this or to start it.
//!
//! ```
//! use hwm_core::accelerator::Accelerators;
//! use hwm_gpu::{NvmlAccelerators, Options};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
//! # let folder = tempfile::tempdir()?;
//! let mut options = Options::new(folder.path());
//! options.library = Some("/nowhere/libnvidia-ml.so.1".into());
//! let gpus = NvmlAccelerators::open(options).await?;
//! assert!(gpus.inventory().reason.is_some());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod accelerators;
pub mod boards;
mod doubt;
mod engine;
pub mod fleet;
pub mod geometry;
mod handover;
mod health;
mod journal;
mod node;
mod nvml;
mod options;
mod picture;
mod plan;
mod simulated;
mod slices;
mod sysfs;
mod telemetry;
pub mod topology;
mod vgpu;
mod worker;

pub use accelerators::{NvmlAccelerators, OpenError};
pub use node::Look;
pub use options::{Adopt, HostRoots, Options};
pub use simulated::Simulated;
