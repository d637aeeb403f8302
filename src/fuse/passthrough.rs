//! Backing files of inodes that the kernel reads and writes without the daemon.
//!
//! The kernel allows one backing file per inode: all opens of an inode share one id, which lives until
//! the last of them is closed. When the kernel refuses the first one (no privilege, an old kernel, a
//! stacked filesystem below), passthrough is off for the whole mount: modes must not be mixed.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use fuser::BackingId;
use parking_lot::Mutex;

#[derive(Default)]
struct Tables {
    by_ino: HashMap<u64, Weak<BackingId>>,
    by_fh: HashMap<u64, (u64, Arc<BackingId>)>,
}

/// Which inodes are in passthrough, and by which descriptors.
#[derive(Default)]
pub struct Passthrough {
    enabled: AtomicBool,
    tables: Mutex<Tables>,
}

impl Passthrough {
    pub fn enable(&self) {
        self.enabled.store(true, Ordering::Release);
    }

    pub fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    /// The id for a new descriptor of this inode; `None`: open it the ordinary way.
    pub fn attach(
        &self,
        (ino, fh): (u64, u64),
        file: &Arc<File>,
        register: impl FnOnce(&File) -> io::Result<BackingId>,
    ) -> Option<Arc<BackingId>> {
        if !self.is_enabled() {
            return None;
        }
        let mut tables = self.tables.lock();
        if let Some(id) = tables.by_ino.get(&ino).and_then(Weak::upgrade) {
            tables.by_fh.insert(fh, (ino, id.clone()));
            return Some(id);
        }
        match register(file) {
            Ok(id) => {
                let id = Arc::new(id);
                tables.by_ino.insert(ino, Arc::downgrade(&id));
                tables.by_fh.insert(fh, (ino, id.clone()));
                Some(id)
            }
            Err(e) => {
                if tables.by_fh.is_empty() {
                    self.enabled.store(false, Ordering::Release);
                    tracing::info!(error = %e, "the kernel refuses passthrough; small files go through the daemon");
                } else {
                    tracing::warn!(error = %e, ino, "no passthrough for one file");
                }
                None
            }
        }
    }

    /// The descriptor was closed.
    pub fn detach(&self, fh: u64) {
        let mut tables = self.tables.lock();
        if let Some((ino, id)) = tables.by_fh.remove(&fh)
            && Arc::strong_count(&id) == 1
        {
            tables.by_ino.remove(&ino);
        }
    }
}
