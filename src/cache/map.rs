//! The block map's bytes (`docs/FORMATS.md` 3.3): which blocks of an object are on disk, and what
//! each must sum to.
//!
//! Invariant: nothing is taken from a map whose header and checksum column do not sum up, and a
//! block's state counts only if it is the one value that fits this block and this checksum. Pure
//! bytes to values; no I/O.

use crate::types::{BLOCK_BYTES, ObjectKey, Sha256, block_count};

/// Length of the header, and position of the first entry.
pub const HEADER_BYTES: usize = 4096;
/// Longest key that fits the header, in bytes.
pub const KEY_BYTES_MAX: usize = 3900;
/// Length of a block's entry: expected CRC-32C, state.
pub const ENTRY_BYTES: usize = 8;

const MAGIC: &[u8; 8] = b"EVERLMAP";
const VERSION: u32 = 1;
const KEY_AT: usize = 62;
const HEADER_CRC_AT: usize = HEADER_BYTES - 4;

/// Why a map cannot be believed. The remedy is always the same: remove it with its data.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MapError {
    /// Some byte is not what was written.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    /// Written by another Everlog.
    #[error("it has version {found}, this Everlog reads version 1")]
    UnknownVersion {
        /// In the header.
        found: u32,
    },
}

/// A map that sums up.
#[derive(Debug, PartialEq, Eq)]
pub struct BlockMap {
    /// Of the object.
    pub key: ObjectKey,
    /// Of the object.
    pub size_bytes: u64,
    /// Of the `.aux` that the checksums come from.
    pub aux_sha256: Sha256,
    /// CRC-32C per block.
    pub expected: Vec<u32>,
    /// Whether the block was filled.
    pub present: Vec<bool>,
    /// States that were neither "absent" nor the right mark; those blocks count as absent.
    pub damaged_states: u64,
}

/// The mark of a filled block.
#[must_use]
pub fn state_of(block: u64, expected: u32) -> u32 {
    let crc = crc32c::crc32c(&block.to_be_bytes());
    crc32c::crc32c_append(crc, &expected.to_be_bytes()) | 1
}

/// Position in the map of a block's entry, in bytes.
#[must_use]
pub fn entry_position(block: u64) -> u64 {
    HEADER_BYTES as u64 + block * ENTRY_BYTES as u64
}

/// Entries of consecutive blocks, from `first_block` on, all filled or all absent.
#[must_use]
pub fn entries(first_block: u64, expected: &[u32], filled: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(expected.len() * ENTRY_BYTES);
    for (block, &crc) in (first_block..).zip(expected) {
        let state = if filled { state_of(block, crc) } else { 0 };
        out.extend_from_slice(&crc.to_be_bytes());
        out.extend_from_slice(&state.to_be_bytes());
    }
    out
}

fn column_crc(expected: &[u32]) -> u32 {
    expected.iter().fold(0, |crc, sum| crc32c::crc32c_append(crc, &sum.to_be_bytes()))
}

/// The whole map of an object of which nothing is filled yet. `None`: the key is too long.
#[must_use]
pub fn encode(key: &ObjectKey, size_bytes: u64, aux: &Sha256, expected: &[u32]) -> Option<Vec<u8>> {
    let text = key.as_str().as_bytes();
    if text.len() > KEY_BYTES_MAX {
        return None;
    }
    let mut out = Vec::with_capacity(HEADER_BYTES + expected.len() * ENTRY_BYTES);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_be_bytes());
    out.extend_from_slice(&(BLOCK_BYTES as u32).to_be_bytes());
    out.extend_from_slice(&size_bytes.to_be_bytes());
    out.extend_from_slice(&aux.0);
    out.extend_from_slice(&column_crc(expected).to_be_bytes());
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text);
    out.resize(HEADER_CRC_AT, 0);
    out.extend_from_slice(&crc32c::crc32c(&out).to_be_bytes());
    out.extend_from_slice(&entries(0, expected, false));
    Some(out)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// Reads a whole map file.
