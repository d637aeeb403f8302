//! The workloads that are recorded: what a broker does from its first start on, with all its syncs and with all that it leaves unsynced.

use crate::act::{Act, acts, all, append, flush, grow, open_segment, partition};
use crate::common::broker::CLUSTER_ID;
use crate::common::logdir::TOPIC_ID;
use crate::common::step::{Meanwhile, Partition, Step, committed};

/// One workload.
pub struct Story {
    pub name: &'static str,
    pub acts: Vec<Act>,
    /// Of the mount.
    pub args: Vec<String>,
    /// A discard command is asked about what retention takes.
    pub listens: bool,
    /// Its partitions were there long before: what a checkpoint says is about them.
    pub is_old: bool,
}

const OTHER_TOPIC_ID: &str = "RigTopicIdBBBBBBBBBBBB";

fn wait(what: Meanwhile) -> Vec<Act> {
    vec![Act::Wait(what)]
}

fn together(parts: Vec<Vec<Act>>) -> Vec<Act> {
    let text = format!("#\nnode.id=1\nversion=1\ncluster.id={CLUSTER_ID}\n");
    let format = acts(Step::Replace("meta.properties".to_owned(), text.into_bytes()));
    std::iter::once(format).chain(parts).flatten().collect()
}

fn evicting(name: &'static str, acts: Vec<Act>) -> Story {
    let args = ["--hot-bytes", "1"].map(str::to_owned).into();
    Story { name, acts, args, listens: false, is_old: true }
}

/// The first segments of a partition, as it was when it had no more.
fn beginning(p: &Partition, segments: usize) -> Partition {
    let mut part = Partition {
        name: p.name.clone(),
        bases: p.bases.clone(),
        logs: p.logs.clone(),
        end: p.end,
    };
    part.end = p.bases.get(segments).copied().unwrap_or(p.end);
    part.bases.truncate(segments);
    part.logs.truncate(segments);
    part
}

fn born(p: &Partition) -> Vec<Act> {
    [partition(&p.name, TOPIC_ID), grow(p, 0)].concat()
}

/// Grows, goes cold, is mounted again, loses its oldest segments to retention, grows on.
fn life() -> Story {
    let p = Partition::new("a-0", 7, 4);
    let young = beginning(&p, 4);
    let all_cold = |n| [wait(Meanwhile::Archived(n)), wait(Meanwhile::Cold(n))].concat();
    evicting(
        "life",
        together(vec![
            born(&young),
            all(committed(&[&young])),
            all_cold(3),
            vec![Act::Remount],
            all(committed(&[&young])),
            all(p.discard(0)),
            grow(&p, 4),
            all(committed(&[&p])),
            wait(Meanwhile::Archived(6)),
            wait(Meanwhile::Cold(5)),
            all(p.discard(1)),
            all(p.discard(2)),
            vec![Act::SyncDir(p.name.clone())],
        ]),
    )
}

/// Cold segments are cut, written to, replaced and removed; all become whole again and cold again.
fn overlays() -> Story {
    let p = Partition::new("c-0", 7, 6);
    let cut = |at: usize| p.logs[at].len() as u64 / 2;
    let back = |at: usize| p.logs[at][cut(at) as usize..].to_vec();
    let write_in = |at: usize, from: usize, to: usize| {
        vec![Act::Write(p.log(at), from as u64, p.logs[at][from..to].to_vec())]
    };
    let sync = |at: usize| vec![Act::Sync(p.log(at))];
    let junk = "c-0/junk".to_owned();
    let put = all(vec![Step::Put(junk.clone(), p.logs[4].clone())]);
    evicting(
        "overlays",
        together(vec![
            born(&p),
            all(committed(&[&p])),
            wait(Meanwhile::Cold(6)),
            // A truncated suffix comes back from the leader.
            vec![Act::Length(p.log(2), cut(2))],
            sync(2),
            vec![Act::Write(p.log(2), cut(2), back(2))],
            sync(2),
            write_in(3, 4000, 9000),
            write_in(3, 20_000, 20_500),
            sync(3),
            write_in(4, 4000, 9000),
            write_in(5, 100, 200),
            put,
            vec![Act::Rename(junk, p.log(4)), Act::SyncDir(p.name.clone())],
            all(p.discard(0)),
            write_in(1, 0, 4096),
            all(p.discard(1)),
            vec![Act::SyncDir(p.name.clone())],
            wait(Meanwhile::Whole),
            all(committed(&[&p])),
            wait(Meanwhile::Cold(4)),
        ]),
    )
}

/// Retention with a listener: everything goes through the spool, some of it before the archive has it.
fn discards() -> Story {
    let (old, new) = (Partition::new("d-0", 4, 3), Partition::new("n-0", 4, 3));
    Story {
        name: "discards",
        acts: together(vec![
            born(&old),
            born(&new),
            all(committed(&[&old])),
            wait(Meanwhile::Archived(3)),
            all(old.discard(0)),
            all(committed(&[&old, &new])),
            all(new.discard(0)),
            all(new.discard(1)),
            vec![Act::SyncDir(new.name.clone())],
            all(old.discard(1)),
            wait(Meanwhile::Released),
            wait(Meanwhile::Archived(6)),
        ]),
        args: Vec::new(),
        listens: true,
        is_old: true,
    }
}

/// A topic is deleted while some of it is cold, and made again under the same name.
fn topics() -> Story {
    let old = Partition::new("t-0", 4, 3);
    let mut new = Partition::new("s-0", 3, 3);
    new.name.clone_from(&old.name);
    let gone = "t-0.0123456789abcdef0123456789abcdef-delete";
    let of_dir = ["partition.metadata", "leader-epoch-checkpoint"].map(str::to_owned);
    let extensions = ["log", "index", "timeindex", "snapshot"];
    let names = (0..4).flat_map(|at| extensions.map(|e| old.file(at, e)[4..].to_owned()));
    let mut empty: Vec<Act> =
        names.chain(of_dir).map(|n| Act::Unlink(format!("{gone}/{n}"))).collect();
    empty.push(Act::Rmdir(gone.to_owned()));
    let third = beginning(&old, 3);
    let fourth = [open_segment(&old, 3), flush(&old, 2), append(&old, 3)].concat();
    let story = evicting(
        "topics",
        together(vec![
            born(&third),
            all(committed(&[&third])),
            wait(Meanwhile::Cold(2)),
            fourth,
            all(committed(&[&old])),
            vec![Act::Rename("t-0".to_owned(), gone.to_owned()), Act::SyncDir(String::new())],
            partition("t-0", OTHER_TOPIC_ID),
            grow(&new, 0),
            empty,
            vec![Act::SyncDir(String::new())],
            all(committed(&[&new])),
            wait(Meanwhile::Cold(2)),
        ]),
    );
    // The checkpoint's line may still be the deleted topic's.
    Story { is_old: false, ..story }
}

pub fn stories() -> Vec<Story> {
    vec![life(), overlays(), discards(), topics()]
}
