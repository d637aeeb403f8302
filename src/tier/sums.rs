//! The status's sums, kept per partition and chain: a look costs as many steps as there are partitions, not segments.
//!
//! A partition's sums are taken anew when something said that it changed: its directory counts changes of names,
//! places and states, and a segment that was counted here says so when its bytes change. What changes without a
//! word is asked each time: the active segment, and files whose blocks the filesystem has not settled yet. Each
//! partition is counted anew now and then all the same, in case something forgot to say so.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Weak};

use super::Tier;
use super::plan::Place;
use super::status::Totals;
use crate::catalog::{Content, LogFile, PartitionDir, counted_changes};
use crate::kafka::names::DirKind;
use crate::manifest::Chain;
use crate::store::names as object_names;
use crate::types::ChainId;

/// So long sums are believed at most, milliseconds, and half as long at least: not all at the same moment.
const SUMS_MS: u64 = 60_000;
/// Counting the cached bytes of all archived segments takes at most a thousandth of the time.
const CACHED_BYTES_SHARE: u64 = 1_000;

/// Of one partition directory.
#[derive(Clone, Debug, Default)]
pub(super) struct DirSums {
    pub sums: Totals,
    /// Files whose stub is damaged.
    pub broken: Vec<String>,
    /// When the oldest segment that waits for the archive was closed, milliseconds.
    waits_since_ms: Option<u64>,
    /// `sums` lacks what it occupies on disk.
    unsettled: Vec<Arc<LogFile>>,
    /// `sums` lacks its bytes.
    active: Option<Arc<LogFile>>,
}

/// What said that something changed, by counting.
type Seen = (u64, u64, u64);

#[derive(Debug)]
struct KnownDir {
    seen: Seen,
    until_ms: u64,
    sums: DirSums,
}

/// What was counted before.
#[derive(Debug, Default)]
pub(super) struct Sums {
    dirs: HashMap<u64, KnownDir>,
    chains: HashMap<ChainId, (Weak<Chain>, u64)>,
    cached_bytes: BTreeMap<String, u64>,
    cached_bytes_due_ms: u64,
}

impl Tier {
    /// The sums of one directory, with what changes by itself as it is now.
    pub(super) fn sums_of_dir(&self, known: &mut Sums, dir: &PartitionDir, now_ms: u64) -> DirSums {
        // Before anything is looked at: what changes during the look counts as changed after it.
        let seen = (dir.revision(), counted_changes(), self.holds.revision());
        let entry = known.dirs.get(&dir.id).filter(|k| k.seen == seen && now_ms < k.until_ms);
        let mut all = match entry {
            Some(known) => known.sums.clone(),
            None => {
                let sums = self.count_dir(dir, now_ms);
                let spread_ms = dir.id.wrapping_mul(997) % (SUMS_MS / 2);
                let until_ms = now_ms + SUMS_MS / 2 + spread_ms;
                known.dirs.insert(dir.id, KnownDir { seen, until_ms, sums: sums.clone() });
                sums
            }
        };
        for log in &all.unsettled {
            all.sums.hot_disk_bytes += self.sizes.on_disk(log, now_ms).map_or(0, |s| s.disk_bytes);
        }
        if let Some(active) = &all.active {
            let size = self.sizes.on_disk(active, now_ms);
            let size_bytes = size.map_or(0, |s| s.size_bytes);
            if active.is_hot() {
                all.sums.hot_bytes += size_bytes;
                all.sums.hot_disk_bytes += size.map_or(0, |s| s.disk_bytes);
            }
            all.sums.active_bytes += size_bytes;
        }
        let waits_ms = all.waits_since_ms.map_or(0, |since| now_ms.saturating_sub(since));
        all.sums.lag_seconds = waits_ms / 1000;
        all
    }

    fn count_dir(&self, dir: &PartitionDir, now_ms: u64) -> DirSums {
        let mut all = DirSums::default();
        let active = self.count_segments(dir, now_ms, &mut all).unwrap_or_default();
        for (_, log) in dir.all_logs() {
            if active.as_ref().is_some_and(|a| a.id == log.id) {
                continue;
            }
            log.set_counted();
            match log.content() {
                Content::Hot(_) => {
                    let size = self.sizes.on_disk(&log, now_ms);
                    all.sums.hot_bytes += size.map_or(0, |s| s.size_bytes);
                    if self.sizes.is_settled(&log) {
                        all.sums.hot_disk_bytes += size.map_or(0, |s| s.disk_bytes);
                    } else {
                        all.unsettled.push(log);
                    }
                }
                Content::Broken(_) => all.broken.push(log.label()),
                Content::Cold(_) | Content::Overlaid(..) => {}
            }
        }
        all.active = active;
        all
    }

