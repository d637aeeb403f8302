//! What is done to a file: each operation says what came of it, in words that are compared.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FlockOperation, OFlags, RenameFlags, SeekFrom, Timespec,
    Timestamps, UTIME_NOW, UTIME_OMIT, XattrFlags,
};

/// In words.
pub type Said = Vec<String>;
pub type Operation = fn(&Path) -> Said;

/// Every operation with its name.
pub fn all() -> Vec<(&'static str, Operation)> {
    vec![
        ("chmod", chmod),
        ("chown", chown),
        ("utimensat", utimensat),
        ("utimensat now", utimensat_now),
        ("extended attributes", xattrs),
        ("a write by somebody else", foreign_write),
        ("a truncation by somebody else", foreign_truncation),
        ("symbolic links", symlinks),
        ("fallocate", fallocate),
        ("fallocate, size kept", fallocate_keep),
        ("a punched hole", punch),
        ("a zeroed range", zero_range),
        ("fallocate, what it refuses", fallocate_refused),
        ("lseek", seek),
        ("copy_file_range from it", copy_from),
        ("copy_file_range into it", copy_into),
        ("O_APPEND", append),
        ("O_TRUNC", open_truncate),
        ("ftruncate", truncate),
        ("O_DIRECT", direct),
        ("a private mapping", map_private),
        ("a shared mapping", map_shared),
        ("flock", flock),
        ("fcntl locks", fcntl_locks),
        ("rename", rename),
        ("a sparse tail", sparse),
        ("statx", statx),
        ("unlink while it is open", unlink_open),
        ("opens that fail", failing_opens),
        ("sendfile", sendfile),
        ("beyond the largest size", too_big),
    ]
}

fn say<T: std::fmt::Debug>(outcome: Result<T, impl Into<io::Error>>) -> String {
    match outcome {
        Ok(value) => format!("{value:?}"),
        Err(e) => {
            let e = e.into();
            e.raw_os_error().map_or_else(|| e.to_string(), |n| format!("errno {n}"))
        }
    }
}

