//! What a broker may rely on when the power went at a given moment: what it had synced, by its own calls alone. A file that was synced in a
//! directory that was synced is there with these bytes; what came later is there, or not, or in part; and nothing else is there.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::act::{Act, parent};
use crate::disk::Rules;

/// Every name below a root with the file's bytes; `None`: a directory.
pub type Tree = BTreeMap<String, Option<Vec<u8>>>;

/// The calls and, for each, when it began and when it was over, as numbers of recorded events.
pub struct Course {
    pub acts: Vec<Act>,
    pub times: Vec<Range<usize>>,
}

/// One thing that had names.
struct Named {
    /// By which call it got which name; `None`: it had none from then on.
    names: Vec<(usize, Option<String>)>,
    /// The file that took its name.
    replaced_by: Option<usize>,
}

struct LogicalFile {
    named: Named,
    /// After each call that changed it; the first one is the empty file.
    contents: Vec<(usize, Vec<u8>)>,
    synced: Option<usize>,
}

/// Files and directories by the calls that had begun.
pub struct Promise {
    files: Vec<LogicalFile>,
    dirs: Vec<Named>,
    /// What has each name after all that had begun.
    file_at: BTreeMap<String, usize>,
    dir_at: BTreeMap<String, usize>,
    /// Completed syncs: which call, of which directory (`None`: of a file).
    syncs: Vec<(usize, Option<String>)>,
    rules: Rules,
}

impl Named {
    fn new(act: usize, name: &str) -> Self {
        Self { names: vec![(act, Some(name.to_owned()))], replaced_by: None }
    }

    fn now(&self) -> Option<&String> {
        self.names.last().and_then(|(_, name)| name.as_ref())
    }
}

impl Promise {
    /// At event number `cut`.
    pub fn at(course: &Course, cut: usize, rules: Rules) -> Self {
        let mut promise = Self {
            files: Vec::new(),
            dirs: Vec::new(),
            file_at: BTreeMap::new(),
            dir_at: BTreeMap::new(),
            syncs: Vec::new(),
            rules,
        };
        for (number, (act, time)) in course.acts.iter().zip(&course.times).enumerate() {
            if time.start < cut {
                promise.act(number, act, time.end < cut);
            }
        }
        promise
    }

    fn act(&mut self, number: usize, act: &Act, is_over: bool) {
        match act {
            Act::Mkdir(name) => {
                self.dir_at.insert(name.clone(), self.dirs.len());
                self.dirs.push(Named::new(number, name));
            }
            Act::Create(name) => {
                if !self.file_at.contains_key(name) {
                    self.file_at.insert(name.clone(), self.files.len());
                    self.files.push(LogicalFile {
                        named: Named::new(number, name),
                        contents: vec![(number, Vec::new())],
                        synced: None,
                    });
                }
            }
            Act::Write(name, at, bytes) => self.change(number, name, |content| {
                let end = *at as usize + bytes.len();
                content.resize(content.len().max(end), 0);
                content[*at as usize..end].copy_from_slice(bytes);
            }),
            Act::Length(name, len) => {
                self.change(number, name, |content| content.resize(*len as usize, 0));
            }
            Act::Sync(name) if is_over => {
                let file = self.file_at[name];
                self.files[file].synced = Some(number);
                self.syncs.push((number, None));
            }
            Act::SyncDir(name) if is_over => self.syncs.push((number, Some(name.clone()))),
            Act::Sync(_) | Act::SyncDir(_) | Act::Wait(_) | Act::Remount => {}
            Act::Rename(from, to) => self.rename(number, from, to),
            Act::Unlink(name) => {
                let file = self.file_at.remove(name).unwrap_or_else(|| panic!("no {name}"));
                self.files[file].named.names.push((number, None));
            }
            Act::Rmdir(name) => {
                let dir = self.dir_at.remove(name).unwrap();
                self.dirs[dir].names.push((number, None));
            }
        }
    }

    fn change(&mut self, number: usize, name: &str, how: impl FnOnce(&mut Vec<u8>)) {
        let file = &mut self.files[self.file_at[name]];
        let mut content = file.contents.last().unwrap().1.clone();
        how(&mut content);
        file.contents.push((number, content));
    }

