//! What the store says of a `.log` when it is read back, held against the scan that the manifest will speak of.
//!
//! Two checksums of every byte, in one pass: the CRC-32C of each block, and the XXH3-128 of each content block. The scan has
//! taken both, so the local file is not read again: what is compared is the store with what was judged, also if somebody has
//! written to the file meanwhile.

use crate::kafka::scan::{ContentBlock, ContentHash, SegmentScan};
use crate::types::BLOCK_BYTES;

/// Takes the bytes of a `.log`, in order and in pieces of any size.
pub(super) struct LogWitness {
    size_bytes: u64,
    blocks: Vec<u32>,
    contents: std::vec::IntoIter<ContentBlock>,
    at: u64,
    block_crc: u32,
    content: ContentHash,
    /// The content block at hand, and how many of its bytes are to come.
    expected: Option<(ContentBlock, u64)>,
    /// What is not as it was scanned; nothing behind it is looked at.
    differs: Option<String>,
}

impl LogWitness {
    /// Expects what was scanned.
    pub fn new(scan: &SegmentScan) -> Self {
        Self {
            size_bytes: scan.size_bytes,
            blocks: scan.block_crcs.clone(),
            contents: scan.content_blocks.clone().into_iter(),
            at: 0,
            block_crc: 0,
            content: ContentHash::default(),
            expected: None,
            differs: None,
        }
    }

    /// The next bytes.
    pub fn bytes(&mut self, mut piece: &[u8]) {
        while !piece.is_empty() && self.differs.is_none() {
            if self.at == self.size_bytes {
                self.differs = Some("more".to_owned());
                return;
            }
            let Some((_, left)) = self.next_content() else {
                self.differs = Some(format!("bytes behind {} that no batch is known of", self.at));
                return;
            };
            let block_left = BLOCK_BYTES - self.at % BLOCK_BYTES;
            let used = (piece.len() as u64).min(block_left).min(left);
            let (now, rest) = piece.split_at(used as usize);
            self.part(now);
            piece = rest;
        }
    }

    fn next_content(&mut self) -> Option<(ContentBlock, u64)> {
        if self.expected.is_none() {
            self.expected = self.contents.next().map(|c| (c, u64::from(c.length)));
        }
        self.expected
    }

    /// Bytes of one block and of one content block.
    fn part(&mut self, bytes: &[u8]) {
        self.block_crc = crc32c::crc32c_append(self.block_crc, bytes);
        self.content.update(bytes);
        self.at += bytes.len() as u64;
        if self.at.is_multiple_of(BLOCK_BYTES) || self.at == self.size_bytes {
            let number = ((self.at - 1) / BLOCK_BYTES) as usize;
            let found = std::mem::take(&mut self.block_crc);
            self.hold(self.blocks.get(number) == Some(&found), number as u64 * BLOCK_BYTES);
        }
        let Some((content, left)) = self.expected.take() else { return };
        let left = left - bytes.len() as u64;
        if left > 0 {
            self.expected = Some((content, left));
            return;
        }
        let found = self.content.finish_reset();
        self.hold(found == content.hash, self.at - u64::from(content.length));
    }

    fn hold(&mut self, equal: bool, from: u64) {
        if !equal && self.differs.is_none() {
            self.differs = Some(format!("others, between bytes {from} and {}", self.at));
        }
    }

    /// Whether all of it came, and as it was scanned; else what came instead.
    pub fn finish(self) -> Result<(), String> {
        match self.differs {
            Some(differs) => Err(differs),
            None if self.at < self.size_bytes => Err(format!("only {}", self.at)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::scan::{ScanOptions, SegmentScanner};
    use crate::kafka::testing::TestBatch;

    fn log() -> (Vec<u8>, SegmentScan) {
        let batches = (0..900).map(|i| TestBatch::new(i * 10, 10, 700).bytes());
        let bytes: Vec<u8> = batches.flatten().collect();
        let options = ScanOptions { base_offset: 0, compacted: false, index_interval_bytes: None };
        let mut scanner = SegmentScanner::new(options);
        scanner.update(&bytes).unwrap();
        let scan = scanner.finish().unwrap();
        assert!(scan.content_blocks.len() > 2 && scan.block_crcs.len() > 5);
        (bytes, scan)
    }

    fn judge(scan: &SegmentScan, bytes: &[u8], piece: usize) -> Result<(), String> {
        let mut witness = LogWitness::new(scan);
        bytes.chunks(piece).for_each(|p| witness.bytes(p));
        witness.finish()
    }

    #[test]
    fn what_was_scanned_is_recognised_in_pieces_of_any_size() {
        let (bytes, scan) = log();
        for piece in [1000, 4096, 65_536, 65_537, bytes.len()] {
            judge(&scan, &bytes, piece).unwrap();
        }
        let (mut empty, none) = (scan.clone(), Vec::new());
        (empty.size_bytes, empty.block_crcs, empty.content_blocks) = (0, Vec::new(), Vec::new());
        judge(&empty, &none, 1).unwrap();
    }

    #[test]
    fn a_flipped_bit_a_missing_and_an_extra_byte_are_found_wherever_they_are() {
        let (bytes, scan) = log();
        let last = bytes.len() - 1;
        for at in [0, 1, 65_535, 65_536, 65_537, 300_001, last] {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            let found = judge(&scan, &bad, 5000).unwrap_err();
            assert!(found.contains("others"), "{at}: {found}");
        }
        assert!(judge(&scan, &bytes[..last], 5000).is_err());
        assert!(judge(&scan, &[], 5000).unwrap_err().contains("only 0"));
        let longer = [bytes.as_slice(), b"x"].concat();
        assert_eq!(judge(&scan, &longer, 5000).unwrap_err(), "more");
        let mut swapped = bytes.clone();
        swapped[..65_536].copy_from_slice(&bytes[65_536..131_072]);
        assert!(judge(&scan, &swapped, 5000).is_err());
    }
}
