//! Where a file's readers are going: its sequential streams, told apart by position.
//!
//! Decides only how far to fetch; it never reads. A wrong guess costs a fetch, so it needs no
//! promises from the kernel about the order of requests. A stream's window follows what was read in one
//! go: a reader that goes on soon has the whole window, one that looks at a few bytes or jumps about has
//! next to none. A window that reaches beyond the object's end goes on in the object that follows.

use std::ops::Range;
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;

use super::{ObjectSource, ReadConfig};
use crate::types::ObjectKey;

const STREAMS_MAX: usize = 16;
/// Requests of one sequential reader may arrive in another order than it made them.
const DISORDER_BYTES: u64 = 1024 * 1024;
/// What a broker that reads a batch's header will want: up to 1 MiB for the consumer's fetch. The kernel reads ahead of
/// that, and who wants the last page waits for all that was asked for with it.
pub(super) const BROKER_FETCH_BYTES: u64 = 2 * 1024 * 1024;
/// The window is this many times what was read in one go.
const WINDOW_FACTOR: u64 = 24;
/// A reader that began amid an object is taken for a sequential one after this much.
const RUN_BYTES_MIN: u64 = 512 * 1024;

/// What to do about one read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// If it misses, fetch up to here in one go.
    pub demand_end: u64,
    /// In the background.
    pub ahead: Ahead,
}

/// What a reader will want.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ahead {
    /// Of this object.
    pub range: Option<Range<u64>>,
    /// Of what follows, counted from this object's end.
    pub beyond: Option<Range<u64>>,
    /// What was read in one go up to now.
    pub run_bytes: u64,
}

/// A reader is about to come here from the object before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Expected {
    /// What it has read in one go.
    pub run_bytes: u64,
    /// From the start of this object.
    pub prefetched_to: u64,
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
    /// If it is the start of an object that a reader of the one before is about to reach.
    pub expected: Option<Expected>,
}

struct Stream {
    object: ObjectKey,
    next: u64,
    /// Read in one go, also in the objects before.
    run_bytes: u64,
    /// Whether `run_bytes` says that it is sequential, however small.
    opening: bool,
    prefetched_to: u64,
    /// Counted from the object's end.
    beyond_to: u64,
    used: u64,
}

#[derive(Default)]
struct State {
    streams: Vec<Stream>,
    reads: u64,
    broker: bool,
}

/// What follows an object in its partition, if that is archived.
type Followers = Box<dyn Fn(&ObjectKey) -> Option<ObjectSource> + Send + Sync>;

/// The sequential streams of one open file.
#[derive(Default)]
pub struct ReadStreams {
    state: Mutex<State>,
    followers: OnceLock<Followers>,
    /// While it lives, somebody reads.
    interest: Arc<()>,
}

impl ReadStreams {
    /// For a file that others follow: `next` names the object after a given one. It is called on threads
    /// that serve reads, so it must not wait.
    #[must_use]
    pub fn followed_by(
        next: impl Fn(&ObjectKey) -> Option<ObjectSource> + Send + Sync + 'static,
    ) -> Self {
        Self { followers: OnceLock::from(Box::new(next) as Followers), ..Self::default() }
    }

    pub(super) fn following(&self, object: &ObjectKey) -> Option<ObjectSource> {
        self.followers.get().and_then(|next| next(object))
    }

    pub(super) fn interest(&self) -> Weak<()> {
        Arc::downgrade(&self.interest)
    }

    pub(super) fn note(&self, step: Step<'_>, config: &ReadConfig) -> Plan {
        let mut state = self.state.lock();
        state.reads += 1;
        state.broker = step.broker.unwrap_or(state.broker);
        let (reads, broker) = (state.reads, state.broker);
        let first = config.first_fetch_bytes;
        let of_step = |s: &&mut Stream| {
            let slack = s.window_bytes(config).max(DISORDER_BYTES);
            s.object == *step.object
                && step.offset >= s.next.saturating_sub(DISORDER_BYTES)
                && step.offset <= s.next + slack
        };
        if let Some(stream) = state.streams.iter_mut().find(of_step) {
            stream.used = reads;
            let demand_end = step.end.max(step.offset + first).min(step.size_bytes);
            return Plan { demand_end, ahead: stream.go_on(step, config) };
        }
        let (stream, plan) = Stream::begin(step, broker, reads, config);
        if state.streams.len() < STREAMS_MAX {
            state.streams.push(stream);
        } else if let Some(oldest) = state.streams.iter_mut().min_by_key(|s| s.used) {
            *oldest = stream;
        }
        plan
    }
}

