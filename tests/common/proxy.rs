//! The proxy of `tests/tools/store_proxy.rs` before an S3 server.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use serde_json::Value;

use super::S3;
use super::children::bound_command;

/// Runs until it is dropped.
pub struct Proxy {
    process: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    port: u16,
}

/// Beside the binary under test, built with `cargo build --example store-proxy`.
fn program() -> PathBuf {
    let path = PathBuf::from(env!("CARGO_BIN_EXE_everlog")).with_file_name("examples/store-proxy");
    assert!(path.exists(), "{} is missing: cargo build --examples", path.display());
    path
}

impl Proxy {
    /// Before this server.
    pub fn start(s3: &S3, seed: u64) -> Self {
        let upstream = s3.endpoint().replace("http://", "");
        let mut command = bound_command(program());
        command.args(["--upstream", &upstream, "--seed", &seed.to_string()]);
        let mut process =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("store-proxy");
        let commands = process.stdin.take();
        let mut answers = BufReader::new(process.stdout.take().expect("a pipe"));
        let mut line = String::new();
        answers.read_line(&mut line).expect("the proxy's port");
        let port = line.trim().strip_prefix("listening ").and_then(|port| port.parse().ok());
        let port = port.unwrap_or_else(|| panic!("the proxy said {line:?}"));
        Self { process, commands, answers, port }
    }

    fn ask(&mut self, command: &str) -> String {
        let commands = self.commands.as_mut().expect("open until dropped");
        writeln!(commands, "{command}").expect("the proxy lives");
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("the proxy's answer");
        assert!(!line.is_empty() && !line.starts_with("error"), "{command}: {line:?}");
        line
    }

    /// One of its settings, or the rate of a fault in per cent.
    pub fn set(&mut self, name: &str, value: u64) {
        self.ask(&format!("set {name} {value}"));
    }

    /// What it has seen.
    pub fn stats(&mut self) -> Value {
        serde_json::from_str(&self.ask("stats")).expect("JSON")
    }

    /// The environment of a client that goes through it.
    pub fn env(&self, s3: &S3) -> Vec<(String, String)> {
        let mut env = s3.env();
        env.retain(|(name, _)| name != "AWS_ENDPOINT_URL");
        env.push(("AWS_ENDPOINT_URL".into(), format!("http://127.0.0.1:{}", self.port)));
        env
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // It ends with its input.
        self.commands.take();
        if let Err(e) = self.process.wait() {
            eprintln!("store-proxy: {e}");
        }
    }
}
