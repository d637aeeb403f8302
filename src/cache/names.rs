//! One lock for each name that is being worked on: files of a name come and go under it, and nobody waits
//! for another name's disk.

use std::collections::HashSet;

use parking_lot::{Condvar, Mutex};

use super::ledger::Name;

/// Names whose files somebody is changing.
#[derive(Default)]
pub(super) struct NameLocks {
    busy: Mutex<HashSet<Name>>,
    freed: Condvar,
}

/// Freed when dropped.
pub(super) struct NameGuard<'a> {
    locks: &'a NameLocks,
    name: Name,
}

impl NameLocks {
    /// Waits until nobody else has the name. Not to be taken twice by one thread.
    pub fn lock(&self, name: Name) -> NameGuard<'_> {
        let mut busy = self.busy.lock();
        while !busy.insert(name) {
            self.freed.wait(&mut busy);
        }
        NameGuard { locks: self, name }
    }
}

impl Drop for NameGuard<'_> {
    fn drop(&mut self) {
        self.locks.busy.lock().remove(&self.name);
        self.locks.freed.notify_all();
    }
}
