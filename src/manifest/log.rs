//! `ManifestLog`: loads chains, follows them, commits to them.
//!
//! A commit is one request whatever the length of the chain: put-if-absent of the next version.
//! Its outcome is believed only when the store confirms it, and reported only when the version is
//! durable in the mirror. A call that is dropped half-way leaves the chain in memory at its old
//! version; the next commit or refresh then finds what happened.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::clock::{Clock, random_hex_32, random_u64};
use crate::failpoint;
use crate::store::names::{self, ManifestName};
use crate::store::{Op, PutOutcome, Store, StoreError, StoreErrorKind, fail_point};
use crate::types::ChainId;
use crate::types::envelope::EnvelopeError;

use super::chain::{Chain, ChainError, Change, CheckpointRef};
use super::checkpoint;
use super::documents::{CHANGES_MAX, CHECKPOINT_EVERY, Delta, Document, HEAD_EVERY, Head, Marker};
use super::error::ManifestError;
use super::load::{self, Copies, Loaded, Source};
use super::mirror::Mirror;
use super::rollup::{self, Summary};

/// How a commit ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitOutcome {
    /// The chain contains the changes, in the store and durably in the mirror.
    Committed,
    /// Somebody else committed first; the chain was refreshed. Plan again on it.
    Conflict,
}

/// A chain as its marker shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainListing {
    /// The chain.
    pub id: ChainId,
    /// When it was registered first, milliseconds since the epoch.
    pub created_ms: u64,
}

/// How often the mirror is read when a writer changes it meanwhile.
const MIRROR_READS_MAX: usize = 5;
/// Chains in one store.
const CHAINS_MAX: usize = 10_000_000;

/// The manifests of one store, with their copies on local disk. Clones share everything.
#[derive(Clone, Debug)]
pub struct ManifestLog {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Option<Store>,
    mirror: Option<Mirror>,
    writer: String,
    clock: Clock,
    /// Chains that this process has registered.
    registered: Mutex<HashSet<ChainId>>,
}

impl ManifestLog {
    /// `mirror` is the data directory's `manifest/`; an archive mount has none. Without a store only
    /// the mirror can be read. The writer's id is drawn here, one for each log.
    #[must_use]
    pub fn new(store: Option<Store>, mirror: Option<PathBuf>) -> Self {
        Self::with_clock(store, mirror, Clock::system())
    }

    /// The same, with the time of commits from `clock`.
    #[must_use]
    pub fn with_clock(store: Option<Store>, mirror: Option<PathBuf>, clock: Clock) -> Self {
        let mirror = mirror.map(Mirror::new);
        let (writer, registered) = (random_hex_32(), Mutex::default());
        Self { inner: Arc::new(Inner { store, mirror, writer, clock, registered }) }
    }

    /// What this log signs its versions with.
    #[must_use]
    pub fn writer(&self) -> &str {
        &self.inner.writer
    }

    fn store(&self, id: &ChainId) -> Result<&Store, ManifestError> {
        self.inner.store.as_ref().ok_or_else(|| ManifestError::NoStore(id.to_string()))
    }

    /// The chain from the store; empty when it was never committed to. Damage is an error.
    pub async fn load(&self, id: &ChainId) -> Result<Chain, ManifestError> {
        let Loaded { chain, damage } = self.load_readable(id).await?;
        damage.map_or(Ok(chain), Err)
    }

    /// The chain from the store as far as it can be believed, for readers.
    pub async fn load_readable(&self, id: &ChainId) -> Result<Loaded, ManifestError> {
        let attempt = load::load(Source::Store(self.store(id)?), id).await?;
        self.mirror_learned(&attempt.loaded.chain, attempt.copies).await?;
        Ok(attempt.loaded)
    }

    /// The same, beginning where a rollup says that the chain is. One that is wrong costs requests and nothing else.
    pub async fn load_hinted(
        &self,
        id: &ChainId,
        hint: Option<&Summary>,
    ) -> Result<Loaded, ManifestError> {
        // Whoever did not know of a checkpoint would have us read every delta, of which the old ones may be gone.
        let near = |h: &&Summary| {
            let behind = h.version.checked_sub(h.checkpoint.unwrap_or(0));
            h.version > 0 && behind.is_some_and(|deltas| deltas <= CHECKPOINT_EVERY)
        };
        let Some(hint) = hint.filter(near) else { return self.load_readable(id).await };
        let from = (hint.checkpoint, hint.version);
        match load::load_hinted(self.store(id)?, id, from).await? {
            Some(attempt) => {
                self.mirror_learned(&attempt.loaded.chain, attempt.copies).await?;
                Ok(attempt.loaded)
            }
            None => self.load_readable(id).await,
        }
    }

