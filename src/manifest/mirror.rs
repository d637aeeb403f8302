//! The copy of the manifest on local disk, from which a mount without its store starts.
//!
//! Same names, same bytes as in the store. What is written here is durable, file and directory,
//! before the call returns: eviction stands on that. A version is never written before its
//! predecessor, so whatever a crash leaves is a prefix of the truth.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::failpoint;
use crate::local::durable;
use crate::store::names::{self, ManifestName};
use crate::types::ChainId;

use super::error::ManifestError;

const TMP_PREFIX: &str = ".tmp-";

/// The copies of all chains, below one directory.
#[derive(Clone, Debug)]
pub(super) struct Mirror {
    root: PathBuf,
}

fn at<T>(path: &Path, result: io::Result<T>) -> Result<T, ManifestError> {
    result.map_err(|cause| ManifestError::Mirror { path: path.to_owned(), cause })
}

impl Mirror {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub(super) fn dir(&self, id: &ChainId) -> PathBuf {
        self.root.join(names::chain_dir(id))
    }

    /// All chains that have a directory here.
    pub(super) fn chains(&self) -> Result<Vec<ChainId>, ManifestError> {
        let mut found = Vec::new();
        for partition in subdirectories(&self.root)? {
            let Ok(tp) = partition.parse() else { continue };
            for topic in subdirectories(&self.root.join(&partition))? {
                if let Ok(topic_id) = topic.parse() {
                    found.push(ChainId { tp: Clone::clone(&tp), topic_id });
                }
            }
        }
        found.sort();
        Ok(found)
    }

    /// Removes what a crash left half-written. Before anybody else uses it.
    pub(super) fn remove_leftovers(&self) -> Result<(), ManifestError> {
        for partition in subdirectories(&self.root)? {
            for topic in subdirectories(&self.root.join(&partition))? {
                let dir = self.root.join(&partition).join(topic);
                for entry in at(&dir, fs::read_dir(&dir))? {
                    let entry = at(&dir, entry)?;
                    if entry.file_name().to_string_lossy().starts_with(TMP_PREFIX) {
                        at(&entry.path(), fs::remove_file(entry.path()))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The names here, sorted.
    pub(super) fn names(&self, id: &ChainId) -> Result<Vec<ManifestName>, ManifestError> {
        let dir = self.dir(id);
        at(&dir, failpoint::disk("recover.mirror"))?;
        let entries = match fs::read_dir(&dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => at(&dir, other)?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = at(&dir, entry)?;
            found.extend(entry.file_name().to_str().and_then(|name| name.parse().ok()));
        }
        found.sort_by_key(ManifestName::to_string);
        Ok(found)
    }

    /// The bytes of a copy; `None` when it is not here.
    pub(super) fn read(
        &self,
        id: &ChainId,
        name: &ManifestName,
    ) -> Result<Option<Bytes>, ManifestError> {
        let path = self.dir(id).join(name.to_string());
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(Bytes::from(bytes))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(ManifestError::Mirror { path, cause }),
        }
    }

    /// Writes copies in the given order; durable when it returns.
    pub(super) fn write(
        &self,
        id: &ChainId,
        copies: &[(ManifestName, Bytes)],
    ) -> Result<(), ManifestError> {
        if copies.is_empty() {
            return Ok(());
        }
        let dir = self.dir(id);
        at(&dir, durable::create_dirs(&dir, ["mirror.dir", "mirror.dir.sync"]))?;
        for (name, bytes) in copies {
            let path = dir.join(name.to_string());
            at(&path, write_one(&dir, &path, bytes))?;
        }
        at(&dir, failpoint::disk("mirror.names.sync"))?;
        at(&dir, durable::sync_dir(&dir))
    }

    /// Removes what the checkpoint of `version` makes superfluous. Call it once that is durable.
    pub(super) fn prune(
        &self,
        id: &ChainId,
        version: u64,
        pages: &HashSet<String>,
    ) -> Result<(), ManifestError> {
        let dir = self.dir(id);
        for name in self.names(id)? {
            let superfluous = match &name {
                ManifestName::Delta(v) => *v <= version,
                ManifestName::Checkpoint(v) => *v < version,
                ManifestName::Page(v, _) => *v <= version && !pages.contains(&name.to_string()),
                ManifestName::Head => false,
            };
            if superfluous {
                let path = dir.join(name.to_string());
                at(&path, fs::remove_file(&path))?;
            }
        }
        Ok(())
    }
}

fn subdirectories(dir: &Path) -> Result<Vec<String>, ManifestError> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => at(dir, other)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = at(dir, entry)?;
        if at(dir, entry.file_type())?.is_dir() {
            found.extend(entry.file_name().to_str().map(str::to_owned));
        }
    }
    Ok(found)
}

fn write_one(dir: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let tmp = dir.join(format!("{TMP_PREFIX}{name}"));
    failpoint::disk("mirror.file")?;
    let mut file = File::create(&tmp)?;
    file.write_all(bytes)?;
    failpoint::disk("mirror.file.sync")?;
    file.sync_all()?;
    failpoint::disk("mirror.file.rename")?;
    fs::rename(&tmp, path)
}
