//! The thread that keeps the cache small enough, so that neither a read nor a fill ever does.
//!
//! It evicts when less is free of the budget than fills should find, down to a lower mark; once a second it
//! looks at the filesystem's free space and inodes, and at whether a failed disk works again. A fill that
//! finds no room wakes it and goes on without the cache.

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::{CacheError, CacheLimits, Shared, io_error};

/// Between two looks at the filesystem.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Inodes that are left to others: a hundredth, at most so many.
const INODES_LEFT_MAX: u64 = 10_000;
/// Free space that is left to others when nothing is said: a twentieth, at most 1 GiB.
const FREE_BYTES_MAX: u64 = 1 << 30;

#[derive(Default)]
struct Wish {
    /// Bytes that somebody wanted to write and could not.
    bytes: u64,
    woken: bool,
    end: bool,
}

/// How the thread is told.
#[derive(Default)]
pub(super) struct Bell {
    wish: Mutex<Wish>,
    rung: Condvar,
}

impl Bell {
    /// There is less room than there should be; `bytes` did not fit.
    pub fn ring(&self, bytes: u64) {
        let mut wish = self.wish.lock();
        wish.bytes = wish.bytes.max(bytes);
        wish.woken = true;
        self.rung.notify_one();
    }

    fn end(&self) {
        self.wish.lock().end = true;
        self.rung.notify_one();
    }

    /// Waits for a wish or for the time; `None`: it is over.
    fn wait(&self, until: Instant) -> Option<u64> {
        let mut wish = self.wish.lock();
        while !wish.woken && !wish.end {
            if self.rung.wait_until(&mut wish, until).timed_out() {
                break;
            }
        }
        wish.woken = false;
        (!wish.end).then(|| std::mem::take(&mut wish.bytes))
    }
}

/// Ends the thread when dropped, and waits for it.
pub(super) struct Trimmer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Trimmer {
    pub fn start(shared: &Arc<Shared>) -> Result<Self, CacheError> {
        let own = Arc::clone(shared);
        let thread = std::thread::Builder::new()
            .name("everlog-trim".to_owned())
            .spawn(move || run(&own))
            .map_err(io_error(&shared.dir))?;
        Ok(Self { shared: Arc::clone(shared), thread: Some(thread) })
    }
}

impl Drop for Trimmer {
    fn drop(&mut self) {
        self.shared.bell.end();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the cache's trimming had ended by a panic");
        }
    }
}

fn run(shared: &Arc<Shared>) {
    let mut look_at = Instant::now();
    while let Some(wanted) = shared.bell.wait(look_at) {
        if Instant::now() >= look_at {
            shared.health.try_again(&shared.dir);
            shared.look_at_space();
            look_at = Instant::now() + LOOK_EVERY;
        }
        let tight = wanted > 0 || shared.ledger.lock().is_tight();
        if tight && shared.health.may_evict() {
            shared.trim(wanted, None);
        }
    }
}

/// What is to stay free of a filesystem of this size, unless it is said.
fn default_free_bytes(total_bytes: u64) -> u64 {
    (total_bytes / 20).min(FREE_BYTES_MAX)
}

fn room_of(dir: &Path, limits: &CacheLimits) -> std::io::Result<(i128, i128)> {
    let s = rustix::fs::statvfs(dir)?;
    let of = |blocks: u64| blocks.saturating_mul(s.f_frsize);
    let floor = limits.free_bytes.unwrap_or_else(|| default_free_bytes(of(s.f_blocks)));
    let bytes = i128::from(of(s.f_bavail)) - i128::from(floor);
    // Filesystems that make inodes as they need them say 0.
    let left = (s.f_files / 100).min(INODES_LEFT_MAX);
    let files = match s.f_files {
        0 => i128::from(u64::MAX),
        _ => i128::from(s.f_favail) - i128::from(left),
    };
    Ok((bytes, files))
}

impl Shared {
    /// Asks the filesystem how much the cache may have. An error leaves it as it was.
    pub(super) fn look_at_space(&self) {
        match room_of(&self.dir, &self.limits) {
            Ok((bytes, files)) => self.ledger.lock().space(bytes, files),
            Err(error) => _ = self.health.write_failed(&error),
        }
    }

    /// Evicts until `wanted` bytes fit and there is room again, or until no more than `bytes_max` are booked.
    pub(super) fn trim(self: &Arc<Self>, wanted: u64, bytes_max: Option<u64>) {
        loop {
            let victim = self.ledger.lock().next_victim(wanted, bytes_max);
            let Some(victim) = victim else { return };
            self.evict(victim);
        }
    }

    /// After something was written.
    pub(super) fn ring_if_tight(&self) {
        if self.ledger.lock().is_tight() {
            self.bell.ring(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_free_is_in_proportion() {
        assert_eq!(default_free_bytes(100 << 20), 5 << 20);
        assert_eq!(default_free_bytes(1 << 50), 1 << 30);
    }

    #[test]
    fn a_ring_before_the_wait_is_heard_once() {
        let bell = Bell::default();
        let soon = || Instant::now() + Duration::from_millis(1);
        bell.ring(7);
        bell.ring(3);
        assert_eq!(bell.wait(Instant::now() + Duration::from_secs(60)), Some(7));
        assert_eq!(bell.wait(soon()), Some(0), "only the time");
        bell.end();
        assert_eq!(bell.wait(Instant::now() + Duration::from_secs(60)), None);
    }
}
