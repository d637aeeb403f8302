//! The spool in memory: what is still owed to the archive and to the discard command.
//!
//! An entry's document on disk is the truth after a crash, and may be behind by one step, which is
//! then simply done again. Changes are made here first and written by `sweep`, off the runtime.
//! Nothing in the spool ever returns to the log dir (law 5).

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use crate::catalog::Catalog;
use crate::clock::{random_hex_32, random_u64};
use crate::failpoint;
use crate::local::Extent;
use crate::local::spool::{self, SpoolDoc, SpoolEntry};
use crate::types::ChainId;

use super::backoff::pause_ms;

const LISTENER_BACKOFF_MIN_MS: u64 = 1_000;
const LISTENER_BACKOFF_MAX_MS: u64 = 60_000;

#[derive(Debug)]
struct Slot {
    entry: SpoolEntry,
    /// The file of the log dir that it was, in this process.
    from_log: Option<u64>,
    /// Memory is ahead of the disk.
    dirty: bool,
    /// The discard command runs for it.
    asking: bool,
    /// How often in a row the discard command did not agree.
    refusals: u32,
    /// It is not asked again before this time, milliseconds.
    ask_at_ms: u64,
}

/// All entries.
#[derive(Debug)]
pub(super) struct Spool {
    dir: Option<PathBuf>,
    slots: Mutex<BTreeMap<String, Slot>>,
    damaged: Mutex<Vec<(PathBuf, String)>>,
    /// Directories of entries that are nobody's any more: `sweep` removes them.
    leftovers: Mutex<Vec<PathBuf>>,
    /// An empty directory made in good time: a rename into it needs no space on a full disk.
    reserve: Mutex<Option<String>>,
}

/// How much is in the spool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SpoolTotals {
    pub segments: u64,
    pub bytes: u64,
    pub waiting_for_archive: u64,
    pub waiting_for_listener: u64,
    pub damaged: u64,
}

impl Spool {
    pub fn new(dir: Option<PathBuf>) -> Self {
        let (slots, damaged, leftovers) = Default::default();
        Self { dir, slots, damaged, leftovers, reserve: Mutex::default() }
    }

    /// Reads the entries on disk, and removes what crashes left there, as far as it can: `sweep` does the
    /// rest. An entry whose file never left the log dir is void: Kafka unlinks it again.
    pub fn load(&self, catalog: &Catalog) -> io::Result<()> {
        let Some(dir) = &self.dir else { return Ok(()) };
        let listing = spool::list(dir)?;
        self.leftovers.lock().extend(listing.leftovers);
        for found in listing.entries {
            match found {
                Ok(entry) if is_void(&entry, catalog) => self.leftovers.lock().push(entry.path),
                Ok(entry) => self.insert(entry, None, false),
                Err((path, why)) => {
                    tracing::error!(entry = %path.display(), %why, "a spool entry cannot be believed: kept");
                    self.damaged.lock().push((path, why));
                }
            }
        }
        self.remove_leftovers().and(self.make_reserve(dir))
    }

    /// This entry's directory is nobody's: it goes now, or `sweep` tries again.
    pub fn abandon(&self, entry: PathBuf) {
        if let Err(error) = spool::remove(&entry) {
            tracing::warn!(entry = %entry.display(), %error, "what is left of a spool entry is removed later");
            self.leftovers.lock().push(entry);
        }
    }

    /// One that cannot be removed stops no other; the first such error is the result.
    fn remove_leftovers(&self) -> io::Result<()> {
        let mut removed = Ok(());
        let left = self.leftovers.lock().clone();
        for entry in left {
            let gone = failpoint::disk("spool.leftover").and_then(|()| spool::remove(&entry));
            match gone {
                Ok(()) => self.leftovers.lock().retain(|e| *e != entry),
                Err(_) => removed = removed.and(gone),
            }
        }
        removed
    }

    fn make_reserve(&self, dir: &Path) -> io::Result<()> {
        let mut reserve = self.reserve.lock();
        if reserve.is_none() {
            let id = random_hex_32();
            failpoint::disk("spool.reserve")?;
            std::fs::create_dir(dir.join(&id))?;
            *reserve = Some(id);
        }
        Ok(())
    }

