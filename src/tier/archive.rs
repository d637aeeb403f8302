//! One segment's way into the archive: look, judge, upload, compare, commit, note.
//!
//! Each step may fail or the process may die after it: before the commit nothing refers to what was
//! written; after it the next attempt finds the segment in the chain and adopts it.

use std::sync::Arc;

use super::Tier;
use super::error::TierError;
use super::fate::Fate;
use super::holds::{Hold, HoldKind};
use super::jobs::is_swapping;
use super::prepare::{self, Job, Looked, Prepared, Source};
use super::verdict::{ArchiveView, GapPiece, Item, Scanned, Verdict, judge};
use crate::catalog::Archived;
use crate::local::Stub;
use crate::manifest::{Chain, Change, Item as Tile};
use crate::store::names;
use crate::types::{ArchivedSegment, ChainId};

/// Commits that may be lost to other writers in a row before the attempt is given up.
const CONFLICTS_MAX: u32 = 8;

/// How an attempt ended without an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Done {
    /// Uploaded and committed.
    Archived(Arc<ArchivedSegment>),
    /// The archive held these bytes already.
    Adopted(Arc<ArchivedSegment>),
    /// It breaks Kafka's rules.
    Quarantined(String),
    /// It contradicts the archive.
    Held(String),
    /// Its end is above the high watermark.
    NotCommitted,
    /// It changed or went away meanwhile: plan again.
    Gone,
}

impl Tier {
    /// Carries one segment through. An error means: try again after a pause.
    pub(super) async fn archive(self: &Arc<Self>, job: &Job) -> Result<Done, TierError> {
        self.settle_identity().await?;
        if self.backoffs.is_failing(&job.chain) {
            // Reading the segment again and again is no way to find out that the store is away.
            self.store.head(&names::identity_key()).await?;
        }
        let chain = self.chains.ready(&job.chain).await?;
        let looked = {
            let (moved, stopping) = (job.clone(), self.stopping.clone());
            let scan = tokio::task::spawn_blocking(move || prepare::look(&moved, &stopping));
            scan.await.map_err(|error| scan_ended(&job.chain, &error))??
        };
        match looked {
            Looked::Fine(prepared) => self.carry(job, &prepared, chain).await,
            Looked::Bad { offset, reason, mutations } => {
                self.hold(job, HoldKind::Quarantined, offset, &reason, mutations);
                Ok(Done::Quarantined(reason))
            }
            Looked::NotCommitted => Ok(Done::NotCommitted),
            Looked::Gone => Ok(Done::Gone),
        }
    }

    async fn carry(
        &self,
        job: &Job,
        prepared: &Prepared,
        mut chain: Arc<Chain>,
    ) -> Result<Done, TierError> {
        let mut uploaded: Option<Arc<ArchivedSegment>> = None;
        for _ in 0..CONFLICTS_MAX {
            let verdict = self.judge(job, prepared, &chain);
            if let Verdict::Adopt(segment) = verdict {
                return self.adopt(job, prepared, uploaded.as_deref(), segment).await;
            }
            if let Verdict::Held(reason) = verdict {
                self.discard_upload(job, uploaded.as_deref()).await;
                self.hold(job, HoldKind::Held, None, &reason, prepared.mutations);
                return Ok(Done::Held(reason));
            }
            if let Verdict::PassedOver(reason) = verdict {
                self.discard_upload(job, uploaded.as_deref()).await;
                self.hold(job, HoldKind::Quarantined, None, &reason, prepared.mutations);
                return Ok(Done::Quarantined(reason));
            }
            let segment = match uploaded.take() {
                Some(segment) => segment,
                None => Arc::new(self.upload(job, prepared).await?),
            };
            uploaded = Some(segment.clone());
            if !self.is_unchanged(job, prepared) {
                self.discard_upload(job, Some(&segment)).await;
                return Ok(Done::Gone);
            }
            let changes = changes_of(&verdict, &segment).unwrap_or_default();
            if let Err(why) = chain.check(&changes) {
                // The commit would be refused and write nothing: nobody will ever name the objects.
                self.discard_upload(job, Some(&segment)).await;
                let (chain, why) = (job.chain.to_string(), why.to_string());
                return Err(TierError::Manifest { chain, why });
            }
            if self.chains.commit(&chain, &job.chain, changes).await?.is_some() {
                self.note_archived(job, prepared, &segment);
                self.counters.archived_segments.raise();
                self.counters.archived_bytes.add(segment.size_bytes);
                return Ok(Done::Archived(segment));
            }
            chain = self.chains.ready(&job.chain).await?;
        }
        self.discard_upload(job, uploaded.as_deref()).await;
        Err(TierError::Outrun(job.chain.to_string()))
    }

