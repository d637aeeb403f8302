//! Two brokers with a replicated topic, each on a mount of its own, over one store: they roll at different offsets, and
//! share one archive all the same. A follower whose log begins anew takes nothing from it.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::archive::{hot_log_bytes, log_objects, partitions};
use common::broker::{Broker, KAFKA};
use common::{Ledger, Mount, MountCommand, Scratch, children, ledger, unless, wait_until};

const MIB: u64 = 1 << 20;
const BUDGET: u64 = 4 * MIB;
const RECORDS: u64 = 36_000;

struct Node {
    dir: PathBuf,
    command: MountCommand,
    mount: Option<Mount>,
}

impl Node {
    fn start(scratch: &Scratch, name: &str, store: &str) -> Self {
        let dir = scratch.dir(name);
        let command = MountCommand::broker(&dir, store).option("--hot-bytes", BUDGET);
        let mount = Some(command.start());
        Self { dir, command, mount }
    }

    fn mount(&self) -> &Mount {
        self.mount.as_ref().unwrap()
    }

    fn hot(&self) -> PathBuf {
        self.dir.join("data/hot")
    }

    /// Nothing waits to be archived, nothing is held, and the local bytes are within the budget and six active segments.
    fn settle(&self) {
        wait_until("archiving and eviction to settle", 120, || {
            let status = self.mount().status();
            assert_eq!(status["quarantine"], 0, "{status}");
            let lag = status["totals"]["lag_segments"].as_u64();
            unless(lag == Some(0), || format!("{}", status["totals"]))?;
            let local = hot_log_bytes(&self.hot());
            unless(local <= BUDGET + 3 * 2 * MIB, || format!("{local} bytes are local"))
        });
    }
}

fn bases(node: &Node) -> Vec<(String, i64)> {
    let of = |p: &String| common::archive::bases(&node.mount().path(p));
    let all = partitions(node.mount().point(), "orders");
    all.iter().flat_map(|p| of(p).into_iter().map(move |b| (p.clone(), b))).collect()
}

/// The topic `orders`, on both brokers, that goes on when one is away.
fn replicated_topic(scratch: &Scratch, broker: &Broker, partitions: u32) -> Ledger {
    let mut create = ledger::tool("topic");
    create.args(["--create", "--bootstrap", &broker.bootstrap(), "--topic", "orders"]);
    create.args(["--partitions", &partitions.to_string(), "--replication", "2"]);
    create.args(["--config", "min.insync.replicas=1"]);
    children::run(create, "creating the topic");
    Ledger::new(scratch.path(), "orders", partitions)
}

fn wait_in_sync(first: &Broker, ledger: &Ledger) {
    wait_until("both replicas to be in sync", 60, || {
        let mut command = ledger::tool("topic");
        command.args(["--in-sync", "2", "--bootstrap", &first.bootstrap()]);
        command.args(["--topic", ledger.topic()]);
        let answer = children::run(command, "asking for replicas");
        unless(answer.contains("in sync"), || answer)
    });
}

#[test]
fn two_replicas_share_one_archive_and_either_can_serve_it_alone() {
    let scratch = Scratch::new("replicas");
    let store = scratch.file_store("store");
    let mut one = Node::start(&scratch, "one", &store);
    let mut two = Node::start(&scratch, "two", &store);
    let settings = ["log.segment.bytes=1048576", "default.replication.factor=2"];
    let mut first = Broker::format(&scratch.dir("b1"), one.mount().point(), KAFKA, &settings);
    let settings = ["log.segment.bytes=1700000", "default.replication.factor=2"];
    let dirs = (scratch.dir("b2"), two.mount().point().to_owned());
    let mut second = Broker::format_joining(&first, 2, (&dirs.0, &dirs.1), &settings);
    first.start();
    second.start();
    let ledger = replicated_topic(&scratch, &first, 3);
    ledger.produce(&first, RECORDS);
    wait_in_sync(&first, &ledger);
    one.settle();
    two.settle();
    assert_ne!(bases(&one), bases(&two), "they rolled at the same offsets: nothing is tested");

    // Between the two of them they stored the log about once.
    let objects = log_objects(&scratch.path().join("store"));
    let stored: u64 = objects.iter().map(|o| o.path.metadata().unwrap().len()).sum();
    assert!(stored < 2 * RECORDS * 1000, "{stored} bytes in {} objects", objects.len());
    for node in [&one, &two] {
        let totals = node.mount().status()["totals"].clone();
        assert!(totals["cold_segments"].as_u64() > Some(5), "{totals}");
    }
    assert_eq!(ledger.prove(&first)["records"], RECORDS);

    // Each alone, from its own mount after a restart, with the other's objects in its log.
    for (stopped, node, broker) in [(1, &mut one, &mut first), (2, &mut two, &mut second)] {
        broker.stop();
        node.mount.take().unwrap().sigterm();
        node.mount = Some(node.command.start());
        broker.start();
        eprintln!("broker {stopped} was restarted");
    }
    wait_in_sync(&first, &ledger);
    ledger.produce(&second, 6_000);
    assert_eq!(ledger.prove(&second)["records"], RECORDS + 6_000);
    wait_in_sync(&first, &ledger);
    second.kill9();
    assert_eq!(ledger.prove(&first)["records"], RECORDS + 6_000);
    one.settle();
    assert_eq!(first.errors(), Vec::<String>::new());
}

