//! `Store`: the operations on objects. Each has a deadline, is counted, and can be made to fail.
//!
//! Invariant: `Ok` from a read means exactly the bytes asked for; `NotFound` means that the store
//! answered and does not have the object; `Created` means that nobody had written the name before.

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt as _;
use object_store::path::Path;
use object_store::{
    GetOptions, GetRange, GetResult, ObjectMeta, ObjectStore, ObjectStoreExt as _, PutMode,
    PutOptions, PutPayload,
};

use crate::types::ObjectKey;

use super::backend::{self, Backend};
use super::counters::StoreCounters;
use super::directory::{Directory, blocking};
use super::error::{Op, StoreError, StoreErrorKind};
use super::faults::{Fault, FaultHook};
use super::staged::Naming;
use super::url::StoreUrl;

/// How the store is used.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Nobody else writes to this store: a put-if-absent that is not atomic will do.
    pub single_writer: bool,
    /// Deadline of a request without a body; bodies add time by their size.
    pub request_timeout_ms: u64,
    /// Deadline for a connection.
    pub connect_timeout_ms: u64,
    /// How often a request is repeated within its deadline.
    pub retries_max: usize,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            single_writer: false,
            request_timeout_ms: 20_000,
            connect_timeout_ms: 3_000,
            retries_max: 2,
        }
    }
}

/// Whether this call made the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutOutcome {
    /// It did.
    Created,
    /// It was there before, possibly by an earlier try of the same call: compare to be sure.
    Exists,
}

/// An object as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Its key.
    pub key: ObjectKey,
    /// Its length.
    pub size: u64,
    /// When it was written, milliseconds since the epoch.
    pub modified_ms: i64,
}

/// The slowest connection that a large body is given time for.
const FLOOR_BYTES_PER_MS: u64 = 128;
/// Objects per page of a listing, as all stores have it: for counting requests.
const LIST_PAGE: u64 = 1000;

/// What is known of put-if-absent with a single writer.
const UNKNOWN: u8 = 0;
const HONOURED: u8 = 1;
const IGNORED: u8 = 2;

/// A store. Clones share everything.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
    faults: Option<FaultHook>,
}

struct Inner {
    url: StoreUrl,
    options: StoreOptions,
    backend: Backend,
    counters: Arc<StoreCounters>,
    conditional: Arc<AtomicU8>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.inner.url)
    }
}

impl Store {
    /// Checks the configuration only; nothing is contacted, so the store may be away.
    pub fn open(url: &StoreUrl, options: StoreOptions) -> Result<Self, StoreError> {
        let backend = backend::open(url, &options)?;
        Ok(Self {
            inner: Arc::new(Inner {
                url: url.clone(),
                options,
                backend,
                counters: Arc::default(),
                conditional: Arc::new(AtomicU8::new(UNKNOWN)),
            }),
            faults: None,
        })
    }

    /// The same store with connections of its own, which work on the runtime that uses this one; counters
    /// are shared, and what is known of a directory.
    pub fn with_own_connections(&self) -> Result<Self, StoreError> {
        let inner = &self.inner;
        let opened = backend::open(&inner.url, &inner.options)?;
        let backend = Backend { directory: inner.backend.directory.clone(), ..opened };
        Ok(Self {
            inner: Arc::new(Inner {
                url: inner.url.clone(),
                options: inner.options.clone(),
                backend,
                counters: inner.counters.clone(),
                conditional: inner.conditional.clone(),
            }),
            faults: self.faults.clone(),
        })
    }

    /// For tests: the same store, with every request of this clone passing the hook.
    #[doc(hidden)]
    #[must_use]
    pub fn with_faults(&self, hook: FaultHook) -> Self {
        Self { inner: Arc::clone(&self.inner), faults: Some(hook) }
    }

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> &StoreUrl {
        &self.inner.url
    }

