//! How this machine schedules our threads: who goes first where all cores are busy.
//!
//! `sched_setattr(2)` sets policy, nice value and slice at once; no library that we use wraps it.

use std::io;

use rustix::process::{Pid, setpriority_process};

/// `SCHED_OTHER` of `sched(7)`.
const SCHED_OTHER: u32 = 0;
/// `SCHED_IDLE` of `sched(7)`.
const SCHED_IDLE: u32 = 5;
/// The largest nice value.
const NICE_MAX: i32 = 19;
/// The size of `struct sched_attr` in its first version, which every kernel takes.
const SCHED_ATTR_BYTES: u32 = 48;

/// What a thread gets of a core that others want as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// Threads that serve the kernel. A broker's thread waits for each of their answers, which take little time on a core
    /// and long in a queue for one: they are weighed high and run for so short a time that they may interrupt at once.
    Serving,
    /// All else that somebody waits for.
    Normal,
    /// A tenth or so of a core that is wanted.
    Low,
    /// What nobody else wants. Whoever wakes up goes first at once, which a nice value alone does not give. It has one all
    /// the same: then the kernel counts its time apart.
    Leftovers,
}

/// `struct sched_attr` of `sched_setattr(2)`.
#[repr(C)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime_ns: u64,
    deadline_ns: u64,
    period_ns: u64,
}

impl Share {
    fn attributes(self) -> SchedAttr {
        // A slice of 0 is the kernel's own; before 6.12 it has no other.
        let (policy, nice, slice_us) = match self {
            Self::Serving => (SCHED_OTHER, -15, 100),
            Self::Normal => (SCHED_OTHER, 0, 0),
            Self::Low => (SCHED_OTHER, 10, 0),
            Self::Leftovers => (SCHED_IDLE, 0, 0),
        };
        SchedAttr {
            size: SCHED_ATTR_BYTES,
            policy,
            flags: 0,
            nice,
            priority: 0,
            runtime_ns: slice_us * 1000,
            deadline_ns: 0,
            period_ns: 0,
        }
    }
}

/// Whether a share may be made larger, and larger again after it was made less.
pub fn is_adjustable() -> bool {
    rustix::process::geteuid().is_root()
}

/// Gives a thread its share. Where that is not permitted it keeps what it has.
pub fn set(thread: Pid, share: Share) {
    if let Err(error) = try_set(thread, share) {
        tracing::debug!(%error, ?share, "a thread keeps its scheduling");
    }
}

fn try_set(thread: Pid, share: Share) -> io::Result<()> {
    let attributes = share.attributes();
    let (tid, flags) = (thread.as_raw_nonzero().get(), 0u32);
    // SAFETY: the kernel reads as many bytes as `size` says, which is the struct's size, and only during the call.
    let done = unsafe { libc::syscall(libc::SYS_sched_setattr, tid, &raw const attributes, flags) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    if share == Share::Leftovers {
        // The call above takes no nice value together with this policy.
        setpriority_process(Some(thread), NICE_MAX)?;
    }
    Ok(())
}

/// Gives the calling thread, and all that it starts from now on, their share, if that is permitted.
pub fn set_own(share: Share) {
    if is_adjustable() {
        set(rustix::thread::gettid(), share);
    }
}

/// Policy and nice value of the calling thread.
#[cfg(test)]
pub(crate) fn own() -> (u32, i32) {
    let tid = rustix::thread::gettid();
    let stat = std::fs::read_to_string(format!("/proc/self/task/{tid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    (fields[38].parse().unwrap(), fields[16].parse().unwrap())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_struct_is_as_long_as_it_says() {
        assert_eq!(size_of::<SchedAttr>(), SCHED_ATTR_BYTES as usize);
    }

    #[test]
    fn threads_begin_with_the_share_of_the_one_that_starts_them() {
        let before = own();
        let inside = std::thread::spawn(|| {
            set_own(Share::Serving);
            (own(), std::thread::spawn(own).join().unwrap())
        });
        let expected = if is_adjustable() { (SCHED_OTHER, -15) } else { before };
        assert_eq!(inside.join().unwrap(), (expected, expected));
        assert_eq!(own(), before, "others keep theirs");
    }

    #[test]
    fn a_share_can_be_made_smaller_and_where_permitted_larger_again() {
        let seen = std::thread::spawn(|| {
            set(rustix::thread::gettid(), Share::Leftovers);
            let least = own();
            set(rustix::thread::gettid(), Share::Normal);
            (least, own())
        });
        let (least, after) = seen.join().unwrap();
        assert_eq!(least, (SCHED_IDLE, NICE_MAX));
        if is_adjustable() {
            assert_eq!(after, (SCHED_OTHER, 0));
        }
    }
}
