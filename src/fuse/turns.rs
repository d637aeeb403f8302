//! Which of the threads wait for requests: few, so that those stay warm.
//!
//! The kernel gives each request to the thread that has waited longest. With sixteen of them each finds its stack and its
//! buffer pushed out of the core's caches again, and a broker waits for that in every append. So a thread that has answered
//! rests here while enough others wait, until the last of those gets work. It never rests for long: should the count be
//! wrong, or the mount have ended, it goes and sees for itself.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// With more than so many others waiting for requests a thread rests.
const WAITING_MAX: usize = 3;
/// With fewer than so many a resting one is called.
const WAITING_MIN: usize = 2;
/// The longest rest; an unmount waits for it.
const REST_MAX: Duration = Duration::from_millis(200);

/// The threads that receive requests.
#[derive(Debug)]
pub struct Turns {
    threads: usize,
    now: Mutex<Now>,
    called: Condvar,
}

#[derive(Debug, Default)]
struct Now {
    /// Busy with a request.
    working: usize,
    resting: usize,
    /// Resting ones that were called and have not noticed yet; no longer counted as resting.
    called: usize,
}

/// One request's; when it is dropped the thread is done with it, the answer given.
#[derive(Debug)]
pub struct Turn<'a>(&'a Turns);

impl Turns {
    /// So many threads, all of them waiting.
    pub fn new(threads: usize) -> Self {
        Self { threads, now: Mutex::default(), called: Condvar::new() }
    }

    /// The calling thread has a request. Keep it until that is answered or handed on.
    pub fn take(&self) -> Turn<'_> {
        let mut now = self.now.lock();
        now.working += 1;
        if now.resting > 0 && self.waiting(&now) < WAITING_MIN {
            now.resting -= 1;
            now.called += 1;
            drop(now);
            self.called.notify_one();
        }
        Turn(self)
    }

    fn waiting(&self, now: &Now) -> usize {
        self.threads.saturating_sub(now.working + now.resting)
    }

    fn done(&self) {
        let mut now = self.now.lock();
        now.working -= 1;
        if self.waiting(&now) <= WAITING_MAX {
            return;
        }
        now.resting += 1;
        let called = |now: &mut Now| now.called == 0;
        if self.called.wait_while_for(&mut now, called, REST_MAX).timed_out() && now.called == 0 {
            now.resting -= 1;
        } else {
            now.called -= 1;
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.done();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc;

    use super::*;

    fn until(turns: &Turns, resting: usize) {
        for _ in 0..10_000 {
            if turns.now.lock().resting == resting {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("never {resting} of {:?}", turns.now.lock());
    }

    #[test]
    fn a_thread_rests_while_enough_others_wait_and_goes_back_by_itself() {
        let turns = Turns::new(WAITING_MAX + 1);
        let turn = turns.take();
        drop(turn);
        assert_eq!(turns.now.lock().resting, 0, "back again");
        assert_eq!(turns.waiting(&turns.now.lock()), WAITING_MAX + 1);
    }

    #[test]
    fn with_few_threads_none_rests() {
        let turns = Turns::new(WAITING_MAX);
        for _ in 0..100 {
            drop(turns.take());
        }
        assert_eq!(turns.now.lock().working, 0);
        assert_eq!(turns.now.lock().resting, 0);
    }

    #[test]
    fn before_the_last_one_that_waits_gets_work_a_resting_one_is_called() {
        let turns = Arc::new(Turns::new(WAITING_MAX + 1));
        let (back, is_back) = mpsc::channel();
        let resting = {
            let turns = turns.clone();
            std::thread::spawn(move || {
                drop(turns.take());
                back.send(()).unwrap();
            })
        };
        until(&turns, 1);
        let working: Vec<Turn<'_>> = (0..WAITING_MAX).map(|_| turns.take()).collect();
        assert_eq!(turns.now.lock().resting, 0, "called");
        is_back.recv().unwrap();
        resting.join().unwrap();
        assert_eq!(turns.waiting(&turns.now.lock()), 1, "and waits");
        drop(working);
        assert_eq!(turns.now.lock().called, 0);
    }

    #[test]
    fn the_counts_are_right_again_after_any_crowd() {
        let turns = Arc::new(Turns::new(8));
        let crowd: Vec<_> = (0..8)
            .map(|_| {
                let turns = turns.clone();
                std::thread::spawn(move || (0..10).for_each(|_| drop(turns.take())))
            })
            .collect();
        crowd.into_iter().for_each(|t| t.join().unwrap());
        let now = turns.now.lock();
        assert_eq!((now.working, now.resting, now.called), (0, 0, 0));
    }
}
