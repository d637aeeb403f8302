//! The status's sums: kept from look to look, and the same as if all segments were counted anew.

use super::world::{Mount, World, log_bytes, name};
use crate::tier::Totals;
use crate::tier::sums::Sums;

/// The totals as they are shown, after a check that counting all anew gives the same.
fn totals(mount: &Mount) -> Totals {
    let now_ms = mount.tier.clock.now_ms();
    let kept = mount.tier.look(now_ms);
    *mount.tier.sums.lock() = Sums::default();
    let anew = mount.tier.look(now_ms);
    assert_eq!(kept, anew);
    // And once more, so that the next look finds something kept.
    assert_eq!(mount.tier.look(now_ms), anew);
    anew.totals
}

#[tokio::test]
async fn sums_that_are_kept_follow_every_change() {
    let mut world = World::new();
    world.partition("t-0", &[0, 100, 200, 300], 400);
    world.partition("u-0", &[0, 100], 200);
    world.checkpoints(&[("t-0", 400), ("u-0", 200)]);
    world.config.hot_bytes = Some(0);
    let mount = world.mount();
    let before = totals(&mount);
    assert_eq!((before.partitions, before.active_segments, before.closed_segments), (2, 2, 4));
    assert_eq!(before.lag_segments, 4);

    let active = mount.log("t-0", 300);
    let more = log_bytes(400, 500, 500);
    active.open(true).unwrap();
    active.write_at(active.stat().unwrap().size_bytes, &more).unwrap();
    let appended = totals(&mount);
    assert_eq!(appended.active_bytes, before.active_bytes + more.len() as u64);
    assert_eq!(appended.hot_bytes, before.hot_bytes + more.len() as u64);

    mount.drain().await.unwrap();
    let archived = totals(&mount);
    assert_eq!((archived.lag_segments, archived.archived_segments), (0, 4));
    mount.tier.evict_round().unwrap();
    let cold = totals(&mount);
    assert_eq!((cold.cold_segments, cold.hot_bytes), (4, cold.active_bytes));

    // Somebody writes where nobody should.
    mount.log("t-0", 0).truncate(1_000).unwrap();
    let cut = totals(&mount);
    assert_eq!(cut.cold_segments, 3);
    assert!(cut.closed_bytes < cold.closed_bytes);
    mount.log("t-0", 0).write_at(1_000, b"more").unwrap();
    assert_eq!(totals(&mount).closed_bytes, cut.closed_bytes + 4);

    active.close();
    mount.dir("t-0").create_log(&name(500), 0o644, None, true).unwrap();
    let rolled = totals(&mount);
    assert_eq!((rolled.closed_segments, rolled.lag_segments), (5, 1));
    mount.log("t-0", 300).truncate(50).unwrap();
    assert_eq!(totals(&mount).lag_bytes, 50, "a closed segment that is hot");
    mount.retire("t-0", 100);
    assert_eq!(totals(&mount).closed_segments, 4);
    let gone = "u-0.0123456789abcdef0123456789abcdef-delete";
    mount.catalog.rename_dir("u-0", gone).unwrap();
    assert_eq!(totals(&mount).partitions, 1);
    mount.tier.unlink(&mount.dir(gone), &name(0)).unwrap();
    totals(&mount);
    world.pass(300_000);
    totals(&mount);
}

#[tokio::test]
async fn what_a_segment_waits_for_is_counted_when_it_is_held() {
    let world = World::new();
    world.partition("t-0", &[0, 100, 200], 300);
    world.checkpoints(&[("t-0", 300)]);
    let path = world.hot().join("t-0").join(name(0));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[30] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let mount = world.mount();
    assert_eq!(totals(&mount).lag_segments, 2);
    mount.drain().await.unwrap();
    assert_eq!(totals(&mount).lag_segments, 0, "quarantined, and archived");
    assert_eq!(mount.tier.look(mount.tier.clock.now_ms()).quarantine, 1);
    mount.retire("t-0", 0);
    assert_eq!(totals(&mount).closed_segments, 1);
}
