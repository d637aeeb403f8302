//! Descriptors whose reads and writes go through the kernel's page cache.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::LogFile;

/// While it lives, the file is open through the page cache.
#[derive(Debug)]
pub struct PagedOpen(Arc<LogFile>);

impl PagedOpen {
    /// One more such descriptor.
    #[must_use]
    pub fn new(log: &Arc<LogFile>) -> Self {
        log.paged_opens.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(log))
    }
}

impl Drop for PagedOpen {
    fn drop(&mut self) {
        self.0.paged_opens.fetch_sub(1, Ordering::AcqRel);
    }
}

impl LogFile {
    /// Whether a read by somebody who has it open may hold pages that others want.
    #[must_use]
    pub fn is_paged(&self) -> bool {
        self.paged_opens.load(Ordering::Acquire) > 0
    }
}
