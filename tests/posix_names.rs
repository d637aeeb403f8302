//! Ordinary files and directories of a broker mount: links, numbers, listings, access lists, exchanges and the
//! other things that tools expect of names.

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirEntryExt as _, FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::files::access_list;
use common::{Scratch, files, plain_mount};
use rustix::fs::{AtFlags, CWD, RenameFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

fn sh(script: &str, dir: &Path) -> String {
    let mut shell = Command::new("sh");
    shell.args(["-ec", script]).current_dir(dir);
    common::children::run(shell, script)
}

#[test]
fn the_names_of_a_hard_linked_file_are_one_file() {
    let (_scratch, _, mount) = plain_mount("names-links");
    fs::create_dir(mount.path("dir")).unwrap();
    let (one, two) = (mount.path("one"), mount.path("dir/two"));
    fs::write(&one, "first").unwrap();
    let held = File::options().read(true).write(true).open(&one).unwrap();
    fs::hard_link(&one, &two).unwrap();
    let ino = |path: &Path| path.metadata().unwrap().ino();
    assert_eq!((ino(&one), one.metadata().unwrap().nlink()), (ino(&two), 2));
    held.write_all_at(b"through one name", 0).unwrap();
    assert_eq!(fs::read(&two).unwrap(), b"through one name");
    assert_eq!(two.metadata().unwrap().len(), 16);
    fs::set_permissions(&two, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(one.metadata().unwrap().mode() & 0o777, 0o600);
    fs::rename(&one, mount.path("three")).unwrap();
    assert_eq!(ino(&mount.path("three")), ino(&two));
    fs::remove_file(mount.path("three")).unwrap();
    assert_eq!(held.metadata().unwrap().nlink(), 1);
    fs::remove_file(&two).unwrap();
    assert_eq!(held.metadata().unwrap().nlink(), 0);
    held.write_all_at(b"still", 0).unwrap();
    let mut seen = [0; 5];
    held.read_exact_at(&mut seen, 0).unwrap();
    assert_eq!(&seen, b"still");
}

#[test]
fn a_name_that_was_linked_before_the_mount_is_the_same_file_too() {
    let (_scratch, command, mount) = plain_mount("names-linked");
    fs::write(mount.path("one"), "first").unwrap();
    fs::hard_link(mount.path("one"), mount.path("two")).unwrap();
    mount.umount();
    let mount = command.start();
    let (one, two) = (mount.path("one"), mount.path("two"));
    assert_eq!(one.metadata().unwrap().ino(), two.metadata().unwrap().ino());
    fs::write(&one, "second, and longer").unwrap();
    assert_eq!(fs::read(&two).unwrap(), b"second, and longer");
    assert_eq!(two.metadata().unwrap().len(), 18);
}

#[test]
fn a_listing_shows_the_numbers_and_kinds_that_stat_shows() {
    let (_scratch, _, mount) = plain_mount("names-numbers");
    let dir = mount.path("t-0");
    fs::create_dir(&dir).unwrap();
    for name in ["00000000000000000000.log", "00000000000000000000.index", "note"] {
        fs::write(dir.join(name), name).unwrap();
    }
    sh("ln -s note link; mkfifo fifo; mkdir below; ln note other", &dir);
    for _ in 0..2 {
        let listed: BTreeMap<_, _> = fs::read_dir(&dir)
            .unwrap()
            .map(|e| e.unwrap())
            .map(|e| (e.file_name(), (e.ino(), e.file_type().unwrap())))
            .collect();
        assert_eq!(listed.len(), 7);
        for (name, (ino, kind)) in &listed {
            let meta = dir.join(name).symlink_metadata().unwrap();
            assert_eq!((*ino, *kind), (meta.ino(), meta.file_type()), "{name:?}");
        }
    }
    // The kernel forgets; the numbers stay.
    let before = dir.join("note").metadata().unwrap().ino();
    let log = dir.join("00000000000000000000.log").metadata().unwrap().ino();
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    assert_eq!(dir.join("note").metadata().unwrap().ino(), before);
    assert_eq!(dir.join("00000000000000000000.log").metadata().unwrap().ino(), log);
    let dots: BTreeMap<Vec<u8>, u64> = {
        let file = File::open(&dir).unwrap();
        let all = rustix::fs::Dir::read_from(&file).unwrap();
        all.map(|e| e.unwrap()).map(|e| (e.file_name().to_bytes().to_vec(), e.ino())).collect()
    };
    assert_eq!(dots[&b"."[..]], dir.metadata().unwrap().ino());
    assert_eq!(dots[&b".."[..]], mount.point().metadata().unwrap().ino());
}

#[test]
fn directories_count_their_directories() {
    let (_scratch, _, mount) = plain_mount("names-nlink");
    let nlink = || mount.point().metadata().unwrap().nlink();
    let before = nlink();
    fs::create_dir(mount.path("a")).unwrap();
    fs::create_dir(mount.path("t-0")).unwrap();
    assert_eq!(nlink(), before + 2);
    assert_eq!(mount.path("t-0").metadata().unwrap().nlink(), 2);
    fs::remove_dir(mount.path("a")).unwrap();
    assert_eq!(nlink(), before + 1);
}

#[test]
fn a_rewound_directory_shows_what_is_there_now_and_a_position_leads_back() {
    let (_scratch, _, mount) = plain_mount("names-rewind");
    let dir = mount.path("dir");
    fs::create_dir(&dir).unwrap();
    for i in 0..2000 {
        fs::write(dir.join(format!("file-{i:04}")), "").unwrap();
    }
    let open = File::open(&dir).unwrap();
    let mut space = vec![std::mem::MaybeUninit::uninit(); 4096];
    let mut walk = |until: usize| {
        let mut all = Vec::new();
        let mut entries = rustix::fs::RawDir::new(&open, &mut space);
        while let Some(entry) = entries.next() {
            let entry = entry.unwrap();
            all.push((entry.file_name().to_owned(), entry.next_entry_cookie()));
            if all.len() == until {
                break;
            }
        }
        all
    };
    let all = walk(usize::MAX);
    assert_eq!(all.len(), 2002);
    for at in [5, 1000, 1999] {
        rustix::fs::seek(&open, rustix::fs::SeekFrom::Start(all[at].1)).unwrap();
        assert_eq!(walk(3).first().map(|e| &e.0), Some(&all[at + 1].0), "after entry {at}");
    }
    fs::write(dir.join("new"), "").unwrap();
    fs::remove_file(dir.join("file-0007")).unwrap();
    rustix::fs::seek(&open, rustix::fs::SeekFrom::Start(0)).unwrap();
    let names: Vec<_> = walk(usize::MAX).into_iter().map(|e| e.0).collect();
    assert!(names.iter().any(|n| n.as_bytes() == b"new"));
    assert!(!names.iter().any(|n| n.as_bytes() == b"file-0007"));
}

#[test]
fn everything_can_be_removed_while_it_is_being_listed() {
    let (_scratch, _, mount) = plain_mount("names-rm");
    sh(
        "mkdir -p a/b/c t-0; for i in $(seq 3000); do echo > a/b/f$i; echo > t-0/$i; done; rm -r a t-0",
        mount.point(),
    );
    assert_eq!(files::names(mount.point()), Vec::<String>::new());
}

#[test]
fn names_may_have_255_bytes_and_no_more() {
    let (_scratch, _, mount) = plain_mount("names-long");
    fs::create_dir(mount.path("t-0")).unwrap();
    for dir in [mount.point().to_owned(), mount.path("t-0")] {
        let name = |len: usize| dir.join(std::ffi::OsStr::from_bytes(&vec![0xe4; len]));
        fs::write(name(255), "x").unwrap();
        assert_eq!(fs::read(name(255)).unwrap(), b"x");
        let too_long = Some(Errno::NAMETOOLONG.raw_os_error());
        assert_eq!(fs::write(name(256), "x").unwrap_err().raw_os_error(), too_long);
        assert_eq!(name(256).metadata().unwrap_err().raw_os_error(), too_long);
        assert_eq!(fs::create_dir(name(300)).unwrap_err().raw_os_error(), too_long);
        assert_eq!(fs::rename(name(255), name(256)).unwrap_err().raw_os_error(), too_long);
        fs::remove_file(name(255)).unwrap();
    }
}

#[test]
fn two_names_can_be_exchanged() {
    let (_scratch, _, mount) = plain_mount("names-exchange");
    fs::create_dir(mount.path("dir")).unwrap();
    let (one, two) = (mount.path("one"), mount.path("dir/two"));
    fs::write(&one, "1").unwrap();
    fs::write(&two, "two").unwrap();
    let held = File::open(&one).unwrap();
    let exchange =
        |a: &Path, b: &Path| rustix::fs::renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE);
    exchange(&one, &two).unwrap();
    assert_eq!(
        (fs::read(&one).unwrap(), fs::read(&two).unwrap()),
        (b"two".to_vec(), b"1".to_vec())
    );
    assert_eq!(held.metadata().unwrap().ino(), two.metadata().unwrap().ino());
    assert_eq!(exchange(&one, &mount.path("none")), Err(Errno::NOENT));
    fs::create_dir(mount.path("dir/below")).unwrap();
    exchange(&mount.path("dir/below"), &two).unwrap();
    assert!(two.is_dir() && mount.path("dir/below").is_file());
    for name in ["t-0", "u-0"] {
        fs::create_dir(mount.path(name)).unwrap();
    }
    assert_eq!(exchange(&mount.path("t-0"), &mount.path("u-0")), Err(Errno::INVAL));
}

#[test]
fn times_before_the_epoch_are_kept_to_the_nanosecond() {
    let (_scratch, command, mount) = plain_mount("names-epoch");
    fs::create_dir(mount.path("t-0")).unwrap();
    let names = ["t-0/00000000000000000000.log", "t-0/note"];
    for name in names {
        fs::write(mount.path(name), "x").unwrap();
        let times = Timestamps {
            last_access: Timespec { tv_sec: -1, tv_nsec: 999_999_999 },
            last_modification: Timespec { tv_sec: -500_000_000, tv_nsec: 250_000_000 },
        };
        rustix::fs::utimensat(CWD, mount.path(name), &times, AtFlags::empty()).unwrap();
    }
    mount.umount();
    let mount = command.start();
    for name in names {
        let m = mount.path(name).metadata().unwrap();
        assert_eq!((m.atime(), m.atime_nsec()), (-1, 999_999_999), "{name}");
        assert_eq!((m.mtime(), m.mtime_nsec()), (-500_000_000, 250_000_000), "{name}");
    }
}

fn as_user(uid: &str, script: &str, dir: &Path) -> bool {
    let mut shell = Command::new("setpriv");
    shell.args(["--reuid", uid, "--regid", uid, "--clear-groups", "sh", "-ec", script]);
    shell.current_dir(dir).output().unwrap().status.success()
}

fn everybody_may_enter(scratch: &Scratch) {
    for parent in scratch.path().ancestors().take(3) {
        let mode = parent.metadata().unwrap().mode();
        fs::set_permissions(parent, fs::Permissions::from_mode(mode | 0o055)).unwrap();
    }
}

/// Name, mode, access list.
type Shape = (String, u32, Option<Vec<u8>>);

#[test]
fn a_default_access_list_decides_over_new_files_as_on_the_disk_below() {
    let (scratch, _, mount) = plain_mount("names-acl");
    everybody_may_enter(&scratch);
    let none = u32::MAX;
    let default =
        access_list(&[(1, 7, none), (2, 6, 777), (4, 5, none), (0x10, 7, none), (0x20, 0, none)]);
    let plain = scratch.dir("plain");
    let shapes: Vec<Vec<Shape>> = [mount.point(), plain.as_path()]
        .into_iter()
        .map(|root| {
            let dir = root.join("t-0");
            fs::create_dir(&dir).unwrap();
            let name = "system.posix_acl_default";
            rustix::fs::lsetxattr(&dir, name, &default, XattrFlags::empty()).unwrap();
            let log = "00000000000000000000.log";
            sh(
                &format!("umask 027; echo a > {log}; echo b > note; mkdir below; mkfifo fifo; cd below; echo > deep"),
                &dir,
            );
            let shape = |name: &str| {
                let path = dir.join(name);
                let mut value = [0; 200];
                let acl = rustix::fs::lgetxattr(&path, "system.posix_acl_access", &mut value[..]);
                let acl = acl.ok().map(|n| value[..n].to_vec());
                (name.to_owned(), path.metadata().unwrap().mode(), acl)
            };
            [log, "note", "below", "fifo", "below/deep"].map(shape).to_vec()
        })
        .collect();
    assert_eq!(shapes[0], shapes[1]);
    assert!(
        as_user("777", "cat t-0/note t-0/00000000000000000000.log", mount.point()) || {
            // The directory itself lets nobody in but for its own list.
            let access = access_list(&[
                (1, 7, none),
                (2, 5, 777),
                (4, 5, none),
                (0x10, 5, none),
                (0x20, 0, none),
            ]);
            let name = "system.posix_acl_access";
            rustix::fs::lsetxattr(mount.path("t-0"), name, &access, XattrFlags::empty()).unwrap();
            as_user("777", "cat t-0/note t-0/00000000000000000000.log", mount.point())
        }
    );
    assert!(!as_user("778", "cat t-0/note", mount.point()));
}

#[test]
fn without_a_list_the_callers_umask_the_sticky_bit_and_the_groups_bit_count() {
    let (scratch, _, mount) = plain_mount("names-modes");
    everybody_may_enter(&scratch);
    let plain = scratch.dir("plain");
    let shapes: Vec<Vec<(u32, u32, u32)>> = [mount.point(), plain.as_path()]
        .into_iter()
        .map(|root| {
            let dir = root.join("dir");
            fs::create_dir(&dir).unwrap();
            std::os::unix::fs::chown(&dir, Some(10), Some(20)).unwrap();
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o3777)).unwrap();
            assert!(as_user(
                "12345",
                "umask 006; echo a > f; mkdir d; umask 0; echo > g; ln -s g l",
                &dir
            ));
            assert!(!as_user("12346", "rm -f f", &dir), "the sticky bit is not kept");
            assert!(!as_user("12346", "mv f h", &dir));
            assert!(as_user("12345", "mv f h; chmod 2755 h", &dir));
            ["h", "d", "g", "l"]
                .map(|n| dir.join(n).symlink_metadata().unwrap())
                .map(|m| (m.mode(), m.uid(), m.gid()))
                .to_vec()
        })
        .collect();
    assert_eq!(shapes[0], shapes[1]);
}

