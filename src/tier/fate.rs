//! Why Kafka gives a `.log` up, told from names alone, and what is then still owed to whom.
//!
//! Kafka says nothing; but retention takes a prefix, truncation a suffix, compaction leaves a new file
//! in its place, and the directory of a deleted topic, or of a partition that moved, has another name (`kafka-facts`, retention and deletion).

use crate::kafka::names::{DirKind, FileKind, Suffix, parse_file};
use crate::local::spool::DiscardReason;

/// Why a segment goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Retention or DeleteRecords: a prefix of the log.
    Retention,
    /// The partition's directory was given up, by a deletion or a move.
    PartitionRemoved,
    /// Divergent or damaged: a suffix of the log.
    Truncation,
    /// The cleaner has written its successor.
    Compaction,
    /// Something of Kafka's own housekeeping, or somebody's `rm`.
    Other,
}

/// What is remembered from the rename to `.deleted` until the unlink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FateNote {
    pub fate: Fate,
    /// The base of the segment behind it when it was renamed.
    pub next_base: Option<i64>,
}

/// Of a segment `base` that has or gets the suffix `.deleted`, among the *other* `.log`-like `names` of its
/// live directory. Those that have the suffix already count as neighbours behind it, not as survivors.
pub(super) fn of_deleted<'a>(
    base: i64,
    names: impl Iterator<Item = &'a str>,
    compacted: bool,
) -> FateNote {
    let (mut lower_survivor, mut successor, mut next_base) = (false, false, None);
    for name in names.filter_map(parse_file).filter(|n| n.kind == FileKind::Log) {
        let other = name.base_offset;
        match name.suffix {
            Suffix::Swap | Suffix::Cleaned => successor |= other <= base,
            Suffix::None if other < base => lower_survivor = true,
            Suffix::None | Suffix::Deleted if other > base => {
                next_base = Some(next_base.map_or(other, |n: i64| n.min(other)));
            }
            Suffix::None if other == base => successor |= compacted,
            Suffix::None | Suffix::Deleted => {}
        }
    }
    let fate = match (lower_survivor, successor) {
        (_, true) => Fate::Compaction,
        (true, false) if compacted => Fate::Compaction,
        (true, false) => Fate::Truncation,
        (false, false) => Fate::Retention,
    };
    FateNote { fate, next_base }
}

/// What is known when a `.log`-like name is unlinked.
#[derive(Clone, Copy, Debug)]
pub(super) struct DiscardFacts {
    pub dir: DirKind,
    pub suffix: Suffix,
    /// Of a `.deleted` file in a live directory.
    pub note: Option<FateNote>,
    pub base_offset: i64,
    pub committed: Option<i64>,
    /// This content is in the archive (cold, or hot and archived).
    pub archived: bool,
    pub compacted: bool,
    pub empty: bool,
    /// The partition is archived at all.
    pub archiving: bool,
    /// There is a discard command.
    pub listening: bool,
}

/// What becomes of the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Discard {
    /// Nobody is owed them.
    Release,
    /// Into the spool.
    Keep { reason: DiscardReason, end_offset: Option<i64>, archive: bool, listener: bool },
}

/// What Kafka means by unlinking the file, and where the segment ends if a neighbour tells.
pub(super) fn of_unlink(facts: &DiscardFacts) -> (Fate, Option<i64>) {
    match (facts.dir, facts.suffix) {
        (_, Suffix::Cleaned | Suffix::Swap) => (Fate::Other, None),
        (DirKind::Deleted | DirKind::Stray, Suffix::None | Suffix::Deleted) => {
            (Fate::PartitionRemoved, None)
        }
        (DirKind::Live, Suffix::Deleted) => match facts.note {
            Some(note) => (note.fate, note.next_base),
            None => (Fate::Other, None),
        },
        (DirKind::Live, Suffix::None) | (DirKind::Future, _) => (Fate::Other, None),
    }
}

