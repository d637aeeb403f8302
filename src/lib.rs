//! Everlog: a FUSE filesystem that exposes tiered Kafka logs as files.
//!
//! The modules are layers: each knows only those above it in this list (`docs/ARCHITECTURE.md` gives
//! the reading order, `tests/tidy.rs` enforces it).

pub mod types;

pub mod clock;
pub mod failpoint;
pub mod telemetry;

pub mod kafka;

pub mod cache;
pub mod local;
pub mod store;

pub mod catalog;
pub mod manifest;

pub mod read;
pub mod tier;

pub mod vfs;

pub mod fuse;

pub mod cli;
