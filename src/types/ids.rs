//! Identities: of a partition, of a topic's incarnation, of one upload, of an object, of bytes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not the identity it should be. The message names the text.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{what} {text:?} is not valid: {why}")]
pub struct IdError {
    what: &'static str,
    text: String,
    why: &'static str,
}

fn err(what: &'static str, text: &str, why: &'static str) -> IdError {
    IdError { what, text: text.to_owned(), why }
}

/// A topic name and a partition number; its text is Kafka's directory name `<topic>-<partition>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    topic: String,
    partition: u32,
}

impl TopicPartition {
    /// Fails when the topic is not a legal Kafka topic name (1-249 of `[a-zA-Z0-9._-]`, not `.` or `..`).
    pub fn new(topic: &str, partition: u32) -> Result<Self, IdError> {
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if topic.is_empty() || topic.len() > 249 || topic == "." || topic == ".." {
            return Err(err("topic", topic, "a name has 1 to 249 characters and is not . or .."));
        }
        if !topic.bytes().all(legal) {
            return Err(err("topic", topic, "only letters, digits, '.', '_' and '-' are allowed"));
        }
        if partition > i32::MAX as u32 {
            return Err(err("partition of topic", topic, "partition numbers fit 31 bits"));
        }
        Ok(Self { topic: topic.to_owned(), partition })
    }

    /// The topic's name.
    #[must_use]
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// The partition's number.
    #[must_use]
    pub fn partition(&self) -> u32 {
        self.partition
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

impl FromStr for TopicPartition {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        const WHAT: &str = "topic-partition";
        let (topic, number) =
            text.rsplit_once('-').ok_or_else(|| err(WHAT, text, "no '-' before the partition"))?;
        let canonical = number == "0" || !number.starts_with('0');
        if number.is_empty() || !canonical || !number.bytes().all(|b| b.is_ascii_digit()) {
            return Err(err(WHAT, text, "the part after the last '-' is not a partition number"));
        }
        let partition =
            number.parse().map_err(|_| err(WHAT, text, "the partition number is too large"))?;
        Self::new(topic, partition)
    }
}

/// A topic's id as Kafka writes it: 22 characters of URL-safe base64 without padding.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicId(String);

impl TopicId {
    /// Of a topic whose directory has no `partition.metadata` (Kafka before 2.8): all zeros.
    #[must_use]
    pub fn none() -> Self {
        Self("A".repeat(22))
    }

    /// From its 16 bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        const DIGITS: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        // 128 bits are 21 digits of six, and two that stand at the top of the last digit.
        let bits = u128::from_be_bytes(bytes);
        let digit = |n: u32| match n {
            21 => (bits << 4) & 63,
            n => (bits >> (122 - 6 * n)) & 63,
        };
        Self((0..22).map(|n| char::from(DIGITS[digit(n) as usize])).collect())
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TopicId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
        if text.len() != 22 || !text.bytes().all(legal) {
            return Err(err("topic id", text, "22 characters of URL-safe base64 are expected"));
        }
        Ok(Self(text.to_owned()))
    }
}

/// 16 lower-case hex digits that no other upload has: makes an object name nobody else's.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UploadId(String);

impl UploadId {
    /// From 64 random bits, which the caller draws.
    #[must_use]
    pub fn from_random(bits: u64) -> Self {
        Self(format!("{bits:016x}"))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for UploadId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let legal = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() != 16 || !text.bytes().all(legal) {
            return Err(err("upload id", text, "16 lower-case hex digits are expected"));
        }
        Ok(Self(text.to_owned()))
    }
}

/// One partition of one incarnation of a topic: what an archive's chain of segments belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChainId {
    /// Topic and partition.
    pub tp: TopicPartition,
    /// The incarnation: a topic deleted and created again has another.
    pub topic_id: TopicId,
}

impl fmt::Display for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.tp, self.topic_id)
    }
}

/// An object's name within a store, `/`-separated. Spelled only by `store::names`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectKey(pub String);

impl ObjectKey {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A SHA-256; its text is 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sha256(pub [u8; 32]);

impl Sha256 {
    /// Of bytes at hand.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = Sha256Hasher::default();
        hasher.update(bytes);
        hasher.finish()
    }
}

/// Takes bytes in pieces. On a processor without instructions for it a SHA-256 is most of what archiving costs, so the
/// implementation is the one with the widest registers.
#[derive(Clone)]
pub struct Sha256Hasher(ring::digest::Context);

impl Default for Sha256Hasher {
    fn default() -> Self {
        Self(ring::digest::Context::new(&ring::digest::SHA256))
    }
}

impl Sha256Hasher {
    /// The next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Of all of them.
    #[must_use]
    pub fn finish(self) -> Sha256 {
        let mut out = [0; 32];
        // Both are 32 bytes long.
        out.iter_mut().zip(self.0.finish().as_ref()).for_each(|(to, from)| *to = *from);
        Sha256(out)
    }
}

impl fmt::Debug for Sha256Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sha256Hasher")
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Sha256 {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        const WHAT: &str = "SHA-256";
        let mut out = [0u8; 32];
        if text.len() != 64 || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(err(WHAT, text, "64 lower-case hex digits are expected"));
        }
        for (byte, pair) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let digit = |c: u8| if c <= b'9' { c - b'0' } else { c - b'a' + 10 };
            *byte = digit(pair[0]) << 4 | digit(pair[1]);
        }
        Ok(Self(out))
    }
}

macro_rules! serde_as_text {
    ($($t:ty),*) => {$(
        impl Serialize for $t {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $t {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
serde_as_text!(TopicPartition, TopicId, UploadId, Sha256);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_partition_reads_back_what_it_prints() {
        for text in ["a-0", "my.topic-with-dashes-12", "__consumer_offsets-49"] {
            assert_eq!(text.parse::<TopicPartition>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn names_that_kafka_would_refuse_are_refused() {
        for text in ["nodash", "a-", "a-01", "a-+1", "-1", "a/b-0", "..-0", "a-99999999999"] {
            assert!(text.parse::<TopicPartition>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_hash_of_pieces_is_that_of_the_whole_and_the_one_that_everybody_computes() {
        use sha2::Digest as _;
        let bytes: Vec<u8> = (0..10_000u32).map(|i| (i * 31 % 251) as u8).collect();
        for length in [0, 1, 55, 56, 63, 64, 65, 127, 128, 1000, 10_000] {
            let expected: [u8; 32] = sha2::Sha256::digest(&bytes[..length]).into();
            assert_eq!(Sha256::of(&bytes[..length]).0, expected, "{length}");
            for piece in [1, 63, 64, 65, 4096] {
                let mut hasher = Sha256Hasher::default();
                bytes[..length].chunks(piece).for_each(|p| hasher.update(p));
                assert_eq!(hasher.finish().0, expected, "{length} in pieces of {piece}");
            }
        }
    }

    #[test]
    fn a_sha256_reads_back_what_it_prints() {
        let sha = Sha256::of(b"everlog");
        assert_eq!(sha.to_string().parse::<Sha256>().unwrap(), sha);
        assert!("abc".parse::<Sha256>().is_err());
    }
}