    /// What chains come to, as far as rollups tell: not of all of them, and perhaps of a former moment. A rollup that
    /// cannot be believed is passed over; `Err` only when the store cannot be asked for any.
    pub async fn rollups(&self) -> Result<HashMap<ChainId, Summary>, ManifestError> {
        rollup::read_all(self.any_store()?).await
    }

    /// Writes what these chains come to into the rollups, where that is news.
    pub async fn roll_up(&self, chains: &[Arc<Chain>]) -> Result<(), ManifestError> {
        rollup::write(self.any_store()?, chains).await
    }

    fn any_store(&self) -> Result<&Store, ManifestError> {
        let none = || ManifestError::NoStore("any chain".to_owned());
        self.inner.store.as_ref().ok_or_else(none)
    }

    /// The chain from the copies on local disk; `None` when there are none. Asks no store.
    pub fn load_mirror(&self, id: &ChainId) -> Result<Option<Chain>, ManifestError> {
        let Some(mirror) = &self.inner.mirror else { return Ok(None) };
        let mut before = mirror.names(id)?;
        for _ in 0..MIRROR_READS_MAX {
            if before.is_empty() {
                return Ok(None);
            }
            // Nothing in it waits: the mirror is read in place.
            let attempt = futures::executor::block_on(load::load(Source::Mirror(mirror), id))?;
            match attempt.loaded.damage {
                None => return Ok(Some(attempt.loaded.chain)),
                Some(ManifestError::Hole { version, newest, .. }) => {
                    // Versions behind a hole were never synced, so nobody was told of them.
                    tracing::warn!(chain = %id, version, newest, "the local manifest has a hole");
                    return Ok(Some(attempt.loaded.chain));
                }
                Some(damage) => {
                    // A checkpoint may have replaced what was being read.
                    let now = mirror.names(id)?;
                    if now == before {
                        return Err(damage);
                    }
                    before = now;
                }
            }
        }
        Err(ManifestError::damaged(mirror.dir(id).display(), "it changes while it is read"))
    }

    /// Brings the chain up to date; one request when nothing is new. Returns whether something was.
    pub async fn refresh(&self, chain: &mut Chain) -> Result<bool, ManifestError> {
        let store = self.store(chain.id())?;
        let source = Source::Store(store);
        if load::fetch_delta(source, chain.id(), chain.version() + 1).await?.is_none() {
            return Ok(false);
        }
        let mut next = chain.clone();
        let mut copies = Vec::new();
        let newest = chain.version() + 1;
        let damage = load::follow(source, &mut next, newest, &mut copies).await?;
        self.mirror_learned(&next, copies).await?;
        let advanced = next.version() > chain.version();
        *chain = next;
        damage.map_or(Ok(advanced), Err)
    }

    /// Commits the changes as the chain's next version: one request, and now and then a checkpoint
    /// and the hint. An error leaves the chain as it was; `Refused` wrote nothing, any other may
    /// have: the next commit or refresh finds out.
    pub async fn commit(
        &self,
        chain: &mut Chain,
        changes: Vec<Change>,
    ) -> Result<CommitOutcome, ManifestError> {
        let refused = |why| ManifestError::Refused { chain: chain.id().to_string(), why };
        if changes.is_empty() || changes.len() > CHANGES_MAX {
            let count = changes.len();
            return Err(refused(ChainError::Count { count, max: CHANGES_MAX }));
        }
        chain.check(&changes).map_err(refused)?;
        let now_ms = self.inner.clock.now_ms();
        if chain.version() == 0 {
            self.register_chain(chain.id(), now_ms).await?;
        }
        let version = chain.version() + 1;
        let writer = self.inner.writer.clone();
        let delta = Delta { version, writer, committed_ms: now_ms, changes };
        let name = ManifestName::Delta(version);
        let bytes = encoded(&name.key(chain.id()), &delta)?;
        if !self.put_version(chain, version, &bytes).await? {
            return match self.refresh(chain).await? {
                true => Ok(CommitOutcome::Conflict),
                false => Err(self.unresolved(chain, version, "it exists and cannot be read")),
            };
        }
        failpoint::disk("commit.mirror").map_err(|cause| mirror_error(&name, cause))?;
        self.mirror_write(chain.id(), vec![(name.clone(), bytes)]).await?;
        failpoint::step("commit.mirrored");
        chain.advance(&delta.changes).map_err(|why| ManifestError::damaged(name, why))?;
        self.after_commit(chain).await;
        Ok(CommitOutcome::Committed)
    }

