//! Every content that a closed segment of a trace ever had, to be compared with what the archive names in the end.

use std::collections::BTreeMap;
use std::path::Path;

use crate::common::archive::log_objects;
use crate::common::{files, fsck, sha256_file};
use crate::step::Op;

/// By partition and base offset.
#[derive(Default)]
pub struct History {
    contents: BTreeMap<(String, i64), Vec<Vec<u8>>>,
    /// Files by path with size, time and inode: what has not changed is not read again.
    seen: BTreeMap<String, (u64, i64, i64, u64)>,
}

/// `<topic>-<partition>` and base offset of a segment's file, whatever Kafka has put behind their names.
fn segment_of(path: &str) -> Option<(String, i64)> {
    let (dir, file) = path.split_once('/')?;
    let base = file.get(..20)?.parse().ok()?;
    file[20..].starts_with(".log").then(|| (dir.split('.').next().unwrap().to_owned(), base))
}

/// Where in a log the batch with this first offset begins.
fn position_of(log: &[u8], offset: i64) -> Option<usize> {
    let mut at = 0;
    while let Some(header) = log.get(at..at + 12) {
        if header[..8] == offset.to_be_bytes() {
            return Some(at);
        }
        at += 12 + usize::try_from(i32::from_be_bytes(header[8..].try_into().unwrap())).ok()?;
    }
    None
}

impl History {
    /// Looks before a step that may end a content, or that closes the segment before a new one.
    pub fn before<'a>(
        &mut self,
        root: &Path,
        op: &'a Op,
        name_of: impl Fn(u64) -> Option<&'a str>,
    ) {
        let name = match op {
            Op::Truncate { id, .. } => name_of(*id),
            Op::Open { path, .. } | Op::Unlink { path } | Op::Rename { from: path, .. } => {
                Some(path.as_str())
            }
            _ => None,
        };
        let is_partition = |name: &str| name.contains('-') && root.join(name).is_dir();
        if name.is_some_and(|n| segment_of(n).is_some() || is_partition(n)) {
            self.look(root);
        }
    }

    /// Remembers all contents that are new.
    pub fn look(&mut self, root: &Path) {
        use std::os::unix::fs::MetadataExt as _;
        for path in files::files_under(root) {
            let name = path.strip_prefix(root).unwrap().display().to_string();
            let Some(of) = segment_of(&name) else { continue };
            let meta = path.metadata().unwrap();
            let now = (meta.len(), meta.mtime(), meta.mtime_nsec(), meta.ino());
            if self.seen.insert(name, now) != Some(now) {
                let (bytes, known) =
                    (std::fs::read(&path).unwrap(), self.contents.entry(of).or_default());
                if !known.contains(&bytes) {
                    known.push(bytes);
                }
            }
        }
    }

    /// Each archived object is a content that was, or the end of one that follows on what the archive had. Gives how many.
    pub fn assert_archive_is_part(&self, bucket: &Path) -> usize {
        let objects = log_objects(bucket);
        let named = fsck::archived(bucket);
        for each in &named {
            let is_it = |o: &&crate::common::archive::Object| {
                o.partition == each.partition
                    && o.base == each.base
                    && sha256_file(&o.path) == each.sha256
            };
            let object = objects.iter().find(is_it).unwrap_or_else(|| panic!("{each:?} is gone"));
            let bytes = std::fs::read(&object.path).unwrap();
            let of_partition =
                self.contents.iter().filter(|((partition, _), _)| *partition == each.partition);
            let written = of_partition.flat_map(|((_, base), all)| all.iter().map(|c| (*base, c)));
            let is_part = |(base, content): (i64, &Vec<u8>)| {
                let at = if base == each.base { Some(0) } else { position_of(content, each.base) };
                at.is_some_and(|at| content[at..].starts_with(&bytes))
            };
            assert!(
                written.into_iter().any(is_part),
                "{each:?} is archived and the trace never wrote it"
            );
        }
        named.len()
    }
}
