//! The layout of the data directory (`docs/FORMATS.md` 3), its lock and its identity.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::durable;
use super::room::is_disk_full;
use crate::failpoint;
use crate::types::envelope::{self, EnvelopeError};

/// Hidden directory whose name stops a broker that is started on `hot/` without the mount.
pub const SENTINEL: &str = "everlog-is-not-mounted";
const KIND: &str = "datadir";
const VERSION: u32 = 1;

/// Why the data directory cannot be used. Each message names the directory and a remedy.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another mount runs on it.
    #[error(
        "data directory {0} is in use by another everlog (its file 'lock' is held): unmount that one first"
    )]
    InUse(PathBuf),
    /// A file or directory of it cannot be read or written.
    #[error("data directory {path}: cannot {op}: {source}{remedy}")]
    Io {
        /// The path at fault.
        path: PathBuf,
        /// What was tried.
        op: &'static str,
        /// What the kernel said.
        source: io::Error,
        /// What to do, or nothing.
        remedy: &'static str,
    },
    /// Its identity document cannot be believed.
    #[error(
        "data directory {path}: {source}; restore the file or start with an empty data directory"
    )]
    Identity {
        /// The document.
        path: PathBuf,
        /// Why.
        source: EnvelopeError,
    },
    /// It is no data directory and not empty.
    #[error(
        "{0} is not empty and not an Everlog data directory (no everlog.json): give an empty or new directory"
    )]
    Foreign(PathBuf),
}

/// Which store and which Kafka cluster a data directory belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The store as it was given.
    pub store_url: String,
    /// The store's own id, once known.
    pub store_id: Option<String>,
    /// Kafka's cluster id, once known.
    pub cluster_id: Option<String>,
    /// When the directory was first used.
    pub created_ms: u64,
}

/// An opened and locked data directory. The lock is held for its life.
#[derive(Debug)]
pub struct DataDir {
    root: PathBuf,
    _lock: File,
}

/// Where a data directory keeps versions of Kafka's checkpoint files.
#[must_use]
pub fn checkpoints_in(data: &Path) -> PathBuf {
    data.join("checkpoints")
}

impl DataDirError {
    /// Whether all that is wrong is that the disk is full.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_disk_full(source))
    }
}

fn io_error(path: &Path, op: &'static str, source: io::Error) -> DataDirError {
    let remedy = match source.kind() {
        io::ErrorKind::PermissionDenied => ": give this user read and write permission on it",
        io::ErrorKind::StorageFull => ": free some space on its filesystem",
        io::ErrorKind::ReadOnlyFilesystem => ": it lies on a read-only filesystem, choose another",
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => ": it is not a directory",
        _ => "",
    };
    DataDirError::Io { path: path.to_owned(), op, source, remedy }
}

