//! The archive as a read-only directory tree: every partition, every archived segment, exact sizes.
//!
//! Sizes, times and names come from manifests alone; bytes of a `.log` through the block cache, the
//! small files from the segment's `.aux`. Inode numbers are given per content, so a replaced
//! generation is another file to the kernel.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::attr::{Attr, Kind};
use super::chains::{ArchiveIndex, NamedChain, Readable};
use super::error::VfsError;
use super::followers;
use super::local::{DirEntry, Listing};
use crate::kafka::checkpoint;
use crate::kafka::names::{self, FileKind};
use crate::manifest::Chain;
use crate::read::{ObjectSource, ReadHint, ReadStreams, Reader};
use crate::store::names as objects;
use crate::types::{ArchivedSegment, ChainId, EpochStart, UploadId};

type Result<T> = std::result::Result<T, VfsError>;

/// Numbers of virtual inodes begin here; below are the log dir's.
pub const VIRTUAL: u64 = 1 << 62;
/// Where the archive's root, `.everlog` and its fixed files are.
pub const EVERLOG_DIR: u64 = VIRTUAL;
/// `.everlog/archive`.
pub const ARCHIVE_ROOT: u64 = VIRTUAL + 1;
/// `.everlog/status.json`.
pub const STATUS_FILE: u64 = VIRTUAL + 2;
/// `.everlog/inflight.json`.
pub const INFLIGHT_FILE: u64 = VIRTUAL + 3;
const FIRST_DYNAMIC: u64 = VIRTUAL + 16;

/// What a virtual inode stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// A partition's directory.
    Partition(ChainId),
    /// One of a segment's files, of one upload.
    Segment(ChainId, i64, UploadId, FileKind),
    /// `partition.metadata`.
    Metadata(ChainId),
    /// `leader-epoch-checkpoint`, of one state of the chain.
    Epochs(ChainId, u64),
}

#[derive(Default)]
struct Inodes {
    by_place: HashMap<Place, u64>,
    by_ino: HashMap<u64, (Place, u64)>,
    last: u64,
}

/// The tree.
pub struct ArchiveTree {
    index: ArchiveIndex,
    reader: Reader,
    inodes: Mutex<Inodes>,
}

/// An open file of the tree.
pub enum ArchiveFile {
    /// A `.log`.
    Log(ObjectSource, ReadStreams),
    /// Small: whole in memory.
    Small(Bytes),
}

/// Where an archived segment's bytes are.
#[must_use]
pub fn source_of(id: &ChainId, seg: &ArchivedSegment) -> ObjectSource {
    ObjectSource {
        log_key: objects::log_key(id, seg.base_offset, &seg.upload_id),
        size_bytes: seg.size_bytes,
        aux_key: objects::aux_key(id, seg.base_offset, &seg.upload_id),
        aux_size_bytes: seg.aux_size_bytes,
        aux_sha256: seg.aux_sha256,
    }
}

fn size_of(seg: &ArchivedSegment, kind: FileKind) -> Option<u64> {
    match kind {
        FileKind::Log => Some(seg.size_bytes),
        FileKind::Index => seg.files.index,
        FileKind::TimeIndex => seg.files.timeindex,
        FileKind::TxnIndex => seg.files.txnindex,
        FileKind::Snapshot => seg.files.snapshot,
    }
}

/// The epochs of all archived segments, as `leader-epoch-checkpoint` has them.
fn epochs_of(chain: &Chain) -> Bytes {
    let mut epochs: Vec<EpochStart> = Vec::new();
    for epoch in chain.segments().values().flat_map(|s| &s.epochs) {
        if epochs.last().is_none_or(|last| last.epoch < epoch.epoch) {
            epochs.push(*epoch);
        }
    }
    checkpoint::render_epochs(&epochs).into()
}

impl ArchiveTree {
    /// Over a store's manifests and a reader of its objects.
    #[must_use]
    pub fn new(index: ArchiveIndex, reader: Reader) -> Self {
        Self { index, reader, inodes: Mutex::default() }
    }

    /// The number of a place, which the kernel is about to learn once more.
    fn looked_up(&self, place: Place) -> u64 {
        let mut inodes = self.inodes.lock();
        let ino = match inodes.by_place.get(&place).copied() {
            Some(ino) => ino,
            None => {
                inodes.last += 1;
                let ino = FIRST_DYNAMIC + inodes.last;
                inodes.by_place.insert(place.clone(), ino);
                ino
            }
        };
        inodes.by_ino.entry(ino).or_insert((place, 0)).1 += 1;
        ino
    }

