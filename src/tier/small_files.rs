//! A segment's small files on their way into the archive: read, trimmed, judged, or made anew.
//!
//! Kafka's own bytes are kept where every look-up in them finds its batch; else the scan's indexes
//! take their place. Indexes may still be preallocated (a crash before the roll trimmed them).

use std::io;
use std::path::{Path, PathBuf};

use crate::kafka::checkpoint;
use crate::kafka::index::{BatchInfo, IndexKind, trimmed_len, validate_index, validate_timeindex};
use crate::kafka::names::{self, FileKind, LogName, Suffix};
use crate::kafka::scan::SegmentScan;

/// No small file of Kafka's is longer; a longer one is left out.
const SMALL_FILE_BYTES_MAX: u64 = 256 * 1024 * 1024;
const TXN_ENTRY_BYTES: usize = 34;
/// In an entry of a `.txnindex`: behind version (2), producer id (8) and first offset (8).
const TXN_LAST_OFFSET: std::ops::Range<usize> = 18..26;

/// The files as they stand on disk, indexes trimmed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SmallFiles {
    pub index: Option<Vec<u8>>,
    pub timeindex: Option<Vec<u8>>,
    pub txnindex: Option<Vec<u8>>,
    pub snapshot: Option<Vec<u8>>,
    pub epochs: Option<Vec<u8>>,
}

/// Where a segment's small files are.
pub(super) trait SmallFilePaths {
    fn of(&self, kind: FileKind) -> Vec<PathBuf>;
    fn epochs(&self) -> PathBuf;
}

/// In a partition's directory, with or without Kafka's `.deleted`.
pub(super) struct InDirectory<'a> {
    pub dir: &'a Path,
    pub base_offset: i64,
}

impl SmallFilePaths for InDirectory<'_> {
    fn of(&self, kind: FileKind) -> Vec<PathBuf> {
        let name = |suffix| LogName { base_offset: self.base_offset, kind, suffix }.to_string();
        [Suffix::None, Suffix::Deleted].map(|s| self.dir.join(name(s))).to_vec()
    }

    fn epochs(&self) -> PathBuf {
        self.dir.join(names::LEADER_EPOCHS)
    }
}

/// In an entry of the spool.
pub(super) struct InSpool<'a>(pub &'a crate::local::spool::SpoolEntry);

/// A small file's name in an entry of the spool.
pub(super) fn spool_name(kind: FileKind) -> &'static str {
    kind.extension().trim_start_matches('.')
}

impl SmallFilePaths for InSpool<'_> {
    fn of(&self, kind: FileKind) -> Vec<PathBuf> {
        vec![self.0.side_file(spool_name(kind))]
    }

    fn epochs(&self) -> PathBuf {
        self.0.side_file("epochs")
    }
}

fn read_first(paths: &[PathBuf]) -> io::Result<Option<Vec<u8>>> {
    for path in paths {
        let size = match std::fs::metadata(path) {
            Ok(m) => m.len(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        if size > SMALL_FILE_BYTES_MAX {
            tracing::warn!(file = %path.display(), size, "left out of the archive: too long");
            return Ok(None);
        }
        match std::fs::read(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => return other.map(Some),
        }
    }
    Ok(None)
}

/// Reads what there is. A file that cannot be read is an error; one that is not there is `None`.
pub(super) fn read(paths: &dyn SmallFilePaths) -> io::Result<SmallFiles> {
    let trimmed = |file: FileKind, kind: IndexKind| -> io::Result<Option<Vec<u8>>> {
        Ok(read_first(&paths.of(file))?.map(|mut bytes| {
            bytes.truncate(trimmed_len(&bytes, kind));
            bytes
        }))
    };
    Ok(SmallFiles {
        index: trimmed(FileKind::Index, IndexKind::Offset)?,
        timeindex: trimmed(FileKind::TimeIndex, IndexKind::Time)?,
        txnindex: read_first(&paths.of(FileKind::TxnIndex))?
            .filter(|b| b.len().is_multiple_of(TXN_ENTRY_BYTES)),
        snapshot: read_first(&paths.of(FileKind::Snapshot))?,
        epochs: read_first(&[paths.epochs()])?.filter(|b| checkpoint::parse_epochs(b).is_ok()),
    })
}

/// Those of the end of a segment, from the batch at `base_offset` on. An aborted transaction belongs where its
/// marker stands; indexes are made anew.
pub(super) fn of_part(whole: &SmallFiles, base_offset: i64) -> SmallFiles {
    let marker = |entry: &[u8]| {
        let bytes = entry.get(TXN_LAST_OFFSET).and_then(|b| b.try_into().ok());
        bytes.map_or(i64::MIN, i64::from_be_bytes)
    };
    let behind = |bytes: &Vec<u8>| {
        let entries = bytes.chunks_exact(TXN_ENTRY_BYTES).filter(|e| marker(e) >= base_offset);
        entries.flatten().copied().collect()
    };
    SmallFiles {
        txnindex: whole.txnindex.as_ref().map(behind),
        epochs: whole.epochs.clone(),
        ..SmallFiles::default()
    }
}

/// Remembers, during a scan, the batches that an `.index` points at: all that judging it needs.
pub(super) struct IndexWitness {
    positions: Vec<u32>,
    next: usize,
    seen: Vec<BatchInfo>,
    last: Option<BatchInfo>,
}

impl IndexWitness {
    pub fn new(index: Option<&[u8]>) -> Self {
        let entries = index.unwrap_or_default().chunks_exact(IndexKind::Offset.entry_bytes());
        let position = |e: &[u8]| e.last_chunk().map_or(0, |p| u32::from_be_bytes(*p));
        Self { positions: entries.map(position).collect(), next: 0, seen: Vec::new(), last: None }
    }

    pub fn batch(&mut self, batch: &BatchInfo) {
        while self.positions.get(self.next).is_some_and(|p| *p < batch.position) {
            self.next += 1;
        }
        if self.positions.get(self.next) == Some(&batch.position) {
            self.seen.push(*batch);
            self.last = None;
        } else {
            self.last = Some(*batch);
        }
    }

    fn batches(&self) -> impl Iterator<Item = BatchInfo> + '_ {
        self.seen.iter().copied().chain(self.last)
    }
}

/// Puts the scan's indexes in the place of missing and misleading ones.
pub(super) fn settle(
    files: &mut SmallFiles,
    witness: &IndexWitness,
    scan: &mut SegmentScan,
    base_offset: i64,
    label: &str,
) {
    let Some((index, timeindex)) = scan.index.take() else { return };
    let judged = files.index.as_deref().map(|b| validate_index(b, base_offset, witness.batches()));
    files.index = Some(choose(judged, files.index.take(), index, label));
    let judged =
        files.timeindex.as_deref().map(|b| validate_timeindex(b, base_offset, scan.end_offset));
    files.timeindex = Some(choose(judged, files.timeindex.take(), timeindex, label));
}

fn choose(
    judged: Option<Result<(), crate::kafka::index::IndexFault>>,
    kafkas: Option<Vec<u8>>,
    rebuilt: Vec<u8>,
    label: &str,
) -> Vec<u8> {
    match (judged, kafkas) {
        (Some(Ok(())), Some(bytes)) => bytes,
        (Some(Err(fault)), _) => {
            tracing::warn!(segment = label, %fault, "index rebuilt for the archive");
            rebuilt
        }
        _ => rebuilt,
    }
}
