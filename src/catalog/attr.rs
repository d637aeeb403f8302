//! Changes of mode, owner and times, the same for a file and for a stub that stands for one.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Gid, Mode, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid};

use crate::clock::Clock;
use crate::local::Stub;

/// What a time becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeChange {
    /// The time of the change.
    Now,
    /// This: seconds since the epoch, negative before it, and nanoseconds after that second.
    At(i64, u32),
}

/// A change of attributes; `None` leaves one as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct AttrChange {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Access time.
    pub atime: Option<TimeChange>,
    /// Modification time.
    pub mtime: Option<TimeChange>,
}

impl AttrChange {
    /// A stub keeps no time before the epoch (EINVAL); the file keeps all its attributes then.
    pub(super) fn apply_to_stub(&self, stub: &mut Stub) -> io::Result<()> {
        let now_ns = Clock::system().now_ns();
        let (atime_ns, mtime_ns) = (ns_of(self.atime, now_ns)?, ns_of(self.mtime, now_ns)?);
        if self.changes_owner() {
            stub.set_owner(self.uid, self.gid);
        }
        if let Some(mode) = self.mode {
            stub.set_mode(mode)?;
        }
        // Until now it stood for the access time too.
        stub.atime_ns = atime_ns.or(stub.atime_ns).or(Some(stub.mtime_ns));
        stub.mtime_ns = mtime_ns.unwrap_or(stub.mtime_ns);
        stub.ctime_ns = Some(now_ns);
        Ok(())
    }

    /// Nothing changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let times = self.atime.is_none() && self.mtime.is_none();
        !self.changes_owner() && self.mode.is_none() && times
    }

    fn changes_owner(&self) -> bool {
        self.uid.is_some() || self.gid.is_some()
    }

    /// The times as the kernel takes them; `None`: neither changes.
    fn timestamps(&self) -> Option<Timestamps> {
        (self.atime.is_some() || self.mtime.is_some()).then(|| Timestamps {
            last_access: timespec(self.atime),
            last_modification: timespec(self.mtime),
        })
    }

    /// To an open file. The owner first, since a change of it takes bits of the mode away.
    pub fn apply_to_file(&self, file: &File) -> io::Result<()> {
        if self.changes_owner() {
            let (uid, gid) = (self.uid.map(Uid::from_raw), self.gid.map(Gid::from_raw));
            rustix::fs::fchown(file, uid, gid)?;
        }
        if let Some(mode) = self.mode {
            rustix::fs::fchmod(file, Mode::from_raw_mode(mode))?;
        }
        if let Some(times) = self.timestamps() {
            rustix::fs::futimens(file, &times)?;
        }
        Ok(())
    }

    /// To what a path names; a symbolic link's owner and times are its own.
    pub fn apply_to_path(&self, path: &Path) -> io::Result<()> {
        if self.changes_owner() {
            std::os::unix::fs::lchown(path, self.uid, self.gid)?;
        }
        if let Some(mode) = self.mode {
            rustix::fs::chmodat(CWD, path, Mode::from_raw_mode(mode), AtFlags::empty())?;
        }
        if let Some(times) = self.timestamps() {
            rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    }
}

fn timespec(change: Option<TimeChange>) -> Timespec {
    match change {
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        Some(TimeChange::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        Some(TimeChange::At(secs, nanos)) => Timespec { tv_sec: secs, tv_nsec: nanos.into() },
    }
}

fn ns_of(change: Option<TimeChange>, now_ns: u64) -> io::Result<Option<u64>> {
    let outside = || io::Error::from(rustix::io::Errno::INVAL);
    Ok(match change {
        None => None,
        Some(TimeChange::Now) => Some(now_ns),
        Some(TimeChange::At(secs, nanos)) => {
            let secs = u64::try_from(secs).map_err(|_| outside())?;
            let ns = secs.checked_mul(1_000_000_000).and_then(|ns| ns.checked_add(nanos.into()));
            Some(ns.ok_or_else(outside)?)
        }
    })
}

/// Permission bits of a new entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewMode {
    /// As asked for; the caller's umask is applied already unless `inherited`.
    pub bits: u32,
    /// The directory has a default access list, so the local filesystem decides from it and `bits`.
    pub inherited: bool,
}

impl From<u32> for NewMode {
    fn from(bits: u32) -> Self {
        Self { bits, inherited: false }
    }
}

impl NewMode {
    /// The bits that the entry has to be given once it exists and has its owner; `None`: it is right as it is.
    /// The daemon's own umask must not count, and a change of owner takes set-id bits away.
    #[must_use]
    pub fn corrected(self, now: u32) -> Option<u32> {
        let wanted = if self.inherited { now & 0o777 | self.bits & 0o7000 } else { self.bits };
        (wanted != now & 0o7777).then_some(wanted)
    }
}
