//! How long a broker's service threads wait for cold bytes.
//!
//! A broker has a few threads for all clients. One that waits for the store makes everybody wait who is
//! served by it, so it is let go early with EIO, which costs the consumer a retry; the fetch goes on, and the
//! retry finds the bytes. Once the store has let one of them wait in vain, the others do not wait as long
//! until it gives bytes again. Other threads of a broker (recovery, replication, the cleaner) and people's
//! tools wait for the whole deadline.

use std::time::Duration;

use parking_lot::Mutex;

/// While the store gives nothing.
const WAIT_IN_OUTAGE: Duration = Duration::from_millis(20);

/// The wait of all service threads of a mount.
pub(super) struct Patience {
    wait: Duration,
    /// What the store had given in all when somebody waited in vain.
    given_up_at: Mutex<Option<u64>>,
}

impl Patience {
    /// Of a store that works.
    pub fn new(wait: Duration) -> Self {
        Self { wait, given_up_at: Mutex::default() }
    }

    /// How long to wait, with what the store has given in all up to now.
    pub fn limit(&self, given_bytes: u64) -> Duration {
        let mut given_up_at = self.given_up_at.lock();
        if given_up_at.is_some_and(|before| before != given_bytes) {
            *given_up_at = None;
        }
        match *given_up_at {
            Some(_) => WAIT_IN_OUTAGE.min(self.wait),
            None => self.wait,
        }
    }

    /// Somebody waited in vain.
    pub fn gave_up(&self, given_bytes: u64) {
        *self.given_up_at.lock() = Some(given_bytes);
    }
}

/// Whether a thread of this name serves clients: `data-plane-kafka-request-handler-3` and
/// `data-plane-kafka-network-thread-…` arrive as their first 15 bytes, or in newer JVMs as their first 7, `..`
/// and their last 6; without a plane in old brokers.
pub(super) fn serves_clients(thread: &str) -> bool {
    ["data-pl", "kafka-request-h", "kafka-network-t"].iter().any(|n| thread.starts_with(n))
        || (thread.starts_with("kafka-r..") && thread.contains("ler-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_in_vain_shortens_the_next_ones_until_the_store_gives_again() {
        let patience = Patience::new(Duration::from_secs(2));
        assert_eq!(patience.limit(10), Duration::from_secs(2));
        patience.gave_up(10);
        assert_eq!(patience.limit(10), WAIT_IN_OUTAGE);
        assert_eq!(patience.limit(10), WAIT_IN_OUTAGE);
        assert_eq!(patience.limit(11), Duration::from_secs(2));
        assert_eq!(patience.limit(11), Duration::from_secs(2));
    }

    #[test]
    fn threads_that_serve_clients_are_told_from_others() {
        for name in ["data-plane-kafk", "data-pl..dler-3", "data-pl..TEXT-0", "kafka-request-h"] {
            assert!(serves_clients(name), "{name}");
        }
        for name in ["kafka-log-clean", "kafka-l..ead-0", "log-recovery-/m", "java", "cat", ""] {
            assert!(!serves_clients(name), "{name}");
        }
    }
}
