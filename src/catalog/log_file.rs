//! One `.log` of the log dir through all its tiers: where its bytes are now, and the moves between.
//!
//! A broker holds the file open for the segment's life, so the bytes' place belongs to the file,
//! not to a descriptor: reads and writes ask here each time. Two locks: `place` serialises what
//! changes names on disk (rename, unlink, evict); `state` guards the in-memory truth and is never held
//! across a sync of an eviction, so a read does not wait behind one. Lock order: `place`, then `state`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard, RwLock};

use super::attr::AttrChange;
use super::partition::PartitionDir;
use crate::local::{Extent, Stub, durable, stub};

/// Where the bytes are.
#[derive(Clone, Debug)]
pub enum Content {
    /// On local disk; the descriptor is there while anybody has the file open.
    Hot(Option<Arc<File>>),
    /// In the archive.
    Cold(Arc<Stub>),
    /// Archived ranges, and a local file for all others.
    Overlaid(Arc<Stub>, Arc<File>),
    /// Its stub cannot be believed: every use fails with EIO.
    Broken(Arc<str>),
}

/// One contiguous part of a read.
#[derive(Clone, Debug)]
pub enum Piece {
    /// `len` bytes at `offset` of a local file.
    Local(Arc<File>, u64, usize),
    /// `len` bytes at `offset` of the extent's object.
    Archived(Arc<Stub>, Extent, u64, usize),
}

/// What `stat` tells, from local state alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogStat {
    /// Exact size.
    pub size_bytes: u64,
    /// Modification time, nanoseconds.
    pub mtime_ns: u64,
    /// Access time, nanoseconds.
    pub atime_ns: u64,
    /// Change time, nanoseconds.
    pub ctime_ns: u64,
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

#[derive(Debug)]
struct State {
    dir: Arc<PartitionDir>,
    name: String,
    content: Content,
    opens: u32,
    linked: bool,
}

/// A `.log` (or `.log.deleted`, `.log.cleaned`, `.log.swap`) of a partition directory.
#[derive(Debug)]
pub struct LogFile {
    /// Unique in this process.
    pub id: u64,
    place: Mutex<()>,
    state: RwLock<State>,
    mutations: AtomicU64,
    /// The archived content that equals this file's, if it has been archived.
    archived: RwLock<Option<Arc<Archived>>>,
}

/// Proof that this content is in the archive, made durable locally before it is set here.
#[derive(Clone, Debug)]
pub struct Archived {
    /// Of the archived content: what an eviction writes.
    pub stub: Stub,
    /// The file's count of mutations when its bytes were read.
    pub mutations: u64,
    /// Bytes were compared in this process; else only size and time were, and eviction compares first.
    pub compared: bool,
}

fn broken(why: &str) -> io::Error {
    tracing::debug!(why, "refused a use of a file with a damaged stub");
    io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error())
}

fn nanos(secs: i64, nsec: i64) -> u64 {
    (secs.max(0) as u64).saturating_mul(1_000_000_000).saturating_add(nsec.max(0) as u64)
}

impl LogStat {
    fn of_metadata(m: &std::fs::Metadata) -> Self {
        Self {
            size_bytes: m.len(),
            mtime_ns: nanos(m.mtime(), m.mtime_nsec()),
            atime_ns: nanos(m.atime(), m.atime_nsec()),
            ctime_ns: nanos(m.ctime(), m.ctime_nsec()),
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
            atime_ns: s.mtime_ns,
            ctime_ns: s.mtime_ns,
            blocks: u64::from(s.size_bytes > 0),
            mode: s.mode,
            uid: s.uid,
            gid: s.gid,
            nlink: 1,
        }
    }
}

impl LogFile {
    pub(super) fn new(id: u64, dir: Arc<PartitionDir>, name: String, content: Content) -> Self {
        Self {
            id,
            place: Mutex::new(()),
            state: RwLock::new(State { dir, name, content, opens: 0, linked: true }),
            mutations: AtomicU64::new(0),
            archived: RwLock::new(None),
        }
    }

