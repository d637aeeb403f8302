//! The log dir as a directory tree: names, attributes and moves, all from local disk.
//!
//! Ordinary files are mirrored one to one. A `.log` of a partition goes through the catalogue, so a
//! stub behaves as the file it stands for. Nothing here asks the object store.

mod attrs;
mod make;
mod moves;

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::RwLock;

use super::attr::{Attr, Kind};
use super::error::VfsError;
use super::nodes::{Node, NodeKind, Nodes, ROOT};
use crate::catalog::{AttrChange, Catalog, LogFile, PartitionDir, is_log_like};
use crate::local::{datadir, stub};
use crate::tier::Tier;

pub use attrs::strip_set_id;
pub use make::AskedMode;

type Result<T> = std::result::Result<T, VfsError>;

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Kernel thread id.
    pub tid: u32,
}

/// A change asked by `setattr`; `None` leaves one as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    /// New size.
    pub size_bytes: Option<u64>,
    /// The rest.
    pub attrs: AttrChange,
}

/// One entry of a directory listing.
#[derive(Clone, Debug)]
pub struct DirEntry {
    /// Its name.
    pub name: std::ffi::OsString,
    /// Its inode number.
    pub ino: u64,
    /// Its kind.
    pub kind: Kind,
}

/// A directory as it was when it was opened.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// Its entries.
    pub entries: Vec<DirEntry>,
    /// Why there may be more: reading it to the end fails with EIO, so nobody takes it for all there is.
    pub damage: Option<Arc<str>>,
}

/// The log dir of a broker mount.
pub struct LocalTree {
    pub(super) catalog: Arc<Catalog>,
    pub(super) tier: Arc<Tier>,
    pub(super) nodes: Nodes,
    privileged: bool,
    /// The paths of `nodes` begin with its number.
    _hot_dir: Option<File>,
    /// Held by what uses a path while it does; taken whole by what moves an ordinary name or a directory,
    /// so that the path of an open file is never looked up half-way through a rename.
    still: RwLock<()>,
}

/// Where a name is, and what it may be.
enum Spot {
    Log(Arc<PartitionDir>, String),
    Plain(PathBuf),
}

impl LocalTree {
    /// Over an opened catalogue.
    #[must_use]
    pub fn new(catalog: Arc<Catalog>, tier: Arc<Tier>) -> Self {
        let hot_dir = File::open(catalog.hot()).ok();
        let nodes = Nodes::new(&short_path(hot_dir.as_ref()).unwrap_or(catalog.hot().to_owned()));
        let privileged = rustix::process::geteuid().is_root();
        Self { catalog, tier, nodes, privileged, _hot_dir: hot_dir, still: RwLock::new(()) }
    }

    fn dir_path(&self, ino: u64) -> Result<PathBuf> {
        self.nodes.path(ino).ok_or(VfsError::NotFound)
    }

    fn partition(&self, ino: u64) -> Option<Arc<PartitionDir>> {
        self.catalog.dir(&self.nodes.first_level_name(ino)?)
    }

    fn spot(&self, parent: u64, name: &OsStr) -> Result<Spot> {
        if let Some(text) = name.to_str()
            && is_log_like(text)
            && let Some(dir) = self.partition(parent)
        {
            return Ok(Spot::Log(dir, text.to_owned()));
        }
        Ok(Spot::Plain(self.dir_path(parent)?.join(name)))
    }

    /// Like [`Self::spot`] for a name that is about to be made.
    fn new_spot(&self, parent: u64, name: &OsStr) -> Result<Spot> {
        if is_reserved(parent, name) {
            return Err(VfsError::Reserved);
        }
        self.spot(parent, name)
    }

    /// The node and attributes of a name.
    pub fn lookup(&self, parent: u64, name: &OsStr) -> Result<Attr> {
        let _still = self.still.read_recursive();
        if is_reserved(parent, name) {
            return Err(VfsError::NotFound);
        }
        match self.spot(parent, name)? {
            Spot::Log(dir, text) => {
                let log = dir.log(&text).ok_or(VfsError::NotFound)?;
                let stat = log.stat()?;
                let node = self.nodes.remember(parent, name, NodeKind::Log(log));
                Ok(Attr::of_log(node.ino, &stat))
            }
            Spot::Plain(path) => {
                let metadata = std::fs::symlink_metadata(path)?;
                let node = self.nodes.remember(parent, name, NodeKind::plain(&metadata));
                Ok(Attr::of_metadata(node.ino, &metadata))
            }
        }
    }

    pub(super) fn node(&self, ino: u64) -> Result<Arc<Node>> {
        self.nodes.get(ino).ok_or(VfsError::NotFound)
    }

