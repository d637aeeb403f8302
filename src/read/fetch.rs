//! One range of blocks from the store into the cache: permits, requests, retries, verification.
//!
//! Invariant: a block has landed only when it had the archive's checksum. The bytes go from the answer to
//! the disk as they come, so a flight holds `GROUP_BYTES_MAX` and what is being written in memory, however
//! long it is, and readers need not wait for its end. Demand goes before prefetch: a prefetch first queues
//! among its own kind, for a share of the requests that always leaves some to demands; once a reader waits
//! for it, it is a demand.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use super::body::{self, Body};
use super::flights::{Ended, Landing, Stage};
use super::gather::Gather;
use super::{Inner, ObjectSource, ReadConfig, ReadError};
use crate::cache::{CacheError, CachedObject, FillError, Filled};
use crate::store::{StoreError, StoreErrorKind};
use crate::types::{BLOCK_BYTES, ObjectKey};

const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// Of one flight, each after twice the pause before.
const RETRIES_MAX: u32 = 5;
/// Prefetches that wait for each one that may run.
const QUEUE_FACTOR: usize = 4;
const AUX_REQUESTS_MAX: usize = 4;

/// The limits of what is under way.
pub(super) struct Permits {
    requests: Arc<Semaphore>,
    /// In blocks.
    bytes: Arc<Semaphore>,
    prefetches: Arc<Semaphore>,
    aux: Semaphore,
    blocks_max: u32,
}

impl Permits {
    pub fn new(config: &ReadConfig) -> Self {
        let requests = config.inflight_requests_max.clamp(2, 4096);
        let blocks = (config.inflight_bytes_max / BLOCK_BYTES).clamp(2, 1 << 20);
        Self {
            requests: Arc::new(Semaphore::new(requests)),
            bytes: Arc::new(Semaphore::new(blocks as usize)),
            prefetches: Arc::new(Semaphore::new(Self::prefetches_max(config))),
            aux: Semaphore::new(AUX_REQUESTS_MAX),
            blocks_max: blocks as u32,
        }
    }

    /// Prefetches that may be under way at once.
    pub fn prefetches_max(config: &ReadConfig) -> usize {
        let share = |of: u64| of * u64::from(config.prefetch_share_percent.min(100)) / 100;
        let by_requests = share(config.inflight_requests_max.clamp(2, 4096) as u64);
        let by_bytes = share(config.inflight_bytes_max) / config.fetch_bytes_max.max(1);
        by_requests.min(by_bytes).max(1) as usize
    }

    /// Prefetches that may be under way or wait.
    pub fn queue_max(config: &ReadConfig) -> usize {
        Self::prefetches_max(config) * QUEUE_FACTOR
    }

    async fn take(&self, blocks: u64, landing: &mut Landing) -> Result<Taken, ReadError> {
        let closed = |e| ReadError::Local(format!("no permit to fetch: {e}"));
        let mut prefetch = None;
        if !landing.is_demand() {
            tokio::select! {
                permit = Arc::clone(&self.prefetches).acquire_owned() => prefetch = Some(permit.map_err(closed)?),
                () = landing.demanded() => {}
            }
        }
        let request = Arc::clone(&self.requests).acquire_owned().await.map_err(closed)?;
        let blocks = u32::try_from(blocks).unwrap_or(u32::MAX).min(self.blocks_max);
        let bytes = Arc::clone(&self.bytes).acquire_many_owned(blocks).await.map_err(closed)?;
        Ok(Taken { bytes, _rest: (prefetch, request) })
    }
}

/// Released when dropped, the bytes' share as they land.
struct Taken {
    bytes: OwnedSemaphorePermit,
    _rest: (Option<OwnedSemaphorePermit>, OwnedSemaphorePermit),
}

impl Taken {
    fn landed(&mut self, blocks: u64) {
        let blocks = usize::try_from(blocks).unwrap_or(usize::MAX).min(self.bytes.num_permits());
        drop(self.bytes.split(blocks));
    }
}

