//! Kafka's own formats and file names: pure bytes to values, no I/O, no clock, no policy.
//!
//! Everything that Everlog believes about a file that a broker wrote is decided here, once, so that
//! the layers above speak of topic-partitions, offsets and batches and never of text or bytes.
//! Nothing here decodes anybody's records: a filesystem needs headers and checksums only. The exception is
//! KRaft's own log, which says what became of a topic (`metadata`).

pub mod batch;
pub mod checkpoint;
pub mod index;
pub mod metadata;
pub mod names;
pub mod properties;
pub mod scan;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
