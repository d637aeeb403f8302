//! A data directory with Kafka's files in it, a store, and mounts of the one onto the other.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tempfile::TempDir;

use crate::catalog::{Catalog, LogFile, PartitionDir};
use crate::clock::{Clock, random_u64};
use crate::kafka::testing::TestBatch;
use crate::local::DataDir;
use crate::manifest::{Chain, ManifestLog};
use crate::store::{Store, StoreOptions, StoreUrl, names};
use crate::tier::archive::Done;
use crate::tier::error::TierError;
use crate::tier::{Pace, Tier, TierConfig, TierDeps};
use crate::types::{ArchivedSegment, ChainId};

pub const CLUSTER: &str = "q1Sh-9_iQ3eYnLrTrM4B0w";
pub const TOPIC_ID: &str = "ZtY-_x0123456789abcdeA";

pub struct World {
    pub tmp: TempDir,
    pub store: Store,
    pub config: TierConfig,
    pub store_id: Option<String>,
    pub pace: Option<Arc<dyn Pace>>,
    ahead_ms: Arc<AtomicU64>,
}

pub struct Mount {
    pub catalog: Arc<Catalog>,
    pub tier: Arc<Tier>,
    pub report: crate::tier::RecoverReport,
    _data: DataDir,
}

pub fn memory_store() -> Store {
    let url: StoreUrl = format!("memory://tier-{:016x}", random_u64()).parse().unwrap();
    Store::open(&url, StoreOptions::default()).unwrap()
}

/// A segment's bytes: batches of ten offsets.
pub fn log_bytes(base: i64, end: i64, body_bytes: usize) -> Vec<u8> {
    let bases = (base..end).step_by(10);
    let batch = |b: i64| TestBatch::new(b, (end - b).min(10) as i32, body_bytes).bytes();
    bases.flat_map(batch).collect()
}

impl World {
    pub fn new() -> Self {
        Self::on(memory_store())
    }

    pub fn on(store: Store) -> Self {
        let world = Self {
            tmp: tempfile::tempdir().unwrap(),
            store,
            config: TierConfig {
                retry_backoff_min_ms: 1,
                retry_backoff_max_ms: 20,
                ..TierConfig::default()
            },
            store_id: None,
            pace: None,
            ahead_ms: Arc::default(),
        };
        std::fs::create_dir_all(world.hot()).unwrap();
        world.write("meta.properties", format!("version=1\nnode.id=1\ncluster.id={CLUSTER}\n"));
        std::fs::create_dir_all(world.data()).unwrap();
        std::fs::write(world.data().join("lock"), b"").unwrap();
        world
    }

    pub fn data(&self) -> PathBuf {
        self.tmp.path().join("data")
    }

    pub fn hot(&self) -> PathBuf {
        self.data().join("hot")
    }

    pub fn spool_entries(&self) -> Vec<PathBuf> {
        let all = std::fs::read_dir(self.data().join("spool")).unwrap();
        let all = all.map(|e| e.unwrap().path());
        all.filter(|p| p.join("segment.json").exists()).collect()
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.hot().join(name), bytes).unwrap();
    }

    /// A partition that is older than the watermark checkpoint, with segments at these bases; the last
    /// is active and ends at `end`.
    pub fn partition(&self, name: &str, bases: &[i64], end: i64) {
        let dir = self.hot().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        let metadata = dir.join("partition.metadata");
        std::fs::write(&metadata, format!("version: 0\ntopic_id: {TOPIC_ID}")).unwrap();
        let past = SystemTime::now() - Duration::from_secs(3600);
        std::fs::File::open(&metadata).unwrap().set_modified(past).unwrap();
        std::fs::write(dir.join("leader-epoch-checkpoint"), "0\n1\n0 0\n").unwrap();
        for (at, base) in bases.iter().enumerate() {
            let to = bases.get(at + 1).copied().unwrap_or(end);
            let path = dir.join(format!("{base:020}.log"));
            std::fs::write(&path, log_bytes(*base, to, 500)).unwrap();
            let old = past + Duration::from_secs(at as u64);
            std::fs::File::open(&path).unwrap().set_modified(old).unwrap();
        }
    }

    /// High watermark and recovery point of partitions.
    pub fn checkpoints(&self, offsets: &[(&str, i64)]) {
        let lines: String = offsets
            .iter()
            .map(|(tp, offset)| {
                let (topic, partition) = tp.rsplit_once('-').unwrap();
                format!("{topic} {partition} {offset}\n")
            })
            .collect();
        let text = format!("0\n{}\n{lines}", offsets.len());
        self.write("replication-offset-checkpoint", &text);
        self.write("recovery-point-offset-checkpoint", &text);
    }

    pub fn pass(&self, ms: u64) {
        self.ahead_ms.fetch_add(ms, Ordering::Relaxed);
    }

    pub fn deps(&self, store: &Store, catalog: Arc<Catalog>, mounted: bool) -> TierDeps {
        let ahead = self.ahead_ms.clone();
        let now = move || SystemTime::now() + Duration::from_millis(ahead.load(Ordering::Relaxed));
        let mirror = mounted.then(|| self.data().join("manifest"));
        TierDeps {
            catalog,
            store: store.clone(),
            manifest: ManifestLog::new(Some(store.clone()), mirror),
            spool: mounted.then(|| self.data().join("spool")),
            versions: None,
            room: None,
            clock: Clock::from_fn(now),
            store_id: self.store_id.clone(),
            on_identity: None,
            fetch: Some(fetch_from(store)),
            cached_bytes: None,
            pace: self.pace.clone(),
        }
    }

    pub fn mount(&self) -> Mount {
        self.mount_on(&self.store)
    }

    pub fn mount_on(&self, store: &Store) -> Mount {
        let data = DataDir::open(&self.data()).unwrap();
        let catalog = Arc::new(Catalog::open(&data.hot(), &data.overlay()).unwrap());
        let tier = Tier::new(self.config.clone(), self.deps(store, catalog.clone(), true));
        let report = tier.recover();
        Mount { catalog, tier, report, _data: data }
    }

    /// The chain as a fresh reader finds it in the store.
    pub async fn archived(&self, tp: &str) -> Chain {
        ManifestLog::new(Some(self.store.clone()), None).load(&chain_id(tp)).await.unwrap()
    }

    pub async fn object(&self, tp: &str, segment: &ArchivedSegment) -> Vec<u8> {
        let key = names::log_key(&chain_id(tp), segment.base_offset, &segment.upload_id);
        self.store.get(&key, 1 << 30).await.unwrap().to_vec()
    }

    /// Each archived segment's range, and that its object has its bytes and checksum.
    pub async fn check_archive(&self, tp: &str) -> Vec<(i64, i64)> {
        let chain = self.archived(tp).await;
        let mut ranges = Vec::new();
        for segment in chain.segments().values() {
            let bytes = self.object(tp, segment).await;
            assert_eq!(crate::types::Sha256::of(&bytes), segment.sha256);
            ranges.push((segment.base_offset, segment.end_offset));
        }
        ranges
    }

    /// All `.log` objects in the store.
    pub async fn log_objects(&self) -> usize {
        let all = self.store.list("topics", 10_000).await.unwrap();
        all.iter().filter(|o| o.key.as_str().ends_with(".log")).count()
    }
}

