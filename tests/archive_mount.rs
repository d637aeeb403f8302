//! The read-only mount of an archive, on a machine without a broker, filled from the side from a stock log dir.

mod common;

use std::path::Path;
use std::process::Command;

use common::archive::{bases, log_objects, partitions};
use common::broker::{Broker, CLUSTER_ID, KAFKA, dump_log_segments};
use common::children::{everlog, run, text};
use common::logdir::shut_down_cleanly;
use common::{Ledger, LogDir, MountCommand, Scratch, files, sha256_file, unless, wait_until};
use rustix::io::Errno;

const SMALL_FILES: [&str; 4] = ["index", "timeindex", "txnindex", "snapshot"];

fn archive_once(log_dir: &Path, store: &str) -> String {
    let out = everlog(&["archive", &log_dir.display().to_string(), "--store", store, "--once"]);
    assert!(out.status.success(), "everlog archive: {}{}", text(&out.stdout), text(&out.stderr));
    text(&out.stdout)
}

/// Every closed segment of the log dir is in the mount with the same bytes, size and time, its small files too.
fn compare_with_log_dir(mount: &Path, log_dir: &Path, topic: &str) -> usize {
    let mut compared = 0;
    for partition in partitions(log_dir, topic) {
        let ours = log_dir.join(&partition);
        let closed = bases(&ours);
        for base in &closed[..closed.len() - 1] {
            let name = format!("{base:020}.log");
            let (stock, shown) = (ours.join(&name), mount.join(&partition).join(&name));
            let (a, b) = (
                stock.metadata().unwrap(),
                shown.metadata().unwrap_or_else(|e| panic!("{}: {e}", shown.display())),
            );
            assert_eq!(
                (a.len(), a.modified().unwrap()),
                (b.len(), b.modified().unwrap()),
                "{}",
                shown.display()
            );
            assert_eq!(sha256_file(&stock), sha256_file(&shown), "{}", shown.display());
            for extension in SMALL_FILES {
                let name = format!("{base:020}.{extension}");
                let (stock, shown) = (
                    std::fs::read(ours.join(&name)).ok(),
                    std::fs::read(mount.join(&partition).join(&name)).ok(),
                );
                assert_eq!(stock, shown, "{partition}/{name}");
            }
            compared += 1;
        }
    }
    compared
}

#[test]
fn an_archive_filled_from_a_stock_log_dir_reads_like_it_and_grows_without_remounting() {
    let scratch = Scratch::new("archive-stock");
    let log_dir = scratch.dir("logs");
    let store = scratch.file_store("store");
    let mut broker = Broker::format(&scratch.dir("broker"), &log_dir, KAFKA, &[]);
    broker.start();
    let ledger = Ledger::new(scratch.path(), "orders", 2);
    ledger.create_topic(&broker, &["segment.bytes=1048576"]);
    ledger.produce(&broker, 10_000);
    // The broker writes its checkpoints every second.
    let closed = |n: usize| {
        wait_until("the archive", 60, || {
            archive_once(&log_dir, &store);
            let there = log_objects(&scratch.path().join("store")).len();
            unless(there >= n, || format!("{there} of {n} segments"))
        })
    };
    let count = |log_dir: &Path| -> usize {
        partitions(log_dir, "orders").iter().map(|p| bases(&log_dir.join(p)).len() - 1).sum()
    };
    closed(count(&log_dir));

    let mount = MountCommand::archive(scratch.path(), &store).start();
    assert_eq!(files::names(mount.point()), ["orders-0", "orders-1"]);
    let compared = compare_with_log_dir(mount.point(), &log_dir, "orders");
    assert!(compared >= 8, "{compared}");

    ledger.produce(&broker, 6_000);
    closed(count(&log_dir));
    wait_until("new segments to appear", 60, || {
        let shown: usize =
            ["orders-0", "orders-1"].iter().map(|p| bases(&mount.path(p)).len()).sum();
        unless(shown == count(&log_dir), || format!("{shown} of {}", count(&log_dir)))
    });
    assert!(compare_with_log_dir(mount.point(), &log_dir, "orders") > compared);

    // A new topic appears too.
    let other = Ledger::new(scratch.path(), "payments", 1);
    other.create_topic(&broker, &["segment.bytes=1048576"]);
    other.produce(&broker, 3_000);
    wait_until("the new topic to appear", 60, || {
        archive_once(&log_dir, &store);
        unless(mount.path("payments-0/00000000000000000000.log").exists(), || {
            format!("{:?}", files::names(mount.point()))
        })
    });

    // Kafka's own tool reads a segment in the mount, and an object copied out of the bucket.
    let object = log_objects(&scratch.path().join("store"))
        .into_iter()
        .find(|o| o.partition == "orders-1" && o.base > 0)
        .unwrap();
    let copy = scratch.path().join(files::name(&object.path));
    std::fs::copy(&object.path, &copy).unwrap();
    let body = |text: String| {
        text.lines().filter(|l| !l.starts_with("Dumping")).collect::<Vec<_>>().join("\n")
    };
    let expected =
        body(dump_log_segments(&log_dir.join(format!("orders-1/{:020}.log", object.base))));
    assert!(expected.contains("isvalid: true"), "{expected}");
    assert_eq!(
        body(dump_log_segments(&mount.path(&format!("orders-1/{:020}.log", object.base)))),
        expected
    );
    assert_eq!(body(dump_log_segments(&copy)), expected);
    broker.stop();
    mount.sigterm();
}

