//! A `.log` through its tiers, against what a plain file would hold, with re-openings in between.

mod exercise;

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Archived, Catalog, Content, LogFile, Piece};
use crate::local::{Stub, datadir, deleted, stub};
use crate::types::{ArchivedSegment, ChainId, Sha256, TopicId, UploadId};

const NAME: &str = "00000000000000000000.log";

struct World {
    _dir: tempfile::TempDir,
    hot: PathBuf,
    overlay: PathBuf,
    catalog: Catalog,
}

impl World {
    fn new(bytes: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (hot, overlay) = (dir.path().join("hot"), dir.path().join("overlay"));
        std::fs::create_dir_all(hot.join("a-0")).unwrap();
        std::fs::create_dir_all(&overlay).unwrap();
        std::fs::write(hot.join("a-0").join(NAME), bytes).unwrap();
        let catalog = Catalog::open(&hot, &overlay).unwrap();
        Self { _dir: dir, hot, overlay, catalog }
    }

    fn reopen(&mut self) {
        self.catalog = Catalog::open(&self.hot, &self.overlay).unwrap();
    }

    fn log(&self) -> Arc<LogFile> {
        self.catalog.dir("a-0").unwrap().log(NAME).unwrap()
    }

    fn path(&self) -> PathBuf {
        self.hot.join("a-0").join(NAME)
    }

    /// As the tiering does it once the bytes are in the archive.
    fn evict(&self, bytes: &[u8]) -> bool {
        let log = self.log();
        self.catalog.ensure_sentinel().unwrap();
        log.set_archived(archived(bytes, log.mutations()));
        log.evict().unwrap()
    }
}

fn archived(bytes: &[u8], mutations: u64) -> Archived {
    let segment = ArchivedSegment {
        base_offset: 0,
        end_offset: 1,
        size_bytes: bytes.len() as u64,
        upload_id: UploadId::from_random(7),
        sha256: Sha256::of(bytes),
        mtime_ns: 1,
        max_timestamp_ms: 1,
        batches: 1,
        epochs: vec![],
        compacted: false,
        aux_size_bytes: 1,
        aux_sha256: Sha256::of(b"aux"),
        files: Default::default(),
    };
    let chain = ChainId { tp: "a-0".parse().unwrap(), topic_id: TopicId::none() };
    Archived {
        stub: Stub::of_segment(&chain, &segment, 1, (0o644, 0, 0)),
        mutations,
        compared: true,
    }
}

/// What a reader would get, with `object` as the archived bytes.
fn read(log: &LogFile, object: &[u8], offset: u64, len: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in log.plan_read(offset, len).unwrap() {
        match piece {
            Piece::Local(file, at, len) => {
                let mut buffer = vec![0; len];
                let n = file.read_at(&mut buffer, at).unwrap();
                out.extend_from_slice(&buffer[..n]);
            }
            Piece::Archived(_, _, at, len) => {
                out.extend_from_slice(&object[at as usize..at as usize + len]);
            }
        }
    }
    out
}

fn sample(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}

#[test]
fn an_evicted_file_keeps_size_and_bytes_and_takes_no_local_space() {
    let bytes = sample(300_000);
    let mut world = World::new(&bytes);
    let before = world.log().stat().unwrap();
    assert!(world.evict(&bytes));
    assert!(!world.path().exists() && stub::path_of(&world.path()).exists());
    assert!(world.hot.join(datadir::SENTINEL).exists());
    for _ in 0..2 {
        let after = world.log().stat().unwrap();
        assert_eq!((after.size_bytes, after.mtime_ns), (before.size_bytes, before.mtime_ns));
        assert_eq!(after.blocks, 1);
        assert_eq!(read(&world.log(), &bytes, 0, 400_000), bytes);
        world.reopen();
    }
}

#[test]
fn a_file_that_was_written_to_after_it_was_archived_is_not_evicted() {
    let bytes = sample(1000);
    let world = World::new(&bytes);
    let log = world.log();
    log.set_archived(archived(&bytes, log.mutations()));
    log.write_at(5, b"x").unwrap();
    assert!(!log.evict().unwrap() && world.path().exists());
    assert!(log.archived().is_none());
}

