//! Whose store this is: `everlog.json`, written once before the first upload.
//!
//! A store belongs to one Kafka cluster. Two clusters with equal topic names in one bucket would be
//! one archive that is true of neither, so a foreign store is refused before anything is written.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::types::envelope::{self, EnvelopeError};

use super::client::Store;
use super::error::{Op, StoreError, StoreErrorKind};
use super::faults::fail_point;
use super::names;

const KIND: &str = "archive";
const VERSION: u32 = 1;
const IDENTITY_BYTES_MAX: u64 = 64 * 1024;

/// The body of `everlog.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreIdentity {
    /// 32 hex digits, drawn when the store was first used.
    pub store_id: String,
    /// Kafka's, from `meta.properties`.
    pub cluster_id: String,
    /// Milliseconds since the epoch.
    pub created_ms: u64,
}

/// Why the store must not be used, or could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The store did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// `everlog.json` cannot be believed, or is of a newer Everlog.
    #[error("everlog.json in the store: {0}")]
    Unreadable(#[from] EnvelopeError),
    /// It is another cluster's.
    #[error(
        "the store belongs to Kafka cluster {found}, this log dir to {expected}; \
         use another bucket or prefix for each cluster"
    )]
    Foreign {
        /// Of the log dir.
        expected: String,
        /// In the store.
        found: String,
    },
}

/// The store's identity; `None` when it has never been used.
pub async fn read_identity(store: &Store) -> Result<Option<StoreIdentity>, IdentityError> {
    let bytes = match store.get(&names::identity_key(), IDENTITY_BYTES_MAX).await {
        Ok(bytes) => bytes,
        Err(e) if e.kind == StoreErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let identity = envelope::decode(KIND, VERSION, &bytes)?;
    if let Some(directory) = store.directory() {
        directory.identity_seen(&bytes);
    }
    Ok(Some(identity))
}

/// Reads the identity, writing it first when the store is new; refuses another cluster's store.
/// `random` becomes the id of a new store.
pub async fn ensure_identity(
    store: &Store,
    cluster_id: &str,
    now_ms: u64,
    random: u128,
) -> Result<StoreIdentity, IdentityError> {
    if let Some(found) = read_identity(store).await? {
        return own(cluster_id, found);
    }
    let fresh = StoreIdentity {
        store_id: format!("{random:032x}"),
        cluster_id: cluster_id.to_owned(),
        created_ms: now_ms,
    };
    let bytes = Bytes::from(envelope::encode(KIND, VERSION, &fresh)?);
    // Whoever was first: what can be read afterwards is the identity.
    fail_point("identity.put", Op::Put, &names::identity_key())?;
    store.put_if_absent(&names::identity_key(), bytes).await?;
    match read_identity(store).await? {
        Some(found) => own(cluster_id, found),
        None => {
            let key = names::identity_key();
            let why = "written and then not found: the store loses objects";
            Err(StoreError::new(StoreErrorKind::Invalid, Op::Get, key.as_str(), why).into())
        }
    }
}

fn own(expected: &str, found: StoreIdentity) -> Result<StoreIdentity, IdentityError> {
    if found.cluster_id == expected {
        return Ok(found);
    }
    Err(IdentityError::Foreign { expected: expected.to_owned(), found: found.cluster_id })
}
