//! Reads the cards as NVML sees them.

use std::collections::HashMap;
use std::sync::Arc;

use hwm_core::units::Bytes;
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enums::device::DeviceArchitecture;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

use super::ffi::{self, SeenInstance};
use super::{clean, is_uuid};
use crate::boards::BOARDS;
use crate::geometry::Geometry;
use crate::sysfs::kernel_address;

const HEAT: ThrottleReasons =
    ThrottleReasons::HW_THERMAL_SLOWDOWN.union(ThrottleReasons::SW_THERMAL_SLOWDOWN);

/// A card as NVML sees it.
#[derive(Debug, Clone)]
pub(crate) struct SeenCard {
    pub(crate) uuid: String,
    pub(crate) address: String,
    pub(crate) minor: Option<u32>,
    pub(crate) model: String,
    pub(crate) memory: Option<Bytes>,
    /// Whether MIG is on; none where the card has no MIG.
    pub(crate) mig: Option<bool>,
    /// Whether MIG mode changes without a reset.
    pub(crate) live: bool,
    /// Whether heat slows it down; none where it does not say.
    pub(crate) hot: Option<bool>,
    pub(crate) geometry: Option<Arc<Geometry>>,
    pub(crate) instances: Vec<SeenSlice>,
    /// Peers by address, and how many links lead to each.
    pub(crate) nvlinks: Vec<(String, u32)>,
}

/// A GPU instance, and the UUID of its first compute instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SeenSlice {
    pub(crate) instance: SeenInstance,
    pub(crate) uuid: Option<String>,
}

/// What never changes of a card, so that it is asked for once.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    geometry: Option<Arc<Geometry>>,
    nvlinks: Option<Vec<(String, u32)>>,
}

/// What was seen, and what could not be: one line for each card that did not answer.
pub(crate) struct Seen {
    pub(crate) cards: Vec<SeenCard>,
    pub(crate) troubles: Vec<String>,
    pub(crate) driver: Option<String>,
    pub(crate) cuda: Option<i32>,
}

/// Reads all cards. A card that fails is left out and reported; only what ends the session is an error.
pub(crate) fn all(nvml: &Nvml, facts: &mut HashMap<String, Facts>) -> Result<Seen, NvmlError> {
    let mut seen = Seen {
        cards: Vec::new(),
        troubles: Vec::new(),
        driver: nvml.sys_driver_version().ok().map(|d| clean(&d)),
        cuda: nvml.sys_cuda_driver_version().ok(),
    };
    for index in 0..nvml.device_count()? {
        let card = nvml.device_by_index(index).and_then(|d| card(nvml, &d, facts));
        match card {
            Ok(card) => seen.cards.push(card),
            Err(error) if super::ends_session(&error) => return Err(error),
            Err(error) => seen.troubles.push(format!(
                "the card with NVML index {index} does not answer: {error}"
            )),
        }
    }
    Ok(seen)
}

/// Reads one card.
pub(crate) fn card(
    nvml: &Nvml,
    device: &Device<'_>,
    facts: &mut HashMap<String, Facts>,
) -> Result<SeenCard, NvmlError> {
    let uuid = device.uuid()?;
    if !is_uuid(&uuid) {
        return Err(NvmlError::Unknown);
    }
    let pci = device.pci_info()?;
    let address = kernel_address(&pci.bus_id).ok_or(NvmlError::InvalidArg)?;
    let model = optional(device.name())?.map_or_else(|| "unknown".to_owned(), |n| clean(&n));
    let mig = optional(device.mig_mode())?.map(|m| m.current == 1);
    let facts = facts.entry(uuid.clone()).or_default();
    if mig == Some(true) && facts.geometry.is_none() {
        let profiles = ffi::profiles(nvml, device)?;
        facts.geometry = Geometry::new(profiles).ok().map(Arc::new);
    }
    let instances = match (&facts.geometry, mig) {
        (Some(geometry), Some(true)) => slices(nvml, device, geometry)?,
        _ => Vec::new(),
    };
    if facts.nvlinks.is_none() {
        facts.nvlinks = Some(nvlinks(device));
    }
    Ok(SeenCard {
        minor: optional(device.minor_number())?,
        memory: optional(device.memory_info())?.map(|m| Bytes(m.total)),
        mig,
        live: matches!(
            device.architecture(),
            Ok(DeviceArchitecture::Hopper | DeviceArchitecture::Blackwell)
                | Err(NvmlError::UnexpectedVariant(9..))
        ),
        hot: optional(device.current_throttle_reasons())?.map(|why| why.intersects(HEAT)),
        // Where MIG is off the card does not say how it would be cut; a board of that model does.
        geometry: facts
            .geometry
            .clone()
            .or_else(|| mig.and_then(|_| described(&model))),
        instances,
        nvlinks: facts.nvlinks.clone().unwrap_or_default(),
        uuid,
        address,
        model,
    })
}

fn described(model: &str) -> Option<Arc<Geometry>> {
    BOARDS
        .iter()
        .find(|b| b.model == model)?
        .geometry()
        .ok()
        .map(Arc::new)
}

/// The slices of a card, in the order of their starts.
pub(crate) fn slices(
    nvml: &Nvml,
    device: &Device<'_>,
    geometry: &Geometry,
) -> Result<Vec<SeenSlice>, NvmlError> {
    let instances = ffi::instances(nvml, device, geometry.profiles())?;
    if instances.is_empty() {
        return Ok(Vec::new());
    }
    let mut uuids = HashMap::new();
    // The count is how many there can be: an index without a device is passed over.
    for index in 0..device.mig_device_count()?.min(64) {
        match device.mig_device_by_index(index) {
            Ok(mig) => {
                let (instance, compute) = ffi::mig_ids(nvml, &mig)?;
                let uuid = mig.uuid()?;
                if is_uuid(&uuid) {
                    let known = uuids.entry(instance).or_insert((compute, uuid.clone()));
                    if compute < known.0 {
                        *known = (compute, uuid);
                    }
                }
            }
            Err(NvmlError::NotFound | NvmlError::InvalidArg) => {}
            Err(error) => return Err(error),
        }
    }
    let with_uuid = instances.into_iter().map(|instance| SeenSlice {
        uuid: uuids.get(&instance.id).map(|(_, uuid)| uuid.clone()),
        instance,
    });
    Ok(with_uuid.collect())
}

fn nvlinks(device: &Device<'_>) -> Vec<(String, u32)> {
    const LINKS: u32 = 18;
    let mut peers: Vec<(String, u32)> = Vec::new();
    for link in 0..LINKS {
        let link = device.link_wrapper_for(link);
        if !matches!(link.is_active(), Ok(true)) {
            continue;
        }
        let Some(peer) = link
            .remote_pci_info()
            .ok()
            .and_then(|p| kernel_address(&p.bus_id))
        else {
            continue;
        };
        match peers.iter_mut().find(|(p, _)| *p == peer) {
            Some((_, count)) => *count += 1,
            None => peers.push((peer, 1)),
        }
    }
    peers.sort();
    peers
}

/// Nothing where the card or its driver has no such figure, or gives text that is none.
pub(crate) fn optional<T>(answer: Result<T, NvmlError>) -> Result<Option<T>, NvmlError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(
            NvmlError::NotSupported
            | NvmlError::FailedToLoadSymbol(_)
            | NvmlError::Utf8Error(_)
            | NvmlError::InvalidArg
            | NvmlError::NotFound
            | NvmlError::NoPermission
            | NvmlError::UnexpectedVariant(_),
        ) => Ok(None),
        Err(error) => Err(error),
    }
}
