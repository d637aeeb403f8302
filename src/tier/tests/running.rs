//! The loop that drives it all, and the run over a stock log dir.

use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use super::world::{Mount, World, name};
use crate::catalog::Catalog;
use crate::store::{Fault, FaultHook, StoreErrorKind};
use crate::tier::{Pace, Tier, TierConfig};

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..600 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("did not happen within 30 s: {what}");
}

struct Running {
    mount: Mount,
    stop: watch::Sender<bool>,
    engine: tokio::task::JoinHandle<()>,
}

fn start(mount: Mount) -> Running {
    let (stop, stopped) = watch::channel(false);
    let engine = tokio::spawn(mount.tier.clone().run(stopped));
    Running { mount, stop, engine }
}

impl Running {
    async fn stop(self) -> Mount {
        self.stop.send(true).unwrap();
        tokio::time::timeout(Duration::from_secs(10), self.engine).await.unwrap().unwrap();
        self.mount
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn left_alone_it_archives_everything_and_keeps_the_budget() {
    let mut world = World::new();
    let names: Vec<String> = (0..3).map(|p| format!("t-{p}")).collect();
    let bases: Vec<i64> = (0..10).map(|i| i * 100).collect();
    names.iter().for_each(|n| world.partition(n, &bases, 1000));
    let offsets: Vec<(&str, i64)> = names.iter().map(|n| (n.as_str(), 1000)).collect();
    world.checkpoints(&offsets);
    let size = std::fs::metadata(world.hot().join("t-0").join(name(0))).unwrap().blocks() * 512;
    world.config.hot_bytes = Some(size * 6);
    let running = start(world.mount());
    let tier = running.mount.tier.clone();
    until("all archived, budget kept", || {
        let totals = tier.status().totals;
        totals.archived_segments == 27 && totals.hot_disk_bytes <= size * 6
    })
    .await;
    let totals = tier.status().totals;
    assert_eq!((totals.closed_segments, totals.lag_segments), (27, 0));
    assert!(totals.cold_segments >= 24 && totals.hot_disk_bytes >= size * 5, "{totals:?}");
    assert_eq!(tier.last_error(), None);
    let mount = running.stop().await;
    for n in &names {
        assert_eq!(world.check_archive(n).await.len(), 9);
        assert!(mount.log(n, 900).is_hot(), "the active one");
    }
}

/// A machine that is as busy as it is told to be.
#[derive(Default)]
struct Machine {
    busy: AtomicBool,
    asked: AtomicU64,
    behind: AtomicBool,
}

impl Pace for Machine {
    fn set_behind(&self, behind: bool) {
        self.behind.store(behind, Ordering::Relaxed);
    }

    fn is_machine_busy(&self) -> bool {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.busy.load(Ordering::Relaxed)
    }
}

/// A busy machine with one partition of two closed segments, and that it was found busy a few times.
async fn on_a_busy_machine(world: &mut World) -> (Running, Arc<Machine>) {
    let machine = Arc::new(Machine::default());
    machine.busy.store(true, Ordering::Relaxed);
    world.pace = Some(machine.clone());
    world.partition("t-0", &[0, 100, 200], 300);
    world.checkpoints(&[("t-0", 300)]);
    let running = start(world.mount());
    let asked = machine.clone();
    until("asked how busy it is", || asked.asked.load(Ordering::Relaxed) >= 3).await;
    (running, machine)
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_busy_machine_archiving_stands_back_until_it_is_not() {
    let mut world = World::new();
    let (running, machine) = on_a_busy_machine(&mut world).await;
    let tier = running.mount.tier.clone();
    assert_eq!(tier.counters().archived_segments.get(), 0);
    machine.busy.store(false, Ordering::Relaxed);
    until("archived", || tier.status().totals.archived_segments == 2).await;
    running.stop().await;
    assert!(!machine.behind.load(Ordering::Relaxed));
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_machine_that_stays_busy_archiving_stands_back_for_a_while_only() {
    let mut world = World::new();
    let (running, _machine) = on_a_busy_machine(&mut world).await;
    let tier = running.mount.tier.clone();
    assert_eq!(tier.counters().archived_segments.get(), 0);
    world.pass(crate::tier::pace::STAND_BACK_MAX_MS);
    until("archived", || tier.status().totals.archived_segments == 2).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_the_budget_of_local_disk_archiving_does_not_stand_back() {
    let mut world = World::new();
    world.config.hot_bytes = Some(1);
    let (running, _machine) = on_a_busy_machine(&mut world).await;
    let tier = running.mount.tier.clone();
    until("evicted", || tier.status().totals.cold_segments == 2).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_store_away_it_waits_says_so_and_catches_up() {
    let world = World::new();
    world.partition("t-0", &[0, 100, 200], 300);
    world.checkpoints(&[("t-0", 300)]);
    let away = Arc::new(AtomicBool::new(true));
    let switch = away.clone();
    let hook: FaultHook = Arc::new(move |_, _| match switch.load(Ordering::Relaxed) {
        true => Fault::Fail(StoreErrorKind::Unavailable),
        false => Fault::Pass,
    });
    let running = start(world.mount_on(&world.store.with_faults(hook)));
    let tier = running.mount.tier.clone();
    until("an error is told", || tier.last_error().is_some()).await;
    assert_eq!(tier.status().totals.lag_segments, 2);
    running.mount.retire("t-0", 0);
    away.store(false, Ordering::Relaxed);
    until("caught up", || {
        tier.chain(&super::world::chain_id("t-0")).is_some_and(|c| c.version() == 2)
    })
    .await;
    until("the spool is empty", || world.spool_entries().is_empty()).await;
    until("nothing is wrong any more", || tier.last_error().is_none()).await;
    running.stop().await;
    assert_eq!(world.check_archive("t-0").await, [(0, 100), (100, 200)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_promptly_while_the_store_hangs() {
    let world = World::new();
    world.partition("t-0", &[0, 100], 200);
    world.checkpoints(&[("t-0", 200)]);
    let reached = Arc::new(AtomicBool::new(false));
    let seen = reached.clone();
    let hook: FaultHook = Arc::new(move |_, _| {
        seen.store(true, Ordering::Relaxed);
        Fault::Hang
    });
    let running = start(world.mount_on(&world.store.with_faults(hook)));
    until("the store is asked", || reached.load(Ordering::Relaxed)).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_segment_is_archived_soon_after_the_watermark_passes_it() {
    let world = World::new();
    world.partition("t-0", &[0], 100);
    world.checkpoints(&[("t-0", 100)]);
    let running = start(world.mount());
    let tier = running.mount.tier.clone();
    let dir = running.mount.dir("t-0");
    dir.create_log(&name(100), 0o644, None, true).unwrap();
    until("archived", || tier.status().totals.archived_segments == 1).await;
    assert_eq!(tier.status().counters.rolled_to_archived_count, 1);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stock_log_dir_is_archived_once_and_left_as_it_was() {
    let world = World::new();
    world.partition("t-0", &[0, 100, 200], 300);
    world.partition("u-0", &[0, 100, 200], 300);
    world.checkpoints(&[("t-0", 300), ("u-0", 150)]);
    let bad = world.hot().join("t-0").join(name(100));
    let mut bytes = std::fs::read(&bad).unwrap();
    bytes[700] ^= 0x10;
    std::fs::write(&bad, &bytes).unwrap();
    let listing = || {
        let mut all: Vec<_> = ["t-0", "u-0"]
            .iter()
            .flat_map(|d| std::fs::read_dir(world.hot().join(d)).unwrap())
            .map(|e| e.unwrap().path())
            .collect();
        all.sort();
        all
    };
    let before = listing();
    for expected in [(2, 0), (0, 2)] {
        let catalog = Arc::new(Catalog::open_stock(&world.hot()).unwrap());
        let config = TierConfig { stock: true, ..world.config.clone() };
        let tier = Tier::new(config, world.deps(&world.store, catalog, false));
        let report = tier.archive_once(&|_| {}).await;
        assert_eq!((report.archived_segments, report.adopted_segments), expected, "{report:?}");
        assert_eq!((report.quarantined.len(), report.skipped_not_committed), (1, 1));
        assert!(report.is_complete());
    }
    assert_eq!(listing(), before);
    assert_eq!(world.check_archive("t-0").await, [(0, 100)]);
    assert_eq!(world.check_archive("u-0").await, [(0, 100)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_clean_shutdown_young_directories_are_believed_too() {
    let world = World::new();
    world.partition("t-0", &[0, 100, 200], 300);
    let metadata = world.hot().join("t-0/partition.metadata");
    std::fs::File::open(metadata).unwrap().set_modified(std::time::SystemTime::now()).unwrap();
    world.checkpoints(&[("t-0", 300)]);
    for (marker, expected) in [(false, (0, 2)), (true, (2, 0))] {
        if marker {
            world.write(".kafka_cleanshutdown", b"{}");
        }
        let catalog = Arc::new(Catalog::open_stock(&world.hot()).unwrap());
        let config = TierConfig { stock: true, ..world.config.clone() };
        let tier = Tier::new(config, world.deps(&world.store, catalog, false));
        let report = tier.archive_once(&|_| {}).await;
        assert_eq!((report.archived_segments, report.skipped_not_committed), expected);
    }
}