    /// Whether the version is ours. An error means that it is not known, or that nothing was written.
    async fn put_version(
        &self,
        chain: &Chain,
        version: u64,
        bytes: &Bytes,
    ) -> Result<bool, ManifestError> {
        let store = self.store(chain.id())?;
        let key = ManifestName::Delta(version).key(chain.id());
        let put = match fail_point("commit.put", Op::Put, &key) {
            Ok(()) => store.put_if_absent(&key, bytes.clone()).await,
            Err(error) => Err(error),
        };
        let put =
            put.and_then(|outcome| fail_point("commit.put.done", Op::Put, &key).map(|()| outcome));
        let failure = match put {
            Ok(PutOutcome::Created) => return Ok(true),
            // An earlier try of this very call may have made it.
            Ok(PutOutcome::Exists) => None,
            Err(error) if error.is_transient() => Some(error),
            Err(error) => return Err(error.into()),
        };
        match (load::fetch_delta(Source::Store(store), chain.id(), version).await, failure) {
            (Ok(Some(found)), _) => Ok(found == *bytes),
            // It was not carried out, or not yet: a later try will find out.
            (Ok(None), Some(error)) => Err(error.into()),
            (Ok(None), None) => {
                Err(self.unresolved(chain, version, "the store says both that it exists and not"))
            }
            (Err(ManifestError::Store(cause)), _) => {
                Err(ManifestError::Unresolved { chain: chain.id().to_string(), version, cause })
            }
            (Err(error), _) => Err(error),
        }
    }

    fn unresolved(&self, chain: &Chain, version: u64, why: &str) -> ManifestError {
        let key = ManifestName::Delta(version).key(chain.id());
        let kind = StoreErrorKind::Unavailable;
        let cause = StoreError::new(kind, Op::Put, key.as_str(), why);
        ManifestError::Unresolved { chain: chain.id().to_string(), version, cause }
    }

    /// What only makes reading faster: its failure is no failure of the commit.
    async fn after_commit(&self, chain: &mut Chain) {
        let version = chain.version();
        if version.is_multiple_of(CHECKPOINT_EVERY)
            && let Err(error) = self.write_checkpoint(chain).await
        {
            tracing::warn!(%error, chain = %chain.id(), version, "no checkpoint was written");
        }
        if version.is_multiple_of(HEAD_EVERY)
            && let Err(error) = self.write_head(chain).await
        {
            tracing::debug!(%error, chain = %chain.id(), version, "the hint was not updated");
        }
    }

    async fn write_checkpoint(&self, chain: &mut Chain) -> Result<(), ManifestError> {
        let store = self.store(chain.id())?;
        let name = ManifestName::Checkpoint(chain.version());
        let key = name.key(chain.id());
        let unencodable = |e: EnvelopeError| ManifestError::unreadable(&key, &e);
        let plan = checkpoint::plan(chain, random_u64()).map_err(unencodable)?;
        for (page, bytes) in &plan.new_pages {
            fail_point("checkpoint.page.put", Op::Put, &key)?;
            store.put_overwrite(&page.key(chain.id()), bytes.clone()).await?;
        }
        let bytes = plan.root.encode().map_err(unencodable)?;
        fail_point("checkpoint.root.put", Op::Put, &key)?;
        if store.put_if_absent(&key, bytes.clone()).await? == PutOutcome::Exists {
            // Another log's, or ours by a lost reply. The deltas say the same; the next one counts.
            return Ok(());
        }
        chain.checkpoint =
            Some(CheckpointRef { version: chain.version(), pages: plan.root.pages.clone() });
        chain.dirty.clear();
        self.mirror_checkpoint(chain, plan.new_pages, (name, bytes)).await
    }

    async fn write_head(&self, chain: &Chain) -> Result<(), ManifestError> {
        let checkpoint = chain.checkpoint.as_ref().map(|c| c.version);
        let head = Head { version: chain.version(), checkpoint };
        let key = ManifestName::Head.key(chain.id());
        let bytes = encoded(&key, &head)?;
        fail_point("head.put", Op::Put, &key)?;
        self.store(chain.id())?.put_overwrite(&key, bytes).await?;
        failpoint::step("head.done");
        Ok(())
    }

    /// Makes the chain visible to listings. A commit to an empty chain does this by itself.
    pub async fn register_chain(&self, id: &ChainId, now_ms: u64) -> Result<(), ManifestError> {
        if self.inner.registered.lock().contains(id) {
            return Ok(());
        }
        let marker =
            Marker { tp: id.tp.clone(), topic_id: id.topic_id.clone(), created_ms: now_ms };
        let key = names::chain_marker_key(id, now_ms);
        let bytes = encoded(&key, &marker)?;
        fail_point("commit.marker.put", Op::Put, &key)?;
        self.store(id)?.put_if_absent(&key, bytes).await?;
        self.inner.registered.lock().insert(id.clone());
        Ok(())
    }

