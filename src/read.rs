//! Archived bytes for a range: from the cache, or from the store through the cache.
//!
//! Invariant: a read returns exactly the bytes that were archived, all that were asked for up to the
//! object's end, or an error within `deadline_ms`. Whatever fails in the cache costs a request, not a
//! read. It knows one object at a time; which object holds which bytes of a file is its callers'.

mod begin;
mod body;
mod fetch;
mod flights;
mod gather;
mod outage;
mod shelf;
mod streams;
#[cfg(test)]
mod tests;
mod underway;
mod whole;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use lru::LruCache;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::cache::{BlockCache, FoundBlocks};
use crate::manifest::Aux;
use crate::store::{RateLimiter, Store};
use crate::types::{BLOCK_BYTES, ObjectKey, Sha256, block_count};
use fetch::Permits;
use flights::{Flight, Flights};
use outage::Outage;
use shelf::Shelf;
pub use streams::ReadStreams;
use streams::{Ahead, Expected, Plan, Step};
pub use underway::FetchNow;

/// Starts of objects that a reader of the one before is about to reach.
const EXPECTED_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add(255);
/// Rounds of looking into the cache and fetching, before a reader takes the bytes past it.
const ROUNDS_MAX: u32 = 2;

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
    /// Bytes asked for and not stored yet. They are on their way, not in memory.
    pub inflight_bytes_max: u64,
    /// How far ahead of a sequential reader is fetched, less while several read.
    pub window_bytes_max: u64,
    /// All cold reads together, per second.
    pub fetch_bytes_per_second_max: Option<u64>,
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
            inflight_bytes_max: 192 * MIB,
            window_bytes_max: 96 * MIB,
            fetch_bytes_per_second_max: None,
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
    /// Requests repeated because the store failed.
    pub retries: AtomicU64,
    /// Second requests beside one that stalled.
    pub hedges: AtomicU64,
    /// Those of them that answered first.
    pub hedges_won: AtomicU64,
    /// Requests repeated because the bytes were not those that were archived.
    pub refetched_damaged: AtomicU64,
    /// Fetches whose bytes could not be kept on disk.
    pub cache_bypasses: AtomicU64,
    /// Prefetches that failed; nobody was told.
    pub prefetch_failures: AtomicU64,
    /// Prefetches that were not even begun, because too many were waiting.
    pub prefetch_skipped: AtomicU64,
    /// Reads that a broker's service thread did not wait for to the end.
    pub let_go: AtomicU64,
    /// Reads that ended at their deadline.
    pub deadline_expired: AtomicU64,
    /// Reads that failed, for whatever reason.
    pub errors: AtomicU64,
}

