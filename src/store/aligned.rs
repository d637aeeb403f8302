//! Memory for reads and writes past the page cache.

use std::ops::Range;

/// Of memory, positions and lengths: what every disk takes.
pub(super) const ALIGNMENT: usize = 4096;

/// Bytes whose first is at a multiple of [`ALIGNMENT`].
#[derive(Debug, Default)]
pub(super) struct Aligned {
    memory: Vec<u8>,
    start: usize,
}

impl Aligned {
    /// Room for `length` bytes. Untouched memory costs nothing.
    pub fn new(length: usize) -> Self {
        let memory = vec![0; length + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Self { memory, start }
    }

    fn range(&self, length: usize) -> Range<usize> {
        self.start..self.start + length
    }

    /// The first `length` bytes; no more than there is room for.
    pub fn bytes(&self, length: usize) -> &[u8] {
        &self.memory[self.range(length)]
    }

    /// The same, to be written to.
    pub fn bytes_mut(&mut self, length: usize) -> &mut [u8] {
        let range = self.range(length);
        &mut self.memory[range]
    }
}

/// Turns going past the page cache on or off; an error where the filesystem cannot.
pub(super) fn set_direct(file: &std::fs::File, direct: bool) -> std::io::Result<()> {
    let mut flags = rustix::fs::fcntl_getfl(file)?;
    flags.set(rustix::fs::OFlags::DIRECT, direct);
    Ok(rustix::fs::fcntl_setfl(file, flags)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_begins_where_every_disk_takes_it() {
        for length in [1, 4096, 1 << 20] {
            let mut memory = Aligned::new(length);
            assert_eq!(memory.bytes(length).as_ptr().align_offset(ALIGNMENT), 0);
            memory.bytes_mut(length).fill(7);
            assert_eq!(memory.bytes(length), vec![7; length]);
        }
    }
}
