//! Where a file's readers are going: up to four sequential streams, told apart by position.
//!
//! Decides only how far to fetch; it never reads. A wrong guess costs a fetch, so it needs no
//! promises from the kernel about the order of requests. The windows grow while a reader goes on
//! and stay at the demanded blocks for one that jumps about.

use std::ops::Range;

use parking_lot::Mutex;

use super::ReadConfig;
use crate::types::ObjectKey;

const STREAMS_MAX: usize = 4;
/// Requests of one sequential reader may arrive in another order than it made them.
const DISORDER_BYTES: u64 = 1024 * 1024;
/// A broker that reads a batch's header asks for up to this much next.
const BROKER_FETCH_BYTES: u64 = 1024 * 1024;

/// What to do about one read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// If it misses, fetch up to here in one go.
    pub demand_end: u64,
    /// Fetch this in the background.
    pub prefetch: Option<Range<u64>>,
}

/// One read, as it arrives.
#[derive(Clone, Copy)]
pub(super) struct Step<'a> {
    pub object: &'a ObjectKey,
    pub size_bytes: u64,
    pub offset: u64,
    pub end: u64,
    /// Whether all of it was on disk.
    pub hit: bool,
    /// `None`: as in the read before.
    pub broker: Option<bool>,
}

struct Stream {
    object: ObjectKey,
    next: u64,
    window_bytes: u64,
    prefetched_to: u64,
    used: u64,
}

#[derive(Default)]
struct State {
    streams: Vec<Stream>,
    reads: u64,
    broker: bool,
}

/// The sequential streams of one open file.
#[derive(Default)]
pub struct ReadStreams {
    state: Mutex<State>,
}

impl ReadStreams {
    pub(super) fn note(&self, step: Step<'_>, config: &ReadConfig) -> Plan {
        let mut state = self.state.lock();
        state.reads += 1;
        state.broker = step.broker.unwrap_or(state.broker);
        let (reads, broker) = (state.reads, state.broker);
        let first = config.first_fetch_bytes;
        let of_step = |s: &&mut Stream| {
            let slack = s.window_bytes.max(DISORDER_BYTES);
            s.object == *step.object
                && step.offset >= s.next.saturating_sub(DISORDER_BYTES)
                && step.offset <= s.next + slack
        };
        if let Some(stream) = state.streams.iter_mut().find(of_step) {
            stream.used = reads;
            let demand_end = step.end.max(step.offset + first).min(step.size_bytes);
            return Plan { demand_end, prefetch: stream.go_on(step, config) };
        }
        let opening = broker || step.offset == 0;
        let reach = if broker { first.max(BROKER_FETCH_BYTES) } else { first };
        let at_least = |bytes: u64| (step.offset + bytes).max(step.end).min(step.size_bytes);
        let demand_end = if opening { at_least(first) } else { step.end };
        let prefetch = (broker && at_least(reach) > step.end).then(|| step.end..at_least(reach));
        let fetched = if step.hit { step.end } else { demand_end };
        let stream = Stream {
            object: step.object.clone(),
            next: step.end,
            window_bytes: if opening { reach } else { first / 2 },
            prefetched_to: prefetch.as_ref().map_or(fetched, |range| range.end),
            used: reads,
        };
        if state.streams.len() < STREAMS_MAX {
            state.streams.push(stream);
        } else if let Some(oldest) = state.streams.iter_mut().min_by_key(|s| s.used) {
            *oldest = stream;
        }
        Plan { demand_end, prefetch }
    }
}

impl Stream {
    fn go_on(&mut self, step: Step<'_>, config: &ReadConfig) -> Option<Range<u64>> {
        if step.end <= self.next {
            return None;
        }
        self.next = step.end;
        if self.prefetched_to.saturating_sub(step.end) >= self.window_bytes / 2 {
            return None;
        }
        self.window_bytes = (self.window_bytes * 2).min(config.window_bytes_max);
        let start = self.prefetched_to.max(step.end);
        let end = (step.end + self.window_bytes).min(step.size_bytes);
        self.prefetched_to = self.prefetched_to.max(end);
        (start < end).then_some(start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1024;
    const SIZE: u64 = 1 << 30;

    fn note(streams: &ReadStreams, offset: u64, len: u64, broker: bool) -> Plan {
        let object = ObjectKey("o".into());
        let end = offset + len;
        let step = Step {
            object: &object,
            size_bytes: SIZE,
            offset,
            end,
            hit: false,
            broker: Some(broker),
        };
        streams.note(step, &ReadConfig::default())
    }

    #[test]
    fn the_window_doubles_while_a_reader_goes_on_and_has_no_holes() {
        let streams = ReadStreams::default();
        let config = ReadConfig::default();
        let mut fetched = note(&streams, 0, 128 * KIB, false).demand_end;
        assert_eq!(fetched, 256 * KIB);
        let mut widest = 0;
        for offset in (1..1000).map(|i| i * 128 * KIB) {
            if let Some(range) = note(&streams, offset, 128 * KIB, false).prefetch {
                assert_eq!(range.start, fetched, "a hole before {range:?}");
                fetched = range.end;
            }
            let ahead = fetched - offset - 128 * KIB;
            assert!(ahead <= config.window_bytes_max);
            widest = widest.max(ahead);
        }
        assert_eq!(widest, config.window_bytes_max);
    }

    #[test]
    fn a_reader_that_jumps_fetches_only_what_it_asks_for() {
        let streams = ReadStreams::default();
        for offset in [500, 100, 900, 300, 700, 200].map(|mib| mib << 20) {
            let plan = note(&streams, offset, 4 * KIB, false);
            assert_eq!(plan, Plan { demand_end: offset + 4 * KIB, prefetch: None });
        }
    }

    #[test]
    fn four_interleaved_readers_each_get_their_window() {
        let streams = ReadStreams::default();
        let mut prefetched = [false; 4];
        for step in 0..8u64 {
            for reader in 0..4u64 {
                let offset = reader * (SIZE / 4) + step * 128 * KIB;
                let plan = note(&streams, offset, 128 * KIB, false);
                prefetched[reader as usize] |= plan.prefetch.is_some();
            }
        }
        assert_eq!(prefetched, [true; 4]);
    }

    #[test]
    fn a_brokers_header_read_announces_a_whole_fetch() {
        let plan = note(&ReadStreams::default(), 77 << 20, 17, true);
        assert_eq!(plan.demand_end, (77 << 20) + 256 * KIB);
        assert_eq!(plan.prefetch, Some((77 << 20) + 17..(77 << 20) + 1024 * KIB));
    }

    #[test]
    fn nothing_is_planned_beyond_the_end() {
        let streams = ReadStreams::default();
        let plan = note(&streams, SIZE - 10, 10, true);
        assert_eq!(plan, Plan { demand_end: SIZE, prefetch: None });
    }
}
