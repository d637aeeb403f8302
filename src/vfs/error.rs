//! What can go wrong in the filesystem, and the one place that turns it into an errno.

use std::io;

use rustix::io::Errno;

use crate::read::ReadError;
use crate::store::StoreError;

/// An error as an operation of the filesystem meets it.
#[derive(Debug, thiserror::Error)]
pub enum VfsError {
    /// Local disk, or a check of our own with an errno.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Archived bytes could not be had.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The archive's manifests could not be had.
    #[error("the archive cannot be read: {0}")]
    Archive(String),
    /// It took too long: it may work later.
    #[error("no answer within {deadline_ms} ms")]
    Deadline {
        /// How long it was waited for.
        deadline_ms: u64,
    },
    /// No such name.
    #[error("no such file or directory")]
    NotFound,
    /// The archive is read-only.
    #[error("the archive is read-only")]
    ReadOnly,
    /// A name that Everlog keeps for itself.
    #[error("names that end in .everlog are reserved")]
    Reserved,
    /// Move between places that only a copy can bridge.
    #[error("a segment cannot be renamed out of its directory: copy it")]
    CrossDevice,
    /// Not for this kind of file.
    #[error("operation not permitted on this file")]
    NotPermitted,
    /// No such open file.
    #[error("bad file handle")]
    BadHandle,
    /// No extended attribute of that name.
    #[error("no such attribute")]
    NoAttribute,
    /// Not implemented: the kernel falls back.
    #[error("not supported")]
    Unsupported,
}

impl VfsError {
    /// The errno that the caller sees. EIO says "these bytes exist and cannot be given now".
    #[must_use]
    pub fn errno(&self) -> i32 {
        let errno = match self {
            Self::Io(e) => return io_errno(e),
            Self::Read(_) | Self::Archive(_) | Self::Deadline { .. } => Errno::IO,
            Self::NotFound => Errno::NOENT,
            Self::ReadOnly => Errno::ROFS,
            Self::Reserved | Self::NotPermitted => Errno::PERM,
            Self::CrossDevice => Errno::XDEV,
            Self::BadHandle => Errno::BADF,
            Self::NoAttribute => Errno::NODATA,
            Self::Unsupported => Errno::OPNOTSUPP,
        };
        errno.raw_os_error()
    }
}

fn io_errno(e: &io::Error) -> i32 {
    let known = match e.kind() {
        io::ErrorKind::NotFound => Errno::NOENT,
        io::ErrorKind::AlreadyExists => Errno::EXIST,
        io::ErrorKind::PermissionDenied => Errno::ACCESS,
        io::ErrorKind::InvalidInput => Errno::INVAL,
        io::ErrorKind::StorageFull => Errno::NOSPC,
        _ => Errno::IO,
    };
    e.raw_os_error().unwrap_or(known.raw_os_error())
}

impl From<rustix::io::Errno> for VfsError {
    fn from(e: rustix::io::Errno) -> Self {
        Self::Io(e.into())
    }
}

impl From<StoreError> for VfsError {
    fn from(e: StoreError) -> Self {
        Self::Archive(e.to_string())
    }
}
