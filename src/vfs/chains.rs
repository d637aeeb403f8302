//! The archive's manifests as the filesystem looks at them: loaded when somebody looks, refreshed
//! when what is known is older than a moment, and served as last known while the store is away.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::error::VfsError;
use crate::manifest::{Chain, ChainListing, Loaded, ManifestLog, Summary};
use crate::types::ChainId;

type Result<T> = std::result::Result<T, VfsError>;

/// How old a chain may be before the store is asked again; and a listing, for each request that it takes.
const FRESH_FOR: Duration = Duration::from_secs(1);
/// Chains that one request lists.
const LISTED_PER_REQUEST: usize = 1000;
/// Rollups are rewritten every ten minutes.
const ROLLUPS_FRESH_FOR: Duration = Duration::from_secs(300);
/// Nobody waits longer for what is only good to have, or asks sooner again.
const ROLLUPS_PATIENCE: Duration = Duration::from_secs(5);
const ROLLUPS_RETRY_AFTER: Duration = Duration::from_secs(30);
/// Chains kept in memory at most; the ones not looked at for longest go first.
const CHAINS_MAX: usize = 4096;

/// A partition's archive as a reader may see it.
#[derive(Clone, Debug)]
pub struct Readable {
    /// All that can be believed.
    pub chain: Arc<Chain>,
    /// Why that is not all of it; what lies behind is not shown, and a listing ends with an error.
    pub damage: Option<Arc<str>>,
}

struct Known {
    readable: Readable,
    checked: Instant,
}

/// One chain under the name that the archive tree shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedChain {
    /// `<topic>-<partition>`, or with `~<topic id>` for an older incarnation.
    pub name: String,
    /// The chain.
    pub id: ChainId,
    /// When it was begun, milliseconds since the epoch.
    pub created_ms: u64,
}

/// Chains of a store, and of the local copy where there is one.
pub struct ArchiveIndex {
    remote: ManifestLog,
    local: Option<ManifestLog>,
    listing: Mutex<Option<(Listed, Instant)>>,
    /// Held while the store is asked: everybody else waits for that answer.
    listing_now: tokio::sync::Mutex<()>,
    /// What was told last, and until when that will do.
    rollups: tokio::sync::Mutex<Option<(Arc<Rollups>, Instant)>>,
    chains: Mutex<HashMap<ChainId, Known>>,
}

type Rollups = HashMap<ChainId, Summary>;
type Listed = Arc<Vec<NamedChain>>;

impl ArchiveIndex {
    /// `local` reads the copy in the data directory, for when the store is away.
    #[must_use]
    pub fn new(remote: ManifestLog, local: Option<ManifestLog>) -> Self {
        Self {
            remote,
            local,
            listing: Mutex::default(),
            listing_now: tokio::sync::Mutex::default(),
            rollups: tokio::sync::Mutex::default(),
            chains: Mutex::default(),
        }
    }

    /// All chains by name, ascending. With the store away: as last seen, or as the local copy has them.
    pub async fn list(&self) -> Result<Listed> {
        if let Some(fresh) = self.fresh_listing() {
            return Ok(fresh);
        }
        let _only = self.listing_now.lock().await;
        if let Some(fresh) = self.fresh_listing() {
            return Ok(fresh);
        }
        let known = self.listing.lock().clone();
        let listing = match self.remote.list_chains().await {
            Ok(found) => Arc::new(named(found)),
            Err(e) => match (known, &self.local) {
                (Some((listing, _)), _) => listing,
                (None, Some(local)) => Arc::new(named(local_listing(local)?)),
                (None, None) => return Err(VfsError::Archive(e.to_string())),
            },
        };
        *self.listing.lock() = Some((listing.clone(), Instant::now()));
        Ok(listing)
    }

    /// The chain under its name; `None` when it is not listed any more.
    pub async fn named(&self, id: &ChainId) -> Result<Option<NamedChain>> {
        let listing = self.list().await?;
        let find = |name: &str| {
            let at = listing.binary_search_by(|n| n.name.as_str().cmp(name)).ok()?;
            listing.get(at).filter(|n| n.id == *id).cloned()
        };
        Ok(find(&id.tp.to_string()).or_else(|| find(&older_name(id))))
    }

    fn fresh_listing(&self) -> Option<Listed> {
        let known = self.listing.lock();
        let (listing, checked) = known.as_ref()?;
        let requests = 1 + (listing.len() / LISTED_PER_REQUEST) as u32;
        (checked.elapsed() < FRESH_FOR * requests).then(|| listing.clone())
    }

    /// When something was last archived in a chain, nanoseconds since the epoch, as far as that is known without
    /// opening it: by the last look at it, and by its rollup, which may be of a former moment.
    pub async fn changed_ns(&self, id: &ChainId) -> Option<u64> {
        let last = |k: &Known| k.readable.chain.segments().values().next_back().map(|s| s.mtime_ns);
        let known = self.chains.lock().get(id).and_then(last);
        let told = self.rollups().await.get(id).map(|r| r.last_mtime_ns).filter(|ns| *ns > 0);
        known.max(told)
    }

