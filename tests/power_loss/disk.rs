//! A disk that loses power: from the recorded calls up to a moment it makes what may lie on it afterwards.
//!
//! What was synced is there. What was not is there, or is not, or in part, by two sets of rules. *Journal*: names and lengths survive in the
//! order in which they were changed, up to a moment that is no earlier than the last sync of anything, as on ext4 and xfs. *Strict*: only
//! the sync of a directory makes its names durable, and others survive in any selection that leaves no operation without what it stands
//! on (the same file's earlier names, the earlier holder of the same name). Data that was not synced may be missing under both, page by
//! page, also where the length says that it is there. The store is another machine's: what it was given it has.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::chance::Chance;
use crate::recording::{Event, Kind, Recording};

const PAGE: usize = 4096;

/// A directory and a name in it.
type Entry = (usize, String);

/// How names that were not synced survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rules {
    Journal,
    Strict,
}

/// What becomes of everything that was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    Kept,
    Dropped,
    /// Strict: dropped, but for the last change of a name. Journal: all names and lengths, no data.
    Last,
    /// Some of it, in part.
    Torn,
}

enum Change {
    Write(u64, std::ops::Range<usize>),
    Length(u64),
}

#[derive(Default)]
struct Node {
    is_dir: bool,
    changes: Vec<(usize, Change)>,
    syncs: Vec<usize>,
    mtimes: Vec<(usize, u64)>,
}

struct NameOp {
    event: usize,
    node: usize,
    from: Option<Entry>,
    to: Option<Entry>,
    /// Operations that this one stands on.
    after: Vec<usize>,
    remote: bool,
}

/// A directory that exists before the recording begins.
pub struct Root<'a> {
    pub path: &'a Path,
    /// Another machine's: everything is durable at once.
    pub remote: bool,
}

/// The recorded calls as changes of files and names.
pub struct Disk {
    recording: Recording,
    nodes: Vec<Node>,
    names: Vec<NameOp>,
    /// Syncs of anything that is not remote.
    syncs: Vec<usize>,
    remote: Vec<bool>,
}

/// What lies on the disk.
pub struct Image {
    dirs: HashMap<usize, BTreeMap<String, usize>>,
    files: HashMap<usize, (Vec<u8>, u64)>,
}

/// While the calls are replayed.
struct Replay<'a> {
    roots: Vec<(String, usize)>,
    by_ino: HashMap<u64, usize>,
    entries: HashMap<Entry, usize>,
    last_of_node: HashMap<usize, usize>,
    last_of_entry: HashMap<Entry, usize>,
    disk: &'a mut Disk,
}

