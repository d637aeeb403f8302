//! What a sequential reader will want after the object it reads: the next one of its partition. And what a consumer will
//! want beside it that begins at the beginning: the first object of the topic's other partitions.
//!
//! Answers from memory alone. A wrong or missing answer costs a fetch, so what changes meanwhile is not
//! followed.

use std::sync::{Arc, Weak};

use super::handles::log_source;
use crate::catalog::{Catalog, Content, LogFile, PartitionDir};
use crate::manifest::Chain;
use crate::read::{ObjectSource, ReadStreams};
use crate::types::{ChainId, ObjectKey};

/// Files after a log's own that are looked at.
const FILES_MAX: usize = 16;

/// Other partitions of a topic that are looked at.
const BESIDE_MAX: u32 = 15;

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

/// If this is the first segment of its partition: the first objects of the topic's partitions beside it, those of them that
/// begin in the archive. A broker reads them one after the other for one fetch of a consumer's, and would wait for each.
pub(super) fn beside(catalog: &Catalog, log: &LogFile) -> Vec<ObjectSource> {
    let (dir, _) = log.place();
    if dir.first_log().is_none_or(|first| first.id != log.id) {
        return Vec::new();
    }
    let first_object = |dir: Arc<PartitionDir>| {
        let Content::Cold(stub) = dir.first_log()?.content() else { return None };
        let extent = stub.extents.first().filter(|e| e.file_start == 0 && e.object_start == 0)?;
        Some(log_source(&stub, extent))
    };
    catalog.beside(&dir, BESIDE_MAX).into_iter().filter_map(first_object).collect()
}
