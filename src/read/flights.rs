//! Fetches under way, so that nobody fetches a block that somebody else is fetching.
//!
//! Invariant: the flights of one object never overlap. A flight is a task of its own: a reader that
//! gives up does not end it. It leaves the table only after its blocks are in the cache, and looks
//! there before it asks the store, so a reader who came just too late causes no second request.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::ReadError;
use crate::types::ObjectKey;

/// The verified bytes of whole blocks, or why there are none.
pub(super) type Landed = Result<Bytes, ReadError>;

/// A fetch of consecutive blocks.
pub(super) struct Flight {
    pub blocks: Range<u64>,
    /// Whether nobody waited for it when it began.
    pub began_as_prefetch: bool,
    demanded: watch::Sender<bool>,
    landed: Shared<BoxFuture<'static, Landed>>,
}

impl Flight {
    /// Waits for it.
    pub async fn landed(&self) -> Landed {
        self.landed.clone().await
    }
}

/// How urgent a flight is; it may become a demand while it waits.
#[derive(Clone)]
pub(super) struct Urgency(watch::Receiver<bool>);

impl Urgency {
    /// Whether a reader waits for it.
    pub fn is_demand(&self) -> bool {
        *self.0.borrow()
    }

    /// Ends when a reader begins to wait for it; never, if none can any more.
    pub async fn demanded(&mut self) {
        if self.0.wait_for(|demand| *demand).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

type Table = Mutex<HashMap<ObjectKey, BTreeMap<u64, Arc<Flight>>>>;

/// All flights.
#[derive(Default)]
pub(super) struct Flights {
    table: Arc<Table>,
}

impl Flights {
    /// Flights that together cover `blocks`: those that are under way, and new ones of at most
    /// `piece_blocks` for the rest. They may reach beyond `blocks` on both sides.
    pub fn claim<F, T>(
        &self,
        runtime: &Handle,
        object: &ObjectKey,
        blocks: Range<u64>,
        (piece_blocks, demand): (u64, bool),
        fetch: F,
    ) -> Vec<Arc<Flight>>
    where
        F: Fn(Range<u64>, Urgency) -> T,
        T: Future<Output = Landed> + Send + 'static,
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
    pub fn alone<F, T>(runtime: &Handle, blocks: Range<u64>, fetch: F) -> Arc<Flight>
    where
        F: Fn(Range<u64>, Urgency) -> T,
        T: Future<Output = Landed> + Send + 'static,
    {
        take_off(runtime, blocks, true, &fetch, None)
    }
}

fn take_off<F, T>(
    runtime: &Handle,
    blocks: Range<u64>,
    demand: bool,
    fetch: &F,
    leave: Option<Leave>,
) -> Arc<Flight>
where
    F: Fn(Range<u64>, Urgency) -> T,
    T: Future<Output = Landed> + Send + 'static,
{
    let (demanded, urgency) = watch::channel(demand);
    let fetching = fetch(blocks.clone(), Urgency(urgency));
    let task = runtime.spawn(async move {
        let _leave = leave;
        fetching.await
    });
    let landed = async move {
        task.await.unwrap_or_else(|e| Err(ReadError::Local(format!("a fetch ended early: {e}"))))
    };
    let landed = landed.boxed().shared();
    Arc::new(Flight { blocks, began_as_prefetch: !demand, demanded, landed })
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
