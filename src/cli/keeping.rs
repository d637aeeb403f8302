//! What a running mount does for `warm`, `evict`, `pin` and `unpin`: whole archived segments into the cache
//! or out of it.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use tokio::runtime::Handle;

use super::control::{Outcome, Request, Target, Verb};
use super::units::show_bytes;
use crate::cache::BlockCache;
use crate::read::{ObjectSource, ReadHint, ReadStreams, Reader};
use crate::types::{BLOCK_BYTES, ObjectKey, block_count};
use crate::vfs::{ArchiveIndex, archive_source};

/// Read at once, in bytes.
const PIECE_BYTES: u64 = 4 << 20;
/// Pieces under way.
const PIECES_MAX: usize = 4;
/// What could not be kept for want of room is fetched again so often, with a pause while trimming makes room.
const ROUNDS_MAX: u32 = 20;
const ROUND_PAUSE: Duration = Duration::from_millis(250);

/// What it works with.
pub struct Keeping {
    /// Which segments there are.
    pub index: ArchiveIndex,
    /// Fetches.
    pub reader: Reader,
    /// Keeps.
    pub cache: Arc<BlockCache>,
    /// Where waiting is done.
    pub runtime: Handle,
}

/// Told how far it is; false: nobody listens any more.
pub type Progress<'a> = &'a mut dyn FnMut(&Outcome) -> bool;

type Result<T> = std::result::Result<T, String>;

fn all_bytes(sources: &[ObjectSource]) -> u64 {
    sources.iter().map(|s| s.size_bytes + s.aux_size_bytes).sum()
}

fn keys(sources: &[ObjectSource]) -> Vec<(ObjectKey, u64)> {
    let both = |s: &ObjectSource| {
        [(s.log_key.clone(), s.size_bytes), (s.aux_key.clone(), s.aux_size_bytes)]
    };
    sources.iter().flat_map(both).collect()
}