    fn rename(&mut self, number: usize, from: &str, to: &str) {
        if let Some(dir) = self.dir_at.remove(from) {
            self.dirs[dir].names.push((number, Some(to.to_owned())));
            self.dir_at.insert(to.to_owned(), dir);
            let inside: Vec<String> =
                self.file_at.keys().filter(|n| parent(n) == from).cloned().collect();
            for name in inside {
                let file = self.file_at.remove(&name).unwrap();
                self.file_at.insert(format!("{to}{}", &name[from.len()..]), file);
            }
            // A file's own name is what follows the directory's: it did not change.
            return;
        }
        let file = self.file_at.remove(from).unwrap_or_else(|| panic!("no {from}"));
        if let Some(old) = self.file_at.insert(to.to_owned(), file) {
            self.files[old].named.names.push((number, None));
            self.files[old].named.replaced_by = Some(file);
        }
        self.files[file].named.names.push((number, Some(to.to_owned())));
    }

    /// The directory's name at each time, for a name that was given at call `number`.
    fn dir_of(&self, name: &str, number: usize) -> Option<usize> {
        let dir = parent(name);
        let has = |d: &Named| {
            let at = d.names.iter().rev().find(|(act, _)| *act <= number);
            at.is_some_and(|(_, n)| n.as_deref() == Some(dir.as_str()))
        };
        if dir.is_empty() { None } else { self.dirs.iter().position(has) }
    }

    /// Whether a change of names that call `number` made in `dir` was made durable later.
    fn is_durable(&self, number: usize, dir: Option<usize>) -> bool {
        self.syncs.iter().any(|(sync, of)| {
            let same = of.as_ref().is_some_and(|name| match dir {
                None => name.is_empty(),
                Some(dir) => {
                    self.dir_of(&format!("{name}/x"), *sync) == Some(dir) && !name.is_empty()
                }
            });
            *sync > number && (same || self.rules == Rules::Journal)
        })
    }

    /// The names that something may have now; `true`: it may have none.
    fn possible(&self, named: &Named) -> (Vec<String>, bool) {
        let mut dir = None;
        let mut durable = None;
        for (at, (number, name)) in named.names.iter().enumerate() {
            if let Some(name) = name {
                dir = self.dir_of(name, *number);
            }
            if self.is_durable(*number, dir) {
                durable = Some(at);
            }
        }
        let mut absent = durable.is_none();
        let mut found = Vec::new();
        for (number, name) in &named.names[durable.unwrap_or(0)..] {
            let Some(name) = name else {
                absent |= named.replaced_by.is_none();
                continue;
            };
            let Some(dir) = self.dir_of(name, *number) else {
                found.push(name.clone());
                continue;
            };
            let (dirs, none) = self.possible(&self.dirs[dir]);
            absent |= none;
            let own = name.rsplit_once('/').unwrap().1;
            found.extend(dirs.iter().map(|dir| format!("{dir}/{own}")));
        }
        (found, absent)
    }

