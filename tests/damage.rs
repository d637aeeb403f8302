//! One flipped byte, wherever it lies: the read is refetched right or fails with EIO, it is counted and named in the log, and the wrong
//! byte is never served.

mod common;

use std::path::{Path, PathBuf};

use common::archive::{log_objects, settle};
use common::broker::CLUSTER_ID;
use common::files::flip_byte;
use common::{LogDir, Mount, MountCommand, Scratch, files, unless, wait_until};
use rustix::io::Errno;

const SEGMENT: u64 = 400_000;

/// A log dir of six segments, five of them archived and at least three cold, and its plain copy.
struct Made {
    command: MountCommand,
    /// Last: dropped, and so removed, after all that lives in it.
    scratch: Scratch,
}

impl Made {
    fn start(name: &str) -> (Self, Mount) {
        let scratch = Scratch::new(name);
        let store = scratch.file_store("store");
        let command =
            MountCommand::broker(scratch.path(), &store).option("--hot-bytes", 2 * SEGMENT);
        let mount = command.start();
        for root in [mount.point().to_owned(), scratch.dir("plain")] {
            let mut logs = LogDir::new(&root, CLUSTER_ID);
            let mut log = logs.create("made", 0);
            logs.checkpoint();
            for _ in 0..5 {
                log.fill_segment(SEGMENT);
            }
            logs.commit(&log);
            for _ in 0..3 {
                std::thread::sleep(std::time::Duration::from_millis(20));
                logs.checkpoint();
            }
        }
        let made = Self { scratch, command };
        settle(&mount, &made.scratch.hot(), "made", &made.scratch.bucket(), 2 * SEGMENT);
        wait_until("segments to become cold", 30, || {
            unless(made.cold().len() >= 3, || format!("{:?}", made.cold()))
        });
        (made, mount)
    }

    fn cold(&self) -> Vec<i64> {
        let objects = log_objects(&self.scratch.bucket());
        let is_cold = |b: &i64| !self.scratch.hot().join(log_name(*b)).exists();
        objects.into_iter().map(|o| o.base).filter(is_cold).collect()
    }

    fn object(&self, base: i64) -> PathBuf {
        log_objects(&self.scratch.bucket()).into_iter().find(|o| o.base == base).unwrap().path
    }

    fn plain(&self, base: i64) -> Vec<u8> {
        std::fs::read(self.scratch.path().join("plain").join(log_name(base))).unwrap()
    }

    /// The file of this kind in the cache that is of this segment's object: its block map has the object's key.
    fn cache_file(&self, base: i64, extension: &str) -> PathBuf {
        let key = format!("/{base:020}.");
        let is_of_it = |map: &PathBuf| {
            let bytes = std::fs::read(map).unwrap();
            bytes.windows(key.len()).any(|text| text == key.as_bytes())
        };
        files::files_under(&self.scratch.path().join("data/cache"))
            .into_iter()
            .filter(|path| path.extension().is_some_and(|e| e == "map"))
            .find(is_of_it)
            .expect("the segment is in the cache")
            .with_extension(extension)
    }
}

fn log_name(base: i64) -> String {
    format!("made-0/{base:020}.log")
}

fn is_eio(outcome: std::io::Result<Vec<u8>>) {
    let error = outcome.expect_err("damaged bytes were served");
    assert_eq!(error.raw_os_error(), Some(Errno::IO.raw_os_error()), "{error}");
}

/// The log has a line of level WARN or ERROR that names it.
fn log_names(mount: &Mount, thing: &str) {
    wait_until(&format!("the log to name {thing}"), 10, || {
        let log = mount.log();
        let named =
            log.lines().any(|l| (l.contains("WARN") || l.contains("ERROR")) && l.contains(thing));
        unless(named, || log)
    });
}

#[test]
fn an_object_with_a_flipped_byte_fails_the_read_and_only_that_one() {
    let (made, mount) = Made::start("damage-object");
    let cold = made.cold();
    let at = 200_001;
    flip_byte(&made.object(cold[0]), at);
    is_eio(std::fs::read(mount.path(&log_name(cold[0]))));
    assert_eq!(std::fs::read(mount.path(&log_name(cold[1]))).unwrap(), made.plain(cold[1]));
    let upload = files::name(&made.object(cold[0]));
    log_names(&mount, &upload[..37]);
    // Blocks without damage are still served.
    use std::os::unix::fs::FileExt as _;
    let mut head = vec![0; 65_536];
    std::fs::File::open(mount.path(&log_name(cold[0])))
        .unwrap()
        .read_exact_at(&mut head, 0)
        .unwrap();
    assert_eq!(head, made.plain(cold[0])[..65_536]);
    // The store heals: so does the read.
    flip_byte(&made.object(cold[0]), at);
    wait_until("the read to heal", 30, || {
        std::fs::read(mount.path(&log_name(cold[0])))
            .map(|b| assert_eq!(b, made.plain(cold[0])))
            .map_err(|e| e.to_string())
    });
}