fn rw(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

fn mode(path: &Path) -> String {
    format!("{:o}", path.metadata().unwrap().mode() & 0o7777)
}

fn checksum(bytes: &[u8]) -> String {
    format!("{} bytes, {:08x}", bytes.len(), crc32c::crc32c(bytes))
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn chmod(path: &Path) -> Said {
    let each = [0o600, 0o7777, 0o2644, 0];
    let each = each.map(|bits| {
        set_mode(path, bits);
        mode(path)
    });
    let open = rw(path).set_permissions(fs::Permissions::from_mode(0o640));
    [each.to_vec(), vec![say(open)]].concat()
}

fn chown(path: &Path) -> Said {
    let mut said = Said::new();
    for (bits, uid, gid) in
        [(0o6755, Some(12), None), (0o6745, None, Some(34)), (0o6755, Some(0), Some(0))]
    {
        set_mode(path, bits);
        said.push(say(std::os::unix::fs::chown(path, uid, gid)));
        said.push(mode(path));
    }
    said
}

fn times(path: &Path) -> String {
    let m = path.metadata().unwrap();
    format!("{}.{} {}.{}", m.atime(), m.atime_nsec(), m.mtime(), m.mtime_nsec())
}

fn at(tv_sec: i64, tv_nsec: i64) -> Timespec {
    Timespec { tv_sec, tv_nsec }
}

fn set_times(path: &Path, last_access: Timespec, last_modification: Timespec) -> String {
    let times = Timestamps { last_access, last_modification };
    say(rustix::fs::utimensat(CWD, path, &times, AtFlags::empty()))
}

fn utimensat(path: &Path) -> Said {
    let mut said = Said::new();
    for (atime, mtime) in [
        (at(1_000_000_000, 1), at(2_000_000_000, 999_999_999)),
        (at(0, UTIME_OMIT), at(3_000_000_000, 5)),
        (at(4_100_000_000, 7), at(0, UTIME_OMIT)),
        (at(0, UTIME_OMIT), at(0, UTIME_OMIT)),
        (at(0, 0), at(0, 0)),
    ] {
        said.push(set_times(path, atime, mtime));
        said.push(times(path));
    }
    said.push(set_times(path, at(0, 1_000_000_000), at(0, 0)));
    said
}

fn utimensat_now(path: &Path) -> Said {
    set_times(path, at(5, 5), at(6, 6));
    let outcome = set_times(path, at(0, UTIME_OMIT), at(0, UTIME_NOW));
    let m = path.metadata().unwrap();
    let age = m.modified().unwrap().elapsed().unwrap_or_default();
    let changed = m.ctime() >= m.mtime();
    vec![outcome, format!("{} {} {changed}", m.atime(), age.as_secs() < 60)]
}

fn user_names(path: &Path) -> String {
    let mut names = vec![0; 4096];
    let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let mut names: Vec<_> = names[..len].split(|b| *b == 0).collect();
    names.retain(|n| n.starts_with(b"user."));
    names.sort();
    format!("{names:?}")
}

fn xattrs(path: &Path) -> Said {
    let set =
        |name: &str, value: &[u8], flags| say(rustix::fs::lsetxattr(path, name, value, flags));
    let get = |name: &str, len: usize| {
        let mut buffer = vec![0; len];
        let found = rustix::fs::lgetxattr(path, name, &mut buffer[..]);
        say(found.map(|n| buffer[..n].to_vec()))
    };
    let none = XattrFlags::empty();
    let long = format!("user.{}", "n".repeat(250));
    let too_long = format!("user.{}", "n".repeat(251));
    vec![
        set("user.a", b"one", XattrFlags::REPLACE),
        set("user.a", b"one", XattrFlags::CREATE),
        set("user.a", b"two", XattrFlags::CREATE),
        set("user.a", b"\x00\xfftwo", XattrFlags::REPLACE),
        set("user.empty", b"", none),
        set(&long, b"long", none),
        set(&too_long, b"long", none),
        set("nowhere.a", b"1", none),
        set("user.", b"1", none),
        set("user.huge", &vec![7; 65_537], none),
        get("user.a", 100),
        get("user.a", 2),
        get("user.empty", 100),
        get(&long, 100),
        get("user.b", 100),
        say(rustix::fs::lgetxattr_query(path, "user.a")),
        user_names(path),
        say(rustix::fs::lremovexattr(path, "user.a")),
        say(rustix::fs::lremovexattr(path, "user.a")),
        user_names(path),
        set("trusted.t", b"t", none),
        get("trusted.t", 10),
        get("system.posix_acl_access", 100),
        set("system.posix_acl_access", b"nonsense", none),
    ]
}

fn as_somebody(path: &Path, script: &str) -> bool {
    let parents: Vec<_> = path.ancestors().skip(1).take(6).collect();
    for parent in parents {
        let mode = parent.metadata().unwrap().mode();
        if mode & 0o011 != 0o011 {
            fs::set_permissions(parent, fs::Permissions::from_mode(mode | 0o011)).unwrap();
        }
    }
    let mut shell = Command::new("setpriv");
    shell.args(["--reuid", "12345", "--regid", "12345", "--clear-groups", "sh", "-c", script, "-"]);
    shell.arg(path).output().unwrap().status.success()
}

fn foreign_write(path: &Path) -> Said {
    set_mode(path, 0o6777);
    let done = as_somebody(path, "printf more >> \"$1\"");
    let after = mode(path);
    set_mode(path, 0o604);
    vec![done.to_string(), after, as_somebody(path, "printf more >> \"$1\"").to_string()]
}

fn foreign_truncation(path: &Path) -> Said {
    set_mode(path, 0o6777);
    vec![as_somebody(path, "truncate -s 5000 \"$1\"").to_string(), mode(path)]
}

fn symlinks(path: &Path) -> Said {
    let link = path.with_file_name("a-link");
    let target = path.file_name().unwrap();
    let made = say(std::os::unix::fs::symlink(target, &link));
    let again = say(std::os::unix::fs::symlink(target, &link));
    let read = checksum(&fs::read(&link).unwrap());
    let leads = fs::read_link(&link).unwrap() == Path::new(target);
    let through = say(fs::set_permissions(&link, fs::Permissions::from_mode(0o600)));
    let nofollow = OFlags::NOFOLLOW.bits() as i32;
    let refused = File::options().read(true).custom_flags(nofollow).open(&link);
    let own = set_times(&link, at(9, 9), at(9, 9));
    fs::remove_file(&link).unwrap();
    vec![made, again, read, leads.to_string(), through, mode(path), say(refused), own]
}

fn allocate(path: &Path, flags: FallocateFlags, offset: u64, len: u64) -> String {
    let outcome = say(rustix::fs::fallocate(rw(path), flags, offset, len));
    format!("{outcome}, {} bytes", path.metadata().unwrap().len())
}

fn fallocate(path: &Path) -> Said {
    let none = FallocateFlags::empty();
    let size = path.metadata().unwrap().len();
    vec![
        allocate(path, none, 10, 20),
        allocate(path, none, size - 5, 10_000),
        allocate(path, none, size + 20_000, 1),
    ]
}

fn fallocate_keep(path: &Path) -> Said {
    let size = path.metadata().unwrap().len();
    let first = allocate(path, FallocateFlags::KEEP_SIZE, size + 10, 100_000);
    rw(path).set_len(size + 50_000).unwrap();
    vec![first]
}

const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);

fn punch(path: &Path) -> Said {
    let size = path.metadata().unwrap().len();
    vec![
        allocate(path, PUNCH, 4000, 9000),
        allocate(path, PUNCH, size - 10, 100),
        allocate(path, PUNCH, size + 10, 100),
        holes_are_zeros(path),
    ]
}

fn zero_range(path: &Path) -> Said {
    let size = path.metadata().unwrap().len();
    let keep = FallocateFlags::KEEP_SIZE;
    vec![
        allocate(path, FallocateFlags::ZERO_RANGE, 100, 5000),
        allocate(path, FallocateFlags::ZERO_RANGE | keep, size - 10, 5000),
        allocate(path, FallocateFlags::ZERO_RANGE, size - 10, 5000),
        holes_are_zeros(path),
    ]
}

fn fallocate_refused(path: &Path) -> Said {
    let reading = File::open(path).unwrap();
    vec![
        allocate(path, FallocateFlags::empty(), 5, 0),
        allocate(path, FallocateFlags::PUNCH_HOLE, 5, 5),
        allocate(path, FallocateFlags::COLLAPSE_RANGE | FallocateFlags::KEEP_SIZE, 0, 4096),
        say(rustix::fs::fallocate(&reading, FallocateFlags::empty(), 0, 5)),
    ]
}

/// Walks data and holes: what is skipped must be zeros, and the walk must end at the end.
fn holes_are_zeros(path: &Path) -> String {
    let file = File::open(path).unwrap();
    let bytes = fs::read(path).unwrap();
    let mut at = 0;
    loop {
        let data = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
            Err(rustix::io::Errno::NXIO) => bytes.len() as u64,
            other => other.unwrap(),
        };
        if bytes[at as usize..data as usize].iter().any(|b| *b != 0) {
            return format!("data in a hole at {at}");
        }
        if data == bytes.len() as u64 {
            return "holes are zeros".to_owned();
        }
        at = rustix::fs::seek(&file, SeekFrom::Hole(data)).unwrap();
    }
}

