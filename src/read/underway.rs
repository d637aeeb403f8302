//! What is being fetched now, for those who ask why something takes long.

use std::ops::Range;

use super::Reader;
use super::flights::{Stage, Underway};
use crate::types::{BLOCK_BYTES, ObjectKey};

/// One fetch that is under way or waits for its turn.
#[derive(Clone, Debug)]
pub struct FetchNow {
    /// Of this object.
    pub object: ObjectKey,
    /// These of its bytes, in whole blocks; the end may lie beyond the object's.
    pub bytes: Range<u64>,
    /// Those before this position can be had already.
    pub landed_to: u64,
    /// Somebody waits for it; else it is ahead of a reader.
    pub is_demand: bool,
    /// What it waits for, in words.
    pub waits_for: &'static str,
    /// Requests that failed and were or will be repeated.
    pub failures: u32,
}

impl From<Underway> for FetchNow {
    fn from(it: Underway) -> Self {
        let waits_for = match it.stage {
            Stage::Queued => "its turn among the requests",
            Stage::Asked => "the store's first bytes",
            Stage::Receiving => "the rest of the answer",
            Stage::Pausing => "a pause after a failed request",
        };
        Self {
            object: it.object,
            bytes: it.blocks.start * BLOCK_BYTES..it.blocks.end * BLOCK_BYTES,
            landed_to: it.landed_to * BLOCK_BYTES,
            is_demand: it.is_demand,
            waits_for,
            failures: it.failures,
        }
    }
}

impl FetchNow {
    /// Whether it brings bytes of a range that have not landed yet.
    #[must_use]
    pub fn is_for(&self, object: &ObjectKey, bytes: &Range<u64>) -> bool {
        let left = self.landed_to.max(self.bytes.start)..self.bytes.end;
        self.object == *object && left.start < bytes.end && bytes.start < left.end
    }
}

impl Reader {
    /// Everything that is fetched now, in no order. A moment later it may be otherwise.
    #[must_use]
    pub fn fetches(&self) -> Vec<FetchNow> {
        self.inner.flights.underway().into_iter().map(FetchNow::from).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_waits_for_the_fetch_of_the_bytes_that_have_not_landed() {
        let object = ObjectKey("a".into());
        let mib = 1 << 20;
        let fetch = FetchNow {
            object: object.clone(),
            bytes: 4 * mib..8 * mib,
            landed_to: 5 * mib,
            is_demand: true,
            waits_for: "",
            failures: 0,
        };
        assert!(fetch.is_for(&object, &(5 * mib..6 * mib)));
        assert!(fetch.is_for(&object, &(mib..6 * mib)));
        assert!(!fetch.is_for(&object, &(4 * mib..5 * mib)), "it is there");
        assert!(!fetch.is_for(&object, &(8 * mib..9 * mib)));
        assert!(!fetch.is_for(&ObjectKey("b".into()), &(5 * mib..6 * mib)));
    }
}
