//! What a person does to a file in a shell, done to an ordinary file and to a hot, a cold and a half-cold `.log` of the mount, and
//! to a file of the same bytes on the disk below: the same outcome, the same bytes and the same attributes each time.

mod common;

#[path = "posix_tiers/ops.rs"]
mod ops;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use common::broker::CLUSTER_ID;
use common::files::access_list;
use common::logdir::PartitionLog;
use common::{LogDir, Mount, MountCommand, Scratch, files, unless, wait_until};
use rustix::fs::{FallocateFlags, XattrFlags};
use rustix::io::Errno;

/// Where the file's bytes are when something is done to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tier {
    Ordinary,
    Hot,
    Cold,
    /// Cold, and then written to.
    Overlaid,
}

const TIERS: [Tier; 4] = [Tier::Ordinary, Tier::Hot, Tier::Cold, Tier::Overlaid];

/// A mount whose partition `made-0` is cold and whose `made-1` stays hot.
struct Tiers {
    command: MountCommand,
    mount: Mount,
    cold: Vec<String>,
    hot: Vec<String>,
    plain: PathBuf,
    made: u32,
    logs: LogDir,
    log: PartitionLog,
    scratch: Scratch,
}

fn segments(log: &mut PartitionLog, count: usize) -> Vec<String> {
    let one = |_| {
        let name = format!("{}/{:020}.log", files::name(log.dir()), log.base());
        (0..3).for_each(|_| drop(log.append(16, 1000)));
        log.roll();
        name
    };
    (0..count).map(one).collect()
}

impl Tiers {
    fn start(name: &str, each: usize) -> Self {
        let scratch = Scratch::new(name);
        let store = scratch.file_store("store");
        let command = MountCommand::broker(scratch.path(), &store).option("--hot-bytes", 1);
        let mount = command.start();
        let mut logs = LogDir::new(mount.point(), CLUSTER_ID).index_bytes(4096);
        let mut log = logs.create("made", 0);
        let cold = segments(&mut log, 2 * each);
        let mut other = logs.create("made", 1);
        let hot = segments(&mut other, each);
        logs.commit(&log);
        (0..3).for_each(|_| logs.checkpoint());
        let plain = scratch.dir("plain");
        let mut made = Self { command, mount, cold, hot, plain, made: 0, logs, log, scratch };
        made.wait_for_cold();
        made.cold.reverse();
        made
    }

    fn wait_for_cold(&mut self) {
        wait_until("all closed segments to be cold", 120, || {
            let hot = self.cold.iter().filter(|n| self.below(n).exists()).count();
            unless(hot == 0, || format!("{hot} are hot; {}", self.mount.status()))
        });
    }

    fn below(&self, name: &str) -> PathBuf {
        self.scratch.path().join("data/hot").join(name)
    }

    /// A fresh file of this tier on the mount, and its equal on the disk below.
    fn pair(&mut self, tier: Tier) -> (PathBuf, PathBuf) {
        self.made += 1;
        let name = match tier {
            Tier::Ordinary => {
                let name = format!("made-1/note-{}", self.made);
                fs::copy(self.mount.path(&self.hot[0]), self.mount.path(&name)).unwrap();
                name
            }
            Tier::Hot => self.hot.pop().unwrap(),
            Tier::Cold | Tier::Overlaid => self.cold.pop().unwrap(),
        };
        let (mounted, plain) =
            (self.mount.path(&name), self.plain.join(self.made.to_string()).join("file"));
        fs::create_dir(plain.parent().unwrap()).unwrap();
        fs::write(&plain, fs::read(&mounted).unwrap()).unwrap();
        if tier == Tier::Overlaid {
            for path in [&mounted, &plain] {
                let file = File::options().write(true).open(path).unwrap();
                file.write_all_at(b"written while it was cold", 30_000).unwrap();
            }
        }
        for path in [&mounted, &plain] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
        }
        assert_eq!(
            self.below(&name).exists(),
            matches!(tier, Tier::Ordinary | Tier::Hot) || {
                // Made whole again in the background already, perhaps.
                tier == Tier::Overlaid && self.below(&name).exists()
            }
        );
        (mounted, plain)
    }
}

