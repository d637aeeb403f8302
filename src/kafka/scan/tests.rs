//! The scanner against hand-made segments: every rule, every cut, every flipped byte.

use proptest::prelude::*;

use super::*;
use crate::kafka::index::validate_index;
use crate::kafka::testing::{TestBatch, legacy_message, legacy_with, log_of};

fn options(base_offset: i64) -> ScanOptions {
    ScanOptions { base_offset, compacted: false, index_interval_bytes: Some(4096) }
}

fn scan(options: ScanOptions, log: &[u8]) -> Result<SegmentScan, Violation> {
    let mut scanner = SegmentScanner::new(options);
    scanner.update(log)?;
    scanner.finish()
}

/// The reason for which a log of these batches, based at the first one's offset, is refused.
fn refusal(batches: &[TestBatch]) -> Violation {
    scan(options(batches[0].base_offset), &log_of(batches)).unwrap_err()
}

fn three() -> Vec<TestBatch> {
    vec![TestBatch::new(100, 3, 10), TestBatch::new(103, 1, 0), TestBatch::new(104, 6, 25)]
}

#[test]
fn an_empty_segment_ends_where_it_begins() {
    let empty = scan(options(785), b"").unwrap();
    assert_eq!((empty.end_offset, empty.first_offset, empty.batches), (785, None, 0));
    assert_eq!((empty.max_timestamp_ms, empty.size_bytes), (-1, 0));
    assert!(empty.block_crcs.is_empty() && empty.content_blocks.is_empty());
    assert_eq!(empty.index, Some((vec![], vec![])));
}

#[test]
fn offsets_times_and_epochs_are_those_of_the_batches() {
    let mut batches = three();
    batches[1].epoch = 4;
    batches[2].epoch = 4;
    batches[1].max_timestamp_ms = 9_000_000_000_000;
    let found = scan(options(100), &log_of(&batches)).unwrap();
    assert_eq!((found.first_offset, found.end_offset, found.batches), (Some(100), 110, 3));
    assert_eq!(found.max_timestamp_ms, 9_000_000_000_000);
    let start = |epoch, start_offset| EpochStart { epoch, start_offset };
    assert_eq!(found.epochs, [start(0, 100), start(4, 103)]);
}

#[test]
fn missing_offsets_are_refused_unless_the_topic_is_compacted() {
    let mut batches = three();
    batches[2].base_offset = 105;
    let violation = refusal(&batches);
    assert_eq!((violation.position, violation.offset), (71 + 61, Some(105)));
    assert!(violation.to_string().contains("position 132, offset 105: "), "{violation}");
    assert!(violation.reason.contains("offsets are missing"), "{violation}");
    let compacted = ScanOptions { compacted: true, ..options(100) };
    assert_eq!(scan(compacted, &log_of(&batches)).unwrap().end_offset, 111);
}

#[test]
fn offsets_that_do_not_grow_are_always_refused() {
    let mut batches = three();
    batches[2].base_offset = 103;
    let compacted = ScanOptions { compacted: true, ..options(100) };
    let violation = scan(compacted, &log_of(&batches)).unwrap_err();
    assert!(violation.reason.contains("104 or more is due"), "{violation}");
}

#[test]
fn a_batch_before_the_base_or_too_far_behind_it_is_refused() {
    let log = log_of(&three());
    let before = scan(options(101), &log).unwrap_err();
    assert!(before.reason.contains("before the segment's base 101"), "{before}");
    let far = [TestBatch::new(i64::from(i32::MAX) + 1, 1, 0)];
    let far = scan(options(0), &log_of(&far)).unwrap_err();
    assert!(far.reason.contains("31 bits"), "{far}");
    let top = [TestBatch::new(i64::MAX, 2, 0)];
    assert!(refusal(&top).reason.contains("last offset delta"));
}