/// All records of a partition, as the mount shows them.
fn log_bytes(node: &Node, partition: &str) -> Vec<u8> {
    let dir = node.mount().path(partition);
    let read = |base: i64| std::fs::read(dir.join(format!("{base:020}.log"))).unwrap();
    common::archive::bases(&dir).into_iter().flat_map(read).collect()
}

/// Every object of the bucket by its path.
fn stored_bytes(bucket: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    log_objects(bucket)
        .into_iter()
        .map(|o| (o.path.clone(), std::fs::read(o.path).unwrap()))
        .collect()
}

#[test]
fn a_follower_that_throws_its_whole_log_away_takes_nothing_from_the_archive() {
    let scratch = Scratch::new("truncated");
    let store = scratch.file_store("store");
    let bucket = scratch.path().join("store");
    let one = Node::start(&scratch, "one", &store);
    let mut two = Node::start(&scratch, "two", &store);
    let settings = ["log.segment.bytes=1048576", "default.replication.factor=2"];
    let mut first = Broker::format(&scratch.dir("b1"), one.mount().point(), KAFKA, &settings);
    let dirs = (scratch.dir("b2"), two.mount().point().to_owned());
    let mut second = Broker::format_joining(&first, 2, (&dirs.0, &dirs.1), &settings);
    first.start();
    second.start();
    let ledger = replicated_topic(&scratch, &first, 1);
    ledger.produce(&first, 12_000);
    wait_in_sync(&first, &ledger);
    one.settle();
    two.settle();
    let of_follower = two.mount().status()["totals"].clone();
    assert!(of_follower["cold_segments"].as_u64() > Some(3), "{of_follower}");

    // The follower is away while the leader goes on and drops all that the follower has, and more.
    second.stop();
    ledger.produce(&first, 12_000);
    let start = 18_000;
    let mut delete = ledger::tool("delete-records");
    delete.args(["--bootstrap", &first.bootstrap(), "--topic", "orders"]);
    delete.args(["--before", &start.to_string()]);
    children::run(delete, "deleting records");
    assert_eq!(ledger.offsets(&first), [(start, 24_000)]);
    one.settle();
    let before = stored_bytes(&bucket);
    second.start();
    wait_in_sync(&first, &ledger);

    two.settle();
    let follows = |node: &Node| {
        let (all, its) = (log_bytes(&one, "orders-0"), log_bytes(node, "orders-0"));
        assert!(its.len() > 5_900_000, "{} bytes", its.len());
        assert!(all.ends_with(&its), "the follower has other records than the leader");
        let left: Vec<i64> = common::archive::bases(&node.mount().path("orders-0"));
        assert!(left[0] > 12_000 && left[0] <= start, "{left:?}");
    };
    follows(&two);
    let after = stored_bytes(&bucket);
    for (path, bytes) in &before {
        assert!(after.get(path) == Some(bytes), "{} is not what it was", path.display());
    }

    // The archive still tells all of it, also what no broker has any more.
    let archive = MountCommand::archive(&scratch.dir("archive"), &store).start();
    let told = common::archive::bases(&archive.path("orders-0"));
    assert_eq!(told[0], 0, "{told:?}");

    // And after both the mount and the broker died.
    second.kill9();
    two.mount.take().unwrap().kill9();
    two.mount = Some(two.command.start());
    second.start();
    ledger.produce(&first, 3_000);
    wait_in_sync(&first, &ledger);
    two.settle();
    follows(&two);
    assert_eq!(first.errors(), Vec::<String>::new());
}
