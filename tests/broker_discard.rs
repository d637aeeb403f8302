//! What a broker gives up: retention, deleted topics and compaction over hot, closed and cold segments, and the program that must agree.
//!
//! Names vanish from the log dir as on any disk and never come back; the archive keeps what it had.

mod common;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use common::archive::{all_closed_archived, bases, hot_log_bytes, log_objects, settle};
use common::broker::{Broker, KAFKA};
use common::{Ledger, Mount, MountCommand, Scratch, files, sha256_file, unless, wait_until};
use serde_json::Value;

const MIB: u64 = 1 << 20;

struct Scenario {
    command: MountCommand,
    mount: Option<Mount>,
    broker: Broker,
    /// Last: dropped, and so removed, after all that lives in it.
    scratch: Scratch,
}

impl Scenario {
    fn start(name: &str, options: &[(&str, String)]) -> Self {
        let scratch = Scratch::new(name);
        let store = scratch.file_store("store");
        let mut command = MountCommand::broker(scratch.path(), &store);
        for (option, value) in options {
            command = command.option(option, value);
        }
        let mount = command.start();
        let mut broker = Broker::format(&scratch.dir("broker"), mount.point(), KAFKA, &[]);
        broker.start();
        Self { scratch, command, mount: Some(mount), broker }
    }

    fn mount(&self) -> &Mount {
        self.mount.as_ref().unwrap()
    }

    fn load(&self, topic: &str, partitions: u32, records: u64) -> Ledger {
        let ledger = Ledger::new(self.scratch.path(), topic, partitions);
        ledger.create_topic(&self.broker, &["segment.bytes=1048576"]);
        ledger.produce(&self.broker, records);
        ledger
    }

    fn restart_everything(&mut self) {
        self.broker.stop();
        self.mount.take().unwrap().sigterm();
        self.mount = Some(self.command.start());
        self.broker.start();
    }
}

/// SHA-256 of each object of a partition.
fn object_shas(bucket: &Path, partition: &str) -> BTreeMap<i64, String> {
    let mine = log_objects(bucket).into_iter().filter(|o| o.partition == partition);
    mine.map(|o| (o.base, sha256_file(&o.path))).collect()
}

#[test]
fn retention_over_hot_and_cold_segments_hides_names_for_ever_and_keeps_objects() {
    let mut s = Scenario::start("discard-retention", &[("--hot-bytes", (5 * MIB).to_string())]);
    let ledger = s.load("events", 1, 16_000);
    settle(s.mount(), &s.scratch.hot(), "events", &s.scratch.bucket(), 5 * MIB);
    let dir = s.mount().path("events-0");
    let all = bases(&dir);
    let objects = object_shas(&s.scratch.bucket(), "events-0");
    let cold = all
        .iter()
        .filter(|b| !s.scratch.hot().join(format!("events-0/{b:020}.log")).exists())
        .count();
    assert!(cold >= 8 && cold + 3 <= all.len(), "{cold} of {} are cold", all.len());

    // Down to two: cold ones and hot ones go.
    s.broker.topic("--alter", "events", 1, &["retention.bytes=2097152"]);
    wait_until("the names to vanish", 60, || {
        let left = files::names(&dir);
        let logs = bases(&dir).len();
        unless(logs <= 4 && !left.iter().any(|n| n.ends_with(".deleted")), || format!("{left:?}"))
    });
    let left = bases(&dir);
    assert!(
        left[0] > all[cold],
        "retention removed cold segments only, so this proves less than it says"
    );
    let on_disk = files::names(&s.scratch.hot().join("events-0"));
    let older: Vec<_> = on_disk
        .iter()
        .filter(|n| n.get(..20).and_then(|d| d.parse().ok()).is_some_and(|b: i64| b < left[0]))
        .collect();
    // A producer snapshot of the first offset kept may carry an older number for a while; nothing else may.
    assert!(older.iter().all(|n| n.contains(".snapshot")), "{older:?}");

    s.restart_everything();
    assert_eq!(bases(&dir)[0], left[0], "discarded names came back");
    s.mount.take().unwrap().kill9();
    s.broker.kill9();
    s.mount = Some(s.command.start());
    s.broker.start();
    assert!(bases(&dir)[0] >= left[0], "discarded names came back after a crash");
    ledger.prove_with(&s.broker, &["--allow-trimmed"]);

    let now = object_shas(&s.scratch.bucket(), "events-0");
    let archive = s.mount().path(".everlog/archive/events-0");
    for (base, sha) in &objects {
        assert_eq!(now.get(base), Some(sha), "the object of {base} changed");
        assert_eq!(
            &sha256_file(&archive.join(format!("{base:020}.log"))),
            sha,
            "{base} in .everlog/archive"
        );
    }
}

