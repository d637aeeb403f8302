//! The `.aux` object (`docs/FORMATS.md`, 2.4): what belongs to a segment besides its `.log`.
//!
//! Kafka's small files as they were, the checksum of every 64 KiB block that reads are verified
//! with, the hashes that prove equality of replicas, and the manifest's record of the segment. An
//! `Aux` in memory was checked against the SHA-256 in the manifest: there is no other way to get one.

use bytes::{BufMut as _, Bytes, BytesMut};

use crate::kafka::scan::ContentBlock;
use crate::types::{ArchivedSegment, Sha256, block_count};

const MAGIC: &[u8; 8] = b"EVERLAUX";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 16;
const ENTRY_BYTES: usize = 24;
const CRC_BYTES: usize = 4;
const BLOCK_HASH_BYTES: usize = 28;
/// Kinds that exist and may come to exist.
const SECTIONS_MAX: usize = 64;

const INDEX: u32 = 1;
const TIMEINDEX: u32 = 2;
const TXNINDEX: u32 = 3;
const SNAPSHOT: u32 = 4;
const EPOCHS: u32 = 5;
const BLOCK_CRCS: u32 = 6;
const BLOCK_HASHES: u32 = 7;
const SEGMENT: u32 = 8;

/// Why the bytes are not the `.aux` they should be. All of them mean damage or a newer Everlog.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuxError {
    /// Not the object that the manifest names.
    #[error("its SHA-256 is {found}, the manifest says {expected}")]
    WrongSha {
        /// In the manifest.
        expected: Sha256,
        /// Of the bytes.
        found: Sha256,
    },
    /// Written by a newer Everlog.
    #[error("it has version {found}, this Everlog reads version {VERSION}: use a newer one")]
    UnknownVersion {
        /// In the header.
        found: u16,
    },
    /// The layout is broken.
    #[error("it is damaged: {0}")]
    Damaged(String),
}

fn damaged(why: impl Into<String>) -> AuxError {
    AuxError::Damaged(why.into())
}

/// What goes into an `.aux`.
#[derive(Clone, Debug)]
pub struct AuxBuilder {
    /// `<base>.index` as Kafka left it.
    pub index: Option<Bytes>,
    /// `<base>.timeindex`
    pub timeindex: Option<Bytes>,
    /// `<base>.txnindex`
    pub txnindex: Option<Bytes>,
    /// `<base>.snapshot`
    pub snapshot: Option<Bytes>,
    /// The partition's `leader-epoch-checkpoint`.
    pub epochs: Option<Bytes>,
    /// CRC-32C per 64 KiB block of the `.log`.
    pub block_crcs: Vec<u32>,
    /// The content blocks of the `.log`.
    pub content_blocks: Vec<ContentBlock>,
    /// The manifest's record; its `files`, `aux_size_bytes` and `aux_sha256` are set by `build`.
    pub segment: ArchivedSegment,
}

impl AuxBuilder {
    /// The object's bytes, and the segment's record completed with its size, hash and files.
    pub fn build(self) -> Result<(Bytes, ArchivedSegment), AuxError> {
        let mut segment = self.segment;
        let size = |part: &Option<Bytes>| part.as_ref().map(|b| b.len() as u64);
        segment.files.index = size(&self.index);
        segment.files.timeindex = size(&self.timeindex);
        segment.files.txnindex = size(&self.txnindex);
        segment.files.snapshot = size(&self.snapshot);
        segment.aux_size_bytes = 0;
        segment.aux_sha256 = Sha256([0; 32]);
        check_block_count(&segment, self.block_crcs.len())?;
        let record = serde_json::to_vec(&segment).map_err(|e| damaged(e.to_string()))?;
        let sections: Vec<(u32, Bytes)> = [
            (INDEX, self.index),
            (TIMEINDEX, self.timeindex),
            (TXNINDEX, self.txnindex),
            (SNAPSHOT, self.snapshot),
            (EPOCHS, self.epochs),
            (BLOCK_CRCS, Some(encode_crcs(&self.block_crcs))),
            (BLOCK_HASHES, Some(encode_hashes(&self.content_blocks))),
            (SEGMENT, Some(Bytes::from(record))),
        ]
        .into_iter()
        .filter_map(|(kind, bytes)| bytes.map(|b| (kind, b)))
        .collect();
        let bytes = assemble(&sections);
        segment.aux_size_bytes = bytes.len() as u64;
        segment.aux_sha256 = Sha256::of(&bytes);
        Ok((bytes, segment))
    }
}

