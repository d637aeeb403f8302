//! The power goes. Every call by which the daemon changes its disk is recorded while a broker works on a mount; from the recording images
//! of the disk are made, as it may be found afterwards: unsynced writes kept, dropped or torn. Each image is mounted: what Kafka had
//! fsynced is there, nothing else is served, and nobody repairs anything.
//!
//! `EVERLOG_WALK_SEED` makes a long walk with many more images; `scripts/torture` does that.

mod common;

#[path = "power_loss/act.rs"]
mod act;
#[path = "power_loss/chance.rs"]
mod chance;
#[path = "power_loss/cuts.rs"]
mod cuts;
#[path = "power_loss/disk.rs"]
mod disk;
#[path = "power_loss/mounted.rs"]
mod mounted;
#[path = "power_loss/promise.rs"]
mod promise;
#[path = "power_loss/recording.rs"]
mod recording;
#[path = "power_loss/story.rs"]
mod story;
#[path = "power_loss/take.rs"]
mod take;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Instant;

use common::workers::{each, said, seed};
use common::{Scratch, mount, shim};
use take::Take;

/// Images in CI, and of a long walk.
const IMAGES: usize = 300;
const IMAGES_OF_A_WALK: usize = 1500;

#[test]
fn whatever_a_power_loss_leaves_of_unsynced_writes_nothing_synced_is_lost_and_nothing_is_repaired()
{
    let began = Instant::now();
    let scratch = Scratch::new("power");
    let library = shim::build(&scratch, "record");
    let takes = Mutex::new(Vec::new());
    let failed = each(story::stories(), |story| {
        let name = story.name;
        said(|| {
            let take = Take::new(story, &scratch.dir(&format!("{name}-take")), &library);
            takes.lock().unwrap().push(take);
        })
        .map_err(|words| format!("=== {name}, while it is recorded:\n{words}"))
    });
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    let mut takes = takes.into_inner().unwrap();
    takes.sort_by_key(|t| t.story.name);
    let recorded_s = began.elapsed().as_secs();

    let chosen = seed().unwrap_or(1);
    let images = if seed().is_some() { IMAGES_OF_A_WALK } else { IMAGES };
    let losses = cuts::choose(&takes, images, chosen);
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for (_, loss) in &losses {
        *kinds.entry(format!("{:?} {:?}", loss.rules, loss.fate)).or_default() += 1;
    }
    let count = losses.len();
    let numbered: Vec<_> = losses.into_iter().enumerate().collect();
    let failed = each(numbered, |(number, (at, loss))| {
        let take: &Take = &takes[at];
        let dir = scratch.path().join(format!("image-{number}"));
        let done = said(|| mounted::lose_power(take, &loss, &dir));
        match &done {
            Ok(()) => std::fs::remove_dir_all(&dir).unwrap(),
            Err(_) => mount::detach(&dir.join("mount")),
        }
        let name = take.story.name;
        let last =
            take.disk.events()[..loss.cut].iter().rev().find(|e| e.kind != recording::Kind::Mark);
        done.map_err(|words| {
            format!("=== {name}, {loss:?} (kept: {}), after {last:?}:\n{words}", dir.display())
        })
    });
    let events: usize = takes.iter().map(Take::end).sum();
    println!(
        "seed {chosen}: {count} images of {events} recorded events, {} failed, {recorded_s} s to record, {} s in all; {kinds:?}",
        failed.len(),
        began.elapsed().as_secs()
    );
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}
