//! What a sequential reader will want after the object it reads: the next one of its partition.
//!
//! Answers from memory alone. A wrong or missing answer costs a fetch, so what changes meanwhile is not
//! followed.

use std::sync::{Arc, Weak};

use super::handles::log_source;
use crate::catalog::{Content, LogFile};
use crate::manifest::Chain;
use crate::read::{ObjectSource, ReadStreams};
use crate::types::{ChainId, ObjectKey};

/// Files after a log's own that are looked at.
const FILES_MAX: usize = 16;

/// For a segment in an archive, as its partition's manifest was when it was opened.
pub(super) fn in_archive(
    chain: Arc<Chain>,
    id: ChainId,
    source_of: fn(&ChainId, &crate::types::ArchivedSegment) -> ObjectSource,
) -> ReadStreams {
    ReadStreams::followed_by(move |key| {
        let base = base_of(key)?;
        let (_, next) = chain.segments().range(base.checked_add(1)?..).next()?;
        Some(source_of(&id, next))
    })
}

fn base_of(key: &ObjectKey) -> Option<i64> {
    key.as_str().rsplit('/').next()?.split('.').next()?.parse().ok()
}

/// For a `.log` of the log dir: the next object of its own stub, or the first of the next cold one.
pub(super) fn in_log_dir(log: &Arc<LogFile>) -> ReadStreams {
    let log = Arc::downgrade(log);
    ReadStreams::followed_by(move |key| after(&log, key))
}

fn after(log: &Weak<LogFile>, key: &ObjectKey) -> Option<ObjectSource> {
    let log = log.upgrade()?;
    let (dir, name) = log.place();
    let mut passed = false;
    for file in dir.logs_from(&name, FILES_MAX) {
        let (Content::Cold(stub) | Content::Overlaid(stub, _)) = file.content() else { continue };
        for extent in &stub.extents {
            let source = log_source(&stub, extent);
            match (source.log_key == *key, passed) {
                (true, _) => passed = true,
                (false, true) => return Some(source),
                (false, false) => {}
            }
        }
    }
    None
}
