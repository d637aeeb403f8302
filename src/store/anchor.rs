//! One directory of a store, opened: whatever becomes of its name meanwhile, paths through it lead there or nowhere.
//!
//! A path that starts at the root of the filesystem is looked up anew by each call. When the directory is moved away between
//! two of them, the second makes a new, empty store under the old name, on whatever disk is there now.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

/// Held for one write and no longer: an open directory keeps its disk from being unmounted.
#[derive(Debug)]
pub(super) struct Anchor {
    dir: File,
    name: PathBuf,
}

impl Anchor {
    pub fn open(name: &Path) -> io::Result<Self> {
        let directory = OFlags::DIRECTORY.bits() as i32;
        let dir = File::options().read(true).custom_flags(directory).open(name)?;
        Ok(Self { dir, name: name.to_owned() })
    }

    /// The path of an object or of a directory of objects; of the anchor itself when `key` is empty.
    pub fn path(&self, key: &str) -> PathBuf {
        let root = PathBuf::from(format!("/proc/self/fd/{}", self.dir.as_raw_fd()));
        // With a '/' at the end the link itself would be meant nowhere.
        root.join(if key.is_empty() { "." } else { key })
    }

    /// Tells one directory from another.
    pub fn id(&self) -> io::Result<(u64, u64)> {
        let meta = self.dir.metadata()?;
        Ok((meta.dev(), meta.ino()))
    }

    /// An error when the directory's name leads elsewhere by now, or nowhere.
    pub fn check_name(&self) -> io::Result<()> {
        let named = std::fs::metadata(&self.name)?;
        if self.id()? == (named.dev(), named.ino()) {
            return Ok(());
        }
        Err(io::Error::other(format!("{} was moved away meanwhile", self.name.display())))
    }

    /// Makes the directories above `key`, durably. Does nothing when they are there.
    pub fn create_above(&self, key: &str) -> io::Result<()> {
        let Some((above, _)) = key.rsplit_once('/') else { return Ok(()) };
        let dir = self.path(above);
        if dir.is_dir() {
            return Ok(());
        }
        self.create_above(above)?;
        match std::fs::create_dir(dir) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        self.sync_above(above)
    }

    /// Makes the name of `key` in its directory durable.
    pub fn sync_above(&self, key: &str) -> io::Result<()> {
        match key.rsplit_once('/') {
            Some((above, _)) => File::open(self.path(above))?.sync_all(),
            None => self.dir.sync_all(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_was_moved_or_removed_is_not_made_anew_under_its_old_name() {
        let dir = tempfile::tempdir().unwrap();
        let (name, away) = (dir.path().join("store"), dir.path().join("away"));
        std::fs::create_dir(&name).unwrap();
        let anchor = Anchor::open(&name).unwrap();
        anchor.check_name().unwrap();
        std::fs::rename(&name, &away).unwrap();
        anchor.create_above("topics/a-0/x").unwrap();
        assert!(away.join("topics/a-0").is_dir() && !name.exists());
        assert_eq!(anchor.check_name().unwrap_err().kind(), io::ErrorKind::NotFound);
        std::fs::create_dir(&name).unwrap();
        assert!(anchor.check_name().unwrap_err().to_string().contains("moved away"));
        std::fs::remove_dir_all(&away).unwrap();
        let gone = anchor.create_above("topics/b-0/x").unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
        assert_eq!(std::fs::read_dir(&name).unwrap().count(), 0);
    }
}
