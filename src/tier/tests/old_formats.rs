//! Segments in message formats 0 and 1, as a real broker wrote them, on their way into the archive.

use std::io::Read as _;
use std::path::Path;

use super::world::{Mount, TOPIC_ID, World, chain_id, name};
use crate::kafka::index::BatchInfo;
use crate::kafka::scan::{ScanOptions, SegmentScan, SegmentScanner};
use crate::manifest::Aux;
use crate::store::names;
use crate::tier::archive::Done;

const TOPICS: [&str; 4] = ["v0-none-0", "v0-lz4-0", "v1-gzip-0", "v1-snappy-0"];

fn fixture(topic: &str, ending: &str) -> Vec<u8> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/kafka/kafka-2.8");
    let packed = std::fs::read(dir.join(topic).join(format!("{:020}{ending}.gz", 0))).unwrap();
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut bytes).unwrap();
    bytes
}

fn scan(log: &[u8]) -> SegmentScan {
    let options = ScanOptions { base_offset: 0, compacted: false, index_interval_bytes: None };
    let mut scanner = SegmentScanner::new(options);
    scanner.update(log).unwrap();
    scanner.finish().unwrap()
}

/// A partition as a broker with old formats leaves it: without leader epochs, the last segment empty.
fn partition(world: &World, topic: &str, log: &[u8], end: i64) {
    let dir = world.hot().join(topic);
    std::fs::create_dir_all(&dir).unwrap();
    let metadata = dir.join("partition.metadata");
    std::fs::write(&metadata, format!("version: 0\ntopic_id: {TOPIC_ID}")).unwrap();
    let past = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    std::fs::File::open(&metadata).unwrap().set_modified(past).unwrap();
    std::fs::write(dir.join(name(0)), log).unwrap();
    for ending in [".index", ".timeindex"] {
        std::fs::write(dir.join(format!("{:020}{ending}", 0)), fixture(topic, ending)).unwrap();
    }
    std::fs::write(dir.join(name(end)), b"").unwrap();
}

async fn drained(world: &World, ends: &[(&str, i64)]) -> (Mount, Vec<Done>) {
    world.checkpoints(ends);
    let mount = world.mount();
    let done = mount.drain().await.unwrap();
    (mount, done)
}

#[tokio::test]
async fn segments_of_old_formats_are_archived_without_epochs_and_with_kafkas_own_indexes() {
    let world = World::new();
    let logs = TOPICS.map(|topic| fixture(topic, ".log"));
    let scans = [0, 1, 2, 3].map(|at: usize| scan(&logs[at]));
    let mut ends = Vec::new();
    for (at, topic) in TOPICS.into_iter().enumerate() {
        partition(&world, topic, &logs[at], scans[at].end_offset);
        ends.push((topic, scans[at].end_offset));
    }
    let (_mount, done) = drained(&world, &ends).await;
    assert!(done.len() == 4 && done.iter().all(|d| matches!(d, Done::Archived(_))), "{done:?}");
    for (at, topic) in TOPICS.into_iter().enumerate() {
        let chain = world.archived(topic).await;
        let segment = chain.find(0).unwrap();
        assert_eq!(world.object(topic, segment).await, logs[at], "{topic}");
        assert_eq!((segment.base_offset, segment.end_offset), (0, ends[at].1), "{topic}");
        assert_eq!(segment.epochs, [], "{topic}");
        assert_eq!(segment.max_timestamp_ms == -1, topic.starts_with("v0"), "{topic}");
        let key = names::aux_key(&chain_id(topic), 0, &segment.upload_id);
        let bytes = world.store.get(&key, 1 << 20).await.unwrap();
        let aux = Aux::parse(bytes, &segment.aux_sha256).unwrap();
        assert_eq!(aux.index.unwrap(), fixture(topic, ".index"), "{topic}");
        assert_eq!(aux.timeindex.unwrap(), fixture(topic, ".timeindex"), "{topic}");
        assert_eq!(aux.epochs, None, "{topic}");
        assert_eq!(aux.block_crcs, scans[at].block_crcs, "{topic}");
    }
}

