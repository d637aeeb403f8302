//! The raw limit of a store: reads objects in parallel ranges with the client library that Everlog uses,
//! and throws the bytes away. Prints one line of JSON.

use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use everlog::store::{Store, StoreOptions};
use everlog::types::ObjectKey;
use futures::TryStreamExt as _;
use tokio::sync::Semaphore;

/// Reads objects as fast as the store gives them.
#[derive(Parser)]
#[command(name = "store-read")]
struct Args {
    /// Store URL
    #[arg(long)]
    store: String,
    /// Ranges under way at once, for each object
    #[arg(long, default_value_t = 1)]
    ranges: usize,
    /// Length of a range
    #[arg(long, default_value_t = 8 << 20)]
    range_bytes: u64,
    /// Only the first bytes from this offset on: the time until they come
    #[arg(long)]
    first_byte_at: Option<u64>,
    /// Keys of the objects
    keys: Vec<String>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args = Args::parse();
    let store = Store::open(&args.store.parse()?, StoreOptions::default())?;
    if let Some(at) = args.first_byte_at {
        let key = ObjectKey(args.keys.first().ok_or("which object?")?.clone());
        // A connection is there before, as it is in a mount.
        store.get_range(&key, 0..1).await?;
        let began = Instant::now();
        store.get_range(&key, at..at + 4096).await?;
        println!("{{\"first_byte_ms\":{}}}", began.elapsed().as_secs_f64() * 1e3);
        return Ok(());
    }
    let began = Instant::now();
    let mut objects = Vec::new();
    for key in &args.keys {
        let (store, key) = (store.clone(), ObjectKey(key.clone()));
        let (ranges, range_bytes) = (args.ranges, args.range_bytes);
        objects.push(tokio::spawn(async move { read(store, key, ranges, range_bytes).await }));
    }
    let mut bytes = 0;
    for object in objects {
        bytes += object.await??;
    }
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{{\"bytes\":{bytes},\"seconds\":{seconds},\"mb_per_s\":{}}}",
        bytes as f64 / 1e6 / seconds
    );
    Ok(())
}

async fn read(
    store: Store,
    key: ObjectKey,
    ranges: usize,
    range_bytes: u64,
) -> Result<u64, everlog::store::StoreError> {
    let size = store.head(&key).await?.size;
    let limit = Arc::new(Semaphore::new(ranges));
    let mut parts = Vec::new();
    for start in (0..size).step_by(range_bytes as usize) {
        let (store, key, limit) = (store.clone(), key.clone(), Arc::clone(&limit));
        parts.push(tokio::spawn(async move {
            let _permit = limit.acquire_owned().await;
            let range = start..(start + range_bytes).min(size);
            let mut stream = store.get_stream(&key, Some(range)).await?;
            let mut bytes = 0;
            while let Some(piece) = stream.try_next().await? {
                bytes += piece.len() as u64;
            }
            Ok::<u64, everlog::store::StoreError>(bytes)
        }));
    }
    let mut bytes = 0;
    for part in parts {
        bytes += part.await.map_err(|e| {
            everlog::store::StoreError::new(
                everlog::store::StoreErrorKind::Unavailable,
                everlog::store::Op::Get,
                key.as_str(),
                &e.to_string(),
            )
        })??;
    }
    Ok(bytes)
}
