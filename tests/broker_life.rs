//! What a broker's life holds beyond appending and reading: compaction, transactions, consumer groups, recoveries over damaged files, moves
//! between log dirs, and one disk of several that fails. All of it on mounts whose closed segments are cold.
//!
//! The budget for local bytes is 0 here, so everything that may go cold does, at once.

mod common;
#[path = "broker_life/compaction.rs"]
mod compaction;
#[path = "broker_life/moves.rs"]
mod moves;
#[path = "broker_life/recovery.rs"]
mod recovery;
#[path = "broker_life/stray.rs"]
mod stray;
#[path = "broker_life/transactions.rs"]
mod transactions;

use std::path::Path;

use common::archive::{bases, partitions};
use common::broker::{Broker, KAFKA};
use common::{Mount, MountCommand, Scratch, unless, wait_until};

/// Periodic work of a broker that a test waits for.
const OFTEN: [&str; 3] = [
    "log.cleaner.backoff.ms=500",
    "log.cleaner.min.cleanable.ratio=0.01",
    "log.segment.delete.delay.ms=1000",
];

/// What a broker says when it gives a log dir up.
const LOG_DIR_FAILED: &str = "Stopping serving logs in dir";

/// A broker on a broker mount over a directory store.
struct Scene {
    command: MountCommand,
    mount: Option<Mount>,
    broker: Broker,
    /// Last: dropped, and so removed, after all that lives in it.
    scratch: Scratch,
}

impl Scene {
    fn start(name: &str, options: &[&str], settings: &[&str]) -> Self {
        let scratch = Scratch::new(name);
        let store = scratch.file_store("store");
        let command = MountCommand::broker(scratch.path(), &store).option("--hot-bytes", 0);
        let command = options.iter().fold(command, |command, option| command.arg(option));
        let mount = command.start();
        let settings = [&OFTEN, settings].concat();
        let mut broker = Broker::format(&scratch.dir("broker"), mount.point(), KAFKA, &settings);
        broker.start();
        Self { command, mount: Some(mount), broker, scratch }
    }

    fn mount(&self) -> &Mount {
        self.mount.as_ref().unwrap()
    }

    fn all_cold(&self, topics: &[&str]) -> usize {
        all_cold(self.mount(), &self.scratch.hot(), topics)
    }

    /// The disk of the store is away, or it is back.
    fn store_away(&self, away: bool) {
        let (here, there) = (self.scratch.bucket(), self.scratch.path().join("store-away"));
        let (from, to) = if away { (here, there) } else { (there, here) };
        std::fs::rename(from, to).unwrap();
    }

    /// After a crash Kafka may say more at level ERROR than matters; this would matter.
    fn no_log_dir_failed(&self) {
        let output = self.broker.output();
        assert!(!output.contains(LOG_DIR_FAILED), "{output}");
    }

    fn fetched_bytes(&self) -> u64 {
        self.mount().status()["reads"]["fetched_bytes"].as_u64().unwrap()
    }
}

/// Waits until each closed segment of these topics is archived and, unless it is empty, without bytes on local disk. How many are cold.
fn all_cold(mount: &Mount, hot: &Path, topics: &[&str]) -> usize {
    wait_until("all closed segments to go cold", 120, || {
        let mut cold = 0;
        for topic in topics {
            let status = mount.topic_status(topic);
            unless(status["lag_segments"] == 0, || format!("{topic}: {status}"))?;
            for partition in partitions(mount.point(), topic) {
                let shown = bases(&mount.path(&partition));
                for base in &shown[..shown.len().saturating_sub(1)] {
                    let name = format!("{partition}/{base:020}.log");
                    let size = mount.path(&name).metadata().map_err(|e| format!("{name}: {e}"))?;
                    let local = hot.join(&name).exists();
                    unless(!local || size.len() == 0, || {
                        format!("{name} of {} bytes is local; {status}", size.len())
                    })?;
                    cold += usize::from(!local);
                }
            }
        }
        assert_eq!(mount.status()["quarantine"], 0, "{}", mount.status());
        Ok(cold)
    })
}
