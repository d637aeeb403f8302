//! What the archive already holds of a segment's offsets, proved byte by byte.
//!
//! Replicas have the same batches but other segment boundaries, and a log may have been truncated and gone
//! on differently. So the segment is compared with the archived segments that its offsets meet: whole
//! content blocks by the hashes in their `.aux`, which costs no download, the edges by fetching them.
//! Nothing counts as equal that was not compared. The store's bytes are checked against their CRCs.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use bytes::Bytes;

use super::Tier;
use super::error::TierError;
use super::prepare::{Job, Prepared};
use crate::kafka::batch::{BatchHeader, HEADER_BYTES_MAX, header_len};
use crate::kafka::scan::{ContentBlock, ContentHash};
use crate::local::Extent;
use crate::manifest::{Aux, Chain};
use crate::store::{Store, names};
use crate::types::{ArchivedSegment, BLOCK_BYTES, ChainId, ObjectKey};

/// Fetched and held at once.
const WINDOW_BYTES: u64 = 1 << 20;
/// No `.aux` is longer.
const AUX_BYTES_MAX: u64 = 1 << 30;

/// Where the equality ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// Nowhere: every byte of the segment is archived.
    Covered,
    /// At the archive's end, which is this offset: a batch of the segment begins there.
    ArchiveEnds { offset: i64 },
    /// At this offset, where a batch of the segment begins, in a gap of the archive.
    Gap { offset: i64, from_offset: i64, to_offset: i64 },
    /// At a batch that the archive has otherwise.
    Differs(Difference),
    /// It cannot be told, and why.
    Unclear(String),
}

/// The first batch that is not the archive's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Difference {
    /// Its first offset.
    pub offset: i64,
    /// Where it begins in the segment's file: all bytes before are equal.
    pub position: u64,
    /// Leader epoch of the archived batch.
    pub archived_epoch: i32,
    /// Leader epoch of the local batch.
    pub local_epoch: i32,
    /// Base of the archived segment that it is in.
    pub tile_base: i64,
    /// Where that base lies in the segment's file; `None`: before its first byte.
    pub tile_position: Option<u64>,
}

/// A segment beside the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Overlap {
    /// Where the equal bytes lie in archived objects: ascending, from the file's first byte, without a hole.
    pub extents: Vec<Extent>,
    /// How many bytes of the file are equal; a batch ends there.
    pub equal_bytes: u64,
    pub ending: Ending,
}

/// Which side could not be read.
#[derive(Debug, thiserror::Error)]
enum CompareError {
    #[error(transparent)]
    Local(#[from] io::Error),
    #[error(transparent)]
    Archived(#[from] TierError),
}

/// An archived `.log`, read in verified windows.
struct Archived<'a> {
    store: &'a Store,
    key: ObjectKey,
    segment: &'a ArchivedSegment,
    aux: Aux,
    window: (u64, Bytes),
}

/// A range of the file beside a range of an archived segment.
#[derive(Clone, Copy, Debug)]
struct Run {
    first_offset: i64,
    file_start: u64,
    object_start: u64,
    len: u64,
}

/// A part of a run, in positions of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    start: u64,
    end: u64,
    /// Of its first batch.
    first_offset: i64,
    /// Of a whole content block.
    hash: Option<[u8; 16]>,
}

/// The run in spans: content blocks that lie in it whole, and what is left at its edges.
fn spans(blocks: &[ContentBlock], run: &Run) -> Vec<Span> {
    let (from, to) = (run.object_start, run.object_start + run.len);
    let mut at = 0;
    let mut out = Vec::new();
    for block in blocks {
        let (start, end) = (at, at + u64::from(block.length));
        at = end;
        if end <= from || start >= to {
            continue;
        }
        let whole = from <= start && end <= to;
        let hash = whole.then_some(block.hash);
        let first_offset = block.first_offset.max(run.first_offset);
        out.push(Span { start: start.max(from), end: end.min(to), first_offset, hash });
    }
    out
}

/// Where the last block begins that does not begin behind `offset`, and its first offset.
fn block_with(blocks: &[ContentBlock], offset: i64) -> (u64, i64) {
    let (mut at, mut found) = (0, (0, offset));
    for block in blocks.iter().take_while(|b| b.first_offset <= offset) {
        found = (at, block.first_offset);
        at += u64::from(block.length);
    }
    found
}

