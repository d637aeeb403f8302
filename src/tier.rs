//! The tiering: a segment's way from the log dir into the archive, off local disk, and out of Kafka's sight.
//!
//! *Decide, then do*: `plan`, `verdict`, `evict` and `fate` hold pure functions of a snapshot; the other
//! files carry them out. The invariant (laws 3 to 7): bytes are released only after a committed manifest
//! contains them, that commit is durable on local disk, and a comparison in this process has shown that
//! the archived bytes are these bytes. Nothing here removes an archived byte, and nothing here makes a
//! broker's request wait for the store: what the filesystem calls (`unlink`, `note_rename`) touches
//! local disk alone. It does not know how archived bytes are read back; what needs them gets a function.

mod archive;
mod backoff;
mod chains;
mod cluster;
mod discard;
mod engine;
mod error;
mod evict;
mod evictor;
mod fate;
mod holds;
mod hydrate;
mod identity;
mod jobs;
mod listener;
mod once;
mod overlap;
mod pace;
mod plan;
mod prepare;
mod recover;
mod rollups;
mod sizes;
mod small_files;
mod space;
mod spool;
mod status;
mod sums;
#[cfg(test)]
mod tests;
mod upload;
mod verdict;
mod versions;
mod witness;

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures::future::BoxFuture;
use globset::GlobSet;
use parking_lot::Mutex;
use tokio::sync::Notify;

pub use error::TierError;
pub use once::{OnceProgress, OnceReport};
pub use pace::Pace;
pub use recover::RecoverReport;
pub use status::{CountersStatus, Quarantined, SpoolStatus, TierStatus, TopicStatus, Totals};
pub use versions::KeptCheckpoints;

use crate::catalog::Catalog;
use crate::clock::Clock;
use crate::kafka::names;
use crate::local::{Extent, Room, Stub};
use crate::manifest::{Chain, ManifestLog};
use crate::store::{RateLimiter, Store, StoreIdentity};
use crate::telemetry::{Counter, ErrorNote, LastError};
use crate::types::{ChainId, ObjectKey};

/// Fetches `len` archived bytes at a position of the extent's object; given by whoever can read them.
pub type Fetch = Arc<
    dyn Fn(Arc<Stub>, Extent, u64, usize) -> BoxFuture<'static, io::Result<Bytes>> + Send + Sync,
>;
/// How many bytes of an archived `.log` lie in the block cache.
pub type CachedBytes = Arc<dyn Fn(&ObjectKey) -> u64 + Send + Sync>;
/// Told once the store has shown or been given its identity; keeps it in the data directory.
pub type OnIdentity = Arc<dyn Fn(&StoreIdentity) + Send + Sync>;

/// What the operator decides.
#[derive(Clone, Debug)]
pub struct TierConfig {
    /// What logs in `hot/` may occupy on disk; `None`: no limit.
    pub hot_bytes: Option<u64>,
    /// Age since the last write after which a segment is evicted, milliseconds; `None`: never.
    pub hot_age_ms: Option<u64>,
    /// Segments uploaded at the same time.
    pub uploads_max: usize,
    /// Limit of all uploads together.
    pub upload_bytes_per_s: Option<u64>,
    /// Topics to archive; empty: all.
    pub include: GlobSet,
    /// Topics to leave alone; stronger than `include`.
    pub exclude: GlobSet,
    /// Shell command that has to agree to each discard.
    pub on_discard: Option<String>,
    /// Directory of the metadata log of this broker's cluster; `None`: where it is in the log dir, if it is there.
    pub metadata_log: Option<PathBuf>,
    /// How long that command may take, milliseconds.
    pub on_discard_timeout_ms: u64,
    /// First pause after a failure, milliseconds.
    pub retry_backoff_min_ms: u64,
    /// Longest pause after failures, milliseconds.
    pub retry_backoff_max_ms: u64,
    /// A stock log dir, archived from the side: nothing is evicted, spooled or changed there.
    pub stock: bool,
    /// Evict compacted partitions too.
    pub evict_compacted: bool,
    /// Let the kernel forget the pages of a local file once it is archived: for a mount whose own page cache
    /// has them, too.
    pub forget_archived_pages: bool,
}

impl Default for TierConfig {
    fn default() -> Self {
        Self {
            hot_bytes: None,
            hot_age_ms: None,
            uploads_max: 4,
            upload_bytes_per_s: None,
            include: GlobSet::empty(),
            exclude: GlobSet::empty(),
            on_discard: None,
            metadata_log: None,
            on_discard_timeout_ms: 60_000,
            retry_backoff_min_ms: 500,
            retry_backoff_max_ms: 30_000,
            stock: false,
            evict_compacted: false,
            forget_archived_pages: false,
        }
    }
}

impl TierConfig {
    /// Whether the patterns choose this topic.
    #[must_use]
    pub fn includes(&self, topic: &str) -> bool {
        (self.include.is_empty() || self.include.is_match(topic)) && !self.exclude.is_match(topic)
    }
}

/// What the tiering works with.
pub struct TierDeps {
    /// The log dir.
    pub catalog: Arc<Catalog>,
    /// May be out of reach for as long as it likes.
    pub store: Store,
    /// Commits, and mirrors them on local disk.
    pub manifest: ManifestLog,
    /// `spool/` of the data directory; `None` with a stock log dir.
    pub spool: Option<PathBuf>,
    /// `checkpoints/` of the data directory; `None`: no versions of Kafka's checkpoint files are kept.
    pub versions: Option<PathBuf>,
    /// The data directory's disk; `None`: its space is nobody's concern.
    pub room: Option<Arc<Room>>,
    /// The time.
    pub clock: Clock,
    /// The store's id as the data directory remembers it: another store at the same URL is refused.
    pub store_id: Option<String>,
    /// Told when the store's identity is known.
    pub on_identity: Option<OnIdentity>,
    /// Reads archived bytes back for files that were written to while cold.
    pub fetch: Option<Fetch>,
    /// For the status.
    pub cached_bytes: Option<CachedBytes>,
    /// Who knows how busy the machine is and shares its cores out; `None`: archiving never stands back.
    pub pace: Option<Arc<dyn Pace>>,
}

