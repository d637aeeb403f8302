//! One pass over a closed segment's `.log`: proves Kafka's rules and takes every checksum on the way.
//!
//! Bytes come in pieces of any size; what is remembered does not depend on how they were cut, and no
//! more than one batch header is ever held. Only a segment that passes may become the archive's
//! truth, so whatever a rule cannot accept ends the scan with position, offset and reason.

mod content;
mod order;

pub use content::{ContentBlock, ContentHash};

use super::batch::{BatchHeader, HEADER_BYTES_MAX, PREFIX_BYTES, crc_start, header_len};
use super::index::{BatchInfo, IndexBuilder};
use crate::types::{BLOCK_BYTES, EpochStart, Sha256, Sha256Hasher};
use content::ContentCutter;
use order::OrderRules;

/// What the scanner has to know of the segment beforehand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanOptions {
    /// The number in the file's name.
    pub base_offset: i64,
    /// Of a compacted topic: offsets may be missing.
    pub compacted: bool,
    /// Also build both indexes, with an entry after more than so many bytes.
    pub index_interval_bytes: Option<u32>,
}

/// Where and how a `.log` breaks Kafka's rules; such a segment is quarantined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Of the first byte of the batch at fault, from the file's start.
    pub position: u64,
    /// That batch's first offset as it stands; `None`: not even that is there.
    pub offset: Option<i64>,
    /// Which rule is broken.
    pub reason: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.offset {
            Some(offset) => {
                write!(f, "position {}, offset {offset}: {}", self.position, self.reason)
            }
            None => write!(f, "position {}: {}", self.position, self.reason),
        }
    }
}

impl std::error::Error for Violation {}

/// What a segment that keeps the rules consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentScan {
    /// Length of the `.log`.
    pub size_bytes: u64,
    /// Of the `.log`.
    pub sha256: Sha256,
    /// CRC-32C of each block of `BLOCK_BYTES`, the last one short.
    pub block_crcs: Vec<u32>,
    /// Pieces whose ends depend on batches and not on the segment's boundaries.
    pub content_blocks: Vec<ContentBlock>,
    /// Batches, of formats 0 and 1 top-level messages.
    pub batches: u64,
    /// One past the last offset; the base offset when there is no batch.
    pub end_offset: i64,
    /// Of the first batch; where that is a wrapper, the base offset: it does not say.
    pub first_offset: Option<i64>,
    /// Largest timestamp, milliseconds; -1: none.
    pub max_timestamp_ms: i64,
    /// Each leader epoch with the first offset that it wrote here.
    pub epochs: Vec<EpochStart>,
    /// `.index` and `.timeindex`, if asked for.
    pub index: Option<(Vec<u8>, Vec<u8>)>,
}

/// The checksum of the batch at hand, as far as its bytes have come.
enum BatchCrc {
    Castagnoli(u32),
    Ieee(crc32fast::Hasher),
}

impl BatchCrc {
    fn new(magic: u8) -> Self {
        if magic == 2 { Self::Castagnoli(0) } else { Self::Ieee(crc32fast::Hasher::new()) }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Castagnoli(crc) => *crc = crc32c::crc32c_append(*crc, bytes),
            Self::Ieee(hasher) => hasher.update(bytes),
        }
    }

    fn value(&self) -> u32 {
        match self {
            Self::Castagnoli(crc) => *crc,
            Self::Ieee(hasher) => hasher.clone().finalize(),
        }
    }
}

/// How far into the batch at hand the bytes have come.
enum Stage {
    /// The header is incomplete; `need` bytes of it are known to exist.
    Header { have: usize, need: usize },
    /// The header is read and may stand here; `left` bytes follow.
    Body { header: BatchHeader, crc: BatchCrc, left: usize },
}

const START: Stage = Stage::Header { have: 0, need: PREFIX_BYTES };

/// Scans one segment; see the module's text.
pub struct SegmentScanner {
    position: u64,
    sha: Sha256Hasher,
    block_crc: u32,
    block_crcs: Vec<u32>,
    content: ContentCutter,
    batch_start: u64,
    header_bytes: [u8; HEADER_BYTES_MAX],
    stage: Stage,
    order: OrderRules,
    index: Option<IndexBuilder>,
    violation: Option<Violation>,
}

impl SegmentScanner {
    /// At the first byte of a `.log`.
    #[must_use]
    pub fn new(options: ScanOptions) -> Self {
        Self {
            position: 0,
            sha: Sha256Hasher::default(),
            block_crc: 0,
            block_crcs: Vec::new(),
            content: ContentCutter::default(),
            batch_start: 0,
            header_bytes: [0; HEADER_BYTES_MAX],
            stage: START,
            order: OrderRules::new(options.base_offset, options.compacted),
            index: options
                .index_interval_bytes
                .map(|bytes| IndexBuilder::new(options.base_offset, bytes)),
            violation: None,
        }
    }

    /// The next bytes. After a violation every further call fails with the same one.
    pub fn update(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        self.update_with(bytes, &mut |_| {})
    }

