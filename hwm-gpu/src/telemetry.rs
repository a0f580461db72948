//! Figures of cards and slices. What the card does not give is none, never zero.

use hwm_core::metrics::GpuMetrics;
use nvml_wrapper::Device;
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::error::NvmlError;

use crate::engine::{Answer, Engine};
use crate::nvml::ends_session;
use crate::nvml::read::optional;

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
        let session = self.session()?;
        let nvml = session.nvml();
        let mut all = Vec::with_capacity(uuids.len());
        let mut ended = false;
        for uuid in uuids {
            let figures = nvml
                .device_by_uuid(uuid.as_str())
                .and_then(|device| figures(&device, uuid));
            ended |= figures.as_ref().is_err_and(ends_session);
            all.push(figures.unwrap_or_else(|_| nothing(uuid)));
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
