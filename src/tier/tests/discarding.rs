//! Retention, truncation, topic deletion and the discard command.

use super::world::{TOPIC_ID, World, name, stub_path};
use crate::kafka::metadata::testing::{batch, made, removed};
use crate::local::spool::{self, SpoolDoc, SpoolEntry};
use crate::tier::archive::Done;
use crate::tier::fate::{Fate, FateNote};
use crate::types::TopicId;

const DELETED: &str = "t-0.0123456789abcdef0123456789abcdef-delete";
/// The bytes of `TOPIC_ID`.
const ID: [u8; 16] = [
    0x66, 0xd6, 0x3e, 0xff, 0x1d, 0x35, 0xdb, 0x7e, 0x39, 0xeb, 0xbf, 0x3d, 0x69, 0xb7, 0x1d, 0x78,
];

fn world() -> World {
    let world = World::new();
    world.partition("t-0", &[0, 100, 200], 300);
    world.checkpoints(&[("t-0", 300)]);
    world
}

#[tokio::test]
async fn what_retention_takes_before_it_is_archived_is_archived_from_the_spool() {
    let world = world();
    let dir = world.hot().join("t-0");
    std::fs::write(dir.join("00000000000000000000.snapshot"), b"producers").unwrap();
    let bytes = std::fs::read(dir.join(name(0))).unwrap();
    let mount = world.mount();
    mount.retire("t-0", 0);
    assert!(!dir.join(name(0)).exists() && mount.dir("t-0").log(&name(0)).is_none());
    assert_eq!(world.spool_entries().len(), 1);
    let status = mount.tier.status();
    assert_eq!((status.spool.segments, status.spool.bytes), (1, bytes.len() as u64));
    drop(mount);

    // A crash of the mount and a start of the broker: the name does not come back.
    let mount = world.mount();
    assert!(mount.dir("t-0").log(&name(0)).is_none());
    assert_eq!(mount.drain().await.unwrap().len(), 2);
    assert_eq!(world.check_archive("t-0").await, [(0, 100), (100, 200)]);
    let chain = world.archived("t-0").await;
    assert_eq!(world.object("t-0", chain.find(0).unwrap()).await, bytes);
    assert_eq!(chain.find(0).unwrap().files.snapshot, Some(9), "its snapshot came along");
    assert!(world.spool_entries().is_empty() && !dir.join(name(0)).exists());
}

#[tokio::test]
async fn what_is_archived_is_simply_unlinked_and_stays_in_the_archive() {
    let mut world = world();
    world.config.hot_bytes = Some(0);
    let mount = world.mount();
    mount.drain().await.unwrap();
    mount.retire("t-0", 0);
    assert_eq!(mount.tier.evict_round().unwrap(), 1);
    mount.retire("t-0", 100);
    let dir = world.hot().join("t-0");
    assert!(!dir.join(name(100)).exists() && !stub_path(&dir, 100).exists());
    assert!(!stub_path(&dir, 100).with_extension("deleted.everlog").exists());
    assert!(world.spool_entries().is_empty());
    assert_eq!(world.check_archive("t-0").await, [(0, 100), (100, 200)]);
}

#[tokio::test]
async fn a_truncated_suffix_never_becomes_the_archives_truth() {
    let world = world();
    let mount = world.mount();
    let dir = mount.dir("t-0");
    for base in [100, 200] {
        let (from, to) = (name(base), format!("{}.deleted", name(base)));
        mount.tier.note_rename(&dir, &from, &to);
        dir.rename_log(&from, &to).unwrap();
    }
    mount.tier.unlink(&dir, &format!("{}.deleted", name(100))).unwrap();
    drop((mount, dir));
    // The second one by the broker's next start, when nobody remembers the rename.
    let mount = world.mount();
    mount.tier.unlink(&mount.dir("t-0"), &format!("{}.deleted", name(200))).unwrap();
    assert!(world.spool_entries().is_empty());
    assert_eq!(mount.drain().await.unwrap(), []);
}

