//! Which part of the cache goes next: what was read once goes before what was read again.
//!
//! Two queues, after the 2Q scheme. What is filled waits in *probation*, first in first out, and is read
//! there as often as one pass likes. Read by another pass, or fetched again soon after it had to go, it
//! belongs to the *main* queue, where the longest unused goes first. Probation is drained first while it
//! holds more than its share, so a scan of any length pushes its own blocks out and nothing else. *Pinned*
//! parts are in neither queue. Pure: no I/O, and time is passed in.

use std::collections::HashMap;
use std::hash::Hash;
use std::num::NonZeroUsize;

use lru::LruCache;

/// Of the budget, what read-once bytes may hold when everything else is in use.
const PROBATION_SHARE: u64 = 4;

/// Where a part is seated when it is not known from before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Read once so far.
    Probation,
    /// Known to be wanted.
    Main,
    /// Never a victim.
    Pinned,
}

/// One part's bytes and what the present pass has read of it.
#[derive(Clone, Copy, Debug, Default)]
struct Seat {
    bytes: u64,
    /// One bit for each block that the present pass has read.
    seen: u64,
    /// The last block that was read: a reader in small pieces comes back to it.
    last: u64,
    /// When the pass began.
    since_ms: u64,
    read_ms: u64,
    born_ms: u64,
}

/// The queues.
pub struct Policy<K: Hash + Eq + Copy> {
    probation: LruCache<K, Seat>,
    main: LruCache<K, Seat>,
    pinned: HashMap<K, Seat>,
    /// Gone from probation, and when it came.
    ghosts: LruCache<K, u64>,
    probation_bytes: u64,
    main_bytes: u64,
    pinned_bytes: u64,
    correlated_ms: u64,
}

impl<K: Hash + Eq + Copy> Policy<K> {
    /// Reads of the same blocks within `correlated_ms` are one use; at most `ghosts_max` parts that are gone
    /// are remembered.
    pub fn new(correlated_ms: u64, ghosts_max: usize) -> Self {
        let ghosts = NonZeroUsize::new(ghosts_max).unwrap_or(NonZeroUsize::MIN);
        Self {
            probation: LruCache::unbounded(),
            main: LruCache::unbounded(),
            pinned: HashMap::new(),
            ghosts: LruCache::new(ghosts),
            probation_bytes: 0,
            main_bytes: 0,
            pinned_bytes: 0,
            correlated_ms,
        }
    }

    /// A part has `bytes` more than before. Whether it is new here; only then does `place` matter.
    pub fn admit(&mut self, key: K, bytes: u64, place: Place, now_ms: u64) -> bool {
        if let Some(seat) = self.pinned.get_mut(&key) {
            seat.bytes += bytes;
            self.pinned_bytes += bytes;
            return false;
        }
        if let Some(seat) = self.main.get_mut(&key) {
            seat.bytes += bytes;
            self.main_bytes += bytes;
            return false;
        }
        if let Some(seat) = self.probation.peek_mut(&key) {
            seat.bytes += bytes;
            self.probation_bytes += bytes;
            return false;
        }
        let gone = self.ghosts.pop(&key);
        let again = gone.is_some_and(|born| now_ms.saturating_sub(born) >= self.correlated_ms);
        let place = if place == Place::Probation && again { Place::Main } else { place };
        let born_ms = gone.unwrap_or(now_ms);
        self.seat(key, Seat { bytes, born_ms, ..Seat::default() }, place);
        true
    }

    fn seat(&mut self, key: K, seat: Seat, place: Place) {
        match place {
            Place::Probation => {
                self.probation_bytes += seat.bytes;
                self.probation.push(key, seat);
            }
            Place::Main => {
                self.main_bytes += seat.bytes;
                self.main.push(key, seat);
            }
            Place::Pinned => {
                self.pinned_bytes += seat.bytes;
                self.pinned.insert(key, seat);
            }
        }
    }

    fn unseat(&mut self, key: &K) -> Option<Seat> {
        if let Some(seat) = self.probation.pop(key) {
            self.probation_bytes -= seat.bytes;
            return Some(seat);
        }
        if let Some(seat) = self.main.pop(key) {
            self.main_bytes -= seat.bytes;
            return Some(seat);
        }
        let seat = self.pinned.remove(key)?;
        self.pinned_bytes -= seat.bytes;
        Some(seat)
    }

