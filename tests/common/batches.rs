//! Kafka record batches of format 2, uncompressed, as a broker would append them; and index files as it would leave them.

/// One batch to encode.
pub struct Batch<'a> {
    /// Offset of its first record.
    pub base_offset: i64,
    /// Partition leader epoch.
    pub epoch: i32,
    /// Timestamp of all its records, milliseconds.
    pub timestamp_ms: i64,
    /// Values, one record each, without keys.
    pub values: &'a [Vec<u8>],
}

fn varint(out: &mut Vec<u8>, value: i64) {
    let mut bits = ((value << 1) ^ (value >> 63)) as u64;
    while bits >= 0x80 {
        out.push(bits as u8 | 0x80);
        bits >>= 7;
    }
    out.push(bits as u8);
}

fn record(delta: i64, value: &[u8]) -> Vec<u8> {
    let mut body = vec![0]; // attributes
    varint(&mut body, 0); // timestamp delta
    varint(&mut body, delta);
    varint(&mut body, -1); // no key
    varint(&mut body, value.len() as i64);
    body.extend_from_slice(value);
    varint(&mut body, 0); // no headers
    let mut out = Vec::new();
    varint(&mut out, body.len() as i64);
    out.extend(body);
    out
}

impl Batch<'_> {
    /// The batch's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let last_delta = self.values.len() as i32 - 1;
        let mut checked = Vec::new();
        checked.extend(0i16.to_be_bytes()); // attributes
        checked.extend(last_delta.to_be_bytes());
        checked.extend(self.timestamp_ms.to_be_bytes());
        checked.extend(self.timestamp_ms.to_be_bytes());
        checked.extend((-1i64).to_be_bytes()); // producer id
        checked.extend((-1i16).to_be_bytes()); // producer epoch
        checked.extend((-1i32).to_be_bytes()); // base sequence
        checked.extend((self.values.len() as i32).to_be_bytes());
        for (delta, value) in self.values.iter().enumerate() {
            checked.extend(record(delta as i64, value));
        }
        let mut out = Vec::new();
        out.extend(self.base_offset.to_be_bytes());
        out.extend((checked.len() as i32 + 9).to_be_bytes());
        out.extend(self.epoch.to_be_bytes());
        out.push(2);
        out.extend(crc32c::crc32c(&checked).to_be_bytes());
        out.extend(checked);
        out
    }

    /// Offset after its last record.
    pub fn end_offset(&self) -> i64 {
        self.base_offset + self.values.len() as i64
    }
}

/// Bytes that look random and follow from `seed` alone.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x5851_F42D_4C95_7F2D;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend(state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes());
    }
    out.truncate(len);
    out
}