#[tokio::test]
async fn a_deleted_topic_is_archived_to_its_last_committed_batch() {
    let world = world();
    let mount = world.mount();
    mount.catalog.rename_dir("t-0", DELETED).unwrap();
    world.checkpoints(&[]);
    mount.catalog.root_file_replaced("replication-offset-checkpoint").unwrap();
    let dir = mount.dir(DELETED);
    // In any order, and the archive starts in between.
    mount.tier.unlink(&dir, &name(200)).unwrap();
    mount.tier.unlink(&dir, &name(0)).unwrap();
    assert!(mount.tier.status().spool.waiting_for_archive == 2);
    mount.tier.unlink(&dir, &name(100)).unwrap();
    assert!(dir.all_logs().is_empty());
    let ends = mount.drain().await.unwrap();
    assert!(ends.iter().all(|d| matches!(d, Done::Archived(_))), "{ends:?}");
    assert_eq!(world.check_archive("t-0").await, [(0, 100), (100, 200), (200, 300)]);
    assert!(world.spool_entries().is_empty());
}

#[tokio::test]
async fn a_deleted_topic_is_archived_although_everlog_restarted_before_the_unlinks() {
    let world = world();
    let mount = world.mount();
    mount.catalog.note_deletion("t-0", DELETED);
    mount.catalog.rename_dir("t-0", DELETED).unwrap();
    drop(mount);
    world.checkpoints(&[]);
    let mount = world.mount();
    for base in [0, 100, 200] {
        mount.tier.unlink(&mount.dir(DELETED), &name(base)).unwrap();
    }
    mount.drain().await.unwrap();
    assert_eq!(world.check_archive("t-0").await, [(0, 100), (100, 200), (200, 300)]);
}

#[tokio::test]
async fn of_a_deleted_topic_nothing_above_the_high_watermark_is_archived() {
    let world = world();
    world.checkpoints(&[("t-0", 250)]);
    let mount = world.mount();
    mount.catalog.rename_dir("t-0", DELETED).unwrap();
    for base in [0, 100, 200] {
        mount.tier.unlink(&mount.dir(DELETED), &name(base)).unwrap();
    }
    mount.drain().await.unwrap();
    assert_eq!(world.check_archive("t-0").await, [(0, 100), (100, 200)]);
    assert!(world.spool_entries().is_empty());
}

#[tokio::test]
async fn the_discard_command_is_asked_until_it_agrees_also_after_a_restart() {
    let mut world = world();
    let (agree, heard) = (world.tmp.path().join("agree"), world.tmp.path().join("heard"));
    let command = format!("cat >> {}; test -e {}", heard.display(), agree.display());
    world.config.on_discard = Some(command);
    let mount = world.mount();
    mount.retire("t-0", 0);
    mount.ask_all().await;
    assert!(!heard.exists(), "the archive comes first");
    mount.drain().await.unwrap();
    mount.ask_all().await;
    let entry = world.spool_entries().remove(0);
    assert!(entry.join("segment.log").exists(), "refused: its bytes stay");
    mount.ask_all().await;
    assert_eq!(std::fs::read_to_string(&heard).unwrap().lines().count(), 1, "not at once again");
    world.pass(1_100);
    mount.ask_all().await;
    assert_eq!(mount.tier.status().spool.waiting_for_listener, 1);
    drop(mount);

    let mount = world.mount();
    std::fs::write(&agree, b"").unwrap();
    mount.ask_all().await;
    assert!(world.spool_entries().is_empty() && !entry.exists());
    assert_eq!(mount.tier.status().spool.segments, 0);
    let text = std::fs::read_to_string(&heard).unwrap();
    assert_eq!(text.lines().count(), 3);
    let event: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!(
        (&event["event"], &event["topic"], &event["partition"]),
        (&"discarded".into(), &"t".into(), &0.into())
    );
    assert_eq!((&event["base_offset"], &event["end_offset"]), (&0.into(), &100.into()));
    assert_eq!(event["reason"], "retention");
    assert_eq!(event["path"], entry.join("segment.log").display().to_string());
    assert_eq!(event["archive_path"], format!(".everlog/archive/t-0/{}", name(0)));
    let chain = world.archived("t-0").await;
    let upload = chain.find(0).unwrap().upload_id.to_string();
    assert!(event["object"].as_str().unwrap().contains(&upload));
}

