//! The block cache: archived bytes on local disk, under a budget, believed only after checking.
//!
//! Invariant: what leaves it was checked against the archive's checksum in this very read, and the
//! space it takes (as the filesystem counts it) stays within `budget_bytes`. It is filled by its
//! caller and knows nothing of stores or manifests; everything in it may be thrown away at any time.
//! All calls are blocking disk I/O. `docs/FORMATS.md` 3.3 has the bytes.
//!
//! Locks, in the order in which they may nest: a name's stripe (files come and go), an object's
//! gate (bytes come and go), the ledger (memory only).

mod evict;
mod ledger;
mod map;
mod object;
mod scan;
#[cfg(test)]
mod tests;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};

use crate::types::{ObjectKey, Sha256, block_count};
use ledger::{Ledger, Name};
use map::BlockMap;
pub use object::{CachedObject, Filled, FoundBlocks};

/// Limits of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheConfig {
    /// Space on disk, as the filesystem counts it, for data, maps and `.aux` files.
    pub budget_bytes: u64,
    /// Objects whose two files are kept open when nobody reads them.
    pub open_objects_max: usize,
}

/// Why the cache cannot do it. None of these makes archived bytes unavailable.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Another process has it: stop that one or use another directory.
    #[error("the cache {} is in use by another process", dir.display())]
    InUse {
        /// The cache directory.
        dir: PathBuf,
    },
    /// The disk said no: mend it or use another directory.
    #[error("the cache cannot use {}: {source}", path.display())]
    Io {
        /// What it was about.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The checksums are not those of an object of this size: the `.aux` is wrong.
    #[error("object {object} of {size_bytes} bytes cannot have {found} block checksums")]
    Checksums {
        /// Its key.
        object: ObjectKey,
        /// Its length.
        size_bytes: u64,
        /// Number of checksums that were offered.
        found: usize,
    },
    /// It is larger than the budget leaves room for: go on without.
    #[error("{bytes} bytes do not fit the cache's budget")]
    NoRoom {
        /// That were to be kept.
        bytes: u64,
    },
}

/// Why bytes were not kept.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FillError {
    /// They are not the archived bytes: fetch again, never serve them.
    #[error("block {block} does not have the archived checksum")]
    Damaged {
        /// The first such block.
        block: u64,
    },
    /// They are right, but not on disk: serve them from memory.
    #[error("not cached: {why}")]
    Bypass {
        /// What stood in the way.
        why: String,
    },
    /// They are not whole blocks of the object: a fault of the caller.
    #[error("{len} bytes from block {first_block} on are not whole blocks of the object")]
    NotBlocks {
        /// Where they were to go.
        first_block: u64,
        /// How many there were.
        len: usize,
    },
}

/// Figures since the cache was opened; `allocated_bytes` and `objects` are of now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct CacheStats {
    /// Space on disk.
    pub allocated_bytes: u64,
    /// Objects with a block map.
    pub objects: u64,
    /// Lookups that found everything.
    pub hits: u64,
    /// Lookups that did not.
    pub misses: u64,
    /// Taken away to make room.
    pub evicted_bytes: u64,
    /// Blocks, and states of blocks, that were not what was written.
    pub damaged_blocks: u64,
    /// Block maps that could not be believed and were removed with their data.
    pub damaged_maps: u64,
    /// `.aux` files that could not be believed and were removed.
    pub damaged_aux: u64,
    /// Verified and written.
    pub filled_bytes: u64,
}

#[derive(Default)]
pub(crate) struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    evicted_bytes: AtomicU64,
    damaged_blocks: AtomicU64,
    damaged_maps: AtomicU64,
    damaged_aux: AtomicU64,
    filled_bytes: AtomicU64,
}

const STRIPES: usize = 32;

/// What the cache and its handles have in common.
pub(crate) struct Shared {
    dir: PathBuf,
    ledger: Mutex<Ledger>,
    stripes: [Mutex<()>; STRIPES],
    counters: Arc<Counters>,
    /// Whether it was said that the disk is read-only: that concerns every object.
    read_only_said: AtomicBool,
    /// Holds the flock.
    _lock: File,
}

/// The cache of one directory, for one process.
pub struct BlockCache {
    shared: Arc<Shared>,
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> CacheError + '_ {
    move |source| CacheError::Io { path: path.to_owned(), source }
}

