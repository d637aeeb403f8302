//! One image of the disk is mounted: nobody repairs anything, what had been synced is there, a broker recovers and goes on, and in the end
//! everything is archived, nothing is in quarantine and every file of the data directory has a reason.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use sha2::Digest as _;

use crate::act::{acts, parent};
use crate::chance::Chance;
use crate::common::archive::hot_log_bytes;
use crate::common::step::{Meanwhile, Step};
use crate::common::{Mount, files, files_under, fsck, unless, wait_until};
use crate::disk::{Fate, Rules};
use crate::promise::{Promise, Tree};
use crate::take::{Take, command, listening};

const PATIENCE_S: u64 = 60;

/// When the power goes, and what that does.
#[derive(Clone, Debug)]
pub struct Loss {
    pub cut: usize,
    pub rules: Rules,
    pub fate: Fate,
    pub seed: u64,
}

struct Mounted<'a> {
    take: &'a Take,
    promise: Promise,
    /// At the end of the story.
    whole: Promise,
    cut: usize,
    rules: Rules,
    /// Discarded segments that nobody had synced, of which something is missing: they wait in the spool for a person.
    torn: usize,
    dir: PathBuf,
}

/// Loses power in a take, and looks at what is left, in a directory of its own.
pub fn lose_power(take: &Take, loss: &Loss, dir: &Path) {
    let image = take.disk.image(loss.cut, loss.rules, loss.fate, &mut Chance::new(loss.seed));
    image.write(0, &dir.join("data"));
    image.write(1, &dir.join("store"));
    if take.story.is_old {
        age_partitions(&dir.join("data/hot"));
    }
    move_store(&dir.join("data/everlog.json"), &dir.join("store"));
    let mut mounted = Mounted {
        take,
        promise: Promise::at(&take.course, loss.cut, loss.rules),
        whole: Promise::at(&take.course, usize::MAX, loss.rules),
        cut: loss.cut,
        rules: loss.rules,
        torn: 0,
        dir: dir.to_owned(),
    };
    mounted.check_archive(&mounted.promise.contents());
    mounted.check_stubs();
    mounted.torn = mounted.torn_in_spool();
    let command = listening(command(dir, &take.story), &take.story, &dir.join("asked"), "true");
    let mount = command.try_start().unwrap_or_else(|words| panic!("it does not mount:\n{words}"));
    let status = mount.status();
    assert_eq!(status["broken"], serde_json::json!([]), "{status}");
    let found = tree(mount.point()).unwrap_or_else(|e| panic!("{e}\n{}", mount.log()));
    let wrong = mounted.promise.check(&found);
    assert!(wrong.is_empty(), "{wrong:#?}\n{}", mount.log());
    let target = mounted.recover(&mount, &found);
    mounted.torn += mounted.torn_and_deleted(&found, &target);
    mounted.settle(&mount, &target);
    mount.umount();
    mounted.check_archive(&mounted.whole.contents());
    mounted.check_questions();
    let plain = dir.join("plain");
    lay_out(&plain, &target);
    let spooled = fs::read_dir(dir.join("data/spool"))
        .unwrap()
        .filter(|e| e.as_ref().unwrap().path().join("segment.json").exists());
    let odd = fsck::data_directory(&dir.join("data"), &plain, spooled.count());
    assert!(odd.is_empty(), "{odd:#?}");
}

/// The image's store lies elsewhere than the recorded one.
fn move_store(identity: &Path, store: &Path) {
    let Ok(text) = fs::read_to_string(identity) else { return };
    let (head, body) = text.trim_end().split_once("\"body\":").unwrap();
    let (_, rest) = body.split_once("file://").unwrap();
    let rest = &rest[rest.find('"').unwrap()..];
    let body =
        format!("{{\"store_url\":\"file://{}{}", store.display(), rest.strip_suffix('}').unwrap());
    let crc = crc32c::crc32c(body.as_bytes());
    let at = head.find("\"crc32c\":").unwrap();
    fs::write(identity, format!("{}\"crc32c\":\"{crc:08x}\",\"body\":{body}}}\n", &head[..at]))
        .unwrap();
}

