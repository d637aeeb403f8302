//! What the store was asked for and how it answered: raised by every request, read by the status.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::telemetry::{Counter, ErrorNote, LastError};

use super::error::{Op, StoreError};

/// Shared by all clones of one [`super::Store`].
#[derive(Debug, Default)]
pub struct StoreCounters {
    get: Counter,
    put: Counter,
    list: Counter,
    head: Counter,
    delete: Counter,
    errors: Counter,
    /// Bytes of objects sent.
    pub bytes_up: Counter,
    /// Bytes of objects received.
    pub bytes_down: Counter,
    failed_in_a_row: AtomicU64,
    last_ok_ms: AtomicU64,
    last_error: LastError,
}

/// The counters at one moment. Requests count attempts of this client's, not its transparent repeats.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct CounterSnapshot {
    /// Objects or ranges asked for.
    pub get: u64,
    /// Objects and parts sent.
    pub put: u64,
    /// Pages of listings.
    pub list: u64,
    /// Sizes asked for.
    pub head: u64,
    /// Objects deleted.
    pub delete: u64,
    /// Requests that failed; "not found" and "exists already" are answers, not failures.
    pub errors: u64,
    /// Bytes of objects sent.
    pub bytes_up: u64,
    /// Bytes of objects received.
    pub bytes_down: u64,
    /// Failures since the last answer: 0 while the store works.
    pub failed_in_a_row: u64,
    /// When the store answered last, milliseconds since the epoch; 0: never.
    pub last_ok_ms: u64,
    /// The newest failure.
    pub last_error: Option<ErrorNote>,
}

impl CounterSnapshot {
    /// All requests.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.get + self.put + self.list + self.head + self.delete
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

impl StoreCounters {
    /// All at one moment.
    #[must_use]
    pub fn snapshot(&self) -> CounterSnapshot {
        CounterSnapshot {
            get: self.get.get(),
            put: self.put.get(),
            list: self.list.get(),
            head: self.head.get(),
            delete: self.delete.get(),
            errors: self.errors.get(),
            bytes_up: self.bytes_up.get(),
            bytes_down: self.bytes_down.get(),
            failed_in_a_row: self.failed_in_a_row.load(Ordering::Relaxed),
            last_ok_ms: self.last_ok_ms.load(Ordering::Relaxed),
            last_error: self.last_error.get(),
        }
    }

    pub(super) fn request(&self, op: Op, requests: u64) {
        match op {
            Op::Get => self.get.add(requests),
            Op::Put => self.put.add(requests),
            Op::List => self.list.add(requests),
            Op::Head => self.head.add(requests),
            Op::Delete => self.delete.add(requests),
            Op::Open | Op::Probe => {}
        }
    }

    pub(super) fn answered(&self) {
        self.failed_in_a_row.store(0, Ordering::Relaxed);
        self.last_ok_ms.store(now_ms(), Ordering::Relaxed);
    }

    pub(super) fn failed(&self, error: &StoreError) {
        self.errors.raise();
        self.failed_in_a_row.fetch_add(1, Ordering::Relaxed);
        self.last_error.set(now_ms(), error.to_string());
    }
}
