//! Drives the tiering of a mount: looks at what changed, starts bounded work, notes how it ended.
//!
//! One job per chain at a time, so that a chain is written in ascending order by one writer here. Ends
//! promptly: work in flight is abandoned, which each step is made for.

use std::collections::{HashSet, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::FutureExt as _;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Tier;
use super::archive::Done;
use super::backoff::Backoffs;
use super::error::TierError;
use super::identity::needs_operator;
use super::listener::RUNS_MAX;
use super::pace::StandBack;
use super::prepare::{Job, Source};
use super::rollups::{ROLL_UP_EVERY_MS, ROLL_UP_FIRST_MS};
use crate::catalog::PartitionDir;
use crate::local::is_disk_full;
use crate::local::spool::SpoolEntry;
use crate::types::ChainId;

const TICK: Duration = Duration::from_millis(200);
/// Not more often than this, whatever wakes the loop.
const TICK_MIN: Duration = Duration::from_millis(20);
const EVICT_EVERY_MS: u64 = 1_000;
const EVICT_WHEN_IDLE_EVERY_MS: u64 = 5_000;
const HYDRATE_EVERY_MS: u64 = 5_000;
const HYDRATE_BACKOFF_MAX_MS: u64 = 300_000;
const SWEEP_BACKOFF_MIN_MS: u64 = 2_000;
const SWEEP_BACKOFF_MAX_MS: u64 = 30_000;
/// Work off the runtime cannot be dropped, only asked to stop.
const STOP_WAIT: Duration = Duration::from_secs(5);
/// Everything is looked at this often, whatever was said to have changed.
const LOOK_AT_ALL_EVERY_MS: u64 = 30_000;

/// How work in the background ended.
enum End {
    Job {
        job: Box<Job>,
        result: Result<Done, TierError>,
    },
    Asked {
        entry: SpoolEntry,
        agreed: bool,
    },
    Evicted(std::io::Result<u64>),
    Swept(std::io::Result<()>),
    /// A version of Kafka's checkpoints; how it went stands in the status.
    Kept,
    /// The rollups have been brought up to date, or will be the next time.
    RolledUp,
    /// Files by id and name, with the reason where it failed.
    Hydrated(Vec<(u64, Option<String>)>),
}

/// What fails on local disk at the moment, besides chains.
#[derive(Debug, Default)]
struct Failing {
    eviction: bool,
    spool: bool,
    hydration: HashSet<u64>,
}

/// The loop's own memory.
struct Engine {
    tier: Arc<Tier>,
    work: JoinSet<End>,
    busy: HashSet<ChainId>,
    pending: VecDeque<Arc<PartitionDir>>,
    is_pending: HashSet<u64>,
    stand_back: StandBack,
    evicting: bool,
    sweeping: bool,
    hydrating: bool,
    keeping: bool,
    rolling_up: bool,
    roll_up_due_ms: u64,
    failing: Failing,
    sweep_pause: Backoffs<()>,
    hydrate_pauses: Backoffs<u64>,
    /// Something changed that an eviction may follow from.
    evict_soon: bool,
    evicted_at_ms: u64,
    hydrated_at_ms: u64,
    looked_at_ms: u64,
}

impl Tier {
    /// Runs until `shutdown` becomes true or its sender is gone. Call [`Tier::recover`] first; else it is
    /// done here.
    pub async fn run(self: Arc<Self>, mut shutdown: watch::Receiver<bool>) {
        let tier = self.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || tier.recover()).await {
            tracing::error!(%error, "looking at local disk failed");
        }
        let mut engine = Engine::new(self.clone());
        loop {
            engine.tick();
            let next_tick = tokio::time::Instant::now() + TICK_MIN;
            tokio::select! {
                stopped = shutdown.wait_for(|stop| *stop) => {
                    if let Err(error) = stopped {
                        tracing::debug!(%error, "nobody is left to say stop");
                    }
                    break;
                }
                Some(ended) = engine.work.join_next() => engine.ended(ended),
                () = self.wake.notified() => {}
                () = tokio::time::sleep(TICK) => {}
            }
            if tokio::time::timeout_at(next_tick, shutdown.wait_for(|stop| *stop)).await.is_ok() {
                break;
            }
            while let Some(ended) = engine.work.try_join_next() {
                engine.ended(ended);
            }
        }
        self.stopping.store(true, Ordering::Release);
        if tokio::time::timeout(STOP_WAIT, engine.work.shutdown()).await.is_err() {
            tracing::warn!("work on local disk takes long to stop and is left behind");
        }
        // As the broker left them.
        if let Err(error) = self.keep_version() {
            tracing::warn!(%error, "no version of Kafka's checkpoints is kept");
        }
    }
}

