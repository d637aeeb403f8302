//! What the cache holds and in which order it goes: the budget's book-keeping, in memory.
//!
//! Invariant: every object known here has a `Part::Object` entry that is used at least as recently
//! as each of its chunks, so an object's files go only after its chunks. Space is booked as
//! allocated by the filesystem, never as file sizes. Decides; does no I/O.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Weak};

use lru::LruCache;

use super::object::CachedObject;
use crate::types::{ObjectKey, Sha256};

/// Bytes of an object that come and go together.
pub const CHUNK_BYTES: u64 = 4 * 1024 * 1024;

/// A cache file's name without its suffix: half of the SHA-256 of the object's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(pub [u8; 16]);

impl Name {
    /// Of an object.
    pub fn of(key: &ObjectKey) -> Self {
        let mut name = [0; 16];
        name.copy_from_slice(&Sha256::of(key.as_str().as_bytes()).0[..16]);
        Self(name)
    }

    /// 32 hex digits.
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// From 32 lower-case hex digits.
    pub fn parse(text: &str) -> Option<Self> {
        let lower = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() != 32 || !text.bytes().all(lower) {
            return None;
        }
        Some(Self(u128::from_str_radix(text, 16).ok()?.to_be_bytes()))
    }
}

/// What can be given up on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// `.data` and `.map` with all that is left in them.
    Object,
    /// 4 MiB of the `.data`.
    Chunk(u64),
    /// An `.aux` file.
    Aux,
}

/// The next thing to give up.
pub type Victim = (Name, Part);

struct Entry {
    allocated_bytes: u64,
    chunk_count: u64,
    handle: Weak<CachedObject>,
}

/// The books.
pub struct Ledger {
    budget_bytes: u64,
    /// At most the budget: less while the disk has no space for it.
    limit_bytes: u64,
    allocated_bytes: u64,
    reserved_bytes: u64,
    lru: LruCache<Victim, ()>,
    objects: HashMap<Name, Entry>,
    aux: HashMap<Name, u64>,
    kept_open: LruCache<Name, Arc<CachedObject>>,
}

/// Answer to a wish for space.
pub enum Grant {
    /// It is booked as reserved.
    Reserved,
    /// Ask again when this is gone.
    Evict(Victim),
    /// There is nothing left to give up.
    NoRoom,
}

impl Ledger {
    pub fn new(budget_bytes: u64, open_objects_max: usize) -> Self {
        let open = NonZeroUsize::new(open_objects_max).unwrap_or(NonZeroUsize::MIN);
        Self {
            budget_bytes,
            limit_bytes: budget_bytes,
            allocated_bytes: 0,
            reserved_bytes: 0,
            lru: LruCache::unbounded(),
            objects: HashMap::new(),
            aux: HashMap::new(),
            kept_open: LruCache::new(open),
        }
    }

    /// Books space for bytes to be written, or names what must go first.
    pub fn reserve(&mut self, bytes: u64) -> Grant {
        if bytes > self.limit_bytes {
            return Grant::NoRoom;
        }
        if self.allocated_bytes + self.reserved_bytes + bytes <= self.limit_bytes {
            self.reserved_bytes += bytes;
            return Grant::Reserved;
        }
        match self.lru.pop_lru() {
            Some((victim, ())) => Grant::Evict(victim),
            None => Grant::NoRoom,
        }
    }

    /// Less than the budget from now on; `None`: the budget again.
    pub fn limit(&mut self, bytes: Option<u64>) {
        self.limit_bytes = bytes.unwrap_or(self.budget_bytes).min(self.budget_bytes);
    }

    /// The reserved bytes are written (and accounted) or will not be.
    pub fn release(&mut self, bytes: u64) {
        self.reserved_bytes = self.reserved_bytes.saturating_sub(bytes);
    }

    /// The object's handle if somebody holds it, which keeps it open longer.
    pub fn handle(&mut self, name: Name) -> Option<Arc<CachedObject>> {
        let handle = self.objects.get(&name)?.handle.upgrade()?;
        if !self.kept_open.promote(&name) {
            self.kept_open.push(name, Arc::clone(&handle));
        }
        Some(handle)
    }

    /// The object's handle if somebody holds it, without counting as a use.
    pub fn held(&self, name: Name) -> Option<Arc<CachedObject>> {
        self.objects.get(&name)?.handle.upgrade()
    }

