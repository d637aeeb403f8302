//! Mounting, serving and unmounting.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fuser::{Config, MountOption, SessionACL};

use super::adapter::Adapter;
use crate::vfs::Vfs;

/// How to mount.
#[derive(Clone, Debug)]
pub struct FuseConfig {
    /// Shown as the source in the mount table.
    pub source: String,
    /// Threads that receive requests.
    pub threads: usize,
    /// Let the kernel read and write small local files by itself.
    pub passthrough: bool,
    /// No writes at all.
    pub read_only: bool,
}

/// Why it could not be mounted, with the remedy.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The kernel or the helper refused.
    #[error("cannot mount on {path}: {source}{remedy}")]
    Refused {
        /// The mount point.
        path: PathBuf,
        /// What was said.
        source: io::Error,
        /// What to do, or nothing.
        remedy: &'static str,
    },
}

/// A mounted filesystem, not yet serving.
pub struct Session {
    inner: fuser::Session<Adapter>,
    mountpoint: PathBuf,
}

impl Session {
    /// Mounts. `runtime` carries what may wait for the store, `syncs` nothing but syncs of local files.
    pub fn mount(
        vfs: Arc<Vfs>,
        (runtime, syncs): (tokio::runtime::Handle, tokio::runtime::Handle),
        mountpoint: &Path,
        config: &FuseConfig,
    ) -> Result<Self, MountError> {
        let root = rustix::process::geteuid().is_root();
        let mut fuse = Config::default();
        fuse.mount_options = vec![
            MountOption::FSName(config.source.replace(',', "_")),
            MountOption::Subtype("everlog".to_owned()),
            MountOption::NoAtime,
            MountOption::NoDev,
            MountOption::NoSuid,
            if config.read_only { MountOption::RO } else { MountOption::RW },
        ];
        if root {
            fuse.mount_options.push(MountOption::DefaultPermissions);
            fuse.acl = SessionACL::All;
        }
        fuse.n_threads = Some(config.threads);
        fuse.clone_fd = true;
        let adapter = Adapter::new(vfs, runtime, syncs, config);
        let inner = fuser::Session::new(adapter, mountpoint, &fuse).map_err(|source| {
            let remedy = match source.kind() {
                io::ErrorKind::NotFound if !Path::new("/dev/fuse").exists() => {
                    ": there is no /dev/fuse, load the kernel's fuse module"
                }
                io::ErrorKind::PermissionDenied => {
                    ": run as root, or install fuse3 for fusermount3"
                }
                _ => "",
            };
            MountError::Refused { path: mountpoint.to_owned(), source, remedy }
        })?;
        Ok(Self { inner, mountpoint: mountpoint.to_owned() })
    }

    /// Serves until it is unmounted.
    pub fn serve(self) -> io::Result<()> {
        self.inner.run()
    }

    /// Where it is mounted.
    #[must_use]
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }
}
