//! HTTPS listeners: TLS by name, certificates that change under a running server, and strangers who speak no TLS.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use doorstep::TestServer;
use doorstep::config::TlsFiles;
use doorstep::internals::{
    Admission, BodyUse, Certificate, ConnectionLimits, ListenSpec, Outcome, Poll, Quota, Reply, Request,
    Server, Service,
};
use doorstep::protocol::UserId;
use doorstep::testing::temporary_folder;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

struct Hello;

impl Hello {
    fn answer(request: &Request, poll: Poll) -> Outcome {
        if request.path() == "/wait" && poll == Poll::First {
            let until = request.received() + Duration::from_millis(300);
            return Outcome::Wait { user: UserId::parse("@a:b").unwrap(), after: 0, until };
        }
        let body = if request.body().is_empty() { b"hello".to_vec() } else { request.body().to_vec() };
        Outcome::Reply(Reply::bytes("text/plain", body))
    }
}

impl Service for Hello {
    fn admit(self: Arc<Self>, _head: &mut Request) -> Result<Admission, Reply> {
        Ok(Admission { body: BodyUse::Whole(1 << 20), quota: Quota::Clients, call: Box::new(Hello::answer) })
    }

    fn wait(&self, _user: &UserId, _after: i64, until: Instant) -> Option<Poll> {
        std::thread::park_timeout(until.saturating_duration_since(Instant::now()));
        None
    }

    fn interrupt(&self) {}
}

type Tls = StreamOwned<ClientConnection, TcpStream>;

/// A certificate for localhost that signs itself: its chain and key as PEM, and its DER for who trusts it.
fn certificate() -> (String, String, Vec<u8>) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem(), made.cert.der().to_vec())
}

fn connect(address: SocketAddr, trusted: &[u8]) -> Tls {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.to_vec().into()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let tcp = TcpStream::connect(address).unwrap();
    tcp.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), tcp)
}

/// A request and the end of its reply.
fn ask(tls: &mut Tls, path: &str, body: &[u8]) -> std::io::Result<Vec<u8>> {
    write!(tls, "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len())?;
    tls.write_all(body)?;
    let mut got = Vec::new();
    let wanted = if body.is_empty() { b"hello".as_slice() } else { body };
    let mut buffer = [0; 4096];
    while !got.ends_with(wanted) {
        match tls.read(&mut buffer)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => got.extend_from_slice(&buffer[..n]),
        }
    }
    Ok(got)
}

fn serve(certificate: Certificate, limits: ConnectionLimits) -> (Server, SocketAddr) {
    let listen = [ListenSpec::tls("127.0.0.1:0".parse().unwrap(), certificate)];
    let server = Server::serve(Arc::new(Hello), limits, &listen).unwrap();
    let address = server.local_addrs()[0];
    (server, address)
}

fn write_files(folder: &Path, chain: &str, key: &str) -> TlsFiles {
    let files = TlsFiles { cert: folder.join("chain.pem"), key: folder.join("key.pem") };
    fs::write(&files.cert, chain).unwrap();
    fs::write(&files.key, key).unwrap();
    files
}

#[test]
fn requests_small_and_large_and_waiting_ones_work_over_tls() {
    let (chain, key, trusted) = certificate();
    let (_server, address) = serve(Certificate::Pem { chain, key }, ConnectionLimits::default());
    let mut tls = connect(address, &trusted);
    for _ in 0..3 {
        assert!(ask(&mut tls, "/", b"").unwrap().starts_with(b"HTTP/1.1 200 OK\r\n"));
    }
    let large: Vec<u8> = (0..600_000_u32).map(|n| b'a' + u8::try_from(n % 26).unwrap()).collect();
    ask(&mut tls, "/", &large).unwrap();
    ask(&mut tls, "/wait", b"").unwrap();
    ask(&mut tls, "/", b"").unwrap();
}