impl Disk {
    pub fn new(recording: Recording, roots: &[Root<'_>]) -> Self {
        use std::os::unix::fs::MetadataExt as _;
        let events = recording.events.clone();
        let (nodes, remote) = (Vec::new(), Vec::new());
        let mut disk = Self { recording, nodes, names: Vec::new(), syncs: Vec::new(), remote };
        let mut replay = Replay {
            roots: Vec::new(),
            by_ino: HashMap::new(),
            entries: HashMap::new(),
            last_of_node: HashMap::new(),
            last_of_entry: HashMap::new(),
            disk: &mut disk,
        };
        for root in roots {
            let node = replay.new_node(root.path.metadata().unwrap().ino(), true, root.remote);
            replay.roots.push((root.path.display().to_string(), node));
        }
        for (at, event) in events.iter().enumerate() {
            replay.event(at, event);
        }
        disk
    }

    pub fn events(&self) -> &[Event] {
        &self.recording.events
    }

    /// What may be on the disk when the power goes before event number `cut`.
    pub fn image(&self, cut: usize, rules: Rules, fate: Fate, chance: &mut Chance) -> Image {
        let before: Vec<usize> = self.syncs.iter().copied().filter(|s| *s < cut).collect();
        let floor = before.last().copied().unwrap_or(0);
        let horizon = match fate {
            Fate::Kept | Fate::Last => cut,
            Fate::Dropped => floor,
            Fate::Torn => floor + chance.below(cut - floor + 1),
        };
        let kept = match rules {
            Rules::Journal => {
                self.names.iter().map(|n| n.event < horizon || n.remote && n.event < cut).collect()
            }
            Rules::Strict => self.selection(cut, fate, chance),
        };
        let mut dirs: HashMap<usize, BTreeMap<String, usize>> = HashMap::new();
        for op in self.names.iter().zip(kept).filter(|(_, kept)| *kept).map(|(op, _)| op) {
            if let Some((dir, name)) = &op.from
                && let Some(names) = dirs.get_mut(dir)
                && names.get(name) == Some(&op.node)
            {
                names.remove(name);
            }
            if let Some((dir, name)) = &op.to {
                dirs.entry(*dir).or_default().insert(name.clone(), op.node);
            }
        }
        let horizon = (rules == Rules::Journal).then_some(horizon);
        let wanted: Vec<usize> = (0..self.nodes.len()).filter(|n| !self.nodes[*n].is_dir).collect();
        let files = wanted
            .into_iter()
            .map(|node| (node, self.content(node, cut, horizon, fate, chance)))
            .collect();
        Image { dirs, files }
    }

    /// Strict rules: which changes of names survive.
    fn selection(&self, cut: usize, fate: Fate, chance: &mut Chance) -> Vec<bool> {
        let of_dir = |entry: &Option<Entry>, op: &NameOp| {
            entry.as_ref().is_some_and(|(dir, _)| {
                self.nodes[*dir].syncs.iter().any(|s| op.event < *s && *s < cut)
            })
        };
        let mut kept: Vec<bool> = self
            .names
            .iter()
            .map(|op| op.event < cut && (op.remote || of_dir(&op.from, op) || of_dir(&op.to, op)))
            .collect();
        if fate == Fate::Last
            && let Some(last) = self.names.iter().rposition(|op| op.event < cut && !op.remote)
        {
            kept[last] = true;
        }
        for at in (0..kept.len()).rev().filter(|at| self.names[*at].event < cut) {
            if kept[at] {
                self.names[at].after.iter().for_each(|below| kept[*below] = true);
            }
        }
        let often = 1 + chance.below(9);
        for at in 0..kept.len() {
            let op = &self.names[at];
            let wanted = match fate {
                Fate::Kept => true,
                Fate::Dropped | Fate::Last => false,
                Fate::Torn => chance.below(10) < often,
            };
            if op.event < cut && wanted && op.after.iter().all(|below| kept[*below]) {
                kept[at] = true;
            }
        }
        kept
    }

    /// Bytes and modification time of a file. `horizon`: lengths set from there on did not reach the journal.
    fn content(
        &self,
        node: usize,
        cut: usize,
        horizon: Option<usize>,
        fate: Fate,
        chance: &mut Chance,
    ) -> (Vec<u8>, u64) {
        let n = &self.nodes[node];
        let fate = if self.remote[node] { Fate::Kept } else { fate };
        let synced = n.syncs.iter().copied().filter(|s| *s < cut).max().unwrap_or(0);
        let mut bytes = Vec::new();
        let pending: Vec<_> = n.changes.iter().filter(|(event, _)| *event < cut).collect();
        let prefix = match (fate, horizon) {
            (Fate::Torn, None) => chance.below(pending.len() + 1),
            _ => pending.len(),
        };
        for (at, (event, change)) in pending.into_iter().enumerate() {
            let durable = *event < synced || fate == Fate::Kept;
            match change {
                Change::Length(len) => {
                    let committed = horizon.is_some_and(|h| *event < h);
                    if durable
                        || committed
                        || fate == Fate::Torn && horizon.is_none() && at < prefix
                    {
                        bytes.resize(*len as usize, 0);
                    } else {
                        break;
                    }
                }
                Change::Write(position, range) => {
                    let data = self.recording.bytes(range);
                    let position = *position as usize;
                    if durable {
                        write(&mut bytes, position, data);
                    } else if fate == Fate::Torn && at < prefix {
                        tear(&mut bytes, position, data, chance);
                    } else if fate == Fate::Last && horizon.is_some() {
                        let end = bytes.len().max(position + data.len());
                        bytes.resize(end, 0);
                    }
                }
            }
        }
        let last = if fate == Fate::Dropped { synced + 1 } else { cut };
        let mtime = n.mtimes.iter().rev().find(|(event, _)| *event < last).or(n.mtimes.first());
        (bytes, mtime.map_or(0, |(_, mtime)| *mtime))
    }
}

fn write(bytes: &mut Vec<u8>, at: usize, data: &[u8]) {
    bytes.resize(bytes.len().max(at + data.len()), 0);
    bytes[at..at + data.len()].copy_from_slice(data);
}

/// A write of which something may have reached the disk.
fn tear(bytes: &mut Vec<u8>, at: usize, data: &[u8], chance: &mut Chance) {
    match chance.below(4) {
        0 => {}
        1 => write(bytes, at, data),
        2 => {
            let end = at + data.len();
            bytes.resize(bytes.len().max(end), 0);
            for page in at / PAGE..end.div_ceil(PAGE) {
                let (from, to) = (at.max(page * PAGE), end.min((page + 1) * PAGE));
                if chance.below(2) == 0 {
                    write(bytes, from, &data[from - at..to - at]);
                }
            }
        }
        _ => write(bytes, at, &data[..chance.below(data.len() + 1)]),
    }
}

impl Replay<'_> {
    fn new_node(&mut self, ino: u64, is_dir: bool, remote: bool) -> usize {
        let node = self.disk.nodes.len();
        self.disk.nodes.push(Node { is_dir, ..Node::default() });
        self.disk.remote.push(remote);
        self.by_ino.insert(ino, node);
        node
    }

