//! A broker that lost its recovery points reads its whole log again, cold segments included; with a version put back it does not. Versions
//! lie on local disk and in the store, and either can be put back.

mod common;

use std::path::Path;

use common::archive::settle;
use common::broker::{Broker, KAFKA};
use common::children::{everlog, text};
use common::{Ledger, Mount, MountCommand, Scratch, wait_until};

const MIB: u64 = 1 << 20;
const BUDGET: u64 = 4 * MIB;
const RECORDS: u64 = 24_000;
const RECOVERY_POINT: &str = "recovery-point-offset-checkpoint";

fn succeeds(args: &[&str]) -> String {
    let out = everlog(args);
    assert!(out.status.success(), "everlog {args:?}: {}", text(&out.stderr));
    text(&out.stdout)
}

fn fails(args: &[&str]) -> String {
    let out = everlog(args);
    assert_eq!(out.status.code(), Some(1), "everlog {args:?}: {}", text(&out.stdout));
    text(&out.stderr)
}

/// Bytes that came from the store for readers since the mount began.
fn fetched(mount: &Mount) -> u64 {
    mount.status()["reads"]["fetched_bytes"].as_u64().unwrap()
}

/// The broker dies, Everlog ends in order, the recovery points are gone.
fn lose_recovery_points(scratch: &Scratch, broker: &mut Broker, mount: Mount) {
    broker.kill9();
    mount.umount();
    std::fs::remove_file(scratch.hot().join(RECOVERY_POINT)).unwrap();
}

fn lines(path: &Path) -> usize {
    std::fs::read_to_string(path).unwrap().lines().count() - 2
}

#[test]
fn recovery_points_that_were_lost_are_put_back_from_local_disk_or_from_the_store() {
    let scratch = Scratch::new("checkpoints");
    let store = scratch.file_store("store");
    let command = MountCommand::broker(scratch.path(), &store).option("--hot-bytes", BUDGET);
    let mount = command.start();
    let settings = ["log.flush.offset.checkpoint.interval.ms=1000"];
    let mut broker = Broker::format(&scratch.dir("broker"), mount.point(), KAFKA, &settings);
    broker.start();
    let ledger = Ledger::new(scratch.path(), "orders", 2);
    ledger.create_topic(&broker, &["segment.bytes=1048576"]);
    ledger.produce(&broker, RECORDS);
    settle(&mount, &scratch.hot(), "orders", &scratch.bucket(), BUDGET + 2 * MIB);
    wait_until("a version in the store", 90, || {
        let kept = mount.status()["checkpoints"].clone();
        common::unless(kept["uploaded_ms"].is_u64(), || kept.to_string())
    });

    lose_recovery_points(&scratch, &mut broker, mount);
    let mount = command.start();
    assert!(
        mount.log().contains(&format!("{RECOVERY_POINT} is missing or empty")),
        "{}",
        mount.log()
    );
    let data = scratch.path().join("data").display().to_string();
    let point = mount.point().display().to_string();
    assert!(succeeds(&["checkpoints", "list", "--data", &data]).lines().count() >= 1);
    let said = succeeds(&["checkpoints", "put-back", "--data", &data, "--to", &point]);
    assert!(said.contains(RECOVERY_POINT), "{said}");
    assert!(lines(&mount.path(RECOVERY_POINT)) >= 2);
    broker.start();
    let read = fetched(&mount);
    assert!(read < 3 * MIB, "the recovery fetched {read} bytes, so it did not know where to begin");
    assert_eq!(ledger.prove(&broker)["records"], RECORDS);
    let beside = fails(&["checkpoints", "put-back", "--data", &data, "--to", &point]);
    assert!(beside.contains("in use by a broker"), "{beside}");

    // The same from the store, when the data directory has no versions.
    lose_recovery_points(&scratch, &mut broker, mount);
    std::fs::remove_dir_all(scratch.path().join("data/checkpoints")).unwrap();
    let hot = scratch.hot().display().to_string();
    let unmounted = fails(&["checkpoints", "put-back", "--store", &store, "--to", &hot]);
    assert!(unmounted.contains("mount it"), "{unmounted}");
    let mount = command.start();
    let listed = succeeds(&["checkpoints", "list", "--store", &store, "--json"]);
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let oldest = listed[0]["version"].to_string();
    assert_eq!(listed[0]["node"], 1, "{listed}");
    let args = ["--store", &store, "--version", &oldest, "--to", &point];
    succeeds(&[&["checkpoints", "put-back"][..], &args].concat());
    broker.start();
    let read = fetched(&mount);
    assert!(read < 3 * MIB, "the recovery fetched {read} bytes, so it did not know where to begin");
    assert_eq!(ledger.prove(&broker)["records"], RECORDS);
    let none =
        fails(&["checkpoints", "put-back", "--store", &store, "--version", "7", "--to", &point]);
    assert!(none.contains("there is no version 7"), "{none}");
    broker.stop();
    mount.umount();
}
