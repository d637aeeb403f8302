//! What a scanned segment means for the archive that is there already: a pure function.
//!
//! A segment continues the archived history, fills a gap of it or a part of one, is found to be in it, or
//! (of a compacted topic) replaces whole segments by their next generation. Where its offsets meet archived
//! ones it is compared with them first (`overlap`). Archived history is replaced only from a fork that is proved: an equal
//! batch before it and a higher leader epoch behind it. Anything else is held.

use std::sync::Arc;

use crate::types::{ArchivedSegment, EpochStart, Sha256};

use super::holds::Missing;
use super::overlap::{Difference, Ending, Overlap};

/// Why offsets are missing that no quarantined segment explains.
pub(super) const DISCARDED_BEFORE: &str = "not in the log dir: discarded before it was archived";
const BEFORE_THE_START: &str = "lies before the archive's start";
const OTHER_EPOCHS: &str = "its leader epochs are not those of the archive";

/// The part of a chain that a segment's range meets.
#[derive(Clone, Debug, Default)]
pub(super) struct ArchiveView {
    /// `None`: the chain is empty.
    pub start_offset: Option<i64>,
    /// `None`: the chain is empty.
    pub end_offset: Option<i64>,
    /// The archived segment with the same base.
    pub same_base: Option<ArchivedSegment>,
    /// Segments and gaps that overlap the range, ascending.
    pub overlapping: Vec<Item>,
    /// The segments among them, ascending.
    pub segments: Vec<Arc<ArchivedSegment>>,
    /// The last leader epoch archived before the range.
    pub epoch_before: Option<i32>,
    /// The first one archived behind it.
    pub epoch_behind: Option<i32>,
}

/// A segment or a gap of the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub from_offset: i64,
    pub to_offset: i64,
    pub is_gap: bool,
}

/// A local segment that keeps Kafka's rules.
#[derive(Clone, Debug)]
pub(super) struct Scanned {
    pub base_offset: i64,
    pub end_offset: i64,
    pub size_bytes: u64,
    pub sha256: Sha256,
    pub compacted: bool,
    /// Each leader epoch with the first offset that it wrote in the segment.
    pub epochs: Vec<EpochStart>,
}

/// A gap to be committed with the segment that follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GapPiece {
    pub from_offset: i64,
    pub to_offset: i64,
    pub reason: String,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The archive has these bytes.
    Adopt(ArchivedSegment),
    /// Gaps first, then the segment.
    Append(Vec<GapPiece>),
    /// The segment takes the place of what is in `[from, to)`, once `extend` (a gap that it fills in the
    /// same commit) has brought the chain's end there.
    Replace { from_offset: i64, to_offset: i64, extend: Option<GapPiece> },
    /// To be compared with the archived segments that its offsets meet.
    Compare,
    /// Nothing, and why; the archive can do without it, so later segments go on.
    PassedOver(String),
    /// Nothing, and why.
    Held(String),
}

/// Judges a scanned segment against the archive.
pub(super) fn judge(view: &ArchiveView, segment: &Scanned, missing: &[Missing]) -> Verdict {
    // The cleaner merges segments, and what it merges may add offsets and no bytes.
    if let Some(same) = &view.same_base
        && same.size_bytes == segment.size_bytes
        && same.sha256 == segment.sha256
        && same.end_offset >= segment.end_offset
    {
        return Verdict::Adopt(same.clone());
    }
    let base = segment.base_offset;
    let Some(end) = view.end_offset else {
        let start = missing.first().map_or(base, |m| m.from_offset.min(base));
        return Verdict::Append(gaps(start, base, missing));
    };
    if end <= base {
        return Verdict::Append(gaps(end, base, missing));
    }
    let (from_offset, to_offset) = (base, segment.end_offset);
    let start = view.start_offset.unwrap_or(base);
    if to_offset <= start {
        return Verdict::PassedOver(BEFORE_THE_START.to_owned());
    }
    let within = end >= to_offset;
    if base < start {
        let why = format!("it begins before the archive's start, offset {start}");
        return if within { Verdict::PassedOver(why) } else { Verdict::Held(why) };
    }
    if within && view.overlapping.iter().all(|i| i.is_gap) {
        return fill(view, segment);
    }
    if !segment.compacted {
        return Verdict::Compare;
    }
    if let Some(cut) =
        view.overlapping.iter().find(|i| i.from_offset < base || i.to_offset > to_offset)
    {
        return Verdict::Held(format!(
            "the archive holds offsets {} to {}, which this segment ({from_offset} to {to_offset}) cuts",
            cut.from_offset, cut.to_offset
        ));
    }
    if !descends(view, segment) {
        return Verdict::Held(OTHER_EPOCHS.to_owned());
    }
    let reason = "compaction is about to fill it".to_owned();
    let extend = (!within).then_some(GapPiece { from_offset: end, to_offset, reason });
    Verdict::Replace { from_offset, to_offset, extend }
}

