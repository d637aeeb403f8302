//! Rollups: what many chains come to, in few objects (`docs/FORMATS.md`, 2.6).
//!
//! Who looks at a whole namespace needs not open each chain for that. Derived, and never truth: what cannot be believed, is
//! missing or is old costs requests. So nothing here fails a caller for what a rollup says, only for a store that does not
//! answer.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use futures::stream::{StreamExt as _, TryStreamExt as _};
use serde::{Deserialize, Serialize};

use crate::store::{Store, StoreErrorKind, names};
use crate::types::{ChainId, Sha256, TopicId, TopicPartition};

use super::chain::Chain;
use super::documents::Document;
use super::error::ManifestError;

/// Objects that all chains are spread over: with a listing of 10,000 chains fewer than 100 requests.
const SHARDS: u8 = 64;
/// Objects fetched at the same time.
const FETCHES_MAX: usize = 8;
/// Names below the prefix, in case something else was put there.
const NAMES_MAX: usize = 10_000;

/// What one version of a chain comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// The version.
    pub version: u64,
    /// The newest checkpoint at that time.
    pub checkpoint: Option<u64>,
    /// Archived segments.
    pub segments: u64,
    /// Bytes of their `.log`.
    pub size_bytes: u64,
    /// The chain's first offset; `None` when it is empty.
    pub start_offset: Option<i64>,
    /// One past its last.
    pub end_offset: Option<i64>,
    /// The last segment's mtime, nanoseconds since the epoch; 0 without one.
    pub last_mtime_ns: u64,
}

/// What the chains of one shard come to: derived, never truth.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Rollup {
    shard: u8,
    chains: Vec<RollupEntry>,
}

/// One chain of a rollup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct RollupEntry {
    tp: TopicPartition,
    topic_id: TopicId,
    #[serde(flatten)]
    summary: Summary,
}

impl Document for Rollup {
    const KIND: &'static str = "rollup";
    const BYTES_MAX: u64 = 8 * 1024 * 1024;
}

impl Summary {
    /// Of a chain as it is known.
    #[must_use]
    pub fn of(chain: &Chain) -> Self {
        let segments = || chain.segments().values();
        Self {
            version: chain.version(),
            checkpoint: chain.checkpoint.as_ref().map(|c| c.version),
            segments: segments().count() as u64,
            size_bytes: segments().map(|s| s.size_bytes).sum(),
            start_offset: chain.start_offset(),
            end_offset: chain.end_offset(),
            last_mtime_ns: segments().next_back().map_or(0, |s| s.mtime_ns),
        }
    }
}

fn shard_of(id: &ChainId) -> u8 {
    Sha256::of(names::chain_dir(id).as_bytes()).0[0] % SHARDS
}

/// One rollup; `None` when there is none that can be believed.
async fn read(store: &Store, shard: u8) -> Result<Option<Rollup>, ManifestError> {
    let key = names::rollup_key(shard);
    let decoded = match store.get(&key, Rollup::BYTES_MAX).await {
        Ok(bytes) => Rollup::decode(&key, &bytes),
        Err(e) if e.kind == StoreErrorKind::NotFound => return Ok(None),
        Err(e) if e.kind == StoreErrorKind::TooLarge => {
            Err(ManifestError::damaged(&key, e.message))
        }
        Err(e) => return Err(e.into()),
    };
    let found = decoded.and_then(|rollup| {
        let misplaced = rollup.shard != shard;
        let stranger = || ManifestError::damaged(&key, format!("it is of shard {}", rollup.shard));
        if misplaced { Err(stranger()) } else { Ok(rollup) }
    });
    Ok(found.inspect_err(|error| tracing::warn!(%error, "a rollup is ignored")).ok())
}

/// All that can be believed.
pub(super) async fn read_all(store: &Store) -> Result<HashMap<ChainId, Summary>, ManifestError> {
    let listed = store.list(names::ROLLUPS_PREFIX, NAMES_MAX).await?;
    let shards = listed.iter().filter_map(|o| names::parse_rollup(&o.key));
    let rollups: Vec<Option<Rollup>> = futures::stream::iter(shards.filter(|s| *s < SHARDS))
        .map(|shard| futures::FutureExt::boxed(read(store, shard)))
        .buffered(FETCHES_MAX)
        .boxed()
        .try_collect()
        .await?;
    let entries = rollups.into_iter().flatten().flat_map(|r| r.chains);
    Ok(entries.map(|e| (ChainId { tp: e.tp, topic_id: e.topic_id }, e.summary)).collect())
}

/// Brings the rollups up to these chains.
pub(super) async fn write(store: &Store, chains: &[Arc<Chain>]) -> Result<(), ManifestError> {
    let mut shards: BTreeMap<u8, Vec<&Arc<Chain>>> = BTreeMap::new();
    for chain in chains.iter().filter(|c| c.version() > 0) {
        shards.entry(shard_of(chain.id())).or_default().push(chain);
    }
    for (shard, chains) in shards {
        let before = read(store, shard).await?;
        let after = merged(shard, before.as_ref(), &chains);
        if before.as_ref() == Some(&after) {
            continue;
        }
        let key = names::rollup_key(shard);
        let bytes = after.encode().map_err(|error| ManifestError::unreadable(&key, &error))?;
        if bytes.len() as u64 > Rollup::BYTES_MAX {
            // Nobody would read it.
            tracing::warn!(%key, chains = after.chains.len(), "a rollup would be too long and stays as it is");
            continue;
        }
        store.put_overwrite(&key, bytes).await?;
    }
    Ok(())
}

/// Of two entries of a chain the one of the higher version stays.
fn merged(shard: u8, before: Option<&Rollup>, chains: &[&Arc<Chain>]) -> Rollup {
    let known = before.into_iter().flat_map(|r| r.chains.iter().cloned());
    let mut entries: BTreeMap<ChainId, RollupEntry> =
        known.map(|e| (ChainId { tp: e.tp.clone(), topic_id: e.topic_id.clone() }, e)).collect();
    for chain in chains {
        let id = chain.id();
        let summary = Summary::of(chain);
        if entries.get(id).is_none_or(|known| known.summary.version < summary.version) {
            let (tp, topic_id) = (id.tp.clone(), id.topic_id.clone());
            entries.insert(id.clone(), RollupEntry { tp, topic_id, summary });
        }
    }
    Rollup { shard, chains: entries.into_values().collect() }
}
