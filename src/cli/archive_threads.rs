//! The threads of all archiving and eviction: they yield to the broker and to the mount while they keep up.
//!
//! On a busy machine a closed segment can wait a little, a producer cannot. But archiving must not starve:
//! once segments wait for long its threads get their full share, until it has caught up.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use parking_lot::Mutex;
use rustix::process::Pid;
use tokio::runtime::Runtime;

use super::{CliError, priority};

/// Threads that wait for the store while archiving.
const WORKERS: usize = 2;
/// Threads for scanning, hashing and local disk.
const BLOCKING_THREADS_MAX: usize = 64;
/// While archiving keeps up: next to nothing of a core that somebody else wants.
const NICE_KEEPING_UP: i32 = 19;
/// While it is behind.
const NICE_BEHIND: i32 = priority::NORMAL;
/// For a user who may lower a priority and never raise it again: a tenth of a core that is wanted.
const NICE_FIXED: i32 = 10;

/// Their priority, which changes while they run.
pub struct ArchiveThreads {
    adjustable: bool,
    nice: AtomicI32,
    threads: Mutex<Vec<Pid>>,
}

impl ArchiveThreads {
    /// A runtime of such threads.
    pub fn runtime() -> Result<(Runtime, Arc<Self>), CliError> {
        let adjustable = priority::is_adjustable();
        let nice = AtomicI32::new(if adjustable { NICE_KEEPING_UP } else { NICE_FIXED });
        let all = Arc::new(Self { adjustable, nice, threads: Mutex::default() });
        let (starts, stops) = (all.clone(), all.clone());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .max_blocking_threads(BLOCKING_THREADS_MAX)
            .thread_name("everlog-archive")
            .on_thread_start(move || starts.started(rustix::thread::gettid()))
            .on_thread_stop(move || stops.stopped(rustix::thread::gettid()))
            .enable_all()
            .build()
            .map_err(|e| CliError::failed(format!("cannot start threads: {e}")))?;
        Ok((runtime, all))
    }

    fn started(&self, thread: Pid) {
        let mut threads = self.threads.lock();
        threads.push(thread);
        priority::set(thread, self.nice.load(Ordering::Acquire));
    }

    fn stopped(&self, thread: Pid) {
        self.threads.lock().retain(|t| *t != thread);
    }

    /// Whether segments have waited for long.
    pub fn set_behind(&self, behind: bool) {
        if !self.adjustable {
            return;
        }
        let nice = if behind { NICE_BEHIND } else { NICE_KEEPING_UP };
        let threads = self.threads.lock();
        if self.nice.swap(nice, Ordering::AcqRel) == nice {
            return;
        }
        tracing::debug!(behind, nice, "archiving changes its pace");
        threads.iter().for_each(|thread| priority::set(*thread, nice));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nice_there(runtime: &Runtime) -> i32 {
        let ask = || rustix::process::getpriority_process(Some(rustix::thread::gettid())).unwrap();
        runtime.block_on(runtime.spawn_blocking(ask)).unwrap()
    }

    #[test]
    fn its_threads_yield_and_get_their_share_when_they_are_behind() {
        let (runtime, threads) = ArchiveThreads::runtime().unwrap();
        let here = rustix::process::getpriority_process(None).unwrap();
        if !threads.adjustable {
            assert_eq!(nice_there(&runtime), NICE_FIXED.max(here));
            return;
        }
        assert_eq!(nice_there(&runtime), NICE_KEEPING_UP);
        threads.set_behind(true);
        assert_eq!(nice_there(&runtime), NICE_BEHIND);
        threads.set_behind(false);
        assert_eq!(nice_there(&runtime), NICE_KEEPING_UP);
        assert_eq!(rustix::process::getpriority_process(None).unwrap(), here, "others keep theirs");
        drop(runtime);
        assert!(threads.threads.lock().is_empty());
    }
}
