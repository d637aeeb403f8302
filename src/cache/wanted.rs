//! What somebody asks to be kept: objects that are pinned, and objects that are being warmed.

use std::collections::HashSet;
use std::sync::Arc;

use super::ledger::Name;
use super::{BlockCache, CacheError, Pins, Shared, io_error, pins};
use crate::types::ObjectKey;

/// Of the budget, and of the files, what pins leave to everything else: a quarter.
const LEFT_SHARE: u64 = 4;

/// The pins after a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Pinned {
    /// Objects that the change concerned.
    pub changed_objects: u64,
    /// Bytes of all pinned objects.
    pub bytes: u64,
}

/// While it lives, what is filled into these objects counts as wanted at once.
pub struct Favour {
    shared: Arc<Shared>,
    names: Vec<Name>,
}

impl Drop for Favour {
    fn drop(&mut self) {
        self.shared.ledger.lock().favour(&self.names, false);
    }
}

impl BlockCache {
    /// Makes these objects, `.log` and `.aux`, wanted ones for as long as the answer lives.
    #[must_use]
    pub fn favour(&self, keys: &[ObjectKey]) -> Favour {
        let names: Vec<Name> = keys.iter().map(Name::of).collect();
        self.shared.ledger.lock().favour(&names, true);
        Favour { shared: Arc::clone(&self.shared), names }
    }

    /// The most bytes that can be kept on request: three quarters of the budget.
    #[must_use]
    pub fn keepable_bytes(&self) -> u64 {
        let budget = self.shared.config.budget_bytes;
        budget - budget / LEFT_SHARE
    }

    /// Pins these objects and their lengths: what is here of them, or comes, is not evicted until
    /// [`Self::unpin`], also after a restart. All of them or, with an error, none.
    pub fn pin(&self, objects: &[(ObjectKey, u64)]) -> Result<Pinned, CacheError> {
        let shared = &self.shared;
        let mut pins = shared.pins.lock();
        let mut new = pins.clone();
        new.extend(objects.iter().map(|(key, bytes)| (key.as_str().to_owned(), *bytes)));
        let files_max = shared.limits.files_max;
        let (changed, bytes) = ((new.len() - pins.len()) as u64, pins::bytes(&new));
        let files = new.keys().map(|key| if key.ends_with(".aux") { 1 } else { 2 }).sum::<u64>();
        let too_many = files > files_max - files_max / LEFT_SHARE;
        if changed > 0 && (bytes > self.keepable_bytes() || too_many) {
            let pinned_bytes = pins::bytes(&pins);
            return Err(CacheError::NoRoomToPin {
                bytes: bytes - pinned_bytes,
                files,
                pinned_bytes,
                budget_bytes: shared.config.budget_bytes,
                files_max,
            });
        }
        self.set_pins(&mut pins, new)?;
        Ok(Pinned { changed_objects: changed, bytes })
    }

    /// Takes the pins of the objects back for whose keys `which` holds. Their bytes stay until they are
    /// evicted in their turn.
    pub fn unpin(&self, which: impl Fn(&str) -> bool) -> Result<Pinned, CacheError> {
        let mut pins = self.shared.pins.lock();
        let kept: Pins =
            pins.iter().filter(|(k, _)| !which(k)).map(|(k, n)| (k.clone(), *n)).collect();
        let (changed, bytes) = ((pins.len() - kept.len()) as u64, pins::bytes(&kept));
        if changed > 0 {
            self.set_pins(&mut pins, kept)?;
        }
        Ok(Pinned { changed_objects: changed, bytes })
    }

    fn set_pins(&self, pins: &mut Pins, new: Pins) -> Result<(), CacheError> {
        let shared = &self.shared;
        if let Err(e) = pins::save(&shared.dir, &new) {
            shared.health.write_failed(&e);
            return Err(io_error(&shared.dir)(e));
        }
        let names: HashSet<Name> = pins::keys(&new).map(|key| Name::of(&key)).collect();
        shared.ledger.lock().set_pinned(names);
        *pins = new;
        Ok(())
    }

    /// Why the list of pinned objects that an earlier run left could not be believed, if so: nothing of it
    /// is pinned any more.
    #[must_use]
    pub fn pins_lost(&self) -> Option<&str> {
        self.shared.pins_lost.as_deref()
    }

    /// Whether an object is pinned.
    #[must_use]
    pub fn is_pinned(&self, key: &ObjectKey) -> bool {
        self.shared.ledger.lock().is_pinned(Name::of(key))
    }
}
