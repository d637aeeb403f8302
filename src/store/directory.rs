//! What a store in a local directory needs beyond what the client library does for it.
//!
//! A directory whose disk is not mounted looks like an empty store, and a write would silently
//! create it anew on the wrong disk. So the directory must exist before every request and after
//! every "not found"; and once the store's identity has been seen, that file must be there as well.
//! Writes go below a directory that is opened for each of them (`anchor`): between a look at a path and a write to it the
//! disk may be gone. The directories that somebody else created a moment before are synced here, once each.

use std::collections::HashSet;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::anchor::Anchor;
use super::error::{Op, StoreError, StoreErrorKind};
use super::names;
use super::staged::{Naming, Staged};

/// Directories remembered as synced; when full, all are forgotten.
const SYNCED_DIRS_MAX: usize = 65_536;

/// Why the store is not there.
type Absence = (StoreErrorKind, String);

/// `everlog.json` as it was when the store was identified, and the file in which it was last seen.
#[derive(Clone, Debug)]
struct Seen {
    identity: Bytes,
    file: Option<(u64, u64)>,
}

/// Directories whose names are durable, in one opened directory.
#[derive(Debug, Default)]
struct Synced {
    of: Option<(u64, u64)>,
    keys: HashSet<String>,
}

/// The root of a store on local disk.
#[derive(Debug)]
pub(super) struct Directory {
    root: PathBuf,
    seen: Mutex<Option<Seen>>,
    synced: Mutex<Synced>,
}

impl Directory {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root, seen: Mutex::default(), synced: Mutex::default() }
    }

    /// From now on the identity's absence means that the disk is, and other bytes that another disk is there.
    pub(super) fn identity_seen(&self, identity: &Bytes) {
        *self.seen.lock() = Some(Seen { identity: identity.clone(), file: None });
    }

    /// Whether the store is there at all.
    pub(super) async fn check(self: &Arc<Self>, op: Op, key: &str) -> Result<(), StoreError> {
        let this = Arc::clone(self);
        let looked = blocking(move || Ok(this.look())).await.unwrap_or_else(|e| {
            Err((StoreErrorKind::Unavailable, format!("the store's directory: {e}")))
        });
        looked.map_err(|(kind, why)| StoreError::new(kind, op, key, &why))
    }

    fn look(&self) -> Result<(), Absence> {
        let meta = std::fs::metadata(&self.root).map_err(|e| self.absence(&e))?;
        if !meta.is_dir() {
            let why = format!("{} is not a directory", self.root.display());
            return Err((StoreErrorKind::Invalid, why));
        }
        self.identify(&self.root)
    }

    fn absence(&self, error: &io::Error) -> Absence {
        let root = self.root.display();
        match error.kind() {
            io::ErrorKind::NotFound => {
                let seen = self.seen.lock().is_some();
                let kind =
                    if seen { StoreErrorKind::Unavailable } else { StoreErrorKind::NoBucket };
                let why =
                    format!("directory {root} does not exist; create it with: mkdir -p '{root}'");
                (kind, why)
            }
            io::ErrorKind::PermissionDenied => {
                (StoreErrorKind::Denied, format!("directory {root}: {error}"))
            }
            io::ErrorKind::NotADirectory => {
                (StoreErrorKind::Invalid, format!("{root} is not a directory"))
            }
            _ => (StoreErrorKind::Unavailable, format!("directory {root}: {error}")),
        }
    }

    /// Once the store was identified: that it is this one which lies in `dir`.
    fn identify(&self, dir: &Path) -> Result<(), Absence> {
        // Not held over what may hang.
        let Some(seen) = self.seen.lock().clone() else { return Ok(()) };
        let path = dir.join(names::identity_key().as_str());
        let named = self.root.join(names::identity_key().as_str());
        let gone = |e: io::Error| match e.kind() {
            io::ErrorKind::NotFound => {
                format!("{} is gone: is the store's disk mounted?", named.display())
            }
            _ => format!("{}: {e}", named.display()),
        };
        let unavailable = |why| (StoreErrorKind::Unavailable, why);
        let id = |meta: Metadata| Some((meta.dev(), meta.ino()));
        let file = std::fs::metadata(&path).map(id).map_err(|e| unavailable(gone(e)))?;
        if seen.file == file {
            return Ok(());
        }
        let found = std::fs::read(&path).map_err(|e| unavailable(gone(e)))?;
        if found != seen.identity {
            let why = "is of another store than before: is another disk mounted there?";
            return Err(unavailable(format!("{} {why}", named.display())));
        }
        *self.seen.lock() = Some(Seen { file, ..seen });
        Ok(())
    }

    /// The store's directory, opened for one write. Blocking.
    pub(super) fn anchor(&self, key: &str) -> Result<Anchor, StoreError> {
        let opened = Anchor::open(&self.root).map_err(|e| self.absence(&e));
        let anchor = opened.and_then(|a| self.identify(&a.path("")).map(|()| a));
        anchor.map_err(|(kind, why)| StoreError::new(kind, Op::Put, key, &why))
    }

    /// Writes a whole object. Blocking.
    pub(super) fn put(&self, key: &str, bytes: &[u8], naming: Naming) -> Result<(), StoreError> {
        let anchor = self.anchor(key)?;
        let mut staged = Staged::begin_small(anchor, key).map_err(|e| not_written(key, &e))?;
        staged.append_bytes(bytes).map_err(|e| not_written(key, &e))?;
        self.publish(staged, naming)
    }

    /// Gives an object its name, durably. An error when the directory is not the store's any more: then it may be there
    /// when the store comes back. Blocking.
    pub(super) fn publish(&self, mut staged: Staged, naming: Naming) -> Result<(), StoreError> {
        let done = staged.finish(naming).and_then(|()| {
            self.sync_parents(staged.anchor(), staged.key())?;
            staged.anchor().check_name()
        });
        done.map_err(|e| not_written(staged.key(), &e))
    }

    /// Makes the names of the directories above `key` durable, once for each.
    fn sync_parents(&self, anchor: &Anchor, key: &str) -> io::Result<()> {
        let of = Some(anchor.id()?);
        let mut dir = key;
        while let Some((above, _)) = dir.rsplit_once('/') {
            dir = above;
            if self.synced.lock().has(of, dir) {
                continue;
            }
            anchor.sync_above(dir)?;
            self.synced.lock().add(of, dir);
        }
        Ok(())
    }
}

impl Synced {
    fn has(&self, of: Option<(u64, u64)>, key: &str) -> bool {
        self.of == of && self.keys.contains(key)
    }

    fn add(&mut self, of: Option<(u64, u64)>, key: &str) {
        if self.of != of || self.keys.len() >= SYNCED_DIRS_MAX {
            self.of = of;
            self.keys.clear();
        }
        self.keys.insert(key.to_owned());
    }
}

/// Why an object could not be written to the directory.
pub(super) fn not_written(key: &str, error: &io::Error) -> StoreError {
    let kind = match error.kind() {
        io::ErrorKind::UnexpectedEof => StoreErrorKind::Short,
        io::ErrorKind::PermissionDenied => StoreErrorKind::Denied,
        io::ErrorKind::AlreadyExists => StoreErrorKind::AlreadyExists,
        io::ErrorKind::InvalidFilename => StoreErrorKind::Invalid,
        // Also that the directory is gone: its name was there a moment ago.
        _ => StoreErrorKind::Unavailable,
    };
    StoreError::new(kind, Op::Put, key, &error.to_string())
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
