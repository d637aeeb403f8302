//! The threads of all archiving and eviction: they yield to the broker and to the mount while they keep up.
//!
//! On a busy machine a closed segment can wait a little, a producer cannot. But archiving must not starve:
//! once segments wait for long its threads get their full share, until it has caught up (`tier::pace`).

use std::sync::Arc;

use parking_lot::Mutex;
use rustix::process::Pid;
use tokio::runtime::Runtime;

use super::CliError;
use super::machine::Cores;
use crate::local::threads::{self, Share};
use crate::tier::Pace;

/// Threads that wait for the store while archiving.
const WORKERS: usize = 2;
/// Threads for scanning, hashing and local disk.
const BLOCKING_THREADS_MAX: usize = 64;
/// While archiving keeps up.
const KEEPING_UP: Share = Share::Leftovers;
/// While it is behind.
const BEHIND: Share = Share::Normal;
/// For a user who may lower a share and never raise it again.
const FIXED: Share = Share::Low;

/// Their share of the cores, which changes while they run.
pub struct ArchiveThreads {
    adjustable: bool,
    cores: Cores,
    running: Mutex<Running>,
}

struct Running {
    share: Share,
    threads: Vec<Pid>,
}

impl ArchiveThreads {
    /// A runtime of such threads.
    pub fn runtime() -> Result<(Runtime, Arc<Self>), CliError> {
        let adjustable = threads::is_adjustable();
        let share = if adjustable { KEEPING_UP } else { FIXED };
        let running = Mutex::new(Running { share, threads: Vec::new() });
        let all = Arc::new(Self { adjustable, cores: Cores::new(), running });
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
        let mut running = self.running.lock();
        running.threads.push(thread);
        threads::set(thread, running.share);
    }

    fn stopped(&self, thread: Pid) {
        self.running.lock().threads.retain(|t| *t != thread);
    }
}

impl Pace for ArchiveThreads {
    fn set_behind(&self, behind: bool) {
        if !self.adjustable {
            return;
        }
        let share = if behind { BEHIND } else { KEEPING_UP };
        let mut running = self.running.lock();
        if running.share == share {
            return;
        }
        running.share = share;
        tracing::debug!(behind, ?share, "archiving changes its pace");
        running.threads.iter().for_each(|thread| threads::set(*thread, share));
    }

    fn is_machine_busy(&self) -> bool {
        self.cores.are_busy()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there(runtime: &Runtime) -> (u32, i32) {
        runtime.block_on(runtime.spawn_blocking(threads::own)).unwrap()
    }

    #[test]
    fn its_threads_yield_and_get_their_share_when_they_are_behind() {
        let (runtime, threads) = ArchiveThreads::runtime().unwrap();
        let here = threads::own();
        if !threads.adjustable {
            assert_eq!(there(&runtime).1, 10.max(here.1));
            return;
        }
        let leftovers = there(&runtime);
        assert_ne!(leftovers.0, here.0, "another policy");
        threads.set_behind(true);
        assert_eq!(there(&runtime), (0, 0));
        threads.set_behind(false);
        assert_eq!(there(&runtime), leftovers);
        assert_eq!(threads::own(), here, "others keep theirs");
        drop(runtime);
        assert!(threads.running.lock().threads.is_empty());
    }
}