    /// All chains of the store, by one listing. A chain that was registered twice shows the earlier
    /// time; names that are not markers are not chains.
    pub async fn list_chains(&self) -> Result<Vec<ChainListing>, ManifestError> {
        let store = self.any_store()?;
        let mut found: BTreeMap<ChainId, u64> = BTreeMap::new();
        for object in store.list(names::CHAINS_PREFIX, CHAINS_MAX).await? {
            match names::parse_chain_marker(&object.key) {
                Some((id, ms)) => {
                    found.entry(id).and_modify(|first| *first = ms.min(*first)).or_insert(ms);
                }
                None => tracing::warn!(key = %object.key, "not the marker of a chain, ignored"),
            }
        }
        Ok(found.into_iter().map(|(id, created_ms)| ChainListing { id, created_ms }).collect())
    }

    /// Removes what a crash left half-written in the copies on local disk. To be called at the start, before
    /// anything else uses them.
    pub fn remove_leftovers(&self) -> Result<(), ManifestError> {
        self.inner.mirror.as_ref().map_or(Ok(()), Mirror::remove_leftovers)
    }

    /// The chains that have copies on local disk.
    pub fn mirror_chains(&self) -> Result<Vec<ChainId>, ManifestError> {
        self.inner.mirror.as_ref().map_or_else(|| Ok(Vec::new()), Mirror::chains)
    }

    /// Copies what a load or refresh found. A checkpoint goes first and lets older copies go.
    async fn mirror_learned(&self, chain: &Chain, copies: Copies) -> Result<(), ManifestError> {
        let (deltas, derived): (Copies, Copies) =
            copies.into_iter().partition(|(name, _)| matches!(name, ManifestName::Delta(_)));
        let mut pages = derived;
        if let Some(root) = pages.pop() {
            self.mirror_checkpoint(chain, pages, root).await?;
        }
        self.mirror_write(chain.id(), deltas).await
    }

    async fn mirror_checkpoint(
        &self,
        chain: &Chain,
        pages: Copies,
        root: (ManifestName, Bytes),
    ) -> Result<(), ManifestError> {
        let (Some(_), Some(checkpoint)) = (&self.inner.mirror, &chain.checkpoint) else {
            return Ok(());
        };
        let named: HashSet<String> = checkpoint.pages.iter().map(|p| p.name.clone()).collect();
        let (id, version) = (chain.id().clone(), checkpoint.version);
        self.on_disk(move |mirror| {
            // Pages are durable before the root that names them. A page of an earlier checkpoint
            // that was never copied (its write failed) leaves this one out as well.
            failpoint::disk("checkpoint.mirror").map_err(|cause| mirror_error("page", cause))?;
            mirror.write(&id, &pages)?;
            let here: HashSet<String> =
                mirror.names(&id)?.iter().map(ToString::to_string).collect();
            if !named.is_subset(&here) {
                return Ok(());
            }
            let root_failed = |cause| mirror_error(&root.0, cause);
            failpoint::disk("checkpoint.mirror.root").map_err(root_failed)?;
            mirror.write(&id, std::slice::from_ref(&root))?;
            failpoint::disk("checkpoint.mirror.prune").map_err(root_failed)?;
            mirror.prune(&id, version, &named)?;
            failpoint::step("checkpoint.done");
            Ok(())
        })
        .await
    }

    async fn mirror_write(&self, id: &ChainId, copies: Copies) -> Result<(), ManifestError> {
        if self.inner.mirror.is_none() || copies.is_empty() {
            return Ok(());
        }
        let id = id.clone();
        self.on_disk(move |mirror| mirror.write(&id, &copies)).await
    }

    async fn on_disk(
        &self,
        work: impl FnOnce(&Mirror) -> Result<(), ManifestError> + Send + 'static,
    ) -> Result<(), ManifestError> {
        let inner = Arc::clone(&self.inner);
        let done = tokio::task::spawn_blocking(move || inner.mirror.as_ref().map_or(Ok(()), work));
        done.await.unwrap_or_else(|stopped| {
            let cause = std::io::Error::other(stopped.to_string());
            Err(mirror_error("manifest", cause))
        })
    }
}

fn mirror_error(name: impl std::fmt::Display, cause: std::io::Error) -> ManifestError {
    ManifestError::Mirror { path: PathBuf::from(name.to_string()), cause }
}

fn encoded<D: Document>(
    key: &crate::types::ObjectKey,
    document: &D,
) -> Result<Bytes, ManifestError> {
    document.encode().map_err(|error| ManifestError::unreadable(key, &error))
}
