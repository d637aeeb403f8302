//! Bad input: an exit code, one line that names the thing and the remedy, nothing changed, nothing left mounted.

mod common;

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Output};

use common::broker::CLUSTER_ID;
use common::children::{everlog, text};
use common::mount::is_mounted;
use common::{LogDir, MountCommand, S3, Scratch, files};

/// A command line and what must come of it.
struct Case {
    scratch: Scratch,
    point: PathBuf,
    store: String,
    data: PathBuf,
    env: Vec<(String, String)>,
    more: Vec<String>,
}

impl Case {
    fn new(name: &str) -> Self {
        let scratch = Scratch::new(name);
        let (point, store, data) =
            (scratch.dir("mount"), scratch.file_store("store"), scratch.path().join("data"));
        Self { scratch, point, store, data, env: Vec::new(), more: Vec::new() }
    }

    fn run(&self, last: &[&str]) -> Output {
        let mut command = common::children::bound_command("timeout");
        command.args(["60", env!("CARGO_BIN_EXE_everlog"), "mount"]).arg(&self.point);
        command
            .args(["--store", &self.store, "--data"])
            .arg(&self.data)
            .args(&self.more)
            .args(last);
        command.envs(self.env.iter().map(|(k, v)| (k, v)));
        command.output().unwrap()
    }

    /// Fails with `code` and one line that contains all of `words`; in the foreground and in the background.
    fn fails(&self, code: i32, words: &[&str]) {
        for last in [&["--foreground"][..], &[]] {
            let before = files::files_under(self.scratch.path());
            let out = self.run(last);
            let said = text(&out.stderr);
            if is_mounted(&self.point) {
                common::mount::detach(&self.point);
                panic!("something is mounted after: {said}");
            }
            assert_eq!(out.status.code(), Some(code), "{said}");
            if code == 1 {
                let lines: Vec<&str> = said
                    .lines()
                    .filter(|l| !l.contains(" INFO ") && !l.contains(" WARN "))
                    .collect();
                assert_eq!(lines.len(), 1, "more than one line:\n{said}");
            }
            for word in words {
                assert!(said.contains(word), "it does not say {word:?}: {said}");
            }
            let after = files::files_under(self.scratch.path());
            let foreign: Vec<_> = after
                .iter()
                .filter(|p| !before.contains(p) && !p.starts_with(&self.data))
                .collect();
            assert!(foreign.is_empty(), "it left {foreign:?}");
        }
    }
}

#[test]
fn an_unknown_option_or_a_missing_one_is_a_usage_error() {
    let mut case = Case::new("cli-usage");
    case.more = vec!["--no-such-option".to_owned()];
    case.fails(2, &["--no-such-option"]);
    case.more = vec!["--hot-bytes".to_owned(), "lots".to_owned()];
    case.fails(2, &["lots", "--hot-bytes"]);
    assert!(!case.data.exists(), "a usage error made a data directory");
    for args in [
        &["mount"][..],
        &["mount", "/tmp/x"],
        &["no-such-command"],
        &[],
        &["archive", "/tmp", "--store", "memory://x"],
    ] {
        assert_eq!(everlog(args).status.code(), Some(2), "{args:?}");
    }
    assert!(everlog(&["--help"]).status.success());
    assert!(everlog(&["--version"]).status.success());
}

#[test]
fn a_wrong_store_url_says_what_a_right_one_looks_like() {
    let mut case = Case::new("cli-url");
    for (url, word) in [
        ("nonsense", "nonsense"),
        ("ftp://host/x", "ftp"),
        ("file://relative/dir", "file:///"),
        ("s3://", "bucket"),
    ] {
        case.store = url.to_owned();
        case.fails(1, &[word]);
        assert!(!case.data.join("everlog.json").exists(), "{url} made a data directory");
    }
    case.store = "file:///no/such/directory/anywhere".to_owned();
    case.fails(1, &["/no/such/directory/anywhere", "mkdir"]);
}

