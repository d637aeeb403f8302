//! Segments that stay local until somebody looks at them, and why.
//!
//! In memory only: each mount finds them again by scanning. A hold is about one content of one file:
//! when the file changes, the hold no longer counts.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::types::ChainId;

/// What a segment is kept for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HoldKind {
    /// It breaks Kafka's rules; later segments proceed, its offsets become a named gap.
    Quarantined,
    /// The archive holds other bytes for its offsets; nothing of the partition proceeds.
    Held,
}

/// A file that can be held: of the log dir, or of the spool.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum SourceId {
    Log(u64),
    Spooled(String),
}

/// One held segment.
#[derive(Clone, Debug)]
pub(super) struct Hold {
    pub chain: ChainId,
    pub kind: HoldKind,
    /// The file's count of mutations when it was judged.
    pub mutations: u64,
    pub base_offset: i64,
    /// One past its last offset as far as known.
    pub end_offset: Option<i64>,
    /// Of the batch at fault.
    pub offset: Option<i64>,
    pub reason: String,
    /// Where it lies, for messages.
    pub label: String,
}

/// All holds, and how often they changed.
#[derive(Debug, Default)]
pub(super) struct Holds(Mutex<HashMap<SourceId, Hold>>, AtomicU64);

impl Holds {
    /// Another number after each change.
    pub fn revision(&self) -> u64 {
        self.1.load(Ordering::Acquire)
    }

    fn changed(&self) {
        self.1.fetch_add(1, Ordering::AcqRel);
    }

    /// Holds a segment; logs it unless it was held for the same reason before.
    pub fn put(&self, id: SourceId, hold: Hold) {
        let mut holds = self.0.lock();
        if holds.get(&id).is_none_or(|h| h.reason != hold.reason) {
            let (label, reason, offset) = (&hold.label, &hold.reason, hold.offset);
            match hold.kind {
                HoldKind::Quarantined => tracing::error!(
                    segment = %label, ?offset, %reason,
                    "segment quarantined: it stays on local disk and is not archived"
                ),
                HoldKind::Held => tracing::error!(
                    segment = %label, %reason,
                    "segment held: it stays on local disk, the archive keeps what it has"
                ),
            }
        }
        holds.insert(id, hold);
        self.changed();
    }

    /// Why this content of the file is held.
    pub fn kind(&self, id: &SourceId, mutations: u64) -> Option<HoldKind> {
        self.0.lock().get(id).filter(|h| h.mutations == mutations).map(|h| h.kind)
    }

    /// The file is gone or fine.
    pub fn forget(&self, id: &SourceId) {
        if self.0.lock().remove(id).is_some() {
            self.changed();
        }
    }

    /// A segment was archived: what was held behind it in the log dir is judged again. It may have contradicted a history that
    /// gave way by this, where a segment that was cut while it was cold came later than those behind it.
    pub fn lift_behind(&self, chain: &ChainId, base_offset: i64) {
        let lifted = |id: &SourceId, h: &Hold| {
            matches!(id, SourceId::Log(_))
                && h.kind == HoldKind::Held
                && h.chain == *chain
                && h.base_offset > base_offset
        };
        self.retain_those(|id, hold| !lifted(id, hold));
    }

    /// The file moved into the spool: its hold moves along.
    pub fn rename(&self, from: &SourceId, to: SourceId) {
        let mut holds = self.0.lock();
        if let Some(mut hold) = holds.remove(from) {
            hold.mutations = 0;
            holds.insert(to, hold);
            self.changed();
        }
    }

    /// Forgets those that the caller does not know any more.
    pub fn retain(&self, keep: impl Fn(&SourceId) -> bool) {
        self.retain_those(|id, _| keep(id));
    }

    fn retain_those(&self, keep: impl Fn(&SourceId, &Hold) -> bool) {
        let mut holds = self.0.lock();
        let before = holds.len();
        holds.retain(|id, hold| keep(id, hold));
        if holds.len() < before {
            self.changed();
        }
    }

    /// All of them, by chain and offset.
    pub fn all(&self) -> Vec<Hold> {
        let mut all: Vec<Hold> = self.0.lock().values().cloned().collect();
        all.sort_by(|a, b| (&a.chain, a.base_offset).cmp(&(&b.chain, b.base_offset)));
        all
    }

    /// Quarantined ranges of a chain, ascending: what a gap there is due to.
    pub fn quarantined(&self, chain: &ChainId) -> Vec<Missing> {
        let quarantined = |h: &Hold| h.kind == HoldKind::Quarantined && h.chain == *chain;
        let all = self.all().into_iter().filter(quarantined);
        all.map(|h| Missing {
            from_offset: h.base_offset,
            to_offset: h.end_offset,
            reason: format!("quarantined: {}", h.reason),
        })
        .collect()
    }
}

/// Offsets that are not archived and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Missing {
    pub from_offset: i64,
    /// `None`: up to whatever follows.
    pub to_offset: Option<i64>,
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::TopicId;

    #[test]
    fn what_is_held_behind_a_segment_is_judged_again_once_that_one_is_archived() {
        let chain = |tp: &str| ChainId { tp: tp.parse().unwrap(), topic_id: TopicId::none() };
        let holds = Holds::default();
        let put = |id: SourceId, tp: &str, kind, base_offset| {
            let (chain, reason, label) = (chain(tp), "other bytes".to_owned(), tp.to_owned());
            let (end_offset, offset, mutations) = (None, None, 7);
            holds.put(
                id,
                Hold { chain, kind, mutations, base_offset, end_offset, offset, reason, label },
            );
        };
        put(SourceId::Log(1), "a-0", HoldKind::Held, 50);
        put(SourceId::Log(2), "a-0", HoldKind::Held, 200);
        put(SourceId::Log(3), "a-0", HoldKind::Quarantined, 300);
        put(SourceId::Log(4), "b-0", HoldKind::Held, 200);
        put(SourceId::Spooled("x".to_owned()), "a-0", HoldKind::Held, 200);
        holds.lift_behind(&chain("a-0"), 100);
        let left: Vec<_> = (1..5).map(|n| holds.kind(&SourceId::Log(n), 7)).collect();
        let (held, quarantined) = (Some(HoldKind::Held), Some(HoldKind::Quarantined));
        assert_eq!(left, [held, None, quarantined, held]);
        assert_eq!(holds.kind(&SourceId::Spooled("x".to_owned()), 7), held);
    }
}
