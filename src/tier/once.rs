//! `everlog archive LOGDIR --once`: everything committed and closed of a stock log dir, now, once.
//!
//! The same pipeline as a mount's; the log dir is only read.

use std::fs::OpenOptions;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::StreamExt as _;
use parking_lot::Mutex;

use super::Tier;
use super::archive::Done;
use super::error::TierError;
use super::identity::needs_operator;
use super::plan::next_segment;
use super::status::Quarantined;
use crate::catalog::PartitionDir;
use crate::kafka::names;
use crate::types::ChainId;

const TRIES_MAX: u32 = 5;
/// Kafka rewrites the watermark every 5 s; two rewrites are waited for.
const TRUST_WAIT: Duration = Duration::from_secs(15);
const TRUST_POLL: Duration = Duration::from_millis(250);

/// How far it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OnceProgress {
    /// Segments to look at, as counted at the start.
    pub total_segments: u64,
    /// Archived or found archived.
    pub done_segments: u64,
    /// Their bytes.
    pub done_bytes: u64,
    /// The segment that was done last.
    pub last: String,
}

/// What became of everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct OnceReport {
    /// Uploaded and committed.
    pub archived_segments: u64,
    /// Their bytes.
    pub archived_bytes: u64,
    /// Found in the archive with equal bytes.
    pub adopted_segments: u64,
    /// Break Kafka's rules, or contradict the archive: not archived.
    pub quarantined: Vec<Quarantined>,
    /// Closed, but not known to be below the high watermark: not archived.
    pub skipped_not_committed: u64,
    /// Partitions that could not be finished, one line each.
    pub failed: Vec<String>,
}

impl OnceReport {
    /// Everything that could be archived is.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.failed.is_empty()
    }
}

struct Run<'a> {
    tier: &'a Arc<Tier>,
    report: Mutex<OnceReport>,
    progress: Mutex<OnceProgress>,
    told: &'a (dyn Fn(&OnceProgress) + Send + Sync),
}

impl Tier {
    /// Archives all committed closed segments. Tries a few times, then reports what failed.
    pub async fn archive_once(
        self: &Arc<Self>,
        progress: &(dyn Fn(&OnceProgress) + Send + Sync),
    ) -> OnceReport {
        self.wait_for_watermark().await;
        let run = Run {
            tier: self,
            report: Mutex::default(),
            progress: Mutex::default(),
            told: progress,
        };
        if let Err(error) = run.settle_identity().await {
            run.report.lock().failed.push(error.to_string());
            return run.report.into_inner();
        }
        let dirs: Vec<Arc<PartitionDir>> =
            self.catalog.dirs().into_iter().filter(|d| d.is_live()).collect();
        run.progress.lock().total_segments =
            dirs.iter().map(|d| d.segments().len().saturating_sub(1) as u64).sum();
        let parallel = self.config.uploads_max.max(1);
        futures::stream::iter(&dirs).for_each_concurrent(parallel, |dir| run.partition(dir)).await;
        self.clone().roll_up().await;
        let mut report = run.report.into_inner();
        report.quarantined = self.quarantined_list();
        report
    }

    /// Makes the watermarks of young directories believable, where the broker's state allows it.
    async fn wait_for_watermark(&self) {
        let undecided = |tier: &Self| {
            let live = tier.catalog.dirs().into_iter().filter(|d| d.is_live());
            live.filter(|d| d.segments().len() > 1)
                .any(|d| tier.catalog.committed_offset(&d).is_none())
        };
        let root = self.catalog.hot().to_owned();
        if !undecided(self) {
            return;
        }
        if root.join(names::CLEAN_SHUTDOWN).exists() && !is_locked(&root) {
            // Written while stopping in good order: about exactly the directories that are there.
            self.reread_watermark();
            self.reread_watermark();
            return;
        }
        if !is_locked(&root) {
            return;
        }
        let written = || -> Option<SystemTime> {
            std::fs::metadata(root.join(names::HIGH_WATERMARK)).and_then(|m| m.modified()).ok()
        };
        let (mut seen, mut waited) = (written(), Duration::ZERO);
        while waited < TRUST_WAIT && undecided(self) {
            tokio::time::sleep(TRUST_POLL).await;
            waited += TRUST_POLL;
            let now = written();
            if now != seen {
                seen = now;
                self.reread_watermark();
            }
        }
    }

