//! Changes of mode, owner and times, the same for a file and for a stub that stands for one.

use std::fs::File;
use std::io;

use crate::local::Stub;

/// A change of attributes; `None` leaves one as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct AttrChange {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Access time, nanoseconds.
    pub atime_ns: Option<u64>,
    /// Modification time, nanoseconds.
    pub mtime_ns: Option<u64>,
}

impl AttrChange {
    pub(super) fn apply_to_stub(&self, stub: &mut Stub) {
        stub.mode = self.mode.unwrap_or(stub.mode);
        stub.uid = self.uid.unwrap_or(stub.uid);
        stub.gid = self.gid.unwrap_or(stub.gid);
        stub.mtime_ns = self.mtime_ns.unwrap_or(stub.mtime_ns);
    }

    /// Nothing changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let owner = self.uid.is_none() && self.gid.is_none();
        owner && self.mode.is_none() && self.atime_ns.is_none() && self.mtime_ns.is_none()
    }

    /// The times as the kernel takes them; `None`: neither changes.
    #[must_use]
    pub fn timestamps(&self) -> Option<rustix::fs::Timestamps> {
        use rustix::fs::{Timespec, Timestamps, UTIME_OMIT};
        if self.atime_ns.is_none() && self.mtime_ns.is_none() {
            return None;
        }
        let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
        let spec = |ns: Option<u64>| ns.map_or(omit, timespec);
        Some(Timestamps {
            last_access: spec(self.atime_ns),
            last_modification: spec(self.mtime_ns),
        })
    }

    /// To an open file.
    pub fn apply_to_file(&self, file: &File) -> io::Result<()> {
        use rustix::fs::{Gid, Mode, Uid};
        if let Some(mode) = self.mode {
            rustix::fs::fchmod(file, Mode::from_raw_mode(mode))?;
        }
        if self.uid.is_some() || self.gid.is_some() {
            let (uid, gid) = (self.uid.map(Uid::from_raw), self.gid.map(Gid::from_raw));
            rustix::fs::fchown(file, uid, gid)?;
        }
        if let Some(times) = self.timestamps() {
            rustix::fs::futimens(file, &times)?;
        }
        Ok(())
    }
}

fn timespec(ns: u64) -> rustix::fs::Timespec {
    rustix::fs::Timespec { tv_sec: (ns / 1_000_000_000) as i64, tv_nsec: (ns % 1_000_000_000) as _ }
}
