//! Cached bytes into the reader's own buffer: no memory is taken or cleared for them.

use super::*;

impl CachedObject {
    /// Fills `out` with the bytes from `offset` on; false, with anything in `out`, when a block of them is
    /// not here, is damaged, or lies beyond the end. As [`Self::read`] it counts hits only.
    #[must_use]
    pub fn read_into(&self, offset: u64, out: &mut [u8]) -> bool {
        let end = offset.checked_add(out.len() as u64).filter(|&end| end <= self.map.size_bytes);
        let (Some(end), Some(files)) = (end, &self.files) else { return false };
        let shared = self.shared.upgrade();
        if shared.as_ref().is_some_and(|s| s.health.reads_off()) {
            return false;
        }
        if out.is_empty() {
            return true;
        }
        let blocks = offset / BLOCK_BYTES..block_count(end);
        if !blocks.clone().all(|block| self.is_present(block)) {
            return false;
        }
        if let Some(block) = self.read_blocks_into(&files.data, blocks.clone(), (offset, out)) {
            self.condemn(block);
            return false;
        }
        self.counters.hits.fetch_add(1, Ordering::Relaxed);
        self.used(blocks, shared);
        true
    }

    /// Whole blocks go straight into `out`, the first and last one, if they are wanted in part, by a copy.
    /// The first block that does not sum up.
    fn read_blocks_into(
        &self,
        data: &File,
        blocks: Range<u64>,
        (offset, mut out): (u64, &mut [u8]),
    ) -> Option<u64> {
        let mut at = offset;
        let mut block = blocks.start;
        while block < blocks.end {
            let span = self.span(&(block..block + 1));
            let whole = at == span.start && out.len() as u64 >= span.end - span.start;
            let taken = if whole {
                let run = block..block + whole_blocks(out.len() as u64, &span, self.size_bytes());
                let len = self.span(&run);
                let (head, _) = out.split_at_mut((len.end - len.start) as usize);
                if let Some(bad) = self.run_into(data, run.clone(), head) {
                    return Some(bad);
                }
                block = run.end;
                head.len()
            } else {
                let mut scratch = vec![0; (span.end - span.start) as usize];
                if let Some(bad) = self.run_into(data, block..block + 1, &mut scratch) {
                    return Some(bad);
                }
                let from = (at - span.start) as usize;
                let len = (scratch.len() - from).min(out.len());
                out[..len].copy_from_slice(&scratch[from..from + len]);
                block += 1;
                len
            };
            at += taken as u64;
            out = &mut out[taken..];
        }
        None
    }

    /// Exactly these blocks; the first one that does not sum up.
    fn run_into(&self, data: &File, run: Range<u64>, out: &mut [u8]) -> Option<u64> {
        let start = self.span(&run).start;
        let got = self.read_up_to(data, out, start);
        let mut end = 0;
        for (block, bytes) in run.zip(out.chunks(BLOCK_BYTES as usize)) {
            end += bytes.len();
            if end > got || !self.sums_up(block, bytes) {
                return Some(block);
            }
        }
        None
    }
}

/// How many whole blocks from `first` on fit into `len` bytes; the object's last one may be short.
fn whole_blocks(len: u64, first: &Range<u64>, size_bytes: u64) -> u64 {
    if len >= size_bytes - first.start {
        return block_count(size_bytes) - first.start / BLOCK_BYTES;
    }
    (len / BLOCK_BYTES).max(1)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use bytes::Bytes;

    use crate::cache::{BlockCache, CacheConfig};
    use crate::types::{BLOCK_BYTES, ObjectKey, Sha256};

    const BLOCK: usize = BLOCK_BYTES as usize;

    fn filled(bytes: &Bytes) -> (tempfile::TempDir, BlockCache) {
        let dir = tempfile::tempdir().unwrap();
        let config = CacheConfig { budget_bytes: 64 << 20, open_objects_max: 4 };
        let cache = BlockCache::open(dir.path(), config).unwrap();
        let crcs: Vec<u32> = bytes.chunks(BLOCK).map(crc32c::crc32c).collect();
        let key = ObjectKey("o".into());
        let object = cache.create(&key, bytes.len() as u64, &Sha256([1; 32]), &crcs).unwrap();
        let pieces: Vec<Bytes> = bytes.chunks(10_007).map(Bytes::copy_from_slice).collect();
        let filled = object.fill_pieces(0, &pieces).unwrap();
        assert_eq!((filled.damaged, filled.bypassed), (false, None));
        (dir, cache)
    }

    #[test]
    fn any_range_is_read_into_a_buffer_and_nothing_beyond_the_end() {
        let bytes: Bytes =
            (0..5 * BLOCK + 777).map(|i| (i * 7 % 251) as u8).collect::<Vec<_>>().into();
        let (_dir, cache) = filled(&bytes);
        let size = bytes.len();
        let object = cache.object(&ObjectKey("o".into()), size as u64, &Sha256([1; 32])).unwrap();
        let edges = [0, 1, 17, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 5 * BLOCK, size - 1, size];
        for from in edges {
            for to in edges.into_iter().filter(|to| *to >= from) {
                let mut out = vec![0; to - from];
                assert!(object.read_into(from as u64, &mut out), "{from}..{to}");
                assert!(out == bytes[from..to], "{from}..{to}");
            }
        }
        assert!(!object.read_into(size as u64 - 1, &mut [0; 2]));
    }

    #[test]
    fn a_damaged_block_is_not_read_into_a_buffer_and_is_missing_afterwards() {
        let bytes: Bytes = vec![9; 4 * BLOCK].into();
        let (dir, cache) = filled(&bytes);
        let object = cache.object(&ObjectKey("o".into()), bytes.len() as u64, &Sha256([1; 32]));
        let object = object.unwrap();
        object.files.as_ref().unwrap().data.write_all_at(&[1], 2 * BLOCK_BYTES + 5).unwrap();
        let mut out = vec![0; 4 * BLOCK];
        assert!(!object.read_into(0, &mut out));
        assert_eq!(object.missing(0..4).first(), Some(&(2..3)));
        assert_eq!(cache.stats().damaged_blocks, 1);
        assert!(object.read_into(0, &mut out[..2 * BLOCK]));
        drop(dir);
    }
}
