//! Named places between two visible steps, where a test can end the process or make the step fail.
//!
//! Only in builds with debug assertions: in a release build each call is empty, and arming is refused.
//! Elsewhere an unarmed point costs one relaxed load. `cli` arms them once at the start, from
//! `EVERLOG_TEST_FAIL` (`docs/ARCHITECTURE.md`); every point stands in [`ALL`], so that a test can walk over
//! them and show that each was reached.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// What can go wrong at a point, besides the end of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing: between two steps.
    Step,
    /// The local disk refuses.
    Disk,
    /// The store refuses.
    Store,
}

use Kind::{Disk, Step, Store};

/// Every point: what comes next when it is passed. In the order of the code's ways.
pub const ALL: &[(&str, Kind)] = &[
    // A hot file is changed by the broker.
    ("hot.write", Disk),
    ("hot.written", Step),
    ("hot.truncate", Disk),
    ("log.rename", Disk),
    ("log.renamed", Step),
    ("log.unlink", Disk),
    // A segment is archived.
    ("identity.put", Store),
    ("identity.keep", Disk),
    ("archive.look", Disk),
    ("archive.log.put", Store),
    ("archive.aux.put", Store),
    ("archive.log.compare", Store),
    ("archive.aux.compare", Store),
    ("archive.compared", Store),
    ("archive.upload.drop", Store),
    ("archive.adopt", Store),
    ("archive.note", Step),
    ("archive.noted", Step),
    // Its commit.
    ("commit.marker.put", Store),
    ("commit.put", Store),
    ("commit.put.done", Store),
    ("commit.mirror", Disk),
    ("datadir.dir", Disk),
    ("datadir.dir.sync", Disk),
    ("datadir.lock.sync", Disk),
    ("mirror.dir", Disk),
    ("mirror.dir.sync", Disk),
    ("mirror.file", Disk),
    ("mirror.file.sync", Disk),
    ("mirror.file.rename", Disk),
    ("mirror.names.sync", Disk),
    ("commit.mirrored", Step),
    ("checkpoint.page.put", Store),
    ("checkpoint.root.put", Store),
    ("checkpoint.mirror", Disk),
    ("checkpoint.mirror.root", Disk),
    ("checkpoint.mirror.prune", Disk),
    ("checkpoint.done", Step),
    ("head.put", Store),
    ("head.done", Step),
    // Its local bytes go.
    ("evict.compare", Disk),
    ("evict.sentinel", Disk),
    ("evict.sentinel.sync", Disk),
    ("evict.stub", Disk),
    ("durable.file", Disk),
    ("durable.file.sync", Disk),
    ("durable.rename", Disk),
    ("durable.names.sync", Disk),
    ("evict.swap", Step),
    ("evict.unlink", Disk),
    ("evict.done", Step),
    // A cold file is changed.
    ("overlay.file", Disk),
    ("overlay.size", Disk),
    ("overlay.write", Disk),
    ("overlay.truncate", Disk),
    ("overlay.sync", Disk),
    ("overlay.names.sync", Disk),
    ("overlay.stub", Disk),
    ("overlay.done", Step),
    ("cold.attributes", Disk),
    ("cold.rename.over", Disk),
    ("cold.rename", Disk),
    ("cold.unlink", Disk),
    ("cold.unlink.sync", Disk),
    ("cold.unlink.overlay", Disk),
    ("replaced.sync", Disk),
    ("replaced.stub", Disk),
    ("replaced.overlay", Disk),
    // It becomes whole again.
    ("hydrate.file", Disk),
    ("hydrate.fill", Disk),
    ("hydrate.sync", Disk),
    ("hydrate.attributes", Disk),
    ("hydrate.rename", Disk),
    ("hydrate.names.sync", Disk),
    ("hydrate.stub", Disk),
    ("hydrate.overlay", Disk),
    ("hydrate.done", Step),
    // Kafka discards a segment.
    ("spool.entry", Disk),
    ("spool.document", Disk),
    ("spool.entry.sync", Disk),
    ("spool.links", Disk),
    ("spool.move", Disk),
    ("spool.moved", Step),
    ("spool.kept", Step),
    ("spool.reserve", Disk),
    ("spool.save", Disk),
    ("spool.ask", Disk),
    ("spool.answered", Step),
    ("spool.release", Disk),
    ("spool.release.sync", Disk),
    ("spool.remove.bytes", Disk),
    ("spool.remove.sync", Disk),
    ("spool.remove.document", Disk),
    ("spool.remove.entry", Disk),
    ("spool.removed", Step),
    ("spool.leftover", Disk),
    // A version of Kafka's checkpoint files is kept.
    ("versions.write", Disk),
    ("versions.put", Store),
    ("versions.remove", Disk),
    // What a mount makes of local disk.
    ("recover.begin", Disk),
    ("recover.leftover", Disk),
    ("recover.stub.beside", Disk),
    ("recover.overlay", Disk),
    ("recover.sentinel", Disk),
    ("recover.mirror", Disk),
    ("recover.stub.mend", Disk),
    ("recover.presume", Step),
    ("recover.done", Step),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Kill,
    StoreError,
    DiskError(i32),
    Delay(Duration),
}

#[derive(Debug)]
struct Order {
    point: &'static str,
    action: Action,
    /// Counted down; acts when it arrives at 0.
    left: AtomicU64,
}

#[derive(Debug)]
struct Plan {
    orders: Vec<Order>,
    trace: Option<File>,
}

