//! A mount in the background: the command starts itself again, waits until the child serves, and ends
//! with the child's verdict. So an error appears where the command was typed.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Command, Stdio};

use super::CliError;

const MARK: &str = "EVERLOG_BACKGROUND_CHILD";
const READY: &[u8] = b"ready\n";

/// Whether this process is the one that shall serve.
pub fn is_child() -> bool {
    std::env::var_os(MARK).is_some()
}

/// Starts the child and waits until it serves or has failed.
pub fn spawn() -> Result<(), CliError> {
    let exe = std::env::current_exe()
        .map_err(|e| CliError::failed(format!("cannot find myself: {e}")))?;
    let mut child = Command::new(exe)
        .args(std::env::args_os().skip(1))
        .env(MARK, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| CliError::failed(format!("cannot start in the background: {e}")))?;
    let mut said = Vec::new();
    if let Some(mut out) = child.stdout.take() {
        let mut byte = [0u8; 1];
        while said != READY && matches!(out.read(&mut byte), Ok(1)) {
            said.push(byte[0]);
        }
    }
    if said == READY {
        return Ok(());
    }
    let code = child.wait().ok().and_then(|s| s.code()).unwrap_or(1);
    Err(CliError { code: u8::try_from(code).unwrap_or(1).max(1), message: String::new() })
}

/// In the child: leaves the terminal.
pub fn detach() {
    // Fails only for a process group leader, which a fresh child is not.
    let _ = rustix::process::setsid();
}

/// In the child: says that it serves, and lets go of the terminal's descriptors.
pub fn ready(log: &Path) -> std::io::Result<()> {
    std::io::stdout().write_all(READY)?;
    std::io::stdout().flush()?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(null.as_fd())?;
    let log = File::options().create(true).append(true).open(log)?;
    rustix::stdio::dup2_stderr(log.as_fd())?;
    Ok(())
}