impl DataDir {
    /// Opens or creates it and takes its lock. Changes nothing when it fails on a foreign directory.
    pub fn open(root: &Path) -> Result<Self, DataDirError> {
        // Kafka syncs what lies in it, and never what it lies in.
        durable::create_dirs(root, ["datadir.dir", "datadir.dir.sync"])
            .map_err(|e| io_error(root, "create it", e))?;
        let root = root.canonicalize().map_err(|e| io_error(root, "find it", e))?;
        let mut entries = std::fs::read_dir(&root).map_err(|e| io_error(&root, "list it", e))?;
        let known = root.join("everlog.json").exists() || root.join("lock").exists();
        if !known && entries.next().is_some() {
            return Err(DataDirError::Foreign(root));
        }
        let path = root.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|e| io_error(&path, "open it", e))?;
        let op = rustix::fs::FlockOperation::NonBlockingLockExclusive;
        rustix::fs::flock(&lock, op).map_err(|_| DataDirError::InUse(root.clone()))?;
        if !known {
            // By its lock a directory is known as ours, also when a power loss leaves it without more.
            failpoint::disk("datadir.lock.sync")
                .and_then(|()| durable::sync_dir(&root))
                .map_err(|e| io_error(&root, "sync it", e))?;
        }
        let dir = Self { root, _lock: lock };
        for sub in [dir.hot(), dir.overlay(), dir.cache(), dir.spool(), dir.manifest()] {
            std::fs::create_dir_all(&sub).map_err(|e| io_error(&sub, "create it", e))?;
        }
        let leftover = durable::tmp_of(&dir.identity_path());
        durable::remove_if_exists(&leftover).map_err(|e| io_error(&leftover, "remove it", e))?;
        dir.check_writable()?;
        Ok(dir)
    }

    fn check_writable(&self) -> Result<(), DataDirError> {
        let path = self.root.join("probe.tmp");
        let tried = std::fs::write(&path, [0u8; 4096]).and_then(|()| std::fs::remove_file(&path));
        match tried {
            // Evictions make room on a full disk, but only while it is mounted.
            Err(e) if e.kind() == io::ErrorKind::StorageFull && self.identity_path().exists() => {
                tracing::warn!(data = %self.root.display(), "the data directory's disk is full");
                durable::remove_if_exists(&path).map_err(|e| io_error(&path, "remove it", e))
            }
            tried => tried.map_err(|e| io_error(&self.root, "write to it", e)),
        }
    }

    /// Whether nothing is there yet, or an empty directory. Changes nothing.
    pub fn is_unused(root: &Path) -> Result<bool, DataDirError> {
        match std::fs::read_dir(root) {
            Ok(mut entries) => Ok(entries.next().is_none()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(e) => Err(io_error(root, "list it", e)),
        }
    }

    /// What can change the identity document while the directory is in use elsewhere.
    #[must_use]
    pub fn identity_keeper(&self) -> IdentityKeeper {
        IdentityKeeper(self.identity_path())
    }

    /// The identity document; `None` when it was never mounted.
    pub fn identity(&self) -> Result<Option<Identity>, DataDirError> {
        self.identity_keeper().read()
    }

    /// Writes the identity document durably.
    pub fn set_identity(&self, identity: &Identity) -> Result<(), DataDirError> {
        self.identity_keeper().write(identity)
    }

    fn identity_path(&self) -> PathBuf {
        self.root.join("everlog.json")
    }

    /// The directory itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The log dir's files.
    #[must_use]
    pub fn hot(&self) -> PathBuf {
        self.root.join("hot")
    }

    /// Local bytes of cold files that were written to again.
    #[must_use]
    pub fn overlay(&self) -> PathBuf {
        self.root.join("overlay")
    }

    /// The block cache.
    #[must_use]
    pub fn cache(&self) -> PathBuf {
        self.root.join("cache")
    }

    /// Segments that Kafka unlinked and somebody still needs.
    #[must_use]
    pub fn spool(&self) -> PathBuf {
        self.root.join("spool")
    }

    /// Versions of Kafka's checkpoint files.
    #[must_use]
    pub fn checkpoints(&self) -> PathBuf {
        checkpoints_in(&self.root)
    }

    /// The local copy of the manifests.
    #[must_use]
    pub fn manifest(&self) -> PathBuf {
        self.root.join("manifest")
    }
}

/// Reads and writes the identity document of a data directory that somebody has locked.
#[derive(Clone, Debug)]
pub struct IdentityKeeper(PathBuf);

impl IdentityKeeper {
    fn read(&self) -> Result<Option<Identity>, DataDirError> {
        match std::fs::read(&self.0) {
            Ok(bytes) => envelope::decode(KIND, VERSION, &bytes)
                .map(Some)
                .map_err(|source| DataDirError::Identity { path: self.0.clone(), source }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(io_error(&self.0, "read it", e)),
        }
    }

    fn write(&self, identity: &Identity) -> Result<(), DataDirError> {
        failpoint::disk("identity.keep")
            .and_then(|()| envelope::encode(KIND, VERSION, identity).map_err(io::Error::other))
            .and_then(|bytes| durable::write_atomic(&self.0, &bytes))
            .map_err(|e| io_error(&self.0, "write it", e))
    }

    /// Changes it durably.
    pub fn update(&self, change: impl FnOnce(&mut Identity)) -> Result<(), DataDirError> {
        let mut identity = self.read()?.unwrap_or_default();
        change(&mut identity);
        self.write(&identity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_opening_is_refused_while_the_first_lives() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDir::open(&dir.path().join("d")).unwrap();
        let again = DataDir::open(&dir.path().join("d"));
        assert!(matches!(again, Err(DataDirError::InUse(_))));
        drop(first);
        assert!(DataDir::open(&dir.path().join("d")).is_ok());
    }

    #[test]
    fn a_directory_with_other_peoples_files_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("mine"), b"x").unwrap();
        assert!(matches!(DataDir::open(dir.path()), Err(DataDirError::Foreign(_))));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_identity_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        assert_eq!(data.identity().unwrap(), None);
        let identity = Identity { store_url: "memory://".into(), ..Identity::default() };
        data.set_identity(&identity).unwrap();
        assert_eq!(data.identity().unwrap(), Some(identity));
    }
}
