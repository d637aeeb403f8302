//! Kafka's `.index` and `.timeindex`: built from batch headers as its own recovery does, and judged.
//!
//! A rebuilt index is valid for every look-up, and mostly but not always equal to the one the broker
//! wrote (a restart in the middle of the segment shifts its entries). So original bytes are kept
//! where they exist, and are judged by what a look-up relies on, not by comparison.

use super::batch::BatchHeader;

/// Kafka's default for `index.interval.bytes`.
pub const INDEX_INTERVAL_BYTES: u32 = 4096;

/// A batch and where it lies in its `.log`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchInfo {
    /// What its header says.
    pub header: BatchHeader,
    /// Its first offset; of a wrapper, which does not say it, one past the batch before: not above it.
    pub first_offset: i64,
    /// Of its first byte.
    pub position: u32,
}

/// Which index, and so how long an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IndexKind {
    /// `.index`: i32 relative offset, i32 position.
    Offset,
    /// `.timeindex`: i64 timestamp, i32 relative offset.
    Time,
}

impl IndexKind {
    /// Length of one entry in bytes.
    #[must_use]
    pub const fn entry_bytes(self) -> usize {
        match self {
            Self::Offset => 8,
            Self::Time => 12,
        }
    }

    /// The field that grows strictly from entry to entry.
    fn key(self, entry: &[u8]) -> i64 {
        match self {
            Self::Offset => i64::from(be32(entry)),
            Self::Time => be64(entry),
        }
    }
}

fn be32(bytes: &[u8]) -> i32 {
    bytes.first_chunk().map_or(-1, |field| i32::from_be_bytes(*field))
}

fn be64(bytes: &[u8]) -> i64 {
    bytes.first_chunk().map_or(-1, |field| i64::from_be_bytes(*field))
}

/// Length of the part that holds entries: an active segment's index is longer, with zeros behind.
///
/// The part ends before the first entry that is not greater than the one before it. An entry of
/// zeros at the very start is one only in a `.timeindex` of that one entry (timestamp 0 is legal).
#[must_use]
pub fn trimmed_len(bytes: &[u8], kind: IndexKind) -> usize {
    let mut previous = match kind {
        IndexKind::Time if bytes.len() == kind.entry_bytes() => -1,
        IndexKind::Time if bytes.iter().take(kind.entry_bytes()).any(|&b| b != 0) => -1,
        IndexKind::Offset | IndexKind::Time => 0,
    };
    let mut entries = 0;
    for entry in bytes.chunks_exact(kind.entry_bytes()) {
        let key = kind.key(entry);
        if key <= previous {
            break;
        }
        previous = key;
        entries += 1;
    }
    entries * kind.entry_bytes()
}

/// Builds both indexes of a closed segment from its batches in file order.
#[derive(Clone, Debug)]
pub struct IndexBuilder {
    base_offset: i64,
    index_interval_bytes: u32,
    since_bytes: u64,
    best: (i64, i64),
    last_time: i64,
    index: Vec<u8>,
    timeindex: Vec<u8>,
}

impl IndexBuilder {
    /// Of the segment that begins at `base_offset`; an entry after more than `index_interval_bytes`.
    #[must_use]
    pub fn new(base_offset: i64, index_interval_bytes: u32) -> Self {
        Self {
            base_offset,
            index_interval_bytes,
            since_bytes: 0,
            best: (-1, base_offset),
            last_time: -1,
            index: Vec::new(),
            timeindex: Vec::new(),
        }
    }

    /// The next batch; its offsets lie within 31 bits of the segment's base (the scanner checked).
    pub fn batch(&mut self, batch: &BatchInfo) {
        let header = &batch.header;
        if header.max_timestamp_ms > self.best.0 {
            self.best = (header.max_timestamp_ms, header.last_offset);
        }
        if self.since_bytes > u64::from(self.index_interval_bytes) {
            self.index.extend_from_slice(&self.relative(header.last_offset));
            self.index.extend_from_slice(&batch.position.to_be_bytes());
            self.time_entry();
            self.since_bytes = 0;
        }
        self.since_bytes += u64::from(header.size_bytes);
    }

    /// The bytes of `.index` and `.timeindex`.
    #[must_use]
    pub fn finish(mut self) -> (Vec<u8>, Vec<u8>) {
        self.time_entry();
        (self.index, self.timeindex)
    }

    fn relative(&self, offset: i64) -> [u8; 4] {
        ((offset - self.base_offset) as u32).to_be_bytes()
    }

    fn time_entry(&mut self) {
        let (timestamp, offset) = self.best;
        if timestamp > self.last_time {
            self.timeindex.extend_from_slice(&timestamp.to_be_bytes());
            let relative = self.relative(offset);
            self.timeindex.extend_from_slice(&relative);
            self.last_time = timestamp;
        }
    }
}

