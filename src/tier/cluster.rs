//! What became of a topic whose directory was given up, as far as the cluster's own log on local disk tells.
//!
//! A broker renames a partition's directory in the same way when its topic is deleted and when the partition
//! moves to another log dir or broker. The difference stands in KRaft's metadata log: the broker acts on
//! a removal only after it has written it there. So a topic is called deleted only where that log says so,
//! and moved only where that log, read to its end, made the topic and did not remove it, and was still written to
//! when the segment went: one that a broker left behind tells nothing of later days. Else nobody knows.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use parking_lot::Mutex;

use crate::kafka::metadata::{TopicNews, read_topics};
use crate::kafka::names::{FileKind, Suffix, parse_file};
use crate::types::TopicId;

/// Topics that are remembered, made and removed ones each (16 to 64 MiB of memory at most). With more nobody knows.
const TOPICS_MAX: usize = 250_000;
/// A running cluster writes to its log twice a second (`metadata.max.idle.interval.ms`), milliseconds.
const LIVES_MS: u64 = 10_000;
/// Read at once; grows to the longest batch.
const PIECE_BYTES: usize = 1 << 20;
const PIECE_BYTES_MAX: usize = 32 << 20;
/// Compared to see whether the log is still the one that was read.
const WITNESS_BYTES: usize = 61;

/// What is known of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TopicFate {
    /// The metadata log removed it.
    Deleted,
    /// The metadata log made it and has not removed it, and was written to until then.
    Exists,
    /// There is no such log here, it cannot be read, or it does not speak of the topic.
    Unknown,
}

#[derive(Debug, Default)]
struct Read {
    made: HashSet<TopicId>,
    removed: HashSet<TopicId>,
    /// Where reading goes on: a segment's base offset and a position in it.
    base_offset: i64,
    position: u64,
    /// The last bytes before that position: truncated and written anew, they differ.
    witness: Vec<u8>,
    /// When the last segment was last written to.
    written_ms: u64,
}

/// The metadata log of one broker; nothing is read before somebody asks.
#[derive(Debug)]
pub(super) struct ClusterLog {
    dir: PathBuf,
    read: Mutex<Option<Read>>,
}

impl ClusterLog {
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, read: Mutex::default() }
    }

    /// Reads what is new in the log and answers for a segment that went at `at_ms`. Blocking.
    pub fn fate(&self, topic_id: &TopicId, at_ms: u64) -> TopicFate {
        if *topic_id == TopicId::none() {
            return TopicFate::Unknown;
        }
        let mut known = self.read.lock();
        let read = known.take().unwrap_or_default();
        let read = match self.read_on(read) {
            Ok(read) => known.insert(read),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return TopicFate::Unknown,
            Err(error) => {
                tracing::warn!(log = %self.dir.display(), %error, "the cluster's metadata log cannot be read: what became of a topic is not known");
                return TopicFate::Unknown;
            }
        };
        if read.removed.contains(topic_id) {
            TopicFate::Deleted
        } else if read.made.contains(topic_id) && read.written_ms.saturating_add(LIVES_MS) >= at_ms
        {
            TopicFate::Exists
        } else {
            TopicFate::Unknown
        }
    }

    fn read_on(&self, read: Read) -> io::Result<Read> {
        let found = find(&self.dir)?;
        let is_same = |read: &Read| -> io::Result<bool> {
            let has = found.logs.iter().any(|(base, _)| *base == read.base_offset);
            if read.witness.is_empty() || !has {
                return Ok(false);
            }
            let (_, path) = found
                .logs
                .iter()
                .find(|(b, _)| *b == read.base_offset)
                .ok_or(io::ErrorKind::NotFound)?;
            let mut there = vec![0; read.witness.len()];
            let from = read.position - there.len() as u64;
            match File::open(path)?.read_exact_at(&mut there, from) {
                Ok(()) => Ok(there == read.witness),
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
                Err(e) => Err(e),
            }
        };
        if is_same(&read)? {
            return read.logs(&found.logs);
        }
        let mut read = Read::default();
        let (first, _) = found.logs.first().ok_or(io::ErrorKind::NotFound)?;
        match &found.snapshot {
            Some((end, path)) if first <= end => {
                read.file(path, 0, true)?;
                read.witness.clear();
            }
            None if *first == 0 => {}
            _ => return Err(io::Error::other("it begins behind its newest snapshot")),
        }
        read.base_offset = *first;
        read.logs(&found.logs)
    }
}

