//! What devices do: memory, temperature, power, processes.

use std::ffi::{c_uint, c_ulonglong};
use std::time::{SystemTime, UNIX_EPOCH};

use nvml_wrapper_sys::bindings::*;

use super::args::{put, put_counted, take};
use super::handle::{Device, device, whole};
use super::{Answer, Code, NOBODY};
use crate::mig::{self, INVALID, NOT_SUPPORTED};
use crate::session::read;

/// A figure between two others that moves with the time, another for each card.
pub(super) fn wave(card: usize, low: u64, high: u64) -> u64 {
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
pub unsafe extern "C" fn nvmlDeviceGetCurrentClocksThrottleReasons(
    device_: nvmlDevice_t,
    to: *mut c_ulonglong,
) -> Code {
    // The hardware slows down, and it does so for heat.
    const HEAT: c_ulonglong = 0x8 | 0x40;
    read("nvmlDeviceGetCurrentClocksThrottleReasons", |c| {
        put(to, if whole(c, device_)?.card.hot { HEAT } else { 0 })
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
