//! Names that go or move: unlink, rmdir, rename. A `.log`'s end goes through the tiering, which may still owe its bytes
//! to somebody.

use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

use super::{LocalTree, Result, Spot, is_reserved};
use crate::catalog::PartitionDir;
use crate::kafka::names;
use crate::local::{deleted, durable};
use crate::vfs::error::VfsError;
use crate::vfs::nodes::ROOT;

impl LocalTree {
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

    /// Two ordinary files or directories change places. Not for segments, nor for partitions and what stands beside
    /// them (EINVAL, as where a filesystem knows no exchange).
    pub fn exchange(&self, one: (u64, &OsStr), other: (u64, &OsStr)) -> Result<()> {
        if is_reserved(one.0, one.1) || is_reserved(other.0, other.1) {
            return Err(VfsError::NotFound);
        }
        let (Spot::Plain(from), Spot::Plain(to)) =
            (self.spot(one.0, one.1)?, self.spot(other.0, other.1)?)
        else {
            return Err(Errno::INVAL.into());
        };
        let is_dir = |path: &Path| Ok::<_, io::Error>(std::fs::symlink_metadata(path)?.is_dir());
        if (one.0 == ROOT || other.0 == ROOT) && (is_dir(&from)? || is_dir(&to)?) {
            return Err(Errno::INVAL.into());
        }
        {
            let _moving = self.still.write();
            rustix::fs::renameat_with(CWD, &from, CWD, &to, RenameFlags::EXCHANGE)?;
            self.nodes.exchanged(one, other);
        }
        self.took_a_name(one);
        self.took_a_name(other);
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
        let metadata = std::fs::symlink_metadata(from)?;
        // A segment has one name, and those who have it open must find it under one number.
        if busy || !metadata.is_file() || metadata.nlink() > 1 {
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
        if let (Some(old), Some(new)) = (from.1.to_str().filter(|_| from.0 == ROOT), new_text) {
            // Waits for the disk, so before everybody else has to wait.
            self.catalog.note_deletion(old, new);
        }
        let is_dir = {
            let _moving = self.still.write();
            let is_dir = self.move_plain(from, to, new_text)?;
            self.nodes.renamed(from.0, from.1, to.0, to.1);
            is_dir
        };
        if !is_dir {
            self.took_a_name(to);
        }
        Ok(())
    }

    /// A file stands under a name that the catalogue may read.
    fn took_a_name(&self, (parent, name): (u64, &OsStr)) {
        if let Some(text) = name.to_str().filter(|_| parent == ROOT)
            && let Err(e) = self.catalog.root_file_replaced(text)
        {
            tracing::warn!(error = %e, "a checkpoint of Kafka cannot be read; archiving waits");
        }
        if name == OsStr::new(names::PARTITION_METADATA)
            && let Some(dir) = self.partition(parent)
        {
            dir.forget_topic_id();
        }
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
}

/// Removes what is Everlog's own from a directory that is otherwise empty; else nothing.
fn remove_own_leftovers(dir: &Path) -> io::Result<()> {
    let mut own = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if !name.to_string_lossy().ends_with(durable::TMP_SUFFIX) && name != deleted::FILE {
            return Ok(());
        }
        own.push(entry.path());
    }
    own.iter().try_for_each(|path| durable::remove_if_exists(path))
}
