//! MIG devices: a compute instance, seen as a device.

use std::ffi::c_uint;

use nvml_wrapper_sys::bindings::*;

use super::Code;
use super::args::put;
use super::handle::{Handle, device, mig_on, whole};
use crate::mig::{self, INVALID, NOT_FOUND, NOT_SUPPORTED};
use crate::session::read;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetAttributes_v2(
    device_: nvmlDevice_t,
    to: *mut nvmlDeviceAttributes_t,
) -> Code {
    read("nvmlDeviceGetAttributes_v2", |c| {
        let d = device(c, device_)?;
        let (instance, compute) = d.mig.ok_or(NOT_SUPPORTED)?;
        let geometry = mig::geometry(d.card)?;
        let (_, p) = mig::profile(&geometry, instance.profile)?;
        put(
            to,
            nvmlDeviceAttributes_t {
                multiprocessorCount: c_uint::from(p.multiprocessors) * compute.slices
                    / c_uint::from(p.slices),
                sharedCopyEngineCount: p.copy_engines.into(),
                sharedDecoderCount: p.engines.decoders.into(),
                sharedEncoderCount: p.engines.encoders.into(),
                sharedJpegCount: p.engines.jpeg.into(),
                sharedOfaCount: p.engines.ofa.into(),
                gpuInstanceSliceCount: p.slices.into(),
                computeInstanceSliceCount: compute.slices,
                memorySizeMB: p.memory.as_mb(),
            },
        )
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceIsMigDeviceHandle(device_: nvmlDevice_t, to: *mut c_uint) -> Code {
    read("nvmlDeviceIsMigDeviceHandle", |c| {
        put(to, device(c, device_)?.mig.is_some().into())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGpuInstanceId(device_: nvmlDevice_t, to: *mut c_uint) -> Code {
    read("nvmlDeviceGetGpuInstanceId", |c| {
        put(to, device(c, device_)?.mig.ok_or(NOT_SUPPORTED)?.0.id)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetComputeInstanceId(device_: nvmlDevice_t, to: *mut c_uint) -> Code {
    read("nvmlDeviceGetComputeInstanceId", |c| {
        put(to, device(c, device_)?.mig.ok_or(NOT_SUPPORTED)?.1.id)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMaxMigDeviceCount(device_: nvmlDevice_t, to: *mut c_uint) -> Code {
    read("nvmlDeviceGetMaxMigDeviceCount", |c| {
        let geometry = mig::geometry(whole(c, device_)?.card)?;
        put(
            to,
            geometry
                .profiles()
                .iter()
                .map(|p| c_uint::from(p.max))
                .max()
                .unwrap_or(0),
        )
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigDeviceHandleByIndex(
    device_: nvmlDevice_t,
    index: c_uint,
    to: *mut nvmlDevice_t,
) -> Code {
    read("nvmlDeviceGetMigDeviceHandleByIndex", |c| {
        let d = mig_on(c, device_)?;
        let found = d
            .card
            .instances
            .iter()
            .flat_map(|i| &i.compute)
            .nth(index as usize)
            .ok_or(NOT_FOUND)?;
        put(to, Handle::Mig(d.index, found.serial).pack())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetDeviceHandleFromMigDeviceHandle(
    device_: nvmlDevice_t,
    to: *mut nvmlDevice_t,
) -> Code {
    read("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", |c| {
        let d = device(c, device_)?;
        d.mig.ok_or(INVALID)?;
        put(to, Handle::Card(d.index).pack())
    })
}
