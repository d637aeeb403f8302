//! One of the two sides of a replay: a log dir, and what the broker of the trace holds open and mapped in it.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::{
    self, AtFlags, CWD, FlockOperation, Mode, OFlags, SeekFrom, Timespec, Timestamps,
};
use rustix::io::{self, Errno};

use crate::step::Op;

/// Less than a socket holds, so that one thread can fill and empty it.
const SEND_BYTES: usize = 65_536;

/// What a step gave: a number as the trace has it, and bytes or names where it gives some.
#[derive(PartialEq, Eq)]
pub struct Outcome {
    pub number: i64,
    pub bytes: Vec<u8>,
}

impl std::fmt::Debug for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let crc = crc32c::crc32c(&self.bytes);
        write!(f, "{} with {} bytes, CRC {crc:08x}", self.number, self.bytes.len())
    }
}

struct Held {
    file: OwnedFd,
    flags: OFlags,
    /// Its name now; `None` when it has none any more.
    path: Option<String>,
}

struct Mapping {
    map: memmap2::MmapMut,
    path: Option<String>,
}

/// See the module.
pub struct World {
    pub root: PathBuf,
    held: BTreeMap<u64, Held>,
    maps: BTreeMap<u64, Mapping>,
}

/// Descriptors and mappings of a process, to be opened again: number, name, flags and position; number, name and length.
pub struct Remembered {
    held: Vec<(u64, String, OFlags, u64)>,
    maps: Vec<(u64, String, usize)>,
}

type Given = io::Result<(i64, Vec<u8>)>;

const NOTHING: Given = Ok((0, Vec::new()));

