//! Files of the cache come and go: opening, creating, and taking away what the ledger names.
//!
//! Invariant: a name's files are created, opened and removed only under its lock, and never two
//! such locks at once. A block's state is cleared before its bytes are; even so a reader in between is
//! safe, since it checks what it reads.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::ledger::{Name, Part, Victim};
use super::map::{self, BlockMap, MapError};
use super::object::{CachedObject, Files};
use super::{Shared, scan};

const MAP_TEMPORARY: &str = "map.tmp";
const AUX_TEMPORARY: &str = "aux.tmp";

/// Space promised to somebody who is about to write; given back when dropped.
pub(super) struct Room {
    shared: Arc<Shared>,
    bytes: u64,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.shared.ledger.lock().release(self.bytes);
    }
}

enum LoadError {
    Io(io::Error),
    Map(MapError),
}

impl From<io::Error> for LoadError {
    fn from(e: io::Error) -> Self {
        Self::Io(e)
    }
}

impl Shared {
    /// Room for `bytes`. `None`: there is none now, which the trimming thread is told.
    pub(super) fn reserve(self: &Arc<Self>, bytes: u64) -> Option<Room> {
        self.settle_unlinked();
        let granted = self.ledger.lock().reserve(bytes);
        if !granted {
            self.bell.ring(bytes);
            return None;
        }
        Some(Room { shared: Arc::clone(self), bytes })
    }

    /// Without any lock held.
    pub(super) fn evict(self: &Arc<Self>, (name, part): Victim) {
        let _files = self.names.lock(name);
        match part {
            Part::Aux => {
                let freed = self.remove_aux(name);
                self.counters.evicted_bytes.fetch_add(freed, Ordering::Relaxed);
            }
            Part::Object => {
                let freed = self.ledger.lock().object_bytes(name);
                self.give_up(name);
                self.counters.evicted_bytes.fetch_add(freed, Ordering::Relaxed);
            }
            Part::Chunk(chunk) => {
                let Some(object) = self.object_to_punch(name) else {
                    // It cannot be opened, and would be in nobody's queue any more.
                    let known = self.ledger.lock().contains(name);
                    if known {
                        self.give_up(name);
                    }
                    return;
                };
                if object.is_sealed() {
                    // Only whole: somebody may have it mapped.
                    let freed = self.ledger.lock().object_bytes(name);
                    self.give_up(name);
                    self.counters.evicted_bytes.fetch_add(freed, Ordering::Relaxed);
                    return;
                }
                match object.punch(chunk) {
                    Ok(freed) => {
                        self.counters.evicted_bytes.fetch_add(freed, Ordering::Relaxed);
                        self.account(&object);
                    }
                    Err(e) => {
                        if !self.health.write_failed(&e) {
                            tracing::warn!(object = %object.key(), error = %e, "cannot evict a part of a cached object: all of it is removed");
                        }
                        self.give_up(name);
                    }
                }
            }
        }
    }

    /// A handle that does not make the object look used. Under the name's lock.
    fn object_to_punch(self: &Arc<Self>, name: Name) -> Option<Arc<CachedObject>> {
        let (known, held) = {
            let ledger = self.ledger.lock();
            (ledger.contains(name), ledger.held(name))
        };
        if !known || held.is_some() {
            return held;
        }
        let object = self.load_or_remove(name)?;
        self.ledger.lock().adopt(&object);
        Some(object)
    }

    /// The object's handle, from its files if nobody holds one. Under the name's lock.
    pub(super) fn open_object(self: &Arc<Self>, name: Name) -> Option<Arc<CachedObject>> {
        let known = {
            let mut ledger = self.ledger.lock();
            ledger.contains(name).then(|| ledger.handle(name))
        };
        if let Some(object) = known? {
            return Some(object);
        }
        let object = self.load_or_remove(name)?;
        let allocated = object.allocated_bytes();
        let chunks = object.chunks();
        let mut ledger = self.ledger.lock();
        let allocated = allocated.unwrap_or_else(|_| ledger.object_bytes(name));
        ledger.opened(&object, allocated, &chunks, self.now_ms());
        Some(object)
    }

