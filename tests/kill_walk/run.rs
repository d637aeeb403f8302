//! One run of a scenario: something fails, the mount is started again, and everything is compared with a plain directory that got the
//! same operations.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::archive::hot_log_bytes;
use crate::common::fsck::{self, Named};
use crate::common::step::{Meanwhile, Step, tree};
use crate::common::{Mount, MountCommand, files, files_under, unless, wait_until};
use crate::scenario::Scenario;

/// Contents that a segment ever had.
type History = BTreeMap<(String, i64), BTreeSet<String>>;

/// How long anything may take that should happen by itself.
const PATIENCE_S: u64 = 60;

/// A directory with a data directory, a store and a plain log dir in it.
pub struct Place {
    dir: PathBuf,
    history: History,
}

/// What fails in a run, and how one sees that it did.
pub struct Failure {
    /// In messages.
    pub what: String,
    /// Environment of the mount that it happens to.
    pub env: Vec<(String, String)>,
    /// Whether it has happened.
    pub happened: Box<dyn Fn() -> bool + Send>,
    /// Nothing need happen: the run is only watched.
    pub watched: bool,
    /// It ends the process.
    pub kills: bool,
    /// The store or the disk refuses: a discarded segment may be lost to the archive, with a line in the log.
    pub may_lose: bool,
}

impl Place {
    pub fn new(dir: &Path) -> Self {
        for below in ["plain", "store"] {
            std::fs::create_dir_all(dir.join(below)).unwrap();
        }
        Self { dir: dir.to_owned(), history: History::new() }
    }

    /// A copy with all times kept.
    pub fn copied(&self, to: &Path) -> Self {
        std::fs::create_dir_all(to).unwrap();
        let status = Command::new("cp").arg("-a").arg(self.dir.join(".")).arg(to).status().unwrap();
        assert!(status.success());
        Self { dir: to.to_owned(), history: self.history.clone() }
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.dir.join(below)
    }

    fn command(&self, args: &[String]) -> MountCommand {
        let store = format!("file://{}", self.path("store").display());
        let mut command = MountCommand::broker(&self.dir, &store);
        for arg in args {
            command =
                command.arg(arg.replace("ASKED", &format!("'{}'", self.path("asked").display())));
        }
        command
    }

    fn bucket(&self) -> PathBuf {
        let away = self.path("store.away");
        if away.exists() { away } else { self.path("store") }
    }

    fn archived(&self) -> Vec<Named> {
        fsck::archived(&self.bucket())
    }

    /// Does a step to the plain directory and remembers what segments it has now.
    fn model(&mut self, step: &Step) {
        let plain = self.path("plain");
        step.apply(&plain).unwrap_or_else(|e| panic!("{step:?} in a plain directory: {e}"));
        let (Step::Put(name, _)
        | Step::WriteAt(name, ..)
        | Step::Cut(name, _)
        | Step::Rename(_, name)) = step
        else {
            return;
        };
        let Some((dir, file)) = name.split_once('/') else { return };
        if let (Some(base), true) =
            (file.get(..20).and_then(|d| d.parse().ok()), file.contains(".log"))
        {
            let sha = files::sha256_file(&plain.join(name));
            self.history.entry((dir.to_owned(), base)).or_default().insert(sha);
        }
    }

    fn meanwhile(&self, what: &Meanwhile, may_stop: &mut dyn FnMut() -> bool) {
        match what {
            Meanwhile::StoreGoesAway => {
                std::fs::rename(self.path("store"), self.path("store.away")).unwrap();
            }
            Meanwhile::StoreComesBack => self.store_comes_back(),
            _ => wait_until(&format!("{what:?}"), PATIENCE_S, || {
                if may_stop() { Ok(()) } else { self.is_so(what) }
            }),
        }
    }

    fn store_comes_back(&self) {
        if self.path("store.away").exists() {
            std::fs::rename(self.path("store.away"), self.path("store")).unwrap();
        }
    }

    fn is_so(&self, what: &Meanwhile) -> Result<(), String> {
        what.is_so(&self.path("data"), &self.bucket())
    }

