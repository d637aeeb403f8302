//! The main job against an S3 server, which goes away for a whole load, hangs, and comes back.
//!
//! The broker's writes must not notice; what was to be archived meanwhile is archived afterwards, also what retention discarded.

mod common;

use std::path::PathBuf;

use common::archive::{all_closed_archived, bases, compare_objects, log_objects, settle};
use common::broker::{Broker, KAFKA};
use common::{Ledger, Mount, MountCommand, S3, Scratch, Witness, unless, wait_until};

const MIB: u64 = 1 << 20;
const BUDGET: u64 = 6 * MIB;

struct Scenario {
    s3: S3,
    command: MountCommand,
    mount: Option<Mount>,
    broker: Broker,
    ledger: Ledger,
    /// Last: dropped, and so removed, after all that lives in it.
    scratch: Scratch,
}

impl Scenario {
    fn start(name: &str, more: &[(&str, &str)]) -> Self {
        let scratch = Scratch::new(name);
        let s3 = S3::start(scratch.path());
        let mut command = MountCommand::broker(scratch.path(), &s3.url("cluster"))
            .arg("--single-writer")
            .option("--hot-bytes", BUDGET)
            .envs(s3.env());
        for (option, value) in more {
            command = command.option(option, value);
        }
        let mount = command.start();
        let mut broker = Broker::format(&scratch.dir("broker"), mount.point(), KAFKA, &[]);
        broker.start();
        let ledger = Ledger::new(scratch.path(), "orders", 3);
        ledger.create_topic(&broker, &["segment.bytes=1048576"]);
        Self { scratch, s3, command, mount: Some(mount), broker, ledger }
    }

    fn mount(&self) -> &Mount {
        self.mount.as_ref().unwrap()
    }

    fn bucket(&self) -> PathBuf {
        self.s3.bucket().join("cluster")
    }

    fn settle(&self) {
        settle(self.mount(), &self.scratch.hot(), "orders", &self.bucket(), BUDGET);
    }
}

fn wait_for_reachable(mount: &Mount, wanted: bool) {
    wait_until("the status to tell whether the store is reachable", 60, || {
        let store = mount.status()["store"].clone();
        unless(store["reachable"] == wanted, || store.to_string())
    });
}

#[test]
fn the_store_may_be_down_for_a_whole_load_and_for_a_restart_of_everything() {
    let mut s = Scenario::start("s3-down", &[]);
    let witness = Witness::start(&s.scratch.hot());
    s.ledger.produce(&s.broker, 20_000);
    s.settle();

    s.s3.kill9();
    let objects_before = log_objects(&s.bucket()).len();
    let produced = s.ledger.produce(&s.broker, 30_000);
    eprintln!("with the store down: {produced}");
    wait_for_reachable(s.mount(), false);
    let lag = s.mount().status()["totals"].clone();
    assert!(lag["lag_segments"].as_u64() > Some(20), "{lag}");
    assert!(lag["lag_bytes"].as_u64() > Some(20 * MIB), "{lag}");
    assert_eq!(log_objects(&s.bucket()).len(), objects_before);

    // A data directory that was mounted before mounts again without its store.
    s.broker.stop();
    s.mount.take().unwrap().sigterm();
    s.mount = Some(s.command.start());
    s.broker.start();
    s.ledger.produce(&s.broker, 3_000);
    assert_eq!(s.broker.errors(), Vec::<String>::new());

    s.s3.resume();
    wait_for_reachable(s.mount(), true);
    s.settle();
    assert_eq!(s.ledger.prove(&s.broker)["records"], 53_000);
    let compared = compare_objects(s.mount().point(), &s.bucket(), &witness.finish());
    assert!(compared >= 48, "only {compared} objects");

    s.mount.take().unwrap().kill9();
    s.broker.kill9();
    s.mount = Some(s.command.start());
    s.broker.start();
    assert_eq!(s.ledger.prove(&s.broker)["records"], 53_000);
}

