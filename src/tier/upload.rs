//! The remote half of archiving: two objects under a fresh name, read back and compared with what was scanned.

use bytes::Bytes;

use super::Tier;
use super::error::TierError;
use super::prepare::{Job, Prepared};
use super::witness::LogWitness;
use crate::clock::random_u64;
use crate::kafka::scan::SegmentScan;
use crate::manifest::AuxBuilder;
use crate::store::{Op, StoreErrorKind, fail_point, names};
use crate::types::{
    ArchivedSegment, ChainId, FileSizes, ObjectKey, Sha256, Sha256Hasher, UploadId,
};

/// What the manifest will say of the segment, but for its `.aux`.
fn describe(job: &Job, p: &Prepared, upload_id: UploadId) -> ArchivedSegment {
    ArchivedSegment {
        base_offset: p.base_offset,
        end_offset: p.end_offset,
        size_bytes: p.scan.size_bytes,
        upload_id,
        sha256: p.scan.sha256,
        mtime_ns: p.mtime_ns,
        max_timestamp_ms: p.scan.max_timestamp_ms,
        batches: p.scan.batches,
        epochs: p.scan.epochs.clone(),
        compacted: job.compacted,
        aux_size_bytes: 0,
        aux_sha256: Sha256([0; 32]),
        files: FileSizes::default(),
    }
}

fn build_aux(
    job: &Job,
    p: &Prepared,
    segment: ArchivedSegment,
) -> Result<(Bytes, ArchivedSegment), TierError> {
    let bytes = |f: &Option<Vec<u8>>| f.as_ref().map(|b| Bytes::copy_from_slice(b));
    let builder = AuxBuilder {
        index: bytes(&p.small.index),
        timeindex: bytes(&p.small.timeindex),
        txnindex: bytes(&p.small.txnindex),
        snapshot: bytes(&p.small.snapshot),
        epochs: bytes(&p.small.epochs),
        block_crcs: p.scan.block_crcs.clone(),
        content_blocks: p.scan.content_blocks.clone(),
        segment,
    };
    builder.build().map_err(|why| TierError::Manifest {
        chain: job.chain.to_string(),
        why: format!("the .aux of segment {} cannot be built: {why}", p.base_offset),
    })
}

impl Tier {
    /// Uploads a segment and compares what the store then holds. The objects are nobody's until a commit
    /// names them; after a failure they are removed again, as far as the store lets us.
    pub(super) async fn upload(
        &self,
        job: &Job,
        prepared: &Prepared,
    ) -> Result<ArchivedSegment, TierError> {
        let segment = describe(job, prepared, UploadId::from_random(random_u64()));
        let (aux, segment) = build_aux(job, prepared, segment)?;
        let done = self.send_and_compare(&job.chain, prepared, &segment, aux).await;
        if done.is_err() {
            self.remove_upload(&job.chain, &segment).await;
        }
        done.map(|()| segment)
    }

    async fn send_and_compare(
        &self,
        chain: &ChainId,
        prepared: &Prepared,
        segment: &ArchivedSegment,
        aux: Bytes,
    ) -> Result<(), TierError> {
        let log_key = names::log_key(chain, segment.base_offset, &segment.upload_id);
        let aux_key = names::aux_key(chain, segment.base_offset, &segment.upload_id);
        let range = prepared.position..prepared.position + segment.size_bytes;
        fail_point("archive.log.put", Op::Put, &log_key)?;
        self.store.put_file(&log_key, &prepared.file, range, &self.rate).await?;
        self.rate.acquire(segment.aux_size_bytes).await;
        fail_point("archive.aux.put", Op::Put, &aux_key)?;
        self.store.put_overwrite(&aux_key, aux).await?;
        fail_point("archive.log.compare", Op::Get, &log_key)?;
        self.compare_log(&log_key, &prepared.scan).await?;
        fail_point("archive.aux.compare", Op::Get, &aux_key)?;
        self.compare(&aux_key, segment.aux_size_bytes, segment.aux_sha256).await?;
        Ok(fail_point("archive.compared", Op::Get, &log_key)?)
    }

    /// Reads a `.log` object back and compares it with what was scanned.
    async fn compare_log(&self, key: &ObjectKey, scan: &SegmentScan) -> Result<(), TierError> {
        let witness = LogWitness::new(scan);
        let found = self.store.read_back(key, witness, LogWitness::bytes).await?;
        found.finish().map_err(|found| TierError::ReadBack {
            key: key.to_string(),
            expected: format!("the {} bytes that were sent", scan.size_bytes),
            found,
        })
    }

    /// Reads a whole object back and compares its length and checksum.
    async fn compare(
        &self,
        key: &ObjectKey,
        size_bytes: u64,
        sha256: Sha256,
    ) -> Result<(), TierError> {
        let feed = |(bytes, hasher): &mut (u64, Sha256Hasher), piece: &[u8]| {
            *bytes += piece.len() as u64;
            hasher.update(piece);
        };
        let begin = (0u64, Sha256Hasher::default());
        let (found_bytes, hasher) = self.store.read_back(key, begin, feed).await?;
        let found = hasher.finish();
        if (found_bytes, found) == (size_bytes, sha256) {
            return Ok(());
        }
        Err(TierError::ReadBack {
            key: key.to_string(),
            expected: format!("{size_bytes} bytes, SHA-256 {sha256}"),
            found: format!("{found_bytes} bytes, SHA-256 {found}"),
        })
    }

    /// That both objects of an archived segment are there with the right lengths.
    pub(super) async fn check_objects(
        &self,
        chain: &ChainId,
        segment: &ArchivedSegment,
    ) -> Result<(), TierError> {
        let log = names::log_key(chain, segment.base_offset, &segment.upload_id);
        let aux = names::aux_key(chain, segment.base_offset, &segment.upload_id);
        fail_point("archive.adopt", Op::Head, &log)?;
        for (key, expected) in [(log, segment.size_bytes), (aux, segment.aux_size_bytes)] {
            let found = match self.store.head(&key).await {
                Ok(info) if info.size == expected => continue,
                Ok(info) => format!("{} bytes instead of {expected}", info.size),
                Err(e) if e.kind == StoreErrorKind::NotFound => "no such object".to_owned(),
                Err(e) => return Err(e.into()),
            };
            return Err(TierError::Missing { key: key.to_string(), found });
        }
        Ok(())
    }

    /// Removes the objects of an upload that no commit can have named. Best effort: what stays is
    /// unreferenced and harmless.
    pub(super) async fn remove_upload(&self, chain: &ChainId, segment: &ArchivedSegment) {
        let log = names::log_key(chain, segment.base_offset, &segment.upload_id);
        let aux = names::aux_key(chain, segment.base_offset, &segment.upload_id);
        for key in [log, aux] {
            let deleted = match fail_point("archive.upload.drop", Op::Delete, &key) {
                Ok(()) => self.store.delete(&key).await,
                failed => failed,
            };
            if let Err(error) = deleted {
                tracing::debug!(%error, "an abandoned object stays in the store");
                return;
            }
        }
    }
}
