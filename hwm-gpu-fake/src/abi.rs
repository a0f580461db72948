//! NVML's C functions. The only unsafe code of the fake.
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

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hwm_gpu::boards::Architecture;
use nvml_wrapper_sys::bindings::*;

use crate::mig::{self, COMPUTE_SLICES, INVALID, NOT_FOUND, NOT_SUPPORTED};
use crate::session::{self, Context, Text, change, read};
use crate::world::{Card, ComputeInstance, GpuInstance};

type Code = nvmlReturn_t;
type Answer<T> = Result<T, Code>;

const SMALL: Code = nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE;
const NOBODY: c_uint = 0xFFFF_FFFF;

/// What a handle stands for. The number of an instance is never given twice, so a stale handle is refused.
#[derive(Clone, Copy)]
enum Handle {
    Card(usize),
    Instance(usize, u32),
    Compute(usize, u32),
    Mig(usize, u32),
    Events(usize),
}

impl Handle {
    fn pack<T>(self) -> *mut T {
        let (kind, card, serial) = match self {
            Self::Card(card) => (1usize, card, 0),
            Self::Instance(card, serial) => (2, card, serial),
            Self::Compute(card, serial) => (3, card, serial),
            Self::Mig(card, serial) => (4, card, serial),
            Self::Events(set) => (5, set, 0),
        };
        ((kind << 56) | (card << 32) | serial as usize) as *mut T
    }

    fn unpack<T>(raw: *mut T) -> Answer<Self> {
        let raw = raw as usize;
        let (card, serial) = ((raw >> 32) & 0xff_ffff, raw as u32);
        match raw >> 56 {
            1 => Ok(Self::Card(card)),
            2 => Ok(Self::Instance(card, serial)),
            3 => Ok(Self::Compute(card, serial)),
            4 => Ok(Self::Mig(card, serial)),
            5 => Ok(Self::Events(card)),
            _ => Err(INVALID),
        }
    }
}

/// A device handle, resolved: the card, and the MIG device on it where it is one.
struct Device<'a> {
    index: usize,
    card: &'a Card,
    mig: Option<(&'a GpuInstance, &'a ComputeInstance)>,
}

fn device(context: &Context, raw: nvmlDevice_t) -> Answer<Device<'_>> {
    match Handle::unpack(raw)? {
        Handle::Card(index) if context.visible.contains(&index) => Ok(Device {
            index,
            card: context.card(index)?,
            mig: None,
        }),
        Handle::Mig(index, serial) if context.visible.contains(&index) => {
            let card = context.card(index)?;
            let all = card
                .instances
                .iter()
                .flat_map(|i| i.compute.iter().map(move |c| (i, c)));
            let mig = all
                .into_iter()
                .find(|(_, c)| c.serial == serial)
                .ok_or(NOT_FOUND)?;
            Ok(Device {
                index,
                card,
                mig: Some(mig),
            })
        }
        _ => Err(INVALID),
    }
}

fn whole(context: &Context, raw: nvmlDevice_t) -> Answer<Device<'_>> {
    let device = device(context, raw)?;
    if device.mig.is_some() {
        Err(NOT_SUPPORTED)
    } else {
        Ok(device)
    }
}

fn mig_on(context: &Context, raw: nvmlDevice_t) -> Answer<Device<'_>> {
    let device = whole(context, raw)?;
    if device.card.mig {
        Ok(device)
    } else {
        Err(NOT_SUPPORTED)
    }
}

fn instance(context: &Context, raw: nvmlGpuInstance_t) -> Answer<(usize, &Card, &GpuInstance)> {
    let Handle::Instance(index, serial) = Handle::unpack(raw)? else {
        return Err(INVALID);
    };
    let card = context.card(index)?;
    let found = card
        .instances
        .iter()
        .find(|i| i.serial == serial)
        .ok_or(INVALID)?;
    Ok((index, card, found))
}

fn compute(context: &Context, raw: nvmlComputeInstance_t) -> Answer<(usize, &GpuInstance, &ComputeInstance)> {
    let Handle::Compute(index, serial) = Handle::unpack(raw)? else {
        return Err(INVALID);
    };
    let all = context
        .card(index)?
        .instances
        .iter()
        .flat_map(|i| i.compute.iter().map(move |c| (i, c)));
    let (instance, compute) = all.into_iter().find(|(_, c)| c.serial == serial).ok_or(INVALID)?;
    Ok((index, instance, compute))
}

fn put<T>(to: *mut T, value: T) -> Answer<()> {
    if to.is_null() {
        return Err(INVALID);
    }
    // SAFETY: see the file's head.
    unsafe { to.write(value) };
    Ok(())
}

