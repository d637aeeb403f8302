//! The status: as `.everlog/status.json` of a mount, and as `everlog status` prints it.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use super::CliError;
use super::args::StatusArgs;
use super::units::show_bytes;
use crate::cache::BlockCache;
use crate::clock::Clock;
use crate::read::Reader;
use crate::store::Store;
use crate::tier::Tier;
use crate::vfs::{EVERLOG_NAME, StatusText};

/// Everything the status is made of.
pub struct StatusSource {
    /// `broker` or `archive`.
    pub mode: &'static str,
    /// The store.
    pub store: Store,
    /// The block cache.
    pub cache: Arc<BlockCache>,
    /// Cold reads.
    pub reader: Reader,
    /// The tiering of a broker mount.
    pub tier: Option<Arc<Tier>>,
    /// The socket that takes commands, if there is one.
    pub control: Option<String>,
    /// The time.
    pub clock: Clock,
}

impl StatusSource {
    /// A function that makes the document.
    pub fn text(self) -> StatusText {
        Arc::new(move || {
            let mut text = serde_json::to_vec_pretty(&self.document()).unwrap_or_default();
            text.push(b'\n');
            text.into()
        })
    }

    fn document(&self) -> Value {
        let store = self.store.counters().snapshot();
        let mut doc = json!({
            "mode": self.mode,
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "now_ms": self.clock.now_ms(),
            "store": {
                "url": self.store.url().to_string(),
                "reachable": store.failed_in_a_row == 0,
                "last_error": store.last_error,
                "last_ok_ms": store.last_ok_ms,
                "requests": {
                    "get": store.get, "put": store.put, "list": store.list,
                    "head": store.head, "delete": store.delete, "errors": store.errors,
                },
                "bytes_up": store.bytes_up,
                "bytes_down": store.bytes_down,
            },
            "control": self.control,
            "cache": cache(&self.cache),
            "reads": reads(&self.reader),
        });
        let tiering = self.tier.as_ref().and_then(|t| serde_json::to_value(&*t.status()).ok());
        if let (Some(Value::Object(tiering)), Value::Object(doc)) = (tiering, &mut doc) {
            doc.extend(tiering);
        }
        doc
    }
}

fn cache(cache: &BlockCache) -> Value {
    let mut doc = serde_json::to_value(cache.stats()).unwrap_or_default();
    if let Value::Object(fields) = &mut doc {
        fields.insert("bypassed".to_owned(), json!(cache.bypassed()));
    }
    doc
}

fn reads(reader: &Reader) -> Value {
    use std::sync::atomic::Ordering::Relaxed;
    let c = reader.counters();
    json!({
        "demand_fetches": c.demand_fetches.load(Relaxed),
        "prefetch_fetches": c.prefetch_fetches.load(Relaxed),
        "aux_fetches": c.aux_fetches.load(Relaxed),
        "fetched_bytes": c.fetched_bytes.load(Relaxed),
        "retries": c.retries.load(Relaxed),
        "hedges": c.hedges.load(Relaxed),
        "hedges_won": c.hedges_won.load(Relaxed),
        "let_go": c.let_go.load(Relaxed),
        "refetched_damaged": c.refetched_damaged.load(Relaxed),
        "cache_bypasses": c.cache_bypasses.load(Relaxed),
        "prefetch_failures": c.prefetch_failures.load(Relaxed),
        "prefetch_skipped": c.prefetch_skipped.load(Relaxed),
        "deadline_expired": c.deadline_expired.load(Relaxed),
        "errors": c.errors.load(Relaxed),
    })
}

/// Prints the status of a mount.
pub fn run(args: &StatusArgs) -> Result<(), CliError> {
    let mountpoint = match (&args.mountpoint, &args.data) {
        (Some(mountpoint), _) => mountpoint.clone(),
        (None, Some(data)) => mountpoint_of(data)?,
        (None, None) => return Err(CliError::usage("give a mount point or --data DIR")),
    };
    let text = read(&mountpoint)?;
    if args.json {
        print!("{text}");
        return Ok(());
    }
    let doc: Value = serde_json::from_str(&text).map_err(|e| {
        CliError::failed(format!("{}: the status is no JSON: {e}", mountpoint.display()))
    })?;
    print!("{}", render(&doc));
    Ok(())
}

fn mountpoint_of(data: &Path) -> Result<PathBuf, CliError> {
    let path = data.join("mountpoint");
    let text = std::fs::read_to_string(&path).map_err(|e| {
        CliError::failed(format!("{}: {e}: is this the data directory of a mount?", path.display()))
    })?;
    Ok(PathBuf::from(text.trim_end()))
}

fn read(mountpoint: &Path) -> Result<String, CliError> {
    let path = mountpoint.join(EVERLOG_NAME).join("status.json");
    let mut text = String::new();
    std::fs::File::open(&path).and_then(|mut f| f.read_to_string(&mut text)).map_err(|e| {
        let shown = mountpoint.display();
        CliError::failed(format!(
            "no Everlog mount answers at {shown} ({e}): mount it, or give its mount point"
        ))
    })?;
    Ok(text)
}

