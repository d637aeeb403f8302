//! Against files that real brokers wrote: `tests/fixtures/kafka/MANIFEST.md` says which.

use std::io::Read as _;
use std::path::PathBuf;

use super::checkpoint::{self, parse_epochs, parse_offsets, parse_partition_metadata};
use super::index::{
    BatchInfo, IndexKind, rebuild, trimmed_len, validate_index, validate_timeindex,
};
use super::names::{self, FileKind};
use super::scan::{ScanOptions, SegmentScan, SegmentScanner};
use crate::types::EpochStart;

mod old_formats;

fn path(dir: &str, name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests/fixtures/kafka", dir, name].iter().collect()
}

/// The file's content, also when it is stored with `.gz` behind its name.
fn fixture(dir: &str, name: &str) -> Vec<u8> {
    if let Ok(bytes) = std::fs::read(path(dir, name)) {
        return bytes;
    }
    let packed = std::fs::read(path(dir, &format!("{name}.gz"))).unwrap();
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut bytes).unwrap();
    bytes
}

/// What Kafka read from the segment: offset, timestamp, control flag of each record.
fn golden(dir: &str, base: i64) -> Vec<(i64, i64, bool)> {
    let text = String::from_utf8(fixture(dir, &format!("{base:020}.golden.tsv"))).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let fields: Vec<&str> = line.split('\t').collect();
            let number = |at: usize| fields[at].parse::<i64>().unwrap();
            (number(0), number(1), fields.last() == Some(&"true"))
        })
        .collect()
}

struct Case {
    dir: &'static str,
    base: i64,
    /// As counted by Kafka when the fixture was made.
    batches: u64,
    compacted: bool,
    interval: u32,
}

const fn case(dir: &'static str, base: i64, batches: u64) -> Case {
    Case { dir, base, batches, compacted: false, interval: 4096 }
}

fn closed_segments() -> Vec<Case> {
    let compact = |base, batches| Case { compacted: true, ..case("compact-0", base, batches) };
    let idx100 = |base, batches| Case { interval: 100, ..case("idx100-0", base, batches) };
    vec![
        case("codec-none-0", 0, 58),
        case("codec-none-0", 785, 65),
        case("codec-gzip-0", 0, 176),
        case("codec-gzip-0", 2272, 56),
        case("append-time-0", 0, 61),
        case("append-time-0", 658, 53),
        compact(0, 52),
        compact(554, 51),
        compact(1119, 57),
        compact(1669, 47),
        compact(2224, 23),
        case("txn-0", 0, 173),
        case("txn-0", 227, 172),
        case("restart-diverged-0", 0, 262),
        case("restart-diverged-0", 712, 176),
        idx100(0, 202),
        idx100(202, 200),
        idx100(402, 98),
        case("v0-none-0", 0, 722),
        case("v1-none-0", 0, 695),
        case("v1-gzip-0", 0, 120),
    ]
}

fn scan(case: &Case) -> (SegmentScan, Vec<BatchInfo>) {
    let log = fixture(case.dir, &names::file_name(case.base, FileKind::Log));
    let mut scanner = SegmentScanner::new(ScanOptions {
        base_offset: case.base,
        compacted: case.compacted,
        index_interval_bytes: Some(case.interval),
    });
    let mut batches = Vec::new();
    scanner.update_with(&log, &mut |batch| batches.push(*batch)).unwrap();
    (scanner.finish().unwrap(), batches)
}

fn small(case: &Case, kind: FileKind) -> Vec<u8> {
    fixture(case.dir, &names::file_name(case.base, kind))
}

/// The one closed segment whose indexes a restart in its middle has shifted.
fn diverged(case: &Case) -> bool {
    case.dir == "restart-diverged-0" && case.base == 0
}

#[test]
fn every_real_segment_is_what_kafka_itself_read_from_it() {
    for case in closed_segments() {
        let at = format!("{} {}", case.dir, case.base);
        let (scan, batches) = scan(&case);
        let golden = golden(case.dir, case.base);
        assert_eq!(scan.batches, case.batches, "{at}");
        if case.compacted {
            // The last record may be gone, its batch is not: the next roll's snapshot names the end.
            let next = names::file_name(scan.end_offset, FileKind::Snapshot);
            assert!(path(case.dir, &next).exists(), "{at}: {next}");
        } else {
            assert_eq!(scan.end_offset, golden.last().unwrap().0 + 1, "{at}");
        }
        let max_timestamp = golden.iter().map(|record| record.1).max().unwrap();
        assert_eq!(scan.max_timestamp_ms, max_timestamp, "{at}");
        if batches[0].header.magic == 2 {
            let records: u32 = batches.iter().map(|b| b.header.records.unwrap()).sum();
            assert_eq!(records as usize, golden.len(), "{at}");
            assert_eq!(scan.first_offset, Some(case.base), "{at}");
            let markers = batches.iter().filter(|b| b.header.is_control()).count();
            assert_eq!(markers, golden.iter().filter(|record| record.2).count(), "{at}");
        }
    }
}