#[test]
fn a_missing_bucket_a_wrong_key_and_a_dead_endpoint_are_told_apart() {
    let mut case = Case::new("cli-s3");
    let mut s3 = S3::start(case.scratch.path());
    case.env = s3.env();
    case.store = "s3://nobucket/x".to_owned();
    case.fails(1, &["nobucket", "bucket"]);
    case.store = s3.url("x");
    case.env.push(("AWS_SECRET_ACCESS_KEY".to_owned(), "wrong".to_owned()));
    case.fails(1, &["AWS_"]);
    case.env = s3.env();
    s3.stop();
    case.fails(1, &[&s3.endpoint().replace("http://", "")]);
}

#[test]
fn a_store_without_atomic_put_if_absent_is_refused_unless_told_that_nobody_else_writes() {
    let mut case = Case::new("cli-conditional");
    let s3 = S3::start(case.scratch.path());
    case.env = s3.env();
    case.store = s3.url("x");
    // versitygw lets two concurrent conditional puts win; it may by luck pass the probe, then it is mounted and there is nothing to see.
    let mut child = common::children::bound_command("timeout");
    child.args(["20", env!("CARGO_BIN_EXE_everlog"), "mount"]).arg(&case.point);
    child
        .args(["--store", &case.store, "--foreground", "--data"])
        .arg(&case.data)
        .envs(case.env.clone());
    let out = child.output().unwrap();
    common::mount::detach(&case.point);
    if out.status.code() == Some(1) {
        assert!(text(&out.stderr).contains("--single-writer"), "{}", text(&out.stderr));
    }
    let command = MountCommand::broker(&case.scratch.dir("second"), &case.store)
        .arg("--single-writer")
        .envs(s3.env());
    command.start().umount();
}

#[test]
fn a_mount_point_that_is_missing_a_file_not_empty_or_busy_is_refused() {
    let mut case = Case::new("cli-point");
    let good = case.point.clone();
    case.point = case.scratch.path().join("nowhere");
    case.fails(1, &["nowhere", "mkdir"]);
    case.point = case.scratch.path().join("file");
    std::fs::write(&case.point, "x").unwrap();
    case.fails(1, &["file", "not a directory"]);
    case.point = case.scratch.dir("full");
    std::fs::write(case.point.join("x"), "x").unwrap();
    case.fails(1, &["full", "not empty"]);
    case.point = good;
    let first = MountCommand::broker(case.scratch.path(), &case.store).start();
    let mut second = Case::new("cli-busy");
    second.point = case.point.clone();
    let out = second.run(&[]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("busy"), "{}", text(&out.stderr));
    assert!(is_mounted(&case.point), "the first mount is gone");
    first.umount();
}

#[test]
fn a_data_directory_in_use_unreadable_or_a_file_is_refused() {
    let mut case = Case::new("cli-data");
    let first = MountCommand::broker(case.scratch.path(), &case.store).start();
    case.point = case.scratch.dir("second");
    case.fails(1, &["data", "in use"]);
    assert!(first.path(".everlog/status.json").exists());
    first.umount();
    case.data = case.scratch.path().join("a-file");
    std::fs::write(&case.data, "x").unwrap();
    case.fails(1, &["a-file"]);
    // The mount of a directory is refused to itself.
    case.data = case.point.clone();
    case.fails(1, &["mount point"]);
}

#[test]
fn a_full_data_directory_is_named() {
    let mut case = Case::new("cli-full");
    let small = case.scratch.dir("small");
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"])
        .arg(&small)
        .status()
        .unwrap();
    assert!(mounted.success(), "this test needs root to mount a small tmpfs");
    std::fs::write(small.join("filler"), vec![1; 60 << 10]).unwrap();
    let _ = std::fs::write(small.join("filler2"), vec![1; 8 << 10]);
    case.data = small.join("data");
    let out = case.run(&["--foreground"]);
    let said = text(&out.stderr);
    let left = is_mounted(&case.point);
    common::mount::detach(&case.point);
    common::mount::detach(&small);
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(said.contains("small/data") && !left, "{said}");
}

