//! NVML's C functions, by family. The only unsafe code of the fake.
//!
//! Safety, for all of it: pointers come from the caller, who by NVML's documentation gives each either null or
//! room for what is written there. Null is answered with INVALID_ARGUMENT; nothing else can be checked.
//! Handles are numbers that are never dereferenced.
#![allow(unsafe_code, reason = "exports a C interface")]
#![allow(clippy::missing_safety_doc, reason = "the file's head says it for all")]
#![allow(non_upper_case_globals, reason = "the bindings spell NVML's constants so")]
#![allow(
    unreachable_pub,
    missing_docs,
    reason = "called by name through the dynamic linker; NVML documents them"
)]

mod args;
mod compute_instances;
mod devices;
mod events;
mod figures;
mod gpm;
mod gpu_instances;
mod handle;
mod mig_devices;
mod system;
mod topology;

use std::ffi::c_uint;

use nvml_wrapper_sys::bindings::nvmlReturn_t;

type Code = nvmlReturn_t;
type Answer<T> = Result<T, Code>;

/// The number of an instance where there is none.
const NOBODY: c_uint = 0xFFFF_FFFF;
