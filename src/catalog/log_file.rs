//! One `.log` of the log dir through all its tiers: where its bytes are now, and the moves between.
//!
//! A broker holds the file open for the segment's life, so the bytes' place belongs to the file,
//! not to a descriptor: reads and writes ask here each time. Two locks: `place` serialises what
//! changes names on disk (rename, unlink, evict); `state` guards the in-memory truth and is never held
//! across a sync of an eviction, so a read does not wait behind one. Lock order: `place`, then `state`.

mod archived;
mod attrs;
mod counted;
mod paged;
mod space;

pub use paged::PagedOpen;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

pub use archived::Archived;
pub use attrs::LogStat;
use counted::Counted;
pub use counted::counted_changes;
use parking_lot::{Mutex, MutexGuard, RwLock};

use super::attr::{AttrChange, TimeChange};
use super::partition::PartitionDir;
use super::steps::{
    copy_gaps, create_rw, cut_hot, open_rw, pieces, remove_overlay, write_hot, write_overlay,
};
use crate::failpoint;
use crate::local::xattrs::Holder;
use crate::local::{Extent, Stub, Xattrs, durable, stub};

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

#[derive(Debug)]
struct State {
    dir: Arc<PartitionDir>,
    name: String,
    content: Content,
    opens: u32,
    linked: bool,
    /// A failure left a stub beside the hot file: it goes before the name does, or it would stand for it.
    stub_beside: bool,
    /// The stub on disk lacks the newest cut: written before the next change is answered.
    stub_behind: bool,
}

/// A `.log` (or `.log.deleted`, `.log.cleaned`, `.log.swap`) of a partition directory.
#[derive(Debug)]
pub struct LogFile {
    /// Unique in this process.
    pub id: u64,
    place: Mutex<()>,
    state: RwLock<State>,
    mutations: AtomicU64,
    /// Somebody keeps a sum that contains its size.
    counted: Counted,
    paged_opens: AtomicU32,
    /// It may have set-id bits; false only when it is known to have none.
    set_id: AtomicBool,
    /// The archived content that equals this file's, if it has been archived.
    archived: RwLock<Option<Arc<Archived>>>,
}

pub(super) fn broken(why: &str) -> io::Error {
    tracing::debug!(why, "refused a use of a file with a damaged stub");
    io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error())
}