impl Engine {
    fn new(tier: Arc<Tier>) -> Self {
        Self {
            roll_up_due_ms: tier.clock.now_ms().saturating_add(ROLL_UP_FIRST_MS),
            tier,
            work: JoinSet::new(),
            busy: HashSet::new(),
            pending: VecDeque::new(),
            is_pending: HashSet::new(),
            stand_back: StandBack::default(),
            evicting: false,
            sweeping: false,
            hydrating: false,
            keeping: false,
            rolling_up: false,
            failing: Failing::default(),
            sweep_pause: Backoffs::new(SWEEP_BACKOFF_MIN_MS, SWEEP_BACKOFF_MAX_MS),
            hydrate_pauses: Backoffs::new(HYDRATE_EVERY_MS, HYDRATE_BACKOFF_MAX_MS),
            evict_soon: true,
            evicted_at_ms: 0,
            hydrated_at_ms: 0,
            looked_at_ms: 0,
        }
    }

    fn tick(&mut self) {
        let now_ms = self.tier.clock.now_ms();
        self.collect_changed(now_ms);
        if !self.stands_back(now_ms) {
            self.start_spooled(now_ms);
            self.start_pending(now_ms);
        }
        self.start_listeners(now_ms);
        self.start_sweep(now_ms);
        self.start_eviction(now_ms);
        self.start_hydration(now_ms);
        self.start_keeping(now_ms);
        self.start_rolling_up(now_ms);
    }

    /// Whether no job is to begin now, because others want the machine.
    fn stands_back(&mut self, now_ms: u64) -> bool {
        let Some(pace) = &self.tier.pace else { return false };
        if self.busy.is_empty() && self.pending.is_empty() {
            self.stand_back.caught_up();
            return false;
        }
        let busy = pace.is_machine_busy() && !self.tier.crowded.load(Ordering::Relaxed);
        self.stand_back.stands_back(busy, now_ms)
    }

    fn start_rolling_up(&mut self, now_ms: u64) {
        if self.rolling_up || now_ms < self.roll_up_due_ms || !self.tier.chains.has_news() {
            return;
        }
        (self.rolling_up, self.roll_up_due_ms) = (true, now_ms.saturating_add(ROLL_UP_EVERY_MS));
        let tier = self.tier.clone();
        self.work.spawn(async move {
            tier.roll_up().await;
            End::RolledUp
        });
    }

    fn start_keeping(&mut self, now_ms: u64) {
        if self.keeping || !self.tier.versions.is_due(now_ms) {
            return;
        }
        self.keeping = true;
        let tier = self.tier.clone();
        self.work.spawn(async move {
            tier.keep_versions().await;
            End::Kept
        });
    }

    fn collect_changed(&mut self, now_ms: u64) {
        let all = now_ms.saturating_sub(self.looked_at_ms) >= LOOK_AT_ALL_EVERY_MS;
        if all {
            self.looked_at_ms = now_ms;
            self.tier.forget_the_gone();
        }
        for dir in self.tier.catalog.dirs() {
            let changed = dir.take_changed();
            if changed {
                self.tier.note_rolls(&dir, now_ms);
                self.evict_soon = true;
            }
            if (changed || all) && self.is_pending.insert(dir.id) {
                self.pending.push_back(dir);
            }
        }
    }