    fn place(&self, ino: u64) -> Result<Place> {
        self.inodes.lock().by_ino.get(&ino).map(|(p, _)| p.clone()).ok_or(VfsError::NotFound)
    }

    /// What a number that was looked up stands for.
    pub fn label(&self, ino: u64) -> Option<String> {
        let place = self.inodes.lock().by_ino.get(&ino).map(|(place, _)| place.clone())?;
        Some(match place {
            Place::Partition(id) => id.to_string(),
            Place::Segment(id, base, _, kind) => format!("{id}/{}", names::file_name(base, kind)),
            Place::Metadata(id) => format!("{id}/{}", names::PARTITION_METADATA),
            Place::Epochs(id, _) => format!("{id}/{}", names::LEADER_EPOCHS),
        })
    }

    /// The kernel forgot `n` lookups.
    pub fn forget(&self, ino: u64, n: u64) {
        let mut inodes = self.inodes.lock();
        let Some((place, lookups)) = inodes.by_ino.get_mut(&ino) else { return };
        *lookups = lookups.saturating_sub(n);
        if *lookups == 0 {
            let place = place.clone();
            inodes.by_ino.remove(&ino);
            inodes.by_place.remove(&place);
        }
    }

    /// A name in the tree's root.
    pub async fn lookup_partition(&self, name: &str) -> Result<Attr> {
        let listing = self.index.list().await?;
        let at = listing.binary_search_by(|n| n.name.as_str().cmp(name));
        let named = at.ok().and_then(|i| listing.get(i)).ok_or(VfsError::NotFound)?;
        let changed_ns = self.changed_ns(named).await;
        let ino = self.looked_up(Place::Partition(named.id.clone()));
        Ok(Attr::synthetic(ino, Kind::Dir, 0, changed_ns))
    }

    /// When a partition's directory changed, without opening its chain.
    async fn changed_ns(&self, named: &NamedChain) -> u64 {
        let created_ns = named.created_ms.saturating_mul(1_000_000);
        self.index.changed_ns(&named.id).await.unwrap_or(created_ns)
    }

    /// A name in a partition's directory.
    pub async fn lookup_file(&self, dir: u64, name: &str) -> Result<Attr> {
        let Place::Partition(id) = self.place(dir)? else { return Err(VfsError::NotFound) };
        let Readable { chain, damage } = self.index.chain(&id).await?;
        let place = match (place_of(&chain, &id, name), damage) {
            (Some(place), _) => place,
            (None, None) => return Err(VfsError::NotFound),
            // It may exist behind the damage.
            (None, Some(damage)) => return Err(VfsError::Archive(damage.to_string())),
        };
        let attr = self.attr_of(0, &place, &chain)?;
        Ok(Attr { ino: self.looked_up(place), ..attr })
    }

    fn attr_of(&self, ino: u64, place: &Place, chain: &Chain) -> Result<Attr> {
        let newest_ns = chain.segments().values().next_back().map_or(0, |s| s.mtime_ns);
        let (kind, size, mtime_ns) = match place {
            Place::Partition(_) => (Kind::Dir, 0, newest_ns),
            Place::Segment(_, base, upload, file) => {
                let seg = chain.segments().get(base).filter(|s| &s.upload_id == upload);
                let seg = seg.ok_or(VfsError::NotFound)?;
                (Kind::File, size_of(seg, *file).ok_or(VfsError::NotFound)?, seg.mtime_ns)
            }
            Place::Metadata(id) => {
                let text = checkpoint::render_partition_metadata(&id.topic_id);
                (Kind::File, text.len() as u64, newest_ns)
            }
            Place::Epochs(..) => (Kind::File, epochs_of(chain).len() as u64, newest_ns),
        };
        Ok(Attr::synthetic(ino, kind, size, mtime_ns))
    }

    /// Attributes of a number that was looked up.
    pub async fn getattr(&self, ino: u64) -> Result<Attr> {
        let place = self.place(ino)?;
        if let Place::Partition(id) = &place
            && let Some(named) = self.index.named(id).await?
        {
            return Ok(Attr::synthetic(ino, Kind::Dir, 0, self.changed_ns(&named).await));
        }
        let (Place::Partition(id)
        | Place::Segment(id, ..)
        | Place::Metadata(id)
        | Place::Epochs(id, _)) = &place;
        let chain = self.index.chain(id).await?.chain;
        self.attr_of(ino, &place, &chain)
    }

