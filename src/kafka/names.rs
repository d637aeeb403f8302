//! What the names in a log dir mean, and how they are spelled: the only place that knows.
//!
//! A name that does not follow Kafka's rules to the letter parses to `None`, and is then nobody's
//! segment: guessing here would evict or archive a stranger's file.

use crate::types::TopicPartition;

/// One line per partition: the first offset that the next recovery has to check.
pub const RECOVERY_POINT: &str = "recovery-point-offset-checkpoint";
/// One line per partition: the high watermark.
pub const HIGH_WATERMARK: &str = "replication-offset-checkpoint";
/// One line per partition whose log does not start at its first segment.
pub const LOG_START: &str = "log-start-offset-checkpoint";
/// One line per partition: where the log cleaner goes on.
pub const CLEANER: &str = "cleaner-offset-checkpoint";
/// In each partition's directory: leader epochs and their first offsets.
pub const LEADER_EPOCHS: &str = "leader-epoch-checkpoint";
/// In each partition's directory: the topic's id.
pub const PARTITION_METADATA: &str = "partition.metadata";
/// Cluster and node of a log dir.
pub const META_PROPERTIES: &str = "meta.properties";
/// Exists while the broker is down after an orderly stop.
pub const CLEAN_SHUTDOWN: &str = ".kafka_cleanshutdown";
/// Locked by the broker that uses the log dir.
pub const LOCK: &str = ".lock";
/// Ends the name under which a checkpoint is written before it is renamed into place.
pub const TMP_SUFFIX: &str = ".tmp";

/// Directory of KRaft's own log.
pub const METADATA_LOG: &str = "__cluster_metadata-0";

/// The topic of KRaft's own log, whose segments are not a topic's data.
#[must_use]
pub fn is_internal_metadata(topic: &str) -> bool {
    topic == "__cluster_metadata"
}

/// Kafka's internal topics that are compacted whatever the configuration says.
#[must_use]
pub fn is_always_compacted(topic: &str) -> bool {
    matches!(topic, "__consumer_offsets" | "__transaction_state" | "__share_group_state")
}

/// What a partition's directory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DirKind {
    /// A partition that the broker serves.
    Live,
    /// `-delete`: given up, its files are unlinked soon.
    Deleted,
    /// `-future`: being filled by a move from another log dir.
    Future,
    /// `-stray`: of a topic that the controller does not know.
    Stray,
}

impl DirKind {
    /// Kafka has given the partition up here: nothing is appended any more, its watermark is forgotten, and its files may go
    /// at any time, by Kafka's own hand or, of a stray one, by the operator's.
    #[must_use]
    pub fn is_given_up(self) -> bool {
        matches!(self, Self::Deleted | Self::Stray)
    }
}

/// A directory of a log dir that belongs to a partition.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PartitionDirName {
    /// The partition; unless `kind` is `Live` its topic may be cut short, where the name would
    /// otherwise be longer than 255 bytes.
    pub tp: TopicPartition,
    /// What the directory is for.
    pub kind: DirKind,
}

/// The partition that a directory's name stands for; `None`: not a partition's directory.
#[must_use]
pub fn parse_dir(name: &str) -> Option<PartitionDirName> {
    for (ending, kind) in
        [("-delete", DirKind::Deleted), ("-future", DirKind::Future), ("-stray", DirKind::Stray)]
    {
        let Some(marked) = name.strip_suffix(ending) else { continue };
        let Some((partition, unique)) = marked.rsplit_once('.') else { continue };
        if unique.len() == 32 && unique.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Some(PartitionDirName { tp: partition.parse().ok()?, kind });
        }
    }
    Some(PartitionDirName { tp: name.parse().ok()?, kind: DirKind::Live })
}

/// Which of a segment's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FileKind {
    /// `.log`: the batches.
    Log,
    /// `.index`: offset to position.
    Index,
    /// `.timeindex`: timestamp to offset.
    TimeIndex,
    /// `.txnindex`: aborted transactions.
    TxnIndex,
    /// `.snapshot`: producer state up to the offset in its name.
    Snapshot,
}

impl FileKind {
    /// All of them, in the order in which Kafka renames them.
    pub const ALL: [Self; 5] =
        [Self::Log, Self::Index, Self::TimeIndex, Self::TxnIndex, Self::Snapshot];

    /// With the dot.
    #[must_use]
    pub const fn extension(self) -> &'static str {
        match self {
            Self::Log => ".log",
            Self::Index => ".index",
            Self::TimeIndex => ".timeindex",
            Self::TxnIndex => ".txnindex",
            Self::Snapshot => ".snapshot",
        }
    }
}

