//! A broker with three log dirs: two mounts over one store and a plain disk. Partitions move between them, records are deleted, and one
//! mount dies while the other serves.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::common::archive::{bases, log_objects};
use super::common::broker::{Broker, KAFKA};
use super::common::ledger::tool;
use super::common::versions::{closed_sizes, cold_segments};
use super::common::{
    Ledger, Mount, MountCommand, Scratch, children, files, sha256_file, unless, wait_until,
};
use super::{LOG_DIR_FAILED, OFTEN, all_cold};

struct Disk {
    dir: PathBuf,
    command: MountCommand,
    mount: Option<Mount>,
}

impl Disk {
    fn start(scratch: &Scratch, name: &str, store: &str) -> Self {
        let dir = scratch.dir(name);
        let heard = format!("cat >> {}", dir.join("heard").display());
        let metadata_log = scratch.path().join("broker/metadata/__cluster_metadata-0");
        let command = MountCommand::broker(&dir, store)
            .option("--hot-bytes", 0)
            .option("--on-discard", heard)
            .option("--metadata-log", metadata_log.display());
        let mount = Some(command.start());
        Self { dir, command, mount }
    }

    fn mount(&self) -> &Mount {
        self.mount.as_ref().unwrap()
    }

    fn root(&self) -> &Path {
        self.command.point()
    }

    fn hot(&self) -> PathBuf {
        self.dir.join("data/hot")
    }

    fn all_cold(&self, topic: &str) -> usize {
        all_cold(self.mount(), &self.hot(), &[topic])
    }

    /// Reasons that the discard command was told for a topic, each once, when `wanted` is among them.
    fn reasons(&self, topic: &str, wanted: &str) -> BTreeSet<String> {
        wait_until(&format!("{topic} to be discarded, {wanted}"), 60, || {
            let heard = std::fs::read_to_string(self.dir.join("heard")).unwrap_or_default();
            let events = heard.lines().map(|line| serde_json::from_str(line).unwrap());
            let mine = events.filter(|e: &serde_json::Value| e["topic"] == topic);
            let reasons: BTreeSet<_> =
                mine.map(|e| e["reason"].as_str().unwrap().to_owned()).collect();
            unless(reasons.contains(wanted), || format!("{reasons:?}")).map(|()| reasons)
        })
    }
}

struct Life {
    one: Disk,
    two: Disk,
    plain: PathBuf,
    broker: Broker,
    orders: Ledger,
    other: Ledger,
    scratch: Scratch,
}

impl Life {
    fn begin() -> Self {
        let scratch = Scratch::new("life-moves");
        let store = scratch.file_store("store");
        let (one, two) =
            (Disk::start(&scratch, "one", &store), Disk::start(&scratch, "two", &store));
        let plain = scratch.dir("plain");
        let log_dirs = [one.root(), two.root(), &plain].map(|d| d.display().to_string()).join(",");
        let mut broker =
            Broker::format(&scratch.dir("broker"), Path::new(&log_dirs), KAFKA, &OFTEN);
        broker.start();
        let [orders, other] = ["orders", "other"].map(|topic| {
            let ledger = Ledger::new(scratch.path(), topic, 1);
            ledger.create_topic(&broker, &["segment.bytes=1048576"]);
            ledger
        });
        Self { one, two, plain, broker, orders, other, scratch }
    }

    fn admin(&self, what: &str, topic: &str, more: &[&str]) {
        let mut command = tool(what);
        command.args(["--bootstrap", &self.broker.bootstrap(), "--topic", topic]).args(more);
        children::run(command, what);
    }

    fn begin_move(&self, topic: &str, to: &Path) {
        self.admin("move", topic, &["--to", &to.display().to_string()]);
    }

