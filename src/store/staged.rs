//! Writes an object into a store that is a directory: whole under its name, durable, or not at all.
//!
//! It is written under a name that no listing shows, synced, and then gets its own, all below one directory that was opened once.
//! The bytes of segments go past the page cache: each byte that is archived would take a page that somebody else could use,
//! and a page that is new costs more than the copy itself.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::clock::random_u64;

use super::aligned::{ALIGNMENT, Aligned, set_direct};
use super::anchor::Anchor;

/// Moved at a time.
const PIECE_BYTES: usize = 1 << 20;

/// What becomes of an object that has the name already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Naming {
    /// It is replaced.
    Overwrite,
    /// It stays, and `AlreadyExists` is the result.
    Create,
}

/// An object that is being written. Dropped before [`Self::finish`], it leaves nothing.
pub(super) struct Staged {
    anchor: Anchor,
    key: String,
    file: File,
    staged: PathBuf,
    /// The file goes past the page cache. Not every filesystem can.
    direct: bool,
    written: u64,
    buffer: Option<Aligned>,
    finished: bool,
}

/// The file, and whether it goes past the page cache. `path` is nobody else's: where going past the cache is refused, the
/// file may have been made all the same.
fn open(path: &Path, flags: OFlags) -> io::Result<(File, bool)> {
    let open = |flags: OFlags| {
        let mut options = File::options();
        options.write(true).create(true).truncate(true).custom_flags(flags.bits() as i32);
        options.open(path)
    };
    match open(flags) {
        Err(e) if e.kind() == io::ErrorKind::InvalidInput && !flags.is_empty() => {
            Ok((open(OFlags::empty())?, false))
        }
        file => Ok((file?, flags.contains(OFlags::DIRECT))),
    }
}

impl Staged {
    /// Begins an object of few bytes, through the page cache: preparing anything else would cost more.
    pub fn begin_small(anchor: Anchor, key: &str) -> io::Result<Self> {
        Self::begin_with(anchor, key, OFlags::empty())
    }

    /// Begins an object, past the page cache where the filesystem can.
    pub fn begin(anchor: Anchor, key: &str) -> io::Result<Self> {
        Self::begin_with(anchor, key, OFlags::DIRECT)
    }

    fn begin_with(anchor: Anchor, key: &str, flags: OFlags) -> io::Result<Self> {
        // As the client library names what it has not finished, so that listings pass over it.
        let staged = anchor.path(&format!("{key}#{}", random_u64()));
        let (file, direct) = match open(&staged, flags) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                anchor.create_above(key)?;
                open(&staged, flags)?
            }
            opened => opened?,
        };
        let key = key.to_owned();
        Ok(Self { anchor, key, file, staged, direct, written: 0, buffer: None, finished: false })
    }

    /// Appends bytes of memory. Only to an object that was begun as a small one.
    pub fn append_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.written)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Appends bytes of `from`. All calls but the last append a multiple of 4 KiB.
    pub fn append(&mut self, from: &File, range: Range<u64>) -> io::Result<()> {
        let mut buffer = self.buffer.take().unwrap_or_else(|| Aligned::new(PIECE_BYTES));
        let mut at = range.start;
        while at < range.end {
            let length = (PIECE_BYTES as u64).min(range.end - at) as usize;
            from.read_exact_at(buffer.bytes_mut(length), at)?;
            if self.direct && !length.is_multiple_of(ALIGNMENT) {
                self.through_cache()?;
            }
            match self.append_bytes(buffer.bytes(length)) {
                Err(e) if self.direct && e.kind() == io::ErrorKind::InvalidInput => {
                    self.through_cache()?;
                    self.append_bytes(buffer.bytes(length))?;
                }
                written => written?,
            }
            at += length as u64;
        }
        self.buffer = Some(buffer);
        Ok(())
    }

    fn through_cache(&mut self) -> io::Result<()> {
        set_direct(&self.file, false)?;
        self.direct = false;
        Ok(())
    }

    /// Gives it its name, and makes both durable in its directory.
    pub fn finish(&mut self, naming: Naming) -> io::Result<()> {
        self.file.sync_all()?;
        let path = self.anchor.path(&self.key);
        match naming {
            Naming::Overwrite => std::fs::rename(&self.staged, &path)?,
            // Unlike a rename it fails when the name is taken, on every filesystem.
            Naming::Create => {
                std::fs::hard_link(&self.staged, &path)?;
                std::fs::remove_file(&self.staged)?;
            }
        }
        self.finished = true;
        self.anchor.sync_above(&self.key)
    }

    /// Below which it lies.
    pub fn anchor(&self) -> &Anchor {
        &self.anchor
    }

    /// Its name below the anchor.
    pub fn key(&self) -> &str {
        &self.key
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.finished
            && let Err(error) = std::fs::remove_file(&self.staged)
        {
            tracing::debug!(%error, key = %self.key, "an abandoned object stays unfinished");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(root: &Path, key: &str) -> Staged {
        Staged::begin(Anchor::open(root).unwrap(), key).unwrap()
    }

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
            let mut staged = begin(&root, &key);
            let middle = range.start + (length / 2 / ALIGNMENT * ALIGNMENT) as u64;
            staged.append(&source, range.start..middle).unwrap();
            staged.append(&source, middle..range.end).unwrap();
            assert!(!root.join(&key).exists());
            staged.finish(Naming::Overwrite).unwrap();
            assert_eq!(std::fs::read(root.join(&key)).unwrap(), bytes[at..at + length], "{length}");
        }
    }

    #[test]
    fn what_is_not_finished_leaves_nothing_and_a_file_that_ends_before_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        std::fs::write(&source, [7; 5000]).unwrap();
        let mut staged = begin(dir.path(), "a/b");
        let short = staged.append(&File::open(source).unwrap(), 0..5001).unwrap_err();
        assert_eq!(short.kind(), io::ErrorKind::UnexpectedEof);
        drop(staged);
        assert_eq!(std::fs::read_dir(dir.path().join("a")).unwrap().count(), 0);
    }

    #[test]
    fn a_name_that_is_taken_is_not_created_again_and_nothing_is_left_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        for (body, naming, taken) in [
            (b"first".as_slice(), Naming::Create, false),
            (b"second", Naming::Create, true),
            (b"third", Naming::Overwrite, false),
        ] {
            let anchor = Anchor::open(dir.path()).unwrap();
            let mut staged = Staged::begin_small(anchor, "a/b").unwrap();
            staged.append_bytes(body).unwrap();
            let done = staged.finish(naming);
            assert_eq!(done.is_err(), taken);
            if let Err(e) = done {
                assert_eq!(e.kind(), io::ErrorKind::AlreadyExists);
            }
        }
        assert_eq!(std::fs::read(dir.path().join("a/b")).unwrap(), b"third");
        assert_eq!(std::fs::read_dir(dir.path().join("a")).unwrap().count(), 1);
    }

    #[test]
    fn an_object_whose_store_was_moved_away_does_not_appear_under_the_old_name() {
        let dir = tempfile::tempdir().unwrap();
        let (root, away) = (dir.path().join("store"), dir.path().join("away"));
        std::fs::create_dir(&root).unwrap();
        let mut staged = begin(&root, "topics/a-0/x");
        std::fs::rename(&root, &away).unwrap();
        staged.finish(Naming::Overwrite).unwrap();
        assert!(!root.exists() && away.join("topics/a-0/x").exists());
        assert!(staged.anchor().check_name().is_err());
    }
}
