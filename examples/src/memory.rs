//! Gives memory back to the system. The only file of this crate with `unsafe`.
#![allow(unsafe_code, reason = "there is no safe way to ask glibc for it")]

/// Gives back what is free inside the heap. glibc does so by itself only at the heap's end, and a server that has started
/// has most of its heap free before that end: the making of the API's document.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointer, and may be called at any time from any thread (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
}
