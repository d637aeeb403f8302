//! What the filesystem calls when Kafka gives a `.log` up: never waits for the store, never brings a
//! name back, and keeps the bytes that are still owed to the archive or to the discard command.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Tier;
use super::fate::{self, Discard, DiscardFacts, FateNote};
use super::holds::SourceId;
use super::small_files::spool_name;
use crate::catalog::{Content, LogFile, PartitionDir};
use crate::failpoint;
use crate::kafka::names::{self, FileKind, LogName, Suffix};
use crate::local::spool::{DiscardReason, SpoolDoc, SpoolEntry};
use crate::types::ChainId;

const SIDE_FILES: [FileKind; 4] =
    [FileKind::Index, FileKind::TimeIndex, FileKind::TxnIndex, FileKind::Snapshot];

struct Owed {
    reason: DiscardReason,
    end_offset: Option<i64>,
    archive: bool,
    listener: bool,
}

impl Tier {
    /// To be called before a rename within a partition directory: remembers why Kafka renames a `.log` to
    /// `.log.deleted`, which nobody can tell afterwards.
    pub fn note_rename(&self, dir: &Arc<PartitionDir>, from: &str, to: &str) {
        let (Some(from_name), Some(to_name)) = (names::parse_file(from), names::parse_file(to))
        else {
            return;
        };
        if from_name.kind != FileKind::Log || to_name.kind != FileKind::Log {
            return;
        }
        let Some(log) = dir.log(from) else { return };
        let dies = to_name.suffix == Suffix::Deleted && dir.is_live();
        if from_name.suffix == Suffix::None && dies {
            let note = self.fate_of(dir, from, from_name.base_offset);
            self.fates.lock().insert(log.id, note);
        } else {
            self.fates.lock().remove(&log.id);
        }
    }

    /// Why a `.deleted` file was renamed: as it was noted then, or as the names tell that are left after a restart.
    pub(super) fn fate_of_deleted(
        &self,
        dir: &PartitionDir,
        log: &LogFile,
        name: &str,
        base_offset: i64,
    ) -> FateNote {
        let noted = self.fates.lock().get(&log.id).copied();
        noted.unwrap_or_else(|| {
            let note = self.fate_of(dir, name, base_offset);
            *self.fates.lock().entry(log.id).or_insert(note)
        })
    }

    fn fate_of(&self, dir: &PartitionDir, name: &str, base_offset: i64) -> FateNote {
        let neighbours = dir.neighbours(base_offset);
        let others = neighbours.iter().map(String::as_str).filter(|n| *n != name);
        fate::of_deleted(base_offset, others, self.catalog.is_compacted(dir))
    }

    /// Takes a `.log`-like name out of a partition directory. Local disk only.
    ///
    /// Bytes that are still owed to somebody go into the spool. When the spool cannot take them (its
    /// documents cannot be written and its reserve is used up) they are lost from local disk: Kafka's
    /// unlink must not fail, since that takes the whole log dir offline; the loss is logged, counted and, once
    /// a later segment is archived, a named gap.
    pub fn unlink(&self, dir: &Arc<PartitionDir>, name: &str) -> io::Result<Arc<LogFile>> {
        let log = dir.log(name).ok_or(io::ErrorKind::NotFound)?;
        let removed = match self.decide_unlink(dir, name, &log) {
            Some((parsed, owed)) => self.keep(dir, name, &log, parsed, &owed)?,
            None => dir.remove_log(name)?,
        };
        self.fates.lock().remove(&log.id);
        self.rolled.lock().remove(&log.id);
        self.sizes.forget(&log);
        self.holds.forget(&SourceId::Log(log.id));
        self.wake.notify_one();
        Ok(removed)
    }

    fn decide_unlink(
        &self,
        dir: &Arc<PartitionDir>,
        name: &str,
        log: &LogFile,
    ) -> Option<(LogName, Owed)> {
        let parsed = names::parse_file(name)?;
        let content = log.content();
        if self.config.stock || matches!(content, Content::Broken(_)) {
            return None;
        }
        let dir_name = dir.parsed();
        let note = (parsed.suffix == Suffix::Deleted)
            .then(|| self.fate_of_deleted(dir, log, name, parsed.base_offset));
        // Taken for archived by size and time alone is not archived: the spool compares and adopts it. But
        // where the archive ends was committed once, whatever a checkpoint says by now.
        let archived = log.archived();
        let presumed_end = archived.as_ref().and_then(|a| {
            let chain = self.chains.view(&a.stub.chain())?;
            chain.find(parsed.base_offset).map(|s| s.end_offset)
        });
        let facts = DiscardFacts {
            dir: dir_name.kind,
            suffix: parsed.suffix,
            note,
            base_offset: parsed.base_offset,
            committed: self.catalog.committed_offset(dir).max(presumed_end),
            archived: matches!(content, Content::Cold(_)) || archived.is_some_and(|a| a.compared),
            compacted: self.catalog.is_compacted(dir),
            empty: log.stat().is_ok_and(|s| s.size_bytes == 0),
            archiving: self.config.includes(dir.tp().topic()),
            listening: self.config.on_discard.is_some(),
        };
        match fate::decide(&facts) {
            Discard::Release => None,
            Discard::Keep { reason, end_offset, archive, listener } => {
                Some((parsed, Owed { reason, end_offset, archive, listener }))
            }
        }
    }

