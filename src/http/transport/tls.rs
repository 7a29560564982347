//! TLS of our listeners: rustls with ring, and a certificate that is read again when its files change.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::server::ResolvesServerCert;
use rustls::sign::SingleCertAndKey;

use crate::config::TlsFiles;
use crate::error::{Error, Result, reason};
use crate::locks::lock;
use crate::protocol::certificates::acme::TLS_PROTOCOL;
use crate::served_certificate::{ServedCertificate, certified_key};

/// What is spoken to clients and other servers.
const HTTP_PROTOCOL: &[u8] = b"http/1.1";
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
    /// One that somebody replaces while it is served.
    Served(Arc<ServedCertificate>),
}

/// What the files looked like when they were read: time and size of each.
type Look = Option<[(SystemTime, u64); 2]>;

/// The present TLS settings of one listener. Connections that run keep what they began with.
pub(super) struct Tls {
    source: Certificate,
    config: ArcSwap<ServerConfig>,
    seen: Mutex<(Instant, Look)>,
    /// A thread looks at the files.
    looking: AtomicBool,
}

/// That a thread looks at the files, over also when there is none, or it panics.
struct LookingGuard(Arc<Tls>);

impl Drop for LookingGuard {
    fn drop(&mut self) {
        self.0.looking.store(false, Ordering::Relaxed);
    }
}

impl Tls {
    /// Reads the certificate. Errors say which file is wrong and why.
    pub(super) fn new(source: Certificate) -> Result<Self> {
        let look = look_at(&source);
        let config = ArcSwap::new(load(&source)?);
        Ok(Self { source, config, seen: Mutex::new((Instant::now(), look)), looking: AtomicBool::new(false) })
    }

    /// The settings for a new connection. Has the files looked at now and then: whoever accepts connections waits for no disk.
    pub(super) fn config(self: &Arc<Self>) -> Arc<ServerConfig> {
        let is_file = matches!(self.source, Certificate::Files(_));
        if is_file
            && lock(&self.seen).0.elapsed() >= LOOK_INTERVAL
            && !self.looking.swap(true, Ordering::Relaxed)
        {
            let looking = LookingGuard(self.clone());
            // Without a thread the next connection has it looked at.
            let _ = thread::Builder::new().name("certificate".to_owned()).spawn(move || looking.0.look());
        }
        self.config.load_full()
    }

    fn look(&self) {
        let found = look_at(&self.source);
        let changed = {
            let mut seen = lock(&self.seen);
            seen.0 = Instant::now();
            found != seen.1
        };
        if changed {
            self.reload();
        }
    }

    /// Reads the certificate again. If it cannot be used, the old one stays and the log says so.
    pub(super) fn reload(&self) {
        if matches!(self.source, Certificate::Served(_)) {
            return;
        }
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
        Certificate::Served(served) => return serving(served.clone(), &[HTTP_PROTOCOL, TLS_PROTOCOL]),
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
    let certified = certified_key(&chain, &key, [&chain_name, &key_name])?;
    serving(Arc::new(SingleCertAndKey::from(certified)), &[HTTP_PROTOCOL])
}

/// The settings of a listener that serves these certificates, over the first of these protocols that both sides speak.
fn serving(certificates: Arc<dyn ResolvesServerCert>, protocols: &[&[u8]]) -> Result<Arc<ServerConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(Error::internal)?;
    let mut config = builder.with_no_client_auth().with_cert_resolver(certificates);
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(Arc::new(config))
}