    /// Attributes of a node, also of one whose name is gone while it is open.
    pub fn getattr(&self, ino: u64) -> Result<Attr> {
        let _still = self.still.read_recursive();
        let node = self.node(ino)?;
        if let Some(log) = node.log() {
            return Ok(Attr::of_log(ino, &log.stat()?));
        }
        if let Some(path) = self.nodes.path(ino) {
            match std::fs::symlink_metadata(path) {
                Ok(m) if ino == ROOT => {
                    return Ok(self.without_sentinel(Attr::of_metadata(ino, &m)));
                }
                Ok(m) => return Ok(Attr::of_metadata(ino, &m)),
                // Removed this moment; somebody may have it open.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e.into()),
            }
        }
        let file = node.file().ok_or(VfsError::NotFound)?;
        Ok(Attr::of_metadata(ino, &file.metadata()?))
    }

    /// The root's links are its visible directories.
    fn without_sentinel(&self, attr: Attr) -> Attr {
        let hidden = u32::from(self.catalog.hot().join(datadir::SENTINEL).exists());
        Attr { nlink: attr.nlink.saturating_sub(hidden), ..attr }
    }

    /// The number of a directory's parent; the root is its own.
    #[must_use]
    pub fn parent(&self, ino: u64) -> u64 {
        self.nodes.parent(ino).unwrap_or(ROOT)
    }

    /// Opens a regular file. For a plain one the local file is returned.
    pub fn open(&self, ino: u64, write: bool) -> Result<(Arc<Node>, Option<Arc<File>>)> {
        let _still = self.still.read_recursive();
        let node = self.node(ino)?;
        let file = match node.kind() {
            NodeKind::Log(log) => {
                log.open(write)?;
                None
            }
            NodeKind::Plain(_) => {
                let path = self.nodes.path(ino).ok_or(VfsError::NotFound)?;
                let file = Arc::new(File::options().read(true).write(write).open(path)?);
                node.set_file(&file);
                Some(file)
            }
        };
        node.opens.fetch_add(1, Ordering::AcqRel);
        Ok((node, file))
    }

    /// A descriptor was closed.
    pub fn release(&self, node: &Node, log: Option<&LogFile>) {
        if let Some(log) = log {
            log.close();
        }
        self.nodes.closed(node);
    }

    /// Where a symbolic link leads.
    pub fn readlink(&self, ino: u64) -> Result<PathBuf> {
        let _still = self.still.read_recursive();
        Ok(std::fs::read_link(self.dir_path(ino)?)?)
    }

    /// All names of a directory. Stubs show as the files they stand for; Everlog's own names are left out.
    pub fn list(&self, ino: u64) -> Result<Vec<DirEntry>> {
        use std::os::unix::fs::DirEntryExt as _;
        let _still = self.still.read_recursive();
        let partition = self.partition(ino);
        let mut out = Vec::new();
        for entry in std::fs::read_dir(self.dir_path(ino)?)? {
            let entry = entry?;
            let name = entry.file_name();
            let is_log = name.to_str().is_some_and(is_log_like);
            if is_reserved(ino, &name) || (is_log && partition.is_some()) {
                continue;
            }
            let kind = Kind::of(entry.file_type()?);
            let number = self.nodes.number_of(ino, &name, &NodeKind::Plain(entry.ino()));
            out.push(DirEntry { name, ino: number, kind });
        }
        for (name, log) in partition.iter().flat_map(|dir| dir.all_logs()) {
            let name = std::ffi::OsString::from(name);
            let number = self.nodes.number_of(ino, &name, &NodeKind::Log(log));
            out.push(DirEntry { name, ino: number, kind: Kind::File });
        }
        Ok(out)
    }

    /// Makes a directory's names durable.
    pub fn sync_dir(&self, ino: u64) -> Result<()> {
        let dir = {
            let _still = self.still.read_recursive();
            match self.nodes.path(ino) {
                Some(path) => File::open(path)?,
                // Removed while it was open: there are no names left to keep.
                None => return Ok(()),
            }
        };
        Ok(dir.sync_all()?)
    }
}

/// A path of an open directory that is short, whatever its own is: a user's path may be as long as the kernel
/// takes, and ours for the same file must not be longer.
fn short_path(dir: Option<&File>) -> Option<PathBuf> {
    use std::os::fd::AsRawFd as _;
    let path = PathBuf::from(format!("/proc/self/fd/{}/.", dir?.as_raw_fd()));
    path.is_dir().then_some(path)
}

fn is_reserved(parent: u64, name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    name.ends_with(stub::RESERVED_SUFFIX) || (parent == ROOT && name == datadir::SENTINEL)
}

/// All of `[offset, offset + buffer)` of a local file, less only at its end.
pub fn read_full(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}
