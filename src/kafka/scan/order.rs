//! Whether a batch may stand where it stands: what its own checksum cannot prove.
//!
//! The first 17 bytes of a batch are under no CRC of Kafka's, so offsets, length and leader epoch
//! are believed only when they agree with the batches around them. Of a wrapper of format 0 or 1 that
//! is less: how many offsets it stands for is known only inside, under its compression, so there may
//! be any number of them before the one that it names.

use crate::kafka::batch::BatchHeader;
use crate::types::EpochStart;

/// What the batches so far have established.
pub(super) struct OrderRules {
    base_offset: i64,
    compacted: bool,
    pub(super) batches: u64,
    pub(super) end_offset: i64,
    pub(super) first_offset: Option<i64>,
    pub(super) max_timestamp_ms: i64,
    pub(super) epochs: Vec<EpochStart>,
}

impl OrderRules {
    pub(super) fn new(base_offset: i64, compacted: bool) -> Self {
        Self {
            base_offset,
            compacted,
            batches: 0,
            end_offset: base_offset,
            first_offset: None,
            max_timestamp_ms: -1,
            epochs: Vec::new(),
        }
    }

    /// Whether a batch with this header may follow, `position` bytes into the file; else why not.
    pub(super) fn admit(&self, header: &BatchHeader, position: u64) -> Result<(), String> {
        if position + u64::from(header.size_bytes) > i32::MAX as u64 {
            return Err(format!("it ends {} bytes behind 2 GiB - 1 or more", header.size_bytes));
        }
        if header.last_offset - self.base_offset > i64::from(i32::MAX) {
            return Err(format!(
                "offset {} is more than 31 bits from the segment's base {}",
                header.last_offset, self.base_offset
            ));
        }
        self.admit_offset(header)?;
        match self.epochs.last() {
            Some(last) if header.leader_epoch >= 0 && header.leader_epoch < last.epoch => {
                Err(format!("leader epoch {} follows epoch {}", header.leader_epoch, last.epoch))
            }
            _ => Ok(()),
        }
    }

    fn admit_offset(&self, header: &BatchHeader) -> Result<(), String> {
        let (offset, end) = (header.base_offset, self.end_offset);
        if self.batches == 0 {
            return if offset < self.base_offset {
                Err(format!("it begins before the segment's base {}", self.base_offset))
            } else {
                Ok(())
            };
        }
        if offset < end {
            return Err(format!("offset {offset} stands where {end} or more is due"));
        }
        let exact = !self.compacted && !header.is_wrapper();
        if exact && offset != end {
            return Err(format!("offset {offset} follows {}: offsets are missing", end - 1));
        }
        Ok(())
    }

    /// Takes an admitted batch whose checksum was right; returns its first offset (`BatchInfo`).
    pub(super) fn accept(&mut self, header: &BatchHeader) -> i64 {
        let first_offset = header.first_offset(self.end_offset);
        self.batches += 1;
        // Not above `base_offset` plus 31 bits, except at the top of i64, where nothing can follow.
        self.end_offset = header.last_offset.saturating_add(1);
        self.first_offset.get_or_insert(first_offset);
        self.max_timestamp_ms = self.max_timestamp_ms.max(header.max_timestamp_ms);
        let newer = self.epochs.last().is_none_or(|last| header.leader_epoch > last.epoch);
        if header.leader_epoch >= 0 && newer {
            let (epoch, start_offset) = (header.leader_epoch, header.base_offset);
            self.epochs.push(EpochStart { epoch, start_offset });
        }
        first_offset
    }
}
