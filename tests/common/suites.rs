//! What filesystem suites of others run beside: segments that are archived, evicted, read back and discarded all the time.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::broker::CLUSTER_ID;
use super::children::text;
use super::{LogDir, Mount, MountCommand, Scratch, files};

/// A partition that lives as under a broker: segments come, go cold, are read back and compared, are discarded.
pub struct Churn {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<(u64, u64)>>,
}

impl Churn {
    /// Until it is ended or dropped.
    pub fn start(root: PathBuf, more: Vec<(String, i64)>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = stop.clone();
        let thread = std::thread::spawn(move || churn(&root, &more, &seen));
        Self { stop, thread: Some(thread) }
    }

    /// How many segments were made, and how many reads of earlier ones compared.
    pub fn end(mut self) -> (u64, u64) {
        self.stop.store(true, Ordering::Release);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn churn(root: &Path, committed: &[(String, i64)], stop: &AtomicBool) -> (u64, u64) {
    let mut logs = LogDir::new(root, CLUSTER_ID).index_bytes(65_536);
    let mut log = logs.create("churn", 0);
    let mut sums: BTreeMap<PathBuf, u32> = BTreeMap::new();
    let (mut made, mut compared) = (0, 0);
    while !stop.load(Ordering::Acquire) {
        let path = log.dir().join(format!("{:020}.log", log.base()));
        log.fill_segment(100_000);
        sums.insert(path.clone(), crc32c::crc32c(&fs::read(&path).unwrap()));
        made += 1;
        logs.commit(&log);
        for (topic, end) in committed {
            logs.commit_as(topic, 0, *end);
        }
        logs.checkpoint();
        for (path, sum) in sums.iter().skip((made % 7) as usize).step_by(7) {
            assert_eq!(crc32c::crc32c(&fs::read(path).unwrap()), *sum, "{}", path.display());
            compared += 1;
        }
        if sums.len() > 20
            && let Some((oldest, _)) = sums.pop_first()
        {
            let name = files::name(&oldest);
            for name in files::names(log.dir()).iter().filter(|n| n.starts_with(&name[..20])) {
                let (from, to) = (log.dir().join(name), log.dir().join(format!("{name}.deleted")));
                fs::rename(&from, &to).unwrap();
                fs::remove_file(&to).unwrap();
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(30));
    }
    (made, compared)
}

/// A broker mount whose budgets are small enough that segments go cold all the time.
pub fn small_mount(scratch: &Scratch) -> Mount {
    let store = scratch.file_store("store");
    MountCommand::broker(scratch.path(), &store)
        .option("--hot-bytes", 300_000)
        .option("--cache-bytes", "1MiB")
        .start()
}

/// How many segments have gone cold.
pub fn evicted(mount: &Mount) -> u64 {
    mount.status()["counters"]["evicted_segments"].as_u64().unwrap_or_default()
}

/// Whether it ended well, and what it said.
pub fn run(mut command: Command, what: &str) -> (bool, String) {
    let out = command.output().unwrap_or_else(|e| panic!("{what} does not start: {e}"));
    (out.status.success(), text(&out.stdout) + &text(&out.stderr))
}

/// How long the random suites run, as a multiple of what CI has time for.
pub fn times() -> u64 {
    std::env::var("EVERLOG_SUITES_TIMES").ok().and_then(|v| v.parse().ok()).unwrap_or(1)
}
