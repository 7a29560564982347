//! A server as others see it, one step at a time and with what each step showed: for `doorstep check`. The steps are those
//! of every request to another server (`discovery`), and so are their bounds.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName as TlsName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use ureq::http;

use crate::error::{Error, Result, reason};
use crate::federation::call_error::{CallError, CallResult};
use crate::federation::client::Client;
use crate::federation::client::exchange::ExchangeFailure;
use crate::federation::discovery::dns::Srv;
use crate::federation::discovery::{HostPort, SRV_SERVICES};
use crate::locks::lock;
use crate::protocol::certificates::CertificateFacts;
use crate::protocol::certificates::calendar::http_date;
use crate::protocol::{Millis, ServerName};

const PAGE_BYTES_MAX: u64 = 256 << 10;
const REDIRECTS_MAX: usize = 10;
const HANDSHAKE_ROUNDS_MAX: usize = 50;

/// An answer, whatever its status.
#[derive(Debug)]
pub struct Page {
    /// Where it was at last.
    pub url: String,
    /// The HTTP status.
    pub status: u16,
    /// `Access-Control-Allow-Origin`: every line of it, behind commas.
    pub allowed_origin: Option<String>,
    /// `Date`.
    pub date: Option<Millis>,
    /// The body.
    pub body: Vec<u8>,
}

/// The SRV records of one service.
pub struct SrvLookup {
    /// `_matrix-fed._tcp` or `_matrix._tcp`.
    pub service: &'static str,
    /// What the name server said.
    pub records: io::Result<Vec<Srv>>,
}

/// Where an authority leads.
pub struct Route {
    /// Addresses to connect to.
    pub addresses: Vec<SocketAddr>,
    /// Addresses of the name that nobody elsewhere can connect to.
    pub inside: Vec<IpAddr>,
    /// Why there is none.
    pub failure: Option<String>,
}

/// What was shown in a TLS handshake.
pub struct Shown {
    /// What the first certificate says.
    pub facts: Option<CertificateFacts>,
    /// How many certificates there were.
    pub chain: usize,
    /// Why it is not believed.
    pub refused: Option<String>,
}

/// Asks what answers at an address for a name, and is told why in words.
pub struct TlsProbe(Arc<WebPkiServerVerifier>);

impl Client {
    /// `GET` of an address of the web, redirects followed unless they leave HTTPS. Errors: no answer.
    pub fn look_at(&self, url: &str, within: Duration) -> CallResult<Page> {
        let deadline = Instant::now() + within;
        let mut url = url.to_owned();
        for _ in 0..=REDIRECTS_MAX {
            let left = deadline.saturating_duration_since(Instant::now());
            let request = http::Request::get(&url).header("Accept", "application/json").body(());
            let request = request.map_err(|e| CallError::bad(format!("{url} is no address: {e}")))?;
            let request = self.pages.configure_request(request).timeout_global(Some(left)).build();
            let answer =
                self.pages.run(request).map_err(|e| ExchangeFailure::from_ureq(e).into_call_error())?;
            let location = answer.headers().get("location").and_then(|to| to.to_str().ok());
            let Some(to) =
                location.filter(|_| matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308))
            else {
                return page(url, answer);
            };
            let here = crate::protocol::media::web_url::WebUrl::parse(&url);
            let next = here.as_ref().and_then(|here| here.join(to));
            let next = next.ok_or_else(|| CallError::bad("it redirects to what is no address"))?;
            if url.starts_with("https:") && !next.is_https() {
                return Err(CallError::bad("it redirects to plain HTTP"));
            }
            url = next.to_string();
        }
        Err(CallError::bad("it redirects in circles"))
    }

    /// `GET` of a homeserver, which is found as for every other request to it.
    pub fn look_at_server(&self, server: &ServerName, path: &str, within: Duration) -> CallResult<Page> {
        let authority =
            self.discovery.authority(server, within).map_err(|no| CallError::Unreachable(no.0))?;
        let request =
            http::Request::get(format!("https://{authority}{path}")).header("Host", &authority).body(());
        let request = request.map_err(|e| CallError::bad(e.to_string()))?;
        let request = self.agent.configure_request(request).timeout_global(Some(within)).build();
        let answer = self.agent.run(request).map_err(|e| ExchangeFailure::from_ureq(e).into_call_error())?;
        page(format!("https://{authority}{path}"), answer)
    }

    /// `host[:port]` that requests to a server are made to: its own name, or where its well-known page leads.
    pub fn authority(&self, server: &ServerName, within: Duration) -> std::result::Result<String, String> {
        self.discovery.authority(server, within).map_err(|no| no.0)
    }

    /// The SRV records of a host name, of each service.
    pub fn srv_records(&self, host: &str, within: Duration) -> Vec<SrvLookup> {
        let ask = |service| {
            let records = self.discovery.lookups().srv(&format!("{service}.{host}"), within / 2);
            SrvLookup { service, records }
        };
        SRV_SERVICES.into_iter().map(ask).collect()
    }

    /// The addresses behind an authority.
    pub fn route_to(&self, authority: &str, within: Duration) -> Route {
        if let Some(address) = self.names.detour_of(authority) {
            return Route { addresses: vec![address], inside: Vec::new(), failure: None };
        }
        let found = self.discovery.socket_addresses(authority, within);
        let host = HostPort::parse(authority);
        let all = match host.and_then(|name| name.ip().map(|ip| vec![ip])) {
            Some(ip) => ip,
            None => host
                .and_then(|name| self.discovery.lookups().addresses(name.host, within).ok())
                .unwrap_or_default(),
        };
        let inside = all.into_iter().filter(|ip| !self.discovery.guard().allows(*ip)).collect();
        match found {
            Ok(addresses) => Route { addresses, inside, failure: None },
            Err(no) => Route { addresses: Vec::new(), inside, failure: Some(no.0) },
        }
    }
}

