//! One replay: each step is done to a plain directory and to a mount, while archiving, evictions, remounts and crashes come in between.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flate2::Crc;

use crate::common::archive::{hot_log_bytes, log_objects};
use crate::common::logdir::replace_file;
use crate::common::{Mount, MountCommand, Random, Scratch, files, fsck, wait_until};
use crate::history::History;
use crate::step::{Op, Step, Tree};
use crate::world::World;

/// How often each kind of disturbance comes in one replay.
const SETTLES: usize = 12;
const REMOUNTS: usize = 4;
const FORGETS: usize = 40;
const COMPARES: usize = 5;

/// What comes between two steps.
#[derive(Clone, Copy, Debug)]
enum Disturbance {
    /// Archiving and eviction get time until nothing moves any more.
    Settle,
    /// The kernel forgets the segments' pages.
    Forget,
    /// Both trees are read and compared.
    Compare,
    Remount {
        crash: bool,
    },
}

/// What a replay met. Only with large numbers does it prove anything.
#[derive(Debug, Default)]
pub struct Met {
    pub replays: u64,
    pub steps: u64,
    pub evictions: u64,
    pub fetched_bytes: u64,
    pub archived: u64,
    /// Steps that were about a segment without local bytes, by kind.
    pub cold: BTreeMap<&'static str, u64>,
}

impl Met {
    /// Adds what another replay met.
    pub fn add(&mut self, other: &Self) {
        self.replays += other.replays;
        self.steps += other.steps;
        self.evictions += other.evictions;
        self.fetched_bytes += other.fetched_bytes;
        self.archived += other.archived;
        for (kind, n) in &other.cold {
            *self.cold.entry(kind).or_default() += n;
        }
    }
}

struct Run {
    command: MountCommand,
    mount: Option<Mount>,
    mounted: World,
    plain: World,
    passthrough: bool,
    history: History,
    met: Met,
    /// Last: dropped, and so removed, after all that lives in it.
    scratch: Scratch,
}

fn is_segment(path: &str) -> bool {
    path.contains(".log")
}

/// Names that a step is about, and what to call it.
fn about<'a>(op: &'a Op, world: &'a World) -> Option<(&'static str, &'a str)> {
    Some(match op {
        Op::Open { path, .. } => ("open", path.as_str()),
        Op::Write { id, .. } | Op::WriteAt { id, .. } => ("write", world.name_of(*id)?),
        Op::Read { id, .. } | Op::ReadAt { id, .. } => ("read", world.name_of(*id)?),
        Op::SendFile { id, .. } => ("sendfile", world.name_of(*id)?),
        Op::Truncate { id, .. } => ("truncate", world.name_of(*id)?),
        Op::Sync { id } => ("sync", world.name_of(*id)?),
        Op::Rename { from, .. } => ("rename", from.as_str()),
        Op::Unlink { path } => ("unlink", path.as_str()),
        Op::Utimes { path, .. } => ("utimes", path.as_str()),
        _ => return None,
    })
}

impl Run {
    fn start(name: &str, args: &[&str]) -> Self {
        let scratch = Scratch::new(&format!("trace-{name}"));
        let command = MountCommand::broker(scratch.path(), &scratch.file_store("store"));
        let command = args.iter().fold(command, MountCommand::arg);
        let passthrough = !args.contains(&"--no-passthrough");
        let mount = command.start();
        let mounted = World::new(mount.point());
        let plain = World::new(&scratch.dir("plain"));
        let history = History::default();
        Self {
            command,
            mount: Some(mount),
            mounted,
            plain,
            passthrough,
            history,
            met: Met { replays: 1, ..Met::default() },
            scratch,
        }
    }

    fn disturb(&mut self, what: Disturbance) {
        match what {
            Disturbance::Settle => self.settle(),
            Disturbance::Forget => self.mounted.forget_pages(),
            Disturbance::Compare => self.compare(),
            Disturbance::Remount { crash } => self.remount(crash),
        }
    }

    fn settle(&self) {
        let (mut last, mut calm) = ((u64::MAX, usize::MAX), 0);
        for _ in 0..60 {
            std::thread::sleep(Duration::from_millis(50));
            let objects = log_objects(&self.scratch.bucket()).len();
            let now = (hot_log_bytes(&self.scratch.hot()), objects);
            calm = if now == last { calm + 1 } else { 0 };
            last = now;
            if calm >= 9 {
                break;
            }
        }
        self.mounted.forget_pages();
    }

