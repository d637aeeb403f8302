//! Whether a directory can be mounted on, who uses it, and taking the mount away.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::UnmountFlags;

use super::CliError;

/// Refuses what cannot or should not be mounted on.
pub fn check(path: &Path) -> Result<PathBuf, CliError> {
    let shown = path.display();
    let metadata = std::fs::metadata(path).map_err(|e| match e.raw_os_error() {
        Some(code) if code == rustix::io::Errno::NOTCONN.raw_os_error() => {
            CliError::failed(format!(
                "mount point {shown} has a dead mount on it: remove it with 'umount -l {shown}'"
            ))
        }
        _ if e.kind() == io::ErrorKind::NotFound => CliError::failed(format!(
            "mount point {shown} does not exist: create it with 'mkdir -p {shown}'"
        )),
        _ => CliError::failed(format!("mount point {shown}: {e}")),
    })?;
    if !metadata.is_dir() {
        return Err(CliError::failed(format!("mount point {shown} is not a directory: give one")));
    }
    let full =
        path.canonicalize().map_err(|e| CliError::failed(format!("mount point {shown}: {e}")))?;
    if is_mounted(&full) {
        return Err(CliError::failed(format!(
            "mount point {shown} is busy, something is mounted there: unmount it first or choose another"
        )));
    }
    let mut entries = std::fs::read_dir(&full)
        .map_err(|e| CliError::failed(format!("mount point {shown} cannot be listed: {e}")))?;
    if entries.next().is_some() {
        return Err(CliError::failed(format!(
            "mount point {shown} is not empty: mounting would hide its files; choose an empty directory"
        )));
    }
    Ok(full)
}

/// Refuses a mount point inside a directory of ours or around it.
pub fn check_apart(mountpoint: &Path, dir: &Path, what: &str) -> Result<(), CliError> {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    if dir.starts_with(mountpoint) || mountpoint.starts_with(&dir) {
        return Err(CliError::failed(format!(
            "mount point {} and {what} {} must not lie in each other: choose another mount point",
            mountpoint.display(),
            dir.display()
        )));
    }
    Ok(())
}

/// Whether something is mounted at this path, as the kernel's table says.
pub fn is_mounted(path: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let escaped = path.to_string_lossy().replace(' ', "\\040");
    table.lines().any(|l| l.split(' ').nth(4) == Some(escaped.as_str()))
}

/// Lets the kernel read this far ahead on the mount. Its default of 128 KiB costs many requests; not
/// being allowed to (not root) costs speed only.
pub fn set_read_ahead(path: &Path, kib: u32) -> io::Result<()> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let escaped = path.to_string_lossy().replace(' ', "\\040");
    let ours = table.lines().rev().find(|l| l.split(' ').nth(4) == Some(escaped.as_str()));
    let device = ours.and_then(|l| l.split(' ').nth(2)).ok_or(io::ErrorKind::NotFound)?;
    std::fs::write(format!("/sys/class/bdi/{device}/read_ahead_kb"), kib.to_string())
}

/// Takes the mount away; an error of kind `ResourceBusy` when somebody uses it.
pub fn unmount(path: &Path) -> io::Result<()> {
    match rustix::mount::unmount(path, UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::PERM) => {
            let done = Command::new("fusermount3").arg("-u").arg(path).status()?;
            if done.success() { Ok(()) } else { Err(io::ErrorKind::ResourceBusy.into()) }
        }
        Err(e) => Err(e.into()),
    }
}

/// Processes that have a file or their working directory below this path, at most `max`.
pub fn users(path: &Path, max: usize) -> Vec<String> {
    let mut out = Vec::new();
    let Ok(processes) = std::fs::read_dir("/proc") else { return out };
    for process in processes.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else {
            continue;
        };
        if pid != std::process::id() && uses(&process.path(), path) {
            let comm = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            out.push(format!("{} (pid {pid})", comm.trim()));
        }
        if out.len() >= max {
            break;
        }
    }
    out
}

fn uses(process: &Path, path: &Path) -> bool {
    let below = |link: PathBuf| std::fs::read_link(link).is_ok_and(|to| to.starts_with(path));
    if below(process.join("cwd")) {
        return true;
    }
    let Ok(fds) = std::fs::read_dir(process.join("fd")) else { return false };
    fds.flatten().any(|fd| below(fd.path()))
}