    fn has_room(&self) -> bool {
        self.busy.len() < self.tier.config.uploads_max.max(1)
    }

    fn start(&mut self, job: Job) {
        self.busy.insert(job.chain.clone());
        self.tier.tell_pace(&job);
        let tier = self.tier.clone();
        self.work.spawn(async move {
            let attempt = AssertUnwindSafe(tier.archive(&job)).catch_unwind().await;
            let result = attempt.unwrap_or_else(|_| {
                let why = "a defect of Everlog stopped the attempt".to_owned();
                Err(TierError::Manifest { chain: job.chain.to_string(), why })
            });
            End::Job { job: Box::new(job), result }
        });
    }

    fn is_free(&self, chain: &ChainId, now_ms: u64) -> bool {
        let due =
            self.tier.backoffs.is_due(chain, now_ms) && self.tier.delays.is_due(chain, now_ms);
        due && !self.busy.contains(chain)
    }

    fn start_spooled(&mut self, now_ms: u64) {
        for chain in self.tier.spool.chains_wanting() {
            if !self.has_room() {
                return;
            }
            if self.is_free(&chain, now_ms)
                && let Some(job) = self.tier.next_spooled(&chain)
            {
                self.start(job);
            }
        }
    }

    /// Each pending partition once at most; those that cannot start yet stay pending.
    fn start_pending(&mut self, now_ms: u64) {
        for _ in 0..self.pending.len() {
            if !self.has_room() {
                return;
            }
            let Some(dir) = self.pending.pop_front() else { return };
            let chain = match dir.chain() {
                Ok(chain) => chain,
                Err(error) => {
                    let what = format!("{}: {error}", dir.name());
                    self.tier.last_error.set(now_ms, what);
                    self.is_pending.remove(&dir.id);
                    continue;
                }
            };
            if !self.is_free(&chain, now_ms) {
                self.pending.push_back(dir);
                continue;
            }
            match self.tier.next_job(&dir, &chain) {
                Some(job) => {
                    self.pending.push_back(dir);
                    self.start(job);
                }
                None => {
                    self.is_pending.remove(&dir.id);
                    if self.tier.spool.wanted(&chain).is_empty() {
                        // What failed here is no longer asked for.
                        self.succeeded(&chain);
                    }
                }
            }
        }
    }

    fn start_listeners(&mut self, now_ms: u64) {
        if self.tier.config.on_discard.is_none() {
            return;
        }
        for entry in self.tier.spool.take_to_ask(now_ms, RUNS_MAX) {
            let tier = self.tier.clone();
            self.work.spawn(async move {
                let agreed = tier.ask_listener(&entry).await;
                End::Asked { entry, agreed }
            });
        }
    }

    fn start_sweep(&mut self, now_ms: u64) {
        let due = self.sweep_pause.is_due(&(), now_ms);
        if self.sweeping || !due || !self.tier.spool.is_dirty() {
            return;
        }
        self.sweeping = true;
        let tier = self.tier.clone();
        let sweep = move || End::Swept(tier.with_ballast(|| tier.spool.sweep()));
        self.work.spawn_blocking(sweep);
    }

    fn start_eviction(&mut self, now_ms: u64) {
        let pause = if self.evict_soon { EVICT_EVERY_MS } else { EVICT_WHEN_IDLE_EVERY_MS };
        let due = now_ms.saturating_sub(self.evicted_at_ms) >= pause;
        if self.evicting || !due || !(self.tier.evicts() || self.tier.room.is_some()) {
            return;
        }
        (self.evicting, self.evict_soon, self.evicted_at_ms) = (true, false, now_ms);
        let tier = self.tier.clone();
        self.work.spawn_blocking(move || End::Evicted(tier.evict_round()));
    }

