//! The filesystem without a kernel: what each operation means, in terms of inode numbers and bytes.
//!
//! Two trees behind one surface: the log dir (`local`, synchronous, never asks the network) and the
//! archive (`archive`, asynchronous). The adapter above decides nothing; errno is decided in `error`.

pub mod archive;
mod attr;
mod chains;
mod cleaner;
mod error;
mod followers;
mod handles;
mod inflight;
mod local;
mod nodes;
mod patience;

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;

pub use archive::{ArchiveTree, source_of as archive_source};
pub use attr::{Attr, Kind};
pub use chains::ArchiveIndex;
pub use error::VfsError;
pub use handles::{Handle, OpenAs, Opened, ReadReply, log_source};
pub use local::{AskedMode, Caller, DirEntry, Listing, LocalTree, SetAttr};
pub use nodes::ROOT;

use crate::clock::Clock;
use crate::read::Reader;
use archive::{ARCHIVE_ROOT, EVERLOG_DIR, INFLIGHT_FILE, STATUS_FILE, VIRTUAL};
use handles::Handles;
use inflight::Inflight;
pub use inflight::Wait;
use patience::Patience;

type Result<T> = std::result::Result<T, VfsError>;

/// The name under which Everlog's own tree is reachable; never listed.
pub const EVERLOG_NAME: &str = ".everlog";

/// Settings of a mount.
#[derive(Clone, Copy, Debug)]
pub struct VfsConfig {
    /// Segments of compacted topics go cold, too.
    pub evict_compacted: bool,
    /// A request that asks the store is answered within this time.
    pub deadline: Duration,
    /// A broker's service threads wait no longer for cold bytes.
    pub broker_read_wait: Duration,
    /// Test hook: each write waits this long in the daemon.
    pub write_delay: Duration,
}

/// Makes the text of `status.json`.
pub type StatusText = Arc<dyn Fn() -> Bytes + Send + Sync>;

/// A mounted filesystem.
pub struct Vfs {
    local: Option<LocalTree>,
    archive: ArchiveTree,
    reader: Reader,
    status: StatusText,
    clock: Clock,
    config: VfsConfig,
    handles: Handles,
    inflight: Arc<Inflight>,
    patience: Patience,
}

impl Vfs {
    /// `local`: the log dir of a broker mount; without it the archive is the root.
    #[must_use]
    pub fn new(
        local: Option<LocalTree>,
        archive: ArchiveTree,
        reader: Reader,
        status: StatusText,
        clock: Clock,
        config: VfsConfig,
    ) -> Self {
        let handles = Handles::default();
        let inflight = Inflight::new(clock.clone());
        let patience = Patience::new(config.broker_read_wait);
        Self { local, archive, reader, status, clock, config, handles, inflight, patience }
    }

    /// Does what may have to ask the store about an inode: shown in `inflight.json` while it lasts, and ended
    /// by the deadline. Everlog's own files are answered from memory: who looks at them does not wait.
    pub async fn within_deadline<T>(
        &self,
        ino: u64,
        wait: Wait,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let waits = !matches!(ino, EVERLOG_DIR | STATUS_FILE | INFLIGHT_FILE);
        let _ticket = waits.then(|| self.inflight.enter(wait));
        let deadline = self.config.deadline;
        let late = VfsError::Deadline { deadline_ms: deadline.as_millis() as u64 };
        tokio::time::timeout(deadline, work).await.unwrap_or(Err(late))
    }

    /// Whether operations on this inode may have to ask the store, so must not hold a thread.
    #[must_use]
    pub fn is_remote(&self, ino: u64) -> bool {
        ino >= VIRTUAL || self.local.is_none()
    }

    /// The log dir; `EROFS` where there is none.
    fn writable(&self, ino: u64) -> Result<&LocalTree> {
        match &self.local {
            Some(local) if ino < VIRTUAL => Ok(local),
            _ => Err(VfsError::ReadOnly),
        }
    }

    /// The log dir, for an operation on one of its inodes.
    pub fn tree(&self, ino: u64) -> Result<&LocalTree> {
        self.writable(ino)
    }

    /// Whether this inode is the archive's root.
    fn is_archive_root(&self, ino: u64) -> bool {
        ino == ARCHIVE_ROOT || (ino == ROOT && self.local.is_none())
    }

    fn everlog_attr(&self, ino: u64) -> Attr {
        let text = self.everlog_text(ino);
        let kind = if text.is_some() { Kind::File } else { Kind::Dir };
        let size = text.map_or(0, |text| text.len() as u64);
        Attr::synthetic(ino, kind, size, self.clock.now_ns())
    }

    /// The text of a file of Everlog's own.
    fn everlog_text(&self, ino: u64) -> Option<Bytes> {
        match ino {
            STATUS_FILE => Some((self.status)()),
            INFLIGHT_FILE => Some(self.inflight.text(&self.reader.fetches())),
            _ => None,
        }
    }

    /// A name of the log dir; local disk only.
    pub fn lookup_local(&self, parent: u64, name: &OsStr) -> Result<Attr> {
        if parent == ROOT && name == EVERLOG_NAME {
            return Ok(self.everlog_attr(EVERLOG_DIR));
        }
        self.writable(parent)?.lookup(parent, name)
    }

    /// A name of Everlog's own tree or of an archive mount.
    pub async fn lookup_remote(&self, parent: u64, name: &OsStr) -> Result<Attr> {
        let text = name.to_str().ok_or(VfsError::NotFound)?;
        if parent == EVERLOG_DIR {
            return match text {
                "archive" => Ok(self.everlog_attr(ARCHIVE_ROOT)),
                "status.json" => Ok(self.everlog_attr(STATUS_FILE)),
                "inflight.json" => Ok(self.everlog_attr(INFLIGHT_FILE)),
                _ => Err(VfsError::NotFound),
            };
        }
        if parent == ROOT && text == EVERLOG_NAME {
            return Ok(self.everlog_attr(EVERLOG_DIR));
        }
        if self.is_archive_root(parent) {
            return self.archive.lookup_partition(text).await;
        }
        self.archive.lookup_file(parent, text).await
    }

