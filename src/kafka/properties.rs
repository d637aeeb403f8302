//! `meta.properties`: which cluster and which node a log dir belongs to.
//!
//! The file is Java's property text; a store is tied to the cluster id in it, so what cannot be read
//! for certain is an error and never a missing id.

/// What Everlog needs from `meta.properties`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetaProperties {
    /// The Kafka cluster; ZooKeeper brokers that never started have none.
    pub cluster_id: Option<String>,
    /// The broker: `node.id`, in version 0 `broker.id`.
    pub node_id: Option<i32>,
}

/// Why the file is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("meta.properties line {line}: {reason}")]
pub struct PropertiesError {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub reason: String,
}

fn at_line(line: usize, reason: impl Into<String>) -> PropertiesError {
    PropertiesError { line, reason: reason.into() }
}

/// Reads versions 0 and 1; another version is refused. Of a key that stands twice the last counts.
pub fn parse_meta_properties(bytes: &[u8]) -> Result<MetaProperties, PropertiesError> {
    let text = std::str::from_utf8(bytes).map_err(|_| at_line(1, "the file is not text"))?;
    let mut meta = MetaProperties::default();
    let (mut node_id, mut broker_id) = (None, None);
    for (line, logical) in logical_lines(text) {
        let (key, value) = key_and_value(line, &logical)?;
        let number = || {
            let id = value.parse::<i32>();
            id.map_err(|_| at_line(line, format!("{key} is {value:?}, which is no number")))
        };
        match key.as_str() {
            "version" if value != "0" && value != "1" => {
                return Err(at_line(line, format!("version {value:?} is not known, only 0 and 1")));
            }
            "cluster.id" if value.is_empty() => return Err(at_line(line, "cluster.id is empty")),
            "cluster.id" => meta.cluster_id = Some(value),
            "node.id" => node_id = Some(number()?),
            "broker.id" => broker_id = Some(number()?),
            _ => {}
        }
    }
    meta.node_id = node_id.or(broker_id);
    Ok(meta)
}

/// Lines without comments and blanks; one that ends in a lone backslash goes on in the next.
fn logical_lines(text: &str) -> Vec<(usize, String)> {
    let mut out: Vec<(usize, String)> = Vec::new();
    let mut goes_on = false;
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim_start_matches([' ', '\t', '\x0c']);
        if !goes_on && (line.is_empty() || line.starts_with(['#', '!'])) {
            continue;
        }
        let backslashes = line.bytes().rev().take_while(|&b| b == b'\\').count();
        let continued = backslashes % 2 == 1;
        let content = if continued { &line[..line.len() - 1] } else { line };
        match out.last_mut() {
            Some((_, before)) if goes_on => before.push_str(content),
            _ => out.push((number, content.to_owned())),
        }
        goes_on = continued;
    }
    out
}

/// The key ends at the first bare `=`, `:` or blank; one `=` or `:` and blanks around it go.
fn key_and_value(line: usize, logical: &str) -> Result<(String, String), PropertiesError> {
    let blank = |c: char| matches!(c, ' ' | '\t' | '\x0c');
    let mut escaped = false;
    let key_end = logical
        .char_indices()
        .find(|&(_, c)| {
            let bare = !escaped;
            escaped = bare && c == '\\';
            bare && (c == '=' || c == ':' || blank(c))
        })
        .map_or(logical.len(), |(at, _)| at);
    let (key, rest) = logical.split_at(key_end);
    let rest = rest.trim_start_matches(blank);
    let rest = rest.strip_prefix(['=', ':']).unwrap_or(rest).trim_start_matches(blank);
    Ok((unescape(line, key)?, unescape(line, rest)?))
}

fn unescape(line: usize, text: &str) -> Result<String, PropertiesError> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('t') => out.push('\t'),
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('f') => out.push('\x0c'),
            Some('u') => {
                let hex: String = chars.by_ref().take(4).collect();
                let code = (hex.len() == 4).then(|| u32::from_str_radix(&hex, 16).ok()).flatten();
                let c = code.and_then(char::from_u32);
                out.push(c.ok_or_else(|| at_line(line, format!("\\u{hex} is no character")))?);
            }
            Some(other) => out.push(other),
            None => {}
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<MetaProperties, PropertiesError> {
        parse_meta_properties(text.as_bytes())
    }

    fn meta(cluster_id: &str, node_id: i32) -> MetaProperties {
        MetaProperties { cluster_id: Some(cluster_id.to_owned()), node_id: Some(node_id) }
    }

    #[test]
    fn both_versions_say_cluster_and_node() {
        let v1 = "#\n#Sun Nov 22 12:00:00 UTC 2026\nnode.id=7\ndirectory.id=x\nversion=1\ncluster.id=abc\n";
        assert_eq!(parse(v1).unwrap(), meta("abc", 7));
        let v0 = "! old\nversion=0\nbroker.id=3\ncluster.id=abc\n";
        assert_eq!(parse(v0).unwrap(), meta("abc", 3));
        assert_eq!(parse("version=0\nbroker.id=3\n").unwrap().cluster_id, None);
    }

    #[test]
    fn escapes_blanks_and_continued_lines_are_javas() {
        let text = "  cluster.id : a\\:b\\=c\\\n   d\\u0041 \r\nnode.id\t4\nodd\\ key=1\n";
        assert_eq!(parse(text).unwrap(), meta("a:b=cdA ", 4));
        assert_eq!(parse("cluster.id=a\\\\\nnode.id=1").unwrap(), meta("a\\", 1));
    }

    #[test]
    fn what_cannot_be_read_for_certain_is_an_error_with_its_line() {
        let cases = [
            ("version=2\n", 1),
            ("version=1\nnode.id=seven\n", 2),
            ("#c\ncluster.id=\n", 2),
            ("cluster.id=\\u12\n", 1),
        ];
        for (text, line) in cases {
            assert_eq!(parse(text).unwrap_err().line, line, "{text}");
        }
        assert!(parse_meta_properties(b"cluster.id=\xff").is_err());
    }
}
