//! Carries evictions out: compares what was not compared in this process, then releases.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Tier;
use super::evict::{Budget, Candidate, Safety, may_go, oldest_first};
use super::prepare::hash_file;
use crate::catalog::{Archived, LogFile, PartitionDir};
use crate::failpoint;
use crate::kafka::names::DirKind;
use crate::local::is_of_whole_disk;

impl Tier {
    /// Whether anything is ever evicted.
    pub(super) fn evicts(&self) -> bool {
        let limited = self.config.hot_bytes.is_some() || self.config.hot_age_ms.is_some();
        limited && !self.config.stock
    }

    /// One round: releases what the limits ask for and the laws allow. Blocking. Returns how many files.
    /// A file that fails is left alone for a while and stops no other; the first error is the result.
    pub(super) fn evict_round(&self) -> io::Result<u64> {
        let space = self.settle_space();
        let short_bytes = space.map_or(0, |s| s.short_bytes());
        if !self.evicts() {
            self.crowded.store(short_bytes > 0, Ordering::Relaxed);
            return Ok(0);
        }
        let (hot_bytes_now, mut candidates) = self.look_for_candidates();
        let mut budget = Budget {
            hot_bytes_now,
            hot_bytes_max: self.config.hot_bytes,
            age_ns_max: self.config.hot_age_ms.map(|ms| ms.saturating_mul(1_000_000)),
            now_ns: self.clock.now_ns(),
            short_bytes,
        };
        oldest_first(&mut candidates);
        let (mut evicted, mut failed, mut begun) = (0, Ok(()), false);
        for candidate in candidates {
            if self.is_stopping() {
                break;
            }
            let log = &candidate.key;
            let paused = !self.sizes.evict_pauses.is_due(&log.id, self.clock.now_ms());
            if paused || !budget.wants(&candidate) {
                continue;
            }
            if !begun {
                self.with_ballast(|| self.catalog.ensure_sentinel())?;
                begun = true;
            }
            match self.with_ballast(|| self.evict_one(log)) {
                Ok(true) => {
                    budget.released(candidate.disk_bytes);
                    evicted += 1;
                }
                Ok(false) => {}
                Err(_) if self.is_stopping() => break,
                // Nor would any other file's stub find space.
                Err(error) if is_of_whole_disk(&error) => {
                    failed = failed.and(Err(error));
                    break;
                }
                Err(error) => failed = failed.and(Err(self.note_not_evicted(log, error))),
            }
        }
        self.crowded.store(budget.lacks_room(), Ordering::Relaxed);
        if evicted > 0 {
            // What became free: the ballast first.
            self.settle_space();
        }
        failed.map(|()| evicted)
    }

    fn note_not_evicted(&self, log: &LogFile, error: io::Error) -> io::Error {
        let file = log.label();
        let failures = self.sizes.evict_pauses.failed(&log.id, self.clock.now_ms());
        if failures == 1 || failures.is_multiple_of(20) {
            tracing::warn!(%file, %error, failures, "not evicted: its local bytes stay");
        }
        io::Error::new(error.kind(), format!("{file}: {error}"))
    }

    fn look_for_candidates(&self) -> (u64, Vec<Candidate<Arc<LogFile>>>) {
        let (mut hot_bytes, now_ms) = (0, self.clock.now_ms());
        let mut candidates = Vec::new();
        for dir in self.catalog.dirs() {
            for (_, log) in dir.all_logs() {
                if log.is_hot() {
                    hot_bytes += self.sizes.on_disk(&log, now_ms).map_or(0, |s| s.disk_bytes);
                }
            }
            self.candidates_of(&dir, &mut candidates);
        }
        (hot_bytes, candidates)
    }

    fn candidates_of(&self, dir: &PartitionDir, into: &mut Vec<Candidate<Arc<LogFile>>>) {
        if dir.parsed().kind == DirKind::Future {
            return;
        }
        let committed = self.catalog.committed_offset(dir);
        let recovery_point = self.catalog.recovery_point(dir);
        let compacted = self.catalog.is_compacted(dir);
        for segment in dir.segments() {
            let log = segment.log;
            let safety = Safety {
                hot: log.is_hot(),
                archived: log.archived().is_some(),
                next_base: segment.next_base,
                committed,
                recovery_point,
                compacted,
                paged: log.is_paged(),
            };
            if !may_go(&safety, self.config.evict_compacted) {
                continue;
            }
            if let Some(size) = self.sizes.on_disk(&log, self.clock.now_ms()) {
                into.push(Candidate {
                    base_offset: segment.base_offset,
                    disk_bytes: size.disk_bytes,
                    mtime_ns: size.mtime_ns,
                    key: log,
                });
            }
        }
    }

    fn evict_one(&self, log: &Arc<LogFile>) -> io::Result<bool> {
        if !self.is_compared(log)? {
            return Ok(false);
        }
        let size_bytes = self.sizes.of(log, self.clock.now_ms()).map_or(0, |s| s.size_bytes);
        let evicted = match log.evict() {
            // Renamed or unlinked under our hands: there is nothing to release any more.
            Err(e) if e.kind() == io::ErrorKind::NotFound => false,
            other => other?,
        };
        if evicted {
            self.sizes.forget(log);
            self.counters.evicted_segments.raise();
            self.counters.evicted_bytes.add(size_bytes);
            tracing::debug!(file = %log.label(), size_bytes, "evicted");
        }
        Ok(evicted)
    }

    /// Bytes that were only taken for archived, by size and time, are hashed before they may go.
    pub(super) fn is_compared(&self, log: &Arc<LogFile>) -> io::Result<bool> {
        let Some(archived) = log.archived() else { return Ok(false) };
        if archived.compared {
            return Ok(true);
        }
        let file = match File::open(log.path()) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(e),
        };
        failpoint::disk("evict.compare")?;
        let found = hash_file(&file, &self.stopping)?;
        if log.mutations() != archived.mutations {
            return Ok(false);
        }
        if found == (archived.stub.size_bytes, archived.stub.generation) {
            log.set_archived(Archived { compared: true, ..archived.as_ref().clone() });
            return Ok(true);
        }
        tracing::warn!(
            file = %log.label(), archived = %archived.stub.generation, local = %found.1,
            "local bytes are not the archived ones, though size and time are: kept, and looked at again"
        );
        log.forget_archived();
        log.place().0.mark_changed();
        Ok(false)
    }
}