impl World {
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), held: BTreeMap::new(), maps: BTreeMap::new() }
    }

    /// The present name of the file behind a descriptor.
    pub fn name_of(&self, id: u64) -> Option<&str> {
        self.held.get(&id)?.path.as_deref()
    }

    /// Whether everything that is open has a name, so that it can be opened again.
    pub fn can_let_go(&self) -> bool {
        self.held.values().all(|h| h.path.is_some()) && self.maps.values().all(|m| m.path.is_some())
    }

    /// Closes everything.
    pub fn let_go(&mut self) -> Remembered {
        let held = std::mem::take(&mut self.held).into_iter();
        let held = held.map(|(id, h)| {
            let at = fs::seek(&h.file, SeekFrom::Current(0)).unwrap_or(0);
            let flags = h.flags.difference(OFlags::CREATE | OFlags::EXCL | OFlags::TRUNC);
            (id, h.path.expect("can_let_go"), flags, at)
        });
        let held = held.collect();
        let maps = std::mem::take(&mut self.maps).into_iter();
        let maps = maps.map(|(id, m)| {
            // Unsynced it would be lost with the machine, and on kernels without passthrough with the daemon.
            m.map.flush().unwrap();
            (id, m.path.expect("can_let_go"), m.map.len())
        });
        let maps = maps.collect();
        Remembered { held, maps }
    }

    /// Opens everything again.
    pub fn reopen(&mut self, all: Remembered) {
        for (id, path, flags, at) in all.held {
            let file = self.open(&path, flags, 0).unwrap_or_else(|e| panic!("{path} again: {e}"));
            fs::seek(&file, SeekFrom::Start(at)).unwrap();
            self.held.insert(id, Held { file, flags, path: Some(path) });
        }
        for (id, path, len) in all.maps {
            let file = self.open(&path, OFlags::RDWR | OFlags::CLOEXEC, 0).unwrap();
            self.maps.insert(id, Mapping { map: map(&file, len), path: Some(path) });
        }
    }

    /// Takes the pages of all segments out of the kernel's memory: the next read asks the filesystem.
    pub fn forget_pages(&self) {
        for path in crate::common::files_under(&self.root) {
            if path.to_string_lossy().contains(".log") {
                let file = std::fs::File::open(&path).unwrap();
                fs::fadvise(&file, 0, None, fs::Advice::DontNeed).unwrap();
            }
        }
    }

    fn open(&self, path: &str, flags: OFlags, mode: u32) -> io::Result<OwnedFd> {
        fs::open(self.root.join(path), flags, Mode::from_raw_mode(mode))
    }

    fn file(&self, id: u64) -> &OwnedFd {
        &self.held.get(&id).unwrap_or_else(|| panic!("the trace uses {id}, which is not open")).file
    }

    /// Does it and says what came of it.
    pub fn apply(&mut self, op: &Op) -> Outcome {
        let given = match op {
            Op::Open { .. } | Op::Close { .. } | Op::End => self.descriptor(op),
            Op::Map { .. } | Op::Put { .. } | Op::Msync { .. } | Op::Unmap { .. } => {
                self.map_op(op)
            }
            Op::Rename { .. } | Op::Unlink { .. } | Op::Rmdir { .. } | Op::Mkdir { .. } => {
                self.name(op)
            }
            Op::Stat { .. } | Op::Access { .. } | Op::Utimes { .. } => self.path_op(op),
            Op::Phase { .. } => NOTHING,
            _ => self.file_op(op),
        };
        match given {
            Ok((number, bytes)) => Outcome { number, bytes },
            Err(errno) => Outcome { number: -i64::from(errno.raw_os_error()), bytes: Vec::new() },
        }
    }

    fn descriptor(&mut self, op: &Op) -> Given {
        match op {
            Op::Open { id, path, flags, mode } => {
                let file = self.open(path, *flags, *mode)?;
                self.held.insert(*id, Held { file, flags: *flags, path: Some(path.clone()) });
            }
            Op::Close { id } => {
                self.held.remove(id).unwrap_or_else(|| panic!("the trace closes {id} twice"));
            }
            _ => {
                self.held.clear();
                self.maps.clear();
            }
        }
        NOTHING
    }

    fn file_op(&self, op: &Op) -> Given {
        match op {
            Op::Write { id, data } => Ok((io::write(self.file(*id), data)? as i64, Vec::new())),
            Op::WriteAt { id, at, data } => {
                Ok((io::pwrite(self.file(*id), data, *at)? as i64, Vec::new()))
            }
            Op::Read { id, len } => {
                let mut buffer = vec![0; *len];
                let n = io::read(self.file(*id), &mut buffer)?;
                Ok((n as i64, buffer[..n].to_vec()))
            }
            Op::ReadAt { id, at, len } => {
                let mut buffer = vec![0; *len];
                let n = io::pread(self.file(*id), &mut buffer, *at)?;
                Ok((n as i64, buffer[..n].to_vec()))
            }
            Op::SendFile { id, at, len } => {
                let bytes = send_file(self.file(*id), *at, *len)?;
                Ok((bytes.len() as i64, bytes))
            }
            Op::Seek { id, at, from_end } => {
                let to = if *from_end { SeekFrom::End(*at as i64) } else { SeekFrom::Start(*at) };
                Ok((fs::seek(self.file(*id), to)? as i64, Vec::new()))
            }
            Op::Truncate { id, len } => fs::ftruncate(self.file(*id), *len).and(NOTHING),
            Op::Sync { id } => fs::fsync(self.file(*id)).and(NOTHING),
            Op::Lock { id } => {
                let how = FlockOperation::NonBlockingLockExclusive;
                fs::fcntl_lock(self.file(*id), how).and(NOTHING)
            }
            Op::SizeOf { id } => Ok(size_and_kind(&fs::fstat(self.file(*id))?)),
            Op::List { id } => Ok((0, names(self.file(*id))?.into_bytes())),
            _ => unreachable!("not about a descriptor"),
        }
    }

    fn map_op(&mut self, op: &Op) -> Given {
        match op {
            Op::Map { map: number, id, len } => {
                let held = &self.held[id];
                let mapping = Mapping { map: map(&held.file, *len), path: held.path.clone() };
                self.maps.insert(*number, mapping);
            }
            Op::Put { map, at, data } => {
                let mapping = self.maps.get_mut(map).unwrap_or_else(|| panic!("no map {map}"));
                mapping.map[*at..*at + data.len()].copy_from_slice(data);
            }
            Op::Msync { map } => self.maps[map].map.flush().map_err(errno)?,
            Op::Unmap { map } => drop(self.maps.remove(map)),
            _ => unreachable!("not about a mapping"),
        }
        NOTHING
    }

    fn name(&mut self, op: &Op) -> Given {
        match op {
            Op::Rename { from, to } => {
                fs::rename(self.root.join(from), self.root.join(to))?;
                self.renamed(from, to);
            }
            Op::Unlink { path } => {
                fs::unlink(self.root.join(path))?;
                self.paths()
                    .filter(|p| p.as_deref() == Some(path.as_str()))
                    .for_each(|p| *p = None);
            }
            Op::Rmdir { path } => fs::rmdir(self.root.join(path))?,
            Op::Mkdir { path, mode } => {
                fs::mkdir(self.root.join(path), Mode::from_raw_mode(*mode))?;
            }
            _ => unreachable!("not about a name"),
        }
        NOTHING
    }

    fn paths(&mut self) -> impl Iterator<Item = &mut Option<String>> {
        let held = self.held.values_mut().map(|h| &mut h.path);
        held.chain(self.maps.values_mut().map(|m| &mut m.path))
    }

    fn renamed(&mut self, from: &str, to: &str) {
        for path in self.paths() {
            let Some(name) = path.clone() else { continue };
            if name == to {
                *path = None;
            } else if let Some(rest) = name.strip_prefix(from)
                && (rest.is_empty() || rest.starts_with('/'))
            {
                *path = Some(format!("{to}{rest}"));
            }
        }
    }

    fn path_op(&self, op: &Op) -> Given {
        match op {
            Op::Stat { path } => Ok(size_and_kind(&fs::stat(self.root.join(path))?)),
            Op::Access { path, how } => {
                fs::accessat(CWD, self.root.join(path), *how, AtFlags::empty()).and(NOTHING)
            }
            Op::Utimes { path, seconds, nanos } => {
                let path = self.root.join(path);
                let time = Timespec { tv_sec: *seconds, tv_nsec: *nanos };
                let both = Timestamps { last_access: time, last_modification: time };
                fs::utimensat(CWD, &path, &both, AtFlags::empty())?;
                let stat = fs::stat(&path)?;
                Ok((0, format!("{} {}", stat.st_mtime, stat.st_mtime_nsec).into_bytes()))
            }
            _ => unreachable!("not about a path"),
        }
    }
}

