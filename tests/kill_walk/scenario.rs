//! The workloads of the walk. Each reaches some of the fail points; together they reach all of them.

use std::fs;
use std::path::Path;

use crate::common::broker::CLUSTER_ID;
use crate::common::files;
use crate::common::step::{Meanwhile, Partition, Step, committed};

/// A data directory as somebody left it.
pub type Prepare = fn(&Path, &Path);

/// One workload.
pub struct Scenario {
    pub name: &'static str,
    /// Done once, without any failure; what it leaves is copied for each run.
    pub setup: Vec<Step>,
    /// Arguments of the mount in the setup.
    pub setup_args: Vec<String>,
    /// Done to the data directory (first path) while nobody has it mounted; the second is the plain directory.
    pub prepare: Option<Prepare>,
    /// Done while something fails.
    pub steps: Vec<Step>,
    /// Arguments of the mount from then on.
    pub args: Vec<String>,
    /// Kafka's checkpoints as the steps leave them: a broker rewrites them all the time, and a restarted mount waits for that.
    pub checkpoints: Vec<Step>,
    /// Beginnings of the points that are walked over here.
    pub claims: &'static [&'static str],
    /// Orders besides the one that is walked over.
    pub orders: &'static str,
    /// Segments that have to be in the archive at the end.
    pub archived: usize,
    /// Log bytes that may stay in `hot/`.
    pub hot_bytes_max: u64,
    /// Segments that the discard command has to be asked about.
    pub discarded: usize,
}

impl Scenario {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            setup: Vec::new(),
            setup_args: Vec::new(),
            prepare: None,
            steps: Vec::new(),
            args: Vec::new(),
            checkpoints: Vec::new(),
            claims: &[],
            orders: "",
            archived: 0,
            hot_bytes_max: u64::MAX,
            discarded: 0,
        }
    }
}

impl Scenario {
    /// Over one partition, of which so many segments are in the archive at the end.
    fn of(name: &'static str, p: &Partition, archived: usize) -> Self {
        Self { archived, checkpoints: committed(&[p]), ..Self::new(name) }
    }

    /// With a mount that evicts whatever it may.
    fn all_goes(self, p: &Partition) -> Self {
        Self { args: args(&ALL_GOES), hot_bytes_max: active_bytes(p), ..self }
    }
}

const ALL_GOES: [&str; 2] = ["--hot-bytes", "1"];

