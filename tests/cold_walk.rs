//! A random walk of readers over an archive that is larger than its cache: who reads on, who jumps about and who maps, while segments are
//! evicted by the budget and by request, warmed again, and the mount is taken away, killed and made again. Each byte is compared.
//!
//! `EVERLOG_WALK_SEED` chooses the walk and makes it a long one. A seed chooses what is done and where; which of the threads comes first it
//! does not choose.

mod common;

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock, mpsc};
use std::time::Duration;

use common::archive::bases;
use common::broker::CLUSTER_ID;
use common::children::{everlog, text};
use common::logdir::shut_down_cleanly;
use common::workers::{said, seed};
use common::{
    LogDir, Mount, MountCommand, Random, Scratch, allocated_bytes, files, unless, wait_until,
};
use memmap2::Mmap;

const MIB: u64 = 1 << 20;
const PARTITIONS: u32 = 3;
const SEGMENTS: usize = 4;
const SEGMENT_BYTES: u64 = 2 * MIB;
/// A quarter of the archive.
const CACHE_BYTES: u64 = 6 * MIB;
/// A reader that has not come to its end after this hangs.
const ROUND_MAX: Duration = Duration::from_secs(300);
const SEED: u64 = 20_261;
const ROUNDS: u64 = 6;
const ROUNDS_OF_A_LONG_WALK: u64 = 40;

/// A segment as it was written, and its path below the mount.
struct Segment {
    below: PathBuf,
    bytes: Vec<u8>,
}

