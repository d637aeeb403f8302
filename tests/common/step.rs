//! What a broker does to a log dir, as single steps that can be done again: on the mount, where the process may die in the middle, and on
//! a plain directory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::batches::{Batch, noise};
use super::files::{self, files_under};
use super::fsck;
use super::logdir::TOPIC_ID;
use super::unless;

/// Names are relative to the log dir's root.
#[derive(Clone)]
pub enum Step {
    /// A partition's directory with its small files.
    Partition(String),
    /// The whole file, synced.
    Put(String, Vec<u8>),
    WriteAt(String, u64, Vec<u8>),
    Cut(String, u64),
    Rename(String, String),
    Unlink(String),
    Chmod(String, u32),
    /// A temporary file renamed over the name.
    Replace(String, Vec<u8>),
    /// Nothing to the log dir: waits for something, or lets something happen.
    Meanwhile(Meanwhile),
}

#[derive(Clone, Debug)]
pub enum Meanwhile {
    /// So many segments named by manifests.
    Archived(usize),
    /// So many stubs.
    Cold(usize),
    /// No closed segment with an overlay.
    Whole,
    /// No entry in the spool.
    Released,
    StoreGoesAway,
    StoreComesBack,
}

impl Meanwhile {
    /// Whether it has come so far.
    pub fn is_so(&self, data: &Path, bucket: &Path) -> Result<(), String> {
        let has = |found: usize, wanted: usize| {
            unless(found >= wanted, || format!("{found} of {wanted}"))
        };
        match self {
            Self::Archived(wanted) => {
                let all = fsck::archived(bucket);
                let named: BTreeSet<_> = all.into_iter().map(|n| (n.partition, n.base)).collect();
                has(named.len(), *wanted)
            }
            Self::Cold(wanted) => {
                let stubs = files_under(&data.join("hot"));
                let is_stub = |p: &&PathBuf| p.to_string_lossy().ends_with(".log.everlog");
                has(stubs.iter().filter(is_stub).count(), *wanted)
            }
            Self::Whole => {
                // An overlay that could not be removed goes at the next mount; what a stub names is in use.
                let stubs = files_under(&data.join("hot"));
                let texts = stubs.iter().filter(|p| p.to_string_lossy().ends_with(".log.everlog"));
                let mut named = texts.filter_map(|p| Some((p, fs::read_to_string(p).ok()?)));
                let half = named.find(|(_, text)| !text.contains("\"overlay\":null"));
                unless(half.is_none(), || format!("{half:?}"))
            }
            Self::Released => {
                let entries = files_under(&data.join("spool"));
                unless(entries.is_empty(), || format!("{entries:?}"))
            }
            Self::StoreGoesAway | Self::StoreComesBack => Ok(()),
        }
    }
}

impl std::fmt::Debug for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Partition(name) => write!(f, "partition {name}"),
            Self::Put(name, bytes) => write!(f, "put {name}, {} bytes", bytes.len()),
            Self::WriteAt(name, at, bytes) => {
                write!(f, "write {name} at {at}, {} bytes", bytes.len())
            }
            Self::Cut(name, len) => write!(f, "cut {name} to {len}"),
            Self::Rename(from, to) => write!(f, "rename {from} to {to}"),
            Self::Unlink(name) => write!(f, "unlink {name}"),
            Self::Chmod(name, mode) => write!(f, "chmod {name} {mode:o}"),
            Self::Replace(name, _) => write!(f, "replace {name}"),
            Self::Meanwhile(what) => write!(f, "{what:?}"),
        }
    }
}

