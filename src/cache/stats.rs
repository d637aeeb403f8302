//! The cache's figures, as the status shows them.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{BlockCache, Bypassed, pins};

/// Figures since the cache was opened; sizes, limits and `objects` are of now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct CacheStats {
    /// Space on disk.
    pub allocated_bytes: u64,
    /// Objects with a block map.
    pub objects: u64,
    /// Lookups that found everything.
    pub hits: u64,
    /// Lookups that did not.
    pub misses: u64,
    /// Taken away to make room.
    pub evicted_bytes: u64,
    /// Blocks, and states of blocks, that were not what was written.
    pub damaged_blocks: u64,
    /// Block maps that could not be believed and were removed with their data.
    pub damaged_maps: u64,
    /// `.aux` files that could not be believed and were removed.
    pub damaged_aux: u64,
    /// Verified and written.
    pub filled_bytes: u64,
    /// The most that it may take.
    pub budget_bytes: u64,
    /// The most that it may take now: less while the disk is short of space.
    pub limit_bytes: u64,
    /// Files that it has.
    pub files: u64,
    /// The most that it may have now.
    pub files_limit: u64,
    /// Bytes that were read once, or not yet: they go first.
    pub probation_bytes: u64,
    /// Bytes that were read again.
    pub protected_bytes: u64,
    /// Bytes that are here and pinned.
    pub pinned_bytes: u64,
    /// Bytes of all objects that are pinned, here or not.
    pub pinned_wanted_bytes: u64,
    /// How often the disk failed and was gone around.
    pub bypasses: u64,
}

#[derive(Default)]
pub(super) struct Counters {
    pub hits: AtomicU64,
    pub misses: AtomicU64,
    pub evicted_bytes: AtomicU64,
    pub damaged_blocks: AtomicU64,
    pub damaged_maps: AtomicU64,
    pub damaged_aux: AtomicU64,
    pub filled_bytes: AtomicU64,
}

impl BlockCache {
    /// Figures.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        let shared = &self.shared;
        let pinned_wanted_bytes = pins::bytes(&shared.pins.lock());
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &shared.counters;
        let ledger = shared.ledger.lock();
        let (probation_bytes, protected_bytes, pinned_bytes) = ledger.queues();
        CacheStats {
            allocated_bytes: ledger.allocated_bytes(),
            objects: ledger.object_count(),
            hits: of(&counters.hits),
            misses: of(&counters.misses),
            evicted_bytes: of(&counters.evicted_bytes),
            damaged_blocks: of(&counters.damaged_blocks),
            damaged_maps: of(&counters.damaged_maps),
            damaged_aux: of(&counters.damaged_aux),
            filled_bytes: of(&counters.filled_bytes),
            budget_bytes: shared.config.budget_bytes,
            limit_bytes: ledger.limit_bytes(),
            files: ledger.files(),
            files_limit: ledger.files_limit(),
            probation_bytes,
            protected_bytes,
            pinned_bytes,
            pinned_wanted_bytes,
            bypasses: shared.health.times(),
        }
    }

    /// Why and since when the cache is gone around, if it is.
    #[must_use]
    pub fn bypassed(&self) -> Option<Bypassed> {
        self.shared.health.bypassed()
    }
}