/// What a comparison means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Compared {
    /// The archive has every byte.
    Covered,
    /// The archive has what lies before `position`; the batches behind it continue the archive at `offset`.
    Continue { offset: i64, position: u64 },
    /// The archive has what lies before `position`; the batches behind it fill the gap `[from, to)` or a part of it.
    Fill { offset: i64, position: u64, from_offset: i64, to_offset: i64 },
    /// The batches from `position` on take the place of all that is archived from `offset` on.
    Fork { offset: i64, position: u64, reason: String },
    /// Nothing, and why.
    Held(String),
}

/// Judges a segment that was compared. `continues`: what precedes it in the log is proved to be archived.
pub(super) fn judge_compared(
    view: &ArchiveView,
    segment: &Scanned,
    overlap: &Overlap,
    continues: bool,
) -> Compared {
    match &overlap.ending {
        Ending::Covered => Compared::Covered,
        Ending::ArchiveEnds { offset } => {
            Compared::Continue { offset: *offset, position: overlap.equal_bytes }
        }
        Ending::Gap { from_offset, to_offset, .. } if segment.end_offset > *to_offset => {
            Compared::Held(format!("the archive has a gap inside it, {from_offset} to {to_offset}"))
        }
        Ending::Gap { offset, from_offset, to_offset } => {
            let own = segment.epochs.last().map(|e| e.epoch);
            if own.zip(view.epoch_behind).is_some_and(|(own, behind)| own > behind) {
                return Compared::Held(OTHER_EPOCHS.to_owned());
            }
            let (offset, position) = (*offset, overlap.equal_bytes);
            let (from_offset, to_offset) = (*from_offset, *to_offset);
            Compared::Fill { offset, position, from_offset, to_offset }
        }
        Ending::Differs(difference) => {
            judge_difference(difference, continues || difference.position > 0)
        }
        Ending::Unclear(why) => Compared::Held(why.clone()),
    }
}

fn judge_difference(d: &Difference, equal_before: bool) -> Compared {
    let Difference { offset, archived_epoch, local_epoch, tile_base, tile_position, .. } = d;
    let what = format!(
        "from offset {offset} on, leader epoch {archived_epoch} in the archive, {local_epoch} here"
    );
    // Message formats 0 and 1 have no epoch (-1): there nothing proves which log is the newer.
    if *archived_epoch < 0 || local_epoch <= archived_epoch {
        return Compared::Held(format!("the archive holds other bytes {what}"));
    }
    if !equal_before {
        return Compared::Held(format!(
            "another log than the archive's {what}: nothing is equal before"
        ));
    }
    match tile_position {
        Some(position) => Compared::Fork {
            offset: *tile_base,
            position: *position,
            reason: format!("the log was truncated and went on otherwise {what}"),
        },
        None => Compared::Held(format!(
            "the log went on otherwise {what}; archived segment {tile_base} begins before this one"
        )),
    }
}

/// A segment for offsets that the archive lacks. What it leaves of the gaps stays a gap.
fn fill(view: &ArchiveView, segment: &Scanned) -> Verdict {
    let ends = [view.overlapping.first(), view.overlapping.last()];
    let [Some(first), Some(last)] = ends else {
        return Verdict::Held("the archive has no gap at these offsets".to_owned());
    };
    let epoch = |e: Option<&EpochStart>| e.map(|e| e.epoch);
    let ascends = |low: Option<i32>, high: Option<i32>| low.zip(high).is_none_or(|(l, h)| l <= h);
    let (own_first, own_last) = (epoch(segment.epochs.first()), epoch(segment.epochs.last()));
    if !ascends(view.epoch_before, own_first) || !ascends(own_last, view.epoch_behind) {
        return Verdict::Held(OTHER_EPOCHS.to_owned());
    }
    let (from_offset, to_offset) = (first.from_offset, last.to_offset);
    Verdict::Replace { from_offset, to_offset, extend: None }
}

/// Whether the archived segments can be what the cleaner made this one from: it keeps epochs.
fn descends(view: &ArchiveView, segment: &Scanned) -> bool {
    segment.epochs.iter().all(|own| {
        let at = own.start_offset;
        let covering = view.segments.iter().find(|s| (s.base_offset..s.end_offset).contains(&at));
        covering.is_none_or(|s| {
            let archived = s.epochs.iter().rev().find(|e| e.start_offset <= at);
            archived.is_some_and(|e| e.epoch == own.epoch)
        })
    })
}

