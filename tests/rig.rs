//! The rig judges everything else, so it is judged first: on a plain directory it must be content, and with a damaged log it must not.

mod common;

use common::broker::{Broker, KAFKA, dump_log_segments};
use common::children::{java, run};
use common::{Ledger, LogDir, Scratch, files};

#[test]
fn the_ledger_is_content_with_a_whole_log_and_finds_a_lost_record_and_a_lost_tail() {
    let scratch = Scratch::new("rig-ledger");
    let log_dir = scratch.dir("logs");
    let mut broker = Broker::format(&scratch.dir("broker"), &log_dir, KAFKA, &[]);
    broker.start();
    let ledger = Ledger::new(scratch.path(), "proof", 2);
    ledger.create_topic(&broker, &["segment.bytes=1048576"]);
    ledger.produce(&broker, 4000);
    ledger.produce(&broker, 1000);
    assert_eq!(ledger.prove(&broker)["records"], 5000);
    assert_eq!(ledger.acknowledged(), 5000);
    broker.stop();

    // Cut in the middle of the newest segment: an unclean start truncates there.
    let newest = files::files_under(&log_dir.join("proof-1"))
        .into_iter()
        .rfind(|p| files::name(p).ends_with(".log"))
        .unwrap();
    let len = newest.metadata().unwrap().len();
    std::fs::File::options().write(true).open(&newest).unwrap().set_len(len / 2).unwrap();
    std::fs::remove_file(log_dir.join(".kafka_cleanshutdown")).unwrap();
    std::fs::write(log_dir.join("recovery-point-offset-checkpoint"), "0\n0\n").unwrap();
    broker.start();
    let mut consume = common::ledger::tool("consume");
    consume.args(["--bootstrap", &broker.bootstrap(), "--ledger"]).arg(ledger.file());
    let out = consume.output().unwrap();
    assert!(!out.status.success());
    let words = String::from_utf8_lossy(&out.stderr);
    assert!(words.contains("proof-1 offset") && words.contains("is missing"), "{words}");
    broker.stop();
}

#[test]
fn kafka_itself_finds_nothing_wrong_with_the_segments_that_the_rig_writes() {
    let scratch = Scratch::new("rig-batches");
    let root = scratch.dir("logs");
    let mut logs = LogDir::new(&root, common::broker::CLUSTER_ID);
    let mut log = logs.create("made", 0);
    log.fill_segment(100_000);
    log.append(3, 10);
    logs.commit(&log);
    logs.checkpoint();
    let first = dump_log_segments(&log.dir().join("00000000000000000000.log"));
    assert!(first.contains("isvalid: true") && !first.contains("isvalid: false"), "{first}");
    assert!(first.contains("baseOffset: 96 lastOffset: 111 count: 16"), "{first}");
    let mut index = java(KAFKA, "256m");
    index.args(["org.apache.kafka.tools.DumpLogSegments", "--index-sanity-check", "--files"]);
    index.arg(log.dir().join("00000000000000000000.timeindex"));
    let words = run(index, "DumpLogSegments");
    assert!(words.contains("passed sanity check"), "{words}");
}
