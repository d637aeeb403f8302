//! What is where locally: every partition directory of the log dir and the tier of every `.log`.
//!
//! Held in memory, made from the data directory at each mount, so there is nothing to get out of step.
//! The filesystem changes it with every rename and unlink; the tiering reads snapshots of it and moves
//! bytes through `LogFile`. It decides nothing and does not know the archive.

mod attr;
mod checkpoints;
mod log_file;
mod partition;
mod steps;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

pub use attr::{AttrChange, NewMode, TimeChange};
pub use log_file::{Archived, Content, LogFile, LogStat, PagedOpen, Piece, counted_changes};
pub use partition::{PartitionDir, SegmentView, is_log_like, plain_log_base};

use crate::failpoint;
use crate::kafka::names;
use crate::local::deleted::Deleted;
use crate::local::{Stub, datadir, durable, stub};
use checkpoints::Checkpoints;

/// The log dir's partitions and checkpoints.
#[derive(Debug)]
pub struct Catalog {
    hot: Arc<Path>,
    overlay: Arc<Path>,
    dirs: RwLock<BTreeMap<String, Arc<PartitionDir>>>,
    checkpoints: Mutex<Checkpoints>,
}

impl Catalog {
    /// Of a data directory's `hot/` and `overlay/`. Removes stubs beside files that won, and overlays
    /// that no stub names.
    pub fn open(hot: &Path, overlay: &Path) -> io::Result<Self> {
        let catalog = Self::scan(hot, overlay)?;
        catalog.remove_orphan_overlays()?;
        catalog.update_sentinel()?;
        Ok(catalog)
    }

    /// Of a stock log dir, which stays untouched.
    pub fn open_stock(log_dir: &Path) -> io::Result<Self> {
        Self::scan(log_dir, Path::new(""))
    }

    fn scan(hot: &Path, overlay: &Path) -> io::Result<Self> {
        failpoint::disk("recover.begin")?;
        let mut checkpoints = Checkpoints::default();
        for name in CHECKPOINTS {
            // Without it less is known to be committed: archiving waits, nothing is served wrongly.
            if let Err(e) = checkpoints.reload(hot, name) {
                tracing::warn!(error = %e, "a checkpoint of Kafka cannot be read; archiving waits");
            }
        }
        let catalog = Self {
            hot: hot.into(),
            overlay: overlay.into(),
            dirs: RwLock::default(),
            checkpoints: Mutex::new(checkpoints),
        };
        for entry in std::fs::read_dir(hot)? {
            let entry = entry?;
            if let Ok(name) = entry.file_name().into_string()
                && entry.file_type()?.is_dir()
            {
                let settled = catalog.checkpoints.lock().settled(&entry.path());
                catalog.add_dir(&name, settled)?;
            }
        }
        Ok(catalog)
    }

    /// The log dir's own path on local disk.
    #[must_use]
    pub fn hot(&self) -> &Path {
        &self.hot
    }

    /// The partition directory of this name.
    #[must_use]
    pub fn dir(&self, name: &str) -> Option<Arc<PartitionDir>> {
        self.dirs.read().get(name).cloned()
    }

    /// All partition directories.
    #[must_use]
    pub fn dirs(&self) -> Vec<Arc<PartitionDir>> {
        self.dirs.read().values().cloned().collect()
    }

    /// Directories of the same topic whose partitions have the next numbers, and then the ones before: those among `max`
    /// numbers that are here.
    #[must_use]
    pub fn beside(&self, dir: &PartitionDir, max: u32) -> Vec<Arc<PartitionDir>> {
        let tp = dir.tp();
        let (topic, own) = (tp.topic(), tp.partition());
        let after = own.saturating_add(1)..own.saturating_add(1).saturating_add(max);
        let before = own.saturating_sub(max)..own;
        let dirs = self.dirs.read();
        let named = |number| dirs.get(&format!("{topic}-{number}")).cloned();
        after.chain(before.rev()).filter_map(named).take(max as usize).collect()
    }

    /// A directory was made or renamed into the log dir's first level. Others than partitions are ignored.
    pub fn dir_appeared(&self, name: &str) -> io::Result<()> {
        self.add_dir(name, false)
    }