    /// Makes an entry. On a full disk it has no document yet: the bytes can be kept all the same, and
    /// `sweep` writes the document when there is space again.
    pub fn create(&self, doc: SpoolDoc) -> io::Result<(SpoolEntry, bool)> {
        let dir = self.dir.as_deref().ok_or(io::ErrorKind::Unsupported)?;
        let error = match SpoolEntry::create(dir, &random_hex_32(), doc.clone()) {
            Ok(entry) => return Ok((entry, false)),
            Err(error) => error,
        };
        let Some(entry) = self.use_reserve(doc) else { return Err(error) };
        // Making room may have begun with that failure.
        let document = entry.save();
        if document.is_err() {
            tracing::error!(%error, spool = %dir.display(), "cannot write a spool entry's document yet");
        }
        Ok((entry, document.is_err()))
    }

    /// An entry in the directory that was made in good time; `None`: it is used up.
    pub fn use_reserve(&self, doc: SpoolDoc) -> Option<SpoolEntry> {
        let id = self.reserve.lock().take()?;
        Some(SpoolEntry { path: self.dir.as_ref()?.join(&id), id, doc })
    }

    pub fn insert(&self, entry: SpoolEntry, from_log: Option<u64>, dirty: bool) {
        let slot = Slot { from_log, dirty, asking: false, refusals: 0, ask_at_ms: 0, entry };
        self.slots.lock().insert(slot.entry.id.clone(), slot);
    }

    /// Whether there is such an entry.
    pub fn has(&self, id: &str) -> bool {
        self.slots.lock().contains_key(id)
    }

    /// Whether this file of the log dir was moved here.
    pub fn holds_log(&self, log_id: u64) -> bool {
        self.slots.lock().values().any(|s| s.from_log == Some(log_id))
    }

    /// Chains of which the archive still wants entries.
    pub fn chains_wanting(&self) -> Vec<ChainId> {
        let slots = self.slots.lock();
        let mut chains: Vec<ChainId> = slots
            .values()
            .filter(|s| s.entry.doc.archive_wanted)
            .map(|s| s.entry.doc.chain())
            .collect();
        chains.sort();
        chains.dedup();
        chains
    }

    /// The entries of a chain that the archive wants, ascending.
    pub fn wanted(&self, chain: &ChainId) -> Vec<SpoolEntry> {
        let slots = self.slots.lock();
        let mut entries: Vec<SpoolEntry> = slots
            .values()
            .map(|s| &s.entry)
            .filter(|e| e.doc.archive_wanted && e.doc.chain() == *chain)
            .cloned()
            .collect();
        entries.sort_by_key(|e| e.doc.base_offset);
        entries
    }

    fn change(&self, id: &str, change: impl FnOnce(&mut Slot)) {
        if let Some(slot) = self.slots.lock().get_mut(id) {
            change(slot);
        }
    }

    /// The archive has it, in these objects.
    pub fn note_archived(&self, id: &str, extents: &[Extent], end_offset: i64) {
        self.change(id, |slot| {
            let doc = &mut slot.entry.doc;
            doc.archive_wanted = false;
            doc.upload_id = extents.first().map(|e| e.upload_id.clone());
            doc.object_base_offset = extents.first().map(|e| e.base_offset);
            doc.end_offset = Some(end_offset);
            slot.dirty = true;
        });
    }

    /// The archive will never have it.
    pub fn note_not_archived(&self, id: &str) {
        self.change(id, |slot| {
            slot.entry.doc.archive_wanted = false;
            slot.dirty = true;
        });
    }

    /// Entries to ask the discard command about, marked as being asked; at most `max` at a time. Those that
    /// have been due the longest come first, so that refusals of some starve no others.
    pub fn take_to_ask(&self, now_ms: u64, max: usize) -> Vec<SpoolEntry> {
        let mut slots = self.slots.lock();
        let asking = slots.values().filter(|s| s.asking).count();
        let mut due: Vec<&mut Slot> = slots
            .values_mut()
            .filter(|s| s.entry.doc.listener_wanted && !s.entry.doc.archive_wanted)
            .filter(|s| !s.asking && s.ask_at_ms <= now_ms)
            .collect();
        due.sort_by_key(|s| (s.ask_at_ms, s.entry.doc.discarded_ms));
        due.truncate(max.saturating_sub(asking));
        let take = |slot: &mut Slot| {
            slot.asking = true;
            slot.entry.clone()
        };
        due.into_iter().map(take).collect()
    }

