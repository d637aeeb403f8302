//! When the power goes: after each sort of call at least once, and at moments that chance chooses.

use std::collections::BTreeMap;

use crate::chance::Chance;
use crate::disk::{Fate, Rules};
use crate::mounted::Loss;
use crate::recording::{Event, Kind};
use crate::take::Take;

const FATES: [(Rules, Fate); 7] = [
    (Rules::Strict, Fate::Last),
    (Rules::Journal, Fate::Torn),
    (Rules::Strict, Fate::Torn),
    (Rules::Journal, Fate::Dropped),
    (Rules::Journal, Fate::Last),
    (Rules::Strict, Fate::Dropped),
    (Rules::Journal, Fate::Kept),
];

/// What sort of call it was: its kind, and its names without numbers.
fn sort_of(event: &Event) -> String {
    let plain = |path: &str| -> String {
        let below = path.rsplit_once("/data/").map_or("", |(_, below)| below);
        below.chars().filter(|c| !c.is_ascii_digit()).collect()
    };
    let (from, to) = (plain(&event.from), plain(&event.to));
    // The names in the spool and the cache are chance.
    let part = |text: &str| text.split('/').next().unwrap_or("").to_owned();
    match (part(&from).as_str(), part(&to).as_str()) {
        ("hot" | "manifest", "" | "hot" | "manifest") => format!("{:?} {from} {to}", event.kind),
        (a, b) => {
            let last = |text: &str| text.rsplit('.').next().unwrap_or("").to_owned();
            format!("{:?} {a} {} {b} {}", event.kind, last(&from), last(&to))
        }
    }
}

/// So many losses of power, each with the number of its take.
pub fn choose(takes: &[Take], images: usize, seed: u64) -> Vec<(usize, Loss)> {
    let mut chance = Chance::new(seed);
    let mut sorts: BTreeMap<(usize, String), Vec<usize>> = BTreeMap::new();
    for (number, take) in takes.iter().enumerate() {
        for (at, event) in take.disk.events().iter().enumerate() {
            let is_named = event.kind != Kind::Mark && event.from.contains("/data/");
            if is_named {
                sorts.entry((number, sort_of(event))).or_default().push(at + 1);
            }
        }
    }
    let mut losses = Vec::new();
    let mut all: Vec<_> = sorts.into_iter().collect();
    for at in (1..all.len()).rev() {
        all.swap(at, chance.below(at + 1));
    }
    // What takes a name away first, and twice, with nothing else that was not synced: there the order of two calls matters.
    let takes_away =
        |sort: &str| ["Unlink", "Rename", "Rmdir"].iter().any(|kind| sort.starts_with(kind));
    let (away, others): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|((_, sort), _)| takes_away(sort));
    let certain = away.iter().flat_map(|sort| [(sort, true), (sort, true)]);
    let chosen = certain.chain(others.iter().map(|sort| (sort, false)));
    for (((take, _), cuts), is_certain) in chosen.take(images * 3 / 4) {
        let cut = cuts[chance.below(cuts.len())];
        let (rules, fate) = FATES[if is_certain { 0 } else { chance.below(FATES.len()) }];
        losses.push((*take, Loss { cut, rules, fate, seed: chance.below(usize::MAX) as u64 }));
    }
    while losses.len() < images {
        let take = chance.below(takes.len());
        let cut = 1 + chance.below(takes[take].end());
        let (rules, fate) = FATES[losses.len() % FATES.len()];
        losses.push((take, Loss { cut, rules, fate, seed: chance.below(usize::MAX) as u64 }));
    }
    losses
}
