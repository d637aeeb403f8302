//! Pieces of an answer, until they make whole blocks. Nothing is copied.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use crate::types::BLOCK_BYTES;

/// Received and not yet written, of one flight: more is not asked of the network meanwhile.
const GROUP_BYTES_MAX: u64 = 1024 * 1024;

/// What has come and was not taken.
pub(super) struct Gather {
    pieces: VecDeque<Bytes>,
    bytes: u64,
    /// Of the answer, not here yet.
    left_bytes: u64,
}

impl Gather {
    /// For an answer of this length.
    pub fn new(answer_bytes: u64) -> Self {
        Self { pieces: VecDeque::new(), bytes: 0, left_bytes: answer_bytes }
    }

    /// Whether there is more to come and room for it.
    pub fn wants_more(&self) -> bool {
        self.left_bytes > 0 && self.bytes < GROUP_BYTES_MAX
    }

    /// The next piece of the answer.
    pub fn push(&mut self, piece: Bytes) {
        let len = piece.len() as u64;
        self.bytes += len;
        self.left_bytes = self.left_bytes.saturating_sub(len);
        if len > 0 {
            self.pieces.push_back(piece);
        }
    }

    /// All whole blocks that are here (the answer's last one may be short).
    pub fn take_blocks(&mut self) -> Option<Vec<Bytes>> {
        let whole = match self.left_bytes {
            0 => self.bytes,
            _ => self.bytes / BLOCK_BYTES * BLOCK_BYTES,
        };
        if whole == 0 {
            return None;
        }
        let (mut taken, mut wanted) = (Vec::with_capacity(self.pieces.len()), whole);
        while wanted > 0 {
            let Some(mut piece) = self.pieces.pop_front() else { break };
            if piece.len() as u64 > wanted {
                self.pieces.push_front(piece.split_off(wanted as usize));
            }
            wanted -= piece.len() as u64;
            taken.push(piece);
        }
        self.bytes -= whole;
        Some(taken)
    }
}

/// The first `len` bytes of the pieces in one.
pub(super) fn joined(pieces: &[Bytes], len: usize) -> Bytes {
    if let [one, ..] = pieces
        && one.len() >= len
    {
        return one.slice(..len);
    }
    let mut out = BytesMut::with_capacity(len);
    for piece in pieces {
        let part = piece.len().min(len - out.len());
        out.extend_from_slice(&piece[..part]);
    }
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: usize = BLOCK_BYTES as usize;

    #[test]
    fn only_whole_blocks_leave_until_the_answer_is_complete() {
        let all: Bytes = (0..2 * BLOCK + 10).map(|i| (i / 7) as u8).collect::<Vec<_>>().into();
        for size in [1000, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK] {
            let mut gather = Gather::new(all.len() as u64);
            let mut got = Vec::new();
            for piece in all.chunks(size) {
                assert!(gather.wants_more());
                gather.push(Bytes::copy_from_slice(piece));
                if let Some(pieces) = gather.take_blocks() {
                    let bytes = joined(&pieces, pieces.iter().map(Bytes::len).sum());
                    assert!(bytes.len().is_multiple_of(BLOCK) || !gather.wants_more());
                    got.extend_from_slice(&bytes);
                }
            }
            assert!(got == all && !gather.wants_more() && gather.take_blocks().is_none());
        }
    }

    #[test]
    fn no_more_is_wanted_while_much_waits_to_be_written() {
        let mut gather = Gather::new(10 * GROUP_BYTES_MAX);
        gather.push(vec![0; GROUP_BYTES_MAX as usize].into());
        assert!(!gather.wants_more());
        gather.take_blocks().unwrap();
        assert!(gather.wants_more());
    }

    #[test]
    fn joining_takes_the_first_bytes_only() {
        let pieces = [Bytes::from_static(b"abc"), Bytes::from_static(b"defg")];
        assert_eq!(joined(&pieces, 5), "abcde");
        assert_eq!(joined(&pieces, 2), "ab");
    }
}
