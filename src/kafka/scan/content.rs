//! Cuts a `.log` into content blocks: the rule stands in `docs/FORMATS.md` 2.4, kind 7.
//!
//! A block's end depends on the batches in it and not on where a broker rolled its segments, so two
//! replicas with other boundaries still have most blocks in common, and can prove it.

use xxhash_rust::xxh3::Xxh3Default;

use crate::kafka::index::BatchInfo;

/// A block is at an end once it is this long.
const CONTENT_BLOCK_BYTES: u64 = 4 * 1024 * 1024;
/// A batch whose stored CRC is divisible by this ends a block.
const CUT_DIVISOR: u32 = 64;

/// A run of whole batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentBlock {
    /// Of its first batch; of a wrapper, one past the batch before.
    pub first_offset: i64,
    /// In bytes.
    pub length: u32,
    /// XXH3-128 of its bytes.
    pub hash: [u8; 16],
}

/// The hash of a content block: 128 bits, for batches whose CRCs, offsets and leader epochs are checked
/// anyway; at a tenth of the price of another SHA-256.
#[derive(Default)]
pub struct ContentHash(Xxh3Default);

impl ContentHash {
    /// The next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Of all bytes; begins again.
    pub fn finish_reset(&mut self) -> [u8; 16] {
        let hash = self.0.digest128().to_be_bytes();
        self.0.reset();
        hash
    }
}

/// Takes bytes and batch ends; holds no bytes.
#[derive(Default)]
pub(super) struct ContentCutter {
    blocks: Vec<ContentBlock>,
    hasher: ContentHash,
    first_offset: Option<i64>,
    length: u64,
}

impl ContentCutter {
    /// A batch is complete: whether the block ends with it. Its bytes may still be on their way.
    pub(super) fn ends_after(&mut self, batch: &BatchInfo) -> bool {
        let header = &batch.header;
        self.first_offset.get_or_insert(batch.first_offset);
        self.length += u64::from(header.size_bytes);
        header.stored_crc.is_multiple_of(CUT_DIVISOR) || self.length >= CONTENT_BLOCK_BYTES
    }

    /// Bytes of the block at hand.
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
    }

    /// The block at hand has all its bytes.
    pub(super) fn cut(&mut self) {
        let hash = self.hasher.finish_reset();
        // A segment has less than 2 GiB, and so has a block.
        let length = std::mem::take(&mut self.length) as u32;
        if let Some(first_offset) = self.first_offset.take() {
            self.blocks.push(ContentBlock { first_offset, length, hash });
        }
    }

    /// All blocks; the log ends at a batch's end.
    pub(super) fn finish(mut self) -> Vec<ContentBlock> {
        self.cut();
        self.blocks
    }
}
