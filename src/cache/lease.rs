//! Whole objects as files: who reads one needs neither the cache nor its checks any more.
//!
//! Invariant: a file is handed out only after every block of it was checked in this process's life, and not
//! before it is sealed: from then on it can go by being unlinked only, so its holder never sees a hole in it.
//! What is unlinked and still held stays in the books until it is let go.

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::ledger::Name;
use super::object::CachedObject;
use super::{BlockCache, Shared};

/// Objects that are checked at the same time: each is read as fast as the disk gives it.
const CHECKS_MAX: u32 = 2;

#[derive(Default)]
struct Table {
    /// Checked in this process's life, with the file that is out there.
    checked: HashMap<Name, Weak<File>>,
    checking: u32,
    /// Unlinked but held, with the bytes in the books.
    unlinked: Vec<(Weak<File>, u64)>,
}

/// All of them.
#[derive(Default)]
pub(super) struct Leases {
    table: Mutex<Table>,
}

/// One of the checks that may be under way.
struct Check<'a>(&'a Leases);

impl Drop for Check<'_> {
    fn drop(&mut self) {
        self.0.table.lock().checking -= 1;
    }
}

impl Leases {
    fn begin_check(&self) -> Option<Check<'_>> {
        let mut table = self.table.lock();
        // No check is made that would end at once: its end takes the lock.
        if table.checking >= CHECKS_MAX {
            return None;
        }
        table.checking += 1;
        Some(Check(self))
    }

    /// What was checked is no longer known to be whole.
    pub fn forget(&self, name: Name) {
        self.table.lock().checked.remove(&name);
    }
}

impl Shared {
    /// Under the name's lock, when its files are unlinked: bytes that somebody still holds stay in the books.
    pub(super) fn unlinked(&self, name: Name, bytes: u64) {
        let mut table = self.leases.table.lock();
        let Some(file) = table.checked.remove(&name) else { return };
        if file.strong_count() > 0 {
            self.ledger.lock().hold(bytes);
            table.unlinked.push((file, bytes));
        }
    }

    /// Takes what was let go out of the books.
    pub(super) fn settle_unlinked(&self) {
        let mut table = self.leases.table.lock();
        table.unlinked.retain(|(file, bytes)| {
            let held = file.strong_count() > 0;
            if !held {
                self.ledger.lock().let_go(*bytes);
            }
            held
        });
    }

    fn held_file(&self, object: &CachedObject) -> Option<Arc<File>> {
        let mut table = self.leases.table.lock();
        let file = table.checked.get_mut(&object.name())?;
        if let Some(held) = file.upgrade() {
            return Some(held);
        }
        let fresh = Arc::new(object.data_file().ok()??);
        *file = Arc::downgrade(&fresh);
        Some(fresh)
    }

    fn whole(&self, object: &CachedObject) -> Option<Arc<File>> {
        if self.health.reads_off() || !object.is_complete() {
            return None;
        }
        if let Some(file) = self.held_file(object) {
            object.all_used();
            return Some(file);
        }
        let _check = self.leases.begin_check()?;
        let sealed = object.seal().inspect_err(|error| {
            tracing::warn!(object = %object.key(), %error, "cannot seal a cached object: it is read through the daemon");
        });
        if !sealed.unwrap_or(false) || !object.check_whole() {
            return None;
        }
        let _files = self.names.lock(object.name());
        // It may have been given up, and another one made, since.
        let current = self.ledger.lock().held(object.name())?;
        if !std::ptr::eq(Arc::as_ptr(&current), object) || !object.is_complete() {
            return None;
        }
        self.leases.table.lock().checked.entry(object.name()).or_default();
        self.held_file(object)
    }
}