#[test]
fn a_truncated_object_fails_the_read() {
    let (made, mount) = Made::start("damage-short");
    let cold = made.cold();
    let object = made.object(cold[0]);
    std::fs::File::options().write(true).open(&object).unwrap().set_len(100_000).unwrap();
    is_eio(std::fs::read(mount.path(&log_name(cold[0]))));
    assert_eq!(std::fs::read(mount.path(&log_name(cold[1]))).unwrap(), made.plain(cold[1]));
}

#[test]
fn a_flipped_byte_in_a_cached_block_is_refetched() {
    let (made, mount) = Made::start("damage-cache");
    let base = made.cold()[0];
    let read = |mount: &Mount| std::fs::read(mount.path(&log_name(base))).unwrap();
    assert_eq!(read(&mount), made.plain(base));
    mount.umount();
    let data = made.cache_file(base, "data");
    flip_byte(&data, 70_000);
    let mount = made.command.start();
    assert_eq!(read(&mount), made.plain(base));
    log_names(&mount, &format!("{base:020}"));
    let damaged = mount.status()["cache"]["damaged_blocks"].as_u64();
    assert!(damaged >= Some(1), "{}", mount.status()["cache"]);
}

#[test]
fn a_flipped_byte_in_a_block_map_is_never_believed() {
    let (made, mount) = Made::start("damage-map");
    let base = made.cold()[0];
    assert_eq!(std::fs::read(mount.path(&log_name(base))).unwrap(), made.plain(base));
    mount.umount();
    // Header, a checksum, a state, the object's key, the header's own checksum.
    for at in [9, 20, 4096, 4100, 4109, 70, 4093] {
        let map = made.cache_file(base, "map");
        flip_byte(&map, at);
        let mount = made.command.start();
        assert_eq!(
            std::fs::read(mount.path(&log_name(base))).unwrap(),
            made.plain(base),
            "map byte {at}"
        );
        mount.umount();
    }
}

#[test]
fn a_cache_that_lost_its_data_in_a_power_cut_costs_a_fetch() {
    let (made, mount) = Made::start("damage-power");
    let base = made.cold()[0];
    assert_eq!(std::fs::read(mount.path(&log_name(base))).unwrap(), made.plain(base));
    mount.kill9();
    let data = made.cache_file(base, "data");
    let len = data.metadata().unwrap().len();
    let file = std::fs::File::options().write(true).open(&data).unwrap();
    file.set_len(0).unwrap();
    file.set_len(len).unwrap();
    let mount = made.command.start();
    assert_eq!(std::fs::read(mount.path(&log_name(base))).unwrap(), made.plain(base));
}

fn stub(hot: &Path, base: i64) -> PathBuf {
    hot.join(format!("made-0/{base:020}.log.everlog"))
}

#[test]
fn a_stub_with_a_flipped_byte_is_rebuilt_or_refused_and_never_believed() {
    let (made, mount) = Made::start("damage-stub");
    let cold = made.cold();
    mount.umount();
    let len_of = |base| stub(&made.scratch.hot(), base).metadata().unwrap().len();
    for place in 0..3 {
        // One that was rebuilt may be shorter: it knows the segment's times only.
        let len = len_of(cold[0]);
        let at = [2, len / 2, len - 3][place];
        flip_byte(&stub(&made.scratch.hot(), cold[0]), at);
        let mount = made.command.start();
        let path = mount.path(&log_name(cold[0]));
        assert_eq!(
            path.metadata().unwrap().len(),
            made.plain(cold[0]).len() as u64,
            "the name stays visible with its size"
        );
        assert_eq!(std::fs::read(&path).unwrap(), made.plain(cold[0]), "byte {at}");
        log_names(&mount, &format!("{:020}", cold[0]));
        mount.umount();
    }
    // Without a manifest to rebuild it from it fails, and stays visible.
    flip_byte(&stub(&made.scratch.hot(), cold[1]), len_of(cold[1]) / 2);
    std::fs::remove_dir_all(made.scratch.path().join("data/manifest")).unwrap();
    std::fs::rename(made.scratch.bucket(), made.scratch.path().join("away")).unwrap();
    let mount = made.command.start();
    let name = format!("{:020}.log", cold[1]);
    assert!(files::names(&mount.path("made-0")).contains(&name), "the name vanished");
    is_eio(std::fs::read(mount.path(&log_name(cold[1]))));
}

