//! Transactions, consumer groups and idempotent producers over cold segments. Whatever Kafka remembers of them (aborted ranges, producer
//! states, its own compacted topics) must come back right from a log whose bytes are in the store.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::Scene;
use super::common::archive::bases;
use super::common::children::Running;
use super::common::ledger::tool;
use super::common::versions::forget_pages;
use super::common::{Broker, Ledger, children, files, unless, wait_until};

const INTERNAL: [&str; 2] = ["__consumer_offsets", "__transaction_state"];
const GROUPS: u32 = 400;
const ROUNDS: u32 = 3;

struct Life {
    scene: Scene,
    payments: Ledger,
    /// Long, so that the coordinator's log rolls after some dozens of transactions.
    ids: Vec<String>,
    /// Records that no reader of committed ones may see.
    uncommitted: u64,
}

impl Life {
    fn begin() -> Self {
        let settings =
            ["offsets.topic.segment.bytes=1048576", "transaction.state.log.segment.bytes=1048576"];
        let options = ["--evict-compacted", "--cache-bytes", "4MiB"];
        let scene = Scene::start("life-transactions", &options, &settings);
        let payments = Ledger::new(scene.scratch.path(), "payments", 2);
        payments.create_topic(&scene.broker, &["segment.bytes=1048576"]);
        let ids = ["a", "b", "c"].map(|id| id.repeat(4000)).to_vec();
        Self { scene, payments, ids, uncommitted: 0 }
    }

    fn transact(&mut self, id: usize, transactions: u64, more: &[&str]) {
        let [committed, uncommitted] =
            self.payments.transact(&self.scene.broker, &self.ids[id], transactions, more);
        eprintln!("{committed} records committed, {uncommitted} not");
        self.uncommitted += uncommitted;
    }

    fn groups(&self, more: &[&str]) {
        let mut command = tool("groups");
        command.args(["--bootstrap", &self.scene.broker.bootstrap(), "--topic", "payments"]);
        command.args(["--groups", &GROUPS.to_string(), "--rounds", &ROUNDS.to_string()]);
        command.args(more);
        children::run(command, "consumer groups");
    }

    /// A reader of committed records gets all of those and no other; one that reads everything proves that there are others.
    fn prove(&self, after: &str) {
        let committed = self.payments.prove_with(&self.scene.broker, &["--read-committed"]);
        eprintln!("after {after}: {committed}");
        assert_eq!(committed["records"], self.payments.acknowledged(), "after {after}");
        assert_eq!(committed["unacknowledged"], 0, "after {after}");
        let all = self.payments.prove(&self.scene.broker);
        assert_eq!(all["unacknowledged"], self.uncommitted, "after {after}");
        self.groups(&["--check"]);
    }

    /// A producer that lives on while the broker dies and comes back.
    fn steady(&self, records: u64) -> (Ledger, Running) {
        let ledger = Ledger::new(self.scene.scratch.path(), "steady", 1);
        let mut command = ledger.producer(&self.scene.broker, records);
        command.args(["--rate", "1000"]);
        let log = self.scene.scratch.path().join("steady.out");
        let before = ledger.offsets(&self.scene.broker)[0].1;
        let producer = Running::start(command, "the steady producer", log);
        wait_until("records to stream in", 30, || {
            let now = ledger.offsets(&self.scene.broker)[0].1;
            unless(now > before + 300, || format!("{now} after {before}"))
        });
        (ledger, producer)
    }

    /// Files of the payments with this ending, and their bytes.
    fn small_files(&self, ending: &str) -> BTreeMap<PathBuf, Vec<u8>> {
        let dir = self.scene.mount().path("payments-0");
        let all = files::names(&dir).into_iter().filter(|n| n.ends_with(ending));
        all.map(|n| dir.join(n)).map(|p| (p.clone(), std::fs::read(p).unwrap())).collect()
    }
}

/// The producer went on after the crash, and each of its records is there once.
fn ends_well(broker: &Broker, (ledger, mut producer): (Ledger, Running), records: u64) {
    let status = producer.wait(120);
    assert!(status.success(), "the producer failed:\n{}", producer.tail());
    assert_eq!(ledger.acknowledged(), records);
    assert_eq!(ledger.prove(broker)["records"], records);
}

/// The broker dies amid a transaction and forgets what it had flushed, which transactions were aborted, and its producers.
fn the_broker_loses_what_it_knew(life: &mut Life) {
    let aborted = life.small_files(".txnindex");
    let closed = bases(&life.scene.mount().path("payments-0")).len() - 1;
    assert!(aborted.len() + 1 >= closed && closed >= 5, "{} of {closed}", aborted.len());
    life.transact(1, 1, &["--leave-open"]);
    let steady = life.steady(5000);
    life.scene.broker.kill9();
    let lost = life.scene.mount().path("recovery-point-offset-checkpoint");
    std::fs::remove_file(lost).unwrap();
    let lost = [life.small_files(".txnindex"), life.small_files(".snapshot")];
    lost.iter().flat_map(BTreeMap::keys).for_each(|path| std::fs::remove_file(path).unwrap());
    forget_pages(life.scene.mount().point(), "payments");
    let fetched = life.scene.fetched_bytes();
    life.scene.broker.start();
    let read = life.scene.fetched_bytes() - fetched;
    assert!(read > 6 << 20, "the recovery has read only {read} bytes of cold segments");
    ends_well(&life.scene.broker, steady, 5000);
    for (path, bytes) in aborted {
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "{} made anew", path.display());
    }
    // Whoever takes the id over ends what was left open.
    life.transact(1, 4, &[]);
}

#[test]
fn transactions_groups_and_producers_come_back_right_from_a_log_that_is_cold() {
    let mut life = Life::begin();
    Ledger::new(life.scene.scratch.path(), "steady", 1)
        .create_topic(&life.scene.broker, &["segment.bytes=1048576"]);
    life.groups(&[]);
    for id in 0..life.ids.len() {
        life.transact(id, 40, &[]);
    }
    assert!(life.uncommitted >= 3000, "{}", life.uncommitted);
    assert!(life.scene.all_cold(&["payments"]) >= 10);
    for topic in INTERNAL {
        let cold = life.scene.all_cold(&[topic]);
        assert!(cold >= 1, "nothing of {topic} is cold");
    }
    life.prove("the load");
    assert_eq!(life.scene.broker.errors(), Vec::<String>::new());

    the_broker_loses_what_it_knew(&mut life);
    life.prove("kill -9 of the broker and the loss of what it knew");

    let steady = life.steady(3000);
    life.scene.mount.take().unwrap().kill9();
    life.scene.broker.kill9();
    life.scene.mount = Some(life.scene.command.start());
    life.scene.broker.start();
    ends_well(&life.scene.broker, steady, 8000);
    life.transact(0, 4, &[]);
    life.prove("kill -9 of Everlog");
    life.scene.no_log_dir_failed();
}