    /// Adds what the daemon has counted so far: a new process begins at zero.
    fn count(&mut self) {
        let status = self.mount.as_ref().unwrap().status();
        let is = |pointer: &str| status.pointer(pointer).and_then(|v| v.as_u64()).unwrap();
        self.met.evictions += is("/counters/evicted_segments");
        self.met.fetched_bytes += is("/reads/fetched_bytes");
        assert_eq!(status["broken"], serde_json::json!([]), "{status}");
        assert_eq!(is("/reads/errors"), 0, "{status}");
    }

    fn remount(&mut self, crash: bool) {
        if !self.plain.can_let_go() {
            return;
        }
        self.count();
        let (mounted, plain) = (self.mounted.let_go(), self.plain.let_go());
        let mount = self.mount.take().unwrap();
        if crash {
            if !self.passthrough {
                // What was written through a mapping is then in the kernel's memory only, and goes with the mount.
                rustix::fs::syncfs(File::open(mount.point()).unwrap()).unwrap();
            }
            mount.kill9()
        } else {
            mount.umount()
        }
        self.mount = Some(self.command.start());
        self.mounted.reopen(mounted);
        self.plain.reopen(plain);
    }

    fn step(&mut self, step: &Step) {
        self.met.steps += 1;
        if let Some((kind, name)) = about(&step.op, &self.plain)
            && is_segment(name)
            && self.scratch.hot().join(format!("{name}.everlog")).exists()
        {
            *self.met.cold.entry(kind).or_default() += 1;
        }
        self.history.before(&self.plain.root, &step.op, |id| self.plain.name_of(id));
        let (found, expected) = (self.mounted.apply(&step.op), self.plain.apply(&step.op));
        assert!(found == expected, "{step:?} gave {found:?} on the mount, {expected:?} beside it");
        if let Op::Phase { name, tree } = &step.op {
            assert_tree(name, tree, &self.plain.root);
            self.history.look(&self.plain.root);
            self.compare();
            // Nobody is in a hurry while the broker is down, and what comes next meets what is cold.
            self.settle();
        } else {
            assert_eq!(
                expected.number, step.recorded,
                "{step:?} gave {expected:?} on the plain directory: the trace is not what the broker did"
            );
        }
    }

    fn compare(&self) {
        let tree = |root: &Path| files::tree(root, |_, _, _| String::new());
        let expected = tree(&self.plain.root).unwrap();
        let found = tree(&self.mounted.root).unwrap_or_else(|e| panic!("the mount: {e}"));
        let missing: Vec<_> = expected.iter().filter(|(k, v)| found.get(*k) != Some(*v)).collect();
        let extra: Vec<_> = found.iter().filter(|(k, v)| expected.get(*k) != Some(*v)).collect();
        assert!(expected == found, "the plain directory has {missing:#?}, the mount {extra:#?}");
        self.mounted.forget_pages();
    }

    /// A broker would go on to rewrite its checkpoints, which a mount waits for after a restart. Then all that is committed is archived.
    fn archive_catches_up(&self) {
        let name = "replication-offset-checkpoint";
        let content = std::fs::read(self.plain.root.join(name)).unwrap();
        for root in [&self.plain.root, &self.mounted.root] {
            replace_file(&root.join(name), &content);
            replace_file(&root.join(name), &content);
        }
        wait_until("the archive to catch up", 60, || {
            let status = self.mount.as_ref().unwrap().status();
            let lag = &status["totals"]["lag_segments"];
            crate::common::unless(lag == 0 && status["quarantine"] == 0, || format!("{status:#}"))
        });
    }

    /// Everything is archived that may be, and the archive has only what the trace wrote; the data directory has nothing without a reason.
    fn finish(mut self) -> Met {
        self.archive_catches_up();
        self.settle();
        self.compare();
        self.count();
        let spooled = wait_until("the spool to be given up", 20, || {
            let status = self.mount.as_ref().unwrap().status();
            let (kept, owed) =
                (&status["spool"]["segments"], &status["spool"]["waiting_for_archive"]);
            crate::common::unless(kept == owed, || format!("{status}"))?;
            Ok(kept.as_u64().unwrap() as usize)
        });
        self.met.archived = self.history.assert_archive_is_part(&self.scratch.bucket()) as u64;
        self.mount.take().unwrap().umount();
        let odd =
            fsck::data_directory(&self.scratch.path().join("data"), &self.plain.root, spooled);
        assert!(odd.is_empty(), "{odd:#?}");
        self.met
    }
}

