//! Inodes of the log dir: which number the kernel knows each name by.
//!
//! A node lives while the kernel remembers it (lookups) or somebody has it open. Its path is found by
//! walking up, so renaming a directory moves everything below. A `.log` is found through the
//! catalogue instead, which knows where the file is now.
//!
//! Numbers: an ordinary file has that of the file below, so all its hard links are one inode, and it is the
//! same whenever it is asked for; a `.log`, whose file comes and goes, has its own. Where the number below was
//! given to a new file while the kernel still remembers the old one, the new one gets another.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};

use crate::catalog::LogFile;

/// The root's number.
pub const ROOT: u64 = 1;

/// Numbers of `.log` files begin here; below are those of the disk.
const LOG_NUMBERS: u64 = 1 << 60;
/// Numbers of files whose own is taken begin here. `archive::VIRTUAL` begins above.
const OTHER_NUMBERS: u64 = 1 << 61;

/// What a node stands for.
#[derive(Clone, Debug)]
pub enum NodeKind {
    /// Anything on local disk that is no `.log`, with its inode number there.
    Plain(u64),
    /// A `.log` of a partition.
    Log(Arc<LogFile>),
}

impl NodeKind {
    /// Of an ordinary file.
    #[must_use]
    pub fn plain(metadata: &Metadata) -> Self {
        Self::Plain(metadata.ino())
    }

    fn number(&self) -> Option<u64> {
        match self {
            Self::Log(log) => Some(LOG_NUMBERS + log.id),
            Self::Plain(ino) => Some(*ino).filter(|ino| (ROOT + 1..LOG_NUMBERS).contains(ino)),
        }
    }
}

/// One inode.
#[derive(Debug)]
pub struct Node {
    /// Its number.
    pub ino: u64,
    kind: RwLock<NodeKind>,
    /// Open descriptors.
    pub opens: AtomicU32,
    /// The open local files: any of them answers `stat` once the name is gone.
    files: Mutex<Vec<Weak<File>>>,
}

impl Node {
    /// What it stands for.
    #[must_use]
    pub fn kind(&self) -> NodeKind {
        self.kind.read().clone()
    }

    /// Its `.log`.
    #[must_use]
    pub fn log(&self) -> Option<Arc<LogFile>> {
        match &*self.kind.read() {
            NodeKind::Log(log) => Some(log.clone()),
            NodeKind::Plain(_) => None,
        }
    }

    /// Remembers an open file.
    pub fn set_file(&self, file: &Arc<File>) {
        let mut files = self.files.lock();
        files.retain(|f| f.strong_count() > 0);
        files.push(Arc::downgrade(file));
    }

    /// An open file of it, if there is one.
    #[must_use]
    pub fn file(&self) -> Option<Arc<File>> {
        self.files.lock().iter().find_map(Weak::upgrade)
    }
}

#[derive(Debug)]
struct Entry {
    node: Arc<Node>,
    /// Directory and name, for each name that leads here and has been looked up.
    names: Vec<(u64, OsString)>,
    lookups: u64,
}

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<u64, Entry>,
    by_name: HashMap<(u64, OsString), u64>,
    by_log: HashMap<u64, u64>,
    last: u64,
}

/// All inodes of the log dir.
#[derive(Debug)]
pub struct Nodes {
    hot: PathBuf,
    table: RwLock<Table>,
}

fn new_node(ino: u64, kind: NodeKind) -> Arc<Node> {
    let (kind, files) = (RwLock::new(kind), Mutex::default());
    Arc::new(Node { ino, kind, opens: AtomicU32::new(0), files })
}

impl Table {
    fn insert(&mut self, kind: NodeKind) -> Arc<Node> {
        let free = |ino: &u64| !self.entries.contains_key(ino);
        let ino = kind.number().filter(free).unwrap_or_else(|| {
            self.last += 1;
            OTHER_NUMBERS + self.last
        });
        if let NodeKind::Log(log) = &kind {
            self.by_log.insert(log.id, ino);
        }
        let node = new_node(ino, kind);
        self.entries.insert(ino, Entry { node: node.clone(), names: Vec::new(), lookups: 0 });
        node
    }

