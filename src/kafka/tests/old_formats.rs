//! Message formats 0 and 1 as a Kafka 2.8 broker wrote them, against what its own tools and its own recovery say of the same files.

use std::collections::BTreeMap;

use super::*;

/// The topics' `index.interval.bytes`.
const INTERVAL: u32 = 512;

/// Directory, and the formats and codecs of its batches.
const TOPICS: [(&str, &[(u8, i16)]); 9] = [
    ("v0-none-0", &[(0, 0)]),
    ("v0-gzip-0", &[(0, 1)]),
    ("v0-snappy-0", &[(0, 2)]),
    ("v0-lz4-0", &[(0, 3)]),
    ("v1-none-0", &[(1, 0)]),
    ("v1-gzip-0", &[(1, 1)]),
    ("v1-snappy-0", &[(1, 2)]),
    ("v1-lz4-0", &[(1, 3)]),
    ("mixed-0", &[(0, 0), (0, 1), (1, 0), (1, 3), (2, 0), (2, 4)]),
];

/// A file of the segment at `base`.
fn old(topic: &str, base: i64, ending: &str) -> Vec<u8> {
    fixture(&format!("kafka-2.8/{topic}"), &format!("{base:020}{ending}"))
}

/// The batches of `DumpLogSegments`, each as its names and values, with the offsets of its records.
fn dumped(topic: &str, base: i64) -> Vec<(BTreeMap<String, String>, Vec<i64>)> {
    let text = String::from_utf8(old(topic, base, ".dump.txt")).unwrap();
    let mut batches: Vec<(BTreeMap<String, String>, Vec<i64>)> = Vec::new();
    for line in text.lines() {
        if let Some(record) = line.strip_prefix("| offset: ") {
            let offset = record.split(' ').next().unwrap().parse().unwrap();
            batches.last_mut().unwrap().1.push(offset);
        } else if line.contains(" position: ") {
            let words: Vec<&str> = line.split(' ').collect();
            let pairs = words.windows(2).filter_map(|pair| {
                Some((pair[0].strip_suffix(':')?.to_owned(), pair[1].to_owned()))
            });
            batches.push((pairs.collect(), Vec::new()));
        }
    }
    batches
}

/// What the log cleaner made of wrappers in format 1: of some the first or last messages are gone.
const COMPACTED: &str = "compact-0";
const COMPACTED_BASES: [i64; 2] = [125, 188];

/// All segments of the fixture.
fn segments() -> impl Iterator<Item = (&'static str, i64)> {
    let compacted = COMPACTED_BASES.map(|base| (COMPACTED, base));
    TOPICS.map(|(topic, _)| (topic, 0)).into_iter().chain(compacted)
}

fn scan_old(topic: &str, base: i64) -> (SegmentScan, Vec<BatchInfo>) {
    let log = old(topic, base, ".log");
    let mut scanner = SegmentScanner::new(ScanOptions {
        base_offset: base,
        compacted: topic == COMPACTED,
        index_interval_bytes: Some(INTERVAL),
    });
    let mut batches = Vec::new();
    scanner.update_with(&log, &mut |batch| batches.push(*batch)).unwrap();
    (scanner.finish().unwrap(), batches)
}

#[test]
fn every_batch_of_an_old_format_is_what_kafka_says_it_is() {
    for (topic, formats) in TOPICS {
        let (scan, batches) = scan_old(topic, 0);
        let dumped = dumped(topic, 0);
        assert_eq!(batches.len(), dumped.len(), "{topic}");
        assert!(batches.len() >= 8, "{topic}");
        for (batch, (kafka, offsets)) in batches.iter().zip(&dumped) {
            let number = |name: &str| kafka[name].parse::<i64>().unwrap();
            let (name_of_last, epoch) = match kafka.get("partitionLeaderEpoch") {
                Some(epoch) => ("lastOffset", epoch.parse::<i32>().unwrap()),
                None => ("offset", -1),
            };
            let header = &batch.header;
            let at = format!("{topic} position {}", batch.position);
            assert_eq!(kafka["isvalid"], "true", "{at}");
            // Kafka unpacks a wrapper to learn it; where no offset is missing, it begins behind the one before.
            assert_eq!(batch.first_offset, offsets[0], "{at}");
            assert_eq!(header.last_offset, number(name_of_last), "{at}");
            assert_eq!(i64::from(batch.position), number("position"), "{at}");
            assert_eq!(i64::from(header.size_bytes), number("size"), "{at}");
            assert_eq!(i64::from(header.magic), number("magic"), "{at}");
            assert_eq!(i64::from(header.stored_crc), number("crc"), "{at}");
            assert_eq!(header.leader_epoch, epoch, "{at}");
            let time = ["CreateTime", "NoTimestampType"].iter().find_map(|name| kafka.get(*name));
            assert_eq!(time.unwrap(), &header.max_timestamp_ms.to_string(), "{at}");
            assert!(formats.contains(&(header.magic, header.attributes & 7)), "{at}: {header:?}");
        }
        for format in formats {
            let has = batches.iter().any(|b| (b.header.magic, b.header.attributes & 7) == *format);
            assert!(has, "{topic} has no batch of {format:?}");
        }
        let offsets: Vec<i64> = dumped.iter().flat_map(|(_, offsets)| offsets).copied().collect();
        assert_eq!(offsets, (0..scan.end_offset).collect::<Vec<_>>(), "{topic}");
        let epochs = usize::from(formats.iter().any(|(magic, _)| *magic == 2));
        assert_eq!(scan.epochs.len(), epochs, "{topic}: only format 2 has leader epochs");
    }
}