#[tokio::test]
async fn a_damaged_message_of_an_old_format_is_quarantined_and_its_gap_is_named() {
    for (topic, at_end, words) in [
        ("v0-none-0", 40, "CRC"),
        ("v1-gzip-0", 40, "CRC"),
        ("v1-snappy-0", 0, "the log ends after"),
    ] {
        let world = World::new();
        let mut log = fixture(topic, ".log");
        let end = scan(&log).end_offset;
        let last = log.len() - 1;
        if at_end == 0 {
            log.truncate(last)
        } else {
            log[last - at_end] ^= 0x10
        }
        partition(&world, topic, &log, end);
        let (mount, done) = drained(&world, &[(topic, end)]).await;
        let [Done::Quarantined(reason)] = &done[..] else { panic!("{topic}: {done:?}") };
        assert!(reason.contains(words), "{topic}: {reason}");
        assert_eq!(world.log_objects().await, 0, "{topic}");
        assert_eq!(mount.tier.status().quarantine, 1, "{topic}");
    }
}

/// Ends (position, offset) of the batches of a log that begins at offset 0.
fn ends(log: &[u8]) -> Vec<(usize, i64)> {
    let options = ScanOptions { base_offset: 0, compacted: false, index_interval_bytes: None };
    let mut ends = Vec::new();
    let mut note = |b: &BatchInfo| {
        let end = b.position + b.header.size_bytes;
        ends.push((end as usize, b.header.last_offset + 1));
    };
    SegmentScanner::new(options).update_with(log, &mut note).unwrap();
    ends
}

#[tokio::test]
async fn replicas_share_the_archive_of_an_old_format_also_where_wrappers_name_only_their_last_offset()
 {
    for topic in ["v0-none-0", "v0-gzip-0", "v1-lz4-0", "v1-snappy-0"] {
        let log = fixture(topic, ".log");
        let batches = ends(&log);
        let (cut, middle) = batches[batches.len() / 2];
        let (_, end) = batches[batches.len() - 1];

        // The first replica rolled in the middle and has archived nothing behind.
        let first = World::new();
        partition(&first, topic, &log[..cut], middle);
        let (_mount, done) = drained(&first, &[(topic, middle)]).await;
        assert!(matches!(&done[..], [Done::Archived(_)]), "{topic}: {done:?}");

        // The second has it all in one: the archive gets what it lacks, cut at a wrapper.
        let second = World::on(first.store.clone());
        partition(&second, topic, &log, end);
        let (_mount, done) = drained(&second, &[(topic, end)]).await;
        assert!(matches!(&done[..], [Done::Archived(_)]), "{topic}: {done:?}");
        assert_eq!(second.check_archive(topic).await, [(0, middle), (middle, end)], "{topic}");

        // The third rolled elsewhere: its second segment begins inside an archived one, at a wrapper.
        let third = World::on(first.store.clone());
        let (early, offset) = batches[2];
        partition(&third, topic, &log[..early], end);
        std::fs::write(third.hot().join(topic).join(name(offset)), &log[early..]).unwrap();
        let (_mount, done) = drained(&third, &[(topic, end)]).await;
        assert!(matches!(&done[..], [Done::Adopted(_), Done::Adopted(_)]), "{topic}: {done:?}");
        assert_eq!(third.log_objects().await, 2, "{topic}");

        // The fourth differs in one message: nothing proves which is right.
        let fourth = World::on(first.store.clone());
        let mut other = log.clone();
        let (from, _) = batches[batches.len() - 2];
        let last = other.len() - 1;
        other[last] ^= 1;
        let crc = crc32fast::hash(&other[from + 16..]);
        other[from + 12..from + 16].copy_from_slice(&crc.to_be_bytes());
        partition(&fourth, topic, &other, end);
        let (_mount, done) = drained(&fourth, &[(topic, end)]).await;
        let [Done::Held(reason)] = &done[..] else { panic!("{topic}: {done:?}") };
        let (_, differs) = batches[batches.len() - 2];
        assert!(reason.contains(&format!("from offset {differs} on")), "{topic}: {reason}");
    }
}
