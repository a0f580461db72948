//! What nvml-wrapper does not reach: GPU and compute instances, events that name a slice, and samples of slices that
//! are kept between two calls. The only unsafe code of this crate.
//!
//! Safety, for all of it:
//!
//! * Every call goes to a symbol that the wrapper resolved from the library, with the types of its bindings.
//! * Device handles come from a live [`Device`], which borrows the [`Nvml`] whose library is called; handles of
//!   instances are used in the function that asked for them and never kept. Those of events and samples belong to the
//!   session that allocated them, and are freed before it ends.
//! * Whatever NVML writes goes into a value of the bindings' own type, zeroed before, for which any bit pattern
//!   is valid; lists get room for as many as NVML itself says there can be, and are cut to what it says it wrote,
//!   never beyond that room.
//! * Text is read up to its first NUL or to the end of its field.
#![allow(unsafe_code, reason = "calls C; see above")]

use std::collections::HashMap;
use std::mem::{size_of, zeroed};
use std::path::Path;
use std::ptr::null_mut;
use std::time::{Duration, Instant};

use hwm_core::units::Bytes;
use nvml_wrapper::enums::gpm::GpmMetricId;
use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try};
use nvml_wrapper::gpm::gpm_metrics_get;
use nvml_wrapper::{Device, GpmSample, Nvml};
use nvml_wrapper_sys::bindings::*;

use crate::geometry::{Engines, Profile};

type Answer<T> = Result<T, NvmlError>;

/// More of anything than a card has; room for lists whose length NVML does not bound.
const ROOM: usize = 64;
/// Profile constants that are asked for, beyond those that the bindings know.
const PROFILES: u32 = 32;
const NOBODY: u32 = u32::MAX;
/// Single-bit and double-bit ECC errors, and XIDs.
const EVENTS: u64 = 0x1 | 0x2 | 0x8;

/// A GPU instance as NVML reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SeenInstance {
    pub(crate) id: u32,
    pub(crate) profile: u32,
    pub(crate) start: u32,
    pub(crate) size: u32,
    /// Ids of its compute instances.
    pub(crate) compute: Vec<u32>,
}

/// Something that NVML noticed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SeenEvent {
    /// The card's UUID.
    pub(crate) card: String,
    pub(crate) kind: u64,
    pub(crate) data: u64,
    /// The GPU instance, where it is about one.
    pub(crate) instance: Option<u32>,
}

