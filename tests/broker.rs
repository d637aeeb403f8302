//! The main job: an unmodified broker lives on the mount while its closed segments move to the store, and nobody can tell.
//!
//! An independent ledger holds what the broker acknowledged, an independent witness the bytes that it wrote. Both are asked again after every
//! kind of stop and crash.

mod common;

use std::os::unix::fs::MetadataExt as _;

use common::archive::{self, bases, compare_objects, log_objects, partitions, settle};
use common::broker::{Broker, KAFKA, KAFKA_OLD, dump_log_segments};
use common::{Ledger, Mount, MountCommand, Scratch, Witness, files, wait_until};

const MIB: u64 = 1 << 20;

/// A broker on a broker mount over a directory store, and one topic.
struct Scenario {
    command: MountCommand,
    mount: Option<Mount>,
    broker: Broker,
    ledger: Ledger,
    hot_budget_bytes: u64,
    crashes: u32,
    /// Last: dropped, and so removed, after all that lives in it.
    scratch: Scratch,
}

impl Scenario {
    fn start(name: &str, kafka: &str, partitions: u32, hot_budget_bytes: u64) -> Self {
        let scratch = Scratch::new(name);
        let store = scratch.file_store("store");
        let command = MountCommand::broker(scratch.path(), &store)
            .option("--hot-bytes", hot_budget_bytes)
            .option("--cache-bytes", 64 * MIB);
        let mount = command.start();
        let mut broker = Broker::format(&scratch.dir("broker"), mount.point(), kafka, &[]);
        broker.start();
        let ledger = Ledger::new(scratch.path(), "orders", partitions);
        ledger.create_topic(&broker, &["segment.bytes=1048576"]);
        Self { scratch, command, mount: Some(mount), broker, ledger, hot_budget_bytes, crashes: 0 }
    }

    fn mount(&self) -> &Mount {
        self.mount.as_ref().unwrap()
    }

    fn remount(&mut self) {
        self.mount = Some(self.command.start());
    }

    /// Waits for archive and eviction, then everything acknowledged must be there, once, in order, equal.
    fn prove(&self, after: &str) {
        eprintln!("proving after {after}");
        settle(
            self.mount(),
            &self.scratch.hot(),
            "orders",
            &self.scratch.bucket(),
            self.hot_budget_bytes,
        );
        let proof = self.ledger.prove(&self.broker);
        eprintln!("after {after}: {proof}");
        assert!(proof["records"].as_u64() >= Some(self.ledger.acknowledged()));
    }

    /// Lets `crash` happen while records stream in.
    fn crash_under_load(&mut self, crash: impl FnOnce(&mut Self)) {
        self.crashes += 1;
        let log = self.scratch.path().join(format!("producer-{}.out", self.crashes));
        let before = self.ledger.acknowledged();
        let mut producer = self.ledger.produce_into_a_crash(&self.broker, log);
        let offsets_before = self.ledger.offsets(&self.broker);
        wait_until("records to stream in", 30, || {
            let now = self.ledger.offsets(&self.broker);
            common::unless(now[0].1 > offsets_before[0].1 + 500, || format!("{now:?}"))
        });
        crash(self);
        producer.wait(60);
        assert!(
            self.ledger.acknowledged() > before,
            "the crash came before the first record:\n{}",
            producer.tail()
        );
    }
}

fn check_the_surface(s: &Scenario) {
    let root = s.mount().point();
    let shown = files::names(root);
    let kafkas = |n: &String| {
        n.starts_with("orders-")
            || n.ends_with("-checkpoint")
            || ["meta.properties", ".lock", ".kafka_cleanshutdown", "bootstrap.checkpoint"]
                .contains(&n.as_str())
    };
    let foreign: Vec<_> = shown.iter().filter(|n| !kafkas(n)).collect();
    assert!(foreign.is_empty(), "the root shows {foreign:?}");
    assert!(root.join(".everlog/status.json").is_file(), ".everlog is not reachable by name");
    let mut cold = 0;
    for partition in partitions(root, "orders") {
        for base in bases(&root.join(&partition)) {
            let name = format!("{partition}/{base:020}.log");
            let meta = root.join(&name).metadata().unwrap();
            assert!(
                meta.len() == 0 || meta.blocks() > 0,
                "{name} shows {} bytes and no block",
                meta.len()
            );
            if !s.scratch.hot().join(&name).exists() {
                cold += 1;
                let object = log_objects(&s.scratch.bucket())
                    .into_iter()
                    .find(|o| o.partition == partition && o.base == base)
                    .unwrap();
                assert_eq!(meta.len(), object.path.metadata().unwrap().len(), "{name}");
            }
        }
    }
    assert!(cold > 50, "only {cold} segments are cold");
}

