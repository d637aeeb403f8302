//! Reading an object piece by piece, for bodies that should not be in memory as a whole.
//!
//! The stream ends after exactly the bytes asked for; an object that ends before is `Short`, and a
//! store that stalls fails the piece it stalled on.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::stream::{BoxStream, StreamExt as _, TryStreamExt as _};
use object_store::{GetOptions, GetRange, GetResultPayload};

use crate::types::ObjectKey;

use super::client::{Store, map};
use super::directory::blocking;
use super::error::{Op, StoreError, StoreErrorKind};

/// Pieces of a local file.
const PIECE_BYTES: u64 = 1024 * 1024;

/// Pieces of an object, in order.
pub type ByteStream = BoxStream<'static, Result<Bytes, StoreError>>;

impl Store {
    /// The bytes of `range` (or all) as a stream whose pieces add up to exactly that many.
    pub async fn get_stream(
        &self,
        key: &ObjectKey,
        range: Option<Range<u64>>,
    ) -> Result<ByteStream, StoreError> {
        if range.as_ref().is_some_and(|r| r.start >= r.end) {
            return Ok(futures::stream::empty().boxed());
        }
        let path = self.path(Op::Get, key.as_str())?;
        let bounded = range.clone().map(GetRange::Bounded);
        let result = self
            .run(Op::Get, key, 0, async {
                let options = GetOptions::new().with_range(bounded);
                self.backend().get_opts(&path, options).await.map_err(map(Op::Get, key))
            })
            .await?;
        let wanted = range.unwrap_or(0..result.meta.size);
        self.check_range(key, &result, &wanted)?;
        let for_errors = key.clone();
        let pieces = match result.payload {
            GetResultPayload::File(file, _) => {
                file_pieces(Arc::new(file), wanted.clone(), key.clone())
            }
            GetResultPayload::Stream(stream) => {
                stream.map_err(move |e| map(Op::Get, &for_errors)(e)).boxed()
            }
        };
        Ok(self.exactly(pieces, key.clone(), wanted.end - wanted.start))
    }

    /// Adds a deadline for each piece and the check that nothing is missing at the end.
    pub(super) fn exactly(&self, pieces: ByteStream, key: ObjectKey, length: u64) -> ByteStream {
        struct State {
            store: Store,
            pieces: ByteStream,
            key: ObjectKey,
            left: u64,
        }
        let state = State { store: self.clone(), pieces, key, left: length };
        futures::stream::try_unfold(state, |mut state| async move {
            let deadline = state.store.deadline(0);
            let fail = |kind, why: &str| {
                let error = StoreError::new(kind, Op::Get, state.key.as_str(), why);
                state.store.counters().failed(&error);
                error
            };
            let next = match tokio::time::timeout(deadline, state.pieces.try_next()).await {
                Err(_) => return Err(fail(StoreErrorKind::Unavailable, "the store stalls")),
                Ok(Err(error)) => {
                    state.store.counters().failed(&error);
                    return Err(error);
                }
                Ok(Ok(next)) => next,
            };
            match next {
                Some(piece) if piece.len() as u64 <= state.left => {
                    state.left -= piece.len() as u64;
                    state.store.counters().bytes_down.add(piece.len() as u64);
                    Ok(Some((piece, state)))
                }
                Some(_) => Err(fail(StoreErrorKind::Unavailable, "more bytes than asked for")),
                None if state.left == 0 => Ok(None),
                None => {
                    let why = format!("the answer ended {} bytes early", state.left);
                    Err(fail(StoreErrorKind::Short, &why))
                }
            }
        })
        .boxed()
    }
}

fn file_pieces(file: Arc<File>, range: Range<u64>, key: ObjectKey) -> ByteStream {
    let start = (file, range, key);
    futures::stream::try_unfold(start, move |(file, range, key)| async move {
        let length = PIECE_BYTES.min(range.end - range.start);
        if length == 0 {
            return Ok(None);
        }
        let piece = read_at(&file, range.start, length as usize).await.map_err(|e| {
            StoreError::new(StoreErrorKind::Unavailable, Op::Get, key.as_str(), &e.to_string())
        })?;
        let next = range.start + length;
        Ok(Some((piece, (file, next..range.end, key))))
    })
    .boxed()
}

/// Asks the kernel to drop the clean pages of a local file. Advice only: where it is not taken, reading is
/// right all the same.
pub fn forget_pages(file: &File, range: Range<u64>) {
    let length = std::num::NonZeroU64::new(range.end.saturating_sub(range.start));
    let advice = rustix::fs::Advice::DontNeed;
    if let Err(error) = rustix::fs::fadvise(file, range.start, length, advice) {
        tracing::debug!(%error, "pages stay in the cache");
    }
}

/// Exactly `length` bytes of a file, off the executor's threads.
pub(super) async fn read_at(
    file: &Arc<File>,
    offset: u64,
    length: usize,
) -> std::io::Result<Bytes> {
    let file = Arc::clone(file);
    blocking(move || {
        let mut buffer = BytesMut::zeroed(length);
        file.read_exact_at(&mut buffer, offset)?;
        Ok(buffer.freeze())
    })
    .await
}
