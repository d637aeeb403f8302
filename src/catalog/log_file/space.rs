//! Space of a `.log`: reserved, freed and zeroed ranges, and where its data is.

use std::io;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, SeekFrom};

use super::{Content, LogFile, broken, drop_unused, new_overlay, open_rw, set_overlaid};

impl LogFile {
    /// Reserves, frees or zeroes `[offset, offset + len)`, in the modes that the local filesystem knows. Of a
    /// file that is not whole on local disk only its overlay changes; the archive is not asked.
    pub fn fallocate(&self, mode: FallocateFlags, offset: u64, len: u64) -> io::Result<()> {
        let _place = self.place.lock();
        let mut s = self.state.write();
        let (mut stub, file) = match &s.content {
            Content::Hot(file) => {
                let file = match file {
                    Some(file) => file.clone(),
                    None => Arc::new(s.dir.with_path(&s.name, open_rw)?),
                };
                return self.mutating(|| Ok(rustix::fs::fallocate(&*file, mode, offset, len)?));
            }
            Content::Cold(stub) => new_overlay(&s, stub)?,
            Content::Overlaid(stub, file) => (stub.as_ref().clone(), file.clone()),
            Content::Broken(why) => return Err(broken(why)),
        };
        let overlay = stub.overlay.clone();
        let changed = self.mutating(|| {
            rustix::fs::fallocate(&*file, mode, offset, len)?;
            if mode.intersects(FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE) {
                stub.cut(offset, offset.saturating_add(len));
            }
            stub.size_bytes = file.metadata()?.len();
            set_overlaid(&mut s, stub, file)
        });
        changed.inspect_err(|_| drop_unused(&s, overlay.as_deref()))
    }

    /// The next data or hole at or after `offset`; ENXIO at or past the end. What is not whole on local disk
    /// counts as data up to its end: nobody may skip an archived byte.
    pub fn seek(&self, offset: u64, hole: bool) -> io::Result<u64> {
        let to = if hole { SeekFrom::Hole(offset) } else { SeekFrom::Data(offset) };
        let local = match self.content() {
            Content::Hot(Some(file)) => file,
            Content::Hot(None) => Arc::new(std::fs::File::open(self.path())?),
            Content::Cold(_) | Content::Overlaid(..) => {
                let size = self.stat()?.size_bytes;
                if offset >= size {
                    return Err(rustix::io::Errno::NXIO.into());
                }
                return Ok(if hole { size } else { offset });
            }
            Content::Broken(why) => return Err(broken(&why)),
        };
        Ok(rustix::fs::seek(&*local, to)?)
    }
}
