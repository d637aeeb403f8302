//! Whose store it is, settled once per process before the first upload.

use std::io;

use tokio::sync::Mutex;

use super::error::TierError;
use super::{OnIdentity, Tier};
use crate::clock::random_u64;
use crate::kafka::checkpoint::parse_meta_properties;
use crate::kafka::names;
use crate::store::{IdentityError, StoreError, StoreErrorKind, ensure_identity, read_identity};

/// What is known of the store's identity.
pub(super) struct Identity {
    expected: Option<String>,
    told: Option<OnIdentity>,
    settled: Mutex<bool>,
}

impl Identity {
    pub fn new(expected: Option<String>, told: Option<OnIdentity>) -> Self {
        Self { expected, told, settled: Mutex::new(false) }
    }
}

impl Tier {
    /// The cluster id in the log dir's `meta.properties`; `Ok(None)`: not there yet.
    pub(super) fn cluster_id(&self) -> Result<Option<String>, TierError> {
        let path = self.catalog.hot().join(names::META_PROPERTIES);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(TierError::local(&path, e)),
        };
        let parsed = parse_meta_properties(&bytes);
        parsed
            .map(|meta| meta.cluster_id)
            .map_err(|e| TierError::MetaProperties(format!("{}: {e}", path.display())))
    }

    /// Refuses another cluster's store, and another store than the one remembered. One request, once.
    pub(super) async fn settle_identity(&self) -> Result<(), TierError> {
        let mut settled = self.identity.settled.lock().await;
        if *settled {
            return Ok(());
        }
        let log_dir = self.catalog.hot().display().to_string();
        let cluster_id = self.cluster_id()?.ok_or(TierError::NoClusterId(log_dir))?;
        if let Some(expected) = &self.identity.expected {
            // A store that has lost its identity is another store: it must not be given a new one.
            let found = read_identity(&self.store).await?.map(|i| i.store_id);
            if found.as_ref() != Some(expected) {
                let found = found.unwrap_or_else(|| "none".to_owned());
                return Err(TierError::OtherStore { expected: expected.clone(), found });
            }
        }
        let random = u128::from(random_u64()) << 64 | u128::from(random_u64());
        let identity =
            ensure_identity(&self.store, &cluster_id, self.clock.now_ms(), random).await?;
        if let Some(told) = &self.identity.told {
            told(&identity);
        }
        *settled = true;
        Ok(())
    }
}

/// Whether the failure will not go away by itself.
pub(super) fn needs_operator(error: &TierError) -> bool {
    let denied = |e: &StoreError| {
        matches!(
            e.kind,
            StoreErrorKind::Denied
                | StoreErrorKind::NoBucket
                | StoreErrorKind::Invalid
                | StoreErrorKind::Unsupported
        )
    };
    match error {
        TierError::Store(e) | TierError::Identity(IdentityError::Store(e)) => denied(e),
        TierError::Identity(_)
        | TierError::NoClusterId(_)
        | TierError::MetaProperties(_)
        | TierError::OtherStore { .. } => true,
        TierError::Manifest { .. }
        | TierError::ReadBack { .. }
        | TierError::Missing { .. }
        | TierError::Damaged { .. }
        | TierError::Part { .. }
        | TierError::Local { .. }
        | TierError::Outrun(_)
        | TierError::Stopping => false,
    }
}