fn read_error(object: &ObjectKey, e: &StoreError) -> ReadError {
    match e.kind {
        StoreErrorKind::NotFound | StoreErrorKind::Short | StoreErrorKind::TooLarge => {
            ReadError::Missing { object: object.clone(), why: e.message.clone() }
        }
        StoreErrorKind::AlreadyExists
        | StoreErrorKind::Denied
        | StoreErrorKind::NoBucket
        | StoreErrorKind::Unavailable
        | StoreErrorKind::Invalid
        | StoreErrorKind::Unsupported => ReadError::Unavailable(e.to_string()),
    }
}

/// Why an attempt at a flight ended before its last block.
enum Trouble {
    Read(ReadError),
    /// This block is not what was archived.
    Damaged(u64),
}

impl From<ReadError> for Trouble {
    fn from(e: ReadError) -> Self {
        Self::Read(e)
    }
}

/// Whether anybody still reads what a prefetch was begun for; `None`: it does not matter.
pub(super) type Interest = Option<Weak<()>>;

/// Whole blocks of an object, on their way.
struct Fetching<'a> {
    inner: &'a Arc<Inner>,
    source: &'a ObjectSource,
    landing: &'a mut Landing,
    interest: Interest,
    /// Serve from memory even what the cache keeps: it has lost these blocks before.
    hold: bool,
    at: u64,
    end: u64,
}

impl Inner {
    /// Fetches whole blocks, verifies them and fills the cache.
    pub(super) async fn fly(
        self: Arc<Self>,
        source: ObjectSource,
        blocks: Range<u64>,
        (mut landing, interest, hold): (Landing, Interest, bool),
    ) -> (Landing, Ended) {
        let ended = self.fly_with(&source, blocks, (&mut landing, interest, hold)).await;
        if let Err(e) = &ended
            && !landing.is_demand()
        {
            self.counters.prefetch_failures.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(object = %source.log_key, error = %e, "a prefetch failed");
        }
        (landing, ended)
    }

    async fn fly_with(
        self: &Arc<Self>,
        source: &ObjectSource,
        blocks: Range<u64>,
        (landing, interest, hold): (&mut Landing, Interest, bool),
    ) -> Ended {
        let missing = match hold {
            true => blocks.clone(),
            false => self.still_missing(source, blocks.clone()).await?,
        };
        landing.landed(if missing.is_empty() { blocks.end } else { missing.start });
        if missing.is_empty() {
            return Ok(());
        }
        let end = missing.end;
        let mut fetching =
            Fetching { inner: self, source, landing, interest, hold, at: missing.start, end };
        fetching.go().await?;
        landing.landed(blocks.end);
        Ok(())
    }

    /// From the first to the last block that nobody has fetched since they were found missing.
    async fn still_missing(
        self: &Arc<Self>,
        source: &ObjectSource,
        blocks: Range<u64>,
    ) -> Result<Range<u64>, ReadError> {
        let (inner, source) = (Arc::clone(self), source.clone());
        self.blocking(move || {
            let Some(object) = inner.cached_object(&source) else { return blocks };
            let missing = object.missing(blocks.clone());
            let (first, last) = (missing.first(), missing.last());
            first.zip(last).map_or(blocks.end..blocks.end, |(a, b)| a.start..b.end)
        })
        .await
    }
}