    fn entry(&self, path: &str) -> Entry {
        let of_root = |(root, node): &(String, usize)| {
            path.strip_prefix(root.as_str())?.strip_prefix('/').map(|rest| (*node, rest.to_owned()))
        };
        let (mut dir, rest) = self
            .roots
            .iter()
            .find_map(of_root)
            .unwrap_or_else(|| panic!("{path} is not on the recorded disk"));
        let mut parts: Vec<&str> = rest.split('/').filter(|p| !p.is_empty() && *p != ".").collect();
        let name = parts.pop().unwrap_or_else(|| panic!("{path} is a root"));
        for part in parts {
            let found = self.entries.get(&(dir, part.to_owned()));
            dir = *found.unwrap_or_else(|| panic!("{path}: nothing made {part}"));
        }
        (dir, name.to_owned())
    }

    fn known(&self, event: &Event) -> usize {
        *self.by_ino.get(&event.ino).unwrap_or_else(|| panic!("nothing made the file of {event:?}"))
    }

    fn event(&mut self, at: usize, event: &Event) {
        match event.kind {
            Kind::Mark => {}
            Kind::Create | Kind::Mkdir => {
                let to = self.entry(&event.from);
                let remote = self.disk.remote[to.0];
                let node = self.new_node(event.ino, event.kind == Kind::Mkdir, remote);
                self.disk.nodes[node].mtimes.push((at, event.mtime_ns));
                self.name(at, node, None, Some(to));
            }
            Kind::Write => self.change(at, event, Change::Write(event.at, event.bytes.clone())),
            Kind::Length => self.change(at, event, Change::Length(event.at)),
            Kind::Sync | Kind::SyncData => {
                let node = self.known(event);
                self.disk.nodes[node].syncs.push(at);
                self.disk.nodes[node].mtimes.push((at, event.mtime_ns));
                if event.kind == Kind::Sync && !self.disk.remote[node] {
                    self.disk.syncs.push(at);
                }
            }
            Kind::Rename => {
                let (from, to) = (self.entry(&event.from), self.entry(&event.to));
                let node = self.entries[&from];
                // Two names of one file: nothing is moved.
                if self.entries.get(&to) != Some(&node) {
                    self.name(at, node, Some(from), Some(to));
                }
            }
            Kind::Link => {
                let node = self.entries[&self.entry(&event.from)];
                let to = self.entry(&event.to);
                self.name(at, node, None, Some(to));
            }
            Kind::Unlink | Kind::Rmdir => {
                let from = self.entry(&event.from);
                let node = self.entries[&from];
                self.name(at, node, Some(from), None);
            }
        }
    }

    fn change(&mut self, at: usize, event: &Event, change: Change) {
        let node = self.known(event);
        self.disk.nodes[node].changes.push((at, change));
        self.disk.nodes[node].mtimes.push((at, event.mtime_ns));
    }

    fn name(&mut self, event: usize, node: usize, from: Option<Entry>, to: Option<Entry>) {
        let number = self.disk.names.len();
        let mut after: Vec<usize> = self.last_of_node.insert(node, number).into_iter().collect();
        for entry in from.iter().chain(&to) {
            after.extend(self.last_of_entry.insert(entry.clone(), number));
        }
        if to.is_none() && self.disk.nodes[node].is_dir {
            let inside = |op: &NameOp| {
                let is_in = |e: &Option<Entry>| e.as_ref().is_some_and(|(dir, _)| *dir == node);
                is_in(&op.from) || is_in(&op.to)
            };
            after.extend((0..number).filter(|n| inside(&self.disk.names[*n])));
        }
        if let Some(from) = &from {
            self.entries.remove(from);
        }
        if let Some(to) = &to {
            self.entries.insert(to.clone(), node);
        }
        let remote = to.as_ref().or(from.as_ref()).is_some_and(|(dir, _)| self.disk.remote[*dir]);
        self.disk.names.push(NameOp { event, node, from, to, after, remote });
    }
}

impl Image {
    /// Lays what was below root number `root` out in a directory.
    pub fn write(&self, root: usize, to: &Path) {
        let mut written: HashMap<usize, std::path::PathBuf> = HashMap::new();
        let mut open = vec![(root, to.to_owned())];
        while let Some((dir, path)) = open.pop() {
            std::fs::create_dir_all(&path).unwrap();
            for (name, node) in self.dirs.get(&dir).into_iter().flatten() {
                let path = path.join(name);
                let Some((bytes, mtime_ns)) = self.files.get(node) else {
                    open.push((*node, path));
                    continue;
                };
                if let Some(first) = written.get(node) {
                    std::fs::hard_link(first, &path).unwrap();
                    continue;
                }
                std::fs::write(&path, bytes).unwrap();
                let mtime = SystemTime::UNIX_EPOCH + Duration::from_nanos(*mtime_ns);
                File::options().write(true).open(&path).unwrap().set_modified(mtime).unwrap();
                written.insert(*node, path);
            }
        }
    }
}
