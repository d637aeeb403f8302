//! The data directory on local disk: its layout, its durable writes, stubs and the spool.
//!
//! Knows files and nothing of the bucket or of policies. A write here is either whole and durable
//! after its return or did not happen (`durable`).

pub mod datadir;
pub mod durable;
pub mod spool;
pub mod stub;

pub use datadir::{DataDir, DataDirError};
pub use stub::{Extent, Stub};
