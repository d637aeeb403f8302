//! The log dir as a directory tree: names, attributes and moves, all from local disk.
//!
//! Ordinary files are mirrored one to one. A `.log` of a partition goes through the catalogue, so a
//! stub behaves as the file it stands for. Nothing here asks the object store.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::RwLock;
use rustix::fs::{AtFlags, CWD, Mode};

use super::attr::{Attr, Kind};
use super::error::VfsError;
use super::nodes::{Node, NodeKind, Nodes, ROOT};
use crate::catalog::{AttrChange, Catalog, LogFile, PartitionDir, is_log_like};
use crate::kafka::names;
use crate::local::{datadir, durable, stub};
use crate::tier::Tier;
use std::os::unix::fs::PermissionsExt as _;

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
    /// Its inode number, or a stand-in that is not zero.
    pub ino: u64,
    /// Its kind.
    pub kind: Kind,
}

/// The log dir of a broker mount.
pub struct LocalTree {
    pub(super) catalog: Arc<Catalog>,
    pub(super) tier: Arc<Tier>,
    pub(super) nodes: Nodes,
    privileged: bool,
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
        let nodes = Nodes::new(catalog.hot());
        let privileged = rustix::process::geteuid().is_root();
        Self { catalog, tier, nodes, privileged, still: RwLock::new(()) }
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
                let node = self.nodes.remember(parent, name, NodeKind::Plain);
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
            return Ok(Attr::of_metadata(ino, &std::fs::symlink_metadata(path)?));
        }
        let file = node.file().ok_or(VfsError::NotFound)?;
        Ok(Attr::of_metadata(ino, &file.metadata()?))
    }

    /// Changes size, mode, owner, times.
    pub fn setattr(&self, ino: u64, change: &SetAttr) -> Result<Attr> {
        let node = self.node(ino)?;
        if let Some(log) = node.log() {
            if let Some(size) = change.size_bytes {
                log.truncate(size)?;
            }
            log.set_attr(&change.attrs)?;
        } else {
            self.setattr_plain(&node, change)?;
        }
        self.getattr(ino)
    }

    fn setattr_plain(&self, node: &Node, change: &SetAttr) -> Result<()> {
        let _still = self.still.read_recursive();
        let path = self.nodes.path(node.ino);
        if let Some(size) = change.size_bytes {
            let file = match &path {
                Some(path) => Arc::new(File::options().write(true).open(path)?),
                None => node.file().ok_or(VfsError::NotFound)?,
            };
            file.set_len(size)?;
        }
        match (path, node.file()) {
            (Some(path), _) => set_attr_of_path(&path, &change.attrs),
            (None, Some(file)) => Ok(change.attrs.apply_to_file(&file)?),
            (None, None) => Err(VfsError::NotFound),
        }
    }

    /// Creates or opens a regular file. The node counts one more descriptor.
    pub fn create(
        &self,
        parent: u64,
        name: &OsStr,
        mode: u32,
        exclusive: bool,
        caller: Caller,
    ) -> Result<(Arc<Node>, Attr, Option<Arc<File>>)> {
        let _still = self.still.read_recursive();
        let owner = self.owner_below(parent, caller)?;
        match self.new_spot(parent, name)? {
            Spot::Log(dir, text) => {
                let log = dir.create_log(&text, mode, owner, exclusive)?;
                let stat = log.stat()?;
                let node = self.nodes.remember(parent, name, NodeKind::Log(log));
                node.opens.fetch_add(1, Ordering::AcqRel);
                Ok((node.clone(), Attr::of_log(node.ino, &stat), None))
            }
            Spot::Plain(path) => {
                let mut options = File::options();
                options.read(true).write(true).mode(mode);
                let file = match options.clone().create_new(true).open(&path) {
                    Ok(file) => {
                        chown_file(&file, owner)?;
                        // The caller's umask was applied by the kernel already; ours must not be.
                        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
                        file
                    }
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists && !exclusive => {
                        options.open(&path)?
                    }
                    Err(e) => return Err(e.into()),
                };
                let file = Arc::new(file);
                let node = self.nodes.remember(parent, name, NodeKind::Plain);
                node.opens.fetch_add(1, Ordering::AcqRel);
                node.set_file(&file);
                Ok((node.clone(), Attr::of_metadata(node.ino, &file.metadata()?), Some(file)))
            }
        }
    }

    /// Opens a regular file. For a plain one the local file is returned.
    pub fn open(&self, ino: u64, write: bool) -> Result<(Arc<Node>, Option<Arc<File>>)> {
        let _still = self.still.read_recursive();
        let node = self.node(ino)?;
        let file = match node.kind() {
            NodeKind::Log(log) => {
                log.open()?;
                None
            }
            NodeKind::Plain => {
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

    fn owner_below(&self, parent: u64, caller: Caller) -> Result<Option<(u32, u32)>> {
        if !self.privileged {
            return Ok(None);
        }
        let m = std::fs::metadata(self.dir_path(parent)?)?;
        let gid = if m.mode() & 0o2000 != 0 { m.gid() } else { caller.gid };
        Ok(Some((caller.uid, gid)))
    }

    /// Makes a directory.
    pub fn mkdir(&self, parent: u64, name: &OsStr, mode: u32, caller: Caller) -> Result<Attr> {
        let _still = self.still.read_recursive();
        if is_reserved(parent, name) {
            return Err(VfsError::Reserved);
        }
        let owner = self.owner_below(parent, caller)?;
        let path = self.dir_path(parent)?.join(name);
        std::fs::DirBuilder::new().mode(mode & 0o7777).create(&path)?;
        chown_path(&path, owner)?;
        inherit_and_set_mode(&path, mode)?;
        if parent == ROOT
            && let Some(text) = name.to_str()
        {
            self.catalog.dir_appeared(text)?;
        }
        self.lookup(parent, name)
    }

    /// Makes a FIFO, a socket, a device or a regular file.
    pub fn mknod(
        &self,
        parent: u64,
        name: &OsStr,
        mode: u32,
        rdev: u32,
        caller: Caller,
    ) -> Result<Attr> {
        let _still = self.still.read_recursive();
        let kind = rustix::fs::FileType::from_raw_mode(mode);
        if kind == rustix::fs::FileType::RegularFile {
            let (node, attr, _) = self.create(parent, name, mode & 0o7777, true, caller)?;
            self.release(&node, node.log().as_deref());
            return Ok(attr);
        }
        let owner = self.owner_below(parent, caller)?;
        let Spot::Plain(path) = self.new_spot(parent, name)? else {
            return Err(VfsError::NotPermitted);
        };
        let perm = Mode::from_raw_mode(mode & 0o7777);
        rustix::fs::mknodat(CWD, &path, kind, perm, rustix::fs::Dev::from(rdev))?;
        chown_path(&path, owner)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode & 0o7777))?;
        self.lookup(parent, name)
    }

    /// Makes a symbolic link.
    pub fn symlink(
        &self,
        parent: u64,
        name: &OsStr,
        target: &Path,
        caller: Caller,
    ) -> Result<Attr> {
        let owner = self.owner_below(parent, caller)?;
        let Spot::Plain(path) = self.new_spot(parent, name)? else {
            return Err(VfsError::NotPermitted);
        };
        std::os::unix::fs::symlink(target, &path)?;
        chown_path(&path, owner)?;
        self.lookup(parent, name)
    }

    /// Where a symbolic link leads.
    pub fn readlink(&self, ino: u64) -> Result<PathBuf> {
        let _still = self.still.read_recursive();
        Ok(std::fs::read_link(self.dir_path(ino)?)?)
    }

    /// A second name for an ordinary file. A `.log` has one name.
    pub fn link(&self, ino: u64, parent: u64, name: &OsStr) -> Result<Attr> {
        let _still = self.still.read_recursive();
        if self.node(ino)?.log().is_some() {
            return Err(VfsError::NotPermitted);
        }
        let Spot::Plain(path) = self.new_spot(parent, name)? else {
            return Err(VfsError::NotPermitted);
        };
        std::fs::hard_link(self.dir_path(ino)?, path)?;
        self.lookup(parent, name)
    }

    /// Removes a file's name.
    pub fn unlink(&self, parent: u64, name: &OsStr) -> Result<()> {
        if is_reserved(parent, name) {
            return Err(VfsError::NotFound);
        }
        match self.spot(parent, name)? {
            Spot::Log(dir, text) => {
                self.tier.unlink(&dir, &text)?;
            }
            Spot::Plain(path) => {
                let _still = self.still.read_recursive();
                std::fs::remove_file(path)?;
            }
        }
        self.nodes.unlinked(parent, name);
        Ok(())
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, parent: u64, name: &OsStr) -> Result<()> {
        let _still = self.still.read_recursive();
        if is_reserved(parent, name) {
            return Err(VfsError::NotFound);
        }
        let path = self.dir_path(parent)?.join(name);
        remove_own_leftovers(&path)?;
        std::fs::remove_dir(path)?;
        if parent == ROOT {
            self.catalog.dir_removed(&name.to_string_lossy());
        }
        self.nodes.unlinked(parent, name);
        Ok(())
    }

    /// Renames, over an existing name unless `no_replace`.
    pub fn rename(
        &self,
        (parent, name): (u64, &OsStr),
        (new_parent, new_name): (u64, &OsStr),
        no_replace: bool,
    ) -> Result<()> {
        if is_reserved(parent, name) {
            return Err(VfsError::NotFound);
        }
        if no_replace && self.exists(new_parent, new_name)? {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists).into());
        }
        match (self.spot(parent, name)?, self.new_spot(new_parent, new_name)?) {
            (Spot::Log(from_dir, from), Spot::Log(to_dir, to)) => {
                if from_dir.id != to_dir.id {
                    return Err(VfsError::CrossDevice);
                }
                self.tier.note_rename(&from_dir, &from, &to);
                from_dir.rename_log(&from, &to)?;
            }
            (Spot::Log(..), Spot::Plain(_)) => return Err(VfsError::CrossDevice),
            (Spot::Plain(from), Spot::Log(to_dir, to)) => {
                self.rename_into_partition(parent, name, &from, &to_dir, &to)?;
            }
            (Spot::Plain(_), Spot::Plain(_)) => {
                return self.rename_plain((parent, name), (new_parent, new_name));
            }
        }
        self.nodes.renamed(parent, name, new_parent, new_name);
        Ok(())
    }

    fn exists(&self, parent: u64, name: &OsStr) -> Result<bool> {
        Ok(match self.spot(parent, name)? {
            Spot::Log(dir, text) => dir.log(&text).is_some(),
            Spot::Plain(path) => std::fs::symlink_metadata(path).is_ok(),
        })
    }

    /// An ordinary file becomes a segment, as when a tool copies under another name first.
    fn rename_into_partition(
        &self,
        parent: u64,
        name: &OsStr,
        from: &Path,
        to_dir: &Arc<PartitionDir>,
        to: &str,
    ) -> Result<()> {
        let node = self.nodes.known(parent, name).and_then(|ino| self.nodes.get(ino));
        let busy = node.as_ref().is_some_and(|n| n.opens.load(Ordering::Acquire) > 0);
        if busy || !std::fs::symlink_metadata(from)?.is_file() {
            return Err(VfsError::CrossDevice);
        }
        let log = to_dir.rename_in(from, to)?;
        if let Some(node) = node {
            self.nodes.becomes_log(node.ino, log);
        }
        Ok(())
    }

    fn rename_plain(&self, from: (u64, &OsStr), to: (u64, &OsStr)) -> Result<()> {
        let new_text = to.1.to_str().filter(|_| to.0 == ROOT);
        let is_dir = {
            let _moving = self.still.write();
            let is_dir = self.move_plain(from, to, new_text)?;
            self.nodes.renamed(from.0, from.1, to.0, to.1);
            is_dir
        };
        match new_text {
            Some(new) if !is_dir => {
                if let Err(e) = self.catalog.root_file_replaced(new) {
                    tracing::warn!(error = %e, "a checkpoint of Kafka cannot be read; archiving waits");
                }
            }
            _ => {}
        }
        if to.1 == OsStr::new(names::PARTITION_METADATA)
            && let Some(dir) = self.partition(to.0)
        {
            dir.forget_topic_id();
        }
        Ok(())
    }

    /// Moves it on disk and in the catalogue. Whether it is a directory.
    fn move_plain(
        &self,
        from: (u64, &OsStr),
        to: (u64, &OsStr),
        new_text: Option<&str>,
    ) -> Result<bool> {
        let old_text = from.1.to_str().filter(|_| from.0 == ROOT);
        if let Some(dir) = old_text.and_then(|n| self.catalog.dir(n)) {
            let Some(new) = new_text.filter(|n| names::parse_dir(n).is_some()) else {
                return Err(VfsError::CrossDevice);
            };
            if let Err(e) = dir.chain() {
                tracing::warn!(error = %e, "the topic id of a renamed partition cannot be read");
            }
            self.catalog.rename_dir(&dir.name(), new)?;
            return Ok(true);
        }
        let target = self.dir_path(to.0)?.join(to.1);
        std::fs::rename(self.dir_path(from.0)?.join(from.1), &target)?;
        let is_dir = std::fs::symlink_metadata(&target)?.is_dir();
        if let Some(new) = new_text.filter(|_| is_dir) {
            self.catalog.dir_appeared(new)?;
        }
        Ok(is_dir)
    }

    /// All names of a directory. Stubs show as the files they stand for; Everlog's own names are left out.
    pub fn list(&self, ino: u64) -> Result<Vec<DirEntry>> {
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
            out.push(self.dir_entry(ino, name, Kind::of(entry.file_type()?)));
        }
        for (name, _) in partition.iter().flat_map(|dir| dir.all_logs()) {
            out.push(self.dir_entry(ino, name.into(), Kind::File));
        }
        Ok(out)
    }

    fn dir_entry(&self, parent: u64, name: std::ffi::OsString, kind: Kind) -> DirEntry {
        let ino = self.nodes.known(parent, &name).unwrap_or(u64::MAX >> 2);
        DirEntry { name, ino, kind }
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

    /// The next data or hole. A cold file is all data.
    pub fn seek(&self, node: &Node, file: Option<&File>, offset: u64, hole: bool) -> Result<u64> {
        use rustix::fs::SeekFrom;
        let local = match node.log() {
            Some(log) => match log.hot_file() {
                Some(file) => file,
                None => {
                    let size = log.stat()?.size_bytes;
                    if offset >= size {
                        return Err(rustix::io::Errno::NXIO.into());
                    }
                    return Ok(if hole { size } else { offset });
                }
            },
            None => {
                let to = if hole { SeekFrom::Hole(offset) } else { SeekFrom::Data(offset) };
                return Ok(rustix::fs::seek(file.ok_or(VfsError::BadHandle)?, to)?);
            }
        };
        let to = if hole { SeekFrom::Hole(offset) } else { SeekFrom::Data(offset) };
        Ok(rustix::fs::seek(&*local, to)?)
    }

    /// Reserves or frees space of a local file.
    pub fn fallocate(
        &self,
        node: &Node,
        file: Option<&File>,
        mode: u32,
        offset: u64,
        len: u64,
    ) -> Result<()> {
        let flags = rustix::fs::FallocateFlags::from_bits_retain(mode);
        if let Some(log) = node.log() {
            let end = offset.saturating_add(len);
            return match (mode, log.stat()?.size_bytes) {
                (0, size) if end > size => Ok(log.truncate(end)?),
                (0, _) => Ok(()),
                _ => Err(VfsError::Unsupported),
            };
        }
        Ok(rustix::fs::fallocate(file.ok_or(VfsError::BadHandle)?, flags, offset, len)?)
    }
}

