//! How busy the machine's cores are, from `/proc/stat` (`proc(5)`).

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Looked at no more often than this, and over as long a time at least.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// From here on the cores count as busy. Two that share one core's units are slower than they look.
const BUSY_PERMILLE: u64 = 750;

/// Time of all cores since the machine started, in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ticks {
    /// All of it.
    all: u64,
    /// What somebody wanted that is not content with leftovers: neither idle time nor that of niced work.
    wanted: u64,
}

impl Ticks {
    /// The line of all cores together: user, nice, system, idle, iowait, irq, softirq, steal. What guests took is part
    /// of the first two.
    fn parse(stat: &str) -> Option<Self> {
        let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let ticks: Vec<u64> =
            line.split_whitespace().take(8).map(str::parse).collect::<Result<_, _>>().ok()?;
        let [_, nice, _, idle, waiting, ..] = ticks.as_slice() else { return None };
        let all: u64 = ticks.iter().sum();
        Some(Self { all, wanted: all - nice - idle - waiting })
    }

    fn now() -> Option<Self> {
        Self::parse(&std::fs::read_to_string("/proc/stat").ok()?)
    }

    fn is_busy_since(self, before: Self) -> bool {
        let all = self.all.saturating_sub(before.all);
        let wanted = self.wanted.saturating_sub(before.wanted);
        all > 0 && wanted.saturating_mul(1000) >= all.saturating_mul(BUSY_PERMILLE)
    }
}

/// The cores of this machine.
pub struct Cores {
    last: Mutex<Look>,
}

struct Look {
    at: Option<Instant>,
    ticks: Option<Ticks>,
    busy: bool,
}

impl Cores {
    /// Nothing is known at first.
    pub fn new() -> Self {
        Self { last: Mutex::new(Look { at: None, ticks: None, busy: false }) }
    }

    /// Whether they were busy lately; false where that cannot be known.
    pub fn are_busy(&self) -> bool {
        let mut last = self.last.lock();
        if last.at.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
            return last.busy;
        }
        let now = Ticks::now();
        let busy = now.zip(last.ticks).is_some_and(|(now, before)| now.is_busy_since(before));
        // A look from long ago tells nothing about now; there will be a newer one in a moment.
        let recent = last.at.is_some_and(|at| at.elapsed() < LOOK_EVERY * 5);
        *last = Look { at: Some(Instant::now()), ticks: now, busy: busy && recent };
        last.busy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(line: &str) -> Ticks {
        Ticks::parse(&format!("{line}\ncpu0 1 2 3 4 5 6 7 8 9 10\nintr 5\n")).unwrap()
    }

    #[test]
    fn niced_work_and_waiting_for_a_disk_do_not_make_the_cores_busy() {
        let before = ticks("cpu  100 100 100 100 100 10 10 10 5 5");
        assert_eq!(before, Ticks { all: 530, wanted: 230 });
        assert!(!ticks("cpu  100 1100 100 100 100 10 10 10 5 5").is_busy_since(before));
        assert!(!ticks("cpu  100 100 100 100 1100 10 10 10 5 5").is_busy_since(before));
        assert!(!ticks("cpu  800 100 100 400 100 10 10 10 5 5").is_busy_since(before));
        assert!(ticks("cpu  800 100 100 300 100 10 10 10 5 5").is_busy_since(before));
        assert!(ticks("cpu  100 100 100 100 100 10 10 500 5 5").is_busy_since(before), "stolen");
    }

    #[test]
    fn what_cannot_be_read_is_not_busy() {
        for text in ["", "cpu  1 2 x 4 5 6 7 8\n", "cpu  1 2\n", "cpu0 1 2 3 4 5 6 7 8\n"] {
            assert_eq!(Ticks::parse(text), None, "{text:?}");
        }
        let same = ticks("cpu  1 2 3 4 5 6 7 8 9 10");
        assert!(!same.is_busy_since(same));
    }

    #[test]
    fn this_machine_can_be_asked() {
        assert!(Ticks::now().is_some());
        assert!(!Cores::new().are_busy(), "after one look nothing is known");
    }
}
