//! One file, entry or answer that goes wrong stops no other, and nothing is released on a presumption.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::world::{Mount, World, log_bytes, name, stub_path};
use crate::catalog::Content;
use crate::kafka::names::parse_file;
use crate::local::spool::{DiscardReason, SpoolDoc, SpoolEntry};
use crate::tier::archive::Done;
use crate::tier::fate::of_deleted;

fn world() -> World {
    let world = World::new();
    world.partition("t-0", &[0, 100, 200], 300);
    world.checkpoints(&[("t-0", 300)]);
    world
}

/// What a `.log` occupies on disk, as `du` sees it.
fn disk_bytes(world: &World, base: i64) -> u64 {
    fs::metadata(world.hot().join("t-0").join(name(base))).unwrap().blocks() * 512
}

/// Limited so that one byte has to go.
fn too_full() -> (World, Mount) {
    let mut world = world();
    let sizes = [0, 100, 200].map(|base| disk_bytes(&world, base));
    world.config.hot_bytes = Some(sizes.iter().sum::<u64>() - 1);
    let mount = world.mount();
    (world, mount)
}

#[tokio::test]
async fn a_file_that_cannot_be_evicted_stops_no_other_and_waits() {
    let (world, mount) = too_full();
    mount.drain().await.unwrap();
    let in_the_way = stub_path(&world.hot().join("t-0"), 0);
    fs::create_dir_all(in_the_way.join("x")).unwrap();
    let error = mount.tier.evict_round().unwrap_err();
    assert!(error.to_string().contains(&name(0)), "{error}");
    assert!(mount.log("t-0", 0).is_hot() && !mount.log("t-0", 100).is_hot());
    let before = mount.tier.counters().evicted_segments.get();
    assert_eq!((before, mount.tier.evict_round().unwrap()), (1, 0), "not at once again");
    fs::remove_dir_all(&in_the_way).unwrap();
}

#[tokio::test]
async fn the_budget_limits_what_files_occupy_on_disk_and_not_their_lengths() {
    let mut world = World::new();
    // Batches of ten offsets: no segment's length is a multiple of a disk's block.
    let bases = [0, 10, 30, 60, 100, 150, 210];
    world.partition("t-0", &bases, 280);
    world.checkpoints(&[("t-0", 280)]);
    let lengths: u64 = bases
        .iter()
        .map(|b| fs::metadata(world.hot().join("t-0").join(name(*b))).unwrap().len())
        .sum();
    let occupied = |world: &World| -> u64 {
        let there = bases.iter().filter(|b| world.hot().join("t-0").join(name(**b)).exists());
        there.map(|b| disk_bytes(world, *b)).sum()
    };
    assert!(lengths + 4096 < occupied(&world), "{lengths} of {}", occupied(&world));
    // The lengths would be within it.
    world.config.hot_bytes = Some(lengths);
    let mount = world.mount();
    mount.drain().await.unwrap();
    assert!(mount.tier.evict_round().unwrap() > 0);
    let left = occupied(&world);
    assert!(left <= lengths, "{left} bytes on disk, {lengths} wanted");
    assert_eq!(mount.tier.evict_round().unwrap(), 0, "it is kept now");
    mount.tier.status_cache.lock().take();
    let totals = mount.tier.status().totals;
    assert_eq!(totals.hot_disk_bytes, left);
    assert!(totals.hot_bytes < left);
}

#[tokio::test]
async fn what_was_not_released_does_not_count_as_released() {
    let (world, mount) = too_full();
    mount.drain().await.unwrap();
    let path = world.hot().join("t-0").join(name(0));
    fs::hard_link(&path, world.tmp.path().join("held")).unwrap();
    assert_eq!(mount.tier.evict_round().unwrap(), 1);
    assert!(mount.log("t-0", 0).is_hot() && !mount.log("t-0", 100).is_hot());
}

#[tokio::test]
async fn a_spool_entry_that_is_asked_about_gives_the_sweep_nothing_to_do() {
    let mut world = world();
    world.config.on_discard = Some("true".into());
    let mount = world.mount();
    mount.retire("t-0", 0);
    let chain = mount.dir("t-0").chain().unwrap();
    let job = mount.tier.next_spooled(&chain).unwrap();
    mount.tier.archive(&job).await.unwrap();
    assert!(mount.tier.spool.is_dirty());
    let asked = mount.tier.spool.take_to_ask(mount.tier.clock.now_ms(), 1).remove(0);
    assert!(!mount.tier.spool.is_dirty());
    mount.tier.spool.note_answer(&asked.id, true, mount.tier.clock.now_ms());
    assert!(mount.tier.spool.is_dirty());
}

#[tokio::test]
async fn spooled_bytes_that_changed_under_our_hands_are_not_given_up() {
    let world = world();
    let mount = world.mount();
    mount.retire("t-0", 0);
    let chain = mount.dir("t-0").chain().unwrap();
    let job = mount.tier.next_spooled(&chain).unwrap();
    mount.tier.settle_spooled(&job, &Done::Gone);
    assert_eq!(mount.tier.counters().lost_discards.get(), 0);
    assert!(mount.tier.next_spooled(&chain).is_some(), "still there: tried again");
    fs::remove_file(world.spool_entries()[0].join("segment.log")).unwrap();
    mount.tier.settle_spooled(&job, &Done::Gone);
    assert_eq!(mount.tier.counters().lost_discards.get(), 1);
    assert!(mount.tier.next_spooled(&chain).is_none());
}