fn take<T: Copy>(from: *const T) -> Answer<T> {
    if from.is_null() {
        return Err(INVALID);
    }
    // SAFETY: see the file's head.
    Ok(unsafe { from.read() })
}

/// Writes items one after the other where there is room for as many as the caller was told there can be.
fn put_all<T>(to: *mut T, items: impl IntoIterator<Item = T>) -> Answer<c_uint> {
    let mut count = 0;
    for (i, item) in items.into_iter().enumerate() {
        put(to.wrapping_add(i), item)?;
        count += 1;
    }
    Ok(count)
}

/// Writes items where the caller says how many there is room for.
fn put_counted<T>(to: *mut T, count: *mut c_uint, items: Vec<T>) -> Answer<()> {
    let room = take(count)?;
    put(count, items.len() as c_uint)?;
    if items.is_empty() {
        return Ok(());
    }
    if (room as usize) < items.len() || to.is_null() {
        return Err(SMALL);
    }
    put_all(to, items).map(|_| ())
}

fn put_text(context: &Context, to: *mut c_char, room: c_uint, text: &str) -> Answer<()> {
    let bytes: &[u8] = match context.text {
        Text::Fine => text.as_bytes(),
        Text::Garbage => b"\xff\xfe\x80GPU\xc3",
        Text::Hostile => b"\x1b[31m\"'\n</name>{}",
    };
    if bytes.len() >= room as usize {
        return Err(SMALL);
    }
    let text = bytes.iter().map(|b| *b as c_char).chain([0]);
    put_all(to, text).map(|_| ())
}

fn fixed<const N: usize>(text: &str) -> [c_char; N] {
    let mut to = [0; N];
    for (to, byte) in to.iter_mut().zip(text.bytes().take(N - 1)) {
        *to = byte as c_char;
    }
    to
}

fn text<'a>(from: *const c_char) -> Answer<&'a str> {
    if from.is_null() {
        return Err(INVALID);
    }
    // SAFETY: see the file's head; the caller's text ends with a NUL.
    unsafe { CStr::from_ptr(from) }.to_str().map_err(|_| INVALID)
}

/// A figure between two others that moves with the time, another for each card.
fn wave(card: usize, low: u64, high: u64) -> u64 {
    let millis = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_millis() as u64);
    let phase = (millis / 10 + 37 * card as u64) % 200;
    let up = if phase < 100 { phase } else { 200 - phase };
    low + (high - low) * up / 100
}

fn memory(device: &Device<'_>) -> Answer<(u64, u64)> {
    const MIB: u64 = 1 << 20;
    let mut used: u64 = device
        .card
        .processes
        .iter()
        .filter(|p| device.mig.is_none_or(|(i, _)| p.instance == Some(i.id)))
        .map(|p| p.mib)
        .sum();
    let total = match device.mig {
        Some((instance, _)) => {
            let geometry = mig::geometry(device.card)?;
            mig::profile(&geometry, instance.profile)?.1.memory.as_mb()
        }
        None => {
            used += 400;
            device.card.board().ok_or(NOT_SUPPORTED)?.memory_mib
        }
    };
    used += wave(device.index, 10, 60);
    Ok((total * MIB, used.min(total) * MIB))
}

