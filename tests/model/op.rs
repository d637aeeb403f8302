//! What can happen to a log dir, and the choice of what happens next.

use super::world::{World, batch_ends};
use crate::common::Random;
use crate::common::files;

/// Bytes that a message shows only the length of.
#[derive(Clone)]
pub struct Data(pub Vec<u8>);

impl std::fmt::Debug for Data {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl std::ops::Deref for Data {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// One step. Names are relative to the root.
#[derive(Debug, Clone)]
pub enum Op {
    Append {
        partition: u32,
        records: usize,
        bytes: usize,
    },
    Roll {
        partition: u32,
    },
    Checkpoint,
    /// Kafka's truncation to a batch boundary.
    Truncate {
        partition: u32,
        base: i64,
        len: u64,
        end: i64,
    },
    /// Kafka's first half of a delete: all files of a segment get the suffix `.deleted`.
    Discard {
        partition: u32,
        base: i64,
    },
    Unlink {
        name: String,
    },
    Read {
        name: String,
        at: u64,
        len: usize,
    },
    Hold {
        name: String,
    },
    ReadHeld {
        index: usize,
        at: u64,
        len: usize,
    },
    WriteHeld {
        index: usize,
        at: u64,
        data: Data,
    },
    DropHeld {
        index: usize,
    },
    /// Through a shared mapping that is kept.
    MapWrite {
        name: String,
        at: usize,
        data: Data,
        sync: bool,
    },
    Write {
        name: String,
        at: u64,
        data: Data,
    },
    AppendTo {
        name: String,
        data: Data,
    },
    SetLen {
        name: String,
        len: u64,
    },
    Create {
        name: String,
        exclusive: bool,
        data: Data,
    },
    Rename {
        from: String,
        to: String,
    },
    /// What `mv` does between two filesystems.
    CopyAndUnlink {
        from: String,
        to: String,
    },
    Mkdir {
        name: String,
    },
    Rmdir {
        name: String,
    },
    Fsync {
        name: String,
    },
    SetMtime {
        name: String,
        seconds: u64,
    },
    Chmod {
        name: String,
        mode: u32,
    },
    /// `fallocate`: 0 reserves, 1 reserves without growing, 2 punches a hole, 3 zeroes.
    Allocate {
        name: String,
        how: u32,
        at: u64,
        len: u64,
    },
    /// Sets `user.model`, or removes it.
    SetXattr {
        name: String,
        value: Option<Data>,
    },
    /// A second name; of a segment: refused on one side, so only for others.
    Link {
        from: String,
        to: String,
    },
    Exchange {
        from: String,
        to: String,
    },
    /// Walks data and holes.
    Holes {
        name: String,
    },
    /// Directory renamed, everything in it unlinked, directory removed; then a new topic of that name.
    DeletePartition {
        partition: u32,
    },
    Settle,
    Remount {
        crash: bool,
    },
}

impl Op {
    /// For a rename that is refused with EXDEV.
    pub fn as_mv_does_it(&self) -> Option<Self> {
        match self {
            Self::Rename { from, to } => {
                Some(Self::CopyAndUnlink { from: from.clone(), to: to.clone() })
            }
            _ => None,
        }
    }
}

fn junk(random: &mut Random) -> String {
    let dir = ["", "made-0/", "made-1/", "dir/"][random.below(4) as usize];
    format!("{dir}junk{}", random.below(4))
}

fn data(random: &mut Random, max: u64) -> Data {
    let len = 1 + random.below(max) as usize;
    Data(crate::common::batches::noise(random.below(u64::MAX), len))
}

/// Any file that exists, as a rule a log.
fn any_file(random: &mut Random, world: &World) -> Option<String> {
    let logs_only = random.below(4) > 0;
    let all: Vec<String> =
        world.files().into_iter().filter(|n| !logs_only || n.contains(".log")).collect();
    random.pick(&all).cloned()
}

fn closed_log(random: &mut Random, world: &World) -> Option<String> {
    let active = [world.active_log(0), world.active_log(1)];
    let closed: Vec<String> =
        world.files().into_iter().filter(|n| n.ends_with(".log") && !active.contains(n)).collect();
    random.pick(&closed).cloned()
}

fn within(random: &mut Random, world: &World, name: &str) -> (u64, usize) {
    let len = world.len_of(name);
    let at = random.below(len + 100);
    let count = if random.below(3) == 0 {
        [17, 61][random.below(2) as usize]
    } else {
        1 + random.below(150_000)
    };
    (at, count as usize)
}

fn truncation(random: &mut Random, world: &World, partition: u32) -> Option<Op> {
    let bases = world.bases(partition);
    let base = *random.pick(&bases)?;
    let ends = batch_ends(&world.root.join(format!("made-{partition}/{base:020}.log")));
    let (len, end) = *random.pick(&ends).unwrap_or(&(0, base));
    Some(Op::Truncate { partition, base, len, end })
}

/// The next step: mostly what a broker does, sometimes what only a user would.
pub fn choose(random: &mut Random, world: &World) -> Op {
    loop {
        if let Some(op) = propose(random, world) {
            return op;
        }
    }
}

fn propose(random: &mut Random, world: &World) -> Option<Op> {
    let partition = random.below(2) as u32;
    Some(match random.below(100) {
        0..=19 => Op::Append {
            partition,
            records: 1 + random.below(20) as usize,
            bytes: 1 + random.below(4000) as usize,
        },
        20..=31 => Op::Roll { partition },
        32..=36 => Op::Checkpoint,
        37..=39 => truncation(random, world, partition)?,
        40..=43 => {
            let bases = world.bases(partition);
            if bases.len() < 4 {
                return None;
            }
            Op::Discard { partition, base: bases[0] }
        }
        44..=47 => {
            let deleted: Vec<String> =
                world.files().into_iter().filter(|n| n.ends_with(".deleted")).collect();
            Op::Unlink { name: random.pick(&deleted)?.clone() }
        }
        48..=56 => {
            let name = any_file(random, world)?;
            let (at, len) = within(random, world, &name);
            Op::Read { name, at, len }
        }
        57..=59 => Op::Hold { name: any_file(random, world)? },
        60..=63 => Op::ReadHeld {
            index: random.below(6) as usize,
            at: random.below(200_000),
            len: 1 + random.below(100_000) as usize,
        },
        64 => Op::DropHeld { index: random.below(6) as usize },
        65..=68 => {
            let name = world.active_log(partition).replace(".log", ".index");
            Op::MapWrite {
                name,
                at: random.below(300_000) as usize,
                data: data(random, 64),
                sync: random.below(2) == 0,
            }
        }
        69..=86 => propose_users(random, world)?,
        87..=94 => Op::Settle,
        95 => Op::DeletePartition { partition },
        _ => Op::Remount { crash: random.below(2) == 0 },
    })
}

/// What a user or a tool may do beside the broker, also to cold files.
fn propose_users(random: &mut Random, world: &World) -> Option<Op> {
    Some(match random.below(33) {
        0..=3 => Op::Create {
            name: junk(random),
            exclusive: random.below(2) == 0,
            data: data(random, 9000),
        },
        4..=6 => Op::Rename { from: junk(random), to: junk(random) },
        7..=8 => Op::Unlink { name: junk(random) },
        9 => Op::Mkdir { name: "dir".to_owned() },
        10 => Op::Rmdir { name: ["dir", "made-0"][random.below(2) as usize].to_owned() },
        11..=12 => Op::Fsync { name: any_file(random, world)? },
        13 => Op::Fsync { name: format!("made-{}", random.below(2)) },
        14..=15 => Op::SetMtime {
            name: closed_log(random, world)?,
            seconds: 1_600_000_000 + random.below(1000),
        },
        16 => Op::Chmod {
            name: closed_log(random, world)?,
            mode: [0o600, 0o640, 0o644][random.below(3) as usize],
        },
        17 => {
            let name = closed_log(random, world)?;
            let at = random.below(world.len_of(&name));
            Op::Write { name, at, data: data(random, 3000) }
        }
        18 => Op::AppendTo { name: closed_log(random, world)?, data: data(random, 3000) },
        19 => {
            let name = closed_log(random, world)?;
            let len = random.below(world.len_of(&name) * 5 / 4 + 1);
            Op::SetLen { name, len }
        }
        20 => Op::WriteHeld {
            index: random.below(6) as usize,
            at: random.below(150_000),
            data: data(random, 500),
        },
        21 => {
            let from = closed_log(random, world)?;
            let to = format!(
                "{}/junk{}",
                files::name(std::path::Path::new(&from).parent()?),
                random.below(4)
            );
            Op::Rename { from, to }
        }
        22 => Op::Rename { from: junk(random), to: closed_log(random, world)? },
        23..=24 => {
            let name = any_file(random, world)?;
            let (at, len) = (random.below(200_000), 1 + random.below(50_000));
            Op::Allocate { name, how: random.below(4) as u32, at, len }
        }
        25..=26 => {
            let name = any_file(random, world)?;
            let value = (random.below(3) > 0).then(|| data(random, 300));
            Op::SetXattr { name, value }
        }
        27 => Op::Link { from: junk(random), to: junk(random) },
        28 => Op::Exchange { from: junk(random), to: junk(random) },
        29..=30 => Op::Holes { name: any_file(random, world)? },
        31 => {
            let name = closed_log(random, world)?;
            let at = random.below(world.len_of(&name)) as usize;
            // Unsynced, it would be lost with the daemon, as with a machine.
            Op::MapWrite { name, at, data: data(random, 300), sync: true }
        }
        _ => Op::Unlink { name: closed_log(random, world)? },
    })
}