fn take_lock(dir: &Path) -> Result<File, CacheError> {
    use rustix::fs::{FlockOperation, flock};
    let path = dir.join("lock");
    let options =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let file = options.map_err(io_error(&path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(CacheError::InUse { dir: dir.to_owned() }),
        Err(e) => Err(io_error(&path)(e.into())),
    }
}

impl BlockCache {
    /// Opens the cache in `dir`, which is created if need be, and takes up what an earlier run left.
    pub fn open(dir: &Path, config: CacheConfig) -> Result<Self, CacheError> {
        fs::create_dir_all(dir).map_err(io_error(dir))?;
        let lock = take_lock(dir)?;
        let mut ledger = Ledger::new(config.budget_bytes, config.open_objects_max);
        for found in scan::scan(dir).map_err(io_error(dir))? {
            if found.is_aux {
                ledger.aux_found(found.name, found.allocated_bytes);
            } else {
                ledger.found(found.name, found.allocated_bytes);
            }
        }
        let shared = Arc::new(Shared {
            dir: dir.to_owned(),
            ledger: Mutex::new(ledger),
            stripes: std::array::from_fn(|_| Mutex::new(())),
            counters: Arc::default(),
            read_only_said: AtomicBool::new(false),
            _lock: lock,
        });
        shared.shrink();
        Ok(Self { shared })
    }

    /// The object, if the cache has a map of it that can be believed and that is of this object.
    #[must_use]
    pub fn object(
        &self,
        key: &ObjectKey,
        size_bytes: u64,
        aux_sha256: &Sha256,
    ) -> Option<Arc<CachedObject>> {
        let name = Name::of(key);
        let known = self.shared.ledger.lock().handle(name);
        if let Some(object) = known.filter(|o| o.is_of(key, size_bytes, aux_sha256)) {
            return Some(object);
        }
        let _files = self.shared.stripe(name);
        let object = self.shared.open_object(name)?;
        if object.is_of(key, size_bytes, aux_sha256) {
            return Some(object);
        }
        tracing::warn!(object = %key, "the cache has a map of other content under this name: removed");
        self.shared.give_up(name);
        None
    }

    /// Makes room for an object's blocks. Where the disk does not let it, the handle still checks
    /// what is filled and answers `Bypass`.
    pub fn create(
        &self,
        key: &ObjectKey,
        size_bytes: u64,
        aux_sha256: &Sha256,
        block_crcs: &[u32],
    ) -> Result<Arc<CachedObject>, CacheError> {
        if block_count(size_bytes) != block_crcs.len() as u64 {
            let (object, found) = (key.clone(), block_crcs.len());
            return Err(CacheError::Checksums { object, size_bytes, found });
        }
        let name = Name::of(key);
        let map = BlockMap {
            key: key.clone(),
            size_bytes,
            aux_sha256: *aux_sha256,
            expected: block_crcs.to_vec(),
            present: vec![false; block_crcs.len()],
            damaged_states: 0,
        };
        let encoded = map::encode(key, size_bytes, aux_sha256, block_crcs);
        let room = encoded.as_ref().and_then(|m| self.shared.reserve(m.len() as u64 + 4096));
        let (Some(encoded), Some(room)) = (encoded, room) else {
            return Ok(CachedObject::new(map, None, &self.shared));
        };
        let _files = self.shared.stripe(name);
        let existing = self.shared.ledger.lock().handle(name);
        if let Some(object) = existing.filter(|o| o.is_of(key, size_bytes, aux_sha256)) {
            return Ok(object);
        }
        self.shared.give_up(name);
        let files = match self.shared.create_files(name, size_bytes, &encoded) {
            Ok(files) => files,
            Err(e) => {
                self.shared.say_not_cached(key, &e);
                return Ok(CachedObject::new(map, None, &self.shared));
            }
        };
        let object = CachedObject::new(map, Some(files), &self.shared);
        let allocated = object.allocated_bytes().unwrap_or(encoded.len() as u64);
        let mut ledger = self.shared.ledger.lock();
        ledger.opened(&object, allocated, &[]);
        drop(ledger);
        drop(room);
        Ok(object)
    }

    /// An `.aux` object's bytes, if there are exactly `size_bytes` of them. The caller checks their
    /// SHA-256 and calls `aux_damaged` if it is another.
    #[must_use]
    pub fn aux_get(&self, key: &ObjectKey, size_bytes: u64) -> Option<Bytes> {
        let name = Name::of(key);
        if !self.shared.ledger.lock().aux_touch(name) {
            return None;
        }
        let path = scan::path(&self.shared.dir, name, scan::AUX);
        match fs::metadata(&path).and_then(|m| Ok((m.len() == size_bytes, fs::read(&path)?))) {
            Ok((true, bytes)) => Some(Bytes::from(bytes)),
            Ok((false, _)) => {
                self.aux_damaged(key);
                None
            }
            Err(e) => {
                tracing::warn!(object = %key, error = %e, "cannot read an .aux file in the cache");
                None
            }
        }
    }

    /// Keeps an `.aux` object's bytes.
    pub fn aux_put(&self, key: &ObjectKey, bytes: &Bytes) -> Result<(), CacheError> {
        let name = Name::of(key);
        let len = bytes.len() as u64;
        let room = self.shared.reserve(len).ok_or(CacheError::NoRoom { bytes: len })?;
        let files = self.shared.stripe(name);
        let path = scan::path(&self.shared.dir, name, scan::AUX);
        let meta = self.shared.write_aux(name, bytes).map_err(io_error(&path))?;
        self.shared.ledger.lock().aux_found(name, scan::allocated_bytes(&meta));
        drop(files);
        drop(room);
        self.shared.shrink();
        Ok(())
    }

    /// The kept `.aux` is not what was written: it is counted and removed.
    pub fn aux_damaged(&self, key: &ObjectKey) {
        self.shared.counters.damaged_aux.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(object = %key, "damaged .aux file in the cache: it is fetched again");
        self.aux_remove(key);
    }

    fn aux_remove(&self, key: &ObjectKey) {
        let name = Name::of(key);
        let _files = self.shared.stripe(name);
        self.shared.remove_aux(name);
    }

    /// Removes an object's data, map and `.aux` file under this key, whatever is there.
    pub fn remove(&self, key: &ObjectKey) {
        let name = Name::of(key);
        let files = self.shared.stripe(name);
        self.shared.give_up(name);
        drop(files);
        self.aux_remove(key);
    }

    /// Gives `bytes` of disk space back, as far as it has them, and does with so much less until
    /// [`Self::grow`]. How many came free.
    pub fn give_back(&self, bytes: u64) -> u64 {
        let before = {
            let mut ledger = self.shared.ledger.lock();
            let before = ledger.allocated_bytes();
            ledger.limit(Some(before.saturating_sub(bytes)));
            before
        };
        self.shared.shrink();
        before.saturating_sub(self.shared.ledger.lock().allocated_bytes())
    }

    /// It may use its whole budget again.
    pub fn grow(&self) {
        self.shared.ledger.lock().limit(None);
    }

    /// Space that an object's data and map take on disk. No I/O.
    #[must_use]
    pub fn cached_bytes(&self, key: &ObjectKey) -> u64 {
        self.shared.ledger.lock().object_bytes(Name::of(key))
    }

    /// Figures.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        let (allocated_bytes, objects) = {
            let ledger = self.shared.ledger.lock();
            (ledger.allocated_bytes(), ledger.object_count())
        };
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.shared.counters;
        CacheStats {
            allocated_bytes,
            objects,
            hits: of(&counters.hits),
            misses: of(&counters.misses),
            evicted_bytes: of(&counters.evicted_bytes),
            damaged_blocks: of(&counters.damaged_blocks),
            damaged_maps: of(&counters.damaged_maps),
            damaged_aux: of(&counters.damaged_aux),
            filled_bytes: of(&counters.filled_bytes),
        }
    }
}

impl Shared {
    fn stripe(&self, name: Name) -> MutexGuard<'_, ()> {
        self.stripes[usize::from(name.0[15]) % STRIPES].lock()
    }

    /// A full disk is said once, elsewhere; a read-only one here.
    fn say_not_cached(&self, key: &ObjectKey, error: &io::Error) {
        let said = match error.kind() {
            io::ErrorKind::StorageFull => true,
            io::ErrorKind::ReadOnlyFilesystem => self.read_only_said.swap(true, Ordering::Relaxed),
            _ => false,
        };
        if !said {
            tracing::warn!(object = %key, %error, "cannot cache this object");
        }
    }

    /// The filesystem's figure for the object's space goes into the books.
    fn account(&self, object: &CachedObject) {
        let mut ledger = self.ledger.lock();
        match object.allocated_bytes() {
            Ok(bytes) => ledger.account(object, bytes),
            Err(e) => {
                tracing::warn!(object = %object.key(), error = %e, "cannot size a cache file")
            }
        }
    }
}
