//! What is known of a file beside where its bytes are: that the archive has them, and that somebody counts them.

use std::sync::Arc;

use super::LogFile;
use crate::local::Stub;

/// Proof that this content is in the archive, made durable locally before it is set here.
#[derive(Clone, Debug)]
pub struct Archived {
    /// Of the archived content: what an eviction writes.
    pub stub: Stub,
    /// The file's count of mutations when its bytes were read.
    pub mutations: u64,
    /// Bytes were compared in this process; else only size and time were, and eviction compares first.
    pub compared: bool,
}

impl LogFile {
    /// To be called before its size is taken into a sum: the next change of its bytes raises [`counted_changes`].
    pub fn set_counted(&self) {
        self.counted.set();
    }

    /// The archived content that still equals this file's.
    #[must_use]
    pub fn archived(&self) -> Option<Arc<Archived>> {
        self.archived.read().clone().filter(|a| a.mutations == self.mutations())
    }

    /// Notes that `archived` is durable in the archive and locally.
    pub fn set_archived(&self, archived: Archived) {
        *self.archived.write() = Some(Arc::new(archived));
        self.state.read().dir.touch();
    }

    /// Forgets that it was archived: a comparison found other bytes.
    pub fn forget_archived(&self) {
        *self.archived.write() = None;
        self.state.read().dir.touch();
    }
}
