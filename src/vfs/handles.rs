//! Open files: reads and writes through a descriptor, whichever tier the bytes are in.
//!
//! A read of local bytes fills the caller's buffer at once. One that may need the store is handed back
//! as a future, so it holds no thread of the kernel's queue while it waits.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use parking_lot::{Mutex, RwLock};

use super::archive::ArchiveFile;
use super::local::{AskedMode, Caller, Listing, read_full, strip_set_id};
use super::nodes::Node;
use super::{Later, Vfs, VfsError, Wait, cleaner, followers, inflight, patience};
use crate::catalog::{LogFile, PagedOpen, Piece};
use crate::local::{Extent, Stub};
use crate::read::{ObjectSource, ReadHint, ReadStreams};
use crate::store::names as objects;

type Result<T> = std::result::Result<T, VfsError>;

/// An open file or directory.
pub enum Handle {
    /// An ordinary local file.
    Plain(Arc<Node>, Arc<File>),
    /// A `.log`.
    Log(Arc<Node>, Arc<LogFile>, Reading),
    /// A listing, as it was when it was last read from its beginning.
    Dir(Mutex<Arc<Listing>>),
    /// A file of the archive or of Everlog's own.
    Archive(ArchiveFile),
}

/// What an open `.log` has beside its file.
pub struct Reading {
    streams: Arc<ReadStreams>,
    _paged: Option<PagedOpen>,
}

/// How the kernel shall treat an open file.
#[derive(Clone, Debug)]
pub enum OpenAs {
    /// Reads and writes go to this local file without the daemon, if the kernel can.
    Passthrough(Arc<File>),
    /// Of the archive: reads go to this whole local file without the daemon, if there is one, the kernel can and
    /// nobody has it open otherwise; else each comes to the daemon.
    Archived(Option<Arc<File>>),
    /// Through the page cache, which stays valid over opens.
    CachedKeep,
    /// Through the page cache.
    Cached,
    /// Each read and write comes to the daemon.
    Direct,
}

/// A new descriptor.
#[derive(Clone, Debug)]
pub struct Opened {
    /// Its number.
    pub fh: u64,
    /// How to treat it.
    pub open_as: OpenAs,
}

/// The outcome of a read.
pub enum ReadReply {
    /// So many bytes are in the caller's buffer.
    Filled(usize),
    /// Here they are.
    Bytes(Bytes),
    /// They will come.
    Later(Later),
}

/// All open descriptors.
#[derive(Default)]
pub(super) struct Handles {
    open: RwLock<HashMap<u64, Arc<Handle>>>,
    last: AtomicU64,
}

impl Handles {
    pub fn insert(&self, handle: Handle) -> u64 {
        let fh = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.open.write().insert(fh, Arc::new(handle));
        fh
    }

    pub fn get(&self, fh: u64) -> Result<Arc<Handle>> {
        self.open.read().get(&fh).cloned().ok_or(VfsError::BadHandle)
    }
}

impl Vfs {
    /// Creates or opens a regular file of the log dir.
    pub fn create(
        &self,
        parent: u64,
        name: &std::ffi::OsStr,
        asked: AskedMode,
        exclusive: bool,
        caller: Caller,
    ) -> Result<(super::Attr, Opened)> {
        let (node, attr, file) =
            self.tree(parent)?.create(parent, name, asked, exclusive, caller)?;
        Ok((attr, self.opened(node, file)))
    }

    /// Opens a regular file of the log dir.
    pub fn open_local(&self, ino: u64, write: bool) -> Result<Opened> {
        let (node, file) = self.tree(ino)?.open(ino, write)?;
        Ok(self.opened(node, file))
    }

    fn opened(&self, node: Arc<Node>, file: Option<Arc<File>>) -> Opened {
        let (handle, open_as) = match (node.log(), file) {
            (_, Some(file)) => (Handle::Plain(node, file.clone()), OpenAs::Passthrough(file)),
            (Some(log), None) => {
                let (open_as, paged) = match self.cleaner_waits_in(&log) {
                    true => (OpenAs::Direct, None),
                    false => (OpenAs::CachedKeep, Some(PagedOpen::new(&log))),
                };
                let streams = Arc::new(followers::in_log_dir(&log));
                (Handle::Log(node, log, Reading { streams, _paged: paged }), open_as)
            }
            (None, None) => (Handle::Dir(Mutex::default()), OpenAs::Direct),
        };
        Opened { fh: self.handles.insert(handle), open_as }
    }

    /// Whether a read of this file may wait without a limit: it must not hold pages meanwhile that others
    /// want. Not what is appended to: readers beside an appender are right through the page cache only.
    fn cleaner_waits_in(&self, log: &LogFile) -> bool {
        let Some(local) = self.local.as_ref().filter(|_| self.config.evict_compacted) else {
            return false;
        };
        let (dir, name) = log.place();
        local.catalog.is_compacted(&dir) && !dir.is_active(&name)
    }