fn errno(e: std::io::Error) -> Errno {
    Errno::from_io_error(&e).unwrap_or(Errno::IO)
}

fn map(file: &OwnedFd, len: usize) -> memmap2::MmapMut {
    // SAFETY: the trace's broker shortens files only below positions that it uses no more, and the replay does as it did.
    unsafe { memmap2::MmapOptions::new().len(len).map_mut(file).unwrap() }
}

fn size_and_kind(stat: &fs::Stat) -> (i64, Vec<u8>) {
    if fs::FileType::from_raw_mode(stat.st_mode).is_dir() {
        (0, b"directory".to_vec())
    } else {
        (stat.st_size, b"file".to_vec())
    }
}

fn names(dir: &OwnedFd) -> io::Result<String> {
    let mut found = Vec::new();
    for entry in fs::Dir::read_from(dir.as_fd())? {
        found.push(entry?.file_name().to_string_lossy().into_owned());
    }
    found.sort();
    Ok(found.join("\n"))
}

/// `len` bytes of a file as a broker sends them to a consumer; fewer where the file ends.
fn send_file(file: &OwnedFd, at: u64, len: usize) -> io::Result<Vec<u8>> {
    let (to, mut from) = UnixStream::pair().map_err(errno)?;
    let (mut got, mut offset) = (Vec::with_capacity(len), at);
    while got.len() < len {
        let n = fs::sendfile(&to, file, Some(&mut offset), SEND_BYTES.min(len - got.len()))?;
        if n == 0 {
            break;
        }
        let start = got.len();
        got.resize(start + n, 0);
        from.read_exact(&mut got[start..]).map_err(errno)?;
    }
    Ok(got)
}
