//! The cache against real files: damage, restarts, small budgets, many threads.

#![expect(clippy::single_range_in_vec_init, reason = "lists of ranges are meant")]

mod wants;

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;

use super::scan::{AUX, DATA, MAP, path};
use super::*;
use crate::types::BLOCK_BYTES;

const BLOCK: usize = BLOCK_BYTES as usize;
const MIB: u64 = 1024 * 1024;
const AUX_SHA: Sha256 = Sha256([9; 32]);

/// Bytes that repeat nowhere, so that a block in the wrong place is seen.
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

fn crcs(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks(BLOCK).map(crc32c::crc32c).collect()
}

fn key(number: u64) -> ObjectKey {
    ObjectKey(format!("topics/t-0/x/{number:020}.0.log"))
}

fn limits() -> CacheLimits {
    CacheLimits { free_bytes: Some(0), correlated_ms: 0, ..CacheLimits::default() }
}

fn open(dir: &Path, budget_bytes: u64) -> BlockCache {
    open_with(dir, budget_bytes, limits())
}

fn open_with(dir: &Path, budget_bytes: u64, limits: CacheLimits) -> BlockCache {
    let config = CacheConfig { budget_bytes, open_objects_max: 4 };
    BlockCache::open_with(dir, config, limits).unwrap()
}

/// Trimming is another thread's work: asks until there is an answer.
fn until<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    for _ in 0..120_000 {
        if let Some(value) = done() {
            return value;
        }
        thread::sleep(Duration::from_millis(1));
    }
    panic!("waited too long for {what}");
}

/// Fills whole blocks of an object as soon as there is room for them.
fn fill(cache: &BlockCache, number: u64, all: &[u8], blocks: std::ops::Range<u64>) {
    let end = (blocks.end as usize * BLOCK).min(all.len());
    let data = &all[blocks.start as usize * BLOCK..end];
    until("room", || {
        let object = found(cache, number, all.len() as u64);
        let object = object.unwrap_or_else(|| made(cache, number, all));
        match object.fill(blocks.start, data) {
            Ok(()) => Some(()),
            Err(FillError::Bypass { .. }) => None,
            Err(e) => panic!("{e}"),
        }
    });
}

fn made(cache: &BlockCache, number: u64, bytes: &[u8]) -> Arc<CachedObject> {
    cache.create(&key(number), bytes.len() as u64, &AUX_SHA, &crcs(bytes)).unwrap()
}

fn found(cache: &BlockCache, number: u64, size_bytes: u64) -> Option<Arc<CachedObject>> {
    cache.object(&key(number), size_bytes, &AUX_SHA)
}

/// A cache with one completely filled object of `len` bytes.
fn filled(len: usize) -> (TempDir, BlockCache, Bytes) {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), 64 * MIB);
    let bytes = content(1, len);
    made(&cache, 1, &bytes).fill(0, &bytes).unwrap();
    (dir, cache, bytes)
}

fn file(dir: &TempDir, suffix: &str) -> std::path::PathBuf {
    path(dir.path(), Name::of(&key(1)), suffix)
}

fn flip(path: &Path, at: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

fn space_on_disk(dir: &Path) -> u64 {
    // Some may go meanwhile.
    let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => space_on_disk(&entry.path()),
        Ok(meta) => scan::allocated_bytes(&meta),
        Err(_) => 0,
    });
    sizes.sum()
}

#[test]
fn filled_blocks_read_back_at_every_position() {
    let (_dir, cache, bytes) = filled(3 * BLOCK + 777);
    let object = found(&cache, 1, bytes.len() as u64).unwrap();
    for (offset, len) in [(0, bytes.len()), (BLOCK - 1, 2), (3 * BLOCK, 777), (5, 0), (70_000, 9)] {
        assert_eq!(object.read(offset as u64, len).unwrap(), bytes[offset..offset + len]);
    }
    assert_eq!(object.read(bytes.len() as u64 - 1, 2), None, "beyond the end");
    assert_eq!(cache.stats().filled_bytes, bytes.len() as u64);
}

#[test]
fn absent_blocks_are_missing_and_never_zeros() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), 64 * MIB);
    let bytes = content(2, 10 * BLOCK);
    let object = made(&cache, 1, &bytes);
    object.fill(2, &bytes[2 * BLOCK..4 * BLOCK]).unwrap();
    object.fill(9, &bytes[9 * BLOCK..]).unwrap();
    assert_eq!(object.missing(0..10), [0..2, 4..9]);
    assert_eq!(object.read(BLOCK_BYTES, BLOCK + 1), None);
    let got = object.read_blocks(1..10);
    assert_eq!(got.missing, [1..2, 4..9]);
    assert_eq!(got.found[0], (2, bytes.slice(2 * BLOCK..4 * BLOCK)));
    assert_eq!(got.found[1], (9, bytes.slice(9 * BLOCK..)));
}

