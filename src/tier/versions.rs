//! Keeps versions of Kafka's checkpoint files: on local disk at most every minute, in the store every ten minutes.
//!
//! Nothing else depends on them, so a failure is noted in the status and tried again, and stops nothing. Old versions
//! thin out (`local::versions::superfluous`); these are the only objects that Everlog removes by itself.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use serde::Serialize;

use super::Tier;
use super::error::TierError;
use crate::clock::random_u64;
use crate::kafka::names as kafka_names;
use crate::local::versions::{self, Version};
use crate::store::{Op, fail_point, names};

const KEEP_EVERY_MS: u64 = 60_000;
/// As long as there is no version at all.
const FIRST_EVERY_MS: u64 = 2_000;
const UPLOAD_EVERY_MS: u64 = 600_000;
/// More than thinned-out versions ever are.
const LISTED_MAX: usize = 10_000;

/// What is kept, for the status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct KeptCheckpoints {
    /// Versions on local disk.
    pub versions: u64,
    /// When the newest was taken, milliseconds since the epoch.
    pub newest_ms: Option<u64>,
    /// When the newest in the store was taken, as far as this process put it there.
    pub uploaded_ms: Option<u64>,
    /// Why the last try failed.
    pub error: Option<String>,
}

#[derive(Debug, Default)]
struct State {
    /// `None`: not looked at yet.
    local: Option<BTreeSet<u64>>,
    remote: Option<BTreeSet<u64>>,
    newest: Option<Arc<Version>>,
    kept_at_ms: u64,
    uploaded_at_ms: u64,
    uploaded: Option<u64>,
    error: Option<String>,
}

/// The versions of one data directory.
#[derive(Debug)]
pub(super) struct Versions {
    dir: Option<PathBuf>,
    state: Mutex<State>,
}

impl Versions {
    pub fn new(dir: Option<PathBuf>) -> Self {
        Self { dir, state: Mutex::default() }
    }

    /// Whether it is time to look again.
    pub fn is_due(&self, now_ms: u64) -> bool {
        let state = self.state.lock();
        let pause_ms = if state.newest.is_some() { KEEP_EVERY_MS } else { FIRST_EVERY_MS };
        self.dir.is_some() && now_ms.saturating_sub(state.kept_at_ms) >= pause_ms
    }

    pub fn status(&self) -> KeptCheckpoints {
        let state = self.state.lock();
        KeptCheckpoints {
            versions: state.local.as_ref().map_or(0, |l| l.len() as u64),
            newest_ms: state.newest.as_ref().map(|v| v.taken_ms),
            uploaded_ms: state.uploaded,
            error: state.error.clone(),
        }
    }

    /// The newest version on local disk that can be read.
    fn load(&self, dir: &std::path::Path) -> std::io::Result<()> {
        let mut state = self.state.lock();
        if state.local.is_some() {
            return Ok(());
        }
        versions::remove_leftovers(dir)?;
        let taken = versions::list(dir)?;
        let readable = |ms: &u64| match Version::read(dir, *ms) {
            Ok(version) => Some(Arc::new(version)),
            Err(error) => {
                tracing::warn!(%error, "a version of Kafka's checkpoints cannot be believed");
                None
            }
        };
        state.newest = taken.iter().rev().find_map(readable);
        state.local = Some(taken);
        Ok(())
    }
}

impl Tier {
    /// Takes a version if the files have changed since the last one. Blocking.
    pub(super) fn keep_version(&self) -> std::io::Result<()> {
        let Some(dir) = &self.versions.dir else { return Ok(()) };
        self.versions.load(dir)?;
        let now_ms = self.clock.now_ms();
        let newest = self.versions.state.lock().newest.clone();
        let id = match &newest {
            Some(version) => version.log_dir_id.clone(),
            None => format!("{:016x}", random_u64()),
        };
        let Some(version) = Version::take(self.catalog.hot(), now_ms, &id) else { return Ok(()) };
        if newest.is_some_and(|n| n.files == version.files || n.taken_ms >= now_ms) {
            return Ok(());
        }
        version.write(dir)?;
        let mut state = self.versions.state.lock();
        state.newest = Some(Arc::new(version));
        let local = state.local.get_or_insert_default();
        local.insert(now_ms);
        for old in versions::superfluous(local, now_ms) {
            versions::remove(dir, old)?;
            local.remove(&old);
        }
        Ok(())
    }

