//! A data directory on a small disk of its own that fills up to the last block: appends fail as on ext4, nothing that was acknowledged is
//! lost, and space comes back by itself once the archive can take what is closed. And one that turns read-only, as ext4 does after an error.

mod common;

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use common::archive::log_objects;
use common::broker::CLUSTER_ID;
use common::step::{Partition, Step, committed, tree};
use common::{Mount, MountCommand, Scratch, files, fsck, unless, wait_until};
use rustix::io::Errno;

const MIB: u64 = 1 << 20;
const DISK_BYTES: u64 = 48 * MIB;

/// A filesystem in a file, mounted; unmounted when dropped.
struct SmallDisk {
    image: PathBuf,
    at: PathBuf,
}

impl SmallDisk {
    fn new(scratch: &Scratch, inodes: u64) -> Self {
        let (image, at) = (scratch.path().join("disk.image"), scratch.dir("disk"));
        File::create(&image).unwrap().set_len(DISK_BYTES).unwrap();
        // No blocks kept back for root: full is full.
        run(Command::new("mkfs.ext4")
            .args(["-q", "-F", "-m", "0", "-N"])
            .arg(inodes.to_string())
            .arg(&image));
        let disk = Self { image, at };
        disk.mount();
        disk
    }

    fn mount(&self) {
        run(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.at));
    }

    /// What ext4 does when it finds an error: nothing can be written any more.
    fn turn_read_only(&self) {
        run(Command::new("mount").args(["-o", "remount,abort"]).arg(&self.at));
    }

    /// What an operator does then.
    fn repair(&self) {
        run(Command::new("umount").arg(&self.at));
        let checked = Command::new("e2fsck").arg("-fy").arg(&self.image).output().unwrap();
        // 1: errors were corrected.
        assert!(matches!(checked.status.code(), Some(0 | 1)), "{checked:?}");
        self.mount();
    }

    fn space(&self) -> rustix::fs::StatVfs {
        rustix::fs::statvfs(&self.at).unwrap()
    }

    fn free_bytes(&self) -> u64 {
        self.space().f_bavail * self.space().f_frsize
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let done = rustix::mount::unmount(&self.at, rustix::mount::UnmountFlags::DETACH);
        if let Err(e) = done {
            eprintln!("{}: {e}", self.at.display());
        }
    }
}

