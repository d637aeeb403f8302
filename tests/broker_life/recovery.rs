//! An unclean start over cold segments whose small files are missing or damaged. With the store in reach the broker makes them anew from
//! archived bytes; without it it must refuse to start and leave every file as it is, since what a recovery takes for damage it truncates.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::Scene;
use super::common::archive::partitions;
use super::common::versions::{closed_sizes, forget_pages};
use super::common::{Ledger, files};

const TOPIC: &str = "orders";
const RECOVERY_POINT: &str = "recovery-point-offset-checkpoint";

/// Size of each file of the topic that the log dir shows.
fn shown(root: &Path) -> BTreeMap<String, u64> {
    let mut sizes = BTreeMap::new();
    for partition in partitions(root, TOPIC) {
        for name in files::names(&root.join(&partition)) {
            let path = root.join(&partition).join(&name);
            sizes.insert(format!("{partition}/{name}"), path.metadata().unwrap().len());
        }
    }
    sizes
}

/// The bytes of every small file with this ending that belongs to a closed segment.
fn small_files(root: &Path, ending: &str) -> BTreeMap<PathBuf, Vec<u8>> {
    let path = |(partition, base): &(String, i64)| {
        root.join(partition).join(format!("{base:020}.{ending}"))
    };
    let all = closed_sizes(root, TOPIC);
    all.keys().map(path).map(|p| (p.clone(), std::fs::read(&p).unwrap())).collect()
}

struct Life {
    scene: Scene,
    ledger: Ledger,
    indexes: BTreeMap<PathBuf, Vec<u8>>,
    times: BTreeMap<PathBuf, Vec<u8>>,
}

impl Life {
    fn begin() -> Self {
        let options = ["--cache-bytes", "1MiB", "--read-deadline", "3s"];
        let scene = Scene::start("life-recovery", &options, &[]);
        let ledger = Ledger::new(scene.scratch.path(), TOPIC, 2);
        ledger.create_topic(&scene.broker, &["segment.bytes=1048576"]);
        ledger.produce(&scene.broker, 14_000);
        let cold = scene.all_cold(&[TOPIC]);
        assert!(cold >= 12, "only {cold} segments are cold");
        let root = scene.mount().point();
        let (indexes, times) = (small_files(root, "index"), small_files(root, "timeindex"));
        assert!(indexes.values().filter(|bytes| bytes.len() > 8).count() >= 12);
        Self { scene, ledger, indexes, times }
    }

    fn root(&self) -> &Path {
        self.scene.mount().point()
    }

    fn snapshots(&self, partition: &str) -> Vec<PathBuf> {
        let dir = self.root().join(partition);
        let names = files::names(&dir).into_iter().filter(|n| n.ends_with(".snapshot"));
        names.map(|n| dir.join(n)).collect()
    }

    fn kill9(&mut self) {
        self.scene.broker.kill9();
        forget_pages(self.scene.mount().point(), TOPIC);
    }

    fn prove(&self, after: &str, closed: &BTreeMap<(String, i64), u64>) {
        let proof = self.ledger.prove(&self.scene.broker);
        eprintln!("after {after}: {proof}");
        assert_eq!(proof["records"], 14_000, "after {after}");
        assert_eq!(&closed_sizes(self.root(), TOPIC), closed, "after {after}");
    }
}

/// One segment without its index; one partition without any snapshot of its producers, one whose newest is damaged.
fn small_files_are_missing(life: &mut Life) {
    let closed = closed_sizes(life.root(), TOPIC);
    let fetched = life.scene.fetched_bytes();
    life.kill9();
    let index = life.indexes.keys().nth(1).unwrap();
    std::fs::remove_file(index).unwrap();
    let snapshots = life.snapshots("orders-1");
    assert!(snapshots.len() > 1, "{snapshots:?}");
    snapshots.iter().for_each(|path| std::fs::remove_file(path).unwrap());
    files::flip_byte(life.snapshots("orders-0").last().unwrap(), 10);
    life.scene.broker.start();
    let read = life.scene.fetched_bytes() - fetched;
    assert!(read > 6 << 20, "the recovery has read only {read} bytes of cold segments");
    life.prove("a recovery with small files missing", &closed);
    assert_eq!(std::fs::read(index).unwrap(), life.indexes[index], "the index made anew");
}

/// Nothing is known to be flushed, indexes and snapshots are rubbish, and the bytes to mend them from are out of reach.
fn everything_is_to_be_recovered(life: &mut Life) {
    let closed = closed_sizes(life.root(), TOPIC);
    life.kill9();
    std::fs::remove_file(life.root().join(RECOVERY_POINT)).unwrap();
    let all: Vec<&PathBuf> = life.indexes.keys().collect();
    std::fs::remove_file(all[2]).unwrap();
    std::fs::write(all[3], [0xff; 80]).unwrap();
    std::fs::write(all[4], [0; 13]).unwrap();
    let all: Vec<&PathBuf> = life.times.keys().collect();
    std::fs::remove_file(all[0]).unwrap();
    std::fs::write(all[5], [0xff; 120]).unwrap();
    for partition in ["orders-0", "orders-1"] {
        life.snapshots(partition).iter().for_each(|path| files::flip_byte(path, 10));
    }
    let before = shown(life.root());

    life.scene.store_away(true);
    let words = life.scene.broker.start_in_vain();
    assert!(words.contains("Input/output error"), "it refused for another reason:\n{words}");
    nothing_is_lost(&before, &shown(life.root()));

    life.scene.store_away(false);
    let fetched = life.scene.fetched_bytes();
    life.scene.broker.start();
    let read = life.scene.fetched_bytes() - fetched;
    assert!(read > 12 << 20, "the recovery has read only {read} bytes of cold segments");
    life.prove("a recovery of everything", &closed);
    for (path, bytes) in life.indexes.iter().chain(&life.times) {
        assert_eq!(&std::fs::read(path).unwrap(), bytes, "{} made anew", path.display());
    }
}

/// Every name is there, every log has its size. Kafka empties an index that it is about to make anew, and removes snapshots that
/// are damaged: all of them are.
fn nothing_is_lost(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) {
    for (name, size) in before.iter().filter(|(name, _)| !name.ends_with(".snapshot")) {
        let now = after.get(name);
        assert!(now.is_some(), "{name} is gone");
        let whole = name.ends_with(".log") && now != Some(size);
        assert!(!whole, "{name} had {size} bytes and has {now:?}");
    }
}

#[test]
fn a_recovery_mends_small_files_from_cold_segments_and_without_the_store_is_refused_and_changes_no_log()
 {
    let mut life = Life::begin();
    small_files_are_missing(&mut life);
    everything_is_to_be_recovered(&mut life);
}
