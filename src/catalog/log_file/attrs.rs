//! Attributes of a `.log` in any tier: what `stat` tells, its mode, owner, times and extended attributes.
//!
//! Of a hot file they are the local file's; of any other they stand in its stub, which is rewritten durably
//! before a change is answered. All of it under `place`, so an eviction carries over what was last set.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::XattrFlags;

use super::super::attr::AttrChange;
use super::{Content, LogFile, State, broken, write_stub};
use crate::failpoint;
use crate::local::stub::without_set_id;
use crate::local::xattrs::Holder;
use crate::local::{Stub, Xattrs};

/// What `stat` tells, from local state alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogStat {
    /// Exact size.
    pub size_bytes: u64,
    /// Modification time, nanoseconds since the epoch; 0 for one before it.
    pub mtime_ns: u64,
    /// Modification time: seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Access time: seconds and nanoseconds.
    pub atime: (i64, u32),
    /// Change time: seconds and nanoseconds.
    pub ctime: (i64, u32),
    /// Allocated 512-byte units; at least 1 for a file that is not empty.
    pub blocks: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Hard links.
    pub nlink: u32,
}

fn nanos(secs: i64, nsec: i64) -> u64 {
    if secs < 0 {
        return 0;
    }
    (secs as u64).saturating_mul(1_000_000_000).saturating_add(nsec.max(0) as u64)
}

fn pair(ns: u64) -> (i64, u32) {
    ((ns / 1_000_000_000) as i64, (ns % 1_000_000_000) as u32)
}

impl LogStat {
    fn of_metadata(m: &std::fs::Metadata) -> Self {
        Self {
            size_bytes: m.len(),
            mtime_ns: nanos(m.mtime(), m.mtime_nsec()),
            mtime: (m.mtime(), m.mtime_nsec() as u32),
            atime: (m.atime(), m.atime_nsec() as u32),
            ctime: (m.ctime(), m.ctime_nsec() as u32),
            blocks: m.blocks().max(u64::from(m.len() > 0)),
            mode: m.mode() & 0o7777,
            uid: m.uid(),
            gid: m.gid(),
            nlink: m.nlink() as u32,
        }
    }

    fn of_stub(s: &Stub) -> Self {
        Self {
            size_bytes: s.size_bytes,
            mtime_ns: s.mtime_ns,
            mtime: pair(s.mtime_ns),
            atime: pair(s.atime_ns.unwrap_or(s.mtime_ns)),
            ctime: pair(s.ctime_ns.unwrap_or(s.mtime_ns)),
            blocks: u64::from(s.size_bytes > 0),
            mode: s.mode,
            uid: s.uid,
            gid: s.gid,
            nlink: 1,
        }
    }

    /// A stub and the local file for what it does not name: size and times of content are the local file's.
    fn of_both(stub: &Stub, file: &File) -> io::Result<Self> {
        let local = Self::of_metadata(&file.metadata()?);
        let Self { size_bytes, mtime_ns, mtime, ctime, blocks, .. } = local;
        let stub = Self::of_stub(stub);
        Ok(Self { size_bytes, mtime_ns, mtime, ctime: ctime.max(stub.ctime), blocks, ..stub })
    }

    /// Whether a stub can keep the times: it knows none before the epoch.
    #[must_use]
    pub(super) fn fits_a_stub(&self) -> bool {
        self.mtime.0 >= 0 && self.atime.0 >= 0
    }

    /// Gives a stub the attributes of the file that it will stand for.
    pub(super) fn give_to(&self, stub: &mut Stub) {
        (stub.mode, stub.uid, stub.gid) = (self.mode, self.uid, self.gid);
        stub.mtime_ns = self.mtime_ns;
        stub.atime_ns = Some(nanos(self.atime.0, self.atime.1.into()));
        stub.ctime_ns = Some(nanos(self.ctime.0, self.ctime.1.into()));
    }
}

impl LogFile {
    /// What `stat` tells. Local disk only.
    pub fn stat(&self) -> io::Result<LogStat> {
        let s = self.state.read();
        let stat = match &s.content {
            Content::Hot(Some(file)) => LogStat::of_metadata(&file.metadata()?),
            Content::Hot(None) => {
                let metadata = s.dir.with_path(&s.name, |path| std::fs::symlink_metadata(path))?;
                LogStat::of_metadata(&metadata)
            }
            Content::Cold(stub) => LogStat::of_stub(stub),
            Content::Overlaid(stub, file) => LogStat::of_both(stub, file)?,
            Content::Broken(why) => return Err(broken(why)),
        };
        // Without a name it has no link, also where its bytes are kept for the archive.
        let nlink = if s.linked { stat.nlink } else { 0 };
        Ok(LogStat { nlink, ..stat })
    }

