//! The ledger tool (`tests/java/Ledger.java`): produces numbered records and proves that a broker still has them.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::Broker;
use super::children::{self, Running};

/// One topic's ledger file.
pub struct Ledger {
    topic: String,
    file: PathBuf,
    partitions: u32,
    record_bytes: u32,
    keys: u32,
    codec: String,
    idempotent: bool,
}

/// The ledger tool's command, against no broker.
pub fn tool(subcommand: &str) -> Command {
    children::installed("java/ready");
    let mut command = children::java("4.3.1", "400m");
    command.arg("Ledger").arg(subcommand);
    command
}

fn json(text: &str) -> Value {
    let line = text.lines().last().unwrap_or_default();
    serde_json::from_str(line).unwrap_or_else(|e| panic!("{e} in {text:?}"))
}

impl Ledger {
    /// A ledger in `dir` for a topic that exists or will.
    pub fn new(dir: &Path, topic: &str, partitions: u32) -> Self {
        let file = dir.join(format!("{topic}.ledger"));
        Self {
            topic: topic.to_owned(),
            file,
            partitions,
            record_bytes: 1000,
            keys: 0,
            codec: "none".to_owned(),
            idempotent: true,
        }
    }

    /// With records of this many bytes.
    pub fn record_bytes(mut self, bytes: u32) -> Self {
        self.record_bytes = bytes;
        self
    }

    /// With this many different keys, for compacted topics.
    pub fn keys(mut self, keys: u32) -> Self {
        self.keys = keys;
        self
    }

    /// Compressed by the producer.
    pub fn codec(mut self, codec: &str) -> Self {
        self.codec = codec.to_owned();
        self
    }

    /// From a producer without an id, the only kind that a topic in message format 0 or 1 takes.
    pub fn without_idempotence(mut self) -> Self {
        self.idempotent = false;
        self
    }

    /// The topic's name.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// The ledger file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Creates the topic with the given settings.
    pub fn create_topic(&self, broker: &Broker, config: &[&str]) {
        broker.topic("--create", &self.topic, self.partitions, config);
    }

    /// The command that sends `records` more.
    pub fn producer(&self, broker: &Broker, records: u64) -> Command {
        let mut command = tool("produce");
        command
            .args(["--bootstrap", &broker.bootstrap(), "--topic", &self.topic, "--ledger"])
            .arg(&self.file);
        command.args([
            "--partitions",
            &self.partitions.to_string(),
            "--records",
            &records.to_string(),
        ]);
        command.args(["--size", &self.record_bytes.to_string(), "--keys", &self.keys.to_string()]);
        command.args(["--compression", &self.codec]);
        if !self.idempotent {
            command.arg("--no-idempotence");
        }
        command
    }

    /// Sends `records` more; every one must be acknowledged.
    pub fn produce(&self, broker: &Broker, records: u64) -> Value {
        json(&children::run(self.producer(broker, records), "producing"))
    }

    /// Starts to send in the background and lets records fail: what was acknowledged until the broker died counts.
    pub fn produce_into_a_crash(&self, broker: &Broker, log: PathBuf) -> Running {
        let mut command = self.producer(broker, 100_000_000);
        command.args([
            "--tolerate-failures",
            "--stop-after-failures",
            "1",
            "--delivery-timeout-ms",
            "6000",
        ]);
        command.args(["--request-timeout-ms", "3000", "--rate", "4000"]);
        Running::start(command, "the producer", log)
    }

    /// `transactions` of 100 records each, every fourth aborted, and then what `more` says. Returns how many records were committed,
    /// and how many were not.
    pub fn transact(
        &self,
        broker: &Broker,
        id: &str,
        transactions: u64,
        more: &[&str],
    ) -> [u64; 2] {
        let mut command = tool("transact");
        command.args(["--bootstrap", &broker.bootstrap(), "--topic", &self.topic, "--ledger"]);
        command.arg(&self.file).args(["--partitions", &self.partitions.to_string()]);
        command.args(["--transactional-id", id, "--transactions", &transactions.to_string()]);
        command.args(["--abort-every", "4"]).args(more);
        let answer = json(&children::run(command, "writing transactions"));
        ["committed", "uncommitted"].map(|of| answer[of].as_u64().unwrap())
    }

    /// Reads everything from offset 0 and proves it against the ledger.
    pub fn prove(&self, broker: &Broker) -> Value {
        self.prove_with(broker, &[])
    }

    /// The same with further arguments of the tool.
    pub fn prove_with(&self, broker: &Broker, more: &[&str]) -> Value {
        let mut command = tool("consume");
        command.args(["--bootstrap", &broker.bootstrap(), "--ledger"]).arg(&self.file).args(more);
        json(&children::run(command, "proving the ledger"))
    }

    /// Begins to read and prove everything in the background.
    pub fn start_proving(&self, broker: &Broker, log: PathBuf) -> Running {
        let mut command = tool("consume");
        command.args(["--bootstrap", &broker.bootstrap(), "--patience-s", "180", "--ledger"]);
        command.arg(&self.file);
        Running::start(command, "proving the ledger", log)
    }

    /// How many records were acknowledged.
    pub fn acknowledged(&self) -> u64 {
        let book: Value = serde_json::from_slice(&std::fs::read(&self.file).unwrap()).unwrap();
        book["partitions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| p["acknowledged"].as_u64().unwrap())
            .sum()
    }

    /// (records, sum of the CRC-32 of their values) of what was acknowledged below the given offset of each partition.
    pub fn sum_below(&self, ends: &[i64]) -> (u64, u64) {
        let mut command = tool("sum");
        command.arg("--ledger").arg(&self.file);
        for (partition, end) in ends.iter().enumerate() {
            command.args(["--end", &format!("{partition}={end}")]);
        }
        let answer = json(&children::run(command, "summing the ledger"));
        (answer["records"].as_u64().unwrap(), answer["crc32_sum"].as_u64().unwrap())
    }

    /// First and next offset of every partition, as the broker tells them.
    pub fn offsets(&self, broker: &Broker) -> Vec<(i64, i64)> {
        let mut command = tool("offsets");
        command.args(["--bootstrap", &broker.bootstrap(), "--topic", &self.topic]);
        let answer = json(&children::run(command, "asking for offsets"));
        let pair = |p: u32| {
            (answer[p.to_string()][0].as_i64().unwrap(), answer[p.to_string()][1].as_i64().unwrap())
        };
        (0..self.partitions).map(pair).collect()
    }
}
