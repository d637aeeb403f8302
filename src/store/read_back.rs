//! Reads what was just written as the store has it, to be compared before the only other copy may go.
//!
//! Of a directory the disk is asked and not the page cache, which would only show what was put into it; through one small
//! buffer, since what is read here nobody wants to keep. A filesystem that cannot be read so is asked to drop its pages first.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use futures::stream::TryStreamExt as _;
use object_store::{GetOptions, GetResult, GetResultPayload};

use crate::types::ObjectKey;

use super::aligned::{Aligned, set_direct};
use super::client::{Store, map};
use super::directory::blocking;
use super::error::{Op, StoreError, StoreErrorKind};
use super::stream::forget_pages;

/// Read at a time; a multiple of what every disk takes.
const PIECE_BYTES: u64 = 256 * 1024;
/// Read between two looks at the deadline.
const TURN_BYTES: u64 = 8 * 1024 * 1024;

/// A file of the store, read from its disk.
struct FromDisk {
    file: File,
    size: u64,
    at: u64,
    buffer: Aligned,
    direct: bool,
}

impl Store {
    /// Gives all bytes of an object to `feed`, in order, in pieces of any size, with `into` to remember them by; returns that.
    /// `feed` runs where it may take its time.
    pub async fn read_back<T: Send + 'static>(
        &self,
        key: &ObjectKey,
        mut into: T,
        feed: fn(&mut T, &[u8]),
    ) -> Result<T, StoreError> {
        let path = self.path(Op::Get, key.as_str())?;
        let result = self
            .run(Op::Get, key, 0, async {
                let options = GetOptions::new();
                self.backend().get_opts(&path, options).await.map_err(map(Op::Get, key))
            })
            .await?;
        let size = result.meta.size;
        self.check_range(key, &result, &(0..size))?;
        let GetResult { payload, .. } = result;
        match payload {
            GetResultPayload::File(file, _) => self.read_disk(key, file, size, into, feed).await,
            GetResultPayload::Stream(stream) => {
                let for_errors = key.clone();
                let pieces = stream.map_err(move |e| map(Op::Get, &for_errors)(e));
                let mut pieces = self.exactly(Box::pin(pieces), key.clone(), size);
                while let Some(piece) = pieces.try_next().await? {
                    feed(&mut into, &piece);
                }
                Ok(into)
            }
        }
    }

    async fn read_disk<T: Send + 'static>(
        &self,
        key: &ObjectKey,
        file: File,
        size: u64,
        mut into: T,
        feed: fn(&mut T, &[u8]),
    ) -> Result<T, StoreError> {
        let mut disk = FromDisk::new(file, size);
        while disk.at < size {
            let before = disk.at;
            let turn = move || {
                disk.turn(|piece| feed(&mut into, piece))?;
                Ok((disk, into))
            };
            let deadline = self.deadline(TURN_BYTES);
            let done = match tokio::time::timeout(deadline, blocking(turn)).await {
                Ok(done) => done.map_err(|e| failed(key, &e)),
                Err(_) => {
                    let why = "the store stalls";
                    Err(StoreError::new(StoreErrorKind::Unavailable, Op::Get, key.as_str(), why))
                }
            };
            (disk, into) = done.inspect_err(|error| self.counters().failed(error))?;
            self.counters().bytes_down.add(disk.at - before);
        }
        Ok(into)
    }
}

impl FromDisk {
    fn new(file: File, size: u64) -> Self {
        let direct = set_direct(&file, true).is_ok();
        let buffer = Aligned::new(PIECE_BYTES as usize);
        Self { file, size, at: 0, buffer, direct }
    }

    /// Reads a few pieces.
    fn turn(&mut self, mut feed: impl FnMut(&[u8])) -> io::Result<()> {
        let end = self.size.min(self.at + TURN_BYTES);
        while self.at < end {
            if !self.direct {
                forget_pages(&self.file, self.at..end);
            }
            let length = PIECE_BYTES.min(self.size - self.at);
            match self.piece(length) {
                // A filesystem may refuse this only now.
                Err(e) if self.direct && e.kind() == io::ErrorKind::InvalidInput => {
                    set_direct(&self.file, false)?;
                    self.direct = false;
                    continue;
                }
                read => read?,
            }
            feed(self.buffer.bytes(length as usize));
            self.at += length;
            if !self.direct {
                forget_pages(&self.file, self.at - length..self.at);
            }
        }
        Ok(())
    }

    /// `length` bytes into the buffer. A whole piece is asked for, also at the end.
    fn piece(&mut self, length: u64) -> io::Result<()> {
        let mut have = 0;
        while have < length {
            // What a disk gives in part ends at a multiple of its blocks, or at the file's end.
            let rest = &mut self.buffer.bytes_mut(PIECE_BYTES as usize)[have as usize..];
            match self.file.read_at(rest, self.at + have) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => have += read as u64,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

fn failed(key: &ObjectKey, error: &io::Error) -> StoreError {
    let kind = match error.kind() {
        io::ErrorKind::UnexpectedEof => StoreErrorKind::Short,
        _ => StoreErrorKind::Unavailable,
    };
    StoreError::new(kind, Op::Get, key.as_str(), &error.to_string())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::store::StoreOptions;

    fn gather(all: &mut Vec<u8>, piece: &[u8]) {
        all.extend_from_slice(piece);
    }

    #[tokio::test]
    async fn an_object_of_any_length_is_read_back_as_the_disk_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let memory = format!("memory://back-{:016x}", crate::clock::random_u64());
        for url in [format!("file://{}", dir.path().display()), memory] {
            let store = Store::open(&url.parse().unwrap(), StoreOptions::default()).unwrap();
            for length in [0, 1, 4096, PIECE_BYTES + 5, TURN_BYTES, 2 * TURN_BYTES + 4097] {
                let key = ObjectKey(format!("a/{length}"));
                let bytes: Vec<u8> = (0..length).map(|i| (i * 31 % 251) as u8).collect();
                store.put_overwrite(&key, Bytes::from(bytes.clone())).await.unwrap();
                let found = store.read_back(&key, Vec::new(), gather).await.unwrap();
                assert!(found == bytes, "{url}: {length}");
            }
            let absent = store.read_back(&ObjectKey("b".into()), Vec::new(), gather).await;
            assert_eq!(absent.unwrap_err().kind, StoreErrorKind::NotFound);
        }
    }

    #[test]
    fn a_file_that_became_shorter_is_an_error_with_and_without_the_page_cache() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, vec![7; 10_000]).unwrap();
        for direct in [true, false] {
            let mut disk = FromDisk::new(File::open(&path).unwrap(), 10_001);
            if !direct {
                set_direct(&disk.file, false).unwrap();
                disk.direct = false;
            }
            let mut seen = 0;
            let error = disk.turn(|piece| seen += piece.len()).unwrap_err();
            assert_eq!((error.kind(), seen), (io::ErrorKind::UnexpectedEof, 0));
        }
    }
}