    /// This is the object's handle from now on; not a use.
    pub fn adopt(&mut self, object: &Arc<CachedObject>) {
        if let Some(entry) = self.objects.get_mut(&object.name()) {
            entry.handle = Arc::downgrade(object);
        }
    }

    pub fn contains(&self, name: Name) -> bool {
        self.objects.contains_key(&name)
    }

    /// Found on disk by the scan, not opened yet.
    pub fn found(&mut self, name: Name, allocated_bytes: u64) {
        let entry = Entry { allocated_bytes, chunk_count: 0, handle: Weak::new() };
        self.objects.insert(name, entry);
        self.allocated_bytes += allocated_bytes;
        self.lru.put((name, Part::Object), ());
    }

    /// An object was opened or created. `chunks` are those that it has bytes of.
    pub fn opened(&mut self, object: &Arc<CachedObject>, allocated_bytes: u64, chunks: &[u64]) {
        let name = object.name();
        let chunk_count = object.size_bytes().div_ceil(CHUNK_BYTES);
        let entry = Entry { allocated_bytes, chunk_count, handle: Arc::downgrade(object) };
        let before = self.objects.insert(name, entry).map_or(0, |e| e.allocated_bytes);
        self.allocated_bytes = self.allocated_bytes - before + allocated_bytes;
        self.kept_open.push(name, Arc::clone(object));
        for &chunk in chunks {
            if !self.lru.contains(&(name, Part::Chunk(chunk))) {
                self.lru.put((name, Part::Chunk(chunk)), ());
            }
        }
        self.lru.put((name, Part::Object), ());
    }

    /// These chunks were just used.
    pub fn touch(&mut self, name: Name, chunks: impl Iterator<Item = u64>) {
        if !self.objects.contains_key(&name) {
            return;
        }
        for chunk in chunks {
            self.lru.put((name, Part::Chunk(chunk)), ());
        }
        self.lru.put((name, Part::Object), ());
    }

    /// The filesystem's figure for an object, if this handle is still the one that is known.
    pub fn account(&mut self, object: &CachedObject, allocated_bytes: u64) {
        if let Some(entry) = self.objects.get_mut(&object.name())
            && std::ptr::eq(entry.handle.as_ptr(), object)
        {
            self.allocated_bytes = self.allocated_bytes - entry.allocated_bytes + allocated_bytes;
            entry.allocated_bytes = allocated_bytes;
        }
    }

    /// Strikes an object; its files are the caller's to remove. The handle, if somebody has one.
    pub fn forget(&mut self, name: Name) -> Option<Arc<CachedObject>> {
        self.kept_open.pop(&name);
        let entry = self.objects.remove(&name)?;
        self.allocated_bytes -= entry.allocated_bytes;
        self.lru.pop(&(name, Part::Object));
        for chunk in 0..entry.chunk_count {
            self.lru.pop(&(name, Part::Chunk(chunk)));
        }
        entry.handle.upgrade()
    }

    pub fn aux_found(&mut self, name: Name, allocated_bytes: u64) {
        let before = self.aux.insert(name, allocated_bytes).unwrap_or(0);
        self.allocated_bytes = self.allocated_bytes - before + allocated_bytes;
        self.lru.put((name, Part::Aux), ());
    }

    /// Whether there is such an `.aux` file; if so it counts as used.
    pub fn aux_touch(&mut self, name: Name) -> bool {
        let known = self.aux.contains_key(&name);
        if known {
            self.lru.put((name, Part::Aux), ());
        }
        known
    }

    /// Bytes that it took.
    pub fn aux_forget(&mut self, name: Name) -> u64 {
        let bytes = self.aux.remove(&name).unwrap_or(0);
        self.allocated_bytes -= bytes;
        self.lru.pop(&(name, Part::Aux));
        bytes
    }

    pub fn allocated_bytes(&self) -> u64 {
        self.allocated_bytes
    }

    pub fn object_bytes(&self, name: Name) -> u64 {
        self.objects.get(&name).map_or(0, |entry| entry.allocated_bytes)
    }

    pub fn object_count(&self) -> u64 {
        self.objects.len() as u64
    }

    pub fn entry_count(&self) -> usize {
        self.lru.len()
    }
}