#[test]
fn a_flipped_byte_in_the_data_is_a_miss_of_that_block_alone_and_is_counted() {
    let (dir, cache, bytes) = filled(4 * BLOCK);
    flip(&file(&dir, DATA), 2 * BLOCK_BYTES + 17);
    let object = found(&cache, 1, bytes.len() as u64).unwrap();
    assert_eq!(object.read(0, bytes.len()), None);
    let got = object.read_blocks(0..4);
    assert_eq!(got.missing, [2..3]);
    assert_eq!(cache.stats().damaged_blocks, 1);
    assert_eq!(object.read(0, 2 * BLOCK).unwrap(), bytes[..2 * BLOCK]);
    object.fill(2, &bytes[2 * BLOCK..3 * BLOCK]).unwrap();
    assert_eq!(object.read(0, bytes.len()).unwrap(), bytes);
    assert_eq!(cache.stats().damaged_blocks, 1);
}

#[test]
fn data_that_a_power_loss_took_away_is_missed_and_not_read_as_zeros() {
    let (dir, cache, bytes) = filled(4 * BLOCK);
    drop(cache);
    fs::write(file(&dir, DATA), vec![0u8; 4 * BLOCK]).unwrap();
    let cache = open(dir.path(), 64 * MIB);
    let object = found(&cache, 1, bytes.len() as u64).unwrap();
    let got = object.read_blocks(0..4);
    assert_eq!((got.found.len(), got.missing), (0, vec![0..4]));
    assert_eq!(cache.stats().damaged_blocks, 4);
}

#[test]
fn a_truncated_data_file_is_missed_from_the_cut_on() {
    let (dir, cache, bytes) = filled(4 * BLOCK);
    let data = fs::OpenOptions::new().write(true).open(file(&dir, DATA)).unwrap();
    data.set_len(BLOCK_BYTES + 100).unwrap();
    let object = found(&cache, 1, bytes.len() as u64).unwrap();
    let got = object.read_blocks(0..4);
    assert_eq!(got.missing, [1..4]);
    assert_eq!(got.found, [(0, bytes.slice(..BLOCK))]);
}

#[test]
fn no_flipped_byte_of_a_map_makes_a_wrong_byte_readable() {
    let (dir, cache, bytes) = filled(2 * BLOCK + 5);
    drop(cache);
    let (map, data) = (fs::read(file(&dir, MAP)).unwrap(), fs::read(file(&dir, DATA)).unwrap());
    let entries = 4096..map.len();
    for at in [0, 9, 13, 20, 30, 57, 61, 70, 2000, 4093].into_iter().chain(entries) {
        fs::write(file(&dir, MAP), &map).unwrap();
        fs::write(file(&dir, DATA), &data).unwrap();
        flip(&file(&dir, MAP), at as u64);
        let cache = open(dir.path(), 64 * MIB);
        match found(&cache, 1, bytes.len() as u64) {
            None => {
                assert_eq!(cache.stats().damaged_maps, 1, "byte {at}");
                assert!(!file(&dir, MAP).exists() && !file(&dir, DATA).exists(), "byte {at}");
            }
            Some(object) => {
                assert!(at >= 4096, "header byte {at} was believed");
                assert_eq!(object.read_blocks(0..3).missing.len(), 1, "byte {at}");
                assert_eq!(cache.stats().damaged_blocks, 1, "byte {at}");
            }
        }
    }
}

#[test]
fn a_restart_uses_what_was_cached() {
    let (dir, cache, bytes) = filled(9 * 1024 * 1024 + 3);
    let before = cache.stats().allocated_bytes;
    drop(cache);
    let cache = open(dir.path(), 64 * MIB);
    assert_eq!(cache.stats().allocated_bytes, before);
    assert_eq!(cache.cached_bytes(&key(1)), before);
    let object = found(&cache, 1, bytes.len() as u64).unwrap();
    assert_eq!(object.read(0, bytes.len()).unwrap(), bytes);
    assert_eq!(cache.stats().hits, 1);
}