#[test]
fn an_epoch_that_goes_back_is_refused_and_an_unknown_one_is_passed_over() {
    let mut batches = three();
    batches[0].epoch = 2;
    batches[1].epoch = -1;
    batches[2].epoch = 2;
    let found = scan(options(100), &log_of(&batches)).unwrap();
    assert_eq!(found.epochs, [EpochStart { epoch: 2, start_offset: 100 }]);
    batches[2].epoch = 1;
    assert!(refusal(&batches).reason.contains("leader epoch 1 follows epoch 2"));
    batches[2].epoch = -2;
    assert!(refusal(&batches).reason.contains("leader epoch -2"));
}

#[test]
fn counts_of_records_that_do_not_fit_their_offsets_are_refused() {
    for records in [-1, 7, i32::MAX] {
        let mut batches = three();
        batches[2].records = records;
        assert!(refusal(&batches).reason.contains("do not fit 6 offsets"), "{records}");
    }
    let mut emptied_by_compaction = three();
    emptied_by_compaction[2].records = 0;
    assert!(scan(options(100), &log_of(&emptied_by_compaction)).is_ok());
}

#[test]
fn anything_behind_the_last_whole_batch_is_refused() {
    let log = log_of(&three());
    for length in 1..log.len() {
        let ends_whole = [71, 132].contains(&length);
        assert_eq!(scan(options(100), &log[..length]).is_ok(), ends_whole, "{length}");
    }
    let torn = scan(options(100), &log[..log.len() - 1]).unwrap_err();
    assert_eq!((torn.position, torn.offset), (132, Some(104)));
    let zeros = [log.as_slice(), &[0; 100]].concat();
    assert_eq!(scan(options(100), &zeros).unwrap_err().position, log.len() as u64);
    let one_byte_more = [log.as_slice(), &[0]].concat();
    assert_eq!(scan(options(100), &one_byte_more).unwrap_err().offset, None);
}

#[test]
fn impossible_lengths_and_unknown_formats_are_refused() {
    let mut log = log_of(&three());
    log[8..12].copy_from_slice(&48i32.to_be_bytes());
    assert!(scan(options(100), &log).unwrap_err().reason.contains("length 48"));
    log[8..12].copy_from_slice(&(-1i32).to_be_bytes());
    assert!(scan(options(100), &log).unwrap_err().reason.contains("length -1"));
    log[8..12].copy_from_slice(&i32::MAX.to_be_bytes());
    assert!(scan(options(100), &log).unwrap_err().reason.contains("2 GiB"));
    log[16] = 3;
    let unknown = scan(options(100), &log).unwrap_err();
    assert!(unknown.reason.contains("format 3"));
    assert_eq!(unknown.offset, Some(100));
}

#[test]
fn after_a_violation_nothing_is_accepted_any_more() {
    let mut log = log_of(&three());
    log[70] ^= 1;
    let mut scanner = SegmentScanner::new(options(100));
    let first = scanner.update(&log).unwrap_err();
    assert!(first.reason.contains("CRC"), "{first}");
    assert_eq!((first.position, first.offset), (0, Some(100)));
    assert_eq!(scanner.update(&log_of(&three())).unwrap_err(), first);
    assert_eq!(scanner.finish().unwrap_err(), first);
}

#[test]
fn wrappers_of_old_formats_may_leave_offsets_out_but_not_go_back() {
    let log = mixed_formats();
    let found = scan(options(0), &log.concat()).unwrap();
    assert_eq!((found.first_offset, found.end_offset, found.batches), (Some(0), 12, 4));
    assert_eq!(found.max_timestamp_ms, 1_700_000_000_010);
    assert_eq!(found.epochs, [EpochStart { epoch: 0, start_offset: 10 }]);
    let back = [&log[2], &log[1]].map(Vec::as_slice).concat();
    assert!(scan(options(0), &back).unwrap_err().reason.contains("10 or more"));
}

/// A wrapper of five in format 0, a message and a wrapper of four in format 1, a batch of format 2.
fn mixed_formats() -> [Vec<u8>; 4] {
    [
        legacy_with(GZIP, 4, None, b"wrapper of five"),
        legacy_message(5, Some(77), b"x"),
        legacy_with(SNAPPY | APPEND_TIME, 9, Some(55), b"wrapper of four"),
        TestBatch::new(10, 2, 5).bytes(),
    ]
}