    fn judge(&self, job: &Job, prepared: &Prepared, chain: &Chain) -> Verdict {
        let scanned = Scanned {
            base_offset: job.base_offset,
            end_offset: prepared.end_offset,
            size_bytes: prepared.scan.size_bytes,
            sha256: prepared.scan.sha256,
            compacted: job.compacted,
            epochs: prepared.scan.epochs.clone(),
        };
        let view = view_of(chain, scanned.base_offset, scanned.end_offset);
        judge(&view, &scanned, &self.holds.quarantined(&job.chain))
    }

    async fn adopt(
        &self,
        job: &Job,
        prepared: &Prepared,
        uploaded: Option<&ArchivedSegment>,
        segment: ArchivedSegment,
    ) -> Result<Done, TierError> {
        let ours = uploaded.is_some_and(|u| u.upload_id == segment.upload_id);
        if !ours {
            self.discard_upload(job, uploaded).await;
            self.check_objects(&job.chain, &segment).await?;
        }
        if !self.is_unchanged(job, prepared) {
            return Ok(Done::Gone);
        }
        let segment = Arc::new(segment);
        self.note_archived(job, prepared, &segment);
        self.counters.adopted_segments.raise();
        Ok(Done::Adopted(segment))
    }

    async fn discard_upload(&self, job: &Job, uploaded: Option<&ArchivedSegment>) {
        if let Some(segment) = uploaded {
            self.remove_upload(&job.chain, segment).await;
        }
    }

    /// The generation is still the one that was scanned, and Kafka has not taken it back.
    fn is_unchanged(&self, job: &Job, prepared: &Prepared) -> bool {
        let same_size = prepared.file.metadata().is_ok_and(|m| m.len() == prepared.scan.size_bytes);
        let same_time = !self.config.stock
            || prepared.file.metadata().is_ok_and(|m| prepare::mtime_ns(&m) == prepared.mtime_ns);
        let wanted = match &job.source {
            Source::Spooled(_) => true,
            Source::Log { log, .. } => {
                let fate = self.fates.lock().get(&log.id).map(|n| n.fate);
                let taken_back = matches!(fate, Some(Fate::Truncation | Fate::Compaction));
                let kept = !taken_back && !is_swapped(job);
                kept && (log.is_linked() || self.spool.holds_log(log.id))
            }
        };
        same_size && same_time && wanted && job.source.mutations() == prepared.mutations
    }

    fn note_archived(&self, job: &Job, prepared: &Prepared, segment: &Arc<ArchivedSegment>) {
        self.holds.forget(&job.source.id());
        match &job.source {
            Source::Log { log, .. } => {
                log.set_archived(Archived {
                    stub: Stub::of_segment(&job.chain, segment, prepared.mtime_ns, prepared.owner),
                    mutations: prepared.mutations,
                    compared: true,
                });
                self.note_roll_time(log.id);
            }
            Source::Spooled(entry) => self.spool.note_archived(&entry.id, segment),
        }
        tracing::debug!(
            segment = %job.source.label(), end_offset = segment.end_offset,
            upload = %segment.upload_id, "archived"
        );
    }

    fn hold(&self, job: &Job, kind: HoldKind, offset: Option<i64>, reason: &str, mutations: u64) {
        self.holds.put(
            job.source.id(),
            Hold {
                chain: job.chain.clone(),
                kind,
                mutations,
                base_offset: job.base_offset,
                end_offset: job.next_base,
                offset,
                reason: reason.to_owned(),
                label: job.source.label(),
            },
        );
    }
}

