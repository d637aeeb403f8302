//! `everlog doctor`: proves on this kernel that what a reader gets around the tail of a growing file is
//! what was written, through `sendfile` as a broker's network threads read and through `pread`.
//!
//! One appender, several readers; the bytes are a function of their position, so any wrong byte shows.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde::Serialize;

use super::CliError;
use super::args::DoctorArgs;
use super::units::show_bytes;

/// Longest read: well below a socket's buffer, so that one thread can write and then read it.
const READ_BYTES_MAX: u64 = 64 * 1024;
/// Reads begin at most this far before the tail.
const TAIL_BYTES: u64 = 256 * 1024;

/// What was found.
#[derive(Debug, Default, Serialize)]
struct Report {
    appended_bytes: u64,
    compared_bytes: u64,
    reads: u64,
    wrong_bytes: u64,
    first_wrong_position: Option<u64>,
}

/// Runs the check in a directory of its own below `dir`, which is removed afterwards.
pub fn run(args: &DoctorArgs) -> Result<(), CliError> {
    let dir = args.dir.join(format!("everlog-doctor-{}", std::process::id()));
    std::fs::create_dir(&dir).map_err(|e| {
        CliError::failed(format!("cannot make {}: {e}: give a writable directory", dir.display()))
    })?;
    let path = dir.join("00000000000000000000.log");
    let started = Instant::now();
    let checked = check(&path, args);
    let removed = std::fs::remove_file(&path).and_then(|()| std::fs::remove_dir(&dir));
    let report = checked.map_err(|e| CliError::failed(format!("{}: {e}", path.display())))?;
    removed.map_err(|e| CliError::failed(format!("cannot remove {}: {e}", dir.display())))?;
    print(&report, args, started);
    if report.wrong_bytes > 0 {
        return Err(CliError::damage(format!(
            "reads around the tail returned {} wrong bytes: do not run a broker on this mount and kernel",
            report.wrong_bytes
        )));
    }
    Ok(())
}

fn print(report: &Report, args: &DoctorArgs, started: Instant) {
    if args.json {
        if let Ok(text) = serde_json::to_string(report) {
            println!("{text}");
        }
        return;
    }
    println!(
        "append and sendfile: {} appended, {} compared in {} reads by {} readers in {:.1} s, {} wrong bytes",
        show_bytes(report.appended_bytes),
        show_bytes(report.compared_bytes),
        report.reads,
        args.readers,
        started.elapsed().as_secs_f64(),
        report.wrong_bytes
    );
}

fn check(path: &PathBuf, args: &DoctorArgs) -> std::io::Result<Report> {
    let mut file = File::options().read(true).write(true).create_new(true).open(path)?;
    let tail = AtomicU64::new(0);
    let done = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..u64::from(args.readers))
            .map(|i| {
                let (tail, done) = (&tail, &done);
                scope.spawn(move || read_tail(path, tail, done, i))
            })
            .collect();
        let appended = append(&mut file, &tail, args.bytes);
        done.store(1, Ordering::Release);
        let mut report =
            Report { appended_bytes: tail.load(Ordering::Acquire), ..Report::default() };
        for reader in readers {
            let one = reader.join().map_err(|_| std::io::Error::other("a reader panicked"))??;
            report.compared_bytes += one.compared_bytes;
            report.reads += one.reads;
            report.wrong_bytes += one.wrong_bytes;
            report.first_wrong_position = report.first_wrong_position.or(one.first_wrong_position);
        }
        appended.map(|()| report)
    })
}

fn append(file: &mut File, tail: &AtomicU64, bytes: u64) -> std::io::Result<()> {
    let mut random = 1u64;
    let mut at = 0;
    while at < bytes {
        random = mix(random);
        // As a broker appends: whole batches, at no particular alignment.
        let len = (random % 48_000 + 61).min(bytes - at);
        file.write_all(&pattern(at, len))?;
        at += len;
        tail.store(at, Ordering::Release);
    }
    Ok(())
}

fn read_tail(path: &Path, tail: &AtomicU64, done: &AtomicU64, id: u64) -> std::io::Result<Report> {
    let file = File::open(path)?;
    let (sender, mut receiver) = UnixStream::pair()?;
    let mut report = Report::default();
    let mut random = id + 77;
    let mut buffer = vec![0u8; READ_BYTES_MAX as usize];
    loop {
        let ending = done.load(Ordering::Acquire) == 1;
        let size = tail.load(Ordering::Acquire);
        random = mix(random);
        let start = size.saturating_sub(random % TAIL_BYTES);
        let len = (size - start).min(READ_BYTES_MAX) as usize;
        if len > 0 {
            let mut at = start;
            let sent = rustix::fs::sendfile(&sender, &file, Some(&mut at), len)?;
            receiver.read_exact(&mut buffer[..sent])?;
            compare(&mut report, start, &buffer[..sent], len);
            random = mix(random);
            if random.is_multiple_of(4) {
                let n = std::os::unix::fs::FileExt::read_at(&file, &mut buffer[..len], start)?;
                compare(&mut report, start, &buffer[..n], len);
            }
        }
        if ending {
            return Ok(report);
        }
        std::thread::yield_now();
    }
}

/// A short read of bytes that were written before counts as wrong, too.
fn compare(report: &mut Report, start: u64, got: &[u8], asked: usize) {
    let expected = pattern(start, asked as u64);
    let wrong = got.iter().zip(&expected).position(|(a, b)| a != b);
    report.reads += 1;
    report.compared_bytes += got.len() as u64;
    report.wrong_bytes += got.iter().zip(&expected).filter(|(a, b)| a != b).count() as u64;
    report.wrong_bytes += (asked - got.len()) as u64;
    let first = wrong.or((got.len() < asked).then_some(got.len()));
    report.first_wrong_position = report.first_wrong_position.or(first.map(|p| start + p as u64));
}

/// A fixed pseudo-random step (SplitMix64).
fn mix(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The bytes that belong at `[start, start + len)`.
fn pattern(start: u64, len: u64) -> Vec<u8> {
    let first = start / 8;
    let last = (start + len).div_ceil(8);
    let bytes: Vec<u8> = (first..last).flat_map(|word| mix(word).to_le_bytes()).collect();
    let skip = (start % 8) as usize;
    bytes[skip..skip + len as usize].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pattern_is_the_same_from_any_start() {
        let whole = pattern(0, 100);
        assert_eq!(pattern(13, 50), whole[13..63]);
    }

    #[test]
    fn a_wrong_byte_and_a_short_read_are_both_counted() {
        let mut report = Report::default();
        let mut got = pattern(100, 50);
        got[7] ^= 1;
        compare(&mut report, 100, &got[..40], 50);
        assert_eq!((report.wrong_bytes, report.first_wrong_position), (11, Some(107)));
    }
}
