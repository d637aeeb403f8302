//! The store's conformance suite against a real S3 server, and what its refusals are called.
//!
//! Credentials come from the environment, as for a user; so each test runs itself once more as a child with the environment it wants.

mod common;

use common::children::{bound_command, run};
use common::{S3, Scratch};
use everlog::store::{Store, StoreErrorKind, StoreOptions, conformance};
use everlog::types::ObjectKey;

const CHILD: &str = "EVERLOG_S3_CHILD_URL";

/// In the child: the store that the parent prepared.
fn in_child() -> Option<Store> {
    let url = std::env::var(CHILD).ok()?;
    let options = StoreOptions { single_writer: true, ..StoreOptions::default() };
    Some(Store::open(&url.parse().unwrap(), options).unwrap())
}

fn run_child(test: &str, url: &str, env: Vec<(String, String)>) {
    let mut command = bound_command(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(CHILD, url).envs(env);
    run(command, test);
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(future)
}

fn kind_of_a_read(store: &Store) -> StoreErrorKind {
    block_on(store.get(&ObjectKey("everlog.json".to_owned()), 1000)).unwrap_err().kind
}

#[test]
fn an_s3_server_passes_the_conformance_suite() {
    if let Some(store) = in_child() {
        return block_on(conformance::run(&store)).unwrap();
    }
    let scratch = Scratch::new("s3-conformance");
    let s3 = S3::start(scratch.path());
    for prefix in ["", "some/prefix"] {
        run_child("an_s3_server_passes_the_conformance_suite", &s3.url(prefix), s3.env());
    }
    let left = common::files_under(&s3.bucket());
    assert!(left.iter().all(|p| !p.to_string_lossy().ends_with(".log")), "the suite left {left:?}");
}

#[test]
fn an_empty_bucket_has_no_identity() {
    if let Some(store) = in_child() {
        return assert_eq!(kind_of_a_read(&store), StoreErrorKind::NotFound);
    }
    let scratch = Scratch::new("s3-empty");
    let s3 = S3::start(scratch.path());
    run_child("an_empty_bucket_has_no_identity", &s3.url(""), s3.env());
}

#[test]
fn a_missing_bucket_is_called_so() {
    if let Some(store) = in_child() {
        return assert_eq!(kind_of_a_read(&store), StoreErrorKind::NoBucket);
    }
    let scratch = Scratch::new("s3-nobucket");
    let s3 = S3::start(scratch.path());
    run_child("a_missing_bucket_is_called_so", "s3://nobucket/x", s3.env());
}

#[test]
fn a_wrong_key_is_denied() {
    if let Some(store) = in_child() {
        return assert_eq!(kind_of_a_read(&store), StoreErrorKind::Denied);
    }
    let scratch = Scratch::new("s3-denied");
    let s3 = S3::start(scratch.path());
    let mut env = s3.env();
    env.push(("AWS_SECRET_ACCESS_KEY".to_owned(), "wrong".to_owned()));
    run_child("a_wrong_key_is_denied", &s3.url(""), env);
}

#[test]
fn a_server_that_is_gone_is_unavailable() {
    if let Some(store) = in_child() {
        return assert_eq!(kind_of_a_read(&store), StoreErrorKind::Unavailable);
    }
    let scratch = Scratch::new("s3-gone");
    let mut s3 = S3::start(scratch.path());
    s3.kill9();
    run_child("a_server_that_is_gone_is_unavailable", &s3.url(""), s3.env());
}
