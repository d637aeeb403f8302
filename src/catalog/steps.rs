//! The single steps of a `.log` on local disk, and which bytes lie where in one of two halves.
//!
//! No locks and no state: `log_file` decides when they are taken.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use super::log_file::{Piece, broken};
use crate::failpoint;
use crate::local::{Stub, durable};

pub(super) fn open_rw(path: &Path) -> io::Result<File> {
    match OpenOptions::new().read(true).write(true).open(path) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => File::open(path),
        other => other,
    }
}

pub(super) fn write_hot(file: &File, data: &[u8], offset: u64) -> io::Result<()> {
    failpoint::disk("hot.write")?;
    file.write_all_at(data, offset)?;
    failpoint::step("hot.written");
    Ok(())
}

pub(super) fn cut_hot(file: &File, size_bytes: u64) -> io::Result<()> {
    failpoint::disk("hot.truncate")?;
    file.set_len(size_bytes)
}

pub(super) fn write_overlay(file: &File, data: &[u8], offset: u64) -> io::Result<()> {
    failpoint::disk("overlay.write")?;
    file.write_all_at(data, offset)
}

pub(super) fn create_rw(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)
}

pub(super) fn remove_overlay(dir: &Path, stub: &Stub) -> io::Result<()> {
    stub.overlay.as_ref().map_or(Ok(()), |id| durable::remove_if_exists(&dir.join(id)))
}

pub(super) fn pieces(
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
pub(super) fn copy_gaps(stub: &Stub, local: Option<&File>, to: &File, size: u64) -> io::Result<()> {
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
