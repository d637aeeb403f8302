//! Reading a chain: the newest usable checkpoint, then the deltas behind it, from the store or from
//! the mirror.
//!
//! What cannot be believed is never skipped: reading stops before it. Damage in what is derived
//! (head, checkpoint, page) is stepped around by way of a listing; damage in a delta that no
//! checkpoint contains is reported.

use bytes::Bytes;
use futures::stream::{StreamExt as _, TryStreamExt as _};

use crate::store::names::{self, ManifestName};
use crate::store::{Store, StoreErrorKind};
use crate::types::{ChainId, Sha256};

use super::chain::{Chain, CheckpointRef};
use super::documents::{Delta, Document, Head, Page, PageRef, Root};
use super::error::ManifestError;
use super::mirror::Mirror;

/// A chain as far as it can be believed.
#[derive(Debug)]
pub struct Loaded {
    /// Everything before the damage.
    pub chain: Chain,
    /// What reading stopped at. A writer must not commit on such a chain.
    pub damage: Option<ManifestError>,
}

/// Documents with their bytes, to be mirrored.
pub(super) type Copies = Vec<(ManifestName, Bytes)>;

/// Objects fetched at the same time.
const FETCHES_MAX: usize = 8;
/// Checkpoints tried before all deltas are read.
const CHECKPOINTS_TRIED_MAX: usize = 4;
/// Objects of one manifest.
const NAMES_MAX: usize = 4_000_000;

/// Where documents are read from.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    Store(&'a Store),
    Mirror(&'a Mirror),
}

impl Source<'_> {
    /// A document's bytes; `None` when it does not exist.
    async fn fetch<D: Document>(
        self,
        id: &ChainId,
        name: &ManifestName,
    ) -> Result<Option<Bytes>, ManifestError> {
        match self {
            Self::Mirror(mirror) => mirror.read(id, name),
            Self::Store(store) => match store.get(&name.key(id), D::BYTES_MAX).await {
                Ok(bytes) => Ok(Some(bytes)),
                Err(e) if e.kind == StoreErrorKind::NotFound => Ok(None),
                Err(e) if matches!(e.kind, StoreErrorKind::TooLarge) => {
                    Err(ManifestError::damaged(name.key(id), e.message))
                }
                Err(e) => Err(e.into()),
            },
        }
    }

    async fn names(self, id: &ChainId) -> Result<Vec<ManifestName>, ManifestError> {
        match self {
            Self::Mirror(mirror) => mirror.names(id),
            Self::Store(store) => {
                let found = store.list(&names::manifest_prefix(id), NAMES_MAX).await?;
                Ok(found.iter().filter_map(|o| ManifestName::from_key(id, &o.key)).collect())
            }
        }
    }
}

/// One attempt: the chain as far as it goes, and the bytes it is made of.
pub(super) struct Attempt {
    pub(super) loaded: Loaded,
    pub(super) copies: Copies,
}

/// The whole chain from a store, beginning where a rollup says that it is; `None`: there it is not. `Err` only when
/// the store cannot be asked.
pub(super) async fn load_hinted(
    store: &Store,
    id: &ChainId,
    (checkpoint, newest): (Option<u64>, u64),
) -> Result<Option<Attempt>, ManifestError> {
    let attempt = load_from(Source::Store(store), id, checkpoint, newest).await?;
    let Some(damage) = &attempt.loaded.damage else { return Ok(Some(attempt)) };
    tracing::warn!(%damage, chain = %id, "the rollup is not believed");
    Ok(None)
}

/// The whole chain from a store or a mirror. `Err` only when the source cannot be asked.
pub(super) async fn load(source: Source<'_>, id: &ChainId) -> Result<Attempt, ManifestError> {
    if let Source::Store(store) = source
        && let Some(head) = read_head(store, id).await?
    {
        let attempt = load_from(source, id, head.checkpoint, head.version).await?;
        match &attempt.loaded.damage {
            None => return Ok(attempt),
            Some(damage) => tracing::warn!(%damage, chain = %id, "looking for another way"),
        }
    }
    load_by_listing(source, id).await
}