    /// Closes a descriptor of any kind.
    pub fn release(&self, fh: u64) {
        let handle = self.handles.open.write().remove(&fh);
        let Some(local) = &self.local else { return };
        match handle.as_deref() {
            Some(Handle::Plain(node, _)) => local.release(node, None),
            Some(Handle::Log(node, log, _)) => local.release(node, Some(log)),
            Some(Handle::Dir(_) | Handle::Archive(_)) | None => {}
        }
    }

    /// Reads up to `buffer.len()` bytes; fewer only at the end of the file.
    pub fn read(
        self: &Arc<Self>,
        fh: u64,
        offset: u64,
        buffer: &mut [u8],
        caller: Caller,
    ) -> Result<ReadReply> {
        let handle = self.handles.get(fh)?;
        match &*handle {
            Handle::Plain(_, file) => Ok(ReadReply::Filled(read_full(file, offset, buffer)?)),
            Handle::Log(_, log, Reading { streams, .. }) => match log.hot_file() {
                Some(file) => Ok(ReadReply::Filled(read_full(&file, offset, buffer)?)),
                None => self.read_cold(log, streams, offset, buffer, caller),
            },
            Handle::Archive(ArchiveFile::Log(source, streams)) => {
                if let Some(n) = self.reader.try_cached_into(source, streams, offset, buffer) {
                    return Ok(ReadReply::Filled(n));
                }
                let (vfs, handle, len) = (self.clone(), handle.clone(), buffer.len());
                let what = source.log_key.as_str().to_owned();
                let range = Some((offset, len));
                let archived = Some((source.log_key.clone(), offset..offset + len as u64));
                let wait = Wait { operation: "read", what, range, archived, tid: caller.tid };
                let ticket = self.inflight.enter(wait);
                Ok(ReadReply::Later(Box::pin(async move {
                    let _ticket = ticket;
                    match &*handle {
                        Handle::Archive(file) => vfs.archive.read(file, offset, len).await,
                        _ => Err(VfsError::BadHandle),
                    }
                })))
            }
            Handle::Archive(ArchiveFile::Small(bytes)) => {
                let start = offset.min(bytes.len() as u64) as usize;
                let end = start.saturating_add(buffer.len()).min(bytes.len());
                Ok(ReadReply::Bytes(bytes.slice(start..end)))
            }
            Handle::Dir(_) => Err(rustix::io::Errno::ISDIR.into()),
        }
    }

    fn read_cold(
        self: &Arc<Self>,
        log: &Arc<LogFile>,
        streams: &Arc<ReadStreams>,
        offset: u64,
        buffer: &mut [u8],
        caller: Caller,
    ) -> Result<ReadReply> {
        let pieces = log.plan_read(offset, buffer.len())?;
        if let [Piece::Archived(stub, extent, at, len)] = pieces.as_slice() {
            let source = log_source(stub, extent);
            let buffer = &mut buffer[..*len];
            if let Some(n) = self.reader.try_cached_into(&source, streams, *at, buffer) {
                return Ok(ReadReply::Filled(n));
            }
        }
        if offset == 0 {
            self.expect_beside(log, streams, caller);
        }
        let (vfs, streams) = (self.clone(), streams.clone());
        let label = log.label();
        let range = Some((offset, buffer.len()));
        let archived = pieces.iter().find_map(|piece| match piece {
            Piece::Archived(stub, extent, at, len) => {
                Some((log_source(stub, extent).log_key, *at..*at + *len as u64))
            }
            Piece::Local(..) => None,
        });
        let what = label.clone();
        let wait = Wait { operation: "read", what, range, archived, tid: caller.tid };
        let ticket = self.inflight.enter(wait);
        Ok(ReadReply::Later(Box::pin(async move {
            let _ticket = ticket;
            let read = read_pieces(&vfs, &streams, &pieces, caller).await;
            read.inspect_err(
                |e| tracing::warn!(file = label, offset, error = %e, "a cold read failed"),
            )
        })))
    }

    /// A consumer that begins at a partition's beginning wants that of the topic's others, too.
    fn expect_beside(&self, log: &LogFile, streams: &ReadStreams, caller: Caller) {
        let Some(local) = &self.local else { return };
        if !serves_clients(caller) {
            return;
        }
        for source in followers::beside(&local.catalog, log) {
            self.reader.prefetch_start(&source, streams);
        }
    }

    /// Writes all of `data`. With `strip` the writer has no right to keep set-id bits: they go before.
    pub fn write(&self, fh: u64, offset: u64, data: &[u8], strip: bool) -> Result<()> {
        if !self.config.write_delay.is_zero() {
            std::thread::sleep(self.config.write_delay);
        }
        match &*self.handles.get(fh)? {
            Handle::Plain(_, file) => {
                if strip {
                    strip_set_id(file)?;
                }
                Ok(file.write_all_at(data, offset)?)
            }
            Handle::Log(_, log, _) => {
                if strip {
                    log.strip_set_id()?;
                }
                self.write_log(log, offset, data)
            }
            Handle::Archive(_) => Err(VfsError::ReadOnly),
            Handle::Dir(_) => Err(VfsError::BadHandle),
        }
    }

