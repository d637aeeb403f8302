//! Brokers whose segments begin elsewhere, and logs that were truncated and went on otherwise.

use std::path::PathBuf;

use super::world::{Mount, World, chain_id, log_bytes, memory_store, name};
use crate::catalog::Piece;
use crate::kafka::testing::TestBatch;
use crate::store::Store;
use crate::store::names;
use crate::tier::archive::Done;

const BODY: usize = 500;

/// A broker on a shared store, with segments at these bases.
fn broker(store: &Store, bases: &[i64], end: i64) -> World {
    let mut world = World::on(store.clone());
    world.config.hot_bytes = Some(0);
    world.partition("t-0", bases, end);
    world.checkpoints(&[("t-0", end)]);
    world
}

/// Replaces a segment's file by batches of an epoch.
fn rewrite(world: &World, base: i64, batches: impl IntoIterator<Item = (i64, i32)>) {
    let of = |(base, epoch)| TestBatch { epoch, ..TestBatch::new(base, 10, BODY) }.bytes();
    let bytes: Vec<u8> = batches.into_iter().flat_map(of).collect();
    std::fs::write(path(world, base), bytes).unwrap();
}

fn path(world: &World, base: i64) -> PathBuf {
    world.hot().join("t-0").join(name(base))
}

fn batches(from: i64, to: i64, epoch: i32) -> impl Iterator<Item = (i64, i32)> {
    (from..to).step_by(10).map(move |base| (base, epoch))
}

/// Evicts all that may go and reads each closed segment back.
async fn check_cold(world: &World, mount: &Mount, closed: &[(i64, Vec<u8>)]) {
    while mount.tier.evict_round().unwrap() > 0 {}
    for (base, expected) in closed {
        let log = mount.log("t-0", *base);
        assert!(!log.is_hot(), "segment {base} is still local");
        let mut found = Vec::new();
        for piece in log.plan_read(0, expected.len() + 1000).unwrap() {
            let Piece::Archived(stub, extent, at, len) = piece else { panic!("a local piece") };
            let key = names::log_key(&stub.chain(), extent.base_offset, &extent.upload_id);
            let bytes = world.store.get_range(&key, at..at + len as u64).await.unwrap();
            found.extend_from_slice(&bytes);
        }
        assert_eq!(&found, expected, "segment {base}");
    }
}

fn kinds(ends: &[Done]) -> Vec<&'static str> {
    let kind = |d: &Done| match d {
        Done::Archived(_) => "archived",
        Done::Adopted(_) => "adopted",
        Done::Held(_) => "held",
        Done::Quarantined(_) => "quarantined",
        Done::NotCommitted | Done::Gone => "again",
    };
    ends.iter().map(kind).collect()
}

#[tokio::test]
async fn a_replica_with_other_boundaries_uploads_nothing_and_evicts_all_the_same() {
    let store = memory_store();
    let leader = broker(&store, &[0, 100, 250, 400], 500);
    let first = leader.mount();
    assert_eq!(kinds(&first.drain().await.unwrap()), ["archived"; 3]);
    let replica = broker(&store, &[0, 70, 180, 330, 380], 500);
    let second = replica.mount();
    assert_eq!(kinds(&second.drain().await.unwrap()), ["adopted"; 4]);
    assert_eq!(replica.log_objects().await, 3);
    let closed = [(0, 70), (70, 180), (180, 330), (330, 380)];
    let closed = closed.map(|(from, to)| (from, log_bytes(from, to, BODY)));
    check_cold(&replica, &second, &closed).await;
    drop(second);
    let again = replica.mount();
    assert_eq!(again.report.broken_stubs, Vec::<String>::new());
    assert_eq!(kinds(&again.drain().await.unwrap()), [""; 0]);
    check_cold(&replica, &again, &closed).await;
}

#[tokio::test]
async fn a_segment_that_the_archive_has_in_part_is_cut_at_the_batch_where_the_archive_ends() {
    let store = memory_store();
    let leader = broker(&store, &[0, 100, 200], 300);
    leader.mount().drain().await.unwrap();
    let replica = broker(&store, &[0, 150, 320, 400], 500);
    std::fs::write(path(&replica, 150).with_extension("txnindex"), txn_index(&[160, 250])).unwrap();
    let mount = replica.mount();
    assert_eq!(kinds(&mount.drain().await.unwrap()), ["adopted", "archived", "archived"]);
    assert_eq!(replica.check_archive("t-0").await, [(0, 100), (100, 200), (200, 320), (320, 400)]);
    let chain = replica.archived("t-0").await;
    assert_eq!(replica.object("t-0", chain.find(200).unwrap()).await, log_bytes(200, 320, BODY));
    let aux = names::aux_key(&chain_id("t-0"), 200, &chain.find(200).unwrap().upload_id);
    let aux = store.get(&aux, 1 << 20).await.unwrap();
    let aux = crate::manifest::Aux::parse(aux, &chain.find(200).unwrap().aux_sha256).unwrap();
    assert_eq!(
        aux.txnindex.unwrap(),
        txn_index(&[250]),
        "an aborted transaction is where it ended"
    );
    let closed = [(0, 150), (150, 320), (320, 400)];
    let closed = closed.map(|(from, to)| (from, log_bytes(from, to, BODY)));
    check_cold(&replica, &mount, &closed).await;
}

