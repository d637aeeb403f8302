//! From closed to archived to evicted, and what must not go that way.

use std::os::unix::fs::MetadataExt as _;

use super::world::{World, age, chain_id, log_bytes, name, stub_path};
use crate::catalog::Content;
use crate::local::{Stub, stub};
use crate::manifest::Aux;
use crate::store::names;
use crate::tier::archive::Done;
use crate::tier::verdict::DISCARDED_BEFORE;

fn kinds(ends: &[Done]) -> String {
    let letter = |d: &Done| match d {
        Done::Archived(_) => 'A',
        Done::Adopted(_) => 'a',
        Done::Quarantined(_) => 'Q',
        Done::Held(_) => 'H',
        Done::NotCommitted => 'n',
        Done::Gone => 'g',
    };
    ends.iter().map(letter).collect()
}

#[tokio::test]
async fn closed_and_committed_segments_become_objects_equal_to_their_files() {
    let world = World::new();
    world.partition("t-0", &[0, 100, 200], 300);
    world.checkpoints(&[("t-0", 300)]);
    let mount = world.mount();
    assert_eq!(kinds(&mount.drain().await.unwrap()), "AA");
    let chain = world.archived("t-0").await;
    let found: Vec<_> = chain.segments().values().map(|s| (s.base_offset, s.end_offset)).collect();
    assert_eq!(found, [(0, 100), (100, 200)], "the active one stays");
    for segment in chain.segments().values() {
        let bytes = world.object("t-0", segment).await;
        assert_eq!(bytes, std::fs::read(mount.log("t-0", segment.base_offset).path()).unwrap());
    }
    assert_eq!(mount.tier.chain(&chain_id("t-0")).unwrap().as_ref(), &chain);
    assert!(mount.log("t-0", 0).archived().unwrap().compared);
    assert!(mount.log("t-0", 200).archived().is_none());
}

#[tokio::test]
async fn the_aux_object_holds_indexes_epochs_and_the_record() {
    let world = World::new();
    world.partition("t-0", &[0, 100], 200);
    world.checkpoints(&[("t-0", 200)]);
    let dir = world.hot().join("t-0");
    std::fs::write(dir.join("00000000000000000000.snapshot"), b"producers").unwrap();
    // Preallocated and never trimmed: all zeros.
    std::fs::write(dir.join("00000000000000000000.index"), vec![0u8; 4096]).unwrap();
    // Points at no batch.
    let lie = [7i32.to_be_bytes(), 3i32.to_be_bytes()].concat();
    std::fs::write(dir.join("00000000000000000100.index"), lie).unwrap();
    std::fs::write(dir.join("00000000000000000200.log"), b"").unwrap();
    let mount = world.mount();
    assert_eq!(kinds(&mount.drain().await.unwrap()), "AA");
    let chain = world.archived("t-0").await;
    let mut parsed = Vec::new();
    for segment in chain.segments().values() {
        let key = names::aux_key(&chain_id("t-0"), segment.base_offset, &segment.upload_id);
        let bytes = world.store.get(&key, 1 << 20).await.unwrap();
        parsed.push(Aux::parse(bytes, &segment.aux_sha256).unwrap());
    }
    assert_eq!(parsed[0].snapshot.as_deref(), Some(&b"producers"[..]));
    assert_eq!(parsed[0].epochs.as_deref(), Some(&b"0\n1\n0 0\n"[..]));
    assert_eq!(parsed[0].index.as_deref(), Some(&b""[..]), "Kafka's own, trimmed");
    let rebuilt = parsed[1].index.clone().unwrap();
    assert!(!rebuilt.is_empty() && rebuilt[..8] != [0, 0, 0, 7, 0, 0, 0, 3]);
    assert!(parsed[1].timeindex.as_ref().is_some_and(|t| !t.is_empty()));
}

#[tokio::test]
async fn what_is_above_the_high_watermark_waits() {
    let world = World::new();
    world.partition("t-0", &[0, 100, 200], 300);
    world.checkpoints(&[("t-0", 199)]);
    let mount = world.mount();
    assert_eq!(kinds(&mount.drain().await.unwrap()), "A");
    world.checkpoints(&[("t-0", 200)]);
    mount.catalog.root_file_replaced("replication-offset-checkpoint").unwrap();
    assert_eq!(kinds(&mount.drain().await.unwrap()), "A");
}

