//! One method per request. Nothing is decided here.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::fs::File;
use std::future::Future;
use std::io;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BackingId, BsdFileFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use futures::FutureExt as _;
use tokio::runtime::Handle as Runtime;

use super::FuseConfig;
use super::convert::{caller, errno, file_attr, file_type, time_change, wait};
use super::passthrough::Passthrough;
use super::turns::Turns;
use crate::catalog::AttrChange;
use crate::vfs::{AskedMode, Attr, OpenAs, Opened, ReadReply, SetAttr, Vfs, VfsError};

/// Names do not change behind the kernel's back: the daemon is the only way to them.
const ENTRY_TTL: Duration = Duration::from_secs(3600);
/// Allocated blocks do, at an eviction.
const ATTR_TTL: Duration = Duration::from_secs(1);
/// The archive grows by itself.
const ARCHIVE_TTL: Duration = Duration::from_secs(1);

pub struct Adapter {
    vfs: Arc<Vfs>,
    runtime: Runtime,
    /// Only for syncs: the broker's must not queue behind work that may wait for the store.
    syncs: Runtime,
    passthrough: Arc<Passthrough>,
    want_passthrough: bool,
    turns: Turns,
}

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

type Result<T> = std::result::Result<T, VfsError>;

/// A panic in one request must not take the queue's thread with it.
fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    std::panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        tracing::error!("a request panicked; it was answered with EIO");
        Err(io::Error::other("panic").into())
    })
}

impl Adapter {
    pub fn new(vfs: Arc<Vfs>, runtime: Runtime, syncs: Runtime, config: &FuseConfig) -> Self {
        let want_passthrough = config.passthrough;
        let turns = Turns::new(config.threads);
        Self { vfs, runtime, syncs, passthrough: Arc::default(), want_passthrough, turns }
    }

    /// Runs what may wait for the store, then replies.
    fn later<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
        reply: impl FnOnce(Result<T>) + Send + 'static,
    ) {
        self.runtime.spawn(async move {
            let done = AssertUnwindSafe(work).catch_unwind().await;
            reply(done.unwrap_or_else(|_| Err(io::Error::other("panic").into())));
        });
    }

    fn fopen_flags(open_as: &OpenAs) -> FopenFlags {
        match open_as {
            OpenAs::Passthrough(_) | OpenAs::CachedKeep => FopenFlags::FOPEN_KEEP_CACHE,
            OpenAs::Cached => FopenFlags::empty(),
            OpenAs::Archived(_) | OpenAs::Direct => FopenFlags::FOPEN_DIRECT_IO,
        }
    }

    fn backing(
        passthrough: &Passthrough,
        ino: u64,
        opened: &Opened,
        register: impl FnOnce(&File) -> io::Result<BackingId>,
    ) -> Option<Arc<BackingId>> {
        match &opened.open_as {
            OpenAs::Passthrough(file) | OpenAs::Archived(Some(file)) => {
                passthrough.attach((ino, opened.fh), Some(file), register)
            }
            OpenAs::Archived(None) => passthrough.attach((ino, opened.fh), None, register),
            OpenAs::CachedKeep | OpenAs::Cached | OpenAs::Direct => None,
        }
    }

    fn reply_open(passthrough: &Passthrough, ino: u64, opened: Result<Opened>, reply: ReplyOpen) {
        match opened {
            Ok(opened) => {
                let fh = FileHandle(opened.fh);
                match Self::backing(passthrough, ino, &opened, |file| reply.open_backing(file)) {
                    Some(id) => reply.opened_passthrough(fh, FopenFlags::empty(), &id),
                    None => reply.opened(fh, Self::fopen_flags(&opened.open_as)),
                }
            }
            Err(e) => reply.error(errno(&e)),
        }
    }
}

fn reply_entry(ttl: Duration, entry: Result<Attr>, reply: ReplyEntry) {
    match entry {
        Ok(a) => reply.entry_with_ttls(&ttl, &ATTR_TTL, &file_attr(&a), Generation(0)),
        Err(e) => reply.error(errno(&e)),
    }
}

