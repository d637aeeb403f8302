//! Scheduling priorities of threads: who goes first on a machine whose cores are all busy.

use rustix::process::{Pid, setpriority_process};

/// Threads that serve the kernel. A broker's thread waits for each of their answers, which take little time on a core
/// and long in a queue for one.
pub const SERVING: i32 = -15;
/// All else that somebody waits for.
pub const NORMAL: i32 = 0;

/// Whether priorities may be raised, and raised again after they were lowered.
pub fn is_adjustable() -> bool {
    rustix::process::geteuid().is_root()
}

/// Gives a thread its nice value. Where that is not permitted it keeps what it has.
pub fn set(thread: Pid, nice: i32) {
    if let Err(error) = setpriority_process(Some(thread), nice) {
        tracing::debug!(%error, nice, "a thread keeps its priority");
    }
}

/// Gives the calling thread, and all that it starts from now on, their nice value, if that is permitted.
pub fn set_own(nice: i32) {
    if is_adjustable() {
        set(rustix::thread::gettid(), nice);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> i32 {
        rustix::process::getpriority_process(Some(rustix::thread::gettid())).unwrap()
    }

    #[test]
    fn threads_begin_with_the_priority_of_the_one_that_starts_them() {
        let before = own();
        let inside = std::thread::spawn(|| {
            set_own(SERVING);
            (own(), std::thread::spawn(own).join().unwrap())
        });
        let expected = if is_adjustable() { SERVING } else { before };
        assert_eq!(inside.join().unwrap(), (expected, expected));
        assert_eq!(own(), before, "others keep theirs");
    }
}
