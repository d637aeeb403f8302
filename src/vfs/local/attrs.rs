//! Changes of what is known about a file: size, mode, owner, times, extended attributes, reserved space.

use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, SeekFrom, XattrFlags};
use rustix::io::Errno;

use super::{Caller, LocalTree, Result, SetAttr};
use crate::local::acl;
use crate::local::stub::without_set_id;
use crate::local::xattrs::Holder;
use crate::vfs::attr::Attr;
use crate::vfs::error::VfsError;
use crate::vfs::nodes::Node;

/// Whether a change of content by this caller takes set-id bits away.
fn strips(caller: Caller) -> bool {
    caller.uid != 0
}

/// Takes the bits away that let others run it in its owner's name.
pub fn strip_set_id(file: &File) -> io::Result<()> {
    let mode = file.metadata()?.mode() & 0o7777;
    let kept = without_set_id(mode);
    if kept == mode { Ok(()) } else { file.set_permissions(Permissions::from_mode(kept)) }
}

impl LocalTree {
    /// Changes size, mode, owner, times. A request that changes nothing is the kernel's way to say that set-id
    /// bits have to go: somebody without the right to keep them wrote to the file or gave it away.
    pub fn setattr(&self, ino: u64, change: &SetAttr, caller: Caller) -> Result<Attr> {
        let node = self.node(ino)?;
        let strips = match change.size_bytes {
            Some(_) => strips(caller),
            None => change.attrs.is_empty(),
        };
        if let Some(log) = node.log() {
            if let Some(size) = change.size_bytes {
                log.truncate(size)?;
            }
            if strips {
                log.strip_set_id()?;
            }
            log.set_attr(&change.attrs)?;
        } else {
            self.setattr_plain(&node, change, strips)?;
        }
        self.getattr(ino)
    }

    fn setattr_plain(&self, node: &Node, change: &SetAttr, strips: bool) -> Result<()> {
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
            (Some(path), _) => {
                let metadata = std::fs::symlink_metadata(&path)?;
                let kept = without_set_id(metadata.mode() & 0o7777);
                if strips && metadata.is_file() && kept != metadata.mode() & 0o7777 {
                    std::fs::set_permissions(&path, Permissions::from_mode(kept))?;
                }
                change.attrs.apply_to_path(&path)?;
            }
            (None, Some(file)) => {
                if strips {
                    strip_set_id(&file)?;
                }
                change.attrs.apply_to_file(&file)?;
            }
            (None, None) => return Err(VfsError::NotFound),
        }
        Ok(())
    }

    /// Something of an ordinary file's own, by its path or, when that is gone, by an open descriptor.
    fn held<T>(
        &self,
        node: &Node,
        ask: impl FnOnce(Holder<'_>) -> rustix::io::Result<T>,
    ) -> Result<T> {
        let _still = self.still.read_recursive();
        if let Some(path) = self.nodes.path(node.ino) {
            return Ok(ask(Holder::Path(&path))?);
        }
        let file = node.file().ok_or(VfsError::NotFound)?;
        Ok(ask(Holder::File(&file))?)
    }

    /// An extended attribute's value; ENODATA when there is none of this name.
    pub fn xattr(&self, ino: u64, name: &OsStr) -> Result<Vec<u8>> {
        let node = self.node(ino)?;
        let found = match node.log() {
            Some(log) => log.xattr(name).map_err(VfsError::from),
            None => self.held(&node, |holder| holder.get(name)),
        };
        match found {
            // The kernel asks at each open: a disk that knows no access lists has none.
            Err(VfsError::Io(e)) if is_unsupported(&e) && is_access_list(name) => {
                Err(Errno::NODATA.into())
            }
            other => other,
        }
    }

    /// The names of all extended attributes, each with a NUL behind it.
    pub fn xattr_names(&self, ino: u64) -> Result<Vec<u8>> {
        let node = self.node(ino)?;
        match node.log() {
            Some(log) => Ok(log.xattr_names()?),
            None => self.held(&node, |holder| holder.list()),
        }
    }

    /// Sets an extended attribute. `flags` as `setxattr` takes them.
    pub fn set_xattr(&self, ino: u64, name: &OsStr, value: &[u8], flags: u32) -> Result<()> {
        let node = self.node(ino)?;
        let flags = XattrFlags::from_bits_retain(flags);
        match node.log() {
            Some(log) => Ok(log.set_xattr(name, value, flags)?),
            None => self.held(&node, |holder| holder.set(name, value, flags)),
        }
    }

    /// Removes an extended attribute.
    pub fn remove_xattr(&self, ino: u64, name: &OsStr) -> Result<()> {
        let node = self.node(ino)?;
        match node.log() {
            Some(log) => Ok(log.remove_xattr(name)?),
            None => self.held(&node, |holder| holder.remove(name)),
        }
    }

    /// The next data or hole. A cold file is all data.
    pub fn seek(&self, node: &Node, file: Option<&File>, offset: u64, hole: bool) -> Result<u64> {
        if let Some(log) = node.log() {
            return Ok(log.seek(offset, hole)?);
        }
        let to = if hole { SeekFrom::Hole(offset) } else { SeekFrom::Data(offset) };
        Ok(rustix::fs::seek(file.ok_or(VfsError::BadHandle)?, to)?)
    }

    /// Reserves, frees or zeroes space.
    pub fn fallocate(
        &self,
        (node, file): (&Node, Option<&File>),
        mode: u32,
        (offset, len): (u64, u64),
        caller: Caller,
    ) -> Result<()> {
        let flags = FallocateFlags::from_bits_retain(mode);
        if let Some(log) = node.log() {
            log.fallocate(flags, offset, len)?;
            if strips(caller) {
                log.strip_set_id()?;
            }
            return Ok(());
        }
        let file = file.ok_or(VfsError::BadHandle)?;
        rustix::fs::fallocate(file, flags, offset, len)?;
        if strips(caller) {
            strip_set_id(file)?;
        }
        Ok(())
    }
}

fn is_access_list(name: &OsStr) -> bool {
    name == acl::ACCESS || name == acl::DEFAULT
}

fn is_unsupported(e: &io::Error) -> bool {
    e.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error())
}