#[test]
fn a_store_that_hangs_fails_cold_reads_in_time_and_never_with_wrong_bytes() {
    let s = Scenario::start("s3-hangs", &[("--read-deadline", "3s"), ("--cache-bytes", "1MiB")]);
    s.ledger.produce(&s.broker, 20_000);
    s.settle();
    let cold = log_objects(&s.bucket())
        .into_iter()
        .find(|o| !s.scratch.hot().join(&o.partition).join(format!("{:020}.log", o.base)).exists())
        .expect("no segment is cold");
    let path = s.mount().path(&format!("{}/{:020}.log", cold.partition, cold.base));
    s.s3.freeze();
    let reader = {
        let path = path.clone();
        std::thread::spawn(move || std::fs::read(path))
    };
    // Who waits for what can be seen meanwhile.
    let waiting = || {
        let text = std::fs::read(s.mount().path(".everlog/inflight.json")).unwrap();
        let text: serde_json::Value = serde_json::from_slice(&text).unwrap();
        text["waiting"].as_array().unwrap().clone()
    };
    let name = format!("{:020}.log", cold.base);
    wait_until("the read to be shown as waiting", 60, || {
        let waiting = waiting();
        let shown = waiting
            .iter()
            .filter(|w| w["operation"] == "read" && w["what"].as_str().unwrap().contains(&name))
            .any(|w| w["object"].is_string() && w["fetch"]["waits_for"].is_string());
        unless(shown || reader.is_finished(), || format!("{waiting:?}"))
    });
    let error = reader.join().unwrap();
    let error = error.expect_err("a read of a cold segment succeeded with its store frozen");
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "{error}");
    wait_until("nobody to wait any more", 60, || {
        let waiting = waiting();
        unless(waiting.is_empty(), || format!("{waiting:?}"))
    });
    // The write path does not wait for the bucket, also beside consumers of what is cold.
    let mut replay = s.ledger.start_proving(&s.broker, s.scratch.path().join("replay.out"));
    wait_until("a thread of the broker to be let go", 120, || {
        assert!(replay.ended().is_none(), "read without the store: {}", replay.tail());
        let reads = s.mount().status()["reads"].clone();
        unless(reads["let_go"].as_u64() > Some(0), || reads.to_string())
    });
    let produced = s.ledger.produce(&s.broker, 6_000);
    assert!(produced["latency_max_ms"].as_f64() < Some(12_000.0), "{produced}");
    s.s3.thaw();
    assert!(replay.wait(200).success(), "{}", replay.tail());
    wait_until("the read to work again", 60, || {
        std::fs::read(&path).map(drop).map_err(|e| e.to_string())
    });
    assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(&cold.path).unwrap());
    s.settle();
    assert_eq!(s.ledger.prove(&s.broker)["records"], 26_000);
}

#[test]
fn what_retention_discards_while_the_store_is_down_is_archived_from_the_spool() {
    let mut s = Scenario::start("s3-spool", &[]);
    let witness = Witness::start(&s.scratch.hot());
    s.s3.kill9();
    s.ledger.produce(&s.broker, 20_000);
    let written: Vec<(String, i64)> = (0..3)
        .flat_map(|p| {
            let dir = format!("orders-{p}");
            let mut all = bases(&s.mount().path(&dir));
            all.pop();
            all.into_iter().map(move |b| (dir.clone(), b))
        })
        .collect();
    s.broker.topic("--alter", "orders", 3, &["retention.bytes=2097152"]);
    wait_until("retention", 60, || {
        let left = bases(&s.mount().path("orders-0"));
        unless(left.len() <= 4, || format!("{left:?}"))
    });
    wait_until("the spool to hold what was unlinked", 60, || {
        let spool = s.mount().status()["spool"].clone();
        unless(spool["segments"].as_u64() >= Some(9), || spool.to_string())
    });

    // The spool outlives a crash.
    s.broker.stop();
    s.mount.take().unwrap().kill9();
    s.s3.resume();
    s.mount = Some(s.command.start());
    s.broker.start();
    wait_until("everything that was ever written to be archived", 120, || {
        let there = log_objects(&s.bucket());
        let missing = written
            .iter()
            .find(|(dir, base)| !there.iter().any(|o| &o.partition == dir && o.base == *base));
        unless(missing.is_none(), || format!("{missing:?} of {} has no object", written.len()))?;
        let spool = s.mount().status()["spool"].clone();
        unless(spool["segments"] == 0, || spool.to_string())
    });
    all_closed_archived(s.mount().point(), "orders", &s.bucket()).unwrap();
    let witnessed = witness.finish();
    for object in log_objects(&s.bucket()) {
        let key = (object.partition.clone(), object.base);
        assert_eq!(common::sha256_file(&object.path), witnessed[&key], "{key:?}");
        let archived = s.mount().path(&format!(".everlog/archive/{}/{:020}.log", key.0, key.1));
        assert_eq!(common::sha256_file(&archived), witnessed[&key], "{}", archived.display());
    }
    // In the log dir they never come back.
    assert!(bases(&s.mount().path("orders-0"))[0] > 0);
    let proof = s.ledger.prove_with(&s.broker, &["--allow-trimmed"]);
    assert!(proof["records"].as_u64() < Some(20_000), "{proof}");
}