#[test]
fn a_file_with_a_second_hard_link_is_not_evicted() {
    let bytes = sample(1000);
    let world = World::new(&bytes);
    std::fs::hard_link(world.path(), world.hot.join("other")).unwrap();
    assert!(!world.evict(&bytes) && world.path().exists());
}

#[test]
fn an_open_descriptor_reads_on_through_an_eviction() {
    let bytes = sample(1000);
    let world = World::new(&bytes);
    let log = world.log();
    log.open(true).unwrap();
    assert!(log.hot_file().is_some());
    assert!(world.evict(&bytes));
    assert!(log.hot_file().is_none());
    assert_eq!(read(&log, &bytes, 10, 20), bytes[10..30]);
    log.close();
}

#[test]
fn a_cold_file_can_be_written_truncated_and_appended_to_like_a_plain_one() {
    let object = sample(200_000);
    let mut world = World::new(&object);
    assert!(world.evict(&object));
    let mut model = object.clone();
    let steps: [(u64, &[u8]); 4] = [
        (200_000, b"appended"),
        (70_000, b"in the middle"),
        (0, b"front"),
        (199_999, b"over the end"),
    ];
    for (at, data) in steps {
        world.log().write_at(at, data).unwrap();
        model.resize(model.len().max(at as usize + data.len()), 0);
        model[at as usize..at as usize + data.len()].copy_from_slice(data);
        world.reopen();
        assert_eq!(read(&world.log(), &object, 0, 1 << 20), model);
    }
    for size in [150_000u64, 160_000, 60_000, 0, 10] {
        world.log().truncate(size).unwrap();
        model.resize(size as usize, 0);
        assert_eq!(world.log().stat().unwrap().size_bytes, size);
        world.reopen();
        assert_eq!(read(&world.log(), &object, 0, 1 << 20), model);
    }
}

#[test]
fn hydration_puts_archived_and_local_bytes_together_in_a_plain_file() {
    let object = sample(200_000);
    let mut world = World::new(&object);
    assert!(world.evict(&object));
    world.log().write_at(100_000, b"local").unwrap();
    world.log().truncate(150_000).unwrap();
    let fill = |file: &File, stub: &Stub| {
        stub.extents.iter().try_for_each(|e| {
            let len = (e.file_end - e.file_start) as usize;
            file.write_all_at(&object[e.object_start as usize..][..len], e.file_start)
        })
    };
    assert!(world.log().hydrate(fill).unwrap());
    let mut model = object[..150_000].to_vec();
    model[100_000..100_005].copy_from_slice(b"local");
    assert_eq!(std::fs::read(world.path()).unwrap(), model);
    assert!(!stub::path_of(&world.path()).exists());
    world.reopen();
    assert!(world.log().is_hot() && !world.hot.join(datadir::SENTINEL).exists());
    assert_eq!(std::fs::read_dir(&world.overlay).unwrap().count(), 0);
}

#[test]
fn a_write_during_hydration_wins_and_nothing_is_installed() {
    let object = sample(1000);
    let world = World::new(&object);
    assert!(world.evict(&object));
    let log = world.log();
    let installed = log.hydrate(|file, _| {
        file.write_all_at(&object, 0)?;
        log.write_at(0, b"newer")
    });
    assert!(!installed.unwrap());
    assert_eq!(&read(&world.log(), &object, 0, 5), b"newer");
}

#[test]
fn a_renamed_and_then_removed_cold_file_is_gone_under_both_names_after_a_restart() {
    let bytes = sample(1000);
    let mut world = World::new(&bytes);
    assert!(world.evict(&bytes));
    let deleted = format!("{NAME}.deleted");
    let dir = world.catalog.dir("a-0").unwrap();
    dir.rename_log(NAME, &deleted).unwrap();
    world.reopen();
    let dir = world.catalog.dir("a-0").unwrap();
    assert!(dir.log(NAME).is_none());
    assert_eq!(read(&dir.log(&deleted).unwrap(), &bytes, 0, 2000), bytes);
    dir.remove_log(&deleted).unwrap();
    world.reopen();
    assert!(world.catalog.dir("a-0").unwrap().all_logs().is_empty());
    assert_eq!(std::fs::read_dir(world.hot.join("a-0")).unwrap().count(), 0);
}