#[test]
fn a_deleted_topic_vanishes_and_its_archive_stays_beside_the_one_of_its_successor() {
    let s = Scenario::start("discard-topic", &[("--hot-bytes", (3 * MIB).to_string())]);
    s.load("gone", 2, 12_000);
    settle(s.mount(), &s.scratch.hot(), "gone", &s.scratch.bucket(), 3 * MIB);
    let first_ids: std::collections::BTreeSet<String> =
        log_objects(&s.scratch.bucket()).into_iter().map(|o| o.topic_id).collect();
    let objects = object_shas(&s.scratch.bucket(), "gone-0");
    assert!(objects.len() >= 5);

    s.broker.topic("--delete", "gone", 2, &[]);
    wait_until("the directories to vanish", 60, || {
        let shown = files::names(s.mount().point());
        unless(!shown.iter().any(|n| n.starts_with("gone-")), || format!("{shown:?}"))
    });
    wait_until("the data directory to follow", 30, || {
        let there = files::names(&s.scratch.hot());
        unless(!there.iter().any(|n| n.starts_with("gone-")), || format!("{there:?}"))
    });
    // The active segment may join them, out of the spool.
    let after = object_shas(&s.scratch.bucket(), "gone-0");
    assert!(objects.iter().all(|(base, sha)| after.get(base) == Some(sha)), "{after:?}");

    // The same name again is another topic.
    std::fs::remove_file(s.scratch.path().join("gone.ledger")).unwrap();
    let ledger = s.load("gone", 2, 6_000);
    settle(s.mount(), &s.scratch.hot(), "gone", &s.scratch.bucket(), 3 * MIB);
    assert_eq!(ledger.prove(&s.broker)["records"], 6_000);
    let ids: std::collections::BTreeSet<String> =
        log_objects(&s.scratch.bucket()).into_iter().map(|o| o.topic_id).collect();
    assert_eq!(ids.len(), 2, "{ids:?}");
    let old_id = first_ids.first().unwrap();
    let old = s.mount().path(&format!(".everlog/archive/gone-0~{old_id}"));
    for (base, sha) in &objects {
        let in_old = old.join(format!("{base:020}.log"));
        assert_eq!(&sha256_file(&in_old), sha, "{}", in_old.display());
    }
    let new = s.mount().path(".everlog/archive/gone-0");
    assert_ne!(sha256_file(&new.join("00000000000000000000.log")), objects[&0]);
    assert_eq!(s.broker.errors(), Vec::<String>::new());
}

