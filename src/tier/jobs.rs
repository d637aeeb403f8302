//! From the log dir and the spool as they are now to the next job of a chain: snapshots for the plan.

use std::sync::Arc;

use super::Tier;
use super::holds::{HoldKind, SourceId};
use super::plan::{PartitionFacts, Place, SegmentFacts, next_segment};
use super::prepare::{Job, Source};
use crate::catalog::{Content, PartitionDir, SegmentView};
use crate::types::ChainId;

impl Tier {
    /// What a plan looks at.
    pub(super) fn snapshot(
        &self,
        dir: &PartitionDir,
        chain: &ChainId,
    ) -> (PartitionFacts, Vec<SegmentView>) {
        let segments = dir.segments();
        let fact = |s: &SegmentView| SegmentFacts {
            base_offset: s.base_offset,
            next_base: s.next_base,
            place: match s.log.content() {
                Content::Hot(_) => Place::Hot,
                Content::Cold(_) => Place::Cold,
                Content::Overlaid(..) => Place::Overlaid,
                Content::Broken(_) => Place::Broken,
            },
            archived: s.log.archived().is_some(),
            hold: self.holds.kind(&SourceId::Log(s.log.id), s.log.mutations()),
        };
        let name = dir.parsed();
        let facts = PartitionFacts {
            kind: name.kind,
            included: self.config.includes(dir.tp().topic()),
            committed: self.catalog.committed_offset(dir),
            archive_end: self.chains.view(chain).and_then(|c| c.end_offset()),
            segments: segments.iter().map(fact).collect(),
        };
        (facts, segments)
    }

    /// The next job of a partition of the log dir.
    pub(super) fn next_job(&self, dir: &Arc<PartitionDir>, chain: &ChainId) -> Option<Job> {
        let (facts, segments) = self.snapshot(dir, chain);
        let segment = &segments[next_segment(&facts)?];
        let source = Source::Log { dir: dir.clone(), log: segment.log.clone() };
        Some(Job {
            chain: chain.clone(),
            source,
            base_offset: segment.base_offset,
            next_base: segment.next_base,
            committed: facts.committed?,
            compacted: self.catalog.is_compacted(dir),
        })
    }

    /// The next job of a chain's entries in the spool.
    pub(super) fn next_spooled(&self, chain: &ChainId) -> Option<Job> {
        for entry in self.spool.wanted(chain) {
            match self.holds.kind(&SourceId::Spooled(entry.id.clone()), 0) {
                Some(HoldKind::Quarantined) => continue,
                Some(HoldKind::Held) => return None,
                None => {}
            }
            let doc = &entry.doc;
            return Some(Job {
                chain: chain.clone(),
                base_offset: doc.base_offset,
                next_base: doc.end_offset,
                committed: doc.committed_offset.unwrap_or(doc.base_offset),
                compacted: doc.compacted,
                source: Source::Spooled(Box::new(entry)),
            });
        }
        None
    }

    /// Remembers when segments were first seen closed. `now_ms` 0: before this process saw them roll.
    pub(super) fn note_rolls(&self, dir: &PartitionDir, now_ms: u64) {
        let mut rolled = self.rolled.lock();
        for segment in dir.segments().iter().filter(|s| s.next_base.is_some()) {
            rolled.entry(segment.log.id).or_insert(now_ms);
        }
    }

    pub(super) fn note_roll_time(&self, log_id: u64) {
        let seen = self.rolled.lock().get(&log_id).copied().filter(|ms| *ms > 0);
        if let Some(seen) = seen {
            let took = self.clock.now_ms().saturating_sub(seen);
            let mut times = self.roll_times.lock();
            times.count += 1;
            times.sum_ms += took;
            times.max_ms = times.max_ms.max(took);
        }
    }
}
