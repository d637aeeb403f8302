//! The archive's manifests as the filesystem looks at them: loaded when somebody looks, refreshed
//! when what is known is older than a moment, and served as last known while the store is away.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::error::VfsError;
use crate::manifest::{Chain, ChainListing, Loaded, ManifestLog};
use crate::types::ChainId;

type Result<T> = std::result::Result<T, VfsError>;

/// How old a listing or a chain may be before the store is asked again.
const FRESH_FOR: Duration = Duration::from_secs(1);
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
    listing: Mutex<Option<(Arc<Vec<NamedChain>>, Instant)>>,
    chains: Mutex<HashMap<ChainId, Known>>,
}

impl ArchiveIndex {
    /// `local` reads the copy in the data directory, for when the store is away.
    #[must_use]
    pub fn new(remote: ManifestLog, local: Option<ManifestLog>) -> Self {
        Self { remote, local, listing: Mutex::default(), chains: Mutex::default() }
    }

    /// All chains by name, ascending. With the store away: as last seen, or as the local copy has them.
    pub async fn list(&self) -> Result<Arc<Vec<NamedChain>>> {
        let known = self.listing.lock().clone();
        if let Some((listing, checked)) = &known
            && checked.elapsed() < FRESH_FOR
        {
            return Ok(listing.clone());
        }
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
        match self.remote.load_readable(id).await {
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
        let name = if newest { tp.to_string() } else { format!("{tp}~{}", listing.id.topic_id) };
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