    fn add_dir(&self, name: &str, settled: bool) -> io::Result<()> {
        let Some(parsed) = names::parse_dir(name) else { return Ok(()) };
        if names::is_internal_metadata(parsed.tp.topic()) {
            return Ok(());
        }
        let appeared = (!settled).then(|| self.checkpoints.lock().rewrites());
        let named = (name.to_owned(), parsed);
        let (hot, overlay) = (self.hot.clone(), self.overlay.clone());
        let dir = Arc::new(PartitionDir::new(hot, overlay, named, appeared));
        self.recall_deleted(&dir);
        for entry in std::fs::read_dir(dir.path())? {
            if let Ok(file) = entry?.file_name().into_string() {
                self.add_file(&dir, &file)?;
            }
        }
        self.dirs.write().insert(name.to_owned(), dir);
        Ok(())
    }

    /// What an earlier process wrote down when Kafka renamed the directory.
    fn recall_deleted(&self, dir: &PartitionDir) {
        if !dir.parsed().kind.is_given_up() {
            return;
        }
        match Deleted::read(&dir.path()) {
            Ok(Some(known)) => dir.recall(known),
            Ok(None) => {}
            // Without it nothing counts as committed: what is not archived yet is not archived.
            Err(error) => {
                tracing::error!(%error, "what was committed of a deleted partition is unknown")
            }
        }
    }

    /// To be called before a rename by which Kafka gives a partition up: writes down durably what will be forgotten. A failure costs only what a restart within the next minute would need.
    pub fn note_deletion(&self, from: &str, to: &str) {
        let gives_up = names::parse_dir(to).is_some_and(|d| d.kind.is_given_up());
        let Some(dir) = self.dir(from).filter(|d| gives_up && d.is_live()) else { return };
        let known = Deleted { tp: dir.tp(), committed_offset: self.committed_offset(&dir) };
        let written = dir.pin().and_then(|pinned| known.write(&pinned.path("")));
        if let Err(error) = written {
            tracing::error!(%error, dir = from, "what is committed of a deleted partition is not written down");
        }
    }

    fn add_file(&self, dir: &Arc<PartitionDir>, name: &str) -> io::Result<()> {
        if is_log_like(name) {
            dir.adopt(name, Content::Hot(None));
            return Ok(());
        }
        if name.ends_with(durable::TMP_SUFFIX) && !self.overlay.as_os_str().is_empty() {
            failpoint::disk("recover.leftover")?;
            return durable::remove_if_exists(&dir.path().join(name));
        }
        let Some(log_name) = stub::stands_for(name).filter(|n| is_log_like(n)) else {
            return Ok(());
        };
        let path = dir.path().join(log_name);
        if path.try_exists()? {
            failpoint::disk("recover.stub.beside")?;
            return durable::remove_if_exists(&stub::path_of(&path));
        }
        let content = self.read_stub(&path).unwrap_or_else(|why| {
            tracing::error!(file = %path.display(), why, "a stub cannot be believed");
            Content::Broken(why.into())
        });
        dir.adopt(log_name, content);
        Ok(())
    }

