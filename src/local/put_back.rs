//! Puts a version of Kafka's checkpoint files back into a log dir whose broker is down.
//!
//! The log has gone on since the version was taken, so its lines are not copied blindly. A line of a partition that is gone
//! or was made anew is left out (Kafka deletes a whole log whose end lies below its checkpointed start), and a recovery
//! point is lowered to the first segment that was written to since: what lies below a recovery point is never checked.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use super::datadir::SENTINEL;
use super::versions::{FILES, Version, modified_ms};
use crate::kafka::checkpoint::{CheckpointError, parse_offsets, render_offsets};
use crate::kafka::names::{self, FileKind, Suffix};
use crate::types::TopicPartition;

/// Why nothing was put back.
#[derive(Debug, thiserror::Error)]
pub enum PutBackError {
    /// A broker has the log dir open.
    #[error("log dir {0} is in use by a broker (its file '.lock' is held): stop the broker first")]
    InUse(String),
    /// The hot part of a data directory, whose cold segments are not there.
    #[error(
        "{0} is a data directory's hot part, without its cold segments: mount it and give the mount point"
    )]
    NotMounted(String),
    /// The version does not have the file.
    #[error("the version has no file {0:?}; it has {1}")]
    NoSuchFile(String, String),
    /// What is in the version is no checkpoint.
    #[error("{name}: {source}")]
    Unreadable {
        /// The file's name.
        name: String,
        /// Why.
        source: CheckpointError,
    },
    /// The log dir cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Where.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What of a partition decides whether a line is still about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartitionFacts {
    /// When its directory got its topic id, milliseconds; 0 where Kafka wrote none down.
    pub born_ms: u64,
    /// Base offsets of its segments and when they were last written to, ascending.
    pub segments: Vec<(i64, u64)>,
}

/// How a file was put back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PutBack {
    /// Its name.
    pub name: String,
    /// Lines that stand there now.
    pub lines: usize,
    /// Partitions left out, with the reason.
    pub left_out: Vec<(TopicPartition, &'static str)>,
    /// Recovery points that were lowered: from and to.
    pub lowered: Vec<(TopicPartition, i64, i64)>,
}

fn at<T>(path: &Path, result: io::Result<T>) -> Result<T, PutBackError> {
    result.map_err(|source| PutBackError::Io { path: path.display().to_string(), source })
}

/// Puts files of `version` back into `log_dir`: a broker's log dir on plain disk or a mount. `chosen` empty: all checkpoints
/// of offsets.
pub fn put_back(
    log_dir: &Path,
    version: &Version,
    chosen: &[String],
) -> Result<Vec<PutBack>, PutBackError> {
    let shown = || log_dir.display().to_string();
    if log_dir.join(SENTINEL).exists() {
        return Err(PutBackError::NotMounted(shown()));
    }
    let has = || version.files.keys().cloned().collect::<Vec<_>>().join(", ");
    if let Some(unknown) = chosen.iter().find(|name| !version.files.contains_key(*name)) {
        return Err(PutBackError::NoSuchFile(unknown.clone(), has()));
    }
    // Held until all is written: a broker that starts meanwhile fails, as beside another broker.
    let _lock = lock(log_dir)?;
    let facts = look(log_dir)?;
    let mut done = Vec::new();
    for (name, text) in &version.files {
        let wanted = match chosen.is_empty() {
            true => name != names::META_PROPERTIES,
            false => chosen.contains(name),
        };
        if !wanted || !FILES.contains(&name.as_str()) {
            continue;
        }
        let (text, put) = match name.as_str() {
            names::META_PROPERTIES => {
                (text.clone(), PutBack { name: name.clone(), ..PutBack::default() })
            }
            _ => {
                let unreadable = |source| PutBackError::Unreadable { name: name.clone(), source };
                let offsets = parse_offsets(text.as_bytes()).map_err(unreadable)?;
                let (kept, put) = still_true(name, &offsets, version.taken_ms, &facts);
                (render_offsets(&kept), put)
            }
        };
        replace(log_dir, name, text.as_bytes())?;
        done.push(put);
    }
    Ok(done)
}

/// As Kafka replaces a checkpoint: a temporary file, synced, renamed, the directory synced.
fn replace(log_dir: &Path, name: &str, bytes: &[u8]) -> Result<(), PutBackError> {
    let path = log_dir.join(name);
    let tmp = log_dir.join(format!("{name}{}", names::TMP_SUFFIX));
    let write = || {
        let mut file = std::fs::File::create(&tmp)?;
        io::Write::write_all(&mut file, bytes)?;
        file.sync_all()?;
        std::fs::rename(&tmp, &path)?;
        super::durable::sync_dir(log_dir)
    };
    at(&path, write())
}

/// Kafka's own lock on the log dir, as long as the file lives.
fn lock(log_dir: &Path) -> Result<Option<std::fs::File>, PutBackError> {
    use rustix::fs::{FlockOperation, fcntl_lock};
    let path = log_dir.join(names::LOCK);
    let opened = std::fs::File::options().read(true).write(true).open(&path);
    let file = match opened {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => at(&path, opened)?,
    };
    match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS) => {
            Err(PutBackError::InUse(log_dir.display().to_string()))
        }
        Err(e) => at(&path, Err(e.into())),
    }
}

