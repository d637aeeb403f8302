//! New names: files, directories, devices, links, with the owner and mode that ext4 would give them.

use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{CWD, Mode};

use super::{Caller, LocalTree, Result, Spot, is_reserved};
use crate::catalog::NewMode;
use crate::local::acl;
use crate::local::xattrs::Holder;
use crate::vfs::attr::Attr;
use crate::vfs::error::VfsError;
use crate::vfs::nodes::{Node, NodeKind, ROOT};

/// The permission bits that a caller asks for.
#[derive(Clone, Copy, Debug)]
pub struct AskedMode {
    /// Without the file type.
    pub mode: u32,
    /// The caller's.
    pub umask: u32,
}

/// What a new entry is given.
#[derive(Clone, Copy)]
struct Birth {
    owner: Option<(u32, u32)>,
    mode: NewMode,
}

impl Birth {
    fn settle(self, path: &Path) -> io::Result<()> {
        if let Some((uid, gid)) = self.owner {
            std::os::unix::fs::lchown(path, Some(uid), Some(gid))?;
        }
        match self.mode.corrected(std::fs::symlink_metadata(path)?.mode()) {
            Some(bits) => std::fs::set_permissions(path, Permissions::from_mode(bits)),
            None => Ok(()),
        }
    }
}

impl LocalTree {
    fn birth(&self, parent: u64, asked: AskedMode, caller: Caller) -> Result<Birth> {
        let dir = self.dir_path(parent)?;
        let above = std::fs::metadata(&dir)?;
        let gid = if above.mode() & 0o2000 != 0 { above.gid() } else { caller.gid };
        // The umask counts only where no default access list says something else.
        let inherited = Holder::Path(&dir).get(OsStr::new(acl::DEFAULT)).is_ok();
        let mask = if inherited { 0 } else { asked.umask };
        let mode = NewMode { bits: asked.mode & 0o7777 & !mask, inherited };
        Ok(Birth { owner: self.privileged.then_some((caller.uid, gid)), mode })
    }

    /// Creates or opens a regular file. The node counts one more descriptor.
    pub fn create(
        &self,
        parent: u64,
        name: &OsStr,
        asked: AskedMode,
        exclusive: bool,
        caller: Caller,
    ) -> Result<(Arc<Node>, Attr, Option<Arc<File>>)> {
        let _still = self.still.read_recursive();
        let birth = self.birth(parent, asked, caller)?;
        match self.new_spot(parent, name)? {
            Spot::Log(dir, text) => {
                let log = dir.create_log(&text, birth.mode, birth.owner, exclusive)?;
                let stat = log.stat()?;
                let node = self.nodes.remember(parent, name, NodeKind::Log(log));
                node.opens.fetch_add(1, Ordering::AcqRel);
                Ok((node.clone(), Attr::of_log(node.ino, &stat), None))
            }
            Spot::Plain(path) => {
                let mut options = File::options();
                options.read(true).write(true).mode(birth.mode.bits);
                let file = match options.clone().create_new(true).open(&path) {
                    Ok(file) => {
                        birth.settle(&path)?;
                        file
                    }
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists && !exclusive => {
                        options.open(&path)?
                    }
                    Err(e) => return Err(e.into()),
                };
                let file = Arc::new(file);
                let metadata = file.metadata()?;
                let node = self.nodes.remember(parent, name, NodeKind::plain(&metadata));
                node.opens.fetch_add(1, Ordering::AcqRel);
                node.set_file(&file);
                Ok((node.clone(), Attr::of_metadata(node.ino, &metadata), Some(file)))
            }
        }
    }

    /// Makes a directory.
    pub fn mkdir(
        &self,
        parent: u64,
        name: &OsStr,
        asked: AskedMode,
        caller: Caller,
    ) -> Result<Attr> {
        let _still = self.still.read_recursive();
        if is_reserved(parent, name) {
            return Err(VfsError::Reserved);
        }
        let mut birth = self.birth(parent, asked, caller)?;
        let path = self.dir_path(parent)?.join(name);
        std::fs::DirBuilder::new().mode(birth.mode.bits).create(&path)?;
        // A directory below one with the set-group-id bit has it, too.
        birth.mode.bits |= std::fs::metadata(&path)?.mode() & 0o2000;
        birth.settle(&path)?;
        if parent == ROOT
            && let Some(text) = name.to_str()
        {
            self.catalog.dir_appeared(text)?;
        }
        self.lookup(parent, name)
    }

    /// Makes a FIFO, a socket, a device or a regular file. `mode` of `asked` has the type, too.
    pub fn mknod(
        &self,
        parent: u64,
        name: &OsStr,
        asked: AskedMode,
        rdev: u32,
        caller: Caller,
    ) -> Result<Attr> {
        let _still = self.still.read_recursive();
        let kind = rustix::fs::FileType::from_raw_mode(asked.mode);
        if kind == rustix::fs::FileType::RegularFile {
            let (node, attr, _) = self.create(parent, name, asked, true, caller)?;
            self.release(&node, node.log().as_deref());
            return Ok(attr);
        }
        let birth = self.birth(parent, asked, caller)?;
        let Spot::Plain(path) = self.new_spot(parent, name)? else {
            return Err(VfsError::NotPermitted);
        };
        let bits = Mode::from_raw_mode(birth.mode.bits);
        rustix::fs::mknodat(CWD, &path, kind, bits, rustix::fs::Dev::from(rdev))?;
        birth.settle(&path)?;
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
        let _still = self.still.read_recursive();
        let birth = self.birth(parent, AskedMode { mode: 0o777, umask: 0 }, caller)?;
        let Spot::Plain(path) = self.new_spot(parent, name)? else {
            return Err(VfsError::NotPermitted);
        };
        std::os::unix::fs::symlink(target, &path)?;
        if let Some((uid, gid)) = birth.owner {
            std::os::unix::fs::lchown(&path, Some(uid), Some(gid))?;
        }
        self.lookup(parent, name)
    }

    /// A second name for an ordinary file. A `.log` has one name: its bytes could not be released under two.
    pub fn link(&self, ino: u64, parent: u64, name: &OsStr) -> Result<Attr> {
        let _still = self.still.read_recursive();
        if self.node(ino)?.log().is_some() {
            return Err(VfsError::NotPermitted);
        }
        let Spot::Plain(path) = self.new_spot(parent, name)? else {
            return Err(VfsError::NotPermitted);
        };
        std::fs::hard_link(self.dir_path(ino)?, path)?;
        self.nodes.linked(ino, parent, name);
        self.lookup(parent, name)
    }
}