fn number(doc: &Value, path: &str) -> u64 {
    doc.pointer(path).and_then(Value::as_u64).unwrap_or(0)
}

fn text<'a>(doc: &'a Value, path: &str) -> &'a str {
    doc.pointer(path).and_then(Value::as_str).unwrap_or("")
}

/// The document for people.
fn render(doc: &Value) -> String {
    use std::fmt::Write as _;
    let mut out = String::new();
    let reachable = doc.pointer("/store/reachable").and_then(Value::as_bool).unwrap_or(false);
    let _ = writeln!(
        out,
        "{} mount, pid {}, store {} ({})",
        text(doc, "/mode"),
        number(doc, "/pid"),
        text(doc, "/store/url"),
        if reachable { "reachable" } else { "NOT reachable" }
    );
    if let Some(topics) = doc.pointer("/topics").and_then(Value::as_array) {
        let _ = writeln!(
            out,
            "{:<32} {:>5} {:>11} {:>11} {:>18} {:>18} {:>11} {:>16}",
            "topic", "parts", "active", "hot", "archived", "cold", "cached", "lag"
        );
        for topic in topics.iter().chain(doc.pointer("/totals")) {
            let _ = writeln!(out, "{}", render_topic(topic));
        }
        let _ = writeln!(
            out,
            "spool: {} segments, {}, {} waiting for the discard command; quarantine: {}",
            number(doc, "/spool/segments"),
            show_bytes(number(doc, "/spool/bytes")),
            number(doc, "/spool/waiting_for_listener"),
            number(doc, "/quarantine")
        );
    }
    let (free, reserve) = (number(doc, "/disk/free_bytes"), number(doc, "/disk/reserve_bytes"));
    if free < reserve {
        let full = doc.pointer("/disk/full").and_then(Value::as_bool).unwrap_or(false);
        let how = if full { "FULL, appends fail" } else { "nearly full" };
        let _ = writeln!(out, "disk: {how}; {} free", show_bytes(free));
    }
    let _ = writeln!(out, "{}", render_cache(doc));
    let _ = writeln!(
        out,
        "store: {} up, {} down; requests: {} get, {} put, {} list, {} errors",
        show_bytes(number(doc, "/store/bytes_up")),
        show_bytes(number(doc, "/store/bytes_down")),
        number(doc, "/store/requests/get"),
        number(doc, "/store/requests/put"),
        number(doc, "/store/requests/list"),
        number(doc, "/store/requests/errors")
    );
    for path in ["/last_error/what", "/store/last_error/what"] {
        if !text(doc, path).is_empty() {
            let _ = writeln!(out, "last error: {}", text(doc, path));
        }
    }
    out
}

fn render_cache(doc: &Value) -> String {
    let of = |field: &str| number(doc, &format!("/cache/{field}"));
    let mut line = format!(
        "cache: {} of {}, {} read again, {} pinned, {} files",
        show_bytes(of("allocated_bytes")),
        show_bytes(of("limit_bytes")),
        show_bytes(of("protected_bytes")),
        show_bytes(of("pinned_bytes")),
        of("files")
    );
    let reason = text(doc, "/cache/bypassed/reason");
    if !reason.is_empty() {
        let seconds = number(doc, "/now_ms").saturating_sub(of("bypassed/since_ms")) / 1000;
        line.push_str(&format!("; BYPASSED for {seconds} s: {reason}"));
    }
    line
}

fn render_topic(t: &Value) -> String {
    let name = t.get("topic").and_then(Value::as_str).unwrap_or("total");
    let of = |kind: &str| {
        let segments = number(t, &format!("/{kind}_segments"));
        format!("{segments} / {}", show_bytes(number(t, &format!("/{kind}_bytes"))))
    };
    format!(
        "{:<32} {:>5} {:>11} {:>11} {:>18} {:>18} {:>11} {:>16}",
        name,
        number(t, "/partitions"),
        show_bytes(number(t, "/active_bytes")),
        show_bytes(number(t, "/hot_bytes")),
        of("archived"),
        of("cold"),
        show_bytes(number(t, "/cached_bytes")),
        format!("{} / {} s", number(t, "/lag_segments"), number(t, "/lag_seconds")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_is_away_and_an_error_are_shown() {
        let doc = json!({
            "mode": "broker", "pid": 7,
            "store": {"url": "file:///x", "reachable": false, "last_error": {"what": "put a: refused"}},
            "now_ms": 9_000, "cache": {"bypassed": {"reason": "a write fails", "since_ms": 2_000}},
            "topics": [{"topic": "orders", "partitions": 6, "cold_segments": 3, "cold_bytes": 3_145_728}],
        });
        let shown = render(&doc);
        assert!(shown.contains("NOT reachable") && shown.contains("put a: refused"), "{shown}");
        assert!(shown.contains("BYPASSED for 7 s: a write fails"), "{shown}");
        assert!(shown.contains("orders") && shown.contains("3 / 3.0 MiB"), "{shown}");
    }
}