#[test]
fn the_store_of_another_cluster_is_refused_and_not_touched() {
    let mut case = Case::new("cli-cluster");
    let command = MountCommand::broker(case.scratch.path(), &case.store);
    let mount = command.start();
    let mut logs = LogDir::new(mount.point(), CLUSTER_ID);
    let mut log = logs.create("made", 0);
    log.fill_segment(100_000);
    logs.commit(&log);
    (0..3).for_each(|_| logs.checkpoint());
    drop(log);
    let store = case.scratch.path().join("store");
    common::wait_until("the store to be used", 30, || {
        let used = !common::archive::log_objects(&store).is_empty();
        common::unless(used, || "no object".to_owned())
    });
    mount.umount();
    let before = files::files_under(&store);

    // A log dir that is not formatted yet may become anybody's; once it is somebody else's it is refused.
    let other = case.scratch.dir("other");
    let mount = MountCommand::broker(&other, &case.store).start();
    let mut logs = LogDir::new(mount.point(), "SomebodyElsesCluster00");
    let mut log = logs.create("theirs", 0);
    log.fill_segment(100_000);
    logs.commit(&log);
    (0..4).for_each(|_| logs.checkpoint());
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(files::files_under(&store), before, "another cluster's segment was archived");
    drop(log);
    mount.umount();
    case.data = other.join("data");
    case.fails(1, &[CLUSTER_ID, "SomebodyElsesCluster00"]);
    assert_eq!(files::files_under(&store), before);

    let log_dir = case.scratch.dir("stock");
    LogDir::new(&log_dir, "SomebodyElsesCluster00");
    let out =
        everlog(&["archive", &log_dir.display().to_string(), "--store", &case.store, "--once"]);
    assert_eq!(out.status.code(), Some(1), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains(CLUSTER_ID), "{}", text(&out.stderr));
    assert_eq!(files::files_under(&store), before);
}

#[test]
fn a_log_dir_to_archive_must_exist_and_be_one() {
    let scratch = Scratch::new("cli-archive");
    let store = scratch.file_store("store");
    let missing = scratch.path().join("nowhere").display().to_string();
    let out = everlog(&["archive", &missing, "--store", &store, "--once"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("nowhere"), "{}", text(&out.stderr));
    let empty = scratch.dir("empty").display().to_string();
    let out = everlog(&["archive", &empty, "--store", &store, "--once"]);
    assert_eq!(out.status.code(), Some(1), "{}", text(&out.stdout));
    assert!(text(&out.stderr).contains("meta.properties"), "{}", text(&out.stderr));
}

#[test]
fn status_of_something_that_is_not_mounted_fails_and_of_a_mount_succeeds() {
    let scratch = Scratch::new("cli-status");
    let out = everlog(&["status", &scratch.path().display().to_string()]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("no Everlog mount"), "{}", text(&out.stderr));
    let mount = MountCommand::broker(scratch.path(), &scratch.file_store("store")).start();
    let shown = everlog(&["status", &mount.point().display().to_string()]);
    assert!(shown.status.success(), "{}", text(&shown.stderr));
    for args in [
        ["--data", &scratch.path().join("data").display().to_string()].as_slice(),
        &[&mount.point().display().to_string()],
    ] {
        let mut all = vec!["status", "--json"];
        all.extend(args);
        let out = everlog(&all);
        let value: serde_json::Value = serde_json::from_slice(&out.stdout)
            .unwrap_or_else(|e| panic!("{e}: {}{}", text(&out.stdout), text(&out.stderr)));
        assert_eq!(value["mode"], "broker");
    }
}

#[test]
fn a_mount_in_the_background_returns_when_it_serves_and_ends_on_sigterm() {
    let case = Case::new("cli-background");
    let out = case.run(&[]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert!(is_mounted(&case.point));
    let status: serde_json::Value =
        serde_json::from_slice(&std::fs::read(case.point.join(".everlog/status.json")).unwrap())
            .unwrap();
    assert!(case.data.join("everlog.log").exists());
    let pid = rustix::process::Pid::from_raw(status["pid"].as_i64().unwrap() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    common::wait_until("the mount to end", 30, || {
        common::unless(!is_mounted(&case.point), || "still mounted".to_owned())
    });
    common::wait_until("the process to end", 30, || {
        common::unless(rustix::process::test_kill_process(pid).is_err(), || {
            "still running".to_owned()
        })
    });
    let _ = std::fs::set_permissions(case.scratch.path(), std::fs::Permissions::from_mode(0o755));
}