#[test]
fn two_processes_cannot_share_a_cache_directory() {
    let (dir, cache, _) = filled(100);
    let config = CacheConfig { budget_bytes: MIB, open_objects_max: 1 };
    assert!(matches!(BlockCache::open(dir.path(), config), Err(CacheError::InUse { .. })));
    drop(cache);
    BlockCache::open(dir.path(), config).unwrap();
}

#[test]
fn a_damaged_fill_is_refused_and_marks_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), 64 * MIB);
    let bytes = content(3, 3 * BLOCK);
    let object = made(&cache, 1, &bytes);
    let mut bad = bytes.to_vec();
    bad[BLOCK + 4] ^= 1;
    assert_eq!(object.fill(0, &bad), Err(FillError::Damaged { block: 1 }));
    assert_eq!(object.missing(0..3), [0..3]);
    assert!(matches!(object.fill(0, &bytes[..100]), Err(FillError::NotBlocks { .. })));
    assert!(matches!(object.fill(3, &bytes[..BLOCK]), Err(FillError::NotBlocks { .. })));
}

#[test]
fn checksums_of_another_size_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), MIB);
    let made = cache.create(&key(1), 2 * BLOCK_BYTES, &AUX_SHA, &[1]);
    assert!(matches!(made, Err(CacheError::Checksums { .. })));
}

#[test]
fn the_budget_is_kept_in_allocated_bytes_and_the_oldest_goes_first() {
    let dir = tempfile::tempdir().unwrap();
    let budget = 10 * MIB;
    let cache = open(dir.path(), budget);
    let bytes = content(4, 6 << 20);
    for number in 0..8 {
        for first in (0..96).step_by(16) {
            fill(&cache, number, &bytes, first..first + 16);
            assert!(space_on_disk(dir.path()) <= budget, "object {number}, block {first}");
        }
    }
    let books_agree = |stats: &CacheStats| stats.allocated_bytes == space_on_disk(dir.path());
    let stats = until("the books", || Some(cache.stats()).filter(books_agree));
    assert!(stats.evicted_bytes >= 38 * MIB, "{stats:?}");
    assert_eq!(cache.cached_bytes(&key(0)), 0);
    let newest = found(&cache, 7, 6 << 20).unwrap();
    assert_eq!(newest.read(0, 6 << 20).unwrap(), bytes);
    assert!(found(&cache, 6, 6 << 20).is_none_or(|stale| !stale.missing(0..96).is_empty()));
}

#[test]
fn a_chunk_that_is_read_again_outlives_one_that_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), 16 * MIB);
    let bytes = content(5, 16 << 20);
    (0..3).for_each(|chunk| fill(&cache, 1, &bytes, chunk * 64..(chunk + 1) * 64));
    let object = found(&cache, 1, bytes.len() as u64).unwrap();
    assert!(object.read(0, 10).is_some());
    assert!(object.read(0, 10).is_some());
    fill(&cache, 1, &bytes, 192..256);
    assert_eq!(object.missing(0..256), [64..128]);
}

#[test]
fn a_smaller_budget_after_a_restart_is_kept_at_once() {
    let (dir, cache, bytes) = filled(3 << 20);
    drop(cache);
    let cache = open(dir.path(), 2 * MIB);
    assert!(space_on_disk(dir.path()) <= 2 * MIB);
    assert!(found(&cache, 1, bytes.len() as u64).is_none());
}

#[test]
fn what_does_not_fit_is_not_cached_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), 100_000);
    let bytes = content(6, 4 * BLOCK);
    let object = made(&cache, 1, &bytes);
    assert!(matches!(object.fill(0, &bytes), Err(FillError::Bypass { .. })));
    assert!(space_on_disk(dir.path()) <= 100_000);
    let mut bad = bytes.to_vec();
    bad[0] ^= 1;
    assert_eq!(object.fill(0, &bad), Err(FillError::Damaged { block: 0 }), "checked all the same");
}

#[test]
fn where_files_cannot_be_made_the_handle_still_verifies() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), MIB);
    let shard = scan::shard(dir.path(), Name::of(&key(1)));
    fs::write(shard, "in the way").unwrap();
    let bytes = content(7, 2 * BLOCK);
    let object = made(&cache, 1, &bytes);
    assert!(matches!(object.fill(0, &bytes), Err(FillError::Bypass { .. })));
    assert_eq!(object.fill(0, &bytes[1..=BLOCK]), Err(FillError::Damaged { block: 0 }));
    assert_eq!(object.read_blocks(0..2).missing, [0..2]);
    assert_eq!(cache.aux_put(&key(1), &bytes).map_err(|e| e.to_string().len() > 10), Err(true));
}

