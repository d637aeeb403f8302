//! A chain in memory: the archived segments and named gaps of one partition, and the rules by which
//! a change may alter them (`docs/FORMATS.md`, section 2.2).
//!
//! Invariant: segments and gaps tile the offsets from the chain's start to its end, without overlap
//! and without a hole. A change that would break this is refused as a whole. Pure: no I/O.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::types::{ArchivedSegment, ChainId};

use super::documents::PageRef;

/// Offsets `[from_offset, to_offset)` that the archive does not have, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// The first.
    pub from_offset: i64,
    /// One past the last.
    pub to_offset: i64,
    /// For people: quarantined, or discarded before Everlog saw them.
    pub reason: String,
}

/// One step of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// A segment at the chain's end; on an empty chain it sets the start.
    Add(ArchivedSegment),
    /// Offsets that the archive lacks, at the chain's end; on an empty chain they set the start.
    Gap {
        /// The first.
        from_offset: i64,
        /// One past the last.
        to_offset: i64,
        /// For people.
        reason: String,
    },
    /// The segments and gaps whose base lies in the range give way to these segments. What they
    /// leave uncovered becomes a gap.
    Replace {
        /// The first offset; a segment or gap begins here.
        from_offset: i64,
        /// One past the last; a segment or gap ends here.
        to_offset: i64,
        /// Ascending, inside the range, not overlapping.
        segments: Vec<ArchivedSegment>,
    },
    /// The log was truncated and went on otherwise: whatever begins at this offset or behind it gives way to
    /// these segments, and the chain ends where they end.
    Fork {
        /// A segment or gap begins here.
        from_offset: i64,
        /// The first begins there, each of the others where the one before it ends.
        segments: Vec<ArchivedSegment>,
        /// For people.
        reason: String,
    },
}

/// A tile of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Item {
    /// Offsets that are archived.
    Segment(Arc<ArchivedSegment>),
    /// Offsets that are not.
    Gap(Gap),
}

impl Item {
    /// Its first offset.
    #[must_use]
    pub fn from_offset(&self) -> i64 {
        match self {
            Self::Segment(segment) => segment.base_offset,
            Self::Gap(gap) => gap.from_offset,
        }
    }

    /// One past its last offset.
    #[must_use]
    pub fn to_offset(&self) -> i64 {
        match self {
            Self::Segment(segment) => segment.end_offset,
            Self::Gap(gap) => gap.to_offset,
        }
    }
}

/// Why a change does not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// It does not start where the chain ends.
    #[error("it starts at offset {found}, the chain ends at {expected}")]
    NotAtEnd {
        /// The chain's end.
        expected: i64,
        /// The change's start.
        found: i64,
    },
    /// Offsets that make no range.
    #[error("[{from_offset}, {to_offset}) is not a range of offsets")]
    EmptyRange {
        /// As given.
        from_offset: i64,
        /// As given.
        to_offset: i64,
    },
    /// A replaced range begins or ends inside a segment or gap, or outside the chain.
    #[error("offset {offset} is no boundary of a segment or gap in the chain")]
    NoBoundary {
        /// The offset.
        offset: i64,
    },
    /// New segments overlap, descend or leave the range that they replace.
    #[error("segment {base_offset} does not lie inside the range behind its predecessor")]
    Misplaced {
        /// The first such segment.
        base_offset: i64,
    },
    /// Nothing to commit, or too much for one version.
    #[error("{count} changes: one version holds 1 to {max}")]
    Count {
        /// As given.
        count: usize,
        /// The limit.
        max: usize,
    },
}

/// The checkpoint that the next one builds on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CheckpointRef {
    pub(super) version: u64,
    pub(super) pages: Vec<PageRef>,
}

/// One chain at one version.
#[derive(Clone, Debug)]
pub struct Chain {
    id: ChainId,
    version: u64,
    segments: BTreeMap<i64, Arc<ArchivedSegment>>,
    gaps: BTreeMap<i64, Gap>,
    pub(super) checkpoint: Option<CheckpointRef>,
    /// Offsets whose tiles changed since `checkpoint`.
    pub(super) dirty: Vec<(i64, i64)>,
}

/// Beyond this many separate changed ranges, everything between them counts as changed.
const DIRTY_RANGES_MAX: usize = 256;

impl PartialEq for Chain {
    /// Equal content at an equal version; how it was learned does not matter.
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
            && self.version == other.version
            && self.segments == other.segments
            && self.gaps == other.gaps
    }
}

impl Chain {
    /// Version 0: nothing archived.
    #[must_use]
    pub fn empty(id: ChainId) -> Self {
        Self {
            id,
            version: 0,
            segments: BTreeMap::new(),
            gaps: BTreeMap::new(),
            checkpoint: None,
            dirty: Vec::new(),
        }
    }