fn gone_is_fine(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn put(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let file = File::options().create(true).truncate(false).read(true).write(true).open(path)?;
    file.write_all_at(bytes, 0)?;
    file.set_len(bytes.len() as u64)?;
    file.sync_all()
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    put(Path::new(&temporary), bytes)?;
    fs::rename(&temporary, path)
}

impl Step {
    /// Does it below `root`. Done again after a failure or a crash in the middle, it ends the same.
    pub fn apply(&self, root: &Path) -> io::Result<()> {
        let at = |name: &str| root.join(name);
        match self {
            Self::Partition(name) => {
                match fs::create_dir(at(name)) {
                    Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(e),
                    _ => {}
                }
                let metadata = format!("version: 0\ntopic_id: {TOPIC_ID}");
                replace(&at(name).join("partition.metadata"), metadata.as_bytes())?;
                replace(&at(name).join("leader-epoch-checkpoint"), b"0\n1\n0 0\n")
            }
            Self::Put(name, bytes) => put(&at(name), bytes),
            Self::WriteAt(name, position, bytes) => File::options()
                .read(true)
                .write(true)
                .open(at(name))?
                .write_all_at(bytes, *position),
            Self::Cut(name, len) => File::options().write(true).open(at(name))?.set_len(*len),
            Self::Rename(from, to) => match fs::rename(at(from), at(to)) {
                Err(e) if e.kind() == ErrorKind::NotFound && at(to).exists() => Ok(()),
                other => other,
            },
            Self::Unlink(name) => gone_is_fine(fs::remove_file(at(name))),
            Self::Chmod(name, mode) => fs::set_permissions(at(name), Permissions::from_mode(*mode)),
            Self::Replace(name, bytes) => replace(&at(name), bytes),
            Self::Meanwhile(_) => Ok(()),
        }
    }

    /// Whether a name may be neither as before nor as after it when the process died in the middle.
    pub fn is_about(&self, name: &str) -> bool {
        match self {
            Self::Partition(dir) => name == dir || name.starts_with(&format!("{dir}/")),
            Self::Put(own, _) => name == own,
            Self::Replace(own, _) => name == own || name == format!("{own}.tmp"),
            _ => false,
        }
    }
}

/// Every name below a root with its mode, length and checksum; directories with their mode.
pub fn tree(root: &Path) -> io::Result<BTreeMap<String, String>> {
    files::tree(root, |_, _, _| String::new())
}

/// A partition whose bytes follow from its name.
pub struct Partition {
    pub name: String,
    /// Base offsets; the last segment is the active one.
    pub bases: Vec<i64>,
    pub logs: Vec<Vec<u8>>,
    pub end: i64,
}

impl Partition {
    /// `segments` of about `batches` times 4 KiB.
    pub fn new(name: &str, segments: usize, batches: usize) -> Self {
        let salt = u64::from(crc32c::crc32c(name.as_bytes()));
        let (mut bases, mut logs, mut end) = (Vec::new(), Vec::new(), 0i64);
        for _ in 0..segments {
            bases.push(end);
            let mut log = Vec::new();
            for _ in 0..batches {
                log.extend(batch(end, salt));
                end += 4;
            }
            logs.push(log);
        }
        Self { name: name.to_owned(), bases, logs, end }
    }

    pub fn log(&self, at: usize) -> String {
        self.file(at, "log")
    }

    pub fn file(&self, at: usize, extension: &str) -> String {
        format!("{}/{:020}.{extension}", self.name, self.bases[at])
    }

    /// The last entry of a segment's time index.
    pub fn time_entry(&self, at: usize) -> Vec<u8> {
        let end = self.bases.get(at + 1).copied().unwrap_or(self.end);
        let last = (end - 1 - self.bases[at]) as i32;
        let mut entry = timestamp(end - 1).to_be_bytes().to_vec();
        entry.extend(last.to_be_bytes());
        entry
    }

    /// A segment as a broker leaves it: bytes, indexes, snapshot.
    pub fn write(&self, at: usize) -> Vec<Step> {
        vec![
            Step::Put(self.file(at, "timeindex"), self.time_entry(at)),
            Step::Put(self.file(at, "index"), Vec::new()),
            Step::Put(self.file(at, "snapshot"), vec![0, 1, 0x48, 0x67, 0x4b, 0xc7, 0, 0, 0, 0]),
            Step::Put(self.log(at), self.logs[at].clone()),
        ]
    }

    /// The directory and all its segments.
    pub fn create(&self) -> Vec<Step> {
        let segments = (0..self.bases.len()).flat_map(|at| self.write(at));
        std::iter::once(Step::Partition(self.name.clone())).chain(segments).collect()
    }

    /// What retention does to a segment: all names get the suffix, then they go.
    pub fn discard(&self, at: usize) -> Vec<Step> {
        let of = |extension: &str| self.file(at, extension);
        let names = ["log", "index", "timeindex", "snapshot"].map(of);
        let renames = names.clone().map(|n| Step::Rename(n.clone(), format!("{n}.deleted")));
        let unlinks = names.map(|n| Step::Unlink(format!("{n}.deleted")));
        renames.into_iter().chain(unlinks).collect()
    }
}

fn timestamp(offset: i64) -> i64 {
    1_700_000_000_000 + offset
}

fn batch(base: i64, salt: u64) -> Vec<u8> {
    let seed = salt << 24 ^ base as u64;
    let values: Vec<_> = (0..4).map(|i| noise(seed ^ i << 56, 1000)).collect();
    let timestamp_ms = timestamp(base);
    Batch { base_offset: base, epoch: 0, timestamp_ms, values: &values }.encode()
}

/// Kafka's checkpoints, three times: young directories are believed then.
pub fn committed(partitions: &[&Partition]) -> Vec<Step> {
    let mut text = format!("0\n{}\n", partitions.len());
    for p in partitions {
        let (topic, number) = p.name.rsplit_once('-').unwrap();
        text.push_str(&format!("{topic} {number} {}\n", p.end));
    }
    let names = ["recovery-point-offset-checkpoint", "replication-offset-checkpoint"];
    let once = names.map(|n| Step::Replace(n.to_owned(), text.clone().into_bytes()));
    (0..3).flat_map(|_| once.clone()).collect()
}