    fn start_hydration(&mut self, now_ms: u64) {
        let due = now_ms.saturating_sub(self.hydrated_at_ms) >= HYDRATE_EVERY_MS;
        if self.hydrating || !due {
            return;
        }
        self.hydrated_at_ms = now_ms;
        if self.tier.space().is_some_and(|s| s.short_bytes() > 0) {
            // It would take what the disk does not have.
            return;
        }
        let mut waiting = self.tier.to_hydrate();
        let ids: HashSet<u64> = waiting.iter().map(|log| log.id).collect();
        let pauses = &self.hydrate_pauses;
        self.failing.hydration.retain(|id| {
            let waits = ids.contains(id);
            if !waits {
                pauses.succeeded(id);
            }
            waits
        });
        waiting.retain(|log| pauses.is_due(&log.id, now_ms));
        if waiting.is_empty() {
            return;
        }
        self.hydrating = true;
        let (tier, runtime) = (self.tier.clone(), tokio::runtime::Handle::current());
        self.work.spawn_blocking(move || {
            let mut ends = Vec::new();
            for log in waiting {
                if tier.is_stopping() {
                    break;
                }
                let failed = tier.hydrate_one(&log, &runtime).err();
                ends.push((log.id, failed.map(|e| format!("{}: {e}", log.label()))));
            }
            End::Hydrated(ends)
        });
    }

    fn ended(&mut self, ended: Result<End, tokio::task::JoinError>) {
        let now_ms = self.tier.clock.now_ms();
        match ended {
            Ok(End::Job { job, result }) => self.job_ended(&job, result, now_ms),
            Ok(End::Asked { entry, agreed }) => {
                self.tier.spool.note_answer(&entry.id, agreed, now_ms);
            }
            Ok(End::Evicted(result)) => {
                self.evicting = false;
                if let Err(error) = &result
                    && !self.failing.eviction
                    && !self.tier.is_stopping()
                {
                    tracing::error!(%error, "eviction fails");
                }
                // A file that waits after a failure has not been evicted either.
                self.failing.eviction = result.is_err() || self.tier.sizes.evict_pauses.any();
                self.local_work_ended("eviction", result.map(drop), now_ms);
            }
            Ok(End::Swept(result)) => {
                self.sweeping = false;
                self.failing.spool = result.is_err();
                if let Err(error) = &result {
                    // Once when it begins: on a full disk it fails for as long as the disk is full.
                    if self.sweep_pause.failed(&(), now_ms) == 1 {
                        tracing::error!(%error, "the spool cannot be written");
                    }
                } else {
                    self.sweep_pause.succeeded(&());
                }
                self.local_work_ended("spool", result, now_ms);
            }
            Ok(End::Kept) => self.keeping = false,
            Ok(End::RolledUp) => self.rolling_up = false,
            Ok(End::Hydrated(ends)) => {
                self.hydrating = false;
                self.hydrated(ends, now_ms);
            }
            Err(error) => {
                // Only work that runs off the runtime can end so, and only by a defect.
                (self.evicting, self.sweeping, self.hydrating) = (false, false, false);
                (self.keeping, self.rolling_up) = (false, false);
                self.complain(now_ms, format!("a defect of Everlog stopped a task: {error}"));
            }
        }
    }

    fn local_work_ended(&self, what: &str, result: std::io::Result<()>, now_ms: u64) {
        match result {
            Ok(()) => self.clear_if_all_works(),
            Err(_) if self.tier.is_stopping() => {}
            // Logged where it failed.
            Err(error) => self.tier.last_error.set(now_ms, format!("{what}: {error}")),
        }
    }

