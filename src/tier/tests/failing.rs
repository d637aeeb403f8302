//! The store fails, hangs, lies or dies at every single request; files change under our hands.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Notify;

use super::world::{World, chain_id, log_bytes, memory_store, name};
use crate::store::{Fault, FaultHook, Op, Store, StoreErrorKind};
use crate::tier::archive::Done;
use crate::tier::error::TierError;
use crate::types::ObjectKey;

/// A store that does `fault` at the `nth` request of a clone's life (from 1), and tells when it did.
fn faulty(store: &Store, nth: u64, fault: Fault) -> (Store, Arc<AtomicU64>, Arc<Notify>) {
    let (count, reached) = (Arc::new(AtomicU64::new(0)), Arc::new(Notify::new()));
    let (seen, tell) = (count.clone(), reached.clone());
    let hook: FaultHook = Arc::new(move |_: Op, _: &ObjectKey| {
        let at = seen.fetch_add(1, Ordering::Relaxed) + 1;
        if at != nth {
            return Fault::Pass;
        }
        tell.notify_one();
        fault
    });
    (store.with_faults(hook), count, reached)
}

fn world() -> World {
    let world = World::new();
    world.partition("t-0", &[0, 100, 200], 300);
    world.checkpoints(&[("t-0", 300)]);
    world
}

async fn check_complete(world: &World) {
    assert_eq!(world.check_archive("t-0").await, [(0, 100), (100, 200)]);
    let chain = world.archived("t-0").await;
    for (base, end) in [(0, 100), (100, 200)] {
        assert_eq!(world.object("t-0", chain.find(base).unwrap()).await, log_bytes(base, end, 500));
    }
}

async fn at_every_request(fault: Fault) -> u64 {
    for nth in 1..200 {
        let world = world();
        let (store, count, reached) = faulty(&world.store, nth, fault);
        let mount = world.mount_on(&store);
        if fault == Fault::Hang {
            // The process dies there.
            tokio::select! {
                drained = mount.drain() => assert!(drained.is_ok()),
                () = reached.notified() => {}
            }
        } else {
            for _ in 0..4 {
                if mount.drain().await.is_ok() {
                    break;
                }
            }
        }
        if count.load(Ordering::Relaxed) < nth {
            return nth - 1;
        }
        drop(mount);
        let mount = world.mount_on(&world.store);
        mount.drain().await.unwrap();
        check_complete(&world).await;
        assert!(mount.log("t-0", 0).archived().is_some());
        assert!(mount.log("t-0", 100).archived().is_some());
    }
    panic!("the work never ends");
}

#[tokio::test]
async fn a_request_that_fails_anywhere_costs_a_try_and_nothing_else() {
    assert!(at_every_request(Fault::Fail(StoreErrorKind::Unavailable)).await >= 10);
}

#[tokio::test]
async fn a_reply_that_is_lost_anywhere_costs_a_try_and_nothing_else() {
    assert!(at_every_request(Fault::LoseReply(StoreErrorKind::Unavailable)).await >= 10);
}

#[tokio::test]
async fn a_process_that_dies_at_any_request_loses_nothing() {
    assert!(at_every_request(Fault::Hang).await >= 10);
}

#[tokio::test]
async fn a_failed_attempt_leaves_no_objects_behind() {
    let world = world();
    let hook: FaultHook = Arc::new(|op, key| {
        let delta = key.as_str().contains("/manifest/0");
        let read_back = op == Op::Get && key.as_str().ends_with(".aux");
        assert!(!(delta && op == Op::Put), "committed although it was not compared");
        if read_back { Fault::Fail(StoreErrorKind::Unavailable) } else { Fault::Pass }
    });
    let mount = world.mount_on(&world.store.with_faults(hook));
    assert!(mount.drain().await.is_err());
    assert_eq!(world.log_objects().await, 0);
}

