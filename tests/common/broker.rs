//! An unmodified Kafka broker whose log dir the test chooses: one KRaft node with its metadata log elsewhere, on plain disk, or
//! with a ZooKeeper of its own (Kafka 2).

use std::path::{Path, PathBuf};

use super::children::{self, Running, free_port};
use super::zookeeper::ZooKeeper;
use super::{ledger, wait_until};

/// The cluster that every broker of the rig belongs to, unless told otherwise.
pub const CLUSTER_ID: &str = "EverlogRigCluster00000";

/// The newest Kafka of the rig.
pub const KAFKA: &str = "4.3.1";
/// The older Kafka of the rig.
pub const KAFKA_OLD: &str = "3.9.1";
/// The first line of Kafka whose KRaft is for production.
pub const KAFKA_FIRST_KRAFT: &str = "3.3.2";
/// A Kafka that needs a ZooKeeper, and still writes message formats 0 and 1. `scripts/setup` installs it only when asked for `kafka-2.8`.
pub const KAFKA_ZOOKEEPER: &str = "2.8.2";

const BROKER_ID: u32 = 1;

/// A broker, running or stopped.
pub struct Broker {
    dir: PathBuf,
    log_dir: PathBuf,
    version: String,
    port: u16,
    controller_port: u16,
    extra: Vec<String>,
    process: Option<Running>,
    /// Behind the broker's process: dropped after it.
    zookeeper: Option<ZooKeeper>,
    runs: u32,
}

impl Broker {
    /// Settings, metadata and logs go to `dir`, topics to `log_dir`. Formats the storage (Kafka 2: starts its ZooKeeper); does not start.
    pub fn format(dir: &Path, log_dir: &Path, version: &str, extra: &[&str]) -> Self {
        let broker = Self::new(dir, log_dir, version, extra);
        broker.format_storage();
        broker
    }

    /// One more broker, number `node`, in the cluster of `first`, which is its controller.
    pub fn format_joining(
        first: &Self,
        node: u32,
        (dir, log_dir): (&Path, &Path),
        extra: &[&str],
    ) -> Self {
        let mut broker = Self::new(dir, log_dir, &first.version, extra);
        broker.extra.extend([
            "process.roles=broker".to_owned(),
            format!("node.id={node}"),
            format!("listeners=PLAINTEXT://127.0.0.1:{}", broker.port),
            format!("controller.quorum.voters=1@127.0.0.1:{}", first.controller_port),
        ]);
        broker.format_storage();
        broker
    }

    fn new(dir: &Path, log_dir: &Path, version: &str, extra: &[&str]) -> Self {
        std::fs::create_dir_all(dir.join("metadata")).unwrap();
        let extra = extra.iter().map(|s| (*s).to_owned()).collect();
        Self {
            dir: dir.to_owned(),
            log_dir: log_dir.to_owned(),
            version: version.to_owned(),
            port: free_port(),
            controller_port: free_port(),
            extra,
            process: None,
            zookeeper: version.starts_with("2.").then(|| ZooKeeper::start(dir, version)),
            runs: 0,
        }
    }

    fn format_storage(&self) {
        self.write_properties();
        if self.zookeeper.is_some() {
            return;
        }
        let mut format = children::java(&self.version, "256m");
        format
            .args(["kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c"])
            .arg(self.properties());
        children::run(format, "formatting the broker's storage");
    }

    fn properties(&self) -> PathBuf {
        self.dir.join("server.properties")
    }

    fn write_properties(&self) {
        let template = match self.zookeeper {
            None => include_str!("../../scripts/kafka/server.properties"),
            Some(_) => include_str!("../../scripts/kafka/server-zookeeper.properties"),
        };
        let zookeeper = self.zookeeper.as_ref().map(ZooKeeper::connect).unwrap_or_default();
        let mut text = template
            .replace("@ZOOKEEPER@", &zookeeper)
            .replace("@PORT@", &self.port.to_string())
            .replace("@CONTROLLER_PORT@", &self.controller_port.to_string())
            .replace("@LOG_DIR@", &self.log_dir.display().to_string())
            .replace("@METADATA_DIR@", &self.dir.join("metadata").display().to_string());
        for line in &self.extra {
            text.push_str(line);
            text.push('\n');
        }
        std::fs::write(self.properties(), text).unwrap();
    }

