//! One of the two sides: a root directory, the logs in it, and what is held open.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{CWD, FallocateFlags, RenameFlags, SeekFrom, XattrFlags};

use super::op::Op;
use crate::common::broker::CLUSTER_ID;
use crate::common::logdir::{LogDir, PartitionLog};
use crate::common::{archive, files};

const XATTR: &str = "user.model";

/// What an operation gives: bytes (possibly none) or an errno.
pub type Outcome = Result<Vec<u8>, i32>;

/// In words, long bytes as a digest.
pub fn show(outcome: &Outcome) -> String {
    match outcome {
        Ok(bytes) if bytes.len() > 40 => {
            format!("{} bytes with CRC {:08x}", bytes.len(), crc32c::crc32c(bytes))
        }
        other => format!("{other:?}"),
    }
}

struct Held {
    name: String,
    file: File,
    map: Option<memmap2::MmapMut>,
}

/// See the module.
pub struct World {
    pub root: PathBuf,
    logs: LogDir,
    partitions: Vec<PartitionLog>,
    held: Vec<Held>,
    incarnation: u32,
}

impl World {
    pub fn new(root: &Path) -> Self {
        let logs = LogDir::new(root, CLUSTER_ID).index_bytes(300_000);
        let partitions = (0..2).map(|p| logs.create("made", p)).collect();
        Self { root: root.to_owned(), logs, partitions, held: Vec::new(), incarnation: 0 }
    }

    /// Closes everything that is held open, except the active segments.
    pub fn let_go(&mut self) {
        self.held.clear();
        self.partitions.iter_mut().for_each(PartitionLog::close);
    }

    /// Opens the active segments again.
    pub fn reopen(&mut self) {
        self.partitions.iter_mut().for_each(PartitionLog::reopen);
    }

    /// What is held open, by the name that it had then.
    pub fn held(&self) -> Vec<&str> {
        self.held.iter().map(|h| h.name.as_str()).collect()
    }

    /// Names of all files, relative.
    pub fn files(&self) -> Vec<String> {
        let all = files::files_under(&self.root);
        all.iter().map(|p| p.strip_prefix(&self.root).unwrap().display().to_string()).collect()
    }

    pub fn active_log(&self, partition: u32) -> String {
        format!("made-{partition}/{:020}.log", self.partitions[partition as usize].base())
    }

    pub fn bases(&self, partition: u32) -> Vec<i64> {
        archive::bases(&self.root.join(format!("made-{partition}")))
    }

    pub fn len_of(&self, name: &str) -> u64 {
        self.root.join(name).metadata().map_or(0, |m| m.len())
    }

    /// Does it and says what came of it.
    pub fn apply(&mut self, op: &Op) -> Outcome {
        self.try_apply(op).map_err(|e| e.raw_os_error().unwrap_or_else(|| panic!("{op:?}: {e}")))
    }

    fn open_rw(&self, name: &str) -> io::Result<File> {
        File::options().read(true).write(true).open(self.root.join(name))
    }

