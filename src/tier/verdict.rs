//! What a scanned segment means for the archive that is there already: a pure function.
//!
//! The archived history is never contradicted: a segment continues it, fills a gap of it exactly, is
//! found to be in it, or (of a compacted topic) replaces whole segments by their next generation.
//! Anything else is held.

use crate::types::{ArchivedSegment, Sha256};

use super::holds::Missing;

/// Why offsets are missing that no quarantined segment explains.
pub(super) const DISCARDED_BEFORE: &str = "not in the log dir: discarded before it was archived";

/// The part of a chain that a segment's range meets.
#[derive(Clone, Debug, Default)]
pub(super) struct ArchiveView {
    /// `None`: the chain is empty.
    pub end_offset: Option<i64>,
    /// The archived segment with the same base.
    pub same_base: Option<ArchivedSegment>,
    /// Segments and gaps that overlap the range, ascending.
    pub overlapping: Vec<Item>,
}

/// A segment or a gap of the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub from_offset: i64,
    pub to_offset: i64,
    pub is_gap: bool,
}

/// A local segment that keeps Kafka's rules.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scanned {
    pub base_offset: i64,
    pub end_offset: i64,
    pub size_bytes: u64,
    pub sha256: Sha256,
    pub compacted: bool,
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
    /// Nothing, and why.
    Held(String),
}

/// Judges a scanned segment against the archive.
pub(super) fn judge(view: &ArchiveView, segment: &Scanned, missing: &[Missing]) -> Verdict {
    if let Some(same) = &view.same_base
        && same.size_bytes == segment.size_bytes
        && same.sha256 == segment.sha256
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
    if let Some(cut) =
        view.overlapping.iter().find(|i| i.from_offset < base || i.to_offset > to_offset)
    {
        return Verdict::Held(format!(
            "the archive holds offsets {} to {}, which this segment ({from_offset} to {to_offset}) cuts",
            cut.from_offset, cut.to_offset
        ));
    }
    let only_gaps = view.overlapping.iter().all(|i| i.is_gap);
    let within = end >= to_offset;
    if (only_gaps && within) || segment.compacted {
        let reason = "compaction is about to fill it".to_owned();
        let extend = (!within).then_some(GapPiece { from_offset: end, to_offset, reason });
        return Verdict::Replace { from_offset, to_offset, extend };
    }
    Verdict::Held("the archive holds other bytes for these offsets".to_owned())
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
        }
    }

    fn view(items: &[(i64, i64, bool)], end: i64) -> ArchiveView {
        ArchiveView {
            end_offset: Some(end),
            same_base: None,
            overlapping: items
                .iter()
                .map(|(from_offset, to_offset, is_gap)| Item {
                    from_offset: *from_offset,
                    to_offset: *to_offset,
                    is_gap: *is_gap,
                })
                .collect(),
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
    fn other_bytes_for_archived_offsets_are_held() {
        let mut v = view(&[(0, 10, false)], 10);
        v.same_base = Some(archived(0, 10, b"a"));
        let verdict = judge(&v, &scanned(0, 10, b"b", false), &[]);
        assert!(matches!(verdict, Verdict::Held(_)), "{verdict:?}");
        let verdict = judge(&view(&[(0, 10, false)], 10), &scanned(0, 20, b"b", false), &[]);
        assert!(matches!(verdict, Verdict::Held(_)), "longer than the archive: {verdict:?}");
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
    fn a_gap_may_be_filled_exactly_and_not_in_part() {
        let v = view(&[(10, 20, true)], 50);
        let verdict = judge(&v, &scanned(10, 20, b"b", false), &[]);
        assert_eq!(verdict, Verdict::Replace { from_offset: 10, to_offset: 20, extend: None });
        let verdict = judge(&v, &scanned(10, 15, b"b", false), &[]);
        assert!(matches!(verdict, Verdict::Held(_)), "{verdict:?}");
        let v = view(&[(0, 10, false), (10, 20, true)], 50);
        let verdict = judge(&v, &scanned(0, 20, b"b", false), &[]);
        assert!(matches!(verdict, Verdict::Held(_)), "{verdict:?}");
    }
}
