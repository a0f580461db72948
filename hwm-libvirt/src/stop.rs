//! A machine's way down, and what is done once it has come up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hwm_core::backend::Result;
use hwm_core::id::ResourceId;

use crate::backend::{Inner, QUICK};
use crate::lifecycle::FIRST_BOOT;
use crate::turns::{Turn, hold};

/// How often a machine on its way down is looked at, besides libvirt's events.
const STOP_POLL: Duration = Duration::from_millis(500);

impl Inner {
    /// Takes the clear password out of the seed once the guest has had the time to read it. Where this process ends
    /// before, the next start does.
    pub(crate) fn erase_password_later(
        self: &Arc<Self>,
        id: ResourceId,
        seed: Arc<zeroize::Zeroizing<Vec<u8>>>,
    ) {
        let inner = Arc::downgrade(self);
        tokio::spawn(async move {
            tokio::time::sleep(FIRST_BOOT).await;
            let Some(inner) = inner.upgrade() else { return };
            let place = inner.place(id);
            let erased = inner
                .ask("erasing a password from a seed", move |host| {
                    place.erase_password(host, &seed)
                })
                .await;
            if let Err(error) = erased {
                tracing::warn!(%error, %id, "the seed still holds a password; the next start erases it");
            }
        });
    }

    /// Presses the power button and waits; answers whether the machine is down. Guests that are still booting miss
    /// the button, so it is pressed again.
    pub(crate) async fn shut_down(
        &self,
        doing: &str,
        turn: &Turn,
        id: ResourceId,
        grace: Duration,
    ) -> Result<bool> {
        let deadline = Instant::now() + grace;
        let mut press_at = Instant::now();
        let mut pause = Duration::from_secs(2);
        let mut happenings = self.happenings.subscribe();
        loop {
            happenings.mark_unchanged();
            let press = Instant::now() >= press_at;
            if press {
                press_at = Instant::now() + pause;
                pause = (pause * 2).min(Duration::from_secs(15));
            }
            let place = self.place(id);
            let is_up = self
                .connection
                .run(doing, QUICK, hold(turn), move |host| {
                    let is_up = place.is_up(host)?;
                    if is_up && press {
                        // It may go down between the two.
                        let _ = host.press_power(id);
                    }
                    Ok(is_up)
                })
                .await?;
            if !is_up {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let _ = tokio::time::timeout(STOP_POLL.min(left), happenings.changed()).await;
        }
    }
}
