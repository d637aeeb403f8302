//! What KRaft's own log (`__cluster_metadata-0` and its `.checkpoint` snapshots) says of topics: which were
//! made and which were removed, by id. An id is never used twice, so a removal stands for good.
//!
//! All other records are skipped unread. Whatever cannot be read is an error, never "nothing was said": from
//! what is missing here others conclude that a topic still exists.

use super::batch::{BatchHeader, HEADER_BYTES_MAX, crc_start};
use crate::types::TopicId;

/// Kafka's own limit is 8 MiB; a longer batch is none.
const BATCH_BYTES_MAX: u32 = 16 << 20;
/// `TopicRecord`: a name, then the id.
const TOPIC: u32 = 2;
/// `RemoveTopicRecord`: the id.
const REMOVE_TOPIC: u32 = 9;

/// What a record says of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TopicNews {
    /// It was made, or is there in a snapshot.
    Made(TopicId),
    /// It was removed.
    Removed(TopicId),
}

/// Reads the whole batches at the beginning of `bytes` and tells `each` their news. Returns how many bytes
/// they are; less than one batch is left behind it. Fails with the reason.
pub fn read_topics(bytes: &[u8], each: &mut impl FnMut(TopicNews)) -> Result<usize, String> {
    let mut at = 0;
    while let Some(rest) = bytes.get(at..).filter(|r| r.len() >= HEADER_BYTES_MAX) {
        let header = BatchHeader::parse(rest)?;
        if header.magic != 2 || header.size_bytes > BATCH_BYTES_MAX {
            return Err(format!("no batch of a metadata log at byte {at}"));
        }
        let Some(batch) = rest.get(..header.size_bytes as usize) else { break };
        let covered = batch.get(crc_start(2)..).unwrap_or_default();
        if crc32c::crc32c(covered) != header.stored_crc {
            return Err(format!("the checksum of the batch at byte {at} is wrong"));
        }
        if !header.is_control() {
            if header.attributes & 7 != 0 {
                return Err(format!("the batch at byte {at} is compressed"));
            }
            read_batch(batch, header.records.unwrap_or(0), each)
                .ok_or_else(|| format!("a record of the batch at byte {at} ends too early"))?;
        }
        at += batch.len();
    }
    Ok(at)
}

fn read_batch(batch: &[u8], records: u32, each: &mut impl FnMut(TopicNews)) -> Option<()> {
    let mut rest = Bytes(batch.get(HEADER_BYTES_MAX..)?);
    for _ in 0..records {
        let length = usize::try_from(rest.signed()?).ok()?;
        let mut record = Bytes(rest.take(length)?);
        // Attributes, difference of the timestamp, difference of the offset.
        record.take(1)?;
        record.signed()?;
        record.signed()?;
        if let Ok(key) = usize::try_from(record.signed()?) {
            record.take(key)?;
        }
        let Ok(length) = usize::try_from(record.signed()?) else { continue };
        if let Some(news) = read_value(Bytes(record.take(length)?))? {
            each(news);
        }
    }
    Some(())
}

/// `None`: it ends too early. `Some(None)`: of something else.
fn read_value(mut value: Bytes<'_>) -> Option<Option<TopicNews>> {
    let _frame_version = value.unsigned()?;
    let kind = value.unsigned()?;
    let _version = value.unsigned()?;
    Some(match kind {
        TOPIC => {
            // A compact string: its length and one more.
            let name = usize::try_from(value.unsigned()?.checked_sub(1)?).ok()?;
            value.take(name)?;
            Some(TopicNews::Made(value.topic_id()?))
        }
        REMOVE_TOPIC => Some(TopicNews::Removed(value.topic_id()?)),
        _ => None,
    })
}

struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    /// Seven bits a byte, the lowest first; at most ten bytes.
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = *self.take(1)?.first()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn unsigned(&mut self) -> Option<u32> {
        u32::try_from(self.varint()?).ok()
    }

    /// Zigzag: the sign is the lowest bit.
    fn signed(&mut self) -> Option<i64> {
        let zigzag = self.varint()?;
        let magnitude = i64::try_from(zigzag >> 1).ok()?;
        Some(if zigzag & 1 == 0 { magnitude } else { -magnitude - 1 })
    }

    fn topic_id(&mut self) -> Option<TopicId> {
        Some(TopicId::from_bytes(self.take(16)?.try_into().ok()?))
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::{REMOVE_TOPIC, TOPIC};

    fn signed(value: i64, out: &mut Vec<u8>) {
        let mut zigzag = ((value << 1) ^ (value >> 63)) as u64;
        while zigzag >= 0x80 {
            out.push(zigzag as u8 | 0x80);
            zigzag >>= 7;
        }
        out.push(zigzag as u8);
    }

    /// The value of a record that makes a topic.
    pub(crate) fn made(name: &str, id: [u8; 16]) -> Vec<u8> {
        let mut value = vec![1, TOPIC as u8, 0, name.len() as u8 + 1];
        value.extend(name.as_bytes());
        value.extend(id);
        value.push(0);
        value
    }

    /// The value of a record that removes a topic.
    pub(crate) fn removed(id: [u8; 16]) -> Vec<u8> {
        [&[1, REMOVE_TOPIC as u8, 0][..], &id, &[0]].concat()
    }

    /// A batch of records without keys.
    pub(crate) fn batch(base_offset: i64, values: &[Vec<u8>]) -> Vec<u8> {
        let mut records = Vec::new();
        for (n, value) in values.iter().enumerate() {
            let mut record = vec![0];
            signed(0, &mut record);
            signed(n as i64, &mut record);
            signed(-1, &mut record);
            signed(value.len() as i64, &mut record);
            record.extend(value);
            signed(0, &mut record);
            signed(record.len() as i64, &mut records);
            records.extend(record);
        }
        let mut covered = vec![0, 0];
        covered.extend((values.len() as i32 - 1).to_be_bytes());
        covered.extend([0; 16]);
        covered.extend([0xff; 14]);
        covered.extend((values.len() as i32).to_be_bytes());
        covered.extend(records);
        let mut batch = base_offset.to_be_bytes().to_vec();
        batch.extend((covered.len() as i32 + 9).to_be_bytes());
        batch.extend(1i32.to_be_bytes());
        batch.push(2);
        batch.extend(crc32c::crc32c(&covered).to_be_bytes());
        batch.extend(covered);
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{batch, made, removed};
    use super::*;

    fn read(bytes: &[u8]) -> Result<(usize, Vec<TopicNews>), String> {
        let mut news = Vec::new();
        let read = read_topics(bytes, &mut |n| news.push(n))?;
        Ok((read, news))
    }

    #[test]
    fn topics_are_made_and_removed_and_other_records_are_passed_over() {
        let (a, b) = ([1; 16], [0xff; 16]);
        let other = vec![1, 3, 0, 9, 9, 9];
        let mut bytes = batch(0, &[made("orders", a), other]);
        bytes.extend(batch(2, &[removed(b)]));
        let whole = bytes.len();
        bytes.extend(&batch(3, &[removed(a)])[..70]);
        let (read, news) = read(&bytes).unwrap();
        assert_eq!(read, whole, "half a batch is left for later");
        let [a, b] = [a, b].map(TopicId::from_bytes);
        assert_eq!(news, [TopicNews::Made(a), TopicNews::Removed(b)]);
    }

    #[test]
    fn what_cannot_be_read_is_an_error_and_not_nothing() {
        let good = batch(0, &[removed([7; 16])]);
        for at in [16, 22, good.len() - 5] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(read(&bad).is_err(), "byte {at}");
        }
        // Good by its checksum, but the record ends before the id does.
        let short = batch(0, &[vec![1, 9, 0, 1, 2]]);
        assert!(read(&short).is_err());
    }

    #[test]
    fn an_id_is_written_as_kafka_writes_it() {
        let id: [u8; 16] = std::array::from_fn(|n| (n * 17) as u8);
        assert_eq!(TopicId::from_bytes(id).as_str(), "ABEiM0RVZneImaq7zN3u_w");
        assert_eq!(TopicId::from_bytes([0; 16]), TopicId::none());
    }
}
