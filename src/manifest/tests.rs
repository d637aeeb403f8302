//! The manifest as a whole, on stores in memory: commits that race, replies that get lost, documents
//! that are damaged, and the mirror.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;

use crate::clock::{Clock, random_u64};
use crate::store::names::{self, ManifestName};
use crate::store::{Fault, Op, Store, StoreErrorKind, StoreOptions};
use crate::types::{ArchivedSegment, ChainId, FileSizes, Sha256, TopicPartition, UploadId};

use super::*;

mod damage;
mod mirrored;
mod races;

fn memory() -> Store {
    let url = format!("memory://manifest-{:016x}", random_u64()).parse().unwrap();
    Store::open(&url, StoreOptions { request_timeout_ms: 5_000, ..StoreOptions::default() })
        .unwrap()
}

fn id() -> ChainId {
    ChainId {
        tp: TopicPartition::new("orders", 3).unwrap(),
        topic_id: "ZtY-_x0123456789abcdeA".parse().unwrap(),
    }
}

fn segment(base_offset: i64, end_offset: i64) -> ArchivedSegment {
    let content = format!("{base_offset}..{end_offset}");
    ArchivedSegment {
        base_offset,
        end_offset,
        size_bytes: 1_000,
        upload_id: UploadId::from_random(base_offset as u64 * 31 + end_offset as u64),
        sha256: Sha256::of(content.as_bytes()),
        mtime_ns: 1_700_000_000_000_000_000,
        max_timestamp_ms: 1_700_000_000_000,
        batches: 10,
        epochs: vec![crate::types::EpochStart { epoch: 4, start_offset: base_offset }],
        compacted: false,
        aux_size_bytes: 100,
        aux_sha256: Sha256::of(b"aux"),
        files: FileSizes { index: Some(16), ..FileSizes::default() },
    }
}

fn add(base_offset: i64) -> Vec<Change> {
    vec![Change::Add(segment(base_offset, base_offset + 10))]
}

/// Commits segments of ten offsets until the chain has `version`.
async fn grow(log: &ManifestLog, chain: &mut Chain, version: u64) {
    while chain.version() < version {
        let next = chain.end_offset().unwrap_or(0);
        assert_eq!(log.commit(chain, add(next)).await.unwrap(), CommitOutcome::Committed);
    }
}

async fn grown(store: &Store, version: u64) -> Chain {
    let mut chain = Chain::empty(id());
    grow(&ManifestLog::new(Some(store.clone()), None), &mut chain, version).await;
    chain
}

fn reader(store: &Store) -> ManifestLog {
    ManifestLog::new(Some(store.clone()), None)
}

async fn flip(store: &Store, name: &ManifestName, at: usize) {
    let key = name.key(&id());
    let mut bytes = store.get(&key, 1 << 30).await.unwrap().to_vec();
    bytes[at] ^= 1;
    store.put_overwrite(&key, bytes.into()).await.unwrap();
}

/// The names in the manifest directory.
async fn listed(store: &Store) -> Vec<ManifestName> {
    let found = store.list(&names::manifest_prefix(&id()), 100_000).await.unwrap();
    found.iter().map(|o| ManifestName::from_key(&id(), &o.key).unwrap()).collect()
}

#[tokio::test]
async fn a_chain_that_was_never_committed_to_is_empty() {
    let chain = reader(&memory()).load(&id()).await.unwrap();
    assert_eq!((chain.version(), chain.start_offset(), chain.end_offset()), (0, None, None));
}

#[tokio::test]
async fn a_fresh_load_equals_the_writers_chain_whatever_its_length() {
    let store = memory();
    let log = reader(&store);
    let mut chain = Chain::empty(id());
    for version in [1, 15, 16, 63, 64, 65, 127, 128, 200, 1000] {
        grow(&log, &mut chain, version).await;
        let loaded = reader(&store).load(&id()).await.unwrap();
        assert_eq!(loaded, chain, "after {version} commits");
        assert_eq!(loaded.version(), version);
    }
    let requests = || store.counters().snapshot().requests();
    let before = requests();
    reader(&store).load(&id()).await.unwrap();
    // Head, root, 4 pages, 1000 - 960 deltas, the one that does not exist.
    assert_eq!(requests() - before, 1 + 1 + 4 + 40 + 1);
}

#[tokio::test]
async fn a_commit_is_one_request_at_any_length_but_for_checkpoint_and_hint() {
    let store = memory();
    let log = reader(&store);
    let mut chain = Chain::empty(id());
    let requests = || store.counters().snapshot().requests();
    let mut most = 0;
    for version in 1..=700 {
        let before = requests();
        grow(&log, &mut chain, version).await;
        let taken = requests() - before;
        let due = match version {
            1 => 1,                // the chain's marker
            v if v % 64 == 0 => 3, // a page or two, the root, the hint
            v if v % 16 == 0 => 1, // the hint
            _ => 0,
        };
        assert!(taken <= 1 + due + u64::from(version % 64 == 0), "{taken} requests for {version}");
        most = most.max(taken);
    }
    assert!(most <= 5, "{most}");
    let before = requests();
    assert!(!log.refresh(&mut chain).await.unwrap());
    assert_eq!(requests() - before, 1, "nothing new costs one request");
}