fn check_block_count(segment: &ArchivedSegment, found: usize) -> Result<(), AuxError> {
    let expected = block_count(segment.size_bytes);
    if found as u64 == expected {
        return Ok(());
    }
    Err(damaged(format!("{found} block checksums, a log of this size has {expected} blocks")))
}

fn encode_crcs(crcs: &[u32]) -> Bytes {
    let mut out = BytesMut::with_capacity(crcs.len() * 4);
    crcs.iter().for_each(|crc| out.put_u32(*crc));
    out.freeze()
}

fn encode_hashes(blocks: &[ContentBlock]) -> Bytes {
    let mut out = BytesMut::with_capacity(blocks.len() * BLOCK_HASH_BYTES);
    for block in blocks {
        out.put_i64(block.first_offset);
        out.put_u32(block.length);
        out.put_slice(&block.hash);
    }
    out.freeze()
}

fn assemble(sections: &[(u32, Bytes)]) -> Bytes {
    let table_end = HEADER_BYTES + ENTRY_BYTES * sections.len() + CRC_BYTES;
    let mut out = BytesMut::new();
    out.put_slice(MAGIC);
    out.put_u16(VERSION);
    out.put_u16(sections.len() as u16);
    out.put_u32(0);
    let mut offset = table_end as u64;
    for (kind, bytes) in sections {
        out.put_u32(*kind);
        out.put_u32(crc32c::crc32c(bytes));
        out.put_u64(offset);
        out.put_u64(bytes.len() as u64);
        offset += bytes.len() as u64;
    }
    let crc = crc32c::crc32c(&out);
    out.put_u32(crc);
    sections.iter().for_each(|(_, bytes)| out.put_slice(bytes));
    out.freeze()
}

/// A verified `.aux`. The parts share the object's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aux {
    /// `<base>.index` as Kafka left it.
    pub index: Option<Bytes>,
    /// `<base>.timeindex`
    pub timeindex: Option<Bytes>,
    /// `<base>.txnindex`
    pub txnindex: Option<Bytes>,
    /// `<base>.snapshot`
    pub snapshot: Option<Bytes>,
    /// The partition's `leader-epoch-checkpoint` when the segment was archived.
    pub epochs: Option<Bytes>,
    /// CRC-32C per 64 KiB block of the `.log`.
    pub block_crcs: Vec<u32>,
    /// The content blocks of the `.log`, in order.
    pub content_blocks: Vec<ContentBlock>,
    /// The manifest's record, with `aux_size_bytes` and `aux_sha256` zero.
    pub segment: ArchivedSegment,
}

impl Aux {
    /// Checks everything and takes the object apart.
    pub fn parse(bytes: Bytes, expected_sha: &Sha256) -> Result<Self, AuxError> {
        let found = Sha256::of(&bytes);
        if found != *expected_sha {
            return Err(AuxError::WrongSha { expected: *expected_sha, found });
        }
        let sections = Sections::parse(bytes)?;
        let needed = |kind| {
            let missing = || damaged(format!("section {kind} is missing"));
            sections.get(kind).and_then(|section| section.ok_or_else(missing))
        };
        let segment: ArchivedSegment = serde_json::from_slice(&needed(SEGMENT)?)
            .map_err(|e| damaged(format!("the segment's record: {e}")))?;
        let aux = Self {
            index: sections.get(INDEX)?,
            timeindex: sections.get(TIMEINDEX)?,
            txnindex: sections.get(TXNINDEX)?,
            snapshot: sections.get(SNAPSHOT)?,
            epochs: sections.get(EPOCHS)?,
            block_crcs: decode_crcs(&needed(BLOCK_CRCS)?)?,
            content_blocks: decode_hashes(&needed(BLOCK_HASHES)?)?,
            segment,
        };
        aux.check()?;
        Ok(aux)
    }

