//! The header of one record batch, of all three of Kafka's message formats.
//!
//! A header is believed only in what its own bytes can prove; whether it may stand where it stands
//! is `scan`'s business. The CRC of format 2 does not cover the first 17 bytes (offset, length,
//! epoch, magic), that of formats 0 and 1 not the first 12 (offset, length), so a good CRC alone
//! proves nothing about those.

/// Bytes of a batch before and including its length field, which the length does not count.
pub const LENGTH_END: u32 = 12;
/// Bytes that must be there to know the format and so the header's length.
pub const PREFIX_BYTES: usize = 17;
/// Length of the longest header: that of format 2.
pub const HEADER_BYTES_MAX: usize = 61;

/// What one batch's header says (formats 0 and 1: one top-level message, which may wrap others).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// First offset; of a wrapper (`is_wrapper`) the *last* one, since it says no other.
    pub base_offset: i64,
    /// Last offset; kept when compaction removes the last records.
    pub last_offset: i64,
    /// Length of the whole batch in bytes, this header included.
    pub size_bytes: u32,
    /// 0, 1 or 2.
    pub magic: u8,
    /// Of the leader that wrote it; -1: unknown, always so in formats 0 and 1.
    pub leader_epoch: i32,
    /// The checksum stored in the batch: CRC-32C in format 2, else CRC-32.
    pub stored_crc: u32,
    /// Codec, timestamp type, transactional, control and delete-horizon bits.
    pub attributes: i16,
    /// Largest timestamp, milliseconds; -1: none.
    pub max_timestamp_ms: i64,
    /// Records left in it, at most its span of offsets; `None` in formats 0 and 1.
    pub records: Option<u32>,
}

const CODEC_BITS: i16 = 7;

/// Codecs are numbered from 0 (none); a format knows those up to its last. Readers of Kafka's give up
/// at any other, so nobody could read the records.
fn check_codec(attributes: i16, last: i16, magic: u8) -> Result<(), String> {
    let codec = attributes & CODEC_BITS;
    if codec > last {
        return Err(format!("codec {codec} is none of message format {magic}"));
    }
    Ok(())
}

fn be<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], String> {
    bytes
        .get(at..at + N)
        .and_then(|field| field.try_into().ok())
        .ok_or_else(|| format!("the header ends before byte {}", at + N))
}

/// Length of the header that begins with `prefix` (at least 17 bytes), or why it is none.
pub fn header_len(prefix: &[u8]) -> Result<usize, String> {
    let length = i32::from_be_bytes(be(prefix, 8)?);
    let [magic] = be(prefix, 16)?;
    let (header, length_min) = match magic {
        0 => (18, 14),
        1 => (26, 22),
        2 => (HEADER_BYTES_MAX, 49),
        other => return Err(format!("message format {other} is not known")),
    };
    if length < length_min {
        return Err(format!("length {length} is less than format {magic} needs ({length_min})"));
    }
    Ok(header)
}

/// Where the bytes that the checksum covers begin; they end with the batch.
#[must_use]
pub const fn crc_start(magic: u8) -> usize {
    if magic == 2 { 21 } else { 16 }
}

impl BatchHeader {
    /// Reads a header; `bytes` holds at least `header_len` bytes. Fails with the reason.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        header_len(bytes)?;
        let [magic] = be(bytes, 16)?;
        let base_offset = i64::from_be_bytes(be(bytes, 0)?);
        let length = i32::from_be_bytes(be(bytes, 8)?);
        let size_bytes = u32::try_from(length)
            .ok()
            .and_then(|length| length.checked_add(LENGTH_END))
            .ok_or_else(|| format!("length {length} is impossible"))?;
        if base_offset < 0 {
            return Err(format!("offset {base_offset} is negative"));
        }
        if magic == 2 {
            Self::parse_v2(bytes, base_offset, size_bytes)
        } else {
            Self::parse_legacy(bytes, base_offset, size_bytes, magic)
        }
    }

    fn parse_v2(bytes: &[u8], base_offset: i64, size_bytes: u32) -> Result<Self, String> {
        let leader_epoch = i32::from_be_bytes(be(bytes, 12)?);
        if leader_epoch < -1 {
            return Err(format!("leader epoch {leader_epoch} is impossible"));
        }
        let delta = i32::from_be_bytes(be(bytes, 23)?);
        let last_offset = (delta >= 0)
            .then(|| base_offset.checked_add(i64::from(delta)))
            .flatten()
            .ok_or_else(|| format!("last offset delta {delta} is impossible"))?;
        let attributes = i16::from_be_bytes(be(bytes, 21)?);
        check_codec(attributes, 4, 2)?;
        let count = i32::from_be_bytes(be(bytes, 57)?);
        let records = u32::try_from(count)
            .ok()
            .filter(|&count| i64::from(count) <= i64::from(delta) + 1)
            .ok_or_else(|| {
                format!("{count} records do not fit {} offsets", i64::from(delta) + 1)
            })?;
        Ok(Self {
            base_offset,
            last_offset,
            size_bytes,
            magic: 2,
            leader_epoch,
            stored_crc: u32::from_be_bytes(be(bytes, 17)?),
            attributes,
            max_timestamp_ms: i64::from_be_bytes(be(bytes, 35)?),
            records: Some(records),
        })
    }

    fn parse_legacy(bytes: &[u8], offset: i64, size_bytes: u32, magic: u8) -> Result<Self, String> {
        let [attributes] = be(bytes, 17)?;
        let attributes = i16::from(attributes);
        check_codec(attributes, 3, magic)?;
        let max_timestamp_ms = if magic == 1 { i64::from_be_bytes(be(bytes, 18)?) } else { -1 };
        Ok(Self {
            base_offset: offset,
            last_offset: offset,
            size_bytes,
            magic,
            leader_epoch: -1,
            stored_crc: u32::from_be_bytes(be(bytes, 12)?),
            attributes,
            max_timestamp_ms,
            records: None,
        })
    }

    /// A compressed message of format 0 or 1. It stands for all the messages inside, so it names
    /// the last offset only, and a checksum covers them all.
    #[must_use]
    pub const fn is_wrapper(&self) -> bool {
        self.magic < 2 && self.attributes & CODEC_BITS != 0
    }

    /// Its first offset, given the one past the batch before it: a wrapper is only known to begin
    /// there or behind it.
    #[must_use]
    pub const fn first_offset(&self, end_before: i64) -> i64 {
        if self.is_wrapper() { end_before } else { self.base_offset }
    }

    /// A control batch: its record ends a transaction and is no data.
    #[must_use]
    pub const fn is_control(&self) -> bool {
        self.magic == 2 && self.attributes & 0x20 != 0
    }
}
