//! One archived object's bytes on local disk: a sparse file, its block map, and who may touch them.
//!
//! Invariant: every block is checked against its expected CRC-32C whenever it is read and before it
//! is filled. What the map promises is only a hint about where to look, so damage, a power loss or
//! an eviction in between costs a fetch, never a wrong byte. Fillers share `gate`, and taking bytes away
//! needs it alone; readers do without it, since a block's state goes before its bytes do.

mod into;
mod pieces;
mod seal;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::RwLock;
use rustix::fs::FallocateFlags;

pub use pieces::Filled;

use super::ledger::{CHUNK_BYTES, Name};
use super::map::{self, BlockMap};
use super::{Counters, FillError, Shared, scan};
use crate::types::{BLOCK_BYTES, ObjectKey, Sha256, block_count};

/// As many as there are bits in a word.
const CHUNK_BLOCKS: u64 = CHUNK_BYTES / BLOCK_BYTES;
/// A fill waits no longer for bytes of the same object that are being taken away: its reader waits, too.
const FILL_WAIT: Duration = Duration::from_millis(20);

/// The two open files of an object.
pub(super) struct Files {
    pub data: File,
    pub map: File,
}

/// A handle on one object in the cache. Holding it does not keep its bytes from being evicted.
pub struct CachedObject {
    name: Name,
    map: BlockMap,
    present: Vec<AtomicU64>,
    files: Option<Files>,
    /// Whether the object was given up: its files are unlinked and nothing more is filled.
    gate: RwLock<bool>,
    /// Its file was handed out: neither punched nor cut from then on.
    sealed: AtomicBool,
    shared: Weak<Shared>,
    counters: Arc<Counters>,
}

/// What the cache has of a range of blocks.
#[derive(Debug, Default)]
pub struct FoundBlocks {
    /// Verified runs: number of the first block, and the bytes of whole blocks.
    pub found: Vec<(u64, Bytes)>,
    /// The rest, ascending.
    pub missing: Vec<Range<u64>>,
}

impl CachedObject {
    pub(super) fn new(map: BlockMap, files: Option<Files>, shared: &Arc<Shared>) -> Arc<Self> {
        let mut words = vec![0u64; map.present.len().div_ceil(64)];
        for (block, _) in map.present.iter().enumerate().filter(|(_, present)| **present) {
            words[block / 64] |= 1 << (block % 64);
        }
        Arc::new(Self {
            name: Name::of(&map.key),
            map: BlockMap { present: Vec::new(), ..map },
            present: words.into_iter().map(AtomicU64::new).collect(),
            sealed: AtomicBool::new(files.as_ref().is_some_and(|f| seal::is_on(&f.data))),
            files,
            gate: RwLock::new(false),
            shared: Arc::downgrade(shared),
            counters: Arc::clone(&shared.counters),
        })
    }

    pub(super) fn name(&self) -> Name {
        self.name
    }

    /// The object's key in the store.
    #[must_use]
    pub fn key(&self) -> &ObjectKey {
        &self.map.key
    }