/// The partitions are no new ones: what a checkpoint says of them is believed as soon as a mount sees it.
fn age_partitions(hot: &Path) {
    for path in files_under(hot).into_iter().filter(|p| p.ends_with("partition.metadata")) {
        let file = File::options().write(true).open(path).unwrap();
        let age = std::time::Duration::from_secs(60);
        file.set_modified(file.metadata().unwrap().modified().unwrap() - age).unwrap();
    }
}

/// Every name below a root with its bytes.
fn tree(root: &Path) -> io::Result<Tree> {
    let (mut found, mut open) = (Tree::new(), vec![root.to_owned()]);
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            let named = |e: io::Error| io::Error::other(format!("{}: {e}", path.display()));
            let name = path.strip_prefix(root).unwrap().display().to_string();
            let meta = path.symlink_metadata().map_err(named)?;
            if meta.is_dir() {
                found.insert(name, None);
                open.push(path);
                continue;
            }
            let bytes = fs::read(&path).map_err(named)?;
            assert_eq!(bytes.len() as u64, meta.len(), "{name} has another length than it says");
            found.insert(name, Some(bytes));
        }
    }
    Ok(found)
}

fn lay_out(root: &Path, tree: &Tree) {
    fs::create_dir_all(root).unwrap();
    for (name, bytes) in tree {
        match bytes {
            None => fs::create_dir_all(root.join(name)).unwrap(),
            Some(bytes) => fs::write(root.join(name), bytes).unwrap(),
        }
    }
}