    fn read_stub(&self, path: &Path) -> Result<Content, String> {
        let bytes = std::fs::read(stub::path_of(path)).map_err(|e| e.to_string())?;
        let mut stub = Stub::decode(&bytes).map_err(|e| e.to_string())?;
        let Some(id) = stub.overlay.clone() else { return Ok(Content::Cold(Arc::new(stub))) };
        let overlay = self.overlay.join(&id);
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&overlay)
            .map_err(|e| format!("overlay/{id}: {e}"))?;
        let size = file.metadata().map_err(|e| e.to_string())?.len();
        stub.cut(size, u64::MAX);
        stub.size_bytes = size;
        Ok(Content::Overlaid(Arc::new(stub), Arc::new(file)))
    }

    fn remove_orphan_overlays(&self) -> io::Result<()> {
        let broken =
            |(_, log): &(String, Arc<LogFile>)| matches!(log.content(), Content::Broken(_));
        if self.dirs().iter().flat_map(|d| d.all_logs()).any(|log| broken(&log)) {
            return Ok(());
        }
        self.unnamed_overlays()?.iter().try_for_each(|path| {
            failpoint::disk("recover.overlay")?;
            durable::remove_if_exists(path)
        })
    }

    fn unnamed_overlays(&self) -> io::Result<Vec<PathBuf>> {
        let mut named = HashSet::new();
        for (_, log) in self.dirs().iter().flat_map(|d| d.all_logs()) {
            if let Content::Overlaid(stub, _) = log.content() {
                named.extend(stub.overlay.clone());
            }
        }
        let mut unnamed = Vec::new();
        for entry in std::fs::read_dir(&self.overlay)? {
            let entry = entry?;
            if !named.contains(&*entry.file_name().to_string_lossy()) {
                unnamed.push(entry.path());
            }
        }
        Ok(unnamed)
    }

    /// Whether there are overlays that no readable stub names: a damaged one may have.
    pub fn has_unnamed_overlays(&self) -> io::Result<bool> {
        Ok(!self.unnamed_overlays()?.is_empty())
    }

    /// Makes the hidden directory that stops a stock broker while there are stubs; removes it otherwise.
    pub fn update_sentinel(&self) -> io::Result<()> {
        let cold = self.dirs().iter().flat_map(|d| d.all_logs()).any(|(_, log)| !log.is_hot());
        if cold {
            return self.ensure_sentinel();
        }
        failpoint::disk("recover.sentinel")?;
        match std::fs::remove_dir(self.sentinel()) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// To be called before the first eviction.
    pub fn ensure_sentinel(&self) -> io::Result<()> {
        let path = self.sentinel();
        if !path.exists() {
            failpoint::disk("evict.sentinel")?;
            std::fs::create_dir(&path)?;
            failpoint::disk("evict.sentinel.sync")?;
            durable::sync_dir(&self.hot)?;
        }
        Ok(())
    }

    fn sentinel(&self) -> PathBuf {
        self.hot.join(datadir::SENTINEL)
    }

    /// Renames a partition directory, and with it every path below.
    pub fn rename_dir(&self, from: &str, to: &str) -> io::Result<()> {
        // Kafka forgets the watermark of what it deletes; it is still needed then.
        if let Some(dir) = self.dir(from).filter(|d| d.is_live())
            && let Some(offset) = self.committed_offset(&dir)
        {
            dir.remember_committed(offset);
        }
        let mut dirs = self.dirs.write();
        let dir = dirs.get(from).cloned().ok_or(io::ErrorKind::NotFound)?;
        let parsed = names::parse_dir(to).ok_or(io::ErrorKind::InvalidInput)?;
        dir.rename_dir((to.to_owned(), parsed))?;
        dirs.remove(from);
        dirs.insert(to.to_owned(), dir);
        Ok(())
    }

    /// A directory of the first level was removed.
    pub fn dir_removed(&self, name: &str) {
        self.dirs.write().remove(name);
    }

    /// A file of the log dir's root was replaced; checkpoints are read again.
    pub fn root_file_replaced(&self, name: &str) -> io::Result<()> {
        if !CHECKPOINTS.contains(&name) {
            return Ok(());
        }
        let mut checkpoints = self.checkpoints.lock();
        checkpoints.reload(&self.hot, name)?;
        for dir in self.dirs().iter().filter(|d| d.is_live()) {
            let tp = dir.parsed().tp;
            if checkpoints.trusted(dir.appeared_at_rewrite)
                && let Some(offset) = checkpoints.high_watermark(&tp)
            {
                dir.remember_committed(offset);
            }
            if checkpoints.is_cleaned(&tp) {
                dir.set_compaction_seen();
            }
            if name == names::RECOVERY_POINT {
                dir.mark_changed();
            }
        }
        Ok(())
    }

    /// The high watermark, when it can be trusted to be this directory's.
    #[must_use]
    pub fn committed_offset(&self, dir: &PartitionDir) -> Option<i64> {
        if !dir.is_live() {
            return dir.remembered_committed();
        }
        let checkpoints = self.checkpoints.lock();
        if !checkpoints.trusted(dir.appeared_at_rewrite) {
            return None;
        }
        checkpoints.high_watermark(&dir.parsed().tp)
    }

    /// The recovery point that Kafka checkpointed: below it everything was flushed.
    #[must_use]
    pub fn recovery_point(&self, dir: &PartitionDir) -> Option<i64> {
        self.checkpoints.lock().recovery_point(&dir.parsed().tp)
    }

    /// Whether the partition is compacted as far as can be seen from outside.
    #[must_use]
    pub fn is_compacted(&self, dir: &PartitionDir) -> bool {
        dir.compaction_seen() || self.checkpoints.lock().is_cleaned(&dir.parsed().tp)
    }
}

const CHECKPOINTS: [&str; 3] = [names::HIGH_WATERMARK, names::RECOVERY_POINT, names::CLEANER];