    /// The object's length.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.map.size_bytes
    }

    pub(super) fn is_of(&self, key: &ObjectKey, size_bytes: u64, aux: &Sha256) -> bool {
        self.map.key == *key && self.map.size_bytes == size_bytes && self.map.aux_sha256 == *aux
    }

    fn is_present(&self, block: u64) -> bool {
        let word = self.present.get((block / 64) as usize);
        word.is_some_and(|w| w.load(Ordering::Acquire) >> (block % 64) & 1 == 1)
    }

    fn set_present(&self, block: u64, present: bool) {
        let Some(word) = self.present.get((block / 64) as usize) else { return };
        let bit = 1u64 << (block % 64);
        if present {
            word.fetch_or(bit, Ordering::AcqRel);
        } else {
            word.fetch_and(!bit, Ordering::AcqRel);
        }
    }

    fn sums_up(&self, block: u64, bytes: &[u8]) -> bool {
        self.map.expected.get(block as usize) == Some(&crc32c::crc32c(bytes))
    }

    /// Bytes that the blocks take in the object.
    fn span(&self, blocks: &Range<u64>) -> Range<u64> {
        let end = (blocks.end * BLOCK_BYTES).min(self.map.size_bytes);
        (blocks.start * BLOCK_BYTES).min(end)..end
    }

    fn clamp(&self, blocks: Range<u64>) -> Range<u64> {
        let end = blocks.end.min(block_count(self.map.size_bytes));
        blocks.start.min(end)..end
    }

    fn runs(&self, blocks: Range<u64>, present: bool) -> Vec<Range<u64>> {
        let mut runs = Vec::new();
        for block in self.clamp(blocks).filter(|&block| self.is_present(block) == present) {
            push_block(&mut runs, block);
        }
        runs
    }

    /// The blocks of `blocks` that are not here, as runs. A block that is here may still turn out
    /// to be damaged when it is read.
    #[must_use]
    pub fn missing(&self, blocks: Range<u64>) -> Vec<Range<u64>> {
        self.runs(blocks, false)
    }

    /// Chunks of which at least one block is here, and how many bytes.
    pub(super) fn chunks(&self) -> Vec<(u64, u64)> {
        let mut chunks = Vec::new();
        self.runs(0..u64::MAX, true).into_iter().for_each(|run| self.add_bytes(&mut chunks, run));
        chunks
    }

    /// Adds a run's bytes to those of the chunks that it lies in; runs ascend.
    fn add_bytes(&self, chunks: &mut Vec<(u64, u64)>, run: Range<u64>) {
        for (chunk, part) in by_chunk(run) {
            let span = self.span(&part);
            match chunks.last_mut() {
                Some((last, bytes)) if *last == chunk => *bytes += span.end - span.start,
                _ => chunks.push((chunk, span.end - span.start)),
            }
        }
    }

    /// Exactly `len` bytes at `offset`, or `None` when a block of them is not here, is damaged, or
    /// lies beyond the end. Blocks known to be absent are not counted as a miss: `read_blocks` is
    /// the caller's next step, and counts.
    #[must_use]
    pub fn read(&self, offset: u64, len: usize) -> Option<Bytes> {
        let end = offset.checked_add(len as u64).filter(|&end| end <= self.map.size_bytes)?;
        if len == 0 {
            return Some(Bytes::new());
        }
        let blocks = offset / BLOCK_BYTES..block_count(end);
        if !blocks.clone().all(|block| self.is_present(block)) {
            return None;
        }
        let mut got = self.read_blocks(blocks);
        let (first, bytes) = got.found.pop()?;
        let from = (offset - first.checked_mul(BLOCK_BYTES)?.min(offset)) as usize;
        let whole = got.found.is_empty() && got.missing.is_empty();
        whole.then(|| bytes.slice(from..from + len))
    }

    /// Every verified block of `blocks` that is here; those that are not, or are damaged, are
    /// `missing`. Never fails: an unreadable cache file is a miss.
    #[must_use]
    pub fn read_blocks(&self, blocks: Range<u64>) -> FoundBlocks {
        let blocks = self.clamp(blocks);
        let (mut found, mut suspects) = (Vec::new(), Vec::new());
        let shared = self.shared.upgrade();
        let disk_works = shared.as_ref().is_none_or(|s| !s.health.reads_off());
        if let Some(files) = self.files.as_ref().filter(|_| disk_works) {
            for run in self.runs(blocks.clone(), true) {
                self.read_run(&files.data, run, &mut found, &mut suspects);
            }
        }
        suspects.iter().for_each(|&block| self.condemn(block));
        let mut missing = Vec::new();
        let mut at = blocks.start;
        for (first, bytes) in &found {
            push_range(&mut missing, at..*first);
            at = first + block_count(bytes.len() as u64);
        }
        push_range(&mut missing, at..blocks.end);
        let counter = if missing.is_empty() { &self.counters.hits } else { &self.counters.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        self.used(blocks, shared);
        FoundBlocks { found, missing }
    }

    /// Tells the policy which blocks were read.
    fn used(&self, blocks: Range<u64>, shared: Option<Arc<Shared>>) {
        let Some(shared) = shared else { return };
        let read: Vec<(u64, u64)> = by_chunk(blocks).map(|(c, part)| (c, mask(&part))).collect();
        shared.ledger.lock().read(self.name, &read, shared.now_ms());
    }

    fn read_run(
        &self,
        data: &File,
        run: Range<u64>,
        found: &mut Vec<(u64, Bytes)>,
        suspects: &mut Vec<u64>,
    ) {
        let span = self.span(&run);
        let mut buffer = vec![0; (span.end - span.start) as usize];
        let got = self.read_up_to(data, &mut buffer, span.start);
        let mut good: Vec<Range<u64>> = Vec::new();
        for (block, bytes) in run.clone().zip(buffer.chunks(BLOCK_BYTES as usize)) {
            let end = (block - run.start) as usize * BLOCK_BYTES as usize + bytes.len();
            if end <= got && self.sums_up(block, bytes) {
                push_block(&mut good, block);
            } else {
                suspects.push(block);
            }
        }
        let buffer = Bytes::from(buffer);
        for part in good {
            let bytes = self.span(&part);
            let slice = (bytes.start - span.start) as usize..(bytes.end - span.start) as usize;
            found.push((part.start, buffer.slice(slice)));
        }
    }

    /// Looks again, alone, at a block that did not sum up, and strikes it if it still does not.
    fn condemn(&self, block: u64) {
        let Some(files) = &self.files else { return };
        // Evicted meanwhile, most likely: no reason to wait for that.
        if !self.is_present(block) {
            return;
        }
        // What the disk would not give is fetched and written anew when it works again.
        if self.shared.upgrade().is_some_and(|s| s.health.reads_off()) {
            self.set_present(block, false);
            return;
        }
        let _alone = self.gate.write();
        if !self.is_present(block) {
            return;
        }
        let span = self.span(&(block..block + 1));
        let mut buffer = vec![0; (span.end - span.start) as usize];
        let got = self.read_up_to(&files.data, &mut buffer, span.start);
        if got == buffer.len() && self.sums_up(block, &buffer) {
            return;
        }
        self.set_present(block, false);
        if let Some(shared) = self.shared.upgrade() {
            shared.leases.forget(self.name);
        }
        self.counters.damaged_blocks.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(object = %self.map.key, block, "damaged block in the cache: it is fetched again");
        if let Err(e) = self.write_entries(files, block..block + 1, false)
            && !self.write_failed(&e)
        {
            tracing::warn!(object = %self.map.key, block, error = %e, "cannot strike the block from its map");
        }
    }

    fn write_entries(&self, files: &Files, blocks: Range<u64>, filled: bool) -> io::Result<()> {
        let expected = &self.map.expected[blocks.start as usize..blocks.end as usize];
        let bytes = map::entries(blocks.start, expected, filled);
        files.map.write_all_at(&bytes, map::entry_position(blocks.start))
    }

    /// Gives a chunk's space back: its states first, then its bytes. Number of bytes that were here.
    pub(super) fn punch(&self, chunk: u64) -> io::Result<u64> {
        let Some(files) = &self.files else { return Ok(0) };
        let blocks = self.clamp(chunk * CHUNK_BLOCKS..(chunk + 1) * CHUNK_BLOCKS);
        let _alone = self.gate.write();
        if self.is_sealed() {
            return Err(io::Error::other("its file was handed out"));
        }
        let here = self.runs(blocks.clone(), true);
        blocks.clone().for_each(|block| self.set_present(block, false));
        self.write_entries(files, blocks, false)?;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&files.data, flags, chunk * CHUNK_BYTES, CHUNK_BYTES)?;
        Ok(here.iter().map(|run| self.span(run)).map(|s| s.end - s.start).sum())
    }

    /// Ends the object's life in the cache: nothing more is found in it or filled into it.
    pub(super) fn give_up(&self) {
        let mut given_up = self.gate.write();
        *given_up = true;
        self.present.iter().for_each(|word| word.store(0, Ordering::Release));
        if let Some(files) = self.files.as_ref().filter(|_| !self.is_sealed())
            && let Err(e) = files.data.set_len(0)
            && !self.write_failed(&e)
        {
            tracing::warn!(object = %self.map.key, error = %e, "cannot free a removed cache file before its last use");
        }
    }

    fn write_failed(&self, error: &io::Error) -> bool {
        self.shared.upgrade().is_some_and(|shared| shared.health.write_failed(error))
    }

    /// Number of bytes read before the end of the file or an error.
    fn read_up_to(&self, file: &File, buffer: &mut [u8], position: u64) -> usize {
        let mut got = 0;
        while got < buffer.len() {
            match file.read_at(&mut buffer[got..], position + got as u64) {
                Ok(0) => break,
                Ok(n) => got += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    if let Some(shared) = self.shared.upgrade() {
                        shared.health.read_failed(&e);
                    }
                    break;
                }
            }
        }
        got
    }

    pub(super) fn allocated_bytes(&self) -> io::Result<u64> {
        let Some(files) = &self.files else { return Ok(0) };
        let data = scan::allocated_bytes(&files.data.metadata()?);
        Ok(data + scan::allocated_bytes(&files.map.metadata()?))
    }
}

