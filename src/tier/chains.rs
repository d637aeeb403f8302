//! The chains as this process knows them: one writer at a time per chain, readers of a snapshot.
//!
//! A chain is first known from the mirror on local disk. Before the first commit of this process the
//! store is asked what it holds, so that a decision never rests on an old view; after that every
//! commit's conflict says when the view is old, and that somebody else writes: a replica's broker.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use crate::manifest::{Chain, Change, CommitOutcome, ManifestError, ManifestLog};
use crate::types::ChainId;

use super::error::TierError;

/// What the single writer of a chain knows besides the chain.
#[derive(Debug, Default)]
struct Work {
    /// The view is not older than this process's last word with the store.
    fresh: bool,
    /// Others commit to it, too: the store is asked before anything is uploaded.
    shared: bool,
}

#[derive(Debug, Default)]
struct Slot {
    work: tokio::sync::Mutex<Work>,
    view: RwLock<Option<Arc<Chain>>>,
}

/// All chains that were met.
pub(super) struct Chains {
    log: ManifestLog,
    slots: Mutex<HashMap<ChainId, Arc<Slot>>>,
    /// Chains that have news for the rollups.
    news: Mutex<HashSet<ChainId>>,
}

fn manifest_error(id: &ChainId, error: ManifestError) -> TierError {
    match error {
        ManifestError::Mirror { path, cause } => TierError::local(&path, cause),
        error => TierError::Manifest { chain: id.to_string(), why: error.to_string() },
    }
}

impl Chains {
    pub fn new(log: ManifestLog) -> Self {
        Self { log, slots: Mutex::default(), news: Mutex::default() }
    }

    fn slot(&self, id: &ChainId) -> Arc<Slot> {
        self.slots.lock().entry(id.clone()).or_default().clone()
    }

    /// The newest known content.
    pub fn view(&self, id: &ChainId) -> Option<Arc<Chain>> {
        let slot = self.slots.lock().get(id).cloned()?;
        slot.view.read().clone()
    }

    /// All chains of which something is known.
    pub fn ids(&self) -> Vec<ChainId> {
        let slots = self.slots.lock();
        let known = slots.iter().filter(|(_, s)| s.view.read().is_some());
        known.map(|(id, _)| id.clone()).collect()
    }

    /// Whether the rollups do not know all that is known here.
    pub fn has_news(&self) -> bool {
        !self.news.lock().is_empty()
    }

    /// Brings the rollups up to what is known. After a failure all of it is still to be done.
    pub async fn roll_up(&self) -> Result<(), ManifestError> {
        let news = std::mem::take(&mut *self.news.lock());
        let chains: Vec<Arc<Chain>> = news.iter().filter_map(|id| self.view(id)).collect();
        let done = self.log.roll_up(&chains).await;
        if done.is_err() {
            self.news.lock().extend(news);
        }
        done
    }

    /// The chains that the mirror on local disk has, once what a crash left there is removed.
    pub fn mirrored(&self) -> Result<Vec<ChainId>, String> {
        if let Err(error) = self.log.remove_leftovers() {
            tracing::warn!(%error, "what a crash left in the local manifest stays");
        }
        self.log.mirror_chains().map_err(|e| e.to_string())
    }

    /// Loads a chain from local disk unless it is known. `Ok(None)`: the mirror has nothing of it.
    pub fn load_mirror(&self, id: &ChainId) -> Result<Option<Arc<Chain>>, TierError> {
        let slot = self.slot(id);
        if let Some(known) = slot.view.read().clone() {
            return Ok(Some(known));
        }
        let loaded = self.log.load_mirror(id).map_err(|e| manifest_error(id, e))?;
        let Some(chain) = loaded.map(Arc::new) else { return Ok(None) };
        *slot.view.write() = Some(chain.clone());
        self.news.lock().insert(id.clone());
        Ok(Some(chain))
    }

    /// The chain as the store holds it now, or held it at this process's last commit.
    pub async fn ready(&self, id: &ChainId) -> Result<Arc<Chain>, TierError> {
        let slot = self.slot(id);
        let mut work = slot.work.lock().await;
        let known = slot.view.read().clone();
        if let (true, Some(known)) = (work.fresh && !work.shared, &known) {
            return Ok(known.clone());
        }
        let chain = match known {
            Some(known) => {
                let mut chain = known.as_ref().clone();
                self.log.refresh(&mut chain).await.map_err(|e| manifest_error(id, e))?;
                chain
            }
            None => self.log.load(id).await.map_err(|e| manifest_error(id, e))?,
        };
        let chain = Arc::new(chain);
        *slot.view.write() = Some(chain.clone());
        work.fresh = true;
        Ok(chain)
    }

    /// Commits `changes` to the chain that [`Self::ready`] gave as `on`. `Ok(None)`: somebody else has
    /// committed meanwhile; decide again. `Ok(Some)`: durable in the store and on local disk. `Err`: it is not
    /// known whether it happened; the next [`Self::ready`] asks the store.
    pub async fn commit(
        &self,
        on: &Arc<Chain>,
        id: &ChainId,
        changes: Vec<Change>,
    ) -> Result<Option<Arc<Chain>>, TierError> {
        let slot = self.slot(id);
        let mut work = slot.work.lock().await;
        let moved = slot.view.read().as_ref().is_none_or(|v| v.version() != on.version());
        if moved {
            return Ok(None);
        }
        let mut chain = on.as_ref().clone();
        // Also when this call is dropped half-way: the next `ready` asks the store.
        work.fresh = false;
        let outcome = self.log.commit(&mut chain, changes).await;
        let outcome = outcome.map_err(|e| manifest_error(id, e))?;
        work.fresh = true;
        let chain = Arc::new(chain);
        *slot.view.write() = Some(chain.clone());
        Ok(match outcome {
            CommitOutcome::Committed => {
                self.news.lock().insert(id.clone());
                Some(chain)
            }
            CommitOutcome::Conflict => {
                work.shared = true;
                None
            }
        })
    }
}
