//! The block cache: archived bytes on local disk, under a budget, believed only after checking.
//!
//! Invariant: what leaves it was checked against the archive's checksum in this very read, and the
//! space it takes (as the filesystem counts it) stays within `budget_bytes`. It is filled by its
//! caller and knows nothing of stores or manifests; everything in it may be thrown away at any time.
//! All calls are blocking disk I/O. `docs/FORMATS.md` 3.3 has the bytes.
//!
//! A read takes no lock that is held over a call to the disk, but for a moment's wait for its own object's
//! files to be opened. Locks, in the order in which they may nest: a name's (files come and go), an object's
//! gate (bytes come and go), the ledger (memory only).

mod evict;
mod health;
mod lease;
mod ledger;
mod map;
mod names;
mod object;
mod pins;
mod policy;
mod scan;
mod stats;
#[cfg(test)]
mod tests;
mod trim;
mod wanted;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::clock::Clock;
use crate::types::{ObjectKey, Sha256, block_count};
pub use health::Bypassed;
use health::Health;
use ledger::{Ledger, Name};
use map::BlockMap;
use names::NameLocks;
pub use object::{CachedObject, Filled, FoundBlocks};
use pins::Pins;
pub use stats::CacheStats;
use stats::Counters;
use trim::{Bell, Trimmer};
pub use wanted::{Favour, Pinned};

/// Limits of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheConfig {
    /// Space on disk, as the filesystem counts it, for data, maps and `.aux` files.
    pub budget_bytes: u64,
    /// Objects whose two files are kept open when nobody reads them.
    pub open_objects_max: usize,
}

/// More limits of a cache, which leave room for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheLimits {
    /// What stays free of the filesystem's space, in bytes; `None`: a twentieth of it, at most 1 GiB.
    pub free_bytes: Option<u64>,
    /// Files in the cache: two for each object, one for its `.aux`.
    pub files_max: u64,
    /// Reads of the same blocks within this time are one use of them, in milliseconds.
    pub correlated_ms: u64,
}

