//! What the cache holds and how much it may: the budget's book-keeping, in memory.
//!
//! Invariant: an object known here is seated in the policy either by its chunks or, while it has none that
//! are known, by a `Part::Object`; with its last chunk the object goes. Space is booked as allocated by the
//! filesystem, never as file sizes. Decides; does no I/O.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::sync::{Arc, Weak};

use lru::LruCache;

use super::object::CachedObject;
use super::policy::{Place, Policy};
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

/// Files of an object with its `.aux` aside.
const FILES_OF_OBJECT: u64 = 2;
/// Kept free of the budget so that a fill finds room: an eighth, at most this much.
const HEADROOM_BYTES_MAX: u64 = 256 << 20;

struct Entry {
    allocated_bytes: u64,
    chunk_count: u64,
    /// Parts in the policy.
    seated: u64,
    handle: Weak<CachedObject>,
}

/// What the ledger may book. Each is as large as the others allow.
#[derive(Clone, Copy, Debug)]
struct Limits {
    budget_bytes: u64,
    /// Less than the budget while somebody else needs the disk.
    lent_bytes: u64,
    /// What the filesystem's free space allows.
    space_bytes: u64,
    files: u64,
    /// What the filesystem's free inodes allow.
    space_files: u64,
}

/// The books.
pub struct Ledger {
    limits: Limits,
    allocated_bytes: u64,
    reserved_bytes: u64,
    policy: Policy<Victim>,
    objects: HashMap<Name, Entry>,
    aux: HashMap<Name, u64>,
    kept_open: LruCache<Name, Arc<CachedObject>>,
    pinned: HashSet<Name>,
    /// Being warmed: seated as wanted at once, with how many are at it.
    favoured: HashMap<Name, u64>,
}

impl Ledger {
    pub fn new(
        budget_bytes: u64,
        files_max: u64,
        open_objects_max: usize,
        correlated_ms: u64,
    ) -> Self {
        let open = NonZeroUsize::new(open_objects_max).unwrap_or(NonZeroUsize::MIN);
        let ghosts = (budget_bytes / CHUNK_BYTES).clamp(1024, 1 << 20) as usize;
        let (lent_bytes, space_bytes, space_files) = (u64::MAX, u64::MAX, u64::MAX);
        Self {
            limits: Limits { budget_bytes, lent_bytes, space_bytes, files: files_max, space_files },
            allocated_bytes: 0,
            reserved_bytes: 0,
            policy: Policy::new(correlated_ms, ghosts),
            objects: HashMap::new(),
            aux: HashMap::new(),
            kept_open: LruCache::new(open),
            pinned: HashSet::new(),
            favoured: HashMap::new(),
        }
    }

    pub fn limit_bytes(&self) -> u64 {
        let limits = &self.limits;
        limits.budget_bytes.min(limits.lent_bytes).min(limits.space_bytes)
    }

    pub fn files_limit(&self) -> u64 {
        self.limits.files.min(self.limits.space_files)
    }

    /// Files that are there.
    pub fn files(&self) -> u64 {
        self.objects.len() as u64 * FILES_OF_OBJECT + self.aux.len() as u64
    }

    fn headroom_bytes(&self) -> u64 {
        (self.limit_bytes() / 8).min(HEADROOM_BYTES_MAX)
    }

    fn booked_bytes(&self) -> u64 {
        self.allocated_bytes + self.reserved_bytes
    }

    /// Books space for bytes to be written. False: there is none now.
    pub fn reserve(&mut self, bytes: u64) -> bool {
        let fits = self.booked_bytes().saturating_add(bytes) <= self.limit_bytes();
        if fits {
            self.reserved_bytes += bytes;
        }
        fits
    }

    /// Whether so many more files may be made.
    pub fn has_files(&self, files: u64) -> bool {
        self.files() + files <= self.files_limit()
    }

    /// Whether there is less room than fills should find.
    pub fn is_tight(&self) -> bool {
        self.booked_bytes() > self.limit_bytes() - self.headroom_bytes()
            || self.files() > self.files_limit() - self.files_limit() / 16
    }