    /// The partition is in `to` and in no other log dir, whole and under its own name.
    fn moved(&self, topic: &str, to: &Path) {
        let name = format!("{topic}-0");
        wait_until(&format!("{name} to arrive in {}", to.display()), 90, || {
            for dir in [self.one.root(), self.two.root(), &self.plain] {
                let found = files::names(dir).into_iter().filter(|n| n.starts_with(&name));
                let found: Vec<String> = found.collect();
                let wanted: &[String] = if dir == to { std::slice::from_ref(&name) } else { &[] };
                unless(found == wanted, || format!("{} has {found:?}", dir.display()))?;
            }
            Ok(())
        });
    }

    fn move_to(&self, topic: &str, to: &Path) {
        self.begin_move(topic, to);
        self.moved(topic, to);
    }

    /// All objects of a partition's logs with their sizes.
    fn stored(&self, topic: &str) -> BTreeMap<PathBuf, u64> {
        let partition = format!("{topic}-0");
        let mine = log_objects(&self.scratch.bucket()).into_iter();
        mine.filter(|o| o.partition == partition)
            .map(|o| (o.path.clone(), o.path.metadata().unwrap().len()))
            .collect()
    }

    /// What was stored is there still, and no byte of the log is stored twice.
    fn stored_once(&self, topic: &str, before: &BTreeMap<PathBuf, u64>, root: &Path) {
        let now = self.stored(topic);
        let gone: Vec<_> =
            before.iter().filter(|(path, size)| now.get(*path) != Some(size)).collect();
        assert!(gone.is_empty(), "{gone:?}");
        let dir = root.join(format!("{topic}-0"));
        let size = |base: &i64| dir.join(format!("{base:020}.log")).metadata().unwrap().len();
        let log: u64 = bases(&dir).iter().map(size).sum();
        let stored: u64 = now.values().sum();
        assert!(stored <= log, "{stored} bytes are stored of a log of {log}");
        eprintln!("{stored} of {log} bytes are stored in {} objects", now.len());
    }

    fn prove(&self, ledger: &Ledger, after: &str) {
        let proof = ledger.prove(&self.broker);
        eprintln!("{} after {after}: {proof}", ledger.topic());
        assert_eq!(proof["records"], ledger.acknowledged(), "after {after}");
    }
}

/// Out of the first mount, on, and into the second, where the broker dies halfway.
fn out_of_one_mount_and_into_the_other(life: &mut Life) {
    let before = life.stored("orders");
    life.move_to("orders", &life.plain);
    life.prove(&life.orders, "the move out of a mount");
    life.orders.produce(&life.broker, 2_000);
    assert!(closed_sizes(&life.plain, "orders").len() >= before.len());

    let throttle = |bytes: &str| life.admin("throttle-moves", "orders", &["--bytes-per-s", bytes]);
    throttle("2000000");
    life.begin_move("orders", life.two.root());
    wait_until("the move to be halfway", 60, || {
        let names = files::names(&life.two.hot());
        let future = names.iter().find(|n| n.starts_with("orders-0.") && n.ends_with("-future"));
        let dir = life.two.hot().join(future.ok_or_else(|| format!("{names:?}"))?);
        let there = bases(&dir);
        unless(there.len() >= 3, || format!("{there:?}"))
    });
    life.broker.kill9();
    let names = files::names(life.two.root());
    assert!(names.iter().any(|n| n.ends_with("-future")), "the move was over: {names:?}");
    life.broker.start();
    let throttle = |bytes: &str| life.admin("throttle-moves", "orders", &["--bytes-per-s", bytes]);
    throttle("1000000000");
    life.moved("orders", life.two.root());
    life.orders.produce(&life.broker, 2_000);
    let cold = life.two.all_cold("orders");
    assert!(cold >= 8, "only {cold} segments are cold");
    life.stored_once("orders", &before, life.two.root());
    life.prove(&life.orders, "the move into a mount");
}