fn args(list: &[&str]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

fn meanwhile(what: Meanwhile) -> Vec<Step> {
    vec![Step::Meanwhile(what)]
}

fn together(parts: Vec<Vec<Step>>) -> Vec<Step> {
    parts.into_iter().flatten().collect()
}

/// What the broker writes before anything else.
fn format() -> Vec<Step> {
    let text = format!("#\nnode.id=1\nversion=1\ncluster.id={CLUSTER_ID}\n");
    vec![Step::Replace("meta.properties".to_owned(), text.into_bytes())]
}

/// A broker's partition, committed, until the tiering has come so far.
fn tiered(p: &Partition, until: Meanwhile) -> Vec<Step> {
    together(vec![format(), p.create(), committed(&[p]), meanwhile(until)])
}

fn active_bytes(p: &Partition) -> u64 {
    p.logs.last().map_or(0, |l| l.len() as u64)
}

/// Appends, a roll, a truncated suffix; then the archive takes what is closed.
fn archive() -> Scenario {
    let p = Partition::new("a-0", 4, 5);
    let (last, torn) = (p.log(3), p.logs[3].len() as u64);
    let suffix = {
        let mut q = Partition::new("a-0", 5, 2);
        q.bases[4] = p.end;
        q.write(4).into_iter().chain(q.discard(4)).collect::<Vec<_>>()
    };
    Scenario {
        steps: together(vec![
            format(),
            p.create(),
            suffix,
            vec![
                Step::WriteAt(last.clone(), torn, b"half a batch".to_vec()),
                Step::Cut(last, torn),
            ],
            committed(&[&p]),
            meanwhile(Meanwhile::Archived(3)),
        ]),
        claims: &[
            "hot.",
            "log.",
            "datadir.",
            "identity.",
            "archive.",
            "commit.",
            "mirror.",
            "durable.",
            "recover.sentinel",
        ],
        ..Scenario::of("archive", &p, 3)
    }
}

/// An upload that fails is taken back.
fn failed_upload() -> Scenario {
    let p = Partition::new("a-0", 2, 2);
    Scenario {
        steps: tiered(&p, Meanwhile::Archived(1)),
        claims: &["archive.upload."],
        orders: "archive.aux.compare:store",
        ..Scenario::of("failed-upload", &p, 1)
    }
}

fn lose_manifest(data: &Path, _: &Path) {
    fs::remove_dir_all(data.join("manifest")).unwrap();
}

/// The archive has the segments, the local manifest does not.
fn adopt() -> Scenario {
    let p = Partition::new("a-0", 3, 2);
    Scenario {
        setup: tiered(&p, Meanwhile::Archived(2)),
        prepare: Some(lose_manifest),
        steps: together(vec![committed(&[&p]), meanwhile(Meanwhile::Cold(2))]),
        claims: &["archive.adopt"],
        ..Scenario::of("adopt", &p, 2).all_goes(&p)
    }
}

/// The 64th commit of a chain writes a checkpoint and the hint.
fn checkpoint() -> Scenario {
    let p = Partition::new("many-0", 67, 1);
    let upto = |n: usize| {
        let mut part = Partition::new("many-0", n, 1);
        part.end = part.bases[n - 1] + 4;
        part
    };
    let before = upto(63);
    let more = (63..67).flat_map(|at| p.write(at)).collect();
    Scenario {
        setup: tiered(&before, Meanwhile::Archived(62)),
        steps: together(vec![more, committed(&[&p]), meanwhile(Meanwhile::Archived(66))]),
        claims: &["checkpoint.", "head."],
        ..Scenario::of("checkpoint", &p, 66)
    }
}

/// A restarted mount compares what it presumes archived, then releases it.
fn evict() -> Scenario {
    let p = Partition::new("e-0", 5, 8);
    Scenario {
        setup: tiered(&p, Meanwhile::Archived(4)),
        // What Kafka then removes must not come back as what stood for it.
        steps: together(vec![committed(&[&p]), meanwhile(Meanwhile::Cold(4)), p.discard(0)]),
        claims: &["evict.", "durable.", "recover.presume"],
        ..Scenario::of("evict", &p, 4).all_goes(&p)
    }
}

/// Cold segments are cut, written to, renamed, replaced and removed.
fn cold() -> Scenario {
    let p = Partition::new("c-0", 8, 8);
    let whole = |at: usize| p.logs[at].len() as u64;
    let cut = |at: usize| whole(at) / 2;
    let back = |at: usize| p.logs[at][cut(at) as usize..].to_vec();
    let write_in = |at: usize| Step::WriteAt(p.log(at), 4000, p.logs[at][4000..9000].to_vec());
    let junk = "c-0/junk".to_owned();
    Scenario {
        setup: tiered(&p, Meanwhile::Cold(7)),
        setup_args: args(&ALL_GOES),
        steps: together(vec![
            committed(&[&p]),
            vec![
                Step::Chmod(p.log(6), 0o600),
                // Cut and written again: the bytes are the archived ones in the end.
                Step::Cut(p.log(2), cut(2)),
                Step::WriteAt(p.log(2), cut(2), back(2)),
                write_in(3),
                write_in(1),
                Step::WriteAt(p.log(1), 20_000, p.logs[1][20_000..20_500].to_vec()),
            ],
            // One with an overlay and one without go; one with an overlay is replaced.
            p.discard(0),
            p.discard(1),
            vec![
                write_in(4),
                Step::Put(junk.clone(), p.logs[4].clone()),
                Step::Rename(junk, p.log(4)),
            ],
            meanwhile(Meanwhile::Whole),
        ]),
        claims: &["overlay.", "cold.", "replaced.", "durable."],
        ..Scenario::of("cold", &p, 7).all_goes(&p)
    }
}

/// Segments with overlays become whole local files again.
fn hydrate() -> Scenario {
    let p = Partition::new("h-0", 4, 8);
    let part = |at: usize| Step::WriteAt(p.log(at), 4000, p.logs[at][4000..9000].to_vec());
    Scenario {
        setup: together(vec![tiered(&p, Meanwhile::Cold(3)), vec![part(0), part(2)]]),
        setup_args: args(&ALL_GOES),
        steps: together(vec![committed(&[&p]), meanwhile(Meanwhile::Whole), p.discard(0)]),
        claims: &["hydrate."],
        ..Scenario::of("hydrate", &p, 3).all_goes(&p)
    }
}

/// Retention takes cold segments, hot ones, and some that the archive does not have yet.
fn discard() -> Scenario {
    let (old, new) = (Partition::new("d-0", 5, 4), Partition::new("n-0", 4, 4));
    Scenario {
        setup: together(vec![
            format(),
            old.create(),
            new.create(),
            committed(&[&old]),
            meanwhile(Meanwhile::Archived(4)),
        ]),
        steps: together(vec![
            meanwhile(Meanwhile::StoreGoesAway),
            committed(&[&old, &new]),
            old.discard(0),
            new.discard(0),
            new.discard(1),
            meanwhile(Meanwhile::StoreComesBack),
            old.discard(1),
            meanwhile(Meanwhile::Released),
        ]),
        args: args(&["--on-discard", "cat >> ASKED; test $(wc -l < ASKED) -gt 4"]),
        claims: &["spool.", "durable."],
        archived: 7,
        discarded: 4,
        checkpoints: committed(&[&old, &new]),
        ..Scenario::new("discard")
    }
}

fn copy(from: &Path, to: &Path) {
    fs::copy(from, to).unwrap_or_else(|e| panic!("{} to {}: {e}", from.display(), to.display()));
}

/// What crashes can leave, all at once.
fn leave_everything(data: &Path, plain: &Path) {
    let dir = data.join("hot/r-0");
    let stub = files::names(&dir).into_iter().find(|n| n.ends_with(".log.everlog")).unwrap();
    let log = stub.strip_suffix(".everlog").unwrap();
    copy(&plain.join("r-0").join(log), &dir.join(log));
    fs::write(dir.join(format!("{log}.everlog.tmp.everlog")), "half a stub").unwrap();
    fs::write(data.join("overlay/00000000000000aa"), "nobody's").unwrap();
    fs::write(data.join("everlog.json.tmp.everlog"), "half").unwrap();
    let mirror = files::files_under(&data.join("manifest"));
    let chain = mirror[0].parent().unwrap();
    fs::write(chain.join(".tmp-00000000000000000009"), "half").unwrap();
    // An entry of the spool whose segment never left the log dir, one that was emptied, one that was released.
    let entry = data.join("spool/0123456789abcdef0123456789abcdef");
    fs::create_dir_all(&entry).unwrap();
    fs::write(entry.join("segment.json"), void_entry()).unwrap();
    fs::create_dir_all(data.join("spool/1123456789abcdef0123456789abcdef")).unwrap();
    // Versions of Kafka's checkpoints of more than a month, none of which can be believed: they give way to the next one.
    let versions = data.join("checkpoints");
    files::files_under(&versions).iter().for_each(|version| fs::remove_file(version).unwrap());
    for day in 0..45u64 {
        let taken_ms = 1_700_000_000_000 + day * 86_400_000;
        fs::write(versions.join(format!("{taken_ms:013}")), "damaged").unwrap();
    }
    let released = data.join("spool/2123456789abcdef0123456789abcdef");
    fs::create_dir_all(&released).unwrap();
    fs::write(released.join("segment.log"), "bytes").unwrap();
    fs::write(released.join("released.json"), void_entry()).unwrap();
}

fn void_entry() -> String {
    let topic_id = crate::common::logdir::TOPIC_ID;
    let body = format!(
        "{{\"tp\":\"r-0\",\"topic_id\":\"{topic_id}\",\"base_offset\":0,\"name\":\"{:020}.log\",\"log_dir\":\"r-0\",\
         \"reason\":\"retention\",\"size_bytes\":1,\"mtime_ns\":1,\"committed_offset\":1,\"end_offset\":1,\
         \"archive_wanted\":true,\"listener_wanted\":false,\"discarded_ms\":1,\"upload_id\":null,\"compacted\":false}}",
        0
    );
    let crc = crc32c::crc32c(body.as_bytes());
    format!("{{\"everlog\":\"spool\",\"version\":1,\"crc32c\":\"{crc:08x}\",\"body\":{body}}}\n")
}

/// A mount after crashes.
fn recover() -> Scenario {
    let p = Partition::new("r-0", 4, 4);
    Scenario {
        setup: tiered(&p, Meanwhile::Cold(3)),
        setup_args: args(&ALL_GOES),
        prepare: Some(leave_everything),
        steps: together(vec![committed(&[&p]), meanwhile(Meanwhile::Cold(3))]),
        claims: &["recover.", "versions."],
        ..Scenario::of("recover", &p, 3).all_goes(&p)
    }
}

fn damage_a_stub(data: &Path, _: &Path) {
    let stubs = files::files_under(&data.join("hot"));
    let stub = stubs.iter().find(|p| files::name(p).ends_with(".log.everlog")).unwrap();
    files::flip_byte(stub, 40);
}

/// A damaged stub is made anew.
fn mend() -> Scenario {
    let p = Partition::new("m-0", 3, 4);
    Scenario {
        setup: tiered(&p, Meanwhile::Cold(2)),
        setup_args: args(&ALL_GOES),
        prepare: Some(damage_a_stub),
        steps: together(vec![committed(&[&p]), meanwhile(Meanwhile::Cold(2))]),
        claims: &["recover.stub.mend"],
        ..Scenario::of("mend", &p, 2).all_goes(&p)
    }
}

/// All of them.
pub fn all() -> Vec<Scenario> {
    vec![
        recover(),
        mend(),
        failed_upload(),
        adopt(),
        checkpoint(),
        discard(),
        hydrate(),
        cold(),
        evict(),
        archive(),
    ]
}