#[derive(Debug, Default)]
struct Found {
    /// Base offsets and paths, ascending.
    logs: Vec<(i64, PathBuf)>,
    /// End offset and path of the newest.
    snapshot: Option<(i64, PathBuf)>,
}

fn find(dir: &Path) -> io::Result<Found> {
    let mut found = Found::default();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        let Some(name) = name.to_str() else { continue };
        if let Some(log) = parse_file(name)
            && (log.kind, log.suffix) == (FileKind::Log, Suffix::None)
        {
            found.logs.push((log.base_offset, dir.join(name)));
        }
        if let Some(end) = snapshot_end(name)
            && found.snapshot.as_ref().is_none_or(|(newest, _)| *newest < end)
        {
            found.snapshot = Some((end, dir.join(name)));
        }
    }
    found.logs.sort();
    Ok(found)
}

/// `<20 digits: end offset>-<10 digits: epoch>.checkpoint`
fn snapshot_end(name: &str) -> Option<i64> {
    let (end, epoch) = name.strip_suffix(".checkpoint")?.split_once('-')?;
    let digits = |s: &str, n| s.len() == n && s.bytes().all(|b| b.is_ascii_digit());
    (digits(end, 20) && digits(epoch, 10)).then(|| end.parse().ok())?
}

impl Read {
    /// Reads on, to the end of the last segment.
    fn logs(mut self, logs: &[(i64, PathBuf)]) -> io::Result<Self> {
        let from = self.base_offset;
        if let Some((_, last)) = logs.last() {
            // Before it is read.
            let age = last.metadata()?.modified()?.duration_since(UNIX_EPOCH);
            self.written_ms = age.map_or(0, |age| age.as_millis() as u64);
        }
        for (base, path) in logs.iter().filter(|(base, _)| *base >= from) {
            if *base != self.base_offset {
                (self.base_offset, self.position) = (*base, 0);
                self.witness.clear();
            }
            // Only the last segment may end within a batch: the rest of it is being written.
            let is_last = logs.last().is_some_and(|(last, _)| last == base);
            self.position = self.file(path, self.position, !is_last)?;
        }
        Ok(self)
    }

    /// Reads one file from a position; returns where its last whole batch ends.
    fn file(&mut self, path: &Path, from: u64, whole: bool) -> io::Result<u64> {
        let file = File::open(path)?;
        let (mut at, mut piece) = (from, vec![0; PIECE_BYTES]);
        loop {
            let len = read_up_to(&file, &mut piece, at)?;
            let bytes = piece.get(..len).unwrap_or_default();
            let used = read_topics(bytes, &mut |news| {
                match news {
                    TopicNews::Made(id) => self.made.insert(id),
                    TopicNews::Removed(id) => self.removed.insert(id),
                };
            });
            let used = used.map_err(|why| {
                io::Error::other(format!("{}, from byte {at}: {why}", path.display()))
            })?;
            if self.made.len().max(self.removed.len()) > TOPICS_MAX {
                return Err(io::Error::other(format!("it names more than {TOPICS_MAX} topics")));
            }
            if used > 0 {
                let witness = bytes.get(..used).unwrap_or_default();
                self.witness = witness[used.saturating_sub(WITNESS_BYTES)..].to_vec();
                at += used as u64;
            } else if len < piece.len() {
                let left = len > 0 && whole;
                return if left { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(at) };
            } else if piece.len() < PIECE_BYTES_MAX {
                piece.resize(piece.len() * 2, 0);
            } else {
                return Err(io::Error::other("a batch has no end"));
            }
        }
    }
}

