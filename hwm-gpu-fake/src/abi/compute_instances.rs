//! Compute instances inside a GPU instance.

use std::ffi::c_uint;

use nvml_wrapper_sys::bindings::*;

use super::Code;
use super::args::{put, put_all};
use super::handle::{Handle, compute, instance};
use crate::mig::{self, COMPUTE_SLICES, NOT_FOUND, NOT_SUPPORTED};
use crate::session::{change, read};

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlGpuInstanceGetComputeInstanceProfileInfo(
    raw: nvmlGpuInstance_t,
    profile: c_uint,
    _engines: c_uint,
    to: *mut nvmlComputeInstanceProfileInfo_t,
) -> Code {
    read("nvmlGpuInstanceGetComputeInstanceProfileInfo", |c| {
        let (_, card, found) = instance(c, raw)?;
        if !mig::compute_profiles(card, found)?.contains(&profile) {
            return Err(NOT_SUPPORTED);
        }
        let geometry = mig::geometry(card)?;
        let (_, p) = mig::profile(&geometry, found.profile)?;
        let slices = COMPUTE_SLICES[profile as usize];
        put(
            to,
            nvmlComputeInstanceProfileInfo_t {
                id: profile,
                sliceCount: slices,
                instanceCount: c_uint::from(p.slices) / slices,
                multiprocessorCount: c_uint::from(p.multiprocessors) * slices / c_uint::from(p.slices),
                sharedCopyEngineCount: p.copy_engines.into(),
                sharedDecoderCount: p.engines.decoders.into(),
                sharedEncoderCount: p.engines.encoders.into(),
                sharedJpegCount: p.engines.jpeg.into(),
                sharedOfaCount: p.engines.ofa.into(),
            },
        )
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlGpuInstanceGetComputeInstanceRemainingCapacity(
    raw: nvmlGpuInstance_t,
    profile: c_uint,
    to: *mut c_uint,
) -> Code {
    read("nvmlGpuInstanceGetComputeInstanceRemainingCapacity", |c| {
        let (_, card, found) = instance(c, raw)?;
        put(to, mig::compute_capacity(card, found, profile)?)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlGpuInstanceCreateComputeInstance(
    raw: nvmlGpuInstance_t,
    profile: c_uint,
    to: *mut nvmlComputeInstance_t,
) -> Code {
    change("nvmlGpuInstanceCreateComputeInstance", |c| {
        let (index, _, found) = instance(c, raw)?;
        let of = found.serial;
        let (card, serial) = c.card_mut(index)?;
        let made = mig::create_compute(card, serial, of, profile)?;
        put(to, Handle::Compute(index, made).pack())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlComputeInstanceDestroy(raw: nvmlComputeInstance_t) -> Code {
    change("nvmlComputeInstanceDestroy", |c| {
        let (index, _, found) = compute(c, raw)?;
        let serial = found.serial;
        mig::destroy_compute(c.card_mut(index)?.0, serial)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlGpuInstanceGetComputeInstances(
    raw: nvmlGpuInstance_t,
    profile: c_uint,
    to: *mut nvmlComputeInstance_t,
    count: *mut c_uint,
) -> Code {
    read("nvmlGpuInstanceGetComputeInstances", |c| {
        let (index, _, found) = instance(c, raw)?;
        let all = found.compute.iter().filter(|x| x.profile == profile);
        let written = put_all(to, all.map(|x| Handle::Compute(index, x.serial).pack()))?;
        put(count, written)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlGpuInstanceGetComputeInstanceById(
    raw: nvmlGpuInstance_t,
    id: c_uint,
    to: *mut nvmlComputeInstance_t,
) -> Code {
    read("nvmlGpuInstanceGetComputeInstanceById", |c| {
        let (index, _, found) = instance(c, raw)?;
        let found = found.compute.iter().find(|x| x.id == id).ok_or(NOT_FOUND)?;
        put(to, Handle::Compute(index, found.serial).pack())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlComputeInstanceGetInfo_v2(
    raw: nvmlComputeInstance_t,
    to: *mut nvmlComputeInstanceInfo_t,
) -> Code {
    read("nvmlComputeInstanceGetInfo_v2", |c| {
        let (index, parent, found) = compute(c, raw)?;
        put(
            to,
            nvmlComputeInstanceInfo_t {
                device: Handle::Card(index).pack(),
                gpuInstance: Handle::Instance(index, parent.serial).pack(),
                id: found.id,
                profileId: found.profile,
                placement: nvmlComputeInstancePlacement_t {
                    start: 0,
                    size: found.slices,
                },
            },
        )
    })
}