#[tokio::test]
async fn a_watermark_older_than_the_directory_is_not_believed() {
    let world = World::new();
    world.partition("t-0", &[0, 100, 200], 300);
    let metadata = world.hot().join("t-0/partition.metadata");
    std::fs::File::open(metadata).unwrap().set_modified(std::time::SystemTime::now()).unwrap();
    world.checkpoints(&[("t-0", 300)]);
    let mount = world.mount();
    assert_eq!(kinds(&mount.drain().await.unwrap()), "");
    for expected in ["", "AA"] {
        mount.catalog.root_file_replaced("replication-offset-checkpoint").unwrap();
        assert_eq!(kinds(&mount.drain().await.unwrap()), expected);
    }
}

#[tokio::test]
async fn eviction_leaves_a_stub_that_the_next_mount_knows() {
    let mut world = World::new();
    world.partition("t-0", &[0, 100, 200], 300);
    world.checkpoints(&[("t-0", 300)]);
    let dir = world.hot().join("t-0");
    let before = std::fs::metadata(dir.join(name(0))).unwrap();
    let modified = age(&dir.join(name(0)));
    world.config.hot_bytes = Some(before.blocks() * 512 * 2);
    let mount = world.mount();
    assert_eq!(mount.tier.evict_round().unwrap(), 0, "nothing is archived");
    mount.drain().await.unwrap();
    assert_eq!(mount.tier.evict_round().unwrap(), 1, "the oldest is enough");
    assert!(!dir.join(name(0)).exists() && dir.join(name(100)).exists());
    let stub = Stub::decode(&std::fs::read(stub_path(&dir, 0)).unwrap()).unwrap();
    assert_eq!(stub.size_bytes, before.len());
    let mtime = std::time::UNIX_EPOCH + std::time::Duration::from_nanos(stub.mtime_ns);
    assert_eq!(mtime, modified);
    assert!(world.hot().join("everlog-is-not-mounted").is_dir());
    drop(mount);

    let mount = world.mount();
    assert_eq!(mount.report.archived_files, 1, "the second one, by size and time");
    assert!(matches!(mount.log("t-0", 0).content(), Content::Cold(_)));
    assert_eq!(kinds(&mount.drain().await.unwrap()), "", "nothing is archived twice");
    let totals = mount.tier.status().totals;
    assert_eq!((totals.cold_segments, totals.archived_segments, totals.lag_segments), (1, 2, 0));
    assert_eq!((totals.active_segments, totals.closed_segments), (1, 2));
    assert_eq!(totals.hot_bytes, before.len() * 2);
}

#[tokio::test]
async fn what_only_looks_archived_is_hashed_before_its_bytes_go() {
    let mut world = World::new();
    world.partition("t-0", &[0, 100, 200], 300);
    world.checkpoints(&[("t-0", 300)]);
    world.config.hot_bytes = Some(0);
    world.mount().drain().await.unwrap();
    let path = world.hot().join("t-0").join(name(100));
    let modified = age(&path);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[400] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    std::fs::File::open(&path).unwrap().set_modified(modified).unwrap();

    let mount = world.mount();
    assert_eq!(mount.report.archived_files, 2);
    assert_eq!(mount.tier.evict_round().unwrap(), 1);
    assert!(path.exists() && !world.hot().join("t-0").join(name(0)).exists());
    assert!(mount.log("t-0", 100).archived().is_none());
    assert_eq!(kinds(&mount.drain().await.unwrap()), "Q", "the flipped byte breaks its batch");
    assert_eq!(mount.tier.evict_round().unwrap(), 0);
}

#[tokio::test]
async fn nothing_above_the_recovery_point_is_evicted() {
    let mut world = World::new();
    world.partition("t-0", &[0, 100, 200], 300);
    world.checkpoints(&[("t-0", 300)]);
    world.write("recovery-point-offset-checkpoint", "0\n1\nt 0 150\n");
    world.config.hot_bytes = Some(0);
    let mount = world.mount();
    mount.drain().await.unwrap();
    assert_eq!(mount.tier.evict_round().unwrap(), 1);
    assert!(!mount.log("t-0", 0).is_hot() && mount.log("t-0", 100).is_hot());
}

#[tokio::test]
async fn old_segments_are_evicted_whatever_the_budget() {
    let mut world = World::new();
    world.partition("t-0", &[0, 100, 200], 300);
    world.checkpoints(&[("t-0", 300)]);
    world.config.hot_age_ms = Some(7_200_000);
    let mount = world.mount();
    mount.drain().await.unwrap();
    assert_eq!(mount.tier.evict_round().unwrap(), 0, "an hour old");
    world.pass(3_700_000);
    assert_eq!(mount.tier.evict_round().unwrap(), 2);
}