    /// Whether nobody else writes to it.
    #[must_use]
    pub fn single_writer(&self) -> bool {
        self.inner.options.single_writer
    }

    /// What it was asked for.
    #[must_use]
    pub fn counters(&self) -> &StoreCounters {
        &self.inner.counters
    }

    /// The whole object. `TooLarge` beyond `max_bytes`, before anything is read.
    pub async fn get(&self, key: &ObjectKey, max_bytes: u64) -> Result<Bytes, StoreError> {
        let path = self.path(Op::Get, key.as_str())?;
        self.run(Op::Get, key, max_bytes, async {
            let result = self.backend().get(&path).await.map_err(map(Op::Get, key))?;
            let size = result.meta.size;
            if size > max_bytes {
                let why = format!("it has {size} bytes, at most {max_bytes} are expected");
                return Err(StoreError::new(StoreErrorKind::TooLarge, Op::Get, key.as_str(), &why));
            }
            self.collect(key, result, 0..size).await
        })
        .await
    }

    /// Exactly the bytes of `range`, or `Short` when the object ends before.
    pub async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> Result<Bytes, StoreError> {
        let length = range.end.saturating_sub(range.start);
        if length == 0 {
            return Ok(Bytes::new());
        }
        let path = self.path(Op::Get, key.as_str())?;
        self.run(Op::Get, key, length, async {
            let options = GetOptions::new().with_range(Some(GetRange::Bounded(range.clone())));
            let result =
                self.backend().get_opts(&path, options).await.map_err(map(Op::Get, key))?;
            self.collect(key, result, range).await
        })
        .await
    }

    async fn collect(
        &self,
        key: &ObjectKey,
        result: GetResult,
        wanted: Range<u64>,
    ) -> Result<Bytes, StoreError> {
        self.check_range(key, &result, &wanted)?;
        let bytes = result.bytes().await.map_err(map(Op::Get, key))?;
        if bytes.len() as u64 != wanted.end - wanted.start {
            return Err(short(key, &wanted, bytes.len() as u64));
        }
        self.inner.counters.bytes_down.add(bytes.len() as u64);
        Ok(bytes)
    }

    pub(super) fn check_range(
        &self,
        key: &ObjectKey,
        result: &GetResult,
        wanted: &Range<u64>,
    ) -> Result<(), StoreError> {
        if result.range == *wanted {
            return Ok(());
        }
        if result.range.start != wanted.start {
            // A store that took no notice of the range, this time: it may the next.
            let why = format!("bytes {wanted:?} asked for, {:?} received", result.range);
            let kind = StoreErrorKind::Unavailable;
            return Err(StoreError::new(kind, Op::Get, key.as_str(), &why));
        }
        Err(short(key, wanted, result.range.end.saturating_sub(result.range.start)))
    }

