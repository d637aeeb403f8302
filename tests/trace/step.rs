//! The steps of a recorded trace as `scripts/record-trace` writes them: one JSON array a line, packed with gzip.
//!
//! `[name, what it gave the broker, arguments…]`. What it gave is a negative errno, or a number of bytes, or a size.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

use rustix::fs::{Access, OFlags};
use serde_json::Value;

/// Names with length and CRC-32; `None` for directories.
pub type Tree = BTreeMap<String, Option<(u64, u32)>>;

/// One operation. `id` names a descriptor, `map` a mapping; paths are relative to the log dir.
pub enum Op {
    Open {
        id: u64,
        path: String,
        flags: OFlags,
        mode: u32,
    },
    Close {
        id: u64,
    },
    Write {
        id: u64,
        data: Vec<u8>,
    },
    WriteAt {
        id: u64,
        at: u64,
        data: Vec<u8>,
    },
    Read {
        id: u64,
        len: usize,
    },
    ReadAt {
        id: u64,
        at: u64,
        len: usize,
    },
    SendFile {
        id: u64,
        at: u64,
        len: usize,
    },
    Seek {
        id: u64,
        at: u64,
        from_end: bool,
    },
    Truncate {
        id: u64,
        len: u64,
    },
    Sync {
        id: u64,
    },
    Lock {
        id: u64,
    },
    SizeOf {
        id: u64,
    },
    List {
        id: u64,
    },
    Rename {
        from: String,
        to: String,
    },
    Unlink {
        path: String,
    },
    Rmdir {
        path: String,
    },
    Mkdir {
        path: String,
        mode: u32,
    },
    Stat {
        path: String,
    },
    Access {
        path: String,
        how: Access,
    },
    Utimes {
        path: String,
        seconds: i64,
        nanos: i64,
    },
    Map {
        map: u64,
        id: u64,
        len: usize,
    },
    Put {
        map: u64,
        at: usize,
        data: Vec<u8>,
    },
    Msync {
        map: u64,
    },
    Unmap {
        map: u64,
    },
    /// The process is gone, and with it what it held.
    End,
    /// What the log dir was like at this point.
    Phase {
        name: String,
        tree: Tree,
    },
}

/// An operation and what it gave the broker.
pub struct Step {
    pub op: Op,
    pub recorded: i64,
}

impl std::fmt::Debug for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.op {
            Op::Open { id, path, flags, .. } => write!(f, "{id} = open {path} {flags:?}"),
            Op::Close { id } => write!(f, "close {id}"),
            Op::Write { id, data } => write!(f, "write {} bytes to {id}", data.len()),
            Op::WriteAt { id, at, data } => write!(f, "write {} bytes to {id} at {at}", data.len()),
            Op::Read { id, len } => write!(f, "read {len} of {id}"),
            Op::ReadAt { id, at, len } => write!(f, "read {len} of {id} at {at}"),
            Op::SendFile { id, at, len } => write!(f, "sendfile {len} of {id} at {at}"),
            Op::Seek { id, at, from_end } => {
                write!(f, "seek {id} to {at}, from the end: {from_end}")
            }
            Op::Truncate { id, len } => write!(f, "truncate {id} to {len}"),
            Op::Sync { id } => write!(f, "fsync {id}"),
            Op::Lock { id } => write!(f, "lock {id}"),
            Op::SizeOf { id } => write!(f, "fstat {id}"),
            Op::List { id } => write!(f, "list {id}"),
            Op::Rename { from, to } => write!(f, "rename {from} to {to}"),
            Op::Unlink { path } => write!(f, "unlink {path}"),
            Op::Rmdir { path } => write!(f, "rmdir {path}"),
            Op::Mkdir { path, .. } => write!(f, "mkdir {path}"),
            Op::Stat { path } => write!(f, "stat {path}"),
            Op::Access { path, .. } => write!(f, "access {path}"),
            Op::Utimes { path, .. } => write!(f, "utimes {path}"),
            Op::Map { map, id, len } => write!(f, "map {map} = {len} bytes of {id}"),
            Op::Put { map, at, data } => write!(f, "{} bytes into map {map} at {at}", data.len()),
            Op::Msync { map } => write!(f, "msync map {map}"),
            Op::Unmap { map } => write!(f, "unmap {map}"),
            Op::End => write!(f, "the broker's process ends"),
            Op::Phase { name, .. } => write!(f, "phase {name}"),
        }?;
        write!(f, " (recorded {})", self.recorded)
    }
}

/// One line's arguments, checked as they are taken.
struct Args<'a>(&'a [Value]);

