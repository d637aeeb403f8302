//! Errors of the store: each says what failed, on which key, and what the caller can do about it.
//!
//! The one place where the client library's errors are told apart. Its texts may span lines and may
//! quote whole answers of a server, so the message is rebuilt from the status, the code and the
//! deepest cause: one line, no secrets.

use std::error::Error as _;
use std::fmt;

use object_store::Error as Backend;

/// What was asked of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Reading the configuration.
    Open,
    /// The probe as a whole.
    Probe,
    /// Read an object or a range of it.
    Get,
    /// Write an object or a part of it.
    Put,
    /// Size and time of an object.
    Head,
    /// Names below a prefix.
    List,
    /// Remove an object.
    Delete,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Probe => "probe",
            Self::Get => "get",
            Self::Put => "put",
            Self::Head => "head",
            Self::List => "list",
            Self::Delete => "delete",
        })
    }
}

/// What the caller can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoreErrorKind {
    /// The store is there, the object is not.
    NotFound,
    /// Somebody wrote this name before.
    AlreadyExists,
    /// Credentials are missing, wrong or not sufficient: the operator must act.
    Denied,
    /// The bucket or directory does not exist: the operator must act.
    NoBucket,
    /// Network, overload, timeout, full disk: try again later. The outcome of a write is unknown.
    Unavailable,
    /// Wrong configuration or a request that the store will never accept.
    Invalid,
    /// The object has fewer bytes than were asked for.
    Short,
    /// The object is larger than the caller allows.
    TooLarge,
    /// The store cannot do this at all.
    Unsupported,
}

/// A failed operation, in one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{op} {key}: {message}")]
pub struct StoreError {
    /// What the caller can do.
    pub kind: StoreErrorKind,
    /// What was asked.
    pub op: Op,
    /// The object, the prefix or the store.
    pub key: String,
    /// The cause, one line.
    pub message: String,
}

impl StoreError {
    /// With the message made one line of bounded length.
    pub fn new(kind: StoreErrorKind, op: Op, key: impl Into<String>, message: &str) -> Self {
        Self { kind, op, key: key.into(), message: one_line(message) }
    }

    /// Whether the same request may succeed later without anybody's doing.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        self.kind == StoreErrorKind::Unavailable
    }

    /// Whether it is an answer (no such object, exists already), not a failure of the store.
    #[must_use]
    pub fn is_answer(&self) -> bool {
        matches!(self.kind, StoreErrorKind::NotFound | StoreErrorKind::AlreadyExists)
    }

    pub(super) fn from_backend(op: Op, key: &str, error: &Backend) -> Self {
        let facts = Facts::of(error);
        let kind = kind_of(op, error, &facts);
        Self::new(kind, op, key, &facts.message(kind))
    }
}

const LINE_CHARS_MAX: usize = 300;

fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len().min(LINE_CHARS_MAX));
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| !w.is_empty())
    {
        if line.chars().count() + word.chars().count() > LINE_CHARS_MAX {
            line.push('…');
            break;
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    line
}

/// What can be learned from a chain of causes.
struct Facts {
    status: Option<u16>,
    /// The server's own code, such as `NoSuchKey`.
    code: String,
    /// The server's own sentence.
    sentence: String,
    io: Option<std::io::ErrorKind>,
    /// The text of the deepest cause.
    cause: String,
    /// All texts, to look for words in; never shown.
    all: String,
}

impl Facts {
    fn of(error: &Backend) -> Self {
        let mut all = error.to_string();
        let mut io = None;
        let mut deepest = error.to_string();
        let mut next = error.source();
        while let Some(cause) = next {
            if let Some(found) = cause.downcast_ref::<std::io::Error>() {
                io = Some(found.kind());
            }
            deepest = cause.to_string();
            all.push('\n');
            all.push_str(&deepest);
            next = cause.source();
        }
        let status = all
            .split("status code: ")
            .nth(1)
            .and_then(|rest| rest.get(..3))
            .and_then(|digits| digits.parse().ok());
        let code = element(&all, "Code").unwrap_or_default();
        let sentence = element(&all, "Message").unwrap_or_default();
        Self { status, code, sentence, io, cause: deepest, all }
    }

    fn says(&self, words: &[&str]) -> bool {
        words.iter().any(|word| self.code == *word || self.all.contains(word))
    }

    fn message(&self, kind: StoreErrorKind) -> String {
        let remedy = match kind {
            StoreErrorKind::Denied if self.no_credentials() => {
                return "no credentials: set the cloud's environment variables \
                        (for S3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
                    .to_owned();
            }
            StoreErrorKind::Denied => {
                "; check the credentials (AWS_…, GOOGLE_… or AZURE_… in the environment) and their rights on the bucket"
            }
            StoreErrorKind::NoBucket => "; create the bucket or correct the store URL",
            StoreErrorKind::Invalid if self.says(REGION) => "; set the region (AWS_REGION)",
            _ => "",
        };
        let cause = match (self.status, self.code.is_empty()) {
            (_, false) => format!("{}: {}", self.code, self.sentence),
            (Some(404), true) => "not found".to_owned(),
            (Some(status), true) => format!("the store answered with HTTP status {status}"),
            (None, true) if self.says(&["client error (Connect)"]) => {
                format!("the store cannot be reached: {}", without_query(&self.cause))
            }
            (None, true) => without_query(&self.cause),
        };
        format!("{}{remedy}", cause.trim_end_matches([' ', '.', ':']))
    }

    /// The credentials came from nowhere, so the client asked a cloud machine's metadata service.
    fn no_credentials(&self) -> bool {
        self.says(NO_CREDENTIALS)
    }
}

const NO_CREDENTIALS: &[&str] = &[
    "169.254.169.254",
    "169.254.170.2",
    "metadata.google.internal",
    "Missing AccessKeyId",
    "Missing SecretAccessKey",
];
const REGION: &[&str] = &["AuthorizationHeaderMalformed", "PermanentRedirect", "without LOCATION"];
const NO_BUCKET: &[&str] =
    &["NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist"];
const DENIED: &[&str] = &[
    "AccessDenied",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "AuthenticationFailed",
    "AccountProblem",
];
/// Codes with which a store says that it has no such object.
const ABSENT: &[&str] = &["NoSuchKey", "NotFound", "BlobNotFound", "ResourceNotFound"];
/// A conditional write met another one in flight: S3 says 409 and has decided nothing.
const UNDECIDED: &[&str] = &["ConditionalRequestConflict", "OperationAborted"];

fn kind_of(op: Op, error: &Backend, facts: &Facts) -> StoreErrorKind {
    use StoreErrorKind as Kind;
    if facts.says(NO_BUCKET) {
        return Kind::NoBucket;
    }
    if facts.says(UNDECIDED) {
        return Kind::Unavailable;
    }
    match error {
        Backend::NotFound { .. } => kind_of_absent(op, facts),
        Backend::AlreadyExists { .. } | Backend::Precondition { .. } => Kind::AlreadyExists,
        Backend::PermissionDenied { .. } | Backend::Unauthenticated { .. } => Kind::Denied,
        Backend::NotImplemented { .. } | Backend::NotSupported { .. } => Kind::Unsupported,
        Backend::InvalidPath { .. }
        | Backend::UnknownConfigurationKey { .. }
        | Backend::NotModified { .. } => Kind::Invalid,
        Backend::JoinError { .. } => Kind::Unavailable,
        // `Generic`, and whatever a newer library adds.
        _ => kind_of_generic(facts),
    }
}

/// HTTP status 404 is said of more than objects (by versitygw also of an unknown access key), and to
/// believe that an object is absent is to believe that a chain ends there.
fn kind_of_absent(op: Op, facts: &Facts) -> StoreErrorKind {
    use StoreErrorKind as Kind;
    if facts.code.contains("User") || facts.says(DENIED) {
        return Kind::Denied;
    }
    if !facts.code.is_empty() && !ABSENT.contains(&facts.code.as_str()) {
        return Kind::Invalid;
    }
    match op {
        Op::Get | Op::Head | Op::Delete => Kind::NotFound,
        Op::Put | Op::List | Op::Open | Op::Probe => Kind::NoBucket,
    }
}

fn kind_of_generic(facts: &Facts) -> StoreErrorKind {
    use StoreErrorKind as Kind;
    if facts.says(DENIED) || facts.no_credentials() {
        return Kind::Denied;
    }
    if facts.says(REGION) {
        return Kind::Invalid;
    }
    if facts.says(&["Out of range", "Wanted range starting at"]) {
        return Kind::Short;
    }
    match (facts.status, facts.io) {
        (Some(401 | 403), _) => Kind::Denied,
        (Some(416), _) => Kind::Short,
        (Some(501), _) => Kind::Unsupported,
        (Some(408 | 425 | 429 | 500..), _) => Kind::Unavailable,
        (Some(400..), _) => Kind::Invalid,
        (_, Some(std::io::ErrorKind::PermissionDenied)) => Kind::Denied,
        (_, Some(std::io::ErrorKind::InvalidFilename)) => Kind::Invalid,
        _ => Kind::Unavailable,
    }
}

/// The text of the first XML element of this name.
fn element(text: &str, name: &str) -> Option<String> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (inner, _) = rest.split_once(&format!("</{name}>"))?;
    let entities = [
        ("&#34;", "\""),
        ("&quot;", "\""),
        ("&#39;", "'"),
        ("&apos;", "'"),
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&amp;", "&"),
    ];
    Some(entities.iter().fold(inner.to_owned(), |text, (from, to)| text.replace(from, to)))
}

