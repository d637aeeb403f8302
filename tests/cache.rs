//! The block cache of real mounts: what a scan cannot flush, what is warmed, pinned and evicted on request, what is left to others, and a
//! cache disk that fails and comes back.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::archive::bases;
use common::broker::CLUSTER_ID;
use common::children::{everlog, run, text};
use common::logdir::shut_down_cleanly;
use common::{
    LogDir, Mount, MountCommand, Scratch, allocated_bytes, files, shim, unless, wait_until,
};
use serde_json::Value;

const MIB: u64 = 1 << 20;
/// On a machine that is busy with other tests.
const PATIENCE_S: u64 = 120;

/// An archive of two topics, and an archive mount of it.
struct World {
    command: MountCommand,
    mount: Option<Mount>,
    scratch: Scratch,
}

/// `hot` has 3 segments of 1 MiB, `cold` has `cold` of them.
fn archived(scratch: &Scratch, cold: usize) -> String {
    let (log_dir, store) = (scratch.dir("logs"), scratch.file_store("store"));
    let mut logs = LogDir::new(&log_dir, CLUSTER_ID).index_bytes(4096);
    for (topic, segments) in [("hot", 3), ("cold", cold)] {
        let mut log = logs.create(topic, 0);
        for _ in 0..segments {
            log.fill_segment(MIB - 64 * 1024);
        }
        log.append(1, 100);
        logs.commit(&log);
    }
    logs.checkpoint();
    shut_down_cleanly(&log_dir);
    let out = everlog(&["archive", &log_dir.display().to_string(), "--store", &store, "--once"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    store
}

impl World {
    fn new(name: &str, cold: usize, options: &[&str]) -> Self {
        let scratch = Scratch::new(name);
        let store = archived(&scratch, cold);
        let command = MountCommand::archive(scratch.path(), &store);
        let command = options.iter().fold(command, |c, option| c.arg(option));
        let mount = Some(command.start());
        Self { command, mount, scratch }
    }

    fn mount(&self) -> &Mount {
        self.mount.as_ref().unwrap()
    }

    fn remount(&mut self) {
        self.mount.take().unwrap().umount();
        self.mount = Some(self.command.start());
    }

    fn cache(&self) -> Value {
        self.mount().status()["cache"].clone()
    }

    fn number(&self, field: &str) -> u64 {
        self.cache()[field].as_u64().unwrap_or_else(|| panic!("{field} in {}", self.cache()))
    }

    fn logs(&self, topic: &str) -> Vec<PathBuf> {
        let dir = self.mount().path(&format!("{topic}-0"));
        bases(&dir).iter().map(|base| dir.join(format!("{base:020}.log"))).collect()
    }

    /// Reads a topic from its beginning to its end; each byte is what the broker wrote.
    fn read(&self, topic: &str) {
        for path in self.logs(topic) {
            let written = self
                .scratch
                .path()
                .join("logs")
                .join(format!("{topic}-0"))
                .join(files::name(&path));
            let (got, wanted) = (fs::read(&path), fs::read(&written).unwrap());
            let got = got.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            assert!(got == wanted, "{}", path.display());
        }
    }

    fn store(&self, there: bool) {
        let (near, away) = (self.scratch.path().join("store"), self.scratch.path().join("away"));
        if there { fs::rename(away, near).unwrap() } else { fs::rename(near, away).unwrap() }
    }

    /// Reads a topic with the store away: all of it is in the cache.
    fn read_without_store(&self, topic: &str) {
        // What the archive has is then known from a moment ago.
        let logs = self.logs(topic);
        assert!(!logs.is_empty());
        let opened: Vec<File> = logs.iter().map(|path| File::open(path).unwrap()).collect();
        self.store(false);
        for (path, file) in logs.iter().zip(&opened) {
            let written =
                self.scratch.path().join("logs").join(format!("{topic}-0")).join(files::name(path));
            let wanted = fs::read(written).unwrap();
            let mut got = vec![0; wanted.len()];
            file.read_exact_at(&mut got, 0).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            assert!(got == wanted, "{}", path.display());
        }
        self.store(true);
    }

    fn run(&self, command: &str, below: &str, more: &[&str]) -> Output {
        let target = self.mount().path(below).display().to_string();
        everlog(&[&[command, &target], more].concat())
    }

    fn does(&self, command: &str, below: &str) -> Value {
        let out = self.run(command, below, &["--json"]);
        assert!(out.status.success(), "{command} {below}: {}", text(&out.stderr));
        serde_json::from_slice(&out.stdout).unwrap()
    }

    fn fails(&self, command: &str, below: &str, words: &str) {
        let out = self.run(command, below, &[]);
        let said = text(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{said}");
        assert!(said.contains(words), "{words:?} in {said:?}");
    }

    /// Until what is read again and again counts as such.
    fn make_hot(&self) {
        wait_until("the hot set to be known as such", PATIENCE_S, || {
            self.read("hot");
            unless(self.number("protected_bytes") >= 3 * MIB - 256 * 1024, || {
                self.cache().to_string()
            })
        });
    }
}

#[test]
fn a_scan_of_ten_times_the_cache_leaves_the_hot_set_there_and_so_does_a_restart() {
    let mut world = World::new("cache-scan", 80, &["--cache-bytes", "8MiB"]);
    world.make_hot();
    world.read("cold");
    assert!(world.number("evicted_bytes") > 0, "{}", world.cache());
    world.read_without_store("hot");
    assert!(world.number("allocated_bytes") <= 8 * MIB);
    world.remount();
    world.read_without_store("hot");
    world.mount.take().unwrap().umount();
}

#[test]
fn what_is_warmed_is_read_without_the_store_and_what_is_evicted_takes_no_space() {
    let world = World::new("cache-warm", 4, &["--cache-bytes", "64MiB"]);
    let space = || allocated_bytes(&world.scratch.path().join("cache"), |n| n.ends_with(".data"));
    let warmed = world.does("warm", "cold-0");
    assert_eq!(warmed["segments"], 4);
    assert_eq!(warmed["cached_bytes"], warmed["bytes"]);
    world.read_without_store("cold");
    world.does("warm", "");
    world.read_without_store("hot");
    let (before, one) = (space(), files::name(&world.logs("cold")[1]));
    let evicted = world.does("evict", &format!("cold-0/{one}"));
    assert_eq!(evicted["segments"], 1);
    let after = space();
    assert!(before - after >= MIB - 128 * 1024, "{before} {after}");
    world.does("evict", "");
    assert_eq!(space(), 0);
    assert_eq!(world.number("allocated_bytes"), 0);
    world.read("cold");
    // For people.
    let said = world.run("warm", "hot-0", &[]);
    assert!(text(&said.stdout).contains("3 segments are in the cache"), "{said:?}");
}

#[test]
fn a_command_that_cannot_be_done_says_why_and_fails() {
    let world = World::new("cache-refused", 6, &["--cache-bytes", "4MiB"]);
    world.fails("warm", "nothing-0", "nothing of nothing-0 is archived");
    world.fails("evict", "nothing-0", "nothing of nothing-0 is archived");
    world.fails("warm", "cold-0/00000000000009999999.log", "has offset 9999999");
    world.fails("warm", "cold-0", "name less, or give it more");
    world.fails("pin", "cold-0", "no room to pin");
    world.fails("unpin", "cold-0", "nothing of that is pinned");
    assert_eq!(world.number("pinned_wanted_bytes"), 0);
    let elsewhere = everlog(&["warm", &world.scratch.path().display().to_string()]);
    assert_eq!(elsewhere.status.code(), Some(1));
    assert!(text(&elsewhere.stderr).contains("is not in an Everlog mount"), "{elsewhere:?}");
    assert_eq!(everlog(&["warm"]).status.code(), Some(2));
    world.store(false);
    world.fails("warm", "hot-0/00000000000000000000.log", "");
    world.store(true);
    world.does("warm", "hot-0/00000000000000000000.log");
}

#[test]
fn a_pin_outlives_scans_and_a_restart_and_ends_when_it_is_taken_back() {
    let mut world = World::new("cache-pin", 40, &["--cache-bytes", "8MiB"]);
    let pinned = world.does("pin", "hot-0");
    assert_eq!(pinned["cached_bytes"], pinned["bytes"]);
    world.read("cold");
    world.read_without_store("hot");
    world.remount();
    world.read("cold");
    world.read_without_store("hot");
    assert!(world.number("pinned_bytes") > 2 * MIB, "{}", world.cache());
    world.fails("evict", "hot-0", "3 segments are pinned");
    world.read_without_store("hot");
    world.does("unpin", "hot-0");
    assert_eq!((world.number("pinned_bytes"), world.number("pinned_wanted_bytes")), (0, 0));
    world.remount();
    assert_eq!(world.number("pinned_wanted_bytes"), 0);
    let evicted = world.does("evict", "hot-0");
    assert!(evicted["freed_bytes"].as_u64().unwrap() > 2 * MIB, "{evicted}");
}

#[test]
fn cold_segments_of_a_broker_mount_are_warmed_and_evicted() {
    let scratch = Scratch::new("cache-broker");
    let store = scratch.file_store("store");
    let command = MountCommand::broker(scratch.path(), &store).option("--hot-bytes", 1);
    let mount = command.start();
    let mut logs = LogDir::new(mount.point(), CLUSTER_ID).index_bytes(4096);
    let mut log = logs.create("orders", 0);
    (0..3).for_each(|_| log.fill_segment(MIB));
    logs.commit(&log);
    wait_until("three cold segments", PATIENCE_S, || {
        logs.checkpoint();
        let cold = mount.topic_status("orders")["cold_segments"].clone();
        unless(cold == 3, || format!("{cold}: {}", mount.status()))
    });
    let partition = mount.path("orders-0").display().to_string();
    let warmed = everlog(&["warm", &partition, "--json"]);
    assert!(warmed.status.success(), "{}", text(&warmed.stderr));
    fs::rename(scratch.path().join("store"), scratch.path().join("away")).unwrap();
    for base in &bases(&mount.path("orders-0"))[..3] {
        let bytes = fs::read(mount.path(&format!("orders-0/{base:020}.log"))).unwrap();
        assert!(bytes.len() as u64 >= MIB);
    }
    fs::rename(scratch.path().join("away"), scratch.path().join("store")).unwrap();
    let evicted = everlog(&["evict", &partition]);
    assert!(evicted.status.success(), "{}", text(&evicted.stderr));
    assert!(text(&evicted.stdout).contains("local disk stays"), "{evicted:?}");
    assert_eq!(mount.status()["cache"]["allocated_bytes"], 0);
    log.close();
    mount.umount();
}

/// Reads the first bytes of a file on a thread that is named so.
fn read_as(thread: &str, path: PathBuf) {
    let read = move || {
        let mut header = [0; 17];
        File::open(path).unwrap().read_exact_at(&mut header, 0).unwrap();
    };
    std::thread::Builder::new().name(thread.to_owned()).spawn(read).unwrap().join().unwrap();
}

#[test]
fn a_broker_that_reads_a_partition_from_its_beginning_has_the_others_of_the_topic_fetched() {
    let scratch = Scratch::new("cache-beside");
    let store = scratch.file_store("store");
    let command = MountCommand::broker(scratch.path(), &store).option("--hot-bytes", 1);
    let mount = command.start();
    let mut logs = LogDir::new(mount.point(), CLUSTER_ID).index_bytes(4096);
    for (topic, partition) in [("orders", 0), ("orders", 1), ("orders", 2), ("other", 0)] {
        let mut log = logs.create(topic, partition);
        (0..2).for_each(|_| log.fill_segment(MIB));
        logs.commit(&log);
        log.close();
    }
    wait_until("all to be cold", PATIENCE_S, || {
        logs.checkpoint();
        let cold = mount.status()["totals"]["cold_segments"].clone();
        unless(cold == 8, || format!("{cold}: {}", mount.status()))
    });
    drop(logs);
    mount.umount();
    // What was written through it was in its page cache.
    let mount = command.start();
    let objects = || mount.status()["cache"]["objects"].as_u64().unwrap();
    let path =
        |partition: u32, base: i64| mount.path(&format!("orders-{partition}/{base:020}.log"));
    let [first, second, ..] = bases(&mount.path("orders-1"))[..] else { panic!("two segments") };

    // Not for people's tools, and not from amid a partition.
    read_as("cat", path(1, first));
    read_as("data-plane-kafka-request-handler-3", path(1, second));
    assert_eq!(objects(), 2, "{}", mount.status());

    read_as("data-plane-kafka-request-handler-3", path(2, first));
    wait_until("the beginning of another partition to be cached", PATIENCE_S, || {
        unless(objects() == 4, || mount.status().to_string())
    });
    let cached = |topic: &str| mount.topic_status(topic)["cached_bytes"].as_u64().unwrap();
    assert!(cached("orders") > 3 * MIB, "{}", mount.status());
    assert_eq!(cached("other"), 0);
    mount.umount();
}

/// Every call that changes something below the cache directory fails, or none does.
struct Disk {
    numbers: PathBuf,
}

impl Disk {
    fn set(&self, nth: u64, errno: i32) {
        let file = File::options().write(true).open(&self.numbers).unwrap();
        file.write_all_at(&(errno as u64).to_ne_bytes(), 8).unwrap();
        file.write_all_at(&nth.to_ne_bytes(), 0).unwrap();
    }
}

#[test]
fn a_cache_disk_that_fails_is_gone_around_and_used_again_when_it_works() {
    let scratch = Scratch::new("cache-fails");
    let store = archived(&scratch, 6);
    let (library, disk) =
        (shim::build(&scratch, "diskfault"), Disk { numbers: scratch.path().join("numbers") });
    fs::write(&disk.numbers, [0; 32]).unwrap();
    let command = MountCommand::archive(scratch.path(), &store)
        .env("LD_PRELOAD", &library.display().to_string())
        .env("DISKFAULT_NUMBERS", &disk.numbers.display().to_string())
        .env("DISKFAULT_BELOW", &scratch.path().join("cache").display().to_string());
    let mount = Some(command.start());
    let world = World { command, mount, scratch };
    for errno in [rustix::io::Errno::IO, rustix::io::Errno::NOSPC, rustix::io::Errno::ROFS] {
        world.does("evict", "");
        let before = world.number("bypasses");
        disk.set(u64::MAX, errno.raw_os_error());
        world.read("cold");
        world.read("hot");
        let bypassed = world.cache()["bypassed"].clone();
        assert!(bypassed["since_ms"].as_u64().unwrap() > 0, "{bypassed}");
        assert!(bypassed["reason"].as_str().unwrap().contains("a write fails"), "{bypassed}");
        world.fails("warm", "hot-0", "disk fails");
        disk.set(0, 0);
        wait_until("the cache to be used again", PATIENCE_S, || {
            unless(world.cache()["bypassed"].is_null(), || world.cache().to_string())
        });
        assert_eq!(world.number("bypasses"), before + 1);
        world.does("warm", "cold-0");
        world.read_without_store("cold");
    }
    let log = world.mount().log();
    let loud = log.lines().filter(|l| l.contains("WARN") || l.contains("ERROR")).count();
    assert!(loud <= 12, "{loud} lines:\n{log}");
    assert_eq!(log.lines().filter(|l| l.contains("cache's disk fails: reads go on")).count(), 3);
    assert_eq!(log.lines().filter(|l| l.contains("cache's disk works again")).count(), 3);
}

/// A small filesystem for the cache; unmounted when dropped.
struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    fn new(scratch: &Scratch) -> Self {
        let (image, at) = (scratch.path().join("disk.image"), scratch.dir("disk"));
        File::create(&image).unwrap().set_len(64 * MIB).unwrap();
        let mut make = Command::new("mkfs.ext4");
        make.args(["-q", "-F", "-m", "0"]).arg(&image);
        run(make, "mkfs.ext4");
        let mut mount = Command::new("mount");
        mount.args(["-o", "loop"]).arg(&image).arg(&at);
        run(mount, "mount");
        Self { at }
    }

    fn free_bytes(&self) -> u64 {
        let space = rustix::fs::statvfs(&self.at).unwrap();
        space.f_bavail * space.f_frsize
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.at, rustix::mount::UnmountFlags::DETACH);
    }
}

fn write_file(path: &Path, bytes: u64) {
    let file = File::create(path).unwrap();
    let piece = vec![1u8; 64 * 1024];
    (0..bytes / piece.len() as u64).for_each(|i| file.write_all_at(&piece, i << 16).unwrap());
    file.sync_all().unwrap();
}

#[test]
fn what_others_need_of_the_caches_disk_is_given_to_them() {
    let scratch = Scratch::new("cache-floor");
    let store = archived(&scratch, 30);
    let disk = SmallDisk::new(&scratch);
    std::os::unix::fs::symlink(&disk.at, scratch.path().join("cache")).unwrap();
    let floor = 16 * MIB;
    let command = MountCommand::archive(scratch.path(), &store).option("--cache-free-bytes", floor);
    let mount = Some(command.start());
    let world = World { command, mount, scratch };
    world.read("cold");
    assert!(world.number("allocated_bytes") > 8 * MIB, "{}", world.cache());
    write_file(&disk.at.join("somebody's"), disk.free_bytes() - 4 * MIB);
    wait_until("the cache to make room", PATIENCE_S, || {
        let free = disk.free_bytes();
        unless(free >= floor, || format!("{free} free; {}", world.cache()))
    });
    world.read("cold");
    world.read("hot");
    wait_until("the room to be kept", PATIENCE_S, || {
        let free = disk.free_bytes();
        unless(free >= floor, || format!("{free} free; {}", world.cache()))
    });
    fs::remove_file(disk.at.join("somebody's")).unwrap();
    wait_until("the cache to grow again", PATIENCE_S, || {
        world.read("hot");
        unless(world.number("limit_bytes") > 20 * MIB, || world.cache().to_string())
    });
    world.does("warm", "hot-0");
    drop(world.mount);
}

#[test]
fn no_more_files_lie_in_the_cache_than_allowed() {
    let world = World::new("cache-files", 30, &["--cache-files", "32"]);
    let cache = world.scratch.path().join("cache");
    let there = || {
        let of_cache = |p: &PathBuf| files::name(p).len() > 32;
        files::files_under(&cache).iter().filter(|p| of_cache(p)).count()
    };
    for _ in 0..2 {
        world.read("cold");
        assert!(there() <= 32, "{}", there());
    }
    assert!(there() > 8, "{}", there());
    assert_eq!(world.number("files_limit"), 32);
}

#[test]
fn a_second_process_is_refused_the_cache_directory() {
    let world = World::new("cache-twice", 1, &[]);
    let store = format!("file://{}", world.scratch.bucket().display());
    let other = world.scratch.dir("elsewhere");
    let out = everlog(&[
        "mount",
        &other.display().to_string(),
        "--store",
        &store,
        "--cache",
        &world.scratch.path().join("cache").display().to_string(),
        "--foreground",
    ]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("is in use by another process"), "{out:?}");
    world.read("hot");
}
