//! Tells the rollups what chains have come to, now and then: only readers of a whole namespace are better off for it.
//!
//! Nothing depends on them, so a failure is noted once, tried again the next time, and stops nothing.

use std::sync::Arc;

use super::Tier;

/// A rollup is written for many chains together. What it says is old by so much at most.
pub(super) const ROLL_UP_EVERY_MS: u64 = 600_000;
/// The first time in a process's life.
pub(super) const ROLL_UP_FIRST_MS: u64 = 60_000;

impl Tier {
    /// One round.
    pub(super) async fn roll_up(self: Arc<Self>) {
        if !self.chains.has_news() {
            return;
        }
        let settled = self.settle_identity().await.map_err(|e| e.to_string());
        let done = match settled {
            Ok(()) => self.chains.roll_up().await.map_err(|e| e.to_string()),
            Err(why) => Err(why),
        };
        match done {
            Err(why) if !self.is_stopping() => {
                tracing::debug!(%why, "the rollups are not brought up to date");
            }
            _ => {}
        }
    }
}