fn pci(card: &Card) -> nvmlPciInfo_t {
    nvmlPciInfo_t {
        busIdLegacy: fixed(&card.pci_address()),
        domain: 0,
        bus: card.bus,
        device: 0,
        pciDeviceId: card.board().map_or(0, |b| b.pci_id),
        pciSubSystemId: 0,
        busId: fixed(&format!("00000000:{:02X}:00.0", card.bus)),
    }
}

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
pub unsafe extern "C" fn nvmlInit_v2() -> Code {
    session::init("nvmlInit_v2")
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlInitWithFlags(_flags: c_uint) -> Code {
    session::init("nvmlInitWithFlags")
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlShutdown() -> Code {
    session::shutdown()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlErrorString(code: Code) -> *const c_char {
    let text = match code {
        nvmlReturn_enum_NVML_SUCCESS => c"Success",
        nvmlReturn_enum_NVML_ERROR_UNINITIALIZED => c"Uninitialized",
        nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT => c"Invalid Argument",
        nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED => c"Not Supported",
        nvmlReturn_enum_NVML_ERROR_NOT_FOUND => c"Not Found",
        nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE => c"Insufficient Size",
        nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED => c"Driver Not Loaded",
        nvmlReturn_enum_NVML_ERROR_TIMEOUT => c"Timeout",
        nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST => c"GPU is lost",
        nvmlReturn_enum_NVML_ERROR_RESET_REQUIRED => c"GPU requires reset",
        nvmlReturn_enum_NVML_ERROR_IN_USE => c"In use by another client",
        nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_RESOURCES => c"Insufficient Resources",
        _ => c"Unknown Error",
    };
    text.as_ptr()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetDriverVersion(to: *mut c_char, room: c_uint) -> Code {
    read("nvmlSystemGetDriverVersion", |c| {
        put_text(c, to, room, &c.world.driver)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetNVMLVersion(to: *mut c_char, room: c_uint) -> Code {
    read("nvmlSystemGetNVMLVersion", |c| {
        put_text(c, to, room, &format!("12.{}", c.world.driver))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetCudaDriverVersion(to: *mut c_int) -> Code {
    read("nvmlSystemGetCudaDriverVersion", |_| put(to, 12080))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetCudaDriverVersion_v2(to: *mut c_int) -> Code {
    read("nvmlSystemGetCudaDriverVersion_v2", |_| put(to, 12080))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCount_v2(to: *mut c_uint) -> Code {
    read("nvmlDeviceGetCount_v2", |c| put(to, c.visible.len() as c_uint))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, to: *mut nvmlDevice_t) -> Code {
    read("nvmlDeviceGetHandleByIndex_v2", |c| {
        let card = *c.visible.get(index as usize).ok_or(INVALID)?;
        c.card(card)?;
        put(to, Handle::Card(card).pack())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByUUID(uuid: *const c_char, to: *mut nvmlDevice_t) -> Code {
    read("nvmlDeviceGetHandleByUUID", |c| {
        let uuid = text(uuid)?;
        for card in &c.visible {
            let found = &c.world.cards[*card];
            if found.uuid == uuid {
                c.card(*card)?;
                return put(to, Handle::Card(*card).pack());
            }
            if let Some(compute) = found
                .instances
                .iter()
                .flat_map(|i| &i.compute)
                .find(|x| x.uuid == uuid)
            {
                return put(to, Handle::Mig(*card, compute.serial).pack());
            }
        }
        Err(NOT_FOUND)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByPciBusId_v2(
    address: *const c_char,
    to: *mut nvmlDevice_t,
) -> Code {
    read("nvmlDeviceGetHandleByPciBusId_v2", |c| {
        let address = text(address)?.to_ascii_lowercase();
        let card = c
            .visible
            .iter()
            .find(|i| address.ends_with(&c.world.cards[**i].pci_address()));
        let card = *card.ok_or(NOT_FOUND)?;
        c.card(card)?;
        put(to, Handle::Card(card).pack())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetName(device_: nvmlDevice_t, to: *mut c_char, room: c_uint) -> Code {
    read("nvmlDeviceGetName", |c| {
        let d = device(c, device_)?;
        let model = d.card.board().ok_or(NOT_SUPPORTED)?.model;
        match d.mig {
            Some((instance, _)) => {
                let geometry = mig::geometry(d.card)?;
                let (_, profile) = mig::profile(&geometry, instance.profile)?;
                put_text(c, to, room, &format!("{model} MIG {}", profile.name))
            }
            None => put_text(c, to, room, model),
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUUID(device_: nvmlDevice_t, to: *mut c_char, room: c_uint) -> Code {
    read("nvmlDeviceGetUUID", |c| {
        let d = device(c, device_)?;
        put_text(
            c,
            to,
            room,
            d.mig.map_or(&d.card.uuid, |(_, compute)| &compute.uuid),
        )
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetIndex(device_: nvmlDevice_t, to: *mut c_uint) -> Code {
    read("nvmlDeviceGetIndex", |c| {
        let d = whole(c, device_)?;
        let index = c.visible.iter().position(|i| *i == d.index).ok_or(INVALID)?;
        put(to, index as c_uint)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMinorNumber(device_: nvmlDevice_t, to: *mut c_uint) -> Code {
    read("nvmlDeviceGetMinorNumber", |c| {
        put(to, whole(c, device_)?.index as c_uint)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetPciInfo_v3(device_: nvmlDevice_t, to: *mut nvmlPciInfo_t) -> Code {
    read("nvmlDeviceGetPciInfo_v3", |c| {
        put(to, pci(whole(c, device_)?.card))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetArchitecture(device_: nvmlDevice_t, to: *mut c_uint) -> Code {
    read("nvmlDeviceGetArchitecture", |c| {
        let board = device(c, device_)?.card.board().ok_or(NOT_SUPPORTED)?;
        put(
            to,
            match board.architecture {
                Architecture::Ampere => 7,
                Architecture::Hopper => 9,
                Architecture::Blackwell => 10,
            },
        )
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCudaComputeCapability(
    device_: nvmlDevice_t,
    major: *mut c_int,
    minor: *mut c_int,
) -> Code {
    read("nvmlDeviceGetCudaComputeCapability", |c| {
        let board = device(c, device_)?.card.board().ok_or(NOT_SUPPORTED)?;
        put(
            major,
            match board.architecture {
                Architecture::Ampere => 8,
                Architecture::Hopper => 9,
                Architecture::Blackwell => 10,
            },
        )?;
        put(minor, 0)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo(device_: nvmlDevice_t, to: *mut nvmlMemory_t) -> Code {
    read("nvmlDeviceGetMemoryInfo", |c| {
        let (total, used) = memory(&device(c, device_)?)?;
        put(
            to,
            nvmlMemory_t {
                total,
                free: total - used,
                used,
            },
        )
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(device_: nvmlDevice_t, to: *mut nvmlMemory_v2_t) -> Code {
    read("nvmlDeviceGetMemoryInfo_v2", |c| {
        let (total, used) = memory(&device(c, device_)?)?;
        let version = take(to.cast::<c_uint>())?;
        put(
            to,
            nvmlMemory_v2_t {
                version,
                total,
                reserved: 0,
                free: total - used,
                used,
            },
        )
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetBAR1MemoryInfo(
    device_: nvmlDevice_t,
    to: *mut nvmlBAR1Memory_t,
) -> Code {
    read("nvmlDeviceGetBAR1MemoryInfo", |c| {
        let (total, _) = memory(&device(c, device_)?)?;
        put(
            to,
            nvmlBAR1Memory_t {
                bar1Total: total,
                bar1Free: total,
                bar1Used: 0,
            },
        )
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTemperature(
    device_: nvmlDevice_t,
    sensor: c_uint,
    to: *mut c_uint,
) -> Code {
    read("nvmlDeviceGetTemperature", |c| {
        let d = whole(c, device_)?;
        if sensor != 0 {
            return Err(INVALID);
        }
        put(to, wave(d.index, 35, 70) as c_uint)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetPowerUsage(device_: nvmlDevice_t, to: *mut c_uint) -> Code {
    read("nvmlDeviceGetPowerUsage", |c| {
        let d = whole(c, device_)?;
        let most = u64::from(d.card.board().ok_or(NOT_SUPPORTED)?.power_watts) * 1000;
        put(to, wave(d.index, most / 5, most) as c_uint)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetEnforcedPowerLimit(device_: nvmlDevice_t, to: *mut c_uint) -> Code {
    read("nvmlDeviceGetEnforcedPowerLimit", |c| {
        put(
            to,
            whole(c, device_)?.card.board().ok_or(NOT_SUPPORTED)?.power_watts * 1000,
        )
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetClockInfo(
    device_: nvmlDevice_t,
    _kind: c_uint,
    to: *mut c_uint,
) -> Code {
    read("nvmlDeviceGetClockInfo", |c| {
        put(to, wave(whole(c, device_)?.index, 210, 1410) as c_uint)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUtilizationRates(
    device_: nvmlDevice_t,
    to: *mut nvmlUtilization_t,
) -> Code {
    read("nvmlDeviceGetUtilizationRates", |c| {
        let d = whole(c, device_)?;
        if d.card.mig {
            return Err(NOT_SUPPORTED);
        }
        put(
            to,
            nvmlUtilization_t {
                gpu: wave(d.index, 0, 100) as c_uint,
                memory: wave(d.index, 0, 50) as c_uint,
            },
        )
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetPersistenceMode(
    device_: nvmlDevice_t,
    to: *mut nvmlEnableState_t,
) -> Code {
    read("nvmlDeviceGetPersistenceMode", |c| {
        put(to, c_uint::from(whole(c, device_)?.card.persistence))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTotalEccErrors(
    device_: nvmlDevice_t,
    _kind: c_uint,
    _counter: c_uint,
    to: *mut c_ulonglong,
) -> Code {
    read("nvmlDeviceGetTotalEccErrors", |c| {
        whole(c, device_)?;
        put(to, 0)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceSetPersistenceMode(
    device_: nvmlDevice_t,
    mode: nvmlEnableState_t,
) -> Code {
    change("nvmlDeviceSetPersistenceMode", |c| {
        let index = whole(c, device_)?.index;
        c.card_mut(index)?.0.persistence = mode != 0;
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(
    device_: nvmlDevice_t,
    count: *mut c_uint,
    infos_: *mut nvmlProcessInfo_t,
) -> Code {
    read("nvmlDeviceGetComputeRunningProcesses_v3", |c| {
        let d = device(c, device_)?;
        let running = d
            .card
            .processes
            .iter()
            .filter(|p| d.mig.is_none_or(|(i, _)| p.instance == Some(i.id)));
        let infos = running.map(|p| nvmlProcessInfo_t {
            pid: p.pid,
            usedGpuMemory: p.mib << 20,
            gpuInstanceId: p.instance.unwrap_or(NOBODY),
            computeInstanceId: p.instance.map_or(NOBODY, |_| 0),
        });
        put_counted(infos_, count, infos.collect())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGraphicsRunningProcesses_v3(
    device_: nvmlDevice_t,
    count: *mut c_uint,
    infos_: *mut nvmlProcessInfo_t,
) -> Code {
    read("nvmlDeviceGetGraphicsRunningProcesses_v3", |c| {
        device(c, device_)?;
        put_counted(infos_, count, Vec::new())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTopologyCommonAncestor(
    device_: nvmlDevice_t,
    other: nvmlDevice_t,
    to: *mut nvmlGpuTopologyLevel_t,
) -> Code {
    read("nvmlDeviceGetTopologyCommonAncestor", |c| {
        let (a, b) = (whole(c, device_)?, whole(c, other)?);
        put(
            to,
            match () {
                () if a.index == b.index => 0,
                () if a.card.switch == b.card.switch => 10,
                () if a.card.numa == b.card.numa => 40,
                () => 50,
            },
        )
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetNvLinkState(
    device_: nvmlDevice_t,
    link: c_uint,
    to: *mut nvmlEnableState_t,
) -> Code {
    read("nvmlDeviceGetNvLinkState", |c| {
        let d = whole(c, device_)?;
        let links = c_uint::from(d.card.board().ok_or(NOT_SUPPORTED)?.nvlinks);
        if link >= links {
            return Err(if links == 0 { NOT_SUPPORTED } else { INVALID });
        }
        put(to, c_uint::from(!d.card.nvlinks.is_empty()))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetNvLinkRemotePciInfo_v2(
    device_: nvmlDevice_t,
    link: c_uint,
    to: *mut nvmlPciInfo_t,
) -> Code {
    read("nvmlDeviceGetNvLinkRemotePciInfo_v2", |c| {
        let d = whole(c, device_)?;
        if d.card.nvlinks.is_empty() {
            return Err(NOT_SUPPORTED);
        }
        let peer = d.card.nvlinks[link as usize % d.card.nvlinks.len()];
        put(to, pci(c.world.cards.get(peer).ok_or(INVALID)?))
    })
}

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

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetSupportedEventTypes(
    device_: nvmlDevice_t,
    to: *mut c_ulonglong,
) -> Code {
    read("nvmlDeviceGetSupportedEventTypes", |c| {
        whole(c, device_)?;
        put(to, 0x1 | 0x2 | 0x8)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetCreate(to: *mut nvmlEventSet_t) -> Code {
    read("nvmlEventSetCreate", |c| {
        put(to, Handle::Events(session::create_set(c)).pack())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceRegisterEvents(
    device_: nvmlDevice_t,
    _types: c_ulonglong,
    set: nvmlEventSet_t,
) -> Code {
    read("nvmlDeviceRegisterEvents", |c| {
        let index = whole(c, device_)?.index;
        let Handle::Events(set) = Handle::unpack(set)? else {
            return Err(INVALID);
        };
        session::register(set, index)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetFree(set: nvmlEventSet_t) -> Code {
    read("nvmlEventSetFree", |_| {
        let Handle::Events(set) = Handle::unpack(set)? else {
            return Err(INVALID);
        };
        session::free_set(set)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetWait_v2(
    set: nvmlEventSet_t,
    to: *mut nvmlEventData_t,
    millis: c_uint,
) -> Code {
    read("nvmlEventSetWait_v2", |_| {
        let Handle::Events(set) = Handle::unpack(set)? else {
            return Err(INVALID);
        };
        let event = session::wait(set, Duration::from_millis(millis.into()))?;
        put(
            to,
            nvmlEventData_t {
                device: Handle::Card(event.card).pack(),
                eventType: event.kind,
                eventData: event.data,
                gpuInstanceId: event.instance.unwrap_or(NOBODY),
                computeInstanceId: event.instance.map_or(NOBODY, |_| 0),
            },
        )
    })
}
