//! What a store in a local directory needs beyond what the client library does for it.
//!
//! A directory whose disk is not mounted looks like an empty store, and a write would silently
//! create it anew on the wrong disk. So the directory must exist before every request and after
//! every "not found"; and once the store's identity has been seen, that file must be there as well.
//! The library syncs the directories that it creates itself; those that somebody else created a
//! moment before are synced here, once each.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::error::{Op, StoreError, StoreErrorKind};
use super::names;

/// Directories remembered as synced; when full, all are forgotten.
const SYNCED_DIRS_MAX: usize = 65_536;

/// The root of a store on local disk.
#[derive(Debug)]
pub(super) struct Directory {
    root: PathBuf,
    identity_seen: AtomicBool,
    synced: Mutex<HashSet<PathBuf>>,
}

impl Directory {
    pub(super) fn new(root: PathBuf) -> Self {
        let identity_seen = AtomicBool::new(false);
        Self { root, identity_seen, synced: Mutex::default() }
    }

    /// Where it is.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// From now on the identity's absence means that the disk is.
    pub(super) fn identity_seen(&self) {
        self.identity_seen.store(true, Ordering::Release);
    }

    /// Whether the store is there at all.
    pub(super) async fn check(self: &Arc<Self>, op: Op, key: &str) -> Result<(), StoreError> {
        let this = Arc::clone(self);
        let failure = blocking(move || Ok(this.look())).await.unwrap_or_else(|e| {
            Some((StoreErrorKind::Unavailable, format!("the store's directory: {e}")))
        });
        failure.map_or(Ok(()), |(kind, why)| Err(StoreError::new(kind, op, key, &why)))
    }

    fn look(&self) -> Option<(StoreErrorKind, String)> {
        let root = self.root.display();
        let seen = self.identity_seen.load(Ordering::Acquire);
        let absent = if seen { StoreErrorKind::Unavailable } else { StoreErrorKind::NoBucket };
        match std::fs::metadata(&self.root) {
            Ok(meta) if !meta.is_dir() => {
                return Some((StoreErrorKind::Invalid, format!("{root} is not a directory")));
            }
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let why =
                    format!("directory {root} does not exist; create it with: mkdir -p '{root}'");
                return Some((absent, why));
            }
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                return Some((StoreErrorKind::Denied, format!("directory {root}: {e}")));
            }
            Err(e) => return Some((StoreErrorKind::Unavailable, format!("directory {root}: {e}"))),
        }
        let identity = self.root.join(names::identity_key().as_str());
        if seen && !matches!(identity.try_exists(), Ok(true)) {
            let why = format!("{} is gone: is the store's disk mounted?", identity.display());
            return Some((StoreErrorKind::Unavailable, why));
        }
        None
    }

    /// Makes the names of the directories above `key` durable, once for each.
    pub(super) async fn sync_parents(self: &Arc<Self>, key: &str) -> Result<(), StoreError> {
        let this = Arc::clone(self);
        let path = self.root.join(key);
        blocking(move || this.sync_above(&path)).await.map_err(|e| {
            let why = format!("cannot sync its directory: {e}");
            StoreError::new(StoreErrorKind::Unavailable, Op::Put, key, &why)
        })
    }

    fn sync_above(&self, path: &Path) -> io::Result<()> {
        let above = path.ancestors().skip(1).take_while(|dir| dir.starts_with(&self.root));
        for dir in above {
            if self.synced.lock().contains(dir) {
                continue;
            }
            File::open(dir)?.sync_all()?;
            let mut synced = self.synced.lock();
            if synced.len() >= SYNCED_DIRS_MAX {
                synced.clear();
            }
            synced.insert(dir.to_owned());
        }
        Ok(())
    }
}

/// Runs blocking work off the executor's threads.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(stopped) => Err(io::Error::other(stopped.to_string())),
    }
}