#[tokio::test]
async fn a_segment_that_breaks_kafkas_rules_stays_and_its_gap_has_a_name() {
    let mut world = World::new();
    world.partition("t-0", &[0, 100, 200, 300], 400);
    world.checkpoints(&[("t-0", 400)]);
    let bad = world.hot().join("t-0").join(name(100));
    let mut bytes = std::fs::read(&bad).unwrap();
    bytes[700] ^= 0x10;
    std::fs::write(&bad, &bytes).unwrap();
    world.config.hot_bytes = Some(0);
    let mount = world.mount();
    assert_eq!(kinds(&mount.drain().await.unwrap()), "AQA");
    assert_eq!(world.check_archive("t-0").await, [(0, 100), (200, 300)]);
    let chain = world.archived("t-0").await;
    let gap = chain.gaps().values().next().unwrap();
    assert_eq!((gap.from_offset, gap.to_offset), (100, 200));
    assert!(gap.reason.contains("quarantined") && gap.reason.contains("CRC"), "{}", gap.reason);
    assert_eq!(mount.tier.evict_round().unwrap(), 2);
    assert_eq!(std::fs::read(&bad).unwrap(), bytes, "kept as it is");
    let status = mount.tier.status();
    let listed = &status.topics[0].quarantined[0];
    assert_eq!((listed.partition, listed.base_offset, listed.held), (0, 100, false));
    assert_eq!((status.quarantine, status.totals.lag_segments), (1, 0));
}

#[tokio::test]
async fn a_hole_between_segments_quarantines_the_one_before_it() {
    let world = World::new();
    world.partition("t-0", &[0, 100, 200], 300);
    world.checkpoints(&[("t-0", 300)]);
    std::fs::write(world.hot().join("t-0").join(name(0)), log_bytes(0, 90, 500)).unwrap();
    let mount = world.mount();
    let ends = mount.drain().await.unwrap();
    assert_eq!(kinds(&ends), "QA");
    let why = Done::Quarantined("ends at 90, the next segment begins at 100".into());
    assert_eq!(ends[0], why);
    let chain = world.archived("t-0").await;
    assert_eq!(chain.start_offset(), Some(0), "the gap at the start has a name too");
}

/// What a follower's directory holds after Kafka's `truncateFullyAndStartAt`: its watermark went along.
#[tokio::test]
async fn of_a_log_that_is_given_up_whole_no_unproved_end_becomes_truth() {
    let world = World::new();
    world.partition("t-0", &[0, 100], 200);
    let dir = world.hot().join("t-0");
    let given_up = |base: i64| dir.join(format!("{}.deleted", name(base)));
    for base in [0, 100] {
        std::fs::rename(dir.join(name(base)), given_up(base)).unwrap();
    }
    let bytes = std::fs::read(given_up(100)).unwrap();
    std::fs::write(dir.join(name(250)), log_bytes(250, 260, 500)).unwrap();
    world.checkpoints(&[("t-0", 260)]);
    let mount = world.mount();
    let ends = mount.drain().await.unwrap();
    assert_eq!(kinds(&ends), "AQ");
    assert!(
        matches!(&ends[1], Done::Quarantined(why) if why.contains("begins anew at 250")),
        "{ends:?}"
    );
    assert_eq!(world.archived("t-0").await.end_offset(), Some(100));
    assert_eq!(std::fs::read(given_up(100)).unwrap(), bytes, "kept as it is");
}

#[tokio::test]
async fn with_a_lost_local_manifest_segments_are_adopted_and_not_uploaded_again() {
    let world = World::new();
    world.partition("t-0", &[0, 100, 200], 300);
    world.checkpoints(&[("t-0", 300)]);
    world.mount().drain().await.unwrap();
    std::fs::remove_dir_all(world.data().join("manifest")).unwrap();
    let mount = world.mount();
    assert_eq!(mount.report.chains, 0);
    let sent = world.store.counters().snapshot().put;
    assert_eq!(kinds(&mount.drain().await.unwrap()), "aa");
    assert_eq!(world.store.counters().snapshot().put, sent);
    drop(mount);
    assert_eq!(world.mount().report.chains, 1, "and the local manifest is there again");
}

#[tokio::test]
async fn an_archived_object_that_is_gone_is_not_adopted() {
    let world = World::new();
    world.partition("t-0", &[0, 100], 200);
    world.checkpoints(&[("t-0", 200)]);
    world.mount().drain().await.unwrap();
    let chain = world.archived("t-0").await;
    let segment = chain.find(0).unwrap();
    let key = names::log_key(&chain_id("t-0"), 0, &segment.upload_id);
    world.store.delete(&key).await.unwrap();
    std::fs::remove_dir_all(world.data().join("manifest")).unwrap();
    let mount = world.mount();
    let error = mount.drain().await.unwrap_err().to_string();
    assert!(error.contains("archive is damaged"), "{error}");
    assert!(mount.log("t-0", 0).archived().is_none());
}

