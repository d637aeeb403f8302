//! A ZooKeeper of its own on loopback, for brokers older than KRaft. Its jars come with those brokers.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::time::Duration;

use super::children::{self, Running, free_port};
use super::{unless, wait_until};

/// One server, from `start` until it is dropped; it lives on while its broker dies and comes back.
pub struct ZooKeeper {
    port: u16,
    process: Running,
}

impl ZooKeeper {
    /// Settings and data go to `dir`; the jars are those of the given Kafka. Returns when it answers.
    pub fn start(dir: &Path, kafka: &str) -> Self {
        let data = dir.join("zookeeper");
        std::fs::create_dir_all(&data).unwrap();
        let port = free_port();
        let text = include_str!("../../scripts/kafka/zookeeper.properties")
            .replace("@PORT@", &port.to_string())
            .replace("@DIR@", &data.display().to_string());
        let properties = dir.join("zookeeper.properties");
        std::fs::write(&properties, text).unwrap();
        let mut command = children::java(kafka, "256m");
        command.arg(children::log4j_1());
        command.arg("org.apache.zookeeper.server.quorum.QuorumPeerMain").arg(&properties);
        let process = Running::start(command, "ZooKeeper", dir.join("zookeeper.out"));
        let mut zookeeper = Self { port, process };
        wait_until("ZooKeeper to answer", 60, || {
            let ended = zookeeper.process.ended();
            assert!(ended.is_none(), "ZooKeeper ended:\n{}", zookeeper.process.tail());
            let answer = zookeeper.ask("ruok");
            unless(answer == "imok", || format!("{answer:?}\n{}", zookeeper.process.tail()))
        });
        zookeeper
    }

    /// `host:port` for brokers.
    pub fn connect(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A broker that was killed counts as alive until its session ends, and its successor would be refused.
    pub fn wait_until_gone(&self, broker_id: u32) {
        let node = format!("/brokers/ids/{broker_id}");
        wait_until("ZooKeeper to give the dead broker up", 60, || {
            let sessions = self.ask("dump");
            if !sessions.contains("Sessions with Ephemerals") {
                return Err(format!("no list of sessions: {sessions:?}"));
            }
            unless(!sessions.lines().any(|line| line.trim() == node), || sessions.clone())
        });
    }

    /// The answer to one of its four-letter words; the error's words when there is none.
    fn ask(&self, word: &str) -> String {
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            stream.write_all(word.as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        ask().unwrap_or_else(|e| e.to_string())
    }
}
