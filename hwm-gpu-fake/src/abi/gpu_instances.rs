//! MIG mode, and the instances that a card is cut into.

use std::ffi::c_uint;

use nvml_wrapper_sys::bindings::*;

use super::args::{fixed, put, put_all, take};
use super::handle::{Handle, instance, mig_on, whole};
use super::{Answer, Code};
use crate::mig::{self, INVALID, NOT_FOUND, NOT_SUPPORTED};
use crate::session::{Text, change, read};
use crate::world::Card;

fn by_constant(card: &Card, constant: c_uint) -> Answer<hwm_gpu::geometry::Profile> {
    if constant >= NVML_GPU_INSTANCE_PROFILE_COUNT {
        return Err(INVALID);
    }
    let geometry = mig::geometry(card)?;
    geometry
        .profiles()
        .iter()
        .find(|p| p.constant == constant)
        .cloned()
        .ok_or(NOT_SUPPORTED)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigMode(
    device_: nvmlDevice_t,
    current: *mut c_uint,
    pending: *mut c_uint,
) -> Code {
    read("nvmlDeviceGetMigMode", |c| {
        let d = whole(c, device_)?;
        put(current, d.card.mig.into())?;
        put(pending, d.card.mig_pending.into())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceSetMigMode(
    device_: nvmlDevice_t,
    mode: c_uint,
    status: *mut Code,
) -> Code {
    change("nvmlDeviceSetMigMode", |c| {
        let index = whole(c, device_)?.index;
        if mode > 1 {
            return Err(INVALID);
        }
        let answer = mig::set_mode(c.card_mut(index)?.0, mode == 1)?;
        put(status, answer)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGpuInstanceProfileInfo(
    device_: nvmlDevice_t,
    constant: c_uint,
    to: *mut nvmlGpuInstanceProfileInfo_t,
) -> Code {
    read("nvmlDeviceGetGpuInstanceProfileInfo", |c| {
        let p = by_constant(whole(c, device_)?.card, constant)?;
        put(
            to,
            nvmlGpuInstanceProfileInfo_t {
                id: p.id,
                isP2pSupported: 0,
                sliceCount: p.slices.into(),
                instanceCount: p.max.into(),
                multiprocessorCount: p.multiprocessors.into(),
                copyEngineCount: p.copy_engines.into(),
                decoderCount: p.engines.decoders.into(),
                encoderCount: p.engines.encoders.into(),
                jpegCount: p.engines.jpeg.into(),
                ofaCount: p.engines.ofa.into(),
                memorySizeMB: p.memory.as_mb(),
            },
        )
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGpuInstanceProfileInfoV(
    device_: nvmlDevice_t,
    constant: c_uint,
    to: *mut nvmlGpuInstanceProfileInfo_v2_t,
) -> Code {
    read("nvmlDeviceGetGpuInstanceProfileInfoV", |c| {
        let p = by_constant(whole(c, device_)?.card, constant)?;
        let version = take(to.cast::<c_uint>())?;
        if version != (2 << 24) | size_of::<nvmlGpuInstanceProfileInfo_v2_t>() as c_uint {
            return Err(nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
        }
        let name = match c.text {
            Text::Fine => fixed(&format!("MIG {}", p.name)),
            Text::Garbage => [-1; 96],
            Text::Hostile => fixed("MIG \u{1b}[31m\n"),
        };
        put(
            to,
            nvmlGpuInstanceProfileInfo_v2_t {
                version,
                id: p.id,
                isP2pSupported: 0,
                sliceCount: p.slices.into(),
                instanceCount: p.max.into(),
                multiprocessorCount: p.multiprocessors.into(),
                copyEngineCount: p.copy_engines.into(),
                decoderCount: p.engines.decoders.into(),
                encoderCount: p.engines.encoders.into(),
                jpegCount: p.engines.jpeg.into(),
                ofaCount: p.engines.ofa.into(),
                memorySizeMB: p.memory.as_mb(),
                name,
            },
        )
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGpuInstancePossiblePlacements_v2(
    device_: nvmlDevice_t,
    id: c_uint,
    to: *mut nvmlGpuInstancePlacement_t,
    count: *mut c_uint,
) -> Code {
    read("nvmlDeviceGetGpuInstancePossiblePlacements_v2", |c| {
        let geometry = mig::geometry(mig_on(c, device_)?.card)?;
        let (_, p) = mig::profile(&geometry, id)?;
        if !to.is_null() {
            put_all(
                to,
                p.starts.iter().map(|s| nvmlGpuInstancePlacement_t {
                    start: (*s).into(),
                    size: p.size.into(),
                }),
            )?;
        }
        put(count, p.starts.len() as c_uint)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGpuInstanceRemainingCapacity(
    device_: nvmlDevice_t,
    id: c_uint,
    to: *mut c_uint,
) -> Code {
    read("nvmlDeviceGetGpuInstanceRemainingCapacity", |c| {
        put(to, mig::remaining(mig_on(c, device_)?.card, id)?)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceCreateGpuInstance(
    device_: nvmlDevice_t,
    id: c_uint,
    to: *mut nvmlGpuInstance_t,
) -> Code {
    change("nvmlDeviceCreateGpuInstance", |c| {
        let index = whole(c, device_)?.index;
        let (card, serial) = c.card_mut(index)?;
        let made = mig::create(card, serial, id, None)?;
        put(to, Handle::Instance(index, made).pack())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceCreateGpuInstanceWithPlacement(
    device_: nvmlDevice_t,
    id: c_uint,
    place: *const nvmlGpuInstancePlacement_t,
    to: *mut nvmlGpuInstance_t,
) -> Code {
    change("nvmlDeviceCreateGpuInstanceWithPlacement", |c| {
        let index = whole(c, device_)?.index;
        let place = take(place)?;
        let (card, serial) = c.card_mut(index)?;
        let made = mig::create(card, serial, id, Some((place.start, place.size)))?;
        put(to, Handle::Instance(index, made).pack())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlGpuInstanceDestroy(raw: nvmlGpuInstance_t) -> Code {
    change("nvmlGpuInstanceDestroy", |c| {
        let (index, _, found) = instance(c, raw)?;
        let serial = found.serial;
        mig::destroy(c.card_mut(index)?.0, serial)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGpuInstances(
    device_: nvmlDevice_t,
    id: c_uint,
    to: *mut nvmlGpuInstance_t,
    count: *mut c_uint,
) -> Code {
    read("nvmlDeviceGetGpuInstances", |c| {
        let d = mig_on(c, device_)?;
        mig::profile(&mig::geometry(d.card)?, id)?;
        let found = d.card.instances.iter().filter(|i| i.profile == id);
        let written = put_all(to, found.map(|i| Handle::Instance(d.index, i.serial).pack()))?;
        put(count, written)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGpuInstanceById(
    device_: nvmlDevice_t,
    id: c_uint,
    to: *mut nvmlGpuInstance_t,
) -> Code {
    read("nvmlDeviceGetGpuInstanceById", |c| {
        let d = mig_on(c, device_)?;
        let found = d.card.instances.iter().find(|i| i.id == id).ok_or(NOT_FOUND)?;
        put(to, Handle::Instance(d.index, found.serial).pack())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlGpuInstanceGetInfo(
    raw: nvmlGpuInstance_t,
    to: *mut nvmlGpuInstanceInfo_t,
) -> Code {
    read("nvmlGpuInstanceGetInfo", |c| {
        let (index, _, found) = instance(c, raw)?;
        put(
            to,
            nvmlGpuInstanceInfo_t {
                device: Handle::Card(index).pack(),
                id: found.id,
                profileId: found.profile,
                placement: nvmlGpuInstancePlacement_t {
                    start: found.start,
                    size: found.size,
                },
            },
        )
    })
}
