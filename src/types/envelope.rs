//! The one frame of every JSON document that Everlog writes: kind, version, checksum, body.
//!
//! `{"everlog":"<kind>","version":N,"crc32c":"<8 hex>","body":{...}}` and a newline. The CRC-32C is
//! over the body's text exactly as it stands, so a flipped byte is found before a field is believed.
//! Readers refuse a version they do not know: guessing at another format is how data gets lost.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// Why a document cannot be believed.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// Not the frame, or not the body that the kind promises.
    #[error("not a readable '{kind}' document: {why}")]
    Malformed {
        /// The kind that was expected.
        kind: &'static str,
        /// What the parser said.
        why: String,
    },
    /// The frame is whole, the body is not what was written.
    #[error("'{kind}' document is damaged: CRC-32C is {found}, its header says {stored}")]
    Damaged {
        /// The kind that was expected.
        kind: &'static str,
        /// In the header.
        stored: String,
        /// Of the body as it stands.
        found: String,
    },
    /// Written by a newer Everlog.
    #[error(
        "'{kind}' document has version {found}, this Everlog reads up to {known}: use a newer one"
    )]
    UnknownVersion {
        /// The kind that was expected.
        kind: &'static str,
        /// In the header.
        found: u32,
        /// The newest that is understood.
        known: u32,
    },
}

#[derive(Serialize, Deserialize)]
struct Frame<'a> {
    everlog: &'a str,
    version: u32,
    crc32c: &'a str,
    #[serde(borrow)]
    body: &'a RawValue,
}

fn malformed(kind: &'static str, why: impl ToString) -> EnvelopeError {
    EnvelopeError::Malformed { kind, why: why.to_string() }
}

fn checksum(body: &str) -> String {
    format!("{:08x}", crc32c::crc32c(body.as_bytes()))
}

/// The document's bytes. Fails only if `body` cannot be JSON (a map with keys that are no strings).
pub fn encode<T: Serialize>(
    kind: &'static str,
    version: u32,
    body: &T,
) -> Result<Vec<u8>, EnvelopeError> {
    let raw = serde_json::value::to_raw_value(body).map_err(|e| malformed(kind, e))?;
    let crc32c = checksum(raw.get());
    let frame = Frame { everlog: kind, version, crc32c: &crc32c, body: &raw };
    let mut out = serde_json::to_vec(&frame).map_err(|e| malformed(kind, e))?;
    out.push(b'\n');
    Ok(out)
}

/// The body of a document of `kind`, at most of version `known`.
pub fn decode<T: DeserializeOwned>(
    kind: &'static str,
    known: u32,
    bytes: &[u8],
) -> Result<T, EnvelopeError> {
    let frame: Frame<'_> = serde_json::from_slice(bytes).map_err(|e| malformed(kind, e))?;
    if frame.everlog != kind {
        return Err(malformed(kind, format!("it says it is a {:?}", frame.everlog)));
    }
    let found = checksum(frame.body.get());
    if found != frame.crc32c {
        return Err(EnvelopeError::Damaged { kind, stored: frame.crc32c.to_owned(), found });
    }
    if frame.version == 0 || frame.version > known {
        return Err(EnvelopeError::UnknownVersion { kind, found: frame.version, known });
    }
    serde_json::from_str(frame.body.get()).map_err(|e| malformed(kind, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    struct Body {
        name: String,
        size: u64,
    }

    fn sample() -> Body {
        Body { name: "00000000000000000000.log".into(), size: 7 }
    }

    #[test]
    fn a_document_reads_back_what_was_written() {
        let bytes = encode("stub", 1, &sample()).unwrap();
        assert_eq!(decode::<Body>("stub", 1, &bytes).unwrap(), sample());
    }

    #[test]
    fn every_single_flipped_bit_is_found() {
        let bytes = encode("stub", 1, &sample()).unwrap();
        for at in 0..bytes.len() - 1 {
            for bit in 0..8 {
                let mut bad = bytes.clone();
                bad[at] ^= 1 << bit;
                if let Ok(body) = decode::<Body>("stub", 1, &bad) {
                    assert_eq!(body, sample(), "byte {at} bit {bit} was believed");
                }
            }
        }
    }

    #[test]
    fn a_newer_version_is_refused_and_says_so() {
        let bytes = encode("stub", 2, &sample()).unwrap();
        let text = decode::<Body>("stub", 1, &bytes).unwrap_err().to_string();
        assert!(text.contains("use a newer one"), "{text}");
    }
}
