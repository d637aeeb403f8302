//! How a command reaches a running mount: a socket whose name stands in the mount's status, one line of JSON
//! there, lines of JSON back, the last of which is `done` or `error`.
//!
//! The socket has no file (an abstract Unix socket), so nothing is left behind by a crash. Only root and the
//! user who mounted are answered, as the kernel says who is there.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::keeping::Keeping;
use crate::clock;

/// Longest request, in bytes.
const REQUEST_BYTES_MAX: u64 = 1 << 20;
/// Commands that are worked on at once; more are refused.
const COMMANDS_MAX: usize = 8;
/// A client that does not say what it wants, or does not listen, for so long is given up.
const CLIENT_WAIT: Duration = Duration::from_secs(30);

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// Fetch into the cache.
    Warm,
    /// Drop from the cache.
    Evict,
    /// Fetch into the cache and keep there.
    Pin,
    /// Keep no longer.
    Unpin,
}

/// Of what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// A partition as the mount shows it; all of them without.
    pub partition: Option<String>,
    /// Only the segment in which this offset lies.
    pub offset: Option<i64>,
}

/// One request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// What is to be done.
    pub verb: Verb,
    /// Of what; at least one.
    pub targets: Vec<Target>,
}

/// How far it is, or how it ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Archived segments that were named.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Of these, fetched or found in the cache so far.
    pub cached_bytes: u64,
    /// Given back by the cache.
    pub freed_bytes: u64,
    /// Segments that were left alone because they are pinned.
    pub left_pinned: u64,
    /// Objects whose pin was set or taken back.
    pub changed_pins: u64,
    /// Bytes of all objects that are pinned now.
    pub pinned_bytes: u64,
}

/// One line of an answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// It goes on.
    Progress(Outcome),
    /// It is done.
    Done(Outcome),
    /// It is not done.
    Error(String),
}

/// Listens as long as the process lives. The socket's name, for the status.
pub fn listen(keeping: Keeping) -> io::Result<String> {
    let name = format!("everlog-{}", clock::random_hex_32());
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
    let (keeping, busy) = (Arc::new(keeping), Arc::new(AtomicUsize::new(0)));
    let serve = move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else {
                // No descriptors, for example.
                std::thread::sleep(Duration::from_millis(100));
                continue;
            };
            begin(stream, &keeping, &busy);
        }
    };
    std::thread::Builder::new().name("everlog-control".to_owned()).spawn(serve)?;
    Ok(name)
}

fn begin(mut stream: UnixStream, keeping: &Arc<Keeping>, busy: &Arc<AtomicUsize>) {
    if !is_allowed(&stream) {
        let _ = say(&mut stream, &Reply::Error("only root and who mounted it may do that".into()));
        return;
    }
    if busy.fetch_add(1, Ordering::AcqRel) >= COMMANDS_MAX {
        busy.fetch_sub(1, Ordering::AcqRel);
        let _ = say(&mut stream, &Reply::Error("too many commands at once: try again".into()));
        return;
    }
    let (keeping, counted) = (Arc::clone(keeping), Arc::clone(busy));
    let work = move || {
        if let Err(error) = answer(stream, &keeping) {
            tracing::debug!(%error, "a command went away");
        }
        counted.fetch_sub(1, Ordering::AcqRel);
    };
    let spawned = std::thread::Builder::new().name("everlog-command".to_owned()).spawn(work);
    if let Err(error) = spawned {
        busy.fetch_sub(1, Ordering::AcqRel);
        tracing::warn!(%error, "cannot start a thread for a command");
    }
}

fn is_allowed(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid();
    let peer = rustix::net::sockopt::socket_peercred(stream);
    peer.is_ok_and(|peer| peer.uid.is_root() || peer.uid == own)
}

fn say(stream: &mut UnixStream, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    stream.write_all(&line)
}

fn answer(mut stream: UnixStream, keeping: &Keeping) -> io::Result<()> {
    stream.set_read_timeout(Some(CLIENT_WAIT))?;
    stream.set_write_timeout(Some(CLIENT_WAIT))?;
    let mut line = String::new();
    BufReader::new((&stream).take(REQUEST_BYTES_MAX)).read_line(&mut line)?;
    let request: Request = match serde_json::from_str(&line) {
        Ok(request) => request,
        Err(e) => return say(&mut stream, &Reply::Error(format!("not a request: {e}"))),
    };
    tracing::info!(?request, "a command");
    let mut out = stream.try_clone()?;
    // Whoever asked may have gone: then there is nobody to work for.
    let mut heard = true;
    let done = keeping.work(&request, &mut |outcome: &Outcome| {
        heard = say(&mut out, &Reply::Progress(*outcome)).is_ok();
        heard
    });
    match done {
        Ok(outcome) => say(&mut stream, &Reply::Done(outcome)),
        Err(why) => {
            tracing::warn!(?request, why, "a command failed");
            say(&mut stream, &Reply::Error(why))
        }
    }
}

/// Sends a request to the mount with this socket, hands each progress on, gives the end.
pub fn ask(
    name: &str,
    request: &Request,
    progress: &mut dyn FnMut(&Outcome),
) -> Result<Outcome, String> {
    let connected = SocketAddr::from_abstract_name(name).and_then(|a| UnixStream::connect_addr(&a));
    let mut stream = connected.map_err(|e| format!("the mount does not take commands: {e}"))?;
    let lost = |e: io::Error| format!("the mount went away: {e}");
    let mut line = serde_json::to_vec(request).map_err(|e| e.to_string())?;
    line.push(b'\n');
    stream.write_all(&line).map_err(lost)?;
    for line in BufReader::new(&stream).lines() {
        match serde_json::from_str(&line.map_err(lost)?) {
            Ok(Reply::Progress(outcome)) => progress(&outcome),
            Ok(Reply::Done(outcome)) => return Ok(outcome),
            Ok(Reply::Error(why)) => return Err(why),
            Err(e) => return Err(format!("the mount's answer is not understood: {e}")),
        }
    }
    Err("the mount went away before it was done".to_owned())
}