    /// Its directory and name now.
    #[must_use]
    pub fn place(&self) -> (Arc<PartitionDir>, String) {
        let s = self.state.read();
        (s.dir.clone(), s.name.clone())
    }

    /// Its path in `hot/` now.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        let s = self.state.read();
        s.dir.path().join(&s.name)
    }

    /// For messages: directory and name.
    #[must_use]
    pub fn label(&self) -> String {
        let s = self.state.read();
        format!("{}/{}", s.dir.name(), s.name)
    }

    /// Where its bytes are now.
    #[must_use]
    pub fn content(&self) -> Content {
        self.state.read().content.clone()
    }

    /// All bytes are on local disk under its own name.
    #[must_use]
    pub fn is_hot(&self) -> bool {
        matches!(self.state.read().content, Content::Hot(_))
    }

    /// Whether the name still exists.
    #[must_use]
    pub fn is_linked(&self) -> bool {
        self.state.read().linked
    }

    /// How often its bytes were changed in this process.
    #[must_use]
    pub fn mutations(&self) -> u64 {
        self.mutations.load(Ordering::Acquire)
    }

    /// The archived content that still equals this file's.
    #[must_use]
    pub fn archived(&self) -> Option<Arc<Archived>> {
        self.archived.read().clone().filter(|a| a.mutations == self.mutations())
    }

    /// Notes that `archived` is durable in the archive and locally.
    pub fn set_archived(&self, archived: Archived) {
        *self.archived.write() = Some(Arc::new(archived));
    }

    /// Forgets that it was archived: a comparison found other bytes.
    pub fn forget_archived(&self) {
        *self.archived.write() = None;
    }

    /// What `stat` tells. Local disk only.
    pub fn stat(&self) -> io::Result<LogStat> {
        let s = self.state.read();
        match &s.content {
            Content::Hot(Some(file)) => Ok(LogStat::of_metadata(&file.metadata()?)),
            Content::Hot(None) => {
                let metadata = s.dir.with_path(&s.name, |path| std::fs::symlink_metadata(path))?;
                Ok(LogStat::of_metadata(&metadata))
            }
            Content::Cold(stub) => Ok(LogStat::of_stub(stub)),
            Content::Overlaid(stub, file) => {
                let m = file.metadata()?;
                let mut stat = LogStat::of_stub(stub);
                stat.size_bytes = m.len();
                stat.mtime_ns = nanos(m.mtime(), m.mtime_nsec());
                stat.blocks = m.blocks().max(u64::from(m.len() > 0));
                Ok(stat)
            }
            Content::Broken(why) => Err(broken(why)),
        }
    }

    /// Notes one more open descriptor. Opens the local file if there is one and none was open.
    pub fn open(&self) -> io::Result<()> {
        let mut s = self.state.write();
        match &s.content {
            Content::Hot(None) if !s.linked => return Err(rustix::io::Errno::STALE.into()),
            Content::Hot(None) => {
                let file = s.dir.with_path(&s.name, open_rw)?;
                s.content = Content::Hot(Some(Arc::new(file)));
            }
            Content::Broken(why) => return Err(broken(why)),
            Content::Hot(Some(_)) | Content::Cold(_) | Content::Overlaid(..) => {}
        }
        s.opens += 1;
        Ok(())
    }

    /// Takes the descriptor that created the file as the open one.
    pub fn adopt(&self, file: File) {
        let mut s = self.state.write();
        s.opens += 1;
        if matches!(s.content, Content::Hot(None)) {
            s.content = Content::Hot(Some(Arc::new(file)));
        }
    }

    /// Notes one descriptor less.
    pub fn close(&self) {
        let mut s = self.state.write();
        s.opens = s.opens.saturating_sub(1);
        if s.opens == 0 && matches!(s.content, Content::Hot(_)) {
            s.content = Content::Hot(None);
        }
    }

    /// How many descriptors are open.
    #[must_use]
    pub fn opens(&self) -> u32 {
        self.state.read().opens
    }

    /// The local file, when all its bytes are there and it is open: the fast path of a read.
    #[must_use]
    pub fn hot_file(&self) -> Option<Arc<File>> {
        match &self.state.read().content {
            Content::Hot(file) => file.clone(),
            Content::Cold(_) | Content::Overlaid(..) | Content::Broken(_) => None,
        }
    }

    /// The pieces of `[offset, offset + len)`, cut at the end of the file; empty at or past it.
    pub fn plan_read(&self, offset: u64, len: usize) -> io::Result<Vec<Piece>> {
        let content = self.content();
        let (stub, local, size) = match content {
            Content::Hot(Some(file)) => return Ok(vec![Piece::Local(file, offset, len)]),
            Content::Hot(None) => {
                let file = Arc::new(File::open(self.path())?);
                return Ok(vec![Piece::Local(file, offset, len)]);
            }
            Content::Cold(stub) => {
                let size = stub.size_bytes;
                (stub, None, size)
            }
            Content::Overlaid(stub, file) => {
                let size = file.metadata()?.len();
                (stub, Some(file), size)
            }
            Content::Broken(why) => return Err(broken(&why)),
        };
        let end = offset.saturating_add(len as u64).min(size);
        pieces(&stub, local.as_ref(), offset, end)
    }

    /// Writes all of `data` at `offset`. A cold file gets a local overlay; the archive is not asked.
    pub fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let end = offset + data.len() as u64;
        {
            let s = self.state.read();
            match &s.content {
                Content::Hot(Some(file)) => {
                    return self.mutating(|| file.write_all_at(data, offset));
                }
                Content::Overlaid(stub, file) if !stub.touches(offset, end) => {
                    return self.mutating(|| file.write_all_at(data, offset));
                }
                Content::Broken(why) => return Err(broken(why)),
                Content::Hot(None) | Content::Cold(_) | Content::Overlaid(..) => {}
            }
        }
        let _place = self.place.lock();
        let mut s = self.state.write();
        let (mut stub, file) = match &s.content {
            Content::Hot(_) => {
                let file = s.dir.with_path(&s.name, open_rw)?;
                return self.mutating(|| file.write_all_at(data, offset));
            }
            Content::Cold(stub) => new_overlay(&s, stub)?,
            Content::Overlaid(stub, file) => (stub.as_ref().clone(), file.clone()),
            Content::Broken(why) => return Err(broken(why)),
        };
        self.mutating(|| {
            file.write_all_at(data, offset)?;
            stub.cut(offset, end);
            set_overlaid(&mut s, stub, file)
        })
    }

    /// Sets the size. Of a cold file only local metadata changes.
    pub fn truncate(&self, size_bytes: u64) -> io::Result<()> {
        let _place = self.place.lock();
        let mut s = self.state.write();
        let (mut stub, file) = match &s.content {
            Content::Hot(Some(file)) => return self.mutating(|| file.set_len(size_bytes)),
            Content::Hot(None) => {
                let file = s.dir.with_path(&s.name, open_rw)?;
                return self.mutating(|| file.set_len(size_bytes));
            }
            Content::Cold(stub) if stub.size_bytes == size_bytes => return Ok(()),
            Content::Cold(stub) => new_overlay(&s, stub)?,
            Content::Overlaid(stub, file) => (stub.as_ref().clone(), file.clone()),
            Content::Broken(why) => return Err(broken(why)),
        };
        // The overlay's length is the file's: should we die before the stub is cut, the next mount cuts it.
        self.mutating(|| {
            file.set_len(size_bytes)?;
            stub.cut(size_bytes, u64::MAX);
            stub.size_bytes = size_bytes;
            set_overlaid(&mut s, stub, file)
        })
    }

    /// Counts a change before it begins and after it ended, so that nobody who looks at the bytes in
    /// between can take what he saw for the file's content.
    fn mutating<T>(&self, change: impl FnOnce() -> T) -> T {
        self.mutations.fetch_add(1, Ordering::AcqRel);
        let done = change();
        self.mutations.fetch_add(1, Ordering::AcqRel);
        done
    }

    /// Makes local bytes durable. Of a cold file there is nothing to do.
    pub fn sync(&self, data_only: bool) -> io::Result<()> {
        let file = match self.content() {
            Content::Hot(Some(f)) | Content::Overlaid(_, f) => f,
            Content::Hot(None) => Arc::new(File::open(self.path())?),
            Content::Cold(_) => return Ok(()),
            Content::Broken(why) => return Err(broken(&why)),
        };
        if data_only { file.sync_data() } else { file.sync_all() }
    }

    /// Changes mode, owner or times of the file or of what stands for it.
    pub fn set_attr(&self, change: &AttrChange) -> io::Result<()> {
        if change.is_empty() {
            return Ok(());
        }
        let _place = self.place.lock();
        let mut s = self.state.write();
        let dir = s.dir.pin()?;
        let path = dir.path(&s.name);
        match &s.content {
            Content::Hot(Some(file)) => change.apply_to_file(file),
            Content::Hot(None) => change.apply_to_file(&File::open(&path)?),
            Content::Cold(stub) => {
                let mut stub = stub.as_ref().clone();
                change.apply_to_stub(&mut stub);
                stub.write(&path)?;
                s.content = Content::Cold(Arc::new(stub));
                Ok(())
            }
            Content::Overlaid(stub, file) => {
                let file = file.clone();
                let mut stub = stub.as_ref().clone();
                change.apply_to_stub(&mut stub);
                stub.write(&path)?;
                s.content = Content::Overlaid(Arc::new(stub), file.clone());
                change.apply_to_file(&file)
            }
            Content::Broken(why) => Err(broken(why)),
        }
    }

    /// Replaces a damaged stub by one that the local manifest proves.
    pub fn repair(&self, stub: Stub) -> io::Result<()> {
        let _place = self.place.lock();
        let (dir, name) = self.place();
        stub.write(&dir.pin()?.path(&name))?;
        self.state.write().content = Content::Cold(Arc::new(stub));
        Ok(())
    }

    /// Releases the local bytes of a file that is archived and unchanged since.
    ///
    /// `Ok(false)`: it was changed, renamed, hard-linked or opened otherwise meanwhile; nothing was released.
    pub fn evict(&self) -> io::Result<bool> {
        let _place = self.place.lock();
        let Some(archived) = self.archived() else { return Ok(false) };
        if !archived.compared || !self.is_linked() || !self.is_hot() {
            return Ok(false);
        }
        let stat = self.stat()?;
        if stat.nlink != 1 || stat.size_bytes != archived.stub.size_bytes {
            return Ok(false);
        }
        let mut stub = archived.stub.clone();
        (stub.mtime_ns, stub.mode, stub.uid, stub.gid) =
            (stat.mtime_ns, stat.mode, stat.uid, stat.gid);
        // `place` keeps the name; the directory may be renamed while this waits for the disk.
        let (dir, name) = self.place();
        let pinned = dir.pin()?;
        let path = pinned.path(&name);
        stub.write(&path)?;
        let before = {
            let mut s = self.state.write();
            if self.mutations() != archived.mutations {
                drop(s);
                durable::remove_if_exists(&stub::path_of(&path))?;
                return Ok(false);
            }
            std::mem::replace(&mut s.content, Content::Cold(Arc::new(stub)))
        };
        if let Err(e) = std::fs::remove_file(&path) {
            // The file is there still, and where both are it wins.
            self.state.write().content = before;
            durable::remove_if_exists(&stub::path_of(&path))?;
            return Err(e);
        }
        Ok(true)
    }

    /// Puts fetched bytes in the place of a cold or overlaid file. `fill` gets the new local file, of
    /// the right size, and must write every archived byte; it runs without any lock.
    pub fn hydrate(&self, fill: impl FnOnce(&File, &Stub) -> io::Result<()>) -> io::Result<bool> {
        let before = self.mutations();
        let (stub, local) = match self.content() {
            Content::Cold(stub) => (stub, None),
            Content::Overlaid(stub, file) => (stub, Some(file)),
            Content::Hot(_) | Content::Broken(_) => return Ok(false),
        };
        let staged = self.overlay_dir().join(format!("{:016x}.hydrate", self.id));
        let file = create_rw(&staged)?;
        let size = local.as_ref().map_or(Ok(stub.size_bytes), |f| f.metadata().map(|m| m.len()))?;
        file.set_len(size)?;
        let filled =
            fill(&file, &stub).and_then(|()| copy_gaps(&stub, local.as_deref(), &file, size));
        // Made durable here, where nobody waits for it.
        let durable = filled.and_then(|()| file.sync_all());
        let done = durable.and_then(|()| self.install(&staged, file, &stub, before));
        if !matches!(done, Ok(true)) {
            durable::remove_if_exists(&staged)?;
        }
        done
    }

    fn install(&self, staged: &Path, file: File, stub: &Stub, before: u64) -> io::Result<bool> {
        let _place = self.place.lock();
        let stat = self.stat()?;
        let change = AttrChange {
            mode: Some(stat.mode),
            uid: Some(stat.uid),
            gid: Some(stat.gid),
            mtime_ns: Some(stat.mtime_ns),
            atime_ns: None,
        };
        change.apply_to_file(&file)?;
        file.sync_all()?;
        let mut s = self.state.write();
        if self.mutations() != before || !s.linked {
            return Ok(false);
        }
        let pinned = s.dir.pin()?;
        let path = pinned.path(&s.name);
        std::fs::rename(staged, &path)?;
        s.content = Content::Hot((s.opens > 0).then(|| Arc::new(file)));
        drop(s);
        durable::sync_dir(&pinned.path(""))?;
        durable::remove_if_exists(&stub::path_of(&path))?;
        remove_overlay(&self.overlay_dir(), stub)?;
        Ok(true)
    }

    fn overlay_dir(&self) -> PathBuf {
        self.state.read().dir.overlay_dir().to_owned()
    }

    pub(super) fn lock_place(&self) -> MutexGuard<'_, ()> {
        self.place.lock()
    }

    /// Renames what is on disk and remembers it. The caller holds `lock_place` and the directories' maps.
    pub(super) fn move_to(&self, dir: &Arc<PartitionDir>, name: &str) -> io::Result<()> {
        let mut s = self.state.write();
        let (from, to) = (s.dir.path().join(&s.name), dir.path().join(name));
        match s.content {
            Content::Hot(_) => std::fs::rename(&from, &to)?,
            Content::Cold(_) | Content::Overlaid(..) | Content::Broken(_) => {
                // A file under the new name would win over the stub, so it goes first.
                durable::remove_if_exists(&to)?;
                std::fs::rename(stub::path_of(&from), stub::path_of(&to))?;
            }
        }
        s.dir = dir.clone();
        s.name = name.to_owned();
        Ok(())
    }

    /// Removes its name, bytes and stub. The caller holds `lock_place` and the directory's map.
    pub(super) fn remove(&self) -> io::Result<()> {
        let mut s = self.state.write();
        let path = s.dir.path().join(&s.name);
        match &s.content {
            Content::Hot(_) => std::fs::remove_file(&path)?,
            Content::Cold(stub) | Content::Overlaid(stub, _) => {
                std::fs::remove_file(stub::path_of(&path))?;
                remove_overlay(s.dir.overlay_dir(), stub)?;
            }
            Content::Broken(_) => std::fs::remove_file(stub::path_of(&path))?,
        }
        s.linked = false;
        Ok(())
    }

    /// Moves its bytes to `target` and removes its name. The caller holds as for [`Self::remove`].
    pub(super) fn remove_into(&self, target: &Path) -> io::Result<()> {
        let mut s = self.state.write();
        let path = s.dir.path().join(&s.name);
        match &s.content {
            Content::Hot(_) => std::fs::rename(&path, target)?,
            _ => return Err(io::Error::other("only a hot file has bytes to keep")),
        }
        s.linked = false;
        Ok(())
    }

    /// `by` took its name on disk: what stood for it goes, and with a cold `by` its stub is there already.
    pub(super) fn replaced_by(&self, by: &LogFile) -> io::Result<()> {
        let mut s = self.state.write();
        let path = s.dir.path().join(&s.name);
        if !matches!(s.content, Content::Hot(_)) && by.is_hot() {
            durable::remove_if_exists(&stub::path_of(&path))?;
        }
        if let Content::Cold(stub) | Content::Overlaid(stub, _) = &s.content {
            remove_overlay(s.dir.overlay_dir(), stub)?;
        }
        s.linked = false;
        Ok(())
    }
}