fn seek(path: &Path) -> Said {
    let file = File::open(path).unwrap();
    let size = path.metadata().unwrap().len();
    let mut said: Said = [
        SeekFrom::Data(0),
        SeekFrom::Data(size - 1),
        SeekFrom::Data(size),
        SeekFrom::Hole(0),
        SeekFrom::Hole(size - 1),
        SeekFrom::Hole(size),
        SeekFrom::Hole(size + 5),
        SeekFrom::End(-5),
        SeekFrom::Current(3),
        SeekFrom::End(5),
    ]
    .into_iter()
    .map(|to| say(rustix::fs::seek(&file, to)))
    .collect();
    said.push(holes_are_zeros(path));
    said
}

fn copy_from(path: &Path) -> Said {
    let target = path.with_file_name("copied");
    let (from, to) = (File::open(path).unwrap(), File::create(&target).unwrap());
    let (mut offset, mut said) = (7, Said::new());
    loop {
        match rustix::fs::copy_file_range(&from, Some(&mut offset), &to, None, 1 << 20) {
            Ok(0) => break,
            Ok(_) => {}
            Err(e) => {
                said.push(say(Err::<(), _>(e)));
                break;
            }
        }
    }
    said.push(checksum(&fs::read(&target).unwrap()));
    fs::remove_file(&target).unwrap();
    said
}

fn copy_into(path: &Path) -> Said {
    let source = path.with_file_name("to-copy");
    fs::write(&source, [b'c'; 9000]).unwrap();
    let (from, to) = (File::open(&source).unwrap(), rw(path));
    let (mut at_from, mut at_to, mut copied) = (0, 20_000, 0);
    while copied < 9000 {
        let left = 9000 - copied;
        let n = rustix::fs::copy_file_range(&from, Some(&mut at_from), &to, Some(&mut at_to), left);
        match n.unwrap() {
            0 => break,
            n => copied += n,
        }
    }
    fs::remove_file(&source).unwrap();
    let bad = rustix::fs::copy_file_range(&to, Some(&mut 0), &to, Some(&mut 10), 100);
    vec![copied.to_string(), say(bad)]
}

