//! Which devices there are, and what they are.

use std::ffi::{c_char, c_int, c_uint};

use hwm_gpu::boards::Architecture;
use nvml_wrapper_sys::bindings::*;

use super::Code;
use super::args::{fixed, put, put_text, text};
use super::handle::{Handle, device, whole};
use crate::mig::{self, INVALID, NOT_FOUND, NOT_SUPPORTED};
use crate::session::{change, read};
use crate::world::Card;

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
pub unsafe extern "C" fn nvmlDeviceGetPersistenceMode(
    device_: nvmlDevice_t,
    to: *mut nvmlEnableState_t,
) -> Code {
    read("nvmlDeviceGetPersistenceMode", |c| {
        put(to, c_uint::from(whole(c, device_)?.card.persistence))
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

pub(super) fn pci(card: &Card) -> nvmlPciInfo_t {
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
