//! Pauses after failures: twice as long each time, with jitter, one per thing that fails.

use std::collections::HashMap;
use std::hash::Hash;

use parking_lot::Mutex;

use crate::clock::random_u64;
use crate::types::ChainId;

/// One pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pause {
    /// Failures in a row.
    pub failures: u32,
    /// Not before this time, milliseconds.
    pub until_ms: u64,
}

/// The pause after failure number `failures` (from 1): between half and all of the doubled step.
pub(super) fn pause_ms(failures: u32, min_ms: u64, max_ms: u64, random: u64) -> u64 {
    let doubled = min_ms.saturating_mul(1u64 << failures.saturating_sub(1).min(30));
    let step = doubled.clamp(1, max_ms.max(1));
    step - random % (step / 2 + 1)
}

/// Pauses by key.
#[derive(Debug)]
pub(super) struct Backoffs<K = ChainId> {
    min_ms: u64,
    max_ms: u64,
    pauses: Mutex<HashMap<K, Pause>>,
}

impl<K: Hash + Eq + Clone> Backoffs<K> {
    pub fn new(min_ms: u64, max_ms: u64) -> Self {
        Self { min_ms, max_ms, pauses: Mutex::default() }
    }

    /// Whether it may be tried now.
    pub fn is_due(&self, key: &K, now_ms: u64) -> bool {
        self.pauses.lock().get(key).is_none_or(|p| p.until_ms <= now_ms)
    }

    /// Notes a failure; says how many there were in a row.
    pub fn failed(&self, key: &K, now_ms: u64) -> u32 {
        let mut pauses = self.pauses.lock();
        let pause = pauses.entry(key.clone()).or_insert(Pause { failures: 0, until_ms: 0 });
        pause.failures = pause.failures.saturating_add(1);
        pause.until_ms = now_ms + pause_ms(pause.failures, self.min_ms, self.max_ms, random_u64());
        pause.failures
    }

    /// It works.
    pub fn succeeded(&self, key: &K) {
        self.pauses.lock().remove(key);
    }

    /// Whether it failed last time.
    pub fn is_failing(&self, key: &K) -> bool {
        self.pauses.lock().contains_key(key)
    }

    /// Whether anything failed last time.
    pub fn any(&self) -> bool {
        !self.pauses.lock().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_keep_half_of_it_at_least() {
        for random in [0, 1, u64::MAX, 12345] {
            assert!((250..=500).contains(&pause_ms(1, 500, 30_000, random)));
            assert!((1000..=2000).contains(&pause_ms(3, 500, 30_000, random)));
            assert!((15_000..=30_000).contains(&pause_ms(40, 500, 30_000, random)));
        }
    }

    #[test]
    fn a_failed_key_waits_and_a_success_forgets_it() {
        let backoffs: Backoffs<u8> = Backoffs::new(100, 1000);
        assert_eq!(backoffs.failed(&7, 1000), 1);
        assert!(!backoffs.is_due(&7, 1000));
        assert!(backoffs.is_due(&7, 1100) && backoffs.is_due(&8, 0));
        assert!(backoffs.any() && backoffs.is_failing(&7));
        backoffs.succeeded(&7);
        assert!(!backoffs.any());
        assert!(backoffs.is_due(&7, 0));
    }
}
