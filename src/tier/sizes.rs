//! Sizes and times of hot files, asked of the disk only when they can have changed.
//!
//! A file's size changes only through this process, which counts the changes, so a remembered size
//! holds for as long as that count does. That makes a look at 10,000 segments cheap.

use std::collections::HashMap;

use parking_lot::Mutex;

use super::backoff::Backoffs;
use crate::catalog::{LogFile, LogStat};

const EVICT_BACKOFF_MIN_MS: u64 = 5_000;
const EVICT_BACKOFF_MAX_MS: u64 = 300_000;

/// Size and time of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub size_bytes: u64,
    pub mtime_ns: u64,
}

#[derive(Debug)]
pub(super) struct Sizes {
    known: Mutex<HashMap<u64, (u64, Size)>>,
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
    /// Of a file; `None` when it is gone or its stub is damaged.
    pub fn of(&self, log: &LogFile) -> Option<Size> {
        let mutations = log.mutations();
        if let Some((at, size)) = self.known.lock().get(&log.id)
            && *at == mutations
        {
            return Some(*size);
        }
        let LogStat { size_bytes, mtime_ns, .. } = log.stat().ok()?;
        let size = Size { size_bytes, mtime_ns };
        self.known.lock().insert(log.id, (mutations, size));
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
