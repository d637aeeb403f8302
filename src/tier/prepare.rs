//! The local half of archiving: open, make durable, scan once, judge. Blocking; runs off the runtime.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::catalog::{LogFile, PartitionDir};
use crate::failpoint;
use crate::kafka::index::INDEX_INTERVAL_BYTES;
use crate::kafka::names::{Suffix, parse_file};
use crate::kafka::scan::{ScanOptions, SegmentScan, SegmentScanner};
use crate::local::spool::SpoolEntry;
use crate::types::ChainId;

use super::error::TierError;
use super::holds::SourceId;
use super::small_files::{self, IndexWitness, SmallFiles};

const READ_BYTES: usize = 1 << 20;

/// Where a segment's bytes lie.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// In the log dir.
    Log { dir: Arc<PartitionDir>, log: Arc<LogFile> },
    /// In the spool.
    Spooled(Box<SpoolEntry>),
}

/// One segment to archive.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub chain: ChainId,
    pub source: Source,
    pub base_offset: i64,
    /// `None`: wherever the scan ends, if that is committed.
    pub next_base: Option<i64>,
    pub committed: i64,
    pub compacted: bool,
}

/// A segment that keeps Kafka's rules, or the end of one, and all that its archive objects consist of.
pub(super) struct Prepared {
    pub file: Arc<File>,
    /// First offset; of a part, that of its first batch.
    pub base_offset: i64,
    /// Where it begins in the file.
    pub position: u64,
    pub scan: SegmentScan,
    pub small: SmallFiles,
    /// Below the job's `next_base` only where the log was given up whole and begins anew there.
    pub end_offset: i64,
    pub mtime_ns: u64,
    /// Mode, uid, gid.
    pub owner: (u32, u32, u32),
    pub mutations: u64,
}

/// What looking at the segment came to.
pub(super) enum Looked {
    Fine(Arc<Prepared>),
    /// It breaks a rule.
    Bad {
        offset: Option<i64>,
        reason: String,
        mutations: u64,
    },
    /// Its end is above the high watermark.
    NotCommitted,
    /// It was renamed, removed or changed meanwhile.
    Gone,
}

impl Source {
    pub fn id(&self) -> SourceId {
        match self {
            Self::Log { log, .. } => SourceId::Log(log.id),
            Self::Spooled(entry) => SourceId::Spooled(entry.id.clone()),
        }
    }

    pub fn label(&self) -> String {
        match self {
            Self::Log { log, .. } => log.label(),
            Self::Spooled(entry) => {
                format!("{}/{} (spool/{})", entry.doc.log_dir, entry.doc.name, entry.id)
            }
        }
    }

    pub fn mutations(&self) -> u64 {
        match self {
            Self::Log { log, .. } => log.mutations(),
            Self::Spooled(_) => 0,
        }
    }

    /// Kafka has renamed it to `.deleted`, or unlinked it.
    fn is_given_up(&self) -> bool {
        match self {
            Self::Log { log, .. } => {
                let path = log.path();
                let name = path.file_name().and_then(|n| n.to_str()).and_then(parse_file);
                name.is_some_and(|n| n.suffix == Suffix::Deleted)
            }
            Self::Spooled(_) => true,
        }
    }

    pub fn local_error(&self, error: io::Error) -> TierError {
        TierError::local(&self.path(), error)
    }

    fn path(&self) -> PathBuf {
        match self {
            Self::Log { log, .. } => log.path(),
            Self::Spooled(entry) => entry.log(),
        }
    }

