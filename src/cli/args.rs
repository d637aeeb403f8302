//! What can be typed.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use super::units;

/// Tiered Kafka logs as plain files.
#[derive(Debug, Parser)]
#[command(name = "everlog", version, about, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Mount a log dir for a broker (--data), or an archive read-only (--cache)
    Mount(Box<MountArgs>),
    /// Archive the closed segments of a stock log dir from the side, without a mount
    Archive(ArchiveArgs),
    /// Show what is hot, archived, cold and pending
    Status(StatusArgs),
    /// Fetch whole archived segments into a running mount's cache
    Warm(KeepArgs),
    /// Drop archived segments from a running mount's cache
    Evict(KeepArgs),
    /// Fetch archived segments into a running mount's cache and keep them there
    Pin(KeepArgs),
    /// Take pins back: the bytes then go when their turn comes
    Unpin(KeepArgs),
    /// Versions of Kafka's checkpoint files: list them, put one back into a log dir
    Checkpoints(CheckpointsArgs),
    /// Check that reads around the tail of a file being appended to are right on this kernel
    Doctor(DoctorArgs),
}

/// Which topics.
#[derive(Debug, Args, Clone)]
pub struct TopicArgs {
    /// Archive only topics that match this pattern (* and ?); may be given several times
    #[arg(long, value_name = "PATTERN")]
    pub include: Vec<String>,
    /// Leave topics that match this pattern alone; stronger than --include
    #[arg(long, value_name = "PATTERN")]
    pub exclude: Vec<String>,
}

/// How to use the store.
#[derive(Debug, Args, Clone)]
pub struct StoreArgs {
    /// Object store: file:///dir, s3://bucket/prefix, gs://bucket/prefix, az://container/prefix, memory://
    #[arg(long, value_name = "URL")]
    pub store: String,
    /// Nobody else writes to this store: do without an atomic put-if-absent
    #[arg(long)]
    pub single_writer: bool,
    /// Segments uploaded at the same time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub uploads: u16,
    /// Limit of all uploads together, per second
    #[arg(long, value_name = "BYTES", value_parser = units::bytes)]
    pub upload_rate: Option<u64>,
}

/// `everlog mount`
#[derive(Debug, Args, Clone)]
pub struct MountArgs {
    /// An empty directory
    pub mountpoint: PathBuf,
    /// Store options
    #[command(flatten)]
    pub store: StoreArgs,
    /// Data directory of a broker mount, on local disk
    #[arg(long, value_name = "DIR", conflicts_with = "cache", required_unless_present = "cache")]
    pub data: Option<PathBuf>,
    /// Cache directory of a read-only archive mount, on local disk
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
    /// Space on local disk that segments may occupy; without it and --hot-age nothing is evicted
    #[arg(long, value_name = "BYTES", value_parser = units::bytes, conflicts_with = "cache")]
    pub hot_bytes: Option<u64>,
    /// Evict archived segments this long after their last write, e.g. 7d
    #[arg(long, value_name = "TIME", value_parser = units::duration, conflicts_with = "cache")]
    pub hot_age: Option<Duration>,
    /// Evict segments of compacted topics too: the log cleaner then reads them from the store
    #[arg(long, conflicts_with = "cache")]
    pub evict_compacted: bool,
    /// Limit of the block cache
    #[arg(long, value_name = "BYTES", value_parser = units::bytes, default_value = "10GiB")]
    pub cache_bytes: u64,
    /// What the block cache leaves free of its filesystem; default: a twentieth of it, at most 1GiB
    #[arg(long, value_name = "BYTES", value_parser = units::bytes)]
    pub cache_free_bytes: Option<u64>,
    /// Files that the block cache may have: three for each cached segment
    #[arg(long, value_name = "N", default_value_t = 200_000, value_parser = clap::value_parser!(u64).range(16..))]
    pub cache_files: u64,
    /// Topics
    #[command(flatten)]
    pub topics: TopicArgs,
    /// Shell command that must agree (exit 0) before a discarded segment's bytes are released
    #[arg(long, value_name = "COMMAND", conflicts_with = "cache")]
    pub on_discard: Option<String>,
    /// Directory __cluster_metadata-0 of the broker, if it is not in this mount: tells --on-discard moved partitions from deleted ones
    #[arg(long, value_name = "DIR", conflicts_with = "cache")]
    pub metadata_log: Option<PathBuf>,
    /// A cold read is answered within this time, if need be with an error
    #[arg(long, value_name = "TIME", value_parser = units::duration, default_value = "25s")]
    pub read_deadline: Duration,
    /// A broker's service threads wait this long for cold bytes, then the consumer has to ask again
    #[arg(long, value_name = "TIME", value_parser = units::duration, default_value = "2s", conflicts_with = "cache")]
    pub broker_read_wait: Duration,
    /// Limit of all cold reads together, per second
    #[arg(long, value_name = "BYTES", value_parser = units::bytes)]
    pub fetch_rate: Option<u64>,
    /// Bytes of cold reads asked of the store and not on local disk yet
    #[arg(long, value_name = "BYTES", value_parser = units::bytes, default_value = "192MiB")]
    pub fetch_inflight_bytes: u64,
    /// Stay in the foreground and log to standard error
    #[arg(long)]
    pub foreground: bool,
    /// Where a mount in the background logs; default: everlog.log in --data or --cache
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
    /// Threads that receive requests from the kernel
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(2..=256))]
    pub threads: u16,
    /// Let small files go through the daemon too (as on kernels before 6.9)
    #[arg(long)]
    pub no_passthrough: bool,
}

