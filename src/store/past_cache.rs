//! Copies a local file into a store that is a directory, past the page cache.
//!
//! The client library writes through it: each byte that is archived then takes a page that somebody else could use, and a
//! page that is new costs more than the copy itself. The object appears whole under its name or not at all: it is written
//! under a name that no listing shows, synced, and renamed. `key` must belong to this upload alone.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

/// Of memory, positions and lengths: what every disk takes.
const ALIGNMENT: usize = 4096;
/// Moved at a time.
const PIECE_BYTES: usize = 1 << 20;

/// An object that is being written. Dropped before [`Self::finish`], it leaves nothing.
pub(super) struct Staged {
    file: File,
    path: PathBuf,
    staged: PathBuf,
    /// The file goes past the page cache. Not every filesystem can.
    direct: bool,
    written: u64,
    buffer: Vec<u8>,
    finished: bool,
}

fn open(path: &Path, flags: OFlags) -> io::Result<File> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true).custom_flags(flags.bits() as i32);
    options.open(path)
}

impl Staged {
    /// Begins an object below `root`, whose own directory is there. Makes the directories above it, durably.
    pub fn begin(root: &Path, key: &str) -> io::Result<Self> {
        let path = root.join(key);
        create_durably(root, path.parent().unwrap_or(root))?;
        // As the client library names what it has not finished, so that listings pass over it.
        let mut staged = path.clone().into_os_string();
        staged.push("#1");
        let staged = PathBuf::from(staged);
        let (file, direct) = match open(&staged, OFlags::DIRECT) {
            Ok(file) => (file, true),
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => {
                (open(&staged, OFlags::empty())?, false)
            }
            Err(e) => return Err(e),
        };
        let buffer = vec![0; PIECE_BYTES + ALIGNMENT];
        Ok(Self { file, path, staged, direct, written: 0, buffer, finished: false })
    }

    /// Appends bytes of `from`. All calls but the last append a multiple of 4 KiB.
    pub fn append(&mut self, from: &File, range: Range<u64>) -> io::Result<()> {
        let mut at = range.start;
        while at < range.end {
            let length = (PIECE_BYTES as u64).min(range.end - at) as usize;
            let start = self.buffer.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
            let piece = &mut self.buffer[start..start + length];
            from.read_exact_at(piece, at)?;
            if self.direct && !length.is_multiple_of(ALIGNMENT) {
                self.through_cache()?;
            }
            match self.write(start..start + length) {
                Err(e) if self.direct && e.kind() == io::ErrorKind::InvalidInput => {
                    self.through_cache()?;
                    self.write(start..start + length)?;
                }
                written => written?,
            }
            at += length as u64;
            self.written += length as u64;
        }
        Ok(())
    }

    fn write(&self, piece: Range<usize>) -> io::Result<()> {
        self.file.write_all_at(&self.buffer[piece], self.written)
    }

    fn through_cache(&mut self) -> io::Result<()> {
        let flags = rustix::fs::fcntl_getfl(&self.file)?;
        rustix::fs::fcntl_setfl(&self.file, flags - OFlags::DIRECT)?;
        self.direct = false;
        Ok(())
    }

    /// Makes it durable under its name.
    pub fn finish(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        std::fs::rename(&self.staged, &self.path)?;
        self.finished = true;
        File::open(self.path.parent().unwrap_or(&self.path))?.sync_all()
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.finished
            && let Err(error) = std::fs::remove_file(&self.staged)
        {
            tracing::debug!(%error, file = %self.staged.display(), "an abandoned object stays unfinished");
        }
    }
}

fn create_durably(root: &Path, dir: &Path) -> io::Result<()> {
    if dir == root || dir.is_dir() {
        return Ok(());
    }
    let Some(above) = dir.parent() else { return Ok(()) };
    create_durably(root, above)?;
    match std::fs::create_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    File::open(above)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_of_any_length_has_the_bytes_of_the_range_and_appears_when_it_is_finished() {
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..3 * PIECE_BYTES + 5000).map(|i| (i * 31 % 251) as u8).collect();
        let source = dir.path().join("source");
        std::fs::write(&source, &bytes).unwrap();
        let source = File::open(source).unwrap();
        let root = dir.path().join("store");
        std::fs::create_dir(&root).unwrap();
        for (at, length) in [(0, 0), (1, 1), (7, 4096), (4096, PIECE_BYTES), (3, bytes.len() - 3)] {
            let key = format!("topics/a-0/{length}.log");
            let range = at as u64..(at + length) as u64;
            let mut staged = Staged::begin(&root, &key).unwrap();
            let middle = range.start + (length / 2 / ALIGNMENT * ALIGNMENT) as u64;
            staged.append(&source, range.start..middle).unwrap();
            staged.append(&source, middle..range.end).unwrap();
            assert!(!root.join(&key).exists());
            staged.finish().unwrap();
            assert_eq!(std::fs::read(root.join(&key)).unwrap(), bytes[at..at + length], "{length}");
        }
    }

    #[test]
    fn what_is_not_finished_leaves_nothing_and_a_file_that_ends_before_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        std::fs::write(&source, [7; 5000]).unwrap();
        let mut staged = Staged::begin(dir.path(), "a/b").unwrap();
        let short = staged.append(&File::open(source).unwrap(), 0..5001).unwrap_err();
        assert_eq!(short.kind(), io::ErrorKind::UnexpectedEof);
        drop(staged);
        assert_eq!(std::fs::read_dir(dir.path().join("a")).unwrap().count(), 0);
    }
}
