//! The store as a whole: the suite on memory and on a directory, faults, deadlines, counters,
//! the probe, the identity.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::clock::random_u64;
use crate::types::ObjectKey;

use super::*;

fn options() -> StoreOptions {
    StoreOptions { request_timeout_ms: 5_000, ..StoreOptions::default() }
}

fn memory() -> Store {
    let url = format!("memory://test-{:016x}", random_u64()).parse().unwrap();
    Store::open(&url, options()).unwrap()
}

fn directory(dir: &std::path::Path) -> Store {
    let url = format!("file://{}", dir.display()).parse().unwrap();
    Store::open(&url, options()).unwrap()
}

fn key(name: &str) -> ObjectKey {
    ObjectKey(name.to_owned())
}

fn faulty(store: &Store, fault: impl Fn(Op, &ObjectKey) -> Fault + Send + Sync + 'static) -> Store {
    store.with_faults(Arc::new(fault))
}

#[tokio::test]
async fn a_store_in_memory_conforms() {
    conformance::run(&memory()).await.unwrap();
}

#[tokio::test]
async fn a_store_in_a_directory_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let odd = dir.path().join("a b#1%20é");
    std::fs::create_dir(&odd).unwrap();
    let url = ::url::Url::from_file_path(&odd).unwrap().to_string();
    let store = Store::open(&url.parse().unwrap(), options()).unwrap();
    conformance::run(&store).await.unwrap();
    probe(&store).await.unwrap();
    let found = std::fs::read_dir(odd.join("probe")).map_or(0, Iterator::count);
    assert!(found <= 1, "the probe left {found} names behind");
}

#[tokio::test]
async fn two_opens_of_one_memory_store_see_the_same_objects() {
    let store = memory();
    store.put_overwrite(&key("a"), Bytes::from_static(b"x")).await.unwrap();
    let again = Store::open(store.url(), options()).unwrap();
    assert_eq!(again.get(&key("a"), 1).await.unwrap().as_ref(), b"x");
}

#[tokio::test]
async fn a_directory_that_is_missing_is_an_error_and_is_not_created() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    let store = directory(&missing);
    for error in [
        store.get(&key("a"), 1).await.unwrap_err(),
        store.put_overwrite(&key("a"), Bytes::new()).await.unwrap_err(),
        store.list("chains", 1).await.unwrap_err(),
        probe(&store).await.unwrap_err(),
    ] {
        assert_eq!(error.kind, StoreErrorKind::NoBucket, "{error}");
        assert!(error.to_string().contains("mkdir -p"), "{error}");
    }
    assert!(!missing.exists());
    std::fs::write(&missing, "a file").unwrap();
    assert_eq!(probe(&store).await.unwrap_err().kind, StoreErrorKind::Invalid);
}

#[tokio::test]
async fn a_directory_whose_disk_went_away_does_not_look_like_an_empty_store() {
    let dir = tempfile::tempdir().unwrap();
    let (root, away) = (dir.path().join("store"), dir.path().join("away"));
    std::fs::create_dir(&root).unwrap();
    let store = directory(&root);
    ensure_identity(&store, "cluster", 1, 2).await.unwrap();
    std::fs::rename(&root, &away).unwrap();
    let gone = store.get(&key("topics/x"), 1).await.unwrap_err();
    assert_eq!(gone.kind, StoreErrorKind::Unavailable, "{gone}");
    std::fs::create_dir(&root).unwrap();
    let empty = store.get(&key("topics/x"), 1).await.unwrap_err();
    assert_eq!(empty.kind, StoreErrorKind::Unavailable, "{empty}");
    let write = store.put_if_absent(&key("topics/x"), Bytes::new()).await.unwrap_err();
    assert_eq!(write.kind, StoreErrorKind::Unavailable, "{write}");
    assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0, "nothing was written there");
    std::fs::remove_dir(&root).unwrap();
    std::fs::rename(&away, &root).unwrap();
    let absent = store.get(&key("topics/x"), 1).await.unwrap_err();
    assert_eq!(absent.kind, StoreErrorKind::NotFound, "{absent}");
}