/// What Kafka has in mind with a segment's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Suffix {
    /// In use.
    None,
    /// `.deleted`: to be unlinked.
    Deleted,
    /// `.cleaned`: the log cleaner writes it.
    Cleaned,
    /// `.swap`: complete, about to replace files in use.
    Swap,
}

impl Suffix {
    /// With the dot; empty for `None`.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Deleted => ".deleted",
            Self::Cleaned => ".cleaned",
            Self::Swap => ".swap",
        }
    }
}

/// The name of a file that belongs to a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LogName {
    /// The number in the name: the segment's first offset (of a snapshot: the offset it holds for).
    pub base_offset: i64,
    /// Which of the segment's files.
    pub kind: FileKind,
    /// What Kafka has in mind with it.
    pub suffix: Suffix,
}

impl std::fmt::Display for LogName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:020}{}{}", self.base_offset, self.kind.extension(), self.suffix.text())
    }
}

/// The segment's file that a name stands for; `None`: not a segment's file.
#[must_use]
pub fn parse_file(name: &str) -> Option<LogName> {
    let (digits, rest) = name.split_at_checked(20)?;
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let base_offset = digits.parse().ok()?;
    for kind in FileKind::ALL {
        let Some(ending) = rest.strip_prefix(kind.extension()) else { continue };
        let suffix = [Suffix::None, Suffix::Deleted, Suffix::Cleaned, Suffix::Swap]
            .into_iter()
            .find(|suffix| suffix.text() == ending)?;
        return Some(LogName { base_offset, kind, suffix });
    }
    None
}

/// The name of a segment's file in use.
#[must_use]
pub fn file_name(base_offset: i64, kind: FileKind) -> String {
    LogName { base_offset, kind, suffix: Suffix::None }.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIQUE: &str = "0123456789abcdef0123456789abcdef";

    fn dir(name: &str) -> Option<(String, DirKind)> {
        parse_dir(name).map(|d| (d.tp.to_string(), d.kind))
    }

    #[test]
    fn directories_of_partitions_are_told_apart_by_their_ending() {
        let live = |t: &str| Some((t.to_owned(), DirKind::Live));
        assert_eq!(dir("orders-7"), live("orders-7"));
        assert_eq!(dir("my.topic-with-dashes-12"), live("my.topic-with-dashes-12"));
        assert_eq!(dir("x-delete-0"), live("x-delete-0"));
        for (ending, kind) in
            [("delete", DirKind::Deleted), ("future", DirKind::Future), ("stray", DirKind::Stray)]
        {
            let name = format!("a.b-c-3.{UNIQUE}-{ending}");
            assert_eq!(dir(&name), Some(("a.b-c-3".to_owned(), kind)));
            let topic_of_that_name = format!("{name}-0");
            assert_eq!(dir(&topic_of_that_name), live(&topic_of_that_name));
        }
    }

    #[test]
    fn directories_that_are_no_partitions_are_nobodys() {
        for name in [
            "",
            "remote-log-index-cache",
            "a-0.short-delete",
            "a.0123456789abcdef0123456789abcdeg-delete",
            "everlog-is-not-mounted",
            "-0",
        ] {
            assert_eq!(dir(name), None, "{name}");
        }
    }

    #[test]
    fn every_name_of_a_segment_file_reads_back_what_it_prints() {
        for kind in FileKind::ALL {
            for suffix in [Suffix::None, Suffix::Deleted, Suffix::Cleaned, Suffix::Swap] {
                for base_offset in [0, 785, i64::MAX] {
                    let name = LogName { base_offset, kind, suffix };
                    assert_eq!(parse_file(&name.to_string()), Some(name));
                }
            }
        }
        assert_eq!(file_name(785, FileKind::TimeIndex), "00000000000000000785.timeindex");
    }

    #[test]
    fn names_that_are_almost_segment_files_are_nobodys() {
        for name in [
            "785.log",
            "0000000000000000785.log",
            "000000000000000000785.log",
            "+0000000000000000785.log",
            "00000000000000000785",
            "00000000000000000785.logs",
            "00000000000000000785.log.everlog",
            "00000000000000000785.log.deleted.swap",
            "99999999999999999999.log",
            "leader-epoch-checkpoint",
            "0000000000000000078é.log",
        ] {
            assert_eq!(parse_file(name), None, "{name}");
        }
    }
}