fn run(command: &mut Command) {
    let out = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// A log dir on a small disk, a plain copy and a store on the big one.
struct World {
    command: MountCommand,
    mount: Option<Mount>,
    disk: SmallDisk,
    scratch: Scratch,
}

impl World {
    fn new(name: &str, inodes: u64, args: &[&str]) -> Self {
        let scratch = Scratch::new(name);
        let disk = SmallDisk::new(&scratch, inodes);
        let url = scratch.file_store("store");
        let point = scratch.dir("mounted");
        fs::create_dir(disk.at.join("data")).unwrap();
        std::os::unix::fs::symlink(disk.at.join("data"), point.join("data")).unwrap();
        let command = MountCommand::broker(&point, &url);
        let command = args.iter().fold(command, |c, a| c.arg(a));
        let mount = Some(command.start());
        Self { command, mount, disk, scratch }
    }

    fn mount(&self) -> &Mount {
        self.mount.as_ref().unwrap()
    }

    fn plain(&self) -> PathBuf {
        self.scratch.dir("plain")
    }

    fn both(&self, steps: &[Step]) {
        for step in steps {
            step.apply(self.mount().point()).unwrap_or_else(|e| panic!("{step:?}: {e}"));
            step.apply(&self.plain()).unwrap();
        }
    }

    fn store(&self, there: bool) {
        let (near, away) = (self.scratch.path().join("store"), self.scratch.path().join("away"));
        if there { fs::rename(away, near).unwrap() } else { fs::rename(near, away).unwrap() }
    }

    fn compare(&self) {
        let (expected, found) = (tree(&self.plain()).unwrap(), tree(self.mount().point()).unwrap());
        let differ: Vec<_> = expected.iter().filter(|(k, v)| found.get(*k) != Some(*v)).collect();
        assert!(expected == found, "{differ:#?}, {} names for {}", found.len(), expected.len());
    }

    fn lines(&self, words: &str) -> usize {
        self.mount().log().lines().filter(|l| l.contains(words)).count()
    }
}

/// Fills the disk with appends to a segment until one is refused, as a broker would; what was acknowledged is in the plain file, too.
fn append_until_refused(mounted: &Path, plain: &Path) -> io::Error {
    let (mut mounted, mut plain) = (open_at_end(mounted), open_at_end(plain));
    for block in [256 << 10, 4 << 10] {
        let bytes = vec![7u8; block];
        loop {
            let at = mounted.metadata().unwrap().len();
            match mounted.write_all(&bytes) {
                Ok(()) => plain.write_all(&bytes).unwrap(),
                Err(e) => {
                    // Kafka cuts a batch off that could not be written whole.
                    mounted.set_len(at).unwrap();
                    mounted = open_at_end_of(mounted);
                    if block == 4 << 10 {
                        return e;
                    }
                    break;
                }
            }
        }
    }
    unreachable!()
}

fn open_at_end(path: &Path) -> File {
    open_at_end_of(File::options().read(true).write(true).open(path).unwrap())
}

fn open_at_end_of(mut file: File) -> File {
    use std::io::Seek as _;
    file.seek(io::SeekFrom::End(0)).unwrap();
    file
}

fn format() -> Vec<Step> {
    let text = format!("#\nnode.id=1\nversion=1\ncluster.id={CLUSTER_ID}\n");
    vec![Step::Replace("meta.properties".to_owned(), text.into_bytes())]
}

/// Takes the last blocks, too, as some other file on the same disk would.
fn fill_up(disk: &Path) -> PathBuf {
    let path = disk.join("filler");
    let file = File::create(&path).unwrap();
    let (mut at, block) = (0, [1u8; 1024]);
    while file.write_all_at(&block, at).is_ok() {
        at += block.len() as u64;
    }
    file.sync_all().unwrap();
    path
}

/// Closed segments, committed while the store is away; then the disk is filled to its last block.
fn fill(world: &World, p: &Partition) {
    world.both(&format());
    world.both(&p.create());
    // Old enough for its watermark to be believed after a restart.
    let metadata =
        File::open(world.mount().path(&format!("{}/partition.metadata", p.name))).unwrap();
    metadata.set_modified(SystemTime::now() - Duration::from_secs(3600)).unwrap();
    world.both(&committed(&[p]));
    let active = p.log(p.bases.len() - 1);
    let refused = append_until_refused(&world.mount().path(&active), &world.plain().join(&active));
    assert_eq!(refused.raw_os_error(), Some(Errno::NOSPC.raw_os_error()), "{refused}");
    fill_up(&world.disk.at);
    assert!(world.disk.free_bytes() <= 64 << 10);
    world.compare();
}

fn space_comes_back(world: &World, p: &Partition) {
    wait_until("space to come back", 90, || {
        let status = world.mount().status();
        unless(world.disk.free_bytes() >= 4 * MIB, || status.to_string())?;
        unless(status["disk"]["full"] == false, || status["disk"].to_string())
    });
    let active = world.mount().path(&p.log(p.bases.len() - 1));
    wait_until("an append to succeed", 30, || {
        let mut file = open_at_end(&active);
        file.write_all(b"more").map_err(|e| e.to_string())?;
        let len = file.metadata().unwrap().len();
        file.set_len(len - 4).map_err(|e| e.to_string())
    });
    world.compare();
}

#[test]
fn a_full_disk_fails_appends_as_ext4_does_and_space_comes_back_by_itself() {
    let mut world = World::new("full", 4096, &["--hot-bytes", "1TiB"]);
    let p = Partition::new("full-0", 9, 750);
    world.store(false);
    fill(&world, &p);
    // Also after a crash it mounts on the full disk, and everything can be read.
    world.mount.take().unwrap().kill9();
    world.mount = Some(world.command.start());
    world.compare();
    world.store(true);
    space_comes_back(&world, &p);
    assert!(log_objects(&world.scratch.path().join("store")).len() >= 2);
    let said = world.lines("the disk is full");
    assert!(said <= 2, "{said} lines for one full disk:\n{}", world.mount().log());
    let loud =
        world.mount().log().lines().filter(|l| l.contains("ERROR") || l.contains("WARN")).count();
    assert!(loud < 40, "{loud} lines:\n{}", world.mount().log());
    world.mount.take().unwrap().umount();
    fs::remove_file(world.disk.at.join("filler")).unwrap();
    let odd = fsck::data_directory(&world.disk.at.join("data"), &world.plain(), 0);
    assert!(odd.is_empty(), "{odd:#?}");
    fsck::archived(&world.scratch.path().join("store"));
}

#[test]
fn what_a_discard_command_agrees_to_leaves_a_full_disk() {
    let scratch = Scratch::new("full-agree");
    let agrees = scratch.path().join("agrees");
    let command = format!("test -e '{}'", agrees.display());
    let mut world = World::new("full-spool", 4096, &["--on-discard", &command]);
    let p = Partition::new("full-0", 6, 750);
    world.both(&format());
    world.both(&p.create());
    world.both(&committed(&[&p]));
    wait_until("the segments to be archived", 60, || {
        let lag = world.mount().status()["totals"]["lag_segments"].clone();
        unless(lag == 0, || lag.to_string())
    });
    world.both(&p.discard(0));
    world.both(&p.discard(1));
    let spool = world.disk.at.join("data/spool");
    wait_until("the entries", 20, || {
        let there =
            files::files_under(&spool).iter().filter(|f| f.ends_with("segment.log")).count();
        unless(there == 2, || format!("{there}"))
    });
    let active = p.log(5);
    append_until_refused(&world.mount().path(&active), &world.plain().join(&active));
    fill_up(&world.disk.at);
    File::create(&agrees).unwrap();
    wait_until("the spool to be empty", 90, || {
        let left = files::files_under(&spool);
        unless(left.is_empty(), || format!("{left:?}\n{}", world.mount().status()))
    });
    assert!(world.disk.free_bytes() >= 4 * MIB);
    world.compare();
    world.mount.take().unwrap().umount();
}

#[test]
fn a_disk_without_inodes_still_lets_evictions_go_on() {
    let world = World::new("full-inodes", 160, &["--hot-bytes", "1"]);
    let p = Partition::new("full-0", 8, 4);
    world.both(&format());
    world.both(&p.create());
    // All is committed and nothing is below the recovery point: archived, and not evicted yet.
    let recovery = "recovery-point-offset-checkpoint".to_owned();
    let (later, steps) = (format!("{recovery}.tmp"), committed(&[&p]));
    let Some(Step::Replace(_, text)) = steps.first().cloned() else { unreachable!() };
    let kept = |s: &Step| !matches!(s, Step::Replace(name, _) if *name == recovery);
    world.both(&steps.into_iter().filter(kept).collect::<Vec<_>>());
    world.both(&[Step::Put(later.clone(), text)]);
    wait_until("the segments to be archived", 60, || {
        let lag = world.mount().status()["totals"]["lag_segments"].clone();
        unless(lag == 0, || lag.to_string())
    });
    // The last inodes go to somebody else.
    let others = world.disk.at.join("others");
    fs::create_dir(&others).unwrap();
    let made = (0..1000).take_while(|i| File::create(others.join(i.to_string())).is_ok()).count();
    assert!(made > 10 && world.disk.space().f_favail == 0, "{made} made");
    let name = world.mount().path("full-0/junk");
    let refused = File::create(&name).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(Errno::NOSPC.raw_os_error()));
    world.both(&[Step::Rename(later, recovery)]);
    wait_until("the segments to become cold", 90, || {
        let stubs = files::files_under(&world.disk.at.join("data/hot"));
        let cold = stubs.iter().filter(|s| files::name(s).ends_with(".log.everlog")).count();
        unless(cold == 7, || format!("{cold}; {}", world.mount().status()))
    });
    world.compare();
}