    /// As a checkpoint says. Fails when the items do not tile.
    pub(super) fn from_items(
        id: ChainId,
        checkpoint: CheckpointRef,
        items: Vec<Item>,
    ) -> Result<Self, ChainError> {
        let mut chain = Self::empty(id);
        for item in items {
            chain.append(item)?;
        }
        chain.version = checkpoint.version;
        chain.checkpoint = Some(checkpoint);
        chain.dirty.clear();
        Ok(chain)
    }

    /// Whose it is.
    #[must_use]
    pub fn id(&self) -> &ChainId {
        &self.id
    }

    /// The newest version contained; 0: none was ever committed.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The first offset of the archive, or of a gap that stands at its start; `None` when empty.
    #[must_use]
    pub fn start_offset(&self) -> Option<i64> {
        let firsts = [self.segments.keys().next(), self.gaps.keys().next()];
        firsts.into_iter().flatten().min().copied()
    }

    /// Where the next segment must start; `None` when empty.
    #[must_use]
    pub fn end_offset(&self) -> Option<i64> {
        let segment = self.segments.values().next_back().map(|s| s.end_offset);
        segment.max(self.gaps.values().next_back().map(|g| g.to_offset))
    }

    /// All segments by base offset.
    #[must_use]
    pub fn segments(&self) -> &BTreeMap<i64, Arc<ArchivedSegment>> {
        &self.segments
    }

    /// All gaps by their first offset.
    #[must_use]
    pub fn gaps(&self) -> &BTreeMap<i64, Gap> {
        &self.gaps
    }

    /// The segment with this base offset.
    #[must_use]
    pub fn find(&self, base_offset: i64) -> Option<&Arc<ArchivedSegment>> {
        self.segments.get(&base_offset)
    }

    /// The segment that answers for this offset; `None` in a gap and outside the chain.
    #[must_use]
    pub fn covering(&self, offset: i64) -> Option<&Arc<ArchivedSegment>> {
        let (_, segment) = self.segments.range(..=offset).next_back()?;
        (offset < segment.end_offset).then_some(segment)
    }

    /// The gap that this offset lies in.
    #[must_use]
    pub fn gap_at(&self, offset: i64) -> Option<&Gap> {
        let (_, gap) = self.gaps.range(..=offset).next_back()?;
        (offset < gap.to_offset).then_some(gap)
    }