fn read_up_to(file: &File, into: &mut [u8], from: u64) -> io::Result<usize> {
    let mut have = 0;
    while let Some(rest) = into.get_mut(have..).filter(|r| !r.is_empty()) {
        match file.read_at(rest, from + have as u64) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(have)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::metadata::testing::{batch, made, removed};
    use std::io::Write as _;

    fn id(n: u8) -> [u8; 16] {
        [n; 16]
    }

    fn fates(log: &ClusterLog) -> [TopicFate; 4] {
        [1, 2, 3, 4].map(|n| log.fate(&TopicId::from_bytes(id(n)), 0))
    }

    fn append(path: &Path, bytes: &[u8]) {
        let mut file = File::options().create(true).append(true).open(path).unwrap();
        file.write_all(bytes).unwrap();
    }

    use TopicFate::{Deleted, Exists, Unknown};

    #[test]
    fn what_the_log_does_not_say_is_not_known_and_what_it_says_later_is_read_later() {
        let dir = tempfile::tempdir().unwrap();
        let log = ClusterLog::new(dir.path().join("__cluster_metadata-0"));
        assert_eq!(fates(&log), [Unknown; 4], "there is no such log");
        std::fs::create_dir(&log.dir).unwrap();
        let [first, second] = [0, 10].map(|n| log.dir.join(format!("{n:020}.log")));
        append(&first, &batch(0, &[made("a", id(1)), made("b", id(2))]));
        assert_eq!(fates(&log), [Exists, Exists, Unknown, Unknown]);
        let removal = batch(2, &[removed(id(2))]);
        append(&first, &removal[..65]);
        assert_eq!(fates(&log), [Exists, Exists, Unknown, Unknown], "half a batch");
        append(&first, &removal[65..]);
        append(&second, &batch(10, &[made("c", id(3))]));
        assert_eq!(fates(&log), [Exists, Deleted, Exists, Unknown]);
        // The end was never committed, and another controller wrote another.
        std::fs::write(&second, batch(10, &[made("d", id(4))])).unwrap();
        assert_eq!(fates(&log), [Exists, Deleted, Unknown, Exists]);
        assert_eq!(log.fate(&TopicId::none(), 0), Unknown, "of a topic without an id");
    }

    #[test]
    fn a_snapshot_counts_if_the_log_goes_on_where_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let log = ClusterLog::new(dir.path().to_owned());
        append(&dir.path().join(format!("{:020}.log", 100)), &batch(100, &[removed(id(2))]));
        assert_eq!(fates(&log), [Unknown; 4], "what came before is not there");
        let snapshot = |end: u64| dir.path().join(format!("{end:020}-0000000003.checkpoint"));
        append(&snapshot(90), &batch(0, &[made("a", id(1)), made("b", id(2))]));
        assert_eq!(fates(&log), [Unknown; 4], "something between them is not there");
        append(&snapshot(100), &batch(0, &[made("a", id(1)), made("b", id(2))]));
        assert_eq!(fates(&log), [Exists, Deleted, Unknown, Unknown]);
    }

    #[test]
    fn a_segment_that_is_still_empty_is_read_when_it_has_something() {
        let dir = tempfile::tempdir().unwrap();
        let log = ClusterLog::new(dir.path().to_owned());
        let path = |n: u64| dir.path().join(format!("{n:020}.log"));
        let snapshot = dir.path().join(format!("{:020}-0000000003.checkpoint", 100));
        append(&snapshot, &batch(0, &[made("a", id(1)), made("b", id(2))]));
        append(&path(100), &[]);
        for _ in 0..2 {
            assert_eq!(fates(&log), [Exists, Exists, Unknown, Unknown]);
        }
        append(&path(100), &batch(100, &[removed(id(1))]));
        append(&path(101), &[]);
        for _ in 0..2 {
            assert_eq!(fates(&log), [Deleted, Exists, Unknown, Unknown]);
        }
        append(&path(101), &batch(101, &[made("c", id(3))]));
        assert_eq!(fates(&log), [Deleted, Exists, Exists, Unknown]);
    }

    #[test]
    fn a_log_that_was_left_behind_tells_of_removals_and_not_that_a_topic_exists() {
        let dir = tempfile::tempdir().unwrap();
        let log = ClusterLog::new(dir.path().to_owned());
        let path = dir.path().join(format!("{:020}.log", 0));
        append(&path, &batch(0, &[made("a", id(1)), made("b", id(2)), removed(id(2))]));
        let written = path.metadata().unwrap().modified().unwrap();
        let written_ms = written.duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
        let fate = |n, at_ms| log.fate(&TopicId::from_bytes(id(n)), at_ms);
        assert_eq!([fate(1, written_ms + 1_000), fate(1, written_ms + 60_000)], [Exists, Unknown]);
        assert_eq!(fate(2, written_ms + 60_000), Deleted);
    }

    #[test]
    fn a_log_that_cannot_be_read_proves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let log = ClusterLog::new(dir.path().to_owned());
        let path = dir.path().join(format!("{:020}.log", 0));
        append(&path, &batch(0, &[made("a", id(1))]));
        let mut bad = batch(1, &[removed(id(1))]);
        bad[70] ^= 1;
        append(&path, &bad);
        assert_eq!(fates(&log), [Unknown; 4]);
    }
}
