//! Which fetches to begin: what a reader waits for, and what one will want next.
//!
//! Invariant: what is begun here are flights, so no block is asked for twice at once; and the number
//! of prefetches that wait is bounded, so readers that went away leave no pile of work behind.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use bytes::Bytes;

use super::fetch::{Interest, Permits};
use super::flights::{Flight, Flights};
use super::streams::{Ahead, Expected, ReadStreams};
use super::{Inner, ObjectSource, ReadError, blocks_of, overlap};
use crate::types::BLOCK_BYTES;

const PIECE_BYTES_MIN: u64 = 1024 * 1024;
/// Objects after the one being read that its reader's window may reach into.
const FOLLOWERS_MAX: usize = 16;

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
            flights.extend(self.claim(source, wide, self.config.fetch_bytes_max, None));
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
        interest: Interest,
    ) -> Vec<Arc<Flight>> {
        let demand = interest.is_none();
        let fetch = |blocks, landing| {
            let queued = (!demand).then(|| Queued::new(self));
            let how = (landing, interest.clone(), false);
            let flight = Arc::clone(self).fly(source.clone(), blocks, how);
            async move {
                let _queued = queued;
                flight.await
            }
        };
        let pieces = (piece_bytes / BLOCK_BYTES, demand);
        self.flights.claim(&self.runtime, &source.log_key, blocks, pieces, fetch)
    }

    /// Fetches these blocks for one reader, into its hands whatever the cache does with them.
    pub(super) async fn bring(
        self: &Arc<Self>,
        source: &ObjectSource,
        blocks: Range<u64>,
    ) -> Result<Vec<(u64, Bytes)>, ReadError> {
        let fetch =
            |blocks, landing| Arc::clone(self).fly(source.clone(), blocks, (landing, None, true));
        let flight = Flights::alone(&self.runtime, blocks.clone(), fetch);
        flight.landed(blocks.end).await?;
        Ok(flight.held())
    }

    /// Begins to fetch what a reader will want, of this object and of those that follow; nobody waits
    /// for it, and it ends when the reader has gone.
    pub(super) fn prefetch(
        self: &Arc<Self>,
        source: &ObjectSource,
        streams: &ReadStreams,
        ahead: Ahead,
    ) {
        if self.store.is_none() || !self.outage.may_retry() {
            return;
        }
        if let Some(range) = ahead.range {
            self.prefetch_range(source, range, streams.interest());
        }
        if let Some(beyond) = ahead.beyond {
            self.prefetch_beyond(source, streams, beyond, ahead.run_bytes);
        }
    }

    /// The window beyond the object's end lies in the objects that follow. Their readers, when they
    /// come, begin where this one has got to.
    fn prefetch_beyond(
        self: &Arc<Self>,
        source: &ObjectSource,
        streams: &ReadStreams,
        beyond: Range<u64>,
        run_bytes: u64,
    ) {
        let (mut key, mut start) = (source.log_key.clone(), 0);
        for _ in 0..FOLLOWERS_MAX {
            let Some(next) = streams.following(&key) else { return };
            let end = start + next.size_bytes;
            let wanted = super::overlap(&(start..end), &beyond);
            if !wanted.is_empty() {
                let range = wanted.start - start..wanted.end - start;
                let expected = Expected { run_bytes, prefetched_to: range.end };
                self.expected.lock().put(next.log_key.clone(), expected);
                self.prefetch_range(&next, range, streams.interest());
            }
            if end >= beyond.end {
                return;
            }
            (key, start) = (next.log_key, end);
        }
    }

    fn prefetch_range(
        self: &Arc<Self>,
        source: &ObjectSource,
        range: Range<u64>,
        interest: Weak<()>,
    ) {
        if self.prefetches.load(Ordering::Relaxed) >= Permits::queue_max(&self.config) {
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
                inner.claim(&source, run, pieces, Some(interest.clone()));
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
