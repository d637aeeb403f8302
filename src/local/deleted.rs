//! What was known of a partition when Kafka renamed its directory to be deleted: Kafka forgets its watermark
//! within seconds, cuts a long name to fit, and unlinks the segments a minute later, maybe after a restart.
//!
//! Format: `docs/FORMATS.md` 3.5. It is durable before the directory is renamed and goes with the directory.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::durable;
use crate::types::TopicPartition;
use crate::types::envelope;

/// Its name in the partition's directory.
pub const FILE: &str = "deleted.everlog";
const KIND: &str = "deleted";
const VERSION: u32 = 1;

/// What the document says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deleted {
    /// The partition that the directory held.
    pub tp: TopicPartition,
    /// Its last trusted high watermark; what lies above was never committed.
    pub committed_offset: Option<i64>,
}

impl Deleted {
    /// Writes it durably into the partition's directory.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        let bytes = envelope::encode(KIND, VERSION, self).map_err(io::Error::other)?;
        durable::write_atomic(&dir.join(FILE), &bytes)
    }

    /// From a partition's directory; `None` when there is none.
    pub fn read(dir: &Path) -> io::Result<Option<Self>> {
        let path = dir.join(FILE);
        match std::fs::read(&path) {
            Ok(bytes) => envelope::decode(KIND, VERSION, &bytes)
                .map(Some)
                .map_err(|e| io::Error::other(format!("{}: {e}", path.display()))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }
}
