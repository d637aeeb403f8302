//! The only place that names `fuser`: decodes a request, calls one function of `vfs`, replies.
//!
//! Local operations run on the thread that received them; there are several, so one that waits for
//! the disk does not hold up the others. What may wait for the object store or for a sync runs elsewhere
//! and replies when it is done, so the queue's threads are always free for the broker.

mod adapter;
mod convert;
mod passthrough;
mod session;
mod turns;

pub use session::{FuseConfig, MountError, Session};
