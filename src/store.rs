//! The object store: everything that crosses the network to the bucket passes through here.
//!
//! One thin, concrete client over the `object_store` crate, so that every request is counted, has a
//! deadline, can be made to fail in a test, and ends in an error which says what the caller can do.
//! It knows keys and bytes, not what they mean: names are spelled in `names`, and only `identity`
//! looks into a document. It promises that a read returns exactly the bytes asked for or an error,
//! and that "not found" is said only by a store that is really there.

mod aligned;
mod anchor;
mod backend;
mod client;
#[doc(hidden)]
pub mod conformance;
mod counters;
mod directory;
mod error;
mod faults;
mod identity;
pub mod names;
mod probe;
mod rate;
mod read_back;
mod staged;
mod stream;
#[cfg(test)]
mod tests;
mod upload;
mod url;

pub use client::{ObjectInfo, PutOutcome, Store, StoreOptions};
pub use counters::{CounterSnapshot, StoreCounters};
pub use error::{Op, StoreError, StoreErrorKind};
#[doc(hidden)]
pub use faults::{Fault, FaultHook, fail_point};
pub use identity::{IdentityError, StoreIdentity, ensure_identity, read_identity};
pub use probe::probe;
pub use rate::RateLimiter;
pub use stream::forget_pages;
pub use url::StoreUrl;
