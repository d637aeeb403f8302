//! Sizes and times of hot files, asked of the disk only when they can have changed.
//!
//! A file's size changes only through this process, which counts the changes, so a remembered size
//! holds for as long as that count does. That makes a look at 10,000 segments cheap.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::catalog::{LogFile, LogStat};

/// Size and time of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub size_bytes: u64,
    pub mtime_ns: u64,
}

#[derive(Debug, Default)]
pub(super) struct Sizes(Mutex<HashMap<u64, (u64, Size)>>);

impl Sizes {
    /// Of a file; `None` when it is gone or its stub is damaged.
    pub fn of(&self, log: &LogFile) -> Option<Size> {
        let mutations = log.mutations();
        if let Some((at, size)) = self.0.lock().get(&log.id)
            && *at == mutations
        {
            return Some(*size);
        }
        let LogStat { size_bytes, mtime_ns, .. } = log.stat().ok()?;
        let size = Size { size_bytes, mtime_ns };
        self.0.lock().insert(log.id, (mutations, size));
        Some(size)
    }

    /// Forgets those that the caller does not know any more.
    pub fn retain(&self, keep: impl Fn(u64) -> bool) {
        self.0.lock().retain(|id, _| keep(*id));
    }

    /// The file is gone.
    pub fn forget(&self, log: &LogFile) {
        self.0.lock().remove(&log.id);
    }
}
