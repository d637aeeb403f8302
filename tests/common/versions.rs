//! What a broker of any version has to live through on a mount: rolls, eviction, every kind of stop, and a recovery that reads the whole
//! cold log.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use super::archive::{bases, compare_objects, partitions, settle};
use super::{Broker, Ledger, Mount, MountCommand, Scratch, Witness, unless, wait_until};

const MIB: u64 = 1 << 20;
const PARTITIONS: u32 = 3;
const HOT_BYTES: u64 = 4 * MIB;
/// The same in whole blocks on disk, some of each file's last not used.
const HOT_ALLOCATED_BYTES: u64 = HOT_BYTES + MIB / 8;
/// Less than the cold bytes, so that a recovery cannot live on the cache.
const CACHE_BYTES: u64 = 8 * MIB;
const TOPIC: &str = "orders";

struct Life {
    broker: Broker,
    mount: Option<Mount>,
    ledger: Ledger,
    command: MountCommand,
    /// Last: removed after all that lives in it.
    scratch: Scratch,
}

impl Life {
    fn begin(kafka: &str) -> Self {
        let scratch = Scratch::new(&format!("kafka-{kafka}"));
        let store = scratch.file_store("store");
        let command = MountCommand::broker(scratch.path(), &store)
            .option("--hot-bytes", HOT_BYTES)
            .option("--cache-bytes", CACHE_BYTES);
        let mount = command.start();
        let mut broker = Broker::format(&scratch.dir("broker"), mount.point(), kafka, &[]);
        broker.start();
        let ledger = Ledger::new(scratch.path(), TOPIC, PARTITIONS);
        ledger.create_topic(&broker, &["segment.bytes=1048576"]);
        Self { broker, mount: Some(mount), ledger, command, scratch }
    }

    fn mount(&self) -> &Mount {
        self.mount.as_ref().unwrap()
    }

    /// Everything closed is archived and the rest of the budget's bytes gone; then all that was acknowledged must be there.
    fn prove(&self, after: &str) {
        settle(
            self.mount(),
            &self.scratch.hot(),
            TOPIC,
            &self.scratch.bucket(),
            HOT_ALLOCATED_BYTES,
        );
        assert_eq!(self.mount().status()["quarantine"], 0, "after {after}");
        let proof = self.ledger.prove(&self.broker);
        eprintln!("after {after}: {proof}");
        assert!(proof["records"].as_u64() >= Some(self.ledger.acknowledged()), "after {after}");
    }

    /// After an unclean start Kafka leaves its recovery point where it was until a segment is rolled, and nothing above it is evicted.
    fn roll_again(&self) {
        self.ledger.produce(&self.broker, 6000);
    }

    /// Sizes of the closed segments that the log dir shows.
    fn closed(&self) -> BTreeMap<(String, i64), u64> {
        closed_sizes(self.mount().point(), TOPIC)
    }

    fn kill9_under_load(&mut self) {
        let log = self.scratch.path().join("producer.out");
        let before = (self.ledger.acknowledged(), self.ledger.offsets(&self.broker)[0].1);
        let mut producer = self.ledger.produce_into_a_crash(&self.broker, log);
        wait_until("records to stream in", 60, || {
            let end = self.ledger.offsets(&self.broker)[0].1;
            unless(end > before.1 + 500, || format!("offset {end} after {}", before.1))
        });
        self.broker.kill9();
        producer.wait(60);
        assert!(
            self.ledger.acknowledged() > before.0,
            "nothing acknowledged:\n{}",
            producer.tail()
        );
    }

    /// The broker has lost its recovery points: it reads every segment again, most of them cold, and makes every index anew.
    fn recover_everything(&mut self) {
        self.broker.kill9();
        let lost = self.mount().path("recovery-point-offset-checkpoint");
        std::fs::remove_file(&lost).unwrap();
        let (before, fetched) = (self.closed(), self.fetched_bytes());
        let cold = cold_segments(self.mount().point(), &self.scratch.hot(), TOPIC);
        assert!(cold >= 15, "only {cold} of {} segments are cold", before.len());
        forget_pages(self.mount().point(), TOPIC);
        self.broker.start();
        let read = self.fetched_bytes() - fetched;
        assert!(read > 8 * MIB, "the recovery has read only {read} bytes of cold segments");
        let after = self.closed();
        let changed: Vec<_> =
            before.iter().filter(|(k, size)| after.get(k) != Some(size)).collect();
        assert!(changed.is_empty(), "the recovery changed {changed:?}");
    }

    fn fetched_bytes(&self) -> u64 {
        self.mount().status()["reads"]["fetched_bytes"].as_u64().unwrap()
    }
}

/// Base offset and size of each closed segment of a topic.
pub fn closed_sizes(root: &Path, topic: &str) -> BTreeMap<(String, i64), u64> {
    let mut sizes = BTreeMap::new();
    for partition in partitions(root, topic) {
        let all = bases(&root.join(&partition));
        for base in &all[..all.len().saturating_sub(1)] {
            let path = root.join(&partition).join(format!("{base:020}.log"));
            sizes.insert((partition.clone(), *base), path.metadata().unwrap().len());
        }
    }
    sizes
}

/// Takes a topic's closed segments out of the kernel's page cache, which keeps what was read through the mount.
pub fn forget_pages(root: &Path, topic: &str) {
    for (partition, base) in closed_sizes(root, topic).keys() {
        let file = File::open(root.join(partition).join(format!("{base:020}.log"))).unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }
}

/// How many segments of a topic have no bytes on local disk.
pub fn cold_segments(root: &Path, hot: &Path, topic: &str) -> usize {
    let is_cold = |(partition, base): &(String, i64)| {
        !hot.join(partition).join(format!("{base:020}.log")).exists()
    };
    closed_sizes(root, topic).keys().filter(|key| is_cold(key)).count()
}

/// A broker of this version produces, rolls, goes cold, stops, dies, recovers, and nothing that it acknowledged is lost.
pub fn lives_on_a_mount(kafka: &str) {
    let mut life = Life::begin(kafka);
    let witness = Witness::start(&life.scratch.hot());
    life.ledger.produce(&life.broker, 30_000);
    life.prove("the load");
    assert_eq!(life.broker.errors(), Vec::<String>::new());

    life.broker.stop();
    life.broker.start();
    life.prove("a clean restart");

    life.kill9_under_load();
    life.broker.start();
    life.roll_again();
    life.prove("kill -9");

    life.recover_everything();
    life.roll_again();
    life.prove("the recovery of the whole cold log");
    assert_eq!(life.broker.errors(), Vec::<String>::new());

    life.broker.stop();
    life.mount.take().unwrap().sigterm();
    life.mount = Some(life.command.start());
    life.broker.start();
    life.prove("a restart of both");

    let compared = compare_objects(life.mount().point(), &life.scratch.bucket(), &witness.finish());
    eprintln!("{compared} objects equal the files that Kafka {kafka} wrote");
    assert!(compared >= 25, "only {compared} objects");
    life.broker.stop();
    life.mount.take().unwrap().sigterm();
}