impl Fetching<'_> {
    /// Until all has landed, or nothing more can be expected.
    async fn go(&mut self) -> Ended {
        let (mut damaged, mut retries) = (None, 0);
        loop {
            let counters = &self.inner.counters;
            match self.attempt().await {
                Ok(()) => return Ok(()),
                Err(Trouble::Read(ReadError::Unavailable(why)))
                    if retries < RETRIES_MAX
                        && self.landing.is_demand()
                        && self.inner.store.is_some()
                        && self.inner.outage.may_retry() =>
                {
                    tracing::debug!(error = %why, "a read from the store is tried again");
                    counters.retries.fetch_add(1, Ordering::Relaxed);
                    self.landing.failed();
                    tokio::time::sleep(RETRY_PAUSE * 2u32.pow(retries)).await;
                    retries += 1;
                }
                Err(Trouble::Read(e)) => return Err(e),
                Err(Trouble::Damaged(block)) if damaged == Some(block) => {
                    let object = self.source.log_key.clone();
                    tracing::error!(%object, block, "damaged object in the store");
                    return Err(ReadError::Damaged { object, what: format!("block {block}") });
                }
                Err(Trouble::Damaged(block)) => {
                    tracing::warn!(object = %self.source.log_key, block, "a block came damaged from the store: it is fetched again");
                    counters.refetched_damaged.fetch_add(1, Ordering::Relaxed);
                    damaged = Some(block);
                }
            }
        }
    }

    /// One request for all that has not landed yet. Receives while it writes.
    async fn attempt(&mut self) -> Result<(), Trouble> {
        let inner = Arc::clone(self.inner);
        let source = inner.store_now()?;
        self.landing.waits_for(Stage::Queued);
        let mut taken = inner.permits.take(self.end - self.at, self.landing).await?;
        if !self.landing.is_demand()
            && self.interest.as_ref().is_some_and(|i| i.strong_count() == 0)
        {
            inner.counters.prefetch_skipped.fetch_add(1, Ordering::Relaxed);
            let why = "nobody reads on".to_owned();
            return Err(ReadError::Unavailable(why).into());
        }
        self.count();
        self.landing.waits_for(Stage::Asked);
        let bytes = self.at * BLOCK_BYTES..(self.end * BLOCK_BYTES).min(self.source.size_bytes);
        let mut gather = Gather::new(bytes.end - bytes.start);
        let mut body = Body::new(source, &inner.counters, &self.source.log_key, bytes);
        let object = inner.ensure_object(self.source);
        tokio::pin!(object);
        let (mut ready, mut writing, mut failed) = (None::<Arc<CachedObject>>, None, None);
        let mut answered = false;
        while self.at < self.end {
            if writing.is_none() {
                match ready.as_ref().and_then(|object| Some((object, gather.take_blocks()?))) {
                    Some((object, pieces)) => writing = Some(self.write(object, pieces)),
                    // Only now: what came before the failure is kept.
                    None => failed.take().map_or(Ok(()), Err)?,
                }
            }
            tokio::select! {
                biased;
                filled = written(&mut writing), if writing.is_some() => {
                    taken.landed(self.filled(filled?)?);
                }
                object = &mut object, if ready.is_none() => ready = Some(object?),
                piece = body.next(), if failed.is_none() && gather.wants_more() => {
                    match inner.heard(&self.source.log_key, piece) {
                        Ok(Some(piece)) => {
                            if !std::mem::replace(&mut answered, true) {
                                self.landing.waits_for(Stage::Receiving);
                            }
                            gather.push(piece);
                        }
                        // A body is complete when it ends, and then no more was wanted.
                        Ok(None) => failed = Some(ReadError::Local("an answer ended early".to_owned())),
                        Err(e) => failed = Some(e),
                    }
                }
            }
        }
        Ok(())
    }

    fn count(&self) {
        let counters = &self.inner.counters;
        let kind = match self.landing.is_demand() {
            true => &counters.demand_fetches,
            false => &counters.prefetch_fetches,
        };
        kind.fetch_add(1, Ordering::Relaxed);
    }

    fn write(&self, object: &Arc<CachedObject>, pieces: Vec<Bytes>) -> JoinHandle<Written> {
        let (object, first) = (Arc::clone(object), self.at);
        self.inner.runtime.spawn_blocking(move || {
            let filled = object.fill_pieces(first, &pieces)?;
            Ok((filled, pieces))
        })
    }

    /// Books what was written: the number of blocks that have landed.
    fn filled(&mut self, written: Written) -> Result<u64, Trouble> {
        let (filled, pieces) = written.map_err(|e| ReadError::Local(e.to_string()))?;
        let blocks = filled.verified_blocks;
        if blocks > 0 {
            if filled.bypassed.is_some() || self.hold {
                self.bypass(&filled, &pieces)?;
            }
            self.at += blocks;
            self.landing.landed(self.at);
        }
        if filled.damaged { Err(Trouble::Damaged(self.at)) } else { Ok(blocks) }
    }

    /// What is not on disk is held for who waits; nobody does for a prefetch, so that ends.
    fn bypass(&self, filled: &Filled, pieces: &[Bytes]) -> Result<(), ReadError> {
        if let Some(why) = &filled.bypassed {
            self.inner.counters.cache_bypasses.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(object = %self.source.log_key, why, "served without the cache");
            if !self.landing.is_demand() {
                return Err(ReadError::Unavailable(format!("not cached: {why}")));
            }
        }
        let len = filled.verified_blocks * BLOCK_BYTES;
        let start = self.at * BLOCK_BYTES;
        let len = len.min(self.source.size_bytes - start) as usize;
        self.landing.hold(self.at, super::gather::joined(pieces, len));
        Ok(())
    }
}

