//! Filling an object with pieces of an answer as they come from the network.
//!
//! Invariant: as for every fill, a block gets into the file only after its bytes summed up to the
//! archived checksum. The pieces are checked and written where they lie: nothing is put together first.

use super::*;

/// What became of a run of blocks.
#[derive(Debug, PartialEq, Eq)]
pub struct Filled {
    /// The first so many blocks are those that were archived.
    pub verified_blocks: u64,
    /// The block after them is not.
    pub damaged: bool,
    /// Why the verified ones could not be kept, if they could not: they are served from memory.
    pub bypassed: Option<String>,
}

impl CachedObject {
    /// Checks and stores whole blocks from `first_block` on that lie in `pieces`, one after the other;
    /// the object's last block may be short. Whatever comes after a damaged block is left out.
    pub fn fill_pieces(&self, first_block: u64, pieces: &[Bytes]) -> Result<Filled, FillError> {
        let blocks = self.whole_blocks(first_block, pieces.iter().map(Bytes::len).sum())?;
        let verified_blocks = self.verified(&blocks, pieces);
        let good = first_block..first_block + verified_blocks;
        let damaged = good.end < blocks.end;
        let bypassed = match good.is_empty() {
            true => None,
            false => self.keep(&good, pieces).err(),
        };
        Ok(Filled { verified_blocks, damaged, bypassed })
    }

    /// The blocks that `len` bytes from `first_block` on are, if they are whole ones.
    fn whole_blocks(&self, first_block: u64, len: usize) -> Result<Range<u64>, FillError> {
        let blocks = first_block..first_block + block_count(len as u64);
        let span = self.span(&blocks);
        if len == 0 || span.end - span.start != len as u64 {
            return Err(FillError::NotBlocks { first_block, len });
        }
        Ok(blocks)
    }

    /// How many blocks of `pieces` sum up before one does not.
    fn verified(&self, blocks: &Range<u64>, pieces: &[Bytes]) -> u64 {
        let mut rest = pieces.iter().map(|piece| &piece[..]);
        let mut piece = rest.next().unwrap_or_default();
        for block in blocks.clone() {
            let span = self.span(&(block..block + 1));
            let (mut left, mut crc) = ((span.end - span.start) as usize, 0);
            while left > 0 {
                if piece.is_empty() {
                    let Some(next) = rest.next() else { return block - blocks.start };
                    piece = next;
                    continue;
                }
                let (head, tail) = piece.split_at(left.min(piece.len()));
                crc = crc32c::crc32c_append(crc, head);
                left -= head.len();
                piece = tail;
            }
            if self.map.expected.get(block as usize) != Some(&crc) {
                return block - blocks.start;
            }
        }
        blocks.end - blocks.start
    }

    /// Writes verified blocks; the error says why they are not on disk.
    fn keep(&self, blocks: &Range<u64>, pieces: &[Bytes]) -> Result<(), String> {
        let files = self.files.as_ref().ok_or("the cache has no files for it")?;
        let shared = self.shared.upgrade().ok_or("the cache is closed")?;
        let mut chunks = Vec::new();
        let absent = self.missing(blocks.clone());
        absent.iter().for_each(|run| self.add_bytes(&mut chunks, run.clone()));
        let bytes: u64 = chunks.iter().map(|(_, bytes)| bytes).sum();
        if bytes == 0 {
            return Ok(());
        }
        if shared.health.writes_off() {
            return Err("the cache's disk fails".to_owned());
        }
        let room = shared.reserve(bytes).ok_or("there is no room for it now")?;
        let written = self.write_pieces(files, blocks, pieces);
        shared.account(self);
        shared.ledger.lock().filled(self.name, &chunks, shared.now_ms());
        drop(room);
        shared.ring_if_tight();
        if let Err(e) = &written {
            shared.health.write_failed(e);
        }
        match written {
            Ok(true) => {
                self.counters.filled_bytes.fetch_add(bytes, Ordering::Relaxed);
                Ok(())
            }
            Ok(false) => Err("it is being evicted".to_owned()),
            Err(e) => Err(e.to_string()),
        }
    }

    /// False: the object was given up meanwhile, or something of it is being taken away and that takes long.
    /// Blocks that are there already are written again, with the same bytes.
    fn write_pieces(
        &self,
        files: &Files,
        blocks: &Range<u64>,
        pieces: &[Bytes],
    ) -> io::Result<bool> {
        let Some(given_up) = self.gate.try_read_for(FILL_WAIT) else { return Ok(false) };
        if *given_up {
            return Ok(false);
        }
        let span = self.span(blocks);
        write_all(&files.data, pieces, span.start, span.end - span.start)?;
        self.write_entries(files, blocks.clone(), true)?;
        blocks.clone().for_each(|block| self.set_present(block, true));
        Ok(true)
    }

    /// All of `data` or nothing.
    #[cfg(test)]
    pub fn fill(&self, first_block: u64, data: &[u8]) -> Result<(), FillError> {
        let blocks = self.whole_blocks(first_block, data.len())?;
        let pieces = [Bytes::copy_from_slice(data)];
        let good = self.verified(&blocks, &pieces);
        if good < blocks.end - blocks.start {
            return Err(FillError::Damaged { block: first_block + good });
        }
        self.keep(&blocks, &pieces).map_err(|why| FillError::Bypass { why })
    }
}

/// Writes the first `len` bytes of `pieces` at `position`.
fn write_all(file: &File, pieces: &[Bytes], position: u64, len: u64) -> io::Result<()> {
    let (mut at, end) = (position, position + len);
    for piece in pieces {
        let left = usize::try_from(end - at).unwrap_or(usize::MAX);
        let part = &piece[..piece.len().min(left)];
        file.write_all_at(part, at)?;
        at += part.len() as u64;
    }
    if at < end { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}