/// Decides an unlink.
pub(super) fn decide(facts: &DiscardFacts) -> Discard {
    let (fate, end_offset) = of_unlink(facts);
    let reason = match fate {
        Fate::Retention => DiscardReason::Retention,
        Fate::PartitionRemoved => DiscardReason::PartitionRemoved,
        Fate::Truncation | Fate::Compaction | Fate::Other => return Discard::Release,
    };
    let committed = facts.archived
        || match (end_offset, facts.committed) {
            (Some(end), Some(committed)) => end <= committed,
            // The last segment of a removed partition: the archive's scan finds its end.
            (None, Some(committed)) => {
                reason == DiscardReason::PartitionRemoved && facts.base_offset < committed
            }
            (_, None) => false,
        };
    if !committed || facts.empty {
        return Discard::Release;
    }
    let archive = facts.archiving && !facts.archived && !facts.compacted;
    let listener = facts.listening;
    if archive || listener {
        Discard::Keep { reason, end_offset, archive, listener }
    } else {
        Discard::Release
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[(i64, &str)]) -> Vec<String> {
        list.iter().map(|(base, suffix)| format!("{base:020}.log{suffix}")).collect()
    }

    fn note(base: i64, list: &[(i64, &str)], compacted: bool) -> FateNote {
        let names = names(list);
        of_deleted(base, names.iter().map(String::as_str), compacted)
    }

    #[test]
    fn retention_takes_a_prefix_and_truncation_a_suffix() {
        let n = note(0, &[(100, ""), (200, "")], false);
        assert_eq!(n, FateNote { fate: Fate::Retention, next_base: Some(100) });
        let n = note(100, &[(0, ".deleted"), (200, "")], false);
        assert_eq!(n, FateNote { fate: Fate::Retention, next_base: Some(200) });
        let n = note(200, &[(0, ""), (100, "")], false);
        assert_eq!(n, FateNote { fate: Fate::Truncation, next_base: None });
    }

    #[test]
    fn a_note_made_after_a_remount_says_the_same() {
        let n = note(0, &[(100, ".deleted"), (200, "")], false);
        assert_eq!(n, FateNote { fate: Fate::Retention, next_base: Some(100) });
        let n = note(200, &[(0, "")], false);
        assert_eq!(n.fate, Fate::Truncation);
    }

    #[test]
    fn a_successor_in_place_means_compaction() {
        let n = note(0, &[(0, ".swap"), (100, "")], true);
        assert_eq!(n.fate, Fate::Compaction);
        let n = note(100, &[(0, ".swap"), (0, ".deleted"), (200, "")], true);
        assert_eq!(n.fate, Fate::Compaction);
        let n = note(0, &[(0, ""), (100, "")], true);
        assert_eq!(n.fate, Fate::Compaction);
        let n = note(0, &[(100, "")], true);
        assert_eq!(n.fate, Fate::Retention, "compact,delete topics have retention too");
    }

    fn facts() -> DiscardFacts {
        DiscardFacts {
            dir: DirKind::Live,
            suffix: Suffix::Deleted,
            note: Some(FateNote { fate: Fate::Retention, next_base: Some(100) }),
            base_offset: 0,
            committed: Some(100),
            archived: false,
            compacted: false,
            empty: false,
            archiving: true,
            listening: false,
        }
    }

    fn keep(archive: bool, listener: bool) -> Discard {
        let reason = DiscardReason::Retention;
        Discard::Keep { reason, end_offset: Some(100), archive, listener }
    }

    #[test]
    fn what_the_archive_or_the_listener_is_owed_is_kept() {
        let f = facts();
        assert_eq!(decide(&f), keep(true, false));
        assert_eq!(decide(&DiscardFacts { listening: true, ..f }), keep(true, true));
        assert_eq!(
            decide(&DiscardFacts { listening: true, archived: true, ..f }),
            keep(false, true)
        );
        let f = DiscardFacts { listening: true, compacted: true, ..f };
        assert_eq!(decide(&f), keep(false, true));
    }

    #[test]
    fn what_nobody_is_owed_is_released() {
        let f = facts();
        let note = |fate| Some(FateNote { fate, next_base: Some(100) });
        for released in [
            DiscardFacts { archived: true, ..f },
            DiscardFacts { committed: Some(99), ..f },
            DiscardFacts { committed: None, listening: true, ..f },
            DiscardFacts { note: note(Fate::Truncation), listening: true, ..f },
            DiscardFacts { note: note(Fate::Compaction), listening: true, ..f },
            DiscardFacts { suffix: Suffix::None, listening: true, ..f },
            DiscardFacts { suffix: Suffix::Cleaned, listening: true, ..f },
            DiscardFacts { dir: DirKind::Future, listening: true, ..f },
            DiscardFacts { archiving: false, ..f },
            DiscardFacts { empty: true, listening: true, ..f },
            DiscardFacts { compacted: true, ..f },
        ] {
            assert_eq!(decide(&released), Discard::Release, "{released:?}");
        }
    }

    #[test]
    fn a_removed_partitions_segments_are_kept_and_the_scan_finds_their_end() {
        let f = DiscardFacts {
            dir: DirKind::Deleted,
            suffix: Suffix::None,
            note: None,
            committed: Some(50),
            ..facts()
        };
        let reason = DiscardReason::PartitionRemoved;
        let expected = Discard::Keep { reason, end_offset: None, archive: true, listener: false };
        assert_eq!(decide(&f), expected);
        assert_eq!(decide(&DiscardFacts { committed: Some(0), ..f }), Discard::Release);
    }
}
