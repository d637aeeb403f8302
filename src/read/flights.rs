//! Fetches under way, so that nobody fetches a block that somebody else is fetching.
//!
//! Invariant: the flights of one object never overlap. A flight is a task of its own: a reader that
//! gives up does not end it. It looks into the cache before it asks the store, says how far it has got
//! only when those blocks are in the cache (or in its hands), and leaves the table only after its last
//! one, so a reader who came just too late causes no second request.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::ReadError;
use crate::types::ObjectKey;

/// How a fetch ended.
pub(super) type Ended = Result<(), ReadError>;

/// Verified runs that the cache could not keep: number of the first block, and the bytes.
type Held = Arc<Mutex<Vec<(u64, Bytes)>>>;

/// What a fetch waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Its turn: as many requests or bytes as are allowed are under way.
    Queued,
    /// The first bytes of the store's answer.
    Asked,
    /// The rest of them, or the disk that they go to.
    Receiving,
    /// The pause after a failure to be over.
    Pausing,
}

#[derive(Clone, Debug)]
struct Progress {
    /// All blocks before this one can be had.
    landed_to: u64,
    stage: Stage,
    /// Requests that failed.
    failures: u32,
    ended: Option<Ended>,
}

impl Progress {
    fn at(block: u64) -> Self {
        Self { landed_to: block, stage: Stage::Queued, failures: 0, ended: None }
    }
}

/// A fetch under way, as it is now.
#[derive(Clone, Debug)]
pub(super) struct Underway {
    pub object: ObjectKey,
    pub blocks: Range<u64>,
    pub landed_to: u64,
    pub is_demand: bool,
    pub stage: Stage,
    pub failures: u32,
}

/// A fetch of consecutive blocks.
pub(super) struct Flight {
    pub blocks: Range<u64>,
    /// Whether nobody waited for it when it began.
    pub began_as_prefetch: bool,
    demanded: watch::Sender<bool>,
    progress: watch::Receiver<Progress>,
    held: Held,
}

impl Flight {
    /// Waits until the blocks before `end` can be had, as far as they are this flight's.
    pub async fn landed(&self, end: u64) -> Ended {
        let wanted = end.min(self.blocks.end);
        let mut progress = self.progress.clone();
        let seen = progress.wait_for(|p| p.landed_to >= wanted || p.ended.is_some()).await;
        match seen {
            Ok(progress) if progress.landed_to >= wanted => Ok(()),
            Ok(progress) => progress.ended.clone().unwrap_or(Ok(())),
            Err(_) => Err(ReadError::Local("a fetch ended early".to_owned())),
        }
    }

    /// The first block that could not be had so far.
    pub fn landed_to(&self) -> u64 {
        self.progress.borrow().landed_to
    }

    fn now(&self, object: &ObjectKey) -> Underway {
        let progress = self.progress.borrow();
        Underway {
            object: object.clone(),
            blocks: self.blocks.clone(),
            landed_to: progress.landed_to,
            is_demand: *self.demanded.borrow(),
            stage: progress.stage,
            failures: progress.failures,
        }
    }

    /// What the cache could not keep.
    pub fn held(&self) -> Vec<(u64, Bytes)> {
        self.held.lock().clone()
    }
}

/// The fetching side of a flight.
pub(super) struct Landing {
    urgency: watch::Receiver<bool>,
    progress: watch::Sender<Progress>,
    held: Held,
}

impl Landing {
    /// Whether a reader waits for it; that may begin while it is under way.
    pub fn is_demand(&self) -> bool {
        *self.urgency.borrow()
    }

