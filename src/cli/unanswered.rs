//! Leaves one line out of the log: that the kernel did not want an answer any more.
//!
//! Whoever gives a read up (an interrupted `cat`, a broker that is killed) makes the kernel forget the request, and the answer
//! that comes later is refused with ENOENT. The library below calls that an error; nothing is wrong, and at a cold read it
//! happens often. Who sets `EVERLOG_LOG` sees it.

use std::fmt::{Debug, Write as _};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

const REFUSED: &str = "Failed to send FUSE reply: No such file or directory";

/// Takes part in deciding what is logged.
pub(super) struct Unanswered;

#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" && write!(self.0, "{value:?}").is_err() {
            self.0.clear();
        }
    }
}

impl<S: Subscriber> Layer<S> for Unanswered {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        if *event.metadata().level() != Level::ERROR {
            return true;
        }
        let mut message = Message::default();
        event.record(&mut message);
        !message.0.starts_with(REFUSED)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use parking_lot::Mutex;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_answer_that_nobody_waits_for_is_no_error_and_any_other_failure_is_one() {
        let lines = Lines::default();
        let writer = lines.clone();
        let log = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(log.with(Unanswered), || {
            let gone = std::io::Error::from(rustix::io::Errno::NOENT);
            tracing::error!("Failed to send FUSE reply: {gone}");
            let invalid = std::io::Error::from(rustix::io::Errno::INVAL);
            tracing::error!("Failed to send FUSE reply: {invalid}");
            tracing::error!(error = %gone, "something else");
        });
        let text = String::from_utf8(lines.0.lock().clone()).unwrap();
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("Invalid argument") && text.contains("something else"), "{text}");
    }
}
