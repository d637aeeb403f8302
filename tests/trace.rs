//! Real brokers' file operations, recorded once (`scripts/record-trace`, `tests/fixtures/traces`), replayed against a mount and a plain
//! directory: whatever is archived, evicted, remounted or killed at random points in between, each operation gives the same on both, and
//! what the broker had in the end.
//!
//! `EVERLOG_MODEL_SEED` makes other points, `EVERLOG_TRACE_TIMES` replays each trace so often, with a seed of its own each time,
//! `EVERLOG_TRACE_ONLY` only those whose names begin so.

mod common;

#[path = "trace/history.rs"]
mod history;
#[path = "trace/run.rs"]
mod run;
#[path = "trace/step.rs"]
mod step;
#[path = "trace/world.rs"]
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Instant;

use common::setting;
use run::Met;

/// The beginning of the names of the traces to replay.
const ONLY: &str = "EVERLOG_TRACE_ONLY";

fn traces() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/traces");
    let mut found = common::files_under(&dir);
    found.retain(|p| p.to_string_lossy().ends_with(".jsonl.gz"));
    let only = std::env::var(ONLY).unwrap_or_default();
    found.retain(|p| common::files::name(p).starts_with(&only));
    found
}

fn replay(path: &Path, seeds: std::ops::Range<u64>) -> Met {
    let name = common::files::name(path).replace(".jsonl.gz", "");
    let steps = step::load(path);
    let mut met = Met::default();
    for seed in seeds {
        let began = Instant::now();
        let now = run::replay(&name, &steps, seed);
        let seconds = began.elapsed().as_secs_f32();
        eprintln!("{name}, seed {seed}: {seconds:.1} s, {now:?}");
        met.add(&now);
    }
    met
}

/// Every trace on a thread of its own: most of the time each waits for ticks.
fn replay_all(seeds: &std::ops::Range<u64>) -> Met {
    let traces = traces();
    let replayed: Vec<_> = std::thread::scope(|scope| {
        let one = |path: &PathBuf| catch_unwind(AssertUnwindSafe(|| replay(path, seeds.clone())));
        let running: Vec<_> = traces.iter().map(|path| scope.spawn(move || one(path))).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut met = Met::default();
    for (path, outcome) in traces.iter().zip(replayed) {
        met.add(&outcome.unwrap_or_else(|_| panic!("{} failed, see above", path.display())));
    }
    met
}

#[test]
fn what_real_brokers_did_gives_the_same_on_a_mount_whatever_is_evicted_in_between() {
    let first = setting("EVERLOG_MODEL_SEED", 1);
    let met = replay_all(&(first..first + setting("EVERLOG_TRACE_TIMES", 3)));
    eprintln!("{met:#?}");
    assert!(met.evictions > 4 * met.replays, "hardly anything was evicted: {met:?}");
    assert!(met.archived > 4 * met.replays, "hardly anything was archived: {met:?}");
    if std::env::var_os(ONLY).is_some() {
        return;
    }
    for kind in ["open", "read", "sendfile", "write", "truncate", "rename", "unlink", "sync"] {
        assert!(met.cold.get(kind) > Some(&0), "no cold segment met '{kind}': {met:?}");
    }
}