/// The first of the hashed spans whose bytes in the file have another hash. Blocking.
fn first_unequal(file: &File, run: &Run, spans: &[Span]) -> io::Result<Option<usize>> {
    let mut buffer = vec![0; WINDOW_BYTES as usize];
    let mut hasher = ContentHash::default();
    for (i, span) in spans.iter().enumerate() {
        let Some(expected) = span.hash else { continue };
        let mut at = span.start;
        while at < span.end {
            let piece = &mut buffer[..WINDOW_BYTES.min(span.end - at) as usize];
            file.read_exact_at(piece, run.file_start + (at - run.object_start))?;
            hasher.update(piece);
            at += piece.len() as u64;
        }
        if hasher.finish_reset() != expected {
            return Ok(Some(i));
        }
    }
    Ok(None)
}

/// The header of the batch that begins at `bytes`.
fn header(bytes: &[u8]) -> Option<BatchHeader> {
    header_len(bytes).ok().filter(|len| bytes.len() >= *len)?;
    BatchHeader::parse(bytes).ok()
}

/// The batch in which byte `at` of the file lies: where it begins, its first offset, its header. Batches
/// are followed from the position of one, and its first offset.
fn batch_at(file: &File, from: (u64, i64), at: u64) -> io::Result<Option<(u64, i64, BatchHeader)>> {
    let (mut position, mut end_before) = from;
    loop {
        // The last message of an old format may be shorter than the longest header.
        let mut bytes = [0; HEADER_BYTES_MAX];
        let there = read_up_to(file, &mut bytes, position)?;
        let Some(header) = header(&bytes[..there]) else { return Ok(None) };
        let end = position + u64::from(header.size_bytes);
        if end > at {
            return Ok(Some((position, header.first_offset(end_before), header)));
        }
        (position, end_before) = (end, header.last_offset.saturating_add(1));
    }
}

