//! `.aux` objects, parsed: the last few in memory, each fetched by one task at a time.
//!
//! Invariant: an `Aux` in here had the SHA-256 that the manifest names. One that comes from the disk
//! cache and does not is removed there and fetched; one that comes from the store is fetched once
//! more, and then it is damage.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use lru::LruCache;
use parking_lot::Mutex;

use super::{Inner, ObjectSource, ReadError};
use crate::cache::BlockCache;
use crate::manifest::{Aux, AuxError};
use crate::types::ObjectKey;

const ENTRIES_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add(63);
const BYTES_MAX: u64 = 32 * 1024 * 1024;
/// No `.aux` is larger: Kafka's indexes are limited, and checksums are 1/16384 of the log.
const AUX_BYTES_MAX: u64 = 256 * 1024 * 1024;

type Pending = Shared<BoxFuture<'static, Result<Arc<Aux>, ReadError>>>;

struct State {
    parsed: LruCache<ObjectKey, (Arc<Aux>, u64)>,
    bytes: u64,
    pending: HashMap<ObjectKey, Pending>,
}

/// Parsed `.aux` objects.
pub(super) struct Shelf {
    state: Mutex<State>,
}

impl Shelf {
    pub fn new() -> Self {
        let parsed = LruCache::new(ENTRIES_MAX);
        Self { state: Mutex::new(State { parsed, bytes: 0, pending: HashMap::new() }) }
    }

    fn keep(&self, key: &ObjectKey, aux: &Arc<Aux>, size_bytes: u64) {
        let mut state = self.state.lock();
        state.bytes += size_bytes;
        if let Some((_, (_, gone))) = state.parsed.push(key.clone(), (Arc::clone(aux), size_bytes))
        {
            state.bytes -= gone;
        }
        while state.bytes > BYTES_MAX {
            let Some((_, (_, gone))) = state.parsed.pop_lru() else { break };
            state.bytes -= gone;
        }
    }
}

fn damaged(source: &ObjectSource, what: impl ToString) -> ReadError {
    ReadError::Damaged { object: source.aux_key.clone(), what: what.to_string() }
}

fn parse(source: &ObjectSource, bytes: Bytes) -> Result<Aux, ReadError> {
    Aux::parse(bytes, &source.aux_sha256).map_err(|e| match e {
        AuxError::WrongSha { .. } => damaged(source, e),
        AuxError::UnknownVersion { .. } | AuxError::Damaged(_) => {
            ReadError::Unreadable { object: source.aux_key.clone(), why: e.to_string() }
        }
    })
}

/// The source's `.aux`, from memory, the disk cache or the store.
pub(super) async fn aux(inner: &Arc<Inner>, source: &ObjectSource) -> Result<Arc<Aux>, ReadError> {
    let pending = {
        let mut state = inner.shelf.state.lock();
        if let Some((aux, _)) = state.parsed.get(&source.aux_key) {
            return Ok(Arc::clone(aux));
        }
        if let Some(pending) = state.pending.get(&source.aux_key) {
            pending.clone()
        } else {
            let (task_inner, task_source) = (Arc::clone(inner), source.clone());
            let task = inner.runtime.spawn(async move {
                let result = load(&task_inner, &task_source).await;
                if let Ok(aux) = &result {
                    task_inner.shelf.keep(&task_source.aux_key, aux, task_source.aux_size_bytes);
                }
                task_inner.shelf.state.lock().pending.remove(&task_source.aux_key);
                result
            });
            let early = |e| Err(ReadError::Local(format!("a fetch ended early: {e}")));
            let pending = async move { task.await.unwrap_or_else(early) }.boxed().shared();
            state.pending.insert(source.aux_key.clone(), pending.clone());
            pending
        }
    };
    pending.await
}

async fn load(inner: &Arc<Inner>, source: &ObjectSource) -> Result<Arc<Aux>, ReadError> {
    if source.aux_size_bytes > AUX_BYTES_MAX {
        let why = format!("{} bytes are more than an .aux can have", source.aux_size_bytes);
        return Err(damaged(source, why));
    }
    let (cache, wanted) = (Arc::clone(&inner.cache), source.clone());
    if let Some(aux) = inner.blocking(move || cached(&cache, &wanted)).await?? {
        return Ok(Arc::new(aux));
    }
    let mut refetched = false;
    loop {
        let bytes = inner.get_aux(source).await?;
        let (cache, wanted) = (Arc::clone(&inner.cache), source.clone());
        match inner.blocking(move || parse_and_keep(&cache, &wanted, bytes)).await? {
            Ok(aux) => return Ok(Arc::new(aux)),
            Err(e @ ReadError::Damaged { .. }) if !refetched => {
                tracing::warn!(error = %e, "an .aux object came damaged: it is fetched again");
                inner.counters.refetched_damaged.fetch_add(1, Ordering::Relaxed);
                refetched = true;
            }
            Err(e) => return Err(e),
        }
    }
}

fn cached(cache: &BlockCache, source: &ObjectSource) -> Result<Option<Aux>, ReadError> {
    let Some(bytes) = cache.aux_get(&source.aux_key, source.aux_size_bytes) else {
        return Ok(None);
    };
    match parse(source, bytes) {
        Ok(aux) => Ok(Some(aux)),
        Err(ReadError::Damaged { .. }) => {
            cache.aux_damaged(&source.aux_key);
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

fn parse_and_keep(
    cache: &BlockCache,
    source: &ObjectSource,
    bytes: Bytes,
) -> Result<Aux, ReadError> {
    let aux = parse(source, bytes.clone())?;
    if let Err(e) = cache.aux_put(&source.aux_key, &bytes) {
        tracing::debug!(object = %source.aux_key, error = %e, "an .aux object is not cached");
    }
    Ok(aux)
}