fn open_rw(path: &Path) -> io::Result<File> {
    match OpenOptions::new().read(true).write(true).open(path) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => File::open(path),
        other => other,
    }
}

fn create_rw(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)
}

/// An overlay of the file's size, not yet named by any stub.
fn new_overlay(s: &State, stub: &Stub) -> io::Result<(Stub, Arc<File>)> {
    let id = format!("{:016x}", crate::clock::random_u64());
    let file = create_rw(&s.dir.overlay_dir().join(&id))?;
    file.set_len(stub.size_bytes)?;
    let mut stub = stub.clone();
    stub.overlay = Some(id);
    Ok((stub, Arc::new(file)))
}

/// The overlay's bytes are made durable before a stub says that they answer for a range.
fn set_overlaid(s: &mut State, stub: Stub, file: Arc<File>) -> io::Result<()> {
    file.sync_all()?;
    durable::sync_dir(s.dir.overlay_dir())?;
    let written = s.dir.pin().and_then(|dir| stub.write(&dir.path(&s.name)));
    // Also when it could not be written: the bytes that it gives up are no longer the file's.
    s.content = Content::Overlaid(Arc::new(stub), file);
    written
}

fn remove_overlay(dir: &Path, stub: &Stub) -> io::Result<()> {
    stub.overlay.as_ref().map_or(Ok(()), |id| durable::remove_if_exists(&dir.join(id)))
}

