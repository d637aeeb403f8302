//! What stays and what goes: scans, pins, other limits than bytes, a disk that fails.

use rustix::fs::FallocateFlags;

use super::*;
use crate::cache::object::Files;

const CHUNK: u64 = 64;

/// Reads an object once from its beginning to its end, as a scan does: what is not here is filled first.
fn scan_over(cache: &BlockCache, number: u64, bytes: &[u8]) {
    for first in (0..bytes.len() as u64 / BLOCK_BYTES).step_by(16) {
        fill(cache, number, bytes, first..first + 16);
        if let Some(object) = found(cache, number, bytes.len() as u64) {
            let _ = object.read_blocks(first..first + 16);
        }
    }
}

fn is_whole(cache: &BlockCache, number: u64, bytes: &[u8]) -> bool {
    let object = found(cache, number, bytes.len() as u64);
    object.is_some_and(|object| object.missing(0..u64::MAX).is_empty())
}

#[test]
fn a_scan_of_ten_times_the_budget_does_not_flush_what_is_read_again_and_again() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), 16 * MIB);
    let hot = content(20, 6 << 20);
    scan_over(&cache, 1, &hot);
    let object = found(&cache, 1, hot.len() as u64).unwrap();
    assert_eq!(object.read(0, hot.len()).unwrap(), hot);
    assert_eq!(cache.stats().protected_bytes, 6 * MIB);
    let cold = content(21, 4 << 20);
    (100..140).for_each(|number| scan_over(&cache, number, &cold));
    assert!(cache.stats().evicted_bytes > 140 * MIB, "{:?}", cache.stats());
    assert_eq!(object.read(0, hot.len()).unwrap(), hot);
}

#[test]
fn what_a_reader_takes_when_it_has_come_counts_as_read_once_and_a_prefetch_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), 16 * MIB);
    let bytes = content(31, 2 * CHUNK as usize * BLOCK);
    let object = made(&cache, 1, &bytes);
    assert_eq!(object.read_blocks(0..8).missing, [0..8]);
    fill(&cache, 1, &bytes, 0..8);
    fill(&cache, 1, &bytes, CHUNK..CHUNK + 8);
    let mut taken = vec![0; 8 * BLOCK];
    assert!(object.read_into(0, &mut taken));
    assert!(object.read(CHUNK * BLOCK_BYTES, 4 * BLOCK).is_some());
    assert_eq!(cache.stats().protected_bytes, 0);
    assert!(object.read(0, 4 * BLOCK).is_some());
    assert_eq!(cache.stats().protected_bytes, 8 * BLOCK_BYTES);
}

#[test]
fn after_a_restart_a_scan_flushes_a_part_only() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), 16 * MIB);
    let hot = content(22, 6 << 20);
    scan_over(&cache, 1, &hot);
    drop(cache);
    let cache = open(dir.path(), 16 * MIB);
    let cold = content(23, 4 << 20);
    (100..120).for_each(|number| scan_over(&cache, number, &cold));
    assert!(is_whole(&cache, 1, &hot));
}

#[test]
fn a_pin_outlives_scans_and_restarts_and_ends_when_it_is_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let (pinned, cold) = (content(24, 6 << 20), content(25, 4 << 20));
    let cache = open(dir.path(), 16 * MIB);
    scan_over(&cache, 1, &pinned);
    cache.pin(&[(key(1), pinned.len() as u64)]).unwrap();
    drop(cache);
    let cache = open(dir.path(), 16 * MIB);
    assert!(cache.is_pinned(&key(1)));
    (100..140).for_each(|number| scan_over(&cache, number, &cold));
    assert!(is_whole(&cache, 1, &pinned));
    assert_eq!(cache.stats().pinned_bytes, 6 * MIB);
    assert_eq!(cache.unpin(|k| k == key(1).as_str()).unwrap().bytes, 0);
    assert_eq!(cache.stats().pinned_bytes, 0);
    // Read twice they push out what was unused for longer.
    (200..208).for_each(|number| {
        scan_over(&cache, number, &cold);
        scan_over(&cache, number, &cold);
    });
    assert!(!is_whole(&cache, 1, &pinned));
}

#[test]
fn more_than_three_quarters_of_the_budget_cannot_be_pinned() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), 16 * MIB);
    cache.pin(&[(key(1), 8 * MIB)]).unwrap();
    let refused = cache.pin(&[(key(1), 8 * MIB), (key(2), 5 * MIB)]);
    assert!(matches!(refused, Err(CacheError::NoRoomToPin { .. })), "{refused:?}");
    assert!(!cache.is_pinned(&key(2)));
    cache.pin(&[(key(2), 4 * MIB)]).unwrap();
}

