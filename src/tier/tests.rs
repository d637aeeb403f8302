//! The tiering as a whole, on a real data directory and real stores.
