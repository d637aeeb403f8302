//! What an earlier run left in the cache directory: names and allocated sizes, nothing opened.
//!
//! Invariant: only files that carry a cache file's exact name are looked at; half-written ones and
//! halves of a pair are removed, everything else is left alone.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::ledger::Name;

/// Suffix of the object's bytes.
pub const DATA: &str = "data";
/// Suffix of the block map.
pub const MAP: &str = "map";
/// Suffix of an `.aux` object's bytes.
pub const AUX: &str = "aux";
/// Suffix of a file that is being written.
pub const TEMPORARY: &str = "tmp";

/// Directory of a cache file.
pub fn shard(dir: &Path, name: Name) -> PathBuf {
    dir.join(&name.hex()[..2])
}

/// Path of a cache file.
pub fn path(dir: &Path, name: Name, suffix: &str) -> PathBuf {
    shard(dir, name).join(format!("{}.{suffix}", name.hex()))
}

/// Space that a file takes on disk, in bytes.
pub fn allocated_bytes(meta: &fs::Metadata) -> u64 {
    meta.blocks() * 512
}

/// One object or one `.aux` file.
pub struct Found {
    pub name: Name,
    pub is_aux: bool,
    pub allocated_bytes: u64,
    used_s: i64,
}

#[derive(Default)]
struct Pair {
    allocated_bytes: u64,
    used_s: i64,
    data: bool,
    map: bool,
}

/// Everything that can be used again, the longest unused first.
pub fn scan(dir: &Path) -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    for shard in fs::read_dir(dir)? {
        let shard = shard?;
        let name = shard.file_name();
        let is_shard =
            name.to_str().is_some_and(|n| n.len() == 2 && Name::parse(&n.repeat(16)).is_some());
        if is_shard && shard.file_type()?.is_dir() {
            scan_shard(dir, &shard.path(), &mut found)?;
        }
    }
    found.sort_by_key(|f| f.used_s);
    Ok(found)
}

fn scan_shard(dir: &Path, shard: &Path, found: &mut Vec<Found>) -> io::Result<()> {
    let mut pairs: HashMap<Name, Pair> = HashMap::new();
    for file in fs::read_dir(shard)? {
        let file = file?;
        let text = file.file_name();
        let Some((stem, suffix)) = text.to_str().and_then(|t| t.split_once('.')) else { continue };
        let Some(name) = Name::parse(stem) else { continue };
        let meta = file.metadata()?;
        let (bytes, used_s) = (allocated_bytes(&meta), meta.atime().max(meta.mtime()));
        match suffix {
            AUX => found.push(Found { name, is_aux: true, allocated_bytes: bytes, used_s }),
            DATA | MAP => {
                let pair = pairs.entry(name).or_default();
                pair.allocated_bytes += bytes;
                pair.used_s = pair.used_s.max(used_s);
                pair.data |= suffix == DATA;
                pair.map |= suffix == MAP;
            }
            _ if suffix.ends_with(TEMPORARY) => fs::remove_file(file.path())?,
            _ => {}
        }
    }
    for (name, pair) in pairs {
        if pair.data && pair.map {
            let (allocated_bytes, used_s) = (pair.allocated_bytes, pair.used_s);
            found.push(Found { name, is_aux: false, allocated_bytes, used_s });
        } else {
            remove_pair(dir, name)?;
        }
    }
    Ok(())
}

/// Removes an object's files, the map first: data without a map is never read.
pub fn remove_pair(dir: &Path, name: Name) -> io::Result<()> {
    remove(dir, name, MAP)?;
    remove(dir, name, DATA)
}

/// Removes a cache file if it is there.
pub fn remove(dir: &Path, name: Name, suffix: &str) -> io::Result<()> {
    match fs::remove_file(path(dir, name, suffix)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
