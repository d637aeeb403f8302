//! One range of blocks from the store into the cache: permits, the request, retries, verification.
//!
//! Invariant: bytes leave here only when every block had the archive's checksum. Demand goes before
//! prefetch: a prefetch first queues among its own kind, for a share of the requests that always
//! leaves some to demands; once a reader waits for it, it is a demand.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::flights::Urgency;
use super::{Inner, ObjectSource, ReadConfig, ReadError};
use crate::cache::{CacheError, CachedObject, FillError};
use crate::store::{StoreError, StoreErrorKind};
use crate::types::BLOCK_BYTES;

const RETRY_PAUSE: Duration = Duration::from_millis(200);
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

    async fn take(&self, blocks: u64, urgency: &mut Urgency) -> Result<Taken, ReadError> {
        let closed = |e| ReadError::Local(format!("no permit to fetch: {e}"));
        let mut taken = Vec::with_capacity(3);
        if !urgency.is_demand() {
            tokio::select! {
                permit = Arc::clone(&self.prefetches).acquire_owned() => taken.push(permit.map_err(closed)?),
                () = urgency.demanded() => {}
            }
        }
        taken.push(Arc::clone(&self.requests).acquire_owned().await.map_err(closed)?);
        let blocks = u32::try_from(blocks).unwrap_or(u32::MAX).min(self.blocks_max);
        taken.push(Arc::clone(&self.bytes).acquire_many_owned(blocks).await.map_err(closed)?);
        Ok(Taken(taken))
    }
}

/// Released when dropped.
struct Taken(#[expect(dead_code, reason = "held, not read")] Vec<OwnedSemaphorePermit>);

fn read_error(object: &crate::types::ObjectKey, e: &StoreError) -> ReadError {
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

impl Inner {
    /// Fetches whole blocks, verifies them and fills the cache.
    pub(super) async fn fly(
        self: Arc<Self>,
        source: ObjectSource,
        blocks: Range<u64>,
        mut urgency: Urgency,
    ) -> Result<Bytes, ReadError> {
        if let Some(bytes) = self.already_cached(&source, blocks.clone()).await? {
            return Ok(bytes);
        }
        let budget = Duration::from_millis(self.config.deadline_ms / 10 * 9);
        let work = self.fetch_until_right(&source, blocks, &mut urgency);
        let result = match tokio::time::timeout(budget, work).await {
            Ok(result) => result,
            Err(_) => Err(ReadError::Unavailable(format!(
                "get {}: the store did not answer within {} ms",
                source.log_key,
                budget.as_millis()
            ))),
        };
        if let Err(e) = &result
            && !urgency.is_demand()
        {
            self.counters.prefetch_failures.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(object = %source.log_key, error = %e, "a prefetch failed");
        }
        result
    }

    /// Somebody may have fetched them since they were found missing.
    async fn already_cached(
        self: &Arc<Self>,
        source: &ObjectSource,
        blocks: Range<u64>,
    ) -> Result<Option<Bytes>, ReadError> {
        let (inner, source) = (Arc::clone(self), source.clone());
        self.blocking(move || {
            let object = inner.cached_object(&source)?;
            if !object.missing(blocks.clone()).is_empty() {
                return None;
            }
            let start = blocks.start * BLOCK_BYTES;
            let end = (blocks.end * BLOCK_BYTES).min(source.size_bytes);
            object.read(start, (end - start) as usize)
        })
        .await
    }

    async fn fetch_until_right(
        self: &Arc<Self>,
        source: &ObjectSource,
        blocks: Range<u64>,
        urgency: &mut Urgency,
    ) -> Result<Bytes, ReadError> {
        let (mut refetched, mut pause) = (false, RETRY_PAUSE);
        loop {
            let got = tokio::try_join!(
                self.get_blocks(source, blocks.clone(), urgency),
                self.ensure_object(source)
            );
            let (bytes, object) = match got {
                Ok(got) => got,
                Err(ReadError::Unavailable(why))
                    if urgency.is_demand() && self.outage.may_retry() =>
                {
                    tracing::debug!(error = %why, "a read from the store is tried again");
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                    continue;
                }
                Err(e) => return Err(e),
            };
            let (data, first) = (bytes.clone(), blocks.start);
            match self.blocking(move || object.fill(first, &data)).await? {
                Ok(()) => return Ok(bytes),
                Err(FillError::Bypass { why }) => {
                    self.counters.cache_bypasses.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(object = %source.log_key, why, "served without the cache");
                    return Ok(bytes);
                }
                Err(FillError::Damaged { block }) if refetched => {
                    tracing::error!(object = %source.log_key, block, "damaged object in the store");
                    let (object, what) = (source.log_key.clone(), format!("block {block}"));
                    return Err(ReadError::Damaged { object, what });
                }
                Err(FillError::Damaged { block }) => {
                    tracing::warn!(object = %source.log_key, block, "a block came damaged from the store: it is fetched again");
                    self.counters.refetched_damaged.fetch_add(1, Ordering::Relaxed);
                    refetched = true;
                }
                Err(e @ FillError::NotBlocks { .. }) => {
                    return Err(ReadError::Local(e.to_string()));
                }
            }
        }
    }

    async fn get_blocks(
        &self,
        source: &ObjectSource,
        blocks: Range<u64>,
        urgency: &mut Urgency,
    ) -> Result<Bytes, ReadError> {
        let store = self.store()?;
        let _permits = self.permits.take(blocks.end - blocks.start, urgency).await?;
        let kind = if urgency.is_demand() {
            &self.counters.demand_fetches
        } else {
            &self.counters.prefetch_fetches
        };
        kind.fetch_add(1, Ordering::Relaxed);
        let range = blocks.start * BLOCK_BYTES..(blocks.end * BLOCK_BYTES).min(source.size_bytes);
        let got = store.get_range(&source.log_key, range).await;
        self.heard(&source.log_key, got)
    }

    /// The `.aux` object's bytes, not checked yet.
    pub(super) async fn get_aux(&self, source: &ObjectSource) -> Result<Bytes, ReadError> {
        let store = self.store()?;
        let permit = self.permits.aux.acquire().await;
        let _permit = permit.map_err(|e| ReadError::Local(format!("no permit to fetch: {e}")))?;
        self.counters.aux_fetches.fetch_add(1, Ordering::Relaxed);
        let got = store.get(&source.aux_key, source.aux_size_bytes).await;
        self.heard(&source.aux_key, got)
    }

    fn store(&self) -> Result<&crate::store::Store, ReadError> {
        let none = || ReadError::Unavailable("there is no store".to_owned());
        let store = self.store.as_ref().ok_or_else(none)?;
        match self.outage.refuses(Instant::now()) {
            Some(why) => Err(ReadError::Unavailable(why)),
            None => Ok(store),
        }
    }

    /// Books what the store answered.
    fn heard(
        &self,
        object: &crate::types::ObjectKey,
        got: Result<Bytes, StoreError>,
    ) -> Result<Bytes, ReadError> {
        match got {
            Ok(bytes) => {
                self.outage.succeeded();
                self.counters.fetched_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                Ok(bytes)
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