    /// Ends when a reader begins to wait for it; never, if none can any more.
    pub async fn demanded(&mut self) {
        if self.urgency.wait_for(|demand| *demand).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// What it waits for now. Wakes nobody.
    pub fn waits_for(&self, stage: Stage) {
        self.progress.send_if_modified(|p| {
            p.stage = stage;
            false
        });
    }

    /// A request failed and is repeated after a pause.
    pub fn failed(&self) {
        self.progress.send_if_modified(|p| {
            (p.stage, p.failures) = (Stage::Pausing, p.failures + 1);
            false
        });
    }

    /// All blocks before this one are in the cache or held.
    pub fn landed(&self, landed_to: u64) {
        self.progress.send_modify(|p| p.landed_to = p.landed_to.max(landed_to));
    }

    /// Keeps verified blocks for those who wait, as long as they do.
    pub fn hold(&self, first_block: u64, bytes: Bytes) {
        self.held.lock().push((first_block, bytes));
    }

    fn end(self, ended: Ended) {
        self.progress.send_modify(|p| p.ended = Some(ended));
    }
}

type Table = Mutex<HashMap<ObjectKey, BTreeMap<u64, Arc<Flight>>>>;

/// All flights.
#[derive(Default)]
pub(super) struct Flights {
    table: Arc<Table>,
}

/// Fetches blocks and tells through the landing how far it is; gives the landing back.
pub(super) trait Fetch<T>: Fn(Range<u64>, Landing) -> T {}
impl<F: Fn(Range<u64>, Landing) -> T, T> Fetch<T> for F {}

impl Flights {
    /// Flights that together cover `blocks`: those that are under way, and new ones of at most
    /// `piece_blocks` for the rest. They may reach beyond `blocks` on both sides.
    pub fn claim<T>(
        &self,
        runtime: &Handle,
        object: &ObjectKey,
        blocks: Range<u64>,
        (piece_blocks, demand): (u64, bool),
        fetch: impl Fetch<T>,
    ) -> Vec<Arc<Flight>>
    where
        T: Future<Output = (Landing, Ended)> + Send + 'static,
    {
        let mut table = self.table.lock();
        let flights = table.entry(object.clone()).or_default();
        let (mut claimed, mut at) = (Vec::new(), blocks.start);
        while at < blocks.end {
            let before = flights.range(..=at).next_back().map(|(_, flight)| flight);
            if let Some(flight) = before.filter(|flight| flight.blocks.end > at) {
                if demand {
                    flight.demanded.send_replace(true);
                }
                at = flight.blocks.end;
                claimed.push(Arc::clone(flight));
                continue;
            }
            let next = flights.range(at..).next().map_or(u64::MAX, |(&start, _)| start);
            let piece = at..blocks.end.min(next).min(at + piece_blocks.max(1));
            let leave = Leave { table: Arc::clone(&self.table), object: object.clone(), start: at };
            let flight = take_off(runtime, piece.clone(), demand, &fetch, Some(leave));
            flights.insert(at, Arc::clone(&flight));
            claimed.push(flight);
            at = piece.end;
        }
        if flights.is_empty() {
            table.remove(object);
        }
        claimed
    }

    /// A flight of exactly these blocks that nobody joins.
    pub fn alone<T>(runtime: &Handle, blocks: Range<u64>, fetch: impl Fetch<T>) -> Arc<Flight>
    where
        T: Future<Output = (Landing, Ended)> + Send + 'static,
    {
        take_off(runtime, blocks, true, &fetch, None)
    }

    /// All that are under way.
    pub fn underway(&self) -> Vec<Underway> {
        let table = self.table.lock();
        let of = |(object, flights): (&ObjectKey, &BTreeMap<u64, Arc<Flight>>)| -> Vec<Underway> {
            flights.values().map(|flight| flight.now(object)).collect()
        };
        table.iter().flat_map(of).collect()
    }

    /// Objects that something is fetched of.
    pub fn objects(&self) -> usize {
        self.table.lock().len()
    }
}

fn take_off<T>(
    runtime: &Handle,
    blocks: Range<u64>,
    demand: bool,
    fetch: &impl Fetch<T>,
    leave: Option<Leave>,
) -> Arc<Flight>
where
    T: Future<Output = (Landing, Ended)> + Send + 'static,
{
    let (demanded, urgency) = watch::channel(demand);
    let (progress, seen) = watch::channel(Progress::at(blocks.start));
    let held = Held::default();
    let landing = Landing { urgency, progress, held: Arc::clone(&held) };
    let fetching = fetch(blocks.clone(), landing);
    runtime.spawn(async move {
        let _leave = leave;
        let (landing, ended) = fetching.await;
        landing.end(ended);
    });
    Arc::new(Flight { blocks, began_as_prefetch: !demand, demanded, progress: seen, held })
}

/// Takes the flight off the table, however it ends.
struct Leave {
    table: Arc<Table>,
    object: ObjectKey,
    start: u64,
}

impl Drop for Leave {
    fn drop(&mut self) {
        let mut table = self.table.lock();
        let Some(flights) = table.get_mut(&self.object) else { return };
        flights.remove(&self.start);
        if flights.is_empty() {
            table.remove(&self.object);
        }
    }
}