    /// Somebody read these blocks of a part, a bit for each.
    pub fn read(&mut self, key: K, blocks: u64, now_ms: u64) {
        if blocks == 0 || self.main.promote(&key) {
            return;
        }
        let correlated_ms = self.correlated_ms;
        let Some(seat) = self.probation.peek_mut(&key) else { return };
        if seat.seen == 0 {
            seat.since_ms = now_ms;
        }
        let long_ago = |ms: u64| now_ms.saturating_sub(ms) >= correlated_ms;
        let again = blocks & seat.seen;
        let by_another_pass = again & !seat.last != 0 && long_ago(seat.since_ms);
        if by_another_pass || (again & seat.last != 0 && long_ago(seat.read_ms)) {
            self.move_to(key, Place::Main);
            return;
        }
        seat.seen |= blocks;
        seat.read_ms = now_ms;
        seat.last = 1 << (63 - blocks.leading_zeros());
    }

    /// Seats a known part elsewhere, as used last.
    pub fn move_to(&mut self, key: K, place: Place) {
        if let Some(seat) = self.unseat(&key) {
            self.seat(key, Seat { seen: 0, ..seat }, place);
        }
    }

    /// The part that goes next, struck. `budget_bytes` is what all parts together may have.
    pub fn victim(&mut self, budget_bytes: u64) -> Option<K> {
        let share = budget_bytes / PROBATION_SHARE;
        let from_probation = self.probation_bytes > share || self.main.is_empty();
        if from_probation && let Some((key, seat)) = self.probation.pop_lru() {
            self.probation_bytes -= seat.bytes;
            self.ghosts.push(key, seat.born_ms);
            return Some(key);
        }
        let (key, seat) = self.main.pop_lru()?;
        self.main_bytes -= seat.bytes;
        Some(key)
    }

    /// A pinned part, struck: for when there is no other and the disk is needed for more than a cache.
    pub fn pinned_victim(&mut self) -> Option<K> {
        let key = self.pinned.keys().next().copied()?;
        self.forget(&key);
        Some(key)
    }

    /// Strikes a part. Whether it was here.
    pub fn forget(&mut self, key: &K) -> bool {
        self.unseat(key).is_some()
    }