fn is_reserved(parent: u64, name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    name.ends_with(stub::RESERVED_SUFFIX) || (parent == ROOT && name == datadir::SENTINEL)
}

/// What a crash or a full disk may have left of a stub in a directory that has no segment any more.
fn remove_own_leftovers(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().ends_with(durable::TMP_SUFFIX) {
            durable::remove_if_exists(&entry.path())?;
        }
    }
    Ok(())
}

/// A directory below one with the set-group-id bit has it, too.
fn inherit_and_set_mode(dir: &Path, mode: u32) -> io::Result<()> {
    let inherited = std::fs::metadata(dir)?.mode() & 0o2000;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode & 0o7777 | inherited))
}

fn chown_file(file: &File, owner: Option<(u32, u32)>) -> io::Result<()> {
    owner.map_or(Ok(()), |(u, g)| std::os::unix::fs::fchown(file, Some(u), Some(g)))
}

fn chown_path(path: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    owner.map_or(Ok(()), |(u, g)| std::os::unix::fs::lchown(path, Some(u), Some(g)))
}

fn set_attr_of_path(path: &Path, change: &AttrChange) -> Result<()> {
    if change.uid.is_some() || change.gid.is_some() {
        std::os::unix::fs::lchown(path, change.uid, change.gid)?;
    }
    if let Some(mode) = change.mode {
        rustix::fs::chmodat(CWD, path, Mode::from_raw_mode(mode), AtFlags::empty())?;
    }
    if let Some(times) = change.timestamps() {
        rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
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