fn shape(path: &Path) -> (u64, u32, u32, u32, u64) {
    let m = path.symlink_metadata().unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    (m.len(), m.mode(), m.uid(), m.gid(), m.nlink())
}

#[test]
fn whatever_a_shell_does_to_a_file_gives_the_same_in_every_tier_as_on_the_disk_below() {
    let ops = ops::all();
    let mut tiers = Tiers::start("tiers-shell", ops.len() + 1);
    let mut failures = Vec::new();
    for (what, op) in &ops {
        for tier in TIERS {
            let (mounted, plain) = tiers.pair(tier);
            let (found, expected) = (op(&mounted), op(&plain));
            if found != expected {
                failures.push(format!("{what}, {tier:?}: {found:?} instead of {expected:?}"));
                continue;
            }
            if !plain.exists() {
                continue;
            }
            if shape(&mounted) != shape(&plain) {
                let (a, b) = (shape(&mounted), shape(&plain));
                failures.push(format!("{what}, {tier:?}: attributes {a:?} instead of {b:?}"));
            }
            let (a, b) = (fs::read(&mounted), fs::read(&plain).unwrap());
            if !a.as_ref().is_ok_and(|a| *a == b) {
                let a = a.map(|a| a.len());
                failures.push(format!("{what}, {tier:?}: {a:?} and {} bytes differ", b.len()));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn what_a_log_cannot_be_given_is_refused_with_an_errno_that_says_so() {
    let mut tiers = Tiers::start("tiers-refused", 6);
    let errno = |outcome: std::io::Result<()>| outcome.unwrap_err().raw_os_error().unwrap();
    for tier in [Tier::Hot, Tier::Cold, Tier::Overlaid] {
        let (path, _) = tiers.pair(tier);
        let bytes = fs::read(&path).unwrap();
        // One name: its bytes could not be released under two.
        let second = path.with_file_name("second");
        assert_eq!(errno(fs::hard_link(&path, &second)), Errno::PERM.raw_os_error());
        let copied = path.with_file_name("00000000000000099999.log");
        assert_eq!(errno(fs::hard_link(&path, &copied)), Errno::PERM.raw_os_error());
        // Its end there would be none that the archive has been told of: `mv` copies.
        let elsewhere = tiers.mount.path("made-1/00000000000000088888.log");
        if tier != Tier::Hot {
            assert_eq!(errno(fs::rename(&path, &elsewhere)), Errno::XDEV.raw_os_error());
        }
        assert_eq!(errno(fs::rename(&path, &second)), Errno::XDEV.raw_os_error());
        let exchanged = rustix::fs::renameat_with(
            rustix::fs::CWD,
            &path,
            rustix::fs::CWD,
            tiers.mount.path("meta.properties"),
            rustix::fs::RenameFlags::EXCHANGE,
        );
        assert_eq!(exchanged, Err(Errno::INVAL));
        // The kernel hands these modes to no FUSE filesystem.
        let file = File::options().write(true).open(&path).unwrap();
        for mode in [FallocateFlags::COLLAPSE_RANGE, FallocateFlags::INSERT_RANGE] {
            assert_eq!(rustix::fs::fallocate(&file, mode, 0, 4096), Err(Errno::OPNOTSUPP));
        }
        assert_eq!(fs::read(&path).unwrap(), bytes);
        let mut mv = std::process::Command::new("mv");
        mv.arg(&path).arg(&second);
        common::children::run(mv, "mv of a segment to another name");
        assert_eq!(fs::read(&second).unwrap(), bytes);
        assert!(!path.exists());
        fs::remove_file(&second).unwrap();
    }
}

/// A list that gives a user of this number reading.
fn reader_list(user: u32) -> Vec<u8> {
    let none = u32::MAX;
    access_list(&[(1, 6, none), (2, 4, user), (4, 0, none), (0x10, 4, none), (0x20, 0, none)])
}

fn xattr(path: &Path, name: &str) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0; 5000];
    let len = rustix::fs::lgetxattr(path, name, &mut value[..])?;
    value.truncate(len);
    Ok(value)
}

fn can_read(path: &Path, uid: u32) -> bool {
    let mut cat = std::process::Command::new("setpriv");
    let id = uid.to_string();
    cat.args(["--reuid", &id, "--regid", &id, "--clear-groups", "cat"]).arg(path);
    cat.output().unwrap().status.success()
}

const ACCESS: &str = "system.posix_acl_access";

/// Everything that is known of a file beside its bytes.
fn all_attributes(path: &Path) -> impl PartialEq + std::fmt::Debug + use<> {
    let m = path.metadata().unwrap();
    let names = ["user.note", "user.empty", "trusted.note", ACCESS];
    let values = names.map(|n| xattr(path, n));
    (m.mode(), m.uid(), m.gid(), m.mtime(), m.mtime_nsec(), values)
}

#[test]
fn mode_owner_times_and_extended_attributes_survive_eviction_restart_and_hydration() {
    let mut tiers = Tiers::start("tiers-survive", 1);
    for parent in tiers.scratch.path().ancestors().take(3) {
        let mode = parent.metadata().unwrap().mode();
        fs::set_permissions(parent, fs::Permissions::from_mode(mode | 0o055)).unwrap();
    }
    let name = segments(&mut tiers.log, 1).remove(0);
    let path = tiers.mount.path(&name);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::chown(&path, Some(12_345), Some(54_321)).unwrap();
    for (name, value) in
        [("user.note", &b"\x00\xff"[..]), ("user.empty", b""), ("trusted.note", b"t")]
    {
        rustix::fs::lsetxattr(&path, name, value, XattrFlags::CREATE).unwrap();
    }
    rustix::fs::lsetxattr(&path, ACCESS, &reader_list(777), XattrFlags::empty()).unwrap();
    let times = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec { tv_sec: 1_111_111_111, tv_nsec: 111_111_111 },
        last_modification: rustix::fs::Timespec { tv_sec: 1_222_222_222, tv_nsec: 222_222_222 },
    };
    let flags = rustix::fs::AtFlags::empty();
    rustix::fs::utimensat(rustix::fs::CWD, &path, &times, flags).unwrap();
    let expected = all_attributes(&path);
    let changed = path.metadata().unwrap().ctime();

    tiers.logs.commit(&tiers.log);
    (0..2).for_each(|_| tiers.logs.checkpoint());
    wait_until("its eviction", 60, || {
        unless(!tiers.below(&name).exists(), || tiers.mount.status().to_string())
    });
    let check = |when: &str| {
        assert_eq!(all_attributes(&path), expected, "{when}");
        assert!(path.metadata().unwrap().ctime() >= changed, "{when}");
        assert!(can_read(&path, 12_345) && can_read(&path, 777) && !can_read(&path, 778), "{when}");
    };
    check("evicted");
    // The archiving has read it, so this may have moved before; not any more.
    let atime = || path.metadata().map(|m| (m.atime(), m.atime_nsec())).unwrap();
    let accessed = atime();
    let Tiers { mount, command, log, .. } = tiers;
    drop(log);
    mount.umount();
    let mount = command.start();
    check("after a restart");
    assert_eq!(atime(), accessed);

    // While it is cold: the list follows the mode, and the mode follows the list.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(!can_read(&path, 777) && can_read(&path, 12_345));
    rustix::fs::lsetxattr(&path, ACCESS, &reader_list(778), XattrFlags::empty()).unwrap();
    assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o640);
    assert!(can_read(&path, 778) && !can_read(&path, 777));
    rustix::fs::lremovexattr(&path, "user.empty").unwrap();
    assert_eq!(xattr(&path, "user.empty"), Err(Errno::NODATA));

    let file = File::options().append(true).open(&path).unwrap();
    std::io::Write::write_all(&mut &file, b"one more").unwrap();
    drop(file);
    let below = tiers.scratch.path().join("data/hot").join(&name);
    wait_until("it to be whole again", 60, || {
        unless(below.exists(), || mount.status().to_string())
    });
    assert_eq!(xattr(&path, ACCESS), Ok(reader_list(778)));
    assert_eq!(xattr(&below, ACCESS), Ok(reader_list(778)));
    assert_eq!(xattr(&path, "user.note").unwrap(), b"\x00\xff");
    assert_eq!(xattr(&path, "user.empty"), Err(Errno::NODATA));
    let meta = path.metadata().unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (12_345, 54_321, 0o640));
    assert!(can_read(&path, 778) && !can_read(&path, 777));
    mount.umount();
}

