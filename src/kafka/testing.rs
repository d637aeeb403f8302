//! Batches for tests: made by hand from the format's description, so that `batch` and `scan` are not
//! judged by their own code.

/// A batch of format 2 to be made.
#[derive(Clone, Debug)]
pub(crate) struct TestBatch {
    pub(crate) base_offset: i64,
    /// Offsets that it spans, at least 1.
    pub(crate) span: i32,
    pub(crate) records: i32,
    pub(crate) epoch: i32,
    pub(crate) max_timestamp_ms: i64,
    /// What stands for the records.
    pub(crate) body: Vec<u8>,
}

impl TestBatch {
    /// `span` records at `base_offset`, in epoch 0, with a body of `body_bytes`.
    pub(crate) fn new(base_offset: i64, span: i32, body_bytes: usize) -> Self {
        let body =
            (0..body_bytes).map(|at| (at as i64 * 31).wrapping_add(base_offset) as u8).collect();
        let max_timestamp_ms = base_offset.saturating_add(1_700_000_000_000);
        Self { base_offset, span, records: span, epoch: 0, max_timestamp_ms, body }
    }

    /// The batch's bytes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut covered = Vec::with_capacity(40 + self.body.len());
        covered.extend(0i16.to_be_bytes());
        covered.extend((self.span - 1).to_be_bytes());
        covered.extend(self.max_timestamp_ms.to_be_bytes());
        covered.extend(self.max_timestamp_ms.to_be_bytes());
        covered.extend((-1i64).to_be_bytes());
        covered.extend((-1i16).to_be_bytes());
        covered.extend((-1i32).to_be_bytes());
        covered.extend(self.records.to_be_bytes());
        covered.extend(&self.body);
        let mut out = Vec::with_capacity(21 + covered.len());
        out.extend(self.base_offset.to_be_bytes());
        out.extend((covered.len() as i32 + 9).to_be_bytes());
        out.extend(self.epoch.to_be_bytes());
        out.push(2);
        out.extend(crc32c::crc32c(&covered).to_be_bytes());
        out.extend(covered);
        out
    }
}

/// A message of format 0 (without `timestamp_ms`) or 1, with a null key, not compressed.
pub(crate) fn legacy_message(offset: i64, timestamp_ms: Option<i64>, value: &[u8]) -> Vec<u8> {
    legacy_with(0, offset, timestamp_ms, value)
}

/// The same with these attributes: with a codec in them it is a wrapper, and `offset` its last.
pub(crate) fn legacy_with(
    attributes: u8,
    offset: i64,
    timestamp_ms: Option<i64>,
    value: &[u8],
) -> Vec<u8> {
    let mut covered = vec![u8::from(timestamp_ms.is_some()), attributes];
    covered.extend(timestamp_ms.iter().flat_map(|t| t.to_be_bytes()));
    covered.extend((-1i32).to_be_bytes());
    covered.extend((value.len() as i32).to_be_bytes());
    covered.extend(value);
    let mut out = offset.to_be_bytes().to_vec();
    out.extend((covered.len() as i32 + 4).to_be_bytes());
    out.extend(crc32fast::hash(&covered).to_be_bytes());
    out.extend(covered);
    out
}

/// The bytes of batches one after the other.
pub(crate) fn log_of(batches: &[TestBatch]) -> Vec<u8> {
    batches.iter().flat_map(TestBatch::bytes).collect()
}