static ARMED: AtomicBool = AtomicBool::new(false);
static PLAN: OnceLock<Plan> = OnceLock::new();

/// Arms points, once in a process's life. `orders`: `point:action[:nth]`, with commas between; an action is `kill`,
/// `store`, `eio`, `enospc` or `delay=MS`. `trace`: each passed point's name is appended to that file, one a
/// line, with a `!` behind it where it acted. An error says what cannot be understood, or that this build
/// has no fail points.
pub fn arm(orders: &str, trace: Option<&Path>) -> Result<(), String> {
    if !cfg!(debug_assertions) {
        return Err("this build has no fail points".to_owned());
    }
    let orders: Vec<Order> =
        orders.split(',').filter(|o| !o.is_empty()).map(parse).collect::<Result<_, _>>()?;
    let open = |path: &Path| {
        File::options()
            .create(true)
            .append(true)
            .open(path)
            .map_err(|e| format!("{}: {e}", path.display()))
    };
    let trace = trace.map(open).transpose()?;
    PLAN.set(Plan { orders, trace }).map_err(|_| "fail points are armed already".to_owned())?;
    ARMED.store(true, Ordering::Release);
    Ok(())
}

fn parse(order: &str) -> Result<Order, String> {
    let mut parts = order.split(':');
    let name = parts.next().unwrap_or_default();
    let known = ALL.iter().find(|(known, _)| *known == name);
    let (point, kind) = known.ok_or_else(|| format!("{order:?}: no such point"))?;
    let action = match (parts.next().unwrap_or_default(), kind) {
        ("kill", _) => Action::Kill,
        ("store", Store) => Action::StoreError,
        ("eio", Disk) => Action::DiskError(rustix::io::Errno::IO.raw_os_error()),
        ("enospc", Disk) => Action::DiskError(rustix::io::Errno::NOSPC.raw_os_error()),
        (other, _) => {
            let ms = other.strip_prefix("delay=").and_then(|ms| ms.parse().ok());
            let ms = ms.ok_or_else(|| format!("{order:?}: no action of this point"))?;
            Action::Delay(Duration::from_millis(ms))
        }
    };
    let nth = parts.next().map_or(Ok(1), str::parse).ok().filter(|n: &u64| *n > 0);
    match (nth, parts.next()) {
        (Some(nth), None) => Ok(Order { point, action, left: AtomicU64::new(nth) }),
        _ => Err(format!("{order:?}: the third part is no number from 1 on")),
    }
}

impl Plan {
    fn passed(&self, name: &str) -> Option<Action> {
        let due = |o: &&Order| o.point == name && o.left.fetch_sub(1, Ordering::AcqRel) == 1;
        // Not `find`: each order of the point counts each passage.
        let acts = self.orders.iter().filter(due).map(|o| o.action).last();
        if let Some(mut trace) = self.trace.as_ref() {
            let line = format!("{name}{}\n", if acts.is_some() { "!" } else { "" });
            if let Err(error) = trace.write_all(line.as_bytes()) {
                tracing::error!(%error, "the trace of fail points cannot be written");
            }
        }
        if let Some(action) = acts {
            tracing::warn!(point = name, ?action, "a fail point acts");
        }
        acts
    }
}

fn kill() -> ! {
    // What follows is what a test must never see: nothing.
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    loop {
        std::thread::park();
    }
}

fn passed(name: &str) -> Option<Action> {
    if !cfg!(debug_assertions) || !ARMED.load(Ordering::Relaxed) {
        return None;
    }
    match PLAN.get()?.passed(name) {
        Some(Action::Kill) => kill(),
        Some(Action::Delay(time)) => {
            std::thread::sleep(time);
            None
        }
        other => other,
    }
}

/// Between two steps.
#[inline]
pub fn step(name: &'static str) {
    let _ = passed(name);
}

/// Before something that local disk may refuse.
#[inline]
pub fn disk(name: &'static str) -> io::Result<()> {
    match passed(name) {
        Some(Action::DiskError(errno)) => Err(io::Error::from_raw_os_error(errno)),
        _ => Ok(()),
    }
}

/// Before something that the store may refuse. True: it shall.
#[inline]
#[must_use]
pub fn store_fails(name: &'static str) -> bool {
    passed(name) == Some(Action::StoreError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_point_has_one_name() {
        let mut names: Vec<&str> = ALL.iter().map(|(name, _)| *name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn an_order_is_understood_or_refused_and_never_guessed_at() {
        let order = parse("evict.unlink:enospc:3").unwrap();
        assert_eq!((order.point, order.left.into_inner()), ("evict.unlink", 3));
        assert_eq!(
            parse("evict.unlink:delay=20").unwrap().action,
            Action::Delay(Duration::from_millis(20))
        );
        for wrong in [
            "evict",
            "evict.unlink",
            "evict.unlink:store",
            "commit.put:eio",
            "hot.written:enospc",
            "evict.unlink:kill:0",
            "evict.unlink:kill:x",
            "evict.unlink:kill:1:1",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_order_acts_at_its_passage_and_at_no_other() {
        let orders = vec![parse("evict.unlink:eio:2").unwrap(), parse("evict.stub:eio").unwrap()];
        let plan = Plan { orders, trace: None };
        let acts: Vec<bool> = (0..4).map(|_| plan.passed("evict.unlink").is_some()).collect();
        assert_eq!(acts, [false, true, false, false]);
        assert!(plan.passed("evict.stub").is_some() && plan.passed("commit.put").is_none());
    }
}
