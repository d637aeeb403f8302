//! Suites that take minutes and Debian's packages, as `posix_suites` runs them: `fio` with verification and the filesystem stressors of
//! `stress-ng`. `scripts/test --suites` runs it, and needs `scripts/setup stress`.

mod common;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use common::Scratch;
use common::children::{bound_command, installed};
use common::suites::{Churn, evicted, run, small_mount, times};

fn tool(name: &str) -> PathBuf {
    installed(&format!("suites/debian/usr/bin/{name}"))
}

/// With the libraries that were unpacked beside it.
fn debian_command(name: &str) -> Command {
    let mut command = bound_command(tool(name));
    let root = installed("suites/debian");
    let machine = format!("{}-linux-gnu", std::env::consts::ARCH);
    let libs = ["usr/lib/M", "usr/lib/M/ceph", "lib/M"].map(|l| l.replace('M', &machine));
    let libs: Vec<_> = libs.iter().map(|l| root.join(l).display().to_string()).collect();
    command.env("LD_LIBRARY_PATH", libs.join(":"));
    command
}

#[test]
fn fio_verifies_every_block_that_it_wrote_through_every_interface() {
    let scratch = Scratch::new("suites-fio");
    let mount = small_mount(&scratch);
    let dir = mount.path("suite-0");
    fs::create_dir(&dir).unwrap();
    let churn = Churn::start(mount.point().to_owned(), Vec::new());
    for engine in ["psync", "mmap", "pvsync2", "libaio"] {
        for name in ["00000000000000000000.log", "note"] {
            let mut fio = debian_command("fio");
            let seconds = 5 * times();
            // Its mappings take whole pages only.
            let blocks = if engine == "mmap" { "--bsrange=4k-128k" } else { "--bsrange=512-128k" };
            fio.args(["--name=verify", "--size=64m", blocks]);
            fio.args([
                "--rw=randrw",
                "--verify=crc32c",
                "--verify_fatal=1",
                "--verify_backlog=512",
            ]);
            fio.args(["--fallocate=none", "--fsync=200", "--end_fsync=1", "--time_based=0"]);
            fio.arg(format!("--ioengine={engine}")).arg(format!("--runtime={seconds}"));
            fio.arg(format!("--filename={}", dir.join(name).display()));
            let (well, said) = run(fio, "fio");
            assert!(well, "fio with {engine} on {name}:\n{said}");
        }
    }
    assert!(evicted(&mount) > 5, "{}", mount.status());
    churn.end();
}

#[test]
fn the_filesystem_stressors_of_stress_ng_find_nothing() {
    let scratch = Scratch::new("suites-stress");
    let mount = small_mount(&scratch);
    let dir = mount.path("suite-0");
    fs::create_dir(&dir).unwrap();
    let churn = Churn::start(mount.point().to_owned(), Vec::new());
    let stressors = include_str!("posix_suites/stressors.txt");
    for name in stressors.lines().filter(|l| !l.starts_with('#') && !l.is_empty()) {
        let mut stress = debian_command("stress-ng");
        let seconds = 4 * times();
        stress.arg(format!("--{name}")).args(["2", "--verify", "--metrics-brief"]);
        stress.arg("--temp-path").arg(&dir).arg("--timeout").arg(format!("{seconds}s"));
        let (well, said) = run(stress, "stress-ng");
        assert!(well, "stress-ng --{name}:\n{said}");
    }
    assert!(evicted(&mount) > 5, "{}", mount.status());
    churn.end();
}
