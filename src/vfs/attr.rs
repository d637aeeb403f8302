//! Attributes of a file as the filesystem speaks of them, without the kernel's types.

use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

use crate::catalog::LogStat;

/// Kinds of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A FIFO.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

/// What `stat` shows.
#[derive(Clone, Copy, Debug)]
pub struct Attr {
    /// Inode number.
    pub ino: u64,
    /// Kind.
    pub kind: Kind,
    /// Exact size in bytes.
    pub size_bytes: u64,
    /// Allocated 512-byte units.
    pub blocks: u64,
    /// Access time: seconds and nanoseconds.
    pub atime: (i64, u32),
    /// Modification time.
    pub mtime: (i64, u32),
    /// Change time.
    pub ctime: (i64, u32),
    /// Permission bits.
    pub mode: u16,
    /// Hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device file.
    pub rdev: u32,
}

fn split(ns: u64) -> (i64, u32) {
    ((ns / 1_000_000_000) as i64, (ns % 1_000_000_000) as u32)
}

impl Kind {
    /// Of a directory entry.
    #[must_use]
    pub fn of(t: std::fs::FileType) -> Self {
        if t.is_dir() {
            Self::Dir
        } else if t.is_symlink() {
            Self::Symlink
        } else if t.is_fifo() {
            Self::Fifo
        } else if t.is_socket() {
            Self::Socket
        } else if t.is_char_device() {
            Self::CharDevice
        } else if t.is_block_device() {
            Self::BlockDevice
        } else {
            Self::File
        }
    }
}

impl Attr {
    /// Of something on local disk.
    #[must_use]
    pub fn of_metadata(ino: u64, m: &Metadata) -> Self {
        Self {
            ino,
            kind: Kind::of(m.file_type()),
            size_bytes: m.size(),
            blocks: m.blocks(),
            atime: (m.atime(), m.atime_nsec() as u32),
            mtime: (m.mtime(), m.mtime_nsec() as u32),
            ctime: (m.ctime(), m.ctime_nsec() as u32),
            mode: (m.mode() & 0o7777) as u16,
            nlink: m.nlink() as u32,
            uid: m.uid(),
            gid: m.gid(),
            rdev: m.rdev() as u32,
        }
    }

    /// Of a `.log` in any tier.
    #[must_use]
    pub fn of_log(ino: u64, s: &LogStat) -> Self {
        Self {
            ino,
            kind: Kind::File,
            size_bytes: s.size_bytes,
            blocks: s.blocks,
            atime: s.atime,
            mtime: s.mtime,
            ctime: s.ctime,
            mode: s.mode as u16,
            nlink: s.nlink,
            uid: s.uid,
            gid: s.gid,
            rdev: 0,
        }
    }

    /// Of something that has no file of its own on local disk. A non-empty one shows a block.
    #[must_use]
    pub fn synthetic(ino: u64, kind: Kind, size_bytes: u64, mtime_ns: u64) -> Self {
        let time = split(mtime_ns);
        let dir = kind == Kind::Dir;
        Self {
            ino,
            kind,
            size_bytes,
            blocks: size_bytes.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            mode: if dir { 0o555 } else { 0o444 },
            nlink: if dir { 2 } else { 1 },
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            rdev: 0,
        }
    }
}
