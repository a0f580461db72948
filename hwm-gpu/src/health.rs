//! What an event of NVML means for what runs on the card.

use hwm_core::accelerator::AcceleratorEvent;
use hwm_core::id::GpuUuid;

use crate::engine::Engine;
use crate::nvml::ends_session;
use crate::nvml::ffi::SeenEvent;

/// How bad an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Severity {
    /// Worth knowing: a fault of the program, a corrected error.
    Note,
    /// What runs there is lost; the card is well.
    Workload,
    /// The card is not to be used until somebody looked at it.
    Card,
}

const XID: u64 = 0x8;
const DOUBLE_BIT: u64 = 0x2;

/// XIDs that say more than that a program did something wrong.
const XIDS: &[(u64, Severity, &str)] = &[
    (
        13,
        Severity::Note,
        "graphics engine exception, usually of the program",
    ),
    (31, Severity::Note, "memory page fault, usually of the program"),
    (43, Severity::Note, "a program's channel stopped"),
    (45, Severity::Note, "a program was ended"),
    (48, Severity::Card, "double-bit ECC error"),
    (62, Severity::Card, "internal microcontroller halt"),
    (63, Severity::Note, "a memory row is to be remapped"),
    (64, Severity::Card, "a memory row could not be remapped"),
    (74, Severity::Workload, "NVLink error"),
    (79, Severity::Card, "GPU has fallen off the bus"),
    (92, Severity::Note, "many corrected ECC errors"),
    (94, Severity::Workload, "contained memory error"),
    (95, Severity::Card, "uncontained memory error"),
    (109, Severity::Workload, "context switch timeout"),
    (110, Severity::Card, "security fault"),
    (119, Severity::Card, "the GPU's system processor does not answer"),
    (120, Severity::Card, "the GPU's system processor failed"),
    (140, Severity::Card, "unrecovered ECC error"),
    (143, Severity::Card, "the GPU did not come up"),
];

fn severity(event: &SeenEvent) -> (Severity, String) {
    if event.kind & XID != 0 {
        let known = XIDS.iter().find(|(number, ..)| *number == event.data);
        let (severity, text) = known.map_or((Severity::Note, "see NVIDIA's list of XIDs"), |(_, s, t)| {
            (*s, *t)
        });
        return (severity, format!("XID {}: {text}", event.data));
    }
    if event.kind & DOUBLE_BIT != 0 {
        return (Severity::Card, "double-bit ECC error".to_owned());
    }
    (Severity::Note, "single-bit ECC error, corrected".to_owned())
}

impl Engine {
    /// Takes the events that are there, without waiting for one.
    pub(crate) fn poll_events(&mut self) {
        loop {
            let Some(session) = &self.session else { return };
            match session.next_event(0) {
                Ok(Some(event)) => self.noticed(&event),
                Ok(None) => return,
                Err(error) => {
                    // A lost card fails the wait of all: the look that follows finds which, and watches the rest.
                    tracing::warn!(%error, "NVML's events were interrupted");
                    if ends_session(&error) {
                        self.close();
                    }
                    self.refresh();
                    self.rewatch();
                    return;
                }
            }
        }
    }

    fn noticed(&mut self, event: &SeenEvent) {
        let (severity, message) = severity(event);
        let instance = event.instance.and_then(|id| {
            let slices = &self.seen(&event.card)?.instances;
            slices.iter().find(|s| s.instance.id == id)?.uuid.clone()
        });
        tracing::warn!(card = event.card, instance, message, "a GPU reported an event");
        let told = AcceleratorEvent {
            card: GpuUuid::new(&*event.card),
            instance,
            fatal: severity != Severity::Note,
            message: message.clone(),
        };
        let news = severity == Severity::Card && !self.quarantines.contains_key(&event.card);
        if news {
            self.quarantine(&event.card, message);
            self.publish_because(&told);
        } else {
            self.tell(&told);
        }
    }
}
