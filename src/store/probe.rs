//! The probe of a first mount: does the store do what Everlog stands on?
//!
//! Reachable, credentials, bucket, write, read, delete; and that put-if-absent is atomic, also for
//! callers at the same moment: commits are nothing but that. A store which lets two of them win
//! would lose segments silently, so it is refused here.

use bytes::Bytes;
use futures::future::join_all;

use crate::clock::random_u64;
use crate::types::ObjectKey;

use super::client::{PutOutcome, Store};
use super::error::{Op, StoreError, StoreErrorKind};
use super::names;

const ROUNDS: usize = 4;
const RACERS: usize = 8;
/// A round in which replies got lost says nothing; so often it is repeated.
const REPEATS_MAX: usize = 3;
/// Bodies of the race: long enough that a store which checks first and writes then is caught.
const RACE_BYTES: usize = 64 * 1024;
const PROBE_BYTES_MAX: u64 = 1024 * 1024;

/// Tries the store out on keys below `probe/`, which it removes again.
pub async fn probe(store: &Store) -> Result<(), StoreError> {
    let key = names::probe_key(random_u64());
    let result = probe_basics(store, &key).await;
    remove(store, &key).await;
    result?;
    if store.single_writer() {
        return Ok(());
    }
    for _ in 0..ROUNDS {
        race(store).await?;
    }
    Ok(())
}

async fn probe_basics(store: &Store, key: &ObjectKey) -> Result<(), StoreError> {
    store.put_overwrite(key, Bytes::from_static(b"first")).await?;
    expect(store, key, b"first").await?;
    store.delete(key).await?;
    match store.get(key, PROBE_BYTES_MAX).await {
        Err(e) if e.kind == StoreErrorKind::NotFound => {}
        Err(e) => return Err(e),
        Ok(_) => return Err(broken(key, "an object can be read after it was deleted")),
    }
    let first = store.put_if_absent(key, Bytes::from_static(b"second")).await;
    let second = match first {
        Err(e) if e.kind == StoreErrorKind::Unsupported => return Err(not_atomic(key, &e.message)),
        Err(e) => return Err(e),
        Ok(_) => store.put_if_absent(key, Bytes::from_static(b"third")).await?,
    };
    if second == PutOutcome::Created {
        return Err(not_atomic(key, "it creates a name twice"));
    }
    expect(store, key, b"second").await?;
    if store.single_writer() {
        return learn_conditional(store, key).await;
    }
    Ok(())
}

/// With a single writer a store may lack conditional puts; then every one asks first.
async fn learn_conditional(store: &Store, key: &ObjectKey) -> Result<(), StoreError> {
    store.conditional_puts_work(true);
    let outcome = store.put_if_absent(key, Bytes::from_static(b"fourth")).await?;
    store.conditional_puts_work(outcome == PutOutcome::Exists);
    Ok(())
}

async fn expect(store: &Store, key: &ObjectKey, wanted: &[u8]) -> Result<(), StoreError> {
    let found = store.get(key, PROBE_BYTES_MAX).await?;
    if found == wanted {
        return Ok(());
    }
    Err(broken(key, "a read returned other bytes than were written"))
}

/// Many create one name at the same moment: exactly one may win, and its bytes must stay.
async fn race(store: &Store) -> Result<(), StoreError> {
    for _ in 0..REPEATS_MAX {
        let key = names::probe_key(random_u64());
        let decided = race_once(store, &key).await;
        remove(store, &key).await;
        if decided? {
            return Ok(());
        }
    }
    let why = "replies to the probe got lost; try again when the store is calm";
    Err(StoreError::new(StoreErrorKind::Unavailable, Op::Probe, store.url().to_string(), why))
}

async fn race_once(store: &Store, key: &ObjectKey) -> Result<bool, StoreError> {
    let body = |racer: usize| {
        let mut body = format!("racer {racer} of {key}").into_bytes();
        body.resize(RACE_BYTES, b' ');
        Bytes::from(body)
    };
    let outcomes = join_all((0..RACERS).map(|i| store.put_if_absent(key, body(i)))).await;
    let winners: Vec<usize> = (0..RACERS)
        .filter(|i| outcomes.get(*i).is_some_and(|o| matches!(o, Ok(PutOutcome::Created))))
        .collect();
    match winners.as_slice() {
        [] => match outcomes.into_iter().find_map(Result::err) {
            Some(error) if !error.is_transient() => Err(error),
            _ => Ok(false),
        },
        [winner] => match store.get(key, PROBE_BYTES_MAX).await {
            Ok(found) if found == body(*winner) => Ok(true),
            // A racer whose reply was lost may have been the first.
            Ok(_) if outcomes.iter().any(Result::is_err) => Ok(false),
            Ok(_) => Err(not_atomic(key, "the bytes of a loser replaced the winner's")),
            Err(e) => Err(e),
        },
        several => Err(not_atomic(key, &format!("{} of {RACERS} won", several.len()))),
    }
}

fn broken(key: &ObjectKey, why: &str) -> StoreError {
    StoreError::new(StoreErrorKind::Unsupported, Op::Probe, key.as_str(), why)
}

fn not_atomic(key: &ObjectKey, why: &str) -> StoreError {
    let message = format!(
        "the store's put-if-absent is not atomic ({why}); use another store, or --single-writer \
         if no second mount or broker writes to this one"
    );
    StoreError::new(StoreErrorKind::Unsupported, Op::Probe, key.as_str(), &message)
}

async fn remove(store: &Store, key: &ObjectKey) {
    if let Err(error) = store.delete(key).await {
        tracing::debug!(%error, "a probe's object stays behind");
    }
}
