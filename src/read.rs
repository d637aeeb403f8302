//! Archived bytes for a range: from the cache, or from the store through the cache.
//!
//! Invariant: a read returns exactly the bytes that were archived, all that were asked for up to the
//! object's end, or an error within `deadline_ms`. Whatever fails in the cache costs a request, not a
//! read. It knows one object at a time; which object holds which bytes of a file is its callers'.

mod begin;
mod fetch;
mod flights;
mod outage;
mod shelf;
mod streams;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::runtime::Handle;

use crate::cache::{BlockCache, FoundBlocks};
use crate::manifest::Aux;
use crate::store::Store;
use crate::types::{BLOCK_BYTES, ObjectKey, Sha256, block_count};
use fetch::Permits;
use flights::{Flight, Flights};
use outage::Outage;
use shelf::Shelf;
pub use streams::ReadStreams;
use streams::{Plan, Step};

/// An archived `.log` and the `.aux` that proves its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectSource {
    /// Of the `.log`.
    pub log_key: ObjectKey,
    /// Of the `.log`.
    pub size_bytes: u64,
    /// Of the `.aux`.
    pub aux_key: ObjectKey,
    /// Of the `.aux`.
    pub aux_size_bytes: u64,
    /// Of the `.aux`.
    pub aux_sha256: Sha256,
}

/// What is known of who reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadHint {
    /// A broker: its small reads of batch headers announce a fetch of up to 1 MiB.
    pub broker: bool,
}

/// Limits of a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadConfig {
    /// A read ends within this time, with its bytes or with an error.
    pub deadline_ms: u64,
    /// Longest single request.
    pub fetch_bytes_max: u64,
    /// The first request of a stream is at most this long (or as long as the read).
    pub first_fetch_bytes: u64,
    /// Requests under way.
    pub inflight_requests_max: usize,
    /// Bytes asked for and not stored yet.
    pub inflight_bytes_max: u64,
    /// How far ahead of a sequential reader is fetched.
    pub window_bytes_max: u64,
    /// What prefetches may take of `inflight_requests_max` and `inflight_bytes_max`.
    pub prefetch_share_percent: u8,
}

impl Default for ReadConfig {
    fn default() -> Self {
        const MIB: u64 = 1024 * 1024;
        Self {
            deadline_ms: 25_000,
            fetch_bytes_max: 8 * MIB,
            first_fetch_bytes: MIB / 4,
            inflight_requests_max: 16,
            inflight_bytes_max: 128 * MIB,
            window_bytes_max: 16 * MIB,
            prefetch_share_percent: 75,
        }
    }
}

/// Why there are no bytes. To a program that reads the file all of these are EIO.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The store did not give them: it may later.
    #[error("the store is not available: {0}")]
    Unavailable(String),
    /// The store has no such object, or a shorter one: the archive is damaged.
    #[error("archived object {object} is missing or cut: {why}")]
    Missing {
        /// Its key.
        object: ObjectKey,
        /// What the store said.
        why: String,
    },
    /// The store's bytes are not those that were archived, twice.
    #[error("archived object {object} is damaged: {what}")]
    Damaged {
        /// Its key.
        object: ObjectKey,
        /// Which part of it.
        what: String,
    },
    /// The bytes are those that were archived, but this Everlog cannot read them: use a newer one.
    #[error("archived object {object} cannot be read: {why}")]
    Unreadable {
        /// Its key.
        object: ObjectKey,
        /// Which versions, or what does not fit.
        why: String,
    },
    /// It took too long: it may work later.
    #[error("no answer within {deadline_ms} ms")]
    Deadline {
        /// How long it was waited for.
        deadline_ms: u64,
    },
    /// A fault on this side.
    #[error("the read failed here: {0}")]
    Local(String),
}

