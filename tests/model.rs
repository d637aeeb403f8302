//! Random operations against the mounted filesystem and a plain directory: after every step both have the same tree and the same bytes,
//! whatever was archived, evicted or remounted in between. `EVERLOG_MODEL_SEED` and `EVERLOG_MODEL_STEPS` make other or longer walks.

mod common;

#[path = "model/op.rs"]
mod op;
#[path = "model/world.rs"]
mod world;

use std::collections::BTreeMap;
use std::time::Duration;

use common::archive::log_objects;
use common::{Mount, MountCommand, Random, Scratch, setting};
use op::{Op, choose};
use rustix::io::Errno;
use world::{World, tree};

const HOT_BYTES: u64 = 250_000;

struct Run {
    command: MountCommand,
    mount: Option<Mount>,
    mounted: World,
    plain: World,
    cold_seen: usize,
    /// Last: dropped, and so removed, after all that lives in it.
    scratch: Scratch,
}

impl Run {
    fn start(name: &str, tiering: bool) -> Self {
        let scratch = Scratch::new(name);
        let store = scratch.file_store("store");
        let command = MountCommand::broker(scratch.path(), &store);
        let command = if tiering {
            command.option("--hot-bytes", HOT_BYTES).option("--cache-bytes", "1MiB")
        } else {
            command.option("--exclude", "*")
        };
        let mount = command.start();
        let mounted = World::new(mount.point());
        let plain = World::new(&scratch.dir("plain"));
        Self { scratch, command, mount: Some(mount), mounted, plain, cold_seen: 0 }
    }

    /// Gives archiving and eviction time until nothing moves any more; attributes must not change by it.
    fn settle(&mut self) {
        let before = world::attributes(&self.mounted.root);
        let mut last = (u64::MAX, usize::MAX);
        let mut calm = 0;
        for _ in 0..100 {
            std::thread::sleep(Duration::from_millis(50));
            let objects = log_objects(&self.scratch.path().join("store")).len();
            let now =
                (common::archive::hot_log_bytes(&self.scratch.path().join("data/hot")), objects);
            calm = if now == last { calm + 1 } else { 0 };
            last = now;
            if calm >= 12 {
                break;
            }
        }
        assert_eq!(world::attributes(&self.mounted.root), before, "tiering changed attributes");
        let stubs = common::files_under(&self.scratch.path().join("data/hot"));
        self.cold_seen +=
            stubs.iter().filter(|p| p.to_string_lossy().ends_with(".everlog")).count();
    }

    fn remount(&mut self, crash: bool) {
        self.mounted.let_go();
        self.plain.let_go();
        let mount = self.mount.take().unwrap();
        if crash {
            mount.kill9()
        } else {
            mount.umount()
        }
        self.mount = Some(self.command.start());
        self.mounted.reopen();
        self.plain.reopen();
    }

    fn step(&mut self, op: &Op) {
        match op {
            Op::Settle => self.settle(),
            Op::Remount { crash } => self.remount(*crash),
            _ => {
                let found = self.mounted.apply(op);
                let (found, expected) = match op.as_mv_does_it() {
                    // A segment cannot take a name that is no segment's without a copy, nor the other way round.
                    Some(copy) if found == Err(Errno::XDEV.raw_os_error()) => {
                        (self.mounted.apply(&copy), self.plain.apply(&copy))
                    }
                    _ => (found, self.plain.apply(op)),
                };
                let (a, b) = (world::show(&found), world::show(&expected));
                let held = self.plain.held();
                assert!(found == expected, "{op:?} gave {a} instead of {b}; held open: {held:?}");
            }
        }
    }

    fn compare(&self) {
        let (expected, found) = (tree(&self.plain.root), tree(&self.mounted.root));
        if expected != found {
            let differs: BTreeMap<_, _> =
                expected.iter().filter(|(k, v)| found.get(*k) != Some(*v)).collect();
            let extra: Vec<_> = found.iter().filter(|(k, _)| !expected.contains_key(*k)).collect();
            panic!("the trees differ; plain has {differs:#?}; only the mount has {extra:#?}");
        }
    }
}

/// Walks and returns how often a cold segment was seen.
fn walk(name: &str, seed: u64, steps: usize, tiering: bool) -> usize {
    let mut run = Run::start(name, tiering);
    let mut random = Random::new(seed);
    let mut trace = std::collections::VecDeque::new();
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        for step in 0..steps {
            let op = choose(&mut random, &run.plain);
            trace.push_back(format!("{step}: {op:?}"));
            if trace.len() > 25 {
                trace.pop_front();
            }
            run.step(&op);
            run.compare();
        }
        run.settle();
        run.compare();
    }));
    if let Err(panic) = outcome {
        eprintln!("seed {seed}, tiering {tiering}; the last steps:");
        trace.iter().for_each(|line| eprintln!("  {line}"));
        std::panic::resume_unwind(panic);
    }
    run.cold_seen
}

#[test]
fn random_operations_on_the_mount_give_what_a_plain_directory_gives() {
    let steps = setting("EVERLOG_MODEL_STEPS", 400) as usize;
    let first = setting("EVERLOG_MODEL_SEED", 1);
    let mut cold = 0;
    for seed in first..first + 2 {
        cold += walk("model-tiered", seed, steps, true);
    }
    assert!(cold > 20, "only {cold} cold segments were ever seen, so tiering was hardly exercised");
}

#[test]
fn the_same_operations_with_tiering_off_give_the_same() {
    let steps = setting("EVERLOG_MODEL_STEPS", 400) as usize;
    let cold = walk("model-plain", setting("EVERLOG_MODEL_SEED", 1), steps, false);
    assert_eq!(cold, 0);
}
