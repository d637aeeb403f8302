//! Random operations on one `.log`, which is evicted, written to while cold, made whole and reopened at random
//! between them: after each, it is what a plain file with the same history is. Any bytes, also no Kafka ones.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, XattrFlags};
use rustix::io::Errno;

use super::{NAME, World, archived, sample};
use crate::catalog::{AttrChange, Content, LogFile, Piece, TimeChange};
use crate::local::Stub;
use crate::types::UploadId;

const SIZE_MAX: u64 = 400_000;
const STEPS: usize = 600;

/// A generator that gives the same walk for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % n.max(1)
    }

    fn bytes(&mut self, max: u64) -> Vec<u8> {
        let (len, first) = (1 + self.below(max) as usize, self.below(256) as usize);
        (0..len).map(|i| (first + i * 13 + i / 257) as u8 | 1).collect()
    }
}

#[derive(Default)]
struct Seen {
    evictions: u32,
    hydrations: u32,
    overlaid: u32,
}

/// The file, and what it must be.
struct Walk {
    world: World,
    log: Arc<LogFile>,
    objects: HashMap<String, Vec<u8>>,
    bytes: Vec<u8>,
    mode: u32,
    mtime: Option<(i64, u32)>,
    xattrs: BTreeMap<String, Vec<u8>>,
    seen: Seen,
}

impl Walk {
    fn new() -> Self {
        let bytes = sample(100_000);
        let world = World::new(&bytes);
        let log = world.log();
        log.open(true).unwrap();
        let mode = log.stat().unwrap().mode;
        let (objects, xattrs, seen) = (HashMap::new(), BTreeMap::new(), Seen::default());
        Self { world, log, objects, bytes, mode, mtime: None, xattrs, seen }
    }

    fn step(&mut self, random: &mut Random) {
        let size = self.bytes.len() as u64;
        match random.below(20) {
            0..=3 => self.write(random.below(size.min(SIZE_MAX - 40_000) + 1000), random),
            4 => self.write(size.min(SIZE_MAX), random),
            5..=6 => self.truncate(random.below(SIZE_MAX)),
            7..=10 => self.allocate(random),
            11..=14 => self.evict(),
            15 => self.hydrate(),
            16 => self.chmod([0o600, 0o640, 0o2755, 0o4711][random.below(4) as usize]),
            17 => self.set_time(random),
            18 => self.set_attribute(random),
            _ => self.reopen(),
        }
    }

    fn write(&mut self, at: u64, random: &mut Random) {
        let data = random.bytes(40_000);
        self.log.write_at(at, &data).unwrap();
        let end = at as usize + data.len();
        self.bytes.resize(self.bytes.len().max(end), 0);
        self.bytes[at as usize..end].copy_from_slice(&data);
        self.mtime = None;
    }

    fn truncate(&mut self, size: u64) {
        self.log.truncate(size).unwrap();
        self.bytes.resize(size as usize, 0);
        self.mtime = None;
    }

    fn allocate(&mut self, random: &mut Random) {
        const KEEP: FallocateFlags = FallocateFlags::KEEP_SIZE;
        let zero = FallocateFlags::ZERO_RANGE;
        let modes =
            [FallocateFlags::empty(), KEEP, FallocateFlags::PUNCH_HOLE | KEEP, zero, zero | KEEP];
        let mode = modes[random.below(5) as usize];
        let (at, len) = (random.below(SIZE_MAX - 50_000), 1 + random.below(50_000));
        match self.log.fallocate(mode, at, len) {
            // Not every filesystem knows every mode; then nothing has happened.
            Err(e) if e.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => return,
            other => other.unwrap(),
        }
        let (at, end) = (at as usize, (at + len) as usize);
        if !mode.contains(KEEP) {
            self.bytes.resize(self.bytes.len().max(end), 0);
        }
        if mode.intersects(zero | FallocateFlags::PUNCH_HOLE) {
            let end = end.min(self.bytes.len());
            self.bytes[at.min(end)..end].fill(0);
        }
        self.mtime = None;
    }

