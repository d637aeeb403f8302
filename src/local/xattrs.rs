//! Extended attributes: of a file on local disk, and as a stub keeps them for one that is not there.
//!
//! What a stub may hold is bounded by what ext4 takes for one file, so that a hydration never meets
//! attributes that the disk refuses.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::XattrFlags;
use rustix::io::{Errno, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The kernel passes no longer value, and no longer list of names.
const VALUE_BYTES_MAX: usize = 65_536;
/// What a stub keeps at most, counted as ext4 counts it: 16 bytes per attribute, name and value padded to 4.
pub const KEPT_BYTES_MAX: usize = 4000;

/// An object on local disk that has attributes of its own.
#[derive(Clone, Copy, Debug)]
pub enum Holder<'a> {
    /// By name; a symbolic link itself, not what it leads to.
    Path(&'a Path),
    /// Open, whatever its name is by now.
    File(&'a File),
}

/// Tries with a small buffer, then with the largest that can be needed.
fn grown(read: impl Fn(&mut [u8]) -> Result<usize>) -> Result<Vec<u8>> {
    let mut buffer = vec![0; 1024];
    let len = match read(&mut buffer) {
        Err(Errno::RANGE) => {
            buffer = vec![0; VALUE_BYTES_MAX];
            read(&mut buffer)?
        }
        other => other?,
    };
    buffer.truncate(len);
    Ok(buffer)
}

impl Holder<'_> {
    /// The value; ENODATA when there is none of this name.
    pub fn get(&self, name: &OsStr) -> Result<Vec<u8>> {
        grown(|buffer| match self {
            Self::Path(path) => rustix::fs::lgetxattr(*path, name, buffer),
            Self::File(file) => rustix::fs::fgetxattr(file, name, buffer),
        })
    }

    /// All names, each with a NUL behind it.
    pub fn list(&self) -> Result<Vec<u8>> {
        grown(|buffer| match self {
            Self::Path(path) => rustix::fs::llistxattr(*path, buffer),
            Self::File(file) => rustix::fs::flistxattr(file, buffer),
        })
    }

    /// Sets one; the flags say whether it must or must not exist.
    pub fn set(&self, name: &OsStr, value: &[u8], flags: XattrFlags) -> Result<()> {
        match self {
            Self::Path(path) => rustix::fs::lsetxattr(*path, name, value, flags),
            Self::File(file) => rustix::fs::fsetxattr(file, name, value, flags),
        }
    }

    /// Removes one; ENODATA when there is none of this name.
    pub fn remove(&self, name: &OsStr) -> Result<()> {
        match self {
            Self::Path(path) => rustix::fs::lremovexattr(*path, name),
            Self::File(file) => rustix::fs::fremovexattr(file, name),
        }
    }
}

/// Names that a local filesystem would have: EOPNOTSUPP for others, EINVAL where nothing follows.
fn check_name(name: &OsStr) -> Result<()> {
    const SPACES: [&[u8]; 4] = [b"user.", b"trusted.", b"security.", b"system.posix_acl_"];
    let rest = SPACES.iter().find_map(|space| name.as_bytes().strip_prefix(*space));
    match rest.ok_or(Errno::OPNOTSUPP)? {
        [] => Err(Errno::INVAL),
        _ => Ok(()),
    }
}

/// Attributes of a file that has no local file: names and values, byte for byte.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Xattrs(BTreeMap<Vec<u8>, Vec<u8>>);

impl Xattrs {
    /// All attributes of a local file. `None`: more than a stub may keep.
    pub fn read(from: Holder<'_>) -> Result<Option<Self>> {
        let names = match from.list() {
            // A filesystem without them.
            Err(Errno::OPNOTSUPP) => return Ok(Some(Self::default())),
            other => other?,
        };
        let mut all = BTreeMap::new();
        for name in names.split(|b| *b == 0).filter(|n| !n.is_empty()) {
            all.insert(name.to_owned(), from.get(OsStr::from_bytes(name))?);
        }
        let all = Self(all);
        Ok((all.cost_bytes() <= KEPT_BYTES_MAX).then_some(all))
    }

    /// Gives all of them to a local file.
    pub fn write(&self, to: Holder<'_>) -> Result<()> {
        let mut each = self.0.iter();
        each.try_for_each(|(name, value)| {
            to.set(OsStr::from_bytes(name), value, XattrFlags::empty())
        })
    }

    fn cost_bytes(&self) -> usize {
        let padded = |bytes: &[u8]| bytes.len().next_multiple_of(4);
        self.0.iter().map(|(name, value)| 16 + padded(name) + padded(value)).sum()
    }

    /// There are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value; ENODATA when there is none of this name.
    pub fn get(&self, name: &OsStr) -> Result<&[u8]> {
        check_name(name)?;
        self.0.get(name.as_bytes()).map(Vec::as_slice).ok_or(Errno::NODATA)
    }

    /// All names, each with a NUL behind it.
    #[must_use]
    pub fn list(&self) -> Vec<u8> {
        self.0.keys().flat_map(|name| name.iter().copied().chain([0])).collect()
    }

    /// Sets one; ENOSPC when it is too much, and then nothing has changed.
    pub fn set(&mut self, name: &OsStr, value: &[u8], flags: XattrFlags) -> Result<()> {
        check_name(name)?;
        let exists = self.0.contains_key(name.as_bytes());
        if flags.contains(XattrFlags::CREATE) && exists {
            return Err(Errno::EXIST);
        }
        if flags.contains(XattrFlags::REPLACE) && !exists {
            return Err(Errno::NODATA);
        }
        let mut changed = self.clone();
        changed.0.insert(name.as_bytes().to_owned(), value.to_owned());
        if changed.cost_bytes() > KEPT_BYTES_MAX {
            return Err(Errno::NOSPC);
        }
        *self = changed;
        Ok(())
    }

    /// Removes one; ENODATA when there is none of this name.
    pub fn remove(&mut self, name: &OsStr) -> Result<()> {
        check_name(name)?;
        self.0.remove(name.as_bytes()).map(drop).ok_or(Errno::NODATA)
    }
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let digit = |d: u8| char::from(d).to_digit(16);
    let pairs = digits.chunks_exact(2);
    pairs.map(|pair| Some((digit(pair[0])? << 4 | digit(pair[1])?) as u8)).collect()
}

impl Serialize for Xattrs {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        to.collect_seq(self.0.iter().map(|(name, value)| (to_hex(name), to_hex(value))))
    }
}