pub fn parse(bytes: &[u8]) -> Result<BlockMap, MapError> {
    const SHORT: MapError = MapError::Damaged("it is too short");
    let header = bytes.get(..HEADER_BYTES).ok_or(SHORT)?;
    if header.get(..8) != Some(MAGIC) {
        return Err(MapError::Damaged("it is not a block map"));
    }
    let stored = u32_at(header, HEADER_CRC_AT).ok_or(SHORT)?;
    if crc32c::crc32c(&header[..HEADER_CRC_AT]) != stored {
        return Err(MapError::Damaged("its header does not sum up"));
    }
    let found = u32_at(header, 8).ok_or(SHORT)?;
    if found != VERSION {
        return Err(MapError::UnknownVersion { found });
    }
    if u32_at(header, 12) != Some(BLOCK_BYTES as u32) {
        return Err(MapError::Damaged("its block size is not 65536"));
    }
    let size_bytes = u64_at(header, 16).ok_or(SHORT)?;
    let mut aux = [0u8; 32];
    aux.copy_from_slice(&header[24..56]);
    let key_bytes = usize::from(u16::from_be_bytes([header[60], header[61]]));
    let key = header[..HEADER_CRC_AT]
        .get(KEY_AT..KEY_AT + key_bytes)
        .and_then(|text| std::str::from_utf8(text).ok())
        .ok_or(MapError::Damaged("its key is not readable"))?;

    let body = &bytes[HEADER_BYTES..];
    if Some(body.len() as u64) != block_count(size_bytes).checked_mul(ENTRY_BYTES as u64) {
        return Err(MapError::Damaged("its length does not fit the object's size"));
    }
    let (mut expected, mut states) = (Vec::new(), Vec::new());
    for entry in body.chunks_exact(ENTRY_BYTES) {
        expected.push(u32_at(entry, 0).ok_or(SHORT)?);
        states.push(u32_at(entry, 4).ok_or(SHORT)?);
    }
    if u32_at(header, 56) != Some(column_crc(&expected)) {
        return Err(MapError::Damaged("its checksums do not sum up"));
    }
    let right = |block: usize| states[block] == state_of(block as u64, expected[block]);
    let present: Vec<bool> = (0..states.len()).map(right).collect();
    let odd = states.iter().zip(&present).filter(|(state, present)| **state != 0 && !**present);
    let damaged_states = odd.count() as u64;
    let key = ObjectKey(key.to_owned());
    Ok(BlockMap { key, size_bytes, aux_sha256: Sha256(aux), expected, present, damaged_states })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let key = ObjectKey("topics/t-0/x/0.log".into());
        let mut bytes = encode(&key, 150_000, &Sha256([7; 32]), &[11, 22, 33]).unwrap();
        let filled = entries(1, &[22], true);
        bytes[HEADER_BYTES + 8..HEADER_BYTES + 16].copy_from_slice(&filled);
        bytes
    }

    #[test]
    fn a_map_reads_back_what_was_written() {
        let map = parse(&sample()).unwrap();
        assert_eq!(map.key.as_str(), "topics/t-0/x/0.log");
        assert_eq!((map.size_bytes, map.aux_sha256), (150_000, Sha256([7; 32])));
        assert_eq!(map.expected, [11, 22, 33]);
        assert_eq!((map.present, map.damaged_states), (vec![false, true, false], 0));
    }

    #[test]
    fn no_flipped_bit_makes_a_block_present_or_changes_a_checksum() {
        let good = parse(&sample()).unwrap();
        for at in 0..sample().len() {
            for bit in 0..8 {
                let mut bad = sample();
                bad[at] ^= 1 << bit;
                let Ok(map) = parse(&bad) else { continue };
                assert!(at >= HEADER_BYTES, "header byte {at} bit {bit} was believed");
                assert_eq!(map.expected, good.expected, "byte {at} bit {bit}");
                assert_eq!(map.damaged_states, 1, "byte {at} bit {bit}");
                assert!(!map.present[0] && !map.present[2], "byte {at} bit {bit}");
            }
        }
    }

    #[test]
    fn an_unknown_version_is_named() {
        let mut bytes = sample();
        bytes[11] = 9;
        let crc = crc32c::crc32c(&bytes[..HEADER_CRC_AT]);
        bytes[HEADER_CRC_AT..HEADER_BYTES].copy_from_slice(&crc.to_be_bytes());
        assert_eq!(parse(&bytes), Err(MapError::UnknownVersion { found: 9 }));
    }

    #[test]
    fn a_map_of_another_length_is_refused() {
        let mut bytes = sample();
        bytes.pop();
        assert!(parse(&bytes).is_err());
        assert!(parse(&bytes[..100]).is_err());
        let mut longer = sample();
        longer.extend_from_slice(&[0; 8]);
        assert!(parse(&longer).is_err());
    }
}