/// `everlog archive`
#[derive(Debug, Args)]
pub struct ArchiveArgs {
    /// A broker's log dir
    pub log_dir: PathBuf,
    /// Store options
    #[command(flatten)]
    pub store: StoreArgs,
    /// Topics
    #[command(flatten)]
    pub topics: TopicArgs,
    /// Archive what is closed and committed now, then end
    #[arg(long, required = true)]
    pub once: bool,
    /// Print the outcome as JSON
    #[arg(long)]
    pub json: bool,
}

/// `everlog status`
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The mount point
    #[arg(required_unless_present = "data")]
    pub mountpoint: Option<PathBuf>,
    /// Or the data directory of a running mount
    #[arg(long, value_name = "DIR", conflicts_with = "mountpoint")]
    pub data: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `everlog warm`, `evict`, `pin`, `unpin`
#[derive(Debug, Args)]
pub struct KeepArgs {
    /// Where in a mount: a partition's directory, a segment's .log file, or the mount point for all
    #[arg(required = true)]
    pub targets: Vec<PathBuf>,
    /// Print the outcome as JSON
    #[arg(long)]
    pub json: bool,
}

/// `everlog doctor`
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// A directory to check in: a broker mount, or any other to compare
    pub dir: PathBuf,
    /// Bytes to append and compare
    #[arg(long, value_name = "BYTES", value_parser = units::bytes, default_value = "256MiB")]
    pub bytes: u64,
    /// Readers around the tail
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub readers: u16,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `everlog checkpoints`
#[derive(Debug, Args)]
pub struct CheckpointsArgs {
    /// What to do
    #[command(subcommand)]
    pub command: CheckpointsCommand,
}

/// What to do with versions.
#[derive(Debug, Subcommand)]
pub enum CheckpointsCommand {
    /// Show which versions there are, oldest first
    List(VersionsFrom),
    /// Put a version back into a log dir whose broker is down
    PutBack {
        /// Where the versions are
        #[command(flatten)]
        from: VersionsFrom,
        /// The log dir: a mount point, or a stock broker's log dir
        #[arg(long, value_name = "LOGDIR")]
        to: PathBuf,
        /// Which version, by number or time as listed; default: the newest
        #[arg(long = "version", value_name = "VERSION")]
        taken: Option<String>,
        /// Only this file; may be given several times. Default: all four checkpoints of offsets
        #[arg(long, value_name = "NAME")]
        file: Vec<String>,
    },
}

/// Where versions are kept.
#[derive(Debug, Args, Clone)]
pub struct VersionsFrom {
    /// A data directory, mounted or not
    #[arg(long, value_name = "DIR", required_unless_present = "store")]
    pub data: Option<PathBuf>,
    /// An object store
    #[arg(long, value_name = "URL", conflicts_with = "data")]
    pub store: Option<String>,
    /// Of a store's versions, only those of this broker
    #[arg(long, value_name = "ID", requires = "store")]
    pub node: Option<i32>,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}