fn append(path: &Path) -> Said {
    let open = || File::options().append(true).read(true).open(path).unwrap();
    let (mut one, mut other) = (open(), open());
    for i in 0..10 {
        one.write_all(format!("one {i}").as_bytes()).unwrap();
        other.write_all(format!("other {i}").as_bytes()).unwrap();
    }
    // On Linux also a write at a position goes to the end then.
    vec![say(one.write_at(b"positioned", 5)), path.metadata().unwrap().len().to_string()]
}

fn open_truncate(path: &Path) -> Said {
    let held = rw(path);
    let mut file = File::options().write(true).truncate(true).open(path).unwrap();
    let empty = held.metadata().unwrap().len();
    file.write_all(b"new").unwrap();
    let mut seen = String::new();
    (&held).read_to_string(&mut seen).unwrap();
    vec![empty.to_string(), seen]
}

fn truncate(path: &Path) -> Said {
    let file = rw(path);
    let size = file.metadata().unwrap().len();
    let mut said = Said::new();
    for len in [size, size - 1, size + 70_000, 12_345, 0, 5, 20_000] {
        set_times(path, at(1, 1), at(2, 2));
        said.push(say(file.set_len(len)));
        let m = file.metadata().unwrap();
        said.push(format!("{} {}", m.len(), m.mtime() != 2));
        said.push(checksum(&fs::read(path).unwrap()));
    }
    said.push(say(File::open(path).unwrap().set_len(3)));
    said
}

/// A buffer that a disk can be read into.
#[repr(align(4096))]
struct Aligned([u8; 8192]);

fn direct(path: &Path) -> Said {
    let flags = OFlags::DIRECT.bits() as i32;
    let file = File::options().read(true).write(true).custom_flags(flags).open(path).unwrap();
    let mut buffer = Box::new(Aligned([0; 8192]));
    file.read_exact_at(&mut buffer.0, 4096).unwrap();
    let before = checksum(&buffer.0);
    buffer.0.fill(b'd');
    file.write_all_at(&buffer.0, 8192).unwrap();
    // Seen through the page cache, too, which had the old bytes.
    let mut seen = vec![0; 30_000];
    rw(path).read_exact_at(&mut seen, 0).unwrap();
    let at_end = file.read_at(&mut buffer.0, 1 << 20);
    vec![before, checksum(&seen), say(at_end)]
}

fn map_private(path: &Path) -> Said {
    let file = File::open(path).unwrap();
    // SAFETY: nobody shortens the file meanwhile.
    let mut map = unsafe { memmap2::MmapOptions::new().map_copy(&file).unwrap() };
    let before = checksum(&map);
    map[100..104].copy_from_slice(b"mine");
    let elsewhere = checksum(&fs::read(path).unwrap());
    vec![before, checksum(&map), elsewhere]
}

fn map_shared(path: &Path) -> Said {
    let file = rw(path);
    // SAFETY: nobody shortens the file meanwhile.
    let mut map = unsafe { memmap2::MmapMut::map_mut(&file).unwrap() };
    map[5000..5006].copy_from_slice(b"mapped");
    let mut seen = [0; 6];
    file.read_exact_at(&mut seen, 5000).unwrap();
    file.write_all_at(b"written", 9000).unwrap();
    let back = map[9000..9007].to_vec();
    map.flush().unwrap();
    let last = map.len() - 1;
    map[last] = b'!';
    drop((map, file));
    let bytes = fs::read(path).unwrap();
    vec![format!("{seen:?} {back:?} {}", bytes[last]), checksum(&bytes)]
}

fn flock(path: &Path) -> Said {
    let (one, other) = (rw(path), rw(path));
    let lock = |file: &File, how| say(rustix::fs::flock(file, how));
    let (exclusive, shared) =
        (FlockOperation::NonBlockingLockExclusive, FlockOperation::NonBlockingLockShared);
    let mut said = vec![lock(&one, exclusive), lock(&other, shared), lock(&other, exclusive)];
    drop(one);
    said.push(lock(&other, exclusive));
    said
}