/// Why a scan gave no result.
fn scan_ended(chain: &ChainId, error: &tokio::task::JoinError) -> TierError {
    if error.is_cancelled() {
        return TierError::Stopping;
    }
    let why = "a defect of Everlog stopped the scan".to_owned();
    TierError::Manifest { chain: chain.to_string(), why }
}

/// Whether the cleaner is giving names to its results, or has changed what follows the segment.
fn is_swapped(job: &Job) -> bool {
    let Source::Log { dir, .. } = &job.source else { return false };
    if !job.compacted || !dir.is_live() {
        return false;
    }
    let segments = dir.segments();
    let now = segments.iter().find(|s| s.base_offset == job.base_offset);
    now.is_none_or(|s| s.next_base != job.next_base) || is_swapping(dir)
}

/// What the chain holds of `[base, end)` and where it ends.
fn view_of(chain: &Chain, base: i64, end: i64) -> ArchiveView {
    let item = |from_offset, to_offset, is_gap| Item { from_offset, to_offset, is_gap };
    let covering = chain.covering(base).filter(|s| s.base_offset < base);
    let gap = chain.gap_at(base).filter(|g| g.from_offset < base);
    let before = covering
        .map(|s| item(s.base_offset, s.end_offset, false))
        .or_else(|| gap.map(|g| item(g.from_offset, g.to_offset, true)));
    let within = chain
        .items_from(base)
        .take_while(|i| i.from_offset() < end)
        .map(|i| item(i.from_offset(), i.to_offset(), matches!(i, Tile::Gap(_))));
    let segments = chain.segments();
    let epoch_before = segments.range(..base).rev().find_map(|(_, s)| s.epochs.last());
    let epoch_behind = segments.range(end.max(base)..).find_map(|(_, s)| s.epochs.first());
    let reaches_in = chain.covering(base).filter(|s| s.base_offset < base);
    ArchiveView {
        start_offset: chain.start_offset(),
        segments: reaches_in
            .into_iter()
            .chain(segments.range(base..end.max(base)).map(|(_, s)| s))
            .cloned()
            .collect(),
        epoch_before: epoch_before.map(|e| e.epoch),
        epoch_behind: epoch_behind.map(|e| e.epoch),
        end_offset: chain.end_offset(),
        same_base: chain.find(base).map(|s| s.as_ref().clone()),
        overlapping: before.into_iter().chain(within).collect(),
    }
}

fn gap_change(piece: GapPiece) -> Change {
    Change::Gap { from_offset: piece.from_offset, to_offset: piece.to_offset, reason: piece.reason }
}

/// What a commit says; `None`: the verdict commits nothing.
fn changes_of(verdict: &Verdict, segment: &Arc<ArchivedSegment>) -> Option<Vec<Change>> {
    match verdict.clone() {
        Verdict::Append(gaps) => {
            let add = Change::Add(segment.as_ref().clone());
            Some(gaps.into_iter().map(gap_change).chain([add]).collect())
        }
        Verdict::Replace { from_offset, to_offset, extend } => {
            let segments = vec![segment.as_ref().clone()];
            let replace = Change::Replace { from_offset, to_offset, segments };
            Some(extend.into_iter().map(gap_change).chain([replace]).collect())
        }
        Verdict::Adopt(_) | Verdict::PassedOver(_) | Verdict::Held(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_scan_that_panics_is_tried_again_and_is_no_end_of_the_process() {
        let chain = ChainId { tp: "t-0".parse().unwrap(), topic_id: crate::types::TopicId::none() };
        let scan = tokio::spawn(async { panic!("a defect") });
        let error = scan_ended(&chain, &scan.await.unwrap_err());
        assert!(matches!(error, TierError::Manifest { .. }), "{error}");
        let scan = tokio::spawn(std::future::pending::<()>());
        scan.abort();
        let error = scan_ended(&chain, &scan.await.unwrap_err());
        assert!(matches!(error, TierError::Stopping), "{error}");
    }
}
