//! Many runs at the same time: most of their time is waiting for the next tick.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

/// Runs at the same time.
const WORKERS: usize = 8;

/// A seed, when a walk shall be a long one.
pub fn seed() -> Option<u64> {
    std::env::var("EVERLOG_WALK_SEED").ok().and_then(|v| v.parse().ok())
}

/// Does `work` for each item, several at a time; the words of those that failed.
pub fn each<T: Send>(items: Vec<T>, work: impl Fn(T) -> Result<(), String> + Sync) -> Vec<String> {
    let (items, failed) = (Mutex::new(VecDeque::from(items)), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                loop {
                    let Some(item) = items.lock().unwrap().pop_front() else { return };
                    if let Err(words) = work(item) {
                        failed.lock().unwrap().push(words);
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap()
}

/// The words of a panic, if there is one.
pub fn said(work: impl FnOnce()) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
    })
}
