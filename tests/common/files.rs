//! Small questions to a file tree.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use sha2::Digest as _;

/// SHA-256 of a file's bytes, as hex.
pub fn sha256_file(path: &Path) -> String {
    let file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    sha256_of(file, &path.display().to_string())
}

/// SHA-256 from where the file stands to its end, as hex.
pub fn sha256_of(mut file: File, name: &str) -> String {
    let mut hash = sha2::Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).unwrap_or_else(|e| panic!("{name}: {e}")) {
            0 => return hash.finalize().iter().map(|b| format!("{b:02x}")).collect(),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// All regular files below `dir`, sorted; a name that vanishes meanwhile is left out.
pub fn files_under(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => open.push(entry.path()),
                Ok(kind) if kind.is_file() => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found.sort();
    found
}

/// Bytes that the files below `dir` for which `wanted` holds occupy on disk.
pub fn allocated_bytes(dir: &Path, wanted: impl Fn(&str) -> bool) -> u64 {
    files_under(dir)
        .iter()
        .filter(|p| wanted(&name(p)))
        .filter_map(|p| p.metadata().ok())
        .map(|m| m.blocks() * 512)
        .sum()
}

/// A path's last part as text.
pub fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The names in a directory, sorted.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut names: Vec<String> =
        entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Turns over the lowest bit of one byte.
pub fn flip_byte(path: &Path, at: u64) {
    use std::os::unix::fs::FileExt as _;
    let file = File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    file.sync_all().unwrap();
}

/// An access list of tags, permission bits and ids, as the kernel lays it out in an extended attribute.
pub fn access_list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut list = vec![2, 0, 0, 0];
    for (tag, bits, id) in entries {
        list.extend(tag.to_le_bytes());
        list.extend(bits.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    list
}

/// Every name below a root with its mode, length and checksum, and what `more` says of a file; directories with
/// their mode.
pub fn tree(
    root: &Path,
    more: impl Fn(&str, &Path, &Metadata) -> String,
) -> io::Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir)? {
            let path = entry?.path();
            let named = |e: io::Error| io::Error::other(format!("{}: {e}", path.display()));
            let meta = path.symlink_metadata().map_err(named)?;
            let shown = path.strip_prefix(root).unwrap().display().to_string();
            let mode = meta.mode() & 0o7777;
            if meta.is_dir() {
                found.insert(shown, format!("directory {mode:o}"));
                open.push(path);
                continue;
            }
            let bytes = std::fs::read(&path).map_err(named)?;
            let len = meta.len();
            assert_eq!(bytes.len() as u64, len, "{shown} has another length than it says");
            let (crc, more) = (crc32c::crc32c(&bytes), more(&shown, &path, &meta));
            found.insert(shown, format!("file {mode:o} {len} bytes {crc:08x}{more}"));
        }
    }
    Ok(found)
}