#[test]
fn a_disk_that_turns_read_only_is_still_read_from_and_goes_on_after_its_repair() {
    let mut world = World::new("read-only", 4096, &["--hot-bytes", "1"]);
    let p = Partition::new("ro-0", 6, 64);
    world.both(&format());
    world.both(&p.create());
    let metadata = File::open(world.mount().path("ro-0/partition.metadata")).unwrap();
    metadata.set_modified(SystemTime::now() - Duration::from_secs(3600)).unwrap();
    drop(metadata);
    world.both(&committed(&[&p]));
    let cold = |world: &World, wanted: u64| {
        wait_until("segments to go cold", 60, || {
            let totals = world.mount().status()["totals"].clone();
            unless(totals["cold_segments"] == wanted, || totals.to_string())
        });
    };
    cold(&world, 5);
    run(Command::new("sync").arg("-f").arg(&world.disk.at));
    // As a broker holds it.
    let mut active = open_at_end(&world.mount().path(&p.log(5)));
    world.disk.turn_read_only();
    for _ in 0..20 {
        let refused = active.write_all(b"more").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(Errno::ROFS.raw_os_error()), "{refused}");
    }
    drop(active);
    // Hot ones from the disk, cold ones from the store, past the cache that cannot be written.
    world.compare();
    // More to do for the tiering, which cannot do it.
    world.store(false);
    world.store(true);
    std::thread::sleep(Duration::from_secs(8));
    world.compare();
    let log = world.mount().log();
    let loud = log.lines().filter(|l| l.contains("ERROR") || l.contains("WARN")).count();
    assert!((1..20).contains(&loud), "{loud} lines:\n{log}");
    assert!(log.contains("Read-only file system"), "{log}");

    world.mount.take().unwrap().umount();
    world.disk.repair();
    world.mount = Some(world.command.start());
    world.compare();
    let mut q = Partition::new("ro-0", 8, 64);
    q.bases.truncate(8);
    for at in 6..8 {
        world.both(&q.write(at));
    }
    world.both(&committed(&[&q]));
    cold(&world, 7);
    world.compare();
    world.mount.take().unwrap().umount();
    fsck::archived(&world.scratch.path().join("store"));
}
