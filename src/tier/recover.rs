//! What a start makes of local disk alone: which hot files are archived, which damaged stubs can be
//! made anew, what is in the spool. The store is not asked.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Tier;
use crate::catalog::{Archived, Catalog, Content, LogFile, PartitionDir};
use crate::failpoint;
use crate::kafka::names::{self, DirKind};
use crate::local::Stub;
use crate::manifest::Chain;
use crate::types::{ArchivedSegment, ChainId};

/// What a start found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoverReport {
    /// Chains in the local manifest.
    pub chains: u64,
    /// Hot files whose base, size and time are an archived segment's.
    pub archived_files: u64,
    /// Damaged stubs that were made anew.
    pub repaired_stubs: u64,
    /// Damaged stubs that stay: every use of these files fails with EIO.
    pub broken_stubs: Vec<String>,
    /// What could not be read, one line each; what it concerns counts as not archived.
    pub problems: Vec<String>,
}

impl Tier {
    /// Looks at local disk once, before anything is served. Asks no store.
    pub fn recover(&self) -> RecoverReport {
        let mut report = RecoverReport::default();
        if self.recovered.swap(true, Ordering::AcqRel) {
            return report;
        }
        match self.chains.mirrored() {
            Ok(ids) => ids.iter().for_each(|id| self.recover_chain(id, &mut report)),
            Err(why) => report.problems.push(format!("local manifest: {why}")),
        }
        for dir in self.catalog.dirs() {
            self.recover_dir(&dir, &mut report);
        }
        if let Err(error) = self.spool.load(&self.catalog) {
            report.problems.push(format!("spool: {error}"));
        }
        if self.config.on_discard.is_none() {
            self.spool.release_listeners();
        }
        report.problems.extend(self.missing_checkpoints());
        failpoint::step("recover.done");
        for problem in &report.problems {
            tracing::error!(%problem, "at start");
        }
        report
    }

    fn recover_chain(&self, id: &ChainId, report: &mut RecoverReport) {
        match self.chains.load_mirror(id) {
            Ok(_) => report.chains += 1,
            Err(error) => report.problems.push(error.to_string()),
        }
    }

    fn recover_dir(&self, dir: &Arc<PartitionDir>, report: &mut RecoverReport) {
        let id = match dir.chain() {
            Ok(id) => id,
            Err(error) => {
                report.problems.push(format!("{}: {error}", dir.name()));
                return;
            }
        };
        self.note_rolls(dir, 0);
        let chain = self.chains.view(&id);
        let ends: HashMap<i64, i64> =
            dir.segments().iter().filter_map(|s| Some((s.base_offset, s.next_base?))).collect();
        for (name, log) in dir.all_logs() {
            let base = names::parse_file(&name).map(|n| n.base_offset);
            let segment = chain.as_ref().zip(base).and_then(|(c, base)| c.find(base).cloned());
            match log.content() {
                Content::Hot(_) => {
                    // What the cleaner merged may have more offsets than bytes.
                    let end = base.and_then(|b| ends.get(&b));
                    let segment = segment
                        .filter(|s| !s.compacted || end.is_none_or(|end| s.end_offset >= *end));
                    let matched = segment.is_some_and(|s| match_hot(&id, &log, &s));
                    report.archived_files += u64::from(matched);
                }
                Content::Broken(why) => {
                    let place = (dir.as_ref(), log.as_ref(), why.as_ref());
                    // Another broker's segment may begin here, too, and end elsewhere.
                    let end = base.and_then(|b| ends.get(&b));
                    let segment = segment.filter(|s| end == Some(&s.end_offset));
                    self.mend(&id, chain.as_deref(), segment.as_deref(), place, report);
                }
                Content::Cold(_) | Content::Overlaid(..) => {}
            }
        }
    }

    fn mend(
        &self,
        id: &ChainId,
        chain: Option<&Chain>,
        segment: Option<&ArchivedSegment>,
        (dir, log, why): (&PartitionDir, &LogFile, &str),
        report: &mut RecoverReport,
    ) {
        let label = log.label();
        let mended = match mending(&self.catalog, id, chain, segment, dir) {
            Ok(stub) => log.repair(stub).map_err(|e| e.to_string()),
            Err(reason) => Err(reason.to_owned()),
        };
        match mended {
            Ok(()) => {
                tracing::error!(file = %label, why, "a damaged stub was made anew from the local manifest");
                self.counters.repaired_stubs.raise();
                report.repaired_stubs += 1;
            }
            Err(reason) => {
                tracing::error!(file = %label, why, reason, "a damaged stub stays: the file answers EIO");
                report.broken_stubs.push(label);
            }
        }
    }
}

/// The stub that the local manifest proves. Not when the file may have been written to while cold: which
/// bytes an overlay holds, only the damaged stub knew.
fn mending(
    catalog: &Catalog,
    id: &ChainId,
    chain: Option<&Chain>,
    segment: Option<&ArchivedSegment>,
    dir: &PartitionDir,
) -> Result<Stub, &'static str> {
    if chain.is_none() {
        return Err("the local manifest has nothing of this partition");
    }
    let segment = segment.ok_or("the local manifest has no segment with these offsets")?;
    if dir.parsed().kind == DirKind::Future {
        return Err("its directory is not one that is archived");
    }
    match catalog.has_unnamed_overlays() {
        Ok(false) => {}
        Ok(true) => return Err("it may have had an overlay, and only the stub knew which"),
        Err(_) => return Err("the overlay directory cannot be read"),
    }
    let (uid, gid) = std::fs::metadata(dir.path()).map_or((0, 0), |m| (m.uid(), m.gid()));
    Ok(Stub::of_segment(id, segment, segment.mtime_ns, (0o644, uid, gid)))
}

/// Base, size and time are equal: taken for archived, and compared byte by byte before an eviction.
fn match_hot(id: &ChainId, log: &LogFile, segment: &ArchivedSegment) -> bool {
    let Ok(stat) = log.stat() else { return false };
    if (stat.size_bytes, stat.mtime_ns) != (segment.size_bytes, segment.mtime_ns) {
        return false;
    }
    failpoint::step("recover.presume");
    let owner = (stat.mode, stat.uid, stat.gid);
    log.set_archived(Archived {
        stub: Stub::of_segment(id, segment, stat.mtime_ns, owner),
        mutations: log.mutations(),
        compared: false,
    });
    true
}