    fn reread_watermark(&self) {
        for name in [names::CLEANER, names::HIGH_WATERMARK] {
            if let Err(error) = self.catalog.root_file_replaced(name) {
                tracing::warn!(%error, "a checkpoint cannot be read");
            }
        }
    }
}

/// Whether a broker runs on this log dir: it holds a lock on `.lock`.
fn is_locked(root: &std::path::Path) -> bool {
    let path = root.join(names::LOCK);
    let Ok(file) = OpenOptions::new().read(true).write(true).open(path) else { return false };
    let probe = rustix::fs::FlockOperation::NonBlockingLockExclusive;
    match rustix::fs::fcntl_lock(&file, probe) {
        Ok(()) => {
            // Closing the file gives it back.
            false
        }
        Err(_) => true,
    }
}

impl Run<'_> {
    async fn settle_identity(&self) -> Result<(), TierError> {
        let mut tries = 0;
        loop {
            match self.tier.settle_identity().await {
                Ok(()) => return Ok(()),
                Err(error) if tries + 1 >= TRIES_MAX || needs_operator(&error) => {
                    return Err(error);
                }
                Err(_) => tries += 1,
            }
            self.pause(tries).await;
        }
    }

    async fn pause(&self, tries: u32) {
        let config = &self.tier.config;
        let (min, max) = (config.retry_backoff_min_ms, config.retry_backoff_max_ms);
        let random = crate::clock::random_u64();
        let ms = super::backoff::pause_ms(tries, min, max, random);
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    async fn partition(&self, dir: &Arc<PartitionDir>) {
        let chain = match dir.chain() {
            Ok(chain) => chain,
            Err(error) => {
                self.report.lock().failed.push(format!("{}: {error}", dir.name()));
                return;
            }
        };
        let mut tries = 0;
        while let Some(job) = self.tier.next_job(dir, &chain) {
            match self.tier.archive(&job).await {
                Ok(Done::Gone | Done::NotCommitted) if tries + 1 >= TRIES_MAX => {
                    let label = job.source.label();
                    let mut report = self.report.lock();
                    report.failed.push(format!("{label}: it keeps changing or was removed"));
                    break;
                }
                Ok(Done::Gone | Done::NotCommitted) => {
                    tries += 1;
                    self.pause(tries).await;
                }
                Ok(done) => {
                    tries = 0;
                    self.note(&job.source.label(), &done);
                }
                Err(error) if tries + 1 >= TRIES_MAX || needs_operator(&error) => {
                    let label = job.source.label();
                    self.report.lock().failed.push(format!("{label}: {error}"));
                    break;
                }
                Err(error) => {
                    tracing::warn!(segment = %job.source.label(), %error, "tried again");
                    tries += 1;
                    self.pause(tries).await;
                }
            }
        }
        self.count_skipped(dir, &chain);
    }

    fn note(&self, label: &str, done: &Done) {
        let size_bytes = match done {
            Done::Archived(segment) => {
                let mut report = self.report.lock();
                report.archived_segments += 1;
                report.archived_bytes += segment.size_bytes;
                segment.size_bytes
            }
            Done::Adopted(segment) => {
                self.report.lock().adopted_segments += 1;
                segment.size_bytes
            }
            Done::Quarantined(_) | Done::Held(_) | Done::NotCommitted | Done::Gone => return,
        };
        let mut progress = self.progress.lock();
        progress.done_segments += 1;
        progress.done_bytes += size_bytes;
        progress.last = label.to_owned();
        (self.told)(&progress);
    }

    fn count_skipped(&self, dir: &PartitionDir, chain: &ChainId) {
        let (facts, _) = self.tier.snapshot(dir, chain);
        if !facts.included || next_segment(&facts).is_some() {
            return;
        }
        let waiting = facts.segments.iter().filter(|s| !s.archived && s.hold.is_none());
        let skipped = waiting.filter(|s| {
            s.next_base.is_some_and(|next| facts.committed.is_none_or(|committed| next > committed))
        });
        self.report.lock().skipped_not_committed += skipped.count() as u64;
    }
}
