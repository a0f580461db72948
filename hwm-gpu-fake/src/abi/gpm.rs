//! GPU performance monitoring: what slices do between two samples. Hopper and newer.

use std::ffi::c_uint;

use hwm_gpu::boards::Architecture;
use nvml_wrapper_sys::bindings::*;

use super::args::{put, take};
use super::figures::wave;
use super::handle::{Handle, whole};
use super::{Answer, Code};
use crate::mig::{INVALID, NOT_FOUND, NOT_SUPPORTED};
use crate::session::{self, Context, Sample, read};
use crate::world::Card;

fn can(card: &Card) -> bool {
    card.board().is_some_and(|b| match b.architecture {
        Architecture::Ampere => false,
        Architecture::Hopper | Architecture::Blackwell => true,
    })
}

fn sample(raw: nvmlGpmSample_t) -> Answer<usize> {
    match Handle::unpack(raw)? {
        Handle::Sample(number) => Ok(number),
        Handle::Card(_)
        | Handle::Instance(..)
        | Handle::Compute(..)
        | Handle::Mig(..)
        | Handle::Events(_) => Err(INVALID),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlGpmQueryDeviceSupport(device_: nvmlDevice_t, to: *mut nvmlGpmSupport_t) -> Code {
    read("nvmlGpmQueryDeviceSupport", |c| {
        let supported = can(whole(c, device_)?.card);
        let version = take(to)?.version;
        put(
            to,
            nvmlGpmSupport_t {
                version,
                isSupportedDevice: supported.into(),
            },
        )
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlGpmSampleAlloc(to: *mut nvmlGpmSample_t) -> Code {
    read("nvmlGpmSampleAlloc", |_| {
        put(to, Handle::Sample(session::new_sample()).pack())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlGpmSampleFree(raw: nvmlGpmSample_t) -> Code {
    read("nvmlGpmSampleFree", |_| session::free_sample(sample(raw)?))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlGpmMigSampleGet(
    device_: nvmlDevice_t,
    instance: c_uint,
    raw: nvmlGpmSample_t,
) -> Code {
    read("nvmlGpmMigSampleGet", |c| {
        let d = whole(c, device_)?;
        if !can(d.card) || !d.card.mig {
            return Err(NOT_SUPPORTED);
        }
        if !d.card.instances.iter().any(|i| i.id == instance) {
            return Err(NOT_FOUND);
        }
        session::take_sample(sample(raw)?, d.index, instance)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlGpmMetricsGet(to: *mut nvmlGpmMetricsGet_t) -> Code {
    read("nvmlGpmMetricsGet", |c| {
        let mut request = take(to)?;
        let first = session::sample(sample(request.sample1)?)?;
        let second = session::sample(sample(request.sample2)?)?;
        let same = (first.card, first.instance) == (second.card, second.instance);
        if !same || first.time >= second.time || request.numMetrics as usize > request.metrics.len() {
            return Err(INVALID);
        }
        for metric in &mut request.metrics[..request.numMetrics as usize] {
            let known = metric.metricId == nvmlGpmMetricId_t_NVML_GPM_METRIC_GRAPHICS_UTIL;
            metric.nvmlReturn = if known {
                nvmlReturn_enum_NVML_SUCCESS
            } else {
                NOT_SUPPORTED
            };
            metric.value = if known { busy(c, &second)? } else { 0.0 };
        }
        put(to, request)
    })
}

/// A slice is busy while a process runs in it.
fn busy(context: &Context, sample: &Sample) -> Answer<f64> {
    let card = context.card(sample.card)?;
    let runs = card.processes.iter().any(|p| p.instance == Some(sample.instance));
    let figure = wave(sample.card + sample.instance as usize, 20, 95);
    Ok(if runs { figure as f64 } else { 0.0 })
}
