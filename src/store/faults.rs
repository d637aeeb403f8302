//! A seam for tests: a hook that is asked before every request and may make it fail.
//!
//! Real stores lose replies, hang and go away; code above is tested against that here, with the real
//! client, rather than with a second implementation of a store.

use std::sync::Arc;

use crate::types::ObjectKey;

use super::error::{Op, StoreError, StoreErrorKind};
use crate::failpoint;

/// What happens to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing unusual.
    Pass,
    /// It fails and was not carried out.
    Fail(StoreErrorKind),
    /// It is carried out, but the caller is told that it failed.
    LoseReply(StoreErrorKind),
    /// It never ends: the deadline decides.
    Hang,
}

/// Asked once for each request, with the key or the listed prefix.
pub type FaultHook = Arc<dyn Fn(Op, &ObjectKey) -> Fault + Send + Sync>;

/// A fail point before (or after) a request about `key`.
pub fn fail_point(name: &'static str, op: Op, key: &ObjectKey) -> Result<(), StoreError> {
    if failpoint::store_fails(name) {
        let kind = StoreErrorKind::Unavailable;
        return Err(StoreError::new(kind, op, key.as_str(), "failed by a test"));
    }
    Ok(())
}
