//! A walk over every step that can be seen from outside: at each one the process is killed, the store refuses, or local disk refuses. The
//! mount is started again, and every byte of the log dir, every archived object and every file of the data directory is compared with a
//! plain directory that got the same operations.
//!
//! `EVERLOG_WALK_SEED` makes a long walk with other passages of the points; `scripts/torture` does that.

mod common;

#[path = "kill_walk/disk.rs"]
mod disk;
#[path = "kill_walk/run.rs"]
mod run;
#[path = "kill_walk/scenario.rs"]
mod scenario;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use common::workers::{each, said, seed};
use common::{Scratch, shim};
use disk::Shim;
use everlog::failpoint::{ALL, Kind};
use run::{Failure, Place};
use scenario::Scenario;

/// A scenario with its setup done.
struct Prepared {
    scenario: Scenario,
    template: Place,
}

impl Prepared {
    fn all(scratch: &Scratch) -> Vec<Self> {
        let done = Mutex::new(Vec::new());
        let failed = each(scenario::all(), |scenario| {
            said(|| {
                let mut template = Place::new(&scratch.dir(&format!("{}-template", scenario.name)));
                template.set_up(&scenario);
                done.lock().unwrap().push(Self { scenario, template });
            })
        });
        assert!(failed.is_empty(), "{}", failed.join("\n"));
        done.into_inner().unwrap()
    }

    /// Runs it in a directory of its own, which is removed when all is well.
    fn run(&self, dir: &Path, failure: &Failure) -> Result<(), String> {
        let name = self.scenario.name;
        let done = said(|| self.template.copied(dir).run(&self.scenario, failure));
        match &done {
            Ok(()) => std::fs::remove_dir_all(dir).unwrap(),
            Err(_) => common::mount::detach(&dir.join("mount")),
        }
        done.map_err(|words| {
            format!("=== {name}, {} (kept: {}):\n{words}", failure.what, dir.display())
        })
    }
}

/// How often each point was passed, by the trace of a process.
fn passages(trace: &Path) -> BTreeMap<String, usize> {
    let mut passed = BTreeMap::new();
    for line in std::fs::read_to_string(trace).unwrap_or_default().lines() {
        *passed.entry(line.trim_end_matches('!').to_owned()).or_default() += 1;
    }
    passed
}

fn watch(scenario: &Scenario, trace: &Path) -> Failure {
    Failure {
        what: "nothing fails".to_owned(),
        env: vec![
            ("EVERLOG_TEST_FAIL".to_owned(), scenario.orders.to_owned()),
            ("EVERLOG_TEST_FAIL_TRACE".to_owned(), trace.display().to_string()),
        ],
        happened: Box::new(|| false),
        watched: true,
        kills: false,
        may_lose: false,
    }
}

fn order(
    scenario: &Scenario,
    (point, action, nth): (&str, &str, usize),
    trace: PathBuf,
) -> Failure {
    let order = format!("{point}:{action}:{nth}");
    let orders = if scenario.orders.is_empty() {
        order.clone()
    } else {
        format!("{},{order}", scenario.orders)
    };
    let acted = format!("{point}!");
    Failure {
        what: order,
        env: vec![
            ("EVERLOG_TEST_FAIL".to_owned(), orders),
            ("EVERLOG_TEST_FAIL_TRACE".to_owned(), trace.display().to_string()),
        ],
        happened: Box::new(move || {
            std::fs::read_to_string(&trace).unwrap_or_default().lines().any(|l| l == acted)
        }),
        watched: false,
        kills: action == "kill",
        may_lose: action != "kill",
    }
}

fn actions(kind: Kind, turn: usize) -> Vec<&'static str> {
    match (kind, seed()) {
        (Kind::Step, _) => vec!["kill"],
        (Kind::Store, _) => vec!["kill", "store"],
        (Kind::Disk, None) => vec!["kill", ["eio", "enospc"][turn % 2]],
        (Kind::Disk, Some(_)) => vec!["kill", "eio", "enospc"],
    }
}

/// Which passages of a point that is passed `times` times.
fn chosen(times: usize, turn: usize) -> Vec<usize> {
    match seed() {
        None => vec![1],
        Some(seed) => {
            let other = 1 + (seed as usize).wrapping_mul(31).wrapping_add(turn * 17) % times;
            BTreeSet::from([1, other, times]).into_iter().collect()
        }
    }
}

