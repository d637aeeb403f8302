//! Spark and Hadoop read an archive as plain files: every record of a topic is there, cold ones included, and equal to the ledger.

mod common;

use std::path::Path;

use common::archive::{all_closed_archived, bases, log_objects, partitions};
use common::broker::{Broker, KAFKA};
use common::children::{bound_command, installed, rig_dir, run};
use common::{Ledger, MountCommand, Scratch, wait_until};
use serde_json::Value;

fn job(directory: &Path, topic: &str, scratch: &Path) -> Value {
    installed("spark/ready");
    let mut command = bound_command(rig_dir().join("spark/bin/python"));
    command
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/spark/job.py"))
        .arg(directory)
        .arg(topic);
    command
        .env("SPARK_LOCAL_IP", "127.0.0.1")
        .env("SPARK_LOCAL_DIRS", scratch)
        .env("SPARK_DRIVER_MEM", "1g");
    command.env("PYSPARK_PYTHON", rig_dir().join("spark/bin/python"));
    let out = run(command, "the Spark job");
    serde_json::from_str(out.lines().last().unwrap_or_default())
        .unwrap_or_else(|e| panic!("{e}: {out}"))
}

#[test]
fn a_spark_job_over_an_archive_mount_finds_every_archived_record_of_the_ledger() {
    let scratch = Scratch::new("spark");
    let store = scratch.file_store("store");
    let command = MountCommand::broker(scratch.path(), &store).option("--hot-bytes", "4MiB");
    let mount = command.start();
    let mut broker = Broker::format(&scratch.dir("broker"), mount.point(), KAFKA, &[]);
    broker.start();
    let ledger = Ledger::new(scratch.path(), "orders", 3);
    ledger.create_topic(&broker, &["segment.bytes=1048576"]);
    ledger.produce(&broker, 30_000);
    let bucket = scratch.path().join("store");
    wait_until("the archive to be complete", 90, || {
        all_closed_archived(mount.point(), "orders", &bucket)
    });
    // What is not archived is the active segment: the archive ends where it begins.
    let ends: Vec<i64> =
        (0..3).map(|p| *bases(&mount.path(&format!("orders-{p}"))).last().unwrap()).collect();
    broker.stop();
    mount.sigterm();

    // Another machine: nothing but the store.
    let archive = MountCommand::archive(scratch.path(), &store).start();
    let found = job(archive.point(), "orders", scratch.path());
    let (records, crc32_sum) = ledger.sum_below(&ends);
    assert!(records > 25_000, "{records}");
    assert_eq!(
        (found["records"].as_u64(), found["crc32_sum"].as_u64()),
        (Some(records), Some(crc32_sum)),
        "{found}"
    );

    let objects = log_objects(&bucket);
    assert_eq!(found["segments"].as_u64(), Some(objects.len() as u64));
    assert_eq!(
        partitions(archive.point(), "orders").len(),
        found["listed"].as_object().unwrap().len()
    );
    for object in objects {
        let listed = &found["listed"][&object.partition][&format!("{:020}.log", object.base)];
        assert_eq!(listed.as_u64(), Some(object.path.metadata().unwrap().len()), "{object:?}");
    }
}