#[tokio::test]
async fn the_discard_command_is_asked_about_cold_segments_too() {
    let mut world = world();
    let heard = world.tmp.path().join("heard");
    world.config.on_discard = Some(format!("cat > {}", heard.display()));
    world.config.hot_bytes = Some(0);
    let mount = world.mount();
    mount.drain().await.unwrap();
    mount.tier.evict_round().unwrap();
    mount.retire("t-0", 0);
    assert_eq!(mount.tier.status().spool.waiting_for_listener, 1);
    mount.ask_all().await;
    let event: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&heard).unwrap()).unwrap();
    assert!(event["path"].is_null() && event["object"].is_string());
    assert!(world.spool_entries().is_empty());
}

#[tokio::test]
async fn a_removed_partition_is_called_deleted_or_moved_only_where_the_clusters_log_says_so() {
    for (records, reason) in [
        (None, "partition_removed"),
        (Some(vec![made("other", [9; 16])]), "partition_removed"),
        (Some(vec![made("t", ID)]), "moved"),
        (Some(vec![made("t", ID), removed(ID)]), "topic_deleted"),
    ] {
        let mut world = world();
        let heard = world.tmp.path().join("heard");
        world.config.on_discard = Some(format!("cat > {}", heard.display()));
        let log = world.tmp.path().join("elsewhere");
        if let Some(records) = records {
            std::fs::create_dir(&log).unwrap();
            std::fs::write(log.join(name(0)), batch(0, &records)).unwrap();
        }
        world.config.metadata_log = Some(log);
        assert_eq!(TopicId::from_bytes(ID).as_str(), TOPIC_ID);
        let mount = world.mount();
        mount.drain().await.unwrap();
        mount.catalog.note_deletion("t-0", DELETED);
        mount.catalog.rename_dir("t-0", DELETED).unwrap();
        mount.tier.unlink(&mount.dir(DELETED), &name(0)).unwrap();
        mount.ask_all().await;
        let event: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(&heard).unwrap()).unwrap();
        assert_eq!(event["reason"], reason);
        assert!(event["object"].is_string() && world.spool_entries().is_empty());
    }
}

#[tokio::test]
async fn a_discard_command_that_hangs_is_ended_and_counts_as_no() {
    let mut world = world();
    world.config.on_discard = Some("sleep 1000".into());
    world.config.on_discard_timeout_ms = 50;
    let mount = world.mount();
    mount.drain().await.unwrap();
    mount.retire("t-0", 0);
    mount.ask_all().await;
    assert_eq!(mount.tier.status().spool.waiting_for_listener, 1);
}

#[tokio::test]
async fn when_the_spool_cannot_take_it_the_unlink_still_succeeds_and_is_counted() {
    let world = world();
    let mount = world.mount();
    let spool = world.data().join("spool");
    std::fs::remove_dir_all(&spool).unwrap();
    std::fs::write(&spool, b"in the way").unwrap();
    let dir = mount.dir("t-0");
    let (from, to) = (name(0), format!("{}.deleted", name(0)));
    mount.tier.note_rename(&dir, &from, &to);
    dir.rename_log(&from, &to).unwrap();
    mount.tier.unlink(&dir, &to).unwrap();
    assert_eq!(mount.tier.counters().lost_discards.get(), 1);
    assert!(!world.hot().join("t-0").join(&to).exists());
}

