//! One suite that judges every kind of store: what holds for memory must hold for S3.
//!
//! Everything Everlog expects of a store is asked for here, on keys below `probe/`. It is part of the
//! library so that the tests of a real S3 server can run it as well.

use std::io::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt as _;

use crate::clock::random_u64;
use crate::types::ObjectKey;

use super::client::{PutOutcome, Store};
use super::error::{Op, StoreError, StoreErrorKind};
use super::rate::RateLimiter;

type Outcome = Result<(), StoreError>;

/// Two parts of 8 MiB and a short one.
const LARGE_BYTES: u64 = 17 * 1024 * 1024 + 11;

struct Judge<'a> {
    store: &'a Store,
    dir: String,
}

/// Runs the suite. The error names what the store does wrong.
pub async fn run(store: &Store) -> Outcome {
    let judge = Judge { store, dir: format!("probe/{:016x}", random_u64()) };
    judge.bytes_read_back().await?;
    judge.ranges_are_exact().await?;
    judge.absence_is_an_answer().await?;
    judge.names_are_created_once().await?;
    judge.overwriting_replaces().await?;
    judge.files_arrive_whole().await?;
    judge.listings_are_complete().await?;
    judge.deleting_removes().await
}

fn bytes_at(from: u64, to: u64) -> Bytes {
    (from..to).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect::<Vec<_>>().into()
}

