//! Looks at an archive from outside: at the objects as files, with no help of Everlog.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::files::{allocated_bytes, files_under, name, names, sha256_file};
use super::witness::base_offset;
use super::{Mount, unless, wait_until};

/// One `.log` object.
#[derive(Clone, Debug)]
pub struct Object {
    /// `<topic>-<partition>`.
    pub partition: String,
    /// Of the topic's incarnation.
    pub topic_id: String,
    /// Base offset.
    pub base: i64,
    /// Where it lies.
    pub path: PathBuf,
}

/// All `.log` objects of a store that is a directory.
pub fn log_objects(bucket: &Path) -> Vec<Object> {
    let parse = |path: PathBuf| {
        let full = name(&path);
        let (base, rest) = full.split_at_checked(20)?;
        let upload = rest.strip_prefix('.')?.strip_suffix(".log")?;
        if upload.len() != 16 || !upload.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let id_dir = path.parent()?;
        Some(Object {
            partition: name(id_dir.parent()?),
            topic_id: name(id_dir),
            base: base.parse().ok()?,
            path,
        })
    };
    files_under(&bucket.join("topics")).into_iter().filter_map(parse).collect()
}

/// Base offsets of the `.log` files of one directory of a log dir, ascending; the last one is the active segment.
pub fn bases(partition_dir: &Path) -> Vec<i64> {
    names(partition_dir).iter().filter_map(|n| base_offset(n)).collect()
}

/// Directories of a topic in a log dir.
pub fn partitions(root: &Path, topic: &str) -> Vec<String> {
    let of_topic = |n: &String| {
        n.rsplit_once('-').is_some_and(|(t, p)| t == topic && p.parse::<u32>().is_ok())
    };
    names(root).into_iter().filter(of_topic).collect()
}

/// Whether each closed segment that the log dir shows has an object; else the first that has none.
pub fn all_closed_archived(root: &Path, topic: &str, bucket: &Path) -> Result<(), String> {
    let there: BTreeSet<(String, i64)> =
        log_objects(bucket).into_iter().map(|o| (o.partition, o.base)).collect();
    for partition in partitions(root, topic) {
        let all = bases(&root.join(&partition));
        for base in &all[..all.len().saturating_sub(1)] {
            let key = (partition.clone(), *base);
            unless(there.contains(&key), || {
                format!("{partition}/{base} has no object; the store has {}", there.len())
            })?;
        }
    }
    Ok(())
}

/// Bytes of disk that `.log` files in the data directory's `hot/` occupy.
pub fn hot_log_bytes(hot: &Path) -> u64 {
    allocated_bytes(hot, |n| n.ends_with(".log"))
}

/// Bytes of disk that segments occupy which may not go yet: the active ones, those above the recovery point, and whatever is not of this topic. After an unclean stop a
/// broker leaves that where it was until the partition's next roll, however much it has recovered.
fn bound_bytes(root: &Path, hot: &Path, topic: &str) -> u64 {
    let text =
        std::fs::read_to_string(root.join("recovery-point-offset-checkpoint")).unwrap_or_default();
    let recovery_point = |partition: &str| {
        let line = text.lines().find_map(|line| {
            let (name, offset) = line.rsplit_once(' ')?;
            (name.replace(' ', "-") == partition).then(|| offset.parse::<i64>().ok())?
        });
        line.unwrap_or(0)
    };
    let mine = partitions(root, topic);
    let others = names(hot).into_iter().filter(|n| !mine.contains(n));
    let mut bound: u64 = others.map(|n| hot_log_bytes(&hot.join(n))).sum();
    for partition in mine {
        let (all, limit) = (bases(&root.join(&partition)), recovery_point(&partition));
        for (at, base) in all.iter().enumerate() {
            let may_go = all.get(at + 1).is_some_and(|next| *next <= limit);
            let file = hot.join(&partition).join(format!("{base:020}.log"));
            bound += if may_go { 0 } else { file.metadata().map_or(0, |m| m.blocks() * 512) };
        }
    }
    bound
}

/// Waits until everything closed is archived, nothing is pending, and the local bytes are within the budget, or are those that may not go.
pub fn settle(mount: &Mount, hot: &Path, topic: &str, bucket: &Path, hot_budget_bytes: u64) {
    wait_until("archiving and eviction to settle", 120, || {
        all_closed_archived(mount.point(), topic, bucket)?;
        let status = mount.status();
        let lag = &status["totals"]["lag_segments"];
        unless(lag == 0, || format!("lag_segments is {lag}; {status}"))?;
        let (bytes, bound) = (hot_log_bytes(hot), bound_bytes(mount.point(), hot, topic));
        unless(bytes <= hot_budget_bytes.max(bound), || {
            format!("{bytes} bytes hot, {hot_budget_bytes} wanted, {bound} may not go; {status}")
        })
    });
}

/// Compares every object with the file of the same name in the log dir and with what the witness saw. Returns how many.
pub fn compare_objects(
    root: &Path,
    bucket: &Path,
    witnessed: &BTreeMap<(String, i64), String>,
) -> usize {
    let objects = log_objects(bucket);
    for object in &objects {
        let stored = sha256_file(&object.path);
        let key = (object.partition.clone(), object.base);
        let written =
            witnessed.get(&key).unwrap_or_else(|| panic!("{key:?} was never seen in hot/"));
        assert_eq!(
            &stored,
            written,
            "object {} is not the file that the broker wrote",
            object.path.display()
        );
        let shown = root.join(&object.partition).join(format!("{:020}.log", object.base));
        assert_eq!(
            sha256_file(&shown),
            stored,
            "{} reads differently from its object",
            shown.display()
        );
    }
    objects.len()
}
