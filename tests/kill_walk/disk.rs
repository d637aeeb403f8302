//! Local disk that fails at a chosen call: a small library in front of libc's calls, built from C where the tests run.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::Scratch;
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
    /// Compiles the library.
    pub fn build(scratch: &Scratch) -> PathBuf {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shim/diskfault.c");
        let library = scratch.path().join("diskfault.so");
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-O1", "-Wall", "-o"]).arg(&library).arg(source).arg("-ldl");
        let built =
            cc.output().unwrap_or_else(|e| panic!("cc does not start ({e}): install a C compiler"));
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        library
    }

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