#[tokio::test]
async fn what_is_only_presumed_archived_is_compared_before_it_goes() {
    let world = world();
    let mount = world.mount();
    mount.drain().await.unwrap();
    drop(mount);
    world.checkpoints(&[]);
    let mount = world.mount();
    let log = mount.log("t-0", 0);
    assert!(!log.archived().unwrap().compared);
    mount.retire("t-0", 0);
    assert_eq!(mount.tier.status().spool.waiting_for_archive, 1);
    let ends = mount.drain().await.unwrap();
    assert!(matches!(ends[..], [Done::Adopted(_)]), "{ends:?}");
    assert!(world.spool_entries().is_empty());
}

#[tokio::test]
async fn a_half_local_segment_that_kafka_discards_is_a_named_loss() {
    let mut world = world();
    world.config.hot_bytes = Some(0);
    let mount = world.mount();
    mount.drain().await.unwrap();
    mount.tier.evict_round().unwrap();
    let log = mount.log("t-0", 0);
    log.write_at(0, &log_bytes(0, 100, 500)[..10]).unwrap();
    assert!(matches!(log.content(), Content::Overlaid(..)));
    mount.retire("t-0", 0);
    assert_eq!(mount.tier.counters().lost_discards.get(), 1);
    assert!(mount.dir("t-0").all_logs().iter().all(|(n, _)| !n.starts_with(&name(0))));
    assert!(world.spool_entries().is_empty());
}

#[test]
fn neighbours_tell_the_same_fate_as_all_names_do() {
    let world = world();
    let mount = world.mount();
    let dir = mount.dir("t-0");
    let check = || {
        let all: Vec<String> = dir.all_logs().into_iter().map(|(n, _)| n).collect();
        for name in &all {
            let base = parse_file(name).unwrap().base_offset;
            let few = dir.neighbours(base);
            for compacted in [false, true] {
                let of = |names: &[String]| {
                    let others = names.iter().map(String::as_str).filter(|n| n != name);
                    of_deleted(base, others, compacted)
                };
                assert_eq!(of(&few), of(&all), "{name} of {all:?}");
            }
        }
    };
    check();
    for (from, to) in [(0, ".deleted"), (200, ".deleted"), (100, ".deleted")] {
        dir.rename_log(&name(from), &format!("{}{to}", name(from))).unwrap();
        check();
    }
    for made in [format!("{}.cleaned", name(100)), format!("{}.swap", name(0)), name(100), name(50)]
    {
        dir.create_log(&made, 0o644, None, true).unwrap();
        check();
    }
    assert!(dir.neighbours(200).len() < dir.all_logs().len());
}

fn doc(listener_wanted: bool, discarded_ms: u64) -> SpoolDoc {
    let chain = super::world::chain_id("t-0");
    SpoolDoc {
        tp: chain.tp,
        topic_id: chain.topic_id,
        base_offset: 0,
        name: name(7_000),
        log_dir: "t-0".into(),
        reason: DiscardReason::Retention,
        size_bytes: 1,
        mtime_ns: 1,
        committed_offset: Some(300),
        end_offset: Some(100),
        archive_wanted: !listener_wanted,
        listener_wanted,
        discarded_ms,
        upload_id: None,
        compacted: false,
        object_base_offset: None,
    }
}

#[test]
fn refusals_of_one_entry_starve_no_other() {
    let mut world = world();
    world.config.on_discard = Some("false".into());
    let spool_dir = world.data().join("spool");
    drop(world.mount());
    for (id, discarded_ms) in [("0".repeat(32), 5), ("1".repeat(32), 9), ("2".repeat(32), 1)] {
        SpoolEntry::create(&spool_dir, &id, doc(true, discarded_ms)).unwrap();
    }
    let mount = world.mount();
    let mut asked = String::new();
    for round in 1..=4 {
        let now_ms = round * 100_000;
        let entry = mount.tier.spool.take_to_ask(now_ms, 1).remove(0);
        mount.tier.spool.note_answer(&entry.id, false, now_ms);
        asked.push_str(&entry.id[..1]);
    }
    assert_eq!(asked, "2012");
}

#[test]
fn a_spool_entry_that_cannot_be_removed_hides_no_other() {
    let mut world = world();
    world.config.on_discard = Some("true".into());
    let spool_dir = world.data().join("spool");
    drop(world.mount());
    let void = SpoolEntry::create(&spool_dir, &"f".repeat(32), doc(false, 1)).unwrap();
    fs::create_dir_all(void.path.join("x").join("y")).unwrap();
    for id in 0..20 {
        SpoolEntry::create(&spool_dir, &format!("{id:032}"), doc(true, 1)).unwrap();
    }
    let mount = world.mount();
    assert!(mount.report.problems.iter().any(|p| p.starts_with("spool")), "{:?}", mount.report);
    assert_eq!(mount.tier.status().spool.waiting_for_listener, 20);
    let is_empty = |path: &Path| fs::read_dir(path).unwrap().next().is_none();
    let reserves =
        fs::read_dir(&spool_dir).unwrap().filter(|e| is_empty(&e.as_ref().unwrap().path()));
    assert_eq!(reserves.count(), 1, "the reserve is made all the same");
    // It is tried again, until it can be removed.
    mount.tier.spool.sweep().unwrap_err();
    assert!(mount.tier.spool.is_dirty());
    fs::remove_dir_all(void.path.join("x")).unwrap();
    mount.tier.spool.sweep().unwrap();
    assert!(!mount.tier.spool.is_dirty() && !void.path.exists());
}