fn kafkas_own_tool_reads_cold_segments(s: &Scenario) {
    let cold = log_objects(&s.scratch.bucket())
        .into_iter()
        .find(|o| !s.scratch.hot().join(&o.partition).join(format!("{:020}.log", o.base)).exists())
        .expect("no segment is cold");
    let copy = s.scratch.path().join(files::name(&cold.path));
    std::fs::copy(&cold.path, &copy).unwrap();
    let body = |text: String| {
        text.lines().filter(|l| !l.starts_with("Dumping")).collect::<Vec<_>>().join("\n")
    };
    let by_hand = body(dump_log_segments(&copy));
    let in_mount = s.mount().path(&format!("{}/{:020}.log", cold.partition, cold.base));
    assert_eq!(body(dump_log_segments(&in_mount)), by_hand);
    assert!(
        by_hand.contains(&format!("baseOffset: {} ", cold.base))
            && !by_hand.contains("isvalid: false"),
        "{by_hand}"
    );
}

#[test]
fn a_broker_with_a_tenth_of_its_data_local_loses_nothing_through_any_stop_or_crash() {
    let mut s = Scenario::start("broker-main", KAFKA, 6, 12 * MIB);
    let witness = Witness::start(&s.scratch.hot());
    let produced = s.ledger.produce(&s.broker, 120_000);
    eprintln!("produced {produced}");
    s.prove("the load");
    check_the_surface(&s);
    kafkas_own_tool_reads_cold_segments(&s);
    assert_eq!(s.broker.errors(), Vec::<String>::new());

    s.broker.stop();
    s.broker.start();
    s.prove("a clean restart of the broker");

    s.crash_under_load(|s| s.broker.kill9());
    s.broker.start();
    s.prove("kill -9 of the broker");

    s.broker.stop();
    s.mount.take().unwrap().umount();
    s.remount();
    s.broker.start();
    s.prove("unmount and remount");

    s.crash_under_load(|s| s.mount.take().unwrap().kill9());
    s.broker.kill9();
    s.remount();
    s.broker.start();
    s.prove("kill -9 of Everlog");

    s.crash_under_load(|s| {
        s.broker.kill9_at_once();
        s.mount().kill9_at_once();
        s.broker.kill9();
        s.mount.take().unwrap().kill9();
    });
    s.remount();
    s.broker.start();
    s.prove("kill -9 of both at once");

    let compared = compare_objects(s.mount().point(), &s.scratch.bucket(), &witness.finish());
    eprintln!("{compared} objects equal the files that the broker wrote");
    assert!(compared > 110, "only {compared} objects");
    s.broker.stop();
    s.mount.take().unwrap().sigterm();
}

#[test]
fn a_broker_that_held_its_descriptors_does_not_notice_the_eviction() {
    let s = Scenario::start("broker-held", KAFKA, 2, 4 * MIB);
    s.ledger.produce(&s.broker, 30_000);
    settle(s.mount(), &s.scratch.hot(), "orders", &s.scratch.bucket(), s.hot_budget_bytes);
    // Opened by the broker when they were hot, read by it through the same descriptors now.
    for _ in 0..2 {
        assert_eq!(s.ledger.prove(&s.broker)["records"], 30_000);
    }
    let held = std::fs::read_dir(format!("/proc/{}/fd", s.broker.pid())).unwrap();
    let logs = held
        .flatten()
        .filter_map(|e| e.path().read_link().ok())
        .filter(|t| files::name(t).ends_with(".log"))
        .count();
    assert!(logs >= 25, "the broker holds only {logs} logs open, so this proves nothing");
    assert_eq!(s.broker.errors(), Vec::<String>::new());
}

#[test]
fn an_older_broker_works_as_well() {
    let mut s = Scenario::start("broker-391", KAFKA_OLD, 3, 3 * MIB + MIB);
    s.ledger.produce(&s.broker, 30_000);
    s.prove("the load");
    s.broker.stop();
    s.mount.take().unwrap().sigterm();
    s.remount();
    s.broker.start();
    s.prove("a restart of both");
}

#[test]
fn segments_that_exist_when_a_mount_starts_are_archived_and_evicted_too() {
    let scratch = Scratch::new("broker-backfill");
    let hot = scratch.path().join("data/hot");
    let log_dir = scratch.dir("mount");
    // The broker has lived on plain disk so far: the same paths, without a mount.
    let mut broker = Broker::format(&scratch.dir("broker"), &log_dir, KAFKA, &[]);
    broker.start();
    let ledger = Ledger::new(scratch.path(), "orders", 2);
    ledger.create_topic(&broker, &["segment.bytes=1048576"]);
    ledger.produce(&broker, 20_000);
    broker.stop();
    std::fs::rename(&log_dir, scratch.path().join("aside")).unwrap();

    // Everlog makes its data directory; the log dir becomes its hot part.
    let store = scratch.file_store("store");
    let command = MountCommand::broker(scratch.path(), &store).option("--hot-bytes", 4 * MIB);
    command.start().umount();
    std::fs::remove_dir(&hot).unwrap();
    std::fs::rename(scratch.path().join("aside"), &hot).unwrap();
    let mount = command.start();
    broker.start();
    settle(&mount, &hot, "orders", &scratch.path().join("store"), 4 * MIB);
    assert_eq!(ledger.prove(&broker)["records"], 20_000);
    assert!(archive::hot_log_bytes(&hot) > 0);
}
