//! Durable small writes: a file appears whole under its name or not at all, and survives power loss.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::failpoint;

/// Ending of a name that is not yet the file: left only by a crash, removed at the next mount.
pub const TMP_SUFFIX: &str = ".tmp.everlog";

/// Writes `bytes` under a temporary name, syncs, renames over `path`, syncs the directory.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = parent(path)?;
    let tmp = tmp_of(path);
    let written = write_synced(&tmp, bytes).and_then(|()| {
        failpoint::disk("durable.rename")?;
        std::fs::rename(&tmp, path)
    });
    if let Err(e) = written {
        // A leftover would keep its directory from ever being removed.
        remove_if_exists(&tmp)?;
        return Err(e);
    }
    failpoint::disk("durable.names.sync")?;
    sync_dir(dir)
}

/// Where [`write_atomic`] writes first.
#[must_use]
pub fn tmp_of(path: &Path) -> PathBuf {
    let mut tmp = path.as_os_str().to_owned();
    tmp.push(TMP_SUFFIX);
    PathBuf::from(tmp)
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    failpoint::disk("durable.file")?;
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    file.write_all(bytes)?;
    failpoint::disk("durable.file.sync")?;
    file.sync_all()
}

/// Makes the names in `dir` durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Like `mkdir -p`, with every new name synced. `points` are passed before each of the two.
pub fn create_dirs(dir: &Path, points: [&'static str; 2]) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    // Of a relative path the first part lies where we are.
    let above = parent(dir)?;
    let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
    create_dirs(above, points)?;
    failpoint::disk(points[0])?;
    match std::fs::create_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    failpoint::disk(points[1])?;
    sync_dir(above)
}

/// Removes a file; one that is not there is no error.
pub fn remove_if_exists(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn parent(path: &Path) -> io::Result<&Path> {
    path.parent().ok_or_else(|| io::Error::other(format!("{} has no directory", path.display())))
}
