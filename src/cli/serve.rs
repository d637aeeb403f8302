//! What both kinds of mount share: the log, limits, threads, signals, and the life of the session.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use tokio::runtime::Runtime;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::args::MountArgs;
use super::unanswered::Unanswered;
use super::{CliError, background, mountpoint};
use crate::fuse::{FuseConfig, Session};
use crate::local::threads::{self, Share};
use crate::vfs::Vfs;

/// Descriptors asked for, if the hard limit allows: one per open hot `.log` and a few hundred.
const NOFILE_WANTED: u64 = 1_048_576;
/// Syncs under way at once; more wait for these.
const SYNC_THREADS_MAX: usize = 16;
/// As much as one request can carry.
const READ_AHEAD_KIB: u32 = 1024;
/// Threads for syncs, hashing and other blocking work.
const BLOCKING_THREADS_MAX: usize = 64;

/// Where the process logs.
pub fn start_log(args: &MountArgs, default: &Path) -> Result<PathBuf, CliError> {
    let path = args.log_file.clone().unwrap_or_else(|| default.to_owned());
    let asked = tracing_subscriber::EnvFilter::try_from_env("EVERLOG_LOG").ok();
    let unanswered = asked.is_none().then_some(Unanswered);
    let filter = asked.unwrap_or_else(|| {
        tracing_subscriber::EnvFilter::new("info,fuser=error,object_store=error")
    });
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_ansi(false);
    if background::is_child() {
        let file = File::options().create(true).append(true).open(&path).map_err(|e| {
            CliError::failed(format!(
                "log file {}: {e}: choose another with --log-file",
                path.display()
            ))
        })?;
        builder.with_writer(Arc::new(file)).finish().with(unanswered).init();
    } else {
        builder.with_writer(std::io::stderr).finish().with(unanswered).init();
    }
    Ok(path)
}

/// Raises the soft limit of descriptors as far as it goes and says what it is.
pub fn raise_nofile() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    let hard = now.maximum.unwrap_or(NOFILE_WANTED);
    let tries = [(NOFILE_WANTED, hard.max(NOFILE_WANTED)), (hard.min(NOFILE_WANTED), hard)];
    for (soft, hard) in tries {
        let wanted = Rlimit { current: Some(soft), maximum: Some(hard) };
        if now.current.is_some_and(|c| c >= soft) || setrlimit(Resource::Nofile, wanted).is_ok() {
            break;
        }
    }
    getrlimit(Resource::Nofile).current.unwrap_or(NOFILE_WANTED)
}

/// The runtime on which everything that waits runs.
pub fn runtime() -> Result<Runtime, CliError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_name("everlog-io")
        .on_thread_start(|| threads::set_own(Share::Normal))
        .enable_all()
        .build()
        .map_err(|e| CliError::failed(format!("cannot start threads: {e}")))
}

/// Threads for the syncs that a broker waits for.
fn sync_runtime() -> Result<Runtime, CliError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(SYNC_THREADS_MAX)
        .thread_name("everlog-sync")
        .on_thread_start(|| threads::set_own(Share::Normal))
        .build()
        .map_err(|e| CliError::failed(format!("cannot start threads: {e}")))
}

/// Mounts, says that it serves, serves until it is unmounted.
pub fn serve(
    vfs: Arc<Vfs>,
    runtime: &Runtime,
    mountpoint: &Path,
    config: &FuseConfig,
    log: &Path,
) -> Result<(), CliError> {
    let signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT])
        .map_err(|e| CliError::failed(format!("cannot listen for signals: {e}")))?;
    let syncs = sync_runtime()?;
    let runtimes = (runtime.handle().clone(), syncs.handle().clone());
    let session = Session::mount(vfs, runtimes, mountpoint, config)?;
    tracing::info!(mountpoint = %mountpoint.display(), pid = std::process::id(), "mounted");
    if let Err(e) = mountpoint::set_read_ahead(mountpoint, READ_AHEAD_KIB) {
        tracing::info!(error = %e, "the kernel's read-ahead stays as it is");
    }
    end_on_signal(signals, mountpoint.to_owned())?;
    if background::is_child() {
        background::ready(log)
            .map_err(|e| CliError::failed(format!("cannot go to the background: {e}")))?;
    }
    // The threads that it starts have it from this one.
    threads::set_own(Share::Serving);
    session.serve().map_err(|e| CliError::failed(format!("the mount ended with an error: {e}")))?;
    tracing::info!("unmounted");
    Ok(())
}

/// SIGTERM and SIGINT unmount. While somebody has files open it says who, goes on serving, and tries again.
fn end_on_signal(
    mut signals: signal_hook::iterator::Signals,
    mountpoint: PathBuf,
) -> Result<(), CliError> {
    let watch = move || {
        if signals.forever().next().is_none() {
            return;
        }
        let mut said = Vec::new();
        loop {
            match mountpoint::unmount(&mountpoint) {
                Ok(()) => return,
                Err(e) => {
                    let users = mountpoint::users(&mountpoint, 8);
                    if users != said || said.is_empty() {
                        tracing::warn!(error = %e, in_use_by = users.join(", "), "asked to end, but the mount is in use; serving until it is not");
                        said = users;
                    }
                }
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    };
    std::thread::Builder::new()
        .name("everlog-signal".to_owned())
        .spawn(watch)
        .map(|_| ())
        .map_err(|e| CliError::failed(format!("cannot start a thread: {e}")))
}
