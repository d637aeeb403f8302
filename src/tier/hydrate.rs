//! Files that were written to while cold become whole local files again, in the background.
//!
//! They answer correctly all along; but a file of two halves can be neither scanned nor evicted.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::runtime::Handle;

use super::{Fetch, Tier};
use crate::catalog::{Content, LogFile};
use crate::failpoint;
use crate::local::Stub;

/// How soon a stop ends the waiting for bytes.
const STOP_POLL: Duration = Duration::from_millis(200);
/// Fetched at once.
const PIECE_BYTES: u64 = 1 << 20;

impl Tier {
    /// Files that wait for it and are no longer written to: closed segments.
    pub(super) fn to_hydrate(&self) -> Vec<Arc<LogFile>> {
        if self.fetch.is_none() || self.config.stock {
            return Vec::new();
        }
        let dirs = self.catalog.dirs();
        let closed = dirs.iter().flat_map(|d| d.segments()).filter(|s| s.next_base.is_some());
        let overlaid = |log: &Arc<LogFile>| matches!(log.content(), Content::Overlaid(..));
        closed.map(|s| s.log).filter(overlaid).collect()
    }

    /// Makes one file whole. Blocking. False: it changed meanwhile, try again later.
    pub(super) fn hydrate_one(&self, log: &Arc<LogFile>, runtime: &Handle) -> io::Result<bool> {
        let Some(fetch) = self.fetch.clone() else { return Ok(false) };
        let done = log.hydrate(|file, stub| self.fill(file, stub, &fetch, runtime))?;
        if done {
            self.sizes.forget(log);
            log.place().0.mark_changed();
            tracing::info!(file = %log.label(), "whole again on local disk");
        }
        Ok(done)
    }

    async fn unless_stopping(
        &self,
        mut wanted: BoxFuture<'static, io::Result<Bytes>>,
    ) -> io::Result<Bytes> {
        loop {
            match tokio::time::timeout(STOP_POLL, &mut wanted).await {
                Ok(bytes) => return bytes,
                Err(_) if self.is_stopping() => return Err(io::ErrorKind::Interrupted.into()),
                Err(_) => {}
            }
        }
    }

    fn fill(&self, file: &File, stub: &Stub, fetch: &Fetch, runtime: &Handle) -> io::Result<()> {
        let stub = Arc::new(stub.clone());
        for extent in &stub.extents {
            let mut at = extent.file_start;
            while at < extent.file_end {
                if self.is_stopping() {
                    return Err(io::Error::from(io::ErrorKind::Interrupted));
                }
                let len = PIECE_BYTES.min(extent.file_end - at) as usize;
                let object_at = extent.object_start + (at - extent.file_start);
                let wanted = fetch(stub.clone(), extent.clone(), object_at, len);
                let bytes = runtime.block_on(self.unless_stopping(wanted))?;
                if bytes.len() != len {
                    let got = bytes.len();
                    return Err(io::Error::other(format!("{got} of {len} archived bytes came")));
                }
                failpoint::disk("hydrate.fill")?;
                file.write_all_at(&bytes, at)?;
                at += len as u64;
            }
        }
        Ok(())
    }
}
