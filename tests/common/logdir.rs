//! A log dir written as a broker writes it, without a broker: segments of valid batches, preallocated and mapped indexes, checkpoint files.
//!
//! For tests that need exact control of what happens when. It works on any directory: a mount, or a plain one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::batches::{Batch, noise};

/// Milliseconds of the first batch of every log.
const FIRST_TIMESTAMP_MS: i64 = 1_700_000_000_000;

/// What a broker preallocates for each index, unless told otherwise.
const INDEX_BYTES: u64 = 10_485_760;

/// Topic id that every simulated topic has unless told otherwise.
pub const TOPIC_ID: &str = "RigTopicIdAAAAAAAAAAAA";

/// A log dir and what stands in its checkpoints.
pub struct LogDir {
    root: PathBuf,
    ends: BTreeMap<(String, u32), i64>,
    index_bytes: u64,
}

/// The log of one partition, with its active segment open.
pub struct PartitionLog {
    dir: PathBuf,
    topic: String,
    partition: u32,
    active: Option<File>,
    base: i64,
    end: i64,
    size: u64,
    last_batch: i64,
    salt: u64,
    index_bytes: u64,
}

/// Kafka's name for a segment's file.
pub fn file_name(base: i64, extension: &str) -> String {
    format!("{base:020}.{extension}")
}

/// Writes a file as Kafka writes checkpoints: a temporary file, synced, renamed over.
pub fn replace_file(path: &Path, content: &[u8]) {
    let temporary =
        path.with_file_name(format!("{}.tmp", path.file_name().unwrap().to_string_lossy()));
    let mut file =
        File::create(&temporary).unwrap_or_else(|e| panic!("{}: {e}", temporary.display()));
    file.write_all(content).unwrap();
    file.sync_all().unwrap();
    drop(file);
    fs::rename(&temporary, path).unwrap_or_else(|e| panic!("rename to {}: {e}", path.display()));
    File::open(path.parent().unwrap()).unwrap().sync_all().unwrap();
}

impl LogDir {
    /// In a directory that exists; writes `meta.properties` of the given cluster unless there is one.
    pub fn new(root: &Path, cluster_id: &str) -> Self {
        let meta = root.join("meta.properties");
        if !meta.exists() {
            let text = format!(
                "#\nnode.id=1\ndirectory.id=RigDirectoryIdAAAAAAAA\nversion=1\ncluster.id={cluster_id}\n"
            );
            replace_file(&meta, text.as_bytes());
        }
        Self { root: root.to_owned(), ends: BTreeMap::new(), index_bytes: INDEX_BYTES }
    }

    /// With smaller preallocated indexes, so that comparing them costs less.
    pub fn index_bytes(mut self, bytes: u64) -> Self {
        self.index_bytes = bytes;
        self
    }

    /// Creates a partition with an empty first segment.
    pub fn create(&self, topic: &str, partition: u32) -> PartitionLog {
        self.create_with_id(topic, partition, TOPIC_ID)
    }

    /// The same for a topic with another id.
    pub fn create_with_id(&self, topic: &str, partition: u32, topic_id: &str) -> PartitionLog {
        let dir = self.root.join(format!("{topic}-{partition}"));
        fs::create_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        replace_file(
            &dir.join("partition.metadata"),
            format!("version: 0\ntopic_id: {topic_id}").as_bytes(),
        );
        replace_file(&dir.join("leader-epoch-checkpoint"), b"0\n1\n0 0\n");
        let active = Some(open_segment(&dir, 0, self.index_bytes));
        PartitionLog {
            dir,
            topic: topic.to_owned(),
            partition,
            active,
            base: 0,
            end: 0,
            size: 0,
            last_batch: 0,
            salt: 0,
            index_bytes: self.index_bytes,
        }
    }

    /// Says in the checkpoints that everything up to the log's end is flushed and committed. Counts from the next `checkpoint`.
    pub fn commit(&mut self, log: &PartitionLog) {
        self.ends.insert((log.topic.clone(), log.partition), log.end);
    }

    /// Says so up to an offset of the caller's choice.
    pub fn commit_up_to(&mut self, log: &PartitionLog, end: i64) {
        self.ends.insert((log.topic.clone(), log.partition), end);
    }

    /// Says so of a partition that is written by somebody else.
    pub fn commit_as(&mut self, topic: &str, partition: u32, end: i64) {
        self.ends.insert((topic.to_owned(), partition), end);
    }

    /// Forgets a partition.
    pub fn forget(&mut self, topic: &str, partition: u32) {
        self.ends.remove(&(topic.to_owned(), partition));
    }

    /// Rewrites the checkpoints once, as a broker does every few seconds.
    pub fn checkpoint(&self) {
        let mut text = format!("0\n{}\n", self.ends.len());
        for ((topic, partition), end) in &self.ends {
            text.push_str(&format!("{topic} {partition} {end}\n"));
        }
        for name in ["recovery-point-offset-checkpoint", "replication-offset-checkpoint"] {
            replace_file(&self.root.join(name), text.as_bytes());
        }
    }
}