    fn check(&self) -> Result<(), AuxError> {
        check_block_count(&self.segment, self.block_crcs.len())?;
        let files = self.segment.files;
        for (name, part, size) in [
            ("index", &self.index, files.index),
            ("timeindex", &self.timeindex, files.timeindex),
            ("txnindex", &self.txnindex, files.txnindex),
            ("snapshot", &self.snapshot, files.snapshot),
        ] {
            if part.as_ref().map(|b| b.len() as u64) != size {
                return Err(damaged(format!("the size of {name} is not the record's")));
            }
        }
        Ok(())
    }
}

fn decode_crcs(bytes: &Bytes) -> Result<Vec<u32>, AuxError> {
    if !bytes.len().is_multiple_of(4) {
        return Err(damaged("the block checksums are cut off"));
    }
    Ok(bytes.chunks_exact(4).map(|c| u32_at(c, 0)).collect())
}

fn decode_hashes(bytes: &Bytes) -> Result<Vec<ContentBlock>, AuxError> {
    if !bytes.len().is_multiple_of(BLOCK_HASH_BYTES) {
        return Err(damaged("the block hashes are cut off"));
    }
    let decode = |chunk: &[u8]| {
        let mut hash = [0; 16];
        hash.copy_from_slice(&chunk[12..BLOCK_HASH_BYTES]);
        ContentBlock { first_offset: u64_at(chunk, 0) as i64, length: u32_at(chunk, 8), hash }
    };
    Ok(bytes.chunks_exact(BLOCK_HASH_BYTES).map(decode).collect())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().fold(0, |n, b| n << 8 | u32::from(*b))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) << 32 | u64::from(u32_at(bytes, at + 4))
}

/// The object with its checked table.
struct Sections {
    bytes: Bytes,
    table: Vec<Entry>,
}

struct Entry {
    kind: u32,
    crc: u32,
    start: usize,
    end: usize,
}

impl Sections {
    fn parse(bytes: Bytes) -> Result<Self, AuxError> {
        if bytes.len() < HEADER_BYTES + CRC_BYTES || !bytes.starts_with(MAGIC) {
            return Err(damaged("it does not begin as one"));
        }
        let version = (u32_at(&bytes, 8) >> 16) as u16;
        let count = (u32_at(&bytes, 8) & 0xffff) as usize;
        if version != VERSION {
            return Err(AuxError::UnknownVersion { found: version });
        }
        let table_end = HEADER_BYTES + ENTRY_BYTES * count;
        if count > SECTIONS_MAX || bytes.len() < table_end + CRC_BYTES {
            return Err(damaged(format!("a table of {count} sections does not fit")));
        }
        if crc32c::crc32c(&bytes[..table_end]) != u32_at(&bytes, table_end) {
            return Err(damaged("the checksum of its table"));
        }
        let mut table: Vec<Entry> = Vec::with_capacity(count);
        let mut expected = (table_end + CRC_BYTES) as u64;
        for raw in bytes[HEADER_BYTES..table_end].chunks_exact(ENTRY_BYTES) {
            let (kind, crc) = (u32_at(raw, 0), u32_at(raw, 4));
            let (start, length) = (u64_at(raw, 8), u64_at(raw, 16));
            let end = start.checked_add(length).filter(|end| *end <= bytes.len() as u64);
            let Some(end) = end.filter(|_| start == expected) else {
                return Err(damaged(format!("section {kind} does not lie where it should")));
            };
            if table.iter().any(|entry| entry.kind == kind) {
                return Err(damaged(format!("section {kind} occurs twice")));
            }
            expected = end;
            table.push(Entry { kind, crc, start: start as usize, end: end as usize });
        }
        if expected != bytes.len() as u64 {
            return Err(damaged("there are bytes behind its sections"));
        }
        Ok(Self { bytes, table })
    }

