//! Objects whose file was handed out whole, so that it is read past the cache.
//!
//! Invariant: no hole is ever punched into a sealed file and it is never cut; it goes by being unlinked.
//! Whoever has the file open or mapped reads archived bytes from it whatever becomes of the object. A mapping
//! outlives its descriptor, and this process; so the seal is on the file (its sticky bit) and is never taken off.

use std::os::unix::fs::PermissionsExt as _;

use super::*;

const STICKY: u32 = 0o1000;
/// Read and checked at a time.
const CHECK_BLOCKS: u64 = 16;

/// Whether an earlier run handed it out. What cannot be asked may have been.
pub(super) fn is_on(data: &File) -> bool {
    data.metadata().map_or(true, |meta| meta.permissions().mode() & STICKY != 0)
}

impl CachedObject {
    /// Whether it can only be given up whole.
    pub(in crate::cache) fn is_sealed(&self) -> bool {
        self.sealed.load(Ordering::Acquire)
    }

    /// Whether all blocks are said to be here.
    pub(in crate::cache) fn is_complete(&self) -> bool {
        self.files.is_some() && self.missing(0..u64::MAX).is_empty()
    }

    /// False: it was given up, or is not whole.
    pub(in crate::cache) fn seal(&self) -> io::Result<bool> {
        let Some(files) = &self.files else { return Ok(false) };
        let given_up = self.gate.write();
        if *given_up || !self.is_complete() {
            return Ok(false);
        }
        if !self.is_sealed() {
            let mut permissions = files.data.metadata()?.permissions();
            permissions.set_mode(permissions.mode() | STICKY);
            files.data.set_permissions(permissions)?;
            // A power loss takes all mappings with it, so it need not be durable.
            self.sealed.store(true, Ordering::Release);
        }
        Ok(true)
    }

    /// Reads and checks every block; false when one is not here or is damaged, which is then missing.
    pub(in crate::cache) fn check_whole(&self) -> bool {
        let mut buffer = vec![0; (CHECK_BLOCKS * BLOCK_BYTES) as usize];
        let mut at = 0;
        while at < self.size_bytes() {
            let len = (self.size_bytes() - at).min(buffer.len() as u64);
            if !self.read_into(at, &mut buffer[..len as usize]) {
                return false;
            }
            at += len;
        }
        self.is_complete()
    }

    /// Tells the policy that it is read past the cache.
    pub(in crate::cache) fn all_used(&self) {
        self.used(0..block_count(self.size_bytes()), self.shared.upgrade());
    }

    /// Its data as a file of its own.
    pub(in crate::cache) fn data_file(&self) -> io::Result<Option<File>> {
        self.files.as_ref().map(|files| files.data.try_clone()).transpose()
    }
}
