//! Words of the whole crate as checked types: no I/O, no clock, no policy.
//!
//! Everything above parses at its edge into these and passes them down, so a topic name, an offset
//! or a hash is never a bare string or number between modules.

pub mod envelope;
pub mod ids;
pub mod segment;

pub use ids::{ChainId, ObjectKey, Sha256, Sha256Hasher, TopicId, TopicPartition, UploadId};
pub use segment::{ArchivedSegment, EpochStart, FileSizes};

/// The unit of verification and caching: 64 KiB of a `.log`.
pub const BLOCK_BYTES: u64 = 64 * 1024;

/// Number of blocks of a file of `size_bytes`; the last may be short.
#[must_use]
pub const fn block_count(size_bytes: u64) -> u64 {
    size_bytes.div_ceil(BLOCK_BYTES)
}