#[test]
fn renames_over_each_other_leave_exactly_one_file_in_every_mix_of_tiers() {
    for (from_cold, to_cold) in [(false, false), (false, true), (true, false), (true, true)] {
        let (a, b) = (sample(1000), sample(500));
        let mut world = World::new(&a);
        let other = "00000000000000000005.log";
        let dir = world.catalog.dir("a-0").unwrap();
        let second = dir.create_log(other, 0o644, None, true).unwrap();
        second.write_at(0, &b).unwrap();
        second.close();
        if from_cold {
            assert!(world.evict(&a));
        }
        if to_cold {
            second.set_archived(archived(&b, second.mutations()));
            assert!(second.evict().unwrap());
        }
        dir.rename_log(NAME, other).unwrap();
        for _ in 0..2 {
            let dir = world.catalog.dir("a-0").unwrap();
            let names: Vec<_> = dir.all_logs().into_iter().map(|(n, _)| n).collect();
            assert_eq!(names, [other], "{from_cold} {to_cold}");
            assert_eq!(read(&dir.log(other).unwrap(), &a, 0, 2000), a);
            world.reopen();
        }
    }
}

#[test]
fn where_a_crash_left_file_and_stub_the_file_wins() {
    let bytes = sample(1000);
    let mut world = World::new(&bytes);
    archived(&bytes, 0).stub.write(&world.path()).unwrap();
    world.reopen();
    assert!(world.log().is_hot());
    assert!(!stub::path_of(&world.path()).exists());
}

#[test]
fn a_damaged_stub_keeps_its_name_and_every_use_of_it_fails() {
    let bytes = sample(1000);
    let mut world = World::new(&bytes);
    assert!(world.evict(&bytes));
    let path = stub::path_of(&world.path());
    let mut text = std::fs::read(&path).unwrap();
    let at = text.len() / 2;
    text[at] ^= 1;
    std::fs::write(&path, text).unwrap();
    world.reopen();
    let log = world.log();
    assert!(matches!(log.content(), Content::Broken(_)));
    let io = rustix::io::Errno::IO.raw_os_error();
    assert_eq!(log.stat().unwrap_err().raw_os_error(), Some(io));
    assert_eq!(log.plan_read(0, 1).unwrap_err().raw_os_error(), Some(io));
    assert_eq!(log.open(true).unwrap_err().raw_os_error(), Some(io));
    log.repair(archived(&bytes, 0).stub).unwrap();
    world.reopen();
    assert_eq!(read(&world.log(), &bytes, 0, 2000), bytes);
}

#[test]
fn a_watermark_of_a_new_directory_is_trusted_after_two_rewrites_only() {
    let world = World::new(b"");
    let checkpoint = world.hot.join("replication-offset-checkpoint");
    let rewrite = |offset: i64| {
        std::fs::write(&checkpoint, format!("0\n1\na 0 {offset}\n")).unwrap();
        world.catalog.root_file_replaced("replication-offset-checkpoint").unwrap();
    };
    let dir = world.catalog.dir("a-0").unwrap();
    rewrite(5);
    assert_eq!(world.catalog.committed_offset(&dir), None);
    rewrite(6);
    assert_eq!(world.catalog.committed_offset(&dir), Some(6));
    let gone = "a-0.0123456789abcdef0123456789abcdef-delete";
    world.catalog.rename_dir("a-0", gone).unwrap();
    std::fs::write(&checkpoint, "0\n0\n").unwrap();
    world.catalog.root_file_replaced("replication-offset-checkpoint").unwrap();
    assert_eq!(world.catalog.committed_offset(&dir), Some(6), "Kafka forgot it, we did not");
    assert_eq!(dir.path(), Path::new(&world.hot).join(gone));
}

#[test]
fn what_was_committed_of_a_deleted_partition_is_known_after_a_restart() {
    let mut world = World::new(b"");
    let checkpoint = world.hot.join("replication-offset-checkpoint");
    let rewrite = |catalog: &Catalog, text: &str| {
        std::fs::write(&checkpoint, text).unwrap();
        catalog.root_file_replaced("replication-offset-checkpoint").unwrap();
    };
    rewrite(&world.catalog, "0\n1\na 0 6\n");
    rewrite(&world.catalog, "0\n1\na 0 6\n");
    let gone = "b-7.0123456789abcdef0123456789abcdef-delete";
    world.catalog.note_deletion("a-0", "a-0-stays");
    assert!(!world.hot.join("a-0").join(deleted::FILE).exists(), "only for a deletion");
    world.catalog.note_deletion("a-0", gone);
    world.catalog.rename_dir("a-0", gone).unwrap();
    rewrite(&world.catalog, "0\n0\n");
    world.reopen();
    let dir = world.catalog.dir(gone).unwrap();
    assert_eq!(world.catalog.committed_offset(&dir), Some(6));
    assert_eq!(dir.tp().to_string(), "a-0");

    let note = world.hot.join(gone).join(deleted::FILE);
    let damaged = std::fs::read_to_string(&note).unwrap().replace(":6", ":7");
    std::fs::write(&note, damaged).unwrap();
    world.reopen();
    assert_eq!(world.catalog.committed_offset(&world.catalog.dir(gone).unwrap()), None);
}