    /// The scenario's setup, without any failure.
    pub fn set_up(&mut self, scenario: &Scenario) {
        if !scenario.setup.is_empty() {
            let mount = self.command(&scenario.setup_args).start();
            for step in &scenario.setup {
                step.apply(mount.point()).unwrap_or_else(|e| panic!("{step:?}: {e}"));
                self.model(step);
                if let Step::Meanwhile(what) = step {
                    self.meanwhile(what, &mut || false);
                }
            }
            mount.umount();
            self.age_partitions();
        }
        if let Some(prepare) = scenario.prepare {
            prepare(&self.path("data"), &self.path("plain"));
        }
    }

    /// The setup's partitions are no new ones: their watermark is believed as soon as a mount sees it, however fast this machine is.
    fn age_partitions(&self) {
        let minute_ago = std::time::SystemTime::now() - Duration::from_secs(60);
        for path in files_under(&self.path("data/hot")) {
            if path.ends_with("partition.metadata") {
                let file = std::fs::File::options().write(true).open(path).unwrap();
                file.set_modified(minute_ago).unwrap();
            }
        }
    }

    /// Runs the scenario's steps with the failure, then everything again that needs it, and compares.
    pub fn run(&mut self, scenario: &Scenario, failure: &Failure) {
        let mut command = self.command(&scenario.args);
        for (name, value) in &failure.env {
            command = command.env(name, value);
        }
        let reached = match command.try_start() {
            Ok(mount) => self.fail(scenario, failure, mount),
            // It died, or refused, at the mount already.
            Err(_) => 0,
        };
        assert!(
            failure.watched || (failure.happened)(),
            "{} did not happen within the run",
            failure.what
        );
        self.store_comes_back();
        let command = self.command(&scenario.args);
        let mut mount = command.start();
        self.compare_at_once(scenario, reached, &mount);
        for step in &scenario.steps[reached..] {
            let done = step.apply(mount.point());
            assert!(done.is_ok(), "{step:?} after the restart: {}", done.unwrap_err());
            self.model(step);
        }
        for step in &scenario.checkpoints {
            step.apply(mount.point()).unwrap();
            self.model(step);
        }
        self.settle(scenario, &mut mount, failure.may_lose);
        mount.umount();
        self.compare_disk();
    }

    /// Does the steps until the process dies; the number of those that are done. Ends with nothing mounted.
    fn fail(&mut self, scenario: &Scenario, failure: &Failure, mut mount: Mount) -> usize {
        for (at, step) in scenario.steps.iter().enumerate() {
            if let Step::Meanwhile(what) = step {
                let mut over = || mount.has_ended() || (!failure.watched && (failure.happened)());
                self.meanwhile(what, &mut over);
                continue;
            }
            if !self.done_or_dead(step, &mut mount) {
                mount.kill9();
                return at;
            }
            self.model(step);
        }
        if failure.watched {
            self.settle(scenario, &mut mount, failure.may_lose);
            mount.umount();
            return scenario.steps.len();
        }
        wait_until("the failure", PATIENCE_S, || {
            let over = mount.has_ended() || (failure.happened)();
            unless(over, || failure.what.clone())
        });
        // Now and then it is not the failure that ends it.
        let clean = !failure.kills && failure.what.len().is_multiple_of(2);
        if clean {
            mount.umount()
        } else {
            mount.kill9()
        }
        scenario.steps.len()
    }

    /// True: the step is done, if need be at a second try. False: the process died.
    fn done_or_dead(&self, step: &Step, mount: &mut Mount) -> bool {
        for _ in 0..3 {
            match step.apply(mount.point()) {
                Ok(()) if !matches!(step, Step::Meanwhile(_)) => return true,
                Ok(()) => return true,
                Err(_) => {
                    let until = Instant::now() + Duration::from_millis(300);
                    while Instant::now() < until {
                        if mount.has_ended() {
                            return false;
                        }
                        std::thread::sleep(Duration::from_millis(10));
                    }
                }
            }
        }
        let last = step.apply(mount.point());
        assert!(mount.has_ended() || last.is_ok(), "{step:?} fails again and again: {last:?}");
        !mount.has_ended()
    }