fn fetch_from(store: &Store) -> crate::tier::Fetch {
    let store = store.clone();
    Arc::new(move |stub, extent, at, len| {
        let store = store.clone();
        Box::pin(async move {
            let key = names::log_key(&stub.chain(), extent.base_offset, &extent.upload_id);
            let range = at..at + len as u64;
            store.get_range(&key, range).await.map_err(std::io::Error::other)
        })
    })
}

pub fn chain_id(tp: &str) -> ChainId {
    ChainId { tp: tp.parse().unwrap(), topic_id: TOPIC_ID.parse().unwrap() }
}

pub fn name(base: i64) -> String {
    format!("{base:020}.log")
}

pub fn stub_path(dir: &Path, base: i64) -> PathBuf {
    dir.join(format!("{base:020}.log.everlog"))
}

impl Mount {
    pub fn dir(&self, name: &str) -> Arc<PartitionDir> {
        self.catalog.dir(name).unwrap()
    }

    pub fn log(&self, dir: &str, base: i64) -> Arc<LogFile> {
        self.dir(dir).log(&name(base)).unwrap()
    }

    /// Carries out every job there is, spool first, as the engine would. Stops at the first error.
    pub async fn drain(&self) -> Result<Vec<Done>, TierError> {
        let mut ends = Vec::new();
        for chain in self.tier.spool.chains_wanting() {
            while let Some(job) = self.tier.next_spooled(&chain) {
                let done = self.tier.archive(&job).await?;
                self.tier.settle_spooled(&job, &done);
                ends.push(done);
            }
        }
        for dir in self.catalog.dirs() {
            let chain = dir.chain().unwrap();
            while let Some(job) = self.tier.next_job(&dir, &chain) {
                let done = self.tier.archive(&job).await?;
                let again = matches!(done, Done::Gone | Done::NotCommitted);
                ends.push(done);
                if again {
                    break;
                }
            }
        }
        self.tier.spool.sweep().unwrap();
        Ok(ends)
    }

    /// What Kafka's retention does to a segment: rename, and later unlink.
    pub fn retire(&self, dir: &str, base: i64) {
        let dir = self.dir(dir);
        let (from, to) = (name(base), format!("{}.deleted", name(base)));
        self.tier.note_rename(&dir, &from, &to);
        dir.rename_log(&from, &to).unwrap();
        self.tier.unlink(&dir, &to).unwrap();
    }

    /// Asks the discard command about everything that is due.
    pub async fn ask_all(&self) {
        let now_ms = self.tier.clock.now_ms();
        for entry in self.tier.spool.take_to_ask(now_ms, 100) {
            let agreed = self.tier.ask_listener(&entry).await;
            self.tier.spool.note_answer(&entry.id, agreed, now_ms);
        }
        self.tier.spool.sweep().unwrap();
    }
}

pub fn age(path: &Path) -> SystemTime {
    std::fs::metadata(path).unwrap().modified().unwrap_or(UNIX_EPOCH)
}