/// The range `[end, base)` in pieces, each with its reason.
fn gaps(end: i64, base: i64, missing: &[Missing]) -> Vec<GapPiece> {
    let mut pieces: Vec<GapPiece> = Vec::new();
    let mut at = end;
    let mut push = |from_offset: i64, to_offset: i64, reason: &str| {
        if from_offset < to_offset {
            pieces.push(GapPiece { from_offset, to_offset, reason: reason.to_owned() });
        }
        to_offset.max(from_offset)
    };
    for (i, known) in missing.iter().enumerate() {
        let next = missing.get(i + 1).map_or(base, |n| n.from_offset);
        let to = known.to_offset.unwrap_or(next).min(base);
        if known.from_offset >= base || to <= at {
            continue;
        }
        at = push(at, known.from_offset.max(at), DISCARDED_BEFORE);
        at = push(at, to, &known.reason);
    }
    push(at, base, DISCARDED_BEFORE);
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::UploadId;

    fn archived(base: i64, end: i64, bytes: &[u8]) -> ArchivedSegment {
        ArchivedSegment {
            base_offset: base,
            end_offset: end,
            size_bytes: bytes.len() as u64,
            upload_id: UploadId::from_random(1),
            sha256: Sha256::of(bytes),
            mtime_ns: 0,
            max_timestamp_ms: -1,
            batches: 1,
            epochs: vec![],
            compacted: false,
            aux_size_bytes: 0,
            aux_sha256: Sha256::of(b""),
            files: Default::default(),
        }
    }

    fn scanned(base: i64, end: i64, bytes: &[u8], compacted: bool) -> Scanned {
        Scanned {
            base_offset: base,
            end_offset: end,
            size_bytes: bytes.len() as u64,
            sha256: Sha256::of(bytes),
            compacted,
            epochs: vec![],
        }
    }

    fn view(items: &[(i64, i64, bool)], end: i64) -> ArchiveView {
        ArchiveView {
            start_offset: Some(items.first().map_or(0, |i| i.0)),
            end_offset: Some(end),
            overlapping: items
                .iter()
                .map(|(from_offset, to_offset, is_gap)| Item {
                    from_offset: *from_offset,
                    to_offset: *to_offset,
                    is_gap: *is_gap,
                })
                .collect(),
            ..ArchiveView::default()
        }
    }

    fn piece(from_offset: i64, to_offset: i64, reason: &str) -> GapPiece {
        GapPiece { from_offset, to_offset, reason: reason.into() }
    }

    #[test]
    fn equal_bytes_are_adopted_even_when_the_archive_goes_on_behind_them() {
        let mut v = view(&[(0, 10, false)], 100);
        v.same_base = Some(archived(0, 10, b"a"));
        let verdict = judge(&v, &scanned(0, 10, b"a", false), &[]);
        assert_eq!(verdict, Verdict::Adopt(archived(0, 10, b"a")));
    }

    #[test]
    fn a_segment_at_the_end_is_appended_and_an_empty_chain_starts_anywhere() {
        assert_eq!(
            judge(&view(&[], 10), &scanned(10, 20, b"a", false), &[]),
            Verdict::Append(vec![])
        );
        let empty = ArchiveView::default();
        assert_eq!(judge(&empty, &scanned(500, 600, b"a", false), &[]), Verdict::Append(vec![]));
    }

    #[test]
    fn what_is_missing_in_between_is_named() {
        let Verdict::Append(pieces) = judge(&view(&[], 10), &scanned(20, 30, b"a", false), &[])
        else {
            panic!("not appended");
        };
        assert_eq!(pieces, [piece(10, 20, DISCARDED_BEFORE)]);
        let missing = |from_offset, to_offset, reason: &str| Missing {
            from_offset,
            to_offset,
            reason: reason.into(),
        };
        let known = [
            missing(5, Some(10), "before"),
            missing(30, Some(40), "x"),
            missing(40, None, "y"),
            missing(70, Some(90), "z"),
            missing(100, None, "behind"),
        ];
        assert_eq!(
            gaps(10, 80, &known),
            [
                piece(10, 30, DISCARDED_BEFORE),
                piece(30, 40, "x"),
                piece(40, 70, "y"),
                piece(70, 80, "z")
            ]
        );
    }

    #[test]
    fn what_meets_archived_offsets_is_compared_first() {
        let mut v = view(&[(0, 10, false)], 10);
        v.same_base = Some(archived(0, 10, b"a"));
        let verdict = judge(&v, &scanned(0, 10, b"b", false), &[]);
        assert_eq!(verdict, Verdict::Compare);
        let verdict = judge(&view(&[(0, 10, false)], 10), &scanned(0, 20, b"b", false), &[]);
        assert_eq!(verdict, Verdict::Compare, "longer than the archive");
    }

    #[test]
    fn a_compacted_generation_replaces_whole_segments_only() {
        let v = view(&[(0, 10, false), (10, 20, false)], 50);
        let verdict = judge(&v, &scanned(0, 20, b"b", true), &[]);
        assert_eq!(verdict, Verdict::Replace { from_offset: 0, to_offset: 20, extend: None });
        let verdict = judge(&v, &scanned(0, 15, b"b", true), &[]);
        assert!(matches!(verdict, Verdict::Held(_)), "{verdict:?}");
        let verdict = judge(&view(&[(0, 10, false)], 50), &scanned(5, 10, b"b", true), &[]);
        assert!(matches!(verdict, Verdict::Held(_)), "{verdict:?}");
    }

    #[test]
    fn the_same_bytes_for_more_offsets_are_another_generation() {
        let mut v = view(&[(0, 10, false), (10, 20, false)], 50);
        v.same_base = Some(archived(0, 10, b"a"));
        let verdict = judge(&v, &scanned(0, 20, b"a", true), &[]);
        assert_eq!(verdict, Verdict::Replace { from_offset: 0, to_offset: 20, extend: None });
        let verdict = judge(&v, &scanned(0, 5, b"a", true), &[]);
        assert_eq!(verdict, Verdict::Adopt(archived(0, 10, b"a")));
    }

    #[test]
    fn a_compacted_generation_may_reach_beyond_the_archive() {
        let v = view(&[(10, 20, false)], 20);
        let Verdict::Replace { from_offset: 10, to_offset: 40, extend: Some(gap) } =
            judge(&v, &scanned(10, 40, b"b", true), &[])
        else {
            panic!("not replaced");
        };
        assert_eq!((gap.from_offset, gap.to_offset), (20, 40));
    }

    #[test]
    fn quarantined_offsets_at_the_start_of_an_empty_chain_are_named() {
        let missing = [Missing { from_offset: 100, to_offset: Some(200), reason: "q".into() }];
        let verdict = judge(&ArchiveView::default(), &scanned(200, 300, b"a", false), &missing);
        assert_eq!(verdict, Verdict::Append(vec![piece(100, 200, "q")]));
    }

    #[test]
    fn a_gap_may_be_filled_exactly_or_in_part_and_a_segment_not_along_with_it() {
        let v = view(&[(10, 20, true)], 50);
        let verdict = judge(&v, &scanned(10, 20, b"b", false), &[]);
        assert_eq!(verdict, Verdict::Replace { from_offset: 10, to_offset: 20, extend: None });
        let verdict = judge(&v, &scanned(12, 15, b"b", false), &[]);
        assert_eq!(verdict, Verdict::Replace { from_offset: 10, to_offset: 20, extend: None });
        let v = view(&[(0, 10, false), (10, 20, true)], 50);
        let verdict = judge(&v, &scanned(0, 20, b"b", false), &[]);
        assert_eq!(verdict, Verdict::Compare);
    }

    /// Of a segment of offsets 100 to 200.
    fn compared(equal_bytes: u64, ending: Ending, continues: bool) -> Compared {
        let overlap = Overlap { extents: vec![], equal_bytes, ending };
        let segment = Scanned { epochs: vec![epoch(3, 100)], ..scanned(100, 200, b"b", false) };
        let view = ArchiveView { epoch_behind: Some(3), ..view(&[], 500) };
        judge_compared(&view, &segment, &overlap, continues)
    }

    /// From position 70 on.
    fn differs(archived_epoch: i32, local_epoch: i32, tile_position: Option<u64>) -> Difference {
        let (offset, position, tile_base) = (150, 70, 100);
        Difference { offset, position, archived_epoch, local_epoch, tile_base, tile_position }
    }

    #[test]
    fn what_the_archive_lacks_of_a_segment_continues_it() {
        assert_eq!(compared(70, Ending::Covered, false), Compared::Covered);
        let ending = Ending::ArchiveEnds { offset: 42 };
        let expected = Compared::Continue { offset: 42, position: 70 };
        assert_eq!(compared(70, ending, false), expected);
    }

    #[test]
    fn what_lies_in_a_gap_of_the_archive_fills_it_unless_it_reaches_beyond() {
        let gap = |to_offset| Ending::Gap { offset: 150, from_offset: 140, to_offset };
        let expected =
            Compared::Fill { offset: 150, position: 70, from_offset: 140, to_offset: 200 };
        assert_eq!(compared(70, gap(200), false), expected);
        let verdict = compared(70, gap(199), false);
        assert!(matches!(verdict, Compared::Held(_)), "{verdict:?}");
    }

    #[test]
    fn other_bytes_for_archived_offsets_are_held() {
        for (archived, local) in [(3, 3), (3, 2), (-1, -1), (-1, 4)] {
            let ending = Ending::Differs(differs(archived, local, Some(0)));
            let verdict = compared(0, ending, true);
            assert!(matches!(verdict, Compared::Held(_)), "{verdict:?}");
        }
    }

    #[test]
    fn history_is_replaced_only_from_a_fork_that_is_proved() {
        for (position, continues) in [(70, false), (0, true)] {
            let ending = Ending::Differs(Difference { position, ..differs(3, 4, Some(7)) });
            let verdict = compared(0, ending, continues);
            assert!(
                matches!(verdict, Compared::Fork { offset: 100, position: 7, .. }),
                "{verdict:?}"
            );
        }
        let ending = Ending::Differs(Difference { position: 0, ..differs(3, 4, Some(0)) });
        let verdict = compared(0, ending, false);
        assert!(matches!(verdict, Compared::Held(_)), "a broker with an empty disk: {verdict:?}");
        let ending = Ending::Differs(differs(3, 4, None));
        let verdict = compared(0, ending, true);
        assert!(matches!(verdict, Compared::Held(_)), "{verdict:?}");
    }

    fn epoch(epoch: i32, start_offset: i64) -> EpochStart {
        EpochStart { epoch, start_offset }
    }

    #[test]
    fn a_gap_is_not_filled_against_the_order_of_the_leader_epochs() {
        let mut v = view(&[(10, 20, true)], 50);
        (v.epoch_before, v.epoch_behind) = (Some(3), Some(5));
        for (epochs, fits) in [([3, 5], true), ([4, 4], true), ([2, 4], false), ([4, 6], false)] {
            let epochs = epochs.map(|e| epoch(e, 12)).to_vec();
            let verdict = judge(&v, &Scanned { epochs, ..scanned(12, 15, b"b", false) }, &[]);
            assert_eq!(matches!(verdict, Verdict::Replace { .. }), fits, "{verdict:?}");
            assert_eq!(matches!(verdict, Verdict::Held(_)), !fits, "{verdict:?}");
        }
    }

    #[test]
    fn what_lies_before_the_archives_start_is_passed_over() {
        let v = ArchiveView { start_offset: Some(100), end_offset: Some(200), ..view(&[], 0) };
        for compacted in [false, true] {
            let verdict = judge(&v, &scanned(0, 100, b"b", compacted), &[]);
            assert_eq!(verdict, Verdict::PassedOver(BEFORE_THE_START.to_owned()));
        }
        let v = ArchiveView { start_offset: Some(100), ..view(&[(100, 200, true)], 200) };
        let verdict = judge(&v, &scanned(50, 200, b"b", false), &[]);
        assert!(matches!(verdict, Verdict::PassedOver(_)), "{verdict:?}");
        let verdict = judge(&v, &scanned(50, 201, b"b", false), &[]);
        assert!(matches!(verdict, Verdict::Held(_)), "the archive would lose its end: {verdict:?}");
    }

    #[test]
    fn a_compacted_generation_of_other_leader_epochs_replaces_nothing() {
        let mut v = view(&[(0, 100, false)], 100);
        let epochs = vec![epoch(2, 0), epoch(3, 50)];
        v.segments = vec![Arc::new(ArchivedSegment { epochs, ..archived(0, 100, b"a") })];
        let with = |epochs: &[EpochStart]| {
            let next = Scanned { epochs: epochs.to_vec(), ..scanned(0, 100, b"b", true) };
            judge(&v, &next, &[])
        };
        for kept in [&[epoch(2, 10), epoch(3, 60)][..], &[epoch(3, 50)], &[]] {
            assert!(matches!(with(kept), Verdict::Replace { .. }), "{kept:?}");
        }
        for other in [&[epoch(0, 0)][..], &[epoch(2, 10), epoch(4, 60)], &[epoch(2, 50)]] {
            assert_eq!(with(other), Verdict::Held(OTHER_EPOCHS.to_owned()), "{other:?}");
        }
    }
}