#[test]
fn a_file_that_is_deleted_while_it_is_cold_and_open_stays_deleted() {
    let mut tiers = Tiers::start("tiers-deleted", 4);
    let (path, plain) = tiers.pair(Tier::Cold);
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let mut expected = fs::read(&plain).unwrap();
    fs::remove_file(&path).unwrap();
    file.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    rustix::fs::fsetxattr(&file, "user.a", b"1", XattrFlags::empty()).unwrap();
    file.write_all_at(b"nobody's", 10_000).unwrap();
    file.set_len(40_000).unwrap();
    expected[10_000..10_008].copy_from_slice(b"nobody's");
    expected.truncate(40_000);
    let mut found = vec![0; 40_000];
    file.read_exact_at(&mut found, 0).unwrap();
    assert!(found == expected);
    let meta = file.metadata().unwrap();
    assert_eq!((meta.nlink(), meta.mode() & 0o777, meta.len()), (0, 0o600, 40_000));
    file.sync_all().unwrap();
    drop(file);
    let Tiers { mount, command, log, logs, .. } = tiers;
    drop((log, logs));
    mount.umount();
    let mount = command.start();
    assert!(!path.exists());
    let left = files::names(path.parent().unwrap());
    assert!(!left.contains(&files::name(&path)), "{left:?}");
    assert_eq!(
        files::files_under(&tiers.scratch.path().join("data/overlay")),
        Vec::<PathBuf>::new()
    );
    mount.umount();
}

