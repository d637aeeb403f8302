//! Who waits for the store, and for what: the text of `.everlog/inflight.json`.
//!
//! Each request that may have to ask the store is in the table while it lives. The text is made from memory
//! and from `/proc` alone, so it can be read when nothing else can.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::json;

use crate::clock::Clock;
use crate::read::FetchNow;
use crate::types::ObjectKey;

/// Requests that are listed one by one; of more only the number is known.
const LISTED_MAX: usize = 4096;

/// What somebody waits for.
#[derive(Clone, Debug)]
pub struct Wait {
    /// Of the filesystem: `read`, `open`, `lookup` and so on.
    pub operation: &'static str,
    /// A file or directory.
    pub what: String,
    /// Position and length, of a read.
    pub range: Option<(u64, usize)>,
    /// The first archived bytes that it needs: of which object, and where in it.
    pub archived: Option<(ObjectKey, Range<u64>)>,
    /// Kernel id of the thread that asked.
    pub tid: u32,
}

#[derive(Default)]
struct Table {
    last: u64,
    waiting: BTreeMap<u64, (Wait, u64)>,
    more: u64,
}

/// All of them.
pub(super) struct Inflight {
    table: Mutex<Table>,
    clock: Clock,
}

impl Inflight {
    pub fn new(clock: Clock) -> Arc<Self> {
        Arc::new(Self { table: Mutex::default(), clock })
    }

    /// In the table while the ticket lives.
    pub fn enter(self: &Arc<Self>, wait: Wait) -> Ticket {
        let mut table = self.table.lock();
        if table.waiting.len() >= LISTED_MAX {
            table.more += 1;
            return Ticket { inflight: Arc::clone(self), number: None };
        }
        table.last += 1;
        let number = table.last;
        table.waiting.insert(number, (wait, self.clock.now_ms()));
        Ticket { inflight: Arc::clone(self), number: Some(number) }
    }

    /// The file's text, with what is being fetched.
    pub fn text(&self, fetches: &[FetchNow]) -> Bytes {
        let now_ms = self.clock.now_ms();
        let (waiting, more) = {
            let table = self.table.lock();
            (table.waiting.values().cloned().collect::<Vec<_>>(), table.more)
        };
        let waiting: Vec<_> = waiting
            .into_iter()
            .map(|(wait, since_ms)| {
                json!({
                    "operation": wait.operation,
                    "what": wait.what,
                    "offset": wait.range.map(|(offset, _)| offset),
                    "length": wait.range.map(|(_, length)| length),
                    "object": wait.archived.as_ref().map(|(object, _)| object.as_str()),
                    "fetch": wait.archived.as_ref().and_then(|(object, bytes)| {
                        fetches.iter().find(|f| f.is_for(object, bytes)).map(fetch_text)
                    }),
                    "tid": wait.tid,
                    "thread": thread_name(wait.tid),
                    "since_ms": since_ms,
                    "waited_ms": now_ms.saturating_sub(since_ms),
                })
            })
            .collect();
        let ahead: Vec<_> = fetches.iter().filter(|f| !f.is_demand).map(fetch_text).collect();
        let text =
            json!({ "now_ms": now_ms, "waiting": waiting, "more": more, "fetches_ahead": ahead });
        format!("{text:#}\n").into()
    }
}

fn fetch_text(fetch: &FetchNow) -> serde_json::Value {
    json!({
        "object": fetch.object.as_str(),
        "from": fetch.bytes.start,
        "to": fetch.bytes.end,
        "landed_to": fetch.landed_to,
        "waits_for": fetch.waits_for,
        "failures": fetch.failures,
    })
}

/// One request's place in the table.
pub(super) struct Ticket {
    inflight: Arc<Inflight>,
    number: Option<u64>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut table = self.inflight.table.lock();
        match self.number {
            Some(number) => drop(table.waiting.remove(&number)),
            None => table.more -= 1,
        }
    }
}

/// As the kernel has it, up to 15 bytes; `None` when the thread has ended.
pub(super) fn thread_name(tid: u32) -> Option<String> {
    let name = std::fs::read_to_string(format!("/proc/{tid}/comm")).ok()?;
    Some(name.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(what: &str) -> Wait {
        let tid = rustix::thread::gettid().as_raw_nonzero().get() as u32;
        Wait { operation: "read", what: what.to_owned(), range: Some((7, 9)), archived: None, tid }
    }

    fn shown(inflight: &Inflight) -> serde_json::Value {
        serde_json::from_slice(&inflight.text(&[])).unwrap()
    }

    #[test]
    fn a_request_is_shown_while_it_waits_and_no_longer() {
        let inflight = Inflight::new(Clock::system());
        let (first, second) = (inflight.enter(wait("a")), inflight.enter(wait("b")));
        let text = shown(&inflight);
        assert_eq!(text["waiting"][1]["what"], "b");
        assert_eq!(
            (&text["waiting"][0]["offset"], &text["waiting"][0]["length"]),
            (&7.into(), &9.into())
        );
        assert!(text["waiting"][0]["thread"].is_string());
        drop(first);
        assert_eq!(shown(&inflight)["waiting"].as_array().unwrap().len(), 1);
        drop(second);
        assert_eq!(shown(&inflight)["waiting"], json!([]));
    }

    #[test]
    fn more_than_the_table_holds_are_counted() {
        let inflight = Inflight::new(Clock::system());
        let tickets: Vec<_> = (0..LISTED_MAX + 3).map(|_| inflight.enter(wait("x"))).collect();
        let text = shown(&inflight);
        assert_eq!(
            (text["waiting"].as_array().unwrap().len(), &text["more"]),
            (LISTED_MAX, &3.into())
        );
        drop(tickets);
        assert_eq!(
            (&shown(&inflight)["waiting"], &shown(&inflight)["more"]),
            (&json!([]), &0.into())
        );
    }
}