    /// Everything that is wrong with what a mount shows.
    pub fn check(&self, found: &Tree) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut files_at: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        let possible: Vec<_> = self.files.iter().map(|f| self.possible(&f.named)).collect();
        for (file, (names, _)) in possible.iter().enumerate() {
            names.iter().for_each(|n| files_at.entry(n.clone()).or_default().push(file));
        }
        let mut seen = BTreeSet::new();
        for (name, bytes) in found.iter().filter_map(|(n, b)| Some((n, b.as_ref()?))) {
            let Some(candidates) = files_at.get(name) else {
                wrong.push(format!("{name} should not be there"));
                continue;
            };
            let tries: Vec<_> =
                candidates.iter().map(|f| (f, self.files[*f].is_possible(bytes))).collect();
            seen.extend(tries.iter().filter(|(_, done)| done.is_ok()).map(|(f, _)| **f));
            if tries.iter().all(|(_, done)| done.is_err()) {
                let words: Vec<_> = tries.into_iter().filter_map(|(_, done)| done.err()).collect();
                wrong.push(format!("{name}: {}", words.join("; ")));
            }
        }
        for (file, (names, absent)) in possible.iter().enumerate() {
            let mut heir = Some(file);
            while heir.is_some_and(|h| !seen.contains(&h)) {
                heir = heir.and_then(|h| self.files[h].named.replaced_by);
            }
            if !absent && heir.is_none() {
                wrong.push(format!("none of {names:?} is there as it was synced"));
            }
        }
        self.check_dirs(found, &mut wrong);
        wrong
    }

    fn check_dirs(&self, found: &Tree, wrong: &mut Vec<String>) {
        let mut known = BTreeSet::new();
        for (names, absent) in self.dirs.iter().map(|d| self.possible(d)) {
            let is_there = names.iter().any(|n| found.contains_key(n));
            if !absent && !is_there {
                wrong.push(format!("none of the directories {names:?} is there"));
            }
            known.extend(names);
        }
        let dirs = found.iter().filter(|(_, bytes)| bytes.is_none());
        wrong.extend(
            dirs.filter(|(n, _)| !known.contains(*n))
                .map(|(n, _)| format!("the directory {n} should not be there")),
        );
    }

    /// The log dir when everything that had begun is done.
    pub fn target(&self) -> Tree {
        let files = self.file_at.iter().map(|(name, file)| {
            (name.clone(), Some(self.files[*file].contents.last().unwrap().1.clone()))
        });
        self.dir_at.keys().map(|name| (name.clone(), None)).chain(files).collect()
    }

    /// The name that the directory found as `name` has when everything that had begun is done.
    pub fn dir_in_the_end(&self, name: &str) -> Option<String> {
        let named = |d: &&Named| d.names.iter().any(|(_, n)| n.as_deref() == Some(name));
        // Of several that had the name, the last one has it.
        self.dirs.iter().rev().find(named).and_then(|d| d.now().cloned())
    }

    /// Directory and base offset of each segment that retention has begun to take.
    pub fn discarded(&self) -> BTreeSet<(String, i64)> {
        let names = self.files.iter().flat_map(|f| &f.named.names).filter_map(|(_, n)| n.as_ref());
        names
            .filter(|n| n.ends_with(".log.deleted"))
            .filter_map(|n| {
                let (dir, own) = n.split_once('/')?;
                Some((dir.to_owned(), own[..20].parse().ok()?))
            })
            .collect()
    }

    /// All contents that a `.log` of this directory and base offset ever had.
    pub fn contents(&self) -> BTreeMap<(String, i64), Vec<&Vec<u8>>> {
        let mut all: BTreeMap<(String, i64), Vec<&Vec<u8>>> = BTreeMap::new();
        for file in &self.files {
            for name in file.named.names.iter().filter_map(|(_, n)| n.as_ref()) {
                let Some((dir, own)) = name.split_once('/') else { continue };
                let base = own.get(..20).and_then(|d| d.parse().ok());
                if let (Some(base), true) = (base, own.contains(".log")) {
                    let contents = file.contents.iter().map(|(_, c)| c);
                    all.entry((dir.to_owned(), base)).or_default().extend(contents);
                }
            }
        }
        all
    }
}

impl Promise {
    /// Whether these may be the bytes of a discarded segment, and whether they are all that was written.
    pub fn of_discarded(&self, dir: &str, base: i64, bytes: &[u8]) -> Result<bool, String> {
        let name = format!("{dir}/{base:020}.log");
        let is_it = |f: &&LogicalFile| f.named.names.iter().any(|(_, n)| n.as_ref() == Some(&name));
        let files: Vec<_> = self.files.iter().filter(is_it).collect();
        let tries: Vec<_> = files.iter().map(|f| f.is_possible(bytes)).collect();
        if tries.iter().all(Result::is_err) {
            return Err(format!("{name}: {tries:?}"));
        }
        Ok(files.iter().any(|f| f.contents.last().is_some_and(|(_, c)| c == bytes)))
    }
}

impl LogicalFile {
    /// Whether these may be its bytes: what was synced, but for later changes that may have arrived in part.
    fn is_possible(&self, bytes: &[u8]) -> Result<(), String> {
        let is_synced = |(act, _): &&(usize, Vec<u8>)| self.synced.is_some_and(|s| *act < s);
        let count = self.contents.iter().filter(is_synced).count();
        let possible: Vec<&Vec<u8>> =
            self.contents[count.saturating_sub(1)..].iter().map(|(_, c)| c).collect();
        let lens = || possible.iter().map(|c| c.len());
        let (least, most) = (lens().min().unwrap(), lens().max().unwrap());
        if !(least..=most).contains(&bytes.len()) {
            return Err(format!("{} bytes instead of {least} to {most}", bytes.len()));
        }
        for (at, byte) in bytes.iter().enumerate() {
            let written = possible.iter().any(|c| c.get(at) == Some(byte));
            if !(written || *byte == 0 && at >= least) {
                return Err(format!("byte {at} of {} was never written", bytes.len()));
            }
        }
        Ok(())
    }
}
