//! Whole segments at the disk's own speed: files of an archive mount that the kernel reads without the daemon, what they show when
//! the cache gives them up meanwhile, and the same without passthrough.

mod common;

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use common::archive::bases;
use common::broker::CLUSTER_ID;
use common::children::{everlog, text};
use common::logdir::shut_down_cleanly;
use common::{LogDir, Mount, MountCommand, Scratch, files, unless, wait_until};
use memmap2::Mmap;

const SEGMENT_BYTES: u64 = 3 << 20;
const SEGMENTS: usize = 3;
/// On a machine that is busy with other tests.
const PATIENCE_S: u64 = 120;

fn archived(scratch: &Scratch) -> String {
    let (log_dir, store) = (scratch.dir("logs"), scratch.file_store("store"));
    let mut logs = LogDir::new(&log_dir, CLUSTER_ID).index_bytes(4096);
    let mut log = logs.create("t", 0);
    for _ in 0..SEGMENTS {
        log.fill_segment(SEGMENT_BYTES);
    }
    log.append(1, 100);
    logs.commit(&log);
    logs.checkpoint();
    shut_down_cleanly(&log_dir);
    let out = everlog(&["archive", &log_dir.display().to_string(), "--store", &store, "--once"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    store
}

struct World {
    command: MountCommand,
    mount: Option<Mount>,
    scratch: Scratch,
}

impl World {
    /// All of the topic is in the cache, and nothing of it was looked at in this mount.
    fn new(name: &str, options: &[&str]) -> Self {
        let scratch = Scratch::new(name);
        let store = archived(&scratch);
        let command = MountCommand::archive(scratch.path(), &store);
        let command = options.iter().fold(command, |c, option| c.arg(option));
        let mut world = Self { mount: Some(command.start()), command, scratch };
        world.logs().iter().for_each(|log| world.is_right(log, &fs::read(log).unwrap()));
        world.remount();
        world
    }

    fn remount(&mut self) {
        self.mount.take().unwrap().umount();
        self.mount = Some(self.command.start());
    }

    fn mount(&self) -> &Mount {
        self.mount.as_ref().unwrap()
    }

    fn logs(&self) -> Vec<PathBuf> {
        let dir = self.mount().path("t-0");
        bases(&dir).iter().map(|base| dir.join(format!("{base:020}.log"))).collect()
    }

    fn is_right(&self, log: &Path, got: &[u8]) {
        let written = self.scratch.path().join("logs").join("t-0").join(files::name(log));
        assert!(got == fs::read(written).unwrap(), "{}", log.display());
    }

    /// Reads that the daemon answered from its cache.
    fn hits(&self) -> u64 {
        self.mount().status()["cache"]["hits"].as_u64().unwrap()
    }

    /// Reads all of an open file; whether the daemon had nothing to do with it.
    fn read_past_daemon(&self, log: &Path, file: &mut File) -> bool {
        let before = self.hits();
        let mut got = Vec::new();
        file.read_to_end(&mut got).unwrap();
        self.is_right(log, &got);
        self.hits() == before
    }

    fn native(&self, log: &Path) -> File {
        wait_until("a descriptor that the kernel reads itself", PATIENCE_S, || {
            let mut file = File::open(log).unwrap();
            unless(self.read_past_daemon(log, &mut file), || "the daemon was asked".to_owned())?;
            Ok(file)
        })
    }

    fn evict(&self) {
        let target = self.mount().path("t-0").display().to_string();
        let out = everlog(&["evict", &target]);
        assert!(out.status.success(), "{}", text(&out.stderr));
    }
}

fn map(file: &File) -> Mmap {
    // SAFETY: nobody writes to a file of an archive mount.
    unsafe { Mmap::map(file) }.unwrap()
}

#[test]
fn a_whole_segment_is_read_without_the_daemon() {
    let world = World::new("native-whole", &[]);
    for log in world.logs() {
        let first = world.native(&log);
        let mut second = File::open(&log).unwrap();
        assert!(world.read_past_daemon(&log, &mut second), "as the first one");
        world.is_right(&log, &map(&first));
    }
}

#[test]
fn what_is_open_or_mapped_stays_right_while_the_cache_gives_it_up_and_gets_it_anew() {
    let world = World::new("native-evict", &[]);
    let log = &world.logs()[1];
    let open = world.native(log);
    let mapped = map(&world.native(log));
    world.evict();
    world.is_right(log, &mapped);
    world.is_right(log, &map(&open));
    let mut later = File::open(log).unwrap();
    assert!(world.read_past_daemon(log, &mut later), "it shares what is open");
    drop((open, later));
    world.is_right(log, &fs::read(log).unwrap());
    world.evict();
    world.is_right(log, &mapped);
    world.is_right(log, &fs::read(log).unwrap());
    world.is_right(log, &mapped);
    world.native(log);
}

#[test]
fn a_segment_that_is_mapped_through_the_daemon_is_opened_so_again() {
    let mut world = World::new("native-mapped", &[]);
    world.evict();
    world.remount();
    let log = &world.logs()[0];
    // Not in the cache: it goes through the daemon, and the mapping keeps it so.
    let mapped = map(&File::open(log).unwrap());
    world.is_right(log, &mapped);
    for _ in 0..3 {
        let mut file = File::open(log).unwrap();
        assert!(!world.read_past_daemon(log, &mut file));
    }
    drop(mapped);
    world.native(log);
}

#[test]
fn without_passthrough_whole_segments_are_read_and_mapped_through_the_daemon() {
    let world = World::new("native-without", &["--no-passthrough"]);
    for log in world.logs() {
        let mut file = File::open(&log).unwrap();
        assert!(!world.read_past_daemon(&log, &mut file));
        world.is_right(&log, &map(&file));
    }
}
