//! What the status tells of the tiering: per topic what is hot, cold, archived, cached and waiting.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use serde::Serialize;

use super::Tier;
use super::holds::{HoldKind, SourceId};
use super::versions::KeptCheckpoints;
use crate::local::Space;
use crate::manifest::Chain;
use crate::telemetry::ErrorNote;

/// A status younger than this is given again.
const CACHE_MS: u64 = 500;

/// Sums over segments. Bytes are those of `.log` files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Directories that Kafka serves.
    pub partitions: u64,
    /// Still written to.
    pub active_segments: u64,
    /// Their bytes.
    pub active_bytes: u64,
    /// Closed, in either tier.
    pub closed_segments: u64,
    /// Their bytes.
    pub closed_bytes: u64,
    /// All that the archive holds, also what Kafka has discarded.
    pub archived_segments: u64,
    /// Their bytes.
    pub archived_bytes: u64,
    /// On local disk in `hot/`, whatever their state.
    pub hot_bytes: u64,
    /// What they occupy there, which is what the hot budget limits.
    pub hot_disk_bytes: u64,
    /// Of the closed ones, those without local bytes.
    pub cold_segments: u64,
    /// Their bytes.
    pub cold_bytes: u64,
    /// Bytes of archived segments in the block cache.
    pub cached_bytes: u64,
    /// Closed segments that are not archived yet; quarantined ones are listed instead.
    pub lag_segments: u64,
    /// Their bytes.
    pub lag_bytes: u64,
    /// Since the oldest of them was closed.
    pub lag_seconds: u64,
}

/// A segment that stays on local disk until somebody looks at it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Quarantined {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// Of the segment.
    pub base_offset: i64,
    /// Of the batch at fault, if one is.
    pub offset: Option<i64>,
    /// What is wrong.
    pub reason: String,
    /// It keeps Kafka's rules but contradicts the archive; the partition waits.
    pub held: bool,
    /// Where it lies.
    pub file: String,
}

/// One topic.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TopicStatus {
    /// Its name.
    pub topic: String,
    /// Sums over its partitions.
    #[serde(flatten)]
    pub sums: Totals,
    /// Its quarantined and held segments.
    pub quarantined: Vec<Quarantined>,
}

/// The spool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SpoolStatus {
    /// Discarded segments that are owed to somebody.
    pub segments: u64,
    /// Their local bytes.
    pub bytes: u64,
    /// Not archived yet.
    pub waiting_for_archive: u64,
    /// The discard command has not agreed yet.
    pub waiting_for_listener: u64,
    /// Entries whose document cannot be believed; kept.
    pub damaged: u64,
}

/// Numbers since the start of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CountersStatus {
    /// Uploaded and committed.
    pub archived_segments: u64,
    /// Their bytes.
    pub archived_bytes: u64,
    /// Found in the archive with equal bytes.
    pub adopted_segments: u64,
    /// Local bytes released.
    pub evicted_segments: u64,
    /// How many.
    pub evicted_bytes: u64,
    /// Attempts to archive that failed.
    pub failed_attempts: u64,
    /// Damaged stubs made anew.
    pub repaired_stubs: u64,
    /// Discarded segments that were owed and could not be kept.
    pub lost_discards: u64,
    /// Runs of the discard command.
    pub listener_runs: u64,
    /// Segments of which roll and commit were both seen.
    pub rolled_to_archived_count: u64,
    /// Time from the one to the other, summed.
    pub rolled_to_archived_sum_ms: u64,
    /// The longest.
    pub rolled_to_archived_max_ms: u64,
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TierStatus {
    /// When somebody looked, milliseconds since the epoch: a status may be half a second old.
    pub as_of_ms: u64,
    /// By name.
    pub topics: Vec<TopicStatus>,
    /// Over all topics.
    pub totals: Totals,
    /// The spool.
    pub spool: SpoolStatus,
    /// Quarantined and held segments.
    pub quarantine: u64,
    /// Files whose stub is damaged: every use fails with EIO.
    pub broken: Vec<String>,
    /// Since the start.
    pub counters: CountersStatus,
    /// The newest failure that still stands.
    pub last_error: Option<ErrorNote>,
    /// Versions of Kafka's checkpoint files.
    pub checkpoints: KeptCheckpoints,
    /// Space on the data directory's disk; null where nobody watches it.
    pub disk: Option<Space>,
}

impl Totals {
    fn add(&mut self, o: &Self) {
        self.partitions += o.partitions;
        self.active_segments += o.active_segments;
        self.active_bytes += o.active_bytes;
        self.closed_segments += o.closed_segments;
        self.closed_bytes += o.closed_bytes;
        self.archived_segments += o.archived_segments;
        self.archived_bytes += o.archived_bytes;
        self.hot_bytes += o.hot_bytes;
        self.hot_disk_bytes += o.hot_disk_bytes;
        self.cold_segments += o.cold_segments;
        self.cold_bytes += o.cold_bytes;
        self.cached_bytes += o.cached_bytes;
        self.lag_segments += o.lag_segments;
        self.lag_bytes += o.lag_bytes;
        self.lag_seconds = self.lag_seconds.max(o.lag_seconds);
    }
}