/// Fills the buffer unless the file ends before; says how far.
fn read_up_to(file: &File, buffer: &mut [u8], position: u64) -> io::Result<usize> {
    let mut there = 0;
    while there < buffer.len() {
        match file.read_at(&mut buffer[there..], position + there as u64) {
            Ok(0) => break,
            Ok(more) => there += more,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(there)
}

impl Archived<'_> {
    fn damaged(&self, why: impl Into<String>) -> TierError {
        TierError::Damaged { key: self.key.to_string(), why: why.into() }
    }

    /// Verified bytes from `at`: at least one, at most a window, none beyond the object.
    async fn read(&mut self, at: u64) -> Result<Bytes, TierError> {
        let (start, bytes) = &self.window;
        if at < *start || at >= start + bytes.len() as u64 {
            self.window = self.fetch(at - at % BLOCK_BYTES).await?;
        }
        let (start, bytes) = &self.window;
        Ok(bytes.slice((at - start) as usize..))
    }

    async fn fetch(&self, start: u64) -> Result<(u64, Bytes), TierError> {
        let end = (start + WINDOW_BYTES).min(self.segment.size_bytes);
        if start >= end {
            return Err(self.damaged(format!("it ends before byte {start}")));
        }
        let bytes = self.store.get_range(&self.key, start..end).await?;
        let first = (start / BLOCK_BYTES) as usize;
        for (i, block) in bytes.chunks(BLOCK_BYTES as usize).enumerate() {
            if self.aux.block_crcs.get(first + i) != Some(&crc32c::crc32c(block)) {
                return Err(self.damaged(format!("block {} has another CRC-32C", first + i)));
            }
        }
        Ok((start, bytes))
    }

    async fn header_at(&mut self, at: u64) -> Result<BatchHeader, TierError> {
        let want = HEADER_BYTES_MAX.min((self.segment.size_bytes - at) as usize);
        let mut bytes = Vec::with_capacity(want);
        while bytes.len() < want {
            let more = self.read(at + bytes.len() as u64).await?;
            bytes.extend_from_slice(&more[..more.len().min(want - bytes.len())]);
        }
        header(&bytes).ok_or_else(|| self.damaged(format!("no batch begins at byte {at}")))
    }

    /// Where the batch with this first offset begins; `None`: none does.
    async fn position_of(&mut self, offset: i64) -> Result<Option<u64>, TierError> {
        let (mut position, mut end_before) = block_with(&self.aux.content_blocks, offset);
        while position < self.segment.size_bytes {
            let header = self.header_at(position).await?;
            let first = header.first_offset(end_before);
            if first >= offset {
                return Ok((first == offset).then_some(position));
            }
            end_before = header.last_offset.saturating_add(1);
            position += u64::from(header.size_bytes);
        }
        Ok(None)
    }

    /// The first byte of the span that is not the file's, as a position of the object.
    async fn first_difference(
        &mut self,
        file: &File,
        run: &Run,
        span: &Span,
    ) -> Result<Option<u64>, CompareError> {
        let mut at = span.start;
        while at < span.end {
            let theirs = self.read(at).await?;
            let theirs = &theirs[..theirs.len().min((span.end - at) as usize)];
            let mut ours = vec![0; theirs.len()];
            file.read_exact_at(&mut ours, run.file_start + (at - run.object_start))?;
            if let Some(i) = ours.iter().zip(theirs).position(|(a, b)| a != b) {
                return Ok(Some(at + i as u64));
            }
            at += theirs.len() as u64;
        }
        Ok(None)
    }
}

impl Tier {
    /// Compares a segment with the archive from its first byte on.
    pub(super) async fn compare_overlap(
        &self,
        job: &Job,
        prepared: &Prepared,
        chain: &Chain,
    ) -> Result<Overlap, TierError> {
        let size = prepared.scan.size_bytes;
        let mut done = Overlap { extents: Vec::new(), equal_bytes: 0, ending: Ending::Covered };
        let mut offset = job.base_offset;
        while done.equal_bytes < size {
            let Some(segment) = chain.covering(offset) else {
                done.ending = match chain.gap_at(offset) {
                    Some(gap) => {
                        let (from_offset, to_offset) = (gap.from_offset, gap.to_offset);
                        Ending::Gap { offset, from_offset, to_offset }
                    }
                    None => Ending::ArchiveEnds { offset },
                };
                return Ok(done);
            };
            let mut archived = self.open_archived(&job.chain, segment).await?;
            let Some(object_start) = archived.position_of(offset).await? else {
                let base = segment.base_offset;
                let why = format!("archived segment {base} has no batch that begins at {offset}");
                done.ending = Ending::Unclear(why);
                return Ok(done);
            };
            let file_start = done.equal_bytes;
            let len = (size - file_start).min(segment.size_bytes - object_start);
            let run = Run { first_offset: offset, file_start, object_start, len };
            if let Some(ending) = self.first_other(job, prepared, &mut archived, &run).await? {
                done.ending = ending;
                return Ok(done);
            }
            done.extents.push(Extent::of(segment, file_start..file_start + len, object_start));
            done.equal_bytes += len;
            offset = segment.end_offset;
        }
        Ok(done)
    }

    async fn open_archived<'a>(
        &'a self,
        chain: &ChainId,
        segment: &'a ArchivedSegment,
    ) -> Result<Archived<'a>, TierError> {
        let key = names::log_key(chain, segment.base_offset, &segment.upload_id);
        let aux_key = names::aux_key(chain, segment.base_offset, &segment.upload_id);
        let bytes = self.store.get(&aux_key, segment.aux_size_bytes.min(AUX_BYTES_MAX)).await?;
        let aux = Aux::parse(bytes, &segment.aux_sha256)
            .map_err(|why| TierError::Damaged { key: aux_key.to_string(), why: why.to_string() })?;
        Ok(Archived { store: &self.store, key, segment, aux, window: (0, Bytes::new()) })
    }

    /// The first batch of the run that the archive has otherwise.
    async fn first_other(
        &self,
        job: &Job,
        prepared: &Prepared,
        archived: &mut Archived<'_>,
        run: &Run,
    ) -> Result<Option<Ending>, TierError> {
        let spans = spans(&archived.aux.content_blocks, run);
        let unequal = {
            let (file, run, spans) = (prepared.file.clone(), *run, spans.clone());
            let hashed = tokio::task::spawn_blocking(move || first_unequal(&file, &run, &spans));
            let hashed = hashed.await.map_err(|_| TierError::Stopping)?;
            hashed.map_err(|e| job.source.local_error(e))?
        };
        for (i, span) in spans.iter().enumerate() {
            if span.hash.is_some() && unequal != Some(i) {
                continue;
            }
            let compared = archived.first_difference(&prepared.file, run, span).await;
            let compared = compared.map_err(|error| match error {
                CompareError::Local(error) => job.source.local_error(error),
                CompareError::Archived(error) => error,
            })?;
            let Some(at) = compared else {
                if span.hash.is_some() {
                    return Err(archived.damaged("a content block has another hash than its bytes"));
                }
                continue;
            };
            return self.difference(job, prepared, archived, run, (span, at)).await.map(Some);
        }
        Ok(None)
    }

    async fn difference(
        &self,
        job: &Job,
        prepared: &Prepared,
        archived: &mut Archived<'_>,
        run: &Run,
        (span, at): (&Span, u64),
    ) -> Result<Ending, TierError> {
        let in_file = |object_at: u64| run.file_start + (object_at - run.object_start);
        let from = (in_file(span.start), span.first_offset);
        let found = batch_at(&prepared.file, from, in_file(at));
        let Some((position, offset, local)) = found.map_err(|e| job.source.local_error(e))? else {
            return Ok(Ending::Unclear("a batch in it cannot be read".to_owned()));
        };
        let object_at = run.object_start + (position - run.file_start);
        let theirs = archived.header_at(object_at).await?;
        Ok(Ending::Differs(Difference {
            offset,
            position,
            archived_epoch: theirs.leader_epoch,
            local_epoch: local.leader_epoch,
            tile_base: archived.segment.base_offset,
            tile_position: (run.object_start == 0).then_some(run.file_start),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(first_offset: i64, length: u32, hash: u8) -> ContentBlock {
        ContentBlock { first_offset, length, hash: [hash; 16] }
    }

    #[test]
    fn whole_blocks_go_by_their_hash_and_edges_do_not() {
        let blocks = [block(0, 100, 1), block(10, 50, 2), block(20, 70, 3)];
        let run = |object_start, len| Run { first_offset: 3, file_start: 7, object_start, len };
        let ranges = |run: &Run| -> Vec<(u64, u64, bool)> {
            spans(&blocks, run).iter().map(|s| (s.start, s.end, s.hash.is_some())).collect()
        };
        let all = [(0, 100, true), (100, 150, true), (150, 220, true)];
        assert_eq!(ranges(&run(0, 220)), all);
        assert_eq!(ranges(&run(30, 130)), [(30, 100, false), (100, 150, true), (150, 160, false)]);
        assert_eq!(ranges(&run(110, 20)), [(110, 130, false)]);
    }

    #[test]
    fn an_offset_is_looked_for_from_the_block_that_it_must_be_in() {
        let blocks = [block(0, 100, 1), block(10, 50, 2), block(20, 70, 3)];
        let found = [(0, 0), (9, 0), (10, 100), (19, 100), (20, 150), (99, 150)];
        for (offset, position) in found {
            assert_eq!(block_with(&blocks, offset).0, position, "{offset}");
        }
    }

    #[test]
    fn the_first_block_with_other_bytes_is_found() {
        use std::io::Write as _;
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
        file.write_all(&bytes).unwrap();
        let hash = |bytes: &[u8]| {
            let mut hasher = ContentHash::default();
            hasher.update(bytes);
            Some(hasher.finish_reset())
        };
        let run = Run { first_offset: 0, file_start: 0, object_start: 0, len: 3_000_000 };
        let span = |start, end, hash| Span { start, end, first_offset: 0, hash };
        let mut all = vec![
            span(0, 10, None),
            span(10, 2_000_000, hash(&bytes[10..2_000_000])),
            span(2_000_000, 3_000_000, hash(&bytes[2_000_000..])),
        ];
        assert_eq!(first_unequal(&file, &run, &all).unwrap(), None);
        all[2].hash = Some([0; 16]);
        assert_eq!(first_unequal(&file, &run, &all).unwrap(), Some(2));
        all[1].hash = Some([0; 16]);
        assert_eq!(first_unequal(&file, &run, &all).unwrap(), Some(1));
    }
}
