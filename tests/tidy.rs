//! Keeps the promises about the sources that no compiler checks: layers, sizes, where `fuser` and
//! `unsafe` may stand, and that every promise in `docs/SEMANTICS.md` names a test that exists.
//!
//! Each rule is a function of text to findings; the first tests hold the tree to the rules, the rest
//! show that each rule can find something.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A module names only modules of lower rank; equal ranks are siblings and never meet.
const RANKS: &[(&str, u8)] = &[
    ("types", 0),
    ("clock", 1),
    ("failpoint", 1),
    ("telemetry", 1),
    ("kafka", 2),
    ("local", 3),
    ("store", 3),
    ("cache", 3),
    ("manifest", 4),
    ("catalog", 4),
    ("read", 5),
    ("tier", 5),
    ("vfs", 6),
    ("fuse", 7),
    ("cli", 8),
];
const FILE_LINES_MAX: usize = 700;
/// Modules that may name the `fuser` crate.
const FUSER_MODULES: &[&str] = &["fuse"];
/// Modules that may contain `unsafe`.
const UNSAFE_MODULES: &[&str] = &["fuse", "local"];

struct Source {
    /// From the project's root.
    path: String,
    /// As it stands.
    text: String,
    /// Without comments and without what stands between quotes.
    code: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), text: text.to_owned(), code: code_only(text) }
    }

    /// `foo`, `bar` of `src/foo/bar.rs`.
    fn modules(&self) -> Vec<&str> {
        let inner = self.path.strip_prefix("src/").unwrap_or(&self.path);
        inner.strip_suffix(".rs").unwrap_or(inner).split('/').collect()
    }

    fn is_root(&self) -> bool {
        matches!(self.path.as_str(), "src/lib.rs" | "src/main.rs")
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            rust_files(&path, found)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found.sort();
    Ok(())
}

fn sources(top: &str) -> std::io::Result<Vec<Source>> {
    let mut paths = Vec::new();
    rust_files(&root().join(top), &mut paths)?;
    paths
        .iter()
        .map(|path| {
            let name = path.strip_prefix(root()).unwrap_or(path).to_string_lossy();
            Ok(Source::new(&name, &fs::read_to_string(path)?))
        })
        .collect()
}

/// How many characters a string or char literal at the start of `rest` has, if there is one.
fn literal_len(rest: &[char]) -> Option<usize> {
    let quote_end = |from: usize, quote: char| {
        let mut at = from;
        while at < rest.len() && rest[at] != quote {
            at += if rest[at] == '\\' { 2 } else { 1 };
        }
        at + 1
    };
    match rest {
        ['"', ..] => Some(quote_end(1, '"')),
        ['\'', '\\', ..] => Some(quote_end(1, '\'')),
        ['\'', _, '\'', ..] => Some(3),
        ['r', '"' | '#', ..] => {
            let hashes = rest[1..].iter().take_while(|&&c| c == '#').count();
            let open = 1 + hashes;
            if rest.get(open) != Some(&'"') {
                return None;
            }
            let closing = |at: &usize| {
                rest[*at] == '"' && rest[at + 1..].iter().take(hashes).all(|&c| c == '#')
            };
            let end = (open + 1..rest.len()).find(closing).unwrap_or(rest.len());
            Some(end + 1 + hashes)
        }
        _ => None,
    }
}

/// How many characters a comment at the start of `rest` has, if there is one.
fn comment_len(rest: &[char]) -> Option<usize> {
    match rest {
        ['/', '/', ..] => Some(rest.iter().take_while(|&&c| c != '\n').count()),
        ['/', '*', ..] => {
            let (mut at, mut depth) = (2, 1);
            while at < rest.len() && depth > 0 {
                match &rest[at..] {
                    ['/', '*', ..] => (at, depth) = (at + 2, depth + 1),
                    ['*', '/', ..] => (at, depth) = (at + 2, depth - 1),
                    _ => at += 1,
                }
            }
            Some(at)
        }
        _ => None,
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn code_only(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let rest = &chars[at..];
        let inside_word = code.chars().next_back().is_some_and(is_word);
        let literal = if inside_word && rest[0] == 'r' { None } else { literal_len(rest) };
        if let Some(length) = comment_len(rest).or(literal) {
            code.push(' ');
            at += length.max(1);
        } else {
            code.push(chars[at]);
            at += 1;
        }
    }
    code
}

/// Where `word` stands as a whole word: the text behind each place.
fn behind_word<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = &'a str> {
    code.match_indices(word).filter_map(move |(at, _)| {
        let rest = &code[at + word.len()..];
        let starts = !code[..at].chars().next_back().is_some_and(is_word);
        (starts && !rest.chars().next().is_some_and(is_word)).then_some(rest)
    })
}