const GZIP: u8 = 1;
const SNAPPY: u8 = 2;
const LZ4: u8 = 3;
const APPEND_TIME: u8 = 8;

#[test]
fn messages_of_old_formats_that_wrap_none_follow_each_other_without_a_hole() {
    for timestamp in [None, Some(5)] {
        for before in [
            legacy_message(4, timestamp, b"x"),
            legacy_with(LZ4, 4, timestamp, b"x"),
            TestBatch::new(3, 2, 0).bytes(),
        ] {
            let behind = |offset| legacy_message(offset, timestamp, b"y");
            let log = |offset| [before.as_slice(), &behind(offset)].concat();
            assert_eq!(scan(options(3), &log(5)).unwrap().end_offset, 6);
            let violation = scan(options(3), &log(6)).unwrap_err();
            assert!(violation.reason.contains("offsets are missing"), "{violation}");
            let compacted = ScanOptions { compacted: true, ..options(3) };
            assert_eq!(scan(compacted, &log(6)).unwrap().end_offset, 7);
        }
    }
    let batch = [legacy_message(4, None, b"x"), TestBatch::new(6, 1, 0).bytes()].concat();
    assert!(scan(options(0), &batch).unwrap_err().reason.contains("offsets are missing"));
}

#[test]
fn a_codec_that_the_message_format_does_not_know_is_refused() {
    for codec in 0..8u8 {
        for timestamp in [None, Some(5)] {
            let result = scan(options(0), &legacy_with(codec, 0, timestamp, b"x"));
            assert_eq!(result.is_ok(), codec <= LZ4, "{codec}: {result:?}");
            if let Err(violation) = result {
                assert!(violation.reason.contains(&format!("codec {codec} ")), "{violation}");
                assert_eq!((violation.position, violation.offset), (0, Some(0)));
            }
        }
        let mut batch = TestBatch::new(0, 1, 10).bytes();
        batch[22] = codec;
        let crc = crc32c::crc32c(&batch[21..]);
        batch[17..21].copy_from_slice(&crc.to_be_bytes());
        assert_eq!(scan(options(0), &batch).is_ok(), codec <= 4, "{codec}");
    }
}

#[test]
fn old_formats_are_under_the_checksum_of_their_time() {
    let mut message = legacy_message(0, Some(5), b"value");
    let with_the_newer = crc32c::crc32c(&message[16..]);
    message[12..16].copy_from_slice(&with_the_newer.to_be_bytes());
    assert!(scan(options(0), &message).unwrap_err().reason.contains("CRC"));
}

#[test]
fn a_wrapper_begins_where_the_batch_before_it_ends() {
    let mut seen = Vec::new();
    let mut scanner = SegmentScanner::new(options(0));
    let mut note = |b: &BatchInfo| seen.push((b.first_offset, b.header.last_offset));
    scanner.update_with(&mixed_formats().concat(), &mut note).unwrap();
    assert_eq!(seen, [(0, 4), (5, 5), (6, 9), (10, 11)]);
    let found = scanner.finish().unwrap();
    assert_eq!(found.content_blocks[0].first_offset, 0);
}

#[test]
fn an_index_may_name_any_offset_of_a_wrapper_and_none_before_it() {
    let log = mixed_formats();
    let mut batches = Vec::new();
    let mut scanner = SegmentScanner::new(options(0));
    scanner.update_with(&log.concat(), &mut |b| batches.push(*b)).unwrap();
    let position = (log[0].len() + log[1].len()) as u32;
    for offset in 0..12u32 {
        let index = [offset.to_be_bytes(), position.to_be_bytes()].concat();
        let good = validate_index(&index, 0, batches.clone()).is_ok();
        // Behind its own end: an older broker's last offset of several appended together.
        assert_eq!(good, offset >= 6, "{offset}");
    }
}

