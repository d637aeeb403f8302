//! A stub stands in the log dir for a `.log` whose bytes were evicted: where each byte now is.
//!
//! Format: `docs/FORMATS.md` 3.1. Invariant: a stub is durable before the bytes it stands for are
//! released, and it is never believed when its checksum fails.

use std::ffi::OsStr;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use rustix::fs::XattrFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::xattrs::Xattrs;
use super::{acl, durable};
use crate::types::envelope::{self, EnvelopeError};
use crate::types::{ArchivedSegment, ChainId, Sha256, TopicId, TopicPartition, UploadId};

/// Ending of a stub's name, and of every name in the log dir that is Everlog's own.
pub const RESERVED_SUFFIX: &str = ".everlog";
const KIND: &str = "stub";
/// The newest that is understood, and what is written when extended attributes have to be kept.
const VERSION: u32 = 2;
/// Written otherwise: what it lacks is nothing that an older Everlog would lose.
const VERSION_WITHOUT_XATTRS: u32 = 1;

/// A range of the file that lies in a range of one archived object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// First byte in the file.
    pub file_start: u64,
    /// One past the last byte in the file.
    pub file_end: u64,
    /// Names the object, with `upload_id`.
    pub base_offset: i64,
    /// Names the object, with `base_offset`.
    pub upload_id: UploadId,
    /// Position of `file_start` in the object.
    pub object_start: u64,
    /// Length of the whole object.
    pub object_size_bytes: u64,
    /// Length of its `.aux`.
    pub aux_size_bytes: u64,
    /// Of its `.aux`.
    pub aux_sha256: Sha256,
}

impl Extent {
    /// This range of a file is what lies in the segment's `.log` object from `object_start` on.
    #[must_use]
    pub fn of(segment: &ArchivedSegment, file: Range<u64>, object_start: u64) -> Self {
        Self {
            file_start: file.start,
            file_end: file.end,
            base_offset: segment.base_offset,
            upload_id: segment.upload_id.clone(),
            object_start,
            object_size_bytes: segment.size_bytes,
            aux_size_bytes: segment.aux_size_bytes,
            aux_sha256: segment.aux_sha256,
        }
    }
}

/// What is known of an evicted file without its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stub {
    /// Exact size; with an overlay, the overlay's size is the file's.
    pub size_bytes: u64,
    /// Modification time, nanoseconds since the epoch.
    pub mtime_ns: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Content that was archived.
    pub generation: Sha256,
    /// Partition whose archive holds the objects.
    pub tp: TopicPartition,
    /// Incarnation of the topic.
    pub topic_id: TopicId,
    /// Archived ranges, ascending, disjoint.
    pub extents: Vec<Extent>,
    /// Name in `overlay/` of the file that holds all other bytes.
    pub overlay: Option<String>,
    /// Access time, nanoseconds since the epoch; `None`: as the modification time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub atime_ns: Option<u64>,
    /// Change time, nanoseconds since the epoch; `None`: as the modification time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ctime_ns: Option<u64>,
    /// Extended attributes.
    #[serde(default, skip_serializing_if = "Xattrs::is_empty")]
    pub xattrs: Xattrs,
}

impl Stub {
    /// Of a whole archived segment. Ownership and mode are the evicted file's.
    #[must_use]
    pub fn of_segment(
        chain: &ChainId,
        seg: &ArchivedSegment,
        mtime_ns: u64,
        (mode, uid, gid): (u32, u32, u32),
    ) -> Self {
        let whole = Extent::of(seg, 0..seg.size_bytes, 0);
        Self {
            size_bytes: seg.size_bytes,
            mtime_ns,
            mode,
            uid,
            gid,
            generation: seg.sha256,
            tp: chain.tp.clone(),
            topic_id: chain.topic_id.clone(),
            extents: vec![whole],
            overlay: None,
            atime_ns: None,
            ctime_ns: None,
            xattrs: Xattrs::default(),
        }
    }

    /// Changes the permission bits, and the access list with them.
    pub fn set_mode(&mut self, mode: u32) -> Result<(), Errno> {
        if let Ok(list) = self.xattrs.get(OsStr::new(acl::ACCESS)) {
            let list = acl::with_mode(list, mode)?;
            self.xattrs.set(OsStr::new(acl::ACCESS), &list, XattrFlags::empty())?;
        }
        self.mode = mode;
        Ok(())
    }

    /// Changes the owner; what lets others run it in the owner's name goes, as on local disk.
    pub fn set_owner(&mut self, uid: Option<u32>, gid: Option<u32>) {
        (self.uid, self.gid) = (uid.unwrap_or(self.uid), gid.unwrap_or(self.gid));
        self.mode = without_set_id(self.mode);
        // None is there, or it goes.
        let _ = self.xattrs.remove(OsStr::new("security.capability"));
    }