fn fcntl_locks(path: &Path) -> Said {
    let script = "
import fcntl, os, sys
f = open(sys.argv[1], 'r+b')
fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 100, 50)
pid = os.fork()
if pid == 0:
    g = open(sys.argv[1], 'r+b')
    said = []
    for start, length in ((0, 50), (140, 1), (200, 0)):
        try:
            fcntl.lockf(g, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
            said.append('taken')
        except OSError as e:
            said.append(str(e.errno))
    print(said, flush=True)
    os._exit(0)
os.waitpid(pid, 0)
";
    let mut python = Command::new("python3");
    python.args(["-c", script]).arg(path);
    vec![crate::common::children::run(python, "two processes and locks of ranges")]
}

fn rename(path: &Path) -> Said {
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    let moved = path.with_file_name(format!("{name}.deleted"));
    let other = path.with_file_name("in-the-way");
    fs::write(&other, "other").unwrap();
    let no_replace =
        |to: &Path| say(rustix::fs::renameat_with(CWD, path, CWD, to, RenameFlags::NOREPLACE));
    let mut said = vec![no_replace(&other), no_replace(&moved), path.exists().to_string()];
    let held = File::open(&moved).unwrap();
    said.push(say(fs::rename(&moved, path)));
    said.push(checksum(&fs::read(path).unwrap()));
    said.push(held.metadata().unwrap().nlink().to_string());
    said.push(say(fs::rename(path, path)));
    said.push(say(fs::rename(path.with_file_name("nothing"), path)));
    let dir = path.with_file_name("a-directory");
    fs::create_dir(&dir).unwrap();
    said.push(say(fs::rename(path, &dir)));
    said.push(say(fs::rename(&dir, path)));
    fs::remove_dir(&dir).unwrap();
    fs::remove_file(&other).unwrap();
    said
}

fn sparse(path: &Path) -> Said {
    let file = rw(path);
    let size = file.metadata().unwrap().len();
    file.write_all_at(b"far", size + 300_000).unwrap();
    file.write_all_at(b"between", size + 100_000).unwrap();
    let blocks = file.metadata().unwrap().blocks();
    vec![holes_are_zeros(path), (blocks > 0).to_string(), checksum(&fs::read(path).unwrap())]
}

fn statx(path: &Path) -> Said {
    let x = rustix::fs::statx(CWD, path, AtFlags::empty(), rustix::fs::StatxFlags::BASIC_STATS)
        .unwrap();
    let shown = (x.stx_size, x.stx_mode, x.stx_uid, x.stx_gid, x.stx_nlink);
    vec![format!("{shown:?} {}", x.stx_blocks > 0)]
}

fn unlink_open(path: &Path) -> Said {
    let file = rw(path);
    fs::remove_file(path).unwrap();
    file.write_all_at(b"after", 100).unwrap();
    let mut bytes = Vec::new();
    (&file).read_to_end(&mut bytes).unwrap();
    let cut = say(file.set_len(50));
    let m = file.metadata().unwrap();
    let again = say(fs::remove_file(path));
    let fresh = File::options().create_new(true).write(true).open(path);
    let fresh = fresh.and_then(|_| path.metadata()).map(|m| (m.len(), m.nlink()));
    fs::remove_file(path).unwrap();
    vec![checksum(&bytes), cut, format!("{} {}", m.nlink(), m.len()), again, say(fresh)]
}

fn failing_opens(path: &Path) -> Said {
    let directory = OFlags::DIRECTORY.bits() as i32;
    let open = File::options().read(true).custom_flags(directory).open(path);
    vec![
        say(open.map(drop)),
        say(File::options().create_new(true).write(true).open(path).map(drop)),
        say(File::open(path.join("below")).map(drop)),
        say(fs::create_dir(path)),
        say(fs::remove_dir(path)),
        say(fs::read_dir(path).map(drop)),
        say(File::open(path.with_file_name("n".repeat(256))).map(drop)),
    ]
}

fn sendfile(path: &Path) -> Said {
    let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let file = File::open(path).unwrap();
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        theirs.read_to_end(&mut bytes).unwrap();
        bytes
    });
    let mut offset = 1000;
    while rustix::fs::sendfile(&ours, &file, Some(&mut offset), 1 << 20).unwrap() > 0 {}
    drop(ours);
    vec![checksum(&reader.join().unwrap())]
}

fn too_big(path: &Path) -> Said {
    let file = rw(path);
    vec![
        say(file.set_len(1 << 60)),
        say(file.write_at(b"far", 1 << 60)),
        say(rustix::fs::fallocate(&file, FallocateFlags::empty(), 1 << 60, 10)),
    ]
}