/// Changes the object right after it was put.
#[tokio::test]
async fn an_object_that_reads_back_differently_is_never_committed() {
    let world = world();
    let raw = world.store.clone();
    let hook: FaultHook = Arc::new(move |op, key| {
        if op == Op::Get && key.as_str().ends_with(".log") {
            let (raw, key) = (raw.clone(), key.clone());
            let spoil = async move {
                let mut bytes = raw.get(&key, 1 << 20).await.unwrap().to_vec();
                bytes[1000] ^= 1;
                raw.put_overwrite(&key, bytes.into()).await.unwrap();
            };
            futures::executor::block_on(spoil);
        }
        Fault::Pass
    });
    let mount = world.mount_on(&world.store.with_faults(hook));
    let error = mount.drain().await.unwrap_err();
    assert!(matches!(error, TierError::ReadBack { .. }), "{error}");
    assert_eq!(world.archived("t-0").await.version(), 0);
    assert!(mount.log("t-0", 0).archived().is_none());
}

#[tokio::test]
async fn a_file_that_changes_during_its_upload_is_not_committed() {
    let world = world();
    let mount = world.mount();
    let slot: Arc<parking_lot::Mutex<Option<Arc<crate::catalog::LogFile>>>> = Arc::default();
    let (victim, changes) = (slot.clone(), Arc::new(AtomicU64::new(0)));
    let done = changes.clone();
    let hook: FaultHook = Arc::new(move |op, key| {
        let upload = op == Op::Put && key.as_str().ends_with(".aux");
        if upload && changes.fetch_add(1, Ordering::Relaxed) == 0 {
            let log = victim.lock().clone().unwrap();
            log.write_at(0, &log_bytes(0, 100, 500)[..10]).unwrap();
        }
        Fault::Pass
    });
    drop(mount);
    let mount = world.mount_on(&world.store.with_faults(hook));
    *slot.lock() = Some(mount.log("t-0", 0));
    assert_eq!(mount.drain().await.unwrap(), [Done::Gone]);
    assert_eq!(done.load(Ordering::Relaxed), 1);
    assert_eq!((world.archived("t-0").await.version(), world.log_objects().await), (0, 0));
    mount.drain().await.unwrap();
    check_complete(&world).await;
}

#[tokio::test]
async fn a_segment_unlinked_during_its_upload_is_archived_once() {
    let world = world();
    let slot: Arc<parking_lot::Mutex<Option<Arc<super::world::Mount>>>> = Arc::default();
    let (mounts, unlinked) = (slot.clone(), AtomicU64::new(0));
    let hook: FaultHook = Arc::new(move |op, key| {
        let upload = op == Op::Put && key.as_str().ends_with(".aux");
        if upload && unlinked.fetch_add(1, Ordering::Relaxed) == 0 {
            let mount = mounts.lock().clone();
            mount.unwrap().retire("t-0", 0);
        }
        Fault::Pass
    });
    let mount = Arc::new(world.mount_on(&world.store.with_faults(hook)));
    *slot.lock() = Some(mount.clone());
    mount.drain().await.unwrap();
    assert_eq!(world.spool_entries().len(), 1, "owed when Kafka unlinked it");
    let ends = mount.drain().await.unwrap();
    assert!(matches!(ends[..], [Done::Adopted(_)]), "{ends:?}");
    assert_eq!(world.log_objects().await, 2);
    check_complete(&world).await;
    assert!(world.spool_entries().is_empty());
    *slot.lock() = None;
}

#[tokio::test]
async fn a_segment_truncated_away_during_its_upload_is_not_committed() {
    let world = world();
    let slot: Arc<parking_lot::Mutex<Option<Arc<super::world::Mount>>>> = Arc::default();
    let mounts = slot.clone();
    let hook: FaultHook = Arc::new(move |op, key| {
        let second =
            key.as_str().contains(&format!("{:020}", 100)) && key.as_str().ends_with(".aux");
        if op == Op::Put && second {
            let mount = mounts.lock().clone().unwrap();
            let dir = mount.dir("t-0");
            let (from, to) = (name(100), format!("{}.deleted", name(100)));
            mount.tier.note_rename(&dir, &from, &to);
            dir.rename_log(&from, &to).unwrap();
        }
        Fault::Pass
    });
    let mount = Arc::new(world.mount_on(&world.store.with_faults(hook)));
    *slot.lock() = Some(mount.clone());
    let ends = mount.drain().await.unwrap();
    assert_eq!(ends.last(), Some(&Done::Gone), "{ends:?}");
    assert_eq!(world.check_archive("t-0").await, [(0, 100)]);
    *slot.lock() = None;
}

