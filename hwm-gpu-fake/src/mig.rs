//! What a card does when instances are made and unmade.

use hwm_gpu::geometry::{Geometry, Occupancy, Profile, Slot};
use nvml_wrapper_sys::bindings::*;

use crate::world::{Card, ComputeInstance, GpuInstance, uuid};

type Answer<T> = Result<T, nvmlReturn_t>;

pub(crate) const INVALID: nvmlReturn_t = nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT;
pub(crate) const NOT_SUPPORTED: nvmlReturn_t = nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED;
pub(crate) const NOT_FOUND: nvmlReturn_t = nvmlReturn_enum_NVML_ERROR_NOT_FOUND;
const IN_USE: nvmlReturn_t = nvmlReturn_enum_NVML_ERROR_IN_USE;
const FULL: nvmlReturn_t = nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_RESOURCES;
const SUCCESS: nvmlReturn_t = nvmlReturn_enum_NVML_SUCCESS;
const RESET_REQUIRED: nvmlReturn_t = nvmlReturn_enum_NVML_ERROR_RESET_REQUIRED;

/// Compute slices by compute instance profile; the profile's number is its place.
pub(crate) const COMPUTE_SLICES: [u32; 8] = [1, 2, 3, 4, 7, 8, 6, 1];

pub(crate) fn geometry(card: &Card) -> Answer<Geometry> {
    card.board()
        .and_then(|b| b.geometry().ok())
        .ok_or(nvmlReturn_enum_NVML_ERROR_UNKNOWN)
}

pub(crate) fn profile(geometry: &Geometry, id: u32) -> Answer<(usize, &Profile)> {
    geometry
        .profiles()
        .iter()
        .enumerate()
        .find(|(_, p)| p.id == id)
        .ok_or(INVALID)
}

fn taken(card: &Card, geometry: &Geometry) -> Occupancy {
    card.instances.iter().fold(Occupancy::default(), |taken, i| {
        match geometry.profiles().iter().position(|p| p.id == i.profile) {
            Some(profile) => geometry.with(
                taken,
                Slot {
                    profile,
                    start: i.start as u8,
                },
            ),
            None => taken,
        }
    })
}

/// How many more of a profile fit, one after the other at the lowest start.
pub(crate) fn remaining(card: &Card, id: u32) -> Answer<u32> {
    let geometry = geometry(card)?;
    let (index, profile) = profile(&geometry, id)?;
    let mut taken = taken(card, &geometry);
    let mut count = 0;
    for start in &profile.starts {
        let slot = Slot {
            profile: index,
            start: *start,
        };
        if geometry.fits(&taken, slot) {
            taken = geometry.with(taken, slot);
            count += 1;
        }
    }
    Ok(count)
}

/// Makes a GPU instance, at the highest open start where none is given, as drivers do.
pub(crate) fn create(card: &mut Card, serial: &mut u32, id: u32, place: Option<(u32, u32)>) -> Answer<u32> {
    if !card.mig {
        return Err(NOT_SUPPORTED);
    }
    let geometry = geometry(card)?;
    let (index, profile) = profile(&geometry, id)?;
    let taken = taken(card, &geometry);
    let start = match place {
        Some((start, size)) => {
            let start = u8::try_from(start).map_err(|_| INVALID)?;
            if size != u32::from(profile.size) || !profile.starts.contains(&start) {
                return Err(INVALID);
            }
            Some(start).filter(|s| {
                geometry.fits(
                    &taken,
                    Slot {
                        profile: index,
                        start: *s,
                    },
                )
            })
        }
        None => profile.starts.iter().copied().rfind(|s| {
            geometry.fits(
                &taken,
                Slot {
                    profile: index,
                    start: *s,
                },
            )
        }),
    };
    let start = u32::from(start.ok_or(FULL)?);
    let size = u32::from(profile.size);
    *serial += 1;
    let instance = GpuInstance {
        serial: *serial,
        id: instance_id(&geometry, size, start),
        profile: id,
        start,
        size,
        compute: Vec::new(),
    };
    card.instances.push(instance);
    card.instances.sort_by_key(|i| i.id);
    Ok(*serial)
}

