//! Ordinary requests of the web: well-known pages, identity servers. The same guards as for requests between servers:
//! TLS only, no proxy from the environment, bounded answers, no addresses of our own network.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use ureq::Agent;
use ureq::config::Config;
use ureq::http;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{Connector as _, NextTimeout, RustlsConnector};

use crate::clock::Clock;
use crate::error::{Error, Result, reason};
use crate::federation::connections::Connections;
use crate::federation::discovery;
use crate::federation::discovery::address_guard::AddressGuard;
use crate::federation::discovery::dns;
use crate::federation::discovery::names::Names;
use crate::federation::discovery::{HostPort, Lookups, NoRoute, WellKnown};
use crate::protocol::json::read_object;

/// Time for a name to become addresses.
pub const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER_HEAD_BYTES_MAX: usize = 16 * 1024;
/// The specification's example has 40 bytes.
const WELL_KNOWN_BYTES_MAX: u64 = 50 * 1024;
const WELL_KNOWN_REDIRECTS_MAX: u32 = 10;
/// Requests are written in pieces of this size, and answers' heads must fit in twice as much.
const BUFFER_BYTES: usize = 16 * 1024;

/// What both agents have in common: TLS only, no proxy from the environment, errors are answers, small buffers.
pub fn base_config(roots: RootCerts) -> ureq::config::ConfigBuilder<ureq::typestate::AgentScope> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = TlsConfig::builder().root_certs(roots).unversioned_rustls_crypto_provider(provider);
    Config::builder()
        .https_only(true)
        .http_status_as_error(false)
        .proxy(None)
        .tls_config(tls.build())
        .user_agent(concat!("Doorstep/", env!("CARGO_PKG_VERSION")))
        .max_response_header_size(ANSWER_HEAD_BYTES_MAX)
        .input_buffer_size(2 * BUFFER_BYTES)
        .output_buffer_size(BUFFER_BYTES)
        .timeout_resolve(Some(RESOLVE_TIMEOUT))
        .timeout_connect(Some(CONNECT_TIMEOUT))
}

/// An agent whose connections can be cut.
pub fn agent(config: Config, connections: &Connections, resolver: impl Resolver) -> Agent {
    Agent::with_parts(config, connections.clone().chain(RustlsConnector::default()), resolver)
}

/// Mozilla's roots, those of the files, which this flag names, and one more in PEM.
pub fn roots(flag: &str, files: &[PathBuf], more: Option<&str>) -> Result<RootCerts> {
    let mut all: Vec<Certificate<'static>> = webpki_root_certs::TLS_SERVER_ROOT_CERTS
        .iter()
        .map(|der| Certificate::from_der(der.as_ref()))
        .collect();
    for file in files {
        let wrong = |e: String| Error::invalid_param(format!("{flag} {}: {e}", file.display()));
        let pem = std::fs::read(file).map_err(|e| wrong(reason(&e)))?;
        let before = all.len();
        for item in ureq::tls::parse_pem(&pem) {
            if let PemItem::Certificate(certificate) = item.map_err(|e| wrong(e.to_string()))? {
                all.push(certificate);
            }
        }
        if all.len() == before {
            return Err(wrong("no certificate in it".into()));
        }
    }
    if let Some(pem) = more {
        all.push(Certificate::from_pem(pem.as_bytes()).map_err(Error::internal)?);
    }
    Ok(RootCerts::Specific(Arc::new(all)))
}

pub fn within(timeout: NextTimeout) -> Duration {
    timeout.not_zero().map_or(RESOLVE_TIMEOUT, |t| *t).min(RESOLVE_TIMEOUT)
}

pub fn no_route(no: NoRoute) -> ureq::Error {
    ureq::Error::Io(io::Error::other(no.0))
}

/// Ordinary addresses of web servers: for the well-known page and wherever it redirects to, for pages that are previewed.
#[derive(Debug)]
pub struct WebResolver {
    pub guard: AddressGuard,
    pub names: Names,
    pub connections: Connections,
}