/// Figures since the reader was made.
#[derive(Debug, Default)]
pub struct ReadCounters {
    /// Requests that a reader waited for.
    pub demand_fetches: AtomicU64,
    /// Requests ahead of readers.
    pub prefetch_fetches: AtomicU64,
    /// Requests for `.aux` objects.
    pub aux_fetches: AtomicU64,
    /// Received.
    pub fetched_bytes: AtomicU64,
    /// Requests repeated because the bytes were not those that were archived.
    pub refetched_damaged: AtomicU64,
    /// Fetches whose bytes could not be kept on disk.
    pub cache_bypasses: AtomicU64,
    /// Prefetches that failed; nobody was told.
    pub prefetch_failures: AtomicU64,
    /// Prefetches that were not even begun, because too many were waiting.
    pub prefetch_skipped: AtomicU64,
    /// Reads that ended at their deadline.
    pub deadline_expired: AtomicU64,
    /// Reads that failed, for whatever reason.
    pub errors: AtomicU64,
}

struct Inner {
    store: Option<Store>,
    cache: Arc<BlockCache>,
    config: ReadConfig,
    runtime: Handle,
    permits: Permits,
    flights: Flights,
    shelf: Shelf,
    outage: Outage,
    counters: ReadCounters,
    prefetches: AtomicUsize,
}

/// Reads archived objects. Clones share everything.
#[derive(Clone)]
pub struct Reader {
    inner: Arc<Inner>,
}

impl Reader {
    /// Without a store only what is cached can be read.
    #[must_use]
    pub fn new(
        store: Option<Store>,
        cache: Arc<BlockCache>,
        config: ReadConfig,
        runtime: Handle,
    ) -> Self {
        let inner = Inner {
            store,
            cache,
            config,
            runtime,
            permits: Permits::new(&config),
            flights: Flights::default(),
            shelf: Shelf::new(),
            outage: Outage::default(),
            counters: ReadCounters::default(),
            prefetches: AtomicUsize::new(0),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Figures.
    #[must_use]
    pub fn counters(&self) -> &ReadCounters {
        &self.inner.counters
    }

    /// The cache it fills.
    #[must_use]
    pub fn cache(&self) -> &Arc<BlockCache> {
        &self.inner.cache
    }

    /// The bytes, if all of them are on disk. Short disk work on the calling thread; never a request
    /// that it waits for. A reader that goes on is noticed and read ahead of.
    #[must_use]
    pub fn try_cached(
        &self,
        source: &ObjectSource,
        streams: &ReadStreams,
        offset: u64,
        len: usize,
    ) -> Option<Bytes> {
        let span = span(source, offset, len);
        if span.is_empty() {
            return Some(Bytes::new());
        }
        let object = self.inner.cached_object(source)?;
        let bytes = object.read(span.start, (span.end - span.start) as usize)?;
        let plan = streams.note(step(source, &span, true, None), &self.inner.config);
        self.inner.prefetch(source, plan.prefetch);
        Some(bytes)
    }

    /// Exactly the bytes from `offset` on: `len`, or as many as there are before the object's end.
    pub async fn read(
        &self,
        source: &ObjectSource,
        streams: &ReadStreams,
        offset: u64,
        len: usize,
        hint: ReadHint,
    ) -> Result<Bytes, ReadError> {
        let span = span(source, offset, len);
        if span.is_empty() {
            return Ok(Bytes::new());
        }
        let step = step(source, &span, false, Some(hint.broker));
        let plan = streams.note(step, &self.inner.config);
        self.inner.within_deadline(self.inner.read(source, span, plan)).await
    }

    /// The source's `.aux`, verified: from memory, the cache or the store.
    pub async fn aux(&self, source: &ObjectSource) -> Result<Arc<Aux>, ReadError> {
        self.inner.within_deadline(shelf::aux(&self.inner, source)).await
    }
}

fn span(source: &ObjectSource, offset: u64, len: usize) -> Range<u64> {
    let end = offset.saturating_add(len as u64).min(source.size_bytes);
    offset.min(end)..end
}

fn step<'a>(
    source: &'a ObjectSource,
    span: &Range<u64>,
    hit: bool,
    broker: Option<bool>,
) -> Step<'a> {
    let (offset, end) = (span.start, span.end);
    Step { object: &source.log_key, size_bytes: source.size_bytes, offset, end, hit, broker }
}

fn blocks_of(bytes: &Range<u64>) -> Range<u64> {
    bytes.start / BLOCK_BYTES..block_count(bytes.end)
}