impl Stream {
    fn begin(step: Step<'_>, broker: bool, reads: u64, config: &ReadConfig) -> (Self, Plan) {
        let first = config.first_fetch_bytes;
        let opening = broker || step.offset == 0;
        let at_least = |bytes: u64| (step.offset + bytes).max(step.end).min(step.size_bytes);
        let demand_end = if opening { at_least(first) } else { step.end };
        let fetched = if step.hit { step.end } else { demand_end };
        let inherited = step.expected.unwrap_or(Expected { run_bytes: 0, prefetched_to: 0 });
        let mut stream = Self {
            object: step.object.clone(),
            next: step.offset,
            run_bytes: inherited.run_bytes,
            opening,
            prefetched_to: inherited.prefetched_to.max(fetched),
            beyond_to: 0,
            used: reads,
        };
        let mut ahead = stream.go_on(step, config);
        // From the read's own end: if it hits, nothing is fetched up to `demand_end`.
        let response = at_least(first.max(BROKER_FETCH_BYTES));
        if broker && response > step.end {
            let end = ahead.range.map_or(response, |range| range.end.max(response));
            stream.prefetched_to = stream.prefetched_to.max(end);
            ahead.range = Some(step.end..end);
        }
        (stream, Plan { demand_end, ahead })
    }

    fn window_bytes(&self, config: &ReadConfig) -> u64 {
        match self.opening || self.run_bytes >= RUN_BYTES_MIN {
            true => (self.run_bytes * WINDOW_FACTOR).min(config.window_bytes_max),
            false => 0,
        }
    }

