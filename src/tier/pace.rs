//! When archiving goes on and when it stands back.
//!
//! A closed segment can wait a little: the newest bytes, in the active one, are not archived at all. So while others
//! want nearly all of the machine nothing is begun. But only for a while: after that it takes what is left over, and
//! once segments have waited for long it gets its full share.

/// A segment that waits for longer means that archiving is behind.
pub(super) const BEHIND_MS: u64 = 60_000;
/// So long at most archiving stands back in one go.
pub(super) const STAND_BACK_MAX_MS: u64 = 30_000;

/// What the tiering tells and asks whoever runs it.
pub trait Pace: Send + Sync {
    /// Segments have waited for long: the tiering may be given more of the cores. Told at each job that starts.
    fn set_behind(&self, behind: bool);
    /// Others want nearly all of the machine's cores now. Asked several times a second.
    fn is_machine_busy(&self) -> bool;
}

/// Whether archiving stands back now.
#[derive(Debug, Default)]
pub(super) struct StandBack {
    /// Since when the machine has been busy while something was to be done; it ends when all of that is done.
    since_ms: Option<u64>,
}

impl StandBack {
    /// Everything is done: the next busy time counts anew.
    pub fn caught_up(&mut self) {
        self.since_ms = None;
    }

    /// Asked while something is to be done.
    pub fn stands_back(&mut self, is_busy: bool, now_ms: u64) -> bool {
        if !is_busy {
            self.since_ms = None;
            return false;
        }
        let since_ms = *self.since_ms.get_or_insert(now_ms);
        now_ms.saturating_sub(since_ms) < STAND_BACK_MAX_MS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_a_machine_that_is_not_busy_it_never_stands_back() {
        let mut it = StandBack::default();
        assert!(!it.stands_back(false, 5));
        assert!(!it.stands_back(false, 1_000_000));
    }

    #[test]
    fn it_stands_back_while_the_machine_is_busy_and_goes_on_at_once_when_it_is_not() {
        let mut it = StandBack::default();
        assert!(it.stands_back(true, 1000));
        assert!(it.stands_back(true, 1000 + STAND_BACK_MAX_MS - 1));
        assert!(!it.stands_back(false, 1000 + STAND_BACK_MAX_MS - 1));
    }

    #[test]
    fn it_stands_back_no_longer_than_it_may_until_all_that_waited_is_done() {
        let mut it = StandBack::default();
        assert!(it.stands_back(true, 1000));
        let late = 1000 + STAND_BACK_MAX_MS;
        assert!(!it.stands_back(true, late));
        assert!(!it.stands_back(true, late + STAND_BACK_MAX_MS));
        it.caught_up();
        assert!(it.stands_back(true, late + STAND_BACK_MAX_MS + 1));
    }
}
