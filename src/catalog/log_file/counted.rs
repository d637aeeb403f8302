//! Whoever keeps a sum over files, as the status does, is told when one of them changes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// How often in this process a file changed whose size somebody has in a sum.
static COUNTED_CHANGES: AtomicU64 = AtomicU64::new(0);

/// Another number after each change to the bytes of a file that `LogFile::set_counted` was called for: seldom,
/// since only closed segments are counted so.
#[must_use]
pub fn counted_changes() -> u64 {
    COUNTED_CHANGES.load(Ordering::SeqCst)
}

/// Whether a file is in somebody's sum.
#[derive(Debug, Default)]
pub(super) struct Counted(AtomicBool);

impl Counted {
    /// Before the size is looked at. With [`Self::changed`] behind each change, one of the two sees the other:
    /// both are of one order.
    pub fn set(&self) {
        self.0.swap(true, Ordering::SeqCst);
    }

    /// Behind each change of the bytes. Appends to the active segment, which nobody counts, cost a load.
    pub fn changed(&self) {
        if self.0.load(Ordering::SeqCst) && self.0.swap(false, Ordering::SeqCst) {
            COUNTED_CHANGES.fetch_add(1, Ordering::SeqCst);
        }
    }
}