#[test]
fn archiving_once_more_archives_nothing_twice() {
    let scratch = Scratch::new("archive-twice");
    let log_dir = scratch.dir("logs");
    let store = scratch.file_store("store");
    simulated(&log_dir, 5);
    archive_once(&log_dir, &store);
    let first: Vec<_> =
        log_objects(&scratch.path().join("store")).into_iter().map(|o| o.path).collect();
    assert_eq!(first.len(), 5);
    archive_once(&log_dir, &store);
    let second: Vec<_> =
        log_objects(&scratch.path().join("store")).into_iter().map(|o| o.path).collect();
    assert_eq!(first, second);
}

fn simulated(log_dir: &Path, segments: usize) {
    let mut logs = LogDir::new(log_dir, CLUSTER_ID);
    let mut log = logs.create("made", 0);
    for _ in 0..segments {
        log.fill_segment(300_000);
    }
    log.append(4, 100);
    logs.commit(&log);
    logs.checkpoint();
    shut_down_cleanly(log_dir);
}

#[test]
fn what_is_not_known_to_be_committed_is_left_out_and_said() {
    let scratch = Scratch::new("archive-uncommitted");
    let log_dir = scratch.dir("logs");
    let store = scratch.file_store("store");
    simulated(&log_dir, 3);
    // A broker that was killed: what its old checkpoint says of this directory may be of another.
    std::fs::remove_file(log_dir.join(".kafka_cleanshutdown")).unwrap();
    let said = archive_once(&log_dir, &store);
    assert!(said.contains("3 not committed yet"), "{said}");
    assert_eq!(log_objects(&scratch.path().join("store")).len(), 0);
}

#[test]
fn the_usual_tools_work_on_it() {
    let scratch = Scratch::new("archive-tools");
    let log_dir = scratch.dir("logs");
    let store = scratch.file_store("store");
    simulated(&log_dir, 4);
    archive_once(&log_dir, &store);
    let mount = MountCommand::archive(scratch.path(), &store).start();
    let sh = |script: &str| {
        let mut command = Command::new("sh");
        command
            .arg("-ec")
            .arg(script)
            .env("M", mount.point())
            .env("L", &log_dir)
            .env("T", scratch.path());
        run(command, script)
    };
    assert_eq!(sh("find $M -type f -name '*.log' | wc -l").trim(), "4");
    assert_eq!(
        sh("ls $M/made-0 | head -3"),
        sh("ls $L/made-0 | grep -v -e checkpoint -e metadata | head -3")
    );
    sh("ls -laR $M >/dev/null");
    sh(
        "cat $M/made-0/*.log > $T/all && for f in $(cd $M/made-0 && ls *.log); do cat $L/made-0/$f; done | cmp - $T/all",
    );
    sh("cp -r --preserve=timestamps $M/made-0 $T/copied");
    sh("for f in $(cd $M/made-0 && ls *.log); do cmp $L/made-0/$f $T/copied/$f; done");
    sh(
        "tar -C $M -Scf $T/all.tar made-0 && mkdir $T/untarred && tar -C $T/untarred -xf $T/all.tar && diff -r $T/untarred/made-0 $M/made-0",
    );
    sh("tail -c 100 $M/made-0/00000000000000000000.log > $T/tail");
    sh("tail -c 100 $L/made-0/00000000000000000000.log | cmp - $T/tail");
    sh("du -s $M >/dev/null && stat -f $M >/dev/null");
}

#[test]
fn every_write_is_refused_as_on_a_read_only_filesystem() {
    let scratch = Scratch::new("archive-erofs");
    let log_dir = scratch.dir("logs");
    let store = scratch.file_store("store");
    simulated(&log_dir, 2);
    archive_once(&log_dir, &store);
    let mount = MountCommand::archive(scratch.path(), &store).start();
    let file = mount.path("made-0/00000000000000000000.log");
    let refused = |what: &str, outcome: std::io::Result<()>| {
        let error = outcome.expect_err(what);
        assert_eq!(error.raw_os_error(), Some(Errno::ROFS.raw_os_error()), "{what}: {error}");
    };
    refused("create", std::fs::write(mount.path("made-0/new"), "x"));
    refused("create in the root", std::fs::write(mount.path("new"), "x"));
    refused("open for writing", std::fs::File::options().write(true).open(&file).map(drop));
    refused("truncate", std::fs::File::options().write(true).truncate(true).open(&file).map(drop));
    refused("unlink", std::fs::remove_file(&file));
    refused("rename", std::fs::rename(&file, mount.path("made-0/other")));
    refused("mkdir", std::fs::create_dir(mount.path("dir")));
    refused("rmdir", std::fs::remove_dir_all(mount.path("made-0")));
    refused(
        "chmod",
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)),
    );
    refused("link", std::fs::hard_link(&file, mount.path("made-0/link")));
    refused("symlink", std::os::unix::fs::symlink("x", mount.path("made-0/symlink")));
    assert_eq!(sha256_file(&file), sha256_file(&log_dir.join("made-0/00000000000000000000.log")));
}

#[test]
fn two_archive_mounts_share_a_store_and_one_cache_directory_is_refused_to_the_second() {
    let scratch = Scratch::new("archive-two");
    let log_dir = scratch.dir("logs");
    let store = scratch.file_store("store");
    simulated(&log_dir, 2);
    archive_once(&log_dir, &store);
    let first = MountCommand::archive(scratch.path(), &store).start();
    let second = MountCommand::archive(&scratch.dir("other"), &store).start();
    let name = "made-0/00000000000000000000.log";
    assert_eq!(sha256_file(&first.path(name)), sha256_file(&second.path(name)));
    let point = scratch.dir("third");
    let cache = scratch.path().join("cache").display().to_string();
    let out = everlog(&[
        "mount",
        &point.display().to_string(),
        "--store",
        &store,
        "--cache",
        &cache,
        "--foreground",
    ]);
    assert_eq!(out.status.code(), Some(1), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains(&cache), "{}", text(&out.stderr));
    first.umount();
    second.umount();
}