#[tokio::test]
async fn two_mounts_of_the_same_bytes_end_with_one_history() {
    let store = memory_store();
    let worlds = [World::on(store.clone()), World::on(store)];
    for world in &worlds {
        world.partition("t-0", &[0, 100, 200], 300);
        world.checkpoints(&[("t-0", 300)]);
    }
    let mounts = [worlds[0].mount(), worlds[1].mount()];
    let (a, b) = tokio::join!(mounts[0].drain(), mounts[1].drain());
    let (a, b) = (a.unwrap(), b.unwrap());
    check_complete(&worlds[0]).await;
    let archived = |d: &&Done| matches!(d, Done::Archived(_));
    assert_eq!(a.iter().chain(&b).filter(archived).count(), 2, "{a:?} {b:?}");
    assert_eq!(worlds[0].log_objects().await, 2, "the loser's objects are gone");
}

#[tokio::test]
async fn another_clusters_store_is_refused_before_anything_is_written() {
    let world = world();
    world.mount().drain().await.unwrap();
    let other = World::on(world.store.clone());
    other.partition("t-0", &[0, 100], 200);
    other.checkpoints(&[("t-0", 200)]);
    other.write("meta.properties", "version=1\nnode.id=1\ncluster.id=another\n");
    let sent = world.store.counters().snapshot().put;
    let error = other.mount().drain().await.unwrap_err();
    assert!(matches!(error, TierError::Identity(_)) && error.to_string().contains("another"));
    assert_eq!(world.store.counters().snapshot().put, sent);
}

#[tokio::test]
async fn an_emptied_store_is_not_taken_for_the_old_one() {
    let mut world = world();
    world.store_id = Some("ab".repeat(16));
    let error = world.mount().drain().await.unwrap_err();
    assert!(matches!(error, TierError::OtherStore { .. }), "{error}");
    assert_eq!(world.store.counters().snapshot().put, 0);
}

#[tokio::test]
async fn before_a_broker_has_named_its_cluster_nothing_is_archived() {
    let world = world();
    std::fs::remove_file(world.hot().join("meta.properties")).unwrap();
    let mount = world.mount();
    assert!(matches!(mount.drain().await.unwrap_err(), TierError::NoClusterId(_)));
    world.write("meta.properties", "version=1\nnode.id=1\ncluster.id=late\n");
    mount.drain().await.unwrap();
    check_complete(&world).await;
    assert_eq!(mount.tier.chains(), [chain_id("t-0")]);
}

#[tokio::test]
async fn a_directory_store_that_goes_away_and_comes_back_loses_nothing() {
    let bucket = tempfile::tempdir().unwrap();
    let (here, away) = (bucket.path().join("here"), bucket.path().join("away"));
    std::fs::create_dir(&here).unwrap();
    let url = format!("file://{}", here.display()).parse().unwrap();
    let store = Store::open(&url, crate::store::StoreOptions::default()).unwrap();
    let world = World::on(store);
    world.partition("t-0", &[0, 100, 200], 300);
    world.checkpoints(&[("t-0", 100)]);
    let mount = world.mount();
    mount.drain().await.unwrap();
    std::fs::rename(&here, &away).unwrap();
    world.checkpoints(&[("t-0", 300)]);
    mount.catalog.root_file_replaced("replication-offset-checkpoint").unwrap();
    assert!(mount.drain().await.is_err());
    drop(mount);
    let mount = world.mount();
    assert!(mount.drain().await.is_err(), "also for a mount that starts without it");
    mount.retire("t-0", 0);
    assert_eq!(world.spool_entries().len(), 1, "the local manifest alone proves no bytes");
    std::fs::rename(&away, &here).unwrap();
    mount.drain().await.unwrap();
    assert!(world.spool_entries().is_empty());
    assert_eq!(world.check_archive("t-0").await, [(0, 100), (100, 200)]);
}
