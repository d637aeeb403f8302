//! One `everlog mount` in the foreground, its log, and ways to end it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::children::{self, Running};
use super::{Scratch, WAIT_MIN_S, unless, wait_until};

/// How to mount; `start` does it, as often as wanted.
#[derive(Clone)]
pub struct MountCommand {
    point: PathBuf,
    log: PathBuf,
    args: Vec<String>,
    env: Vec<(String, String)>,
}

impl MountCommand {
    /// Log dir below `dir/mount`, data in `dir/data`: a broker mount.
    pub fn broker(dir: &Path, store: &str) -> Self {
        Self::at(dir, "mount", store).arg("--data").arg(dir.join("data").display())
    }

    /// Read-only in `dir/archive`, cache in `dir/cache`: an archive mount.
    pub fn archive(dir: &Path, store: &str) -> Self {
        Self::at(dir, "archive", store).arg("--cache").arg(dir.join("cache").display())
    }

    fn at(dir: &Path, name: &str, store: &str) -> Self {
        let point = dir.join(name);
        std::fs::create_dir_all(&point).unwrap();
        let log = dir.join(format!("everlog-{name}.out"));
        let args = vec!["mount".to_owned(), point.display().to_string(), "--foreground".to_owned()];
        Self { point, log, args, env: Vec::new() }.arg("--store").arg(store)
    }

    /// One more argument.
    pub fn arg(mut self, arg: impl ToString) -> Self {
        self.args.push(arg.to_string());
        self
    }

    /// An option and its value.
    pub fn option(self, name: &str, value: impl ToString) -> Self {
        self.arg(name).arg(value)
    }

    /// One more environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// More of them.
    pub fn envs(mut self, all: Vec<(String, String)>) -> Self {
        self.env.extend(all);
        self
    }

    /// The mount point.
    pub fn point(&self) -> &Path {
        &self.point
    }

    fn command(&self) -> Command {
        let mut command = children::bound_command(env!("CARGO_BIN_EXE_everlog"));
        command.args(&self.args).envs(self.env.iter().map(|(k, v)| (k, v)));
        command
    }

    /// Mounts, and waits until the kernel says so.
    pub fn start(&self) -> Mount {
        self.try_start().unwrap_or_else(|words| panic!("everlog mount ended instead:\n{words}"))
    }

    /// The same; `Err` with its last words when it ends instead.
    pub fn try_start(&self) -> Result<Mount, String> {
        let mut process = Running::start(self.command(), "everlog mount", self.log.clone());
        let mounted = wait_until("the mount", 60, || {
            if process.ended().is_some() {
                return Ok(false);
            }
            unless(is_mounted(&self.point), || process.tail()).map(|()| true)
        });
        if !mounted {
            detach(&self.point);
            return Err(process.tail());
        }
        Ok(Mount { command: self.clone(), process })
    }
}

/// Whether something is mounted exactly here.
pub fn is_mounted(point: &Path) -> bool {
    let point = point.display().to_string();
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().any(|line| line.split(' ').nth(4) == Some(point.as_str()))
}

/// Takes whatever is mounted here away, also when its server is dead or busy.
pub fn detach(point: &Path) {
    while is_mounted(point) {
        rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH)
            .unwrap_or_else(|e| panic!("cannot unmount {}: {e}", point.display()));
    }
}

/// A mount that serves. Dropped: unmounted lazily, its process killed.
pub struct Mount {
    command: MountCommand,
    process: Running,
}

impl Mount {
    /// The mount point.
    pub fn point(&self) -> &Path {
        &self.command.point
    }

    /// A path below the mount point.
    pub fn path(&self, below: &str) -> PathBuf {
        self.command.point.join(below)
    }

    /// Process id of the daemon.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What this and earlier runs with the same command have logged.
    pub fn log(&self) -> String {
        self.process.output()
    }

    /// `.everlog/status.json` of a moment that is not before this call: a daemon gives a young one again, and what the test did just
    /// now is not in that.
    pub fn status(&self) -> Value {
        let asked = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
        wait_until("a new status", WAIT_MIN_S, || {
            let status = self.any_status();
            // An archive mount has no tiering, and makes each one anew.
            let new = status["as_of_ms"].as_u64().is_none_or(|at| at >= asked);
            if new { Ok(status) } else { Err(format!("{} at {asked}", status["as_of_ms"])) }
        })
    }

    fn any_status(&self) -> Value {
        let path = self.path(".everlog/status.json");
        let text = std::fs::read(&path)
            .unwrap_or_else(|e| panic!("{}: {e}\n{}", path.display(), self.process.tail()));
        serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{e} in {}", children::text(&text)))
    }

    /// One topic's entry of the status; null when it has none.
    pub fn topic_status(&self, topic: &str) -> Value {
        let status = self.status();
        let topics = status["topics"].as_array().cloned().unwrap_or_default();
        topics.into_iter().find(|t| t["topic"] == topic).unwrap_or(Value::Null)
    }

    /// Whether its process has ended.
    pub fn has_ended(&mut self) -> bool {
        self.process.ended().is_some()
    }

    /// SIGKILL; the dead mount is taken away as a service manager would.
    pub fn kill9(mut self) {
        self.process.kill9();
        detach(&self.command.point);
    }

    /// SIGKILL without waiting for the end.
    pub fn kill9_at_once(&self) {
        self.process.signal(rustix::process::Signal::KILL);
    }

    /// SIGTERM; must unmount and end with 0.
    pub fn sigterm(self) {
        self.terminate();
        self.ends_well();
    }

    /// SIGTERM, without waiting.
    pub fn terminate(&self) {
        self.process.signal(rustix::process::Signal::TERM);
    }

    /// Waits for the end, which must be clean.
    pub fn ends_well(mut self) {
        self.ended_well();
    }

    /// `umount`; the process must end with 0.
    pub fn umount(mut self) {
        // A child that another thread of the test is starting has copies of its descriptors for a moment.
        wait_until("umount", 10, || {
            rustix::mount::unmount(&self.command.point, rustix::mount::UnmountFlags::empty())
                .map_err(|e| format!("umount: {e}\n{}", self.process.tail()))
        });
        self.ended_well();
    }

    fn ended_well(&mut self) {
        let status = self.process.wait(60);
        assert!(status.success(), "everlog mount ended with {status}:\n{}", self.process.tail());
        assert!(!is_mounted(&self.command.point), "everlog ended and left its mount behind");
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("last words of everlog mount:\n{}", self.process.tail());
        }
        // Detached first: nothing can hang in a request that the dying daemon will not answer.
        if is_mounted(&self.command.point) {
            let _ =
                rustix::mount::unmount(&self.command.point, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// A broker mount with a directory store and nothing else.
pub fn plain_mount(name: &str) -> (Scratch, MountCommand, Mount) {
    let scratch = Scratch::new(name);
    let store = scratch.file_store("store");
    let command = MountCommand::broker(scratch.path(), &store);
    let mount = command.start();
    (scratch, command, mount)
}