fn pieces(
    stub: &Arc<Stub>,
    local: Option<&Arc<File>>,
    offset: u64,
    end: u64,
) -> io::Result<Vec<Piece>> {
    let mut out = Vec::new();
    let mut at = offset;
    while at < end {
        let next = stub.extents.iter().find(|e| e.file_end > at);
        let (piece, stop) = match next {
            Some(e) if e.file_start <= at => {
                let stop = e.file_end.min(end);
                let object_at = e.object_start + (at - e.file_start);
                (Piece::Archived(stub.clone(), e.clone(), object_at, (stop - at) as usize), stop)
            }
            other => {
                let stop = other.map_or(end, |e| e.file_start.min(end));
                let file = local.ok_or_else(|| broken("a range that neither tier holds"))?;
                (Piece::Local(file.clone(), at, (stop - at) as usize), stop)
            }
        };
        out.push(piece);
        at = stop;
    }
    Ok(out)
}

/// Copies what no extent covers from the overlay.
fn copy_gaps(stub: &Stub, local: Option<&File>, to: &File, size: u64) -> io::Result<()> {
    let Some(local) = local else { return Ok(()) };
    let mut buffer = vec![0u8; 1 << 20];
    let mut at = 0;
    while at < size {
        let covered = stub.extents.iter().find(|e| e.file_start <= at && at < e.file_end);
        if let Some(e) = covered {
            at = e.file_end;
            continue;
        }
        let next = stub.extents.iter().map(|e| e.file_start).find(|s| *s > at).unwrap_or(size);
        let len = buffer.len().min((next.min(size) - at) as usize);
        local.read_exact_at(&mut buffer[..len], at)?;
        to.write_all_at(&buffer[..len], at)?;
        at += len as u64;
    }
    Ok(())
}