#[tokio::test]
async fn pages_that_did_not_change_are_not_written_again() {
    let store = memory();
    grown(&store, 1024).await;
    let pages = listed(&store).await.into_iter().filter(|n| matches!(n, ManifestName::Page(..)));
    // Each of the 16 checkpoints writes the page that grows, and at 256 a full one stays for good.
    assert_eq!(pages.count(), 16);
}

#[tokio::test]
async fn gaps_and_replacements_survive_a_checkpoint() {
    let store = memory();
    let log = reader(&store);
    let mut chain = Chain::empty(id());
    let gap = Change::Gap { from_offset: 5, to_offset: 9, reason: "quarantined".into() };
    log.commit(&mut chain, vec![gap, Change::Add(segment(9, 20))]).await.unwrap();
    grow(&log, &mut chain, 400).await;
    let replace = Change::Replace {
        from_offset: 5,
        to_offset: 20,
        segments: vec![segment(5, 8), segment(12, 20)],
    };
    log.commit(&mut chain, vec![replace]).await.unwrap();
    grow(&log, &mut chain, 448).await;
    let loaded = reader(&store).load(&id()).await.unwrap();
    assert_eq!(loaded, chain);
    assert_eq!(loaded.gap_at(10).unwrap().to_offset, 12);
    assert_eq!(loaded.covering(19).unwrap().base_offset, 12);
}

#[tokio::test]
async fn a_change_that_does_not_fit_writes_nothing() {
    let store = memory();
    let log = reader(&store);
    let mut chain = grown(&store, 3).await;
    let before = (chain.clone(), listed(&store).await);
    for bad in [
        add(20),
        add(40),
        vec![],
        vec![Change::Add(segment(30, 30))],
        vec![Change::Replace { from_offset: 5, to_offset: 10, segments: vec![segment(5, 10)] }],
        vec![Change::Replace { from_offset: 0, to_offset: 15, segments: vec![segment(0, 15)] }],
        vec![Change::Replace { from_offset: 0, to_offset: 10, segments: vec![segment(5, 11)] }],
        vec![Change::Add(segment(30, 40)), Change::Add(segment(39, 50))],
    ] {
        let error = log.commit(&mut chain, bad).await.unwrap_err();
        assert!(matches!(error, ManifestError::Refused { .. }), "{error}");
    }
    assert_eq!((chain, listed(&store).await), before);
}

#[tokio::test]
async fn one_listing_shows_every_chain_once() {
    let store = memory();
    let mut expected = Vec::new();
    for partition in 0..5 {
        let id = ChainId { tp: TopicPartition::new("t", partition).unwrap(), ..id() };
        reader(&store).register_chain(&id, 2_000).await.unwrap();
        // Another process did the same, earlier; its listing came later.
        reader(&store).register_chain(&id, 1_000).await.unwrap();
        expected.push(ChainListing { id, created_ms: 1_000 });
    }
    store.put_overwrite(&crate::types::ObjectKey("chains/x".into()), Bytes::new()).await.unwrap();
    let before = store.counters().snapshot();
    assert_eq!(reader(&store).list_chains().await.unwrap(), expected);
    assert_eq!(store.counters().snapshot().requests() - before.requests(), 1);
}

#[tokio::test]
async fn the_first_commit_makes_the_chain_visible() {
    let store = memory();
    grown(&store, 2).await;
    let found = reader(&store).list_chains().await.unwrap();
    assert_eq!(found.iter().map(|c| &c.id).collect::<Vec<_>>(), [&id()]);
}

#[test]
fn lookups_answer_by_offset() {
    let mut chain = Chain::empty(id());
    let gap = Change::Gap { from_offset: 20, to_offset: 25, reason: "why".into() };
    for change in [Change::Add(segment(10, 20)), gap, Change::Add(segment(25, 30))] {
        chain.apply(&change).unwrap();
    }
    assert_eq!((chain.start_offset(), chain.end_offset()), (Some(10), Some(30)));
    let base = |offset| chain.covering(offset).map(|s| s.base_offset);
    assert_eq!(
        [base(9), base(10), base(19), base(20), base(29), base(30)],
        [None, Some(10), Some(10), None, Some(25), None]
    );
    assert!(chain.gap_at(24).is_some() && chain.gap_at(25).is_none());
    let overlap = |from, to| chain.overlapping(from, to).collect::<Vec<_>>();
    assert_eq!(overlap(15, 22), [(10, 20, false), (20, 25, true)]);
    assert_eq!(overlap(22, 25), [(20, 25, true)]);
    assert_eq!(overlap(0, 10), []);
    assert_eq!(overlap(0, 99).len(), 3);
}