    /// What the restarted mount shows: as before the step in which it died, or as after it.
    fn compare_at_once(&mut self, scenario: &Scenario, reached: usize, mount: &Mount) {
        let plain = self.path("plain");
        let before = tree(&plain).unwrap();
        let found = tree(mount.point()).unwrap_or_else(|e| panic!("{e}\n{}", mount.log()));
        let step = scenario.steps.get(reached);
        let counts = |name: &str| !step.is_some_and(|s| s.is_about(name));
        let kept = |all: &BTreeMap<String, String>| -> BTreeMap<String, String> {
            all.iter().filter(|(n, _)| counts(n)).map(|(n, v)| (n.clone(), v.clone())).collect()
        };
        if kept(&found) == kept(&before) {
            return;
        }
        if let Some(step) = step.filter(|s| !matches!(s, Step::Meanwhile(_))) {
            self.model(step);
            let after = tree(&plain).unwrap();
            if kept(&found) == kept(&after) {
                return;
            }
        }
        panic!("after the restart at {step:?} {}", difference(&kept(&before), &kept(&found)));
    }

    /// Waits until nothing is left to do, and compares.
    fn settle(&mut self, scenario: &Scenario, mount: &mut Mount, may_lose: bool) {
        let mut lost = 0;
        wait_until(&format!("{} to settle", scenario.name), PATIENCE_S, || {
            if mount.has_ended() {
                panic!("the mount ended:\n{}", mount.log());
            }
            let status = mount.status();
            // Also of the process before.
            lost = mount.log().matches("could not be kept").count();
            let is = |pointer: &str| status.pointer(pointer).and_then(|v| v.as_u64()).unwrap();
            unless(is("/totals/lag_segments") == 0, || format!("lag: {status}"))?;
            unless(is("/spool/segments") == 0, || format!("spool: {status}"))?;
            unless(is("/spool/damaged") == 0, || format!("spool: {status}"))?;
            unless(is("/quarantine") == 0, || format!("quarantine: {status}"))?;
            unless(status["broken"] == serde_json::json!([]), || format!("broken: {status}"))?;
            self.is_so(&Meanwhile::Released)?;
            self.is_so(&Meanwhile::Whole)?;
            let hot = hot_log_bytes(&self.path("data/hot"));
            let hot_max = scenario.hot_bytes_max.saturating_add(4096);
            unless(hot <= hot_max, || format!("{hot} hot: {status}"))?;
            let wanted =
                scenario.archived - if may_lose { lost.min(scenario.discarded) } else { 0 };
            self.is_so(&Meanwhile::Archived(wanted))
        });
        let (expected, found) = (tree(&self.path("plain")).unwrap(), tree(mount.point()).unwrap());
        assert!(expected == found, "at the end {}", difference(&expected, &found));
        for named in self.archived() {
            let written = self.history.get(&(named.partition.clone(), named.base));
            assert!(
                written.is_some_and(|w| w.contains(&named.sha256)),
                "{named:?} is archived and was never written"
            );
        }
        self.compare_discards(scenario, if may_lose { lost } else { 0 });
    }

    /// The discard command was asked about each discarded segment, and about nothing else.
    fn compare_discards(&self, scenario: &Scenario, lost: usize) {
        let text = std::fs::read_to_string(self.path("asked")).unwrap_or_default();
        let mut asked: BTreeMap<(String, i64), usize> = BTreeMap::new();
        for line in text.lines() {
            let event: serde_json::Value = serde_json::from_str(line).unwrap();
            let of = (
                event["topic"].as_str().unwrap().to_owned(),
                event["base_offset"].as_i64().unwrap(),
            );
            *asked.entry(of).or_default() += 1;
        }
        assert!(
            asked.len() <= scenario.discarded && asked.len() + lost >= scenario.discarded,
            "{} were discarded, {lost} lost, asked was about {asked:?}",
            scenario.discarded
        );
        // It agrees at the fifth question; a crash may repeat one.
        assert!(asked.values().all(|times| *times <= 6), "{asked:?}");
    }

    /// Every file of the data directory has a reason.
    fn compare_disk(&self) {
        let odd = fsck::data_directory(&self.path("data"), &self.path("plain"), 0);
        assert!(odd.is_empty(), "{odd:#?}");
    }
}

fn difference(expected: &BTreeMap<String, String>, found: &BTreeMap<String, String>) -> String {
    let missing: Vec<_> = expected.iter().filter(|(k, v)| found.get(*k) != Some(*v)).collect();
    let extra: Vec<_> = found.iter().filter(|(k, v)| expected.get(*k) != Some(*v)).collect();
    format!("the plain directory has {missing:#?}, the mount {extra:#?}")
}