#[test]
fn a_replaced_certificate_is_served_to_new_connections_and_old_ones_stay() {
    let folder = temporary_folder("tls");
    let (old, new) = (certificate(), certificate());
    let files = write_files(&folder, &old.0, &old.1);
    let (server, address) = serve(Certificate::Files(files), ConnectionLimits::default());
    let mut before = connect(address, &old.2);
    ask(&mut before, "/", b"").unwrap();

    // A key that does not belong to the chain is not taken, and the old certificate stays.
    write_files(&folder, &new.0, &old.1);
    server.reload_certificates();
    ask(&mut connect(address, &old.2), "/", b"").unwrap();
    write_files(&folder, "no certificate", "no key");
    server.reload_certificates();
    ask(&mut connect(address, &old.2), "/", b"").unwrap();

    write_files(&folder, &new.0, &new.1);
    server.reload_certificates();
    ask(&mut connect(address, &new.2), "/", b"").unwrap();
    assert!(ask(&mut connect(address, &old.2), "/", b"").is_err());
    ask(&mut before, "/", b"").unwrap();
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_replaced_certificate_is_noticed_without_being_told() {
    let folder = temporary_folder("tls");
    let (old, new) = (certificate(), certificate());
    let files = write_files(&folder, &old.0, &old.1);
    let (_server, address) = serve(Certificate::Files(files), ConnectionLimits::default());
    ask(&mut connect(address, &old.2), "/", b"").unwrap();
    write_files(&folder, &new.0, &new.1);
    let deadline = Instant::now() + Duration::from_secs(30);
    while ask(&mut connect(address, &new.2), "/", b"").is_err() {
        assert!(Instant::now() < deadline, "the new certificate is never served");
        std::thread::park_timeout(Duration::from_millis(200));
    }
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_certificate_that_cannot_be_used_is_an_error_that_names_it() {
    let folder = temporary_folder("tls");
    let listen = |files: TlsFiles| {
        let listen = [ListenSpec::tls("127.0.0.1:0".parse().unwrap(), Certificate::Files(files))];
        Server::serve(Arc::new(Hello), ConnectionLimits::default(), &listen).err().expect("an error")
    };
    let missing = TlsFiles { cert: folder.join("none.pem"), key: folder.join("none.pem") };
    assert!(listen(missing).message().contains("none.pem"));
    let files = write_files(&folder, "-----BEGIN NONSENSE-----", "nonsense");
    assert!(listen(files).message().contains("chain.pem"));
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn strangers_who_speak_no_tls_or_never_finish_it_disturb_nobody() {
    let (chain, key, trusted) = certificate();
    let limits = ConnectionLimits { head_timeout: Duration::from_millis(300), ..ConnectionLimits::default() };
    let (server, address) = serve(Certificate::Pem { chain, key }, limits);
    let strangers: Vec<TcpStream> = (0..100)
        .map(|n| {
            let mut tcp = TcpStream::connect(address).unwrap();
            let hello: &[u8] = match n % 4 {
                0 => b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
                1 => b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
                2 => b"\x16",
                _ => b"\x15\x03\x03\x00\x02\x02\x28",
            };
            tcp.write_all(hello).unwrap();
            tcp
        })
        .collect();
    ask(&mut connect(address, &trusted), "/", b"").unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while server.connections() > 0 {
        assert!(Instant::now() < deadline, "{} connections stay", server.connections());
        std::thread::park_timeout(Duration::from_millis(10));
    }
    drop(strangers);
}

#[test]
fn a_homeserver_answers_over_tls_with_the_certificate_of_its_name() {
    let server = TestServer::start();
    let files = doorstep::testing::certificates();
    let pem = fs::read(&files.ca).unwrap();
    let ca: rustls::pki_types::CertificateDer<'_> =
        rustls::pki_types::pem::PemObject::from_pem_slice(&pem).unwrap();
    let port = server.name().rsplit(':').next().unwrap().parse().unwrap();
    let mut tls = connect(SocketAddr::from(([127, 0, 0, 1], port)), &ca);
    tls.write_all(b"GET /_matrix/client/versions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut reply = String::new();
    tls.read_to_string(&mut reply).unwrap();
    assert!(reply.starts_with("HTTP/1.1 200 OK\r\n") && reply.contains("\"v1.11\""), "{reply}");
}