    fn write_log(&self, log: &LogFile, offset: u64, data: &[u8]) -> Result<()> {
        let local = self.local.as_ref().ok_or(VfsError::ReadOnly)?;
        let bytes = data.len() as u64;
        Ok(local.tier.write_for_broker(bytes, || log.write_at(offset, data))?)
    }

    /// Makes an open file durable. May take as long as the disk does: not on a thread of the queue.
    pub fn fsync(&self, fh: u64, data_only: bool) -> Result<()> {
        match &*self.handles.get(fh)? {
            Handle::Plain(_, file) if data_only => Ok(file.sync_data()?),
            Handle::Plain(_, file) => Ok(file.sync_all()?),
            Handle::Log(_, log, _) => Ok(log.sync(data_only)?),
            Handle::Archive(_) | Handle::Dir(_) => Ok(()),
        }
    }

    /// The next data (or hole) at or after `offset`.
    pub fn seek(&self, fh: u64, offset: u64, hole: bool) -> Result<u64> {
        match &*self.handles.get(fh)? {
            Handle::Plain(node, file) => self.tree(node.ino)?.seek(node, Some(file), offset, hole),
            Handle::Log(node, ..) => self.tree(node.ino)?.seek(node, None, offset, hole),
            Handle::Archive(file) => {
                // All of it is data.
                let size = match file {
                    ArchiveFile::Log(source, _) => source.size_bytes,
                    ArchiveFile::Small(bytes) => bytes.len() as u64,
                };
                if offset >= size {
                    return Err(rustix::io::Errno::NXIO.into());
                }
                Ok(if hole { size } else { offset })
            }
            Handle::Dir(_) => Err(VfsError::Unsupported),
        }
    }

    /// Reserves, frees or zeroes `(offset, length)`, in the modes of `fallocate`.
    pub fn fallocate(&self, fh: u64, mode: u32, range: (u64, u64), caller: Caller) -> Result<()> {
        match &*self.handles.get(fh)? {
            Handle::Plain(node, file) => {
                self.tree(node.ino)?.fallocate((node, Some(file)), mode, range, caller)
            }
            Handle::Log(node, ..) => {
                self.tree(node.ino)?.fallocate((node, None), mode, range, caller)
            }
            Handle::Archive(_) | Handle::Dir(_) => Err(VfsError::ReadOnly),
        }
    }
}

/// The object that an extent of a stub lies in.
#[must_use]
pub fn log_source(stub: &Stub, extent: &Extent) -> ObjectSource {
    let chain = stub.chain();
    ObjectSource {
        log_key: objects::log_key(&chain, extent.base_offset, &extent.upload_id),
        size_bytes: extent.object_size_bytes,
        aux_key: objects::aux_key(&chain, extent.base_offset, &extent.upload_id),
        aux_size_bytes: extent.aux_size_bytes,
        aux_sha256: extent.aux_sha256,
    }
}

async fn read_pieces(
    vfs: &Vfs,
    streams: &ReadStreams,
    pieces: &[Piece],
    caller: Caller,
) -> Result<Bytes> {
    let mut out = BytesMut::new();
    for piece in pieces {
        let bytes = match piece {
            Piece::Archived(stub, extent, at, len) => {
                let source = log_source(stub, extent);
                read_archived(vfs, streams, &source, (*at, *len), caller).await?
            }
            Piece::Local(file, at, len) => {
                let mut buffer = vec![0u8; *len];
                let n = read_full(file, *at, &mut buffer)?;
                buffer.truncate(n);
                if n < *len {
                    // Truncated meanwhile: the file ends here, whatever was planned behind.
                    out.extend_from_slice(&buffer);
                    return Ok(out.freeze());
                }
                buffer.into()
            }
        };
        if pieces.len() == 1 {
            return Ok(bytes);
        }
        out.extend_from_slice(&bytes);
    }
    Ok(out.freeze())
}

/// Whether it is one of a broker's threads that serve its clients.
fn serves_clients(caller: Caller) -> bool {
    inflight::thread_name(caller.tid).is_some_and(|name| patience::serves_clients(&name))
}

/// A log cleaner is answered when the bytes are there; a thread that serves clients does not wait for long.
async fn read_archived(
    vfs: &Vfs,
    streams: &ReadStreams,
    source: &ObjectSource,
    (at, len): (u64, usize),
    caller: Caller,
) -> Result<Bytes> {
    let hint = ReadHint { broker: true };
    let reader = &vfs.reader;
    if serves_clients(caller) {
        let given = || reader.counters().fetched_bytes.load(Ordering::Relaxed);
        let limit = vfs.patience.limit(given());
        let read = tokio::time::timeout(limit, reader.read(source, streams, at, len, hint)).await;
        let Ok(read) = read else {
            vfs.patience.gave_up(given());
            reader.counters().let_go.fetch_add(1, Ordering::Relaxed);
            return Err(VfsError::Deadline { deadline_ms: limit.as_millis() as u64 });
        };
        return Ok(read?);
    }
    let mut failures = 0;
    loop {
        match reader.read(source, streams, at, len, hint).await {
            Err(error) if cleaner::must_wait(caller.tid) => {
                cleaner::pause(source, &error, failures).await;
                failures += 1;
            }
            other => return Ok(other?),
        }
    }
}