#[test]
fn attributes_of_directories_links_and_the_root_are_kept() {
    let (_scratch, command, mount) = plain_mount("names-xattr");
    fs::create_dir(mount.path("t-0")).unwrap();
    std::os::unix::fs::symlink("t-0", mount.path("link")).unwrap();
    let set =
        |path: &Path, name: &str| rustix::fs::lsetxattr(path, name, b"kept", XattrFlags::empty());
    let all: Vec<PathBuf> = vec![mount.point().to_owned(), mount.path("t-0")];
    for path in &all {
        set(path, "user.a").unwrap();
    }
    assert_eq!(set(&mount.path("link"), "user.a"), Err(Errno::PERM));
    set(&mount.path("link"), "trusted.a").unwrap();
    assert_eq!(set(&mount.path(".everlog"), "user.a"), Err(Errno::ROFS));
    mount.umount();
    let mount = command.start();
    let mut value = [0; 10];
    for path in &all {
        assert_eq!(rustix::fs::lgetxattr(path, "user.a", &mut value[..]), Ok(4));
    }
    assert_eq!(rustix::fs::lgetxattr(mount.path("link"), "trusted.a", &mut value[..]), Ok(4));
    assert_eq!(
        rustix::fs::lgetxattr(mount.path(".everlog/status.json"), "user.a", &mut value[..]),
        Err(Errno::NODATA)
    );
    assert_eq!(rustix::fs::llistxattr(mount.path(".everlog/status.json"), &mut value[..]), Ok(0));
    let mut log = File::create(mount.path("t-0/00000000000000000000.log")).unwrap();
    log.write_all(b"x").unwrap();
}