fn doc() -> SpoolDoc {
    let chain = super::world::chain_id("t-0");
    SpoolDoc {
        tp: chain.tp,
        topic_id: chain.topic_id,
        base_offset: 0,
        name: name(0),
        log_dir: "t-0".into(),
        reason: spool::DiscardReason::Retention,
        size_bytes: 1,
        mtime_ns: 1,
        committed_offset: Some(300),
        end_offset: Some(100),
        archive_wanted: true,
        listener_wanted: false,
        discarded_ms: 1,
        upload_id: None,
        compacted: false,
        object_base_offset: None,
    }
}

#[tokio::test]
async fn on_a_full_disk_the_bytes_go_into_the_reserve_and_the_document_follows() {
    let world = world();
    let mount = world.mount();
    let entry = mount.tier.spool.use_reserve(doc()).unwrap();
    assert!(mount.tier.spool.use_reserve(doc()).is_none(), "one at a time");
    mount.dir("t-0").remove_log_into(&name(0), &entry.log()).unwrap();
    mount.tier.spool.insert(entry.clone(), None, true);
    assert!(world.spool_entries().is_empty(), "no document yet");
    drop(mount);
    let mount = world.mount();
    assert_eq!(mount.tier.status().spool.damaged, 1, "after a crash: kept, and told");
    assert!(entry.log().exists());

    mount.tier.spool.insert(entry, None, true);
    mount.tier.spool.sweep().unwrap();
    assert_eq!(world.spool_entries().len(), 1);
    assert!(mount.tier.spool.use_reserve(doc()).is_some(), "and there is a new reserve");
    mount.drain().await.unwrap();
    assert_eq!(world.check_archive("t-0").await, [(0, 100), (100, 200)]);
}

#[tokio::test]
async fn a_deleted_topic_whose_name_kafka_cuts_stays_in_its_chain() {
    let world = World::new();
    let live = format!("{}-0", "x".repeat(249));
    let cut = format!("{}-0.0123456789abcdef0123456789abcdef-delete", "x".repeat(213));
    world.partition(&live, &[0, 100], 200);
    world.checkpoints(&[(&live, 200)]);
    let mount = world.mount();
    mount.catalog.rename_dir(&live, &cut).unwrap();
    mount.tier.unlink(&mount.dir(&cut), &name(0)).unwrap();
    mount.drain().await.unwrap();
    assert_eq!(world.check_archive(&live).await, [(0, 100), (100, 200)]);
}

#[tokio::test]
async fn a_crash_between_the_entry_and_the_rename_leaves_the_file_in_the_log_dir() {
    let world = world();
    drop(world.mount());
    let dir = world.hot().join("t-0");
    std::fs::rename(dir.join(name(0)), dir.join(format!("{}.deleted", name(0)))).unwrap();
    SpoolEntry::create(&world.data().join("spool"), &"0".repeat(32), doc()).unwrap();
    let mount = world.mount();
    assert!(world.spool_entries().is_empty(), "void: Kafka unlinks the file again");
    mount.tier.unlink(&mount.dir("t-0"), &format!("{}.deleted", name(0))).unwrap();
    mount.drain().await.unwrap();
    assert_eq!(world.check_archive("t-0").await, [(0, 100), (100, 200)]);
}

#[tokio::test]
async fn a_quarantined_segment_that_kafka_discards_stays_in_the_spool() {
    let world = world();
    let path = world.hot().join("t-0").join(name(0));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[700] ^= 0x10;
    std::fs::write(&path, &bytes).unwrap();
    let mount = world.mount();
    mount.drain().await.unwrap();
    mount.retire("t-0", 0);
    mount.drain().await.unwrap();
    let entry = world.spool_entries().remove(0);
    assert_eq!(std::fs::read(entry.join("segment.log")).unwrap(), bytes);
    assert_eq!(mount.tier.status().quarantine, 1);
}

fn rename_deleted(mount: &super::world::Mount, base: i64, noted: bool) {
    let dir = mount.dir("t-0");
    let (from, to) = (name(base), format!("{}.deleted", name(base)));
    if noted {
        mount.tier.note_rename(&dir, &from, &to);
    }
    dir.rename_log(&from, &to).unwrap();
}

