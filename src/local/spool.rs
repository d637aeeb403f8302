//! The spool: segments that Kafka unlinked while the archive or a listener still needs their bytes.
//!
//! Format: `docs/FORMATS.md` 3.4. An entry is a directory; its document is written before the
//! segment is renamed in and removed after everything else, so a crash leaves an entry or nothing.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::durable;
use crate::types::envelope;
use crate::types::{ChainId, TopicId, TopicPartition, UploadId};

const KIND: &str = "spool";
const VERSION: u32 = 1;
const DOCUMENT: &str = "segment.json";

/// Why Kafka gave the segment up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiscardReason {
    /// Retention, or DeleteRecords.
    Retention,
    /// The topic or partition was deleted.
    TopicDeleted,
}

/// What an entry's document says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpoolDoc {
    /// The partition.
    pub tp: TopicPartition,
    /// Its incarnation.
    pub topic_id: TopicId,
    /// First offset.
    pub base_offset: i64,
    /// The `.log`'s name without Kafka's `.deleted`.
    pub name: String,
    /// The directory it was in.
    pub log_dir: String,
    /// Why it was discarded.
    pub reason: DiscardReason,
    /// Size of the `.log`.
    pub size_bytes: u64,
    /// Modification time of the `.log`, nanoseconds.
    pub mtime_ns: u64,
    /// High watermark known when it was discarded.
    pub committed_offset: Option<i64>,
    /// One past its last offset, where the next segment or the archive told.
    pub end_offset: Option<i64>,
    /// The archive still needs the bytes.
    pub archive_wanted: bool,
    /// The discard command has not yet agreed.
    pub listener_wanted: bool,
    /// When Kafka unlinked it, milliseconds.
    pub discarded_ms: u64,
    /// The archived object's upload id, once archived.
    pub upload_id: Option<UploadId>,
    /// Of a compacted topic.
    #[serde(default)]
    pub compacted: bool,
}

impl SpoolDoc {
    /// The chain it belongs to.
    #[must_use]
    pub fn chain(&self) -> ChainId {
        ChainId { tp: self.tp.clone(), topic_id: self.topic_id.clone() }
    }
}

/// One entry on disk.
#[derive(Clone, Debug)]
pub struct SpoolEntry {
    /// Its directory's name.
    pub id: String,
    /// Its directory.
    pub path: PathBuf,
    /// Its document.
    pub doc: SpoolDoc,
}

impl SpoolEntry {
    /// Makes the entry's directory and document. The caller then renames the segment to [`Self::log`].
    pub fn create(spool: &Path, id: &str, doc: SpoolDoc) -> io::Result<Self> {
        let path = spool.join(id);
        std::fs::create_dir(&path)?;
        let entry = Self { id: id.to_owned(), path, doc };
        entry.save()?;
        durable::sync_dir(spool)?;
        Ok(entry)
    }

    /// Where the segment's bytes lie, if they are local.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.path.join("segment.log")
    }

    /// Where a small file lies: `index`, `timeindex`, `txnindex`, `snapshot` or `epochs`.
    #[must_use]
    pub fn side_file(&self, kind: &str) -> PathBuf {
        self.path.join(kind)
    }

    /// Writes the document durably.
    pub fn save(&self) -> io::Result<()> {
        let bytes = envelope::encode(KIND, VERSION, &self.doc).map_err(io::Error::other)?;
        durable::write_atomic(&self.path.join(DOCUMENT), &bytes)
    }

    /// Removes the entry, its document last.
    pub fn remove(&self) -> io::Result<()> {
        for found in std::fs::read_dir(&self.path)? {
            let path = found?.path();
            if !path.ends_with(DOCUMENT) {
                durable::remove_if_exists(&path)?;
            }
        }
        durable::remove_if_exists(&self.path.join(DOCUMENT))?;
        std::fs::remove_dir(&self.path)
    }
}

/// All entries. One whose document cannot be believed is an error in the list, never skipped.
pub fn list(spool: &Path) -> io::Result<Vec<Result<SpoolEntry, (PathBuf, String)>>> {
    let mut entries = Vec::new();
    for found in std::fs::read_dir(spool)? {
        let path = found?.path();
        let id = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let read = std::fs::read(path.join(DOCUMENT));
        entries.push(match read {
            Ok(bytes) => match envelope::decode::<SpoolDoc>(KIND, VERSION, &bytes) {
                Ok(doc) => Ok(SpoolEntry { id, path, doc }),
                Err(e) => Err((path, e.to_string())),
            },
            // Made but never filled, or emptied but not yet removed: nothing is in it.
            Err(e) if e.kind() == io::ErrorKind::NotFound && !path.join("segment.log").exists() => {
                std::fs::remove_dir_all(&path)?;
                continue;
            }
            Err(e) => Err((path, e.to_string())),
        });
    }
    Ok(entries)
}
