//! A broker mount: a log dir on local disk whose closed segments move to the store.

use std::path::{Path, absolute};
use std::sync::Arc;

use tokio::sync::watch;

use super::archive_threads::ArchiveThreads;
use super::args::MountArgs;
use super::keeping::Keeping;
use super::objects::{self, Answer};
use super::status::StatusSource;
use super::{CliError, background, mountpoint, serve};
use crate::cache::BlockCache;
use crate::catalog::Catalog;
use crate::clock::Clock;
use crate::fuse::FuseConfig;
use crate::local::datadir::Identity;
use crate::local::{DataDir, Room};
use crate::manifest::ManifestLog;
use crate::read::{ReadHint, ReadStreams, Reader};
use crate::store::{Store, StoreIdentity};
use crate::tier::{Fetch, Pace, Tier, TierConfig, TierDeps};
use crate::vfs::{ArchiveIndex, ArchiveTree, LocalTree, Vfs, VfsConfig, log_source};

/// Runs until it is unmounted.
pub fn run(args: &MountArgs, data: &Path) -> Result<(), CliError> {
    let mountpoint = mountpoint::check(&args.mountpoint)?;
    mountpoint::check_apart(&mountpoint, data, "data directory")?;
    let patterns = objects::patterns(&args.topics)?;
    let store = objects::store(&args.store)?;
    let (runtime, archiving) = (serve::runtime()?, ArchiveThreads::runtime()?);
    let (archiving, archive_threads) = archiving;
    let clock = Clock::system();
    let data = open_data(data, &store, &runtime, &clock)?;
    if background::is_child() {
        background::detach();
    }
    let log = serve::start_log(args, &data.root().join("everlog.log"))?;
    let nofile = serve::raise_nofile();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), data = %data.root().display(), store = %store.url(), nofile, "starting a broker mount");
    note_mount(&data, &mountpoint);

    let parts = build(args, &data, store, patterns, (&runtime, archive_threads), &clock)?;
    let tier = parts.tier.clone();
    let (stop, stopped) = watch::channel(false);
    let engine = archiving.spawn(tier.run(stopped));
    let config = FuseConfig {
        source: format!("everlog:{}", data.root().display()),
        threads: usize::from(args.threads),
        passthrough: !args.no_passthrough,
        read_only: false,
    };
    let served = serve::serve(parts.vfs, &runtime, &mountpoint, &config, &log);
    let _ = stop.send(true);
    let _ = archiving.block_on(engine);
    archiving.shutdown_timeout(std::time::Duration::from_secs(5));
    runtime.shutdown_timeout(std::time::Duration::from_secs(5));
    drop(data);
    served
}

/// `everlog status --data` finds the mount by this.
fn note_mount(data: &DataDir, mountpoint: &Path) {
    let text = format!("{}\n", mountpoint.display());
    if let Err(e) = std::fs::write(data.root().join("mountpoint"), text) {
        tracing::warn!(error = %e, "cannot note the mount point for 'everlog status --data'");
    }
}

/// Opens the data directory and makes sure that it and the store and the log dir belong together.
fn open_data(
    path: &Path,
    store: &Store,
    runtime: &tokio::runtime::Runtime,
    clock: &Clock,
) -> Result<DataDir, CliError> {
    let first_time = !path.join("everlog.json").exists();
    let found = if first_time && DataDir::is_unused(path)? {
        // Before anything is made on disk: a wrong store leaves no trace.
        Some(runtime.block_on(objects::probe(store))?)
    } else {
        None
    };
    let data = DataDir::open(path)?;
    let url = store.url().to_string();
    let cluster_id = objects::cluster_id(&data.hot());
    let known = data.identity()?;
    let found = match (found, &known) {
        (Some(found), _) => found,
        (None, None) => runtime.block_on(objects::probe(store))?,
        (None, Some(known)) => match runtime.block_on(objects::ask(store))? {
            Answer::Works(found) => found,
            Answer::Away(why) if known.store_url == url => {
                eprintln!(
                    "everlog: warning: {why}; mounting without the store, cold segments cannot be read until it is back"
                );
                None
            }
            Answer::Away(why) => {
                return Err(CliError::failed(format!(
                    "{why}; the data directory was used with {}, and whether this is the same store cannot be checked now",
                    known.store_url
                )));
            }
        },
    };
    objects::check_cluster(found.as_ref(), cluster_id.as_deref())?;
    check_same_store(known.as_ref(), found.as_ref(), &url)?;
    let identity = Identity {
        store_url: url,
        store_id: found
            .map(|f| f.store_id)
            .or_else(|| known.as_ref().and_then(|k| k.store_id.clone())),
        cluster_id: cluster_id.or_else(|| known.as_ref().and_then(|k| k.cluster_id.clone())),
        created_ms: known.as_ref().map_or(clock.now_ms(), |k| k.created_ms),
    };
    if known.as_ref() != Some(&identity) {
        match data.set_identity(&identity) {
            // It is the right one, and only a mount can make room on a full disk.
            Err(e) if known.is_some() && e.is_disk_full() => {
                eprintln!("everlog: warning: {e}; mounting all the same");
            }
            written => written?,
        }
    }
    Ok(data)
}

fn check_same_store(
    known: Option<&Identity>,
    found: Option<&StoreIdentity>,
    url: &str,
) -> Result<(), CliError> {
    let Some(known) = known else { return Ok(()) };
    let other = match (&known.store_id, found) {
        (Some(ours), Some(found)) => *ours != found.store_id,
        // Nothing was archived yet, or the store did not answer: the URL decides.
        (None, _) => known.store_url != url,
        // A store that we filled and that now has no identity has been emptied or is another one.
        (Some(_), None) => known.store_url != url,
    };
    if other {
        return Err(CliError::failed(format!(
            "the data directory belongs to store {}, {url} is another one: mount with the first, or use a new data directory",
            known.store_url
        )));
    }
    Ok(())
}

