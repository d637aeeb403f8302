//! Suites that others wrote for filesystems, run on a broker mount while segments beside them are archived, evicted, read back and
//! discarded: `fsx` (random operations on one file, every byte compared) and `pjdfstest` (what POSIX says of names, modes and errnos).
//! Those that take minutes stand in `posix_long_suites`.

mod common;

use std::fs;

use common::Scratch;
use common::children::{bound_command, installed};
use common::suites::{Churn, evicted, run, small_mount, times};

#[test]
fn fsx_finds_no_wrong_byte_in_files_of_any_name_while_segments_come_and_go() {
    let fsx = installed("suites/bin/fsx");
    let scratch = Scratch::new("suites-fsx");
    let mount = small_mount(&scratch);
    let dir = mount.path("suite-0");
    fs::create_dir(&dir).unwrap();
    // Closed and committed, so the tiering looks at it again and again, and never may take it.
    fs::write(dir.join("00000000000000099999.log"), "").unwrap();
    let churn = Churn::start(mount.point().to_owned(), vec![("suite".to_owned(), 99_999)]);
    let config = scratch.path().join("fsx.toml");
    fs::write(&config, include_str!("posix_suites/fsx.toml")).unwrap();
    let names = ["suite-0/00000000000000000000.log", "suite-0/00000000000000000000.index", "note"];
    let runs: Vec<_> = names
        .into_iter()
        .zip(1u64..)
        .map(|(name, seed)| {
            let mut command = bound_command(&fsx);
            let ops = (6000 * times()).to_string();
            command.args(["-S", &seed.to_string(), "-N", &ops, "-f"]).arg(&config);
            command.arg("-P").arg(scratch.path()).arg(mount.path(name));
            std::thread::spawn(move || (name, run(command, "fsx")))
        })
        .collect();
    for run in runs {
        let (name, (well, said)) = run.join().unwrap();
        let tail: Vec<&str> = said.lines().rev().take(30).collect();
        assert!(well, "fsx on {name}, last words first:\n{}", tail.join("\n"));
    }
    let gone = evicted(&mount);
    let (made, compared) = churn.end();
    assert!(gone > 5, "{gone} evictions, {made} segments, {compared} compared");
}

#[test]
fn pjdfstest_finds_what_posix_says_of_names_modes_and_errnos() {
    let tool = installed("suites/bin/pjdfstest");
    let scratch = Scratch::new("suites-pjd");
    let mount = small_mount(&scratch);
    for parent in scratch.path().ancestors().take(3) {
        let mode = std::os::unix::fs::MetadataExt::mode(&parent.metadata().unwrap());
        let wider = std::os::unix::fs::PermissionsExt::from_mode(mode | 0o055);
        fs::set_permissions(parent, wider).unwrap();
    }
    let churn = Churn::start(mount.point().to_owned(), Vec::new());
    let config = scratch.path().join("pjdfstest.toml");
    fs::write(&config, include_str!("posix_suites/pjdfstest.toml")).unwrap();
    fs::create_dir(mount.path("suite")).unwrap();
    // By a short path: the address of a socket has 108 bytes, and the suite binds some.
    let short = tempfile::Builder::new().prefix("everlog-pjdfstest-").tempdir_in("/tmp").unwrap();
    let wider = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(short.path(), wider).unwrap();
    let work = short.path().join("s");
    std::os::unix::fs::symlink(mount.path("suite"), &work).unwrap();
    let mut command = bound_command(&tool);
    command.arg("-c").arg(&config).arg("-p").arg(&work).args(["-s", "/dev/shm"]);
    let (well, said) = run(command, "pjdfstest");
    fs::write(scratch.path().join("pjdfstest.out"), &said).unwrap();
    let gone = evicted(&mount);
    let (made, compared) = churn.end();
    assert!(gone > 5, "{gone} evictions, {made} segments, {compared} compared");

    // What is expected to fail stands in the configuration, with the reason; that it passes is a failure, too.
    assert!(well, "{said}");
    let passed = said.lines().filter(|l| l.trim_end().ends_with(" ok")).count();
    assert!(passed > 200, "only {passed} passed:\n{said}");
}