/// The names directly behind a path's `::`: one, or each at the top of a `{…}` group.
fn first_names(rest: &str) -> Vec<String> {
    let word = |text: &str| text.trim_start().chars().take_while(|&c| is_word(c)).collect();
    let rest = rest.trim_start();
    let Some(group) = rest.strip_prefix('{') else {
        return vec![word(rest)];
    };
    let (mut depth, mut names, mut item) = (0, Vec::new(), String::new());
    for c in group.chars() {
        match c {
            '}' if depth == 0 => break,
            ',' if depth == 0 => names.push(std::mem::take(&mut item)),
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        item.push(c);
    }
    names.push(item);
    let names = names.iter().map(|item| word(item.trim_start_matches([',', ' ', '\n'])));
    names.filter(|name: &String| !name.is_empty()).collect()
}

/// Top modules that a file names: behind `crate::`, or behind enough `super::` to leave its own.
fn named_modules(source: &Source) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for rest in behind_word(&source.code, "crate") {
        if let Some(path) = rest.trim_start().strip_prefix("::") {
            names.extend(first_names(path));
        }
    }
    let depth = source.modules().len();
    for mut rest in behind_word(&source.code, "super") {
        let mut supers = 1;
        while let Some(path) = rest.trim_start().strip_prefix("::") {
            rest = path.trim_start();
            match rest.strip_prefix("super") {
                Some(more) if !more.starts_with(is_word) => (supers, rest) = (supers + 1, more),
                _ => break,
            }
        }
        // An inline module counts as one level more, and is not told apart here.
        let top = |name: &String| RANKS.iter().any(|(module, _)| module == name);
        if supers == depth {
            names.extend(first_names(rest).into_iter().filter(top));
        } else if supers > depth {
            names.extend(first_names(rest));
        }
    }
    names
}

fn rank(module: &str) -> Option<u8> {
    RANKS.iter().find(|(name, _)| *name == module).map(|(_, rank)| *rank)
}

fn layer_findings(source: &Source) -> Vec<String> {
    let path = &source.path;
    if source.is_root() {
        return Vec::new();
    }
    let own = source.modules()[0];
    let Some(own_rank) = rank(own) else {
        return vec![format!("{path}: module '{own}' has no rank: add it to RANKS")];
    };
    let judge = |name: &String| match rank(name) {
        _ if name == own => None,
        None => Some(format!("{path}: names crate::{name}, which is no module with a rank")),
        Some(other) if other < own_rank => None,
        Some(other) if other == own_rank => Some(format!(
            "{path}: '{own}' names its sibling '{name}' (both rank {other}): siblings never meet"
        )),
        Some(other) => Some(format!(
            "{path}: '{own}' (rank {own_rank}) names '{name}' (rank {other}): imports point down"
        )),
    };
    named_modules(source).iter().filter_map(judge).collect()
}

fn shape_findings(source: &Source) -> Vec<String> {
    let path = &source.path;
    let mut findings = Vec::new();
    if !source.text.starts_with("//!") {
        findings.push(format!("{path}: does not begin with '//!' and why it exists"));
    }
    let lines = source.text.lines().count();
    let is_tests = source.modules().contains(&"tests");
    if lines > FILE_LINES_MAX && !is_tests {
        findings.push(format!("{path}: {lines} lines, {FILE_LINES_MAX} are the limit"));
    }
    findings
}

fn restricted_findings(source: &Source) -> Vec<String> {
    let own = source.modules()[0];
    let mut findings = Vec::new();
    for (word, allowed) in [("fuser", FUSER_MODULES), ("unsafe", UNSAFE_MODULES)] {
        if !allowed.contains(&own) && behind_word(&source.code, word).next().is_some() {
            findings.push(format!("{}: '{word}' may stand only in {allowed:?}", source.path));
        }
    }
    findings
}

/// Names in backticks behind `test:` or `tests:`; of a path the last part.
fn promised_tests(document: &str) -> Vec<(usize, String)> {
    let mut promised = Vec::new();
    for (line, text) in (1..).zip(document.lines()) {
        let Some((_, names)) = text.split_once("test: `").or(text.split_once("tests: `")) else {
            continue;
        };
        for name in names.split('`').step_by(2) {
            let name = name.rsplit("::").next().unwrap_or(name);
            if !name.is_empty() {
                promised.push((line, name.to_owned()));
            }
        }
    }
    promised
}

/// Headings of the numbered sections (the laws) that name no test.
fn untested_sections(document: &str) -> Vec<&str> {
    let sections = document.split("\n## ").skip(1);
    let numbered = sections.filter(|section| section.starts_with(|c: char| c.is_ascii_digit()));
    let untested = numbered.filter(|section| promised_tests(section).is_empty());
    untested.filter_map(|section| section.lines().next()).collect()
}

fn promise_findings(document: &str, sources: &[Source]) -> Vec<String> {
    let promised = promised_tests(document);
    if promised.is_empty() {
        return vec!["docs/SEMANTICS.md: no line names a test".to_owned()];
    }
    let is_there = |name: &str| {
        let is_fn = |rest: &str| first_names(rest) == [name];
        sources.iter().any(|source| behind_word(&source.code, "fn").any(is_fn))
    };
    let missing = promised.into_iter().filter(|(_, name)| !is_there(name));
    let missing = missing.map(|(line, name)| format!("docs/SEMANTICS.md:{line}: no test '{name}'"));
    let untested = untested_sections(document).into_iter();
    missing
        .chain(untested.map(|heading| format!("docs/SEMANTICS.md: '{heading}' names no test")))
        .collect()
}