impl Judge<'_> {
    fn key(&self, name: &str) -> ObjectKey {
        ObjectKey(format!("{}/{name}", self.dir))
    }

    fn holds(&self, what: &str, so: bool) -> Outcome {
        if so {
            return Ok(());
        }
        let why = format!("the store breaks a rule: {what}");
        Err(StoreError::new(StoreErrorKind::Unsupported, Op::Probe, self.dir.as_str(), &why))
    }

    fn fails<T>(&self, what: &str, kind: StoreErrorKind, result: Result<T, StoreError>) -> Outcome {
        match result {
            Err(error) if error.kind == kind => Ok(()),
            Err(error) => self.holds(&format!("{what}: expected {kind:?}, got {error}"), false),
            Ok(_) => self.holds(&format!("{what}: expected {kind:?}, it succeeded"), false),
        }
    }

    async fn bytes_read_back(&self) -> Outcome {
        // A name with everything that our names have in them.
        let key = self.key("a.b_c-0~AAAA/00000000000000000000.00ff.log");
        for length in [0, 1, 100_000] {
            let body = bytes_at(0, length);
            self.store.put_overwrite(&key, body.clone()).await?;
            self.holds(
                "a read returns what was written",
                self.store.get(&key, length).await? == body,
            )?;
            self.holds("the size", self.store.head(&key).await?.size == length)?;
            let parts: Vec<Bytes> = self.store.get_stream(&key, None).await?.try_collect().await?;
            self.holds("a stream returns what was written", parts.concat() == body)?;
        }
        self.fails("a limit", StoreErrorKind::TooLarge, self.store.get(&key, 99_999).await)
    }

    async fn ranges_are_exact(&self) -> Outcome {
        let key = self.key("ranges");
        self.store.put_overwrite(&key, bytes_at(0, 5000)).await?;
        for (from, to) in [(0, 1), (0, 5000), (4999, 5000), (1000, 3000)] {
            let found = self.store.get_range(&key, from..to).await?;
            self.holds("a range is exact", found == bytes_at(from, to))?;
            let stream = self.store.get_stream(&key, Some(from..to)).await?;
            let parts: Vec<Bytes> = stream.try_collect().await?;
            self.holds("a streamed range is exact", parts.concat() == bytes_at(from, to))?;
        }
        for (from, to) in [(4000, 5001), (5000, 5001), (9000, 9100)] {
            let what = "a range beyond the end";
            let read = self.store.get_range(&key, from..to).await;
            self.fails(what, StoreErrorKind::Short, read)?;
            let streamed = self.store.get_stream(&key, Some(from..to)).await.map(|_| ());
            self.fails(what, StoreErrorKind::Short, streamed)?;
        }
        self.holds("an empty range", self.store.get_range(&key, 7..7).await?.is_empty())
    }

    async fn absence_is_an_answer(&self) -> Outcome {
        let key = self.key("absent");
        let absent = StoreErrorKind::NotFound;
        self.fails("get", absent, self.store.get(&key, 10).await)?;
        self.fails("range", absent, self.store.get_range(&key, 0..10).await)?;
        self.fails("stream", absent, self.store.get_stream(&key, None).await.map(|_| ()))?;
        self.fails("head", absent, self.store.head(&key).await)?;
        self.store.delete(&key).await?;
        let found = self.store.list(&format!("{}/nothing", self.dir), 10).await?;
        self.holds("an empty listing", found.is_empty())
    }

    async fn names_are_created_once(&self) -> Outcome {
        let key = self.key("once");
        let first = self.store.put_if_absent(&key, Bytes::from_static(b"first")).await?;
        let second = self.store.put_if_absent(&key, Bytes::from_static(b"second")).await?;
        self.holds("the first creates", first == PutOutcome::Created)?;
        self.holds("the second does not", second == PutOutcome::Exists)?;
        self.holds("the first stays", self.store.get(&key, 10).await?.as_ref() == b"first")
    }

    async fn overwriting_replaces(&self) -> Outcome {
        let key = self.key("hint");
        for body in [b"long body".as_slice(), b"short"] {
            self.store.put_overwrite(&key, Bytes::copy_from_slice(body)).await?;
            let found = self.store.get(&key, 100).await?;
            self.holds("the newest bytes are read", found == body)?;
        }
        Ok(())
    }

    async fn files_arrive_whole(&self) -> Outcome {
        let key = self.key("file.log");
        let rate = RateLimiter::new(None);
        let local = |e: std::io::Error| {
            StoreError::new(StoreErrorKind::Invalid, Op::Put, key.as_str(), &e.to_string())
        };
        for length in [0, 100, LARGE_BYTES] {
            let mut file = temporary_file().map_err(local)?;
            file.write_all(&bytes_at(0, length)).map_err(local)?;
            let file = Arc::new(file);
            self.store.put_file(&key, &file, 0..length, &rate).await?;
            let found = self.store.get(&key, length).await?;
            self.holds("a file arrives whole", found == bytes_at(0, length))?;
            let cut = self.store.put_file(&self.key("cut"), &file, 0..length + 1, &rate).await;
            self.fails("a file that is shorter", StoreErrorKind::Short, cut)?;
            let absent = self.store.head(&self.key("cut")).await;
            self.fails("a failed upload leaves nothing", StoreErrorKind::NotFound, absent)?;
        }
        Ok(())
    }

    async fn listings_are_complete(&self) -> Outcome {
        let names: Vec<String> = (0..30).map(|i| format!("list/{}/{i:03}", i % 3)).collect();
        for name in &names {
            self.store.put_overwrite(&self.key(name), bytes_at(0, 7)).await?;
        }
        self.store.put_overwrite(&self.key("list-other"), bytes_at(0, 7)).await?;
        let found = self.store.list(&format!("{}/list", self.dir), 100).await?;
        let mut expected: Vec<ObjectKey> = names.iter().map(|name| self.key(name)).collect();
        expected.sort();
        let keys: Vec<ObjectKey> = found.iter().map(|info| info.key.clone()).collect();
        self.holds("all names below a directory, sorted, and no others", keys == expected)?;
        self.holds("sizes", found.iter().all(|info| info.size == 7))?;
        let limited = self.store.list(&format!("{}/list", self.dir), 29).await;
        self.fails("a limit on names", StoreErrorKind::TooLarge, limited)
    }

    async fn deleting_removes(&self) -> Outcome {
        for info in self.store.list(&self.dir, 1000).await? {
            self.store.delete(&info.key).await?;
            self.fails("deleted", StoreErrorKind::NotFound, self.store.get(&info.key, 10).await)?;
        }
        let left = self.store.list(&self.dir, 1000).await?;
        self.holds("nothing is left", left.is_empty())
    }
}

/// A readable and writable file without a name.
fn temporary_file() -> std::io::Result<std::fs::File> {
    let path = std::env::temp_dir().join(format!("everlog-{:016x}", random_u64()));
    let file = std::fs::File::options().read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}
