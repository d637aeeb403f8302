//! A broker whose cluster has forgotten a topic: its metadata were put back to a copy from before the topic was made, so at its next start
//! the broker renames the topic's partitions to `-stray`. What was committed is nobody's any more but the archive's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::common::archive::{bases, log_objects};
use super::common::broker::{Broker, KAFKA};
use super::common::{
    Ledger, Mount, MountCommand, Scratch, children, files, sha256_file, unless, wait_until,
};
use super::{OFTEN, all_cold};

struct Cluster {
    scratch: Scratch,
    mount: Mount,
    broker: Broker,
}

/// SHA-256 of each segment's bytes, by base offset.
type Sums = BTreeMap<i64, String>;

fn copy(from: &Path, to: &Path) {
    let mut cp = Command::new("cp");
    cp.arg("-a").arg(from).arg(to);
    children::run(cp, "copying");
}

impl Cluster {
    fn start() -> Self {
        let scratch = Scratch::new("life-stray");
        let store = scratch.file_store("store");
        let heard = format!("cat >> {}", scratch.path().join("heard").display());
        let mount = MountCommand::broker(scratch.path(), &store)
            .option("--hot-bytes", 0)
            .option("--on-discard", heard)
            .start();
        let mut broker = Broker::format(&scratch.dir("broker"), mount.point(), KAFKA, &OFTEN);
        broker.start();
        broker.stop();
        copy(&scratch.path().join("broker/metadata"), &scratch.path().join("metadata-before"));
        broker.start();
        Self { scratch, mount, broker }
    }

    fn store_away(&self, away: bool) {
        let (here, there) = (self.scratch.bucket(), self.scratch.path().join("store-away"));
        let (from, to) = if away { (here, there) } else { (there, here) };
        std::fs::rename(from, to).unwrap();
    }

    /// Starts the broker with the metadata of before.
    fn forget_topics(&mut self) {
        let metadata = self.scratch.path().join("broker/metadata");
        std::fs::remove_dir_all(&metadata).unwrap();
        copy(&self.scratch.path().join("metadata-before"), &metadata);
        self.broker.start();
    }

    /// The directory that the partition has become.
    fn stray(&self, partition: &str) -> PathBuf {
        wait_until(&format!("{partition} to be stray"), 60, || {
            let names = files::names(self.mount.point());
            let is_stray =
                |n: &&String| n.starts_with(&format!("{partition}.")) && n.ends_with("-stray");
            let stray = names.iter().find(is_stray).cloned();
            unless(!names.iter().any(|n| n == partition), || format!("{names:?}"))?;
            stray.map(|name| self.mount.path(&name)).ok_or_else(|| format!("{names:?}"))
        })
    }

    fn stored(&self, partition: &str) -> Sums {
        let mine = log_objects(&self.scratch.bucket()).into_iter();
        mine.filter(|o| o.partition == partition).map(|o| (o.base, sha256_file(&o.path))).collect()
    }

    fn wait_until_stored(&self, partition: &str, sums: &Sums) {
        wait_until(&format!("all of {partition} to be archived"), 120, || {
            let stored = self.stored(partition);
            unless(&stored == sums, || {
                let bases: Vec<_> = stored.keys().collect();
                format!("{bases:?} of {:?}: {}", sums.keys(), self.mount.status())
            })
        });
    }

    /// Segments of a topic that the discard command was told of, with the reason.
    fn heard(&self, topic: &str) -> BTreeMap<i64, String> {
        let heard = std::fs::read_to_string(self.scratch.path().join("heard")).unwrap_or_default();
        let events = heard.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
        events
            .filter(|e| e["topic"] == topic)
            .map(|e| (e["base_offset"].as_i64().unwrap(), e["reason"].as_str().unwrap().to_owned()))
            .collect()
    }
}

fn sums_in(dir: &Path) -> Sums {
    let sum = |base| (base, sha256_file(&dir.join(format!("{base:020}.log"))));
    bases(dir).into_iter().map(sum).collect()
}

