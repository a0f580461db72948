//! The crate's only `unsafe`: what libvirt offers and the `virt` crate does not wrap, or wraps without freeing.
//!
//! # What holds here
//! * Every pointer given to libvirt comes from a live [`Connect`] or [`Domain`] that the caller borrows.
//! * A callback's context is boxed, given to libvirt once, and freed by libvirt through the given free function,
//!   also when the registration is taken back or the connection ends; where registering fails, we free it.
//! * Callbacks do not unwind into C: they only send on channels, behind `catch_unwind`.
//! * What libvirt allocates is freed by libvirt's own function, on every path.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::{CStr, c_int, c_void};
use std::os::fd::{FromRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::Error;
use virt::stream::Stream;
use virt_sys as sys;

/// A domain began, stopped, or changed otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DomainEvent {
    /// The domain's name.
    pub(super) name: String,
    /// libvirt's number of the event; none for the guest agent coming or going.
    pub(super) lifecycle: Option<i32>,
}

type OnEvent = Box<dyn Fn(DomainEvent) + Send + Sync>;
type OnClose = Box<dyn Fn() + Send + Sync>;

/// What is registered with a connection. To be taken back before the connection is closed.
#[derive(Debug)]
pub(super) struct Registrations {
    domain: Vec<c_int>,
    close: bool,
}

unsafe extern "C" fn free_event(context: *mut c_void) {
    // SAFETY: `context` was made by Box::into_raw in `register`, and libvirt frees it once.
    drop(unsafe { Box::from_raw(context.cast::<OnEvent>()) });
}

unsafe extern "C" fn free_close(context: *mut c_void) {
    // SAFETY: `context` was made by Box::into_raw in `register`, and libvirt frees it once.
    drop(unsafe { Box::from_raw(context.cast::<OnClose>()) });
}

unsafe fn tell(domain: sys::virDomainPtr, lifecycle: Option<i32>, context: *mut c_void) {
    // SAFETY: libvirt calls with a live domain, whose name it owns, and with the context of the registration.
    let (name, on_event) = unsafe { (sys::virDomainGetName(domain), &*context.cast::<OnEvent>()) };
    if !name.is_null() {
        // SAFETY: the name is a C string that lives as long as the domain.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
        let _ = catch_unwind(AssertUnwindSafe(|| on_event(DomainEvent { name, lifecycle })));
    }
}

unsafe extern "C" fn on_lifecycle(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    event: c_int,
    _: c_int,
    context: *mut c_void,
) -> c_int {
    // SAFETY: passed on as libvirt gave them.
    unsafe { tell(domain, Some(event), context) };
    0
}

unsafe extern "C" fn on_agent(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _: c_int,
    _: c_int,
    context: *mut c_void,
) {
    // SAFETY: passed on as libvirt gave them.
    unsafe { tell(domain, None, context) };
}

unsafe extern "C" fn on_close(_: sys::virConnectPtr, _: c_int, context: *mut c_void) {
    // SAFETY: the context of the registration.
    let on_close = unsafe { &*context.cast::<OnClose>() };
    let _ = catch_unwind(AssertUnwindSafe(on_close));
}

/// Registers for lifecycle and agent events and for the end of the connection.
pub(super) fn register(
    connect: &Connect,
    on_event: impl Fn(DomainEvent) + Send + Sync + Clone + 'static,
    closed: impl Fn() + Send + Sync + 'static,
) -> Result<Registrations, Error> {
    type Lifecycle =
        unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, c_int, c_int, *mut c_void) -> c_int;
    type Agent = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, c_int, c_int, *mut c_void);
    type Generic = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *mut c_void);

    // SAFETY: libvirt takes every callback as the generic type and calls it with the arguments of its event id,
    // which are those of the two functions.
    let callbacks = unsafe {
        [
            (
                sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE,
                std::mem::transmute::<Lifecycle, Generic>(on_lifecycle),
            ),
            (
                sys::VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE,
                std::mem::transmute::<Agent, Generic>(on_agent),
            ),
        ]
    };
    let mut registrations = Registrations {
        domain: Vec::new(),
        close: false,
    };
    for (event, callback) in callbacks {
        let boxed: OnEvent = Box::new(on_event.clone());
        let context = Box::into_raw(Box::new(boxed)).cast::<c_void>();
        // SAFETY: a live connection; the context is freed by libvirt from here on, but for a failure.
        let id = unsafe {
            sys::virConnectDomainEventRegisterAny(
                connect.as_ptr(),
                ptr::null_mut(),
                event as c_int,
                Some(callback),
                context,
                Some(free_event),
            )
        };
        if id < 0 {
            let error = Error::last_error();
            // SAFETY: libvirt did not take the context.
            unsafe { free_event(context) };
            unregister(connect, &registrations);
            return Err(error);
        }
        registrations.domain.push(id);
    }
    let boxed: OnClose = Box::new(closed);
    let context = Box::into_raw(Box::new(boxed)).cast::<c_void>();
    // SAFETY: as above.
    let done = unsafe {
        sys::virConnectRegisterCloseCallback(connect.as_ptr(), Some(on_close), context, Some(free_close))
    };
    if done < 0 {
        let error = Error::last_error();
        // SAFETY: libvirt did not take the context.
        unsafe { free_close(context) };
        unregister(connect, &registrations);
        return Err(error);
    }
    registrations.close = true;
    Ok(registrations)
}