impl LogFile {
    pub(super) fn new(id: u64, dir: Arc<PartitionDir>, name: String, content: Content) -> Self {
        let state = State {
            dir,
            name,
            content,
            opens: 0,
            linked: true,
            stub_beside: false,
            stub_behind: false,
        };
        Self {
            id,
            place: Mutex::new(()),
            state: RwLock::new(state),
            mutations: AtomicU64::new(0),
            counted: Counted::default(),
            paged_opens: AtomicU32::new(0),
            set_id: AtomicBool::new(true),
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

    /// Notes one more open descriptor. Opens the local file if there is one and none was open. On a disk that has become
    /// read-only it can be read all the same, and `write` fails.
    pub fn open(&self, write: bool) -> io::Result<()> {
        let mut s = self.state.write();
        match &s.content {
            Content::Hot(None) if !s.linked => return Err(rustix::io::Errno::STALE.into()),
            Content::Hot(None) => match s.dir.with_path(&s.name, open_rw) {
                Ok(file) => s.content = Content::Hot(Some(Arc::new(file))),
                // Each read and write then opens it for itself.
                Err(e) if e.kind() == io::ErrorKind::ReadOnlyFilesystem && !write => {}
                Err(e) => return Err(e),
            },
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
                    return self.mutating(|| write_hot(file, data, offset));
                }
                Content::Overlaid(stub, file) if !s.stub_behind && !stub.touches(offset, end) => {
                    return self.mutating(|| write_overlay(file, data, offset));
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
                return self.mutating(|| write_hot(&file, data, offset));
            }
            Content::Cold(stub) => new_overlay(&s, stub)?,
            Content::Overlaid(stub, file) => (stub.as_ref().clone(), file.clone()),
            Content::Broken(why) => return Err(broken(why)),
        };
        let overlay = stub.overlay.clone();
        let written = self.mutating(|| {
            write_overlay(&file, data, offset)?;
            stub.cut(offset, end);
            set_overlaid(&mut s, stub, file)
        });
        written.inspect_err(|_| drop_unused(&s, overlay.as_deref()))
    }

    /// Sets the size. Of a cold file only local metadata changes.
    pub fn truncate(&self, size_bytes: u64) -> io::Result<()> {
        let place = self.place.lock();
        let mut s = self.state.write();
        let (mut stub, file) = match &s.content {
            Content::Hot(Some(file)) => return self.mutating(|| cut_hot(file, size_bytes)),
            Content::Hot(None) => {
                let file = s.dir.with_path(&s.name, open_rw)?;
                return self.mutating(|| cut_hot(&file, size_bytes));
            }
            Content::Cold(stub) if stub.size_bytes == size_bytes => {
                drop(s);
                drop(place);
                let now = AttrChange { mtime: Some(TimeChange::Now), ..AttrChange::default() };
                return self.set_attr(&now);
            }
            Content::Cold(stub) => new_overlay(&s, stub)?,
            Content::Overlaid(stub, file) => (stub.as_ref().clone(), file.clone()),
            Content::Broken(why) => return Err(broken(why)),
        };
        // The overlay's length is the file's: should we die before the stub is cut, the next mount cuts it.
        let overlay = stub.overlay.clone();
        let cut = self.mutating(|| {
            failpoint::disk("overlay.truncate")?;
            file.set_len(size_bytes)?;
            stub.cut(size_bytes, u64::MAX);
            stub.size_bytes = size_bytes;
            set_overlaid(&mut s, stub, file)
        });
        cut.inspect_err(|_| drop_unused(&s, overlay.as_deref()))
    }

    /// Counts a change before it begins and after it ended, so that nobody who looks at the bytes in
    /// between can take what he saw for the file's content.
    fn mutating<T>(&self, change: impl FnOnce() -> T) -> T {
        self.mutations.fetch_add(1, Ordering::AcqRel);
        let done = change();
        self.mutations.fetch_add(1, Ordering::SeqCst);
        self.counted.changed();
        done
    }

    /// Makes local bytes durable. Of a cold file there is nothing to do.
    pub fn sync(&self, data_only: bool) -> io::Result<()> {
        self.bring_stub_up()?;
        let file = match self.content() {
            Content::Hot(Some(f)) | Content::Overlaid(_, f) => f,
            Content::Hot(None) => Arc::new(File::open(self.path())?),
            Content::Cold(_) => return Ok(()),
            Content::Broken(why) => return Err(broken(&why)),
        };
        if data_only { file.sync_data() } else { file.sync_all() }
    }

    /// Writes the stub that a failure kept from being written.
    fn bring_stub_up(&self) -> io::Result<()> {
        if !self.state.read().stub_behind {
            return Ok(());
        }
        let _place = self.place.lock();
        let mut s = self.state.write();
        match s.content.clone() {
            Content::Overlaid(stub, file) if s.stub_behind => {
                set_overlaid(&mut s, stub.as_ref().clone(), file)
            }
            _ => Ok(()),
        }
    }

    /// Takes away the stub beside a file that stayed hot. The caller holds `place`.
    fn drop_stub_beside(&self, path: &Path) -> io::Result<()> {
        durable::remove_if_exists(&stub::path_of(path))?;
        self.state.write().stub_beside = false;
        Ok(())
    }

    /// Replaces a damaged stub by one that the local manifest proves.
    pub fn repair(&self, stub: Stub) -> io::Result<()> {
        let _place = self.place.lock();
        let (dir, name) = self.place();
        failpoint::disk("recover.stub.mend")?;
        stub.write(&dir.pin()?.path(&name))?;
        let mut s = self.state.write();
        s.content = Content::Cold(Arc::new(stub));
        s.dir.touch();
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
        let same_size = stat.size_bytes == archived.stub.size_bytes;
        if stat.nlink != 1 || !same_size || !stat.fits_a_stub() {
            return Ok(false);
        }
        // `place` keeps the name; the directory may be renamed while this waits for the disk.
        let (dir, name) = self.place();
        let pinned = dir.pin()?;
        let path = pinned.path(&name);
        let Some(xattrs) = Xattrs::read(Holder::Path(&path))? else { return Ok(false) };
        let mut stub = Stub { xattrs, ..archived.stub.clone() };
        stat.give_to(&mut stub);
        failpoint::disk("evict.stub")?;
        self.state.write().stub_beside = true;
        if let Err(e) = stub.write(&path) {
            self.drop_stub_beside(&path)?;
            return Err(e);
        }
        failpoint::step("evict.swap");
        let before = {
            let mut s = self.state.write();
            if self.mutations() != archived.mutations {
                drop(s);
                self.drop_stub_beside(&path)?;
                return Ok(false);
            }
            s.stub_beside = false;
            s.dir.touch();
            std::mem::replace(&mut s.content, Content::Cold(Arc::new(stub)))
        };
        let removed = failpoint::disk("evict.unlink").and_then(|()| std::fs::remove_file(&path));
        if let Err(e) = removed {
            // The file is there still, and where both are it wins.
            let mut s = self.state.write();
            (s.content, s.stub_beside) = (before, true);
            s.dir.touch();
            drop(s);
            self.drop_stub_beside(&path)?;
            return Err(e);
        }
        failpoint::step("evict.done");
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
        failpoint::disk("hydrate.file")?;
        let file = create_rw(&staged)?;
        let size = local.as_ref().map_or(Ok(stub.size_bytes), |f| f.metadata().map(|m| m.len()))?;
        file.set_len(size)?;
        let filled =
            fill(&file, &stub).and_then(|()| copy_gaps(&stub, local.as_deref(), &file, size));
        // Made durable here, where nobody waits for it.
        let durable = filled.and_then(|()| failpoint::disk("hydrate.sync"));
        let durable = durable.and_then(|()| file.sync_all());
        let done = durable.and_then(|()| self.install(&staged, file, &stub, before));
        if !matches!(done, Ok(true)) {
            durable::remove_if_exists(&staged)?;
        }
        done
    }

    fn install(&self, staged: &Path, file: File, stub: &Stub, before: u64) -> io::Result<bool> {
        let _place = self.place.lock();
        let stat = self.stat()?;
        // What it stands for now: `place` keeps mode, owner and attributes as they are.
        let xattrs = match self.content() {
            Content::Cold(stub) | Content::Overlaid(stub, _) => stub.xattrs.clone(),
            Content::Hot(_) | Content::Broken(_) => return Ok(false),
        };
        let owner = AttrChange { uid: Some(stat.uid), gid: Some(stat.gid), ..Default::default() };
        owner.apply_to_file(&file)?;
        xattrs.write(Holder::File(&file))?;
        let at = |(secs, nanos)| Some(TimeChange::At(secs, nanos));
        let change = AttrChange {
            mode: Some(stat.mode),
            atime: at(stat.atime),
            mtime: at(stat.mtime),
            ..Default::default()
        };
        failpoint::disk("hydrate.attributes")?;
        change.apply_to_file(&file)?;
        file.sync_all()?;
        let mut s = self.state.write();
        if self.mutations() != before || !s.linked {
            return Ok(false);
        }
        let pinned = s.dir.pin()?;
        let path = pinned.path(&s.name);
        failpoint::disk("hydrate.rename")?;
        std::fs::rename(staged, &path)?;
        s.content = Content::Hot((s.opens > 0).then(|| Arc::new(file)));
        s.dir.touch();
        (s.stub_beside, s.stub_behind) = (true, false);
        drop(s);
        failpoint::disk("hydrate.names.sync")?;
        durable::sync_dir(&pinned.path(""))?;
        failpoint::disk("hydrate.stub")?;
        self.drop_stub_beside(&path)?;
        // The file is whole already; what nobody names any more goes at the next mount at the latest.
        let removed = failpoint::disk("hydrate.overlay")
            .and_then(|()| remove_overlay(&self.overlay_dir(), stub));
        note_leftover(&path, removed);
        failpoint::step("hydrate.done");
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
            Content::Hot(_) => {
                s.leave_no_stub(&from)?;
                failpoint::disk("log.rename")?;
                std::fs::rename(&from, &to)?;
                failpoint::step("log.renamed");
            }
            Content::Cold(_) | Content::Overlaid(..) | Content::Broken(_) => {
                // A file under the new name would win over the stub, so it goes first.
                failpoint::disk("cold.rename.over")?;
                durable::remove_if_exists(&to)?;
                failpoint::disk("cold.rename")?;
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
            Content::Hot(_) => {
                s.leave_no_stub(&path)?;
                failpoint::disk("log.unlink")?;
                std::fs::remove_file(&path)?;
            }
            Content::Cold(stub) | Content::Overlaid(stub, _) => {
                failpoint::disk("cold.unlink")?;
                std::fs::remove_file(stub::path_of(&path))?;
                // The name is gone; what nobody names any more goes at the next mount at the latest.
                if stub.overlay.is_some() {
                    // A power loss could bring the stub back, and without its overlay it is broken.
                    let removed = failpoint::disk("cold.unlink.sync")
                        .and_then(|()| s.sync_names())
                        .and_then(|()| failpoint::disk("cold.unlink.overlay"))
                        .and_then(|()| remove_overlay(s.dir.overlay_dir(), stub));
                    note_leftover(&path, removed);
                }
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
            Content::Hot(_) => {
                s.leave_no_stub(&path)?;
                failpoint::disk("spool.move")?;
                std::fs::rename(&path, target)?;
                failpoint::step("spool.moved");
            }
            _ => return Err(io::Error::other("only a hot file has bytes to keep")),
        }
        s.linked = false;
        Ok(())
    }

    /// `by` took its name on disk: what stood for it goes, and with a cold `by` its stub is there already.
    /// Cannot fail: the name has changed hands, and a stub that stays is noted as beside `by`.
    pub(super) fn replaced_by(&self, by: &LogFile) {
        let mut s = self.state.write();
        let path = s.dir.path().join(&s.name);
        let has_stub = s.stub_beside || !matches!(s.content, Content::Hot(_));
        if has_stub {
            // Should a power loss undo the rename and not what follows, the name would be nobody's.
            let durable = failpoint::disk("replaced.sync").and_then(|()| s.sync_names());
            let kept = durable.is_err();
            note_leftover(&path, durable);
            if by.is_hot() {
                by.state.write().stub_beside = kept || s.drop_replaced_stub(&path);
            }
            if let (false, Content::Cold(stub) | Content::Overlaid(stub, _)) = (kept, &s.content) {
                let removed = failpoint::disk("replaced.overlay")
                    .and_then(|()| remove_overlay(s.dir.overlay_dir(), stub));
                note_leftover(&path, removed);
            }
        }
        s.linked = false;
    }
}

impl State {
    /// Makes the names in its directory durable.
    fn sync_names(&self) -> io::Result<()> {
        durable::sync_dir(&self.dir.pin()?.path(""))
    }

    /// Removes the stub beside the file that took the name. True: it is there still.
    fn drop_replaced_stub(&self, path: &Path) -> bool {
        let removed = failpoint::disk("replaced.stub")
            .and_then(|()| durable::remove_if_exists(&stub::path_of(path)));
        let stays = removed.is_err();
        note_leftover(path, removed);
        stays
    }

    /// Before the hot file's name goes: a stub that a failure left beside it would stand for it from then on.
    fn leave_no_stub(&mut self, path: &Path) -> io::Result<()> {
        if self.stub_beside {
            durable::remove_if_exists(&stub::path_of(path))?;
            self.stub_beside = false;
        }
        Ok(())
    }
}

fn note_leftover(path: &Path, removed: io::Result<()>) {
    if let Err(error) = removed {
        tracing::warn!(file = %path.display(), %error, "what stood for a removed file stays until the next mount");
    }
}

/// An overlay of the file's size, not yet named by any stub.
fn new_overlay(s: &State, stub: &Stub) -> io::Result<(Stub, Arc<File>)> {
    let id = format!("{:016x}", crate::clock::random_u64());
    failpoint::disk("overlay.file")?;
    let path = s.dir.overlay_dir().join(&id);
    let file = create_rw(&path)?;
    let sized = failpoint::disk("overlay.size").and_then(|()| file.set_len(stub.size_bytes));
    if let Err(e) = sized {
        durable::remove_if_exists(&path)?;
        return Err(e);
    }
    let mut stub = stub.clone();
    stub.overlay = Some(id);
    if !s.linked {
        // For those who have it open: what was deleted leaves nothing behind.
        remove_overlay(s.dir.overlay_dir(), &stub)?;
    }
    Ok((stub, Arc::new(file)))
}

/// An overlay that no stub came to name: it takes no space.
fn drop_unused(s: &State, overlay: Option<&str>) {
    if let (Content::Cold(_), Some(id)) = (&s.content, overlay) {
        let path = s.dir.overlay_dir().join(id);
        note_leftover(&path, durable::remove_if_exists(&path));
    }
}

/// Writes the stub beside its name; a name that was deleted must not come back by it.
fn write_stub(s: &State, stub: &Stub) -> io::Result<()> {
    if !s.linked {
        return Ok(());
    }
    let dir = s.dir.pin()?;
    stub.write(&dir.path(&s.name))
}

/// From now on the overlay answers for what the stub gives up. An error says that this is not durable yet.
fn set_overlaid(s: &mut State, stub: Stub, file: Arc<File>) -> io::Result<()> {
    let written = write_overlaid(s, &stub, &file);
    failpoint::step("overlay.done");
    // Also when it could not be written: the bytes that it gives up are no longer the file's.
    s.stub_behind = written.is_err();
    s.content = Content::Overlaid(Arc::new(stub), file);
    written
}

/// The overlay's bytes are made durable before a stub says that they answer for a range.
fn write_overlaid(s: &State, stub: &Stub, file: &File) -> io::Result<()> {
    failpoint::disk("overlay.sync")?;
    file.sync_all()?;
    failpoint::disk("overlay.names.sync")?;
    durable::sync_dir(s.dir.overlay_dir())?;
    failpoint::disk("overlay.stub")?;
    write_stub(s, stub)
}
