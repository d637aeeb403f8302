//! `everlog warm`, `evict`, `pin`, `unpin`: what they are given, whom they ask, what they print.

use std::io::IsTerminal as _;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::CliError;
use super::args::KeepArgs;
use super::control::{self, Outcome, Request, Target, Verb};
use super::units::show_bytes;
use crate::kafka::names::{self, FileKind, Suffix};
use crate::vfs::EVERLOG_NAME;

/// Between two plain lines of progress.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Asks the mount in which the targets lie.
pub fn run(verb: Verb, args: &KeepArgs) -> Result<(), CliError> {
    let (mut mount, mut targets) = (None, Vec::new());
    for path in &args.targets {
        let (of, target) = resolve(path)?;
        if mount.get_or_insert_with(|| of.clone()) != &of {
            return Err(CliError::usage("the targets lie in different mounts: give those of one"));
        }
        targets.push(target);
    }
    let mount = mount.ok_or_else(|| CliError::usage("give at least one path in a mount"))?;
    let socket = socket_of(&mount)?;
    let mut shown = Shown::new(args.json || matches!(verb, Verb::Evict | Verb::Unpin));
    let done = control::ask(&socket, &Request { verb, targets }, &mut |p| shown.update(p));
    shown.finish();
    let outcome = done.map_err(CliError::failed)?;
    if args.json {
        println!("{}", serde_json::to_string(&outcome).map_err(CliError::failed)?);
    } else {
        println!("{}", words(verb, &outcome));
    }
    match outcome.left_pinned {
        0 => Ok(()),
        n => Err(CliError::failed(format!(
            "{n} segments are pinned and were left alone: 'everlog unpin' them first"
        ))),
    }
}

fn words(verb: Verb, o: &Outcome) -> String {
    let all_pinned = format!("{} are pinned in all", show_bytes(o.pinned_bytes));
    match verb {
        Verb::Warm => format!("{} segments are in the cache, {}", o.segments, show_bytes(o.bytes)),
        Verb::Pin => format!(
            "{} segments are in the cache and pinned, {}; {all_pinned}",
            o.segments,
            show_bytes(o.bytes)
        ),
        Verb::Unpin => format!("{} objects are no longer pinned; {all_pinned}", o.changed_pins),
        Verb::Evict => format!(
            "{} of {} archived segments left the cache; what is hot on a broker's local disk stays there",
            show_bytes(o.freed_bytes),
            o.segments
        ),
    }
}

fn status_of(mount: &Path) -> Option<Value> {
    let text = std::fs::read(mount.join(EVERLOG_NAME).join("status.json")).ok()?;
    serde_json::from_slice(&text).ok()
}

fn socket_of(mount: &Path) -> Result<String, CliError> {
    let status = status_of(mount).unwrap_or_default();
    let socket = status.get("control").and_then(Value::as_str).map(str::to_owned);
    socket.ok_or_else(|| {
        let shown = mount.display();
        CliError::failed(format!("the mount at {shown} takes no commands: its log says why"))
    })
}

/// The mount that a path lies in, and what of it is meant.
fn resolve(path: &Path) -> Result<(PathBuf, Target), CliError> {
    let shown = path.display();
    let typed = std::path::absolute(path).map_err(CliError::failed)?;
    let real = path.canonicalize().unwrap_or_else(|_| typed.clone());
    let found = [typed, real].into_iter().find_map(|full| {
        let mount = full.ancestors().find(|dir| status_of(dir).is_some())?.to_owned();
        let below = full.strip_prefix(&mount).ok()?.to_owned();
        Some((mount, below))
    });
    let (mount, below) = found.ok_or_else(|| {
        CliError::failed(format!(
            "{shown} is not in an Everlog mount: give a mount point, or a partition's directory or a segment's file in one"
        ))
    })?;
    let target = target_of(&below).ok_or_else(|| {
        CliError::usage(format!(
            "{shown} is neither a mount point nor a partition's directory nor a segment's file"
        ))
    })?;
    Ok((mount, target))
}

/// From a path below a mount point.
fn target_of(below: &Path) -> Option<Target> {
    let name = |part: Component<'_>| match part {
        Component::Normal(name) => name.to_str().map(str::to_owned),
        _ => None,
    };
    let names: Vec<String> = below.components().map(name).collect::<Option<_>>()?;
    let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
    if names.first() == Some(&EVERLOG_NAME) {
        if names.get(1) != Some(&"archive") {
            return None;
        }
        names.drain(..2);
    }
    match names[..] {
        [] => Some(Target { partition: None, offset: None }),
        [partition] => Some(Target { partition: Some(partition.to_owned()), offset: None }),
        [partition, file] => {
            let file = names::parse_file(file);
            let file = file.filter(|f| f.suffix == Suffix::None && f.kind == FileKind::Log)?;
            let (partition, offset) = (Some(partition.to_owned()), Some(file.base_offset));
            Some(Target { partition, offset })
        }
        _ => None,
    }
}

/// Progress: a bar on a terminal, a line now and then elsewhere, nothing for programs.
struct Shown {
    bar: Option<ProgressBar>,
    quiet: bool,
    said: Instant,
}

impl Shown {
    fn new(quiet: bool) -> Self {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new(0);
            let style = ProgressStyle::with_template(
                "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
            );
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Self { bar, quiet, said: Instant::now() }
    }

    fn update(&mut self, outcome: &Outcome) {
        if let Some(bar) = &self.bar {
            bar.set_length(outcome.bytes);
            bar.set_position(outcome.cached_bytes);
        } else if !self.quiet && self.said.elapsed() >= LINE_EVERY {
            let (done, all) = (show_bytes(outcome.cached_bytes), show_bytes(outcome.bytes));
            eprintln!("{done} of {all}, {} segments", outcome.segments);
            self.said = Instant::now();
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_below_a_mount_names_all_a_partition_or_a_segment() {
        let target = |path: &str| target_of(Path::new(path));
        let of = |partition: Option<&str>, offset| {
            Some(Target { partition: partition.map(str::to_owned), offset })
        };
        assert_eq!(target(""), of(None, None));
        assert_eq!(target("orders-0"), of(Some("orders-0"), None));
        assert_eq!(target(".everlog/archive/orders-0"), of(Some("orders-0"), None));
        let segment = "orders-0/00000000000000000042.log";
        assert_eq!(target(segment), of(Some("orders-0"), Some(42)));
        assert_eq!(target("orders-0/00000000000000000042.index"), None);
        assert_eq!(target(".everlog/status.json"), None);
        assert_eq!(target("../orders-0"), None);
    }
}
