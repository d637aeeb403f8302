//! The tiering as a whole, on a real data directory and real stores.

mod archiving;
mod discarding;
mod failing;
mod releasing;
mod running;
mod world;