/// All but the last.
fn closed_sums_in(dir: &Path) -> Sums {
    let mut sums = sums_in(dir);
    sums.pop_last();
    sums
}

#[test]
fn of_a_topic_that_its_cluster_has_forgotten_the_archive_gets_everything_that_was_committed() {
    let mut it = Cluster::start();
    let [kept, removed] = ["kept", "removed"].map(|topic| {
        let ledger = Ledger::new(it.scratch.path(), topic, 1);
        ledger.create_topic(&it.broker, &["segment.bytes=1048576"]);
        ledger.produce(&it.broker, 4_000);
        ledger
    });
    let hot = it.scratch.hot();
    assert!(all_cold(&it.mount, &hot, &["kept", "removed"]) >= 6);
    // As they are before anything is renamed.
    let [kept_written, removed_written] =
        ["kept-0", "removed-0"].map(|partition| closed_sums_in(&it.mount.path(partition)));
    it.store_away(true);
    for ledger in [&kept, &removed] {
        ledger.produce(&it.broker, 3_000);
    }
    it.broker.stop();
    let local = |partition: &str| -> Sums {
        let dir = hot.join(partition);
        let is_local = |base: &i64| dir.join(format!("{base:020}.log")).exists();
        let sum = |base| (base, sha256_file(&dir.join(format!("{base:020}.log"))));
        bases(&it.mount.path(partition)).into_iter().filter(is_local).map(sum).collect()
    };
    let (kept_local, removed_local) = (local("kept-0"), local("removed-0"));
    assert!(removed_local.len() >= 3, "{:?}", removed_local.keys());

    it.forget_topics();
    let (kept_dir, removed_dir) = (it.stray("kept-0"), it.stray("removed-0"));
    for (base, sum) in &kept_local {
        assert_eq!(sha256_file(&kept_dir.join(format!("{base:020}.log"))), *sum, "{base}");
    }
    assert_eq!((it.heard("kept"), it.heard("removed")), Default::default());
    // An operator clears up while the store is out of reach.
    let wanted = bases(&removed_dir);
    std::fs::remove_dir_all(&removed_dir).unwrap();

    it.store_away(false);
    let kept_all = sums_in(&kept_dir);
    assert!(kept_written.iter().all(|(base, sum)| kept_all.get(base) == Some(sum)));
    assert!(kept_local.iter().all(|(base, sum)| kept_all.get(base) == Some(sum)));
    it.wait_until_stored("kept-0", &kept_all);
    wait_until("the removed ones to be archived", 120, || {
        let stored = it.stored("removed-0");
        unless(wanted.iter().all(|base| stored.contains_key(base)), || {
            format!("{:?} of {wanted:?}: {}", stored.keys(), it.mount.status())
        })
    });
    let stored = it.stored("removed-0");
    for written in [&removed_local, &removed_written] {
        assert!(written.iter().all(|(base, sum)| stored.get(base) == Some(sum)));
    }
    wait_until("the discard command to be told of all that was removed", 60, || {
        let heard = it.heard("removed");
        let told = wanted.iter().all(|base| heard.contains_key(base));
        unless(told, || format!("{heard:?} of {wanted:?}"))
    });
    assert!(it.heard("removed").values().all(|reason| reason == "partition_removed"));
    assert!(it.heard("kept").is_empty());

    let archive = it.mount.path(".everlog/archive");
    assert_eq!(sums_in(&archive.join("kept-0")), kept_all);
    assert_eq!(it.mount.status()["quarantine"], 0);
    std::fs::remove_dir_all(&kept_dir).unwrap();
    wait_until("the discard command to be told of the others, too", 60, || {
        let heard = it.heard("kept");
        unless(kept_all.keys().all(|base| heard.contains_key(base)), || format!("{heard:?}"))
    });
    assert!(it.heard("kept").values().all(|reason| reason == "partition_removed"));
    assert_eq!(it.stored("kept-0"), kept_all);
    assert_eq!(sums_in(&archive.join("kept-0")), kept_all);
    assert_eq!(it.broker.errors(), Vec::<String>::new());
}
