//! What the library in front of libc wrote down: every call of the daemon that changed something on the recorded disk, and between them the
//! test's own marks.

use std::fs::File;
use std::io::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file that was not there before.
    Create,
    Write,
    /// The length was set.
    Length,
    Sync,
    SyncData,
    Rename,
    Link,
    Unlink,
    Mkdir,
    Rmdir,
    /// By the test: something begins (even) or is over (odd), or [`ASKED`].
    Mark,
}

/// One call.
#[derive(Clone, Debug)]
pub struct Event {
    pub kind: Kind,
    /// Of the file or directory that a descriptor led to, or that a new name leads to.
    pub ino: u64,
    /// Position of a write, length, number of a mark.
    pub at: u64,
    pub mtime_ns: u64,
    pub from: String,
    pub to: String,
    /// Where in the recording the written bytes are.
    pub bytes: Range<usize>,
}

/// All calls in the order in which they were done.
pub struct Recording {
    raw: Vec<u8>,
    pub events: Vec<Event>,
}

const HEAD_BYTES: usize = 40;

impl Recording {
    pub fn read(path: &Path) -> Self {
        let raw = std::fs::read(path).unwrap();
        let (mut events, mut at) = (Vec::new(), 0);
        while at < raw.len() {
            let (event, next) = parse(&raw, at);
            events.push(event);
            at = next;
        }
        Self { raw, events }
    }

    /// The bytes of a write.
    pub fn bytes(&self, range: &Range<usize>) -> &[u8] {
        &self.raw[range.clone()]
    }
}

fn number<const N: usize>(raw: &[u8], at: usize) -> u64 {
    let mut all = [0; 8];
    all[..N].copy_from_slice(&raw[at..at + N]);
    u64::from_le_bytes(all)
}

fn parse(raw: &[u8], at: usize) -> (Event, usize) {
    let length = number::<4>(raw, at) as usize;
    let (from, to) = (number::<2>(raw, at + 6) as usize, number::<2>(raw, at + 8) as usize);
    let paths = at + HEAD_BYTES;
    let text = |r: Range<usize>| String::from_utf8(raw[r].to_vec()).unwrap();
    let event = Event {
        kind: kind(number::<2>(raw, at + 4) as u8),
        ino: number::<8>(raw, at + 16),
        at: number::<8>(raw, at + 24),
        mtime_ns: number::<8>(raw, at + 32),
        from: text(paths..paths + from),
        to: text(paths + from..paths + from + to),
        bytes: paths + from + to..at + length,
    };
    (event, at + length)
}

fn kind(letter: u8) -> Kind {
    match letter {
        b'C' => Kind::Create,
        b'W' => Kind::Write,
        b'T' => Kind::Length,
        b'S' => Kind::Sync,
        b'D' => Kind::SyncData,
        b'R' => Kind::Rename,
        b'L' => Kind::Link,
        b'U' => Kind::Unlink,
        b'K' => Kind::Mkdir,
        b'X' => Kind::Rmdir,
        b'M' => Kind::Mark,
        other => panic!("the model of a disk does not know the call '{}'", char::from(other)),
    }
}

/// Where a run is recorded.
#[derive(Clone)]
pub struct Recorder {
    pub library: PathBuf,
    pub log: PathBuf,
}

impl Recorder {
    pub fn new(library: &Path, log: &Path) -> Self {
        File::create(log).unwrap();
        Self { library: library.to_owned(), log: log.to_owned() }
    }

    /// For the daemon: what happens below these directories is recorded.
    pub fn env(&self, below: &[&Path]) -> Vec<(String, String)> {
        let below: Vec<String> = below.iter().map(|p| p.display().to_string()).collect();
        [
            ("LD_PRELOAD", self.library.display().to_string()),
            ("RECORD_LOG", self.log.display().to_string()),
            ("RECORD_BELOW", below.join(":")),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    /// Puts a mark between the calls.
    pub fn mark(&self, number: usize) {
        File::options().append(true).open(&self.log).unwrap().write_all(&mark(number)).unwrap();
    }

    /// A shell's words that put the mark [`ASKED`] between the calls.
    pub fn shell_mark(&self) -> String {
        let file = self.log.with_extension("mark");
        std::fs::write(&file, mark(ASKED)).unwrap();
        format!("cat '{}' >> '{}'", file.display(), self.log.display())
    }
}

/// The number of the mark that says: the discard command has been asked once more.
pub const ASKED: usize = usize::MAX;

fn mark(number: usize) -> [u8; HEAD_BYTES] {
    let mut record = [0u8; HEAD_BYTES];
    record[..4].copy_from_slice(&(HEAD_BYTES as u32).to_le_bytes());
    record[4] = b'M';
    record[24..32].copy_from_slice(&(number as u64).to_le_bytes());
    record
}
