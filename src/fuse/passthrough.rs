//! Backing files of inodes that the kernel reads and writes without the daemon.
//!
//! The kernel allows one mode per inode while it is open anywhere: all opens of an inode share one backing
//! id, or all go through the daemon. So the first open decides, and its decision lives until the last
//! descriptor is closed. When the kernel refuses the very first one (no privilege, an old kernel, a stacked
//! filesystem below), passthrough is off for the whole mount.
//!
//! That also holds for direct I/O beside passthrough, which the kernel would allow: a shared mapping of a direct
//! descriptor puts its inode into the mode of the page cache, unseen from here, and an open in passthrough would
//! fail then.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fuser::BackingId;
use parking_lot::Mutex;

/// How the open descriptors of one inode are served.
#[derive(Debug)]
struct Served<Id> {
    /// `None`: through the daemon.
    backing: Option<Arc<Id>>,
    /// What the kernel reads: held, so that its owner knows.
    _file: Option<Arc<File>>,
    opens: u32,
}

#[derive(Debug)]
struct Tables<Id> {
    by_ino: HashMap<u64, Served<Id>>,
    by_fh: HashMap<u64, u64>,
    /// The kernel has taken a file, so it can.
    accepted: bool,
}

/// Which inodes are in passthrough, and by which descriptors.
#[derive(Debug)]
pub struct Passthrough<Id = BackingId> {
    enabled: AtomicBool,
    tables: Mutex<Tables<Id>>,
}

impl<Id> Default for Passthrough<Id> {
    fn default() -> Self {
        let tables = Tables { by_ino: HashMap::new(), by_fh: HashMap::new(), accepted: false };
        Self { enabled: AtomicBool::default(), tables: Mutex::new(tables) }
    }
}

impl<Id> Passthrough<Id> {
    /// The kernel has agreed to passthrough as such.
    pub fn enable(&self) {
        self.enabled.store(true, Ordering::Release);
    }

    /// Whether files are still offered to the kernel.
    pub fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    /// The id for a new descriptor of this inode; `None`: open it the ordinary way. Without a file it is in
    /// passthrough only if others have it open so.
    pub fn attach(
        &self,
        (ino, fh): (u64, u64),
        file: Option<&Arc<File>>,
        register: impl FnOnce(&File) -> io::Result<Id>,
    ) -> Option<Arc<Id>> {
        let mut tables = self.tables.lock();
        if !self.is_enabled() && tables.by_ino.is_empty() {
            return None;
        }
        tables.by_fh.insert(fh, ino);
        if let Some(served) = tables.by_ino.get_mut(&ino) {
            served.opens += 1;
            return served.backing.clone();
        }
        let offered = file.filter(|_| self.is_enabled());
        let backing = offered.and_then(|file| self.try_register(file, !tables.accepted, register));
        tables.accepted |= backing.is_some();
        let held = file.filter(|_| backing.is_some()).cloned();
        tables.by_ino.insert(ino, Served { backing: backing.clone(), _file: held, opens: 1 });
        backing
    }

    fn try_register(
        &self,
        file: &File,
        first: bool,
        register: impl FnOnce(&File) -> io::Result<Id>,
    ) -> Option<Arc<Id>> {
        match register(file) {
            Ok(id) => Some(Arc::new(id)),
            Err(error) if first => {
                self.enabled.store(false, Ordering::Release);
                tracing::info!(%error, "the kernel refuses passthrough; small files go through the daemon");
                None
            }
            Err(error) => {
                tracing::warn!(%error, "no passthrough for one file while it is open");
                None
            }
        }
    }

    /// The descriptor was closed.
    pub fn detach(&self, fh: u64) {
        let mut tables = self.tables.lock();
        let Some(ino) = tables.by_fh.remove(&fh) else { return };
        if let Some(served) = tables.by_ino.get_mut(&ino) {
            served.opens -= 1;
            if served.opens == 0 {
                tables.by_ino.remove(&ino);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Arc<File> {
        Arc::new(tempfile::tempfile().unwrap())
    }

    fn refused(_: &File) -> io::Result<u32> {
        Err(io::Error::from_raw_os_error(1))
    }

    fn enabled() -> Passthrough<u32> {
        let table = Passthrough::default();
        table.enable();
        table
    }

    #[test]
    fn all_opens_of_an_inode_share_one_id() {
        let table = enabled();
        assert_eq!(table.attach((1, 1), Some(&file()), |_| Ok(7)).as_deref(), Some(&7));
        assert_eq!(table.attach((1, 2), Some(&file()), refused).as_deref(), Some(&7));
        table.detach(1);
        assert_eq!(table.attach((1, 3), Some(&file()), refused).as_deref(), Some(&7));
        table.detach(2);
        table.detach(3);
        assert_eq!(table.attach((1, 4), Some(&file()), |_| Ok(8)).as_deref(), Some(&8));
    }

    #[test]
    fn an_inode_that_was_refused_is_not_offered_again_while_it_is_open() {
        let table = enabled();
        assert!(table.attach((1, 1), Some(&file()), |_| Ok(7)).is_some());
        assert!(table.attach((2, 2), Some(&file()), refused).is_none());
        assert!(
            table.attach((2, 3), Some(&file()), |_| Ok(8)).is_none(),
            "it is open through the daemon"
        );
        table.detach(2);
        assert!(table.attach((2, 4), Some(&file()), |_| Ok(8)).is_none());
        table.detach(3);
        table.detach(4);
        assert_eq!(table.attach((2, 5), Some(&file()), |_| Ok(8)).as_deref(), Some(&8));
    }

    #[test]
    fn what_is_open_through_the_daemon_stays_so_until_it_is_closed_and_the_file_is_held_no_longer()
    {
        let table = enabled();
        let whole = file();
        assert!(table.attach((1, 1), None, refused).is_none());
        assert!(table.attach((1, 2), Some(&whole), |_| Ok(7)).is_none());
        table.detach(1);
        table.detach(2);
        assert!(table.attach((1, 3), Some(&whole), |_| Ok(7)).is_some());
        assert!(table.attach((1, 4), None, refused).is_some(), "one id for all");
        assert_eq!(Arc::strong_count(&whole), 2);
        table.detach(3);
        assert_eq!(Arc::strong_count(&whole), 2);
        table.detach(4);
        assert_eq!(Arc::strong_count(&whole), 1);
    }

    #[test]
    fn a_refusal_of_the_first_file_turns_it_off() {
        let table = enabled();
        assert!(table.attach((1, 1), Some(&file()), refused).is_none());
        assert!(!table.is_enabled());
        assert!(table.attach((2, 2), Some(&file()), |_| Ok(7)).is_none());
    }
}
