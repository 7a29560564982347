//! TLS of our listeners: rustls with ring, and a certificate that is read again when its files change.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::TlsFiles;
use crate::error::{Error, Result, reason};
use crate::locks::lock;

/// How often, at most, the files are looked at while connections come in.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Where a listener's certificate chain and private key come from.
#[derive(Clone)]
pub enum Certificate {
    /// PEM files, which may be replaced while the server runs.
    Files(TlsFiles),
    /// PEM text, for throw-away certificates.
    Pem {
        /// Certificate chain, the leaf first.
        chain: String,
        /// Private key.
        key: String,
    },
}

/// What the files looked like when they were read: time and size of each.
type Look = Option<[(SystemTime, u64); 2]>;

/// The present TLS settings of one listener. Connections that run keep what they began with.
pub(super) struct Tls {
    source: Certificate,
    config: ArcSwap<ServerConfig>,
    seen: Mutex<(Instant, Look)>,
}

impl Tls {
    /// Reads the certificate. Errors say which file is wrong and why.
    pub(super) fn new(source: Certificate) -> Result<Self> {
        let look = look_at(&source);
        let config = ArcSwap::new(load(&source)?);
        Ok(Self { source, config, seen: Mutex::new((Instant::now(), look)) })
    }

    /// The settings for a new connection. Looks at the files now and then.
    pub(super) fn config(&self) -> Arc<ServerConfig> {
        let changed = {
            let mut seen = lock(&self.seen);
            let due = seen.0.elapsed() >= LOOK_INTERVAL;
            if due {
                seen.0 = Instant::now();
            }
            due && look_at(&self.source) != seen.1
        };
        if changed {
            self.reload();
        }
        self.config.load_full()
    }

    /// Reads the certificate again. If it cannot be used, the old one stays and the log says so.
    pub(super) fn reload(&self) {
        let look = look_at(&self.source);
        match load(&self.source) {
            Ok(config) => {
                self.config.store(config);
                log::info!("the TLS certificate was read again");
            }
            Err(e) => {
                log::error!("the new TLS certificate cannot be used, the old one stays: {}", e.message())
            }
        }
        *lock(&self.seen) = (Instant::now(), look);
    }
}

fn look_at(source: &Certificate) -> Look {
    let Certificate::Files(files) = source else { return None };
    let look = |path: &Path| {
        let data = fs::metadata(path).ok()?;
        Some((data.modified().ok()?, data.len()))
    };
    Some([look(&files.cert)?, look(&files.key)?])
}

fn load(source: &Certificate) -> Result<Arc<ServerConfig>> {
    let (chain, key, [chain_name, key_name]) = match source {
        Certificate::Pem { chain, key } => {
            let names = ["the given certificate", "the given key"].map(str::to_owned);
            (chain.clone().into_bytes(), key.clone().into_bytes(), names)
        }
        Certificate::Files(files) => {
            let read = |what: &str, path: &Path| {
                let cannot = |e| format!("The {what} {} cannot be read: {}", path.display(), reason(&e));
                fs::read(path).map_err(|e| Error::invalid_param(cannot(e)))
            };
            let (chain, key) = (read("certificate", &files.cert)?, read("private key", &files.key)?);
            (chain, key, [&files.cert, &files.key].map(|path| path.display().to_string()))
        }
    };
    let wrong = |e: &dyn std::fmt::Display| {
        Error::invalid_param(format!(
            "The certificate {chain_name} with the key {key_name} is of no use: {e}"
        ))
    };
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(&chain).collect::<Result<_, _>>().map_err(|e| wrong(&e))?;
    if chain.is_empty() {
        return Err(Error::invalid_param(format!("There is no certificate (PEM) in {chain_name}")));
    }
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|e| match e {
        pem::Error::NoItemsFound => {
            Error::invalid_param(format!("There is no private key (PEM) in {key_name}"))
        }
        e => wrong(&e),
    })?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| wrong(&e))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|e| match e {
            rustls::Error::InconsistentKeys(_) => Error::invalid_param(format!(
                "The private key {key_name} does not belong to the certificate {chain_name}"
            )),
            e => wrong(&e),
        })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
