//! The tiering as a whole, on a real data directory and real stores.

mod archiving;
mod counting;
mod discarding;
mod failing;
mod old_formats;
mod releasing;
mod replicas;
mod running;
mod world;