    /// Counts what Kafka serves. The active segment, if its bytes may change at any time.
    fn count_segments(
        &self,
        dir: &PartitionDir,
        now_ms: u64,
        all: &mut DirSums,
    ) -> Option<Option<Arc<LogFile>>> {
        if dir.parsed().kind != DirKind::Live {
            return None;
        }
        let sums = &mut all.sums;
        sums.partitions += 1;
        let chain = dir.chain().ok()?;
        dir.segments().iter().filter(|s| s.next_base.is_some()).for_each(|s| s.log.set_counted());
        let (facts, segments) = self.snapshot(dir, &chain);
        let mut active = None;
        for (fact, segment) in facts.segments.iter().zip(&segments) {
            if fact.next_base.is_none() {
                sums.active_segments += 1;
                active = Some(segment.log.clone());
                continue;
            }
            let size_bytes = self.sizes.of(&segment.log, now_ms).map_or(0, |s| s.size_bytes);
            sums.closed_segments += 1;
            sums.closed_bytes += size_bytes;
            if fact.place == Place::Cold {
                sums.cold_segments += 1;
                sums.cold_bytes += size_bytes;
            }
            let waits = fact.place == Place::Hot && !fact.archived && fact.hold.is_none();
            if waits && facts.included {
                sums.lag_segments += 1;
                sums.lag_bytes += size_bytes;
                let since_ms = self.waits_since_ms(&segment.log, now_ms);
                all.waits_since_ms = Some(all.waits_since_ms.map_or(since_ms, |s| s.min(since_ms)));
            }
        }
        Some(active)
    }

    fn waits_since_ms(&self, log: &LogFile, now_ms: u64) -> u64 {
        let seen_ms = self.rolled.lock().get(&log.id).copied().filter(|ms| *ms > 0);
        let mtime_ms = || self.sizes.of(log, now_ms).map_or(now_ms, |s| s.mtime_ns / 1_000_000);
        seen_ms.unwrap_or_else(mtime_ms)
    }
}

impl Sums {
    /// Segments of a chain and their bytes.
    pub fn of_chain(&mut self, chain: &Arc<Chain>) -> (u64, u64) {
        let segments = chain.segments().len() as u64;
        if let Some((known, bytes)) = self.chains.get(chain.id())
            && std::ptr::eq(known.as_ptr(), Arc::as_ptr(chain))
        {
            return (segments, *bytes);
        }
        let bytes = chain.segments().values().map(|s| s.size_bytes).sum();
        self.chains.insert(chain.id().clone(), (Arc::downgrade(chain), bytes));
        (segments, bytes)
    }

    /// What of the topics' archived segments lies in the cache: as counted last, where counting takes long.
    pub fn cached_bytes(&mut self, tier: &Tier, chains: &[Arc<Chain>]) -> &BTreeMap<String, u64> {
        let Some(cached_bytes) = &tier.cached_bytes else { return &self.cached_bytes };
        let began_ms = tier.clock.now_ms();
        if began_ms < self.cached_bytes_due_ms {
            return &self.cached_bytes;
        }
        self.cached_bytes.clear();
        for chain in chains {
            let id = chain.id();
            let key = |base, upload| object_names::log_key(id, base, upload);
            let segments = chain.segments().values();
            let bytes: u64 =
                segments.map(|s| cached_bytes(&key(s.base_offset, &s.upload_id))).sum();
            *self.cached_bytes.entry(id.tp.topic().to_owned()).or_default() += bytes;
        }
        let took_ms = tier.clock.now_ms().saturating_sub(began_ms);
        self.cached_bytes_due_ms = began_ms + took_ms * CACHED_BYTES_SHARE;
        &self.cached_bytes
    }

    /// Forgets directories that are gone.
    pub fn retain(&mut self, dirs: &HashSet<u64>) {
        self.dirs.retain(|id, _| dirs.contains(id));
    }
}