impl Tier {
    /// The status, at most half a second old.
    pub fn status(&self) -> Arc<TierStatus> {
        let now_ms = self.clock.now_ms();
        let mut cached = self.status_cache.lock();
        if let Some((at_ms, status)) = cached.as_ref()
            && now_ms.abs_diff(*at_ms) < CACHE_MS
        {
            return status.clone();
        }
        let status = Arc::new(self.look(now_ms));
        *cached = Some((now_ms, status.clone()));
        status
    }

    /// The status as it is now.
    pub(super) fn look(&self, now_ms: u64) -> TierStatus {
        let mut known = self.sums.lock();
        let mut topics: BTreeMap<String, TopicStatus> = BTreeMap::new();
        let mut broken = Vec::new();
        let dirs = self.catalog.dirs();
        for dir in &dirs {
            let topic = topics.entry(dir.tp().topic().to_owned()).or_default();
            let all = self.sums_of_dir(&mut known, dir, now_ms);
            topic.sums.add(&all.sums);
            broken.extend(all.broken);
        }
        known.retain(&dirs.iter().map(|d| d.id).collect());
        let ids = self.chains.ids();
        let chains: Vec<Arc<Chain>> = ids.iter().filter_map(|id| self.chains.view(id)).collect();
        for chain in &chains {
            let sums = &mut topics.entry(chain.id().tp.topic().to_owned()).or_default().sums;
            let (segments, bytes) = known.of_chain(chain);
            sums.archived_segments += segments;
            sums.archived_bytes += bytes;
        }
        for (topic, bytes) in known.cached_bytes(self, &chains) {
            topics.entry(topic.clone()).or_default().sums.cached_bytes = *bytes;
        }
        drop(known);
        let quarantined = self.quarantined_list();
        let quarantine = quarantined.len() as u64;
        for q in quarantined {
            topics.entry(q.topic.clone()).or_default().quarantined.push(q);
        }
        let mut totals = Totals::default();
        topics.values().for_each(|t| totals.add(&t.sums));
        let topics = topics.into_iter().map(|(topic, t)| TopicStatus { topic, ..t }).collect();
        TierStatus {
            as_of_ms: now_ms,
            topics,
            totals,
            spool: self.spool_status(),
            quarantine,
            broken,
            counters: self.counters_status(),
            last_error: self.last_error.get(),
            checkpoints: self.versions.status(),
            disk: self.space(),
        }
    }

    fn spool_status(&self) -> SpoolStatus {
        let t = self.spool.totals();
        SpoolStatus {
            segments: t.segments,
            bytes: t.bytes,
            waiting_for_archive: t.waiting_for_archive,
            waiting_for_listener: t.waiting_for_listener,
            damaged: t.damaged,
        }
    }

    fn counters_status(&self) -> CountersStatus {
        let (c, times) = (&self.counters, *self.roll_times.lock());
        CountersStatus {
            archived_segments: c.archived_segments.get(),
            archived_bytes: c.archived_bytes.get(),
            adopted_segments: c.adopted_segments.get(),
            evicted_segments: c.evicted_segments.get(),
            evicted_bytes: c.evicted_bytes.get(),
            failed_attempts: c.failed_attempts.get(),
            repaired_stubs: c.repaired_stubs.get(),
            lost_discards: c.lost_discards.get(),
            listener_runs: c.listener_runs.get(),
            rolled_to_archived_count: times.count,
            rolled_to_archived_sum_ms: times.sum_ms,
            rolled_to_archived_max_ms: times.max_ms,
        }
    }

    /// Quarantined and held segments that still are: by partition and offset.
    pub(super) fn quarantined_list(&self) -> Vec<Quarantined> {
        let holds = self.holds.all();
        holds
            .into_iter()
            .map(|h| Quarantined {
                topic: h.chain.tp.topic().to_owned(),
                partition: h.chain.tp.partition(),
                base_offset: h.base_offset,
                offset: h.offset,
                reason: h.reason,
                held: h.kind == HoldKind::Held,
                file: h.label,
            })
            .collect()
    }

    /// Drops what is remembered of files that are gone with their directory or were replaced.
    pub(super) fn forget_the_gone(&self) {
        let dirs = self.catalog.dirs();
        let logs: HashSet<u64> =
            dirs.iter().flat_map(|d| d.all_logs()).map(|(_, log)| log.id).collect();
        self.holds.retain(|id| match id {
            SourceId::Log(id) => logs.contains(id),
            SourceId::Spooled(id) => self.spool.has(id),
        });
        self.sizes.retain(|id| logs.contains(&id));
        self.rolled.lock().retain(|id, _| logs.contains(id));
        self.fates.lock().retain(|id, _| logs.contains(id));
    }
}