    fn try_apply(&mut self, op: &Op) -> io::Result<Vec<u8>> {
        let nothing = Ok(Vec::new());
        match op {
            Op::Append { partition, records, bytes } => {
                Ok(self.partitions[*partition as usize].append(*records, *bytes))
            }
            Op::Roll { partition } => self.roll(*partition),
            Op::Checkpoint => {
                self.logs.checkpoint();
                nothing
            }
            Op::Truncate { partition, base, len, end } => {
                let log = &mut self.partitions[*partition as usize];
                log.truncate_to(*base, *len, *end)?;
                self.logs.commit(log);
                nothing
            }
            Op::Discard { partition, base } => self.discard(*partition, *base),
            Op::Unlink { name } => fs::remove_file(self.root.join(name)).and(nothing),
            Op::Read { name, at, len } => read_at(&File::open(self.root.join(name))?, *at, *len),
            Op::MapWrite { name, at, data, sync } => self.map_write(name, *at, data, *sync),
            Op::Write { name, at, data } => {
                self.open_rw(name)?.write_all_at(data, *at).and(nothing)
            }
            Op::AppendTo { name, data } => File::options()
                .append(true)
                .open(self.root.join(name))?
                .write_all(data)
                .and(nothing),
            Op::SetLen { name, len } => self.open_rw(name)?.set_len(*len).and(nothing),
            Op::Create { name, exclusive, data } => {
                let mut options = File::options();
                let options = if *exclusive {
                    options.create_new(true)
                } else {
                    options.create(true).truncate(true)
                };
                options.write(true).open(self.root.join(name))?.write_all(data).and(nothing)
            }
            Op::Rename { from, to } => {
                fs::rename(self.root.join(from), self.root.join(to)).and(nothing)
            }
            Op::CopyAndUnlink { from, to } => {
                let (from, to) = (self.root.join(from), self.root.join(to));
                let bytes = fs::read(&from)?;
                match fs::remove_file(&to) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                    _ => fs::write(&to, &bytes)?,
                }
                fs::set_permissions(&to, from.metadata()?.permissions())?;
                fs::remove_file(&from)?;
                Ok(bytes)
            }
            Op::Mkdir { name } => fs::create_dir(self.root.join(name)).and(nothing),
            Op::Rmdir { name } => fs::remove_dir(self.root.join(name)).and(nothing),
            Op::Fsync { name } => File::open(self.root.join(name))?.sync_all().and(nothing),
            Op::SetMtime { name, seconds } => {
                let time = SystemTime::UNIX_EPOCH + Duration::from_secs(*seconds);
                self.open_rw(name)?.set_modified(time)?;
                Ok(self.root.join(name).metadata()?.mtime().to_be_bytes().to_vec())
            }
            Op::Chmod { name, mode } => {
                fs::set_permissions(self.root.join(name), fs::Permissions::from_mode(*mode))
                    .and(nothing)
            }
            Op::Allocate { name, how, at, len } => {
                self.allocate(name, *how, *at, *len).and(nothing)
            }
            Op::SetXattr { name, value } => {
                let path = self.root.join(name);
                match value {
                    Some(value) => rustix::fs::lsetxattr(path, XATTR, value, XattrFlags::empty())?,
                    None => rustix::fs::lremovexattr(path, XATTR)?,
                }
                nothing
            }
            Op::Link { from, to } => {
                fs::hard_link(self.root.join(from), self.root.join(to)).and(nothing)
            }
            Op::Exchange { from, to } => {
                let (from, to) = (self.root.join(from), self.root.join(to));
                rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::EXCHANGE)?;
                nothing
            }
            Op::Holes { name } => self.check_holes(name).and(nothing),
            Op::DeletePartition { partition } => self.delete_partition(*partition),
            Op::Hold { .. } | Op::ReadHeld { .. } | Op::WriteHeld { .. } | Op::DropHeld { .. } => {
                self.held_op(op)
            }
            Op::Settle | Op::Remount { .. } => unreachable!("not an operation on one side"),
        }
    }

    fn allocate(&self, name: &str, how: u32, at: u64, len: u64) -> io::Result<()> {
        let keep = FallocateFlags::KEEP_SIZE;
        let mode = [
            FallocateFlags::empty(),
            keep,
            FallocateFlags::PUNCH_HOLE | keep,
            FallocateFlags::ZERO_RANGE,
        ];
        Ok(rustix::fs::fallocate(self.open_rw(name)?, mode[how as usize], at, len)?)
    }

    /// Panics when what is said to be a hole has data in it: where holes are may differ, what they hide must not.
    fn check_holes(&self, name: &str) -> io::Result<()> {
        let file = File::open(self.root.join(name))?;
        let size = file.metadata()?.len();
        let mut at = 0;
        while at < size {
            let data = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
                Err(rustix::io::Errno::NXIO) => size,
                other => other?,
            };
            let skipped = read_at(&file, at, (data - at) as usize)?;
            assert!(skipped.iter().all(|b| *b == 0), "{name} has data in a hole at {at}");
            at = if data < size { rustix::fs::seek(&file, SeekFrom::Hole(data))? } else { size };
        }
        Ok(())
    }

    fn held_op(&mut self, op: &Op) -> io::Result<Vec<u8>> {
        match op {
            Op::Hold { name } if self.held.len() < 6 => {
                let file = self.open_rw(name)?;
                self.held.push(Held { name: name.clone(), file, map: None });
            }
            Op::ReadHeld { index, at, len } => {
                if let Some(held) = self.held.get(*index) {
                    let mut bytes = read_at(&held.file, *at, *len)?;
                    bytes.extend(held.file.metadata()?.len().to_be_bytes());
                    return Ok(bytes);
                }
            }
            Op::WriteHeld { index, at, data } => {
                if let Some(held) = self.held.get(*index) {
                    held.file.write_all_at(data, *at)?;
                }
            }
            Op::DropHeld { index } if *index < self.held.len() => drop(self.held.remove(*index)),
            _ => {}
        }
        Ok(Vec::new())
    }

    fn roll(&mut self, partition: u32) -> io::Result<Vec<u8>> {
        let log = &mut self.partitions[partition as usize];
        if log.end() > log.base()
            && log.dir().join(format!("{:020}.timeindex", log.base())).exists()
        {
            // As a broker does, nobody maps the old index any more when it is trimmed.
            self.held.iter_mut().for_each(|h| h.map = None);
            log.roll();
            self.logs.commit(log);
            self.logs.checkpoint();
        }
        Ok(Vec::new())
    }

    fn discard(&mut self, partition: u32, base: i64) -> io::Result<Vec<u8>> {
        let dir = self.root.join(format!("made-{partition}"));
        for name in files::names(&dir) {
            if name.starts_with(&format!("{base:020}.")) && !name.ends_with(".deleted") {
                fs::rename(dir.join(&name), dir.join(format!("{name}.deleted")))?;
            }
        }
        Ok(Vec::new())
    }

    fn map_write(&mut self, name: &str, at: usize, data: &[u8], sync: bool) -> io::Result<Vec<u8>> {
        let file = self.open_rw(name)?;
        // SAFETY: nobody shortens a file of the test below a position that the test still maps: `roll` drops the maps first.
        let mut map = unsafe { memmap2::MmapMut::map_mut(&file)? };
        let at = at.min(map.len().saturating_sub(data.len()));
        let len = data.len().min(map.len() - at);
        map[at..at + len].copy_from_slice(&data[..len]);
        if sync {
            map.flush()?;
        }
        let mut seen = vec![0; len];
        file.read_exact_at(&mut seen, at as u64)?;
        if self.held.len() < 6 {
            self.held.push(Held { name: name.to_owned(), file, map: Some(map) });
        }
        Ok(seen)
    }

    fn delete_partition(&mut self, partition: u32) -> io::Result<Vec<u8>> {
        let dir = self.root.join(format!("made-{partition}"));
        let renamed =
            self.root.join(format!("made-{partition}.{:032x}-delete", self.incarnation + 1));
        fs::rename(&dir, &renamed)?;
        for name in files::names(&renamed) {
            fs::remove_file(renamed.join(name))?;
        }
        fs::remove_dir(&renamed)?;
        self.incarnation += 1;
        self.logs.forget("made", partition);
        let id = format!("RigTopicId{:012}", self.incarnation);
        self.partitions[partition as usize] = self.logs.create_with_id("made", partition, &id);
        Ok(Vec::new())
    }
}