#[test]
fn of_compacted_wrappers_the_last_offset_is_exact_and_the_first_is_not_above_theirs() {
    let (mut cut_in_front, mut cut_behind) = (0, 0);
    for base in COMPACTED_BASES {
        let (scan, batches) = scan_old(COMPACTED, base);
        let dumped = dumped(COMPACTED, base);
        assert_eq!(batches.len(), dumped.len());
        for (batch, (kafka, offsets)) in batches.iter().zip(&dumped) {
            assert!(batch.header.is_wrapper() && batch.header.magic == 1, "{batch:?}");
            assert_eq!(Some(&batch.header.last_offset), offsets.last());
            assert!(batch.first_offset <= offsets[0], "{batch:?} {offsets:?}");
            assert_eq!(batch.header.max_timestamp_ms.to_string(), kafka["CreateTime"]);
            cut_in_front += i32::from(batch.first_offset < offsets[0]);
        }
        assert_eq!(scan.end_offset, batches.last().unwrap().header.last_offset + 1);
        cut_behind += i32::from(scan.end_offset < 188 || base == 188 && scan.end_offset < 252);
    }
    assert!(cut_in_front > 0 && cut_behind > 0, "the cleaner has removed nothing");
}

#[test]
fn indexes_of_old_formats_are_rebuilt_as_kafkas_recovery_rebuilds_them() {
    for (topic, base) in segments() {
        let (index, timeindex) = scan_old(topic, base).0.index.unwrap();
        assert!(index.len() >= 8 * 3, "{topic}");
        assert_eq!(index, old(topic, base, ".recovered.index"), "{topic} {base}");
        assert_eq!(timeindex, old(topic, base, ".recovered.timeindex"), "{topic} {base}");
    }
}

#[test]
fn the_indexes_that_a_broker_wrote_for_old_formats_are_good_for_every_look_up() {
    for (topic, base) in segments() {
        let (scan, batches) = scan_old(topic, base);
        let index = old(topic, base, ".index");
        // The cleaner appends all that it keeps at once, so its index has no entry.
        assert_eq!(index.len() >= 8 * 3, topic != COMPACTED, "{topic}");
        assert_eq!(validate_index(&index, base, batches), Ok(()), "{topic}");
        let timeindex = old(topic, base, ".timeindex");
        assert_eq!(validate_timeindex(&timeindex, base, scan.end_offset), Ok(()), "{topic}");
    }
}

#[test]
fn a_flipped_bit_anywhere_behind_the_offset_and_length_of_an_old_message_is_found() {
    for (topic, _) in TOPICS.iter().filter(|(topic, _)| topic.starts_with('v')) {
        let log = old(topic, 0, ".log");
        let batches = scan_old(topic, 0).1;
        for (at, batch) in batches.iter().enumerate() {
            let from = batch.position as usize + 12;
            let to = (batch.position + batch.header.size_bytes) as usize;
            for byte in (from..to).step_by(7 + at % 5) {
                let mut bad = log.clone();
                bad[byte] ^= 1 << (byte % 8);
                let mut scanner = SegmentScanner::new(ScanOptions {
                    base_offset: 0,
                    compacted: false,
                    index_interval_bytes: None,
                });
                let violation = scanner.update(&bad).unwrap_err();
                assert_eq!(violation.position, u64::from(batch.position), "{topic} byte {byte}");
            }
        }
    }
}