impl Default for CacheLimits {
    fn default() -> Self {
        Self { free_bytes: None, files_max: 200_000, correlated_ms: 10_000 }
    }
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
    /// There is no room for it now: go on without.
    #[error("there is no room for {bytes} bytes in the cache now")]
    NoRoom {
        /// That were to be kept.
        bytes: u64,
    },
    /// The disk failed a short while ago: go on without.
    #[error("the cache is bypassed: its disk fails")]
    Bypassed,
    /// So much cannot be pinned: unpin something, or give the cache a larger budget.
    #[error(
        "no room to pin {bytes} bytes in {files} files: pinned are {pinned_bytes} bytes, of a budget of {budget_bytes} bytes three quarters can be pinned, and of {files_max} files likewise"
    )]
    NoRoomToPin {
        /// More than now.
        bytes: u64,
        /// More than now.
        files: u64,
        /// Now.
        pinned_bytes: u64,
        /// Of the cache.
        budget_bytes: u64,
        /// Of the cache.
        files_max: u64,
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

/// What the cache and its handles have in common.
pub(crate) struct Shared {
    dir: PathBuf,
    config: CacheConfig,
    limits: CacheLimits,
    ledger: Mutex<Ledger>,
    names: NameLocks,
    pins: Mutex<Pins>,
    pins_lost: Option<String>,
    counters: Arc<Counters>,
    leases: lease::Leases,
    health: Health,
    bell: Bell,
    began: Instant,
    /// Holds the flock.
    _lock: File,
}

/// The cache of one directory, for one process.
pub struct BlockCache {
    shared: Arc<Shared>,
    _trimmer: Trimmer,
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
        Self::open_with(dir, config, CacheLimits::default())
    }

    /// The same with other limits than the usual.
    pub fn open_with(
        dir: &Path,
        config: CacheConfig,
        limits: CacheLimits,
    ) -> Result<Self, CacheError> {
        fs::create_dir_all(dir).map_err(io_error(dir))?;
        let lock = take_lock(dir)?;
        // Left by a crash; what is in the way of these names shows when they are used.
        [health::TRY_FILE, pins::TEMPORARY]
            .iter()
            .for_each(|name| _ = fs::remove_file(dir.join(name)));
        let CacheConfig { budget_bytes, open_objects_max } = config;
        let mut ledger =
            Ledger::new(budget_bytes, limits.files_max, open_objects_max, limits.correlated_ms);
        let (pins, pins_lost) = pins::load(dir).map_err(io_error(dir))?;
        ledger.set_pinned(pins::keys(&pins).map(|key| Name::of(&key)).collect());
        for found in scan::scan(dir).map_err(io_error(dir))? {
            if found.is_aux {
                ledger.aux_found(found.name, found.allocated_bytes, 0);
            } else {
                ledger.found(found.name, found.allocated_bytes);
            }
        }
        let shared = Arc::new(Shared {
            dir: dir.to_owned(),
            config,
            limits,
            ledger: Mutex::new(ledger),
            names: NameLocks::default(),
            pins: Mutex::new(pins),
            pins_lost,
            counters: Arc::default(),
            leases: lease::Leases::default(),
            health: Health::new(Clock::system()),
            bell: Bell::default(),
            began: Instant::now(),
            _lock: lock,
        });
        shared.look_at_space();
        let limit = shared.ledger.lock().limit_bytes();
        shared.trim(0, Some(limit));
        let trimmer = Trimmer::start(&shared)?;
        Ok(Self { shared, _trimmer: trimmer })
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
        if self.shared.health.reads_off() {
            return None;
        }
        let _files = self.shared.names.lock(name);
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
        if self.shared.health.writes_off() || !self.shared.ledger.lock().has_files(2) {
            self.shared.ring_if_tight();
            return Ok(CachedObject::new(map, None, &self.shared));
        }
        let encoded = map::encode(key, size_bytes, aux_sha256, block_crcs);
        let room = encoded.as_ref().and_then(|m| self.shared.reserve(m.len() as u64 + 4096));
        let (Some(encoded), Some(room)) = (encoded, room) else {
            return Ok(CachedObject::new(map, None, &self.shared));
        };
        let _files = self.shared.names.lock(name);
        let existing = self.shared.ledger.lock().handle(name);
        if let Some(object) = existing.filter(|o| o.is_of(key, size_bytes, aux_sha256)) {
            return Ok(object);
        }
        self.shared.give_up(name);
        let files = match self.shared.create_files(name, size_bytes, &encoded) {
            Ok(files) => files,
            Err(e) => {
                if !self.shared.health.write_failed(&e) {
                    tracing::warn!(object = %key, error = %e, "cannot cache this object");
                }
                return Ok(CachedObject::new(map, None, &self.shared));
            }
        };
        let object = CachedObject::new(map, Some(files), &self.shared);
        let allocated = object.allocated_bytes().unwrap_or(encoded.len() as u64);
        self.shared.ledger.lock().opened(&object, allocated, &[], self.shared.now_ms());
        drop(room);
        Ok(object)
    }

    /// An `.aux` object's bytes, if there are exactly `size_bytes` of them. The caller checks their
    /// SHA-256 and calls `aux_damaged` if it is another.
    #[must_use]
    pub fn aux_get(&self, key: &ObjectKey, size_bytes: u64) -> Option<Bytes> {
        let name = Name::of(key);
        let known = self.shared.ledger.lock().aux_touch(name, self.shared.now_ms());
        if !known || self.shared.health.reads_off() {
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
                if health::is_of_disk(&e) {
                    self.shared.health.read_failed(&e);
                } else {
                    tracing::warn!(object = %key, error = %e, "cannot read an .aux file in the cache");
                }
                None
            }
        }
    }

    /// Keeps an `.aux` object's bytes.
    pub fn aux_put(&self, key: &ObjectKey, bytes: &Bytes) -> Result<(), CacheError> {
        let name = Name::of(key);
        let len = bytes.len() as u64;
        if self.shared.health.writes_off() {
            return Err(CacheError::Bypassed);
        }
        if !self.shared.ledger.lock().has_files(1) {
            self.shared.ring_if_tight();
            return Err(CacheError::NoRoom { bytes: len });
        }
        let room = self.shared.reserve(len).ok_or(CacheError::NoRoom { bytes: len })?;
        let files = self.shared.names.lock(name);
        let path = scan::path(&self.shared.dir, name, scan::AUX);
        let written = self.shared.write_aux(name, bytes);
        if let Err(e) = &written {
            self.shared.health.write_failed(e);
        }
        let allocated_bytes = scan::allocated_bytes(&written.map_err(io_error(&path))?);
        self.shared.ledger.lock().aux_found(name, allocated_bytes, self.shared.now_ms());
        drop(files);
        drop(room);
        self.shared.ring_if_tight();
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
        let _files = self.shared.names.lock(name);
        self.shared.remove_aux(name);
    }

    /// Removes an object's data, map and `.aux` file under this key, whatever is there.
    pub fn remove(&self, key: &ObjectKey) {
        let name = Name::of(key);
        let files = self.shared.names.lock(name);
        self.shared.give_up(name);
        drop(files);
        self.aux_remove(key);
    }

    /// Gives `bytes` of disk space back, as far as it has them, and does with so much less until
    /// [`Self::grow`]. How many came free. Evicts on the caller's thread, pinned bytes last.
    pub fn give_back(&self, bytes: u64) -> u64 {
        let (before, target) = {
            let mut ledger = self.shared.ledger.lock();
            let before = ledger.allocated_bytes();
            let target = before.saturating_sub(bytes);
            ledger.lend(Some(target));
            (before, target)
        };
        self.shared.trim(0, Some(target));
        before.saturating_sub(self.shared.ledger.lock().allocated_bytes())
    }

    /// It may use its whole budget again.
    pub fn grow(&self) {
        self.shared.ledger.lock().lend(None);
    }

    /// Space that an object's data and map take on disk. No I/O.
    #[must_use]
    pub fn cached_bytes(&self, key: &ObjectKey) -> u64 {
        self.shared.ledger.lock().object_bytes(Name::of(key))
    }
}

impl Shared {
    /// Milliseconds since the cache was opened.
    fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
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
