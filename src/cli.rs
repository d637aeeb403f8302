//! The command line: arguments as typed, then configuration, then objects. The only place that builds
//! things and that decides an exit code: 0 done, 1 failed, 2 usage, 3 found damage.

mod archive;
mod archive_threads;
mod args;
mod background;
mod broker;
mod checkpoints;
mod control;
mod doctor;
mod error;
mod keep;
mod keeping;
mod machine;
mod mountpoint;
mod objects;
mod reader_mount;
mod serve;
mod status;
mod unanswered;
mod units;

use std::process::ExitCode;

use clap::Parser as _;

use args::{Cli, Command};
use control::Verb;
pub use error::CliError;

use crate::failpoint;

/// Parses the process's arguments, does what they say, prints one line on failure.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { 2 } else { 0 });
        }
    };
    if let Err(e) = arm_fail_points() {
        eprintln!("everlog: {}", e.message);
        return ExitCode::from(e.code);
    }
    let done = match cli.command {
        Command::Mount(args) => mount(*args),
        Command::Archive(args) => archive::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Warm(args) => keep::run(Verb::Warm, &args),
        Command::Evict(args) => keep::run(Verb::Evict, &args),
        Command::Pin(args) => keep::run(Verb::Pin, &args),
        Command::Unpin(args) => keep::run(Verb::Unpin, &args),
        Command::Checkpoints(args) => checkpoints::run(&args),
        Command::Doctor(args) => doctor::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            // A background mount has said it already.
            if !e.message.is_empty() {
                eprintln!("everlog: {}", e.message);
            }
            ExitCode::from(e.code)
        }
    }
}

/// For tests: `src/failpoint.rs`.
fn arm_fail_points() -> Result<(), CliError> {
    let text = |name: &str| std::env::var(name).unwrap_or_default();
    let (orders, trace) = (text("EVERLOG_TEST_FAIL"), text("EVERLOG_TEST_FAIL_TRACE"));
    if orders.is_empty() && trace.is_empty() {
        return Ok(());
    }
    let trace = (!trace.is_empty()).then(|| std::path::PathBuf::from(trace));
    failpoint::arm(&orders, trace.as_deref())
        .map_err(|why| CliError::usage(format!("EVERLOG_TEST_FAIL: {why}")))
}

fn mount(args: args::MountArgs) -> Result<(), CliError> {
    if !args.foreground && !background::is_child() {
        return background::spawn();
    }
    match (&args.data, &args.cache) {
        (Some(data), None) => broker::run(&args, data),
        (None, Some(cache)) => reader_mount::run(&args, cache),
        _ => Err(CliError::usage(
            "mount needs either --data DIR (broker mount) or --cache DIR (read-only archive mount)",
        )),
    }
}
