//! Versions of Kafka's checkpoint files: small, and what a log dir is lost without (a broker that does not find its
//! recovery points reads every segment again).
//!
//! Format: `docs/FORMATS.md` 3.6. A version is one document with all of a log dir's checkpoint files as they stood at
//! one time. Only files that can be read as what they are get into one, so that no version holds damage.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use super::durable;
use crate::failpoint;
use crate::kafka::checkpoint::{parse_meta_properties, parse_offsets};
use crate::kafka::names;
use crate::types::envelope::{self, EnvelopeError};

const KIND: &str = "checkpoints";
const VERSION: u32 = 1;
/// No checkpoint file is longer: about a million partitions.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Kept whatever their age.
const NEWEST: usize = 10;
const HOUR_MS: u64 = 3_600_000;
const DAY_MS: u64 = 24 * HOUR_MS;
/// The last one of each of so many hours, and of so many days.
const HOURS: u64 = 24;
const DAYS: u64 = 30;

/// The files that versions hold.
pub const FILES: [&str; 5] = [
    names::META_PROPERTIES,
    names::RECOVERY_POINT,
    names::LOG_START,
    names::HIGH_WATERMARK,
    names::CLEANER,
];

/// All of a log dir's checkpoint files at one time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// When, milliseconds since the epoch: the version's name.
    pub taken_ms: u64,
    /// Of the log dir, in `meta.properties`.
    pub node_id: Option<i32>,
    /// 16 hex digits, drawn for the data directory's first version: a node may have several log dirs.
    pub log_dir_id: String,
    /// Contents by name.
    pub files: BTreeMap<String, String>,
}

/// What a name in [`FILES`] has in it, if it is what it should be.
fn readable(name: &str, bytes: Vec<u8>) -> Result<String, String> {
    let checked = match name {
        names::META_PROPERTIES => {
            parse_meta_properties(&bytes).map(drop).map_err(|e| e.to_string())
        }
        _ => parse_offsets(&bytes).map(drop).map_err(|e| e.to_string()),
    };
    checked?;
    String::from_utf8(bytes).map_err(|e| e.to_string())
}

/// Why a file of a log dir is of no use, in words; `Ok(None)`: it is not there, or empty, as Kafka makes it.
pub fn read_file(log_dir: &Path, name: &str) -> Result<Option<String>, String> {
    let path = log_dir.join(name);
    let size = match std::fs::metadata(&path) {
        Ok(metadata) => metadata.len(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e.to_string()),
    };
    if size > FILE_BYTES_MAX {
        return Err(format!("{size} bytes, at most {FILE_BYTES_MAX} are read"));
    }
    match std::fs::read(&path) {
        Ok(bytes) if bytes.is_empty() => Ok(None),
        Ok(bytes) => readable(name, bytes).map(Some),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e.to_string()),
    }
}

impl Version {
    /// Of a log dir as it stands; other files than the recovery points that cannot be read are left out. `None`: without
    /// recovery points, which a log dir has lost or does not have yet, it is nothing to go back to.
    #[must_use]
    pub fn take(log_dir: &Path, taken_ms: u64, log_dir_id: &str) -> Option<Self> {
        let mut files = BTreeMap::new();
        for name in FILES {
            match read_file(log_dir, name) {
                Ok(Some(text)) => {
                    files.insert(name.to_owned(), text);
                }
                Ok(None) => {}
                Err(why) => tracing::warn!(
                    file = name,
                    why,
                    "a checkpoint of Kafka cannot be read and is not kept"
                ),
            }
        }
        if !files.contains_key(names::RECOVERY_POINT) {
            return None;
        }
        let meta = files.get(names::META_PROPERTIES);
        let node_id = meta.and_then(|text| parse_meta_properties(text.as_bytes()).ok()?.node_id);
        Some(Self { taken_ms, node_id, log_dir_id: log_dir_id.to_owned(), files })
    }

    /// The document's bytes.
    pub fn encode(&self) -> Result<Vec<u8>, EnvelopeError> {
        envelope::encode(KIND, VERSION, self)
    }

    /// From a document's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        envelope::decode(KIND, VERSION, bytes)
    }

    /// Writes it durably among a data directory's versions.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        failpoint::disk("versions.write")?;
        std::fs::create_dir_all(dir)?;
        let bytes = self.encode().map_err(io::Error::other)?;
        durable::write_atomic(&path(dir, self.taken_ms), &bytes)
    }

    /// One of a data directory's versions.
    pub fn read(dir: &Path, taken_ms: u64) -> io::Result<Self> {
        let path = path(dir, taken_ms);
        let bytes = std::fs::read(&path)?;
        Self::decode(&bytes).map_err(|e| io::Error::other(format!("{}: {e}", path.display())))
    }
}

fn path(dir: &Path, taken_ms: u64) -> PathBuf {
    dir.join(format!("{taken_ms:013}"))
}