/// A command that fails until a file exists, and writes down what it was given either way.
fn discard_command(dir: &Path) -> PathBuf {
    let script = dir.join("on-discard");
    let here = dir.display();
    let text = format!(
        "#!/bin/sh\nif [ -e {here}/agree ]; then tee -a {here}/agreed >/dev/null; else cat >> {here}/refused; exit 1; fi\n"
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    script
}

fn told(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    serde_json::Deserializer::from_str(&text)
        .into_iter::<Value>()
        .map(|v| v.expect("the command was given JSON"))
        .collect()
}

#[test]
fn nothing_discarded_is_released_before_the_command_agrees_and_everything_after() {
    let scratch = Scratch::new("discard-command-script");
    let script = discard_command(scratch.path());
    let options =
        [("--hot-bytes", (4 * MIB).to_string()), ("--on-discard", script.display().to_string())];
    let mut s = Scenario::start("discard-command", &options);
    s.load("audit", 1, 14_000);
    settle(s.mount(), &s.scratch.hot(), "audit", &s.scratch.bucket(), 4 * MIB);
    let dir = s.mount().path("audit-0");
    let before = bases(&dir);
    s.broker.topic("--alter", "audit", 1, &["retention.bytes=1048576"]);
    let discarded = wait_until("retention", 60, || {
        let left = bases(&dir);
        let gone: Vec<i64> = before.iter().copied().filter(|b| !left.contains(b)).collect();
        let unlinked = !files::names(&dir).iter().any(|n| n.ends_with(".deleted"));
        unless(gone.len() >= 10 && unlinked, || format!("{left:?}")).map(|()| gone)
    });
    let waiting =
        |mount: &Mount| mount.status()["spool"]["waiting_for_listener"].as_u64().unwrap_or(0);
    wait_until("every discarded segment to wait for the command", 60, || {
        let spool = s.mount().status()["spool"].clone();
        unless(waiting(s.mount()) as usize == discarded.len(), || {
            format!("{spool} of {discarded:?}")
        })
    });
    wait_until("the command to be asked and to refuse", 60, || {
        unless(!told(&scratch.path().join("refused")).is_empty(), || {
            "it was never asked".to_owned()
        })
    });
    let spooled = files::files_under(&s.scratch.path().join("data/spool"));
    assert!(
        spooled.iter().any(|p| files::name(p) == "segment.log"),
        "no bytes are held: {spooled:?}"
    );

    s.broker.stop();
    s.mount.take().unwrap().kill9();
    s.mount = Some(s.command.start());
    s.broker.start();
    let refused_before = told(&scratch.path().join("refused")).len();
    wait_until("the command to be asked again after the crash", 90, || {
        unless(told(&scratch.path().join("refused")).len() > refused_before, || {
            format!("{refused_before} times so far")
        })
    });
    assert_eq!(waiting(s.mount()) as usize, discarded.len());
    assert!(told(&scratch.path().join("agreed")).is_empty());

    std::fs::write(scratch.path().join("agree"), "").unwrap();
    wait_until("everything to be released", 120, || {
        let spool = s.mount().status()["spool"].clone();
        unless(
            spool["segments"] == 0
                && files::files_under(&s.scratch.path().join("data/spool")).is_empty(),
            || spool.to_string(),
        )
    });
    let agreed = told(&scratch.path().join("agreed"));
    for base in &discarded {
        let said = agreed
            .iter()
            .find(|v| v["base_offset"] == *base)
            .unwrap_or_else(|| panic!("{base} was never told; {agreed:?}"));
        assert_eq!(
            (&said["topic"], &said["partition"]),
            (&Value::from("audit"), &Value::from(0)),
            "{said}"
        );
    }
    assert!(bases(&dir)[0] > *discarded.last().unwrap());
}

#[test]
fn a_compacted_topic_is_archived_and_stays_local() {
    let mut s = Scenario::start("discard-compact", &[("--hot-bytes", "1MiB".to_owned())]);
    let ledger = Ledger::new(s.scratch.path(), "state", 1).keys(200);
    let config = [
        "segment.bytes=1048576",
        "cleanup.policy=compact",
        "min.cleanable.dirty.ratio=0.01",
        "file.delete.delay.ms=1000",
    ];
    ledger.create_topic(&s.broker, &config);
    ledger.produce(&s.broker, 6_000);
    let dir = s.mount().path("state-0");
    let total = || {
        bases(&dir)
            .iter()
            .map(|b| dir.join(format!("{b:020}.log")).metadata().map_or(0, |m| m.len()))
            .sum::<u64>()
    };
    wait_until("the cleaner to compact", 90, || {
        unless(total() < 3 * MIB, || format!("{} bytes in {:?}", total(), bases(&dir)))
    });
    ledger.prove_with(&s.broker, &["--compacted"]);
    wait_until("the compacted segments to be archived", 90, || {
        all_closed_archived(s.mount().point(), "state", &s.scratch.bucket())?;
        let status = s.mount().topic_status("state");
        unless(status["lag_segments"] == 0, || status.to_string())
    });
    // More rounds: new generations replace the old ones in the archive.
    for _ in 0..2 {
        ledger.produce(&s.broker, 3_000);
        ledger.prove_with(&s.broker, &["--compacted"]);
    }
    wait_until("the new generations to be archived", 120, || {
        all_closed_archived(s.mount().point(), "state", &s.scratch.bucket())?;
        let shown = bases(&dir);
        for base in &shown[..shown.len() - 1] {
            let name = format!("{base:020}.log");
            let live = std::fs::read(dir.join(&name)).map_err(|e| e.to_string())?;
            let kept = std::fs::read(s.mount().path(".everlog/archive/state-0").join(&name))
                .map_err(|e| format!("{name}: {e}"))?;
            unless(live == kept, || format!("{name} in the archive is another generation"))?;
        }
        Ok(())
    });
    let status = s.mount().topic_status("state");
    assert_eq!(status["cold_segments"], 0, "{status}");
    assert!(hot_log_bytes(&s.scratch.hot()) >= total(), "a compacted segment was evicted");
    s.restart_everything();
    ledger.prove_with(&s.broker, &["--compacted"]);
    assert_eq!(s.broker.errors(), Vec::<String>::new());
}