/// Renames a segment, and the archive passes it over: nobody takes it for retention's until the notes are gone.
fn rename_unseen(mount: &super::world::Mount, base: i64) {
    let id = mount.log("t-0", base).id;
    rename_deleted(mount, base, false);
    mount.tier.fates.lock().insert(id, FateNote { fate: Fate::Other, next_base: None });
}

fn long_world() -> World {
    let world = World::new();
    world.partition("t-0", &[0, 100, 200, 300, 400], 500);
    world.checkpoints(&[("t-0", 500)]);
    world
}

#[tokio::test]
async fn what_retention_has_only_renamed_goes_before_the_segments_behind_it() {
    let world = long_world();
    let mount = world.mount();
    for base in [0, 100] {
        rename_deleted(&mount, base, true);
    }
    mount.retire("t-0", 200);
    // The dir alone, as when the spool's turn has not come.
    let (dir, chain) = (mount.dir("t-0"), mount.dir("t-0").chain().unwrap());
    while let Some(job) = mount.tier.next_job(&dir, &chain) {
        mount.tier.archive(&job).await.unwrap();
    }
    let expected = [(0, 100), (100, 200), (200, 300), (300, 400)];
    assert_eq!(world.check_archive("t-0").await, expected);
    assert!(world.archived("t-0").await.gaps().is_empty());
}

#[tokio::test]
async fn after_a_restart_too_what_retention_has_only_renamed_goes_first() {
    let world = long_world();
    let mount = world.mount();
    for base in [0, 100] {
        rename_deleted(&mount, base, true);
    }
    drop(mount);
    let mount = world.mount();
    mount.drain().await.unwrap();
    let expected = [(0, 100), (100, 200), (200, 300), (300, 400)];
    assert_eq!(world.check_archive("t-0").await, expected);
}

#[tokio::test]
async fn parts_of_a_gap_are_filled_as_kafka_unlinks_them() {
    let world = long_world();
    world.checkpoints(&[("t-0", 100)]);
    let mount = world.mount();
    mount.drain().await.unwrap();
    for base in [100, 200] {
        rename_unseen(&mount, base);
    }
    world.checkpoints(&[("t-0", 500)]);
    mount.catalog.root_file_replaced("replication-offset-checkpoint").unwrap();
    mount.drain().await.unwrap();
    assert_eq!(world.check_archive("t-0").await, [(0, 100), (300, 400)]);
    mount.retire("t-0", 0);
    mount.tier.fates.lock().clear();
    for base in [100, 200] {
        mount.tier.unlink(&mount.dir("t-0"), &format!("{}.deleted", name(base))).unwrap();
        mount.drain().await.unwrap();
    }
    let expected = [(0, 100), (100, 200), (200, 300), (300, 400)];
    assert_eq!(world.check_archive("t-0").await, expected);
    assert!(world.archived("t-0").await.gaps().is_empty() && world.spool_entries().is_empty());
}

#[tokio::test]
async fn what_kafka_discards_from_before_the_archives_start_stops_nobody() {
    let world = long_world();
    let mount = world.mount();
    for base in [0, 100] {
        rename_unseen(&mount, base);
    }
    mount.drain().await.unwrap();
    assert_eq!(world.check_archive("t-0").await, [(200, 300), (300, 400)]);
    mount.tier.fates.lock().clear();
    for base in [0, 100] {
        mount.tier.unlink(&mount.dir("t-0"), &format!("{}.deleted", name(base))).unwrap();
    }
    let ends = mount.drain().await.unwrap();
    assert!(matches!(ends[..], [Done::Quarantined(_), Done::Quarantined(_)]), "{ends:?}");
    assert_eq!(world.log_objects().await, 2, "nothing was uploaded for them");
    assert_eq!(world.spool_entries().len(), 2);
}
