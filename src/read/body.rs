//! The bytes of one range of an object, in order, whatever single requests do.
//!
//! Invariant: what comes out is a prefix of the range, without a gap and without a byte twice. A request
//! that does not answer for much longer than requests usually take gets a second one beside it, from where
//! the bytes have got to; the first of the two to answer goes on. It knows nothing of blocks and checks
//! nothing.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt as _, TryStreamExt as _};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::ReadCounters;
use crate::store::{RateLimiter, Store, StoreError};
use crate::types::ObjectKey;

/// First answers that are remembered.
const SAMPLES_MAX: usize = 256;
/// With fewer the usual time is not known.
const SAMPLES_MIN: usize = 8;
const PATIENCE_UNKNOWN_MS: u64 = 2_000;
const PATIENCE_MIN_MS: u64 = 100;
const PATIENCE_MAX_MS: u64 = 5_000;
/// A request is taken for stalled after this many times what all but 1 % of them take.
const PATIENCE_FACTOR: u64 = 3;

/// How long this store takes to answer, and so how long to wait before asking a second time.
#[derive(Debug)]
pub(super) struct Pace {
    first_bytes_ms: Mutex<VecDeque<u64>>,
    patience_ms: AtomicU64,
}

impl Default for Pace {
    fn default() -> Self {
        let patience_ms = AtomicU64::new(PATIENCE_UNKNOWN_MS);
        Self { first_bytes_ms: Mutex::default(), patience_ms }
    }
}

impl Pace {
    fn note(&self, took: Duration) {
        let mut samples = self.first_bytes_ms.lock();
        if samples.len() == SAMPLES_MAX {
            samples.pop_front();
        }
        samples.push_back(took.as_millis() as u64);
        if samples.len() < SAMPLES_MIN {
            return;
        }
        let mut sorted: Vec<u64> = samples.iter().copied().collect();
        sorted.sort_unstable();
        let p99 = sorted.get((sorted.len() * 99).div_ceil(100) - 1).copied().unwrap_or_default();
        let patience = (p99 * PATIENCE_FACTOR).clamp(PATIENCE_MIN_MS, PATIENCE_MAX_MS);
        self.patience_ms.store(patience, Ordering::Relaxed);
    }

    fn patience(&self) -> Duration {
        Duration::from_millis(self.patience_ms.load(Ordering::Relaxed))
    }
}

/// What all bodies of a reader share.
pub(super) struct Source {
    pub store: Store,
    pub pace: Arc<Pace>,
    pub rate: RateLimiter,
    /// Second requests that may be under way at once.
    pub hedges: Arc<Semaphore>,
}

type Attempt = BoxStream<'static, Result<Bytes, StoreError>>;

/// A range on its way.
pub(super) struct Body<'a> {
    source: &'a Source,
    counters: &'a ReadCounters,
    key: ObjectKey,
    rest: Range<u64>,
    first: Attempt,
    second: Option<(Attempt, OwnedSemaphorePermit)>,
    answered: bool,
    /// When the bytes that are waited for were first waited for.
    waiting_since: Option<Instant>,
    /// Not before, by the limit of bytes per second.
    not_before: Option<Instant>,
}

impl<'a> Body<'a> {
    /// Asks for the range.
    pub fn new(
        source: &'a Source,
        counters: &'a ReadCounters,
        key: &ObjectKey,
        range: Range<u64>,
    ) -> Self {
        let first = attempt(&source.store, key, range.clone());
        Self {
            source,
            counters,
            key: key.clone(),
            rest: range,
            first,
            second: None,
            answered: false,
            waiting_since: None,
            not_before: None,
        }
    }

    /// The next bytes; `None` when the range is complete. May be dropped and called again.
    pub async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        if let Some(at) = self.not_before {
            tokio::time::sleep_until(at).await;
            self.not_before = None;
        }
        if self.rest.is_empty() {
            return Ok(None);
        }
        let since = *self.waiting_since.get_or_insert_with(Instant::now);
        loop {
            let (piece, by_second) = match &mut self.second {
                Some((second, _)) => tokio::select! {
                    biased;
                    piece = self.first.next() => (piece, false),
                    piece = second.next() => (piece, true),
                },
                None => {
                    let at = since + self.source.pace.patience();
                    let hedges = Arc::clone(&self.source.hedges);
                    let stalled = async {
                        tokio::time::sleep_until(at).await;
                        hedges.acquire_owned().await
                    };
                    tokio::select! {
                        biased;
                        piece = self.first.next() => (piece, false),
                        permit = stalled => {
                            if let Ok(permit) = permit {
                                self.hedge(permit);
                            }
                            continue;
                        }
                    }
                }
            };
            match piece {
                Some(Ok(piece)) => return Ok(Some(self.took(piece, by_second))),
                // The other one may do better.
                Some(Err(_)) | None if self.second.is_some() => self.go_on_with(!by_second),
                Some(Err(e)) => return Err(e),
                // `get_stream` ends only after all bytes, and then `rest` is empty.
                None => return Ok(None),
            }
        }
    }

    fn hedge(&mut self, permit: OwnedSemaphorePermit) {
        self.counters.hedges.fetch_add(1, Ordering::Relaxed);
        let again = attempt(&self.source.store, &self.key, self.rest.clone());
        self.second = Some((again, permit));
    }

    fn go_on_with(&mut self, second: bool) {
        if let Some((attempt, _)) = self.second.take()
            && second
        {
            self.first = attempt;
        }
    }

    fn took(&mut self, piece: Bytes, by_second: bool) -> Bytes {
        if by_second {
            self.counters.hedges_won.fetch_add(1, Ordering::Relaxed);
        }
        self.go_on_with(by_second);
        let waited = self.waiting_since.take().map(|since| since.elapsed());
        if let Some(waited) = waited.filter(|_| !self.answered) {
            self.answered = true;
            self.source.pace.note(waited);
        }
        self.counters.fetched_bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
        self.rest.start += piece.len() as u64;
        self.not_before = self.source.rate.debit(piece.len() as u64);
        piece
    }
}

fn attempt(store: &Store, key: &ObjectKey, range: Range<u64>) -> Attempt {
    let (store, key) = (store.clone(), key.clone());
    futures::stream::once(async move { store.get_stream(&key, Some(range)).await })
        .try_flatten()
        .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_follows_what_the_store_usually_takes_within_bounds() {
        let pace = Pace::default();
        assert_eq!(pace.patience(), Duration::from_millis(PATIENCE_UNKNOWN_MS));
        (0..200).for_each(|_| pace.note(Duration::from_millis(300)));
        assert_eq!(pace.patience(), Duration::from_millis(900));
        // One slow answer in a hundred does not count, two do.
        pace.note(Duration::from_millis(1000));
        assert_eq!(pace.patience(), Duration::from_millis(900));
        (0..3).for_each(|_| pace.note(Duration::from_millis(60_000)));
        assert_eq!(pace.patience(), Duration::from_millis(PATIENCE_MAX_MS));
        (0..SAMPLES_MAX).for_each(|_| pace.note(Duration::from_millis(1)));
        assert_eq!(pace.patience(), Duration::from_millis(PATIENCE_MIN_MS));
    }
}