    /// From the object's files; files that cannot be believed are removed. Under the name's lock.
    fn load_or_remove(self: &Arc<Self>, name: Name) -> Option<Arc<CachedObject>> {
        match self.load(name) {
            Ok((map, files)) => Some(CachedObject::new(map, Some(files), self)),
            Err(LoadError::Map(e)) => {
                self.counters.damaged_maps.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(map = %scan::path(&self.dir, name, scan::MAP).display(), error = %e, "block map removed with its data");
                self.give_up(name);
                None
            }
            Err(LoadError::Io(e)) if e.kind() == io::ErrorKind::NotFound => {
                self.give_up(name);
                None
            }
            Err(LoadError::Io(e)) if super::health::is_of_disk(&e) => {
                self.health.read_failed(&e);
                None
            }
            Err(LoadError::Io(e)) => {
                tracing::warn!(map = %scan::path(&self.dir, name, scan::MAP).display(), error = %e, "cannot open a cached object");
                None
            }
        }
    }

    fn load(&self, name: Name) -> Result<(BlockMap, Files), LoadError> {
        let open = |suffix| {
            OpenOptions::new().read(true).write(true).open(scan::path(&self.dir, name, suffix))
        };
        let (mut file, data) = (open(scan::MAP)?, open(scan::DATA)?);
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let map = map::parse(&bytes).map_err(LoadError::Map)?;
        if Name::of(&map.key) != name {
            return Err(LoadError::Map(MapError::Damaged("it is of an object with another name")));
        }
        if map.damaged_states > 0 {
            let (object, states) = (&map.key, map.damaged_states);
            self.counters.damaged_blocks.fetch_add(states, Ordering::Relaxed);
            tracing::warn!(%object, states, "damaged states in a block map: those blocks are fetched again");
        }
        Ok((map, Files { data, map: file }))
    }

    /// New, empty files: the map appears last, complete. Under the name's lock.
    pub(super) fn create_files(
        &self,
        name: Name,
        size_bytes: u64,
        map: &[u8],
    ) -> io::Result<Files> {
        fs::create_dir_all(scan::shard(&self.dir, name))?;
        scan::remove_pair(&self.dir, name)?;
        let fresh = |suffix: &str| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(true);
            options.open(scan::path(&self.dir, name, suffix))
        };
        let written = (|| {
            let data = fresh(scan::DATA)?;
            data.set_len(size_bytes)?;
            let mut file = fresh(MAP_TEMPORARY)?;
            file.write_all(map)?;
            let path = |suffix| scan::path(&self.dir, name, suffix);
            fs::rename(path(MAP_TEMPORARY), path(scan::MAP))?;
            Ok(Files { data, map: file })
        })();
        if written.is_err() {
            for suffix in [MAP_TEMPORARY, scan::MAP, scan::DATA] {
                scan::remove(&self.dir, name, suffix)?;
            }
        }
        written
    }

    /// Ends an object: out of the books, its files unlinked, a handle that is out there emptied.
    /// Under the name's lock.
    pub(super) fn give_up(&self, name: Name) {
        let (held, bytes) = self.ledger.lock().forget(name);
        if let Some(object) = held {
            object.give_up();
        }
        if let Err(e) = scan::remove_pair(&self.dir, name)
            && !self.health.write_failed(&e)
        {
            tracing::warn!(data = %scan::path(&self.dir, name, scan::DATA).display(), error = %e, "cannot remove a cached object");
        }
        self.unlinked(name, bytes);
        self.ledger.lock().release(bytes);
    }

    /// Under the name's lock.
    pub(super) fn write_aux(&self, name: Name, bytes: &[u8]) -> io::Result<Metadata> {
        fs::create_dir_all(scan::shard(&self.dir, name))?;
        let temporary = scan::path(&self.dir, name, AUX_TEMPORARY);
        let written = (|| {
            let mut file = File::create(&temporary)?;
            file.write_all(bytes)?;
            fs::rename(&temporary, scan::path(&self.dir, name, scan::AUX))?;
            file.metadata()
        })();
        if written.is_err() {
            scan::remove(&self.dir, name, AUX_TEMPORARY)?;
        }
        written
    }

    /// Bytes freed. Under the name's lock.
    pub(super) fn remove_aux(&self, name: Name) -> u64 {
        if let Err(e) = scan::remove(&self.dir, name, scan::AUX)
            && !self.health.write_failed(&e)
        {
            tracing::warn!(aux = %scan::path(&self.dir, name, scan::AUX).display(), error = %e, "cannot remove a cached .aux file");
        }
        self.ledger.lock().aux_forget(name)
    }
}
