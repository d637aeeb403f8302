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
use super::verdict::{
    ArchiveView, Compared, GapPiece, Item, Scanned, Verdict, judge, judge_compared,
};
use crate::catalog::{Archived, Content};
use crate::failpoint;
use crate::local::{Extent, Stub};
use crate::manifest::{Chain, Change, Item as Tile};
use crate::store::{forget_pages, names};
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

/// What is to be done with a segment.
enum Step {
    /// The archive has it, in these places.
    Adopt(Vec<Extent>),
    /// Upload what the archive lacks of it, and commit that.
    Commit(Commit),
    /// Nothing, and why.
    Hold(HoldKind, String),
}

/// A commit to come.
struct Commit {
    /// First offset of what is uploaded.
    offset: i64,
    /// Where that begins in the file.
    position: u64,
    /// Where the bytes before it lie in the archive.
    extents: Vec<Extent>,
    replaces: Replaces,
}

/// What of the chain gives way to it.
#[derive(Clone)]
enum Replaces {
    /// It goes behind these gaps, at the chain's end.
    Nothing(Vec<GapPiece>),
    Range {
        from_offset: i64,
        to_offset: i64,
        extend: Option<GapPiece>,
    },
    /// Everything from here on.
    From {
        offset: i64,
        reason: String,
    },
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
        self: &Arc<Self>,
        job: &Job,
        prepared: &Arc<Prepared>,
        mut chain: Arc<Chain>,
    ) -> Result<Done, TierError> {
        let mut uploaded = None;
        for _ in 0..CONFLICTS_MAX {
            let step = match self.next_step(job, prepared, &chain).await {
                Ok(step) => without_unproved_end(step, job, prepared.end_offset),
                Err(error) => {
                    self.discard_upload(job, uploaded.as_ref()).await;
                    return Err(error);
                }
            };
            let step = match step {
                Step::Commit(commit) => {
                    let Some(found) = self.archived_in(&job.chain, &commit.extents) else {
                        self.discard_upload(job, uploaded.as_ref()).await;
                        return Ok(Done::Gone);
                    };
                    self.check_all(job, &found).await?;
                    commit
                }
                Step::Adopt(segments) => {
                    return self.adopt(job, prepared, uploaded.as_ref(), segments).await;
                }
                Step::Hold(kind, reason) => {
                    self.discard_upload(job, uploaded.as_ref()).await;
                    self.hold(job, kind, None, &reason, prepared.mutations);
                    return Ok(match kind {
                        HoldKind::Held => Done::Held(reason),
                        HoldKind::Quarantined => Done::Quarantined(reason),
                    });
                }
            };
            let segment = match self.uploaded(job, prepared, &step, uploaded.take()).await {
                // The store has what the file became meanwhile, not what was scanned.
                Err(TierError::ReadBack { .. }) if !self.is_unchanged(job, prepared) => {
                    return Ok(Done::Gone);
                }
                uploaded => uploaded?,
            };
            uploaded = Some(segment.clone());
            if !self.is_unchanged(job, prepared) {
                self.discard_upload(job, Some(&segment)).await;
                return Ok(Done::Gone);
            }
            let changes = step.changes(&segment);
            if let Err(why) = chain.check(&changes) {
                // The commit would be refused and write nothing: nobody will ever name the objects.
                self.discard_upload(job, Some(&segment)).await;
                let (chain, why) = (job.chain.to_string(), why.to_string());
                return Err(TierError::Manifest { chain, why });
            }
            if self.chains.commit(&chain, &job.chain, changes).await?.is_some() {
                if let Replaces::From { offset, reason } = &step.replaces {
                    tracing::warn!(
                        segment = %job.source.label(), offset, %reason,
                        "archived history gives way from this offset on"
                    );
                }
                self.note_archived(job, prepared, &segment, step.extents);
                self.counters.archived_segments.raise();
                self.counters.archived_bytes.add(segment.size_bytes);
                return Ok(Done::Archived(segment));
            }
            chain = self.chains.ready(&job.chain).await?;
        }
        self.discard_upload(job, uploaded.as_ref()).await;
        Err(TierError::Outrun(job.chain.to_string()))
    }

    /// What is to be done with the segment on this view of the chain.
    async fn next_step(
        self: &Arc<Self>,
        job: &Job,
        prepared: &Prepared,
        chain: &Chain,
    ) -> Result<Step, TierError> {
        let whole = |replaces| Commit {
            offset: job.base_offset,
            position: 0,
            extents: Vec::new(),
            replaces,
        };
        let scanned = Scanned {
            base_offset: job.base_offset,
            end_offset: prepared.end_offset,
            size_bytes: prepared.scan.size_bytes,
            sha256: prepared.scan.sha256,
            compacted: job.compacted,
            epochs: prepared.scan.epochs.clone(),
        };
        let view = view_of(chain, scanned.base_offset, scanned.end_offset);
        match judge(&view, &scanned, &self.holds.quarantined(&job.chain)) {
            Verdict::Adopt(segment) => {
                Ok(Step::Adopt(vec![Extent::of(&segment, 0..prepared.scan.size_bytes, 0)]))
            }
            Verdict::Append(gaps) => Ok(Step::Commit(whole(Replaces::Nothing(gaps)))),
            Verdict::Replace { from_offset, to_offset, extend } => {
                Ok(Step::Commit(whole(Replaces::Range { from_offset, to_offset, extend })))
            }
            Verdict::PassedOver(reason) => Ok(Step::Hold(HoldKind::Quarantined, reason)),
            Verdict::Held(reason) => Ok(Step::Hold(HoldKind::Held, reason)),
            Verdict::Compare => {
                let overlap = self.compare_overlap(job, prepared, chain).await?;
                let continues = self.continues_archived(job, chain).await?;
                let compared = judge_compared(&view, &scanned, &overlap, continues);
                Ok(step_of(compared, overlap.extents))
            }
        }
    }

    /// Whether what precedes the segment in the log dir is proved to be what the archive has there.
    async fn continues_archived(
        self: &Arc<Self>,
        job: &Job,
        chain: &Chain,
    ) -> Result<bool, TierError> {
        let Source::Log { dir, .. } = &job.source else { return Ok(false) };
        let segments = dir.segments();
        let before = segments.into_iter().find(|s| s.next_base == Some(job.base_offset));
        let Some(before) = before.map(|s| s.log) else { return Ok(false) };
        let stub = match before.content() {
            Content::Cold(stub) => stub,
            _ => {
                let (tier, log) = (self.clone(), before.clone());
                let compared = tokio::task::spawn_blocking(move || tier.is_compared(&log));
                let compared = compared.await.map_err(|error| scan_ended(&job.chain, &error))?;
                let archived = before.archived().filter(|a| a.compared);
                match archived {
                    Some(archived) if compared.map_err(|e| job.source.local_error(e))? => {
                        Arc::new(archived.stub.clone())
                    }
                    _ => return Ok(false),
                }
            }
        };
        let in_chain = |e: &Extent| {
            chain.find(e.base_offset).is_some_and(|segment| segment.upload_id == e.upload_id)
        };
        Ok(stub.chain() == job.chain && stub.extents.last().is_some_and(in_chain))
    }

    /// The part of the segment that a commit names, uploaded, unless an earlier try has done that.
    async fn uploaded(
        &self,
        job: &Job,
        prepared: &Arc<Prepared>,
        step: &Commit,
        before: Option<Arc<ArchivedSegment>>,
    ) -> Result<Arc<ArchivedSegment>, TierError> {
        if let Some(segment) = &before
            && segment.base_offset == step.offset
        {
            return Ok(segment.clone());
        }
        self.discard_upload(job, before.as_ref()).await;
        if step.position == 0 {
            return Ok(Arc::new(self.upload(job, prepared).await?));
        }
        let part = {
            let (job, whole, stopping) = (job.clone(), prepared.clone(), self.stopping.clone());
            let from = (step.offset, step.position);
            tokio::task::spawn_blocking(move || prepare::part(&job, &whole, from, &stopping))
        };
        let part = part.await.map_err(|error| scan_ended(&job.chain, &error))??;
        Ok(Arc::new(self.upload(job, &part).await?))
    }

    /// Notes that the archive has all bytes of the segment, in these places.
    async fn adopt(
        &self,
        job: &Job,
        prepared: &Prepared,
        uploaded: Option<&Arc<ArchivedSegment>>,
        extents: Vec<Extent>,
    ) -> Result<Done, TierError> {
        let Some(found) = self.archived_in(&job.chain, &extents) else { return Ok(Done::Gone) };
        if let Some(upload) = uploaded
            && !found.iter().any(|s| s.upload_id == upload.upload_id)
        {
            self.discard_upload(job, Some(upload)).await;
        }
        let ours = |s: &Arc<ArchivedSegment>| {
            uploaded.is_some_and(|upload| upload.upload_id == s.upload_id)
        };
        let others: Vec<_> = found.iter().filter(|s| !ours(s)).cloned().collect();
        self.check_all(job, &others).await?;
        let Some(first) = found.first().cloned() else { return Ok(Done::Gone) };
        if !self.is_unchanged(job, prepared) {
            return Ok(Done::Gone);
        }
        self.note_archived(job, prepared, &first, extents);
        self.counters.adopted_segments.raise();
        Ok(Done::Adopted(first))
    }

    /// The archived segments that these places lie in; `None`: one was replaced meanwhile, and the segment is
    /// to be looked at again on the newer chain.
    fn archived_in(
        &self,
        chain: &ChainId,
        extents: &[Extent],
    ) -> Option<Vec<Arc<ArchivedSegment>>> {
        let chain = self.chains.view(chain)?;
        let find =
            |e: &Extent| chain.find(e.base_offset).filter(|s| s.upload_id == e.upload_id).cloned();
        extents.iter().map(find).collect()
    }

    /// That the store has the objects of all of them.
    async fn check_all(
        &self,
        job: &Job,
        segments: &[Arc<ArchivedSegment>],
    ) -> Result<(), TierError> {
        for segment in segments {
            self.check_objects(&job.chain, segment).await?;
        }
        Ok(())
    }

    async fn discard_upload(&self, job: &Job, uploaded: Option<&Arc<ArchivedSegment>>) {
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

    /// `extents`: where the bytes before those of `segment` lie, or all of them.
    fn note_archived(
        &self,
        job: &Job,
        prepared: &Prepared,
        segment: &Arc<ArchivedSegment>,
        mut extents: Vec<Extent>,
    ) {
        failpoint::step("archive.note");
        self.holds.forget(&job.source.id());
        self.holds.lift_behind(&job.chain, job.base_offset);
        let size = prepared.scan.size_bytes;
        let proved = extents.last().map_or(0, |e| e.file_end);
        if proved < size {
            extents.push(Extent::of(segment, proved..size, 0));
        }
        match &job.source {
            Source::Log { log, .. } => {
                let stub = Stub::of_segment(&job.chain, segment, prepared.mtime_ns, prepared.owner);
                log.set_archived(Archived {
                    stub: stub.with_extents(size, prepared.scan.sha256, extents),
                    mutations: prepared.mutations,
                    compared: true,
                });
                self.note_roll_time(log.id);
            }
            Source::Spooled(entry) => {
                let end_offset = prepared.end_offset;
                self.spool.note_archived(&entry.id, &extents, end_offset);
            }
        }
        if self.config.forget_archived_pages {
            // The mount's own page cache has what a reader may want of it.
            forget_pages(&prepared.file, 0..size);
        }
        failpoint::step("archive.noted");
        tracing::debug!(
            segment = %job.source.label(), end_offset = prepared.end_offset,
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

/// Where a log was given up whole and begins anew at a later offset, its watermark went there too, so nobody knows whether
/// the end of what it had was committed: it may be found in the archive, and adds nothing to it.
fn without_unproved_end(step: Step, job: &Job, end: i64) -> Step {
    match (step, job.next_base) {
        (Step::Commit(_), Some(next)) if end < next => {
            let why = "the archive lacks a part of it, and whether that was committed is not known";
            let reason = format!("ends at {end}, the log begins anew at {next}; {why}");
            Step::Hold(HoldKind::Quarantined, reason)
        }
        (step, _) => step,
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

/// What a comparison comes to. `extents`: where the equal bytes lie.
fn step_of(compared: Compared, extents: Vec<Extent>) -> Step {
    let (offset, position, replaces) = match compared {
        Compared::Covered => return Step::Adopt(extents),
        Compared::Held(reason) => return Step::Hold(HoldKind::Held, reason),
        Compared::Continue { offset, position } => {
            (offset, position, Replaces::Nothing(Vec::new()))
        }
        Compared::Fill { offset, position, from_offset, to_offset } => {
            (offset, position, Replaces::Range { from_offset, to_offset, extend: None })
        }
        Compared::Fork { offset, position, reason } => {
            (offset, position, Replaces::From { offset, reason })
        }
    };
    Step::Commit(Commit { offset, position, extents, replaces })
}

fn gap_change(piece: GapPiece) -> Change {
    Change::Gap { from_offset: piece.from_offset, to_offset: piece.to_offset, reason: piece.reason }
}

impl Commit {
    /// What the commit says once `segment` is uploaded.
    fn changes(&self, segment: &Arc<ArchivedSegment>) -> Vec<Change> {
        let segment = segment.as_ref().clone();
        match self.replaces.clone() {
            Replaces::Nothing(gaps) => {
                gaps.into_iter().map(gap_change).chain([Change::Add(segment)]).collect()
            }
            Replaces::Range { from_offset, to_offset, extend } => {
                let replace = Change::Replace { from_offset, to_offset, segments: vec![segment] };
                extend.into_iter().map(gap_change).chain([replace]).collect()
            }
            Replaces::From { offset: from_offset, reason } => {
                vec![Change::Fork { from_offset, segments: vec![segment], reason }]
            }
        }
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