/// Of aborted transactions that ended at these offsets.
fn txn_index(last_offsets: &[i64]) -> Vec<u8> {
    let entry = |last: &i64| {
        let mut bytes = 0i16.to_be_bytes().to_vec();
        for field in [7, last - 5, *last, last - 5] {
            bytes.extend(i64::to_be_bytes(field));
        }
        bytes
    };
    last_offsets.iter().flat_map(entry).collect()
}

#[tokio::test]
async fn a_log_that_was_truncated_and_went_on_in_a_higher_epoch_replaces_what_was_archived() {
    let store = memory_store();
    let world = broker(&store, &[0, 100, 200, 300], 400);
    let mount = world.mount();
    mount.drain().await.unwrap();
    drop(mount);
    let before = world.log_objects().await;
    // Truncated to 150, and gone on in epoch 4 to an earlier end than before.
    std::fs::remove_file(path(&world, 200)).unwrap();
    std::fs::remove_file(path(&world, 300)).unwrap();
    rewrite(&world, 100, batches(100, 150, 0).chain(batches(150, 190, 4)));
    rewrite(&world, 190, batches(190, 260, 4));
    rewrite(&world, 260, []);
    world.checkpoints(&[("t-0", 260)]);
    let mount = world.mount();
    assert_eq!(kinds(&mount.drain().await.unwrap()), ["archived"; 2]);
    assert_eq!(world.check_archive("t-0").await, [(0, 100), (100, 190), (190, 260)]);
    assert_eq!(world.archived("t-0").await.end_offset(), Some(260));
    assert_eq!(world.log_objects().await, before + 2, "replaced objects are not removed");
    let read = |base| std::fs::read(path(&world, base)).unwrap();
    let closed = [(0, read(0)), (100, read(100)), (190, read(190))];
    check_cold(&world, &mount, &closed).await;
}

#[tokio::test]
async fn a_fork_at_a_segments_first_batch_is_proved_by_the_segment_before_it() {
    let store = memory_store();
    let world = broker(&store, &[0, 100, 200, 300], 400);
    world.mount().drain().await.unwrap();
    std::fs::remove_file(path(&world, 300)).unwrap();
    rewrite(&world, 200, batches(200, 300, 1));
    rewrite(&world, 300, []);
    let mount = world.mount();
    assert_eq!(kinds(&mount.drain().await.unwrap()), ["archived"]);
    assert_eq!(world.check_archive("t-0").await, [(0, 100), (100, 200), (200, 300)]);
}

#[tokio::test]
async fn what_is_not_proved_to_be_a_fork_replaces_nothing() {
    // A lower or equal epoch, and a broker with an empty disk that begins again in a higher one.
    for (from, epoch) in [(50, 0), (50, -1), (0, 9)] {
        let store = memory_store();
        broker(&store, &[0, 100, 200], 300).mount().drain().await.unwrap();
        let world = broker(&store, &[0, 100], 200);
        let other = |(base, epoch)| (base, epoch);
        rewrite(&world, 0, batches(0, from, 0).chain(batches(from, 100, epoch).map(other)));
        if epoch <= 0 {
            // Other bytes in the same or a lower epoch.
            let mut bytes = std::fs::read(path(&world, 0)).unwrap();
            let tail = TestBatch { epoch, max_timestamp_ms: 5, ..TestBatch::new(90, 10, BODY) };
            let tail = tail.bytes();
            let at = bytes.len() - tail.len();
            bytes[at..].copy_from_slice(&tail);
            std::fs::write(path(&world, 0), bytes).unwrap();
        }
        let mount = world.mount();
        let ends = mount.drain().await.unwrap();
        assert_eq!(kinds(&ends), ["held"], "{from} {epoch}: {ends:?}");
        assert_eq!(world.check_archive("t-0").await, [(0, 100), (100, 200)]);
        assert_eq!(mount.tier.evict_round().unwrap(), 0);
        assert_eq!(world.log_objects().await, 2);
    }
}

#[tokio::test]
async fn a_replica_is_not_told_equal_by_an_archive_that_is_damaged() {
    let store = memory_store();
    let leader = broker(&store, &[0, 100, 200], 300);
    leader.mount().drain().await.unwrap();
    let chain = leader.archived("t-0").await;
    let key = names::log_key(&chain_id("t-0"), 0, &chain.find(0).unwrap().upload_id);
    let mut bytes = store.get(&key, 1 << 20).await.unwrap().to_vec();
    bytes[2000] ^= 1;
    store.put_overwrite(&key, bytes.into()).await.unwrap();
    // Its edge has to be fetched.
    let replica = broker(&store, &[0, 70, 200], 300);
    let mount = replica.mount();
    let error = mount.drain().await.unwrap_err();
    assert!(error.to_string().contains("CRC"), "{error}");
    assert_eq!(mount.tier.evict_round().unwrap(), 0);
}
