//! Small libraries in front of libc's calls, built from C where the tests run.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::Scratch;

/// Compiles `tests/shim/<name>.c` into the scratch directory.
pub fn build(scratch: &Scratch, name: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/shim/{name}.c"));
    let library = scratch.path().join(format!("{name}.so"));
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", "-Wall", "-o"]).arg(&library).arg(source).arg("-ldl");
    let built =
        cc.output().unwrap_or_else(|e| panic!("cc does not start ({e}): install a C compiler"));
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    library
}
