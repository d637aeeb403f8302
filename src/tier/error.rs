//! Why a step of the tiering failed. All of these are tried again; what a segment itself is at fault
//! for is no error but a hold (`holds`).

use std::io;

use crate::store::{IdentityError, StoreError};

/// A step that failed and is made again after a pause.
#[derive(Debug, thiserror::Error)]
pub enum TierError {
    /// The store did not do what was asked.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store's identity is not known or not ours: nothing is uploaded until that is mended.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The log dir does not say yet which cluster it belongs to.
    #[error("no cluster id in {0} yet: nothing is archived before a broker has written it")]
    NoClusterId(String),
    /// `meta.properties` is there and cannot be believed.
    #[error("{0}")]
    MetaProperties(String),
    /// The URL now leads to another store than this data directory was used with.
    #[error(
        "the store is not the one this data directory was used with (store id {found}, expected \
         {expected}); mount with the former store, or with a new data directory"
    )]
    OtherStore {
        /// In the data directory.
        expected: String,
        /// In the store.
        found: String,
    },
    /// The manifest could not be read or written.
    #[error("manifest of {chain}: {why}")]
    Manifest {
        /// Whose.
        chain: String,
        /// In one line.
        why: String,
    },
    /// What was read back is not what was written.
    #[error("{key}: read back {found}, expected {expected}: the upload is given up and made again")]
    ReadBack {
        /// The object.
        key: String,
        /// Size and checksum of what was sent.
        expected: String,
        /// Of what came back.
        found: String,
    },
    /// The manifest names an object that the store does not hold so.
    #[error("{key} is in the manifest, but the store has {found}: the archive is damaged there")]
    Missing {
        /// The object.
        key: String,
        /// What is there instead.
        found: String,
    },
    /// Archived bytes are not those that were archived.
    #[error("{key}: {why}: the archive is damaged there")]
    Damaged {
        /// The object.
        key: String,
        /// What is wrong with it.
        why: String,
    },
    /// The end of a segment that is fine as a whole is not: it changed meanwhile.
    #[error("{segment} changed while it was archived: {why}")]
    Part {
        /// The file.
        segment: String,
        /// Which rule its end breaks.
        why: String,
    },
    /// Local disk.
    #[error("{path}: {source}")]
    Local {
        /// The file.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The same conflict over and over: another writer commits faster than this one.
    #[error("manifest of {0}: other writers were faster, several times in a row")]
    Outrun(String),
    /// The process ends.
    #[error("stopped")]
    Stopping,
}

impl TierError {
    pub(super) fn local(path: &std::path::Path, source: io::Error) -> Self {
        Self::Local { path: path.display().to_string(), source }
    }
}