    /// `host:port` for clients.
    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn launch(&mut self) -> Running {
        self.runs += 1;
        if let Some(zookeeper) = &self.zookeeper {
            zookeeper.wait_until_gone(BROKER_ID);
        }
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/kafka");
        let mut command = children::java(&self.version, "512m");
        command.arg(format!(
            "-Dlog4j2.configurationFile={}",
            scripts.join("log4j2.properties").display()
        ));
        command.arg(children::log4j_1());
        command.arg("kafka.Kafka").arg(self.properties());
        let log = self.dir.join(format!("broker-{}.out", self.runs));
        Running::start(command, "the broker", log)
    }

    /// Starts it and waits until it serves.
    pub fn start(&mut self) {
        let mut process = self.launch();
        let started = match self.zookeeper {
            None => "Kafka Server started".to_owned(),
            Some(_) => format!("[KafkaServer id={BROKER_ID}] started"),
        };
        wait_until("the broker to start", 120, || {
            assert!(
                process.ended().is_none(),
                "the broker ended at its start:\n{}",
                process.tail()
            );
            super::unless(process.output().contains(&started), || process.tail())
        });
        self.process = Some(process);
    }

    /// Starts it where it cannot serve, and waits until it gives up. Returns what it said.
    pub fn start_in_vain(&mut self) -> String {
        let mut process = self.launch();
        let status = process.wait(120);
        assert!(!status.success(), "the broker ended as if all were well:\n{}", process.tail());
        process.output()
    }

    /// Process id of the running broker.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("the broker does not run").pid()
    }

    /// What the present or last run has printed.
    pub fn output(&self) -> String {
        let log = self.dir.join(format!("broker-{}.out", self.runs));
        String::from_utf8_lossy(&std::fs::read(log).unwrap()).into_owned()
    }

    /// Clean shutdown, as a service manager does it.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.signal(rustix::process::Signal::TERM);
            process.wait(90);
        }
    }

    /// SIGKILL.
    pub fn kill9(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill9();
        }
    }

    /// SIGKILL without waiting for the end.
    pub fn kill9_at_once(&mut self) {
        if let Some(process) = &self.process {
            process.signal(rustix::process::Signal::KILL);
        }
    }

    /// `--create`, `--delete` or `--alter` a topic.
    pub fn topic(&self, action: &str, topic: &str, partitions: u32, config: &[&str]) {
        let mut command = ledger::tool("topic");
        command.args([action, "--bootstrap", &self.bootstrap(), "--topic", topic]);
        command.args(["--partitions", &partitions.to_string()]);
        for pair in config {
            command.args(["--config", pair]);
        }
        children::run(command, &format!("topic {action} {topic}"));
    }

    /// Lines at level ERROR or FATAL that this run has printed, but for one of Kafka's own: around a restart it tells the controller
    /// where its replicas are under an epoch that has just ended, is refused, and asks again.
    pub fn errors(&self) -> Vec<String> {
        let output = self.output();
        output
            .lines()
            .filter(|l| l.contains(" ERROR ") || l.contains(" FATAL "))
            .filter(|l| !l.contains("ASSIGN_REPLICAS_TO_DIRS"))
            .map(str::to_owned)
            .collect()
    }
}

/// Runs Kafka's `DumpLogSegments` on one file and returns what it prints.
pub fn dump_log_segments(file: &Path) -> String {
    let mut command = children::java(KAFKA, "256m");
    command
        .arg("org.apache.kafka.tools.DumpLogSegments")
        .args(["--deep-iteration", "--files"])
        .arg(file);
    children::run(command, "DumpLogSegments")
}
