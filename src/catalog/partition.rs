//! One partition directory of the log dir: its files by name and what is known of it as a whole.
//!
//! Invariant: the map holds exactly the `.log`-like names that exist in the directory, in any tier.
//! Lock order: `logs`, then a file's `place`, then its `state`, then `name`.

use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use super::attr::NewMode;
use super::log_file::{Content, LogFile};
use crate::kafka::checkpoint;
use crate::kafka::names::{self, DirKind, FileKind, PartitionDirName, Suffix};
use crate::local::deleted::Deleted;
use crate::local::durable;
use crate::types::{ChainId, TopicId, TopicPartition};

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

#[derive(Debug, Default)]
struct Facts {
    topic_id: Option<TopicId>,
    compaction_seen: bool,
    /// The last trusted high watermark; survives the rename to `-delete`, when Kafka forgets it.
    committed_offset: Option<i64>,
    /// Its name while Kafka served it: the name of a deleted directory may be cut to fit.
    live_tp: Option<TopicPartition>,
}

/// A directory of the log dir whose name is a topic-partition, also `-delete`, `-future`, `-stray`.
#[derive(Debug)]
pub struct PartitionDir {
    /// Unique in this process.
    pub id: u64,
    hot: Arc<Path>,
    overlay: Arc<Path>,
    name: RwLock<(String, PartitionDirName)>,
    logs: Mutex<BTreeMap<String, Arc<LogFile>>>,
    facts: Mutex<Facts>,
    changed: AtomicBool,
    revision: AtomicU64,
    /// Watermark checkpoints seen when the directory appeared; `None`: it is as old as the checkpoint.
    pub(super) appeared_at_rewrite: Option<u64>,
}

/// An open directory; its path leads to it whatever its name is by now.
#[derive(Debug)]
pub(super) struct PinnedDir(File);

impl PinnedDir {
    /// The path of a name in it, good while this lives.
    pub fn path(&self, name: &str) -> PathBuf {
        use std::os::fd::AsRawFd as _;
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd())).join(name)
    }
}

/// One segment as a plan sees it.
#[derive(Clone, Debug)]
pub struct SegmentView {
    /// First offset.
    pub base_offset: i64,
    /// The next segment's base; `None`: this one is active.
    pub next_base: Option<i64>,
    /// The file.
    pub log: Arc<LogFile>,
}