#[test]
fn an_empty_or_unreadable_checkpoint_of_kafka_does_not_stop_a_mount() {
    let mut world = World::new(b"");
    for text in ["", "0\n1\na 0", "nonsense"] {
        std::fs::write(world.hot.join("replication-offset-checkpoint"), text).unwrap();
        world.reopen();
        let dir = world.catalog.dir("a-0").unwrap();
        assert_eq!(world.catalog.committed_offset(&dir), None);
    }
}

#[test]
fn a_cut_that_could_not_be_noted_is_noted_before_the_next_change_is_answered() {
    let bytes = vec![5u8; 200_000];
    let mut world = World::new(&bytes);
    assert!(world.evict(&bytes));
    let blocked = crate::local::durable::tmp_of(&stub::path_of(&world.path()));
    std::fs::create_dir(&blocked).unwrap();
    let log = world.log();
    assert!(log.write_at(100, b"lost").is_err());
    std::fs::remove_dir(&blocked).unwrap();
    log.write_at(100, b"kept").unwrap();
    world.reopen();
    let Content::Overlaid(stub, overlay) = world.log().content() else {
        panic!("{:?}", world.log().content())
    };
    let mut found = [0; 4];
    overlay.read_exact_at(&mut found, 100).unwrap();
    assert!(found == *b"kept" && !stub.touches(100, 104));
}

#[test]
fn a_stub_that_a_failure_left_beside_a_file_goes_with_the_file() {
    let bytes = vec![5u8; 1000];
    let mut world = World::new(&bytes);
    assert!(world.evict(&bytes));
    let left = stub::path_of(&world.path());
    let text = std::fs::read(&left).unwrap();
    let log = world.log();
    let hydrated = log.hydrate(|file, _| {
        file.write_all_at(&bytes, 0)?;
        // In its place stands what cannot be removed as a file.
        std::fs::remove_file(&left)?;
        std::fs::create_dir(&left)
    });
    assert!(hydrated.is_err() && log.is_hot());
    std::fs::remove_dir(&left).unwrap();
    std::fs::write(&left, text).unwrap();
    world.catalog.dir("a-0").unwrap().remove_log(NAME).unwrap();
    world.reopen();
    assert!(world.catalog.dir("a-0").unwrap().log(NAME).is_none(), "it came back");
}

#[test]
fn partitions_beside_one_are_those_of_its_topic_with_the_next_numbers_and_then_the_ones_before() {
    let tmp = tempfile::tempdir().unwrap();
    let (hot, overlay) = (tmp.path().join("hot"), tmp.path().join("overlay"));
    for name in [
        "t-0",
        "t-1",
        "t-2",
        "t-3",
        "t-9",
        "t-x-1",
        "u-2",
        "t-4.0123456789abcdef0123456789abcdef-delete",
    ] {
        std::fs::create_dir_all(hot.join(name)).unwrap();
    }
    std::fs::create_dir(&overlay).unwrap();
    let catalog = Catalog::open(&hot, &overlay).unwrap();
    let beside = |name: &str, max| -> Vec<String> {
        let dir = catalog.dir(name).unwrap();
        catalog.beside(&dir, max).iter().map(|d| d.name()).collect()
    };
    assert_eq!(beside("t-1", 8), ["t-2", "t-3", "t-9", "t-0"]);
    assert_eq!(beside("t-1", 2), ["t-2", "t-3"]);
    assert_eq!(beside("t-2", 1), ["t-3"]);
    assert_eq!(beside("t-9", 6), ["t-3"]);
    assert_eq!(beside("u-2", 8), [""; 0]);
}
