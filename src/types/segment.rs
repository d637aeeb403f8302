//! What the archive knows of one archived segment, without opening any of its objects.

use serde::{Deserialize, Serialize};

use super::{Sha256, UploadId};

/// A leader epoch and the first offset written in it, as in `leader-epoch-checkpoint`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochStart {
    /// The leader epoch.
    pub epoch: i32,
    /// Its first offset.
    pub start_offset: i64,
}

/// Sizes in bytes of the segment's small files, as they stand in its `.aux`; `None`: Kafka had none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSizes {
    /// `<base>.index`
    pub index: Option<u64>,
    /// `<base>.timeindex`
    pub timeindex: Option<u64>,
    /// `<base>.txnindex`
    pub txnindex: Option<u64>,
    /// `<base>.snapshot`: producer state up to the base offset
    pub snapshot: Option<u64>,
}

/// One immutable content of a segment in the archive: a generation.
///
/// `sha256` with `size_bytes` identifies the content, `upload_id` the objects that hold it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchivedSegment {
    /// First offset: the number in Kafka's file names.
    pub base_offset: i64,
    /// One past the last offset it is answerable for.
    pub end_offset: i64,
    /// Exact length of the `.log`.
    pub size_bytes: u64,
    /// Names the objects `<base>.<upload id>.log` and `.aux`.
    pub upload_id: UploadId,
    /// Of the `.log`.
    pub sha256: Sha256,
    /// Modification time of the `.log` when it was archived, nanoseconds since the epoch.
    pub mtime_ns: u64,
    /// Largest timestamp of its batches, milliseconds; -1: none.
    pub max_timestamp_ms: i64,
    /// Batches in it.
    pub batches: u64,
    /// Leader epochs that begin in it, and the one it begins with.
    pub epochs: Vec<EpochStart>,
    /// Of a compacted topic: offsets may be missing, and a later generation may replace it.
    #[serde(default)]
    pub compacted: bool,
    /// Length of the `.aux` object.
    pub aux_size_bytes: u64,
    /// Of the `.aux` object.
    pub aux_sha256: Sha256,
    /// The small files in the `.aux`.
    pub files: FileSizes,
}