/// The whole card is instance 0, its halves 1 and 2, its quarters 3 to 6, and so on.
fn instance_id(geometry: &Geometry, size: u32, start: u32) -> u32 {
    let parts = u32::from(geometry.slots()).div_ceil(size);
    parts - 1 + start / size
}

pub(crate) fn destroy(card: &mut Card, serial: u32) -> Answer<()> {
    let at = card
        .instances
        .iter()
        .position(|i| i.serial == serial)
        .ok_or(INVALID)?;
    let instance = &card.instances[at];
    let busy = card.processes.iter().any(|p| p.instance == Some(instance.id));
    if busy || !instance.compute.is_empty() {
        return Err(IN_USE);
    }
    card.instances.remove(at);
    Ok(())
}

pub(crate) fn compute_profiles(card: &Card, instance: &GpuInstance) -> Answer<Vec<u32>> {
    let geometry = geometry(card)?;
    let (_, profile) = profile(&geometry, instance.profile)?;
    let slices = u32::from(profile.slices);
    let fits = |n: u32| n <= slices && (n == slices || n < 4);
    Ok((0..7).filter(|i| fits(COMPUTE_SLICES[*i as usize])).collect())
}

pub(crate) fn compute_capacity(card: &Card, instance: &GpuInstance, id: u32) -> Answer<u32> {
    if !compute_profiles(card, instance)?.contains(&id) {
        return Err(NOT_SUPPORTED);
    }
    let geometry = geometry(card)?;
    let (_, profile) = profile(&geometry, instance.profile)?;
    let used: u32 = instance.compute.iter().map(|c| c.slices).sum();
    Ok(u32::from(profile.slices).saturating_sub(used) / COMPUTE_SLICES[id as usize])
}

pub(crate) fn create_compute(card: &mut Card, serial: &mut u32, of: u32, id: u32) -> Answer<u32> {
    let at = card
        .instances
        .iter()
        .position(|i| i.serial == of)
        .ok_or(INVALID)?;
    if compute_capacity(card, &card.instances[at], id)? == 0 {
        return Err(FULL);
    }
    *serial += 1;
    let space = card
        .uuid
        .bytes()
        .fold(0u64, |h, b| h.wrapping_mul(31).wrapping_add(u64::from(b)));
    let instance = &mut card.instances[at];
    let free = (0..8)
        .find(|n| instance.compute.iter().all(|c| c.id != *n))
        .unwrap_or(8);
    instance.compute.push(ComputeInstance {
        serial: *serial,
        id: free,
        profile: id,
        slices: COMPUTE_SLICES[id as usize],
        uuid: format!("MIG-{}", uuid(space, u64::from(*serial))),
    });
    instance.compute.sort_by_key(|c| c.id);
    Ok(*serial)
}

pub(crate) fn destroy_compute(card: &mut Card, serial: u32) -> Answer<()> {
    for instance in &mut card.instances {
        if let Some(at) = instance.compute.iter().position(|c| c.serial == serial) {
            if card.processes.iter().any(|p| p.instance == Some(instance.id)) {
                return Err(IN_USE);
            }
            instance.compute.remove(at);
            return Ok(());
        }
    }
    Err(INVALID)
}

/// Asks for a mode; answers what NVML gives as the activation status.
pub(crate) fn set_mode(card: &mut Card, on: bool) -> Answer<nvmlReturn_t> {
    let board = card.board().ok_or(NOT_SUPPORTED)?;
    card.mig_pending = on;
    if card.mig == on {
        return Ok(SUCCESS);
    }
    if !card.processes.is_empty() || !card.instances.is_empty() {
        return Ok(IN_USE);
    }
    if !board.architecture.switches_live() {
        return Ok(RESET_REQUIRED);
    }
    card.mig = on;
    Ok(SUCCESS)
}