    /// Changes mode, owner or times of the file or of what stands for it.
    pub fn set_attr(&self, change: &AttrChange) -> io::Result<()> {
        if change.is_empty() {
            return Ok(());
        }
        let _place = self.place.lock();
        let mut s = self.state.write();
        if change.mode.is_some_and(|mode| mode & 0o6000 != 0) {
            self.set_id.store(true, Ordering::Release);
        }
        if let Content::Overlaid(_, file) = &s.content {
            // Its times are the file's; mode and owner are kept there for nobody.
            AttrChange { mode: None, uid: None, gid: None, ..*change }.apply_to_file(file)?;
        }
        change_attributes(
            &mut s,
            |holder| match holder {
                Holder::Path(path) => change.apply_to_path(path),
                Holder::File(file) => change.apply_to_file(file),
            },
            |stub| change.apply_to_stub(stub),
        )
    }

    /// Takes the bits away that let others run it in its owner's name: somebody without the right to keep them
    /// has changed its content. Costs nothing when it is known to have none.
    pub fn strip_set_id(&self) -> io::Result<()> {
        if !self.set_id.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let stripped = self.stat().and_then(|stat| {
            let mode = Some(without_set_id(stat.mode)).filter(|kept| *kept != stat.mode);
            self.set_attr(&AttrChange { mode, ..AttrChange::default() })
        });
        if stripped.is_err() {
            self.set_id.store(true, Ordering::Release);
        }
        stripped
    }

    /// An extended attribute's value; ENODATA when there is none of this name.
    pub fn xattr(&self, name: &OsStr) -> io::Result<Vec<u8>> {
        let s = self.state.read();
        look_at_attributes(&s, |holder| holder.get(name), |kept| kept.get(name).map(<[u8]>::to_vec))
    }

    /// The names of all extended attributes, each with a NUL behind it.
    pub fn xattr_names(&self) -> io::Result<Vec<u8>> {
        let s = self.state.read();
        look_at_attributes(&s, |holder| holder.list(), |kept| Ok(kept.list()))
    }

    /// Sets an extended attribute; ENOSPC when a stub may not keep as much.
    pub fn set_xattr(&self, name: &OsStr, value: &[u8], flags: XattrFlags) -> io::Result<()> {
        let _place = self.place.lock();
        let mut s = self.state.write();
        change_attributes(
            &mut s,
            |holder| Ok(holder.set(name, value, flags)?),
            |stub| Ok(stub.set_xattr(name, value, flags)?),
        )
    }

    /// Removes an extended attribute; ENODATA when there is none of this name.
    pub fn remove_xattr(&self, name: &OsStr) -> io::Result<()> {
        let _place = self.place.lock();
        let mut s = self.state.write();
        change_attributes(
            &mut s,
            |holder| Ok(holder.remove(name)?),
            |stub| Ok(stub.xattrs.remove(name)?),
        )
    }
}

/// Of the local file where it has all the bytes, else of the stub.
fn look_at_attributes<T>(
    s: &State,
    local: impl FnOnce(Holder<'_>) -> rustix::io::Result<T>,
    kept: impl FnOnce(&Xattrs) -> rustix::io::Result<T>,
) -> io::Result<T> {
    Ok(match &s.content {
        Content::Hot(Some(file)) => local(Holder::File(file))?,
        Content::Hot(None) => s.dir.with_path(&s.name, |path| local(Holder::Path(path)))?,
        Content::Cold(stub) | Content::Overlaid(stub, _) => kept(&stub.xattrs)?,
        Content::Broken(why) => return Err(broken(why)),
    })
}

/// Where [`look_at_attributes`] looks. A stub is durable before the change is seen.
fn change_attributes(
    s: &mut State,
    local: impl FnOnce(Holder<'_>) -> io::Result<()>,
    kept: impl FnOnce(&mut Stub) -> io::Result<()>,
) -> io::Result<()> {
    let (stub, overlay) = match &s.content {
        Content::Hot(Some(file)) => return local(Holder::File(file)),
        Content::Hot(None) => return s.dir.with_path(&s.name, |path| local(Holder::Path(path))),
        Content::Cold(stub) => (stub, None),
        Content::Overlaid(stub, file) => (stub, Some(file.clone())),
        Content::Broken(why) => return Err(broken(why)),
    };
    let mut changed = stub.as_ref().clone();
    kept(&mut changed)?;
    let now_ns = crate::clock::Clock::system().now_ns();
    changed.ctime_ns = Some(changed.ctime_ns.unwrap_or(0).max(now_ns));
    failpoint::disk("cold.attributes")?;
    write_stub(s, &changed)?;
    let changed = Arc::new(changed);
    s.content = match overlay {
        None => Content::Cold(changed),
        Some(file) => Content::Overlaid(changed, file),
    };
    Ok(())
}
