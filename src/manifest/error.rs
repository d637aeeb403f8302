//! Why a manifest cannot be read or written, and what the caller can do.

use std::path::PathBuf;

use crate::store::StoreError;
use crate::types::envelope::EnvelopeError;

use super::chain::ChainError;

/// A failure of the manifest; names the object or the file.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The store failed; transient ones may be tried again.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// This log was opened without a store.
    #[error("there is no store to read the manifest of {0} from")]
    NoStore(String),
    /// A document cannot be believed. Nothing at or after it is.
    #[error("manifest object {name} is damaged: {why}")]
    Damaged {
        /// Its key or path.
        name: String,
        /// What does not fit.
        why: String,
    },
    /// Written by a newer Everlog: refused, never guessed at.
    #[error("manifest object {name}: {why}")]
    UnknownVersion {
        /// Its key or path.
        name: String,
        /// Both versions.
        why: String,
    },
    /// A version is missing though a later one exists.
    #[error("the manifest of {chain} has a hole: version {version} is missing, {newest} exists")]
    Hole {
        /// The chain.
        chain: String,
        /// The first that is missing.
        version: u64,
        /// One that is known to exist.
        newest: u64,
    },
    /// The caller's change does not fit the chain. Nothing was written.
    #[error("the change does not fit the manifest of {chain}: {why}")]
    Refused {
        /// The chain.
        chain: String,
        /// The rule.
        why: ChainError,
    },
    /// Whether the commit happened is not known: refresh before planning the next one.
    #[error("whether version {version} of {chain} was committed is not known: {cause}")]
    Unresolved {
        /// The chain.
        chain: String,
        /// The version.
        version: u64,
        /// Why it could not be found out.
        cause: StoreError,
    },
    /// The copy on local disk cannot be read or written. What was not mirrored does not count.
    #[error("{path}: {cause}")]
    Mirror {
        /// The file or directory.
        path: PathBuf,
        /// What the disk said.
        cause: std::io::Error,
    },
}

impl ManifestError {
    /// Whether it is the archive itself that is damaged or not understood, not the way to it.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::UnknownVersion { .. } | Self::Hole { .. })
    }

    /// Whether the same call may succeed later without anybody's doing.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Store(error) => error.is_transient(),
            Self::Unresolved { .. } => true,
            _ => false,
        }
    }

    pub(super) fn unreadable(name: impl std::fmt::Display, error: &EnvelopeError) -> Self {
        let (name, why) = (name.to_string(), error.to_string());
        match error {
            EnvelopeError::UnknownVersion { .. } => Self::UnknownVersion { name, why },
            EnvelopeError::Malformed { .. } | EnvelopeError::Damaged { .. } => {
                Self::Damaged { name, why }
            }
        }
    }

    pub(super) fn damaged(name: impl std::fmt::Display, why: impl std::fmt::Display) -> Self {
        Self::Damaged { name: name.to_string(), why: why.to_string() }
    }
}