async fn load_by_listing(source: Source<'_>, id: &ChainId) -> Result<Attempt, ManifestError> {
    let names = source.names(id).await?;
    let mut checkpoints: Vec<u64> = Vec::new();
    let mut newest = 0;
    for name in &names {
        match name {
            ManifestName::Delta(version) => newest = newest.max(*version),
            ManifestName::Checkpoint(version) => checkpoints.push(*version),
            ManifestName::Page(..) | ManifestName::Head => {}
        }
    }
    checkpoints.sort_unstable_by(|a, b| b.cmp(a));
    newest = newest.max(checkpoints.first().copied().unwrap_or(0));
    let tries = checkpoints.into_iter().take(CHECKPOINTS_TRIED_MAX).map(Some).chain([None]);
    let mut best: Option<Attempt> = None;
    for checkpoint in tries {
        let attempt = load_from(source, id, checkpoint, newest).await?;
        if attempt.loaded.damage.is_none() {
            return Ok(attempt);
        }
        let reached = attempt.loaded.chain.version();
        if best.as_ref().is_none_or(|b| reached > b.loaded.chain.version()) {
            best = Some(attempt);
        }
    }
    let nothing = || Attempt {
        loaded: Loaded { chain: Chain::empty(id.clone()), damage: None },
        copies: Vec::new(),
    };
    Ok(best.unwrap_or_else(nothing))
}

