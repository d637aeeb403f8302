//! Every Kafka that is supported, and the message formats that only old ones write. `scripts/test --all-versions` runs it, and needs
//! `scripts/setup kafka-2.8`.

mod common;

use std::path::PathBuf;

use common::archive::{log_objects, settle};
use common::broker::{Broker, KAFKA, KAFKA_OLD, KAFKA_ZOOKEEPER, dump_log_segments};
use common::versions::{closed_sizes, cold_segments, forget_pages, lives_on_a_mount};
use common::{Ledger, Mount, MountCommand, Scratch};

#[test]
fn a_broker_with_zookeeper_lives_on_a_mount() {
    lives_on_a_mount(KAFKA_ZOOKEEPER);
}

#[test]
fn the_last_kafka_3_lives_on_a_mount() {
    lives_on_a_mount(KAFKA_OLD);
}

#[test]
fn the_newest_kafka_lives_on_a_mount() {
    lives_on_a_mount(KAFKA);
}

/// `message.format.version`, the magic byte that it means, the codecs that it knows.
const FORMATS: [(&str, u8); 2] = [("0.9.0", 0), ("0.10.2", 1)];
const CODECS: [&str; 4] = ["none", "gzip", "snappy", "lz4"];
const RECORDS: u64 = 3000;
const SEGMENT_BYTES: u64 = 64 << 10;

/// One topic in an old format.
struct OldTopic {
    ledger: Ledger,
    magic: u8,
    codec: u8,
}

struct OldTopics {
    broker: Broker,
    mount: Mount,
    topics: Vec<OldTopic>,
    hot: PathBuf,
    bucket: PathBuf,
    hot_bytes: u64,
    scratch: Scratch,
}

impl OldTopics {
    fn begin() -> Self {
        let scratch = Scratch::new("old-formats");
        let store = scratch.file_store("store");
        // The active segments of all topics fit in, and little else.
        let hot_bytes = (FORMATS.len() * CODECS.len() + 1) as u64 * SEGMENT_BYTES;
        let mount = MountCommand::broker(scratch.path(), &store)
            .option("--hot-bytes", hot_bytes)
            .option("--cache-bytes", 1 << 20)
            .start();
        let dir = scratch.dir("broker");
        let mut broker = Broker::format(&dir, mount.point(), KAFKA_ZOOKEEPER, &[]);
        broker.start();
        let mut topics = Vec::new();
        for (version, magic) in FORMATS {
            for (codec, name) in CODECS.iter().enumerate() {
                let ledger = Ledger::new(scratch.path(), &format!("v{magic}-{name}"), 1)
                    .record_bytes(300)
                    .codec(name)
                    .without_idempotence();
                let format = format!("message.format.version={version}");
                ledger.create_topic(&broker, &[&format, &format!("segment.bytes={SEGMENT_BYTES}")]);
                ledger.produce(&broker, RECORDS);
                topics.push(OldTopic { ledger, magic, codec: codec as u8 });
            }
        }
        let (hot, bucket) = (scratch.path().join("data/hot"), scratch.path().join("store"));
        Self { broker, mount, topics, hot, bucket, hot_bytes, scratch }
    }

    fn prove(&self, after: &str) {
        for topic in &self.topics {
            let name = topic.ledger.topic();
            settle(&self.mount, &self.hot, name, &self.bucket, self.hot_bytes);
            let status = self.mount.status();
            assert_eq!(status["quarantine"], 0, "after {after}: {status}");
            let cold = cold_segments(self.mount.point(), &self.hot, name);
            assert!(cold >= 10, "after {after}: {name} has only {cold} cold segments");
            let proof = topic.ledger.prove(&self.broker);
            eprintln!("{name} after {after}: {cold} segments cold, {proof}");
            assert_eq!(proof["records"].as_u64(), Some(topic.ledger.acknowledged()), "{name}");
        }
    }

    /// First batches of a topic's objects: (magic, codec).
    fn formats_of(&self, topic: &str) -> Vec<(u8, u8)> {
        let of_topic = log_objects(&self.bucket)
            .into_iter()
            .filter(|o| o.partition.strip_prefix(topic).is_some_and(|rest| rest == "-0"));
        let mut objects: Vec<_> = of_topic.collect();
        objects.sort_by_key(|o| o.base);
        let head = |path: &PathBuf| {
            let bytes = std::fs::read(path).unwrap();
            let codec = if bytes[16] == 2 { bytes[22] } else { bytes[17] } & 7;
            (bytes[16], codec)
        };
        objects.iter().map(|o| head(&o.path)).collect()
    }
}

#[test]
fn topics_in_message_formats_0_and_1_go_cold_and_are_read_and_recovered_from_there() {
    let mut old = OldTopics::begin();
    old.prove("the load");
    for topic in &old.topics {
        let name = topic.ledger.topic();
        let formats = old.formats_of(name);
        assert!(formats.len() >= 10, "{name}: {} objects", formats.len());
        assert!(formats.iter().all(|f| *f == (topic.magic, topic.codec)), "{name}: {formats:?}");
        let object =
            log_objects(&old.bucket).into_iter().find(|o| o.partition == format!("{name}-0"));
        let words = dump_log_segments(&object.unwrap().path);
        let magic = format!("magic: {}", topic.magic);
        assert!(words.contains(&magic) && words.contains("isvalid: true"), "{words}");
        assert!(!words.contains("isvalid: false"), "{words}");
    }

    // An unclean start without recovery points reads all of it from the archive and makes the indexes anew.
    let name = |t: &OldTopic| t.ledger.topic().to_owned();
    let sizes = |old: &OldTopics| -> Vec<_> {
        old.topics.iter().map(|t| closed_sizes(old.mount.point(), &name(t))).collect()
    };
    let before = sizes(&old);
    old.broker.kill9();
    let fetched = |old: &OldTopics| old.mount.status()["reads"]["fetched_bytes"].as_u64().unwrap();
    let fetched_before = fetched(&old);
    old.topics.iter().for_each(|t| forget_pages(old.mount.point(), t.ledger.topic()));
    std::fs::remove_file(old.mount.path("recovery-point-offset-checkpoint")).unwrap();
    old.broker.start();
    let read = fetched(&old) - fetched_before;
    assert!(read > 4 << 20, "the recovery has read only {read} bytes of cold segments");
    assert_eq!(sizes(&old), before, "the recovery changed closed segments");
    assert_eq!(old.broker.errors(), Vec::<String>::new());
    old.prove("the recovery of the whole cold log");

    // The topics move on to the format of today: old and new lie in one partition, and in one segment.
    for topic in &old.topics {
        old.broker.topic("--alter", topic.ledger.topic(), 1, &["message.format.version=2.8"]);
        topic.ledger.produce(&old.broker, RECORDS);
    }
    old.prove("the change of format");
    for topic in &old.topics {
        let formats = old.formats_of(topic.ledger.topic());
        assert!(formats.iter().filter(|f| f.0 == 2).count() >= 10, "{formats:?}");
        assert!(formats.iter().filter(|f| f.0 == topic.magic).count() >= 10, "{formats:?}");
    }
    old.broker.stop();
    let OldTopics { mount, scratch, .. } = old;
    mount.sigterm();
    drop(scratch);
}
