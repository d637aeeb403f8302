//! A limit on bytes per second, shared by everything that uploads, or by all cold reads.
//!
//! Each caller reserves its place in the queue and sleeps until its turn, so callers together keep
//! the rate whatever their sizes, and none starves.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// At most this many bytes may be used at once after a pause, in time at the limited rate.
const BURST: Duration = Duration::from_millis(250);

/// A token bucket. Clones share it.
#[derive(Clone, Debug)]
pub struct RateLimiter(Option<Arc<Bucket>>);

#[derive(Debug)]
struct Bucket {
    bytes_per_second: u64,
    next_free: Mutex<Option<Instant>>,
}

impl RateLimiter {
    /// `None` or zero: no limit.
    #[must_use]
    pub fn new(bytes_per_second: Option<u64>) -> Self {
        Self(
            bytes_per_second
                .filter(|rate| *rate > 0)
                .map(|bytes_per_second| Bucket { bytes_per_second, next_free: Mutex::new(None) })
                .map(Arc::new),
        )
    }

    /// Returns when `bytes` may be sent.
    pub async fn acquire(&self, bytes: u64) {
        if let Some(bucket) = &self.0 {
            tokio::time::sleep_until(bucket.reserve(Instant::now(), bytes)).await;
        }
    }
}

impl RateLimiter {
    /// Books `bytes` that have been received; the time before which no more should be asked for.
    #[must_use]
    pub fn debit(&self, bytes: u64) -> Option<Instant> {
        let bucket = self.0.as_ref()?;
        Some(bucket.reserve(Instant::now(), bytes))
    }
}

impl Bucket {
    /// When the caller's turn begins; the bytes count from then on.
    fn reserve(&self, now: Instant, bytes: u64) -> Instant {
        let mut next_free = self.next_free.lock();
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let start = next_free.map_or(earliest, |at| at.max(earliest));
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second);
        let takes = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX / 4));
        *next_free = Some(start.checked_add(takes).unwrap_or(start));
        start.max(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_queue_up_at_the_rate() {
        let bucket = Bucket { bytes_per_second: 1000, next_free: Mutex::new(None) };
        let now = Instant::now();
        assert_eq!(bucket.reserve(now, 1250), now);
        assert_eq!(bucket.reserve(now, 500), now + Duration::from_millis(1000));
        assert_eq!(bucket.reserve(now, 1), now + Duration::from_millis(1500));
    }

    #[test]
    fn a_pause_saves_up_no_more_than_the_burst() {
        let bucket = Bucket { bytes_per_second: 1000, next_free: Mutex::new(None) };
        let now = Instant::now();
        bucket.reserve(now, 10);
        let later = now + Duration::from_secs(100);
        assert_eq!(bucket.reserve(later, 1250), later);
        assert_eq!(bucket.reserve(later, 1), later + Duration::from_secs(1));
    }
}
