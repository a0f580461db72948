//! Arguments: reads and writes what callers' pointers lead to. The only places where one is followed.

use std::ffi::{CStr, c_char, c_uint};

use nvml_wrapper_sys::bindings::*;

use super::{Answer, Code};
use crate::mig::INVALID;
use crate::session::{Context, Text};

const SMALL: Code = nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE;

pub(super) fn put<T>(to: *mut T, value: T) -> Answer<()> {
    if to.is_null() {
        return Err(INVALID);
    }
    // SAFETY: see the head of abi/mod.rs.
    unsafe { to.write(value) };
    Ok(())
}

pub(super) fn take<T: Copy>(from: *const T) -> Answer<T> {
    if from.is_null() {
        return Err(INVALID);
    }
    // SAFETY: see the head of abi/mod.rs.
    Ok(unsafe { from.read() })
}

/// Writes items one after the other where there is room for as many as the caller was told there can be.
pub(super) fn put_all<T>(to: *mut T, items: impl IntoIterator<Item = T>) -> Answer<c_uint> {
    let mut count = 0;
    for (i, item) in items.into_iter().enumerate() {
        put(to.wrapping_add(i), item)?;
        count += 1;
    }
    Ok(count)
}

/// Writes items where the caller says how many there is room for.
pub(super) fn put_counted<T>(to: *mut T, count: *mut c_uint, items: Vec<T>) -> Answer<()> {
    let room = take(count)?;
    put(count, items.len() as c_uint)?;
    if items.is_empty() {
        return Ok(());
    }
    if (room as usize) < items.len() || to.is_null() {
        return Err(SMALL);
    }
    put_all(to, items).map(|_| ())
}

pub(super) fn put_text(context: &Context, to: *mut c_char, room: c_uint, text: &str) -> Answer<()> {
    let bytes: &[u8] = match context.text {
        Text::Fine => text.as_bytes(),
        Text::Garbage => b"\xff\xfe\x80GPU\xc3",
        Text::Hostile => b"\x1b[31m\"'\n</name>{}",
    };
    if bytes.len() >= room as usize {
        return Err(SMALL);
    }
    let text = bytes.iter().map(|b| *b as c_char).chain([0]);
    put_all(to, text).map(|_| ())
}

pub(super) fn fixed<const N: usize>(text: &str) -> [c_char; N] {
    let mut to = [0; N];
    for (to, byte) in to.iter_mut().zip(text.bytes().take(N - 1)) {
        *to = byte as c_char;
    }
    to
}

pub(super) fn text<'a>(from: *const c_char) -> Answer<&'a str> {
    if from.is_null() {
        return Err(INVALID);
    }
    // SAFETY: see the head of abi/mod.rs; the caller's text ends with a NUL.
    unsafe { CStr::from_ptr(from) }.to_str().map_err(|_| INVALID)
}
