//! Counters and remembered errors: what the status tells. Cheap to raise, read as one snapshot.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::Serialize;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// By one.
    pub fn raise(&self) {
        self.add(1);
    }

    /// By `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// An error as the status shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ErrorNote {
    /// When, milliseconds since the epoch.
    pub at_ms: u64,
    /// What, in one line, with the thing's name.
    pub what: String,
}

/// The most recent error, and whether it still stands.
#[derive(Debug, Default)]
pub struct LastError(Mutex<Option<ErrorNote>>);

impl LastError {
    /// Remember this one.
    pub fn set(&self, at_ms: u64, what: impl Into<String>) {
        *self.0.lock() = Some(ErrorNote { at_ms, what: what.into() });
    }

    /// What failed works again.
    pub fn clear(&self) {
        *self.0.lock() = None;
    }

    /// As the status shows it.
    #[must_use]
    pub fn get(&self) -> Option<ErrorNote> {
        self.0.lock().clone()
    }
}
