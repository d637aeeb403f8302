//! Uploading a local file with bounded memory.
//!
//! Names of segment objects belong to one upload alone, so plain puts will do: nothing can be
//! overwritten, and a repeated request does no harm. A part is at most 8 MiB and at most three are
//! in flight; a failed or abandoned upload is aborted, so that no invisible parts are left to pay for.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt as _};
use object_store::{MultipartUpload, ObjectStoreExt as _, PutPayload};

use crate::types::ObjectKey;

use super::client::{Store, in_directory, map};
use super::directory::{Directory, not_written};
use super::error::{Op, StoreError, StoreErrorKind};
use super::rate::RateLimiter;
use super::staged::{Naming, Staged};
use super::stream::read_at;

/// Files up to this length are sent in one request.
const SINGLE_PUT_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Shorter files go into a directory store through the page cache: for them preparing anything else costs more.
const PAST_CACHE_BYTES_MIN: u64 = 256 * 1024;
const PART_BYTES: u64 = 8 * 1024 * 1024;
const PARTS_IN_FLIGHT_MAX: usize = 3;

impl Store {
    /// Writes these bytes of `file` as an object. A file that ends before is an error.
    /// `key` must belong to this upload alone.
    pub async fn put_file(
        &self,
        key: &ObjectKey,
        file: &Arc<File>,
        range: Range<u64>,
        rate: &RateLimiter,
    ) -> Result<(), StoreError> {
        let length = range.end.saturating_sub(range.start);
        if let Some(directory) = self.directory().filter(|_| length >= PAST_CACHE_BYTES_MIN) {
            return self.copy_file(directory, key, file, range, rate).await;
        }
        if length <= SINGLE_PUT_BYTES_MAX {
            rate.acquire(length).await;
            let bytes = part(key, file, range.start, length).await?;
            return self.put_overwrite(key, bytes).await;
        }
        let path = self.path(Op::Put, key.as_str())?;
        let upload = self
            .run(Op::Put, key, 0, async {
                self.backend().put_multipart(&path).await.map_err(map(Op::Put, key))
            })
            .await?;
        let mut upload = AbortOnDrop(Some(upload));
        let result = self.send_parts(key, file, range, rate, &mut upload).await;
        if let (Err(_), Some(mut failed)) = (&result, upload.0.take()) {
            let aborted = self.run(Op::Delete, key, 0, async {
                failed.abort().await.map_err(map(Op::Delete, key))
            });
            if let Err(error) = aborted.await {
                tracing::debug!(%error, "a failed upload could not be aborted");
            }
        }
        result
    }

    /// Into a store that is a directory.
    async fn copy_file(
        &self,
        directory: &Arc<Directory>,
        key: &ObjectKey,
        file: &Arc<File>,
        range: Range<u64>,
        rate: &RateLimiter,
    ) -> Result<(), StoreError> {
        let (below, name) = (Arc::clone(directory), key.as_str().to_owned());
        let begin = move || {
            let anchor = below.anchor(&name)?;
            Staged::begin(anchor, &name).map_err(|e| not_written(&name, &e))
        };
        let mut staged = self.run(Op::Put, key, 0, in_directory(key, begin)).await?;
        let mut offset = range.start;
        while offset < range.end {
            let size = PART_BYTES.min(range.end - offset);
            rate.acquire(size).await;
            let from = Arc::clone(file);
            let copy = move || {
                let copied = staged.append(&from, offset..offset + size);
                copied.map_err(|e| not_written(staged.key(), &e))?;
                Ok(staged)
            };
            staged = self.run(Op::Put, key, size, in_directory(key, copy)).await?;
            self.counters().bytes_up.add(size);
            offset += size;
        }
        let length = range.end.saturating_sub(range.start);
        let below = Arc::clone(directory);
        let publish = move || below.publish(staged, Naming::Overwrite);
        self.run(Op::Put, key, length, in_directory(key, publish)).await
    }

    async fn send_parts(
        &self,
        key: &ObjectKey,
        file: &Arc<File>,
        range: Range<u64>,
        rate: &RateLimiter,
        upload: &mut AbortOnDrop,
    ) -> Result<(), StoreError> {
        let Some(sink) = upload.0.as_mut() else { return Ok(()) };
        let mut in_flight = FuturesUnordered::new();
        let mut offset = range.start;
        while offset < range.end {
            if in_flight.len() >= PARTS_IN_FLIGHT_MAX {
                in_flight.next().await.transpose()?;
            }
            let size = PART_BYTES.min(range.end - offset);
            rate.acquire(size).await;
            let bytes = part(key, file, offset, size).await?;
            let sending = sink.put_part(PutPayload::from(bytes));
            in_flight.push(async move {
                self.run(Op::Put, key, size, async { sending.await.map_err(map(Op::Put, key)) })
                    .await?;
                self.counters().bytes_up.add(size);
                Ok::<(), StoreError>(())
            });
            offset += size;
        }
        while let Some(sent) = in_flight.next().await {
            sent?;
        }
        drop(in_flight);
        let length = range.end.saturating_sub(range.start);
        self.run(Op::Put, key, length, async {
            sink.complete().await.map_err(map(Op::Put, key)).map(drop)
        })
        .await?;
        upload.0 = None;
        Ok(())
    }
}

async fn part(
    key: &ObjectKey,
    file: &Arc<File>,
    offset: u64,
    size: u64,
) -> Result<Bytes, StoreError> {
    read_at(file, offset, size as usize).await.map_err(|e| {
        let why = format!("reading bytes {offset} to {} of the local file: {e}", offset + size);
        let kind = match e.kind() {
            std::io::ErrorKind::UnexpectedEof => StoreErrorKind::Short,
            _ => StoreErrorKind::Invalid,
        };
        StoreError::new(kind, Op::Put, key.as_str(), &why)
    })
}

/// Aborts the upload in the background when the caller was cancelled.
struct AbortOnDrop(Option<Box<dyn MultipartUpload>>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        if let (Some(mut upload), Ok(runtime)) =
            (self.0.take(), tokio::runtime::Handle::try_current())
        {
            runtime.spawn(async move {
                if let Err(error) = upload.abort().await {
                    tracing::debug!(%error, "an abandoned upload could not be aborted");
                }
            });
        }
    }
}