    /// Writes the object unless the name is taken.
    pub async fn put_if_absent(
        &self,
        key: &ObjectKey,
        bytes: Bytes,
    ) -> Result<PutOutcome, StoreError> {
        let known = self.inner.conditional.load(Ordering::Relaxed);
        if self.single_writer() && known != HONOURED {
            match self.head(key).await {
                Ok(_) => return Ok(PutOutcome::Exists),
                Err(e) if e.kind == StoreErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
            if known == IGNORED {
                return self.put_overwrite(key, bytes).await.map(|()| PutOutcome::Created);
            }
        }
        match self.put(key, bytes.clone(), PutMode::Create).await {
            Ok(()) => Ok(PutOutcome::Created),
            Err(e) if e.kind == StoreErrorKind::AlreadyExists => Ok(PutOutcome::Exists),
            Err(e) if e.kind == StoreErrorKind::Unsupported && self.single_writer() => {
                self.conditional_puts_work(false);
                self.put_overwrite(key, bytes).await.map(|()| PutOutcome::Created)
            }
            Err(e) => Err(e),
        }
    }

    /// What the probe learned: whether the store refuses to create a name twice.
    pub(super) fn conditional_puts_work(&self, honoured: bool) {
        let state = if honoured { HONOURED } else { IGNORED };
        self.inner.conditional.store(state, Ordering::Relaxed);
    }

    /// Writes the object whatever was there. For hints, and for names that nobody else uses.
    pub async fn put_overwrite(&self, key: &ObjectKey, bytes: Bytes) -> Result<(), StoreError> {
        self.put(key, bytes, PutMode::Overwrite).await
    }

    async fn put(&self, key: &ObjectKey, bytes: Bytes, mode: PutMode) -> Result<(), StoreError> {
        let path = self.path(Op::Put, key.as_str())?;
        let length = bytes.len() as u64;
        self.run(Op::Put, key, length, async {
            if let Some(directory) = self.directory() {
                return put_into(directory, key, bytes, &mode).await;
            }
            let options = PutOptions::from(mode);
            let payload = PutPayload::from(bytes);
            self.backend().put_opts(&path, payload, options).await.map_err(map(Op::Put, key))?;
            Ok(())
        })
        .await?;
        self.inner.counters.bytes_up.add(length);
        Ok(())
    }

    /// Length and time of the object.
    pub async fn head(&self, key: &ObjectKey) -> Result<ObjectInfo, StoreError> {
        let path = self.path(Op::Head, key.as_str())?;
        self.run(Op::Head, key, 0, async {
            let meta = self.backend().head(&path).await.map_err(map(Op::Head, key))?;
            Ok(ObjectInfo {
                key: key.clone(),
                size: meta.size,
                modified_ms: meta.last_modified.timestamp_millis(),
            })
        })
        .await
    }

    /// All objects below the directory `prefix`, in the order of their keys. `TooLarge` when there
    /// are more than `max_objects`.
    pub async fn list(
        &self,
        prefix: &str,
        max_objects: usize,
    ) -> Result<Vec<ObjectInfo>, StoreError> {
        let key = ObjectKey(prefix.to_owned());
        let path = self.path(Op::List, prefix)?;
        let mut found: Vec<ObjectInfo> = Vec::new();
        // Time for one request per page.
        let pages = (max_objects as u64).div_ceil(LIST_PAGE).min(1000);
        let grace = pages.saturating_mul(500).saturating_mul(FLOOR_BYTES_PER_MS);
        self.run(Op::List, &key, grace, async {
            let mut stream = self.backend().list(Some(&path));
            while let Some(meta) = stream.try_next().await.map_err(map(Op::List, &key))? {
                if found.len() >= max_objects {
                    let why = format!("more than {max_objects} objects");
                    return Err(StoreError::new(StoreErrorKind::TooLarge, Op::List, prefix, &why));
                }
                found.extend(self.info(meta));
            }
            Ok(())
        })
        .await?;
        self.inner.counters.request(Op::List, found.len() as u64 / LIST_PAGE);
        found.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }

    fn info(&self, meta: ObjectMeta) -> Option<ObjectInfo> {
        let name = meta.location.as_ref();
        let prefix = &self.inner.backend.prefix;
        let key = match prefix.is_empty() {
            true => name,
            false => name.strip_prefix(prefix.as_str())?.strip_prefix('/')?,
        };
        let modified_ms = meta.last_modified.timestamp_millis();
        Some(ObjectInfo { key: ObjectKey(key.to_owned()), size: meta.size, modified_ms })
    }

    /// Removes the object; that it was not there is no error.
    pub async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        let path = self.path(Op::Delete, key.as_str())?;
        let result = self
            .run(Op::Delete, key, 0, async {
                self.backend().delete(&path).await.map_err(map(Op::Delete, key))
            })
            .await;
        match result {
            Err(e) if e.kind == StoreErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    pub(super) fn backend(&self) -> &dyn ObjectStore {
        self.inner.backend.store.as_ref()
    }

    pub(super) fn directory(&self) -> Option<&Arc<Directory>> {
        self.inner.backend.directory.as_ref()
    }

    /// The deadline of a request that moves `bytes`.
    pub(super) fn deadline(&self, bytes: u64) -> Duration {
        let by_size = bytes / FLOOR_BYTES_PER_MS;
        Duration::from_millis(self.inner.options.request_timeout_ms.saturating_add(by_size))
    }

    pub(super) fn path(&self, op: Op, key: &str) -> Result<Path, StoreError> {
        let prefix = &self.inner.backend.prefix;
        let whole = if prefix.is_empty() { key.to_owned() } else { format!("{prefix}/{key}") };
        Path::parse(&whole).map_err(|e| {
            StoreError::new(StoreErrorKind::Invalid, op, key, &format!("not a legal key: {e}"))
        })
    }

    /// Carries out one request: the faults of a test, the deadline, the directory's presence, the
    /// counters. `bytes` only lengthens the deadline.
    pub(super) async fn run<T>(
        &self,
        op: Op,
        key: &ObjectKey,
        bytes: u64,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        self.inner.counters.request(op, 1);
        let deadline = self.deadline(bytes);
        let attempt = self.guarded(op, key, work);
        let result = tokio::time::timeout(deadline, attempt).await.unwrap_or_else(|_| {
            let why = format!("no answer within {} ms", deadline.as_millis());
            Err(StoreError::new(StoreErrorKind::Unavailable, op, key.as_str(), &why))
        });
        match &result {
            Err(error) if !error.is_answer() => self.inner.counters.failed(error),
            _ => self.inner.counters.answered(),
        }
        result
    }

    async fn guarded<T>(
        &self,
        op: Op,
        key: &ObjectKey,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let fault = self.faults.as_ref().map_or(Fault::Pass, |hook| hook(op, key));
        let failed = |kind| StoreError::new(kind, op, key.as_str(), "failed by a test");
        match fault {
            Fault::Fail(kind) => return Err(failed(kind)),
            Fault::Hang => std::future::pending().await,
            Fault::Pass | Fault::LoseReply(_) => {}
        }
        if let Some(directory) = self.directory() {
            directory.check(op, key.as_str()).await?;
        }
        let result = work.await;
        let absent = result.as_ref().err().is_some_and(|e| e.kind == StoreErrorKind::NotFound);
        if let Some(directory) = self.directory().filter(|_| absent || op == Op::List) {
            directory.check(op, key.as_str()).await?;
        }
        match fault {
            Fault::LoseReply(kind) => Err(failed(kind)),
            _ => result,
        }
    }
}

async fn put_into(
    directory: &Arc<Directory>,
    key: &ObjectKey,
    bytes: Bytes,
    mode: &PutMode,
) -> Result<(), StoreError> {
    let naming = if *mode == PutMode::Create { Naming::Create } else { Naming::Overwrite };
    let (directory, name) = (Arc::clone(directory), key.as_str().to_owned());
    in_directory(key, move || directory.put(&name, &bytes, naming)).await
}

/// Runs blocking work on a store's directory.
pub(super) async fn in_directory<T: Send + 'static>(
    key: &ObjectKey,
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let stopped = |e: std::io::Error| {
        StoreError::new(StoreErrorKind::Unavailable, Op::Put, key.as_str(), &e.to_string())
    };
    blocking(move || Ok(work())).await.map_err(stopped)?
}

pub(super) fn map(op: Op, key: &ObjectKey) -> impl Fn(object_store::Error) -> StoreError + '_ {
    move |error| StoreError::from_backend(op, key.as_str(), &error)
}

fn short(key: &ObjectKey, wanted: &Range<u64>, got: u64) -> StoreError {
    let why = format!("bytes {} to {} asked for, {got} received", wanted.start, wanted.end);
    StoreError::new(StoreErrorKind::Short, Op::Get, key.as_str(), &why)
}