/// The profiles of a card with the places where they may start. Fails with `NotSupported` where MIG is off.
pub(crate) fn profiles(nvml: &Nvml, device: &Device<'_>) -> Answer<Vec<Profile>> {
    let mut profiles = Vec::new();
    for constant in 0..PROFILES {
        match profile(nvml, device, constant) {
            Ok(Some(profile)) => profiles.push(profile),
            Ok(None) | Err(NvmlError::NotSupported | NvmlError::InvalidArg | NvmlError::NotFound) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(profiles)
}

fn profile(nvml: &Nvml, device: &Device<'_>, constant: u32) -> Answer<Option<Profile>> {
    let info = nvml_sym(nvml.lib().nvmlDeviceGetGpuInstanceProfileInfoV.as_ref())?;
    let places = nvml_sym(nvml.lib().nvmlDeviceGetGpuInstancePossiblePlacements_v2.as_ref())?;
    // SAFETY: see the file's head. The version tells NVML which of its structures this is.
    let seen = unsafe {
        let mut seen: nvmlGpuInstanceProfileInfo_v2_t = zeroed();
        seen.version = size_of::<nvmlGpuInstanceProfileInfo_v2_t>() as u32 | (2 << 24);
        nvml_try(info(device.handle(), constant, &mut seen))?;
        seen
    };
    let mut list = [nvmlGpuInstancePlacement_t { start: 0, size: 0 }; ROOM];
    let mut count = 0;
    // SAFETY: see the file's head. A first call without a list answers how long it is.
    unsafe {
        nvml_try(places(device.handle(), seen.id, null_mut(), &mut count))?;
        if count as usize > ROOM {
            return Err(NvmlError::InsufficientSize(Some(count as usize)));
        }
        nvml_try(places(device.handle(), seen.id, list.as_mut_ptr(), &mut count))?;
    }
    let list = &list[..(count as usize).min(ROOM)];
    // The wrapper's name for the memory: MiB, whatever NVML's field says.
    let name = name(&seen.name).map_err(NvmlError::Utf8Error)?;
    let small = |n: u32| u8::try_from(n).unwrap_or(u8::MAX);
    let (Some(first), Ok(slices)) = (list.first(), u8::try_from(seen.sliceCount)) else {
        return Ok(None);
    };
    Ok(Some(Profile {
        id: seen.id,
        constant,
        name: name.strip_prefix("MIG ").unwrap_or(&name).to_owned(),
        slices,
        memory: Bytes::from_mb(seen.memorySizeMB),
        size: small(first.size),
        starts: list
            .iter()
            .filter(|p| p.size == first.size)
            .map(|p| small(p.start))
            .collect(),
        max: small(seen.instanceCount),
        multiprocessors: u16::try_from(seen.multiprocessorCount).unwrap_or(u16::MAX),
        copy_engines: small(seen.copyEngineCount),
        engines: Engines {
            decoders: small(seen.decoderCount),
            encoders: small(seen.encoderCount),
            jpeg: small(seen.jpegCount),
            ofa: small(seen.ofaCount),
        },
    }))
}

fn name(field: &[std::ffi::c_char]) -> Result<String, std::str::Utf8Error> {
    let bytes: Vec<u8> = field.iter().take_while(|c| **c != 0).map(|c| *c as u8).collect();
    std::str::from_utf8(&bytes).map(str::to_owned)
}

/// The GPU instances on a card, of these profiles.
pub(crate) fn instances(nvml: &Nvml, device: &Device<'_>, profiles: &[Profile]) -> Answer<Vec<SeenInstance>> {
    let list = nvml_sym(nvml.lib().nvmlDeviceGetGpuInstances.as_ref())?;
    let mut seen = Vec::new();
    for profile in profiles {
        let mut handles = [null_mut(); ROOM];
        let mut count = 0;
        // SAFETY: see the file's head; a card has fewer instances than there is room for.
        unsafe {
            nvml_try(list(
                device.handle(),
                profile.id,
                handles.as_mut_ptr(),
                &mut count,
            ))?
        };
        for handle in &handles[..(count as usize).min(ROOM)] {
            let info = instance_info(nvml, *handle)?;
            let compute = compute_instances(nvml, *handle)?
                .into_iter()
                .map(|(_, id)| id)
                .collect();
            seen.push(SeenInstance {
                id: info.id,
                profile: info.profileId,
                start: info.placement.start,
                size: info.placement.size,
                compute,
            });
        }
    }
    seen.sort_by_key(|i| (i.start, i.id));
    Ok(seen)
}

fn instance_info(nvml: &Nvml, handle: nvmlGpuInstance_t) -> Answer<nvmlGpuInstanceInfo_t> {
    let info = nvml_sym(nvml.lib().nvmlGpuInstanceGetInfo.as_ref())?;
    // SAFETY: see the file's head.
    unsafe {
        let mut seen: nvmlGpuInstanceInfo_t = zeroed();
        nvml_try(info(handle, &mut seen))?;
        Ok(seen)
    }
}

fn compute_instances(nvml: &Nvml, instance: nvmlGpuInstance_t) -> Answer<Vec<(nvmlComputeInstance_t, u32)>> {
    let list = nvml_sym(nvml.lib().nvmlGpuInstanceGetComputeInstances.as_ref())?;
    let info = nvml_sym(nvml.lib().nvmlComputeInstanceGetInfo_v2.as_ref())?;
    let mut seen = Vec::new();
    for (profile, _) in compute_profiles(nvml, instance)? {
        let mut handles = [null_mut(); ROOM];
        let mut count = 0;
        // SAFETY: see the file's head.
        unsafe { nvml_try(list(instance, profile, handles.as_mut_ptr(), &mut count))? };
        for handle in &handles[..(count as usize).min(ROOM)] {
            // SAFETY: see the file's head.
            let id = unsafe {
                let mut seen: nvmlComputeInstanceInfo_t = zeroed();
                nvml_try(info(*handle, &mut seen))?;
                seen.id
            };
            seen.push((*handle, id));
        }
    }
    Ok(seen)
}

/// Numbers and slices of the compute instance profiles of an instance.
fn compute_profiles(nvml: &Nvml, instance: nvmlGpuInstance_t) -> Answer<Vec<(u32, u32)>> {
    let info = nvml_sym(nvml.lib().nvmlGpuInstanceGetComputeInstanceProfileInfo.as_ref())?;
    let mut profiles = Vec::new();
    for constant in 0..NVML_COMPUTE_INSTANCE_PROFILE_COUNT {
        // SAFETY: see the file's head.
        let answer = unsafe {
            let mut seen: nvmlComputeInstanceProfileInfo_t = zeroed();
            let shared = NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED;
            nvml_try(info(instance, constant, shared, &mut seen)).map(|()| (seen.id, seen.sliceCount))
        };
        match answer {
            Ok(profile) => profiles.push(profile),
            Err(NvmlError::NotSupported | NvmlError::InvalidArg | NvmlError::NotFound) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(profiles)
}

fn instance_by_id(nvml: &Nvml, device: &Device<'_>, id: u32) -> Answer<nvmlGpuInstance_t> {
    let by_id = nvml_sym(nvml.lib().nvmlDeviceGetGpuInstanceById.as_ref())?;
    let mut handle = null_mut();
    // SAFETY: see the file's head.
    unsafe { nvml_try(by_id(device.handle(), id, &mut handle))? };
    Ok(handle)
}

/// Makes a GPU instance at a place. When this succeeds it is made.
pub(crate) fn create_instance(
    nvml: &Nvml,
    device: &Device<'_>,
    profile: u32,
    start: u32,
    size: u32,
) -> Answer<()> {
    let create = nvml_sym(nvml.lib().nvmlDeviceCreateGpuInstanceWithPlacement.as_ref())?;
    let place = nvmlGpuInstancePlacement_t { start, size };
    let mut handle = null_mut();
    // SAFETY: see the file's head.
    unsafe { nvml_try(create(device.handle(), profile, &place, &mut handle)) }
}

/// Makes the compute instance that has all of a GPU instance.
pub(crate) fn create_compute(nvml: &Nvml, device: &Device<'_>, instance: u32) -> Answer<()> {
    let create = nvml_sym(nvml.lib().nvmlGpuInstanceCreateComputeInstance.as_ref())?;
    let instance = instance_by_id(nvml, device, instance)?;
    let profiles = compute_profiles(nvml, instance)?;
    let whole = profiles
        .iter()
        .max_by_key(|(_, slices)| *slices)
        .ok_or(NvmlError::NotSupported)?;
    let mut handle = null_mut();
    // SAFETY: see the file's head.
    unsafe { nvml_try(create(instance, whole.0, &mut handle)) }
}

/// Destroys the compute instances of a GPU instance.
pub(crate) fn destroy_compute(nvml: &Nvml, device: &Device<'_>, instance: u32) -> Answer<()> {
    let destroy = nvml_sym(nvml.lib().nvmlComputeInstanceDestroy.as_ref())?;
    let instance = instance_by_id(nvml, device, instance)?;
    for (handle, _) in compute_instances(nvml, instance)? {
        // SAFETY: see the file's head.
        unsafe { nvml_try(destroy(handle))? };
    }
    Ok(())
}

/// Destroys a GPU instance that has no compute instances.
pub(crate) fn destroy_instance(nvml: &Nvml, device: &Device<'_>, instance: u32) -> Answer<()> {
    let destroy = nvml_sym(nvml.lib().nvmlGpuInstanceDestroy.as_ref())?;
    let instance = instance_by_id(nvml, device, instance)?;
    // SAFETY: see the file's head.
    unsafe { nvml_try(destroy(instance)) }
}

/// Ids of the GPU instance and the compute instance behind a MIG device.
pub(crate) fn mig_ids(nvml: &Nvml, device: &Device<'_>) -> Answer<(u32, u32)> {
    let instance = nvml_sym(nvml.lib().nvmlDeviceGetGpuInstanceId.as_ref())?;
    let compute = nvml_sym(nvml.lib().nvmlDeviceGetComputeInstanceId.as_ref())?;
    let (mut gpu, mut inner) = (0, 0);
    // SAFETY: see the file's head.
    unsafe {
        nvml_try(instance(device.handle(), &mut gpu))?;
        nvml_try(compute(device.handle(), &mut inner))?;
    }
    Ok((gpu, inner))
}

/// What a slice did up to a moment.
struct Sample {
    handle: nvmlGpmSample_t,
    taken: Instant,
}

/// A sample that nobody compared with a newer one for so long is let go: its slice may be gone.
const SAMPLE_LIFE: Duration = Duration::from_secs(600);

/// A session with NVML, and the set of events that is asked in it. While there is one, this process has every
/// card's device file open.
pub(crate) struct Session {
    events: Option<nvmlEventSet_t>,
    /// By UUID of the slice.
    samples: HashMap<String, Sample>,
    nvml: Nvml,
}

// SAFETY: NVML may be called from any thread, and a session moves between threads as a whole: its set of events
// is never used by two at once.
unsafe impl Send for Session {}

impl Session {
    /// Opens a session, with this library or the system's.
    pub(crate) fn open(library: Option<&Path>) -> Answer<Self> {
        let mut builder = Nvml::builder();
        if let Some(path) = library {
            builder.lib_path(path.as_os_str());
        }
        Ok(Self {
            events: None,
            samples: HashMap::new(),
            nvml: builder.init()?,
        })
    }

    pub(crate) const fn nvml(&self) -> &Nvml {
        &self.nvml
    }

    /// Watches these cards, by UUID, in place of those watched before. A card that reports no events is left out.
    pub(crate) fn watch(&mut self, cards: &[String]) -> Answer<()> {
        self.unwatch();
        let lib = self.nvml.lib();
        let create = nvml_sym(lib.nvmlEventSetCreate.as_ref())?;
        let register = nvml_sym(lib.nvmlDeviceRegisterEvents.as_ref())?;
        let supported = nvml_sym(lib.nvmlDeviceGetSupportedEventTypes.as_ref())?;
        let mut set = null_mut();
        // SAFETY: see the file's head.
        unsafe { nvml_try(create(&mut set))? };
        self.events = Some(set);
        for card in cards {
            let Ok(device) = self.nvml.device_by_uuid(card.as_str()) else {
                continue;
            };
            // SAFETY: see the file's head.
            unsafe {
                let mut kinds = 0;
                if nvml_try(supported(device.handle(), &mut kinds)).is_ok() && kinds & EVENTS != 0 {
                    nvml_try(register(device.handle(), kinds & EVENTS, set))?;
                }
            }
        }
        Ok(())
    }

    /// The next event, if there is one within so many milliseconds.
    pub(crate) fn next_event(&self, millis: u32) -> Answer<Option<SeenEvent>> {
        let Some(set) = self.events else { return Ok(None) };
        let wait = nvml_sym(self.nvml.lib().nvmlEventSetWait_v2.as_ref())?;
        // SAFETY: see the file's head. The set is of this session; the device of an event is a handle that NVML
        // just gave.
        unsafe {
            let mut data: nvmlEventData_t = zeroed();
            match nvml_try(wait(set, &mut data, millis)) {
                Ok(()) => {}
                Err(NvmlError::Timeout) => return Ok(None),
                Err(error) => return Err(error),
            }
            Ok(Some(SeenEvent {
                card: Device::new(data.device, &self.nvml).uuid()?,
                kind: data.eventType,
                data: data.eventData,
                instance: (data.gpuInstanceId != NOBODY).then_some(data.gpuInstanceId),
            }))
        }
    }

    /// Begins to measure a slice, unless that is under way. Answers whether it was begun just now.
    pub(crate) fn measure(&mut self, slice: &str) -> Answer<bool> {
        if self.samples.contains_key(slice) {
            return Ok(false);
        }
        let sample = self.sample(slice)?;
        self.samples.insert(slice.to_owned(), sample);
        Ok(true)
    }

    /// How much of the time since it was asked for last a slice was busy, in percent. Needs [`Self::measure`] before.
    pub(crate) fn busy(&mut self, slice: &str) -> Answer<f64> {
        let now = self.sample(slice)?;
        let before = self.samples.insert(slice.to_owned(), now);
        let (Some(before), Some(now)) = (before, self.samples.get(slice)) else {
            return Err(NvmlError::NotFound);
        };
        // SAFETY: see the file's head. Both were allocated in this session; the first is freed here and nowhere else, and
        // the second is given back before it would be.
        let (first, second) = unsafe {
            (
                GpmSample::from_handle(&self.nvml, before.handle),
                GpmSample::from_handle(&self.nvml, now.handle),
            )
        };
        let asked = gpm_metrics_get(&self.nvml, &first, &second, &[GpmMetricId::GraphicsUtil]);
        let _kept: nvmlGpmSample_t = second.into_handle();
        let figure = asked?.into_iter().next().ok_or(NvmlError::NotSupported)??;
        Ok(figure.value)
    }

    fn sample(&mut self, slice: &str) -> Answer<Sample> {
        let (now, nvml) = (Instant::now(), &self.nvml);
        let device = nvml.device_by_uuid(slice)?;
        let card = device.mig_parent_device()?;
        if !card.gpm_support()? {
            return Err(NvmlError::NotSupported);
        }
        let (instance, _) = mig_ids(nvml, &device)?;
        let handle = card.gpm_mig_sample(instance)?.into_handle();
        self.forget_samples(|s| now.duration_since(s.taken) > SAMPLE_LIFE);
        Ok(Sample { handle, taken: now })
    }

    fn forget_samples(&mut self, which: impl Fn(&Sample) -> bool) {
        for (_, sample) in self.samples.extract_if(|_, s| which(s)) {
            // SAFETY: see the file's head; it was allocated in this session and is forgotten here.
            drop(unsafe { GpmSample::from_handle(&self.nvml, sample.handle) });
        }
    }

    fn unwatch(&mut self) {
        if let (Some(set), Ok(free)) = (self.events.take(), self.nvml.lib().nvmlEventSetFree.as_ref()) {
            // SAFETY: the set is of this session and is not used again. What freeing it answers changes nothing.
            unsafe { free(set) };
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Before the session, which the wrapper closes when it is dropped.
        self.unwatch();
        self.forget_samples(|_| true);
    }
}
