//! Whose an instance is, after a crash or a failure that said nothing.

use hwm_core::backend::{BackendError, BackendErrorKind};

use crate::engine::{Answer, Engine};
use crate::journal::{SliceEntry, SliceStage};
use crate::nvml::read::SeenSlice;

impl Engine {
    /// What to think of a place after NVML refused to make an instance there.
    pub(crate) fn not_made(&mut self, entry: SliceEntry, error: BackendError) -> BackendError {
        let refused = matches!(
            error.kind,
            BackendErrorKind::Conflict
                | BackendErrorKind::Denied
                | BackendErrorKind::Unsupported
                | BackendErrorKind::Invalid
        );
        let there = match self.reread(&entry.card) {
            Ok(slices) => slices.into_iter().find(|s| {
                s.instance.start < entry.start + entry.size
                    && entry.start < s.instance.start + s.instance.size
            }),
            // Nobody knows what is there: the intent stays, and is settled later.
            Err(_) if !refused => return error,
            Err(_) => None,
        };
        match there {
            Some(slice) if refused => {
                let message = format!(
                    "instance {} was made there by somebody else at the same moment",
                    slice.instance.id
                );
                self.forget(&entry);
                self.publish();
                BackendError::new(BackendErrorKind::Conflict, error.doing, message)
            }
            Some(slice) => {
                let reason = format!(
                    "NVML failed ({}), yet instance {} is there; nobody can tell whose it is",
                    error.message, slice.instance.id
                );
                let doubtful = SliceEntry {
                    stage: SliceStage::Doubtful {
                        reason: reason.clone(),
                    },
                    ..entry
                };
                if let Err(error) = self.record(&doubtful, &error.doing) {
                    return error;
                }
                self.publish();
                BackendError::new(BackendErrorKind::Failed, error.doing, reason)
            }
            None => {
                self.forget(&entry);
                error
            }
        }
    }

    /// Settles every intent that a crash left behind, where it can be settled now.
    pub(crate) fn settle_intents(&mut self) {
        let open = self.slices.values().filter(|e| e.stage == SliceStage::Intended);
        let keys: Vec<(String, u32)> = open.map(|e| (e.card.clone(), e.start)).collect();
        for key in keys {
            let Some(slices) = self.seen(&key.0).map(|s| s.instances.clone()) else {
                continue;
            };
            if let Err(error) = self.settle(&key, &slices, "settling what an earlier run began") {
                tracing::warn!(%error, "an intent stays open");
            }
        }
    }

    /// Finds out what became of an intent; see the head of slices.rs.
    pub(crate) fn settle(&mut self, key: &(String, u32), slices: &[SeenSlice], doing: &str) -> Answer<()> {
        let Some(entry) = self
            .slices
            .get(key)
            .filter(|e| e.stage == SliceStage::Intended)
            .cloned()
        else {
            return Ok(());
        };
        let overlaps = |s: &&SeenSlice| {
            s.instance.start < entry.start + entry.size && entry.start < s.instance.start + s.instance.size
        };
        let there: Vec<&SeenSlice> = slices.iter().filter(overlaps).collect();
        if there.is_empty() || entry.boot != self.boot {
            // It was never made, or it went with the boot.
            return self.remove(&entry, doing);
        }
        let new: Vec<&SeenSlice> = slices
            .iter()
            .filter(|s| !entry.before.contains(&(s.instance.profile, s.instance.start)))
            .filter(|s| {
                !self
                    .slices
                    .get(&(key.0.clone(), s.instance.start))
                    .is_some_and(|e| self.is_ours(e, s))
            })
            .collect();
        let exact = |s: &SeenSlice| {
            (s.instance.profile, s.instance.start, s.instance.size)
                == (entry.profile, entry.start, entry.size)
        };
        let stage = match new.as_slice() {
            [only] if exact(only) => SliceStage::Made {
                instance: only.instance.id,
                uuid: None,
            },
            _ if !there.iter().any(|s| exact(s)) => {
                // What is there is not what was asked for: somebody else's, and ours was refused.
                return self.remove(&entry, doing);
            }
            several => {
                let (came, id) = (several.len(), there[0].instance.id);
                SliceStage::Doubtful {
                    reason: format!(
                        "hwm died while it made a slice there, and {came} instances came to the card meanwhile: nobody can \
                         tell whose instance {id} is. Remove it if it is nobody's (`nvidia-smi mig -dci -gi {id}`, then \
                         `-dgi -gi {id}`) and recover the card"
                    ),
                }
            }
        };
        self.record(&SliceEntry { stage, ..entry }, doing)
    }

    /// Looks again at slices in doubt: one that is gone is no longer in doubt.
    pub(crate) fn recover_slices(&mut self, card: &str) -> Answer<()> {
        let slices = self.reread(card)?;
        let doubtful: Vec<SliceEntry> = self
            .slices
            .values()
            .filter(|e| e.card == card && matches!(e.stage, SliceStage::Doubtful { .. }))
            .cloned()
            .collect();
        for entry in doubtful {
            let there = slices.iter().find(|s| {
                s.instance.start < entry.start + entry.size
                    && entry.start < s.instance.start + s.instance.size
            });
            match there {
                None => self.remove(&entry, "recovering the card")?,
                Some(slice) => {
                    let message = format!(
                        "instance {} is still at slot {}",
                        slice.instance.id, slice.instance.start
                    );
                    return Err(BackendError::new(
                        BackendErrorKind::Conflict,
                        format!("recovering {card}"),
                        message,
                    ));
                }
            }
        }
        Ok(())
    }
}