impl PartitionDir {
    pub(super) fn new(
        hot: Arc<Path>,
        overlay: Arc<Path>,
        name: (String, PartitionDirName),
        appeared_at_rewrite: Option<u64>,
    ) -> Self {
        Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            hot,
            overlay,
            name: RwLock::new(name),
            logs: Mutex::default(),
            facts: Mutex::default(),
            changed: AtomicBool::new(true),
            revision: AtomicU64::new(0),
            appeared_at_rewrite,
        }
    }

    /// Its name now.
    #[must_use]
    pub fn name(&self) -> String {
        self.name.read().0.clone()
    }

    /// Its name now, parsed.
    #[must_use]
    pub fn parsed(&self) -> PartitionDirName {
        self.name.read().1.clone()
    }

    /// The topic and partition it is or was before Kafka renamed it.
    #[must_use]
    pub fn tp(&self) -> TopicPartition {
        let live = self.facts.lock().live_tp.clone();
        live.unwrap_or_else(|| self.parsed().tp)
    }

    /// Its path now.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.hot.join(&self.name.read().0)
    }

    /// A short look at a path in it; the directory is not renamed meanwhile.
    pub(super) fn with_path<T>(&self, name: &str, look: impl FnOnce(&Path) -> T) -> T {
        let current = self.name.read();
        look(&self.hot.join(&current.0).join(name))
    }

    /// A way to it that stays right when it is renamed, for work that takes longer.
    pub(super) fn pin(&self) -> io::Result<PinnedDir> {
        let current = self.name.read();
        Ok(PinnedDir(File::open(self.hot.join(&current.0))?))
    }

    pub(super) fn overlay_dir(&self) -> &Path {
        &self.overlay
    }

    /// Kafka serves it: neither being deleted nor moved nor stray.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.parsed().kind == DirKind::Live
    }

    /// The chain it is archived in. The topic id is read from `partition.metadata` and kept; a directory
    /// without that file belongs to a Kafka before 2.8 or is too young to have it, so that is not kept.
    pub fn chain(&self) -> io::Result<ChainId> {
        let tp = self.tp();
        if let Some(id) = &self.facts.lock().topic_id {
            return Ok(ChainId { tp, topic_id: id.clone() });
        }
        let path = self.path().join(names::PARTITION_METADATA);
        let id = match std::fs::read(&path) {
            Ok(text) => checkpoint::parse_partition_metadata(&text)
                .map_err(|e| io::Error::other(format!("{}: {e}", path.display())))?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Ok(ChainId { tp, topic_id: TopicId::none() });
            }
            Err(e) => return Err(e),
        };
        self.facts.lock().topic_id = Some(id.clone());
        Ok(ChainId { tp, topic_id: id })
    }

    /// Forgets the topic id: `partition.metadata` was replaced.
    pub fn forget_topic_id(&self) {
        self.facts.lock().topic_id = None;
    }

    /// The cleaner has been seen at work here, or the topic is one that Kafka always compacts.
    #[must_use]
    pub fn compaction_seen(&self) -> bool {
        self.facts.lock().compaction_seen || names::is_always_compacted(self.parsed().tp.topic())
    }

    pub(super) fn set_compaction_seen(&self) {
        self.facts.lock().compaction_seen = true;
    }

    pub(super) fn remember_committed(&self, offset: i64) {
        let mut facts = self.facts.lock();
        if facts.committed_offset != Some(offset) {
            facts.committed_offset = Some(offset);
            self.changed.store(true, Ordering::Release);
        }
    }

    /// What was known when Kafka renamed it to be deleted, from an earlier process.
    pub(super) fn recall(&self, known: Deleted) {
        let mut facts = self.facts.lock();
        facts.committed_offset = known.committed_offset;
        facts.live_tp = Some(known.tp);
    }

    pub(super) fn remembered_committed(&self) -> Option<i64> {
        self.facts.lock().committed_offset
    }

    /// Whether anything that a plan looks at has changed since the last call.
    pub fn take_changed(&self) -> bool {
        self.changed.swap(false, Ordering::AcqRel)
    }

    /// Another number after each change of a name, a place or a state of one of its files. For bytes see
    /// [`LogFile::set_counted`].
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    /// What is counted over its files has changed, and no plan needs to look.
    pub fn touch(&self) {
        self.revision.fetch_add(1, Ordering::AcqRel);
    }

    /// A plan should look again.
    pub fn mark_changed(&self) {
        self.touch();
        self.changed.store(true, Ordering::Release);
    }

    /// The `.log`-like file of this name.
    #[must_use]
    pub fn log(&self, name: &str) -> Option<Arc<LogFile>> {
        self.logs.lock().get(name).cloned()
    }

    /// The log file of this name and those after it, `max` at most.
    #[must_use]
    pub fn logs_from(&self, name: &str, max: usize) -> Vec<Arc<LogFile>> {
        self.logs.lock().range(name.to_owned()..).take(max).map(|(_, f)| f.clone()).collect()
    }

    /// All `.log`-like names with their files.
    #[must_use]
    pub fn all_logs(&self) -> Vec<(String, Arc<LogFile>)> {
        self.logs.lock().iter().map(|(n, f)| (n.clone(), f.clone())).collect()
    }

    /// The segments that Kafka sees, ascending.
    #[must_use]
    pub fn segments(&self) -> Vec<SegmentView> {
        let logs = self.logs.lock();
        let mut views: Vec<SegmentView> = logs
            .iter()
            .filter_map(|(name, log)| {
                let base_offset = plain_log_base(name)?;
                Some(SegmentView { base_offset, next_base: None, log: log.clone() })
            })
            .collect();
        for i in 1..views.len() {
            views[i - 1].next_base = Some(views[i].base_offset);
        }
        views
    }

    /// The lowest segment that Kafka sees.
    #[must_use]
    pub fn first_log(&self) -> Option<Arc<LogFile>> {
        let logs = self.logs.lock();
        logs.iter().find(|(name, _)| plain_log_base(name).is_some()).map(|(_, log)| log.clone())
    }

    /// Whether a segment with a lower base than this one still has its plain name.
    #[must_use]
    pub fn has_lower_segment(&self, base_offset: i64) -> bool {
        self.logs.lock().keys().filter_map(|n| plain_log_base(n)).any(|b| b < base_offset)
    }

    /// Whether a broker may append to this file beside those who read it: to the newest segment. What its
    /// cleaner writes nobody reads before it is complete.
    #[must_use]
    pub fn is_active(&self, name: &str) -> bool {
        let Some(base) = plain_log_base(name) else { return false };
        let logs = self.logs.lock();
        logs.keys().rev().find_map(|n| plain_log_base(n)).is_none_or(|newest| newest <= base)
    }

    /// The `.log`-like names that tell why a segment goes: one lower segment that still has its plain name, the
    /// cleaner's files up to this base, all names of this base, and the next one above it. Clones no other.
    #[must_use]
    pub fn neighbours(&self, base_offset: i64) -> Vec<String> {
        let own = format!("{base_offset:020}");
        let above = format!("{:020}", base_offset.saturating_add(1));
        let logs = self.logs.lock();
        let mut survivor = false;
        let telling = |name: &&String| {
            let plain = name.ends_with(".log");
            !(name.ends_with(".deleted") || plain && std::mem::replace(&mut survivor, true))
        };
        let mut names: Vec<String> =
            logs.range(..own.clone()).map(|(n, _)| n).filter(telling).cloned().collect();
        names.extend(logs.range(own..above.clone()).map(|(n, _)| n.clone()));
        let is_next = |n: &&String| n.ends_with(".log") || n.ends_with(".deleted");
        names.extend(logs.range(above..).map(|(n, _)| n).find(is_next).cloned());
        names
    }

    /// Opens or creates a `.log`-like file and counts the descriptor.
    pub fn create_log(
        self: &Arc<Self>,
        name: &str,
        mode: impl Into<NewMode>,
        owner: Option<(u32, u32)>,
        exclusive: bool,
    ) -> io::Result<Arc<LogFile>> {
        let mode = mode.into();
        let mut logs = self.logs.lock();
        if let Some(log) = logs.get(name) {
            if exclusive {
                return Err(io::Error::from(io::ErrorKind::AlreadyExists));
            }
            log.open(true)?;
            return Ok(log.clone());
        }
        let file = self.with_path(name, |path| create_file(path, mode, owner))?;
        let log = self.insert(&mut logs, name, Content::Hot(None));
        log.adopt(file);
        self.mark_changed();
        Ok(log)
    }

    /// Notes a file that is there already.
    pub(super) fn adopt(self: &Arc<Self>, name: &str, content: Content) -> Arc<LogFile> {
        let mut logs = self.logs.lock();
        self.mark_changed();
        self.insert(&mut logs, name, content)
    }

    fn insert(
        self: &Arc<Self>,
        logs: &mut BTreeMap<String, Arc<LogFile>>,
        name: &str,
        content: Content,
    ) -> Arc<LogFile> {
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let log = Arc::new(LogFile::new(id, self.clone(), name.to_owned(), content));
        logs.insert(name.to_owned(), log.clone());
        self.note_name(name);
        log
    }

    /// `.cleaned` and `.swap` files are the cleaner's.
    fn note_name(&self, name: &str) {
        if let Some(parsed) = names::parse_file(name)
            && matches!(parsed.suffix, Suffix::Cleaned | Suffix::Swap)
        {
            self.set_compaction_seen();
        }
    }

    /// Renames within this directory, over an existing file if there is one, which is returned.
    pub fn rename_log(self: &Arc<Self>, from: &str, to: &str) -> io::Result<Option<Arc<LogFile>>> {
        loop {
            let (log, replaced) = {
                let logs = self.logs.lock();
                (logs.get(from).cloned().ok_or(io::ErrorKind::NotFound)?, logs.get(to).cloned())
            };
            if from == to {
                return Ok(None);
            }
            // Waits for an eviction's sync, so without the map; in the order of ids, so never for each other.
            let mut both: Vec<&Arc<LogFile>> = std::iter::once(&log).chain(&replaced).collect();
            both.sort_by_key(|l| l.id);
            let _places: Vec<_> = both.iter().map(|l| l.lock_place()).collect();
            let mut logs = self.logs.lock();
            let same = |name: &str, was: Option<&Arc<LogFile>>| {
                logs.get(name).map(|l| l.id) == was.map(|l| l.id)
            };
            if !same(from, Some(&log)) || !same(to, replaced.as_ref()) {
                continue;
            }
            log.move_to(self, to)?;
            if let Some(replaced) = &replaced {
                replaced.replaced_by(&log);
            }
            logs.remove(from);
            logs.insert(to.to_owned(), log.clone());
            self.note_name(to);
            self.mark_changed();
            return Ok(replaced.clone());
        }
    }

    /// Renames an ordinary file from elsewhere to a `.log` of this directory.
    pub fn rename_in(self: &Arc<Self>, from: &Path, to: &str) -> io::Result<Arc<LogFile>> {
        let replaced = self.log(to);
        let place = replaced.as_ref().map(|r| r.lock_place());
        let mut logs = self.logs.lock();
        self.with_path(to, |path| std::fs::rename(from, path))?;
        let log = self.insert(&mut logs, to, Content::Hot(None));
        if let Some(replaced) = &replaced {
            replaced.replaced_by(&log);
        }
        drop(place);
        self.mark_changed();
        Ok(log)
    }

    /// Removes a name with its bytes or stub.
    pub fn remove_log(&self, name: &str) -> io::Result<Arc<LogFile>> {
        self.take_away(name, LogFile::remove)
    }

    /// Removes a name and moves its bytes to `target`. Only for a hot file.
    pub fn remove_log_into(&self, name: &str, target: &Path) -> io::Result<Arc<LogFile>> {
        self.take_away(name, |log| log.remove_into(target))
    }

    fn take_away(
        &self,
        name: &str,
        remove: impl FnOnce(&LogFile) -> io::Result<()>,
    ) -> io::Result<Arc<LogFile>> {
        loop {
            let log = self.logs.lock().get(name).cloned().ok_or(io::ErrorKind::NotFound)?;
            let _place = log.lock_place();
            let mut logs = self.logs.lock();
            if logs.get(name).map(|l| l.id) != Some(log.id) {
                continue;
            }
            remove(&log)?;
            logs.remove(name);
            self.mark_changed();
            return Ok(log.clone());
        }
    }

    pub(super) fn rename_dir(&self, name: (String, PartitionDirName)) -> io::Result<()> {
        let live = self.tp();
        let becomes_live = name.1.kind == DirKind::Live;
        self.facts.lock().live_tp = (!becomes_live).then_some(live);
        let mut current = self.name.write();
        std::fs::rename(self.hot.join(&current.0), self.hot.join(&name.0))?;
        *current = name;
        self.mark_changed();
        Ok(())
    }
}

/// The base offset of a `.log` without any suffix.
#[must_use]
pub fn plain_log_base(name: &str) -> Option<i64> {
    names::parse_file(name)
        .filter(|n| n.kind == FileKind::Log && n.suffix == Suffix::None)
        .map(|n| n.base_offset)
}

/// Whether a name is a `.log` in any of Kafka's disguises.
#[must_use]
pub fn is_log_like(name: &str) -> bool {
    names::parse_file(name).is_some_and(|n| n.kind == FileKind::Log)
}

fn create_file(path: &Path, mode: NewMode, owner: Option<(u32, u32)>) -> io::Result<File> {
    use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(mode.bits)
        .open(path)?;
    let owned =
        owner.map_or(Ok(()), |(uid, gid)| std::os::unix::fs::fchown(&file, Some(uid), Some(gid)));
    let settled = owned.and_then(|()| match mode.corrected(file.metadata()?.mode()) {
        Some(bits) => file.set_permissions(Permissions::from_mode(bits)),
        None => Ok(()),
    });
    if let Err(e) = settled {
        // Nobody was told of it.
        durable::remove_if_exists(path)?;
        return Err(e);
    }
    Ok(file)
}