    /// What the tiering does with a file that it has archived.
    fn evict(&mut self) {
        if !self.log.is_hot() {
            return;
        }
        let mut known = archived(&self.bytes, self.log.mutations());
        let id = UploadId::from_random(self.objects.len() as u64 + 100);
        known.stub.extents.retain(|e| e.file_end > 0);
        known.stub.extents.iter_mut().for_each(|e| e.upload_id = id.clone());
        self.objects.insert(id.to_string(), self.bytes.clone());
        self.world.catalog.ensure_sentinel().unwrap();
        self.log.set_archived(known);
        let evicted = self.log.evict().unwrap();
        // A stub keeps no time before the epoch, so such a file stays.
        assert_eq!(evicted, self.mtime.is_none_or(|(secs, _)| secs >= 0));
        self.seen.evictions += u32::from(evicted);
    }

    fn hydrate(&mut self) {
        let objects = &self.objects;
        let fill = |file: &File, stub: &Stub| {
            stub.extents.iter().try_for_each(|e| {
                let len = (e.file_end - e.file_start) as usize;
                let object = &objects[&e.upload_id.to_string()];
                file.write_all_at(&object[e.object_start as usize..][..len], e.file_start)
            })
        };
        self.seen.overlaid += u32::from(matches!(self.log.content(), Content::Overlaid(..)));
        self.seen.hydrations += u32::from(self.log.hydrate(fill).unwrap());
    }

    fn chmod(&mut self, mode: u32) {
        let change = AttrChange { mode: Some(mode), ..AttrChange::default() };
        self.log.set_attr(&change).unwrap();
        self.mode = mode;
    }

    fn set_time(&mut self, random: &mut Random) {
        let secs = random.below(4_000_000_000) as i64 - if self.log.is_hot() { 1 << 30 } else { 0 };
        let time = (secs, random.below(1_000_000_000) as u32);
        let mtime = Some(TimeChange::At(time.0, time.1));
        let before = self.log.stat().unwrap();
        self.log.set_attr(&AttrChange { mtime, ..AttrChange::default() }).unwrap();
        let after = self.log.stat().unwrap();
        assert_eq!(after.atime, before.atime);
        assert!(after.ctime >= before.ctime);
        self.mtime = Some(time);
    }

    fn set_attribute(&mut self, random: &mut Random) {
        let name = format!("user.{}", random.below(3));
        let os = OsStr::new(&name);
        if random.below(3) == 0 {
            let (found, expected) = (self.log.remove_xattr(os), self.xattrs.remove(&name));
            assert_eq!(found.is_ok(), expected.is_some(), "{name}: {found:?}");
            return;
        }
        let value = random.bytes(600);
        self.log.set_xattr(os, &value, XattrFlags::empty()).unwrap();
        self.xattrs.insert(name, value);
    }

    /// What a remount finds.
    fn reopen(&mut self) {
        self.log.close();
        self.world.reopen();
        self.log = self.world.log();
        self.log.open(true).unwrap();
    }

    fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut out = Vec::new();
        for piece in self.log.plan_read(offset, len).unwrap() {
            match piece {
                Piece::Local(file, at, len) => {
                    let from = out.len();
                    out.resize(from + len, 0);
                    let n = file.read_at(&mut out[from..], at).unwrap();
                    out.truncate(from + n);
                }
                Piece::Archived(_, extent, at, len) => {
                    let object = &self.objects[&extent.upload_id.to_string()];
                    out.extend_from_slice(&object[at as usize..][..len]);
                }
            }
        }
        out
    }

    /// What lies between two data ranges must be zeros.
    fn check_holes(&self) {
        let mut at = 0;
        loop {
            let data = match self.log.seek(at, false) {
                Err(e) if e.raw_os_error() == Some(Errno::NXIO.raw_os_error()) => self.bytes.len(),
                other => other.unwrap() as usize,
            };
            let skipped = &self.bytes[at as usize..data];
            assert!(skipped.iter().all(|b| *b == 0), "data in a hole at {at}");
            if data == self.bytes.len() {
                return;
            }
            at = self.log.seek(data as u64, true).unwrap();
            assert!(at > data as u64);
        }
    }

    fn check(&self, linked: bool) {
        let stat = self.log.stat().unwrap();
        assert_eq!(stat.size_bytes, self.bytes.len() as u64);
        assert_eq!((stat.mode, stat.nlink), (self.mode, u32::from(linked)));
        assert_eq!(self.mtime.unwrap_or(stat.mtime), stat.mtime);
        assert!(stat.size_bytes == 0 || stat.blocks > 0);
        assert!(self.read(0, SIZE_MAX as usize * 2) == self.bytes, "other bytes");
        self.check_holes();
        for (name, value) in &self.xattrs {
            assert_eq!(&self.log.xattr(OsStr::new(name)).unwrap(), value, "{name}");
        }
        let names = self.log.xattr_names().unwrap();
        let listed = names.split(|b| *b == 0).filter(|n| n.starts_with(b"user.")).count();
        assert_eq!(listed, self.xattrs.len());
    }
}

fn with_words<T>(what: &str, work: impl FnOnce() -> T) -> T {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        eprintln!("{what}");
        std::panic::resume_unwind(panic)
    })
}

#[test]
fn whatever_is_done_to_a_log_that_comes_and_goes_it_is_what_a_plain_file_is() {
    for seed in 1..=4 {
        let mut random = Random(seed);
        let mut walk = Walk::new();
        for step in 0..STEPS {
            with_words(&format!("seed {seed}, step {step}"), || {
                walk.step(&mut random);
                walk.check(true);
            });
        }
        let Seen { evictions, hydrations, overlaid } = walk.seen;
        assert!(
            evictions > 10 && hydrations > 10 && overlaid > 5,
            "{evictions} {hydrations} {overlaid}"
        );
    }
}

#[test]
fn what_is_done_through_a_descriptor_after_the_name_is_gone_leaves_nothing_behind() {
    for (seed, cold) in [(1, false), (2, true), (3, true)] {
        let mut random = Random(seed);
        let mut walk = Walk::new();
        if cold {
            walk.evict();
        }
        if seed == 3 {
            walk.write(70_000, &mut random);
        }
        walk.world.catalog.dir("a-0").unwrap().remove_log(NAME).unwrap();
        for step in 0..60 {
            with_words(&format!("seed {seed}, step {step}"), || {
                match random.below(8) {
                    0..=2 => walk.write(random.below(200_000), &mut random),
                    3 => walk.truncate(random.below(SIZE_MAX)),
                    4 => walk.allocate(&mut random),
                    5 => walk.chmod(0o600),
                    6 => walk.set_attribute(&mut random),
                    _ => walk.hydrate(),
                }
                walk.check(false);
            });
        }
        let left = |dir: &std::path::Path| std::fs::read_dir(dir).unwrap().count();
        assert_eq!(left(&walk.world.hot.join("a-0")), 0, "seed {seed}");
        assert_eq!(left(&walk.world.overlay), 0, "seed {seed}");
    }
}

#[test]
fn a_change_that_the_disk_refuses_leaves_a_cold_file_as_it_was() {
    let mut walk = Walk::new();
    walk.evict();
    let too_much = walk.log.set_xattr(OsStr::new("user.big"), &[7; 5000], XattrFlags::empty());
    assert_eq!(too_much.unwrap_err().raw_os_error(), Some(Errno::NOSPC.raw_os_error()));
    let before = TimeChange::At(-1, 0);
    let change = AttrChange { mtime: Some(before), ..AttrChange::default() };
    assert_eq!(walk.log.set_attr(&change).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    let odd = walk.log.fallocate(FallocateFlags::PUNCH_HOLE, 0, 10);
    assert!(odd.is_err(), "punching a hole needs the size kept");
    walk.check(true);
    assert!(matches!(walk.log.content(), Content::Cold(_)));
    assert_eq!(std::fs::read_dir(&walk.world.overlay).unwrap().count(), 0);
}