/// Every other value of every byte; calls `passed` with each damaged log that the scanner accepts.
fn flip_all(options: ScanOptions, log: &[u8], mut passed: impl FnMut(usize, &[u8])) {
    let whole = scan(options, log).unwrap();
    for at in 0..log.len() {
        for mask in 1..=255u8 {
            let mut bad = log.to_vec();
            bad[at] ^= mask;
            if let Ok(found) = scan(options, &bad) {
                assert_ne!(found.sha256, whole.sha256, "byte {at} mask {mask}");
                assert_ne!(found.block_crcs, whole.block_crcs, "byte {at} mask {mask}");
                passed(at, &bad);
            }
        }
    }
}

#[test]
fn of_all_flipped_bytes_only_epochs_that_still_ascend_go_unnoticed() {
    let mut batches = three();
    for (batch, epoch) in batches.iter_mut().zip([3, 3, 5]) {
        batch.epoch = epoch;
    }
    let log = log_of(&batches);
    let starts = [0, 71, 132];
    let mut passes = 0;
    flip_all(options(100), &log, |at, bad| {
        passes += 1;
        assert!(starts.iter().any(|s| (s + 12..s + 16).contains(&at)), "byte {at} is no epoch's");
        let epoch = |s: usize| i32::from_be_bytes(bad[s + 12..s + 16].try_into().unwrap());
        let epochs = starts.map(epoch);
        assert!(epochs.is_sorted() && epochs[0] >= 0, "byte {at}: {epochs:?}");
    });
    assert!(passes > 100, "the last epoch may grow: {passes}");
}

#[test]
fn of_all_flipped_bytes_of_old_formats_only_offsets_of_wrappers_that_still_ascend_go_unnoticed() {
    for timestamp in [None, Some(1_700_000_000_000)] {
        let wrappers = [20, 30, 31].map(|offset| legacy_with(GZIP, offset, timestamp, b"value"));
        let length = wrappers[0].len();
        let mut passes = 0;
        flip_all(options(0), &wrappers.concat(), |at, _| {
            passes += 1;
            assert!(at % length < 8, "byte {at} is no offset's");
        });
        assert!(passes > 0);
        let messages = [20, 21, 22].map(|offset| legacy_message(offset, timestamp, b"value"));
        let log = messages.concat();
        flip_all(options(20), &log, |at, _| panic!("byte {at} of plain messages went unnoticed"));
    }
}

/// The rule of FORMATS 2.4 once more, over a list.
fn content_blocks_by_hand(batches: &[TestBatch]) -> Vec<ContentBlock> {
    let mut blocks = Vec::new();
    let mut bytes = Vec::new();
    let mut first_offset = None;
    for (at, batch) in batches.iter().enumerate() {
        let batch_bytes = batch.bytes();
        let crc = u32::from_be_bytes(batch_bytes[17..21].try_into().unwrap());
        first_offset.get_or_insert(batch.base_offset);
        bytes.extend(batch_bytes);
        if crc % 64 == 0 || bytes.len() >= 4 << 20 || at + 1 == batches.len() {
            let hash = xxhash_rust::xxh3::xxh3_128(&bytes).to_be_bytes();
            let length = bytes.len() as u32;
            blocks.push(ContentBlock { first_offset: first_offset.take().unwrap(), length, hash });
            bytes.clear();
        }
    }
    blocks
}

fn check_sums(batches: &[TestBatch]) -> SegmentScan {
    let log = log_of(batches);
    let found = scan(options(batches[0].base_offset), &log).unwrap();
    assert_eq!(found.sha256, Sha256::of(&log));
    assert_eq!(found.size_bytes, log.len() as u64);
    let blocks: Vec<u32> = log.chunks(BLOCK_BYTES as usize).map(crc32c::crc32c).collect();
    assert_eq!(found.block_crcs, blocks);
    assert_eq!(found.content_blocks, content_blocks_by_hand(batches));
    found
}

fn run_of(first: i64, count: i64, body_bytes: usize) -> Vec<TestBatch> {
    (first..first + count).map(|offset| TestBatch::new(offset, 1, body_bytes)).collect()
}

