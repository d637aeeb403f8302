//! versitygw over a directory: an S3 server whose objects are plain files that a test can look at and damage.

use std::net::TcpStream;
use std::path::{Path, PathBuf};

use super::children::{self, Running, free_port};
use super::wait_until;

/// The bucket that exists.
pub const BUCKET: &str = "logs";

/// An S3 server, running or stopped, always on the same port.
pub struct S3 {
    dir: PathBuf,
    port: u16,
    process: Option<Running>,
}

impl S3 {
    /// Starts one over `dir/buckets` with the bucket `logs`.
    pub fn start(dir: &Path) -> Self {
        std::fs::create_dir_all(dir.join("buckets").join(BUCKET)).unwrap();
        let mut s3 = Self { dir: dir.to_owned(), port: free_port(), process: None };
        s3.resume();
        s3
    }

    /// Starts it again after `stop` or `kill9`.
    pub fn resume(&mut self) {
        let mut command = children::bound_command(children::installed("bin/versitygw"));
        command.args([
            "--port",
            &format!("127.0.0.1:{}", self.port),
            "--access",
            "rig",
            "--secret",
            "rigsecret",
        ]);
        command.args(["--quiet", "posix"]).arg(self.dir.join("buckets"));
        let mut process = Running::start(command, "versitygw", self.dir.join("versitygw.out"));
        wait_until("versitygw to listen", 30, || {
            assert!(process.ended().is_none(), "versitygw ended:\n{}", process.tail());
            TcpStream::connect(("127.0.0.1", self.port)).map(drop).map_err(|e| e.to_string())
        });
        self.process = Some(process);
    }

    /// SIGTERM; connections are refused from then on.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.signal(rustix::process::Signal::TERM);
            process.wait(30);
        }
    }

    /// SIGKILL.
    pub fn kill9(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill9();
        }
    }

    /// Hangs: connections are accepted by the kernel and never answered.
    pub fn freeze(&self) {
        self.process
            .as_ref()
            .expect("versitygw does not run")
            .signal(rustix::process::Signal::STOP);
    }

    /// Ends `freeze`.
    pub fn thaw(&self) {
        self.process
            .as_ref()
            .expect("versitygw does not run")
            .signal(rustix::process::Signal::CONT);
    }

    /// `s3://logs/<prefix>`.
    pub fn url(&self, prefix: &str) -> String {
        format!("s3://{BUCKET}/{prefix}")
    }

    /// Where the bucket's objects lie as files.
    pub fn bucket(&self) -> PathBuf {
        self.dir.join("buckets").join(BUCKET)
    }

    /// `http://host:port`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Credentials and endpoint as the usual environment variables.
    pub fn env(&self) -> Vec<(String, String)> {
        [
            ("AWS_ACCESS_KEY_ID", "rig"),
            ("AWS_SECRET_ACCESS_KEY", "rigsecret"),
            ("AWS_REGION", "us-east-1"),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into_iter()
        .chain([("AWS_ENDPOINT_URL".to_owned(), self.endpoint())])
        .collect()
    }
}