#[tokio::test]
async fn a_directory_that_is_moved_away_while_it_is_written_is_not_made_anew_and_works_again_when_it_is_back()
 {
    let dir = tempfile::tempdir().unwrap();
    let (root, away) = (dir.path().join("store"), dir.path().join("away"));
    std::fs::create_dir(&root).unwrap();
    let store = directory(&root);
    ensure_identity(&store, "cluster", 1, 2).await.unwrap();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (stopping, writing) = (Arc::clone(&stop), store.clone());
    let writer = tokio::spawn(async move {
        let (mut done, mut failed) = (Vec::new(), 0);
        for i in 0.. {
            if stopping.load(Ordering::SeqCst) {
                break;
            }
            let key = key(&format!("topics/a-{i}/b/{i}"));
            match writing.put_if_absent(&key, Bytes::from_static(b"x")).await {
                Ok(_) => done.push(key),
                Err(e) => {
                    assert_eq!(e.kind, StoreErrorKind::Unavailable, "{e}");
                    failed += 1;
                }
            }
        }
        (done, failed)
    });
    for _ in 0..200 {
        std::fs::rename(&root, &away).unwrap();
        tokio::task::yield_now().await;
        assert!(!root.exists(), "it was made anew");
        std::fs::rename(&away, &root).unwrap();
        tokio::task::yield_now().await;
    }
    stop.store(true, Ordering::SeqCst);
    let (done, failed) = writer.await.unwrap();
    for key in &done {
        assert_eq!(store.get(key, 1).await.unwrap().as_ref(), b"x");
    }
    assert!(!done.is_empty(), "after {failed} failures");
    store.put_overwrite(&key("topics/back"), Bytes::new()).await.unwrap();
}

#[tokio::test]
async fn a_directory_of_another_store_under_the_same_name_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let (root, away) = (dir.path().join("store"), dir.path().join("away"));
    std::fs::create_dir(&root).unwrap();
    let store = directory(&root);
    ensure_identity(&store, "cluster", 1, 2).await.unwrap();
    std::fs::rename(&root, &away).unwrap();
    std::fs::create_dir(&root).unwrap();
    ensure_identity(&directory(&root), "cluster", 1, 3).await.unwrap();
    let own = store.with_own_connections().unwrap();
    for store in [&store, &own] {
        let other = store.put_overwrite(&key("x"), Bytes::new()).await.unwrap_err();
        assert_eq!(other.kind, StoreErrorKind::Unavailable, "{other}");
        assert!(other.message.contains("another store"), "{other}");
    }
    // A copy of the store is the store.
    std::fs::copy(away.join("everlog.json"), root.join("everlog.json")).unwrap();
    store.put_overwrite(&key("x"), Bytes::new()).await.unwrap();
}

#[tokio::test]
async fn a_request_that_hangs_ends_at_its_deadline() {
    let url = memory().url().clone();
    let short = StoreOptions { request_timeout_ms: 30, ..StoreOptions::default() };
    let hanging = faulty(&Store::open(&url, short).unwrap(), |_, _| Fault::Hang);
    let error = hanging.get(&key("a"), 1).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Unavailable);
    assert!(error.message.contains("no answer within"), "{error}");
    let counters = hanging.counters().snapshot();
    assert_eq!((counters.get, counters.errors, counters.failed_in_a_row), (1, 1, 1));
    assert!(counters.last_error.unwrap().what.starts_with("get a: no answer"));
}

#[tokio::test]
async fn requests_bytes_and_recovery_are_counted() {
    let store = memory();
    store.put_overwrite(&key("a"), Bytes::from_static(b"12345")).await.unwrap();
    store.get_range(&key("a"), 1..3).await.unwrap();
    let failing = faulty(&store, |_, _| Fault::Fail(StoreErrorKind::Denied));
    failing.head(&key("a")).await.unwrap_err();
    assert_eq!(store.counters().snapshot().failed_in_a_row, 1);
    store.get(&key("absent"), 1).await.unwrap_err();
    let now = store.counters().snapshot();
    assert_eq!((now.put, now.get, now.head, now.errors), (1, 2, 1, 1));
    assert_eq!((now.bytes_up, now.bytes_down, now.failed_in_a_row), (5, 2, 0));
    assert_eq!(now.requests(), 4);
}

#[tokio::test]
async fn a_failed_part_aborts_the_upload_and_leaves_no_object() {
    let dir = tempfile::tempdir().unwrap();
    let store = directory(dir.path());
    let puts = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&puts);
    // The first put begins the upload, the third is its second part.
    let failing = faulty(&store, move |op, _| {
        let nth = if op == Op::Put { seen.fetch_add(1, Ordering::SeqCst) + 1 } else { 0 };
        if nth == 3 { Fault::Fail(StoreErrorKind::Unavailable) } else { Fault::Pass }
    });
    let file = tempfile::tempfile().unwrap();
    file.set_len(40 << 20).unwrap();
    let rate = RateLimiter::new(None);
    let error = failing.put_file(&key("x.log"), &Arc::new(file), 0..40 << 20, &rate).await;
    assert_eq!(error.unwrap_err().kind, StoreErrorKind::Unavailable);
    assert!(puts.load(Ordering::SeqCst) >= 3, "the fault was reached");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "parts stay behind");
}