fn page(url: String, answer: http::Response<ureq::Body>) -> CallResult<Page> {
    let status = answer.status().as_u16();
    let all = |name: &str| {
        let values = answer.headers().get_all(name).iter();
        let values: Vec<_> =
            values.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect();
        (!values.is_empty()).then(|| values.join(", "))
    };
    let (allowed_origin, date) = (all("access-control-allow-origin"), all("date"));
    let date = date.and_then(|date| http_date(&date));
    let body = answer.into_body().into_with_config().limit(PAGE_BYTES_MAX).read_to_vec();
    let body = body.map_err(|e| ExchangeFailure::from_ureq(e).into_call_error())?;
    Ok(Page { url, status, allowed_origin, date, body })
}

impl TlsProbe {
    /// One that believes whom every request to another server believes. Errors: a file of root certificates that cannot be
    /// read.
    pub fn new(trust_ca: &[PathBuf]) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().cloned());
        for file in trust_ca {
            let wrong = |e: String| Error::invalid_param(format!("--trust-ca {}: {e}", file.display()));
            let pem = std::fs::read(file).map_err(|e| wrong(reason(&e)))?;
            let certificates: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
            roots.add_parsable_certificates(certificates.map_err(|e| wrong(e.to_string()))?);
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
        Ok(Self(verifier.map_err(Error::internal)?))
    }

    /// Whether a chain is good for a host now; none if it is, else why not.
    pub fn refusal(&self, chain: &[CertificateDer<'_>], host: &str) -> Option<String> {
        let (first, rest) = chain.split_first()?;
        let name = match tls_name(host) {
            Some(name) => name,
            None => return Some(format!("{host} is no name for a certificate")),
        };
        self.0.verify_server_cert(first, rest, &name, &[], UnixTime::now()).err().map(|e| in_words(&e, host))
    }

    /// Shakes hands with whatever answers at `address`, as if for `host`. Errors: nothing does, or it speaks no TLS.
    pub fn look(&self, address: SocketAddr, host: &str, within: Duration) -> io::Result<Shown> {
        let deadline = Instant::now() + within;
        let mut stream = Until { stream: TcpStream::connect_timeout(&address, within)?, deadline };
        let seen = Arc::new(SeenChain { inner: self.0.clone(), chain: Mutex::default() });
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .dangerous()
            .with_custom_certificate_verifier(seen.clone())
            .with_no_client_auth();
        let name = tls_name(host).ok_or_else(|| io::Error::other("no name for a certificate"))?;
        let mut tls = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
        let mut failure = None;
        for _ in 0..HANDSHAKE_ROUNDS_MAX {
            if !tls.is_handshaking() {
                break;
            }
            if let Err(e) = tls.complete_io(&mut stream) {
                failure = Some(e);
                break;
            }
        }
        let chain = std::mem::take(&mut *lock(&seen.chain));
        if chain.is_empty() {
            return Err(failure.unwrap_or_else(|| io::ErrorKind::TimedOut.into()));
        }
        let refused = self.refusal(&chain, host).or_else(|| failure.map(|e| reason(&e)));
        let facts = CertificateFacts::read(&chain[0]);
        Ok(Shown { facts, chain: chain.len(), refused })
    }
}

/// A stream whose reads and writes all end by one time, however many there are and however little each of them brings.
struct Until {
    stream: TcpStream,
    deadline: Instant,
}

impl Until {
    fn left(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

impl Read for Until {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        self.stream.read(buf)
    }
}

impl Write for Until {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

fn tls_name(host: &str) -> Option<TlsName<'static>> {
    TlsName::try_from(host.trim_matches(['[', ']']).to_owned()).ok()
}

fn in_words(e: &rustls::Error, host: &str) -> String {
    match e {
        rustls::Error::InvalidCertificate(why) => match why {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "it has expired".into(),
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "it is not good yet".into()
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                format!("it is not for {host}")
            }
            CertificateError::UnknownIssuer => {
                "nobody that others trust issued it, or the certificates in between are missing".into()
            }
            CertificateError::Revoked => "it was revoked".into(),
            // The library that judged has its error within, and no words for it.
            CertificateError::Other(why) if format!("{why:?}").contains("CaUsedAsEndEntity") => {
                "it is one of an authority (CA:TRUE), to issue others with, and no server's".into()
            }
            other => other.to_string(),
        },
        other => other.to_string(),
    }
}

/// Judges as the verifier within, and keeps what it was shown.
#[derive(Debug)]
struct SeenChain {
    inner: Arc<WebPkiServerVerifier>,
    chain: Mutex<Vec<CertificateDer<'static>>>,
}

impl ServerCertVerifier for SeenChain {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &TlsName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        let all = [end_entity].into_iter().chain(intermediates);
        *lock(&self.chain) = all.map(|certificate| certificate.clone().into_owned()).collect();
        self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    #[test]
    fn a_server_that_shakes_hands_byte_by_byte_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let drip = thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            stream.set_read_timeout(Some(Duration::from_millis(250))).unwrap();
            // A record of TLS, and within it the beginning of a long message.
            let begin = [22, 3, 3, 0x40, 0, 2, 0, 0x3f, 0xf0];
            for byte in begin.into_iter().chain([0; 120]) {
                let is_sent = stream.write_all(&[byte]).is_ok();
                if !is_sent || matches!(stream.read(&mut [0; 4096]), Ok(0)) {
                    return;
                }
            }
        });
        let (probe, begun) = (TlsProbe::new(&[]).unwrap(), Instant::now());
        assert!(probe.look(address, "example.org", Duration::from_secs(1)).is_err());
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
        drip.join().unwrap();
    }
}