#[tokio::test]
async fn a_broker_that_starts_again_at_zero_never_replaces_history() {
    let world = World::new();
    world.partition("t-0", &[0, 100, 200], 300);
    world.checkpoints(&[("t-0", 300)]);
    world.mount().drain().await.unwrap();
    let history = world.archived("t-0").await;
    for sub in ["hot/t-0", "manifest"] {
        std::fs::remove_dir_all(world.data().join(sub)).unwrap();
    }
    world.partition("t-0", &[0, 100, 200, 300], 400);
    for (base, end) in [(0, 100), (100, 200), (200, 300)] {
        std::fs::write(world.hot().join("t-0").join(name(base)), log_bytes(base, end, 400))
            .unwrap();
    }
    world.checkpoints(&[("t-0", 400)]);
    let mount = world.mount();
    assert_eq!(kinds(&mount.drain().await.unwrap()), "H", "and nothing behind it proceeds");
    assert_eq!(world.archived("t-0").await, history);
    assert_eq!(world.log_objects().await, 2);
    assert!(mount.tier.status().topics[0].quarantined[0].held);
}

#[tokio::test]
async fn what_was_discarded_before_it_was_archived_is_a_named_gap() {
    let world = World::new();
    world.partition("t-0", &[0, 100, 200, 300], 400);
    world.checkpoints(&[("t-0", 100)]);
    let mount = world.mount();
    mount.drain().await.unwrap();
    std::fs::remove_file(world.hot().join("t-0").join(name(100))).unwrap();
    drop(mount);
    world.checkpoints(&[("t-0", 400)]);
    let mount = world.mount();
    assert_eq!(kinds(&mount.drain().await.unwrap()), "A");
    let chain = world.archived("t-0").await;
    let gap = chain.gaps().values().next().unwrap();
    assert_eq!((gap.from_offset, gap.to_offset, gap.reason.as_str()), (100, 200, DISCARDED_BEFORE));
}

#[tokio::test]
async fn a_compacted_partition_is_archived_by_generations_and_not_evicted() {
    let mut world = World::new();
    world.partition("t-0", &[0, 100, 200], 300);
    world.checkpoints(&[("t-0", 300)]);
    world.write("cleaner-offset-checkpoint", "0\n1\nt 0 200\n");
    world.config.hot_bytes = Some(0);
    let mount = world.mount();
    assert_eq!(kinds(&mount.drain().await.unwrap()), "AA");
    assert_eq!(mount.tier.evict_round().unwrap(), 0);
    drop(mount);
    // The cleaner merged both into one with fewer batches.
    let dir = world.hot().join("t-0");
    let cleaned = [log_bytes(20, 40, 500), log_bytes(150, 190, 500)].concat();
    std::fs::write(dir.join(name(0)), &cleaned).unwrap();
    std::fs::remove_file(dir.join(name(100))).unwrap();
    let mount = world.mount();
    assert_eq!(kinds(&mount.drain().await.unwrap()), "A");
    assert_eq!(world.check_archive("t-0").await, [(0, 200)]);
    let chain = world.archived("t-0").await;
    assert_eq!(world.object("t-0", chain.find(0).unwrap()).await, cleaned);
    assert_eq!(mount.tier.evict_round().unwrap(), 0);
}

#[tokio::test]
async fn a_compacted_segment_may_reach_beyond_what_is_archived() {
    let world = World::new();
    world.partition("t-0", &[0, 100, 200, 300], 400);
    world.checkpoints(&[("t-0", 100)]);
    world.write("cleaner-offset-checkpoint", "0\n1\nt 0 300\n");
    world.mount().drain().await.unwrap();
    let dir = world.hot().join("t-0");
    std::fs::write(dir.join(name(0)), log_bytes(20, 40, 500)).unwrap();
    std::fs::remove_file(dir.join(name(100))).unwrap();
    world.checkpoints(&[("t-0", 400)]);
    let mount = world.mount();
    assert_eq!(kinds(&mount.drain().await.unwrap()), "AA");
    assert_eq!(world.check_archive("t-0").await, [(0, 200), (200, 300)]);
    assert!(world.archived("t-0").await.gaps().is_empty());
}

#[tokio::test]
async fn excluded_topics_are_left_alone() {
    let mut world = World::new();
    world.partition("keep-0", &[0, 100], 200);
    world.partition("skip-0", &[0, 100], 200);
    world.checkpoints(&[("keep-0", 200), ("skip-0", 200)]);
    let glob = globset::Glob::new("sk*").unwrap();
    world.config.exclude = globset::GlobSetBuilder::new().add(glob).build().unwrap();
    let mount = world.mount();
    assert_eq!(kinds(&mount.drain().await.unwrap()), "A");
    assert_eq!(mount.tier.status().totals.lag_segments, 0);
}