/// Takes back what was registered; a connection that ended has forgotten it by itself.
pub(super) fn unregister(connect: &Connect, registrations: &Registrations) {
    for id in &registrations.domain {
        // SAFETY: a live connection object and an id that it gave.
        unsafe { sys::virConnectDomainEventDeregisterAny(connect.as_ptr(), *id) };
    }
    if registrations.close {
        // SAFETY: a live connection object and the callback that was registered.
        unsafe { sys::virConnectUnregisterCloseCallback(connect.as_ptr(), Some(on_close)) };
    }
}

/// A figure of a domain.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Figure {
    /// Any whole number.
    Int(i64),
    /// A whole number that is not negative.
    Uint(u64),
}

/// The figures of a domain, by libvirt's names.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct DomainFigures {
    /// The domain's name.
    pub(super) name: String,
    /// The figures.
    pub(super) figures: BTreeMap<String, Figure>,
}

/// The figures of all domains in one call. (`virt`'s own call never frees the list.)
pub(super) fn all_domain_figures(
    connect: &Connect,
    groups: u32,
    flags: u32,
) -> Result<Vec<DomainFigures>, Error> {
    let mut records: *mut sys::virDomainStatsRecordPtr = ptr::null_mut();
    // SAFETY: a live connection and a place for the list.
    let count = unsafe { sys::virConnectGetAllDomainStats(connect.as_ptr(), groups, &mut records, flags) };
    let Ok(count) = usize::try_from(count) else {
        return Err(Error::last_error());
    };
    let mut all = Vec::with_capacity(count);
    for i in 0..count {
        // SAFETY: the list has `count` records; each has a domain with a name and `nparams` parameters.
        unsafe {
            let record = &**records.add(i);
            let name = sys::virDomainGetName(record.dom);
            if name.is_null() {
                continue;
            }
            let mut figures = BTreeMap::new();
            for k in 0..usize::try_from(record.nparams).unwrap_or(0) {
                let parameter = &*record.params.add(k);
                let key = CStr::from_ptr(parameter.field.as_ptr())
                    .to_string_lossy()
                    .into_owned();
                let figure = match parameter.type_ as sys::virTypedParameterType {
                    sys::VIR_TYPED_PARAM_INT => Figure::Int(parameter.value.i.into()),
                    sys::VIR_TYPED_PARAM_UINT => Figure::Uint(parameter.value.ui.into()),
                    sys::VIR_TYPED_PARAM_LLONG => Figure::Int(parameter.value.l),
                    sys::VIR_TYPED_PARAM_ULLONG => Figure::Uint(parameter.value.ul),
                    _ => continue,
                };
                figures.insert(key, figure);
            }
            all.push(DomainFigures {
                name: CStr::from_ptr(name).to_string_lossy().into_owned(),
                figures,
            });
        }
    }
    // SAFETY: the list that libvirt gave, freed once.
    unsafe { sys::virDomainStatsRecordListFree(records) };
    Ok(all)
}

/// A connection to a domain's screen, past its password where `skip_auth`.
pub(super) fn open_graphics(domain: &Domain, skip_auth: bool) -> Result<OwnedFd, Error> {
    let flags = if skip_auth {
        sys::VIR_DOMAIN_OPEN_GRAPHICS_SKIPAUTH
    } else {
        0
    };
    // SAFETY: a live domain.
    let fd = unsafe { sys::virDomainOpenGraphicsFD(domain.as_ptr(), 0, flags) };
    if fd < 0 {
        return Err(Error::last_error());
    }
    // SAFETY: libvirt gave this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// How long libvirt waits for the guest agent's answers, in seconds.
pub(super) fn set_agent_timeout(domain: &Domain, seconds: i32) -> Result<(), Error> {
    // SAFETY: a live domain.
    if unsafe { sys::virDomainAgentSetResponseTimeout(domain.as_ptr(), seconds, 0) } < 0 {
        return Err(Error::last_error());
    }
    Ok(())
}

/// What libvirt answers for a call on a stream that would have to wait.
const WOULD_BLOCK: c_int = -2;

/// Reads what a stream has; none where it would have to wait. (`virt` takes that for an error.)
pub(super) fn receive(stream: &Stream, buffer: &mut [u8]) -> Result<Option<usize>, Error> {
    // SAFETY: a live stream and a buffer of the length that is given.
    let read = unsafe { sys::virStreamRecv(stream.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) };
    match usize::try_from(read) {
        Ok(read) => Ok(Some(read)),
        Err(_) if read == WOULD_BLOCK => Ok(None),
        Err(_) => Err(Error::last_error()),
    }
}

/// Writes what a stream takes; 0 where it would have to wait.
pub(super) fn send(stream: &Stream, bytes: &[u8]) -> Result<usize, Error> {
    // SAFETY: a live stream and bytes of the length that is given, which libvirt only reads.
    let sent = unsafe { sys::virStreamSend(stream.as_ptr(), bytes.as_ptr().cast(), bytes.len()) };
    match usize::try_from(sent) {
        Ok(sent) => Ok(sent),
        Err(_) if sent == WOULD_BLOCK => Ok(0),
        Err(_) => Err(Error::last_error()),
    }
}