    /// What goes next so that `wanted` bytes fit and there is room again; `None` when there is. With
    /// `bytes_max` only so that no more than that is booked.
    pub fn next_victim(&mut self, wanted: u64, bytes_max: Option<u64>) -> Option<Victim> {
        let limit = self.limit_bytes();
        let roomy = limit - self.headroom_bytes() / 2 * 3;
        let target = bytes_max.unwrap_or(roomy.min(limit - wanted.min(limit)));
        let files_limit = self.files_limit();
        let files_target = files_limit - files_limit / 16 - files_limit / 32;
        let too_many_files = bytes_max.is_none() && self.files() > files_target;
        if self.booked_bytes() <= target && !too_many_files {
            return None;
        }
        let (name, part) = match self.policy.victim(limit) {
            Some(victim) => victim,
            // The broker's own writes and the budget are worth more than a pin.
            None if self.limits.lent_bytes < self.limits.budget_bytes
                || self.policy.bytes().2 > target =>
            {
                self.policy.pinned_victim()?
            }
            None => return None,
        };
        if part == Part::Aux {
            return Some((name, part));
        }
        let left = self.objects.get_mut(&name).map_or(0, |entry| {
            entry.seated = entry.seated.saturating_sub(1);
            entry.seated
        });
        let whole = left == 0 || too_many_files;
        Some((name, if whole { Part::Object } else { part }))
    }

    /// Less than the budget from now on, since somebody else needs the disk; `None`: no more.
    pub fn lend(&mut self, bytes: Option<u64>) {
        self.limits.lent_bytes = bytes.unwrap_or(u64::MAX);
    }

