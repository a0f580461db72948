//! What handles stand for, and what they stand for now.

use nvml_wrapper_sys::bindings::*;

use super::Answer;
use crate::mig::{INVALID, NOT_FOUND, NOT_SUPPORTED};
use crate::session::Context;
use crate::world::{Card, ComputeInstance, GpuInstance};

/// What a handle stands for. The number of an instance is never given twice, so a stale handle is refused.
#[derive(Clone, Copy)]
pub(super) enum Handle {
    Card(usize),
    Instance(usize, u32),
    Compute(usize, u32),
    Mig(usize, u32),
    Events(usize),
    Sample(usize),
}

impl Handle {
    pub(super) fn pack<T>(self) -> *mut T {
        let (kind, card, serial) = match self {
            Self::Card(card) => (1usize, card, 0),
            Self::Instance(card, serial) => (2, card, serial),
            Self::Compute(card, serial) => (3, card, serial),
            Self::Mig(card, serial) => (4, card, serial),
            Self::Events(set) => (5, set, 0),
            Self::Sample(number) => (6, number, 0),
        };
        ((kind << 56) | (card << 32) | serial as usize) as *mut T
    }

    pub(super) fn unpack<T>(raw: *mut T) -> Answer<Self> {
        let raw = raw as usize;
        let (card, serial) = ((raw >> 32) & 0xff_ffff, raw as u32);
        match raw >> 56 {
            1 => Ok(Self::Card(card)),
            2 => Ok(Self::Instance(card, serial)),
            3 => Ok(Self::Compute(card, serial)),
            4 => Ok(Self::Mig(card, serial)),
            5 => Ok(Self::Events(card)),
            6 => Ok(Self::Sample(card)),
            _ => Err(INVALID),
        }
    }
}

/// A device handle, resolved: the card, and the MIG device on it where it is one.
pub(super) struct Device<'a> {
    pub(super) index: usize,
    pub(super) card: &'a Card,
    pub(super) mig: Option<(&'a GpuInstance, &'a ComputeInstance)>,
}

pub(super) fn device(context: &Context, raw: nvmlDevice_t) -> Answer<Device<'_>> {
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

pub(super) fn whole(context: &Context, raw: nvmlDevice_t) -> Answer<Device<'_>> {
    let device = device(context, raw)?;
    if device.mig.is_some() {
        Err(NOT_SUPPORTED)
    } else {
        Ok(device)
    }
}

pub(super) fn mig_on(context: &Context, raw: nvmlDevice_t) -> Answer<Device<'_>> {
    let device = whole(context, raw)?;
    if device.card.mig {
        Ok(device)
    } else {
        Err(NOT_SUPPORTED)
    }
}

pub(super) fn instance(context: &Context, raw: nvmlGpuInstance_t) -> Answer<(usize, &Card, &GpuInstance)> {
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

pub(super) fn compute(
    context: &Context,
    raw: nvmlComputeInstance_t,
) -> Answer<(usize, &GpuInstance, &ComputeInstance)> {
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