type Written = Result<(Filled, Vec<Bytes>), FillError>;

/// Waits for the write that is under way.
async fn written(writing: &mut Option<JoinHandle<Written>>) -> Result<Written, ReadError> {
    let Some(task) = writing else { return std::future::pending().await };
    let done = task.await;
    *writing = None;
    done.map_err(|e| ReadError::Local(format!("disk work ended early: {e}")))
}

impl Inner {
    /// The `.aux` object's bytes, not checked yet.
    pub(super) async fn get_aux(&self, source: &ObjectSource) -> Result<Bytes, ReadError> {
        let from = self.store_now()?;
        let permit = self.permits.aux.acquire().await;
        let _permit = permit.map_err(|e| ReadError::Local(format!("no permit to fetch: {e}")))?;
        self.counters.aux_fetches.fetch_add(1, Ordering::Relaxed);
        let got = from.store.get(&source.aux_key, source.aux_size_bytes).await;
        let bytes = self.heard(&source.aux_key, got)?;
        self.counters.fetched_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(bytes)
    }

    fn store_now(&self) -> Result<&body::Source, ReadError> {
        let none = || ReadError::Unavailable("there is no store".to_owned());
        let source = self.store.as_ref().ok_or_else(none)?;
        match self.outage.refuses(Instant::now()) {
            Some(why) => Err(ReadError::Unavailable(why)),
            None => Ok(source),
        }
    }

    /// Books what the store answered.
    fn heard<T>(&self, object: &ObjectKey, got: Result<T, StoreError>) -> Result<T, ReadError> {
        match got {
            Ok(answer) => {
                self.outage.succeeded();
                Ok(answer)
            }
            Err(e) => {
                if e.is_transient() {
                    self.outage.failed(&e.to_string(), Instant::now());
                }
                Err(read_error(object, &e))
            }
        }
    }

    /// The object in the cache, made from its `.aux` if it is not there.
    pub(super) async fn ensure_object(
        self: &Arc<Self>,
        source: &ObjectSource,
    ) -> Result<Arc<CachedObject>, ReadError> {
        let (inner, wanted) = (Arc::clone(self), source.clone());
        if let Some(object) = self.blocking(move || inner.cached_object(&wanted)).await? {
            return Ok(object);
        }
        let aux = super::shelf::aux(self, source).await?;
        let (cache, wanted) = (Arc::clone(&self.cache), source.clone());
        let created = self.blocking(move || {
            let sha = &wanted.aux_sha256;
            cache.create(&wanted.log_key, wanted.size_bytes, sha, &aux.block_crcs)
        });
        created.await?.map_err(|e| match e {
            CacheError::Checksums { .. } => {
                ReadError::Damaged { object: source.aux_key.clone(), what: e.to_string() }
            }
            e => ReadError::Local(e.to_string()),
        })
    }

    pub(super) fn cached_object(&self, source: &ObjectSource) -> Option<Arc<CachedObject>> {
        self.cache.object(&source.log_key, source.size_bytes, &source.aux_sha256)
    }

    /// Disk work, off the runtime's own threads.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ReadError> {
        let done = self.runtime.spawn_blocking(work).await;
        done.map_err(|e| ReadError::Local(format!("disk work ended early: {e}")))
    }
}