    /// Puts the newest version into the store, if it is time.
    async fn upload_version(&self) -> Result<(), TierError> {
        let now_ms = self.clock.now_ms();
        let (version, due) = {
            let state = self.versions.state.lock();
            let due = now_ms.saturating_sub(state.uploaded_at_ms) >= UPLOAD_EVERY_MS;
            (state.newest.clone(), due)
        };
        let Some(version) = version.filter(|v| {
            due && v.node_id.is_some() && self.versions.state.lock().uploaded != Some(v.taken_ms)
        }) else {
            return Ok(());
        };
        let node = version.node_id.unwrap_or_default();
        self.settle_identity().await?;
        let key = names::checkpoints_key(node, &version.log_dir_id, version.taken_ms);
        let bytes = version.encode().map_err(|e| TierError::Manifest {
            chain: "checkpoints".to_owned(),
            why: e.to_string(),
        })?;
        fail_point("versions.put", Op::Put, &key)?;
        self.store.put_if_absent(&key, Bytes::from(bytes)).await?;
        {
            let mut state = self.versions.state.lock();
            (state.uploaded, state.uploaded_at_ms) = (Some(version.taken_ms), now_ms);
        }
        self.thin_out_store(node, &version, now_ms).await
    }

    async fn thin_out_store(
        &self,
        node: i32,
        version: &Version,
        now_ms: u64,
    ) -> Result<(), TierError> {
        let known = self.versions.state.lock().remote.clone();
        let mut there = match known {
            Some(there) => there,
            None => {
                let prefix = names::checkpoints_prefix(node, &version.log_dir_id);
                let listed = self.store.list(&prefix, LISTED_MAX).await?;
                let parse = |o: &crate::store::ObjectInfo| names::parse_checkpoints(&o.key);
                listed.iter().filter_map(parse).map(|(_, _, ms)| ms).collect()
            }
        };
        there.insert(version.taken_ms);
        for old in versions::superfluous(&there, now_ms) {
            let key = names::checkpoints_key(node, &version.log_dir_id, old);
            self.store.delete(&key).await?;
            there.remove(&old);
        }
        self.versions.state.lock().remote = Some(there);
        Ok(())
    }

    /// One round. A failure stands in the status; it is logged when it begins.
    pub(super) async fn keep_versions(self: Arc<Self>) {
        self.versions.state.lock().kept_at_ms = self.clock.now_ms();
        let tier = self.clone();
        let kept = tokio::task::spawn_blocking(move || tier.keep_version()).await;
        let done = match kept {
            Ok(Ok(())) => self.upload_version().await.map_err(|e| e.to_string()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(error) => Err(format!("a defect of Everlog stopped it: {error}")),
        };
        let mut state = self.versions.state.lock();
        if let Err(why) = &done
            && state.error.is_none()
            && !self.is_stopping()
        {
            tracing::warn!(%why, "no version of Kafka's checkpoints is kept at the moment");
        }
        state.error = done.err();
    }

    /// For people who are about to start a broker on a log dir that has lost its recovery points.
    pub(super) fn missing_checkpoints(&self) -> Option<String> {
        let dir = self.versions.dir.as_ref()?;
        if let Err(error) = self.versions.load(dir) {
            return Some(format!("versions of Kafka's checkpoints: {error}"));
        }
        let newest = self.versions.state.lock().newest.clone()?;
        let name = kafka_names::RECOVERY_POINT;
        let what = match versions::read_file(self.catalog.hot(), name) {
            Ok(Some(_)) => return None,
            Ok(None) => "is missing or empty".to_owned(),
            Err(why) => format!("cannot be read ({why})"),
        };
        Some(format!(
            "{name} {what}: a broker that starts now reads every segment from the first on, also cold ones; \
             'everlog checkpoints put-back --data DIR --to MOUNTPOINT' brings back the version of {} before that",
            versions::shown(newest.taken_ms)
        ))
    }
}
