//! Whether the cache's disk works. While it does not, the cache is gone around, and tried again with growing
//! pauses, so that it comes back by itself.
//!
//! Says one line when that begins and one when it ends, however many calls fail in between. A disk that can
//! only not be written to is still read from; after a read that failed it is left alone.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::io::Errno;

use crate::clock::Clock;

/// Before the first new try.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// Before each one, at most; and after so long without a failure the next pause is short again.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// What a try writes and reads back, in bytes.
const TRY_BYTES: usize = 128 * 1024;
/// The file of a try, in the cache directory.
pub const TRY_FILE: &str = "try.tmp";

/// The cache is gone around.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Bypassed {
    /// What the disk said.
    pub reason: String,
    /// Since when, in milliseconds since the epoch.
    pub since_ms: u64,
}

#[derive(Default)]
struct State {
    bypassed: Option<Bypassed>,
    /// Whether evicting can help.
    for_space: bool,
    pause: Option<Duration>,
    next_try: Option<Instant>,
    well_since: Option<Instant>,
}

/// The state of one cache's disk.
pub struct Health {
    writes_off: AtomicBool,
    reads_off: AtomicBool,
    times: AtomicU64,
    state: Mutex<State>,
    clock: Clock,
}

/// Whether an error is about the disk and not about one file.
pub fn is_of_disk(error: &io::Error) -> bool {
    is_of_space(error)
        || [
            Errno::IO,
            Errno::ROFS,
            Errno::NXIO,
            Errno::NODEV,
            Errno::STALE,
            Errno::UCLEAN,
            Errno::BADMSG,
        ]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

fn is_of_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl Health {
    pub fn new(clock: Clock) -> Self {
        Self {
            writes_off: AtomicBool::new(false),
            reads_off: AtomicBool::new(false),
            times: AtomicU64::new(0),
            state: Mutex::default(),
            clock,
        }
    }

    /// Whether nothing is to be written now.
    pub fn writes_off(&self) -> bool {
        self.writes_off.load(Ordering::Acquire)
    }

    /// Whether nothing is to be read now.
    pub fn reads_off(&self) -> bool {
        self.reads_off.load(Ordering::Acquire)
    }

    /// Whether taking files away makes sense.
    pub fn may_evict(&self) -> bool {
        !self.writes_off() || self.state.lock().for_space
    }

    /// Why and since when the cache is gone around.
    pub fn bypassed(&self) -> Option<Bypassed> {
        self.state.lock().bypassed.clone()
    }

    /// How often that began.
    pub fn times(&self) -> u64 {
        self.times.load(Ordering::Relaxed)
    }

    /// A write failed. False: the error is about one file only, and the caller's to report.
    pub fn write_failed(&self, error: &io::Error) -> bool {
        let of_disk = is_of_disk(error);
        if of_disk {
            self.begin(error, false);
        }
        of_disk
    }

    /// A read of a file that was open failed.
    pub fn read_failed(&self, error: &io::Error) {
        self.begin(error, true);
    }

    fn begin(&self, error: &io::Error, reading: bool) {
        let mut state = self.state.lock();
        if reading {
            self.reads_off.store(true, Ordering::Release);
        }
        self.writes_off.store(true, Ordering::Release);
        if state.bypassed.is_some() {
            return;
        }
        let now = Instant::now();
        let long_well = state.well_since.is_none_or(|since| now - since >= PAUSE_MAX);
        let pause = match state.pause {
            Some(pause) if !long_well => (pause * 2).min(PAUSE_MAX),
            _ => PAUSE_MIN,
        };
        let reason = format!("{} fails: {error}", if reading { "a read" } else { "a write" });
        tracing::warn!(%reason, "the cache's disk fails: reads go on without it until it works again");
        state.for_space = is_of_space(error);
        state.bypassed = Some(Bypassed { reason, since_ms: self.clock.now_ms() });
        (state.pause, state.next_try) = (Some(pause), Some(now + pause));
        self.times.fetch_add(1, Ordering::Relaxed);
    }

    /// Tries the disk if the pause is over. Called from one thread, with no lock held.
    pub fn try_again(&self, dir: &Path) {
        let due = self.state.lock().next_try.is_some_and(|at| Instant::now() >= at);
        if !due {
            return;
        }
        let tried = try_disk(&dir.join(TRY_FILE));
        let mut state = self.state.lock();
        let now = Instant::now();
        match tried {
            Ok(()) => {
                let since_ms = state.bypassed.take().map_or(0, |b| b.since_ms);
                let bypassed_ms = self.clock.now_ms().saturating_sub(since_ms);
                tracing::info!(bypassed_ms, "the cache's disk works again: the cache is used");
                (state.next_try, state.well_since) = (None, Some(now));
                self.reads_off.store(false, Ordering::Release);
                self.writes_off.store(false, Ordering::Release);
            }
            Err(error) => {
                let pause = state.pause.map_or(PAUSE_MIN, |p| (p * 2).min(PAUSE_MAX));
                state.for_space = is_of_space(&error);
                (state.pause, state.next_try) = (Some(pause), Some(now + pause));
                tracing::debug!(%error, ?pause, "the cache's disk still fails");
            }
        }
    }
}

/// Writes, syncs, reads back, removes.
fn try_disk(path: &Path) -> io::Result<()> {
    let bytes = vec![0x5a; TRY_BYTES];
    let written = (|| {
        let mut file = fs::File::create(path)?;
        file.write_all(&bytes)?;
        file.sync_data()?;
        if fs::read(path)? != bytes {
            return Err(io::Error::other("what was written reads back differently"));
        }
        Ok(())
    })();
    let removed = fs::remove_file(path);
    written.and(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(errno: Errno) -> io::Error {
        errno.into()
    }

    #[test]
    fn errors_of_the_disk_turn_the_cache_off_and_others_do_not() {
        let health = Health::new(Clock::system());
        assert!(!health.write_failed(&error(Errno::NOENT)) && !health.writes_off());
        assert!(health.write_failed(&error(Errno::ROFS)));
        assert!(health.writes_off() && !health.reads_off() && !health.may_evict());
        assert!(health.bypassed().unwrap().reason.contains("Read-only"), "{:?}", health.bypassed());
        health.read_failed(&error(Errno::IO));
        assert!(health.reads_off());
        assert_eq!(health.times(), 1, "it began once");
    }

    #[test]
    fn a_full_disk_is_still_read_from_and_evicted_from() {
        let health = Health::new(Clock::system());
        assert!(health.write_failed(&error(Errno::NOSPC)));
        assert!(health.writes_off() && !health.reads_off() && health.may_evict());
    }

    #[test]
    fn it_is_tried_after_a_pause_that_grows_and_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let health = Health::new(Clock::system());
        health.read_failed(&error(Errno::IO));
        health.try_again(dir.path());
        assert!(health.writes_off(), "the pause is not over");
        let over = |health: &Health| health.state.lock().next_try = Some(Instant::now());
        over(&health);
        health.try_again(&dir.path().join("is not there"));
        assert_eq!(health.state.lock().pause, Some(2 * PAUSE_MIN));
        over(&health);
        health.try_again(dir.path());
        assert!(!health.writes_off() && !health.reads_off() && health.bypassed().is_none());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        health.read_failed(&error(Errno::IO));
        assert_eq!(health.state.lock().pause, Some(4 * PAUSE_MIN), "it failed again at once");
    }
}