/// The replay has come to what the broker had left when the trace was recorded.
fn assert_tree(phase: &str, expected: &Tree, root: &Path) {
    let shown = |path: PathBuf| path.strip_prefix(root).unwrap().display().to_string();
    let mut found: Tree = files::files_under(root)
        .into_iter()
        .map(|path| {
            let bytes = std::fs::read(&path).unwrap();
            let mut crc = Crc::new();
            crc.update(&bytes);
            (shown(path), Some((bytes.len() as u64, crc.sum())))
        })
        .collect();
    let dirs = expected.iter().filter(|(name, v)| v.is_none() && root.join(name).is_dir());
    found.extend(dirs.map(|(name, _)| (name.clone(), None)));
    let differs: Vec<_> = expected.iter().filter(|(k, v)| found.get(*k) != Some(*v)).collect();
    let extra: Vec<_> = found.keys().filter(|k| !expected.contains_key(*k)).collect();
    assert!(
        *expected == found,
        "{phase}: the broker had left {differs:?} and not {extra:?}: the trace is not what it did"
    );
}

/// Arguments of the mount.
fn way_to_mount(random: &mut Random) -> Vec<&'static str> {
    let mut one_of = |all: &[&'static str]| *random.pick(all).unwrap();
    let mut args = vec!["--hot-bytes", one_of(&["1", "1", "1", "400KiB"])];
    args.extend(["--cache-bytes", one_of(&["256KiB", "1MiB", "64MiB"])]);
    if one_of(&["yes", "yes", "no"]) == "no" {
        args.push("--no-passthrough");
    }
    args
}

/// Where disturbances come: mostly right before a step that is about a segment.
fn plan(steps: &[Step], random: &mut Random) -> BTreeMap<usize, Vec<Disturbance>> {
    let is_of_interest = |step: &Step| match &step.op {
        Op::SendFile { .. } | Op::ReadAt { .. } | Op::Truncate { .. } => true,
        Op::Open { path, .. } | Op::Unlink { path } => is_segment(path),
        Op::Rename { from, .. } => is_segment(from) || from.ends_with("-checkpoint.tmp"),
        _ => false,
    };
    let of_interest: Vec<usize> =
        (0..steps.len()).filter(|at| is_of_interest(&steps[*at])).collect();
    let mut plan: BTreeMap<usize, Vec<Disturbance>> = BTreeMap::new();
    let mut add = |times: usize, what: &dyn Fn(usize) -> Disturbance| {
        // One in each part of the trace, or a stretch of it could go by undisturbed.
        for nth in 0..times {
            let (from, to) = (steps.len() * nth / times, steps.len() * (nth + 1) / times);
            let here: Vec<_> = of_interest.iter().filter(|at| (from..to).contains(*at)).collect();
            let at = match random.pick(&here) {
                Some(at) if random.below(3) > 0 => **at,
                _ => from + random.below((to - from) as u64) as usize,
            };
            plan.entry(at).or_default().push(what(nth));
        }
    };
    add(REMOUNTS, &|nth| Disturbance::Remount { crash: nth % 2 == 0 });
    add(SETTLES, &|_| Disturbance::Settle);
    add(COMPARES, &|_| Disturbance::Compare);
    add(FORGETS, &|_| Disturbance::Forget);
    plan
}

/// Replays a trace; panics where the mount gives anything else than the plain directory.
pub fn replay(name: &str, steps: &[Step], seed: u64) -> Met {
    let mut random = Random::new(seed ^ u64::from(crc32c::crc32c(name.as_bytes())));
    let args = way_to_mount(&mut random);
    let plan = plan(steps, &mut random);
    let mut run = Run::start(name, &args);
    let mut done = 0;
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        for (at, step) in steps.iter().enumerate() {
            done = at;
            for disturbance in plan.get(&at).into_iter().flatten() {
                run.disturb(*disturbance);
            }
            run.step(step);
        }
    }));
    if let Err(panic) = outcome {
        eprintln!("trace {name}, seed {seed}, mounted with {args:?}, step {done}; the last ones:");
        for (at, step) in steps.iter().enumerate().take(done + 1).skip(done.saturating_sub(25)) {
            plan.get(&at).into_iter().flatten().for_each(|d| eprintln!("       {d:?}"));
            eprintln!("  {at}: {step:?}");
        }
        std::panic::resume_unwind(panic);
    }
    run.finish()
}