#[test]
fn a_handle_that_outlives_its_object_finds_nothing_and_fills_nothing() {
    let (dir, cache, bytes) = filled(2 * BLOCK);
    let held = found(&cache, 1, bytes.len() as u64).unwrap();
    cache.remove(&key(1));
    assert_eq!(held.read(0, 10), None);
    assert!(matches!(held.fill(0, &bytes), Err(FillError::Bypass { .. })));
    assert_eq!((cache.stats().objects, cache.stats().allocated_bytes), (0, 0));
    assert_eq!(space_on_disk(dir.path()), 0);
    made(&cache, 1, &bytes).fill(0, &bytes).unwrap();
    assert_eq!(held.read(0, 10), None);
    assert_eq!(found(&cache, 1, bytes.len() as u64).unwrap().read(0, 10).unwrap(), bytes[..10]);
}

#[test]
fn a_map_of_other_content_under_the_same_name_is_not_believed() {
    let (dir, cache, bytes) = filled(2 * BLOCK);
    assert!(cache.object(&key(1), bytes.len() as u64, &Sha256([1; 32])).is_none());
    assert!(!file(&dir, DATA).exists());
}

#[test]
fn half_written_files_and_orphans_are_removed_and_strangers_left_alone() {
    let (dir, cache, _) = filled(2 * BLOCK);
    drop(cache);
    fs::remove_file(file(&dir, MAP)).unwrap();
    let temporary = file(&dir, "map.tmp");
    fs::write(&temporary, "half").unwrap();
    let stranger = temporary.with_file_name("notes.txt");
    fs::write(&stranger, "mine").unwrap();
    let cache = open(dir.path(), MIB);
    assert!(!file(&dir, DATA).exists() && !temporary.exists() && stranger.exists());
    assert_eq!(cache.stats().objects, 0);
}

#[test]
fn aux_files_are_kept_counted_and_evicted() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), MIB);
    let bytes = content(8, 300_000);
    for number in 0..10 {
        until("room", || cache.aux_put(&key(number), &bytes).ok());
        assert!(space_on_disk(dir.path()) <= MIB);
    }
    assert_eq!(cache.aux_get(&key(0), 300_000), None);
    assert_eq!(cache.aux_get(&key(9), 300_000), Some(bytes.clone()));
    drop(cache);
    let cache = open(dir.path(), MIB);
    assert_eq!(cache.aux_get(&key(9), 300_000), Some(bytes));
    assert_eq!(cache.aux_get(&key(9), 299_999), None, "another length is damage");
    assert!(!path(dir.path(), Name::of(&key(9)), AUX).exists());
    assert_eq!(cache.stats().damaged_aux, 1);
}

#[test]
fn readers_and_fillers_under_a_tiny_budget_never_see_a_wrong_byte() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), 6 * MIB);
    let objects: Vec<Bytes> = (0..8).map(|seed| content(seed + 50, (5 << 20) + 99)).collect();
    thread::scope(|scope| {
        for worker in 0..6u64 {
            let (cache, objects) = (&cache, &objects);
            scope.spawn(move || {
                for round in 0..150u64 {
                    let pick = (worker * 7919 + round * 104_729) % 100_003;
                    let number = pick % 8;
                    let bytes = &objects[number as usize];
                    let object = found(cache, number, bytes.len() as u64)
                        .unwrap_or_else(|| made(cache, number, bytes));
                    let first = pick % 80;
                    for (block, got) in object.read_blocks(first..first + 5).found {
                        let start = block as usize * BLOCK;
                        assert_eq!(got, bytes[start..start + got.len()]);
                    }
                    let end = ((first as usize + 5) * BLOCK).min(bytes.len());
                    match object.fill(first, &bytes[first as usize * BLOCK..end]) {
                        Ok(()) | Err(FillError::Bypass { .. }) => {}
                        Err(e) => panic!("{e}"),
                    }
                }
            });
        }
    });
    let books_agree = |stats: &CacheStats| stats.allocated_bytes == space_on_disk(dir.path());
    let stats = until("the books", || Some(cache.stats()).filter(books_agree));
    assert_eq!(stats.damaged_blocks, 0, "an eviction was taken for damage");
    assert!(stats.evicted_bytes > 0 && stats.hits > 0, "{stats:?}");
    assert!(space_on_disk(dir.path()) <= 6 * MIB);
}
