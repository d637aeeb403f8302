//! Space on the data directory's disk: how much is left, when that is short, and the ballast.
//!
//! Giving space back takes some: a stub, a copy of a manifest, a spool document. On a disk that is full to its
//! last block nothing could ever become free again. So a directory of files without meaning, the ballast, is kept for that moment;
//! while it is out, the broker's appends are refused as on any full disk, and what it made room for is Everlog's own.
//! Says once in the log when space becomes short, when it is gone, and when it is back.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustix::fs::FallocateFlags;
use serde::Serialize;

/// Length of the ballast: enough for hundreds of stubs.
pub const BALLAST_BYTES: u64 = 1 << 20;
/// In so many files, since inodes can be what a disk lacks.
const BALLAST_FILES: u64 = 8;
/// Less than this is nothing: appends come in larger pieces.
const FULL_BELOW_BYTES: u64 = 256 << 10;
/// The ballast's name in the data directory.
pub const BALLAST: &str = "ballast";
const RESERVE_BYTES_MAX: u64 = 1 << 30;
/// Inodes that have to be left for the ballast to be made.
const INODES_MIN: u64 = 2 * BALLAST_FILES;

/// Takes space from what can be fetched again. `Some`: so many bytes, answers how many came; `None`: may grow again.
pub type Shrink = Box<dyn Fn(Option<u64>) -> u64 + Send + Sync>;

/// The disk at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Space {
    /// Of the whole filesystem.
    pub total_bytes: u64,
    /// Left for ordinary users.
    pub free_bytes: u64,
    /// Below this much, archived bytes go whatever the budgets say.
    pub reserve_bytes: u64,
    /// Nothing is left for appends, or only the ballast's space, which is not for them.
    pub full: bool,
}

impl Space {
    /// What is missing to the reserve.
    #[must_use]
    pub fn short_bytes(&self) -> u64 {
        self.reserve_bytes.saturating_sub(self.free_bytes)
    }

    fn is_ample(&self) -> bool {
        self.free_bytes >= self.reserve_bytes + self.reserve_bytes / 4
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Ample,
    Short,
    Full,
}

/// The disk of one data directory.
pub struct Room {
    root: PathBuf,
    shrink: Shrink,
    full: AtomicBool,
    level: Mutex<Level>,
}

impl std::fmt::Debug for Room {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Room").field("root", &self.root).finish_non_exhaustive()
    }
}

/// Whether an error says that there is no space.
#[must_use]
pub fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether an error is the same for every file: no space, or a filesystem that became read-only.
#[must_use]
pub fn is_of_whole_disk(error: &io::Error) -> bool {
    is_disk_full(error) || error.kind() == io::ErrorKind::ReadOnlyFilesystem
}

/// 2 % of the disk, within bounds that make sense on very small and very large ones.
fn reserve_bytes(total_bytes: u64) -> u64 {
    let least = (4 * BALLAST_BYTES).min(total_bytes / 8);
    (total_bytes / 50).clamp(least, RESERVE_BYTES_MAX.max(least))
}

impl Room {
    /// Of the data directory at `root`. Touches nothing.
    #[must_use]
    pub fn new(root: &Path, shrink: Shrink) -> Self {
        let (full, level) = (AtomicBool::new(false), Mutex::new(Level::Ample));
        Self { root: root.to_owned(), shrink, full, level }
    }

    /// The disk now.
    pub fn space(&self) -> io::Result<Space> {
        let s = rustix::fs::statvfs(&self.root)?;
        let total_bytes = s.f_blocks.saturating_mul(s.f_frsize);
        Ok(Space {
            total_bytes,
            free_bytes: s.f_bavail.saturating_mul(s.f_frsize),
            reserve_bytes: reserve_bytes(total_bytes),
            full: self.is_full() || s.f_bavail.saturating_mul(s.f_frsize) < FULL_BELOW_BYTES,
        })
    }