impl Resolver for WebResolver {
    fn resolve(
        &self,
        uri: &http::Uri,
        _: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let host = uri.host().unwrap_or_default();
        let mut addresses = self.empty();
        let usual = if uri.scheme_str() == Some("http") { 80 } else { 443 };
        let port = uri.port_u16().unwrap_or(usual);
        if let Some(detour) = self.names.detour(host, port) {
            addresses.push(detour);
            return Ok(addresses);
        }
        let found = match (HostPort { host, port: None }).ip() {
            Some(ip) => vec![ip],
            None => self.names.addresses(&self.connections, host, within(timeout))?,
        };
        let allowed = found.into_iter().filter(|ip| self.guard.allows(*ip)).take(16);
        allowed.for_each(|ip| addresses.push((ip, port).into()));
        if addresses.is_empty() {
            return Err(no_route(NoRoute(format!("{host} has no address that this server may connect to"))));
        }
        Ok(addresses)
    }
}

/// The world as it is.
pub struct SystemLookups {
    agent: Agent,
    clock: Clock,
    names: Names,
    connections: Connections,
    /// Where web servers listen; the tests have theirs elsewhere.
    pub https_port: u16,
}

impl SystemLookups {
    pub fn new(roots: RootCerts, guard: AddressGuard, names: &Names, clock: Clock) -> Self {
        let config = base_config(roots)
            // Step 3: "30x redirects should be followed, however redirection loops should be avoided".
            .max_redirects(WELL_KNOWN_REDIRECTS_MAX)
            .max_redirects_will_error(true)
            .max_idle_connections(0)
            .build();
        let connections = Connections::default();
        let names = names.clone();
        let resolver = WebResolver { guard, names: names.clone(), connections: connections.clone() };
        let agent = agent(config, &connections, resolver);
        Self { agent, clock, names, connections, https_port: 443 }
    }

    /// These look-ups by another agent.
    pub fn by(self, agent: impl FnOnce(&Config) -> Agent) -> Self {
        Self { agent: agent(self.agent.config()), ..self }
    }
}

impl Lookups for SystemLookups {
    fn well_known(&self, host: &str, within: Duration) -> WellKnown {
        let host_and_port = match self.https_port {
            443 => host.to_owned(),
            port => format!("{host}:{port}"),
        };
        let request = self.agent.get(format!("https://{host_and_port}/.well-known/matrix/server"));
        let answer = match request.config().timeout_global(Some(within)).build().call() {
            Ok(answer) => answer,
            Err(
                e @ (ureq::Error::TooManyRedirects
                | ureq::Error::RequireHttpsOnly(_)
                | ureq::Error::RedirectFailed),
            ) => {
                log::debug!("well-known of {host}: {e}");
                return WellKnown::Nothing;
            }
            Err(e) => {
                log::debug!("well-known of {host}: {e}");
                return WellKnown::Failed;
            }
        };
        let status = answer.status().as_u16();
        if status != 200 {
            return if status >= 500 || status == 429 { WellKnown::Failed } else { WellKnown::Nothing };
        }
        let header = |name: &str| answer.headers().get(name).and_then(|v| v.to_str().ok());
        let max_age = discovery::max_age(header("cache-control"), header("expires"), self.clock.now_ms());
        let body = answer.into_body().into_with_config().limit(WELL_KNOWN_BYTES_MAX).read_to_vec();
        let Ok(body) = body else { return WellKnown::Failed };
        #[derive(Deserialize)]
        struct Delegation {
            #[serde(rename = "m.server")]
            to: String,
        }
        match read_object::<Delegation>(&body) {
            Ok(Delegation { to }) => WellKnown::Delegates { to, max_age },
            Err(_) => WellKnown::Nothing,
        }
    }

    fn srv(&self, name: &str, within: Duration) -> io::Result<Vec<dns::Srv>> {
        self.names.srv(&self.connections, name, within)
    }

    fn addresses(&self, host: &str, within: Duration) -> io::Result<Vec<IpAddr>> {
        self.names.addresses(&self.connections, host, within)
    }

    fn cut(&self) {
        self.connections.cut();
    }
}