/// Whether a pinned object's key lies in a partition, and in the segment with this base offset. A pin is taken
/// back without asking the store.
fn lies_in(key: &str, target: &Target) -> bool {
    let Some(partition) = &target.partition else { return true };
    let mut parts = key.split('/').skip(1);
    let (Some(tp), Some(id), Some(file)) = (parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    let named = match partition.split_once('~') {
        Some((name, wanted)) => name == tp && wanted == id,
        None => partition == tp,
    };
    named && target.offset.is_none_or(|offset| file.starts_with(&format!("{offset:020}.")))
}

impl Keeping {
    /// Does what is asked for. The words of an error are for the person who asked.
    pub fn work(&self, request: &Request, progress: Progress<'_>) -> Result<Outcome> {
        if request.targets.is_empty() {
            return Err("nothing is named".to_owned());
        }
        if request.verb == Verb::Unpin {
            return self.unpin(&request.targets);
        }
        let sources = self.runtime.block_on(self.sources(&request.targets))?;
        match request.verb {
            Verb::Evict => Ok(self.evict(&sources)),
            Verb::Warm => self.runtime.block_on(self.warm(&sources, Outcome::default(), progress)),
            Verb::Pin | Verb::Unpin => {
                let pinned = self.cache.pin(&keys(&sources)).map_err(|e| e.to_string())?;
                let begun = Outcome {
                    changed_pins: pinned.changed_objects,
                    pinned_bytes: pinned.bytes,
                    ..Outcome::default()
                };
                let warmed = self.runtime.block_on(self.warm(&sources, begun, progress));
                warmed.map_err(|why| {
                    format!("pinned, but not all of it is in the cache yet ({why}): run it again")
                })
            }
        }
    }

    async fn sources(&self, targets: &[Target]) -> Result<Vec<ObjectSource>> {
        let listing = self.index.list().await.map_err(|e| format!("the archive: {e}"))?;
        let mut sources = Vec::new();
        for target in targets {
            let before = sources.len();
            let wanted = |name: &str| target.partition.as_ref().is_none_or(|wanted| wanted == name);
            for named in listing.iter().filter(|named| wanted(&named.name)) {
                let readable = self.index.chain(&named.id).await;
                let readable = readable.map_err(|e| format!("{}: {e}", named.name))?;
                if let Some(damage) = readable.damage {
                    return Err(format!("the archive of {} is damaged: {damage}", named.name));
                }
                let segments = readable.chain.segments().values().filter(|seg| {
                    target.offset.is_none_or(|o| seg.base_offset <= o && o < seg.end_offset)
                });
                sources.extend(segments.map(|seg| archive_source(&named.id, seg)));
            }
            if let Some(partition) = &target.partition
                && sources.len() == before
            {
                return Err(match target.offset {
                    Some(offset) => {
                        format!("no archived segment of {partition} has offset {offset}")
                    }
                    None => format!("nothing of {partition} is archived: is that a partition?"),
                });
            }
        }
        sources.sort_by(|a, b| a.log_key.as_str().cmp(b.log_key.as_str()));
        sources.dedup();
        Ok(sources)
    }

    async fn warm(
        &self,
        sources: &[ObjectSource],
        begun: Outcome,
        progress: Progress<'_>,
    ) -> Result<Outcome> {
        let bytes = sources.iter().map(|s| s.size_bytes).sum();
        let (all, most) = (all_bytes(sources), self.cache.keepable_bytes());
        if all > most {
            return Err(format!(
                "these are {}, the cache keeps at most {} on request (three quarters of --cache-bytes): name less, or give it more",
                show_bytes(all),
                show_bytes(most)
            ));
        }
        let wanted: Vec<ObjectKey> = keys(sources).into_iter().map(|(key, _)| key).collect();
        let _favour = self.cache.favour(&wanted);
        let mut outcome = Outcome { segments: sources.len() as u64, bytes, ..begun };
        for source in sources {
            let before = outcome.cached_bytes;
            self.warm_one(source, &mut outcome, progress).await?;
            outcome.cached_bytes = before + source.size_bytes;
        }
        // What came first may have had to go again for the rest: then it is too much at once.
        let left: u64 = sources.iter().map(|s| bytes_of(&self.missing_runs(s), s)).sum();
        outcome.cached_bytes = bytes.saturating_sub(left);
        if left > 0 {
            return Err(format!(
                "{} of {} could not be kept: the cache has no room for them now ('everlog status' says why)",
                show_bytes(left),
                show_bytes(bytes)
            ));
        }
        Ok(outcome)
    }

    fn missing_runs(&self, source: &ObjectSource) -> Vec<std::ops::Range<u64>> {
        match self.cache.object(&source.log_key, source.size_bytes, &source.aux_sha256) {
            Some(object) => object.missing(0..u64::MAX),
            None => std::iter::once(0..block_count(source.size_bytes)).collect(),
        }
    }

    /// The one place that fetches: through the reader, in pieces.
    async fn warm_one(
        &self,
        source: &ObjectSource,
        outcome: &mut Outcome,
        progress: Progress<'_>,
    ) -> Result<()> {
        self.reader.aux(source).await.map_err(|e| e.to_string())?;
        let before = outcome.cached_bytes;
        for round in 0..ROUNDS_MAX {
            let missing = self.missing_runs(source);
            outcome.cached_bytes = before + source.size_bytes - bytes_of(&missing, source);
            if !progress(outcome) {
                return Err("nobody waits for it any more".to_owned());
            }
            if missing.is_empty() {
                return Ok(());
            }
            if let Some(bypassed) = self.cache.bypassed() {
                return Err(format!("the cache's disk fails: {}", bypassed.reason));
            }
            if round > 0 {
                tokio::time::sleep(ROUND_PAUSE).await;
            }
            let streams = ReadStreams::default();
            let span = |run: std::ops::Range<u64>| {
                let end = (run.end * BLOCK_BYTES).min(source.size_bytes);
                (run.start * BLOCK_BYTES..end)
                    .step_by(PIECE_BYTES as usize)
                    .map(move |at| (at, end))
            };
            let pieces = missing.into_iter().flat_map(span).map(|(at, end)| {
                let len = PIECE_BYTES.min(end - at) as usize;
                self.reader.read(source, &streams, at, len, ReadHint { broker: false })
            });
            let mut reads = futures::stream::iter(pieces).buffered(PIECES_MAX);
            while let Some(read) = reads.next().await {
                let got = read.map_err(|e| e.to_string())?.len() as u64;
                let most = before + source.size_bytes;
                outcome.cached_bytes = (outcome.cached_bytes + got).min(most);
                if !progress(outcome) {
                    return Err("nobody waits for it any more".to_owned());
                }
            }
        }
        Ok(())
    }

    fn evict(&self, sources: &[ObjectSource]) -> Outcome {
        let mut outcome = Outcome { segments: sources.len() as u64, ..Outcome::default() };
        for source in sources {
            outcome.bytes += source.size_bytes;
            if self.cache.is_pinned(&source.log_key) {
                outcome.left_pinned += 1;
                continue;
            }
            outcome.freed_bytes += self.cache.cached_bytes(&source.log_key);
            self.cache.remove(&source.log_key);
            self.cache.remove(&source.aux_key);
        }
        outcome.pinned_bytes = self.cache.stats().pinned_wanted_bytes;
        outcome
    }

    fn unpin(&self, targets: &[Target]) -> Result<Outcome> {
        let unpinned = self.cache.unpin(|key| targets.iter().any(|target| lies_in(key, target)));
        let unpinned = unpinned.map_err(|e| e.to_string())?;
        if unpinned.changed_objects == 0 {
            return Err("nothing of that is pinned".to_owned());
        }
        let (changed_pins, pinned_bytes) = (unpinned.changed_objects, unpinned.bytes);
        Ok(Outcome { changed_pins, pinned_bytes, ..Outcome::default() })
    }
}

/// Bytes of runs of an object's blocks, of which the last may be short.
fn bytes_of(runs: &[std::ops::Range<u64>], source: &ObjectSource) -> u64 {
    let bytes = |run: &std::ops::Range<u64>| {
        (run.end * BLOCK_BYTES).min(source.size_bytes) - run.start * BLOCK_BYTES
    };
    runs.iter().map(bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_object_is_found_by_its_partition_and_segment() {
        let key = "topics/orders-0/abc/00000000000000000042.0011223344556677.log";
        let target = |partition: &str, offset| Target { partition: Some(partition.into()), offset };
        assert!(lies_in(key, &target("orders-0", None)));
        assert!(lies_in(key, &target("orders-0", Some(42))));
        assert!(lies_in(key, &target("orders-0~abc", None)));
        assert!(lies_in(key, &Target { partition: None, offset: None }));
        assert!(!lies_in(key, &target("orders-0", Some(4))));
        assert!(!lies_in(key, &target("orders", None)));
        assert!(!lies_in(key, &target("orders-0~x", None)));
        assert!(!lies_in("strange", &target("orders-0", None)));
    }
}
