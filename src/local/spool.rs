//! The spool: segments that Kafka unlinked while the archive or a listener still needs their bytes.
//!
//! Format: `docs/FORMATS.md` 3.4. An entry is a directory; its document is written before the
//! segment is renamed in and removed after everything else, so a crash leaves an entry or nothing.
//! Giving an entry up takes no space: on a full disk that is how space comes back.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::durable;
use crate::failpoint;
use crate::types::envelope;
use crate::types::{ChainId, TopicId, TopicPartition, UploadId};

const KIND: &str = "spool";
const VERSION: u32 = 1;
const DOCUMENT: &str = "segment.json";
/// The document's name once nobody is owed anything: what a crash leaves of the entry is removed.
const RELEASED: &str = "released.json";

/// Why Kafka gave the segment up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiscardReason {
    /// Retention, or DeleteRecords.
    Retention,
    /// The partition's directory was given up: its topic was deleted, or it moved to another log dir or broker.
    /// Before this was told apart it was written `topic_deleted`.
    #[serde(alias = "topic_deleted")]
    PartitionRemoved,
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
    /// Base offset of the archived object with `upload_id`; another than the segment's where several
    /// objects, or the middle of one, hold it. `None`: the segment's.
    #[serde(default)]
    pub object_base_offset: Option<i64>,
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
        failpoint::disk("spool.entry")?;
        std::fs::create_dir(&path)?;
        let entry = Self { id: id.to_owned(), path, doc };
        let written = failpoint::disk("spool.document").and_then(|()| entry.save());
        let durable = written.and_then(|()| {
            failpoint::disk("spool.entry.sync")?;
            durable::sync_dir(spool)
        });
        if let Err(e) = durable {
            // Or the next mount would take it for one that is owed.
            entry.remove()?;
            return Err(e);
        }
        Ok(entry)
    }

    /// Where the segment's bytes lie, if they are local.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.path.join("segment.log")
    }

    /// Whether there are bytes to archive. A power loss may have taken those that nobody had synced.
    pub fn has_bytes(&self) -> io::Result<bool> {
        match self.log().metadata() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            metadata => Ok(metadata?.len() > 0),
        }
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

    /// Says durably that nobody is owed anything: the entry is gone after a crash, whatever is left of it.
    pub fn release(&self) -> io::Result<()> {
        let (document, released) = (self.path.join(DOCUMENT), self.path.join(RELEASED));
        failpoint::disk("spool.release")?;
        match std::fs::rename(document, &released) {
            // Released before, or never written since the disk was full.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                std::fs::File::options().create(true).append(true).open(&released)?;
            }
            renamed => renamed?,
        }
        failpoint::disk("spool.release.sync")?;
        durable::sync_dir(&self.path)
    }

    /// Removes the entry, its document last.
    pub fn remove(&self) -> io::Result<()> {
        remove(&self.path)
    }
}

/// Removes what is in an entry's directory, its document last, and the directory. Gone already: done.
pub fn remove(entry: &Path) -> io::Result<()> {
    let is_document = |path: &Path| path.ends_with(DOCUMENT) || path.ends_with(RELEASED);
    let inside = match std::fs::read_dir(entry) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        inside => inside?,
    };
    for found in inside {
        let path = found?.path();
        if !is_document(&path) {
            failpoint::disk("spool.remove.bytes")?;
            durable::remove_if_exists(&path)?;
        }
    }
    // Should the document go first in a power loss, its bytes would be taken for somebody's.
    failpoint::disk("spool.remove.sync")?;
    durable::sync_dir(entry)?;
    failpoint::disk("spool.remove.document")?;
    for document in [DOCUMENT, RELEASED] {
        durable::remove_if_exists(&entry.join(document))?;
    }
    failpoint::disk("spool.remove.entry")?;
    std::fs::remove_dir(entry)?;
    failpoint::step("spool.removed");
    Ok(())
}

/// What is in the spool.
#[derive(Debug, Default)]
pub struct Listing {
    /// One whose document cannot be believed is an error in the list, never skipped.
    pub entries: Vec<Result<SpoolEntry, (PathBuf, String)>>,
    /// What crashes left of entries that are nobody's any more.
    pub leftovers: Vec<PathBuf>,
}

/// Reads all entries; changes nothing.
pub fn list(spool: &Path) -> io::Result<Listing> {
    let mut listing = Listing::default();
    for found in std::fs::read_dir(spool)? {
        let path = found?.path();
        if path.join(RELEASED).try_exists()? {
            listing.leftovers.push(path);
            continue;
        }
        let id = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let read = std::fs::read(path.join(DOCUMENT));
        listing.entries.push(match read {
            Ok(bytes) => match envelope::decode::<SpoolDoc>(KIND, VERSION, &bytes) {
                Ok(doc) => Ok(SpoolEntry { id, path, doc }),
                Err(e) => Err((path, e.to_string())),
            },
            // Made but never filled, or emptied but not yet removed: nothing is in it.
            Err(e) if e.kind() == io::ErrorKind::NotFound && !path.join("segment.log").exists() => {
                listing.leftovers.push(path);
                continue;
            }
            Err(e) => Err((path, e.to_string())),
        });
    }
    Ok(listing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doc() -> SpoolDoc {
        SpoolDoc {
            tp: "a-0".parse().unwrap(),
            topic_id: TopicId::none(),
            base_offset: 0,
            name: "00000000000000000000.log".to_owned(),
            log_dir: "a-0".to_owned(),
            reason: DiscardReason::Retention,
            size_bytes: 3,
            mtime_ns: 1,
            committed_offset: Some(1),
            end_offset: Some(1),
            archive_wanted: false,
            listener_wanted: true,
            discarded_ms: 1,
            upload_id: None,
            object_base_offset: None,
            compacted: false,
        }
    }

    #[test]
    fn what_was_called_a_deleted_topic_may_have_been_a_move() {
        let read: DiscardReason = serde_json::from_str("\"topic_deleted\"").unwrap();
        assert_eq!(read, DiscardReason::PartitionRemoved);
        assert_eq!(serde_json::to_string(&read).unwrap(), "\"partition_removed\"");
    }

    #[test]
    fn what_a_crash_leaves_of_a_released_entry_is_removed_and_asked_about_no_more() {
        let spool = tempfile::tempdir().unwrap();
        let kept = SpoolEntry::create(spool.path(), "kept", doc()).unwrap();
        let released = SpoolEntry::create(spool.path(), "released", doc()).unwrap();
        // On a full disk an entry never got its document.
        let bare = SpoolEntry { path: spool.path().join("bare"), ..released.clone() };
        std::fs::create_dir(&bare.path).unwrap();
        for entry in [&kept, &released, &bare] {
            std::fs::write(entry.log(), "log").unwrap();
        }
        for entry in [&released, &bare] {
            entry.release().unwrap();
            entry.release().unwrap();
        }
        let listing = list(spool.path()).unwrap();
        let found: Vec<String> = listing.entries.into_iter().map(|e| e.unwrap().id).collect();
        assert_eq!(found, ["kept"]);
        assert_eq!(listing.leftovers.len(), 2);
        for left in &listing.leftovers {
            remove(left).unwrap();
            // Repeated, when a first try stopped half-way.
            remove(left).unwrap();
        }
        assert_eq!(std::fs::read_dir(spool.path()).unwrap().count(), 1);
    }
}