    fn hydrated(&mut self, ends: Vec<(u64, Option<String>)>, now_ms: u64) {
        for (id, failed) in ends {
            let Some(what) = failed else {
                self.failing.hydration.remove(&id);
                self.hydrate_pauses.succeeded(&id);
                continue;
            };
            if self.tier.is_stopping() {
                continue;
            }
            self.failing.hydration.insert(id);
            let failures = self.hydrate_pauses.failed(&id, now_ms);
            if failures == 1 || failures.is_multiple_of(20) {
                tracing::warn!(failures, "not whole yet: {what}");
            }
            self.tier.last_error.set(now_ms, format!("hydration: {what}"));
        }
        self.clear_if_all_works();
    }

    fn clear_if_all_works(&self) {
        let failing = &self.failing;
        let local = failing.eviction || failing.spool || !failing.hydration.is_empty();
        if !local && !self.tier.backoffs.any() {
            self.tier.last_error.clear();
        }
    }

    fn complain(&self, now_ms: u64, what: String) {
        tracing::error!("{what}");
        self.tier.last_error.set(now_ms, what);
    }

    fn job_ended(&mut self, job: &Job, result: Result<Done, TierError>, now_ms: u64) {
        self.busy.remove(&job.chain);
        match result {
            Ok(done) => {
                self.tier.settle_spooled(job, &done);
                match done {
                    // The log dir is in motion here: look again in a moment, not in a circle.
                    Done::Gone | Done::NotCommitted => {
                        self.tier.backoffs.succeeded(&job.chain);
                        self.tier.delays.failed(&job.chain, now_ms);
                    }
                    Done::Archived(_) | Done::Adopted(_) => {
                        self.evict_soon = true;
                        self.succeeded(&job.chain);
                    }
                    Done::Quarantined(_) | Done::Held(_) => self.succeeded(&job.chain),
                }
            }
            Err(TierError::Stopping) => {}
            Err(error) => self.tier.note_failure(job, &error, now_ms),
        }
    }

    fn succeeded(&self, chain: &ChainId) {
        self.tier.backoffs.succeeded(chain);
        self.tier.delays.succeeded(chain);
        self.clear_if_all_works();
    }
}

impl Tier {
    pub(super) fn note_failure(&self, job: &Job, error: &TierError, now_ms: u64) {
        self.counters.failed_attempts.raise();
        if let TierError::Local { source, .. } = error
            && is_disk_full(source)
        {
            // Said once for the whole disk, by `local::Room`.
            let again = self.lightened(source);
            tracing::debug!(segment = %job.source.label(), %error, again, "not archived yet");
            if !again {
                self.backoffs.failed(&job.chain, now_ms);
            }
            self.last_error.set(now_ms, format!("{}: {error}", job.source.label()));
            return;
        }
        let failures = self.backoffs.failed(&job.chain, now_ms);
        let segment = job.source.label();
        // Once when it begins and now and then while it lasts.
        if failures == 1 && needs_operator(error) {
            tracing::error!(%segment, %error, "not archived");
        } else if failures == 1 || failures.is_multiple_of(20) {
            tracing::warn!(%segment, %error, failures, "not archived yet");
        }
        self.last_error.set(now_ms, format!("{segment}: {error}"));
    }

    /// What the end of a job means for an entry of the spool.
    pub(super) fn settle_spooled(&self, job: &Job, done: &Done) {
        let Source::Spooled(entry) = &job.source else { return };
        match done {
            // It changed while it was read; what is still there is tried again.
            Done::Gone if entry.has_bytes().unwrap_or(true) => {}
            Done::Gone => {
                self.counters.lost_discards.raise();
                tracing::error!(entry = %entry.path.display(), "the bytes of a spool entry are gone");
                self.spool.note_not_archived(&entry.id);
            }
            // Part of it is above the high watermark: never the archive's truth.
            Done::NotCommitted => self.spool.note_not_archived(&entry.id),
            Done::Archived(_) | Done::Adopted(_) | Done::Quarantined(_) | Done::Held(_) => {}
        }
    }
}
