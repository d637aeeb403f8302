//! Which segment of a partition is archived next: a pure function of a snapshot.
//!
//! Per partition strictly ascending, so that an archive is a prefix of the log. What Kafka has not
//! committed is never chosen; what breaks Kafka's rules (quarantined) is passed over, since its gap
//! gets a name; what contradicts the archive (held) stops the partition, since nothing behind it
//! can be shown to continue the archived history.

use crate::kafka::names::DirKind;

use super::holds::HoldKind;

/// Where a segment's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Hot,
    Cold,
    /// Partly archived, partly local: to be made whole first.
    Overlaid,
    /// Unknown: its stub is damaged.
    Broken,
}

/// One segment in the snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentFacts {
    /// `None`: nothing follows it.
    pub next_base: Option<i64>,
    pub base_offset: i64,
    pub place: Place,
    /// This content is in the archive.
    pub archived: bool,
    pub hold: Option<HoldKind>,
}

/// One partition in the snapshot.
#[derive(Clone, Debug)]
pub(super) struct PartitionFacts {
    pub kind: DirKind,
    /// By the operator's patterns.
    pub included: bool,
    /// The trusted high watermark.
    pub committed: Option<i64>,
    /// Where the archive ends.
    pub archive_end: Option<i64>,
    /// Ascending.
    pub segments: Vec<SegmentFacts>,
}

impl PartitionFacts {
    fn is_served(&self) -> bool {
        self.included && self.kind != DirKind::Future
    }
}

/// Closed, and all of it at or below the high watermark. In a directory that Kafka has given up nothing is
/// appended any more, so its last segment counts as closed; the scan then finds where it ends.
pub(super) fn is_committed(kind: DirKind, segment: &SegmentFacts, committed: Option<i64>) -> bool {
    match (segment.next_base, committed) {
        (Some(next), Some(committed)) => next <= committed,
        (None, Some(committed)) => kind.is_given_up() && segment.base_offset < committed,
        (_, None) => false,
    }
}

/// The index of the segment to archive next.
pub(super) fn next_segment(partition: &PartitionFacts) -> Option<usize> {
    if !partition.is_served() {
        return None;
    }
    for (at, segment) in partition.segments.iter().enumerate() {
        if segment.archived || segment.hold == Some(HoldKind::Quarantined) {
            continue;
        }
        if segment.hold == Some(HoldKind::Held) {
            return None;
        }
        match segment.place {
            Place::Cold | Place::Broken => continue,
            Place::Overlaid => {
                let covered = segment.next_base.zip(partition.archive_end);
                if covered.is_some_and(|(next, end)| next <= end) {
                    continue;
                }
                return None;
            }
            Place::Hot => {}
        }
        return is_committed(partition.kind, segment, partition.committed).then_some(at);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(bases: &[i64]) -> Vec<SegmentFacts> {
        let next = bases[1..].iter().map(|b| Some(*b)).chain([None]);
        bases
            .iter()
            .zip(next)
            .map(|(base, next_base)| SegmentFacts {
                next_base,
                base_offset: *base,
                place: Place::Hot,
                archived: false,
                hold: None,
            })
            .collect()
    }

    fn partition(committed: Option<i64>) -> PartitionFacts {
        PartitionFacts {
            kind: DirKind::Live,
            included: true,
            committed,
            archive_end: None,
            segments: segments(&[0, 100, 200]),
        }
    }

    #[test]
    fn only_closed_and_committed_segments_are_chosen() {
        for (committed, expected) in
            [(None, None), (Some(99), None), (Some(100), Some(0)), (Some(i64::MAX), Some(0))]
        {
            assert_eq!(next_segment(&partition(committed)), expected, "{committed:?}");
        }
        let mut p = partition(Some(1000));
        p.segments[0].archived = true;
        p.segments[1].place = Place::Cold;
        assert_eq!(next_segment(&p), None, "the last one is active");
    }

    #[test]
    fn a_later_segment_never_overtakes_one_that_is_not_committed() {
        let mut p = partition(Some(150));
        p.segments[0].archived = true;
        assert_eq!(next_segment(&p), None);
        p.committed = Some(200);
        assert_eq!(next_segment(&p), Some(1));
    }

    #[test]
    fn a_quarantined_segment_is_passed_over_and_a_held_one_stops_the_partition() {
        let mut p = partition(Some(1000));
        p.segments[0].hold = Some(HoldKind::Quarantined);
        assert_eq!(next_segment(&p), Some(1));
        p.segments[0].hold = Some(HoldKind::Held);
        assert_eq!(next_segment(&p), None);
    }

    #[test]
    fn future_directories_and_excluded_topics_are_left_alone() {
        let p = PartitionFacts { kind: DirKind::Future, ..partition(Some(1000)) };
        assert_eq!(next_segment(&p), None);
        let p = PartitionFacts { included: false, ..partition(Some(1000)) };
        assert_eq!(next_segment(&p), None);
    }

    #[test]
    fn the_last_segment_of_a_partition_that_was_given_up_counts_as_closed() {
        for kind in [DirKind::Deleted, DirKind::Stray] {
            let mut p = PartitionFacts { kind, ..partition(Some(250)) };
            p.segments[0].archived = true;
            p.segments[1].archived = true;
            assert_eq!(next_segment(&p), Some(2));
            p.committed = Some(200);
            assert_eq!(next_segment(&p), None);
        }
    }

    #[test]
    fn a_file_written_to_while_cold_is_waited_for_unless_the_archive_is_past_it() {
        let mut p = partition(Some(1000));
        p.segments[0].place = Place::Overlaid;
        assert_eq!(next_segment(&p), None);
        p.archive_end = Some(100);
        assert_eq!(next_segment(&p), Some(1));
        p.segments[0].place = Place::Broken;
        p.archive_end = None;
        assert_eq!(next_segment(&p), Some(1));
    }
}