/// Both indexes from a list of batches: what the broker's recovery of the segment would write.
pub fn rebuild(
    base_offset: i64,
    index_interval_bytes: u32,
    batches: impl IntoIterator<Item = BatchInfo>,
) -> (Vec<u8>, Vec<u8>) {
    let mut builder = IndexBuilder::new(base_offset, index_interval_bytes);
    batches.into_iter().for_each(|batch| builder.batch(&batch));
    builder.finish()
}

/// Why an index would lead a look-up astray; rebuild it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("index entry {entry}: {reason}")]
pub struct IndexFault {
    /// Number of the entry, from 0.
    pub entry: usize,
    /// What is wrong with it.
    pub reason: String,
}

fn fault(entry: usize, reason: String) -> IndexFault {
    IndexFault { entry, reason }
}

/// Whether every look-up in an `.index` finds its batch, judged while the `.log` goes by.
///
/// An entry is good when its position is a batch's start and its offset is not before that batch
/// and not behind the log. Older brokers name the last offset of several appended batches, the oldest
/// the first one of the batch: good too.
#[derive(Clone, Debug)]
pub struct IndexCheck<'a> {
    base_offset: i64,
    entries: &'a [u8],
    next: usize,
    last_offset: i64,
    fault: Option<IndexFault>,
}

impl<'a> IndexCheck<'a> {
    /// Of an `.index`, trimmed. Fails at once when the entries alone are impossible.
    pub fn new(bytes: &'a [u8], base_offset: i64) -> Result<Self, IndexFault> {
        let entries = entries(bytes, IndexKind::Offset)?;
        Ok(Self { base_offset, entries, next: 0, last_offset: base_offset, fault: None })
    }

    fn entry(&self, at: usize) -> Option<(i64, i64)> {
        let entry = self.entries.chunks_exact(8).nth(at)?;
        Some((self.base_offset + i64::from(be32(entry)), i64::from(be32(&entry[4..]))))
    }

    /// The next batch in file order.
    pub fn batch(&mut self, batch: &BatchInfo) {
        self.last_offset = batch.header.last_offset;
        let Some((offset, position)) = self.entry(self.next) else { return };
        if position > i64::from(batch.position) {
            return;
        }
        let first = batch.first_offset;
        let reason = if position < i64::from(batch.position) {
            format!("no batch begins at position {position}")
        } else if offset < first {
            format!("offset {offset} is before its batch at {first}")
        } else {
            self.next += 1;
            return;
        };
        self.fault.get_or_insert(fault(self.next, reason));
    }

    /// The log's end: the verdict.
    pub fn finish(self) -> Result<(), IndexFault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        if let Some((_, position)) = self.entry(self.next) {
            return Err(fault(self.next, format!("no batch begins at position {position}")));
        }
        let newest = self.next.checked_sub(1).and_then(|at| Some((at, self.entry(at)?.0)));
        match newest {
            Some((at, offset)) if offset > self.last_offset => Err(fault(
                at,
                format!("offset {offset} is behind the log's last, {}", self.last_offset),
            )),
            _ => Ok(()),
        }
    }
}

/// `IndexCheck` over a list of batches.
pub fn validate_index(
    bytes: &[u8],
    base_offset: i64,
    batches: impl IntoIterator<Item = BatchInfo>,
) -> Result<(), IndexFault> {
    let mut check = IndexCheck::new(bytes, base_offset)?;
    batches.into_iter().for_each(|batch| check.batch(&batch));
    check.finish()
}

/// Whether `.timeindex` bytes (trimmed) can belong to a segment of these offsets (`end` exclusive).
pub fn validate_timeindex(
    bytes: &[u8],
    base_offset: i64,
    end_offset: i64,
) -> Result<(), IndexFault> {
    let mut previous = 0;
    for (at, entry) in entries(bytes, IndexKind::Time)?.chunks_exact(12).enumerate() {
        let relative = i64::from(be32(&entry[8..]));
        if relative < previous {
            return Err(fault(at, format!("relative offset {relative} follows {previous}")));
        }
        if base_offset + relative >= end_offset.max(base_offset + 1) {
            return Err(fault(at, format!("relative offset {relative} is behind the log's end")));
        }
        previous = relative;
    }
    Ok(())
}

fn entries(bytes: &[u8], kind: IndexKind) -> Result<&[u8], IndexFault> {
    let trimmed = trimmed_len(bytes, kind);
    let at = trimmed / kind.entry_bytes();
    if !bytes.len().is_multiple_of(kind.entry_bytes()) {
        let reason = format!("{} bytes are no whole number of entries", bytes.len());
        return Err(fault(at, reason));
    }
    if trimmed != bytes.len() {
        return Err(fault(at, "is not greater than the one before it".to_owned()));
    }
    Ok(bytes)
}