    fn get(&self, kind: u32) -> Result<Option<Bytes>, AuxError> {
        let Some(entry) = self.table.iter().find(|entry| entry.kind == kind) else {
            return Ok(None);
        };
        let section = self.bytes.slice(entry.start..entry.end);
        if crc32c::crc32c(&section) != entry.crc {
            return Err(damaged(format!("the checksum of section {kind}")));
        }
        Ok(Some(section))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{EpochStart, FileSizes, UploadId};

    fn builder(size_bytes: u64) -> AuxBuilder {
        let segment = ArchivedSegment {
            base_offset: 42,
            end_offset: 99,
            size_bytes,
            upload_id: UploadId::from_random(7),
            sha256: Sha256::of(b"log"),
            mtime_ns: 5,
            max_timestamp_ms: 6,
            batches: 3,
            epochs: vec![EpochStart { epoch: 1, start_offset: 42 }],
            compacted: false,
            aux_size_bytes: 0,
            aux_sha256: Sha256([0; 32]),
            files: FileSizes::default(),
        };
        AuxBuilder {
            index: Some(Bytes::from_static(b"index 8b")),
            timeindex: Some(Bytes::new()),
            txnindex: None,
            snapshot: Some(Bytes::from_static(b"snapshot")),
            epochs: Some(Bytes::from_static(b"0\n0\n")),
            block_crcs: (0..block_count(size_bytes) as u32).map(|i| i.wrapping_mul(77)).collect(),
            content_blocks: vec![ContentBlock { first_offset: -5, length: 10, hash: [9; 16] }],
            segment,
        }
    }

    #[test]
    fn an_aux_reads_back_what_was_built() {
        for size_bytes in [0, 1, 65_536, 65_537, 10_000_000] {
            let input = builder(size_bytes);
            let (bytes, record) = input.clone().build().unwrap();
            assert_eq!(record.aux_size_bytes, bytes.len() as u64);
            assert_eq!(record.files.index, Some(8));
            assert_eq!(record.files.timeindex, Some(0), "empty is not absent");
            assert_eq!(record.files.txnindex, None);
            let aux = Aux::parse(bytes, &record.aux_sha256).unwrap();
            assert_eq!(aux.index, input.index);
            assert_eq!(aux.timeindex, input.timeindex);
            assert_eq!(aux.txnindex, None);
            assert_eq!(aux.epochs, input.epochs);
            assert_eq!(aux.block_crcs, input.block_crcs);
            assert_eq!(aux.content_blocks, input.content_blocks);
            let zeroed =
                ArchivedSegment { aux_size_bytes: 0, aux_sha256: Sha256([0; 32]), ..record };
            assert_eq!(aux.segment, zeroed);
        }
    }

    #[test]
    fn every_flipped_bit_is_found_even_without_the_manifests_hash() {
        let (bytes, record) = builder(200_000).build().unwrap();
        let whole = Aux::parse(bytes.clone(), &record.aux_sha256).unwrap();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut bad = bytes.to_vec();
                bad[at] ^= 1 << bit;
                let wrong = Aux::parse(bad.clone().into(), &record.aux_sha256).unwrap_err();
                assert!(matches!(wrong, AuxError::WrongSha { .. }));
                // With a hash that fits the damage, the checksums inside must find it.
                let sha = Sha256::of(&bad);
                assert_ne!(Aux::parse(bad.into(), &sha).as_ref(), Ok(&whole), "byte {at}");
                assert!(Aux::parse(bytes.clone(), &sha).is_err());
            }
        }
    }

    #[test]
    fn a_newer_version_and_a_cut_object_are_refused() {
        let (bytes, _) = builder(1).build().unwrap();
        let mut newer = bytes.to_vec();
        newer[9] = 2;
        let sha = Sha256::of(&newer);
        let refused = AuxError::UnknownVersion { found: 2 };
        assert_eq!(Aux::parse(newer.into(), &sha), Err(refused));
        for length in 0..bytes.len() {
            let cut = bytes.slice(..length);
            let sha = Sha256::of(&cut);
            assert!(Aux::parse(cut, &sha).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn sections_of_unknown_kinds_are_ignored() {
        let (bytes, _) = builder(1).build().unwrap();
        let known = Sections::parse(bytes).unwrap();
        let mut sections: Vec<(u32, Bytes)> = known
            .table
            .iter()
            .map(|entry| (entry.kind, known.bytes.slice(entry.start..entry.end)))
            .collect();
        sections.insert(3, (4711, Bytes::from_static(b"from the future")));
        let extended = assemble(&sections);
        let sha = Sha256::of(&extended);
        assert_eq!(Aux::parse(extended, &sha).unwrap().segment.base_offset, 42);
    }

    #[test]
    fn checksums_that_do_not_fit_the_log_are_not_built() {
        let mut short = builder(65_537);
        short.block_crcs.pop();
        assert!(short.build().is_err());
    }
}
