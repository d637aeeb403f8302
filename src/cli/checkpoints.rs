//! `everlog checkpoints`: shows the versions of Kafka's checkpoint files and puts one back.

use std::path::Path;

use super::args::{CheckpointsArgs, CheckpointsCommand, VersionsFrom};
use super::{CliError, serve};
use crate::local::put_back::{PutBack, put_back};
use crate::local::versions::{self, Version, shown};
use crate::store::{Store, names};

/// More than a store ever keeps.
const LISTED_MAX: usize = 1_000_000;
const VERSION_BYTES_MAX: u64 = 512 << 20;
/// Of what was left out or lowered, so many lines are printed of each.
const SHOWN_MAX: usize = 10;

/// Where a version is.
struct Found {
    taken_ms: u64,
    /// Node and log dir, in a store.
    of: Option<(i32, String)>,
}

/// Does what the arguments say.
pub fn run(args: &CheckpointsArgs) -> Result<(), CliError> {
    match &args.command {
        CheckpointsCommand::List(from) => list(from),
        CheckpointsCommand::PutBack { from, to, taken, file } => {
            let version = pick(from, taken.as_deref())?;
            let done = put_back(to, &version, file).map_err(CliError::failed)?;
            println!("put back into {} as of {}:", to.display(), shown(version.taken_ms));
            done.iter().for_each(tell);
            Ok(())
        }
    }
}

fn tell(put: &PutBack) {
    println!("  {}: {} lines", put.name, put.lines);
    for (tp, from, to) in put.lowered.iter().take(SHOWN_MAX) {
        println!("    {tp}: {to} instead of {from}, written to since");
    }
    for (tp, why) in put.left_out.iter().take(SHOWN_MAX) {
        println!("    {tp}: left out, {why}");
    }
    let more =
        put.lowered.len().saturating_sub(SHOWN_MAX) + put.left_out.len().saturating_sub(SHOWN_MAX);
    if more > 0 {
        println!("    and {more} more lowered or left out");
    }
}

fn store_of(from: &VersionsFrom) -> Result<Option<Store>, CliError> {
    let open = |url: &String| {
        let url = url.parse::<crate::store::StoreUrl>()?;
        Store::open(&url, crate::store::StoreOptions::default())
    };
    Ok(from.store.as_ref().map(open).transpose()?)
}

fn local_dir(from: &VersionsFrom) -> Result<Option<std::path::PathBuf>, CliError> {
    let Some(data) = &from.data else { return Ok(None) };
    if !data.join("everlog.json").exists() {
        return Err(CliError::failed(format!(
            "{} is not an Everlog data directory (no everlog.json)",
            data.display()
        )));
    }
    Ok(Some(crate::local::datadir::checkpoints_in(data)))
}

fn failed(at: &Path, error: &std::io::Error) -> CliError {
    CliError::failed(format!("{}: {error}", at.display()))
}

/// All versions there are, oldest first.
fn find(from: &VersionsFrom) -> Result<Vec<Found>, CliError> {
    if let Some(dir) = local_dir(from)? {
        let taken = versions::list(&dir).map_err(|e| failed(&dir, &e))?;
        return Ok(taken.into_iter().map(|taken_ms| Found { taken_ms, of: None }).collect());
    }
    let Some(store) = store_of(from)? else { return Ok(Vec::new()) };
    let listed = serve::runtime()?.block_on(store.list(names::BROKERS_PREFIX, LISTED_MAX))?;
    let mut found: Vec<Found> = listed
        .iter()
        .filter_map(|o| names::parse_checkpoints(&o.key))
        .filter(|(node, ..)| from.node.is_none_or(|wanted| wanted == *node))
        .map(|(node, log_dir, taken_ms)| Found { taken_ms, of: Some((node, log_dir)) })
        .collect();
    found.sort_by_key(|f| f.taken_ms);
    Ok(found)
}

fn list(from: &VersionsFrom) -> Result<(), CliError> {
    let found = find(from)?;
    if from.json {
        let doc = |f: &Found| {
            let (node, log_dir) = f.of.clone().unzip();
            serde_json::json!({
                "version": f.taken_ms, "time": shown(f.taken_ms), "node": node, "log_dir": log_dir
            })
        };
        println!("{}", serde_json::Value::Array(found.iter().map(doc).collect()));
        return Ok(());
    }
    for f in &found {
        match &f.of {
            Some((node, log_dir)) => {
                println!("{}  {}  node {node}, log dir {log_dir}", f.taken_ms, shown(f.taken_ms));
            }
            None => println!("{}  {}", f.taken_ms, shown(f.taken_ms)),
        }
    }
    if found.is_empty() {
        println!(
            "no versions yet: a mount takes the first within a minute of the broker's first checkpoint"
        );
    }
    Ok(())
}

/// The version that was asked for; without one, the newest.
fn pick(from: &VersionsFrom, taken: Option<&str>) -> Result<Version, CliError> {
    let mut found = find(from)?;
    match taken {
        Some(taken) => {
            found.retain(|f| f.taken_ms.to_string() == taken || shown(f.taken_ms) == taken)
        }
        None => {
            let mut log_dirs: Vec<_> = found.iter().map(|f| f.of.clone()).collect();
            log_dirs.sort();
            log_dirs.dedup();
            if log_dirs.len() > 1 {
                return Err(CliError::usage(
                    "the store has versions of several log dirs: choose one with --version (see 'everlog checkpoints list')",
                ));
            }
        }
    }
    let Some(newest) = found.pop() else {
        return Err(CliError::failed(match taken {
            Some(taken) => format!("there is no version {taken}: see 'everlog checkpoints list'"),
            None => "there are no versions of Kafka's checkpoint files".to_owned(),
        }));
    };
    if let Some(dir) = local_dir(from)? {
        return Version::read(&dir, newest.taken_ms).map_err(CliError::failed);
    }
    let (Some(store), Some((node, log_dir))) = (store_of(from)?, newest.of) else {
        return Err(CliError::usage("give --data DIR or --store URL"));
    };
    let key = names::checkpoints_key(node, &log_dir, newest.taken_ms);
    let bytes = serve::runtime()?.block_on(store.get(&key, VERSION_BYTES_MAX))?;
    Version::decode(&bytes).map_err(|e| CliError::damage(format!("{key}: {e}")))
}
