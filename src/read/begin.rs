//! Which fetches to begin: what a reader waits for, and what one will want next.
//!
//! Invariant: what is begun here are flights, so no block is asked for twice at once; and the number
//! of prefetches that wait is bounded, so readers that went away leave no pile of work behind.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::fetch::Permits;
use super::flights::Flight;
use super::{Inner, ObjectSource, blocks_of, overlap};
use crate::types::BLOCK_BYTES;

/// Prefetches that wait for each one that may run.
const QUEUE_FACTOR: usize = 4;
const PIECE_BYTES_MIN: u64 = 1024 * 1024;

impl Inner {
    /// Flights for what a reader waits for; the last one goes on to `reach` if it misses the end.
    pub(super) fn demand(
        self: &Arc<Self>,
        source: &ObjectSource,
        missing: &[Range<u64>],
        reach: u64,
    ) -> Vec<Arc<Flight>> {
        let mut flights = Vec::new();
        for (index, run) in missing.iter().enumerate() {
            let last = index + 1 == missing.len();
            let wide = run.start..if last { self.widened(source, run, reach) } else { run.end };
            flights.extend(self.claim(source, wide, self.config.fetch_bytes_max, true));
        }
        flights.retain(|f| missing.iter().any(|run| !overlap(run, &f.blocks).is_empty()));
        flights
    }

    /// End of the run with the blocks after it that are missing too, up to `reach`.
    fn widened(&self, source: &ObjectSource, run: &Range<u64>, reach: u64) -> u64 {
        let after = run.end..reach.max(run.end);
        let Some(object) = self.cached_object(source) else { return after.end };
        match object.missing(after).first() {
            Some(next) if next.start == run.end => next.end,
            _ => run.end,
        }
    }

    fn claim(
        self: &Arc<Self>,
        source: &ObjectSource,
        blocks: Range<u64>,
        piece_bytes: u64,
        demand: bool,
    ) -> Vec<Arc<Flight>> {
        let fetch = |blocks, urgency| {
            let queued = (!demand).then(|| Queued::new(self));
            let flight = Arc::clone(self).fly(source.clone(), blocks, urgency);
            async move {
                let _queued = queued;
                flight.await
            }
        };
        let pieces = (piece_bytes / BLOCK_BYTES, demand);
        self.flights.claim(&self.runtime, &source.log_key, blocks, pieces, fetch)
    }

    /// Begins to fetch what a reader will want; nobody waits for it.
    pub(super) fn prefetch(self: &Arc<Self>, source: &ObjectSource, range: Option<Range<u64>>) {
        let Some(range) = range.filter(|_| self.store.is_some() && self.outage.may_retry()) else {
            return;
        };
        let queue_max = Permits::prefetches_max(&self.config) * QUEUE_FACTOR;
        if self.prefetches.load(Ordering::Relaxed) >= queue_max {
            self.counters.prefetch_skipped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let (inner, source) = (Arc::clone(self), source.clone());
        let pieces =
            ((range.end - range.start) / 4).max(PIECE_BYTES_MIN).min(self.config.fetch_bytes_max);
        self.runtime.spawn_blocking(move || {
            let blocks = blocks_of(&range);
            let missing = match inner.cached_object(&source) {
                Some(object) => object.missing(blocks),
                None => vec![blocks],
            };
            for run in missing {
                inner.claim(&source, run, pieces, false);
            }
        });
    }
}

/// Counts a prefetch that is under way or waits.
struct Queued(Arc<Inner>);

impl Queued {
    fn new(inner: &Arc<Inner>) -> Self {
        inner.prefetches.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(inner))
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.0.prefetches.fetch_sub(1, Ordering::Relaxed);
    }
}
