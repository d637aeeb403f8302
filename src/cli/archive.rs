//! `everlog archive LOGDIR --once`: fills an archive from a stock log dir, which stays as it is.

use std::sync::Arc;

use super::args::ArchiveArgs;
use super::units::show_bytes;
use super::{CliError, objects, serve};
use crate::catalog::Catalog;
use crate::clock::Clock;
use crate::manifest::ManifestLog;
use crate::tier::{OnceProgress, Tier, TierConfig, TierDeps};

/// Archives what is closed and committed, reports, ends.
pub fn run(args: &ArchiveArgs) -> Result<(), CliError> {
    let shown = args.log_dir.display();
    let (include, exclude) = objects::patterns(&args.topics)?;
    if !args.log_dir.is_dir() {
        return Err(CliError::failed(format!(
            "log dir {shown} is not a directory: give a broker's log.dirs"
        )));
    }
    if args.log_dir.join(".everlog").exists() {
        return Err(CliError::failed(format!(
            "{shown} is an Everlog mount, which archives by itself"
        )));
    }
    let cluster_id = objects::cluster_id(&args.log_dir).ok_or_else(|| {
        CliError::failed(format!(
            "log dir {shown} has no meta.properties with a cluster.id: is it a broker's log dir?"
        ))
    })?;
    let store = objects::store(&args.store)?;
    let runtime = serve::runtime()?;
    let identity = runtime.block_on(objects::probe(&store))?;
    objects::check_cluster(identity.as_ref(), Some(&cluster_id))?;
    let catalog = Catalog::open_stock(&args.log_dir)
        .map_err(|e| CliError::failed(format!("log dir {shown}: {e}")))?;
    let config = TierConfig {
        uploads_max: usize::from(args.store.uploads),
        upload_bytes_per_s: args.store.upload_rate,
        include,
        exclude,
        stock: true,
        ..TierConfig::default()
    };
    let deps = TierDeps {
        catalog: Arc::new(catalog),
        store: store.clone(),
        manifest: ManifestLog::new(Some(store), None),
        spool: None,
        versions: None,
        room: None,
        clock: Clock::system(),
        store_id: None,
        on_identity: None,
        fetch: None,
        cached_bytes: None,
        pace: None,
    };
    let tier = Tier::new(config, deps);
    let progress = |p: &OnceProgress| {
        eprintln!(
            "{}/{} segments, {}: {}",
            p.done_segments,
            p.total_segments,
            show_bytes(p.done_bytes),
            p.last
        );
    };
    let report = runtime.block_on(tier.archive_once(&progress));
    if args.json {
        let text = serde_json::to_string(&report).map_err(CliError::failed)?;
        println!("{text}");
    } else {
        println!(
            "archived {} segments ({}), {} were in the archive already, {} not committed yet, {} quarantined, {} failed",
            report.archived_segments,
            show_bytes(report.archived_bytes),
            report.adopted_segments,
            report.skipped_not_committed,
            report.quarantined.len(),
            report.failed.len()
        );
    }
    match (report.failed.first(), report.quarantined.first()) {
        (Some(first), _) => Err(CliError::failed(format!(
            "{} segments could not be archived; the first: {first}",
            report.failed.len()
        ))),
        (None, Some(first)) => Err(CliError::damage(format!(
            "{} segments break Kafka's rules and were left out; the first: {}: {}",
            report.quarantined.len(),
            first.file,
            first.reason
        ))),
        (None, None) => Ok(()),
    }
}
