//! The reader against real cache files and a real client, over a store that can be counted, damaged,
//! stopped and taken away.

mod faults;

use std::collections::VecDeque;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::AtomicU64;

use parking_lot::Mutex;
use tempfile::TempDir;

use super::*;
use crate::cache::CacheConfig;
use crate::manifest::AuxBuilder;
use crate::store::{Fault, FaultHook, Op, StoreErrorKind, StoreOptions};
use crate::types::{ArchivedSegment, FileSizes, UploadId};

const BLOCK: usize = BLOCK_BYTES as usize;
const MIB: u64 = 1024 * 1024;
const NO_HINT: ReadHint = ReadHint { broker: false };

fn content(seed: u64, len: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(next).collect::<Vec<u8>>().into()
}

/// What happens to reads from the store.
struct Faults {
    /// To the next requests, one each.
    script: VecDeque<Fault>,
    /// After that.
    then: Fault,
    /// If set, only requests for this object are touched.
    only: Option<ObjectKey>,
}

impl Faults {
    fn next(&mut self, key: &ObjectKey) -> Fault {
        if self.only.as_ref().is_some_and(|only| only != key) {
            return Fault::Pass;
        }
        self.script.pop_front().unwrap_or(self.then)
    }
}

struct Rig {
    dir: TempDir,
    store: Store,
    faults: Arc<Mutex<Faults>>,
    log_gets: Arc<AtomicU64>,
    aux_gets: Arc<AtomicU64>,
    config: ReadConfig,
    budget_bytes: u64,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("memory://{}", dir.path().file_name().unwrap().to_str().unwrap());
        let plain = Store::open(&url.parse().unwrap(), StoreOptions::default()).unwrap();
        let faults = Faults { script: VecDeque::new(), then: Fault::Pass, only: None };
        let faults = Arc::new(Mutex::new(faults));
        let (log_gets, aux_gets) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (now, logs, auxes) =
            (Arc::clone(&faults), Arc::clone(&log_gets), Arc::clone(&aux_gets));
        let hook: FaultHook = Arc::new(move |op, key: &ObjectKey| {
            if op != Op::Get {
                return Fault::Pass;
            }
            let counter = if key.as_str().ends_with(".log") { &logs } else { &auxes };
            counter.fetch_add(1, Ordering::SeqCst);
            now.lock().next(key)
        });
        let store = plain.with_faults(hook);
        let config = ReadConfig { deadline_ms: 2_000, ..ReadConfig::default() };
        Self { dir, store, faults, log_gets, aux_gets, config, budget_bytes: 256 * MIB }
    }

    fn reader(&self) -> Reader {
        let config = CacheConfig { budget_bytes: self.budget_bytes, open_objects_max: 8 };
        let cache = Arc::new(BlockCache::open(self.dir.path(), config).unwrap());
        Reader::new(Some(self.store.clone()), cache, self.config, Handle::current())
    }

    async fn archive(&self, number: u64, bytes: &Bytes) -> ObjectSource {
        let (log_key, aux_key) =
            (ObjectKey(format!("t/{number}.log")), ObjectKey(format!("t/{number}.aux")));
        let segment = ArchivedSegment {
            base_offset: 0,
            end_offset: 1,
            size_bytes: bytes.len() as u64,
            upload_id: UploadId::from_random(number),
            sha256: Sha256::of(bytes),
            mtime_ns: 0,
            max_timestamp_ms: -1,
            batches: 1,
            epochs: Vec::new(),
            compacted: false,
            aux_size_bytes: 0,
            aux_sha256: Sha256([0; 32]),
            files: FileSizes::default(),
        };
        let builder = AuxBuilder {
            index: Some(Bytes::from_static(b"index")),
            timeindex: None,
            txnindex: None,
            snapshot: None,
            epochs: None,
            block_crcs: bytes.chunks(BLOCK).map(crc32c::crc32c).collect(),
            content_blocks: Vec::new(),
            segment,
        };
        let (aux, segment) = builder.build().unwrap();
        self.store.put_overwrite(&log_key, bytes.clone()).await.unwrap();
        self.store.put_overwrite(&aux_key, aux).await.unwrap();
        ObjectSource {
            log_key,
            size_bytes: segment.size_bytes,
            aux_key,
            aux_size_bytes: segment.aux_size_bytes,
            aux_sha256: segment.aux_sha256,
        }
    }

    fn set(&self, fault: Fault) {
        self.faults.lock().then = fault;
    }

    /// Requests for logs and for `.aux` objects so far.
    fn gets(&self) -> (u64, u64) {
        (self.log_gets.load(Ordering::SeqCst), self.aux_gets.load(Ordering::SeqCst))
    }

    /// Flips a byte in every file of the cache with this suffix, at this place.
    fn flip_in_cache(&self, suffix: &str, at: u64) {
        let mut flipped = 0;
        for shard in std::fs::read_dir(self.dir.path()).unwrap().map(Result::unwrap) {
            let Ok(files) = std::fs::read_dir(shard.path()) else { continue };
            for file in files.map(|f| f.unwrap().path()) {
                if file.extension().is_some_and(|e| e == suffix) {
                    let file = std::fs::OpenOptions::new().read(true).write(true).open(file);
                    let (file, mut byte) = (file.unwrap(), [0]);
                    file.read_exact_at(&mut byte, at).unwrap();
                    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
                    flipped += 1;
                }
            }
        }
        assert!(flipped > 0, "nothing was damaged");
    }
}

