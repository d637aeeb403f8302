//! The one file that spells the names of objects (`docs/FORMATS.md`, section 2).
//!
//! Nothing else may format or take apart a key: a name that two places spell is a name that one of
//! them will spell differently one day. Parsing is strict: what is not exactly a name that this file
//! would write is `None`, and so does not exist.

use crate::types::{ChainId, ObjectKey, TopicPartition, UploadId};

/// The directory of the chain markers: one listing of it is the namespace.
pub const CHAINS_PREFIX: &str = "chains";

/// The directory of what many chains come to.
pub const ROLLUPS_PREFIX: &str = "rollups";

/// The directory of what belongs to brokers rather than to topics.
pub const BROKERS_PREFIX: &str = "brokers";

/// The name of the hint inside a manifest directory.
pub const HEAD_NAME: &str = "head";

/// The store's identity.
#[must_use]
pub fn identity_key() -> ObjectKey {
    ObjectKey("everlog.json".to_owned())
}

/// The marker that makes a chain visible to a listing. The time is when it was registered.
#[must_use]
pub fn chain_marker_key(id: &ChainId, created_ms: u64) -> ObjectKey {
    ObjectKey(format!("{CHAINS_PREFIX}/{}/{}~{created_ms:013}", id.tp, id.topic_id))
}

/// The chain and its time of registration, from a marker's key.
#[must_use]
pub fn parse_chain_marker(key: &ObjectKey) -> Option<(ChainId, u64)> {
    let name = key.as_str().strip_prefix(CHAINS_PREFIX)?.strip_prefix('/')?;
    let (tp, marker) = name.split_once('/')?;
    let (topic_id, time) = marker.split_once('~')?;
    if time.len() != 13 {
        return None;
    }
    let id = ChainId { tp: tp.parse::<TopicPartition>().ok()?, topic_id: topic_id.parse().ok()? };
    Some((id, digits(time)?))
}

/// The directory of a chain, relative to `topics/` in the store and to the mirror on local disk.
#[must_use]
pub fn chain_dir(id: &ChainId) -> String {
    format!("{}/{}", id.tp, id.topic_id)
}

fn segment_key(id: &ChainId, base_offset: i64, upload: &UploadId, suffix: &str) -> ObjectKey {
    ObjectKey(format!("topics/{}/{base_offset:020}.{upload}.{suffix}", chain_dir(id)))
}

/// A segment's raw bytes.
#[must_use]
pub fn log_key(id: &ChainId, base_offset: i64, upload: &UploadId) -> ObjectKey {
    segment_key(id, base_offset, upload, "log")
}

/// A segment's small files, checksums and hashes.
#[must_use]
pub fn aux_key(id: &ChainId, base_offset: i64, upload: &UploadId) -> ObjectKey {
    segment_key(id, base_offset, upload, "aux")
}

/// What a listing is asked for to see all manifest objects of a chain.
#[must_use]
pub fn manifest_prefix(id: &ChainId) -> String {
    format!("topics/{}/manifest", chain_dir(id))
}

/// An object of a chain's manifest, by its name inside the manifest directory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ManifestName {
    /// One committed version.
    Delta(u64),
    /// The root of the checkpoint of a version.
    Checkpoint(u64),
    /// A page, written with the checkpoint of a version.
    Page(u64, UploadId),
    /// The hint.
    Head,
}

impl ManifestName {
    /// The object's key.
    #[must_use]
    pub fn key(&self, id: &ChainId) -> ObjectKey {
        ObjectKey(format!("{}/{self}", manifest_prefix(id)))
    }

    /// From a key of the chain's manifest.
    #[must_use]
    pub fn from_key(id: &ChainId, key: &ObjectKey) -> Option<Self> {
        key.as_str().strip_prefix(&manifest_prefix(id))?.strip_prefix('/')?.parse().ok()
    }
}

impl std::fmt::Display for ManifestName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Delta(version) => write!(f, "{version:020}"),
            Self::Checkpoint(version) => write!(f, "{version:020}.checkpoint"),
            Self::Page(version, upload) => write!(f, "{version:020}.{upload}.page"),
            Self::Head => f.write_str(HEAD_NAME),
        }
    }
}

/// The text is not a name inside a manifest directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the name of a manifest object")]
pub struct NotAManifestName;

impl std::str::FromStr for ManifestName {
    type Err = NotAManifestName;
    fn from_str(text: &str) -> Result<Self, NotAManifestName> {
        if text == HEAD_NAME {
            return Ok(Self::Head);
        }
        let mut parts = text.split('.');
        let version = parts
            .next()
            .filter(|v| v.len() == 20)
            .and_then(digits)
            .filter(|v| *v > 0)
            .ok_or(NotAManifestName)?;
        match (parts.next(), parts.next(), parts.next()) {
            (None, _, _) => Ok(Self::Delta(version)),
            (Some("checkpoint"), None, _) => Ok(Self::Checkpoint(version)),
            (Some(upload), Some("page"), None) => {
                Ok(Self::Page(version, upload.parse().map_err(|_| NotAManifestName)?))
            }
            _ => Err(NotAManifestName),
        }
    }
}

/// What the chains of one shard come to.
#[must_use]
pub fn rollup_key(shard: u8) -> ObjectKey {
    ObjectKey(format!("{ROLLUPS_PREFIX}/{shard:02}"))
}

