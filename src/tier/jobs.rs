//! From the log dir and the spool as they are now to the next job of a chain: snapshots for the plan.

use std::sync::Arc;

use super::Tier;
use super::fate::Fate;
use super::holds::SourceId;
use super::pace::BEHIND_MS;
use super::plan::{PartitionFacts, Place, SegmentFacts, next_segment};
use super::prepare::{Job, Source};
use crate::catalog::{Content, LogFile, PartitionDir, SegmentView};
use crate::kafka::names::{DirKind, FileKind, Suffix, parse_file};
use crate::types::ChainId;

/// Whether the cleaner is about to put its results in place: then a segment may have no plain name.
pub(super) fn is_swapping(dir: &PartitionDir) -> bool {
    let parsed = |(name, _): &(String, _)| parse_file(name);
    dir.all_logs().iter().filter_map(parsed).any(|n| n.suffix == Suffix::Swap)
}

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
        // After the snapshot: one that lacks a name was made while the `.swap` was there.
        if is_swapping(dir) {
            return None;
        }
        if let Some(job) = self.next_retired(dir, chain, &facts) {
            return Some(self.spooled_before(chain, &facts, job.base_offset).unwrap_or(job));
        }
        let segment = &segments[next_segment(&facts)?];
        if let Some(job) = self.spooled_before(chain, &facts, segment.base_offset) {
            return Some(job);
        }
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

    /// The lowest segment that retention has renamed and not unlinked yet and that continues the archive:
    /// were a later one archived first, it would become a gap.
    fn next_retired(
        &self,
        dir: &Arc<PartitionDir>,
        chain: &ChainId,
        facts: &PartitionFacts,
    ) -> Option<Job> {
        let committed = facts.committed?;
        if !facts.included || facts.kind != DirKind::Live || self.catalog.is_compacted(dir) {
            return None;
        }
        let job = |(file, log): (String, Arc<LogFile>)| {
            let name = parse_file(&file)
                .filter(|n| n.kind == FileKind::Log && n.suffix == Suffix::Deleted)?;
            let note = self.fate_of_deleted(dir, &log, &file, name.base_offset);
            let next_base = note.next_base.filter(|next| *next <= committed)?;
            let continues = facts.archive_end.is_none_or(|end| next_base > end);
            let waits = log.is_hot() && log.archived().is_none();
            let held = self.holds.kind(&SourceId::Log(log.id), log.mutations()).is_some();
            (note.fate == Fate::Retention && continues && waits && !held).then(|| Job {
                chain: chain.clone(),
                source: Source::Log { dir: dir.clone(), log },
                base_offset: name.base_offset,
                next_base: Some(next_base),
                committed,
                compacted: false,
            })
        };
        dir.all_logs().into_iter().filter_map(job).min_by_key(|j| j.base_offset)
    }

    /// An entry of the spool that lies between the archive's end and `base`.
    fn spooled_before(&self, chain: &ChainId, facts: &PartitionFacts, base: i64) -> Option<Job> {
        let from = facts.archive_end.unwrap_or(i64::MIN);
        self.spooled_from(chain, from).filter(|job| job.base_offset < base)
    }

    /// The next job of a chain's entries in the spool.
    pub(super) fn next_spooled(&self, chain: &ChainId) -> Option<Job> {
        self.spooled_from(chain, i64::MIN)
    }

    /// The lowest entry that reaches `from_offset` or lies behind it. One on hold stops nobody: what follows it in the spool
    /// is judged for itself, and its offsets can still be filled in later.
    fn spooled_from(&self, chain: &ChainId, from_offset: i64) -> Option<Job> {
        for entry in self.spool.wanted(chain) {
            let held = self.holds.kind(&SourceId::Spooled(entry.id.clone()), 0).is_some();
            let last = entry.doc.end_offset.map_or(entry.doc.base_offset, |end| end - 1);
            if held || last < from_offset {
                continue;
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
            rolled.entry(segment.log.id).or_insert_with(|| {
                dir.touch();
                now_ms
            });
        }
    }

    /// Says whether archiving is behind: a segment waits for longer than a busy moment lasts.
    pub(super) fn tell_pace(&self, job: &Job) {
        let Some(pace) = &self.pace else { return };
        let since_ms = match &job.source {
            Source::Log { log, .. } => self.rolled.lock().get(&log.id).copied().unwrap_or(0),
            Source::Spooled(entry) => entry.doc.discarded_ms,
        };
        let waited_ms = self.clock.now_ms().saturating_sub(since_ms);
        pace.set_behind(since_ms > 0 && waited_ms > BEHIND_MS);
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