    fn go_on(&mut self, step: Step<'_>, config: &ReadConfig) -> Ahead {
        if step.end <= self.next {
            return Ahead::default();
        }
        self.run_bytes += step.end - self.next.max(step.offset);
        self.next = step.end;
        let window = self.window_bytes(config);
        let ahead_bytes = self.prefetched_to.saturating_sub(step.end) + self.beyond_to;
        if ahead_bytes >= window / 2 {
            return Ahead::default();
        }
        let reach = step.end + window;
        let start = self.prefetched_to.max(step.end);
        let end = reach.min(step.size_bytes);
        self.prefetched_to = self.prefetched_to.max(end);
        let beyond = self.beyond_to..reach.saturating_sub(step.size_bytes);
        self.beyond_to = self.beyond_to.max(beyond.end);
        Ahead {
            range: (start < end).then_some(start..end),
            beyond: (beyond.start < beyond.end).then_some(beyond),
            run_bytes: self.run_bytes,
        }
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
            expected: None,
        };
        streams.note(step, &ReadConfig::default())
    }

    fn sequential(streams: &ReadStreams, reads: Range<u64>, config: &ReadConfig) -> u64 {
        let mut fetched = 0;
        for offset in reads.map(|i| i * 128 * KIB) {
            let plan = note(streams, offset, 128 * KIB, false);
            if fetched < offset + 128 * KIB {
                fetched = plan.demand_end;
            }
            if let Some(range) = plan.ahead.range {
                assert_eq!(range.start, fetched, "a hole before {range:?}");
                fetched = range.end;
            }
            let ahead = fetched - offset - 128 * KIB;
            assert!(ahead <= config.window_bytes_max.max(config.first_fetch_bytes));
        }
        fetched
    }

    #[test]
    fn the_window_grows_with_what_was_read_in_one_go_and_has_no_holes() {
        let config = ReadConfig::default();
        let streams = ReadStreams::default();
        assert_eq!(sequential(&streams, 0..1, &config), (1 + WINDOW_FACTOR) * 128 * KIB);
        let streams = ReadStreams::default();
        let fetched = sequential(&streams, 0..200, &config);
        assert!(fetched - 200 * 128 * KIB >= config.window_bytes_max / 2);
    }

    #[test]
    fn a_few_bytes_at_the_start_announce_few_more() {
        let plan = note(&ReadStreams::default(), 0, 100, false);
        assert_eq!(plan.demand_end, 256 * KIB);
        assert_eq!(plan.ahead.range, None);
    }

    #[test]
    fn a_reader_that_jumps_fetches_only_what_it_asks_for() {
        let streams = ReadStreams::default();
        for offset in [500, 100, 900, 300, 700, 200].map(|mib| mib << 20) {
            let plan = note(&streams, offset, 4 * KIB, false);
            assert_eq!((plan.demand_end, plan.ahead.range), (offset + 4 * KIB, None));
        }
    }

    #[test]
    fn a_reader_that_begins_amid_an_object_proves_itself_first() {
        let streams = ReadStreams::default();
        let offsets = (0..8u64).map(|i| (100 << 20) + i * 64 * KIB);
        let ahead: Vec<bool> =
            offsets.map(|at| note(&streams, at, 64 * KIB, false).ahead.range.is_some()).collect();
        assert_eq!(ahead, [false, false, false, false, false, false, false, true]);
    }

    #[test]
    fn four_interleaved_readers_each_get_their_window() {
        let streams = ReadStreams::default();
        let mut prefetched = [false; 4];
        for step in 0..8u64 {
            for reader in 0..4u64 {
                let offset = reader * (SIZE / 4) + step * 128 * KIB;
                let plan = note(&streams, offset, 128 * KIB, false);
                prefetched[reader as usize] |= plan.ahead.range.is_some();
            }
        }
        assert_eq!(prefetched, [true; 4]);
    }

    #[test]
    fn a_brokers_header_read_announces_a_whole_fetch() {
        let plan = note(&ReadStreams::default(), 77 << 20, 17, true);
        assert_eq!(plan.demand_end, (77 << 20) + 256 * KIB);
        assert_eq!(plan.ahead.range, Some((77 << 20) + 17..(77 << 20) + 2048 * KIB));
    }

    #[test]
    fn nothing_of_the_object_is_planned_beyond_its_end() {
        let streams = ReadStreams::default();
        let plan = note(&streams, SIZE - 10, 10, true);
        assert_eq!((plan.demand_end, plan.ahead.range), (SIZE, None));
    }

    #[test]
    fn a_window_goes_on_in_the_next_object_and_its_reader_begins_there_at_full_speed() {
        let (streams, config) = (ReadStreams::default(), ReadConfig::default());
        let (object, size) = (ObjectKey("o".into()), 8 << 20);
        let (mut beyond_to, mut run) = (0, 0);
        for offset in (0..64u64).map(|i| i * 128 * KIB) {
            let end = offset + 128 * KIB;
            let (hit, broker) = (true, Some(false));
            let step = Step {
                object: &object,
                size_bytes: size,
                offset,
                end,
                hit,
                broker,
                expected: None,
            };
            let ahead = streams.note(step, &config).ahead;
            assert!(ahead.range.is_none_or(|range| range.end <= size));
            if let Some(beyond) = ahead.beyond {
                assert_eq!(beyond.start, beyond_to, "a hole, or twice");
                (beyond_to, run) = (beyond.end, ahead.run_bytes);
            }
        }
        assert!(beyond_to > config.window_bytes_max / 2, "{beyond_to}");
        let next = ObjectKey("p".into());
        let expected = Some(Expected { run_bytes: run, prefetched_to: beyond_to });
        let step = Step {
            object: &next,
            size_bytes: SIZE,
            offset: 0,
            end: 128 * KIB,
            hit: true,
            broker: Some(false),
            expected,
        };
        let streams = ReadStreams::default();
        let plan = streams.note(step, &config);
        let range = plan.ahead.range.map_or(beyond_to, |range| range.start);
        assert_eq!(range, beyond_to, "fetched again");
        assert!(streams.state.lock().streams[0].window_bytes(&config) == config.window_bytes_max);
    }
}