/// Numbers since the start of this process.
#[derive(Debug, Default)]
pub struct TierCounters {
    /// Segments uploaded and committed.
    pub archived_segments: Counter,
    /// Their bytes.
    pub archived_bytes: Counter,
    /// Segments that the archive already held with equal bytes.
    pub adopted_segments: Counter,
    /// Segments whose local bytes were released.
    pub evicted_segments: Counter,
    /// Their bytes.
    pub evicted_bytes: Counter,
    /// Attempts that failed and are made again.
    pub failed_attempts: Counter,
    /// Stubs that could not be believed and were made anew from the local manifest.
    pub repaired_stubs: Counter,
    /// Discarded segments that the archive still wanted and that could not be kept.
    pub lost_discards: Counter,
    /// Runs of the discard command.
    pub listener_runs: Counter,
}

/// From a segment's roll, as far as this process saw it, to its commit.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RollTimes {
    pub count: u64,
    pub sum_ms: u64,
    pub max_ms: u64,
}

/// The tiering of one log dir. See the module's text.
pub struct Tier {
    config: TierConfig,
    catalog: Arc<Catalog>,
    store: Store,
    clock: Clock,
    rate: RateLimiter,
    fetch: Option<Fetch>,
    cached_bytes: Option<CachedBytes>,
    pace: Option<Arc<dyn Pace>>,
    identity: identity::Identity,
    chains: chains::Chains,
    /// Chains whose last attempt failed.
    backoffs: backoff::Backoffs,
    /// Chains whose log dir is in motion: looked at again in a moment.
    delays: backoff::Backoffs,
    holds: holds::Holds,
    cluster: Arc<cluster::ClusterLog>,
    fates: Mutex<HashMap<u64, fate::FateNote>>,
    spool: spool::Spool,
    versions: versions::Versions,
    room: Option<Arc<Room>>,
    sizes: sizes::Sizes,
    /// An eviction left more on local disk than there is to be: archiving is urgent.
    crowded: AtomicBool,
    /// When each closed segment was first seen closed, by file, milliseconds; 0: before this process.
    rolled: Mutex<HashMap<u64, u64>>,
    roll_times: Mutex<RollTimes>,
    sums: Mutex<sums::Sums>,
    status_cache: Mutex<Option<(u64, Arc<TierStatus>)>>,
    counters: TierCounters,
    last_error: LastError,
    wake: Notify,
    recovered: AtomicBool,
    stopping: Arc<AtomicBool>,
}

impl std::fmt::Debug for Tier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tier").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Tier {
    /// Builds it; reads and writes nothing. Follow with [`Self::recover`], before anything is served.
    #[must_use]
    pub fn new(config: TierConfig, deps: TierDeps) -> Arc<Self> {
        let rate = RateLimiter::new(config.upload_bytes_per_s);
        let in_log_dir = || deps.catalog.hot().join(names::METADATA_LOG);
        let metadata_log = config.metadata_log.clone().unwrap_or_else(in_log_dir);
        Arc::new(Self {
            backoffs: backoff::Backoffs::new(
                config.retry_backoff_min_ms,
                config.retry_backoff_max_ms,
            ),
            delays: backoff::Backoffs::new(
                config.retry_backoff_min_ms,
                config.retry_backoff_max_ms,
            ),
            identity: identity::Identity::new(deps.store_id, deps.on_identity),
            chains: chains::Chains::new(deps.manifest),
            spool: spool::Spool::new(deps.spool),
            versions: versions::Versions::new(deps.versions),
            room: deps.room,
            cluster: Arc::new(cluster::ClusterLog::new(metadata_log)),
            config,
            catalog: deps.catalog,
            store: deps.store,
            clock: deps.clock,
            rate,
            fetch: deps.fetch,
            cached_bytes: deps.cached_bytes,
            pace: deps.pace,
            holds: holds::Holds::default(),
            fates: Mutex::default(),
            sizes: sizes::Sizes::default(),
            crowded: AtomicBool::new(false),
            rolled: Mutex::default(),
            roll_times: Mutex::default(),
            sums: Mutex::default(),
            status_cache: Mutex::default(),
            counters: TierCounters::default(),
            last_error: LastError::default(),
            wake: Notify::new(),
            recovered: AtomicBool::new(false),
            stopping: Arc::default(),
        })
    }

    /// What is archived of one chain, as this process knows it; `None`: nothing known.
    #[must_use]
    pub fn chain(&self, id: &ChainId) -> Option<Arc<Chain>> {
        self.chains.view(id)
    }

    /// All chains that this process knows.
    #[must_use]
    pub fn chains(&self) -> Vec<ChainId> {
        self.chains.ids()
    }

    /// Numbers since the start.
    #[must_use]
    pub fn counters(&self) -> &TierCounters {
        &self.counters
    }

    /// The most recent failure that still stands.
    #[must_use]
    pub fn last_error(&self) -> Option<ErrorNote> {
        self.last_error.get()
    }

    /// Look again now instead of at the next tick.
    pub fn nudge(&self) {
        self.wake.notify_one();
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}
