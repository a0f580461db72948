//! Records that were read lately, decoded. Decoding costs several times what reading does, and clients ask
//! for the same few again and again.
//!
//! A kept record stands for the text that it was decoded from: it is used only while the file still has that
//! text, so there is nothing to invalidate. Secrets are not in the text, so none is kept.

use std::sync::{Arc, Mutex, PoisonError};

use hwm_core::resource::Record;
use hwm_core::store::StoreError;

use crate::error::unreadable;

/// How many are kept; a record takes a few KiB.
const SLOTS: usize = 1024;

struct Kept {
    text: Box<str>,
    record: Record,
}

/// One slot for many ids: the last that was read stays.
pub(crate) struct Decoded {
    slots: Box<[Mutex<Option<Arc<Kept>>>]>,
}

impl Decoded {
    pub(crate) fn new() -> Self {
        Self {
            slots: (0..SLOTS).map(|_| Mutex::default()).collect(),
        }
    }

    /// The record that `text`, stored under `id`, spells.
    pub(crate) fn record(&self, id: u128, text: &str) -> Result<Record, StoreError> {
        let mixed = (id ^ (id >> 64)) as u64;
        let slot = &self.slots[(mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % SLOTS];
        let kept = slot.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(kept) = kept.filter(|kept| *kept.text == *text) {
            return Ok(kept.record.clone());
        }
        let record: Record = serde_json::from_str(text).map_err(|e| unreadable("a resource", e))?;
        let kept = Kept {
            text: text.into(),
            record: record.clone(),
        };
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(kept));
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_is_no_record_is_an_error() {
        let decoded = Decoded::new();
        assert!(decoded.record(1, "{}").is_err());
        assert!(decoded.record(1, "").is_err());
    }
}
