//! How cards are joined.

use std::ffi::c_uint;

use nvml_wrapper_sys::bindings::*;

use super::Code;
use super::args::put;
use super::devices::pci;
use super::handle::whole;
use crate::mig::{INVALID, NOT_SUPPORTED};
use crate::session::read;

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