    fn open(&self) -> io::Result<Option<Arc<File>>> {
        if let Self::Log { log, .. } = self {
            if !log.is_hot() {
                return Ok(None);
            }
            if let Some(file) = log.hot_file() {
                return Ok(Some(file));
            }
        }
        match File::open(self.path()) {
            Ok(file) => Ok(Some(Arc::new(file))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn small_files(&self, base_offset: i64) -> io::Result<SmallFiles> {
        match self {
            Self::Log { dir, .. } => {
                small_files::read(&small_files::InDirectory { dir: &dir.path(), base_offset })
            }
            Self::Spooled(entry) => small_files::read(&small_files::InSpool(entry)),
        }
    }
}

pub(super) fn mtime_ns(m: &std::fs::Metadata) -> u64 {
    (m.mtime().max(0) as u64).saturating_mul(1_000_000_000).saturating_add(m.mtime_nsec() as u64)
}

/// Opens, syncs, scans and judges one segment.
pub(super) fn look(job: &Job, stopping: &AtomicBool) -> Result<Looked, TierError> {
    let mutations = job.source.mutations();
    let local = |e| TierError::local(&job.source.path(), e);
    let Some(file) = job.source.open().map_err(local)? else { return Ok(Looked::Gone) };
    if let Source::Spooled(entry) = &job.source
        && !entry.has_bytes().map_err(local)?
    {
        return Ok(Looked::Gone);
    }
    failpoint::disk("archive.look").and_then(|()| file.sync_all()).map_err(local)?;
    let before = file.metadata().map_err(local)?;
    let mut small = job.source.small_files(job.base_offset).map_err(local)?;
    let mut witness = IndexWitness::new(small.index.as_deref());
    let whole = (job.base_offset, 0..before.len());
    let scanned = scan(&file, whole, job, &mut witness, stopping)?;
    let after = file.metadata().map_err(local)?;
    let changed = job.source.mutations() != mutations
        || after.len() != before.len()
        || mtime_ns(&after) != mtime_ns(&before);
    if changed {
        return Ok(Looked::Gone);
    }
    let mut scan = match scanned {
        Ok(scan) => scan,
        Err(violation) => {
            let (offset, reason) = (violation.offset, violation.to_string());
            return Ok(Looked::Bad { offset, reason, mutations });
        }
    };
    let end_offset = match judge_end(job, scan.end_offset) {
        End::Fine(end) => end,
        End::NotCommitted => return Ok(Looked::NotCommitted),
        End::Bad(reason) => {
            return Ok(Looked::Bad { offset: Some(scan.end_offset), reason, mutations });
        }
    };
    small_files::settle(&mut small, &witness, &mut scan, job.base_offset, &job.source.label());
    let owner = (before.mode() & 0o7777, before.uid(), before.gid());
    let mtime_ns = mtime_ns(&before);
    let (base_offset, position) = (job.base_offset, 0);
    let prepared = Prepared {
        file,
        base_offset,
        position,
        scan,
        small,
        end_offset,
        mtime_ns,
        owner,
        mutations,
    };
    Ok(Looked::Fine(Arc::new(prepared)))
}

/// What lies from a batch on to the segment's end, as a segment of its own: with indexes made anew, and
/// without a snapshot, which Kafka takes at its own segments only.
pub(super) fn part(
    job: &Job,
    whole: &Prepared,
    (base_offset, position): (i64, u64),
    stopping: &AtomicBool,
) -> Result<Prepared, TierError> {
    let range = position..whole.position + whole.scan.size_bytes;
    let mut witness = IndexWitness::new(None);
    let scanned = scan(&whole.file, (base_offset, range), job, &mut witness, stopping)?;
    let mut scan = scanned.map_err(|violation| TierError::Part {
        segment: job.source.label(),
        why: violation.to_string(),
    })?;
    let mut small = small_files::of_part(&whole.small, base_offset);
    small_files::settle(&mut small, &witness, &mut scan, base_offset, &job.source.label());
    Ok(Prepared {
        file: whole.file.clone(),
        base_offset,
        position,
        scan,
        small,
        end_offset: whole.end_offset,
        mtime_ns: whole.mtime_ns,
        owner: whole.owner,
        mutations: whole.mutations,
    })
}

enum End {
    Fine(i64),
    NotCommitted,
    Bad(String),
}

/// Where the segment ends for the archive, given where its last batch ends.
fn judge_end(job: &Job, scanned_end: i64) -> End {
    let Some(next) = job.next_base else {
        return if scanned_end <= job.committed {
            End::Fine(scanned_end)
        } else {
            End::NotCommitted
        };
    };
    let has_records = scanned_end > job.base_offset;
    if scanned_end < next && !job.compacted && has_records && job.source.is_given_up() {
        // A follower that lags behind its leader's start gives its whole log up and begins anew at that start.
        return End::Fine(scanned_end);
    }
    if scanned_end > next || (scanned_end < next && !job.compacted) {
        return End::Bad(format!("ends at {scanned_end}, the next segment begins at {next}"));
    }
    End::Fine(next)
}

type Scan = Result<SegmentScan, crate::kafka::scan::Violation>;

fn scan(
    file: &File,
    (base_offset, range): (i64, Range<u64>),
    job: &Job,
    witness: &mut IndexWitness,
    stopping: &AtomicBool,
) -> Result<Scan, TierError> {
    let mut scanner = SegmentScanner::new(ScanOptions {
        base_offset,
        compacted: job.compacted,
        index_interval_bytes: Some(INDEX_INTERVAL_BYTES),
    });
    let mut buffer = vec![0u8; READ_BYTES];
    let mut at = range.start;
    while at < range.end {
        if stopping.load(Ordering::Acquire) {
            return Err(TierError::Stopping);
        }
        let want = buffer.len().min((range.end - at) as usize);
        let got = read_some(file, &mut buffer[..want], at)
            .map_err(|e| TierError::local(&job.source.path(), e))?;
        if got == 0 {
            break;
        }
        if let Err(violation) = scanner.update_with(&buffer[..got], &mut |b| witness.batch(b)) {
            return Ok(Err(violation));
        }
        at += got as u64;
    }
    Ok(scanner.finish())
}

fn read_some(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    loop {
        match file.read_at(buffer, at) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// SHA-256 and length of a whole file.
pub(super) fn hash_file(
    file: &File,
    stopping: &AtomicBool,
) -> io::Result<(u64, crate::types::Sha256)> {
    let mut hasher = crate::types::Sha256Hasher::default();
    let mut buffer = vec![0u8; READ_BYTES];
    let mut at = 0;
    loop {
        if stopping.load(Ordering::Acquire) {
            return Err(io::Error::from(io::ErrorKind::Interrupted));
        }
        let got = read_some(file, &mut buffer, at)?;
        if got == 0 {
            return Ok((at, hasher.finish()));
        }
        hasher.update(&buffer[..got]);
        at += got as u64;
    }
}
