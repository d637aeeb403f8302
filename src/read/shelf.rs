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
use crate::manifest::aux::Aux;
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
    let cached = inner.blocking(move || {
        let bytes = cache.aux_get(&wanted.aux_key, wanted.aux_size_bytes)?;
        let parsed = Aux::parse(bytes, &wanted.aux_sha256);
        parsed.map_err(|_| cache.aux_damaged(&wanted.aux_key)).ok()
    });
    if let Some(aux) = cached.await? {
        return Ok(Arc::new(aux));
    }
    let mut refetched = false;
    loop {
        let bytes = inner.get_aux(source).await?;
        let (cache, wanted) = (Arc::clone(&inner.cache), source.clone());
        match inner.blocking(move || parse_and_keep(&cache, &wanted, bytes)).await? {
            Ok(aux) => return Ok(Arc::new(aux)),
            Err(e) if refetched => return Err(e),
            Err(e) => {
                tracing::warn!(error = %e, "an .aux object came damaged: it is fetched again");
                inner.counters.refetched_damaged.fetch_add(1, Ordering::Relaxed);
                refetched = true;
            }
        }
    }
}

fn parse_and_keep(
    cache: &crate::cache::BlockCache,
    source: &ObjectSource,
    bytes: Bytes,
) -> Result<Aux, ReadError> {
    let aux = Aux::parse(bytes.clone(), &source.aux_sha256).map_err(|e| damaged(source, e))?;
    if let Err(e) = cache.aux_put(&source.aux_key, &bytes) {
        tracing::debug!(object = %source.aux_key, error = %e, "an .aux object is not cached");
    }
    Ok(aux)
}
