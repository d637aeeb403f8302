//! A compacted topic whose segments are cold: the cleaner reads them, writes their successors and swaps them in, and the archive follows,
//! also when the broker or Everlog dies in the middle of a swap, or the store is away when the cleaner needs it.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use super::Scene;
use super::common::archive::{bases, log_objects};
use super::common::versions::forget_pages;
use super::common::{Ledger, files, sha256_file, unless, wait_until};

const KEYS: u32 = 4000;
const READ_DEADLINE: &str = "4s";

struct Life {
    scene: Scene,
    ledger: Ledger,
    /// Of a topic that is compacted and has a retention as well.
    both: Ledger,
    crashes: u32,
}

impl Life {
    fn begin() -> Self {
        let options =
            ["--evict-compacted", "--cache-bytes", "1MiB", "--read-deadline", READ_DEADLINE];
        let scene = Scene::start("life-compaction", &options, &[]);
        let ledger = Ledger::new(scene.scratch.path(), "state", 1).keys(KEYS);
        ledger.create_topic(&scene.broker, &["segment.bytes=1048576", "cleanup.policy=compact"]);
        let both = Ledger::new(scene.scratch.path(), "both", 1).keys(KEYS);
        let policy = "cleanup.policy=compact,delete";
        both.create_topic(&scene.broker, &["segment.bytes=1048576", policy]);
        Self { scene, ledger, both, crashes: 0 }
    }

    /// Everything closed is compacted, the archive has exactly those segments, byte for byte, and none is local.
    fn settle(&self, topic: &str) -> Vec<i64> {
        let partition = format!("{topic}-0");
        let (dir, hot) = (self.scene.mount().path(&partition), self.scene.scratch.hot());
        let kept = self.scene.mount().path(&format!(".everlog/archive/{partition}"));
        let settled =
            wait_until("the cleaner, the archive and the eviction to settle", 120, || {
                let shown = bases(&dir);
                let (active, closed) = shown.split_last().unwrap();
                let cleaned = std::fs::read_to_string(hot.join("cleaner-offset-checkpoint"));
                let cleaned = cleaned.unwrap_or_default();
                let to_the_end = format!("{topic} 0 {active}");
                unless(cleaned.lines().any(|l| l == to_the_end), || {
                    format!("{cleaned:?} of {shown:?}")
                })?;
                let archived = if kept.is_dir() { bases(&kept) } else { Vec::new() };
                unless(archived == closed, || format!("{archived:?} are archived of {shown:?}"))?;
                for base in closed {
                    let name = format!("{base:020}.log");
                    let size = dir.join(&name).metadata().map_err(|e| format!("{name}: {e}"))?;
                    let local = hot.join(&partition).join(&name).exists();
                    unless(!local || size.len() == 0, || format!("{name} is local: {size:?}"))?;
                    let read = |path| std::fs::read(path).map_err(|e| format!("{name}: {e}"));
                    unless(read(dir.join(&name))? == read(kept.join(&name))?, || {
                        format!("{name} in the archive is another generation")
                    })?;
                }
                Ok(closed.to_vec())
            });
        assert!(settled.len() >= 3, "too few segments for any merging: {settled:?}");
        settled
    }

    fn prove(&self, after: &str) {
        let proof = self.ledger.prove_with(&self.scene.broker, &["--compacted"]);
        eprintln!("after {after}: {proof}");
    }

    /// Mounts anew, with orders for a fail point.
    fn remount(&mut self, orders: &str) {
        self.scene.broker.stop();
        self.scene.mount.take().unwrap().sigterm();
        let command = self.scene.command.clone().env("EVERLOG_TEST_FAIL", orders);
        self.scene.mount = Some(command.start());
        self.scene.broker.start();
    }

    /// The files on local disk must show that what replaces cold segments is ready, and not all in place.
    fn amid_a_swap(&self) {
        let names = files::names(&self.scene.scratch.hot().join("state-0"));
        let has = |ending: &str| names.iter().any(|n| n.ends_with(ending));
        assert!(has(".log.swap") && has(".log.everlog"), "{names:?}");
    }

    /// Records stream in until `done`; then the broker is gone.
    fn load_until(&mut self, mut done: impl FnMut(&mut Self) -> Result<(), String>) {
        self.crashes += 1;
        let log = self.scene.scratch.path().join(format!("producer-{}.out", self.crashes));
        let mut producer = self.ledger.produce_into_a_crash(&self.scene.broker, log);
        wait_until("a swap", 60, || done(self));
        self.scene.broker.kill9();
        producer.wait(60);
    }
}