/// The names go, the archive keeps what it has.
fn records_are_deleted(life: &Life) {
    let (dir, before) = (life.two.mount().path("other-0"), life.stored("other"));
    let all = bases(&dir);
    let limit = all[4];
    life.admin("delete-records", "other", &["--before", &(limit + 10).to_string()]);
    wait_until("the names to vanish", 60, || {
        let names = files::names(&dir);
        let old =
            |n: &String| n.get(..20).and_then(|d| d.parse().ok()).is_some_and(|b: i64| b < limit);
        let left: Vec<_> = names.iter().filter(|n| old(n) && !n.ends_with(".snapshot")).collect();
        unless(left.is_empty(), || format!("{left:?}"))
    });
    let now = life.stored("other");
    assert!(before.iter().all(|(path, size)| now.get(path) == Some(size)), "{now:?}");
    let archive = life.two.mount().path(".everlog/archive/other-0");
    for base in &all[..4] {
        let object = before.keys().find(|p| files::name(p).starts_with(&format!("{base:020}.")));
        let kept = archive.join(format!("{base:020}.log"));
        assert_eq!(sha256_file(&kept), sha256_file(object.unwrap()), "{base}");
    }
    life.other.prove_with(&life.broker, &["--allow-trimmed"]);
}

/// One of the mounts dies: the broker goes on with what is on the others.
fn one_mount_dies(life: &mut Life) {
    let left = bases(&life.two.mount().path("other-0"));
    // What is left of it stays mounted: in a bare mount point a broker that still runs would write files.
    life.two.mount().kill9_at_once();
    life.orders.produce(&life.broker, 3_000);
    life.prove(&life.orders, "the death of the other mount");
    let output = life.broker.output();
    assert!(output.contains(LOG_DIR_FAILED), "the broker did not notice");
    assert!(cold_segments(life.one.root(), &life.one.hot(), "orders") >= 8);

    life.broker.stop();
    life.two.mount.take().unwrap().kill9();
    life.two.mount = Some(life.two.command.start());
    life.broker.start();
    assert_eq!(bases(&life.two.mount().path("other-0")), left);
    life.other.produce(&life.broker, 2_000);
    assert!(life.two.all_cold("other") >= 4);
    life.prove(&life.orders, "the return of the other mount");
    life.other.prove_with(&life.broker, &["--allow-trimmed"]);
}

/// Of the broker, but for one more of Kafka 4.3's own: it can be told of a move's end when it has forgotten the move.
fn errors(broker: &Broker) -> Vec<String> {
    let all = broker.errors().into_iter();
    all.filter(|line| !line.contains("AssignmentsManager")).collect()
}

#[test]
fn partitions_move_between_log_dirs_are_stored_once_and_outlive_a_mount_that_dies_beside_them() {
    let mut life = Life::begin();
    life.move_to("orders", life.one.root());
    life.move_to("other", life.two.root());
    life.orders.produce(&life.broker, 10_000);
    life.other.produce(&life.broker, 10_000);
    for (disk, topic) in [(&life.one, "orders"), (&life.two, "other")] {
        let cold = disk.all_cold(topic);
        assert!(cold >= 8, "only {cold} segments of {topic} are cold");
    }
    out_of_one_mount_and_into_the_other(&mut life);

    let before = life.stored("orders");
    life.move_to("orders", life.one.root());
    life.orders.produce(&life.broker, 2_000);
    life.one.all_cold("orders");
    life.stored_once("orders", &before, life.one.root());
    life.prove(&life.orders, "the move from mount to mount");
    assert_eq!(errors(&life.broker), Vec::<String>::new());

    for disk in [&life.one, &life.two] {
        assert_eq!(disk.reasons("orders", "moved").len(), 1, "nothing else became of it");
    }

    records_are_deleted(&life);
    one_mount_dies(&mut life);
    life.broker.topic("--delete", "orders", 1, &[]);
    let reasons = life.one.reasons("orders", "topic_deleted");
    assert_eq!(reasons, ["moved", "topic_deleted"].map(str::to_owned).into());
}
