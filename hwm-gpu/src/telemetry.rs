//! Figures of cards and slices. What the card does not give is none, never zero.
//!
//! How busy a slice is comes from two samples of it, on cards that give such (Hopper and newer): over the time since it was
//! asked for last, and the first time over a moment.

use std::collections::HashMap;
use std::thread;
use std::time::Duration;

use hwm_core::metrics::GpuMetrics;
use nvml_wrapper::Device;
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::error::NvmlError;

use crate::engine::{Answer, Engine};
use crate::nvml::ends_session;
use crate::nvml::read::optional;

/// How long a slice is watched where nobody asked for it before.
const SPAN: Duration = Duration::from_millis(100);

impl Engine {
    /// The figures of these, in one pass. A device that cannot be asked has none.
    pub(crate) fn metrics(&mut self, uuids: &[String]) -> Answer<Vec<GpuMetrics>> {
        let nothing = |uuid: &String| GpuMetrics {
            enabled: true,
            device_id: Some(uuid.clone()),
            ..GpuMetrics::default()
        };
        // What was handed to a machine is seen by its guest alone.
        let handed = |uuid: &str| self.handovers.contains_key(uuid);
        if uuids.iter().all(|u| handed(u)) {
            return Ok(uuids.iter().map(nothing).collect());
        }
        self.session()?;
        let Some(session) = &mut self.session else {
            return Ok(uuids.iter().map(nothing).collect());
        };
        // What cannot be measured has no figure, which is no failure.
        let slices: Vec<&String> = uuids.iter().filter(|u| u.starts_with("MIG-")).collect();
        let begun = slices
            .iter()
            .filter(|u| session.measure(u).unwrap_or(false))
            .count();
        if begun > 0 {
            thread::sleep(SPAN);
        }
        let busy: HashMap<&String, f64> = slices
            .into_iter()
            .filter_map(|uuid| Some((uuid, session.busy(uuid).ok()?)))
            .collect();
        let nvml = session.nvml();
        let mut all = Vec::with_capacity(uuids.len());
        let mut ended = false;
        for uuid in uuids {
            let figures = nvml
                .device_by_uuid(uuid.as_str())
                .and_then(|device| figures(&device, uuid));
            ended |= figures.as_ref().is_err_and(ends_session);
            let mut figures = figures.unwrap_or_else(|_| nothing(uuid));
            figures.usage_percent = figures.usage_percent.or_else(|| busy.get(uuid).copied());
            all.push(figures);
        }
        if ended {
            self.close();
        }
        Ok(all)
    }
}

fn figures(device: &Device<'_>, uuid: &str) -> Result<GpuMetrics, NvmlError> {
    let memory = optional(device.memory_info())?;
    // Temperature and power are the card's; a slice has none of its own.
    let parent = optional(device.mig_parent_device())?;
    let card = parent.as_ref().unwrap_or(device);
    let usage = optional(device.utilization_rates())?;
    Ok(GpuMetrics {
        enabled: true,
        device_id: Some(uuid.to_owned()),
        usage_percent: usage.map(|u| f64::from(u.gpu.min(100))),
        memory_used_mb: memory.as_ref().map(|m| m.used >> 20),
        memory_total_mb: memory.as_ref().map(|m| m.total >> 20),
        temperature_c: optional(card.temperature(TemperatureSensor::Gpu))?.map(f64::from),
        power_w: optional(card.power_usage())?.map(|milliwatts| f64::from(milliwatts) / 1000.0),
    })
}
