//! Objects that are whole in the cache, as files that are read without the daemon.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use super::{ObjectSource, Reader};

/// An open waits no longer for an object to be checked: the check goes on, and a later open finds it done.
const WAIT_MAX: Duration = Duration::from_millis(30);

impl Reader {
    /// The object's bytes, every block of them checked in this process's life, as a local file that stays as it
    /// is while it is held or mapped. `None`: not whole here, or not checked yet. Never asks the store.
    pub async fn whole(&self, source: &ObjectSource) -> Option<Arc<File>> {
        let (inner, source) = (Arc::clone(&self.inner), source.clone());
        let check = self.inner.blocking(move || {
            let object = inner.cached_object(&source)?;
            inner.cache.whole(&object)
        });
        tokio::time::timeout(WAIT_MAX, check).await.ok()?.ok()?
    }
}