    /// What is told of all chains at once. Nothing while the store does not answer.
    async fn rollups(&self) -> Arc<Rollups> {
        let mut known = self.rollups.lock().await;
        if let Some((rollups, until)) = known.as_ref()
            && Instant::now() < *until
        {
            return rollups.clone();
        }
        let asked = tokio::time::timeout(ROLLUPS_PATIENCE, self.remote.rollups()).await;
        let (rollups, fresh_for) = match asked {
            Ok(Ok(found)) => (Arc::new(found), ROLLUPS_FRESH_FOR),
            failed => {
                if let Ok(Err(error)) = failed {
                    tracing::debug!(%error, "no rollups");
                }
                let before = known.take().map_or_else(Arc::default, |(before, _)| before);
                (before, ROLLUPS_RETRY_AFTER)
            }
        };
        *known = Some((rollups.clone(), Instant::now() + fresh_for));
        rollups
    }

    /// Where a chain probably is. Never worth a request: opening one chain costs fewer than all rollups.
    fn hint(&self, id: &ChainId) -> Option<Summary> {
        let known = self.rollups.try_lock().ok()?;
        known.as_ref()?.0.get(id).copied()
    }

    /// One chain's segments, as far as they can be believed.
    pub async fn chain(&self, id: &ChainId) -> Result<Readable> {
        let known = self.chains.lock().get(id).map(|k| (k.readable.clone(), k.checked));
        if let Some((readable, checked)) = &known
            && checked.elapsed() < FRESH_FOR
        {
            return Ok(readable.clone());
        }
        let before = known.as_ref().and_then(|(r, _)| r.damage.clone());
        let readable = match known {
            Some((Readable { chain, damage: None }, _)) => self.refreshed(chain).await,
            // The damage may have been mended: looked at afresh.
            Some((known, _)) => self.load(id).await.or(Ok(known)),
            None => self.load(id).await,
        }?;
        if let Some(damage) = readable.damage.as_ref().filter(|d| before.as_ref() != Some(d)) {
            tracing::error!(chain = %id, %damage, "an archived partition can be read in part only");
        }
        let mut chains = self.chains.lock();
        if chains.len() >= CHAINS_MAX
            && let Some(oldest) =
                chains.iter().min_by_key(|(_, k)| k.checked).map(|(id, _)| id.clone())
        {
            chains.remove(&oldest);
        }
        let checked = Instant::now();
        chains.insert(id.clone(), Known { readable: readable.clone(), checked });
        Ok(readable)
    }

    async fn refreshed(&self, chain: Arc<Chain>) -> Result<Readable> {
        let mut newer = chain.as_ref().clone();
        match self.remote.refresh(&mut newer).await {
            Ok(true) => Ok(Readable { chain: Arc::new(newer), damage: None }),
            Ok(false) => Ok(Readable { chain, damage: None }),
            Err(e) if e.is_damage() => {
                Ok(Readable { chain: Arc::new(newer), damage: Some(e.to_string().into()) })
            }
            Err(_) => Ok(Readable { chain, damage: None }),
        }
    }

    async fn load(&self, id: &ChainId) -> Result<Readable> {
        match self.remote.load_hinted(id, self.hint(id).as_ref()).await {
            Ok(Loaded { chain, damage }) => {
                let damage = damage.map(|d| d.to_string().into());
                Ok(Readable { chain: Arc::new(chain), damage })
            }
            Err(e) => match &self.local {
                Some(local) if !e.is_damage() => {
                    let mirrored = local.load_mirror(id);
                    let mirrored = mirrored.map_err(|e| VfsError::Archive(e.to_string()))?;
                    let chain = Arc::new(mirrored.ok_or(VfsError::NotFound)?);
                    Ok(Readable { chain, damage: None })
                }
                _ => Err(VfsError::Archive(e.to_string())),
            },
        }
    }
}

fn local_listing(local: &ManifestLog) -> Result<Vec<ChainListing>> {
    let ids = local.mirror_chains().map_err(|e| VfsError::Archive(e.to_string()))?;
    Ok(ids.into_iter().map(|id| ChainListing { id, created_ms: 0 }).collect())
}

fn older_name(id: &ChainId) -> String {
    format!("{}~{}", id.tp, id.topic_id)
}

/// The newest incarnation has the plain name, older ones carry their topic id.
fn named(mut found: Vec<ChainListing>) -> Vec<NamedChain> {
    found.sort_by(|a, b| {
        (&a.id.tp, a.created_ms, &a.id.topic_id).cmp(&(&b.id.tp, b.created_ms, &b.id.topic_id))
    });
    found.dedup_by(|a, b| a.id == b.id);
    let mut out = Vec::with_capacity(found.len());
    for (i, listing) in found.iter().enumerate() {
        let newest = found.get(i + 1).is_none_or(|next| next.id.tp != listing.id.tp);
        let tp = &listing.id.tp;
        let name = if newest { tp.to_string() } else { older_name(&listing.id) };
        out.push(NamedChain { name, id: listing.id.clone(), created_ms: listing.created_ms });
    }
    out.sort_by(|a, b| a.name.cmp(&b.name));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recreated_topic_shows_its_newest_incarnation_under_the_plain_name() {
        let listing = |id: &str, created_ms| ChainListing {
            id: ChainId { tp: "a-0".parse().unwrap(), topic_id: id.parse().unwrap() },
            created_ms,
        };
        let (old, new) = ("A".repeat(22), "B".repeat(22));
        let names = named(vec![listing(&new, 9), listing(&old, 3)]);
        let text: Vec<_> = names.iter().map(|n| n.name.clone()).collect();
        assert_eq!(text, ["a-0".to_owned(), format!("a-0~{old}")]);
        assert_eq!(names[0].created_ms, 9);
    }
}