    /// The discard command answered, or failed.
    pub fn note_answer(&self, id: &str, agreed: bool, now_ms: u64) {
        failpoint::step("spool.answered");
        self.change(id, |slot| {
            slot.asking = false;
            if agreed {
                slot.entry.doc.listener_wanted = false;
                slot.dirty = true;
                return;
            }
            slot.refusals = slot.refusals.saturating_add(1);
            let (min_ms, max_ms) = (LISTENER_BACKOFF_MIN_MS, LISTENER_BACKOFF_MAX_MS);
            slot.ask_at_ms = now_ms + pause_ms(slot.refusals, min_ms, max_ms, random_u64());
        });
    }

    /// No discard command is configured any more: nobody is asked.
    pub fn release_listeners(&self) {
        for slot in self.slots.lock().values_mut().filter(|s| s.entry.doc.listener_wanted) {
            slot.entry.doc.listener_wanted = false;
            slot.dirty = true;
        }
    }

    /// Whether `sweep` has something to do that it can do now.
    pub fn is_dirty(&self) -> bool {
        let writable = |s: &Slot| s.dirty && !s.asking;
        self.dir.is_some()
            && (self.slots.lock().values().any(writable)
                || self.reserve.lock().is_none()
                || !self.leftovers.lock().is_empty())
    }

    /// Writes what memory is ahead by, and removes entries that owe nothing any more. Blocking.
    /// What fails stays to be done and stops nothing else; the first error is the result.
    pub fn sweep(&self) -> io::Result<()> {
        let Some(dir) = &self.dir else { return Ok(()) };
        let dirty: Vec<SpoolEntry> = {
            let slots = self.slots.lock();
            slots.values().filter(|s| s.dirty && !s.asking).map(|s| s.entry.clone()).collect()
        };
        let mut swept = Ok(());
        for entry in dirty {
            swept = swept.and(self.write_back(&entry));
        }
        swept.and(self.remove_leftovers()).and(self.make_reserve(dir))
    }

    fn write_back(&self, entry: &SpoolEntry) -> io::Result<()> {
        if entry.doc.archive_wanted || entry.doc.listener_wanted {
            failpoint::disk("spool.save")?;
            entry.save()?;
            self.change(&entry.id, |s| s.dirty = s.entry.doc != entry.doc);
        } else {
            // After a crash in the middle of the removal nobody is asked again. Neither needs space.
            entry.release()?;
            entry.remove()?;
            self.slots.lock().remove(&entry.id);
        }
        Ok(())
    }

    pub fn totals(&self) -> SpoolTotals {
        let mut totals =
            SpoolTotals { damaged: self.damaged.lock().len() as u64, ..SpoolTotals::default() };
        for slot in self.slots.lock().values() {
            let doc = &slot.entry.doc;
            let owed = doc.archive_wanted || doc.listener_wanted;
            totals.segments += u64::from(owed);
            totals.waiting_for_archive += u64::from(doc.archive_wanted);
            totals.waiting_for_listener += u64::from(doc.listener_wanted);
            let has_bytes = owed && (doc.archive_wanted || slot.entry.log().exists());
            totals.bytes += if has_bytes { doc.size_bytes } else { 0 };
        }
        totals
    }
}

/// A crash came between the entry and the rename: the file is still in the log dir.
fn is_void(entry: &SpoolEntry, catalog: &Catalog) -> bool {
    if entry.log().exists() {
        return false;
    }
    let deleted = format!("{}.deleted", entry.doc.name);
    let still_there = catalog
        .dir(&entry.doc.log_dir)
        .is_some_and(|d| d.log(&entry.doc.name).is_some() || d.log(&deleted).is_some());
    // Without bytes there is nothing to archive; a cold segment's entry is for the listener alone.
    still_there || entry.doc.archive_wanted
}