impl<'de> Deserialize<'de> for Xattrs {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        let pairs = Vec::<(String, String)>::deserialize(from)?;
        let bytes = |(name, value): (String, String)| from_hex(&name).zip(from_hex(&value));
        let all: Option<BTreeMap<_, _>> = pairs.into_iter().map(bytes).collect();
        all.map(Self).ok_or_else(|| serde::de::Error::custom("an attribute that is not hex"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> &OsStr {
        OsStr::new(text)
    }

    #[test]
    fn flags_and_absence_give_the_errnos_of_a_local_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let file = File::create(&path).unwrap();
        let mut kept = Xattrs::default();
        for local in [Holder::Path(&path), Holder::File(&file)] {
            for (op, flags) in [
                ("user.a", XattrFlags::REPLACE),
                ("user.a", XattrFlags::CREATE),
                ("user.a", XattrFlags::CREATE),
                ("user.a", XattrFlags::REPLACE),
                ("user.b", XattrFlags::empty()),
                ("user.", XattrFlags::empty()),
                ("nowhere.a", XattrFlags::empty()),
            ] {
                let expected = local.set(name(op), b"value", flags);
                assert_eq!(kept.set(name(op), b"value", flags), expected, "{op} {flags:?}");
            }
            assert_eq!(kept.get(name("user.a")).unwrap(), local.get(name("user.a")).unwrap());
            assert_eq!(
                kept.get(name("user.c")).unwrap_err(),
                local.get(name("user.c")).unwrap_err()
            );
            assert_eq!(Xattrs::read(local).unwrap(), Some(kept.clone()));
            for gone in ["user.a", "user.a", "user.b"] {
                assert_eq!(kept.remove(name(gone)), local.remove(name(gone)), "{gone}");
            }
            assert!(kept.is_empty() && kept.list().is_empty());
        }
    }

    #[test]
    fn any_bytes_survive_the_document_and_a_local_file() {
        let mut kept = Xattrs::default();
        let odd = OsStr::from_bytes(b"user.\xff\x01");
        kept.set(odd, &[0, 255, 10, 34], XattrFlags::empty()).unwrap();
        kept.set(name("user.empty"), b"", XattrFlags::empty()).unwrap();
        let text = serde_json::to_string(&kept).unwrap();
        assert_eq!(serde_json::from_str::<Xattrs>(&text).unwrap(), kept);
        assert!(serde_json::from_str::<Xattrs>(r#"[["zz","00"]]"#).is_err());
        let file = tempfile::tempfile().unwrap();
        kept.write(Holder::File(&file)).unwrap();
        assert_eq!(Xattrs::read(Holder::File(&file)).unwrap(), Some(kept));
    }

    #[test]
    fn what_a_stub_may_keep_ext4_takes_and_more_is_refused() {
        let mut kept = Xattrs::default();
        assert_eq!(kept.set(name("user.big"), &[7; 4000], XattrFlags::empty()), Err(Errno::NOSPC));
        kept.set(name("user.big"), &[7; 3970], XattrFlags::empty()).unwrap();
        assert_eq!(kept.set(name("user.more"), b"", XattrFlags::empty()), Err(Errno::NOSPC));
        let file = tempfile::tempfile().unwrap();
        kept.write(Holder::File(&file)).unwrap();
    }
}
