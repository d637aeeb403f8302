//! Single promises of the broker mount's surface, each of which a broker or a tool relies on. `tests/model.rs` walks over all of them at
//! random; here each has its name.

mod common;

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use common::archive::{log_objects, settle};
use common::broker::CLUSTER_ID;
use common::{LogDir, MountCommand, S3, Scratch, files, plain_mount, unless, wait_until};
use rustix::io::Errno;

fn rw(path: &Path) -> File {
    File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

#[test]
fn an_open_file_outlives_its_name() {
    let (_scratch, _, mount) = plain_mount("posix-unlink");
    let dir = mount.path("t-0");
    fs::create_dir(&dir).unwrap();
    for name in
        ["00000000000000000000.log", "00000000000000000000.index", "leader-epoch-checkpoint"]
    {
        let file = rw(&dir.join(name));
        file.write_all_at(b"before", 0).unwrap();
        fs::rename(dir.join(name), dir.join(format!("{name}.deleted"))).unwrap();
        file.write_all_at(b"behind", 6).unwrap();
        fs::remove_file(dir.join(format!("{name}.deleted"))).unwrap();
        file.write_all_at(b"after", 12).unwrap();
        let mut bytes = Vec::new();
        (&file).read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"beforebehindafter", "{name}");
        assert_eq!(file.metadata().unwrap().nlink(), 0, "{name}");
        file.sync_all().unwrap();
    }
    assert_eq!(files::names(&dir), Vec::<String>::new());
}

#[test]
fn an_unlinked_file_can_be_asked_for_its_size_through_any_of_its_descriptors() {
    let (_scratch, _, mount) = plain_mount("posix-fstat");
    let dir = mount.path("t-0");
    fs::create_dir(&dir).unwrap();
    for name in
        ["00000000000000000000.log", "00000000000000000000.index", "leader-epoch-checkpoint"]
    {
        let path = dir.join(name);
        let first = rw(&path);
        first.write_all_at(b"twelve bytes", 0).unwrap();
        // Somebody looked at it meanwhile and is gone again.
        assert_eq!(fs::read(&path).unwrap().len(), 12);
        fs::remove_file(&path).unwrap();
        assert_eq!(first.metadata().unwrap_or_else(|e| panic!("{name}: {e}")).len(), 12);
        first.set_len(7).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(first.metadata().unwrap().len(), 7);
    }
}

#[test]
fn a_shared_writable_mapping_of_an_index_is_the_file() {
    let (_scratch, command, mount) = plain_mount("posix-mmap");
    let dir = mount.path("t-0");
    fs::create_dir(&dir).unwrap();
    let path = dir.join("00000000000000000000.index");
    let file = rw(&path);
    file.set_len(10_485_760).unwrap();
    assert!(path.metadata().unwrap().blocks() < 100, "preallocation is not sparse");
    // SAFETY: the test trims the file only to a length that it still maps, and touches no byte beyond.
    let mut map = unsafe { memmap2::MmapMut::map_mut(&file).unwrap() };
    drop(file);
    map[..4].copy_from_slice(b"mine");
    let other = rw(&path);
    let mut seen = [0; 4];
    other.read_exact_at(&mut seen, 0).unwrap();
    assert_eq!(&seen, b"mine");
    other.write_all_at(b"your", 4).unwrap();
    assert_eq!(&map[4..8], b"your");
    fs::rename(&path, dir.join("00000000000000000000.index.deleted")).unwrap();
    map[8..12].copy_from_slice(b"mine");
    map.flush().unwrap();
    fs::rename(dir.join("00000000000000000000.index.deleted"), &path).unwrap();
    other.set_len(12).unwrap();
    drop((map, other));
    mount.umount();
    let mount = command.start();
    assert_eq!(fs::read(mount.path("t-0/00000000000000000000.index")).unwrap(), b"mineyourmine");
}