fn push_block(runs: &mut Vec<Range<u64>>, block: u64) {
    match runs.last_mut() {
        Some(run) if run.end == block => run.end = block + 1,
        _ => runs.push(block..block + 1),
    }
}

fn push_range(runs: &mut Vec<Range<u64>>, range: Range<u64>) {
    if range.start < range.end {
        runs.push(range);
    }
}

/// A bit for each block of a part of one chunk.
fn mask(part: &Range<u64>) -> u64 {
    part.clone().fold(0, |mask, block| mask | 1 << (block % CHUNK_BLOCKS))
}

/// The parts of a run of blocks by the chunks that they lie in.
fn by_chunk(run: Range<u64>) -> impl Iterator<Item = (u64, Range<u64>)> {
    (run.start / CHUNK_BLOCKS..run.end.div_ceil(CHUNK_BLOCKS)).map(move |chunk| {
        let (start, end) = (chunk * CHUNK_BLOCKS, (chunk + 1) * CHUNK_BLOCKS);
        (chunk, run.start.max(start)..run.end.min(end))
    })
}

#[cfg(test)]
mod tests {
    use crate::cache::{BlockCache, CacheConfig};
    use crate::types::{BLOCK_BYTES, ObjectKey, Sha256};

    #[test]
    fn a_read_does_not_wait_for_bytes_that_are_being_taken_away() {
        let dir = tempfile::tempdir().unwrap();
        let config = CacheConfig { budget_bytes: 64 << 20, open_objects_max: 4 };
        let cache = BlockCache::open(dir.path(), config).unwrap();
        let bytes = vec![7u8; 3 * BLOCK_BYTES as usize];
        let crcs = vec![crc32c::crc32c(&bytes[..BLOCK_BYTES as usize]); 3];
        let key = |n: u64| ObjectKey(format!("{n}.log"));
        let object = cache.create(&key(1), bytes.len() as u64, &Sha256([1; 32]), &crcs).unwrap();
        object.fill(0, &bytes[..2 * BLOCK_BYTES as usize]).unwrap();
        let trimming = object.gate.write();
        let others = cache.shared.names.lock(super::Name::of(&key(2)));
        assert!(object.read(5, 70_000).is_some());
        assert!(cache.object(&key(1), bytes.len() as u64, &Sha256([1; 32])).is_some());
        assert!(object.fill(2, &bytes[..BLOCK_BYTES as usize]).is_err(), "it does not wait long");
        drop((trimming, others));
        object.fill(2, &bytes[..BLOCK_BYTES as usize]).unwrap();
    }
}
