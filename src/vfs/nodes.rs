//! Inodes of the log dir: which number the kernel knows each name by.
//!
//! A node lives while the kernel remembers it (lookups) or somebody has it open. Its path is found by
//! walking up, so renaming a directory moves everything below. A `.log` is found through the
//! catalogue instead, which knows where the file is now.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};

use crate::catalog::LogFile;

/// The root's number.
pub const ROOT: u64 = 1;

/// What a node stands for.
#[derive(Clone, Debug)]
pub enum NodeKind {
    /// Anything on local disk that is no `.log`.
    Plain,
    /// A `.log` of a partition.
    Log(Arc<LogFile>),
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
            NodeKind::Plain => None,
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
    parent: u64,
    name: OsString,
    /// The name still leads here.
    linked: bool,
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
    fn insert(&mut self, parent: u64, name: &OsStr, kind: NodeKind) -> Arc<Node> {
        self.last += 1;
        let ino = self.last;
        if let NodeKind::Log(log) = &kind {
            self.by_log.insert(log.id, ino);
        }
        let node = new_node(ino, kind);
        let name = name.to_owned();
        self.by_name.insert((parent, name.clone()), ino);
        let entry = Entry { node: node.clone(), parent, name, linked: true, lookups: 0 };
        self.entries.insert(ino, entry);
        node
    }

    /// The name leads nowhere from now on.
    fn unlink(&mut self, parent: u64, name: &OsStr) {
        if let Some(ino) = self.by_name.remove(&(parent, name.to_owned()))
            && let Some(entry) = self.entries.get_mut(&ino)
        {
            entry.linked = false;
        }
    }

    fn remove(&mut self, ino: u64) {
        if let Some(entry) = self.entries.remove(&ino) {
            if entry.linked {
                self.by_name.remove(&(entry.parent, entry.name));
            }
            if let Some(log) = entry.node.log() {
                self.by_log.remove(&log.id);
            }
        }
    }
}

impl Nodes {
    /// With only the root.
    #[must_use]
    pub fn new(hot: &Path) -> Self {
        let mut table = Table { last: ROOT, ..Table::default() };
        let node = new_node(ROOT, NodeKind::Plain);
        let root = Entry { node, parent: ROOT, name: OsString::new(), linked: true, lookups: 1 };
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
        let entry =
            table.entries.get(&ino).filter(|e| e.parent == ROOT && ino != ROOT && e.linked)?;
        entry.name.to_str().map(str::to_owned)
    }

    /// The path on local disk of a node that is still linked.
    #[must_use]
    pub fn path(&self, ino: u64) -> Option<PathBuf> {
        let table = self.table.read();
        let mut names = Vec::new();
        let mut at = ino;
        while at != ROOT {
            let entry = table.entries.get(&at).filter(|e| e.linked)?;
            names.push(entry.name.clone());
            at = entry.parent;
        }
        let mut path = self.hot.clone();
        path.extend(names.iter().rev());
        Some(path)
    }

    /// The number a name has already, for directory listings.
    #[must_use]
    pub fn known(&self, parent: u64, name: &OsStr) -> Option<u64> {
        self.table.read().by_name.get(&(parent, name.to_owned())).copied()
    }

    /// The node for a name that exists, one lookup more.
    pub fn remember(&self, parent: u64, name: &OsStr, kind: NodeKind) -> Arc<Node> {
        let mut table = self.table.write();
        let key = (parent, name.to_owned());
        let known = match &kind {
            NodeKind::Log(log) => table.by_log.get(&log.id).copied(),
            NodeKind::Plain => table.by_name.get(&key).copied(),
        };
        let known = known.or_else(|| {
            let ino = table.by_name.get(&key).copied()?;
            let entry = table.entries.get(&ino)?;
            let idle = entry.node.opens.load(Ordering::Acquire) == 0;
            let was_plain = matches!(entry.node.kind(), NodeKind::Plain);
            (idle && was_plain).then_some(ino)
        });
        let node = match known.and_then(|ino| table.entries.get(&ino)).map(|e| e.node.clone()) {
            Some(node) => {
                Self::set_kind(&mut table, &node, kind);
                node
            }
            None => {
                table.unlink(parent, name);
                table.insert(parent, name, kind)
            }
        };
        if let Some(entry) = table.entries.get_mut(&node.ino) {
            entry.lookups += 1;
        }
        node
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
        table.unlink(new_parent, new_name);
        if let Some(ino) = table.by_name.remove(&(parent, name.to_owned())) {
            if let Some(entry) = table.entries.get_mut(&ino) {
                entry.parent = new_parent;
                entry.name = new_name.to_owned();
            }
            table.by_name.insert((new_parent, new_name.to_owned()), ino);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(nodes: &Nodes, parent: u64, name: &str) -> Arc<Node> {
        nodes.remember(parent, OsStr::new(name), NodeKind::Plain)
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
}