    /// Attributes of an inode of Everlog's own tree or of an archive mount.
    pub async fn getattr_remote(&self, ino: u64) -> Result<Attr> {
        match ino {
            EVERLOG_DIR | ARCHIVE_ROOT | STATUS_FILE | INFLIGHT_FILE | ROOT => {
                Ok(self.everlog_attr(ino))
            }
            _ => self.archive.getattr(ino).await,
        }
    }

    /// What an inode of Everlog's own tree or of an archive mount is, in words for people.
    #[must_use]
    pub fn label(&self, ino: u64) -> String {
        match ino {
            ROOT | ARCHIVE_ROOT => "archive".to_owned(),
            EVERLOG_DIR => EVERLOG_NAME.to_owned(),
            _ => self.archive.label(ino).unwrap_or_else(|| format!("inode {ino}")),
        }
    }

    /// The same of a name in a directory.
    #[must_use]
    pub fn label_in(&self, parent: u64, name: &OsStr) -> String {
        format!("{}/{}", self.label(parent), name.to_string_lossy())
    }

    /// The kernel forgot `n` lookups of this inode.
    pub fn forget(&self, ino: u64, n: u64) {
        match &self.local {
            Some(local) if ino < VIRTUAL => local.nodes.forget(ino, n),
            _ => self.archive.forget(ino, n),
        }
    }

    /// Opens a directory of the log dir; it is listed when it is read from its beginning.
    pub fn opendir_local(&self, ino: u64) -> Result<u64> {
        self.writable(ino)?;
        Ok(self.handles.insert(Handle::Dir(Mutex::default())))
    }

    /// Lists a directory of the archive and opens it.
    pub async fn opendir_remote(&self, ino: u64) -> Result<u64> {
        let listing = if ino == EVERLOG_DIR {
            let entry = |name: &str, ino, kind| DirEntry { name: name.into(), ino, kind };
            let entries = vec![
                entry("archive", ARCHIVE_ROOT, Kind::Dir),
                entry("status.json", STATUS_FILE, Kind::File),
                entry("inflight.json", INFLIGHT_FILE, Kind::File),
            ];
            Listing { entries, damage: None }
        } else if self.is_archive_root(ino) {
            self.archive.list_root().await?
        } else {
            self.archive.list_partition(ino).await?
        };
        Ok(self.handles.insert(Handle::Dir(Mutex::new(Arc::new(listing)))))
    }

    /// The entries of an open directory. One of the log dir that is read from its beginning, again or for the
    /// first time, shows what is there now; further on it stays as it was, so positions keep their meaning.
    pub fn listing(&self, ino: u64, fh: u64, from_start: bool) -> Result<Arc<Listing>> {
        let handle = self.handles.get(fh)?;
        let Handle::Dir(listing) = &*handle else { return Err(VfsError::BadHandle) };
        if from_start && let Some(local) = self.local.as_ref().filter(|_| ino < VIRTUAL) {
            let entries = local.list(ino)?;
            *listing.lock() = Arc::new(Listing { entries, damage: None });
        }
        Ok(listing.lock().clone())
    }

    /// The number of the directory above one.
    #[must_use]
    pub fn parent(&self, ino: u64) -> u64 {
        match &self.local {
            Some(local) if ino < VIRTUAL => local.parent(ino),
            _ => ino,
        }
    }

    /// Whether it has a log dir that can be written to.
    #[must_use]
    pub fn has_log_dir(&self) -> bool {
        self.local.is_some()
    }

    /// The log dir, for the extended attributes of one of its inodes; `None` for Everlog's own tree, where nothing
    /// has any. ENOSYS in an archive mount: the kernel asks no more.
    pub fn attributes(&self, ino: u64) -> Result<Option<&LocalTree>> {
        match &self.local {
            None => Err(rustix::io::Errno::NOSYS.into()),
            local => Ok(local.as_ref().filter(|_| ino < VIRTUAL)),
        }
    }

    /// Opens a file of the archive, for reading only; with `native` a `.log` whose object is whole in the cache
    /// is offered to the kernel.
    pub async fn open_remote(&self, ino: u64, write: bool, native: bool) -> Result<Opened> {
        if write {
            return Err(VfsError::ReadOnly);
        }
        if let Some(text) = self.everlog_text(ino) {
            let fh = self.handles.insert(Handle::Archive(archive::ArchiveFile::Small(text)));
            return Ok(Opened { fh, open_as: OpenAs::Direct });
        }
        let file = self.archive.open(ino).await?;
        let open_as = match &file {
            archive::ArchiveFile::Log(source, _) if native => {
                OpenAs::Archived(self.reader.whole(source).await)
            }
            archive::ArchiveFile::Log(..) => OpenAs::Direct,
            archive::ArchiveFile::Small(_) => OpenAs::Cached,
        };
        Ok(Opened { fh: self.handles.insert(Handle::Archive(file)), open_as })
    }

    /// Space of the filesystem below; of an archive: unknown, shown as empty.
    pub fn statfs(&self) -> Result<Option<rustix::fs::StatVfs>> {
        let local = self.local.as_ref();
        Ok(local.map(|l| rustix::fs::statvfs(l.catalog.hot())).transpose()?)
    }
}

/// A reply that has to be waited for.
pub type Later = BoxFuture<'static, Result<Bytes>>;