impl Inner {
    async fn within_deadline<T>(
        &self,
        work: impl Future<Output = Result<T, ReadError>>,
    ) -> Result<T, ReadError> {
        let deadline_ms = self.config.deadline_ms;
        let result = match tokio::time::timeout(Duration::from_millis(deadline_ms), work).await {
            Ok(result) => result,
            Err(_) => {
                self.counters.deadline_expired.fetch_add(1, Ordering::Relaxed);
                Err(ReadError::Deadline { deadline_ms })
            }
        };
        if result.is_err() {
            self.counters.errors.fetch_add(1, Ordering::Relaxed);
        }
        result
    }

    async fn read(
        self: &Arc<Self>,
        source: &ObjectSource,
        span: Range<u64>,
        plan: Plan,
    ) -> Result<Bytes, ReadError> {
        let blocks = blocks_of(&span);
        let FoundBlocks { found, missing } = self.look_up(source, blocks.clone()).await?;
        let mut parts: BTreeMap<u64, Bytes> = found.into_iter().collect();
        let flights = self.demand(source, &missing, block_count(plan.demand_end));
        self.prefetch(source, plan.prefetch);
        let mut again = Vec::new();
        for flight in flights {
            match flight.landed().await {
                Ok(bytes) => {
                    parts.insert(flight.blocks.start, bytes);
                }
                Err(e) if is_anothers(&e, &flight, &blocks) => {
                    again.push(overlap(&flight.blocks, &blocks));
                }
                Err(e) => return Err(e),
            }
        }
        for needed in again {
            let fetch = |blocks, urgency| Arc::clone(self).fly(source.clone(), blocks, urgency);
            let flight = Flights::alone(&self.runtime, needed.clone(), fetch);
            parts.insert(needed.start, flight.landed().await?);
        }
        assemble(&parts, &span)
    }

    async fn look_up(
        self: &Arc<Self>,
        source: &ObjectSource,
        blocks: Range<u64>,
    ) -> Result<FoundBlocks, ReadError> {
        let (inner, source) = (Arc::clone(self), source.clone());
        self.blocking(move || match inner.cached_object(&source) {
            Some(object) => object.read_blocks(blocks),
            None => FoundBlocks { found: Vec::new(), missing: vec![blocks] },
        })
        .await
    }
}

/// Whether a flight's failure says nothing about `needed`: the damage may be in another block, and
/// a prefetch gives up sooner than a reader would.
fn is_anothers(e: &ReadError, flight: &Flight, needed: &Range<u64>) -> bool {
    match e {
        ReadError::Damaged { .. } => overlap(&flight.blocks, needed) != flight.blocks,
        ReadError::Unavailable(_) => flight.began_as_prefetch,
        ReadError::Missing { .. }
        | ReadError::Unreadable { .. }
        | ReadError::Deadline { .. }
        | ReadError::Local(_) => false,
    }
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> Range<u64> {
    let start = a.start.max(b.start);
    start..a.end.min(b.end).max(start)
}

/// The bytes of `span` out of runs of whole blocks. Copies unless one run is hardly longer than
/// what is wanted, so that no reply holds a large fetch in memory.
fn assemble(parts: &BTreeMap<u64, Bytes>, span: &Range<u64>) -> Result<Bytes, ReadError> {
    let len = (span.end - span.start) as usize;
    let mut out = BytesMut::new();
    let mut at = span.start;
    for (first, part) in parts {
        let start = first * BLOCK_BYTES;
        let end = start + part.len() as u64;
        let wanted = overlap(&(start..end), &(at..span.end));
        if wanted.is_empty() || wanted.start != at {
            continue;
        }
        let slice = (wanted.start - start) as usize..(wanted.end - start) as usize;
        if slice.len() == len && part.len() <= 2 * len.max(BLOCK_BYTES as usize) {
            return Ok(part.slice(slice));
        }
        out.reserve(len - out.len());
        out.extend_from_slice(&part[slice]);
        at = wanted.end;
    }
    if at != span.end {
        return Err(ReadError::Local(format!("fetched blocks have a hole at byte {at}")));
    }
    Ok(out.freeze())
}