    /// The next bytes; `seen` is told of each batch that is whole and keeps the rules.
    pub fn update_with(
        &mut self,
        bytes: &[u8],
        seen: &mut dyn FnMut(&BatchInfo),
    ) -> Result<(), Violation> {
        if let Some(violation) = &self.violation {
            return Err(violation.clone());
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let block_left = (BLOCK_BYTES - self.position % BLOCK_BYTES) as usize;
            let (piece, behind) = rest.split_at(block_left.min(rest.len()));
            if let Err(violation) = self.piece(piece, seen) {
                self.violation = Some(violation.clone());
                return Err(violation);
            }
            rest = behind;
        }
        Ok(())
    }

    /// The segment's end: fails when it is in the middle of a batch.
    pub fn finish(mut self) -> Result<SegmentScan, Violation> {
        if let Some(violation) = self.violation {
            return Err(violation);
        }
        if self.position != self.batch_start {
            let there = self.position - self.batch_start;
            let reason = match &self.stage {
                Stage::Header { .. } => format!("the log ends after {there} bytes of a header"),
                Stage::Body { header, .. } => {
                    format!("the log ends after {there} of {} bytes of a batch", header.size_bytes)
                }
            };
            return Err(self.fault(reason));
        }
        if !self.position.is_multiple_of(BLOCK_BYTES) {
            self.block_crcs.push(self.block_crc);
        }
        Ok(SegmentScan {
            size_bytes: self.position,
            sha256: self.sha.finish(),
            block_crcs: self.block_crcs,
            content_blocks: self.content.finish(),
            batches: self.order.batches,
            end_offset: self.order.end_offset,
            first_offset: self.order.first_offset,
            max_timestamp_ms: self.order.max_timestamp_ms,
            epochs: self.order.epochs,
            index: self.index.map(IndexBuilder::finish),
        })
    }

    /// Bytes of one block: small enough to stay in the CPU's cache while each checksum reads them.
    fn piece(&mut self, piece: &[u8], seen: &mut dyn FnMut(&BatchInfo)) -> Result<(), Violation> {
        let (mut at, mut content_from) = (0, 0);
        while at < piece.len() {
            let used = self.step(&piece[at..]).map_err(|reason| self.fault(reason))?;
            at += used;
            self.position += used as u64;
            let Some(header) = self.complete().map_err(|reason| self.fault(reason))? else {
                continue;
            };
            let batch = self.accept(header);
            seen(&batch);
            if self.content.ends_after(&batch) {
                self.content.bytes(&piece[content_from..at]);
                self.content.cut();
                content_from = at;
            }
        }
        self.content.bytes(&piece[content_from..]);
        self.sha.update(piece);
        self.block_crc = crc32c::crc32c_append(self.block_crc, piece);
        if self.position.is_multiple_of(BLOCK_BYTES) {
            self.block_crcs.push(std::mem::take(&mut self.block_crc));
        }
        Ok(())
    }

    /// Takes what it can of `bytes` (not empty) into the batch at hand; says how much that was.
    fn step(&mut self, bytes: &[u8]) -> Result<usize, String> {
        let (have, need) = match &mut self.stage {
            Stage::Body { crc, left, .. } => {
                let used = bytes.len().min(*left);
                crc.update(&bytes[..used]);
                *left -= used;
                return Ok(used);
            }
            Stage::Header { have, need } => (*have, *need),
        };
        let used = bytes.len().min(need - have);
        self.header_bytes[have..have + used].copy_from_slice(&bytes[..used]);
        let have = have + used;
        self.stage = Stage::Header { have, need };
        if have < need {
            return Ok(used);
        }
        let header_bytes = &self.header_bytes[..have];
        let need = header_len(header_bytes)?;
        if have < need {
            self.stage = Stage::Header { have, need };
            return Ok(used);
        }
        let header = BatchHeader::parse(header_bytes)?;
        self.order.admit(&header, self.batch_start)?;
        let mut crc = BatchCrc::new(header.magic);
        crc.update(&header_bytes[crc_start(header.magic)..]);
        // `header_len` has refused every length that does not hold the header.
        let left = (header.size_bytes as usize).saturating_sub(have);
        self.stage = Stage::Body { header, crc, left };
        Ok(used)
    }

    /// The batch at hand, once its last byte has come and its checksum is right.
    fn complete(&mut self) -> Result<Option<BatchHeader>, String> {
        let Stage::Body { header, crc, left: 0 } = &self.stage else { return Ok(None) };
        let (header, found) = (*header, crc.value());
        if found != header.stored_crc {
            return Err(format!(
                "its CRC is {found:08x}, its header says {:08x}",
                header.stored_crc
            ));
        }
        self.stage = START;
        Ok(Some(header))
    }

    fn accept(&mut self, header: BatchHeader) -> BatchInfo {
        let first_offset = self.order.accept(&header);
        // `admit` has refused every batch that ends behind 31 bits.
        let info = BatchInfo { header, first_offset, position: self.batch_start as u32 };
        if let Some(index) = &mut self.index {
            index.batch(&info);
        }
        self.batch_start = self.position;
        info
    }

    fn fault(&self, reason: String) -> Violation {
        let offset = match &self.stage {
            Stage::Header { have: 0..8, .. } => None,
            _ => self.header_bytes.first_chunk().map(|field| i64::from_be_bytes(*field)),
        };
        Violation { position: self.batch_start, offset, reason }
    }
}

#[cfg(test)]
mod tests;