    /// The name leads here from now on, and nowhere else.
    fn name(&mut self, ino: u64, parent: u64, name: &OsStr) {
        let key = (parent, name.to_owned());
        if self.by_name.get(&key) == Some(&ino) {
            return;
        }
        self.unlink(parent, name);
        if let Some(entry) = self.entries.get_mut(&ino) {
            entry.names.push(key.clone());
            self.by_name.insert(key, ino);
        }
    }

    /// The name leads nowhere from now on. Returns what it led to.
    fn unlink(&mut self, parent: u64, name: &OsStr) -> Option<u64> {
        let key = (parent, name.to_owned());
        let ino = self.by_name.remove(&key)?;
        if let Some(entry) = self.entries.get_mut(&ino) {
            entry.names.retain(|known| *known != key);
        }
        Some(ino)
    }

    fn remove(&mut self, ino: u64) {
        if let Some(entry) = self.entries.remove(&ino) {
            for key in &entry.names {
                self.by_name.remove(key);
            }
            if let Some(log) = entry.node.log() {
                self.by_log.remove(&log.id);
            }
        }
    }

    /// The node that is this very file, under whatever name.
    fn same_file(&self, kind: &NodeKind) -> Option<u64> {
        let below = match kind {
            NodeKind::Log(log) => return self.by_log.get(&log.id).copied(),
            NodeKind::Plain(below) => below,
        };
        let entry = self.entries.get(below)?;
        // Without a name and not open, the number below may be a new file's by now.
        let lives = !entry.names.is_empty() || entry.node.opens.load(Ordering::Acquire) > 0;
        let same = matches!(entry.node.kind(), NodeKind::Plain(known) if known == *below);
        (lives && same).then_some(*below)
    }

    /// A name that led to an ordinary file, which nobody has open, and leads to this `.log` now.
    fn grown_up(&self, key: &(u64, OsString)) -> Option<u64> {
        let ino = self.by_name.get(key).copied()?;
        let entry = self.entries.get(&ino)?;
        let idle = entry.node.opens.load(Ordering::Acquire) == 0;
        (idle && matches!(entry.node.kind(), NodeKind::Plain(_))).then_some(ino)
    }
}

impl Nodes {
    /// With only the root.
    #[must_use]
    pub fn new(hot: &Path) -> Self {
        let mut table = Table::default();
        let root = Entry { node: new_node(ROOT, NodeKind::Plain(ROOT)), names: vec![], lookups: 1 };
        table.entries.insert(ROOT, root);
        Self { hot: hot.to_owned(), table: RwLock::new(table) }
    }

    /// The node of this number.
    #[must_use]
    pub fn get(&self, ino: u64) -> Option<Arc<Node>> {
        self.table.read().entries.get(&ino).map(|e| e.node.clone())
    }

    /// The name in the root of a first-level node; `None` for the root itself and for deeper ones.
    #[must_use]
    pub fn first_level_name(&self, ino: u64) -> Option<String> {
        let table = self.table.read();
        let (parent, name) = table.entries.get(&ino)?.names.first()?;
        name.to_str().filter(|_| *parent == ROOT).map(str::to_owned)
    }

    /// The number of the directory that it is in; `None` for the root and for what has no name.
    #[must_use]
    pub fn parent(&self, ino: u64) -> Option<u64> {
        self.table.read().entries.get(&ino)?.names.first().map(|(parent, _)| *parent)
    }

    /// The path on local disk of a node that still has a name.
    #[must_use]
    pub fn path(&self, ino: u64) -> Option<PathBuf> {
        let table = self.table.read();
        let mut names = Vec::new();
        let mut at = ino;
        while at != ROOT {
            let (parent, name) = table.entries.get(&at)?.names.first()?;
            names.push(name.clone());
            at = *parent;
        }
        let mut path = self.hot.clone();
        path.extend(names.iter().rev());
        Some(path)
    }

