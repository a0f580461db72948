//! Virtual machines for hwm, on libvirt and QEMU.
//!
//! [`Libvirt`] is a [`Backend`](hwm_core::backend::Backend). Disks, seeds, logs and consoles go through libvirt's own
//! API, so libvirt may be on another host (`qemu+ssh://`); what it cannot carry there is refused with the reason.
//!
//! ```no_run
//! # async fn example() -> Result<(), hwm_core::backend::BackendError> {
//! use hwm_core::backend::Backend;
//! use hwm_libvirt::{Libvirt, LibvirtOptions};
//!
//! let mut options = LibvirtOptions::new("node-1");
//! options.bridge = "br0".into();
//! let machines = Libvirt::new(options)?;
//! println!("{}", machines.probe().await?.version);
//! # Ok(())
//! # }
//! ```
#![deny(unsafe_code)]

mod agent;
mod backend;
mod catalog;
mod check;
mod connection;
mod console;
mod domain;
mod download;
mod images;
mod kvm;
mod lifecycle;
mod live;
mod logs;
mod mac;
mod machine;
mod network;
mod observe;
mod options;
mod qcow2;
mod seed;
mod snapshots;
mod stop;
mod turns;
mod usage;

pub use backend::Libvirt;
pub use catalog::{
    Bus, Catalog, CatalogError, Checksum, Digest, Firmware, Guest, Image, ImageFormat, ImageName, ImageSource,
};
pub use images::StoredImage;
pub use options::{DomainType, LibvirtOptions};
pub use seed::ClearPassword;

#[cfg(all(test, feature = "real"))]
mod validated;
