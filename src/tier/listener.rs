//! The discard command: asked once per discarded segment until it agrees (exit 0).

use std::process::Stdio;
use std::time::Duration;

use serde::Serialize;
use tokio::io::AsyncWriteExt as _;

use super::Tier;
use super::cluster::TopicFate;
use crate::kafka::names::{FileKind, file_name};
use crate::local::spool::{DiscardReason, SpoolEntry};
use crate::store::names as object_names;

/// Runs at the same time.
pub(super) const RUNS_MAX: usize = 4;

/// Why the segment goes; nothing is claimed that is not known.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
enum Reason {
    /// Retention, or DeleteRecords.
    Retention,
    /// The cluster's metadata log has removed the topic.
    TopicDeleted,
    /// The partition's directory was given up, and the topic exists: it is in another log dir or on other brokers.
    Moved,
    /// The partition's directory was given up, and nothing tells why.
    PartitionRemoved,
}

/// What the command reads on its standard input: one line of JSON.
#[derive(Serialize)]
struct Event<'a> {
    event: &'static str,
    topic: &'a str,
    partition: u32,
    topic_id: &'a str,
    base_offset: i64,
    /// Exclusive; null where not known.
    end_offset: Option<i64>,
    max_timestamp_ms: Option<i64>,
    size_bytes: u64,
    mtime_ms: u64,
    discarded_ms: u64,
    reason: Reason,
    /// The bytes on local disk; null when they had been evicted.
    path: Option<String>,
    /// Below the mount.
    archive_path: Option<String>,
    /// Key of the `.log` object, of the first where it lies in several; null when it is not archived.
    object: Option<String>,
    store: String,
}

impl Tier {
    /// Asks about one entry. False: no, failed, or took too long.
    pub(super) async fn ask_listener(&self, entry: &SpoolEntry) -> bool {
        let Some(command) = &self.config.on_discard else { return true };
        self.counters.listener_runs.raise();
        let segment = &entry.doc;
        match self.run_listener(command, entry).await {
            Ok(true) => true,
            Ok(false) => {
                let (tp, base_offset) = (&segment.tp, segment.base_offset);
                tracing::info!(%tp, base_offset, "the discard command does not agree yet");
                false
            }
            Err(error) => {
                tracing::warn!(%error, tp = %segment.tp, "the discard command could not be asked");
                false
            }
        }
    }

    async fn run_listener(&self, command: &str, entry: &SpoolEntry) -> std::io::Result<bool> {
        crate::failpoint::disk("spool.ask")?;
        let reason = self.reason(entry).await;
        let mut event =
            serde_json::to_vec(&self.event(entry, reason)).map_err(std::io::Error::other)?;
        event.push(b'\n');
        let mut child = tokio::process::Command::new("sh")
            .args(["-c", command])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .process_group(0)
            .spawn()?;
        let mut group = Group(child.id());
        let timeout = Duration::from_millis(self.config.on_discard_timeout_ms);
        let stdin = child.stdin.take();
        let conversation = async {
            if let Some(mut stdin) = stdin {
                // A command that does not read its input is free not to.
                let _ = stdin.write_all(&event).await;
            }
            child.wait().await
        };
        match tokio::time::timeout(timeout, conversation).await {
            Ok(status) => {
                let status = status?;
                group.0 = None;
                Ok(status.success())
            }
            Err(_) => Err(std::io::Error::other(format!("no answer within {timeout:?}"))),
        }
    }

    /// Looked up when the command is asked, not when Kafka unlinks: that must not wait for another log's bytes.
    async fn reason(&self, entry: &SpoolEntry) -> Reason {
        match entry.doc.reason {
            DiscardReason::Retention => return Reason::Retention,
            DiscardReason::PartitionRemoved => {}
        }
        let (cluster, topic_id) = (self.cluster.clone(), entry.doc.topic_id.clone());
        let at_ms = entry.doc.discarded_ms;
        let look_up = move || cluster.fate(&topic_id, at_ms);
        let looked_up = tokio::task::spawn_blocking(look_up).await;
        match looked_up.unwrap_or(TopicFate::Unknown) {
            TopicFate::Deleted => Reason::TopicDeleted,
            TopicFate::Exists => Reason::Moved,
            TopicFate::Unknown => Reason::PartitionRemoved,
        }
    }

    fn event<'a>(&self, entry: &'a SpoolEntry, reason: Reason) -> Event<'a> {
        let doc = &entry.doc;
        let chain = doc.chain();
        let base = doc.object_base_offset.unwrap_or(doc.base_offset);
        let archived = self.chains.view(&chain).and_then(|c| c.find(base).cloned());
        let path = entry.log();
        Event {
            event: "discarded",
            topic: doc.tp.topic(),
            partition: doc.tp.partition(),
            topic_id: doc.topic_id.as_str(),
            base_offset: doc.base_offset,
            end_offset: doc.end_offset,
            max_timestamp_ms: archived.as_ref().map(|s| s.max_timestamp_ms).filter(|t| *t >= 0),
            size_bytes: doc.size_bytes,
            mtime_ms: doc.mtime_ns / 1_000_000,
            discarded_ms: doc.discarded_ms,
            reason,
            path: path.exists().then(|| path.display().to_string()),
            archive_path: doc
                .upload_id
                .is_some()
                .then(|| format!(".everlog/archive/{}/{}", doc.tp, file_name(base, FileKind::Log))),
            object: doc
                .upload_id
                .as_ref()
                .map(|id| object_names::log_key(&chain, base, id).to_string()),
            store: self.store.url().to_string(),
        }
    }
}

/// The command and whatever it started: ended together when we stop waiting.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        let pid = self.0.and_then(|id| rustix::process::Pid::from_raw(id as i32));
        if let Some(pid) = pid {
            // It may have ended just now.
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
    }
}
