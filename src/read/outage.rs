//! Whether the store seems to be away, so that reads of what is not cached fail soon instead of each
//! finding it out for itself.
//!
//! A few failures in a row are taken for an outage; from then on one request at most is made per
//! pause, and the first that succeeds ends it. A pure state with the time passed in.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

const FAILURES_MAX: u32 = 3;
const PAUSE: Duration = Duration::from_millis(500);

#[derive(Default)]
struct State {
    failures: u32,
    last: Option<(Instant, String)>,
}

/// Successive failures of the store.
#[derive(Default)]
pub(super) struct Outage {
    state: Mutex<State>,
}

impl Outage {
    pub fn succeeded(&self) {
        let mut state = self.state.lock();
        if state.failures > 0 {
            *state = State::default();
        }
    }

    pub fn failed(&self, why: &str, now: Instant) {
        let mut state = self.state.lock();
        state.failures = state.failures.saturating_add(1);
        state.last = Some((now, why.to_owned()));
    }

    /// Whether a request that failed is worth repeating at once.
    pub fn may_retry(&self) -> bool {
        self.state.lock().failures < FAILURES_MAX
    }

    /// The last failure, if it is too soon to ask the store again.
    pub fn refuses(&self, now: Instant) -> Option<String> {
        let state = self.state.lock();
        let (at, why) = state.last.as_ref()?;
        let soon = now.saturating_duration_since(*at) < PAUSE;
        (state.failures >= FAILURES_MAX && soon).then(|| why.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_begins_with_the_third_failure_and_pauses_requests() {
        let (outage, now) = (Outage::default(), Instant::now());
        outage.failed("a", now);
        outage.failed("b", now);
        assert!(outage.may_retry() && outage.refuses(now).is_none());
        outage.failed("c", now);
        assert!(!outage.may_retry());
        assert_eq!(outage.refuses(now), Some("c".to_owned()));
        assert_eq!(outage.refuses(now + PAUSE), None);
    }

    #[test]
    fn one_success_ends_an_outage() {
        let (outage, now) = (Outage::default(), Instant::now());
        (0..9).for_each(|_| outage.failed("x", now));
        outage.succeeded();
        assert!(outage.may_retry() && outage.refuses(now).is_none());
    }
}