fn reply_attr(attr: Result<Attr>, reply: ReplyAttr) {
    match attr {
        Ok(a) => reply.attr(&ATTR_TTL, &file_attr(&a)),
        Err(e) => reply.error(errno(&e)),
    }
}

fn reply_empty(done: Result<()>, reply: ReplyEmpty) {
    match done {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(errno(&e)),
    }
}

/// A size of 0 asks how long it is.
fn reply_xattr(bytes: Result<Vec<u8>>, size: u32, reply: ReplyXattr) {
    match bytes {
        Ok(bytes) if size == 0 => reply.size(bytes.len() as u32),
        Ok(bytes) if bytes.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(bytes) => reply.data(&bytes),
        Err(e) => reply.error(errno(&e)),
    }
}

fn writes(flags: OpenFlags) -> bool {
    flags.acc_mode() != OpenAccMode::O_RDONLY
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let useful = [
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
            InitFlags::FUSE_ASYNC_DIO,
        ];
        for flag in useful {
            // One that the kernel lacks is done without.
            let _ = config.add_capabilities(flag);
        }
        if self.vfs.has_log_dir() {
            // Access lists are kept below and enforced by the kernel, which leaves the umask to us then. Set-id bits
            // are taken away here: else the kernel asks at each write for what a program may do (`security.capability`).
            let all = [
                InitFlags::FUSE_POSIX_ACL,
                InitFlags::FUSE_DONT_MASK,
                InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            ];
            for flag in all {
                let _ = config.add_capabilities(flag);
            }
        }
        let _ = config.set_max_write(1 << 20);
        let _ = config.set_max_background(256);
        let _ = config.set_congestion_threshold(192);
        if self.want_passthrough
            && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
            && config.set_max_stack_depth(1).is_ok()
        {
            self.passthrough.enable();
        }
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _turn = self.turns.take();
        if !self.vfs.is_remote(parent.0) {
            let entry = guarded(|| self.vfs.lookup_local(parent.0, name));
            return reply_entry(ENTRY_TTL, entry, reply);
        }
        let (vfs, name) = (self.vfs.clone(), name.to_owned());
        let wait = wait("lookup", self.vfs.label_in(parent.0, &name), req);
        let work = async move {
            vfs.within_deadline(parent.0, wait, vfs.lookup_remote(parent.0, &name)).await
        };
        self.later(work, |entry| reply_entry(ARCHIVE_TTL, entry, reply));
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.vfs.forget(ino.0, nlookup);
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let _turn = self.turns.take();
        if !self.vfs.is_remote(ino.0) {
            return reply_attr(guarded(|| self.vfs.tree(ino.0)?.getattr(ino.0)), reply);
        }
        let vfs = self.vfs.clone();
        let wait = wait("getattr", self.vfs.label(ino.0), req);
        let work = async move { vfs.within_deadline(ino.0, wait, vfs.getattr_remote(ino.0)).await };
        self.later(work, |a| reply_attr(a, reply));
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let _turn = self.turns.take();
        let attrs = AttrChange {
            mode: mode.map(|m| m & 0o7777),
            uid,
            gid,
            atime: atime.map(time_change),
            mtime: mtime.map(time_change),
        };
        let change = SetAttr { size_bytes: size, attrs };
        let changed = guarded(|| self.vfs.tree(ino.0)?.setattr(ino.0, &change, caller(req)));
        reply_attr(changed, reply);
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        let _turn = self.turns.take();
        use std::os::unix::ffi::OsStrExt as _;
        match guarded(|| self.vfs.tree(ino.0)?.readlink(ino.0)) {
            Ok(target) => reply.data(target.as_os_str().as_bytes()),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let _turn = self.turns.take();
        let asked = AskedMode { mode, umask };
        let made =
            guarded(|| self.vfs.tree(parent.0)?.mknod(parent.0, name, asked, rdev, caller(req)));
        reply_entry(ENTRY_TTL, made, reply);
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let _turn = self.turns.take();
        let asked = AskedMode { mode, umask };
        let made = guarded(|| self.vfs.tree(parent.0)?.mkdir(parent.0, name, asked, caller(req)));
        reply_entry(ENTRY_TTL, made, reply);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _turn = self.turns.take();
        reply_empty(guarded(|| self.vfs.tree(parent.0)?.unlink(parent.0, name)), reply);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _turn = self.turns.take();
        reply_empty(guarded(|| self.vfs.tree(parent.0)?.rmdir(parent.0, name)), reply);
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let _turn = self.turns.take();
        let made =
            guarded(|| self.vfs.tree(parent.0)?.symlink(parent.0, name, target, caller(req)));
        reply_entry(ENTRY_TTL, made, reply);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let _turn = self.turns.take();
        let no_replace = flags == RenameFlags::RENAME_NOREPLACE;
        let exchange = flags == RenameFlags::RENAME_EXCHANGE;
        if !(no_replace || exchange || flags.is_empty()) {
            return reply.error(Errno::EINVAL);
        }
        let done = guarded(|| {
            let tree = self.vfs.tree(parent.0)?;
            self.vfs.tree(newparent.0)?;
            let (from, to) = ((parent.0, name), (newparent.0, newname));
            if exchange { tree.exchange(from, to) } else { tree.rename(from, to, no_replace) }
        });
        reply_empty(done, reply);
    }

    fn link(
        &self,
        _req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        let _turn = self.turns.take();
        let made = guarded(|| {
            self.vfs.tree(newparent.0)?;
            self.vfs.tree(ino.0)?.link(ino.0, newparent.0, newname)
        });
        reply_entry(ENTRY_TTL, made, reply);
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let _turn = self.turns.take();
        let write = writes(flags);
        if !self.vfs.is_remote(ino.0) {
            let opened = guarded(|| self.vfs.open_local(ino.0, write));
            return Self::reply_open(&self.passthrough, ino.0, opened, reply);
        }
        let vfs = self.vfs.clone();
        let wait = wait("open", self.vfs.label(ino.0), req);
        let (passthrough, native) = (self.passthrough.clone(), self.passthrough.is_enabled());
        let work = async move {
            vfs.within_deadline(ino.0, wait, vfs.open_remote(ino.0, write, native)).await
        };
        self.later(work, move |opened| Self::reply_open(&passthrough, ino.0, opened, reply));
    }

    fn read(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let _turn = self.turns.take();
        BUFFER.with_borrow_mut(|buffer| {
            if buffer.len() < size as usize {
                buffer.resize(size as usize, 0);
            }
            let space = &mut buffer[..size as usize];
            match guarded(|| self.vfs.read(fh.0, offset, space, caller(req))) {
                Ok(ReadReply::Filled(n)) => reply.data(&buffer[..n]),
                Ok(ReadReply::Bytes(bytes)) => reply.data(&bytes),
                Ok(ReadReply::Later(work)) => self.later(work, |bytes| match bytes {
                    Ok(bytes) => reply.data(&bytes),
                    Err(e) => reply.error(errno(&e)),
                }),
                Err(e) => reply.error(errno(&e)),
            }
        });
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let _turn = self.turns.take();
        let strip = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        match guarded(|| self.vfs.write(fh.0, offset, data, strip)) {
            Ok(()) => reply.written(data.len() as u32),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let _turn = self.turns.take();
        // Every write was answered with its own outcome: there is nothing left to fail late.
        reply.ok();
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let _turn = self.turns.take();
        self.passthrough.detach(fh.0);
        self.vfs.release(fh.0);
        reply.ok();
    }

    fn fsync(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        let _turn = self.turns.take();
        let vfs = self.vfs.clone();
        self.syncs.spawn_blocking(move || {
            reply_empty(guarded(|| vfs.fsync(fh.0, datasync)), reply);
        });
    }

    fn opendir(&self, req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let _turn = self.turns.take();
        let answer = |fh: Result<u64>, reply: ReplyOpen| match fh {
            Ok(fh) => reply.opened(FileHandle(fh), FopenFlags::empty()),
            Err(e) => reply.error(errno(&e)),
        };
        if !self.vfs.is_remote(ino.0) {
            return answer(guarded(|| self.vfs.opendir_local(ino.0)), reply);
        }
        let vfs = self.vfs.clone();
        let wait = wait("opendir", self.vfs.label(ino.0), req);
        let work = async move { vfs.within_deadline(ino.0, wait, vfs.opendir_remote(ino.0)).await };
        self.later(work, move |fh| answer(fh, reply));
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let _turn = self.turns.take();
        let listing = match guarded(|| self.vfs.listing(ino.0, fh.0, offset == 0)) {
            Ok(listing) => listing,
            Err(e) => return reply.error(errno(&e)),
        };
        if listing.damage.is_some() && offset as usize >= listing.entries.len() + 2 {
            return reply.error(Errno::EIO);
        }
        let dots = [(".", ino.0), ("..", self.vfs.parent(ino.0))];
        let dots = dots.iter().map(|(n, i)| (OsStr::new(*n), *i, fuser::FileType::Directory));
        let rest = listing.entries.iter().map(|e| (e.name.as_os_str(), e.ino, file_type(e.kind)));
        for (at, (name, ino, kind)) in dots.chain(rest).enumerate().skip(offset as usize) {
            if reply.add(INodeNo(ino), at as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        let _turn = self.turns.take();
        self.vfs.release(fh.0);
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        let _turn = self.turns.take();
        let vfs = self.vfs.clone();
        self.syncs.spawn_blocking(move || {
            reply_empty(guarded(|| vfs.tree(ino.0)?.sync_dir(ino.0)), reply);
        });
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let _turn = self.turns.take();
        match guarded(|| self.vfs.statfs()) {
            Ok(Some(s)) => reply.statfs(
                s.f_blocks,
                s.f_bfree,
                s.f_bavail,
                s.f_files,
                s.f_ffree,
                s.f_bsize as u32,
                s.f_namemax as u32,
                s.f_frsize as u32,
            ),
            Ok(None) => reply.statfs(0, 0, 0, 0, 0, 4096, 255, 4096),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let _turn = self.turns.take();
        let exclusive = flags & (rustix::fs::OFlags::EXCL.bits() as i32) != 0;
        let asked = AskedMode { mode: mode & 0o7777, umask };
        match guarded(|| self.vfs.create(parent.0, name, asked, exclusive, caller(req))) {
            Ok((attr, opened)) => {
                let (fh, attrs) = (FileHandle(opened.fh), file_attr(&attr));
                let none = Generation(0);
                let register = |file: &File| reply.open_backing(file);
                match Self::backing(&self.passthrough, attr.ino, &opened, register) {
                    Some(id) => {
                        let flags = FopenFlags::empty();
                        reply.created_passthrough(&ATTR_TTL, &attrs, none, fh, flags, &id);
                    }
                    None => {
                        let flags = Self::fopen_flags(&opened.open_as);
                        reply.created(&ATTR_TTL, &attrs, none, fh, flags);
                    }
                }
            }
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn setxattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let _turn = self.turns.take();
        let set = || self.vfs.tree(ino.0)?.set_xattr(ino.0, name, value, flags as u32);
        reply_empty(guarded(set), reply);
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let _turn = self.turns.take();
        let value = guarded(|| match self.vfs.attributes(ino.0)? {
            Some(tree) => tree.xattr(ino.0, name),
            None => Err(VfsError::NoAttribute),
        });
        reply_xattr(value, size, reply);
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let _turn = self.turns.take();
        let names = guarded(|| match self.vfs.attributes(ino.0)? {
            Some(tree) => tree.xattr_names(ino.0),
            None => Ok(Vec::new()),
        });
        reply_xattr(names, size, reply);
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _turn = self.turns.take();
        reply_empty(guarded(|| self.vfs.tree(ino.0)?.remove_xattr(ino.0, name)), reply);
    }

    fn fallocate(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let _turn = self.turns.take();
        let range = (offset, length);
        let done = guarded(|| self.vfs.fallocate(fh.0, mode as u32, range, caller(req)));
        reply_empty(done, reply);
    }

    fn lseek(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let _turn = self.turns.take();
        const SEEK_DATA: i32 = 3;
        const SEEK_HOLE: i32 = 4;
        let hole = match whence {
            SEEK_DATA => false,
            SEEK_HOLE => true,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(from) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        match guarded(|| self.vfs.seek(fh.0, from, hole)) {
            Ok(at) => reply.offset(at as i64),
            Err(e) => reply.error(errno(&e)),
        }
    }
}
