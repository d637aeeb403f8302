//! The manifest: what is archived, and the only truth about it.
//!
//! A chain (one partition of one incarnation of a topic) is a sequence of immutable versions, each
//! committed by putting an object under the next number, which succeeds for one writer only. What no
//! version names does not exist. Checkpoints and the head only make reading fast: losing them costs
//! requests, not truth; so do rollups, which tell of many chains at once. Every version learned is copied to local disk, durably, before anybody may
//! act on it.

pub mod aux;
pub mod chain;
mod checkpoint;
mod documents;
mod error;
mod load;
pub mod log;
mod mirror;
mod rollup;
#[cfg(test)]
mod tests;

pub use aux::{Aux, AuxBuilder, AuxError};
pub use chain::{Chain, ChainError, Change, Gap, Item};
pub use error::ManifestError;
pub use load::Loaded;
pub use log::{ChainListing, CommitOutcome, ManifestLog};
pub use rollup::Summary;