    /// The node that a name is known to lead to.
    #[must_use]
    pub fn known(&self, parent: u64, name: &OsStr) -> Option<u64> {
        self.table.read().by_name.get(&(parent, name.to_owned())).copied()
    }

    /// The number that a name's file has or would get, for directory listings.
    #[must_use]
    pub fn number_of(&self, parent: u64, name: &OsStr, kind: &NodeKind) -> u64 {
        let known = self.known(parent, name).or_else(|| self.table.read().same_file(kind));
        known.or_else(|| kind.number()).unwrap_or(OTHER_NUMBERS)
    }

    /// The node for a name that exists, one lookup more.
    pub fn remember(&self, parent: u64, name: &OsStr, kind: NodeKind) -> Arc<Node> {
        let mut table = self.table.write();
        let key = (parent, name.to_owned());
        let known = match &kind {
            NodeKind::Log(_) => table.same_file(&kind).or_else(|| table.grown_up(&key)),
            NodeKind::Plain(_) => {
                table.by_name.get(&key).copied().or_else(|| table.same_file(&kind))
            }
        };
        let node = match known.and_then(|ino| table.entries.get(&ino)).map(|e| e.node.clone()) {
            Some(node) => {
                Self::set_kind(&mut table, &node, kind);
                node
            }
            None => table.insert(kind),
        };
        table.name(node.ino, parent, name);
        if let Some(entry) = table.entries.get_mut(&node.ino) {
            entry.lookups += 1;
        }
        node
    }

    /// A second name was made for a node.
    pub fn linked(&self, ino: u64, parent: u64, name: &OsStr) {
        self.table.write().name(ino, parent, name);
    }

    fn set_kind(table: &mut Table, node: &Arc<Node>, kind: NodeKind) {
        if let NodeKind::Log(log) = &kind {
            table.by_log.insert(log.id, node.ino);
            *node.kind.write() = kind;
        }
    }

    /// A plain file became a `.log` by a rename.
    pub fn becomes_log(&self, ino: u64, log: Arc<LogFile>) {
        let mut table = self.table.write();
        if let Some(node) = table.entries.get(&ino).map(|e| e.node.clone()) {
            Self::set_kind(&mut table, &node, NodeKind::Log(log));
        }
    }

    /// The kernel forgot `n` lookups.
    pub fn forget(&self, ino: u64, n: u64) {
        let mut table = self.table.write();
        let Some(entry) = table.entries.get_mut(&ino) else { return };
        entry.lookups = entry.lookups.saturating_sub(n);
        let idle = entry.lookups == 0 && entry.node.opens.load(Ordering::Acquire) == 0;
        if idle && ino != ROOT {
            table.remove(ino);
        }
    }

