//! Reads around the tail of a file that is being appended to, as a broker's network threads do them: `sendfile` and `pread` from several
//! readers while writes are delayed in the daemon. Never a stale byte, a zero or a short answer below the length already reported.

mod common;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use common::children::{everlog, text};
use common::{Mount, MountCommand, Scratch};

fn mount(scratch: &Scratch, delay_ms: u32, more: &[&str]) -> Mount {
    let mut command = MountCommand::broker(scratch.path(), &scratch.file_store("store"));
    for arg in more {
        command = command.arg(arg);
    }
    command.env("EVERLOG_TEST_WRITE_DELAY_MS", &delay_ms.to_string()).start()
}

/// Byte at a position: never zero, and different around every page and block border.
fn byte_at(position: u64) -> u8 {
    (position.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8 | 1
}

fn pattern(from: u64, len: usize) -> Vec<u8> {
    (from..from + len as u64).map(byte_at).collect()
}

fn through_sendfile(file: &File, at: u64, len: usize) -> Vec<u8> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let mut bytes = Vec::new();
            (&theirs).read_to_end(&mut bytes).unwrap();
            bytes
        });
        let mut offset = at;
        let mut left = len;
        while left > 0 {
            match rustix::fs::sendfile(&ours, file, Some(&mut offset), left).unwrap() {
                0 => break,
                n => left -= n,
            }
        }
        drop(ours);
        reader.join().unwrap()
    })
}

/// One appender, `readers` readers; returns how many bytes were compared.
fn append_and_compare(path: &Path, total: u64, readers: u64) -> u64 {
    let tail = AtomicU64::new(0);
    let done = AtomicU64::new(0);
    let compared = AtomicU64::new(0);
    let mut file = File::options().create_new(true).read(true).write(true).open(path).unwrap();
    std::thread::scope(|scope| {
        for id in 0..readers {
            let (tail, done, compared) = (&tail, &done, &compared);
            scope.spawn(move || {
                let file = File::options().read(true).write(true).open(path).unwrap();
                let mut turn = id;
                while done.load(Ordering::Acquire) == 0 {
                    let end = tail.load(Ordering::Acquire);
                    let len = end.min([61, 4096, 5000, 70_000, 131_072][(turn % 5) as usize]);
                    turn += 1;
                    let at = end - len;
                    let bytes = if turn % 2 == 0 {
                        let mut bytes = vec![0; len as usize];
                        file.read_exact_at(&mut bytes, at).unwrap();
                        bytes
                    } else {
                        through_sendfile(&file, at, len as usize)
                    };
                    assert!(bytes == pattern(at, len as usize), "wrong bytes in {at}..{end}");
                    assert!(file.metadata().unwrap().len() >= end, "the length went back");
                    compared.fetch_add(len, Ordering::Relaxed);
                }
            });
        }
        let mut at = 0;
        let mut turn = 0;
        while at < total {
            let len = [100, 4096, 1000, 16_384, 33_333][turn % 5];
            turn += 1;
            file.write_all(&pattern(at, len)).unwrap();
            at += len as u64;
            tail.store(at, Ordering::Release);
        }
        done.store(1, Ordering::Release);
    });
    compared.into_inner()
}

#[test]
fn readers_around_the_tail_see_what_was_written() {
    let scratch = Scratch::new("selfcheck-tail");
    let mount = mount(&scratch, 0, &[]);
    std::fs::create_dir(mount.path("t-0")).unwrap();
    let compared = append_and_compare(&mount.path("t-0/00000000000000000000.log"), 48 << 20, 4);
    assert!(compared > 8 << 20, "only {compared} bytes were compared");
}

#[test]
fn readers_around_the_tail_see_what_was_written_when_each_write_is_slow() {
    let scratch = Scratch::new("selfcheck-slow");
    let mount = mount(&scratch, 1, &[]);
    std::fs::create_dir(mount.path("t-0")).unwrap();
    let compared = append_and_compare(&mount.path("t-0/00000000000000000000.log"), 12 << 20, 4);
    assert!(compared > 8 << 20, "only {compared} bytes were compared");
}

#[test]
fn the_doctor_finds_the_mount_sound_also_with_slow_writes_and_leaves_nothing() {
    for delay_ms in [0, 1] {
        let scratch = Scratch::new("selfcheck-doctor");
        let mount = mount(&scratch, delay_ms, &[]);
        let size = if delay_ms == 0 { "64MiB" } else { "8MiB" };
        let out =
            everlog(&["doctor", &mount.point().display().to_string(), "--bytes", size, "--json"]);
        assert_eq!(out.status.code(), Some(0), "{}{}", text(&out.stdout), text(&out.stderr));
        let report: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        assert_eq!(report["wrong_bytes"], 0, "{report}");
        assert!(report["compared_bytes"].as_u64() > Some(1 << 20), "{report}");
        assert_eq!(common::files::names(mount.point()), Vec::<String>::new());
        mount.umount();
    }
}

#[test]
fn without_passthrough_it_holds_too() {
    let scratch = Scratch::new("selfcheck-plain");
    let mount = mount(&scratch, 0, &["--no-passthrough"]);
    std::fs::create_dir(mount.path("t-0")).unwrap();
    append_and_compare(&mount.path("t-0/00000000000000000000.log"), 24 << 20, 3);
}
