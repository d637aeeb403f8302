//! Looks at a data directory and a store that nobody uses at the moment: every file in them must have a reason, and each segment that a
//! manifest names must be one that was written.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::files::{files_under, name, names, sha256_file};

/// What a document says: the body of one line of JSON in Everlog's frame.
pub fn body(path: &Path) -> Value {
    let text = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let whole: Value =
        serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    whole["body"].clone()
}

/// Relative names of the files that the log dir `root` shows.
fn shown(root: &Path) -> BTreeSet<String> {
    let below = |p: &PathBuf| p.strip_prefix(root).unwrap().display().to_string();
    files_under(root).iter().map(below).collect()
}

/// Everything in the data directory that should not be there, one line each. `model` is a plain directory that shows what the mount
/// shows; `spooled` segments may lie in the spool.
pub fn data_directory(data: &Path, model: &Path, spooled: usize) -> Vec<String> {
    let mut odd = Vec::new();
    let known = [
        "everlog.json",
        "lock",
        "mountpoint",
        "hot",
        "overlay",
        "cache",
        "spool",
        "manifest",
        "checkpoints",
        "ballast",
    ];
    odd.extend(names(data).into_iter().filter(|n| !known.contains(&n.as_str())));
    let overlays = hot(&data.join("hot"), &shown(model), &mut odd);
    for found in names(&data.join("overlay")) {
        if !overlays.contains(&found) {
            odd.push(format!("overlay/{found}: no stub names it"));
        }
    }
    for wanted in overlays {
        if !data.join("overlay").join(&wanted).exists() {
            odd.push(format!("overlay/{wanted}: a stub names it, it is not there"));
        }
    }
    cache(&data.join("cache"), &mut odd);
    spool(&data.join("spool"), spooled, &mut odd);
    for version in files_under(&data.join("checkpoints")) {
        if name(&version).len() != 13 {
            odd.push(format!("checkpoints: {}", version.display()));
        }
    }
    for file in files_under(&data.join("manifest")) {
        let stem = name(&file);
        if stem.len() < 20 || !stem.bytes().take(20).all(|b| b.is_ascii_digit()) {
            odd.push(format!("manifest: {}", file.display()));
        }
    }
    odd
}

/// Looks at `hot/`; gives the overlays that its stubs name.
fn hot(hot: &Path, shown: &BTreeSet<String>, odd: &mut Vec<String>) -> BTreeSet<String> {
    let mut overlays = BTreeSet::new();
    let mut present = BTreeSet::new();
    for path in files_under(hot) {
        let below = path.strip_prefix(hot).unwrap().display().to_string();
        let Some(stands_for) = below.strip_suffix(".everlog") else {
            present.insert(below);
            continue;
        };
        if !stands_for.contains(".log") || stands_for.ends_with(".tmp") {
            odd.push(format!("hot/{below}: a leftover"));
        } else if path.with_file_name(name(Path::new(stands_for))).exists() {
            odd.push(format!("hot/{below}: beside the file that it stands for"));
        } else {
            present.insert(stands_for.to_owned());
            overlays.extend(body(&path)["overlay"].as_str().map(str::to_owned));
        }
    }
    odd.extend(present.difference(shown).map(|n| format!("hot/{n}: shown nowhere")));
    odd.extend(shown.difference(&present).map(|n| format!("hot/{n}: neither file nor stub")));
    overlays
}

fn cache(cache: &Path, odd: &mut Vec<String>) {
    let mut halves: BTreeMap<String, usize> = BTreeMap::new();
    for path in files_under(cache) {
        let file = name(&path);
        match file.split_once('.') {
            Some((stem, "data" | "map")) if stem.len() == 32 => {
                *halves.entry(stem.to_owned()).or_default() += 1;
            }
            Some((stem, "aux")) if stem.len() == 32 => {}
            _ if file == "lock" || file == "pins" => {}
            _ => odd.push(format!("cache: {}", path.display())),
        }
    }
    odd.extend(halves.iter().filter(|(_, n)| **n != 2).map(|(n, _)| format!("cache: half of {n}")));
}

fn spool(spool: &Path, spooled: usize, odd: &mut Vec<String>) {
    let (mut empty, mut full) = (0, 0);
    for entry in names(spool) {
        let inside = names(&spool.join(&entry));
        if inside.is_empty() {
            empty += 1;
        } else if inside.contains(&"segment.json".to_owned())
            && !inside.iter().any(|n| n.ends_with(".everlog"))
        {
            full += 1;
        } else {
            odd.push(format!("spool/{entry}: {inside:?}"));
        }
    }
    if empty > 1 {
        odd.push(format!("spool: {empty} reserves"));
    }
    if full != spooled {
        odd.push(format!("spool: {full} entries instead of {spooled}"));
    }
}

/// A segment that a manifest in the store names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Named {
    /// `<topic>-<partition>`.
    pub partition: String,
    /// Base offset.
    pub base: i64,
    /// SHA-256 that the manifest says, as hex; the object has it.
    pub sha256: String,
}

/// All segments that the manifests of a directory store ever named. Panics when an object is missing or is not what the manifest says.
pub fn archived(bucket: &Path) -> Vec<Named> {
    let mut found = Vec::new();
    for path in files_under(&bucket.join("topics")) {
        let is_delta =
            name(&path).len() == 20 && path.parent().is_some_and(|p| p.ends_with("manifest"));
        if !is_delta {
            continue;
        }
        for change in body(&path)["changes"].as_array().unwrap() {
            let mut segments =
                change["replace"]["segments"].as_array().cloned().unwrap_or_default();
            segments.extend(change.get("add").cloned());
            for segment in segments {
                found.push(named(path.parent().unwrap().parent().unwrap(), &segment));
            }
        }
    }
    found.sort();
    found
}

fn named(chain: &Path, segment: &Value) -> Named {
    let base = segment["base_offset"].as_i64().unwrap();
    let sha256 = segment["sha256"].as_str().unwrap().to_owned();
    let upload = segment["upload_id"].as_str().unwrap();
    let object = chain.join(format!("{base:020}.{upload}.log"));
    assert_eq!(sha256_file(&object), sha256, "{} is not what its manifest says", object.display());
    let aux = chain.join(format!("{base:020}.{upload}.aux"));
    assert_eq!(sha256_file(&aux), segment["aux_sha256"].as_str().unwrap(), "{}", aux.display());
    Named { partition: name(chain.parent().unwrap()), base, sha256 }
}
