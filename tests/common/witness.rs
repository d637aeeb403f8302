//! Holds every `.log` that a broker creates in the data directory open from its birth, so that its bytes can be compared with the archive
//! after Everlog has given the file up. It opens read-only and touches nothing.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::files::{name, sha256_of};

type Held = BTreeMap<(String, i64), File>;

/// A thread that looks at `hot/` all the time.
pub struct Witness {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Held>>,
}

/// `<20 digits>.log` gives its base offset; `of` is a name in a partition's directory.
pub fn base_offset(of: &str) -> Option<i64> {
    let digits = of.strip_suffix(".log")?;
    if digits.len() == 20 { digits.parse().ok() } else { None }
}

fn look(hot: &Path, held: &mut Held) {
    let Ok(dirs) = std::fs::read_dir(hot) else { return };
    for dir in dirs.flatten() {
        let partition = name(&dir.path());
        let Ok(entries) = std::fs::read_dir(dir.path()) else { continue };
        for entry in entries.flatten() {
            let path: PathBuf = entry.path();
            let Some(base) = base_offset(&name(&path)) else { continue };
            let key = (partition.clone(), base);
            if let std::collections::btree_map::Entry::Vacant(place) = held.entry(key)
                && let Ok(file) = File::open(&path)
            {
                place.insert(file);
            }
        }
    }
}

impl Witness {
    /// Looks at the log dir as it lies on local disk: `<data>/hot`.
    pub fn start(hot: &Path) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (flag, hot) = (stop.clone(), hot.to_owned());
        let thread = std::thread::spawn(move || {
            let mut held = Held::new();
            while !flag.load(Ordering::Relaxed) {
                look(&hot, &mut held);
                std::thread::sleep(Duration::from_millis(20));
            }
            held
        });
        Self { stop, thread: Some(thread) }
    }

    /// SHA-256 of every file it saw, by directory name and base offset.
    pub fn finish(mut self) -> BTreeMap<(String, i64), String> {
        self.stop.store(true, Ordering::Relaxed);
        let held = self.thread.take().unwrap().join().unwrap();
        held.into_iter()
            .map(|((dir, base), file)| {
                let sha = sha256_of(file, &format!("{dir}/{base}"));
                ((dir, base), sha)
            })
            .collect()
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