    /// Sets an extended attribute. An access list changes the permission bits; one that says no more than they do
    /// is not kept.
    pub fn set_xattr(
        &mut self,
        name: &OsStr,
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<(), Errno> {
        if name == acl::DEFAULT {
            return Err(Errno::ACCESS);
        }
        if name != acl::ACCESS {
            return self.xattrs.set(name, value, flags);
        }
        let (bits, minimal) = acl::mode_of(value)?;
        if minimal {
            // None is there, or it goes.
            let _ = self.xattrs.remove(name);
        } else {
            self.xattrs.set(name, value, flags)?;
        }
        self.mode = self.mode & !0o777 | bits;
        Ok(())
    }

    /// Of a file whose bytes lie in several archived objects: as of a whole one, but for its size, content and extents.
    #[must_use]
    pub fn with_extents(self, size_bytes: u64, generation: Sha256, extents: Vec<Extent>) -> Self {
        Self { size_bytes, generation, extents, ..self }
    }

    /// The chain that holds its objects.
    #[must_use]
    pub fn chain(&self) -> ChainId {
        ChainId { tp: self.tp.clone(), topic_id: self.topic_id.clone() }
    }

    /// Takes `[start, end)` out of the archived ranges: those bytes are local from now on.
    pub fn cut(&mut self, start: u64, end: u64) {
        let mut kept = Vec::with_capacity(self.extents.len() + 1);
        for e in self.extents.drain(..) {
            if e.file_start < start.min(e.file_end) {
                kept.push(Extent { file_end: e.file_end.min(start), ..e.clone() });
            }
            let after = end.max(e.file_start);
            if after < e.file_end {
                let object_start = e.object_start + (after - e.file_start);
                kept.push(Extent { file_start: after, object_start, ..e });
            }
        }
        self.extents = kept;
    }

    /// Whether `[start, end)` touches an archived range.
    #[must_use]
    pub fn touches(&self, start: u64, end: u64) -> bool {
        self.extents.iter().any(|e| e.file_start < end && start < e.file_end)
    }

    /// From a document's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        let stub: Self = envelope::decode(KIND, VERSION, bytes)?;
        let ordered = stub.extents.windows(2).all(|w| w[0].file_end <= w[1].file_start);
        let sane = stub.extents.iter().all(|e| {
            e.file_start < e.file_end
                && e.object_start + (e.file_end - e.file_start) <= e.object_size_bytes
        });
        if !(ordered && sane) {
            let why = "extents overlap or exceed their objects".to_owned();
            return Err(EnvelopeError::Malformed { kind: KIND, why });
        }
        Ok(stub)
    }

    /// Writes it durably beside `file`.
    pub fn write(&self, file: &Path) -> io::Result<()> {
        let version = if self.xattrs.is_empty() { VERSION_WITHOUT_XATTRS } else { VERSION };
        let bytes = envelope::encode(KIND, version, self).map_err(io::Error::other)?;
        durable::write_atomic(&path_of(file), &bytes)
    }
}

/// A mode without what a change of owner or a write by others takes away.
#[must_use]
pub fn without_set_id(mode: u32) -> u32 {
    let group_runs = mode & 0o010 != 0;
    mode & !0o4000 & if group_runs { !0o2000 } else { !0 }
}

/// The stub's path for the file it stands for.
#[must_use]
pub fn path_of(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(RESERVED_SUFFIX);
    PathBuf::from(name)
}

/// The name of the file that a stub's name stands for.
#[must_use]
pub fn stands_for(name: &str) -> Option<&str> {
    name.strip_suffix(RESERVED_SUFFIX).filter(|n| !n.ends_with(".tmp"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stub() -> Stub {
        let seg = ArchivedSegment {
            base_offset: 7,
            end_offset: 9,
            size_bytes: 1000,
            upload_id: UploadId::from_random(1),
            sha256: Sha256::of(b"log"),
            mtime_ns: 5,
            max_timestamp_ms: 1,
            batches: 1,
            epochs: vec![],
            compacted: false,
            aux_size_bytes: 10,
            aux_sha256: Sha256::of(b"aux"),
            files: Default::default(),
        };
        let chain = ChainId { tp: "a-0".parse().unwrap(), topic_id: TopicId::none() };
        Stub::of_segment(&chain, &seg, 5, (0o644, 0, 0))
    }

    #[test]
    fn cutting_the_middle_keeps_both_sides_at_their_object_positions() {
        let mut s = stub();
        s.cut(100, 300);
        let ranges: Vec<_> =
            s.extents.iter().map(|e| (e.file_start, e.file_end, e.object_start)).collect();
        assert_eq!(ranges, [(0, 100, 0), (300, 1000, 300)]);
        s.cut(50, 2000);
        assert_eq!(s.extents.len(), 1);
        assert!(!s.touches(50, 2000) && s.touches(49, 50));
    }

    #[test]
    fn a_stub_reads_back_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("00000000000000000007.log");
        stub().write(&file).unwrap();
        let bytes = std::fs::read(path_of(&file)).unwrap();
        assert_eq!(Stub::decode(&bytes).unwrap(), stub());
        assert!(bytes.starts_with(br#"{"everlog":"stub","version":1,"#), "older ones must read it");

        let mut with_list = stub();
        with_list.set_xattr(OsStr::new("user.a"), b"1", XattrFlags::empty()).unwrap();
        (with_list.atime_ns, with_list.ctime_ns) = (Some(3), Some(4));
        with_list.write(&file).unwrap();
        let bytes = std::fs::read(path_of(&file)).unwrap();
        assert_eq!(Stub::decode(&bytes).unwrap(), with_list);
        assert!(
            bytes.starts_with(br#"{"everlog":"stub","version":2,"#),
            "older ones would lose it"
        );
    }

    #[test]
    fn a_change_of_owner_takes_set_id_bits_and_capabilities() {
        let mut s = stub();
        s.set_xattr(OsStr::new("security.capability"), b"1", XattrFlags::empty()).unwrap();
        s.set_mode(0o6775).unwrap();
        s.set_owner(Some(7), None);
        assert_eq!((s.mode, s.uid, s.gid), (0o775, 7, 0));
        assert!(s.xattrs.is_empty());
        s.set_mode(0o6644).unwrap();
        s.set_owner(None, Some(8));
        assert_eq!((s.mode, s.uid, s.gid), (0o2644, 7, 8));
    }

    #[test]
    fn extents_beyond_their_object_are_refused() {
        let mut s = stub();
        s.extents[0].file_end = 2000;
        let bytes = envelope::encode(KIND, VERSION, &s).unwrap();
        assert!(Stub::decode(&bytes).is_err());
    }
}