#[test]
fn a_rename_over_a_checkpoint_replaces_it_at_once_and_the_old_descriptor_keeps_the_old_bytes() {
    let (_scratch, _, mount) = plain_mount("posix-rename");
    let path = mount.path("recovery-point-offset-checkpoint");
    fs::write(&path, "0\n0\n").unwrap();
    let old = File::open(&path).unwrap();
    let inode = path.metadata().unwrap().ino();
    common::logdir::replace_file(&path, b"0\n1\nt 0 5\n");
    assert_eq!(fs::read(&path).unwrap(), b"0\n1\nt 0 5\n");
    assert_ne!(path.metadata().unwrap().ino(), inode);
    let mut bytes = [0; 4];
    old.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"0\n0\n");
}

#[test]
fn a_renamed_directory_keeps_what_is_open_in_it() {
    let (_scratch, _, mount) = plain_mount("posix-dir");
    fs::create_dir(mount.path("t-0")).unwrap();
    let file = rw(&mount.path("t-0/00000000000000000000.log"));
    file.write_all_at(b"one", 0).unwrap();
    let renamed = mount.path(&format!("t-0.{:032x}-delete", 7));
    fs::rename(mount.path("t-0"), &renamed).unwrap();
    file.write_all_at(b"two", 3).unwrap();
    assert_eq!(fs::read(renamed.join("00000000000000000000.log")).unwrap(), b"onetwo");
    assert!(!mount.path("t-0").exists());
    let error = fs::remove_dir(&renamed).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::NOTEMPTY.raw_os_error()));
    fs::remove_file(renamed.join("00000000000000000000.log")).unwrap();
    fs::remove_dir(&renamed).unwrap();
}

#[test]
fn files_and_directories_can_be_synced() {
    let (_scratch, _, mount) = plain_mount("posix-sync");
    fs::create_dir(mount.path("t-0")).unwrap();
    let file = rw(&mount.path("t-0/00000000000000000000.log"));
    file.write_all_at(&[1; 5000], 0).unwrap();
    file.sync_data().unwrap();
    file.sync_all().unwrap();
    for dir in [mount.path("t-0"), mount.point().to_owned()] {
        File::open(dir).unwrap().sync_all().unwrap();
    }
}

#[test]
fn a_second_process_cannot_take_the_log_dirs_lock() {
    let (_scratch, _, mount) = plain_mount("posix-lock");
    let script = "
import fcntl, os, sys, subprocess
f = open(sys.argv[1], 'w')
fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
child = 'import fcntl,sys\\nf=open(sys.argv[1],\"w\")\\nfcntl.lockf(f, fcntl.LOCK_EX|fcntl.LOCK_NB)'
second = subprocess.run([sys.executable, '-c', child, sys.argv[1]], capture_output=True)
assert second.returncode != 0 and b'BlockingIOError' in second.stderr, second
fcntl.lockf(f, fcntl.LOCK_UN)
assert subprocess.run([sys.executable, '-c', child, sys.argv[1]]).returncode == 0
";
    let mut python = Command::new("python3");
    python.args(["-c", script]).arg(mount.path(".lock"));
    common::children::run(python, "two processes and one lock");
}

#[test]
fn free_space_is_that_of_the_disk_below() {
    let (scratch, _, mount) = plain_mount("posix-statfs");
    let above = rustix::fs::statvfs(mount.point()).unwrap();
    let below = rustix::fs::statvfs(scratch.path().join("data")).unwrap();
    assert_eq!(above.f_blocks * above.f_frsize, below.f_blocks * below.f_frsize);
    let difference = (above.f_bavail * above.f_frsize).abs_diff(below.f_bavail * below.f_frsize);
    assert!(difference < 2 << 30, "{difference} bytes apart");
    assert!(above.f_namemax >= 255);
}

