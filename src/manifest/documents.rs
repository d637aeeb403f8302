//! The bodies of the manifest's documents (`docs/FORMATS.md`, 2.2 and 2.3), their kinds, versions
//! and limits. Parsing checks what one document can be checked for alone; that documents fit
//! together is checked where they are put together.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::types::envelope::{self, EnvelopeError};
use crate::types::{Sha256, TopicId, TopicPartition};

use super::chain::{Change, Item};
use super::error::ManifestError;

const VERSION: u32 = 1;

/// Changes of one version.
pub(super) const CHANGES_MAX: usize = 1024;
/// Segments and gaps of one page.
pub(super) const PAGE_ITEMS_MAX: usize = 256;
/// A checkpoint is due at each version divisible by this.
pub(super) const CHECKPOINT_EVERY: u64 = 64;
/// The head is updated at each version divisible by this.
pub(super) const HEAD_EVERY: u64 = 16;

/// A document of the manifest.
pub(super) trait Document: Serialize + DeserializeOwned {
    const KIND: &'static str;
    /// Longer ones are not read.
    const BYTES_MAX: u64;

    fn encode(&self) -> Result<Bytes, EnvelopeError> {
        envelope::encode(Self::KIND, VERSION, self).map(Bytes::from)
    }

    fn decode(name: impl std::fmt::Display, bytes: &[u8]) -> Result<Self, ManifestError> {
        envelope::decode(Self::KIND, VERSION, bytes)
            .map_err(|error| ManifestError::unreadable(name, &error))
    }
}

/// One committed version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Delta {
    pub(super) version: u64,
    pub(super) writer: String,
    pub(super) committed_ms: u64,
    pub(super) changes: Vec<Change>,
}

/// The root of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Root {
    pub(super) version: u64,
    pub(super) pages: Vec<PageRef>,
}

/// Where a root finds a page, and what it must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PageRef {
    pub(super) name: String,
    pub(super) sha256: Sha256,
    pub(super) from_offset: i64,
    pub(super) to_offset: i64,
    pub(super) count: usize,
}

/// Consecutive segments and gaps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Page {
    pub(super) items: Vec<Item>,
}

/// The hint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) version: u64,
    pub(super) checkpoint: Option<u64>,
}

/// What stands in a chain's marker; its name says the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Marker {
    pub(super) tp: TopicPartition,
    pub(super) topic_id: TopicId,
    pub(super) created_ms: u64,
}

impl Document for Delta {
    const KIND: &'static str = "delta";
    const BYTES_MAX: u64 = 32 * 1024 * 1024;
}

impl Document for Root {
    const KIND: &'static str = "checkpoint";
    const BYTES_MAX: u64 = 64 * 1024 * 1024;
}

impl Document for Page {
    const KIND: &'static str = "page";
    const BYTES_MAX: u64 = 32 * 1024 * 1024;
}

impl Document for Head {
    const KIND: &'static str = "head";
    const BYTES_MAX: u64 = 64 * 1024;
}

impl Document for Marker {
    const KIND: &'static str = "chain";
    const BYTES_MAX: u64 = 64 * 1024;
}