#[test]
fn epochs_of_real_segments_agree_with_their_checkpoint() {
    for case in closed_segments() {
        let name = path(case.dir, names::LEADER_EPOCHS);
        let Ok(text) = std::fs::read(name) else { continue };
        let checkpoint = parse_epochs(&text).unwrap();
        for epoch in scan(&case).0.epochs {
            let known = checkpoint.iter().find(|known| known.epoch == epoch.epoch).unwrap();
            assert_eq!(known.start_offset.max(case.base), epoch.start_offset, "{}", case.dir);
        }
    }
    let two = scan(&case("restart-diverged-0", 0, 262)).0.epochs;
    assert_eq!(two.len(), 2, "the restart began an epoch: {two:?}");
}

#[test]
fn rebuilt_indexes_are_byte_for_byte_those_of_the_broker() {
    for case in closed_segments().iter().filter(|case| !diverged(case)) {
        let at = format!("{} {}", case.dir, case.base);
        let (scan, batches) = scan(case);
        let (index, timeindex) = scan.index.unwrap();
        assert_eq!(index, small(case, FileKind::Index), "{at}");
        assert_eq!(timeindex, small(case, FileKind::TimeIndex), "{at}");
        assert_eq!(rebuild(case.base, case.interval, batches), (index, timeindex), "{at}");
    }
}

#[test]
fn the_brokers_indexes_are_valid_also_where_a_rebuild_differs() {
    for case in closed_segments() {
        let at = format!("{} {}", case.dir, case.base);
        let (scan, batches) = scan(&case);
        let index = small(&case, FileKind::Index);
        assert_eq!(validate_index(&index, case.base, batches), Ok(()), "{at}");
        let timeindex = small(&case, FileKind::TimeIndex);
        assert_eq!(validate_timeindex(&timeindex, case.base, scan.end_offset), Ok(()), "{at}");
        if diverged(&case) {
            assert_ne!(scan.index.unwrap(), (index, timeindex));
        }
    }
}

#[test]
fn an_index_with_a_changed_entry_is_refused() {
    let case = case("codec-none-0", 785, 65);
    let (_, batches) = scan(&case);
    let index = small(&case, FileKind::Index);
    for entry in 0..index.len() / 8 {
        for (field, by) in [(0, -100_000), (0, 100_000), (4, -1), (4, 1)] {
            let at = entry * 8 + field;
            let mut bad = index.clone();
            let value = i32::from_be_bytes(bad[at..at + 4].try_into().unwrap()) + by;
            bad[at..at + 4].copy_from_slice(&value.to_be_bytes());
            let result = validate_index(&bad, case.base, batches.clone());
            assert!(result.is_err(), "entry {entry} field {field} by {by}");
        }
    }
    let half = &index[..index.len() - 3];
    assert!(validate_index(half, case.base, batches).is_err());
}

#[test]
fn zeros_behind_the_entries_of_an_active_segment_are_cut_off() {
    let active = case("active-live/txn-0", 913, 61);
    let (scan, _) = scan(&active);
    let (index, timeindex) = scan.index.unwrap();
    let live = small(&active, FileKind::Index);
    assert_eq!(live.len(), 10_485_760);
    assert_eq!(live[..trimmed_len(&live, IndexKind::Offset)], index);
    let live = small(&active, FileKind::TimeIndex);
    assert_eq!(live.len(), 10_485_756);
    let entries = trimmed_len(&live, IndexKind::Time);
    assert!(entries > 0 && timeindex.starts_with(&live[..entries]));
    assert_eq!(timeindex.len() - entries, 12, "closing adds the last entry");
}

#[test]
fn an_index_of_nothing_but_zeros_has_no_entries() {
    assert_eq!(trimmed_len(&[0; 8000], IndexKind::Offset), 0);
    assert_eq!(trimmed_len(&[0; 12_000], IndexKind::Time), 0);
    assert_eq!(trimmed_len(&[0; 12], IndexKind::Time), 12, "timestamp 0 of one record");
    assert_eq!(trimmed_len(&[], IndexKind::Time), 0);
    assert_eq!(trimmed_len(&[0, 0, 0, 1, 0, 0, 0], IndexKind::Offset), 0);
}

