//! Readers of cold segments while the store fails in each of the ways in which stores fail.
//!
//! An archive in a real S3 server behind a proxy that answers a part of all reads wrongly. Whatever it does, a
//! reader gets the bytes that were archived, or EIO within the deadline; and when it stops, all reads succeed.

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::broker::CLUSTER_ID;
use common::children::{bound_command, run};
use common::logdir::shut_down_cleanly;
use common::{LogDir, Mount, MountCommand, Proxy, Random, S3, Scratch, files_under, wait_until};

const SEGMENT_BYTES: u64 = 6 << 20;
const READERS: u64 = 6;
const READS_EACH: u64 = 40;
/// `--read-deadline`.
const DEADLINE: Duration = Duration::from_secs(6);
/// A reply after its deadline may still wait for a processor.
const GRACE: Duration = Duration::from_secs(20);

/// A segment as the broker wrote it, and its path below the mount.
struct Segment {
    name: PathBuf,
    bytes: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Outcome {
    right: u64,
    failed: u64,
}

fn archived(scratch: &Scratch, s3: &S3) -> Vec<Segment> {
    let root = scratch.dir("logs");
    let mut log_dir = LogDir::new(&root, CLUSTER_ID);
    for partition in 0..3 {
        let mut log = log_dir.create("orders", partition);
        (0..3).for_each(|_| log.fill_segment(SEGMENT_BYTES));
        log.append(1, 100);
        log_dir.commit(&log);
    }
    log_dir.checkpoint();
    shut_down_cleanly(&root);
    let mut archive = bound_command(env!("CARGO_BIN_EXE_everlog"));
    archive.args(["archive", &root.display().to_string(), "--once", "--store", &s3.url("faults")]);
    run(
        {
            archive.envs(s3.env());
            archive
        },
        "everlog archive",
    );
    let mut segments = Vec::new();
    for path in files_under(&root).into_iter().filter(|p| p.extension() == Some("log".as_ref())) {
        let bytes = std::fs::read(&path).unwrap();
        if bytes.len() as u64 >= SEGMENT_BYTES {
            segments.push(Segment { name: path.strip_prefix(&root).unwrap().to_owned(), bytes });
        }
    }
    assert_eq!(segments.len(), 9);
    segments
}

/// One reader: half of its reads go on where the one before ended, the others jump.
fn read(mount: &Path, segments: &[Segment], seed: u64, stop: &AtomicBool) -> Outcome {
    let mut random = Random::new(seed);
    let mut outcome = Outcome::default();
    let (mut segment, mut at) = (&segments[0], 0u64);
    let mut buffer = vec![0; 1 << 20];
    for _ in 0..READS_EACH {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        if random.below(2) == 0 || at >= segment.bytes.len() as u64 {
            segment = &segments[random.below(segments.len() as u64) as usize];
            at = random.below(segment.bytes.len() as u64);
        }
        let len = (random.below(1 << 20) + 1).min(segment.bytes.len() as u64 - at) as usize;
        let path = mount.join(&segment.name);
        let began = Instant::now();
        // A new descriptor each time: a file may be open in one mode only.
        let got = File::open(&path).and_then(|file| file.read_exact_at(&mut buffer[..len], at));
        assert!(began.elapsed() < DEADLINE + GRACE, "an answer took {:?}", began.elapsed());
        match got {
            Ok(()) => {
                let wanted = &segment.bytes[at as usize..at as usize + len];
                assert!(buffer[..len] == *wanted, "{} at {at}: wrong bytes", path.display());
                outcome.right += 1;
            }
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                outcome.failed += 1;
            }
            Err(e) => panic!("{} at {at}: {e}", path.display()),
        }
        at += len as u64;
    }
    outcome
}

/// All readers at once, each with an end: one that hangs fails the test, which takes the mount away.
fn read_all(mount: &Mount, segments: &Arc<Vec<Segment>>, seed: u64) -> Outcome {
    let (done, outcomes) = mpsc::channel();
    let stop = Arc::new(AtomicBool::new(false));
    for reader in 0..READERS {
        let (segments, done, stop) = (Arc::clone(segments), done.clone(), Arc::clone(&stop));
        let point = mount.point().to_owned();
        std::thread::spawn(move || {
            let seed = seed * 1000 + reader;
            let caught = std::panic::catch_unwind(|| read(&point, &segments, seed, &stop));
            let _ = done.send(caught.map_err(|_| reader));
        });
    }
    let mut all = Outcome::default();
    for _ in 0..READERS {
        let outcome = outcomes.recv_timeout(Duration::from_secs(300));
        stop.store(outcome.is_err(), Ordering::Relaxed);
        let outcome = outcome.unwrap_or_else(|e| panic!("a reader hangs: {e}; {}", mount.log()));
        let outcome = outcome.unwrap_or_else(|reader| panic!("reader {reader} failed (above)"));
        all.right += outcome.right;
        all.failed += outcome.failed;
    }
    all
}

#[test]
fn whatever_a_store_does_to_those_who_read_they_get_right_bytes_or_eio_and_recover() {
    let scratch = Scratch::new("cold-faults");
    let s3 = S3::start(scratch.path());
    let segments = Arc::new(archived(&scratch, &s3));
    // How many of 100 reads, and which counters must tell of it.
    let faults: [(&str, u64, &[&str]); 6] = [
        ("unavailable", 20, &[]),
        ("reset", 20, &[]),
        ("truncated", 20, &[]),
        ("whole", 20, &["retries"]),
        ("flipped", 20, &["refetched_damaged"]),
        ("stall", 5, &["hedges"]),
    ];
    for (number, (fault, percent, counters)) in faults.into_iter().enumerate() {
        let mut proxy = Proxy::start(&s3, 77 + number as u64);
        let dir = scratch.dir(fault);
        let mount = MountCommand::archive(&dir, &s3.url("faults"))
            .option("--read-deadline", format!("{}s", DEADLINE.as_secs()))
            .envs(proxy.env(&s3))
            .start();
        proxy.set("stall_ms", 30_000);
        proxy.set(fault, percent);
        let outcome = read_all(&mount, &segments, number as u64);
        let seen = proxy.stats()["faults"][fault].as_u64().unwrap();
        let reads = mount.status()["reads"].clone();
        println!("{fault}: {seen} faults; {outcome:?}; {reads}");
        assert!(seen > 0, "{fault} never happened");
        for counter in counters {
            assert!(reads[*counter].as_u64().unwrap() > 0, "{fault}: {counter} does not tell");
        }
        let all = READERS * READS_EACH;
        assert_eq!(outcome.right + outcome.failed, all);
        assert!(outcome.right > all / 2, "{fault}: hardly anything could be read: {outcome:?}");

        // It recovers by itself.
        proxy.set(fault, 0);
        for segment in segments.iter() {
            let path = mount.point().join(&segment.name);
            let got = wait_until("reads to succeed again", 60, || {
                std::fs::read(&path)
                    .map_err(|e| format!("{fault} is over: {}: {e}", path.display()))
            });
            assert!(got == segment.bytes, "{fault} is over: {}: wrong bytes", path.display());
        }
        mount.sigterm();
    }
}