    /// A descriptor was closed; the node may go.
    pub fn closed(&self, node: &Node) {
        if node.opens.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.forget(node.ino, 0);
        }
    }

    /// A name was removed.
    pub fn unlinked(&self, parent: u64, name: &OsStr) {
        self.table.write().unlink(parent, name);
    }

    /// A name was moved, over another if that existed.
    pub fn renamed(&self, parent: u64, name: &OsStr, new_parent: u64, new_name: &OsStr) {
        let mut table = self.table.write();
        let moved = table.unlink(parent, name);
        table.unlink(new_parent, new_name);
        if let Some(ino) = moved {
            table.name(ino, new_parent, new_name);
        }
    }

    /// Two names changed places.
    pub fn exchanged(&self, one: (u64, &OsStr), other: (u64, &OsStr)) {
        let mut table = self.table.write();
        let (first, second) = (table.unlink(one.0, one.1), table.unlink(other.0, other.1));
        if let Some(ino) = first {
            table.name(ino, other.0, other.1);
        }
        if let Some(ino) = second {
            table.name(ino, one.0, one.1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file whose number on disk is its name's length times 100.
    fn plain(nodes: &Nodes, parent: u64, name: &str) -> Arc<Node> {
        numbered(nodes, parent, name, 100 * name.len() as u64)
    }

    fn numbered(nodes: &Nodes, parent: u64, name: &str, number: u64) -> Arc<Node> {
        nodes.remember(parent, OsStr::new(name), NodeKind::Plain(number))
    }

    #[test]
    fn renaming_a_directory_moves_what_is_below() {
        let nodes = Nodes::new(Path::new("/hot"));
        let dir = plain(&nodes, ROOT, "a-0");
        let file = plain(&nodes, dir.ino, "x");
        nodes.renamed(ROOT, OsStr::new("a-0"), ROOT, OsStr::new("b-0"));
        assert_eq!(nodes.path(file.ino).unwrap(), Path::new("/hot/b-0/x"));
        assert_eq!(nodes.first_level_name(dir.ino).unwrap(), "b-0");
    }

    #[test]
    fn a_replaced_name_leads_to_the_new_file_and_the_old_node_has_no_path() {
        let nodes = Nodes::new(Path::new("/hot"));
        let (new, old) = (plain(&nodes, ROOT, "c.tmp"), plain(&nodes, ROOT, "c"));
        nodes.renamed(ROOT, OsStr::new("c.tmp"), ROOT, OsStr::new("c"));
        assert_eq!(nodes.known(ROOT, OsStr::new("c")), Some(new.ino));
        assert_eq!(nodes.path(old.ino), None);
        assert_eq!(nodes.path(new.ino).unwrap(), Path::new("/hot/c"));
    }

    #[test]
    fn a_forgotten_node_is_gone_and_an_open_one_stays_until_it_is_closed() {
        let nodes = Nodes::new(Path::new("/hot"));
        let node = plain(&nodes, ROOT, "x");
        node.opens.fetch_add(1, Ordering::AcqRel);
        nodes.forget(node.ino, 1);
        assert!(nodes.get(node.ino).is_some());
        nodes.closed(&node);
        assert!(nodes.get(node.ino).is_none());
        assert_eq!(nodes.table.read().entries.len(), 1);
    }

    #[test]
    fn hard_links_are_one_node_under_all_their_names() {
        let nodes = Nodes::new(Path::new("/hot"));
        let first = numbered(&nodes, ROOT, "a", 77);
        assert_eq!(first.ino, 77);
        let second = numbered(&nodes, ROOT, "b", 77);
        assert_eq!(second.ino, first.ino);
        nodes.linked(first.ino, ROOT, OsStr::new("c"));
        nodes.unlinked(ROOT, OsStr::new("a"));
        assert_eq!(nodes.path(77).unwrap(), Path::new("/hot/b"));
        nodes.renamed(ROOT, OsStr::new("b"), ROOT, OsStr::new("d"));
        nodes.unlinked(ROOT, OsStr::new("c"));
        assert_eq!(nodes.path(77).unwrap(), Path::new("/hot/d"));
        nodes.unlinked(ROOT, OsStr::new("d"));
        assert_eq!(nodes.path(77), None);
    }

    #[test]
    fn a_number_that_the_disk_gives_out_again_is_not_taken_for_the_file_that_had_it() {
        let nodes = Nodes::new(Path::new("/hot"));
        let old = numbered(&nodes, ROOT, "a", 77);
        nodes.unlinked(ROOT, OsStr::new("a"));
        let new = numbered(&nodes, ROOT, "b", 77);
        assert_ne!(new.ino, old.ino);
        assert_eq!(nodes.number_of(ROOT, OsStr::new("b"), &NodeKind::Plain(77)), new.ino);
        nodes.forget(old.ino, 1);
        nodes.forget(new.ino, 1);
        assert_eq!(numbered(&nodes, ROOT, "c", 77).ino, 77);
    }

    #[test]
    fn two_names_that_change_places_lead_to_each_others_files() {
        let nodes = Nodes::new(Path::new("/hot"));
        let (a, b) = (plain(&nodes, ROOT, "a"), plain(&nodes, ROOT, "bb"));
        nodes.exchanged((ROOT, OsStr::new("a")), (ROOT, OsStr::new("bb")));
        assert_eq!(nodes.path(a.ino).unwrap(), Path::new("/hot/bb"));
        assert_eq!(nodes.path(b.ino).unwrap(), Path::new("/hot/a"));
    }
}