#[test]
fn killed_or_refused_at_every_step_it_loses_nothing_and_leaves_nothing() {
    let began = Instant::now();
    let scratch = Scratch::new("walk");
    let prepared = Prepared::all(&scratch);
    let traces: Vec<(&Prepared, PathBuf)> = prepared
        .iter()
        .map(|p| (p, scratch.path().join(format!("{}-watched.trace", p.scenario.name))))
        .collect();
    let failed = each(traces.clone(), |(p, trace)| {
        p.run(
            &scratch.path().join(format!("{}-watched", p.scenario.name)),
            &watch(&p.scenario, &trace),
        )
    });
    assert!(failed.is_empty(), "without any failure:\n{}", failed.join("\n"));

    let mut reached: BTreeSet<&str> = BTreeSet::new();
    let mut runs = Vec::new();
    for (p, trace) in &traces {
        for (point, times) in passages(trace) {
            let known = ALL.iter().find(|(name, _)| *name == point);
            let &(name, kind) =
                known.unwrap_or_else(|| panic!("{point} does not stand in the list"));
            if !p.scenario.claims.iter().any(|claim| name.starts_with(claim)) {
                continue;
            }
            reached.insert(name);
            for action in actions(kind, runs.len()) {
                let passages = chosen(times, runs.len());
                runs.extend(passages.into_iter().map(|nth| (*p, name, action, nth)));
            }
        }
    }
    let never: Vec<_> = ALL.iter().map(|(n, _)| *n).filter(|n| !reached.contains(n)).collect();
    let count = runs.len();
    let numbered: Vec<_> = runs.into_iter().enumerate().collect();
    let failed = each(numbered, |(at, (p, point, action, nth))| {
        let dir = scratch.path().join(format!("run-{at}"));
        let trace = scratch.path().join(format!("run-{at}.trace"));
        p.run(&dir, &order(&p.scenario, (point, action, nth), trace))
    });
    println!(
        "reached {} of {} points, {count} runs, {} failed, {} s",
        reached.len(),
        ALL.len(),
        failed.len(),
        began.elapsed().as_secs()
    );
    assert!(never.is_empty(), "never reached: {never:?}; {}", failed.join("\n\n"));
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}

#[test]
fn whichever_call_to_local_disk_fails_nothing_is_lost() {
    let began = Instant::now();
    let scratch = Scratch::new("walk-disk");
    let library = shim::build(&scratch, "diskfault");
    let prepared = Prepared::all(&scratch);
    let counts = Mutex::new(BTreeMap::new());
    let failed = each(prepared.iter().collect(), |p: &Prepared| {
        let dir = scratch.path().join(format!("{}-counted", p.scenario.name));
        let shim = Shim::new(&library, &dir.with_extension("shim"), &dir.join("data"), 0, 0);
        p.run(&dir, &shim.failure())?;
        counts.lock().unwrap().insert(p.scenario.name, shim.calls());
        Ok(())
    });
    assert!(failed.is_empty(), "without any failure:\n{}", failed.join("\n"));
    let counts = counts.into_inner().unwrap();
    let total: u64 = counts.values().sum();
    // In CI one in so many, in a long walk each one, until none fails any more.
    let stride = if seed().is_some() { 1 } else { (total / 60).max(1) };
    let mut runs = Vec::new();
    for p in &prepared {
        let first = 1 + seed().unwrap_or(0) % stride;
        let calls = (first..=counts[p.scenario.name]).step_by(stride as usize);
        runs.extend(calls.map(|nth| {
            (p, nth, [rustix::io::Errno::IO, rustix::io::Errno::NOSPC][nth as usize % 2])
        }));
    }
    let (count, happened) = (runs.len(), AtomicUsize::new(0));
    let failed = each(runs.into_iter().enumerate().collect(), |(at, (p, nth, errno))| {
        let dir = scratch.path().join(format!("call-{at}"));
        let shim = Shim::new(
            &library,
            &dir.with_extension("shim"),
            &dir.join("data"),
            nth,
            errno.raw_os_error(),
        );
        let done = p.run(&dir, &shim.failure());
        happened.fetch_add(usize::from(shim.has_failed()), Ordering::Relaxed);
        done
    });
    let happened = happened.into_inner();
    println!(
        "{total} calls to local disk, {happened} of {count} made to fail, {} s",
        began.elapsed().as_secs()
    );
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
    // The last ones of a run may not come again: how often the disk is called depends on time.
    assert!(happened * 10 >= count * 7, "only {happened} of {count} failures happened");
}
