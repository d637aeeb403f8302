//! What a broker does to its log dir, as single calls, so that one knows at each moment which of them were over and which of them a sync
//! had made durable.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::common::step::{Meanwhile, Partition, Step};

/// One call. Names are relative to the log dir's root; the root itself is "".
#[derive(Clone)]
pub enum Act {
    Mkdir(String),
    Create(String),
    Write(String, u64, Vec<u8>),
    Length(String, u64),
    Sync(String),
    SyncDir(String),
    Rename(String, String),
    Unlink(String),
    Rmdir(String),
    /// No call: waits for the tiering.
    Wait(Meanwhile),
    /// No call: unmounted and mounted again.
    Remount,
}

impl std::fmt::Debug for Act {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Mkdir(name) => write!(f, "mkdir {name}"),
            Self::Create(name) => write!(f, "create {name}"),
            Self::Write(name, at, bytes) => write!(f, "write {name} at {at}, {}", bytes.len()),
            Self::Length(name, len) => write!(f, "cut {name} to {len}"),
            Self::Sync(name) | Self::SyncDir(name) => write!(f, "sync {name}"),
            Self::Rename(from, to) => write!(f, "rename {from} to {to}"),
            Self::Unlink(name) => write!(f, "unlink {name}"),
            Self::Rmdir(name) => write!(f, "rmdir {name}"),
            Self::Wait(what) => write!(f, "wait for {what:?}"),
            Self::Remount => write!(f, "remount"),
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).open(path)
}

impl Act {
    /// Does it below `root`.
    pub fn apply(&self, root: &Path) -> io::Result<()> {
        let at = |name: &str| root.join(name);
        match self {
            Self::Mkdir(name) => fs::create_dir(at(name)),
            Self::Create(name) => {
                let mut new = File::options();
                new.read(true).write(true).create(true).truncate(false).open(at(name)).map(drop)
            }
            Self::Write(name, position, bytes) => open(&at(name))?.write_all_at(bytes, *position),
            Self::Length(name, len) => open(&at(name))?.set_len(*len),
            Self::Sync(name) => open(&at(name))?.sync_all(),
            Self::SyncDir(name) => File::open(at(name))?.sync_all(),
            Self::Rename(from, to) => fs::rename(at(from), at(to)),
            Self::Unlink(name) => fs::remove_file(at(name)),
            Self::Rmdir(name) => fs::remove_dir(at(name)),
            Self::Wait(_) | Self::Remount => Ok(()),
        }
    }
}

/// The directory part of a name.
pub fn parent(name: &str) -> String {
    name.rsplit_once('/').map_or(String::new(), |(dir, _)| dir.to_owned())
}

/// As Kafka writes a checkpoint: a temporary file, synced, renamed, the directory synced.
fn replace(name: &str, bytes: &[u8]) -> Vec<Act> {
    let temporary = format!("{name}.tmp");
    vec![
        Act::Create(temporary.clone()),
        Act::Write(temporary.clone(), 0, bytes.to_vec()),
        Act::Sync(temporary.clone()),
        Act::Rename(temporary, name.to_owned()),
        Act::SyncDir(parent(name)),
    ]
}

/// A step of the kill walk as calls.
pub fn acts(step: Step) -> Vec<Act> {
    match step {
        Step::Replace(name, bytes) => replace(&name, &bytes),
        Step::Put(name, bytes) => {
            vec![Act::Create(name.clone()), Act::Write(name.clone(), 0, bytes), Act::Sync(name)]
        }
        Step::WriteAt(name, at, bytes) => vec![Act::Write(name, at, bytes)],
        Step::Cut(name, len) => vec![Act::Length(name, len)],
        Step::Rename(from, to) => vec![Act::Rename(from, to)],
        Step::Unlink(name) => vec![Act::Unlink(name)],
        Step::Meanwhile(what) => vec![Act::Wait(what)],
        Step::Partition(_) | Step::Chmod(..) => panic!("no power is lost at {step:?}"),
    }
}

pub fn all(steps: Vec<Step>) -> Vec<Act> {
    steps.into_iter().flat_map(acts).collect()
}

/// A partition's directory with its small files.
pub fn partition(name: &str, topic_id: &str) -> Vec<Act> {
    let metadata = format!("version: 0\ntopic_id: {topic_id}");
    let mut acts = vec![Act::Mkdir(name.to_owned())];
    acts.extend(replace(&format!("{name}/partition.metadata"), metadata.as_bytes()));
    acts.extend(replace(&format!("{name}/leader-epoch-checkpoint"), b"0\n1\n0 0\n"));
    acts
}

/// The segment's files are there, empty, and the snapshot of the roll.
pub fn open_segment(p: &Partition, at: usize) -> Vec<Act> {
    let mut acts: Vec<Act> =
        ["log", "index", "timeindex", "snapshot"].map(|e| Act::Create(p.file(at, e))).into();
    let empty = vec![0, 1, 0x48, 0x67, 0x4b, 0xc7, 0, 0, 0, 0];
    acts.push(Act::Write(p.file(at, "snapshot"), 0, empty));
    acts
}

/// All of a segment's bytes, in several appends; nothing is synced.
pub fn append(p: &Partition, at: usize) -> Vec<Act> {
    let mut position = 0;
    let mut acts = Vec::new();
    for part in p.logs[at].chunks(9000) {
        acts.push(Act::Write(p.log(at), position, part.to_vec()));
        position += part.len() as u64;
    }
    acts.push(Act::Write(p.file(at, "timeindex"), 0, p.time_entry(at)));
    acts
}

/// Kafka's flush after a roll: the new segment's snapshot, the closed one's files, the directory.
pub fn flush(p: &Partition, closed: usize) -> Vec<Act> {
    let mut acts = vec![Act::Sync(p.file(closed + 1, "snapshot"))];
    acts.extend(["log", "index", "timeindex"].map(|e| Act::Sync(p.file(closed, e))));
    acts.push(Act::SyncDir(p.name.clone()));
    acts
}

/// From segment `first` on: appended, rolled and flushed one after the other; the last one stays active, with bytes that nobody synced.
pub fn grow(p: &Partition, first: usize) -> Vec<Act> {
    let mut acts = Vec::new();
    for at in first..p.bases.len() {
        acts.extend(open_segment(p, at));
        if at > 0 {
            acts.extend(flush(p, at - 1));
        }
        acts.extend(append(p, at));
    }
    acts
}