/// When a data directory's versions were taken. None are there before the first.
pub fn list(dir: &Path) -> io::Result<BTreeSet<u64>> {
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        entries => entries?,
    };
    let mut taken = BTreeSet::new();
    for entry in entries {
        let name = entry?.file_name();
        let digits = name.to_str().filter(|n| n.len() == 13);
        taken.extend(digits.and_then(|n| n.parse::<u64>().ok()));
    }
    Ok(taken)
}

/// Removes a version, or what a crash left of one. That it is not there is no error.
pub fn remove(dir: &Path, taken_ms: u64) -> io::Result<()> {
    failpoint::disk("versions.remove")?;
    durable::remove_if_exists(&path(dir, taken_ms))
}

/// Removes what crashes left half-written.
pub fn remove_leftovers(dir: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(durable::TMP_SUFFIX) {
            durable::remove_if_exists(&path)?;
        }
    }
    Ok(())
}

/// Which versions give way to newer ones: the newest ten stay, the last one of each hour of a day, and of each day of a month.
#[must_use]
pub fn superfluous(taken: &BTreeSet<u64>, now_ms: u64) -> Vec<u64> {
    let mut kept: BTreeSet<u64> = taken.iter().rev().take(NEWEST).copied().collect();
    for (period_ms, count) in [(HOUR_MS, HOURS), (DAY_MS, DAYS)] {
        let mut last: BTreeMap<u64, u64> = BTreeMap::new();
        for &ms in taken.iter().filter(|ms| now_ms.saturating_sub(**ms) < period_ms * count) {
            last.insert(ms / period_ms, ms);
        }
        kept.extend(last.values());
    }
    taken.difference(&kept).copied().collect()
}

/// A time as the version's name has it, readable: UTC.
#[must_use]
pub fn shown(taken_ms: u64) -> String {
    let time = i64::try_from(taken_ms).ok().and_then(chrono::DateTime::from_timestamp_millis);
    time.map_or_else(|| taken_ms.to_string(), |t| t.format("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// A file's modification time, milliseconds since the epoch.
pub(super) fn modified_ms(path: &Path) -> io::Result<u64> {
    let modified = std::fs::metadata(path)?.modified()?;
    Ok(modified.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const META: &str = "#\nversion=1\ncluster.id=abc\nnode.id=7\n";

    #[test]
    fn a_version_reads_back_and_holds_no_damaged_file() {
        let (log_dir, kept) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let write =
            |name: &str, text: &str| std::fs::write(log_dir.path().join(name), text).unwrap();
        assert_eq!(Version::take(log_dir.path(), 1, "id"), None);
        write(names::META_PROPERTIES, META);
        assert_eq!(Version::take(log_dir.path(), 1, "id"), None, "nothing is lost with that alone");
        write(names::RECOVERY_POINT, "0\n1\norders 0 42\n");
        write(names::HIGH_WATERMARK, "0\n2\norders 0 42\n");
        let version = Version::take(log_dir.path(), 1_700_000_000_000, "id").unwrap();
        assert_eq!(version.node_id, Some(7));
        assert_eq!(
            version.files.keys().map(String::as_str).collect::<Vec<_>>(),
            [names::META_PROPERTIES, names::RECOVERY_POINT]
        );
        let dir = kept.path().join("checkpoints");
        assert!(list(&dir).unwrap().is_empty());
        version.write(&dir).unwrap();
        std::fs::write(dir.join(format!("1{}", durable::TMP_SUFFIX)), "half").unwrap();
        remove_leftovers(&dir).unwrap();
        assert_eq!(list(&dir).unwrap(), BTreeSet::from([1_700_000_000_000]));
        assert_eq!(Version::read(&dir, 1_700_000_000_000).unwrap(), version);
        remove(&dir, 1_700_000_000_000).unwrap();
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
    }

    #[test]
    fn versions_thin_out_as_they_age_and_are_bounded() {
        let now = 1_800_000_000_000;
        let every_minute = |minutes: u64| (0..minutes).map(|m| now - m * 60_000);
        let mut taken: BTreeSet<u64> = every_minute(60 * 24 * 60).collect();
        for gone in superfluous(&taken, now) {
            taken.remove(&gone);
        }
        assert!(taken.len() <= NEWEST + 24 + 30 + 2, "{}", taken.len());
        assert!(every_minute(10).all(|ms| taken.contains(&ms)));
        // One of yesterday at noon, and one of two weeks ago.
        for age_ms in [DAY_MS + DAY_MS / 2, 14 * DAY_MS] {
            assert!(taken.iter().any(|ms| (now - ms).abs_diff(age_ms) <= DAY_MS), "{age_ms}");
        }
        assert!(taken.iter().all(|ms| now - ms <= 30 * DAY_MS));
        assert!(superfluous(&taken, now).is_empty(), "what was kept once stays at the same time");
    }

    #[test]
    fn times_are_shown_as_dates() {
        assert_eq!(shown(0), "1970-01-01T00:00:00Z");
        assert_eq!(shown(951_782_400_000), "2000-02-29T00:00:00Z");
        assert_eq!(shown(1_795_646_282_789), "2026-11-25T22:38:02Z");
    }
}