    /// What overlaps `[from_offset, to_offset)`, ascending: its own range, and whether it is a gap.
    pub fn overlapping(
        &self,
        from_offset: i64,
        to_offset: i64,
    ) -> impl Iterator<Item = (i64, i64, bool)> + '_ {
        let segment = self.covering(from_offset).map(|s| s.base_offset);
        let gap = self.gap_at(from_offset).map(|g| g.from_offset);
        let first = segment.or(gap).unwrap_or(from_offset);
        self.items_from(first)
            .take_while(move |item| item.from_offset() < to_offset)
            .map(|item| (item.from_offset(), item.to_offset(), matches!(item, Item::Gap(_))))
    }

    /// Segments and gaps in the order of their offsets, from the tile at or behind `from_offset`.
    pub fn items_from(&self, from_offset: i64) -> impl Iterator<Item = Item> + '_ {
        let mut segments = self.segments.range(from_offset..).map(|(_, s)| s).peekable();
        let mut gaps = self.gaps.range(from_offset..).map(|(_, g)| g).peekable();
        std::iter::from_fn(move || match (segments.peek(), gaps.peek()) {
            (Some(segment), Some(gap)) if gap.from_offset < segment.base_offset => {
                gaps.next().map(|g| Item::Gap(g.clone()))
            }
            (Some(_), _) => segments.next().map(|s| Item::Segment(Arc::clone(s))),
            (None, _) => gaps.next().map(|g| Item::Gap(g.clone())),
        })
    }

    /// Whether all changes fit, one after the other. Alters nothing.
    pub fn check(&self, changes: &[Change]) -> Result<(), ChainError> {
        if changes.iter().any(|c| matches!(c, Change::Replace { .. } | Change::Fork { .. })) {
            let mut copy = self.clone();
            return changes.iter().try_for_each(|change| copy.apply_one(change));
        }
        let mut end = self.end_offset();
        for change in changes {
            let (from, to) = appended_range(change);
            check_append(end, from, to)?;
            end = Some(to);
        }
        Ok(())
    }

    /// Applies one change; on an error nothing is altered. The version stays.
    pub fn apply(&mut self, change: &Change) -> Result<(), ChainError> {
        self.apply_one(change)
    }

    /// Applies all changes of the next version; on an error nothing is altered.
    pub(super) fn advance(&mut self, changes: &[Change]) -> Result<(), ChainError> {
        self.check(changes)?;
        changes.iter().try_for_each(|change| self.apply_one(change))?;
        self.version += 1;
        Ok(())
    }

    fn apply_one(&mut self, change: &Change) -> Result<(), ChainError> {
        match change {
            Change::Add(segment) => self.append(Item::Segment(Arc::new(segment.clone()))),
            Change::Gap { from_offset, to_offset, reason } => self.append(Item::Gap(Gap {
                from_offset: *from_offset,
                to_offset: *to_offset,
                reason: reason.clone(),
            })),
            Change::Replace { from_offset, to_offset, segments } => {
                self.replace(*from_offset, *to_offset, segments)?;
                self.mark_dirty(*from_offset, *to_offset);
                Ok(())
            }
            Change::Fork { from_offset, segments, .. } => self.fork(*from_offset, segments),
        }
    }

    fn fork(&mut self, from: i64, new: &[ArchivedSegment]) -> Result<(), ChainError> {
        if !self.segments.contains_key(&from) && !self.gaps.contains_key(&from) {
            return Err(ChainError::NoBoundary { offset: from });
        }
        let mut end = from;
        for segment in new {
            check_append(Some(end), segment.base_offset, segment.end_offset)?;
            end = segment.end_offset;
        }
        check_range(from, end)?;
        let was_end = self.end_offset().unwrap_or(end);
        self.segments.split_off(&from);
        self.gaps.split_off(&from);
        self.segments.extend(new.iter().map(|s| (s.base_offset, Arc::new(s.clone()))));
        self.mark_dirty(from, end.max(was_end));
        Ok(())
    }

    fn append(&mut self, item: Item) -> Result<(), ChainError> {
        let (from, to) = (item.from_offset(), item.to_offset());
        check_append(self.end_offset(), from, to)?;
        match item {
            Item::Segment(segment) => drop(self.segments.insert(from, segment)),
            Item::Gap(gap) => drop(self.gaps.insert(from, gap)),
        }
        self.mark_dirty(from, to);
        Ok(())
    }

    fn replace(&mut self, from: i64, to: i64, new: &[ArchivedSegment]) -> Result<(), ChainError> {
        check_range(from, to)?;
        if !self.segments.contains_key(&from) && !self.gaps.contains_key(&from) {
            return Err(ChainError::NoBoundary { offset: from });
        }
        let continues = self.segments.contains_key(&to) || self.gaps.contains_key(&to);
        if !continues && self.end_offset() != Some(to) {
            return Err(ChainError::NoBoundary { offset: to });
        }
        let mut covered = from;
        let mut uncovered = Vec::new();
        for segment in new {
            check_range(segment.base_offset, segment.end_offset)?;
            if segment.base_offset < covered || segment.end_offset > to {
                return Err(ChainError::Misplaced { base_offset: segment.base_offset });
            }
            uncovered.push((covered, segment.base_offset));
            covered = segment.end_offset;
        }
        uncovered.push((covered, to));
        self.segments.retain(|base, _| !(from..to).contains(base));
        self.gaps.retain(|base, _| !(from..to).contains(base));
        self.segments.extend(new.iter().map(|s| (s.base_offset, Arc::new(s.clone()))));
        for (from_offset, to_offset) in uncovered.into_iter().filter(|(f, t)| f < t) {
            let reason = "not covered by the segments that replaced it".to_owned();
            self.gaps.insert(from_offset, Gap { from_offset, to_offset, reason });
        }
        Ok(())
    }

    fn mark_dirty(&mut self, from: i64, to: i64) {
        match self.dirty.last_mut() {
            Some(last) if last.1 == from => last.1 = to,
            _ => self.dirty.push((from, to)),
        }
        if self.dirty.len() > DIRTY_RANGES_MAX {
            let low = self.dirty.iter().map(|r| r.0).min().unwrap_or(from);
            let high = self.dirty.iter().map(|r| r.1).max().unwrap_or(to);
            self.dirty = vec![(low, high)];
        }
    }
}

fn appended_range(change: &Change) -> (i64, i64) {
    match change {
        Change::Fork { from_offset, segments, .. } => {
            (*from_offset, segments.last().map_or(*from_offset, |s| s.end_offset))
        }
        Change::Add(segment) => (segment.base_offset, segment.end_offset),
        Change::Gap { from_offset, to_offset, .. }
        | Change::Replace { from_offset, to_offset, .. } => (*from_offset, *to_offset),
    }
}

fn check_range(from_offset: i64, to_offset: i64) -> Result<(), ChainError> {
    if from_offset < 0 || from_offset >= to_offset {
        return Err(ChainError::EmptyRange { from_offset, to_offset });
    }
    Ok(())
}

fn check_append(end: Option<i64>, from: i64, to: i64) -> Result<(), ChainError> {
    check_range(from, to)?;
    match end {
        Some(expected) if expected != from => Err(ChainError::NotAtEnd { expected, found: from }),
        _ => Ok(()),
    }
}