#[test]
fn the_small_files_of_a_real_log_dir_are_understood_and_written_alike() {
    for name in [names::HIGH_WATERMARK, names::RECOVERY_POINT, names::LOG_START, names::CLEANER] {
        let text = fixture("broker-root", name);
        let offsets = parse_offsets(&text).unwrap();
        assert!(!offsets.is_empty(), "{name}");
        assert_eq!(parse_offsets(checkpoint::render_offsets(&offsets).as_bytes()), Ok(offsets));
    }
    let watermarks = parse_offsets(&fixture("broker-root", names::HIGH_WATERMARK)).unwrap();
    assert_eq!(watermarks[&"codec-gzip-0".parse().unwrap()], 3000);
    let meta = fixture("broker-root", names::META_PROPERTIES);
    let meta = checkpoint::parse_meta_properties(&meta).unwrap();
    assert_eq!(meta.cluster_id.as_deref(), Some("JQh2ZTJ1QYO1d0tAxL6Fog"));
    assert_eq!(meta.node_id, Some(1));
    for case in closed_segments() {
        let Ok(text) = std::fs::read(path(case.dir, names::PARTITION_METADATA)) else { continue };
        let topic_id = parse_partition_metadata(&text).unwrap();
        assert_eq!(checkpoint::render_partition_metadata(&topic_id).as_bytes(), text);
        assert_eq!(text.len(), 43);
        let text = fixture(case.dir, names::LEADER_EPOCHS);
        let epochs = parse_epochs(&text).unwrap();
        assert_eq!(checkpoint::render_epochs(&epochs).as_bytes(), text);
    }
}

#[test]
fn checkpoints_that_a_broker_would_not_write_are_refused_with_their_line() {
    let offsets = |text: &str| parse_offsets(text.as_bytes()).map_err(|e| e.to_string());
    let cases = [
        ("", "line 1: "),
        ("0", "line 1: "),
        ("1\n0\n", "line 1: version \"1\""),
        ("0\n", "line 2: there is no count"),
        ("0\n-1\n", "line 2: "),
        ("0\n2\na 0 1\n", "line 2: 2 entries are promised, 1 are there"),
        ("0\n1\na 0 1\nb 0 1\n", "line 2: 1 entries are promised, 2 are there"),
        ("0\n1\na 0 123", "line 3: the file ends"),
        ("0\n2\na 0 1\na 0\n", "line 4: "),
        ("0\n1\na 0 -5\n", "line 3: \"-5\" is no offset"),
        ("0\n1\na x 5\n", "line 3: \"x\" is no partition"),
        ("0\n1\na/b 0 5\n", "line 3: topic"),
        ("0\n2\na 0 5\na 0 6\n", "line 4: a-0 stands there twice"),
        ("0\n1\na 0 99999999999999999999\n", "line 3: "),
    ];
    for (text, start) in cases {
        let message = offsets(text).unwrap_err();
        assert!(message.starts_with(start), "{text:?}: {message}");
    }
    assert_eq!(offsets("0\n0\n"), Ok(Default::default()));
    let not_text = parse_offsets(b"0\n1\n\xff 0 1\n").unwrap_err();
    assert_eq!(not_text.to_string(), "line 3: is not text");
}

#[test]
fn epochs_that_go_back_and_metadata_that_is_cut_are_refused() {
    let epochs = parse_epochs(b"0\n2\n0 0\n2 300\n").unwrap();
    assert_eq!(epochs[1], EpochStart { epoch: 2, start_offset: 300 });
    for text in ["0\n2\n2 0\n2 300\n", "0\n2\n3 0\n2 300\n", "0\n2\n1 5\n2 3\n", "0\n1\n1\n"] {
        assert!(parse_epochs(text.as_bytes()).is_err(), "{text:?}");
    }
    let good = "version: 0\ntopic_id: bKNBBhvxGqb2w-Xv9gN16g";
    for length in 0..good.len() {
        assert!(parse_partition_metadata(&good.as_bytes()[..length]).is_err(), "{length}");
    }
    assert!(parse_partition_metadata(format!("{good}\n").as_bytes()).is_ok());
    assert!(parse_partition_metadata(format!("{good}\nmore").as_bytes()).is_err());
    assert!(parse_partition_metadata(good.replace('0', "1").as_bytes()).is_err());
    let zeros = format!("version: 0\ntopic_id: {}", "A".repeat(22));
    assert!(parse_partition_metadata(zeros.as_bytes()).is_err());
}
