//! Sizes and times of hot files, asked of the disk only when they can have changed.
//!
//! A file's size changes only through this process, which counts the changes, so a remembered size
//! holds for as long as that count does. That makes a look at 10,000 segments cheap. What it occupies on
//! disk is the filesystem's to decide, which does so when it writes back: asked again until that is long past.

use std::collections::HashMap;

use parking_lot::Mutex;

use super::backoff::Backoffs;
use crate::catalog::{LogFile, LogStat};

/// So long after its last change at most a file's blocks change by themselves: write-back takes half a minute.
const BLOCKS_SETTLE_MS: u64 = 120_000;
/// The unit of `st_blocks`.
const STAT_BLOCK_BYTES: u64 = 512;
const EVICT_BACKOFF_MIN_MS: u64 = 5_000;
const EVICT_BACKOFF_MAX_MS: u64 = 300_000;

/// Size and time of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub size_bytes: u64,
    /// What it occupies on local disk: whole blocks, also behind its end.
    pub disk_bytes: u64,
    pub mtime_ns: u64,
}

#[derive(Debug)]
struct Known {
    /// The file's count of changes.
    mutations: u64,
    size: Size,
    /// When this count was seen first, and last with a look at the disk.
    since_ms: u64,
    looked_ms: u64,
}

impl Known {
    fn is_settled(&self) -> bool {
        self.looked_ms.saturating_sub(self.since_ms) > BLOCKS_SETTLE_MS
    }
}

#[derive(Debug)]
pub(super) struct Sizes {
    known: Mutex<HashMap<u64, Known>>,
    /// Files, by id, that could not be evicted: left alone for a while, and forgotten like their sizes.
    pub evict_pauses: Backoffs<u64>,
}

impl Default for Sizes {
    fn default() -> Self {
        let evict_pauses = Backoffs::new(EVICT_BACKOFF_MIN_MS, EVICT_BACKOFF_MAX_MS);
        Self { known: Mutex::default(), evict_pauses }
    }
}

impl Sizes {
    /// Size and time of a file; `None` when it is gone or its stub is damaged.
    pub fn of(&self, log: &LogFile, now_ms: u64) -> Option<Size> {
        self.look(log, now_ms, |_| true)
    }

    /// The same with the blocks of this moment.
    pub fn on_disk(&self, log: &LogFile, now_ms: u64) -> Option<Size> {
        self.look(log, now_ms, Known::is_settled)
    }

    /// Whether [`Self::on_disk`] remembers what the file occupies for as long as nobody changes it.
    pub fn is_settled(&self, log: &LogFile) -> bool {
        let known = self.known.lock();
        known.get(&log.id).is_some_and(|k| k.mutations == log.mutations() && k.is_settled())
    }

    fn look(&self, log: &LogFile, now_ms: u64, enough: impl Fn(&Known) -> bool) -> Option<Size> {
        let mutations = log.mutations();
        let mut since_ms = None;
        if let Some(known) = self.known.lock().get(&log.id)
            && known.mutations == mutations
        {
            if enough(known) {
                return Some(known.size);
            }
            since_ms = Some(known.since_ms);
        }
        let LogStat { size_bytes, mtime_ns, blocks, ctime, .. } = log.stat().ok()?;
        // It may have come to rest long before this process saw it.
        let changed_ms = u64::try_from(ctime.0).unwrap_or(0).saturating_mul(1000);
        let since_ms = since_ms.unwrap_or_else(|| changed_ms.min(now_ms));
        let size =
            Size { size_bytes, mtime_ns, disk_bytes: blocks.saturating_mul(STAT_BLOCK_BYTES) };
        let known = Known { mutations, size, since_ms, looked_ms: now_ms };
        self.known.lock().insert(log.id, known);
        Some(size)
    }

    /// Forgets those that the caller does not know any more.
    pub fn retain(&self, keep: impl Fn(u64) -> bool) {
        self.known.lock().retain(|id, _| {
            let kept = keep(*id);
            if !kept {
                self.evict_pauses.succeeded(id);
            }
            kept
        });
    }

    /// The file is gone.
    pub fn forget(&self, log: &LogFile) {
        self.known.lock().remove(&log.id);
        self.evict_pauses.succeeded(&log.id);
    }
}
