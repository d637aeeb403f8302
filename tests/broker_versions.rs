//! The oldest KRaft broker that people run in production, on the mount. The newest has `broker.rs`; all others `broker_all_versions.rs`,
//! which takes too long to run with every change.

mod common;

use common::broker::KAFKA_FIRST_KRAFT;
use common::versions::lives_on_a_mount;

#[test]
fn the_first_kraft_for_production_lives_on_a_mount() {
    lives_on_a_mount(KAFKA_FIRST_KRAFT);
}
