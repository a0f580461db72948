//! Sets of events.

use std::ffi::{c_uint, c_ulonglong};
use std::time::Duration;

use nvml_wrapper_sys::bindings::*;

use super::args::put;
use super::handle::{Handle, whole};
use super::{Code, NOBODY};
use crate::mig::INVALID;
use crate::session::{self, read};

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
