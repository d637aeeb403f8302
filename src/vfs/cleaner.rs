//! Cold reads of Kafka's log cleaner. One that fails takes the broker's whole log dir offline, so they wait for as long as it
//! takes, whatever the failure is: a store comes back, a damaged object can be put right.
//!
//! A request that is under way holds its process, even against SIGKILL. So what the cleaner of a killed broker
//! waits for is answered with the failure.

use std::time::Duration;

use crate::read::{ObjectSource, ReadError};

const RETRY: Duration = Duration::from_secs(1);
/// One line in the log for so many failures of a read.
const FAILURES_PER_LINE: u64 = 60;

/// Whether the reading thread is a log cleaner of a broker that lives.
pub(super) fn must_wait(tid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{tid}/status")).is_ok_and(|s| is_living_cleaner(&s))
}

/// Until the next try of a read that has failed, not counting this one, `failures` times.
pub(super) async fn pause(source: &ObjectSource, error: &ReadError, failures: u64) {
    if failures.is_multiple_of(FAILURES_PER_LINE) {
        tracing::warn!(object = %source.log_key, %error, failures, "the log cleaner waits");
    }
    tokio::time::sleep(RETRY).await;
}

fn is_living_cleaner(status: &str) -> bool {
    let field = |name| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    field("Name:").is_some_and(is_cleaner) && !field("SigPnd:").is_some_and(has_kill)
}

/// The JVM gives its threads' names to the kernel, cut to 15 bytes: `kafka-log-cleaner-thread-0`
/// arrives as its first 15 bytes, or in newer JVMs as its first 7, `..` and its last 6.
fn is_cleaner(name: &str) -> bool {
    name == "kafka-log-clean" || (name.starts_with("kafka-l..") && name.contains("ead-"))
}

/// Whether SIGKILL is in a set of signals, in hexadecimal. A killed process has it in each thread's own.
fn has_kill(signals: &str) -> bool {
    u64::from_str_radix(signals, 16).is_ok_and(|bits| bits & (1 << 8) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(name: &str, pending: &str) -> String {
        format!("Name:\t{name}\nState:\tD (disk sleep)\nSigPnd:\t{pending}\nShdPnd:\t{pending}\n")
    }

    #[test]
    fn only_a_cleaner_of_a_broker_that_was_not_killed_waits() {
        let quiet = "0000000000000000";
        for name in ["kafka-log-clean", "kafka-l..read-0"] {
            assert!(is_living_cleaner(&status(name, quiet)), "{name}");
            assert!(is_living_cleaner(&status(name, "0000000000004000")), "{name} after SIGTERM");
            assert!(!is_living_cleaner(&status(name, "0000000000000100")), "{name} after SIGKILL");
        }
        for name in ["data-plane-kafk", "kafka-l..tion-0", "java"] {
            assert!(!is_living_cleaner(&status(name, quiet)), "{name}");
        }
        assert!(!is_living_cleaner(""));
    }

    #[test]
    fn a_thread_is_asked_for_its_name_by_its_number() {
        let asked = |name: &str| {
            let ask = || must_wait(rustix::thread::gettid().as_raw_nonzero().get() as u32);
            std::thread::Builder::new().name(name.to_owned()).spawn(ask).unwrap().join().unwrap()
        };
        assert!(asked("kafka-log-clean"));
        assert!(!asked("kafka-log-retention"));
    }
}