#[tokio::test]
async fn a_damaged_stub_is_made_anew_from_the_local_manifest() {
    let mut world = World::new();
    world.partition("t-0", &[0, 100], 200);
    world.checkpoints(&[("t-0", 200)]);
    world.config.hot_bytes = Some(0);
    let mount = world.mount();
    mount.drain().await.unwrap();
    mount.tier.evict_round().unwrap();
    drop(mount);
    let path = stub_path(&world.hot().join("t-0"), 0);
    let good = Stub::decode(&std::fs::read(&path).unwrap()).unwrap();
    let damage = || {
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[120] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    };
    damage();
    let mount = world.mount();
    assert_eq!(mount.report.repaired_stubs, 1);
    let Content::Cold(mended) = mount.log("t-0", 0).content() else { panic!("not cold") };
    assert_eq!((&mended.extents, mended.mtime_ns), (&good.extents, good.mtime_ns));
    assert_eq!(Stub::decode(&std::fs::read(&path).unwrap()).unwrap(), *mended);
    drop(mount);

    damage();
    std::fs::write(world.data().join("overlay/0123456789abcdef"), b"whose?").unwrap();
    let mount = world.mount();
    assert_eq!((mount.report.repaired_stubs, mount.report.broken_stubs.len()), (0, 1));
    assert_eq!(mount.tier.status().broken, [format!("t-0/{}", name(0))]);
    assert!(mount.log("t-0", 0).stat().is_err());
    drop(mount);

    std::fs::remove_file(world.data().join("overlay/0123456789abcdef")).unwrap();
    std::fs::remove_dir_all(world.data().join("manifest")).unwrap();
    assert_eq!(world.mount().report.broken_stubs.len(), 1);
    assert!(stub::path_of(&world.hot().join("t-0").join(name(0))).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_written_to_while_cold_becomes_whole_again_and_is_a_new_generation() {
    let mut world = World::new();
    world.partition("t-0", &[0, 100, 200], 300);
    world.checkpoints(&[("t-0", 300)]);
    world.config.hot_bytes = Some(0);
    let mount = world.mount();
    mount.drain().await.unwrap();
    mount.tier.evict_round().unwrap();
    let log = mount.log("t-0", 0);
    let mut expected = log_bytes(0, 100, 500);
    expected[300..303].copy_from_slice(b"abc");
    log.write_at(300, b"abc").unwrap();
    assert_eq!(mount.tier.to_hydrate().len(), 1);
    let (tier, runtime) = (mount.tier.clone(), tokio::runtime::Handle::current());
    let cold = log.clone();
    let whole = tokio::task::spawn_blocking(move || tier.hydrate_one(&cold, &runtime));
    assert!(whole.await.unwrap().unwrap());
    assert_eq!(std::fs::read(log.path()).unwrap(), expected);
    assert!(log.archived().is_none() && mount.tier.to_hydrate().is_empty());
    assert_eq!(kinds(&mount.drain().await.unwrap()), "Q", "it is no longer what a broker wrote");
    assert_eq!(world.check_archive("t-0").await, [(0, 100), (100, 200)]);
}

#[tokio::test]
async fn while_the_cleaner_swaps_no_segment_is_chosen_and_none_committed() {
    let world = World::new();
    world.partition("t-0", &[0, 100, 200], 300);
    world.checkpoints(&[("t-0", 300)]);
    world.write("cleaner-offset-checkpoint", "0\n1\nt 0 200\n");
    let mount = world.mount();
    let (dir, chain) = (mount.dir("t-0"), mount.dir("t-0").chain().unwrap());
    let job = mount.tier.next_job(&dir, &chain).unwrap();
    let swap = format!("{}.swap", name(100));
    dir.rename_log(&name(100), &swap).unwrap();
    assert!(mount.tier.next_job(&dir, &chain).is_none());
    assert_eq!(mount.tier.archive(&job).await.unwrap(), Done::Gone);
    dir.rename_log(&swap, &name(100)).unwrap();
    let wrong = crate::tier::prepare::Job { next_base: Some(200), ..job };
    assert_eq!(mount.tier.archive(&wrong).await.unwrap(), Done::Gone);
    assert_eq!((world.archived("t-0").await.version(), world.log_objects().await), (0, 0));
    assert_eq!(kinds(&mount.drain().await.unwrap()), "AA");
}