#[test]
fn a_smaller_budget_after_a_restart_is_kept_by_pinned_bytes_too() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), 16 * MIB);
    let bytes = content(26, 6 << 20);
    scan_over(&cache, 1, &bytes);
    cache.pin(&[(key(1), bytes.len() as u64)]).unwrap();
    drop(cache);
    let _cache = open(dir.path(), 3 * MIB);
    assert!(space_on_disk(dir.path()) <= 3 * MIB);
}

#[test]
fn what_is_warmed_counts_as_wanted_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), 16 * MIB);
    let (warm, cold) = (content(27, 6 << 20), content(28, 4 << 20));
    let favour = cache.favour(&[key(1)]);
    scan_over(&cache, 1, &warm);
    drop(favour);
    (100..120).for_each(|number| scan_over(&cache, number, &cold));
    assert!(is_whole(&cache, 1, &warm));
}

#[test]
fn no_more_files_are_made_than_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open_with(dir.path(), 64 * MIB, CacheLimits { files_max: 32, ..limits() });
    let bytes = content(29, 2 * BLOCK);
    for number in 0..60 {
        fill(&cache, number, &bytes, 0..2);
        until("room", || cache.aux_put(&key(1000 + number), &bytes).ok());
        assert!(cache.stats().files <= 32);
    }
    assert!(cache.stats().evicted_bytes > 0);
    assert!(is_whole(&cache, 59, &bytes));
}

#[test]
fn the_filesystems_free_space_is_left_to_others() {
    let dir = tempfile::tempdir().unwrap();
    let floor = CacheLimits { free_bytes: Some(u64::MAX / 2), ..limits() };
    let cache = open_with(dir.path(), 64 * MIB, floor);
    let bytes = content(30, 2 * BLOCK);
    assert!(matches!(made(&cache, 1, &bytes).fill(0, &bytes), Err(FillError::Bypass { .. })));
    assert_eq!((cache.stats().limit_bytes, space_on_disk(dir.path())), (0, 0));
}

#[test]
fn a_disk_that_cannot_be_read_is_gone_around_and_comes_back() {
    let (dir, cache, bytes) = filled(4 * BLOCK);
    let write_only = |suffix| fs::OpenOptions::new().write(true).open(file(&dir, suffix)).unwrap();
    let map = map::parse(&fs::read(file(&dir, MAP)).unwrap()).unwrap();
    let files = Files { data: write_only(DATA), map: write_only(MAP) };
    let broken = CachedObject::new(map, Some(files), &cache.shared);
    assert_eq!(broken.read_blocks(0..4).missing, [0..4]);
    let bypassed = cache.bypassed().unwrap();
    assert!(bypassed.reason.contains("a read fails") && bypassed.since_ms > 0, "{bypassed:?}");
    assert_eq!(cache.stats().damaged_blocks, 0, "what cannot be read is not damage");
    let object = found(&cache, 1, bytes.len() as u64).unwrap();
    assert_eq!(object.read_blocks(0..4).missing, [0..4]);
    assert!(matches!(cache.aux_put(&key(2), &bytes), Err(CacheError::Bypassed)));
    let other = made(&cache, 3, &bytes);
    assert!(matches!(other.fill(0, &bytes), Err(FillError::Bypass { .. })));
    until("the cache to come back", || cache.bypassed().is_none().then_some(()));
    assert_eq!(object.read(0, bytes.len()).unwrap(), bytes);
    fill(&cache, 3, &bytes, 0..4);
    assert_eq!(cache.stats().bypasses, 1);
}

#[test]
fn a_reader_meets_a_hole_as_a_miss_and_not_as_damage_if_its_state_went_first() {
    let (dir, cache, bytes) = filled(2 * CHUNK as usize * BLOCK);
    let object = found(&cache, 1, bytes.len() as u64).unwrap();
    object.punch(1).unwrap();
    let data = fs::OpenOptions::new().write(true).open(file(&dir, DATA)).unwrap();
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&data, flags, CHUNK * BLOCK_BYTES, BLOCK_BYTES).unwrap();
    assert_eq!(object.read_blocks(0..2 * CHUNK).missing, [CHUNK..2 * CHUNK]);
    assert_eq!(cache.stats().damaged_blocks, 0);
}