/// What a broker leaves when it stops in good order.
pub fn shut_down_cleanly(root: &Path) {
    fs::write(root.join(".kafka_cleanshutdown"), "{\"version\":0,\"brokerEpoch\":7}").unwrap();
}

fn open_segment(dir: &Path, base: i64, index_bytes: u64) -> File {
    for (extension, bytes) in [("index", index_bytes / 8 * 8), ("timeindex", index_bytes / 12 * 12)]
    {
        let path = dir.join(file_name(base, extension));
        File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .unwrap()
            .set_len(bytes)
            .unwrap();
    }
    let path = dir.join(file_name(base, "log"));
    File::options().create(true).truncate(false).read(true).write(true).open(path).unwrap()
}

impl PartitionLog {
    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The next offset.
    pub fn end(&self) -> i64 {
        self.end
    }

    /// Base offset of the active segment.
    pub fn base(&self) -> i64 {
        self.base
    }

    /// Appends one batch of `records` records of `record_bytes` noise each.
    pub fn append(&mut self, records: usize, record_bytes: usize) -> Vec<u8> {
        let seed = self.salt << 56 ^ (self.end as u64) << 8 | u64::from(self.partition & 0xff);
        let values: Vec<_> =
            (0..records as u64).map(|i| noise(seed ^ (i << 40), record_bytes)).collect();
        let timestamp_ms = FIRST_TIMESTAMP_MS + self.end;
        let batch = Batch { base_offset: self.end, epoch: 0, timestamp_ms, values: &values };
        let bytes = batch.encode();
        self.active.as_mut().unwrap().write_all(&bytes).unwrap();
        self.last_batch = batch.base_offset;
        self.end = batch.end_offset();
        self.size += bytes.len() as u64;
        bytes
    }

    /// Closes the active segment as a broker does and begins the next one at the log's end.
    pub fn roll(&mut self) {
        let entries: &[(&str, u64)] = &[("index", 0), ("timeindex", 12)];
        for (extension, len) in entries {
            let path = self.dir.join(file_name(self.base, extension));
            let file = File::options().read(true).write(true).open(path).unwrap();
            if *len == 12 {
                let mut entry = (FIRST_TIMESTAMP_MS + self.last_batch).to_be_bytes().to_vec();
                entry.extend(((self.end - 1 - self.base) as i32).to_be_bytes());
                (&file).write_all(&entry).unwrap();
            }
            file.set_len(*len).unwrap();
            file.sync_all().unwrap();
        }
        let old = self.active.replace(open_segment(&self.dir, self.end, self.index_bytes)).unwrap();
        let empty_snapshot = [0u8, 1, 0x48, 0x67, 0x4b, 0xc7, 0, 0, 0, 0];
        let snapshot = self.dir.join(file_name(self.end, "snapshot"));
        fs::write(&snapshot, empty_snapshot).unwrap();
        File::open(&snapshot).unwrap().sync_all().unwrap();
        old.sync_all().unwrap();
        File::open(&self.dir).unwrap().sync_all().unwrap();
        self.base = self.end;
        self.size = 0;
    }

    /// Fills a segment with batches of about 16 KiB up to `bytes` and rolls.
    pub fn fill_segment(&mut self, bytes: u64) {
        while self.size < bytes {
            self.append(16, 1000);
        }
        self.roll();
    }

    /// Closes the active segment's descriptor; `reopen` before the next append.
    pub fn close(&mut self) {
        self.active = None;
    }

    /// Opens the log again where it stands, for example after a remount.
    pub fn reopen(&mut self) {
        use std::io::Seek as _;
        let path = self.dir.join(file_name(self.base, "log"));
        let mut file = File::options().read(true).write(true).open(path).unwrap();
        file.seek(std::io::SeekFrom::End(0)).unwrap();
        self.active = Some(file);
    }

    /// What a broker does when its new leader has less: later segments go, this one is cut at `len` and is the active one again. What is
    /// appended from then on differs from what stood there.
    pub fn truncate_to(&mut self, base: i64, len: u64, end: i64) -> std::io::Result<()> {
        let mut later: Vec<String> = super::files::names(&self.dir);
        later.retain(|n| n.get(..20).and_then(|d| d.parse::<i64>().ok()).is_some_and(|b| b > base));
        for name in later.iter().filter(|n| !n.ends_with(".deleted")) {
            fs::rename(self.dir.join(name), self.dir.join(format!("{name}.deleted")))?;
        }
        for name in later.iter().filter(|n| !n.ends_with(".deleted")) {
            fs::remove_file(self.dir.join(format!("{name}.deleted")))?;
        }
        let file = open_segment(&self.dir, base, self.index_bytes);
        file.set_len(len)?;
        file.sync_all()?;
        self.active = None;
        (self.base, self.end, self.size, self.last_batch) = (base, end, len, end.max(1) - 1);
        self.salt += 1;
        self.reopen();
        Ok(())
    }
}
