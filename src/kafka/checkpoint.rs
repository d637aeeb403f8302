//! Kafka's small text files: offset checkpoints, leader epochs, the topic id of a partition.
//!
//! What a checkpoint says decides what may be archived and evicted, so a file that is not exactly
//! what a broker writes is refused with the line at fault, never half believed.

use std::collections::BTreeMap;
use std::fmt::Write as _;

pub use super::properties::{MetaProperties, PropertiesError, parse_meta_properties};
use crate::types::{EpochStart, TopicId, TopicPartition};

/// Why a file is not believed; the broker's next rewrite may mend it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// Written by a Kafka that is not known here.
    #[error("line 1: version {found:?} is not known, only {known:?} is")]
    Version {
        /// As it stands.
        found: String,
        /// As it should be.
        known: &'static str,
    },
    /// The second line promises another number of entries than there are.
    #[error("line 2: {promised} entries are promised, {found} are there")]
    Count {
        /// By the second line.
        promised: u64,
        /// Lines behind it.
        found: u64,
    },
    /// A line that cannot be read.
    #[error("line {line}: {reason}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
}

fn at_line(line: usize, reason: impl Into<String>) -> CheckpointError {
    CheckpointError::Line { line, reason: reason.into() }
}

/// The lines behind version and count, numbered as in the file.
fn entries(bytes: &[u8]) -> Result<Vec<(usize, &str)>, CheckpointError> {
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let line = 1 + bytes[..e.valid_up_to()].iter().filter(|&&b| b == b'\n').count();
        at_line(line, "is not text")
    })?;
    let mut lines: Vec<&str> = text.split('\n').collect();
    let last = lines.pop().unwrap_or_default();
    if !last.is_empty() || lines.is_empty() {
        return Err(at_line(lines.len() + 1, "the file ends in the middle of a line"));
    }
    let mut numbered = (1..).zip(lines);
    match numbered.next() {
        Some((_, "0")) => {}
        other => {
            let found = other.map_or("", |(_, line)| line).to_owned();
            return Err(CheckpointError::Version { found, known: "0" });
        }
    }
    let promised = match numbered.next() {
        Some((line, text)) => {
            number::<u64>(text).ok_or_else(|| at_line(line, format!("{text:?} is no count")))?
        }
        None => return Err(at_line(2, "there is no count")),
    };
    let entries: Vec<_> = numbered.collect();
    let found = entries.len() as u64;
    if found != promised {
        return Err(CheckpointError::Count { promised, found });
    }
    Ok(entries)
}

/// Digits only: what Kafka writes, unlike all that Rust would accept (`+1`).
fn number<T: std::str::FromStr>(text: &str) -> Option<T> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// An offset checkpoint of the log dir: high watermarks, recovery points, log starts.
pub fn parse_offsets(bytes: &[u8]) -> Result<BTreeMap<TopicPartition, i64>, CheckpointError> {
    let mut offsets = BTreeMap::new();
    for (line, text) in entries(bytes)? {
        let fields: Vec<&str> = text.split(' ').collect();
        let [topic, partition, offset] = fields[..] else {
            return Err(at_line(line, format!("{text:?} is not '<topic> <partition> <offset>'")));
        };
        let partition = number(partition)
            .ok_or_else(|| at_line(line, format!("{partition:?} is no partition")))?;
        let offset =
            number(offset).ok_or_else(|| at_line(line, format!("{offset:?} is no offset")))?;
        let tp = TopicPartition::new(topic, partition).map_err(|e| at_line(line, e.to_string()))?;
        if offsets.insert(tp, offset).is_some() {
            return Err(at_line(line, format!("{topic}-{partition} stands there twice")));
        }
    }
    Ok(offsets)
}

/// An offset checkpoint as Kafka writes it.
#[must_use]
pub fn render_offsets(offsets: &BTreeMap<TopicPartition, i64>) -> String {
    let mut text = format!("0\n{}\n", offsets.len());
    for (tp, offset) in offsets {
        let _ = writeln!(text, "{} {} {offset}", tp.topic(), tp.partition());
    }
    text
}

/// `leader-epoch-checkpoint`: epochs ascending, with the first offset of each.
pub fn parse_epochs(bytes: &[u8]) -> Result<Vec<EpochStart>, CheckpointError> {
    let mut epochs: Vec<EpochStart> = Vec::new();
    for (line, text) in entries(bytes)? {
        let entry = text.split_once(' ').and_then(|(epoch, offset)| {
            Some(EpochStart { epoch: number(epoch)?, start_offset: number(offset)? })
        });
        let Some(entry) = entry else {
            return Err(at_line(line, format!("{text:?} is not '<epoch> <first offset>'")));
        };
        if let Some(previous) = epochs.last()
            && (entry.epoch <= previous.epoch || entry.start_offset < previous.start_offset)
        {
            return Err(at_line(line, format!("{text:?} does not follow the line before it")));
        }
        epochs.push(entry);
    }
    Ok(epochs)
}

/// `leader-epoch-checkpoint` as Kafka writes it.
#[must_use]
pub fn render_epochs(epochs: &[EpochStart]) -> String {
    let mut text = format!("0\n{}\n", epochs.len());
    for EpochStart { epoch, start_offset } in epochs {
        let _ = writeln!(text, "{epoch} {start_offset}");
    }
    text
}

const METADATA_VERSION: &str = "version: 0";
const METADATA_TOPIC_ID: &str = "topic_id: ";

/// The topic id in `partition.metadata`. An id of zeros is refused, as Kafka does.
pub fn parse_partition_metadata(bytes: &[u8]) -> Result<TopicId, CheckpointError> {
    let text = std::str::from_utf8(bytes).map_err(|_| at_line(1, "is not text"))?;
    let mut lines = text.strip_suffix('\n').unwrap_or(text).split('\n');
    let found = lines.next().unwrap_or_default();
    if found != METADATA_VERSION {
        return Err(CheckpointError::Version { found: found.to_owned(), known: METADATA_VERSION });
    }
    let id = lines
        .next()
        .and_then(|line| line.strip_prefix(METADATA_TOPIC_ID))
        .ok_or_else(|| at_line(2, "there is no topic id"))?;
    let id: TopicId = id.parse().map_err(|e| at_line(2, format!("{e}")))?;
    if id == TopicId::none() {
        return Err(at_line(2, "a topic id of zeros is nobody's"));
    }
    match lines.next() {
        Some(_) => Err(at_line(3, "nothing may follow the topic id")),
        None => Ok(id),
    }
}

/// `partition.metadata` as Kafka writes it: 43 bytes, the last line not ended.
#[must_use]
pub fn render_partition_metadata(topic_id: &TopicId) -> String {
    format!("{METADATA_VERSION}\n{METADATA_TOPIC_ID}{topic_id}")
}