    fn keep(
        &self,
        dir: &Arc<PartitionDir>,
        name: &str,
        log: &Arc<LogFile>,
        parsed: LogName,
        owed: &Owed,
    ) -> io::Result<Arc<LogFile>> {
        let made =
            self.describe_discard(dir, log, parsed, owed).and_then(|doc| self.spool.create(doc));
        let (mut entry, mut dirty) = match made {
            Ok(made) => made,
            Err(error) => return self.give_up(dir, name, log, &error),
        };
        link_side_files(&dir.path(), parsed.base_offset, &entry);
        let moved = match self.with_ballast(|| dir.remove_log_into(name, &entry.log())) {
            // Half of it is archived and half is local: there is no one file to keep.
            Err(error) if owed.archive && matches!(log.content(), Content::Overlaid(..)) => {
                Err(error)
            }
            // Evicted before we got to it, or cold all along: there are no local bytes to keep.
            Err(_) if !log.is_hot() => {
                dirty |= entry.doc.archive_wanted;
                entry.doc.archive_wanted = false;
                dir.remove_log(name)
            }
            other => other,
        };
        match moved {
            Ok(removed) => {
                let (from, to) = (SourceId::Log(log.id), SourceId::Spooled(entry.id.clone()));
                self.holds.rename(&from, to);
                self.spool.insert(entry, Some(log.id), dirty);
                failpoint::step("spool.kept");
                Ok(removed)
            }
            Err(error) => {
                self.spool.abandon(entry.path);
                self.give_up(dir, name, log, &error)
            }
        }
    }

    /// Takes the name away although its bytes are owed.
    fn give_up(
        &self,
        dir: &PartitionDir,
        name: &str,
        log: &LogFile,
        error: &io::Error,
    ) -> io::Result<Arc<LogFile>> {
        let file = log.label();
        let removed = dir.remove_log(name)?;
        self.counters.lost_discards.raise();
        tracing::error!(%file, %error, "a discarded segment that was still owed could not be kept");
        Ok(removed)
    }

    fn describe_discard(
        &self,
        dir: &PartitionDir,
        log: &LogFile,
        parsed: LogName,
        owed: &Owed,
    ) -> io::Result<SpoolDoc> {
        let stub = match log.content() {
            Content::Cold(stub) => Some(stub.as_ref().clone()),
            _ => log.archived().map(|a| a.stub.clone()),
        };
        let chain: ChainId = match &stub {
            Some(stub) => stub.chain(),
            None => dir.chain()?,
        };
        let stat = log.stat()?;
        let archived_end = || {
            let chain = self.chains.view(&chain)?;
            let segment = chain.find(parsed.base_offset)?;
            (segment.size_bytes == stat.size_bytes).then_some(segment.end_offset)
        };
        let first = stub.filter(|_| !owed.archive).and_then(|s| s.extents.first().cloned());
        Ok(SpoolDoc {
            // The neighbour that told the other one may be behind a gap that a power loss left.
            end_offset: archived_end().or(owed.end_offset),
            tp: chain.tp.clone(),
            topic_id: chain.topic_id.clone(),
            base_offset: parsed.base_offset,
            name: LogName { suffix: Suffix::None, ..parsed }.to_string(),
            log_dir: dir.name(),
            reason: owed.reason,
            size_bytes: stat.size_bytes,
            mtime_ns: stat.mtime_ns,
            committed_offset: self.catalog.committed_offset(dir),
            archive_wanted: owed.archive,
            listener_wanted: owed.listener,
            discarded_ms: self.clock.now_ms(),
            upload_id: first.as_ref().map(|e| e.upload_id.clone()),
            object_base_offset: first.map(|e| e.base_offset),
            compacted: self.catalog.is_compacted(dir),
        })
    }
}

fn candidates(dir: &Path, base_offset: i64, kind: FileKind) -> [PathBuf; 2] {
    [Suffix::Deleted, Suffix::None]
        .map(|suffix| dir.join(LogName { base_offset, kind, suffix }.to_string()))
}

/// Hard links, so that Kafka's own unlinks of these names stay what they are. One that fails costs an
/// index that is made anew.
fn link_side_files(dir: &Path, base_offset: i64, entry: &SpoolEntry) {
    let linked = |from: &Path, to: &Path| {
        failpoint::disk("spool.links")?;
        std::fs::hard_link(from, to)
    };
    let link = |from: &Path, to: PathBuf| match linked(from, &to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(file = %from.display(), %error, "not kept with its segment");
            false
        }
        linked => linked.is_ok(),
    };
    for kind in SIDE_FILES {
        let mut paths = candidates(dir, base_offset, kind).into_iter();
        paths.any(|from| link(&from, entry.side_file(spool_name(kind))));
    }
    link(&dir.join(names::LEADER_EPOCHS), entry.side_file("epochs"));
}
