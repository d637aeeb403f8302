//! A large namespace, and rollups that are right, old, damaged or missing.

use std::sync::Arc;

use tempfile::TempDir;

use super::*;
use crate::cache::{BlockCache, CacheConfig};
use crate::clock::random_u64;
use crate::manifest::{Change, ManifestLog};
use crate::read::ReadConfig;
use crate::store::names::rollup_key;
use crate::store::{Store, StoreOptions};
use crate::types::{FileSizes, Sha256, TopicId, TopicPartition};

const HOUR_NS: u64 = 3_600_000_000_000;

/// Somebody's archive in memory, and an archive mount's tree over it.
struct World {
    store: Store,
    log: ManifestLog,
    cache: TempDir,
}

fn mtime_ns(attr: &Attr) -> u64 {
    attr.mtime.0 as u64 * 1_000_000_000 + u64::from(attr.mtime.1)
}

fn id(topic: usize, partition: u32) -> ChainId {
    let tp = TopicPartition::new(&format!("topic{topic}"), partition).unwrap();
    ChainId { tp, topic_id: TopicId::none() }
}

fn segment(base_offset: i64, mtime_ns: u64) -> ArchivedSegment {
    ArchivedSegment {
        base_offset,
        end_offset: base_offset + 10,
        size_bytes: 1000,
        upload_id: UploadId::from_random(base_offset as u64),
        sha256: Sha256::of(b"log"),
        mtime_ns,
        max_timestamp_ms: 0,
        batches: 1,
        epochs: Vec::new(),
        compacted: false,
        aux_size_bytes: 10,
        aux_sha256: Sha256::of(b"aux"),
        files: FileSizes { index: Some(8), ..FileSizes::default() },
    }
}

impl World {
    fn new() -> Self {
        let url = format!("memory://tree-{:016x}", random_u64()).parse().unwrap();
        let store = Store::open(&url, StoreOptions::default()).unwrap();
        let log = ManifestLog::new(Some(store.clone()), None);
        Self { store, log, cache: tempfile::tempdir().unwrap() }
    }

    fn tree(&self) -> ArchiveTree {
        let dir = self.cache.path().join(format!("{:016x}", random_u64()));
        let cache_config = CacheConfig { budget_bytes: 1 << 20, open_objects_max: 16 };
        let cache = Arc::new(BlockCache::open(&dir, cache_config).unwrap());
        let runtime = tokio::runtime::Handle::current();
        let store = Some(self.store.clone());
        let reader = Reader::new(store.clone(), cache, ReadConfig::default(), runtime);
        ArchiveTree::new(ArchiveIndex::new(ManifestLog::new(store, None), None), reader)
    }

    /// Appends segments, one commit for each; the last has this mtime.
    async fn grow(&self, chain: &mut Chain, segments: u64, last_mtime_ns: u64) {
        for n in 0..segments {
            let base = chain.end_offset().unwrap_or(0);
            let mtime_ns = last_mtime_ns - (segments - 1 - n);
            self.log.commit(chain, vec![Change::Add(segment(base, mtime_ns))]).await.unwrap();
        }
    }

    fn requests(&self) -> u64 {
        self.store.counters().snapshot().requests()
    }

    /// What the tree shows of a partition: the time of its directory before anybody enters it, and its `.log` files.
    async fn shown(&self, tree: &ArchiveTree, chain: &ChainId) -> (u64, usize) {
        let attr = tree.lookup_partition(&chain.tp.to_string()).await.unwrap();
        let listing = tree.list_partition(attr.ino).await.unwrap();
        assert_eq!(listing.damage, None);
        let is_log = |e: &&DirEntry| e.name.to_string_lossy().ends_with(".log");
        (mtime_ns(&attr), listing.entries.iter().filter(is_log).count())
    }
}