    /// All partitions.
    pub async fn list_root(&self) -> Result<Listing> {
        let listing = self.index.list().await?;
        let entry = |named: &NamedChain| DirEntry {
            name: named.name.clone().into(),
            ino: u64::MAX >> 2,
            kind: Kind::Dir,
        };
        Ok(Listing { entries: listing.iter().map(entry).collect(), damage: None })
    }

    /// All files of a partition, as far as its manifest can be believed.
    pub async fn list_partition(&self, ino: u64) -> Result<Listing> {
        let Place::Partition(id) = self.place(ino)? else {
            return Err(rustix::io::Errno::NOTDIR.into());
        };
        let Readable { chain, damage } = self.index.chain(&id).await?;
        let mut listed =
            vec![names::LEADER_EPOCHS.to_owned(), names::PARTITION_METADATA.to_owned()];
        for seg in chain.segments().values() {
            let kinds = FileKind::ALL.into_iter().filter(|k| size_of(seg, *k).is_some());
            listed.extend(kinds.map(|k| names::file_name(seg.base_offset, k)));
        }
        let entry =
            |name: String| DirEntry { name: name.into(), ino: u64::MAX >> 2, kind: Kind::File };
        Ok(Listing { entries: listed.into_iter().map(entry).collect(), damage })
    }

    /// Opens a file.
    pub async fn open(&self, ino: u64) -> Result<ArchiveFile> {
        let place = self.place(ino)?;
        match &place {
            Place::Partition(_) => Err(rustix::io::Errno::ISDIR.into()),
            Place::Metadata(id) => {
                let text = checkpoint::render_partition_metadata(&id.topic_id);
                Ok(ArchiveFile::Small(text.into()))
            }
            Place::Epochs(id, _) => {
                Ok(ArchiveFile::Small(epochs_of(&self.index.chain(id).await?.chain)))
            }
            Place::Segment(id, base, upload, kind) => {
                let chain = self.index.chain(id).await?.chain;
                let seg = chain.segments().get(base).filter(|s| &s.upload_id == upload);
                let seg = seg.ok_or(rustix::io::Errno::STALE)?;
                self.open_segment(id, (&chain, seg), *kind).await
            }
        }
    }

    async fn open_segment(
        &self,
        id: &ChainId,
        (chain, seg): (&Arc<Chain>, &ArchivedSegment),
        kind: FileKind,
    ) -> Result<ArchiveFile> {
        let source = source_of(id, seg);
        if kind == FileKind::Log {
            let streams = followers::in_archive(chain.clone(), id.clone(), source_of);
            return Ok(ArchiveFile::Log(source, streams));
        }
        let aux = self.reader.aux(&source).await?;
        let bytes = match kind {
            FileKind::Index => aux.index.clone(),
            FileKind::TimeIndex => aux.timeindex.clone(),
            FileKind::TxnIndex => aux.txnindex.clone(),
            FileKind::Snapshot => aux.snapshot.clone(),
            FileKind::Log => None,
        };
        Ok(ArchiveFile::Small(bytes.ok_or(VfsError::NotFound)?))
    }

    /// Reads from an open file.
    pub async fn read(&self, file: &ArchiveFile, offset: u64, len: usize) -> Result<Bytes> {
        match file {
            ArchiveFile::Log(source, streams) => {
                let hint = ReadHint { broker: false };
                Ok(self.reader.read(source, streams, offset, len, hint).await?)
            }
            ArchiveFile::Small(bytes) => {
                let start = (offset.min(bytes.len() as u64)) as usize;
                let end = start.saturating_add(len).min(bytes.len());
                Ok(bytes.slice(start..end))
            }
        }
    }
}

#[cfg(test)]
mod tests;

fn place_of(chain: &Chain, id: &ChainId, name: &str) -> Option<Place> {
    if name == names::PARTITION_METADATA {
        return Some(Place::Metadata(id.clone()));
    }
    if name == names::LEADER_EPOCHS {
        return Some(Place::Epochs(id.clone(), chain.version()));
    }
    let parsed = names::parse_file(name).filter(|n| n.suffix == names::Suffix::None)?;
    let seg = chain.segments().get(&parsed.base_offset)?;
    size_of(seg, parsed.kind)?;
    Some(Place::Segment(id.clone(), parsed.base_offset, seg.upload_id.clone(), parsed.kind))
}
