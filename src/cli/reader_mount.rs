//! An archive mount: read-only, from a bucket alone, on any machine.

use std::path::Path;
use std::sync::Arc;

use super::args::MountArgs;
use super::keeping::Keeping;
use super::objects::{self, Answer};
use super::status::StatusSource;
use super::{CliError, background, mountpoint, serve};
use crate::clock::Clock;
use crate::fuse::FuseConfig;
use crate::manifest::ManifestLog;
use crate::vfs::{ArchiveIndex, ArchiveTree, Vfs, VfsConfig};

/// Runs until it is unmounted.
pub fn run(args: &MountArgs, cache_dir: &Path) -> Result<(), CliError> {
    let mountpoint = mountpoint::check(&args.mountpoint)?;
    mountpoint::check_apart(&mountpoint, cache_dir, "cache directory")?;
    let store = objects::store(&args.store)?;
    let runtime = serve::runtime()?;
    let clock = Clock::system();
    if let Answer::Away(why) = runtime.block_on(objects::ask(&store))? {
        return Err(CliError::failed(why));
    }
    let cache = objects::cache(args, cache_dir)?;
    if background::is_child() {
        background::detach();
    }
    let log = serve::start_log(args, &cache_dir.join("everlog.log"))?;
    serve::raise_nofile();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), cache = %cache_dir.display(), store = %store.url(), "starting an archive mount");

    let reader = objects::reader(args, store.clone(), cache.clone(), runtime.handle());
    let index = || ArchiveIndex::new(ManifestLog::new(Some(store.clone()), None), None);
    let archive = ArchiveTree::new(index(), reader.clone());
    let control = objects::take_commands(Keeping {
        index: index(),
        reader: reader.clone(),
        cache: cache.clone(),
        runtime: runtime.handle().clone(),
    });
    let source = format!("everlog:{}", store.url());
    let status = StatusSource {
        mode: "archive",
        store,
        cache,
        reader: reader.clone(),
        tier: None,
        control,
        clock: clock.clone(),
    };
    let config = VfsConfig {
        evict_compacted: false,
        deadline: args.read_deadline,
        broker_read_wait: args.broker_read_wait,
        write_delay: std::time::Duration::ZERO,
    };
    let vfs = Arc::new(Vfs::new(None, archive, reader, status.text(), clock, config));
    let fuse = FuseConfig {
        source,
        threads: usize::from(args.threads),
        passthrough: !args.no_passthrough,
        read_only: true,
    };
    let served = serve::serve(vfs, &runtime, &mountpoint, &fuse, &log);
    runtime.shutdown_timeout(std::time::Duration::from_secs(5));
    served
}