fn sha256(bytes: &[u8]) -> String {
    sha2::Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Contents of each segment.
type Contents<'a> = BTreeMap<(String, i64), Vec<&'a Vec<u8>>>;

/// Where each whole batch of a log ends, and one past its last offset.
fn batch_ends(log: &[u8]) -> Vec<(usize, i64)> {
    let (mut at, mut ends) = (0, Vec::new());
    while let Some(head) = log.get(at..at + 61) {
        let base = i64::from_be_bytes(head[..8].try_into().unwrap());
        let length = i32::from_be_bytes(head[8..12].try_into().unwrap()) as usize;
        let delta = i32::from_be_bytes(head[23..27].try_into().unwrap());
        at += 12 + length;
        if at > log.len() {
            break;
        }
        ends.push((at, base + i64::from(delta) + 1));
    }
    ends
}

impl Mounted<'_> {
    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Each object that a manifest names is something that was written; of a deleted topic's last segment, what was left of it.
    fn check_archive(&self, contents: &Contents<'_>) {
        for named in fsck::archived(&self.dir.join("store")) {
            let key = (named.partition.clone(), named.base);
            let is_it = |bytes: &[u8]| sha256(bytes) == named.sha256;
            let is_left = |all: &[u8]| {
                self.torn > 0 && batch_ends(all).into_iter().any(|(at, _)| is_it(&all[..at]))
            };
            let written =
                contents.get(&key).is_some_and(|all| all.iter().any(|c| is_it(c) || is_left(c)));
            assert!(written, "{named:?} is archived and was never written");
        }
    }

    /// Segments in the spool of which something is missing.
    fn torn_in_spool(&self) -> usize {
        let mut torn = 0;
        for path in files_under(&self.data().join("spool")) {
            let document = path.with_file_name("segment.json");
            if path.ends_with("segment.log") && document.exists() {
                let doc = fsck::body(&document);
                let (tp, base) =
                    (doc["tp"].as_str().unwrap(), doc["base_offset"].as_i64().unwrap());
                let bytes = fs::read(&path).unwrap();
                torn += usize::from(!self.promise.of_discarded(tp, base, &bytes).unwrap());
            }
        }
        torn
    }

    /// Segments in the log dir of which something is missing, and which the broker goes on to delete.
    fn torn_and_deleted(&self, found: &Tree, target: &Tree) -> usize {
        let goes_on = |name: &str| name.ends_with(".log") && !target.contains_key(name);
        let back: BTreeSet<String> =
            found.keys().filter(|n| goes_on(n)).map(|n| parent(n)).collect();
        let torn = found.iter().filter(|(name, bytes)| {
            let Some((dir, own)) = name.split_once('/') else { return false };
            let (Some(bytes), Some(base)) = (bytes, own.get(..20)) else { return false };
            let Some(base) = base.parse().ok().filter(|_| own.contains(".log")) else {
                return false;
            };
            let tp = dir.split('.').next().unwrap();
            let lost = || !self.promise.of_discarded(tp, base, bytes).is_ok_and(|all| all);
            // Or retention's renames survived out of order, which Kafka's own log does not survive either: what lies behind a name
            // that is back looks truncated.
            let is_back = self.rules == Rules::Strict && back.contains(dir);
            target.get(*name).is_none() && (is_back || lost())
        });
        torn.count()
    }

    /// The discard command was asked about each segment that retention took, before the power went or after.
    fn check_questions(&self) {
        if !self.take.story.listens {
            return;
        }
        let after = fs::read_to_string(self.dir.join("asked")).unwrap_or_default();
        let before = self.take.asked_before(self.cut).iter().map(String::as_str);
        let asked: BTreeSet<(String, i64)> = before
            .chain(after.lines())
            .map(|line| {
                let event: serde_json::Value = serde_json::from_str(line).unwrap();
                let partition =
                    format!("{}-{}", event["topic"].as_str().unwrap(), event["partition"]);
                (partition, event["base_offset"].as_i64().unwrap())
            })
            .collect();
        let discarded = self.promise.discarded();
        assert!(asked.is_subset(&discarded), "{asked:?} of {discarded:?}");
        // About what waits in the spool nobody is asked yet.
        assert!(asked.len() + self.torn >= discarded.len(), "{asked:?} of {discarded:?}");
    }

    /// Law 3: where bytes were released, the local copy of the manifest names what holds them.
    fn check_stubs(&self) {
        let mirror: BTreeSet<String> = files_under(&self.data().join("manifest"))
            .iter()
            .filter(|p| files::name(p).len() == 20)
            .map(|p| fs::read_to_string(p).unwrap())
            .collect();
        for path in files_under(&self.data().join("hot")) {
            let text = path.display().to_string();
            let Some(stands_for) = text.strip_suffix(".everlog") else { continue };
            if !stands_for.contains(".log")
                || stands_for.ends_with(".tmp")
                || Path::new(stands_for).exists()
            {
                continue;
            }
            for extent in fsck::body(&path)["extents"].as_array().unwrap() {
                let upload = extent["upload_id"].as_str().unwrap();
                assert!(
                    mirror.iter().any(|text| text.contains(upload)),
                    "{text} stands for what no local manifest names"
                );
            }
        }
    }

    /// What a broker does after an unclean stop: it finishes what it was deleting, gets what it lost from the other replicas, and writes
    /// its checkpoints. The log dir in the end.
    fn recover(&self, mount: &Mount, found: &Tree) -> Tree {
        let root = mount.point();
        let mut target = self.promise.target();
        let is_over = |name: &str| {
            name.ends_with(".deleted")
                || name.ends_with(".tmp")
                || name.split('/').next().unwrap().ends_with("-delete")
        };
        target.retain(|name, _| !is_over(name));
        self.complete(&mut target);
        self.finish_deletions(root, found, &target);
        for (name, bytes) in &target {
            let Some(bytes) = bytes else {
                let _ = fs::create_dir(root.join(name));
                continue;
            };
            let path = root.join(name);
            if fs::read(&path).is_ok_and(|now| now == *bytes) {
                continue;
            }
            let file = File::options()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .open(&path)
                .unwrap();
            file.write_all_at(bytes, 0).unwrap();
            file.set_len(bytes.len() as u64).unwrap();
            file.sync_all().unwrap();
        }
        self.checkpoints(root, &mut target);
        target
    }

    /// What a replica has of each segment: all of it.
    fn complete(&self, target: &mut Tree) {
        let all = self.whole.contents();
        for (name, bytes) in target.iter_mut() {
            let (Some(bytes), Some((dir, own))) = (bytes, name.split_once('/')) else { continue };
            let Some(base) = own.strip_suffix(".log").and_then(|b| b.parse().ok()) else {
                continue;
            };
            let more = all[&(dir.to_owned(), base)].iter().filter(|c| c.starts_with(bytes));
            if let Some(most) = more.max_by_key(|c| c.len()) {
                bytes.clone_from(most);
            }
        }
    }

    fn finish_deletions(&self, root: &Path, found: &Tree, target: &Tree) {
        let mut dirs = Vec::new();
        for name in found.iter().filter(|(_, b)| b.is_none()).map(|(n, _)| n) {
            // The rename that begins a topic's deletion is done again.
            let end = self.promise.dir_in_the_end(name);
            let now = match end {
                Some(end) if end != *name && !found.contains_key(&end) => {
                    fs::rename(root.join(name), root.join(&end)).unwrap();
                    end
                }
                _ => name.clone(),
            };
            dirs.push((name.clone(), now));
        }
        for name in found.iter().filter(|(_, b)| b.is_some()).map(|(n, _)| n) {
            let dir = parent(name);
            let now = dirs
                .iter()
                .find(|(was, _)| *was == dir)
                .map_or(String::new(), |(_, now)| format!("{now}/"));
            let now = format!("{now}{}", name.rsplit('/').next().unwrap());
            if target.contains_key(&now) {
                continue;
            }
            let path = root.join(&now);
            if now.ends_with(".log") && !now.contains("-delete/") {
                let deleted = root.join(format!("{now}.deleted"));
                fs::rename(&path, &deleted).unwrap();
                fs::remove_file(&deleted).unwrap_or_else(|e| panic!("{now}: {e}"));
            } else {
                fs::remove_file(&path).unwrap_or_else(|e| panic!("{now}: {e}"));
            }
        }
        for (_, now) in dirs.iter().filter(|(_, now)| !target.contains_key(now)) {
            fs::remove_dir(root.join(now)).unwrap_or_else(|e| panic!("{now}: {e}"));
        }
    }

    /// Three times: young directories are believed then.
    fn checkpoints(&self, root: &Path, target: &mut Tree) {
        let mut lines = Vec::new();
        for dir in target.iter().filter(|(_, b)| b.is_none()).map(|(n, _)| n) {
            let logs = target.iter().filter(|(n, _)| parent(n) == *dir && n.ends_with(".log"));
            let end = logs
                .filter_map(|(_, b)| batch_ends(b.as_ref().unwrap()).last().map(|(_, end)| *end))
                .max();
            let (topic, number) = dir.rsplit_once('-').unwrap();
            lines.push(format!("{topic} {number} {}\n", end.unwrap_or(0)));
        }
        let text = format!("0\n{}\n{}", lines.len(), lines.concat()).into_bytes();
        for name in ["recovery-point-offset-checkpoint", "replication-offset-checkpoint"] {
            target.insert(name.to_owned(), Some(text.clone()));
            for _ in 0..3 {
                for act in acts(Step::Replace(name.to_owned(), text.clone())) {
                    act.apply(root).unwrap();
                }
            }
        }
    }

    /// Waits until nothing is left to do, and compares.
    fn settle(&self, mount: &Mount, target: &Tree) {
        let active: u64 = target
            .iter()
            .filter(|(n, _)| n.ends_with(".log"))
            .map(|(_, b)| b.as_ref().unwrap().len() as u64)
            .max()
            .unwrap_or(0);
        let evicts = self.take.story.args.iter().any(|a| a == "--hot-bytes");
        let partitions = target.values().filter(|b| b.is_none()).count() as u64;
        wait_until("it to settle", PATIENCE_S, || {
            let status = mount.status();
            let is = |pointer: &str| status.pointer(pointer).and_then(|v| v.as_u64()).unwrap();
            let torn = self.torn as u64;
            let most = [
                ("/totals/lag_segments", 0),
                ("/spool/damaged", 0),
                ("/spool/segments", torn),
                ("/quarantine", torn),
            ];
            for (pointer, most) in most {
                unless(is(pointer) <= most, || format!("{pointer}: {status}\n{}", mount.log()))?;
            }
            unless(status["broken"] == serde_json::json!([]), || format!("broken: {status}"))?;
            if self.torn == 0 {
                Meanwhile::Released.is_so(&self.data(), &self.dir.join("store"))?;
            }
            Meanwhile::Whole.is_so(&self.data(), &self.dir.join("store"))?;
            let hot = hot_log_bytes(&self.data().join("hot"));
            let most = partitions * (active + 4096);
            unless(!evicts || hot <= most, || {
                format!("{hot} hot, {most} wanted: {status}\n{}", mount.log())
            })
        });
        let found = tree(mount.point()).unwrap();
        let names: BTreeSet<_> = found.keys().chain(target.keys()).collect();
        let differ: Vec<_> =
            names.into_iter().filter(|n| found.get(*n) != target.get(*n)).collect();
        assert!(differ.is_empty(), "in the end these differ: {differ:?}");
    }
}