fn look(log_dir: &Path) -> Result<BTreeMap<TopicPartition, PartitionFacts>, PutBackError> {
    let mut found = BTreeMap::new();
    for entry in at(log_dir, std::fs::read_dir(log_dir))? {
        let path = at(log_dir, entry)?.path();
        let name = path.file_name().and_then(|n| n.to_str()).and_then(names::parse_dir);
        let Some(dir) = name.filter(|d| d.kind == names::DirKind::Live) else { continue };
        found.insert(dir.tp, at(&path, look_at(&path))?);
    }
    Ok(found)
}

fn look_at(dir: &Path) -> io::Result<PartitionFacts> {
    let born_ms = match modified_ms(&dir.join(names::PARTITION_METADATA)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => 0,
        born => born?,
    };
    let mut segments = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|n| n.to_str()).and_then(names::parse_file);
        if let Some(log) = name.filter(|n| n.kind == FileKind::Log && n.suffix == Suffix::None) {
            segments.push((log.base_offset, modified_ms(&path)?));
        }
    }
    segments.sort_unstable();
    Ok(PartitionFacts { born_ms, segments })
}

/// The lines of one file that may stand in the log dir as it is now.
#[must_use]
pub fn still_true(
    name: &str,
    offsets: &BTreeMap<TopicPartition, i64>,
    taken_ms: u64,
    now: &BTreeMap<TopicPartition, PartitionFacts>,
) -> (BTreeMap<TopicPartition, i64>, PutBack) {
    let mut put = PutBack { name: name.to_owned(), ..PutBack::default() };
    let mut kept = BTreeMap::new();
    for (tp, &offset) in offsets {
        let facts = match now.get(tp) {
            None => {
                put.left_out.push((tp.clone(), "it is not there any more"));
                continue;
            }
            Some(facts) if facts.born_ms > taken_ms => {
                put.left_out.push((tp.clone(), "it was made after the version"));
                continue;
            }
            Some(facts) => facts,
        };
        let highest = facts.segments.last().map_or(0, |s| s.0);
        if name == names::LOG_START && offset > highest {
            put.left_out.push((tp.clone(), "the log may end before this start"));
            continue;
        }
        let mut offset = offset;
        if name == names::RECOVERY_POINT {
            let written = facts.segments.iter().find(|(_, modified_ms)| *modified_ms > taken_ms);
            let limit = written.map_or(highest, |s| s.0.min(highest));
            if offset > limit {
                put.lowered.push((tp.clone(), offset, limit));
                offset = limit;
            }
        }
        kept.insert(tp.clone(), offset);
    }
    put.lines = kept.len();
    (kept, put)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tp(text: &str) -> TopicPartition {
        text.parse().unwrap()
    }

    fn facts(born_ms: u64, segments: &[(i64, u64)]) -> PartitionFacts {
        PartitionFacts { born_ms, segments: segments.to_vec() }
    }

    #[test]
    fn lines_of_what_is_gone_or_new_are_left_out_and_recovery_points_lowered() {
        let now = BTreeMap::from([
            (tp("kept-0"), facts(5, &[(0, 10), (100, 20), (200, 200)])),
            (tp("grown-0"), facts(5, &[(0, 10), (100, 150), (200, 200)])),
            (tp("anew-0"), facts(101, &[(0, 120)])),
        ]);
        let offsets: BTreeMap<_, _> =
            ["kept-0", "grown-0", "anew-0", "gone-0"].map(|t| (tp(t), 150)).into();
        let (kept, put) = still_true(names::RECOVERY_POINT, &offsets, 100, &now);
        assert_eq!(kept, BTreeMap::from([(tp("grown-0"), 100), (tp("kept-0"), 150)]));
        assert_eq!(put.lowered, [(tp("grown-0"), 150, 100)]);
        let left: Vec<_> = put.left_out.iter().map(|(tp, _)| tp.to_string()).collect();
        assert_eq!(left, ["anew-0", "gone-0"]);
        // A watermark is Kafka's to clamp; a start beyond the end makes it delete everything.
        let (kept, _) = still_true(names::HIGH_WATERMARK, &offsets, 100, &now);
        assert_eq!(kept[&tp("grown-0")], 150);
        let far = BTreeMap::from([(tp("kept-0"), 201)]);
        let (kept, put) = still_true(names::LOG_START, &far, 100, &now);
        assert!(kept.is_empty() && put.left_out.len() == 1);
    }

    #[test]
    fn nothing_is_put_back_beside_a_running_broker_or_without_the_cold_segments() {
        let dir = tempfile::tempdir().unwrap();
        let files = BTreeMap::from([(names::RECOVERY_POINT.to_owned(), "0\n0\n".to_owned())]);
        let version = Version { taken_ms: 1, node_id: None, log_dir_id: String::new(), files };
        let done = put_back(dir.path(), &version, &[]).unwrap();
        assert_eq!(done.len(), 1);
        assert_eq!(std::fs::read(dir.path().join(names::RECOVERY_POINT)).unwrap(), b"0\n0\n");
        let wrong = put_back(dir.path(), &version, &["nothing".to_owned()]).unwrap_err();
        assert!(matches!(wrong, PutBackError::NoSuchFile(..)), "{wrong}");
        std::fs::create_dir(dir.path().join(SENTINEL)).unwrap();
        let hot = put_back(dir.path(), &version, &[]).unwrap_err();
        assert!(matches!(hot, PutBackError::NotMounted(_)), "{hot}");
    }
}