#[test]
fn everlogs_own_names_are_hidden_and_cannot_be_taken() {
    let (scratch, _, mount) = plain_mount("posix-hidden");
    fs::create_dir(mount.path("t-0")).unwrap();
    assert_eq!(files::names(mount.point()), ["t-0"]);
    assert!(mount.path(".everlog").is_dir());
    let names = files::names(&mount.path(".everlog"));
    assert!(
        names.contains(&"status.json".to_owned()) && names.contains(&"archive".to_owned()),
        "{names:?}"
    );
    assert!(fs::write(mount.path("t-0/00000000000000000000.log.everlog"), "x").is_err());
    assert!(fs::create_dir(mount.path("x.everlog")).is_err());
    assert!(!mount.path("everlog-is-not-mounted").exists());
    assert!(fs::create_dir(mount.path("everlog-is-not-mounted")).is_err());
    assert!(fs::write(mount.path(".everlog/new"), "x").is_err());
    assert!(fs::remove_dir_all(mount.path(".everlog")).is_err());
    assert!(fs::rename(mount.path("t-0"), mount.path(".everlog/t-0")).is_err());
    assert_eq!(files::names(&scratch.path().join("data/hot")), ["t-0"]);
}

#[test]
fn a_broker_started_on_a_data_directory_that_is_not_mounted_would_refuse() {
    let scratch = Scratch::new("posix-guard");
    let store = scratch.file_store("store");
    let command = MountCommand::broker(scratch.path(), &store).option("--hot-bytes", 1);
    let mount = command.start();
    let mut logs = LogDir::new(mount.point(), CLUSTER_ID);
    let mut log = logs.create("made", 0);
    log.fill_segment(200_000);
    logs.commit(&log);
    (0..3).for_each(|_| logs.checkpoint());
    let hot = scratch.path().join("data/hot");
    settle(&mount, &hot, "made", &scratch.path().join("store"), 4096);
    assert!(hot.join("everlog-is-not-mounted").is_dir());
    assert!(!files::names(mount.point()).contains(&"everlog-is-not-mounted".to_owned()));
}

#[test]
fn a_descriptor_of_a_log_reads_on_after_discard_whatever_became_of_its_bytes() {
    let scratch = Scratch::new("posix-held");
    let store = scratch.file_store("store");
    let command = MountCommand::broker(scratch.path(), &store).option("--hot-bytes", 250_000);
    let mount = command.start();
    let mut logs = LogDir::new(mount.point(), CLUSTER_ID);
    let mut log = logs.create("made", 0);
    let hot = scratch.path().join("data/hot");
    let bucket = scratch.path().join("store");
    let names: Vec<String> = (0..5)
        .map(|_| {
            let name = format!("made-0/{:020}.log", log.base());
            log.fill_segment(100_000);
            name
        })
        .collect();
    let bytes: Vec<Vec<u8>> = names.iter().map(|n| fs::read(mount.path(n)).unwrap()).collect();
    logs.commit(&log);
    let held: Vec<File> = names.iter().map(|n| rw(&mount.path(n))).collect();
    // The last one is discarded before it is archived: it goes through the spool.
    let discard = |name: &str| {
        fs::rename(mount.path(name), mount.path(&format!("{name}.deleted"))).unwrap();
        fs::remove_file(mount.path(&format!("{name}.deleted"))).unwrap();
    };
    (0..3).for_each(|_| logs.checkpoint());
    settle(&mount, &hot, "made", &bucket, 250_000);
    let cold: Vec<bool> = names.iter().map(|n| !hot.join(n).exists()).collect();
    assert!(cold[0] && !cold[4], "{cold:?}");
    let late = format!("made-0/{:020}.log", log.base());
    log.fill_segment(100_000);
    let late_bytes = fs::read(mount.path(&late)).unwrap();
    let late_file = rw(&mount.path(&late));
    names.iter().for_each(|n| discard(n));
    discard(&late);
    logs.commit(&log);
    (0..3).for_each(|_| logs.checkpoint());
    wait_until("the spool to be empty again", 60, || {
        let spool = mount.status()["spool"].clone();
        unless(spool["segments"] == 0, || spool.to_string())
    });
    for ((name, file), expected) in names.iter().zip(&held).zip(&bytes) {
        let mut found = vec![0; expected.len()];
        file.read_exact_at(&mut found, 0).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(&found == expected, "{name} reads differently through a held descriptor");
        assert_eq!(file.metadata().unwrap().len(), expected.len() as u64, "{name}");
    }
    let mut found = vec![0; late_bytes.len()];
    late_file.read_exact_at(&mut found, 0).unwrap();
    assert!(found == late_bytes);
}

