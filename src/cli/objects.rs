//! Building the store and the cache, and checking, before anything is served, that the store is the right one.

use std::path::Path;
use std::sync::Arc;

use globset::{Glob, GlobSet, GlobSetBuilder};
use tokio::runtime::Handle;

use super::CliError;
use super::args::{MountArgs, StoreArgs, TopicArgs};
use super::control;
use super::keeping::Keeping;
use crate::cache::{BlockCache, CacheConfig, CacheLimits};
use crate::read::{ReadConfig, Reader};
use crate::store::{self, IdentityError, Store, StoreIdentity, StoreOptions, StoreUrl};

/// Parses the URL and builds the client. Contacts nothing.
pub fn store(args: &StoreArgs) -> Result<Store, CliError> {
    let url: StoreUrl = args.store.parse()?;
    let options = StoreOptions { single_writer: args.single_writer, ..StoreOptions::default() };
    Ok(Store::open(&url, options)?)
}

/// The reader of a mount. A reader's window is at most an eighth of the cache, so that what is fetched ahead
/// of one does not push out what another is about to read.
pub fn reader(args: &MountArgs, store: Store, cache: Arc<BlockCache>, runtime: &Handle) -> Reader {
    let usual = ReadConfig::default();
    let config = ReadConfig {
        deadline_ms: args.read_deadline.as_millis() as u64,
        inflight_bytes_max: args.fetch_inflight_bytes,
        window_bytes_max: usual.window_bytes_max.min(args.cache_bytes / 8),
        fetch_bytes_per_second_max: args.fetch_rate,
        ..usual
    };
    Reader::new(Some(store), cache, config, runtime.clone())
}

/// Descriptors that the cache keeps open: two for each of so many objects.
const OPEN_OBJECTS_MAX: usize = 512;

/// The mount's block cache.
pub fn cache(args: &MountArgs, dir: &Path) -> Result<Arc<BlockCache>, CliError> {
    let config = CacheConfig { budget_bytes: args.cache_bytes, open_objects_max: OPEN_OBJECTS_MAX };
    let limits = CacheLimits {
        free_bytes: args.cache_free_bytes,
        files_max: args.cache_files,
        ..CacheLimits::default()
    };
    Ok(Arc::new(BlockCache::open_with(dir, config, limits)?))
}

/// Lets commands reach this mount; the socket's name. Without it everything else works.
pub fn take_commands(keeping: Keeping) -> Option<String> {
    if let Some(why) = keeping.cache.pins_lost() {
        tracing::error!(
            why,
            "the list of pinned objects cannot be believed: nothing is pinned, pin again"
        );
    }
    match control::listen(keeping) {
        Ok(name) => Some(name),
        Err(error) => {
            tracing::error!(%error, "this mount cannot take commands ('everlog warm' and others)");
            None
        }
    }
}

/// Where the store is, for messages.
fn place(store: &Store) -> String {
    let url = store.url().to_string();
    let endpoint =
        ["AWS_ENDPOINT_URL", "AWS_ENDPOINT"].into_iter().find_map(|v| std::env::var(v).ok());
    match endpoint {
        Some(endpoint) if url.starts_with("s3://") => format!("{url} at {endpoint}"),
        _ => url,
    }
}

/// What the store answered about itself.
pub enum Answer {
    /// It works; its identity, if it has been used before.
    Works(Option<StoreIdentity>),
    /// It did not answer.
    Away(String),
}

/// Asks the store for its identity.
pub async fn ask(store: &Store) -> Result<Answer, CliError> {
    match store::read_identity(store).await {
        Ok(identity) => Ok(Answer::Works(identity)),
        Err(IdentityError::Store(e)) => Ok(Answer::Away(format!("store {}: {e}", place(store)))),
        Err(e) => Err(e.into()),
    }
}

/// The whole check of a store that is used for the first time.
pub async fn probe(store: &Store) -> Result<Option<StoreIdentity>, CliError> {
    let named = |e| CliError::failed(format!("store {}: {e}", place(store)));
    store::probe(store).await.map_err(named)?;
    match ask(store).await? {
        Answer::Works(identity) => Ok(identity),
        Answer::Away(why) => Err(CliError::failed(why)),
    }
}

/// Refuses a store of another Kafka cluster.
pub fn check_cluster(
    identity: Option<&StoreIdentity>,
    cluster_id: Option<&str>,
) -> Result<(), CliError> {
    match (identity, cluster_id) {
        (Some(identity), Some(ours)) if identity.cluster_id != ours => {
            Err(IdentityError::Foreign {
                expected: ours.to_owned(),
                found: identity.cluster_id.clone(),
            }
            .into())
        }
        _ => Ok(()),
    }
}

/// The cluster id in a log dir's `meta.properties`, if the broker has formatted it.
pub fn cluster_id(log_dir: &std::path::Path) -> Option<String> {
    use crate::kafka::{names, properties};
    let bytes = std::fs::read(log_dir.join(names::META_PROPERTIES)).ok()?;
    properties::parse_meta_properties(&bytes).ok()?.cluster_id
}

/// Patterns of topic names.
pub fn patterns(args: &TopicArgs) -> Result<(GlobSet, GlobSet), CliError> {
    let set = |patterns: &[String], option: &str| {
        let mut builder = GlobSetBuilder::new();
        for pattern in patterns {
            let glob = Glob::new(pattern)
                .map_err(|e| CliError::usage(format!("{option} {pattern:?} is no pattern: {e}")))?;
            builder.add(glob);
        }
        builder.build().map_err(|e| CliError::usage(format!("{option}: {e}")))
    };
    Ok((set(&args.include, "--include")?, set(&args.exclude, "--exclude")?))
}