impl Args<'_> {
    fn number(&self, at: usize) -> u64 {
        self.0[at].as_u64().unwrap_or_else(|| panic!("{:?}: no number at {at}", self.0))
    }

    fn text(&self, at: usize) -> String {
        self.0[at].as_str().unwrap_or_else(|| panic!("{:?}: no text at {at}", self.0)).to_owned()
    }

    fn data(&self, at: usize) -> Vec<u8> {
        let text = self.0[at].as_str().unwrap().as_bytes();
        let byte =
            |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        text.chunks_exact(2).map(byte).collect()
    }
}

fn open_flags(words: &str) -> OFlags {
    words.split('|').fold(OFlags::CLOEXEC, |flags, word| {
        flags
            | match word {
                "RDONLY" => OFlags::RDONLY,
                "WRONLY" => OFlags::WRONLY,
                "RDWR" => OFlags::RDWR,
                "CREAT" => OFlags::CREATE,
                "EXCL" => OFlags::EXCL,
                "TRUNC" => OFlags::TRUNC,
                "APPEND" => OFlags::APPEND,
                "DIRECTORY" => OFlags::DIRECTORY,
                "NONBLOCK" => OFlags::NONBLOCK,
                "NOFOLLOW" => OFlags::NOFOLLOW,
                _ => panic!("a trace opens with {word}, which the replay does not know"),
            }
    })
}

fn access(words: &str) -> Access {
    words.split('|').fold(Access::EXISTS, |how, word| {
        how | match word {
            "F_OK" => Access::EXISTS,
            "R_OK" => Access::READ_OK,
            "W_OK" => Access::WRITE_OK,
            "X_OK" => Access::EXEC_OK,
            _ => panic!("a trace asks for {word}, which the replay does not know"),
        }
    })
}

fn tree(value: &Value) -> Tree {
    let entry = |v: &Value| v.is_array().then(|| (v[0].as_u64().unwrap(), v[1].as_u64().unwrap()));
    let all = value.as_object().unwrap().iter();
    all.map(|(name, v)| (name.clone(), entry(v).map(|(len, crc)| (len, crc as u32)))).collect()
}

fn parse(line: &str) -> Step {
    let value: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e} in {line:.200}"));
    let all = value.as_array().unwrap();
    let args = Args(all);
    let (id, recorded) = (|| args.number(2), all[1].as_i64().unwrap());
    let op = match all[0].as_str().unwrap() {
        "open" => Op::Open {
            id: id(),
            path: args.text(3),
            flags: open_flags(&args.text(4)),
            mode: args.number(5) as u32,
        },
        "close" => Op::Close { id: id() },
        "write" => Op::Write { id: id(), data: args.data(3) },
        "pwrite" => Op::WriteAt { id: id(), at: args.number(3), data: args.data(4) },
        "read" => Op::Read { id: id(), len: args.number(3) as usize },
        "pread" => Op::ReadAt { id: id(), at: args.number(3), len: args.number(4) as usize },
        "sendfile" => Op::SendFile { id: id(), at: args.number(3), len: args.number(4) as usize },
        "seek" => Op::Seek { id: id(), at: args.number(3), from_end: args.text(4) == "SEEK_END" },
        "truncate" => Op::Truncate { id: id(), len: args.number(3) },
        "sync" => Op::Sync { id: id() },
        "lock" => Op::Lock { id: id() },
        "fstat" => Op::SizeOf { id: id() },
        "list" => Op::List { id: id() },
        "rename" => Op::Rename { from: args.text(2), to: args.text(3) },
        "unlink" => Op::Unlink { path: args.text(2) },
        "rmdir" => Op::Rmdir { path: args.text(2) },
        "mkdir" => Op::Mkdir { path: args.text(2), mode: args.number(3) as u32 },
        "stat" => Op::Stat { path: args.text(2) },
        "access" => Op::Access { path: args.text(2), how: access(&args.text(3)) },
        "utimes" => Op::Utimes {
            path: args.text(2),
            seconds: args.number(3) as i64,
            nanos: args.number(4) as i64,
        },
        "map" => Op::Map { map: id(), id: args.number(3), len: args.number(4) as usize },
        "put" => Op::Put { map: id(), at: args.number(3) as usize, data: args.data(4) },
        "msync" => Op::Msync { map: id() },
        "unmap" => Op::Unmap { map: id() },
        "end" => Op::End,
        "phase" => Op::Phase { name: args.text(2), tree: tree(&all[3]) },
        other => panic!("a trace has the step {other}, which the replay does not know"),
    };
    Step { op, recorded }
}

/// All steps of a trace.
pub fn load(path: &Path) -> Vec<Step> {
    let packed = std::fs::File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut text = String::new();
    flate2::read::GzDecoder::new(packed).read_to_string(&mut text).unwrap();
    text.lines().map(parse).collect()
}