fn hold(findings: impl IntoIterator<Item = String>) {
    let findings: Vec<String> = findings.into_iter().collect();
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
}

#[test]
fn imports_point_down_and_siblings_never_meet() {
    let sources = sources("src").unwrap();
    assert!(sources.len() > 20, "the sources were not found");
    hold(sources.iter().flat_map(layer_findings));
}

#[test]
fn every_file_says_why_it_exists_and_can_be_read_in_one_sitting() {
    hold(sources("src").unwrap().iter().flat_map(shape_findings));
}

#[test]
fn fuser_and_unsafe_stay_where_they_belong() {
    hold(sources("src").unwrap().iter().flat_map(restricted_findings));
}

#[test]
fn every_promise_names_a_test_that_exists() {
    let path = root().join("docs/SEMANTICS.md");
    let document = fs::read_to_string(path).expect("docs/SEMANTICS.md is missing");
    let mut all = sources("src").unwrap();
    all.extend(sources("tests").unwrap());
    hold(promise_findings(&document, &all));
}

#[test]
fn the_layer_rule_finds_siblings_upward_imports_and_strangers() {
    let findings = |path: &str, text: &str| layer_findings(&Source::new(path, text)).join("; ");
    let upward = findings("src/kafka/scan.rs", "use crate::vfs::Errno;");
    assert!(upward.contains("imports point down"), "{upward}");
    let sibling = findings("src/cache.rs", "fn f() { crate::store::get() }");
    assert!(sibling.contains("siblings never meet"), "{sibling}");
    let group = "use crate::{\n    types::{self, ids},\n    store::{Store, cache},\n    kafka,\n};";
    let grouped = findings("src/cache/map.rs", group);
    assert!(grouped.contains("'store'") && !grouped.contains(';'), "{grouped}");
    assert!(findings("src/new.rs", "").contains("has no rank"));
    assert!(findings("src/read.rs", "use crate::helpers::x;").contains("no module with a rank"));
    assert!(findings("src/read/a.rs", "use super::super::tier::x;").contains("siblings"));
    assert!(findings("src/read.rs", "use super::{tier, types};").contains("siblings"));
    assert_eq!(findings("src/read/a.rs", "use super::tier; use crate::{kafka, types};"), "");
    assert_eq!(
        findings("src/types/a.rs", "// crate::vfs\nfn f() -> &str { \"crate::vfs::x\" }"),
        ""
    );
    assert_eq!(findings("src/types/a.rs", "pub(crate) struct Supercrate;"), "");
}

#[test]
fn the_shape_rule_finds_long_files_and_files_without_a_reason() {
    let long = "//! Why.\n".to_owned() + &"fn f() {}\n".repeat(FILE_LINES_MAX);
    assert_eq!(shape_findings(&Source::new("src/read/a.rs", &long)).len(), 1);
    assert_eq!(shape_findings(&Source::new("src/read/tests.rs", &long)).len(), 0);
    assert_eq!(shape_findings(&Source::new("src/read/a.rs", "use std;\n")).len(), 1);
}

#[test]
fn the_word_rule_finds_code_and_passes_over_text() {
    let findings = |path: &str, text: &str| restricted_findings(&Source::new(path, text)).len();
    assert_eq!(findings("src/vfs.rs", "use fuser::Session;"), 1);
    assert_eq!(findings("src/vfs.rs", "let c = '\"'; unsafe { f() } // \""), 1);
    assert_eq!(findings("src/vfs.rs", "let l: &'a str = r#\"\"unsafe\"#; unsafe {}"), 1);
    assert_eq!(findings("src/fuse/glue.rs", "use fuser::Session; unsafe { f() }"), 0);
    let text = "/* unsafe /* fuser:: */ unsafe */ // fuser\nlet x = \"\\\"unsafe\"; unsafe_fn();";
    assert_eq!(findings("src/vfs.rs", text), 0);
}

#[test]
fn the_promise_rule_finds_tests_that_are_not_there() {
    let sources = [Source::new("src/a.rs", "#[test]\nfn is_there() {}\n// fn is_gone() {}")];
    let document = "Law.\n- held. test: `a::is_there`\n- broken. tests: `is_there`, `is_gone`\n";
    let findings = promise_findings(document, &sources);
    assert_eq!(findings, ["docs/SEMANTICS.md:3: no test 'is_gone'"]);
    assert_eq!(promise_findings("Promises, no tests.", &sources).len(), 1);
    let document = "\n## 1. Tested\ntest: `is_there`\n## 2. Not\nSurely.\n## Words\nNone.\n";
    let findings = promise_findings(document, &sources);
    assert_eq!(findings, ["docs/SEMANTICS.md: '2. Not' names no test"]);
}
