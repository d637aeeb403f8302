//! Kafka's own checkpoint files as evidence: what is committed, what is flushed, what is compacted.
//!
//! A line is keyed by topic name, so right after a topic was deleted and created again an old line may
//! stand there. A watermark is believed only after two rewrites since the directory appeared.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::kafka::{checkpoint, names};
use crate::types::TopicPartition;

/// Rewrites of the watermark checkpoint after which its lines are about the present directory.
const REWRITES_TO_TRUST: u64 = 2;
/// A directory that was this much older than the checkpoint when Everlog began is not a new one:
/// Kafka rewrites the checkpoint every 5 s, so two rewrites lie in between.
const SETTLED: Duration = Duration::from_secs(15);

/// The three checkpoints of one log dir.
#[derive(Debug, Default)]
pub(super) struct Checkpoints {
    high_watermark: BTreeMap<TopicPartition, i64>,
    recovery_point: BTreeMap<TopicPartition, i64>,
    cleaner: BTreeMap<TopicPartition, i64>,
    high_watermark_mtime: Option<SystemTime>,
    rewrites: u64,
}

impl Checkpoints {
    /// Reads one file again. Absent: as if empty.
    pub fn reload(&mut self, hot: &Path, name: &str) -> io::Result<()> {
        let path = hot.join(name);
        let parsed = match std::fs::read(&path) {
            // As Kafka leaves it when it has just made it.
            Ok(text) if text.is_empty() => BTreeMap::new(),
            Ok(text) => checkpoint::parse_offsets(&text)
                .map_err(|e| io::Error::other(format!("{}: {e}", path.display())))?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(e) => return Err(e),
        };
        match name {
            names::HIGH_WATERMARK => {
                self.high_watermark = parsed;
                self.rewrites += 1;
                self.high_watermark_mtime =
                    std::fs::metadata(&path).and_then(|m| m.modified()).ok();
            }
            names::RECOVERY_POINT => self.recovery_point = parsed,
            names::CLEANER => self.cleaner = parsed,
            _ => {}
        }
        Ok(())
    }

    pub fn rewrites(&self) -> u64 {
        self.rewrites
    }

    /// Whether a directory that was there when Everlog began is older than the checkpoint by enough.
    pub fn settled(&self, dir: &Path) -> bool {
        let metadata = std::fs::metadata(dir.join(names::PARTITION_METADATA));
        let born = metadata.or_else(|_| std::fs::metadata(dir)).and_then(|m| m.modified());
        match (born, self.high_watermark_mtime) {
            (Ok(born), Some(written)) => {
                written.duration_since(born).is_ok_and(|age| age >= SETTLED)
            }
            _ => false,
        }
    }

    pub fn trusted(&self, appeared_at_rewrite: Option<u64>) -> bool {
        appeared_at_rewrite.is_none_or(|at| self.rewrites >= at + REWRITES_TO_TRUST)
    }

    pub fn high_watermark(&self, tp: &TopicPartition) -> Option<i64> {
        self.high_watermark.get(tp).copied()
    }

    pub fn recovery_point(&self, tp: &TopicPartition) -> Option<i64> {
        self.recovery_point.get(tp).copied()
    }

    pub fn is_cleaned(&self, tp: &TopicPartition) -> bool {
        self.cleaner.contains_key(tp)
    }
}