#[tokio::test]
async fn the_probe_reports_missing_rights_and_cleans_up_behind_itself() {
    let store = memory();
    let unreadable = faulty(&store, |op, _| match op {
        Op::Get => Fault::Fail(StoreErrorKind::Denied),
        _ => Fault::Pass,
    });
    assert_eq!(probe(&unreadable).await.unwrap_err().kind, StoreErrorKind::Denied);
    assert!(store.list("probe", 10).await.unwrap().is_empty(), "the probe cleans up");
}

#[tokio::test]
async fn the_probe_does_not_take_lost_replies_for_a_broken_store() {
    let store = memory();
    let lost = Arc::new(Mutex::new(std::collections::HashSet::new()));
    let seen = Arc::clone(&lost);
    // Of each key's race, the first reply is lost.
    let flaky = faulty(&store, move |op, key| {
        let first = op == Op::Put && seen.lock().insert(key.clone());
        if first && seen.lock().len() > 1 {
            return Fault::LoseReply(StoreErrorKind::Unavailable);
        }
        Fault::Pass
    });
    let error = probe(&flaky).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Unavailable, "{error}");
    assert!(lost.lock().len() > 1, "the fault was reached");
}

#[tokio::test]
async fn a_single_writer_may_use_a_store_without_conditional_puts() {
    let url = memory().url().clone();
    let alone = StoreOptions { single_writer: true, ..options() };
    let store = Store::open(&url, alone).unwrap();
    let created = store.put_if_absent(&key("a"), Bytes::from_static(b"1")).await.unwrap();
    assert_eq!(created, PutOutcome::Created);
    store.conditional_puts_work(false);
    let again = store.put_if_absent(&key("a"), Bytes::from_static(b"2")).await.unwrap();
    assert_eq!(again, PutOutcome::Exists);
    assert_eq!(store.get(&key("a"), 1).await.unwrap().as_ref(), b"1");
    probe(&store).await.unwrap();
    let before = store.counters().snapshot().requests();
    store.put_if_absent(&key("b"), Bytes::new()).await.unwrap();
    let asked = store.counters().snapshot().requests() - before;
    assert_eq!(asked, 1, "the probe has learned that conditional puts work");
}

#[tokio::test]
async fn a_store_of_another_cluster_is_refused() {
    let store = memory();
    assert_eq!(read_identity(&store).await.unwrap(), None);
    let ours = ensure_identity(&store, "ours", 7, 0xabc).await.unwrap();
    assert_eq!(ours.store_id, format!("{:032x}", 0xabc));
    assert_eq!(ensure_identity(&store, "ours", 8, 0xdef).await.unwrap(), ours);
    let error = ensure_identity(&store, "theirs", 9, 1).await.unwrap_err();
    assert!(matches!(&error, IdentityError::Foreign { expected, found }
        if expected == "theirs" && found == "ours"));
}

#[tokio::test]
async fn two_first_mounts_at_once_agree_on_one_identity() {
    let store = memory();
    let (a, b) = futures::join!(
        ensure_identity(&store, "ours", 1, 1),
        ensure_identity(&store, "ours", 2, 2)
    );
    assert_eq!(a.unwrap(), b.unwrap());
}

#[tokio::test]
async fn a_damaged_identity_is_refused() {
    let store = memory();
    ensure_identity(&store, "ours", 1, 1).await.unwrap();
    let bytes = store.get(&names::identity_key(), 1000).await.unwrap();
    for at in 0..bytes.len() - 1 {
        let mut bad = bytes.to_vec();
        bad[at] ^= 1;
        store.put_overwrite(&names::identity_key(), bad.into()).await.unwrap();
        if let Ok(found) = read_identity(&store).await {
            assert_eq!(found.unwrap().cluster_id, "ours", "byte {at} was believed");
        }
    }
}

#[test]
fn a_store_in_a_cloud_is_built_without_contacting_it() {
    let url: StoreUrl = "s3://bucket/prefix".parse().unwrap();
    let store = Store::open(&url, StoreOptions::default()).unwrap();
    assert_eq!(store.counters().snapshot(), CounterSnapshot::default());
}