/// Retention takes a prefix of what the cleaner has left, cold as it is. The archive keeps it.
fn retention_takes_a_prefix(life: &Life) {
    let closed = life.settle("both");
    life.both.prove_with(&life.scene.broker, &["--compacted"]);
    let (dir, kept) = (life.scene.mount().path("both-0"), ".everlog/archive/both-0");
    let name = |base: &i64| format!("{base:020}.log");
    let before: Vec<String> = closed.iter().map(|b| sha256_file(&dir.join(name(b)))).collect();
    life.scene.broker.topic("--alter", "both", 1, &["retention.bytes=2097152"]);
    let left = wait_until("retention", 60, || {
        let names = files::names(&dir);
        let gone = !names.iter().any(|n| n.contains(".deleted"));
        let left = bases(&dir);
        unless(gone && left[0] > closed[1], || format!("{names:?}")).map(|()| left)
    });
    assert!(left.len() >= 2, "retention has taken everything: {left:?}");
    for (base, sha) in closed.iter().zip(before) {
        let archived = life.scene.mount().path(kept).join(name(base));
        assert_eq!(sha256_file(&archived), sha, "{base} in the archive");
    }
}

fn everlog_dies_amid_a_swap(life: &mut Life) {
    life.remount("cold.rename:kill:2");
    life.load_until(|life| {
        let ended = life.scene.mount.as_mut().unwrap().has_ended();
        unless(ended, || "Everlog lives".to_owned())
    });
    life.scene.mount.take().unwrap().kill9();
    life.amid_a_swap();
}

fn the_broker_dies_amid_a_swap(life: &mut Life) {
    let command = life.scene.command.clone().env("EVERLOG_TEST_FAIL", "cold.rename:delay=4000:1");
    life.scene.mount = Some(command.start());
    life.scene.broker.start();
    life.load_until(|life| {
        let log = life.scene.mount().log();
        unless(log.contains("action=Delay"), || "no cold segment is renamed".to_owned())
    });
    life.amid_a_swap();
    life.scene.broker.start();
}

/// Reads one byte of each page; how many reads are refused with EIO, as it must be where bytes are out of reach.
fn refused_pages(path: &Path) -> usize {
    let file = File::open(path).unwrap();
    let refused = |at: &u64| match file.read_at(&mut [0], *at) {
        Ok(read) => {
            assert_eq!(read, 1, "at {at}");
            false
        }
        Err(e) => {
            assert_eq!(e.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "{e}");
            true
        }
    };
    (0..file.metadata().unwrap().len()).step_by(4096).filter(refused).count()
}

/// The cleaner needs cold bytes, and the store has none to give. Nobody else may have to wait for that.
fn the_cleaner_waits_for_the_store(life: &mut Life) {
    life.scene.store_away(true);
    forget_pages(life.scene.mount().point(), "state");
    life.ledger.produce(&life.scene.broker, 3_000);
    let stands_at = wait_until("the cleaner to wait for the store", 60, || {
        let log = life.scene.mount().log();
        let told = log.rsplit_once("the log cleaner waits object=topics/state-0/");
        let object = told.and_then(|(_, rest)| rest.split_once('/'));
        object.map(|(_, name)| name[..20].to_owned()).ok_or_else(|| "it does not".to_owned())
    });
    std::thread::sleep(Duration::from_secs(5));
    // A reader of the same bytes is answered all the same, page by page.
    let same = life.scene.mount().path("state-0").join(format!("{stands_at}.log"));
    let reader = std::thread::spawn(move || refused_pages(&same));
    wait_until("an answer to another reader", 40, || {
        unless(reader.is_finished(), || "none".to_owned())
    });
    assert!(reader.join().unwrap() > 0, "all of {stands_at} was in a cache: nobody waited");
    life.ledger.produce(&life.scene.broker, 500);
    assert_eq!(life.scene.broker.errors(), Vec::<String>::new());

    // Nor does the broker hang in its grave.
    life.scene.broker.kill9();
    life.scene.broker.start();
    life.ledger.produce(&life.scene.broker, 2_000);
    life.scene.store_away(false);
}

#[test]
fn a_cold_compacted_topic_is_cleaned_and_its_archive_follows_through_kills_amid_a_swap_and_an_absent_store()
 {
    let mut life = Life::begin();
    life.both.produce(&life.scene.broker, 7_000);
    life.ledger.produce(&life.scene.broker, 10_000);
    let segments = life.settle("state");
    let generations = log_objects(&life.scene.scratch.bucket()).len();
    assert!(generations > segments.len(), "nothing archived was ever replaced");
    life.prove("the first compaction");
    retention_takes_a_prefix(&life);
    assert_eq!(life.scene.broker.errors(), Vec::<String>::new());

    everlog_dies_amid_a_swap(&mut life);
    the_broker_dies_amid_a_swap(&mut life);
    life.ledger.produce(&life.scene.broker, 2_000);
    life.settle("state");
    life.prove("both deaths amid a swap");

    the_cleaner_waits_for_the_store(&mut life);
    life.settle("state");
    life.prove("the store's absence");
    life.scene.no_log_dir_failed();
}