fn read_at(file: &File, at: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; len];
    let mut done = 0;
    while done < len {
        match file.read_at(&mut buffer[done..], at + done as u64)? {
            0 => break,
            n => done += n,
        }
    }
    buffer.truncate(done);
    Ok(buffer)
}

/// (length after the batch, offset after the batch) for each whole batch of a log.
pub fn batch_ends(log: &Path) -> Vec<(u64, i64)> {
    let bytes = fs::read(log).unwrap_or_default();
    let mut ends = Vec::new();
    let mut at = 0;
    while let Some(header) = bytes.get(at..at + 61) {
        let base = i64::from_be_bytes(header[..8].try_into().unwrap());
        let len = i32::from_be_bytes(header[8..12].try_into().unwrap());
        let last = i32::from_be_bytes(header[23..27].try_into().unwrap());
        if header[16] != 2 || len < 49 || at + 12 + len as usize > bytes.len() {
            break;
        }
        at += 12 + len as usize;
        ends.push((at as u64, base + i64::from(last) + 1));
    }
    ends
}

/// Every name with its kind, mode, length and the checksum of its bytes; of files their links and extended attribute, too.
pub fn tree(root: &Path) -> BTreeMap<String, String> {
    let more = |shown: &str, path: &Path, meta: &fs::Metadata| {
        let mut value = [0; 1000];
        let xattr = rustix::fs::lgetxattr(path, XATTR, &mut value[..]);
        let xattr = xattr.map(|n| crc32c::crc32c(&value[..n]));
        // A spool entry holds a link to a discarded segment's small files.
        let links = if shown.contains("junk") { meta.nlink() } else { 1 };
        format!(" {links} links {xattr:?}")
    };
    files::tree(root, more).unwrap_or_else(|e| panic!("{e}"))
}

/// What must not change when nobody writes: times, owners, links; and that a non-empty log has blocks.
pub fn attributes(root: &Path) -> BTreeMap<String, (u64, i64, i64, u32, u32, u64)> {
    let all = files::files_under(root);
    all.iter()
        .map(|path| {
            let m = path.metadata().unwrap();
            let shown = path.display().to_string();
            assert!(
                m.len() == 0 || m.blocks() > 0 || !shown.ends_with(".log"),
                "{shown} has bytes and no block"
            );
            (shown, (m.len(), m.mtime(), m.mtime_nsec(), m.uid(), m.gid(), m.nlink()))
        })
        .collect()
}