/// The shard, from the key of a rollup.
#[must_use]
pub fn parse_rollup(key: &ObjectKey) -> Option<u8> {
    let text = key.as_str().strip_prefix(ROLLUPS_PREFIX)?.strip_prefix('/')?;
    let shard = text.parse().ok()?;
    (rollup_key(shard) == *key).then_some(shard)
}

/// All versions of the checkpoint files of one log dir of a broker.
#[must_use]
pub fn checkpoints_prefix(node_id: i32, log_dir_id: &str) -> String {
    format!("{BROKERS_PREFIX}/{node_id}/{log_dir_id}")
}

/// One version of Kafka's checkpoint files. The time is when it was taken.
#[must_use]
pub fn checkpoints_key(node_id: i32, log_dir_id: &str, taken_ms: u64) -> ObjectKey {
    let dir = checkpoints_prefix(node_id, log_dir_id);
    ObjectKey(format!("{dir}/{taken_ms:013}.checkpoints"))
}

/// Node, log dir and time, from the key of a version of checkpoint files.
#[must_use]
pub fn parse_checkpoints(key: &ObjectKey) -> Option<(i32, String, u64)> {
    let name = key.as_str().strip_prefix(BROKERS_PREFIX)?.strip_prefix('/')?;
    let mut parts = name.split('/');
    let (node, log_dir, file) = (parts.next()?, parts.next()?, parts.next()?);
    let time = file.strip_suffix(".checkpoints").filter(|t| t.len() == 13)?;
    let found = (node.parse().ok()?, log_dir.to_owned(), digits(time)?);
    (parts.next().is_none() && checkpoints_key(found.0, &found.1, found.2) == *key).then_some(found)
}

/// What the probe writes and deletes.
#[must_use]
pub fn probe_key(random: u64) -> ObjectKey {
    ObjectKey(format!("probe/{random:016x}"))
}

fn digits(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(topic: &str) -> ChainId {
        ChainId {
            tp: TopicPartition::new(topic, 3).unwrap(),
            topic_id: "ZtY-_x0123456789abcdeA".parse().unwrap(),
        }
    }

    #[test]
    fn names_are_spelled_as_the_formats_say() {
        let id = chain("a.b-c");
        let upload = UploadId::from_random(0xabc);
        assert_eq!(
            log_key(&id, 42, &upload).as_str(),
            "topics/a.b-c-3/ZtY-_x0123456789abcdeA/00000000000000000042.0000000000000abc.log"
        );
        assert_eq!(
            ManifestName::Page(64, upload).key(&id).as_str(),
            "topics/a.b-c-3/ZtY-_x0123456789abcdeA/manifest/00000000000000000064.0000000000000abc.page"
        );
        assert_eq!(
            chain_marker_key(&id, 1_700_000_000_000).as_str(),
            "chains/a.b-c-3/ZtY-_x0123456789abcdeA~1700000000000"
        );
    }

    #[test]
    fn a_chain_marker_reads_back_what_was_written() {
        let id = chain("__odd.name-9");
        assert_eq!(parse_chain_marker(&chain_marker_key(&id, 7)), Some((id, 7)));
        for bad in ["chains/a-1/x~0000000000007", "other/a", "chains/a-1", "chains/a/b/c~d"] {
            assert_eq!(parse_chain_marker(&ObjectKey(bad.into())), None, "{bad}");
        }
    }

    #[test]
    fn the_name_of_a_rollup_reads_back_and_no_other_does() {
        assert_eq!(rollup_key(7).as_str(), "rollups/07");
        assert_eq!(parse_rollup(&rollup_key(63)), Some(63));
        for bad in ["rollups/7", "rollups/+7", "rollups/07x", "rollups", "other/07", "rollups/256"]
        {
            assert_eq!(parse_rollup(&ObjectKey(bad.to_owned())), None, "{bad}");
        }
    }

    #[test]
    fn versions_of_checkpoints_read_back_what_was_written() {
        let key = checkpoints_key(7, "00000000000000ab", 1_700_000_000_000);
        assert_eq!(key.as_str(), "brokers/7/00000000000000ab/1700000000000.checkpoints");
        assert_eq!(
            parse_checkpoints(&key),
            Some((7, "00000000000000ab".into(), 1_700_000_000_000))
        );
        for bad in
            ["brokers/7/a/1.checkpoints", "brokers/07/a/1700000000000.checkpoints", "brokers/7/a"]
        {
            assert_eq!(parse_checkpoints(&ObjectKey(bad.into())), None, "{bad}");
        }
    }

    #[test]
    fn manifest_names_read_back_and_others_do_not_exist() {
        let id = chain("t");
        let page = ManifestName::Page(128, UploadId::from_random(5));
        for name in [ManifestName::Delta(1), ManifestName::Checkpoint(64), page, ManifestName::Head]
        {
            assert_eq!(name.to_string().parse(), Ok(name.clone()));
            assert_eq!(ManifestName::from_key(&id, &name.key(&id)), Some(name));
        }
        for bad in ["", "1", "00000000000000000000", "00000000000000000001.x", "heads", "../head"] {
            assert_eq!(bad.parse::<ManifestName>(), Err(NotAManifestName), "{bad}");
        }
    }
}
