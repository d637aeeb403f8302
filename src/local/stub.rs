//! A stub stands in the log dir for a `.log` whose bytes were evicted: where each byte now is.
//!
//! Format: `docs/FORMATS.md` 3.1. Invariant: a stub is durable before the bytes it stands for are
//! released, and it is never believed when its checksum fails.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::durable;
use crate::types::envelope::{self, EnvelopeError};
use crate::types::{ArchivedSegment, ChainId, Sha256, TopicId, TopicPartition, UploadId};

/// Ending of a stub's name, and of every name in the log dir that is Everlog's own.
pub const RESERVED_SUFFIX: &str = ".everlog";
const KIND: &str = "stub";
const VERSION: u32 = 1;

/// A range of the file that lies in a range of one archived object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// First byte in the file.
    pub file_start: u64,
    /// One past the last byte in the file.
    pub file_end: u64,
    /// Names the object, with `upload_id`.
    pub base_offset: i64,
    /// Names the object, with `base_offset`.
    pub upload_id: UploadId,
    /// Position of `file_start` in the object.
    pub object_start: u64,
    /// Length of the whole object.
    pub object_size_bytes: u64,
    /// Length of its `.aux`.
    pub aux_size_bytes: u64,
    /// Of its `.aux`.
    pub aux_sha256: Sha256,
}

/// What is known of an evicted file without its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stub {
    /// Exact size; with an overlay, the overlay's size is the file's.
    pub size_bytes: u64,
    /// Modification time, nanoseconds since the epoch.
    pub mtime_ns: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Content that was archived.
    pub generation: Sha256,
    /// Partition whose archive holds the objects.
    pub tp: TopicPartition,
    /// Incarnation of the topic.
    pub topic_id: TopicId,
    /// Archived ranges, ascending, disjoint.
    pub extents: Vec<Extent>,
    /// Name in `overlay/` of the file that holds all other bytes.
    pub overlay: Option<String>,
}

impl Stub {
    /// Of a whole archived segment. Ownership and mode are the evicted file's.
    #[must_use]
    pub fn of_segment(
        chain: &ChainId,
        seg: &ArchivedSegment,
        mtime_ns: u64,
        (mode, uid, gid): (u32, u32, u32),
    ) -> Self {
        let whole = Extent {
            file_start: 0,
            file_end: seg.size_bytes,
            base_offset: seg.base_offset,
            upload_id: seg.upload_id.clone(),
            object_start: 0,
            object_size_bytes: seg.size_bytes,
            aux_size_bytes: seg.aux_size_bytes,
            aux_sha256: seg.aux_sha256,
        };
        Self {
            size_bytes: seg.size_bytes,
            mtime_ns,
            mode,
            uid,
            gid,
            generation: seg.sha256,
            tp: chain.tp.clone(),
            topic_id: chain.topic_id.clone(),
            extents: vec![whole],
            overlay: None,
        }
    }

    /// The chain that holds its objects.
    #[must_use]
    pub fn chain(&self) -> ChainId {
        ChainId { tp: self.tp.clone(), topic_id: self.topic_id.clone() }
    }

    /// Takes `[start, end)` out of the archived ranges: those bytes are local from now on.
    pub fn cut(&mut self, start: u64, end: u64) {
        let mut kept = Vec::with_capacity(self.extents.len() + 1);
        for e in self.extents.drain(..) {
            if e.file_start < start.min(e.file_end) {
                kept.push(Extent { file_end: e.file_end.min(start), ..e.clone() });
            }
            let after = end.max(e.file_start);
            if after < e.file_end {
                let object_start = e.object_start + (after - e.file_start);
                kept.push(Extent { file_start: after, object_start, ..e });
            }
        }
        self.extents = kept;
    }

    /// Whether `[start, end)` touches an archived range.
    #[must_use]
    pub fn touches(&self, start: u64, end: u64) -> bool {
        self.extents.iter().any(|e| e.file_start < end && start < e.file_end)
    }

    /// From a document's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        let stub: Self = envelope::decode(KIND, VERSION, bytes)?;
        let ordered = stub.extents.windows(2).all(|w| w[0].file_end <= w[1].file_start);
        let sane = stub.extents.iter().all(|e| {
            e.file_start < e.file_end
                && e.object_start + (e.file_end - e.file_start) <= e.object_size_bytes
        });
        if !(ordered && sane) {
            let why = "extents overlap or exceed their objects".to_owned();
            return Err(EnvelopeError::Malformed { kind: KIND, why });
        }
        Ok(stub)
    }

    /// Writes it durably beside `file`.
    pub fn write(&self, file: &Path) -> io::Result<()> {
        let bytes = envelope::encode(KIND, VERSION, self).map_err(io::Error::other)?;
        durable::write_atomic(&path_of(file), &bytes)
    }
}

/// The stub's path for the file it stands for.
#[must_use]
pub fn path_of(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(RESERVED_SUFFIX);
    PathBuf::from(name)
}

/// The name of the file that a stub's name stands for.
#[must_use]
pub fn stands_for(name: &str) -> Option<&str> {
    name.strip_suffix(RESERVED_SUFFIX).filter(|n| !n.ends_with(".tmp"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stub() -> Stub {
        let seg = ArchivedSegment {
            base_offset: 7,
            end_offset: 9,
            size_bytes: 1000,
            upload_id: UploadId::from_random(1),
            sha256: Sha256::of(b"log"),
            mtime_ns: 5,
            max_timestamp_ms: 1,
            batches: 1,
            epochs: vec![],
            compacted: false,
            aux_size_bytes: 10,
            aux_sha256: Sha256::of(b"aux"),
            files: Default::default(),
        };
        let chain = ChainId { tp: "a-0".parse().unwrap(), topic_id: TopicId::none() };
        Stub::of_segment(&chain, &seg, 5, (0o644, 0, 0))
    }

    #[test]
    fn cutting_the_middle_keeps_both_sides_at_their_object_positions() {
        let mut s = stub();
        s.cut(100, 300);
        let ranges: Vec<_> =
            s.extents.iter().map(|e| (e.file_start, e.file_end, e.object_start)).collect();
        assert_eq!(ranges, [(0, 100, 0), (300, 1000, 300)]);
        s.cut(50, 2000);
        assert_eq!(s.extents.len(), 1);
        assert!(!s.touches(50, 2000) && s.touches(49, 50));
    }

    #[test]
    fn a_stub_reads_back_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("00000000000000000007.log");
        stub().write(&file).unwrap();
        let bytes = std::fs::read(path_of(&file)).unwrap();
        assert_eq!(Stub::decode(&bytes).unwrap(), stub());
    }

    #[test]
    fn extents_beyond_their_object_are_refused() {
        let mut s = stub();
        s.extents[0].file_end = 2000;
        let bytes = envelope::encode(KIND, VERSION, &s).unwrap();
        assert!(Stub::decode(&bytes).is_err());
    }
}