/// Query strings of URLs may hold signatures.
fn without_query(text: &str) -> String {
    text.split(' ')
        .map(|word| match (word.contains("://"), word.find('?')) {
            (true, Some(at)) => &word[..at],
            _ => word,
        })
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Text(&'static str);

    fn generic(text: &'static str) -> StoreError {
        let error = Backend::Generic { store: "S3", source: Box::new(Text(text)) };
        StoreError::from_backend(Op::Get, "k", &error)
    }

    #[test]
    fn servers_answers_are_told_apart() {
        for (text, kind) in [
            ("x status code: 503 Service Unavailable: ", StoreErrorKind::Unavailable),
            ("x status code: 416 Range Not Satisfiable: ", StoreErrorKind::Short),
            ("x status code: 501 NI: <Code>NotImplemented</Code>", StoreErrorKind::Unsupported),
            ("x status code: 400 B: <Code>ExpiredToken</Code>", StoreErrorKind::Denied),
            ("x status code: 404 N: <Code>NoSuchBucket</Code>", StoreErrorKind::NoBucket),
            ("error sending request", StoreErrorKind::Unavailable),
            ("PUT http://169.254.169.254/latest timed out", StoreErrorKind::Denied),
        ] {
            assert_eq!(generic(text).kind, kind, "{text}");
        }
    }

    #[test]
    fn status_404_is_an_absent_object_only_when_it_says_so() {
        for (op, text, kind) in [
            (Op::Get, "status code: 404 N: <Code>NoSuchKey</Code>", StoreErrorKind::NotFound),
            (Op::Head, "status code: 404 Not Found: ", StoreErrorKind::NotFound),
            (Op::Get, "status code: 404: <Code>XAdminUserNotFound</Code>", StoreErrorKind::Denied),
            (Op::Get, "status code: 404: <Code>NoSuchWebsite</Code>", StoreErrorKind::Invalid),
            (Op::Put, "status code: 404: <Code>NoSuchKey</Code>", StoreErrorKind::NoBucket),
        ] {
            let error = Backend::NotFound { path: "k".into(), source: Box::new(Text(text)) };
            assert_eq!(StoreError::from_backend(op, "k", &error).kind, kind, "{text}");
        }
    }

    #[test]
    fn an_undecided_conflict_is_not_taken_for_an_existing_object() {
        let source = Box::new(Text("status code: 409: <Code>ConditionalRequestConflict</Code>"));
        let error = Backend::AlreadyExists { path: "k".into(), source };
        let kind = StoreError::from_backend(Op::Put, "k", &error).kind;
        assert_eq!(kind, StoreErrorKind::Unavailable);
    }

    #[test]
    fn a_message_is_one_line_and_holds_no_signature() {
        let shown = generic("cannot fetch https://h/x?sig=SECRET now\nand\n\nmore").to_string();
        assert_eq!(shown, "get k: cannot fetch https://h/x now and more");
        let long = StoreError::new(StoreErrorKind::Invalid, Op::Put, "k", &"word ".repeat(900));
        assert!(long.to_string().chars().count() < 320);
    }
}
