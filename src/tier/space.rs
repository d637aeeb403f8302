//! What the tiering does when the data directory's disk has little or no space: `local::Room` decides,
//! here it meets evictions, uploads and the broker's appends.

use std::io;

use super::Tier;
use crate::local::{Space, is_disk_full};

impl Tier {
    /// Looks at the disk and lets the cache make room. `None`: nobody watches it, or it cannot be asked.
    pub(super) fn settle_space(&self) -> Option<Space> {
        let settled = self.room.as_ref()?.settle();
        settled
            .inspect_err(|error| tracing::debug!(%error, "the disk cannot be asked for its space"))
            .ok()
    }

    /// The disk as it is.
    pub(super) fn space(&self) -> Option<Space> {
        self.room.as_ref().and_then(|room| room.space().ok())
    }

    /// Local work of Everlog's own; once more with the ballast's space where the disk is full.
    pub(super) fn with_ballast<T>(&self, mut work: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        match &self.room {
            Some(room) => room.with_ballast(work),
            None => work(),
        }
    }

    /// Whether a failure was the full disk's, and there is ballast to try again with now.
    pub(super) fn lightened(&self, error: &io::Error) -> bool {
        is_disk_full(error)
            && self.room.as_ref().is_some_and(|room| room.give_ballast().unwrap_or(false))
    }

    /// What the broker writes into a segment: local disk only. On a full disk the cache gives its space first,
    /// then it fails with ENOSPC, and an eviction looks for more.
    pub fn write_for_broker<T>(
        &self,
        bytes: u64,
        mut work: impl FnMut() -> io::Result<T>,
    ) -> io::Result<T> {
        let Some(room) = &self.room else { return work() };
        let done = room.for_broker(bytes, work);
        if done.as_ref().is_err_and(is_disk_full) {
            self.wake.notify_one();
        }
        done
    }
}