/// The hint, when there is a usable one.
async fn read_head(store: &Store, id: &ChainId) -> Result<Option<Head>, ManifestError> {
    let source = Source::Store(store);
    let name = ManifestName::Head;
    let head = match source.fetch::<Head>(id, &name).await {
        Ok(Some(bytes)) => Head::decode(name.key(id), &bytes),
        Ok(None) => return Ok(None),
        Err(error) => Err(error),
    };
    match head {
        Ok(head) => Ok(Some(head)),
        Err(error) if error.is_damage() => {
            tracing::warn!(%error, "the hint is ignored");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// From one checkpoint (or from nothing) onwards. `newest` is known to exist.
async fn load_from(
    source: Source<'_>,
    id: &ChainId,
    checkpoint: Option<u64>,
    newest: u64,
) -> Result<Attempt, ManifestError> {
    let mut copies = Vec::new();
    let mut chain = Chain::empty(id.clone());
    let mut damage = None;
    if let Some(version) = checkpoint {
        match read_checkpoint(source, id, version).await {
            Ok((found, documents)) => {
                chain = found;
                copies = documents;
            }
            Err(error) if error.is_damage() => damage = Some(error),
            Err(error) => return Err(error),
        }
    }
    if damage.is_none() {
        damage = follow(source, &mut chain, newest, &mut copies).await?;
    }
    Ok(Attempt { loaded: Loaded { chain, damage }, copies })
}

/// Applies the deltas behind the chain's version until the first that does not exist; returns what
/// it stopped at when that is not the end.
pub(super) async fn follow(
    source: Source<'_>,
    chain: &mut Chain,
    newest: u64,
    copies: &mut Copies,
) -> Result<Option<ManifestError>, ManifestError> {
    let id = chain.id().clone();
    let mut known = futures::stream::iter(chain.version() + 1..=newest)
        .map(|version| futures::FutureExt::boxed(fetch_delta(source, &id, version)))
        .buffered(FETCHES_MAX)
        .boxed();
    while chain.version() < newest {
        let fetched = match known.next().await {
            Some(Err(error)) if error.is_damage() => return Ok(Some(error)),
            Some(fetched) => fetched?,
            None => None,
        };
        let Some(bytes) = fetched else {
            let (chain_name, version) = (id.to_string(), chain.version() + 1);
            return Ok(Some(ManifestError::Hole { chain: chain_name, version, newest }));
        };
        if let Err(damage) = apply(chain, bytes, copies) {
            return Ok(Some(damage));
        }
    }
    loop {
        match fetch_delta(source, &id, chain.version() + 1).await {
            Ok(None) => return Ok(None),
            Ok(Some(bytes)) => {
                if let Err(damage) = apply(chain, bytes, copies) {
                    return Ok(Some(damage));
                }
            }
            Err(error) if error.is_damage() => return Ok(Some(error)),
            Err(error) => return Err(error),
        }
    }
}

pub(super) async fn fetch_delta(
    source: Source<'_>,
    id: &ChainId,
    version: u64,
) -> Result<Option<Bytes>, ManifestError> {
    source.fetch::<Delta>(id, &ManifestName::Delta(version)).await
}

/// The next version from its bytes. An error is damage and leaves the chain as it was.
fn apply(chain: &mut Chain, bytes: Bytes, copies: &mut Copies) -> Result<(), ManifestError> {
    let name = ManifestName::Delta(chain.version() + 1);
    let key = name.key(chain.id());
    let delta = Delta::decode(&key, &bytes)?;
    if delta.version != chain.version() + 1 {
        let why = format!("it says that it is version {}", delta.version);
        return Err(ManifestError::damaged(key, why));
    }
    chain.advance(&delta.changes).map_err(|why| ManifestError::damaged(key, why))?;
    copies.push((name, bytes));
    Ok(())
}

/// The chain of a checkpoint, with the documents that make it up, pages first.
async fn read_checkpoint(
    source: Source<'_>,
    id: &ChainId,
    version: u64,
) -> Result<(Chain, Copies), ManifestError> {
    let name = ManifestName::Checkpoint(version);
    let key = name.key(id);
    let bytes = source
        .fetch::<Root>(id, &name)
        .await?
        .ok_or_else(|| ManifestError::damaged(&key, "it is missing"))?;
    let root = Root::decode(&key, &bytes)?;
    if root.version != version {
        let why = format!("it says that it is of version {}", root.version);
        return Err(ManifestError::damaged(&key, why));
    }
    let pages: Vec<_> = futures::stream::iter(&root.pages)
        .map(|page| futures::FutureExt::boxed(read_page(source, id, page)))
        .buffered(FETCHES_MAX)
        .boxed()
        .try_collect()
        .await?;
    let mut copies = Vec::with_capacity(pages.len() + 1);
    let mut items = Vec::new();
    for (name, bytes, page) in pages {
        copies.push((name, bytes));
        items.extend(page.items);
    }
    copies.push((name, bytes));
    let reference = CheckpointRef { version, pages: root.pages };
    let chain = Chain::from_items(id.clone(), reference, items)
        .map_err(|why| ManifestError::damaged(&key, why))?;
    Ok((chain, copies))
}

async fn read_page(
    source: Source<'_>,
    id: &ChainId,
    reference: &PageRef,
) -> Result<(ManifestName, Bytes, Page), ManifestError> {
    let whole = format!("{}/{}", names::manifest_prefix(id), reference.name);
    let name = match reference.name.parse() {
        Ok(name @ ManifestName::Page(..)) => name,
        _ => return Err(ManifestError::damaged(whole, "it is not the name of a page")),
    };
    let bytes = source
        .fetch::<Page>(id, &name)
        .await?
        .ok_or_else(|| ManifestError::damaged(&whole, "it is missing"))?;
    if Sha256::of(&bytes) != reference.sha256 {
        return Err(ManifestError::damaged(&whole, "its SHA-256 is not the one in the root"));
    }
    let page = Page::decode(&whole, &bytes)?;
    let from = page.items.first().map(super::chain::Item::from_offset);
    let to = page.items.last().map(super::chain::Item::to_offset);
    let fits = page.items.len() == reference.count
        && from == Some(reference.from_offset)
        && to == Some(reference.to_offset);
    if !fits {
        return Err(ManifestError::damaged(&whole, "it does not hold what the root says"));
    }
    Ok((name, bytes, page))
}
