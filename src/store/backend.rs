//! Builds the client library's store for a URL. The only place that knows the clouds apart.
//!
//! Nothing is contacted here: a mount must be able to start while its store is away.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Once};
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};
use parking_lot::Mutex;

use super::client::StoreOptions;
use super::directory::Directory;
use super::error::{Op, StoreError, StoreErrorKind};
use super::url::{Cloud, Location, StoreUrl};

/// A store and what stands before every key in it.
pub(super) struct Backend {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) prefix: String,
    pub(super) directory: Option<Arc<Directory>>,
}

/// Stores in memory live as long as the process, by name: a second open sees the same objects.
static IN_MEMORY: LazyLock<Mutex<HashMap<String, Arc<InMemory>>>> = LazyLock::new(Mutex::default);

pub(super) fn open(url: &StoreUrl, options: &StoreOptions) -> Result<Backend, StoreError> {
    match &url.0 {
        Location::Memory(name) => {
            let store = Arc::clone(IN_MEMORY.lock().entry(name.clone()).or_default());
            Ok(Backend { store, prefix: String::new(), directory: None })
        }
        Location::Directory(root) => {
            let text = root.to_str().unwrap_or_default();
            Ok(Backend {
                // Rooted at "/", since the directory may be away now and come back later. It reads, lists
                // and deletes; objects are written by `Directory`, which never makes the store anew.
                store: Arc::new(LocalFileSystem::new().with_fsync(true)),
                prefix: text.trim_matches('/').to_owned(),
                directory: Some(Arc::new(Directory::new(root.clone()))),
            })
        }
        Location::Bucket { cloud, bucket, prefix } => {
            install_tls();
            let store = open_bucket(*cloud, bucket, options).map_err(|e| {
                let error = StoreError::from_backend(Op::Open, &url.to_string(), &e);
                // Nothing was contacted, so it is the configuration and will not mend itself.
                let denied = error.kind == StoreErrorKind::Denied;
                let kind = if denied { error.kind } else { StoreErrorKind::Invalid };
                StoreError { kind, ..error }
            })?;
            Ok(Backend { store, prefix: prefix.clone(), directory: None })
        }
    }
}

/// TLS needs one provider of cryptography for the whole process; another one set before is fine.
fn install_tls() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if rustls::crypto::ring::default_provider().install_default().is_err() {
            tracing::debug!("a provider of cryptography was installed before");
        }
    });
}

fn client_options(options: &StoreOptions) -> ClientOptions {
    ClientOptions::new()
        .with_connect_timeout(Duration::from_millis(options.connect_timeout_ms))
        // A backstop: the deadline of each operation is `Store`'s, by its size.
        .with_timeout(Duration::from_millis(options.request_timeout_ms.saturating_mul(8)))
}

fn retry(options: &StoreOptions) -> RetryConfig {
    RetryConfig {
        max_retries: options.retries_max,
        retry_timeout: Duration::from_millis(options.request_timeout_ms),
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(2),
            base: 2.,
        },
    }
}

fn open_bucket(
    cloud: Cloud,
    bucket: &str,
    options: &StoreOptions,
) -> object_store::Result<Arc<dyn ObjectStore>> {
    let (client, retry) = (client_options(options), retry(options));
    Ok(match cloud {
        Cloud::S3 => {
            let builder = AmazonS3Builder::from_env().with_bucket_name(bucket);
            let plain = [AmazonS3ConfigKey::S3Endpoint, AmazonS3ConfigKey::Endpoint]
                .iter()
                .filter_map(|key| builder.get_config_value(key))
                .any(|endpoint| endpoint.starts_with("http://"));
            let client = client.with_allow_http(plain);
            Arc::new(builder.with_client_options(client).with_retry(retry).build()?)
        }
        Cloud::Gcs => Arc::new(
            GoogleCloudStorageBuilder::from_env()
                .with_bucket_name(bucket)
                .with_client_options(client)
                .with_retry(retry)
                .build()?,
        ),
        Cloud::Azure => Arc::new(
            MicrosoftAzureBuilder::from_env()
                .with_container_name(bucket)
                .with_client_options(client)
                .with_retry(retry)
                .build()?,
        ),
    })
}