    /// Whether appends are refused for now.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Acquire)
    }

    fn ballast(&self) -> PathBuf {
        self.root.join(BALLAST)
    }

    /// Looks at the disk: makes the ballast where it is missing and there is space for it, and takes from the
    /// cache what is missing to the reserve. The space after that.
    pub fn settle(&self) -> io::Result<Space> {
        let mut level = self.level.lock();
        let mut space = self.space()?;
        if space.short_bytes() > 0 && (self.shrink)(Some(space.short_bytes())) > 0 {
            space = self.space()?;
        }
        if space.is_ample() {
            (self.shrink)(None);
        }
        if space.free_bytes >= 2 * BALLAST_BYTES && self.has_inodes()? {
            self.make_ballast()?;
            self.full.store(false, Ordering::Release);
            space = self.space()?;
        }
        let now = match *level {
            _ if space.full => Level::Full,
            _ if space.short_bytes() > 0 => Level::Short,
            // In between it stays what it was, so that nothing flutters.
            Level::Ample => Level::Ample,
            Level::Short | Level::Full if space.is_ample() => Level::Ample,
            Level::Short | Level::Full => Level::Short,
        };
        self.say(&mut level, now, &space);
        Ok(space)
    }

    fn has_inodes(&self) -> io::Result<bool> {
        let s = rustix::fs::statvfs(&self.root)?;
        Ok(s.f_files == 0 || s.f_favail >= INODES_MIN)
    }

    fn make_ballast(&self) -> io::Result<()> {
        let (dir, bytes) = (self.ballast(), BALLAST_BYTES / BALLAST_FILES);
        std::fs::create_dir_all(&dir)?;
        for number in 0..BALLAST_FILES {
            let path = dir.join(number.to_string());
            if path.metadata().is_ok_and(|m| m.len() == bytes) {
                continue;
            }
            let mut file = File::create(&path)?;
            match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes) {
                Err(rustix::io::Errno::OPNOTSUPP) => file.write_all(&vec![0; bytes as usize])?,
                allocated => allocated?,
            }
        }
        Ok(())
    }

    /// A write found the disk full: gives the ballast's space away. False: it was out already.
    pub fn give_ballast(&self) -> io::Result<bool> {
        let mut level = self.level.lock();
        match std::fs::remove_dir_all(self.ballast()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            removed => removed?,
        }
        let mut space = self.space()?;
        // Else it was not bytes that were missing, or they are back.
        space.full = space.free_bytes < 2 * BALLAST_BYTES;
        self.full.store(space.full, Ordering::Release);
        if space.full {
            self.say(&mut level, Level::Full, &space);
        }
        Ok(true)
    }

    /// Does work of Everlog's own; once more with the ballast's space where the disk is full.
    pub fn with_ballast<T>(&self, mut work: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        match work() {
            Err(e) if is_disk_full(&e) && self.give_ballast()? => work(),
            done => done,
        }
    }

    /// Does what the broker asked for; once more with space of the cache where the disk is full. Refused while
    /// the ballast is out.
    pub fn for_broker<T>(
        &self,
        bytes: u64,
        mut work: impl FnMut() -> io::Result<T>,
    ) -> io::Result<T> {
        if self.is_full() {
            return Err(rustix::io::Errno::NOSPC.into());
        }
        match work() {
            Err(e) if is_disk_full(&e) => {
                let wanted = bytes.max(16 * BALLAST_BYTES);
                if (self.shrink)(Some(wanted)) > 0 { work() } else { Err(e) }
            }
            done => done,
        }
    }

    fn say(&self, level: &mut Level, now: Level, space: &Space) {
        if *level == now {
            return;
        }
        let data = self.root.display();
        let (free_bytes, reserve_bytes) = (space.free_bytes, space.reserve_bytes);
        match now {
            Level::Full => {
                tracing::error!(%data, free_bytes, "the disk is full: appends fail until archived segments could be evicted or somebody made room");
            }
            Level::Short if *level == Level::Full => {
                tracing::warn!(%data, free_bytes, reserve_bytes, "the disk takes appends again, and is still nearly full");
            }
            Level::Short => {
                tracing::warn!(%data, free_bytes, reserve_bytes, "the disk is nearly full: the cache and archived segments make room");
            }
            Level::Ample => tracing::info!(%data, free_bytes, "the disk has space again"),
        }
        *level = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_in_proportion_on_every_disk() {
        let (mib, gib) = (1u64 << 20, 1u64 << 30);
        assert_eq!(reserve_bytes(16 * mib), 2 * mib);
        assert_eq!(reserve_bytes(64 * mib), 4 * mib);
        assert_eq!(reserve_bytes(10 * gib), 10 * gib / 50);
        assert_eq!(reserve_bytes(10_000 * gib), gib);
        assert_eq!(reserve_bytes(0), 0);
    }

    #[test]
    fn the_ballast_is_made_given_once_and_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let room = Room::new(dir.path(), Box::new(|_| 0));
        room.settle().unwrap();
        let ballast = dir.path().join(BALLAST);
        let bytes = |path: &Path| -> u64 {
            let files = std::fs::read_dir(path).unwrap();
            files.map(|f| f.unwrap().metadata().unwrap().len()).sum()
        };
        assert_eq!(bytes(&ballast), BALLAST_BYTES);
        let mut tries = 0;
        let done = room.with_ballast(|| {
            tries += 1;
            if tries == 1 { Err(rustix::io::Errno::NOSPC.into()) } else { Ok(tries) }
        });
        assert_eq!(done.unwrap(), 2);
        assert!(!ballast.exists());
        let failed: io::Result<()> = room.with_ballast(|| Err(rustix::io::Errno::NOSPC.into()));
        assert!(is_disk_full(&failed.unwrap_err()), "nothing is left to give");
        // The test's disk is not full, whatever the call said.
        assert!(!room.is_full());
        room.settle().unwrap();
        assert_eq!(bytes(&ballast), BALLAST_BYTES);
    }

    #[test]
    fn the_broker_gets_the_caches_space_before_it_gets_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let room = Room::new(dir.path(), Box::new(|bytes| bytes.unwrap_or(0)));
        let mut tries = 0;
        let done = room.for_broker(10, || {
            tries += 1;
            if tries == 1 { Err(rustix::io::Errno::NOSPC.into()) } else { Ok(()) }
        });
        done.unwrap();
        room.full.store(true, Ordering::Release);
        assert!(is_disk_full(&room.for_broker(10, || Ok(())).unwrap_err()));
    }
}
