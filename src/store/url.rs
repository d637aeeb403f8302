//! Where a store is, as typed on the command line, checked before anything is contacted.
//!
//! A URL never holds credentials: they come from each cloud's environment variables, so a URL can be
//! printed, logged and stored. What cannot be right is refused in one line that says how to mend it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::{Op, StoreError, StoreErrorKind};

/// A checked store URL. Its text is canonical: equal stores print equally.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StoreUrl(pub(super) Location);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Location {
    Directory(PathBuf),
    Bucket { cloud: Cloud, bucket: String, prefix: String },
    Memory(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Cloud {
    S3,
    Gcs,
    Azure,
}

impl Cloud {
    fn scheme(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Gcs => "gs",
            Self::Azure => "az",
        }
    }
}

fn refuse(text: &str, why: &str) -> StoreError {
    // What stands before an '@' may be a secret.
    let shown = match (text.find("://"), text.rfind('@')) {
        (Some(start), Some(at)) if at > start => format!("{}…{}", &text[..start + 3], &text[at..]),
        _ => text.to_owned(),
    };
    let key = format!("store URL {shown:?}");
    StoreError::new(StoreErrorKind::Invalid, Op::Open, key, why)
}

impl StoreUrl {
    /// Whether the store is a directory on this machine.
    #[must_use]
    pub fn local_directory(&self) -> Option<&std::path::Path> {
        match &self.0 {
            Location::Directory(dir) => Some(dir),
            Location::Bucket { .. } | Location::Memory(_) => None,
        }
    }
}

impl FromStr for StoreUrl {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        if text.chars().any(char::is_control) {
            return Err(refuse(&text.escape_debug().to_string(), "it has control characters"));
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            let why = if text.starts_with('/') {
                format!("it has no scheme; for a local directory write file://{text}")
            } else {
                "it has no scheme; write file:///dir, s3://bucket/prefix, gs:// or az://".to_owned()
            };
            return Err(refuse(text, &why));
        };
        if text.contains(['?', '#']) {
            return Err(refuse(text, "'?' and '#' have no meaning in a store URL; remove them"));
        }
        let location = match scheme {
            "file" => Location::Directory(directory(text, rest)?),
            "s3" => bucket(text, Cloud::S3, rest)?,
            "gs" => bucket(text, Cloud::Gcs, rest)?,
            "az" => bucket(text, Cloud::Azure, rest)?,
            "memory" => Location::Memory(rest.to_owned()),
            _ => {
                let why = format!("unknown scheme {scheme:?}; use file, s3, gs, az or memory");
                return Err(refuse(text, &why));
            }
        };
        Ok(Self(location))
    }
}

fn directory(text: &str, rest: &str) -> Result<PathBuf, StoreError> {
    if !rest.starts_with('/') {
        return Err(refuse(text, "the directory must be absolute: file:///absolute/dir"));
    }
    if rest.split('/').any(|part| part == ".." || part == ".") {
        return Err(refuse(text, "write the directory without '.' and '..'"));
    }
    let path = ::url::Url::parse(text)
        .ok()
        .and_then(|u| u.to_file_path().ok())
        .filter(|p| p.to_str().is_some_and(|s| !s.chars().any(char::is_control)))
        .ok_or_else(|| refuse(text, "it does not name a directory that can be opened"))?;
    // Without empty parts, so that one directory has one text.
    Ok(path.components().collect())
}

fn bucket(text: &str, cloud: Cloud, rest: &str) -> Result<Location, StoreError> {
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.contains('@') {
        let why = "credentials do not belong in the URL; set the cloud's environment variables";
        return Err(refuse(text, why));
    }
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if bucket.is_empty() || bucket.len() > 222 || !bucket.bytes().all(legal) {
        let why = format!("{bucket:?} is not a bucket name; write {}://bucket", cloud.scheme());
        return Err(refuse(text, &why));
    }
    let prefix = prefix.trim_matches('/');
    if !prefix.is_empty() && prefix.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(refuse(text, "the prefix has an empty part, '.' or '..'"));
    }
    Ok(Location::Bucket { cloud, bucket: bucket.to_owned(), prefix: prefix.to_owned() })
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Location::Directory(dir) => match ::url::Url::from_file_path(dir) {
                Ok(url) => f.write_str(url.as_str()),
                Err(()) => write!(f, "file://{}", dir.display()),
            },
            Location::Bucket { cloud, bucket, prefix } if prefix.is_empty() => {
                write!(f, "{}://{bucket}", cloud.scheme())
            }
            Location::Bucket { cloud, bucket, prefix } => {
                write!(f, "{}://{bucket}/{prefix}", cloud.scheme())
            }
            Location::Memory(name) => write!(f, "memory://{name}"),
        }
    }
}

impl Serialize for StoreUrl {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for StoreUrl {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_reads_back_what_it_prints() {
        for (typed, canonical) in [
            ("file:///var/archive/", "file:///var/archive"),
            ("file:///a b", "file:///a%20b"),
            ("s3://bucket", "s3://bucket"),
            ("s3://bucket/", "s3://bucket"),
            ("s3://bucket/some/prefix/", "s3://bucket/some/prefix"),
            ("gs://b/p", "gs://b/p"),
            ("az://c", "az://c"),
            ("memory://x", "memory://x"),
        ] {
            let url: StoreUrl = typed.parse().unwrap();
            assert_eq!(url.to_string(), canonical);
            assert_eq!(canonical.parse::<StoreUrl>().unwrap(), url);
        }
    }

    #[test]
    fn what_cannot_be_a_store_is_refused_in_one_line_with_a_remedy() {
        for (typed, remedy) in [
            ("/var/archive", "file:///var/archive"),
            ("archive", "no scheme"),
            ("file://archive", "absolute"),
            ("file:///a/../b", "without"),
            ("file:///a?b", "remove them"),
            ("ftp://x", "unknown scheme"),
            ("s3://", "not a bucket name"),
            ("s3://a b", "not a bucket name"),
            ("s3://bucket/a//b", "empty part"),
            ("s3://bucket/\n", "control characters"),
        ] {
            let text = typed.parse::<StoreUrl>().unwrap_err().to_string();
            assert!(text.contains(remedy), "{typed}: {text}");
            assert!(!text.contains('\n'), "{text}");
        }
    }

    #[test]
    fn a_secret_in_a_url_is_refused_and_not_repeated() {
        let text = "s3://KEY:SECRET@bucket".parse::<StoreUrl>().unwrap_err().to_string();
        assert!(text.contains("environment") && !text.contains("SECRET"), "{text}");
    }
}