    /// How much more bytes and files the filesystem can take; negative: so much is too much.
    pub fn space(&mut self, bytes: i128, files: i128) {
        let clamp = |n: i128| u64::try_from(n.max(0)).unwrap_or(u64::MAX);
        self.limits.space_bytes = clamp(i128::from(self.booked_bytes()) + bytes);
        self.limits.space_files = clamp(i128::from(self.files()) + files);
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

    /// Where a part goes: by its name, else `other`.
    fn place(&self, name: Name, other: Place) -> Place {
        if self.pinned.contains(&name) {
            Place::Pinned
        } else if self.favoured.contains_key(&name) {
            Place::Main
        } else {
            other
        }
    }

    /// Found on disk by the scan, not opened yet. Found in the order in which they were used; what was hot is
    /// not known any more, so all of it is taken for wanted.
    pub fn found(&mut self, name: Name, allocated_bytes: u64) {
        let entry = Entry { allocated_bytes, chunk_count: 0, seated: 1, handle: Weak::new() };
        self.objects.insert(name, entry);
        self.allocated_bytes += allocated_bytes;
        let place = self.place(name, Place::Main);
        self.policy.admit((name, Part::Object), allocated_bytes, place, 0);
    }

    /// An object was opened or created. `chunks` are those that it has bytes of, and how many.
    pub fn opened(
        &mut self,
        object: &Arc<CachedObject>,
        allocated_bytes: u64,
        chunks: &[(u64, u64)],
        now_ms: u64,
    ) {
        let name = object.name();
        self.strike(name);
        let chunk_count = object.size_bytes().div_ceil(CHUNK_BYTES);
        let entry =
            Entry { allocated_bytes, chunk_count, seated: 0, handle: Arc::downgrade(object) };
        self.objects.insert(name, entry);
        self.allocated_bytes += allocated_bytes;
        self.kept_open.push(name, Arc::clone(object));
        if chunks.is_empty() {
            let place = self.place(name, Place::Probation);
            self.policy.admit((name, Part::Object), allocated_bytes, place, now_ms);
        }
        let place = self.place(name, Place::Main);
        for &(chunk, bytes) in chunks {
            self.policy.admit((name, Part::Chunk(chunk)), bytes, place, now_ms);
        }
        if let Some(entry) = self.objects.get_mut(&name) {
            entry.seated = (chunks.len() as u64).max(1);
        }
    }

    /// So many bytes were filled into these chunks.
    pub fn filled(&mut self, name: Name, chunks: &[(u64, u64)], now_ms: u64) {
        let place = self.place(name, Place::Probation);
        let Some(entry) = self.objects.get_mut(&name) else { return };
        for &(chunk, bytes) in chunks {
            if self.policy.admit((name, Part::Chunk(chunk)), bytes, place, now_ms) {
                entry.seated += 1;
            }
        }
        if self.policy.forget(&(name, Part::Object)) {
            entry.seated = entry.seated.saturating_sub(1);
        }
    }

    /// These blocks were read: chunks, and a bit for each of their blocks.
    pub fn read(&mut self, name: Name, chunks: &[(u64, u64)], now_ms: u64) {
        for &(chunk, blocks) in chunks {
            self.policy.read((name, Part::Chunk(chunk)), blocks, now_ms);
        }
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

    fn parts(chunk_count: u64) -> impl Iterator<Item = Part> {
        (0..chunk_count).map(Part::Chunk).chain([Part::Object])
    }

    fn strike(&mut self, name: Name) -> Option<Entry> {
        let entry = self.objects.remove(&name)?;
        self.allocated_bytes -= entry.allocated_bytes;
        Self::parts(entry.chunk_count).for_each(|part| _ = self.policy.forget(&(name, part)));
        Some(entry)
    }

    /// Strikes an object; its files are the caller's to remove. The handle, if somebody has one, and how many
    /// bytes stay reserved until the caller releases them: nobody may have the space before it is free.
    pub fn forget(&mut self, name: Name) -> (Option<Arc<CachedObject>>, u64) {
        self.kept_open.pop(&name);
        let Some(entry) = self.strike(name) else { return (None, 0) };
        self.reserved_bytes += entry.allocated_bytes;
        (entry.handle.upgrade(), entry.allocated_bytes)
    }

    pub fn aux_found(&mut self, name: Name, allocated_bytes: u64, now_ms: u64) {
        self.aux_forget(name);
        self.aux.insert(name, allocated_bytes);
        self.allocated_bytes += allocated_bytes;
        // Small, and what it proves is on disk, too.
        let place = self.place(name, Place::Main);
        self.policy.admit((name, Part::Aux), allocated_bytes, place, now_ms);
    }

    /// Whether there is such an `.aux` file; if so it counts as used.
    pub fn aux_touch(&mut self, name: Name, now_ms: u64) -> bool {
        let known = self.aux.contains_key(&name);
        if known {
            self.policy.read((name, Part::Aux), 1, now_ms);
        }
        known
    }

    /// Bytes that it took.
    pub fn aux_forget(&mut self, name: Name) -> u64 {
        let bytes = self.aux.remove(&name).unwrap_or(0);
        self.allocated_bytes -= bytes;
        self.policy.forget(&(name, Part::Aux));
        bytes
    }

    /// These are pinned from now on and no others.
    pub fn set_pinned(&mut self, pinned: HashSet<Name>) {
        let before = std::mem::replace(&mut self.pinned, pinned);
        let added: Vec<Name> = self.pinned.difference(&before).copied().collect();
        let gone: Vec<Name> = before.difference(&self.pinned).copied().collect();
        added.into_iter().for_each(|name| self.move_to(name, Place::Pinned));
        gone.into_iter().for_each(|name| self.move_to(name, Place::Main));
    }

    pub fn is_pinned(&self, name: Name) -> bool {
        self.pinned.contains(&name)
    }

    /// What is filled into these counts as wanted at once, until it is taken back as often.
    pub fn favour(&mut self, names: &[Name], yes: bool) {
        for &name in names {
            let count = self.favoured.entry(name).or_insert(0);
            *count = if yes { *count + 1 } else { count.saturating_sub(1) };
            if *count == 0 {
                self.favoured.remove(&name);
            } else if yes && !self.pinned.contains(&name) {
                self.move_to(name, Place::Main);
            }
        }
    }

    fn move_to(&mut self, name: Name, place: Place) {
        let chunk_count = self.objects.get(&name).map_or(0, |entry| entry.chunk_count);
        let parts = Self::parts(chunk_count).chain([Part::Aux]);
        parts.for_each(|part| self.policy.move_to((name, part), place));
    }

    /// Of an object that is struck: somebody has its file open still.
    pub fn hold(&mut self, bytes: u64) {
        self.allocated_bytes += bytes;
    }

    /// Nobody has it open any more.
    pub fn let_go(&mut self, bytes: u64) {
        self.allocated_bytes = self.allocated_bytes.saturating_sub(bytes);
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

    /// Bytes read once, bytes read again, pinned bytes.
    pub fn queues(&self) -> (u64, u64, u64) {
        self.policy.bytes()
    }
}