#[tokio::test]
async fn ten_thousand_partitions_open_and_list_with_a_hundred_requests() {
    const PARTITIONS: u32 = 100;
    let world = World::new();
    let mut chains = Vec::new();
    for topic in 0..100 {
        for partition in 0..PARTITIONS {
            let mut chain = Chain::empty(id(topic, partition));
            let mtime_ns = HOUR_NS + u64::from(partition) * 1_000_000_000;
            world.grow(&mut chain, 1, mtime_ns).await;
            chains.push(Arc::new(chain));
        }
    }
    world.log.roll_up(&chains).await.unwrap();

    let before = world.requests();
    let tree = world.tree();
    let root = tree.list_root().await.unwrap();
    assert_eq!((root.entries.len(), root.damage), (10_000, None));
    for chain in &chains {
        let attr = tree.lookup_partition(&chain.id().tp.to_string()).await.unwrap();
        let last_ns = chain.segments().values().next_back().unwrap().mtime_ns;
        let again = tree.getattr(attr.ino).await.unwrap();
        assert_eq!((mtime_ns(&attr), mtime_ns(&again)), (last_ns, last_ns));
    }
    let asked = world.requests() - before;
    assert!(asked <= 100, "{asked} requests");
    // Who enters one asks for that one: its version, and the one that does not exist.
    let before = world.requests();
    assert_eq!(world.shown(&tree, chains[4711].id()).await.1, 1);
    assert_eq!(world.requests() - before, 2);
}

#[tokio::test]
async fn whatever_a_rollup_says_all_that_is_committed_is_shown() {
    let world = World::new();
    let (chain_id, later_ns) = (id(0, 0), HOUR_NS * 2);
    let mut chain = Chain::empty(chain_id.clone());
    world.grow(&mut chain, 70, HOUR_NS).await;
    assert_eq!(world.shown(&world.tree(), &chain_id).await.1, 70, "without one");
    let old = Arc::new(chain.clone());
    world.log.roll_up(std::slice::from_ref(&old)).await.unwrap();
    assert_eq!(world.shown(&world.tree(), &chain_id).await, (HOUR_NS, 70));
    let rollup = world.store.list("rollups", 100).await.unwrap().remove(0).key;
    let right = world.store.get(&rollup, 1 << 20).await.unwrap();

    world.grow(&mut chain, 5, later_ns).await;
    assert_eq!(world.shown(&world.tree(), &chain_id).await, (HOUR_NS, 75), "an old one");
    // An older view does not take a newer one's place.
    world.log.roll_up(&[Arc::new(chain.clone())]).await.unwrap();
    world.log.roll_up(&[old]).await.unwrap();
    assert_eq!(world.shown(&world.tree(), &chain_id).await, (later_ns, 75));

    for at in (0..right.len() - 1).step_by(7) {
        let mut bad = right.to_vec();
        bad[at] ^= 1;
        world.store.put_overwrite(&rollup, bad.into()).await.unwrap();
        assert_eq!(world.shown(&world.tree(), &chain_id).await.1, 75, "byte {at} flipped");
    }
    let text = String::from_utf8(right.to_vec()).unwrap();
    let newer = text.replacen("\"version\":1", "\"version\":2", 1);
    let version = newer.find("\"version\":2").unwrap();
    assert!(version < newer.find("body").unwrap(), "the frame's");
    for bad in [newer.as_str(), "", "null", "{}"] {
        world.store.put_overwrite(&rollup, bad.to_owned().into()).await.unwrap();
        assert_eq!(world.shown(&world.tree(), &chain_id).await.1, 75, "{bad:.60}");
    }
    // What cannot be believed is made anew.
    world.log.roll_up(&[Arc::new(chain.clone())]).await.unwrap();
    assert_eq!(world.shown(&world.tree(), &chain_id).await, (later_ns, 75));
}

#[tokio::test]
async fn a_rollup_that_is_ahead_of_its_chain_or_of_another_shard_is_not_believed() {
    let world = World::new();
    let chain_id = id(0, 0);
    let mut chain = Chain::empty(chain_id.clone());
    world.grow(&mut chain, 70, HOUR_NS).await;
    world.log.roll_up(&[Arc::new(chain)]).await.unwrap();
    // As after a bucket was put back to an earlier state.
    for version in [68u64, 69, 70] {
        let key = objects::ManifestName::Delta(version).key(&chain_id);
        world.store.delete(&key).await.unwrap();
    }
    let tree = world.tree();
    assert_eq!(world.shown(&tree, &chain_id).await.1, 67);

    let rollup = world.store.list("rollups", 100).await.unwrap().remove(0).key;
    let bytes = world.store.get(&rollup, 1 << 20).await.unwrap();
    let shard = objects::parse_rollup(&rollup).unwrap();
    world.store.put_overwrite(&rollup_key((shard + 1) % 64), bytes).await.unwrap();
    world.store.delete(&rollup).await.unwrap();
    let created_ns = tree.index.list().await.unwrap()[0].created_ms * 1_000_000;
    assert_eq!(world.shown(&world.tree(), &chain_id).await, (created_ns, 67));
}