fn cached(
    reader: &Reader,
    source: &ObjectSource,
    streams: &ReadStreams,
    offset: u64,
    len: usize,
) -> Option<Bytes> {
    let mut out = vec![0; len];
    let n = reader.try_cached_into(source, streams, offset, &mut out)?;
    out.truncate(n);
    Some(out.into())
}

async fn read(
    reader: &Reader,
    source: &ObjectSource,
    offset: u64,
    len: usize,
) -> Result<Bytes, ReadError> {
    reader.read(source, &ReadStreams::default(), offset, len, NO_HINT).await
}

fn count(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

async fn until(what: impl Fn() -> bool) {
    for _ in 0..6_000 {
        if what() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("what is waited for does not happen");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_gives_exactly_what_there_is_up_to_the_end() {
    let rig = Rig::new();
    let (reader, bytes) = (rig.reader(), content(1, 300_001));
    let source = rig.archive(1, &bytes).await;
    for (offset, len) in [(0, 17), (65_535, 2), (300_000, 10), (0, 400_000), (299_999, 2)] {
        let end = (offset + len).min(bytes.len());
        let got = read(&reader, &source, offset as u64, len).await.unwrap();
        assert_eq!(got, bytes[offset..end], "{offset} {len}");
    }
    for (offset, len) in [(300_001, 5), (u64::MAX, 5), (7, 0)] {
        assert!(read(&reader, &source, offset, len).await.unwrap().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_readers_of_one_block_make_one_request() {
    let rig = Rig::new();
    let (reader, bytes) = (rig.reader(), content(2, 40 * BLOCK));
    let source = rig.archive(1, &bytes).await;
    let readers = (0..50u64).map(|i| {
        let (reader, source) = (reader.clone(), source.clone());
        tokio::spawn(async move { (i, read(&reader, &source, 20 * BLOCK_BYTES + i, 100).await) })
    });
    for done in futures::future::join_all(readers).await {
        let (i, got) = done.unwrap();
        let start = 20 * BLOCK + i as usize;
        assert_eq!(got.unwrap(), bytes[start..start + 100]);
    }
    assert_eq!(rig.gets(), (1, 1));
    assert_eq!(count(&reader.counters().fetched_bytes), BLOCK_BYTES + source.aux_size_bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_reads_what_was_cached_without_a_request() {
    let rig = Rig::new();
    let bytes = content(3, 20 * BLOCK + 5);
    let source = rig.archive(1, &bytes).await;
    assert_eq!(read(&rig.reader(), &source, 0, bytes.len()).await.unwrap(), bytes);
    let before = rig.gets();
    let reader = rig.reader();
    assert_eq!(read(&reader, &source, 0, bytes.len()).await.unwrap(), bytes);
    let streams = ReadStreams::default();
    let cached = cached(&reader, &source, &streams, 70_000, 50).unwrap();
    assert_eq!(cached, bytes[70_000..70_050]);
    assert_eq!(rig.gets(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_complete_answers_come_from_the_fast_path() {
    let rig = Rig::new();
    let (reader, bytes) = (rig.reader(), content(4, 20 * BLOCK));
    let source = rig.archive(1, &bytes).await;
    let streams = ReadStreams::default();
    assert_eq!(cached(&reader, &source, &streams, 0, 10), None);
    read(&reader, &source, 10 * BLOCK_BYTES, 10).await.unwrap();
    let at = 10 * BLOCK_BYTES;
    assert_eq!(cached(&reader, &source, &streams, at, 10).unwrap(), bytes[at as usize..][..10]);
    assert_eq!(cached(&reader, &source, &streams, at, 3 * BLOCK), None);
    assert_eq!(cached(&reader, &source, &streams, 20 * BLOCK_BYTES, 9), Some(Bytes::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jumping_reader_fetches_its_blocks_only() {
    let rig = Rig::new();
    let (reader, bytes) = (rig.reader(), content(5, 64 * BLOCK));
    let source = rig.archive(1, &bytes).await;
    for block in [50u64, 10, 33] {
        read(&reader, &source, block * BLOCK_BYTES + 9, 10).await.unwrap();
    }
    assert_eq!(count(&reader.counters().fetched_bytes), 3 * BLOCK_BYTES + source.aux_size_bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sequential_reader_is_read_ahead_of_and_no_byte_comes_twice() {
    let rig = Rig::new();
    let (reader, bytes) = (rig.reader(), content(6, (24 << 20) + 77));
    let source = rig.archive(1, &bytes).await;
    let streams = ReadStreams::default();
    let mut at = 0;
    while at < bytes.len() {
        let cached = cached(&reader, &source, &streams, at as u64, 128 * 1024);
        let got = match cached {
            Some(got) => got,
            None => reader.read(&source, &streams, at as u64, 128 * 1024, NO_HINT).await.unwrap(),
        };
        assert_eq!(got, bytes[at..bytes.len().min(at + 128 * 1024)]);
        at += got.len();
    }
    until(|| reader.inner.prefetches.load(Ordering::Relaxed) == 0).await;
    let counters = reader.counters();
    assert_eq!(count(&counters.fetched_bytes), source.size_bytes + source.aux_size_bytes);
    assert!(count(&counters.prefetch_fetches) > 0);
    let requests = rig.gets().0;
    assert!(requests < 60, "{requests} requests for 24 MiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_readers_over_a_tiny_cache_get_the_right_bytes() {
    let mut rig = Rig::new();
    rig.budget_bytes = 5 * MIB;
    let reader = rig.reader();
    let mut objects = Vec::new();
    for number in 0..4 {
        let bytes = content(number + 10, (6 << 20) + 4321);
        objects.push((rig.archive(number, &bytes).await, bytes));
    }
    let objects = Arc::new(objects);
    let workers = (0..8u64).map(|worker| {
        let (reader, objects) = (reader.clone(), Arc::clone(&objects));
        tokio::spawn(async move {
            let streams = ReadStreams::default();
            for round in 0..60u64 {
                let pick = (worker * 7919 + 1) * (round + 3) * 104_729;
                let (source, bytes) = &objects[(pick % 4) as usize];
                let offset = (pick % bytes.len() as u64) as usize;
                let len = (pick % 700_000) as usize;
                let hint = ReadHint { broker: pick % 2 == 0 };
                let got = reader.read(source, &streams, offset as u64, len, hint).await.unwrap();
                assert_eq!(got, bytes[offset..bytes.len().min(offset + len)]);
            }
        })
    });
    for done in futures::future::join_all(workers).await {
        done.unwrap();
    }
    let stats = reader.cache().stats();
    assert!(stats.evicted_bytes > 0, "{stats:?}");
    assert_eq!(stats.damaged_blocks, 0);
    assert!(stats.allocated_bytes <= 5 * MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_can_keep_nothing_is_gone_around() {
    let mut rig = Rig::new();
    rig.budget_bytes = 1000;
    let (reader, bytes) = (rig.reader(), content(7, 10 * BLOCK));
    let source = rig.archive(1, &bytes).await;
    assert_eq!(read(&reader, &source, 0, bytes.len()).await.unwrap(), bytes);
    assert_eq!(read(&reader, &source, 70_000, 9).await.unwrap(), bytes[70_000..70_009]);
    assert!(count(&reader.counters().cache_bypasses) > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aux_is_fetched_once_and_then_comes_from_memory_or_disk() {
    let rig = Rig::new();
    let source = rig.archive(1, &content(17, 1000)).await;
    let reader = rig.reader();
    let all = futures::future::join_all((0..20).map(|_| reader.aux(&source))).await;
    for aux in all {
        assert_eq!(aux.unwrap().index.as_deref(), Some(&b"index"[..]));
    }
    drop(reader);
    rig.reader().aux(&source).await.unwrap();
    assert_eq!(rig.gets(), (0, 1));
}