#[test]
fn owners_and_modes_are_kept_and_enforced() {
    let (scratch, command, mount) = plain_mount("posix-owner");
    fs::create_dir(mount.path("t-0")).unwrap();
    let path = mount.path("t-0/00000000000000000000.log");
    fs::write(&path, "private").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(&path, Some(12_345), Some(54_321)).unwrap();
    let as_somebody = |uid: &str| {
        let mut cat = Command::new("setpriv");
        cat.args(["--reuid", uid, "--regid", uid, "--clear-groups", "cat"]).arg(&path);
        cat.output().unwrap().status.success()
    };
    for parent in scratch.path().ancestors().take(3) {
        let mode = parent.metadata().unwrap().mode();
        fs::set_permissions(parent, fs::Permissions::from_mode(mode | 0o055)).unwrap();
    }
    assert!(as_somebody("12345"), "the owner cannot read it");
    assert!(!as_somebody("12346"), "somebody else can read it");
    mount.umount();
    let _mount = command.start();
    let meta = path.metadata().unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o777), (12_345, 54_321, 0o600));
}

#[test]
fn nothing_waits_behind_a_cold_read_that_hangs() {
    let scratch = Scratch::new("posix-waits");
    let s3 = S3::start(scratch.path());
    let command = MountCommand::broker(scratch.path(), &s3.url("c"))
        .arg("--single-writer")
        .option("--hot-bytes", 300_000)
        .option("--read-deadline", "8s")
        .envs(s3.env());
    let mount = command.start();
    let mut logs = LogDir::new(mount.point(), CLUSTER_ID);
    let mut log = logs.create("made", 0);
    (0..40).for_each(|_| log.fill_segment(100_000));
    logs.commit(&log);
    (0..3).for_each(|_| logs.checkpoint());
    let hot = scratch.path().join("data/hot");
    settle(&mount, &hot, "made", &s3.bucket().join("c"), 300_000);
    let cold: Vec<String> = log_objects(&s3.bucket().join("c"))
        .iter()
        .map(|o| format!("made-0/{:020}.log", o.base))
        .filter(|n| !hot.join(n).exists())
        .collect();
    assert!(cold.len() >= 32, "{}", cold.len());
    s3.freeze();
    let (done, hangs) = mpsc::channel();
    for name in &cold[..32] {
        let (path, done) = (mount.path(name), done.clone());
        std::thread::spawn(move || done.send(fs::read(path).map(drop)));
    }
    std::thread::sleep(Duration::from_millis(500));
    for _ in 0..50 {
        log.append(2, 1000);
    }
    log.roll();
    logs.commit(&log);
    logs.checkpoint();
    assert!(files::names(&mount.path("made-0")).len() > 40);
    for name in &cold {
        assert!(mount.path(name).metadata().unwrap().len() > 0);
    }
    assert_eq!(fs::read(mount.path(&format!("made-0/{:020}.log", log.base()))).unwrap(), b"");
    assert!(mount.status()["mode"] == "broker");
    // All that came back while every cold read was still out.
    assert!(hangs.try_recv().is_err(), "a cold read has ended already, so this proves nothing");
    for _ in 0..32 {
        let outcome = hangs.recv_timeout(Duration::from_secs(30)).expect("a cold read never ended");
        let error = outcome.expect_err("a cold read succeeded without its store");
        assert_eq!(error.raw_os_error(), Some(Errno::IO.raw_os_error()));
    }
    s3.thaw();
}

#[test]
fn sigterm_while_files_are_open_goes_on_serving_until_they_are_closed() {
    let (_scratch, _, mount) = plain_mount("posix-sigterm");
    fs::create_dir(mount.path("t-0")).unwrap();
    let mut file = rw(&mount.path("t-0/00000000000000000000.log"));
    mount.terminate();
    wait_until("the log to say who is in the way", 20, || {
        let log = mount.log();
        unless(log.contains(&std::process::id().to_string()), || log)
    });
    file.write_all(b"still served").unwrap();
    assert_eq!(fs::read(mount.path("t-0/00000000000000000000.log")).unwrap(), b"still served");
    drop(file);
    mount.ends_well();
}
