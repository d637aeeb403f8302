//! A story is done once on a mount whose disk and store are recorded. Made from the recording with nothing lost, the disk must be the real
//! one, byte for byte: else a call was missed, and no image would prove anything.

use std::collections::BTreeMap;
use std::path::Path;

use crate::act::Act;
use crate::chance::Chance;
use crate::common::{Mount, MountCommand, files, wait_until};
use crate::disk::{Disk, Fate, Root, Rules};
use crate::promise::Course;
use crate::recording::{ASKED, Event, Kind, Recorder, Recording};
use crate::story::Story;

/// A recorded story.
pub struct Take {
    pub story: Story,
    pub course: Course,
    pub disk: Disk,
    /// Questions to the discard command, in order.
    asked: Vec<String>,
}

/// Mounts below `dir` as a story wants it.
pub fn command(dir: &Path, story: &Story) -> MountCommand {
    for below in ["data", "store"] {
        std::fs::create_dir_all(dir.join(below)).unwrap();
    }
    let store = format!("file://{}", dir.join("store").display());
    let mut command = MountCommand::broker(dir, &store).arg("--no-passthrough");
    for arg in &story.args {
        command = command.arg(arg);
    }
    command
}

/// The option by which every discard is noted in a file, and agreed to when `then` succeeds.
pub fn listening(command: MountCommand, story: &Story, asked: &Path, then: &str) -> MountCommand {
    if !story.listens {
        return command;
    }
    command.option("--on-discard", format!("cat >> '{}' && {then}", asked.display()))
}

impl Take {
    pub fn new(story: Story, dir: &Path, library: &Path) -> Self {
        let recorder = Recorder::new(library, &dir.join("recording"));
        let (data, store) = (dir.join("data"), dir.join("store"));
        let asked = dir.join("asked");
        let command = listening(command(dir, &story), &story, &asked, &recorder.shell_mark())
            .envs(recorder.env(&[&data, &store]));
        perform(&story, &command, &recorder, dir);
        let recording = Recording::read(&recorder.log);
        let times = times(&recording, story.acts.len());
        let course = Course { acts: story.acts.clone(), times };
        let roots = [Root { path: &data, remote: false }, Root { path: &store, remote: true }];
        let disk = Disk::new(recording, &roots);
        let asked = std::fs::read_to_string(&asked).unwrap_or_default();
        let asked = asked.lines().map(str::to_owned).collect();
        let take = Self { story, course, disk, asked };
        take.compare_with_real(dir);
        take
    }

    /// Events of the disk, without the test's marks.
    pub fn end(&self) -> usize {
        self.disk.events().len()
    }

    /// What the discard command had been asked about before an event.
    pub fn asked_before(&self, cut: usize) -> &[String] {
        let is_question = |e: &&Event| e.kind == Kind::Mark && e.at == ASKED as u64;
        &self.asked[..self.disk.events()[..cut].iter().filter(is_question).count()]
    }

    fn compare_with_real(&self, dir: &Path) {
        let whole = self.disk.image(self.end(), Rules::Journal, Fate::Kept, &mut Chance::new(0));
        for (number, name) in ["data", "store"].into_iter().enumerate() {
            let copy = dir.join(format!("{name}-copy"));
            whole.write(number, &copy);
            let (real, made) = (bytes_below(&dir.join(name)), bytes_below(&copy));
            let differ: Vec<_> =
                real.keys().chain(made.keys()).filter(|n| real.get(*n) != made.get(*n)).collect();
            assert!(differ.is_empty(), "{name} is not what was recorded: {differ:?}");
        }
    }
}

/// Names, lengths and checksums. The ballast has no meaning, and is reserved by a call that the library does not see.
fn bytes_below(root: &Path) -> BTreeMap<String, String> {
    let tree = files::tree(root, |_, _, _| String::new()).unwrap();
    tree.into_iter()
        .filter(|(name, _)| !name.starts_with("ballast"))
        .map(|(name, is)| (name, is.split(' ').skip(2).collect()))
        .collect()
}

fn perform(story: &Story, command: &MountCommand, recorder: &Recorder, dir: &Path) {
    let (data, store) = (dir.join("data"), dir.join("store"));
    let mut mount = Some(command.start());
    for (number, act) in story.acts.iter().enumerate() {
        recorder.mark(2 * number);
        let running: &Mount = mount.as_ref().unwrap();
        match act {
            Act::Wait(what) => wait_until(&format!("{}: {what:?}", story.name), 60, || {
                what.is_so(&data, &store).map_err(|e| format!("{e}\n{}", running.log()))
            }),
            Act::Remount => {
                mount.take().unwrap().umount();
                mount = Some(command.start());
            }
            _ => act.apply(running.point()).unwrap_or_else(|e| panic!("{act:?}: {e}")),
        }
        recorder.mark(2 * number + 1);
    }
    mount.unwrap().umount();
}

fn times(recording: &Recording, acts: usize) -> Vec<std::ops::Range<usize>> {
    let mut times = vec![usize::MAX..usize::MAX; acts];
    for (at, event) in recording.events.iter().enumerate() {
        if event.kind == Kind::Mark && event.at != ASKED as u64 {
            let number = event.at as usize;
            let time = &mut times[number / 2];
            *(if number.is_multiple_of(2) { &mut time.start } else { &mut time.end }) = at;
        }
    }
    times
}