#[test]
fn the_usual_copies_of_a_directory_of_cold_segments_are_exact() {
    let mut tiers = Tiers::start("tiers-copies", 3);
    let (cold, _) = tiers.pair(Tier::Cold);
    rustix::fs::lsetxattr(&cold, "user.a", b"1", XattrFlags::empty()).unwrap();
    let scratch = tiers.scratch.path().to_owned();
    let source = tiers.mount.path("made-0");
    let command = format!(
        "cp -a --sparse=always {0} {1}/copied && mkdir {1}/tarred && \
         tar -C {0} --sparse --xattrs -cf - . | tar -C {1}/tarred --xattrs -xf -",
        source.display(),
        scratch.display()
    );
    let mut sh = std::process::Command::new("sh");
    sh.args(["-ec", &command]);
    common::children::run(sh, "cp and tar");
    for copy in ["copied", "tarred"] {
        let copy = scratch.join(copy);
        assert_eq!(files::names(&copy), files::names(&source));
        for name in files::names(&source) {
            let (a, b) = (source.join(&name), copy.join(&name));
            assert!(fs::read(&a).unwrap() == fs::read(&b).unwrap(), "{}", b.display());
            let times = |p: &Path| p.metadata().map(|m| (m.mtime(), m.len(), m.mode())).unwrap();
            assert_eq!(times(&a), times(&b), "{}", b.display());
        }
        assert_eq!(xattr(&copy.join(files::name(&cold)), "user.a").unwrap(), b"1");
    }
}