    /// Bytes read once, bytes read again, pinned bytes.
    pub fn bytes(&self) -> (u64, u64, u64) {
        (self.probation_bytes, self.main_bytes, self.pinned_bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: u64 = 1000;

    fn policy() -> Policy<u32> {
        Policy::new(MS, 8)
    }

    /// Makes room for `bytes` in a budget of 16 and admits the part.
    fn fetch(p: &mut Policy<u32>, key: u32, now: u64) -> Vec<u32> {
        let mut gone = Vec::new();
        while p.bytes().0 + p.bytes().1 + 1 > 16 {
            gone.extend(p.victim(16));
        }
        p.admit(key, 1, Place::Probation, now);
        gone
    }

    #[test]
    fn a_scan_of_any_length_takes_its_own_bytes_away_and_no_hot_ones() {
        let mut p = policy();
        for key in 0..10 {
            fetch(&mut p, key, 0);
            p.read(key, 0b11, 0);
            p.read(key, 0b11, MS);
        }
        assert_eq!(p.bytes(), (0, 10, 0));
        for key in 100..300 {
            let gone = fetch(&mut p, key, 2 * MS);
            (0..64).for_each(|bit| p.read(key, 1 << bit, 2 * MS + bit * 10));
            assert!(gone.iter().all(|key| *key >= 100), "{gone:?}");
        }
        assert_eq!(p.bytes().1, 10);
    }

    #[test]
    fn one_slow_pass_in_small_pieces_is_one_use() {
        let mut p = policy();
        p.admit(1, 64, Place::Probation, 0);
        for step in 0..64 * 16 {
            // Pieces of a sixteenth of a block, some across a block's end, each well after the other.
            let block = step / 16;
            let over = if step % 16 == 15 && block < 63 { 2 << block } else { 0 };
            p.read(1, 1 << block | over, step * (MS - 1));
        }
        assert_eq!(p.bytes(), (64, 0, 0));
        p.read(1, 1, 1024 * MS);
        assert_eq!(p.bytes(), (0, 64, 0));
    }

    #[test]
    fn readers_close_together_are_one_use_and_a_later_one_is_another() {
        let mut p = policy();
        p.admit(1, 5, Place::Probation, 0);
        (0..5).for_each(|now| p.read(1, 0b111, now * 100));
        assert_eq!(p.bytes(), (5, 0, 0));
        p.read(1, 0b111, MS);
        assert_eq!(p.bytes(), (0, 5, 0));
    }

    #[test]
    fn what_is_fetched_again_after_it_had_to_go_is_wanted() {
        let mut p = policy();
        p.admit(1, 5, Place::Probation, 0);
        assert_eq!(p.victim(16), Some(1));
        p.admit(1, 5, Place::Probation, MS - 1);
        assert_eq!(p.bytes(), (5, 0, 0), "the same fetch, in pieces");
        assert_eq!(p.victim(16), Some(1));
        p.admit(1, 5, Place::Probation, MS);
        assert_eq!(p.bytes(), (0, 5, 0));
    }

    #[test]
    fn the_main_queue_loses_what_was_unused_longest() {
        let mut p = policy();
        (0..3).for_each(|key| _ = p.admit(key, 1, Place::Main, 0));
        p.read(0, 1, 5);
        assert_eq!([p.victim(16), p.victim(16), p.victim(16)], [Some(1), Some(2), Some(0)]);
        assert_eq!(p.victim(16), None);
    }

    #[test]
    fn pinned_parts_are_no_victims_until_the_pin_is_taken_back() {
        let mut p = policy();
        p.admit(1, 5, Place::Pinned, 0);
        p.admit(1, 2, Place::Probation, 0);
        assert_eq!((p.bytes(), p.victim(16)), ((0, 0, 7), None));
        p.move_to(1, Place::Main);
        assert_eq!((p.victim(16), p.bytes()), (Some(1), (0, 0, 0)));
    }

    #[derive(Clone, Copy, Debug)]
    enum Act {
        Admit(u32, u64),
        Read(u32, u64),
        Pin(u32),
        Unpin(u32),
        Forget(u32),
        Victim,
    }

    fn act() -> impl Strategy<Value = Act> {
        let key = 0u32..12;
        prop_oneof![
            (key.clone(), 1u64..9).prop_map(|(k, b)| Act::Admit(k, b)),
            (key.clone(), any::<u64>()).prop_map(|(k, b)| Act::Read(k, b)),
            key.clone().prop_map(Act::Pin),
            key.clone().prop_map(Act::Unpin),
            key.prop_map(Act::Forget),
            Just(Act::Victim),
        ]
    }

    proptest! {
        #[test]
        fn the_books_agree_with_a_plain_list_whatever_happens(acts in prop::collection::vec((act(), 0u64..3000), 1..200)) {
            let (mut p, mut now) = (policy(), 0);
            let mut model: HashMap<u32, (u64, bool)> = HashMap::new();
            for (act, pause) in acts {
                now += pause;
                match act {
                    Act::Admit(key, bytes) => {
                        let new = p.admit(key, bytes, Place::Probation, now);
                        prop_assert_eq!(new, !model.contains_key(&key));
                        model.entry(key).or_default().0 += bytes;
                    }
                    Act::Read(key, blocks) => p.read(key, blocks, now),
                    Act::Pin(key) => {
                        p.move_to(key, Place::Pinned);
                        model.entry(key).and_modify(|(_, pinned)| *pinned = true);
                    }
                    Act::Unpin(key) => {
                        p.move_to(key, Place::Main);
                        model.entry(key).and_modify(|(_, pinned)| *pinned = false);
                    }
                    Act::Forget(key) => {
                        prop_assert_eq!(p.forget(&key), model.remove(&key).is_some());
                    }
                    Act::Victim => match p.victim(20) {
                        Some(key) => prop_assert_eq!(model.remove(&key).map(|(_, pinned)| pinned), Some(false)),
                        None => prop_assert!(model.values().all(|(_, pinned)| *pinned)),
                    },
                }
                let sum = |wanted: bool| model.values().filter(|m| m.1 == wanted).map(|m| m.0).sum::<u64>();
                let (probation, main, pinned) = p.bytes();
                prop_assert_eq!((probation + main, pinned), (sum(false), sum(true)));
                prop_assert_eq!(p.probation.len() + p.main.len() + p.pinned.len(), model.len());
                prop_assert!(p.ghosts.len() <= 8);
            }
        }
    }
}
