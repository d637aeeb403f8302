//! Child processes that cannot outlive the test that started them.

use std::fs::File;
use std::io::Read as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// Where `scripts/setup` installs, and where tests keep their directories.
pub fn rig_dir() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/rig");
    // Without symbolic links: the kernel's table of mounts has none either.
    path.canonicalize()
        .unwrap_or_else(|_| panic!("{} is missing: run scripts/setup", path.display()))
}

/// A path below the rig; fails the test with the remedy when it is not there.
pub fn installed(path: &str) -> PathBuf {
    let full = rig_dir().join(path);
    assert!(
        full.exists(),
        "{} is missing: run scripts/setup (see scripts/setup --help)",
        full.display()
    );
    full
}

/// A port of loopback that nobody listened on a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A command that the kernel kills when the thread that started it ends.
pub fn bound_command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command.stdin(Stdio::null());
    command
}

/// `java` with the class path of a Kafka version and of the ledger tool.
pub fn java(version: &str, heap: &str) -> Command {
    installed(&format!("kafka-{version}/ready"));
    let mut command = bound_command("java");
    let libs = rig_dir().join(format!("kafka-{version}/libs/*"));
    let own = rig_dir().join("java");
    command.arg(format!("-Xmx{heap}")).args(["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]);
    command.arg("-cp").arg(format!("{}:{}", libs.display(), own.display()));
    command
}

/// The argument by which Kafka 2 and 3, and ZooKeeper, log to standard output.
pub fn log4j_1() -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/kafka/log4j.properties");
    format!("-Dlog4j.configuration=file:{}", file.display())
}

/// A running child whose output goes to a file; killed when dropped.
pub struct Running {
    child: Child,
    what: String,
    log: PathBuf,
}

impl Running {
    /// Starts it; `what` names it in messages, `log` receives what it prints.
    pub fn start(mut command: Command, what: &str, log: PathBuf) -> Self {
        let out = File::options().create(true).append(true).open(&log).unwrap();
        command.stdout(out.try_clone().unwrap()).stderr(out);
        let child = command.spawn().unwrap_or_else(|e| panic!("{what} does not start: {e}"));
        Self { child, what: what.to_owned(), log }
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything that it has printed.
    pub fn output(&self) -> String {
        let mut text = Vec::new();
        File::open(&self.log).and_then(|mut f| f.read_to_end(&mut text)).unwrap();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// The last lines that it has printed.
    pub fn tail(&self) -> String {
        let text = self.output();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// `Some` when it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid() as i32).unwrap();
        // It may have ended on its own; the caller waits for the end in any case.
        let _ = rustix::process::kill_process(pid, signal);
    }

    /// Waits for the end; panics with its last words when it does not end in `seconds`, or [`super::WAIT_MIN_S`].
    pub fn wait(&mut self, seconds: u64) -> ExitStatus {
        let seconds = seconds.max(super::WAIT_MIN_S);
        let deadline = Instant::now() + Duration::from_secs(seconds);
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "{} runs on after {seconds} s:\n{}",
                self.what,
                self.tail()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// SIGKILL, and waits until the process is gone.
    pub fn kill9(&mut self) {
        if self.ended().is_some() {
            return;
        }
        self.signal(rustix::process::Signal::KILL);
        self.wait(30);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.ended().is_none() {
            self.signal(rustix::process::Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

/// Runs to the end and returns what it printed; panics with its words unless it succeeds.
pub fn run(mut command: Command, what: &str) -> String {
    let out = command.output().unwrap_or_else(|e| panic!("{what} does not start: {e}"));
    assert!(
        out.status.success(),
        "{what} failed ({}):\n{}{}",
        out.status,
        text(&out.stdout),
        text(&out.stderr)
    );
    text(&out.stdout)
}

/// Bytes as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs the built `everlog` to its end.
pub fn everlog(args: &[&str]) -> Output {
    bound_command(env!("CARGO_BIN_EXE_everlog")).args(args).output().unwrap()
}