#[test]
fn behind_a_damaged_manifest_document_nothing_is_shown_and_nobody_takes_that_for_all() {
    let (made, mount) = Made::start("damage-manifest");
    mount.umount();
    let mut deltas: Vec<PathBuf> = files::files_under(&made.scratch.bucket())
        .into_iter()
        .filter(|p| p.parent().is_some_and(|d| d.ends_with("manifest")))
        .filter(|p| files::name(p).len() == 20)
        .collect();
    deltas.sort();
    let bases: Vec<i64> = log_objects(&made.scratch.bucket()).into_iter().map(|o| o.base).collect();
    assert_eq!((deltas.len(), bases.len()), (5, 5), "{deltas:?}");
    let at = deltas[3].metadata().unwrap().len() / 2;
    flip_byte(&deltas[3], at);

    let store = made.scratch.file_store("store");
    let archive = MountCommand::archive(made.scratch.path(), &store).start();
    for base in &bases[..3] {
        assert_eq!(std::fs::read(archive.path(&log_name(*base))).unwrap(), made.plain(*base));
    }
    for base in &bases[3..] {
        is_eio(std::fs::read(archive.path(&log_name(*base))));
    }
    let mut seen = Vec::new();
    let listed = std::fs::read_dir(archive.path("made-0"))
        .unwrap()
        .try_for_each(|entry| entry.map(|e| seen.push(e.file_name().into_string().unwrap())));
    assert_eq!(listed.unwrap_err().raw_os_error(), Some(Errno::IO.raw_os_error()));
    assert_eq!(seen.iter().filter(|n| n.ends_with(".log")).count(), 3, "{seen:?}");
    log_names(&archive, &files::name(&deltas[3]));

    // Mended, all of it is there again.
    flip_byte(&deltas[3], at);
    wait_until("the archive to be whole again", 30, || {
        let names = std::fs::read_dir(archive.path("made-0")).unwrap();
        let names: Result<Vec<_>, _> = names.collect();
        let names = names.map_err(|e| e.to_string())?;
        let logs = names.iter().filter(|n| files::name(&n.path()).ends_with(".log")).count();
        unless(logs == 5, || format!("{logs}"))
    });
    for base in &bases {
        assert_eq!(std::fs::read(archive.path(&log_name(*base))).unwrap(), made.plain(*base));
    }
}

#[test]
fn a_file_that_is_damaged_before_it_is_archived_is_quarantined_and_later_ones_proceed() {
    let scratch = Scratch::new("damage-quarantine");
    let store = scratch.file_store("store");
    let command = MountCommand::broker(scratch.path(), &store).option("--hot-bytes", 1);
    let mount = command.start();
    let mut logs = LogDir::new(mount.point(), CLUSTER_ID);
    let mut log = logs.create("made", 0);
    logs.checkpoint();
    log.fill_segment(SEGMENT);
    let second = log.base();
    log.fill_segment(SEGMENT);
    log.fill_segment(SEGMENT);
    flip_byte(&mount.path(&log_name(second)), 100_000);
    logs.commit(&log);
    logs.checkpoint();
    logs.checkpoint();
    let bucket = scratch.path().join("store");
    wait_until("the good segments to be archived", 60, || {
        let there: Vec<i64> = log_objects(&bucket).into_iter().map(|o| o.base).collect();
        unless(there.len() == 2, || format!("{there:?}"))
    });
    assert!(log_objects(&bucket).iter().all(|o| o.base != second));
    let status = wait_until("the quarantine to be visible", 30, || {
        let status = mount.topic_status("made");
        unless(status["quarantined"][0]["base_offset"] == second, || status.to_string())
            .map(|()| status)
    });
    assert_eq!(status["quarantined"][0]["partition"], 0, "{status}");
    assert!(
        status["quarantined"][0]["reason"].as_str().is_some_and(|r| r.contains("CRC")),
        "{status}"
    );
    assert!(
        scratch.path().join("data/hot").join(log_name(second)).exists(),
        "a quarantined segment left the disk"
    );
    log_names(&mount, &format!("{second}"));
}