impl BlockCache {
    /// The object's bytes as a local file that can be read without the cache, for as long as it is held or
    /// mapped. `None`: it is not whole here, something of it is damaged, or too many are being checked now.
    /// Reads all of it once in a process's life.
    #[must_use]
    pub fn whole(&self, object: &CachedObject) -> Option<Arc<File>> {
        self.shared.whole(object)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;
    use std::path::Path;

    use super::*;
    use crate::cache::CacheConfig;
    use crate::types::{BLOCK_BYTES, ObjectKey, Sha256};

    const BLOCK: usize = BLOCK_BYTES as usize;
    const SIZE: usize = 80 * BLOCK + 99;

    fn open(dir: &Path) -> BlockCache {
        BlockCache::open(dir, CacheConfig { budget_bytes: 64 << 20, open_objects_max: 4 }).unwrap()
    }

    fn bytes() -> Vec<u8> {
        (0..SIZE).map(|i| (i * 7 % 251) as u8 + 1).collect()
    }

    fn key() -> ObjectKey {
        ObjectKey("o".into())
    }

    fn filled(cache: &BlockCache, blocks: usize) -> Arc<CachedObject> {
        let bytes = bytes();
        let crcs: Vec<u32> = bytes.chunks(BLOCK).map(crc32c::crc32c).collect();
        let object = cache.create(&key(), SIZE as u64, &Sha256([1; 32]), &crcs).unwrap();
        object.fill(0, &bytes[..(blocks * BLOCK).min(SIZE)]).unwrap();
        object
    }

    fn content(file: &File) -> Vec<u8> {
        let mut got = vec![0; SIZE];
        file.read_exact_at(&mut got, 0).unwrap();
        got
    }

    #[test]
    fn more_checks_than_may_run_at_once_are_refused_and_not_waited_for() {
        let leases = Leases::default();
        let running: Vec<_> = (0..CHECKS_MAX).map(|_| leases.begin_check().unwrap()).collect();
        assert!(leases.begin_check().is_none());
        assert!(leases.begin_check().is_none());
        drop(running);
        assert!(leases.begin_check().is_some());
        assert_eq!(leases.table.lock().checking, 0);
    }

    #[test]
    fn only_a_whole_object_is_handed_out_and_all_get_the_same_file() {
        let dir = tempfile::tempdir().unwrap();
        let cache = open(dir.path());
        assert!(cache.whole(&filled(&cache, 80)).is_none(), "its last block is not there");
        cache.remove(&key());
        let object = filled(&cache, 81);
        let file = cache.whole(&object).unwrap();
        assert!(content(&file) == bytes());
        assert!(Arc::ptr_eq(&file, &cache.whole(&object).unwrap()));
    }

    #[test]
    fn a_damaged_object_is_not_handed_out_until_it_is_whole_again() {
        let dir = tempfile::tempdir().unwrap();
        let cache = open(dir.path());
        let object = filled(&cache, 81);
        object.data_file().unwrap().unwrap().write_all_at(&[0], 5 * BLOCK_BYTES + 1).unwrap();
        assert!(cache.whole(&object).is_none());
        assert_eq!(object.missing(0..81).first(), Some(&(5..6)));
        object.fill(5, &bytes()[5 * BLOCK..6 * BLOCK]).unwrap();
        assert!(content(&cache.whole(&object).unwrap()) == bytes());
    }

    #[test]
    fn damage_found_after_it_was_handed_out_ends_that_for_others() {
        let dir = tempfile::tempdir().unwrap();
        let cache = open(dir.path());
        let object = filled(&cache, 81);
        let file = cache.whole(&object).unwrap();
        file.write_all_at(&[0], 9 * BLOCK_BYTES).unwrap();
        assert!(!object.read_into(9 * BLOCK_BYTES, &mut [0; 10]));
        assert!(cache.whole(&object).is_none());
        object.fill(9, &bytes()[9 * BLOCK..10 * BLOCK]).unwrap();
        assert!(content(&cache.whole(&object).unwrap()) == bytes());
    }

    #[test]
    fn what_is_held_stays_whole_and_in_the_books_when_it_is_evicted() {
        let dir = tempfile::tempdir().unwrap();
        let cache = open(dir.path());
        let object = filled(&cache, 81);
        let file = cache.whole(&object).unwrap();
        drop(object);
        let before = cache.shared.ledger.lock().allocated_bytes();
        assert_eq!(cache.give_back(1), 0, "nothing came free");
        assert!(cache.object(&key(), SIZE as u64, &Sha256([1; 32])).is_none(), "it is evicted");
        assert!(content(&file) == bytes());
        assert_eq!(cache.shared.ledger.lock().allocated_bytes(), before);
        drop(file);
        cache.shared.settle_unlinked();
        assert_eq!(cache.shared.ledger.lock().allocated_bytes(), 0);
    }

    #[test]
    fn a_later_process_does_not_punch_what_an_earlier_one_handed_out() {
        let dir = tempfile::tempdir().unwrap();
        let cache = open(dir.path());
        let file = cache.whole(&filled(&cache, 81)).unwrap();
        drop(cache);
        let cache = open(dir.path());
        let object = cache.object(&key(), SIZE as u64, &Sha256([1; 32])).unwrap();
        assert!(object.is_sealed());
        assert!(object.punch(0).is_err());
        assert!(cache.give_back(1) > 0);
        drop(object);
        assert!(content(&file) == bytes(), "neither holes nor a cut");
        assert!(cache.object(&key(), SIZE as u64, &Sha256([1; 32])).is_none());
    }
}