#[test]
fn checksums_are_those_of_the_bytes_also_at_the_edges_of_blocks() {
    check_sums(&run_of(0, 1, BLOCK_BYTES as usize - 61));
    check_sums(&run_of(0, 2, BLOCK_BYTES as usize - 61));
    check_sums(&run_of(0, 3, BLOCK_BYTES as usize - 60));
    check_sums(&run_of(0, 3, BLOCK_BYTES as usize - 62));
    let many = check_sums(&run_of(0, 1000, 100));
    assert!((4..60).contains(&many.content_blocks.len()), "{}", many.content_blocks.len());
}

#[test]
fn a_content_block_ends_with_the_batch_that_makes_it_4_mib() {
    let mut batches = run_of(0, 9, (1 << 20) - 61);
    batches.iter_mut().for_each(|batch| {
        let divisible = |b: &TestBatch| crc32c::crc32c(&b.bytes()[21..]).is_multiple_of(64);
        while divisible(batch) {
            batch.body[0] += 1;
        }
    });
    let lengths: Vec<u32> = check_sums(&batches).content_blocks.iter().map(|b| b.length).collect();
    assert_eq!(lengths, [4 << 20, 4 << 20, 1 << 20]);
}

#[test]
fn replicas_with_other_segment_boundaries_share_content_blocks() {
    let batches = run_of(0, 2000, 50);
    let cut = scan(options(700), &log_of(&batches[700..])).unwrap().content_blocks;
    let whole = scan(options(0), &log_of(&batches)).unwrap().content_blocks;
    let shared = cut.iter().filter(|block| whole.contains(block)).count();
    assert!(shared + 1 >= cut.len() && shared > 5, "{shared} of {}", cut.len());
}

#[test]
fn every_whole_batch_is_reported_once_where_it_lies() {
    let log = log_of(&three());
    let mut seen = Vec::new();
    let mut scanner = SegmentScanner::new(options(100));
    for byte in &log {
        let mut note = |b: &BatchInfo| seen.push((b.position, b.header.base_offset));
        scanner.update_with(std::slice::from_ref(byte), &mut note).unwrap();
    }
    assert_eq!(seen, [(0, 100), (71, 103), (132, 104)]);
}

prop_compose! {
    fn any_batch()(
        span in 1..20i32, gap in 0..3i64, body in prop_oneof![0..300usize, 0..300usize, 60_000..140_000usize],
        newer in prop::bool::weighted(0.1), time in -1..1000i64,
    ) -> (i64, bool, TestBatch) {
        let mut batch = TestBatch::new(0, span, body);
        batch.max_timestamp_ms = time;
        (gap, newer, batch)
    }
}

fn in_order(parts: Vec<(i64, bool, TestBatch)>) -> Vec<TestBatch> {
    let (mut offset, mut epoch) = (1000, 0);
    let mut batches = Vec::new();
    for (gap, newer, mut batch) in parts {
        offset += gap;
        epoch += i32::from(newer);
        (batch.base_offset, batch.epoch) = (offset, epoch);
        offset += i64::from(batch.span);
        batches.push(batch);
    }
    batches
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_result_does_not_depend_on_where_the_bytes_were_cut(
        parts in prop::collection::vec(any_batch(), 0..20),
        damage in prop::option::of((any::<prop::sample::Index>(), 1..=255u8)),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
    ) {
        let mut log = log_of(&in_order(parts));
        if let (Some((at, mask)), false) = (damage, log.is_empty()) {
            let at = at.index(log.len());
            log[at] ^= mask;
        }
        let options = ScanOptions { compacted: true, ..options(1000) };
        let whole = scan(options, &log);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(log.len() + 1)).collect();
        cuts.push(log.len());
        cuts.sort_unstable();
        let mut scanner = SegmentScanner::new(options);
        let mut from = 0;
        for cut in cuts {
            let _ = scanner.update(&log[from..cut]);
            from = cut;
        }
        prop_assert_eq!(scanner.finish(), whole);
    }
}
