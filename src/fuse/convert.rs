//! Between the kernel's types and ours.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileType, INodeNo, Request, TimeOrNow};

use crate::catalog::TimeChange;
use crate::vfs::{Attr, Caller, Kind, VfsError, Wait};

pub fn errno(e: &VfsError) -> Errno {
    Errno::from_i32(e.errno())
}

pub fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Dir => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
    }
}

fn time((secs, nanos): (i64, u32)) -> SystemTime {
    let whole = Duration::from_secs(secs.unsigned_abs());
    let base =
        if secs >= 0 { UNIX_EPOCH.checked_add(whole) } else { UNIX_EPOCH.checked_sub(whole) };
    base.unwrap_or(UNIX_EPOCH) + Duration::from_nanos(u64::from(nanos))
}

pub fn file_attr(a: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(a.ino),
        size: a.size_bytes,
        blocks: a.blocks,
        atime: time(a.atime),
        mtime: time(a.mtime),
        ctime: time(a.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(a.kind),
        perm: a.mode,
        nlink: a.nlink,
        uid: a.uid,
        gid: a.gid,
        rdev: a.rdev,
        blksize: 4096,
        flags: 0,
    }
}

pub fn caller(req: &Request) -> Caller {
    Caller { uid: req.uid(), gid: req.gid(), tid: req.pid() }
}

/// What the request waits for, for those who ask.
pub fn wait(operation: &'static str, what: String, req: &Request) -> Wait {
    Wait { operation, what, range: None, archived: None, tid: req.pid() }
}

/// `fuser` gives a time before the epoch as that many seconds *and* nanoseconds before it, though the
/// nanoseconds count from the second onward; here they do again.
pub fn time_change(t: TimeOrNow) -> TimeChange {
    let at = match t {
        TimeOrNow::SpecificTime(at) => at,
        TimeOrNow::Now => return TimeChange::Now,
    };
    match at.duration_since(UNIX_EPOCH) {
        Ok(after) => TimeChange::At(after.as_secs() as i64, after.subsec_nanos()),
        Err(before) => {
            let before = before.duration();
            TimeChange::At(-(before.as_secs() as i64), before.subsec_nanos())
        }
    }
}