struct Parts {
    vfs: Arc<Vfs>,
    tier: Arc<Tier>,
}

fn build(
    args: &MountArgs,
    data: &DataDir,
    store: Store,
    (include, exclude): (globset::GlobSet, globset::GlobSet),
    (runtime, pace): (&tokio::runtime::Runtime, Arc<dyn Pace>),
    clock: &Clock,
) -> Result<Parts, CliError> {
    let catalog = Catalog::open(&data.hot(), &data.overlay())
        .map_err(|e| CliError::failed(format!("log dir {}: {e}", data.hot().display())))?;
    let catalog = Arc::new(catalog);
    let cache = objects::cache(args, &data.cache())?;
    let reader = objects::reader(args, store.clone(), cache.clone(), runtime.handle());
    let archive_store = store.with_own_connections()?;
    let manifest = ManifestLog::new(Some(archive_store.clone()), Some(data.manifest()));
    let config = TierConfig {
        hot_bytes: args.hot_bytes,
        hot_age_ms: args.hot_age.map(|a| a.as_millis() as u64),
        uploads_max: usize::from(args.store.uploads),
        upload_bytes_per_s: args.store.upload_rate,
        include,
        exclude,
        on_discard: args.on_discard.clone(),
        metadata_log: args
            .metadata_log
            .as_deref()
            .map(absolute)
            .transpose()
            .map_err(CliError::failed)?,
        evict_compacted: args.evict_compacted,
        forget_archived_pages: true,
        ..TierConfig::default()
    };
    let cached = cache.clone();
    let room = Arc::new(Room::new(data.root(), shrink(cache.clone())));
    let deps = TierDeps {
        catalog: catalog.clone(),
        store: archive_store,
        manifest,
        spool: Some(data.spool()),
        versions: Some(data.checkpoints()),
        room: Some(room),
        clock: clock.clone(),
        store_id: data.identity()?.and_then(|i| i.store_id),
        on_identity: Some(keep_identity(data)),
        fetch: Some(fetch(reader.clone())),
        cached_bytes: Some(Arc::new(move |key| cached.cached_bytes(key))),
        pace: Some(pace),
    };
    let tier = Tier::new(config, deps);
    let report = tier.recover();
    tracing::info!(?report, "the data directory was read");

    let archive = ArchiveTree::new(archive_index(data, &store), reader.clone());
    let control = objects::take_commands(Keeping {
        index: archive_index(data, &store),
        reader: reader.clone(),
        cache: cache.clone(),
        runtime: runtime.handle().clone(),
    });
    let status = StatusSource {
        mode: "broker",
        store,
        cache,
        reader: reader.clone(),
        tier: Some(tier.clone()),
        control,
        clock: clock.clone(),
    };
    let tree = LocalTree::new(catalog, tier.clone());
    let vfs =
        Vfs::new(Some(tree), archive, reader, status.text(), clock.clone(), vfs_config(args)?);
    Ok(Parts { vfs: Arc::new(vfs), tier })
}

/// What is archived, also while the store is away.
fn archive_index(data: &DataDir, store: &Store) -> ArchiveIndex {
    let remote = ManifestLog::new(Some(store.clone()), None);
    ArchiveIndex::new(remote, Some(ManifestLog::new(None, Some(data.manifest()))))
}

fn vfs_config(args: &MountArgs) -> Result<VfsConfig, CliError> {
    let delay = match std::env::var("EVERLOG_TEST_WRITE_DELAY_MS") {
        Ok(text) => text.parse().map_err(|_| {
            CliError::usage(format!(
                "EVERLOG_TEST_WRITE_DELAY_MS={text:?} is no number of milliseconds"
            ))
        })?,
        Err(_) => 0,
    };
    let write_delay = std::time::Duration::from_millis(delay);
    Ok(VfsConfig {
        evict_compacted: args.evict_compacted,
        deadline: args.read_deadline,
        broker_read_wait: args.broker_read_wait,
        write_delay,
    })
}

/// The store's identity, learnt at the first upload, is kept with the data.
fn keep_identity(data: &DataDir) -> crate::tier::OnIdentity {
    let keeper = data.identity_keeper();
    Arc::new(move |found: &StoreIdentity| {
        let kept = keeper.update(|known| {
            known.store_id = Some(found.store_id.clone());
            known.cluster_id = Some(found.cluster_id.clone());
        });
        if let Err(e) = kept {
            tracing::error!(error = %e, "cannot note the store's identity in the data directory");
        }
    })
}

/// A full disk takes the cache's space first.
fn shrink(cache: Arc<BlockCache>) -> crate::local::room::Shrink {
    Box::new(move |bytes| match bytes {
        Some(bytes) => cache.give_back(bytes),
        None => {
            cache.grow();
            0
        }
    })
}

/// Archived bytes for a file that was written to while it was cold.
fn fetch(reader: Reader) -> Fetch {
    let streams = Arc::new(ReadStreams::default());
    Arc::new(move |stub, extent, at, len| {
        let (reader, streams) = (reader.clone(), streams.clone());
        Box::pin(async move {
            let source = log_source(&stub, &extent);
            let hint = ReadHint { broker: false };
            reader.read(&source, &streams, at, len, hint).await.map_err(std::io::Error::other)
        })
    })
}