fn archived(scratch: &Scratch) -> (String, Vec<Segment>) {
    let (root, store) = (scratch.dir("logs"), scratch.file_store("store"));
    let mut log_dir = LogDir::new(&root, CLUSTER_ID).index_bytes(4096);
    for partition in 0..PARTITIONS {
        let mut log = log_dir.create("t", partition);
        (0..SEGMENTS).for_each(|_| log.fill_segment(SEGMENT_BYTES));
        log.append(1, 100);
        log_dir.commit(&log);
    }
    log_dir.checkpoint();
    shut_down_cleanly(&root);
    let out = everlog(&["archive", &root.display().to_string(), "--store", &store, "--once"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let mut segments = Vec::new();
    for partition in (0..PARTITIONS).map(|p| format!("t-{p}")) {
        for base in bases(&root.join(&partition)).into_iter().take(SEGMENTS) {
            let below = Path::new(&partition).join(format!("{base:020}.log"));
            segments.push(Segment { bytes: fs::read(root.join(&below)).unwrap(), below });
        }
    }
    assert_eq!(segments.len(), PARTITIONS as usize * SEGMENTS);
    (store, segments)
}

/// How a reader goes about it.
#[derive(Clone, Copy, Debug)]
enum Way {
    Onwards,
    Jumping,
    Mapped,
}

const WAYS: [Way; 5] = [Way::Onwards, Way::Onwards, Way::Jumping, Way::Jumping, Way::Mapped];

/// What the readers of one mount share.
struct Round {
    point: PathBuf,
    segments: Arc<Vec<Segment>>,
    /// They come to an end.
    over: AtomicBool,
    /// The daemon is about to be killed: from now on a read may fail.
    killed: AtomicBool,
    /// Held for reading while something is mapped: a page of a dead mount is a signal, not an error.
    maps: RwLock<()>,
    compared_bytes: AtomicU64,
}

/// The mount is gone, as it was meant to.
struct Gone;

impl Round {
    fn judge<T>(&self, got: std::io::Result<T>, what: &str) -> Result<T, Gone> {
        got.map_err(|e| {
            assert!(e.kind() != ErrorKind::UnexpectedEof, "{what}: a short read");
            assert!(self.killed.load(Ordering::SeqCst), "{what}: {e}");
            Gone
        })
    }

    fn is_right(&self, got: &[u8], segment: &Segment, at: usize) {
        let wanted = &segment.bytes[at..at + got.len()];
        assert!(got == wanted, "{} at {at}: wrong bytes", segment.below.display());
        self.compared_bytes.fetch_add(got.len() as u64, Ordering::Relaxed);
    }

    fn open(&self, segment: &Segment) -> Result<File, Gone> {
        let what = segment.below.display().to_string();
        let file = self.judge(File::open(self.point.join(&segment.below)), &what)?;
        let size = self.judge(file.metadata(), &what)?.len();
        assert_eq!(size, segment.bytes.len() as u64, "{what}");
        Ok(file)
    }

    fn part(
        &self,
        file: &File,
        segment: &Segment,
        at: usize,
        buffer: &mut [u8],
    ) -> Result<(), Gone> {
        let what = format!("{} at {at}", segment.below.display());
        self.judge(file.read_exact_at(buffer, at as u64), &what)?;
        self.is_right(buffer, segment, at);
        Ok(())
    }

    /// One segment, or a piece of it, in one descriptor's life.
    fn visit(&self, way: Way, segment: &Segment, random: &mut Random) -> Result<(), Gone> {
        let size = segment.bytes.len();
        match way {
            Way::Onwards => {
                let file = self.open(segment)?;
                let mut buffer = vec![0; 4096 << random.below(8)];
                for at in (0..size).step_by(buffer.len()) {
                    if self.over.load(Ordering::Relaxed) {
                        break;
                    }
                    let len = buffer.len().min(size - at);
                    self.part(&file, segment, at, &mut buffer[..len])?;
                }
            }
            Way::Jumping => {
                let file = self.open(segment)?;
                for _ in 0..=random.below(12) {
                    let at = random.below(size as u64) as usize;
                    let len = (random.below(256 * 1024) as usize + 1).min(size - at);
                    self.part(&file, segment, at, &mut vec![0; len])?;
                }
            }
            Way::Mapped => {
                let _mapped = self.maps.read().unwrap();
                if self.killed.load(Ordering::SeqCst) {
                    return Err(Gone);
                }
                let file = self.open(segment)?;
                // SAFETY: nobody writes to a file of an archive mount.
                let map = unsafe { Mmap::map(&file) }.unwrap();
                let from = random.below(size as u64) as usize;
                let to = (from + random.below(MIB) as usize + 1).min(size);
                self.is_right(&map[from..to], segment, from);
            }
        }
        Ok(())
    }

    fn read(&self, way: Way, mut random: Random) {
        while !self.over.load(Ordering::Relaxed) {
            let at = random.below(self.segments.len() as u64) as usize;
            if self.visit(way, &self.segments[at], &mut random).is_err() {
                return;
            }
        }
    }
}

/// What an operator does meanwhile, until enough was read.
fn disturb(mount: &Mount, round: &Round, random: &mut Random, wanted_bytes: u64) {
    let mut acts = 0;
    wait_until("the readers to get on", ROUND_MAX.as_secs(), || {
        let segment = &round.segments[random.below(round.segments.len() as u64) as usize];
        let (verb, below) = match random.below(5) {
            0 => ("evict", Path::new("")),
            1 => ("evict", segment.below.parent().unwrap()),
            2 | 3 => ("evict", segment.below.as_path()),
            _ => ("warm", segment.below.as_path()),
        };
        let target = mount.point().join(below).display().to_string();
        let out = everlog(&[verb, &target]);
        // To warm may be refused: the readers leave it no room.
        assert!(
            out.status.success() || (verb == "warm" && out.status.code() == Some(1)),
            "{verb} {target}: {}",
            text(&out.stderr)
        );
        acts += 1;
        let compared = round.compared_bytes.load(Ordering::Relaxed);
        unless(acts >= 8 && compared >= wanted_bytes, || {
            format!("{acts} commands, {compared} of {wanted_bytes} bytes")
        })
    });
}

/// Nobody reads: what the cache holds is within its budget, by its own books and by the disk's.
fn within_budget(mount: &Mount, cache: &Path) {
    wait_until("the cache to be within its budget", 60, || {
        let told = mount.status()["cache"]["allocated_bytes"].as_u64().unwrap();
        let found = allocated_bytes(cache, |name| name.ends_with(".data"));
        unless(told <= CACHE_BYTES && found <= CACHE_BYTES, || {
            format!("{told} bytes by its books, {found} on disk, {CACHE_BYTES} allowed")
        })
    });
}

/// All readers to their end, which `end` brings about; the mount, unless it was killed.
fn round(
    mount: Mount,
    segments: &Arc<Vec<Segment>>,
    random: &mut Random,
    kill: bool,
) -> (Option<Mount>, u64) {
    let round = Arc::new(Round {
        point: mount.point().to_owned(),
        segments: Arc::clone(segments),
        over: AtomicBool::new(false),
        killed: AtomicBool::new(false),
        maps: RwLock::default(),
        compared_bytes: AtomicU64::new(0),
    });
    let (done, ends) = mpsc::channel();
    for way in WAYS {
        let (round, done) = (Arc::clone(&round), done.clone());
        let walk = Random::new(random.below(u64::MAX));
        std::thread::spawn(move || {
            let ended = said(|| round.read(way, walk));
            let _ = done.send(ended.map_err(|words| format!("{way:?}: {words}")));
        });
    }
    drop(done);
    let wanted_bytes = (8 + random.below(40)) * MIB;
    disturb(&mount, &round, random, wanted_bytes);
    let mut left = Some(mount);
    if kill {
        let _nothing_mapped = round.maps.write().unwrap();
        round.killed.store(true, Ordering::SeqCst);
        left.take().unwrap().kill9();
    }
    round.over.store(true, Ordering::Relaxed);
    for _ in WAYS {
        let ended = ends.recv_timeout(ROUND_MAX).unwrap_or_else(|e| panic!("a reader hangs: {e}"));
        ended.unwrap_or_else(|words| panic!("a reader failed: {words}"));
    }
    (left, round.compared_bytes.load(Ordering::Relaxed))
}

#[test]
fn readers_get_every_byte_right_whatever_is_evicted_remounted_and_killed_meanwhile() {
    let (walk, rounds) = seed().map_or((SEED, ROUNDS), |s| (s, ROUNDS_OF_A_LONG_WALK));
    println!("cold walk of {rounds} rounds, EVERLOG_WALK_SEED={walk}");
    let mut random = Random::new(walk);
    let scratch = Scratch::new("cold-walk");
    let (store, segments) = archived(&scratch);
    let segments = Arc::new(segments);
    let cache = scratch.path().join("cache");
    let command = MountCommand::archive(scratch.path(), &store)
        .option("--cache-bytes", CACHE_BYTES)
        .option("--read-deadline", "60s");
    let start = |random: &mut Random| match random.below(3) {
        0 => command.clone().arg("--no-passthrough").start(),
        _ => command.start(),
    };
    let (mut mount, mut fetched, mut evicted) = (start(&mut random), 0, 0);
    for number in 0..rounds {
        let kill = number % 3 == 1;
        let (left, compared) = round(mount, &segments, &mut random, kill);
        println!("round {number}: {compared} bytes compared{}", if kill { ", killed" } else { "" });
        mount = match left {
            None => start(&mut random),
            Some(left) => {
                within_budget(&left, &cache);
                let status = left.status();
                fetched += status["reads"]["fetched_bytes"].as_u64().unwrap();
                evicted += status["cache"]["evicted_bytes"].as_u64().unwrap();
                if number % 3 == 2 {
                    left.umount();
                    start(&mut random)
                } else {
                    left
                }
            }
        };
    }
    assert!(fetched > 0 && evicted > 0, "{fetched} bytes fetched, {evicted} evicted");
    for segment in segments.iter() {
        let got = fs::read(mount.point().join(&segment.below)).unwrap();
        assert!(got == segment.bytes, "{}: wrong bytes", segment.below.display());
    }
    within_budget(&mount, &cache);
    mount.sigterm();
    let left = files::files_under(&cache);
    assert!(left.iter().all(|p| p.extension() != Some("tmp".as_ref())), "{left:?}");
}
