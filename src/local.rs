//! The data directory on local disk: its layout, its durable writes, stubs and the spool.
//!
//! Knows files and nothing of the bucket or of policies. A write here is either whole and durable
//! after its return or did not happen (`durable`).

pub mod acl;
pub mod datadir;
pub mod deleted;
pub mod durable;
pub mod put_back;
pub mod room;
pub mod spool;
pub mod stub;
pub mod threads;
pub mod versions;
pub mod xattrs;

pub use datadir::{DataDir, DataDirError};
pub use room::{Room, Space, is_disk_full, is_of_whole_disk};
pub use stub::{Extent, Stub};
pub use xattrs::Xattrs;
