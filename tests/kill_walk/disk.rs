//! Local disk that fails at a chosen call: a small library in front of libc's calls.

use std::path::{Path, PathBuf};

use crate::run::Failure;

/// One chosen failure. The library and the test share a file of four numbers: which call fails, with which errno; how many calls there
/// were, how many failed.
pub struct Shim {
    library: PathBuf,
    numbers: PathBuf,
    below: PathBuf,
    nth: u64,
}

impl Shim {
    /// Call number `nth` that changes something below `below` fails; 0: none does.
    pub fn new(library: &Path, numbers: &Path, below: &Path, nth: u64, errno: i32) -> Self {
        let all = [nth, errno as u64, 0, 0].map(u64::to_ne_bytes).concat();
        std::fs::write(numbers, all).unwrap();
        Self {
            library: library.to_owned(),
            numbers: numbers.to_owned(),
            below: below.to_owned(),
            nth,
        }
    }

    fn number(path: &Path, at: usize) -> u64 {
        let bytes = std::fs::read(path).unwrap();
        u64::from_ne_bytes(bytes[at * 8..at * 8 + 8].try_into().unwrap())
    }

    /// Calls so far.
    pub fn calls(&self) -> u64 {
        Self::number(&self.numbers, 2)
    }

    /// Whether the chosen call came.
    pub fn has_failed(&self) -> bool {
        Self::number(&self.numbers, 3) > 0
    }

    /// For a run. It need not happen: the number of calls depends on time.
    pub fn failure(&self) -> Failure {
        let numbers = self.numbers.clone();
        let env = [
            ("LD_PRELOAD", &self.library),
            ("DISKFAULT_NUMBERS", &self.numbers),
            ("DISKFAULT_BELOW", &self.below),
        ];
        Failure {
            what: format!("call {} to local disk fails", self.nth),
            env: env.iter().map(|(n, v)| ((*n).to_owned(), v.display().to_string())).collect(),
            happened: Box::new(move || Self::number(&numbers, 3) > 0),
            watched: true,
            kills: false,
            may_lose: true,
        }
    }
}
