//! The rig of the integration tests: real brokers, real mounts, a real S3 server, and an independent ledger of what a broker promised.
//!
//! Everything lives below one directory per test, which stays behind when the test fails. Whatever a test starts dies with the test, also
//! when the test itself is killed. A rig that is not installed fails the test and says how to install it: nothing is skipped.
#![allow(dead_code, unused_imports)] // every test binary compiles all of it and uses a part

pub mod archive;
pub mod batches;
pub mod broker;
pub mod children;
pub mod files;
pub mod fsck;
pub mod ledger;
pub mod logdir;
pub mod mount;
pub mod proxy;
pub mod random;
pub mod s3;
pub mod shim;
pub mod step;
pub mod suites;
pub mod versions;
pub mod witness;
pub mod workers;
pub mod zookeeper;

pub use broker::Broker;
pub use children::{java, rig_dir};
pub use files::{allocated_bytes, files_under, sha256_file};
pub use ledger::Ledger;
pub use logdir::LogDir;
pub use mount::{Mount, MountCommand, plain_mount};
pub use proxy::Proxy;
pub use random::{Random, setting};
pub use s3::S3;
pub use witness::Witness;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A test's own directory on real disk; removed when the test succeeds, kept and named when it fails.
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// A fresh directory whose name begins with `name`, in `EVERLOG_TEST_DIR` or below the rig.
    pub fn new(name: &str) -> Self {
        let elsewhere = std::env::var_os("EVERLOG_TEST_DIR").map(PathBuf::from);
        let parent = elsewhere.unwrap_or_else(|| rig_dir().join("tmp"));
        std::fs::create_dir_all(&parent).unwrap();
        let parent = parent.canonicalize().unwrap();
        let path = tempfile::Builder::new().prefix(&format!("{name}-")).tempdir_in(parent).unwrap();
        Self { path: path.keep() }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A directory in it, created if need be.
    pub fn dir(&self, name: &str) -> PathBuf {
        let path = self.path.join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    /// The log dir's files, where [`MountCommand::broker`] puts the data directory.
    pub fn hot(&self) -> PathBuf {
        self.path.join("data/hot")
    }

    /// The directory store of [`Self::file_store`]`("store")`.
    pub fn bucket(&self) -> PathBuf {
        self.path.join("store")
    }

    /// The URL of a directory store in it, created if need be.
    pub fn file_store(&self, name: &str) -> String {
        format!("file://{}", self.dir(name).display())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::thread::panicking() || std::env::var_os("EVERLOG_TEST_KEEP").is_some() {
            eprintln!("kept for inspection: {}", self.path.display());
        } else if let Err(e) = std::fs::remove_dir_all(&self.path) {
            eprintln!("could not remove {}: {e}", self.path.display());
        }
    }
}

/// No wait is given up before. A machine under load can stand still for longer than anything takes.
pub const WAIT_MIN_S: u64 = 60;

/// Asks every 100 ms until `done` gives a value; panics with what it last said was missing after `seconds`, or [`WAIT_MIN_S`].
pub fn wait_until<T>(what: &str, seconds: u64, mut done: impl FnMut() -> Result<T, String>) -> T {
    let seconds = seconds.max(WAIT_MIN_S);
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        match done() {
            Ok(value) => return value,
            Err(missing) if Instant::now() > deadline => {
                panic!("waited {seconds} s for {what}; at the end: {missing}")
            }
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// `Ok` when `yes`, else the words: for `wait_until`.
pub fn unless(yes: bool, missing: impl FnOnce() -> String) -> Result<(), String> {
    if yes { Ok(()) } else { Err(missing()) }
}