struct Inner {
    store: Option<body::Source>,
    cache: Arc<BlockCache>,
    config: ReadConfig,
    runtime: Handle,
    permits: Permits,
    flights: Flights,
    shelf: Shelf,
    outage: Outage,
    counters: ReadCounters,
    prefetches: AtomicUsize,
    expected: Mutex<LruCache<ObjectKey, Expected>>,
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
        let hedges = (config.inflight_requests_max / 4).clamp(1, Semaphore::MAX_PERMITS);
        let source = |store| body::Source {
            store,
            pace: Arc::default(),
            rate: RateLimiter::new(config.fetch_bytes_per_second_max),
            hedges: Arc::new(Semaphore::new(hedges)),
        };
        let inner = Inner {
            store: store.map(source),
            cache,
            config,
            runtime,
            permits: Permits::new(&config),
            flights: Flights::default(),
            shelf: Shelf::new(),
            outage: Outage::default(),
            counters: ReadCounters::default(),
            prefetches: AtomicUsize::new(0),
            expected: Mutex::new(LruCache::new(EXPECTED_MAX)),
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

    /// Fills the caller's buffer, if all of the bytes are on disk: how many there are, fewer than it has
    /// room for only at the object's end. Short disk work on the calling thread; never a request that it
    /// waits for. A reader that goes on is noticed and read ahead of.
    pub fn try_cached_into(
        &self,
        source: &ObjectSource,
        streams: &ReadStreams,
        offset: u64,
        out: &mut [u8],
    ) -> Option<usize> {
        let span = span(source, offset, out.len());
        let out = &mut out[..(span.end - span.start) as usize];
        if span.is_empty() {
            return Some(0);
        }
        if !self.inner.cached_object(source)?.read_into(span.start, out) {
            return None;
        }
        let plan = self.inner.plan(source, streams, &span, (true, None));
        self.inner.prefetch(source, streams, plan.ahead);
        Some(out.len())
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
        let plan = self.inner.plan(source, streams, &span, (false, Some(hint.broker)));
        let Plan { demand_end, ahead } = plan;
        // The reader's own request goes first.
        let read = self.inner.read(source, span, demand_end, || {
            self.inner.prefetch(source, streams, ahead.clone());
        });
        self.inner.within_deadline(read).await
    }

    /// Begins to fetch what a broker's first fetch from the object's start will want; nobody waits for it, and it ends when
    /// the reader of `streams` has gone.
    pub fn prefetch_start(&self, source: &ObjectSource, streams: &ReadStreams) {
        let range = Some(0..streams::BROKER_FETCH_BYTES.min(source.size_bytes));
        self.inner.prefetch(source, streams, Ahead { range, ..Ahead::default() });
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

    fn plan(
        &self,
        source: &ObjectSource,
        streams: &ReadStreams,
        span: &Range<u64>,
        (hit, broker): (bool, Option<bool>),
    ) -> Plan {
        let expected = match span.start {
            0 => self.expected.lock().pop(&source.log_key),
            _ => None,
        };
        let step = Step {
            object: &source.log_key,
            size_bytes: source.size_bytes,
            offset: span.start,
            end: span.end,
            hit,
            broker,
            expected,
        };
        streams.note(step, &self.config_now())
    }

    /// Readers share the window; when too much waits to be fetched ahead, nobody has one.
    fn config_now(&self) -> ReadConfig {
        let shared = self.config.window_bytes_max / (self.flights.objects() as u64).max(1);
        let window = shared.max(self.config.fetch_bytes_max);
        let full = self.prefetches.load(Ordering::Relaxed) >= Permits::queue_max(&self.config);
        let window_bytes_max = if full { 0 } else { window.min(self.config.window_bytes_max) };
        ReadConfig { window_bytes_max, ..self.config }
    }

    async fn read(
        self: &Arc<Self>,
        source: &ObjectSource,
        span: Range<u64>,
        demand_end: u64,
        prefetch: impl Fn(),
    ) -> Result<Bytes, ReadError> {
        let mut parts = BTreeMap::new();
        let mut missing = vec![blocks_of(&span)];
        for round in 0..=ROUNDS_MAX {
            missing = self.look_up(source, missing, &mut parts).await?;
            if round == ROUNDS_MAX {
                break;
            }
            let flights = self.demand(source, &missing, block_count(demand_end));
            if round == 0 {
                prefetch();
            }
            if missing.is_empty() {
                break;
            }
            for flight in flights {
                self.wait_for(source, &flight, &missing, &mut parts).await?;
            }
        }
        // The cache has lost them as soon as they came.
        for run in missing {
            add(&mut parts, self.bring(source, run).await?);
        }
        assemble(&parts, &span)
    }

    /// Waits until a flight's blocks of `missing` can be had.
    async fn wait_for(
        self: &Arc<Self>,
        source: &ObjectSource,
        flight: &Flight,
        missing: &[Range<u64>],
        parts: &mut BTreeMap<u64, Bytes>,
    ) -> Result<(), ReadError> {
        for needed in missing.iter().map(|run| overlap(run, &flight.blocks)) {
            if needed.is_empty() {
                continue;
            }
            match flight.landed(needed.end).await {
                Ok(()) => add(parts, flight.held()),
                Err(e) if is_anothers(&e, flight, &needed) => {
                    add(parts, self.bring(source, needed).await?);
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Puts what the cache has of `blocks` into `parts`; what neither has.
    async fn look_up(
        self: &Arc<Self>,
        source: &ObjectSource,
        blocks: Vec<Range<u64>>,
        parts: &mut BTreeMap<u64, Bytes>,
    ) -> Result<Vec<Range<u64>>, ReadError> {
        let blocks: Vec<_> = blocks.iter().flat_map(|run| without(run, parts)).collect();
        if blocks.is_empty() {
            return Ok(blocks);
        }
        let (inner, source) = (Arc::clone(self), source.clone());
        let look_up = move || match inner.cached_object(&source) {
            Some(object) => blocks.into_iter().map(|run| object.read_blocks(run)).collect(),
            None => vec![FoundBlocks { found: Vec::new(), missing: blocks }],
        };
        let mut missing = Vec::new();
        for got in self.blocking(look_up).await? {
            add(parts, got.found);
            missing.extend(got.missing);
        }
        Ok(missing)
    }
}

/// Whether a flight's failure says nothing about `needed`: the damage may be in another block, and
/// a prefetch gives up sooner than a reader would.
fn is_anothers(e: &ReadError, flight: &Flight, needed: &Range<u64>) -> bool {
    match e {
        // Blocks land in order, so the next one is the damaged one.
        ReadError::Damaged { .. } => !needed.contains(&flight.landed_to()),
        ReadError::Unavailable(_) => flight.began_as_prefetch,
        ReadError::Missing { .. }
        | ReadError::Unreadable { .. }
        | ReadError::Deadline { .. }
        | ReadError::Local(_) => false,
    }
}

/// Of two runs that begin with the same block the longer one stays.
fn add(parts: &mut BTreeMap<u64, Bytes>, runs: Vec<(u64, Bytes)>) {
    for (first, bytes) in runs {
        if parts.get(&first).is_none_or(|known| known.len() < bytes.len()) {
            parts.insert(first, bytes);
        }
    }
}

/// The parts of `run` that no part covers.
fn without(run: &Range<u64>, parts: &BTreeMap<u64, Bytes>) -> Vec<Range<u64>> {
    let (mut rest, mut at) = (Vec::new(), run.start);
    for (&first, bytes) in parts {
        let end = first + block_count(bytes.len() as u64);
        if end <= at || first >= run.end {
            continue;
        }
        if first > at {
            rest.push(at..first);
        }
        at = end;
    }
    if at < run.end {
        rest.push(at..run.end);
    }
    rest
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
