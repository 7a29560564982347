//! Another server for unit tests: real TLS on loopback, and answers that a test makes up, polite or not.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Map, Value, json};

use crate::clock::Millis;
use crate::protocol::ServerName;
use crate::protocol::signatures::sign::{self, SigningKey};

/// A request as it came in.
#[derive(Debug, Clone)]
pub(crate) struct AskedOfPeer {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Which connection it came over, counted from 0.
    pub(crate) connection: usize,
}

impl AskedOfPeer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("a JSON body")
    }
}

/// What the peer does about a request.
pub(crate) enum ScriptedAnswer {
    Json(u16, Value),
    /// These bytes, then the connection stays as it is.
    Raw(Vec<u8>),
    /// These bytes again and again until the other side hangs up.
    Endless(Vec<u8>, Vec<u8>),
    /// A byte now and then.
    Drip(Vec<u8>),
    /// Nothing, and the connection stays open until the peer is dropped.
    Silence,
    HangUp,
    /// These bytes, and then the connection ends.
    CutOff(Vec<u8>),
}

type PeerScript = dyn Fn(&AskedOfPeer) -> ScriptedAnswer + Send + Sync;

/// The peer. Stops when dropped.
pub(crate) struct ScriptedPeer {
    pub(crate) name: ServerName,
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<AskedOfPeer>>>,
    stop: Arc<AtomicBool>,
}

impl ScriptedPeer {
    /// A peer called `localhost:port`, with a certificate of the test authority.
    pub(crate) fn start(script: impl Fn(&AskedOfPeer) -> ScriptedAnswer + Send + Sync + 'static) -> Self {
        Self::start_at(0, script)
    }

    /// Starts it at a certain port.
    pub(crate) fn start_at(
        port: u16,
        script: impl Fn(&AskedOfPeer) -> ScriptedAnswer + Send + Sync + 'static,
    ) -> Self {
        let files = crate::testing::certificates();
        let chain = CertificateDer::pem_file_iter(&files.cert).expect("a certificate file");
        let chain = chain.collect::<Result<Vec<_>, _>>().expect("certificates");
        let key = PrivateKeyDer::from_pem_file(&files.key).expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("protocol versions")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("a certificate with its key");
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("a port");
        let address = listener.local_addr().expect("its address");
        let name = ServerName::parse(&format!("localhost:{}", address.port())).expect("a name");
        let (asked, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let peer = Self { name, address, asked: asked.clone(), stop: stop.clone() };
        let (config, script): (_, Arc<PeerScript>) = (Arc::new(config), Arc::new(script));
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let Ok(stream) = stream else { continue };
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let (config, script, asked, stop) =
                    (config.clone(), script.clone(), asked.clone(), stop.clone());
                std::thread::spawn(move || serve(stream, config, &*script, &asked, number, &stop));
            }
        });
        peer
    }

    /// Everything that was asked so far.
    pub(crate) fn asked(&self) -> Vec<AskedOfPeer> {
        self.asked.lock().expect("no panic elsewhere").clone()
    }

    /// Waits until so many requests for targets that begin like this have come.
    pub(crate) fn wait_for(&self, target: &str, count: usize) -> Vec<AskedOfPeer> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let found: Vec<AskedOfPeer> =
                self.asked().into_iter().filter(|a| a.target.starts_with(target)).collect();
            if found.len() >= count {
                return found;
            }
            assert!(Instant::now() < deadline, "only {} of {count} requests for {target} came", found.len());
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }
}

impl Drop for ScriptedPeer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(
    stream: TcpStream,
    config: Arc<rustls::ServerConfig>,
    script: &PeerScript,
    all: &Mutex<Vec<AskedOfPeer>>,
    number: usize,
    stop: &AtomicBool,
) {
    let connection = rustls::ServerConnection::new(config).expect("a TLS connection");
    let mut stream = BufReader::new(rustls::StreamOwned::new(connection, stream));
    while let Some(asked) = read_request(&mut stream, number) {
        all.lock().expect("no panic elsewhere").push(asked.clone());
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let out = stream.get_mut();
        let alive = match script(&asked) {
            ScriptedAnswer::Json(status, body) => {
                let body = body.to_string();
                let head = format!(
                    "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                    body.len()
                );
                out.write_all(&[head.as_bytes(), body.as_bytes()].concat()).is_ok()
            }
            ScriptedAnswer::Raw(bytes) => out.write_all(&bytes).is_ok(),
            ScriptedAnswer::Endless(head, piece) => {
                let mut alive = out.write_all(&head).is_ok();
                while alive && !stop.load(Ordering::Relaxed) {
                    alive = out.write_all(&piece).is_ok();
                }
                false
            }
            ScriptedAnswer::Drip(bytes) => {
                for byte in bytes {
                    if stop.load(Ordering::Relaxed)
                        || out.write_all(&[byte]).and_then(|()| out.flush()).is_err()
                    {
                        return;
                    }
                    std::thread::park_timeout(Duration::from_millis(20));
                }
                true
            }
            ScriptedAnswer::Silence => {
                while !stop.load(Ordering::Relaxed) {
                    std::thread::park_timeout(Duration::from_millis(20));
                }
                false
            }
            ScriptedAnswer::HangUp => false,
            ScriptedAnswer::CutOff(bytes) => {
                let _ = out.write_all(&bytes).and_then(|()| out.flush());
                false
            }
        };
        if !alive || stream.get_mut().flush().is_err() {
            return;
        }
    }
}

fn read_request(stream: &mut impl BufRead, connection: usize) -> Option<AskedOfPeer> {
    let mut line = String::new();
    stream.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).ok().filter(|n| *n > 0)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    let length = headers.iter().find(|(n, _)| n.eq_ignore_ascii_case("content-length"));
    let mut body = vec![0; length.map_or(0, |(_, v)| v.parse().expect("a length"))];
    stream.read_exact(&mut body).ok()?;
    Some(AskedOfPeer { method, target, headers, body, connection })
}

/// A signed statement of this key for this server.
pub(crate) fn statement(server: &ServerName, key: &SigningKey, valid_until: Millis) -> Map<String, Value> {
    let mut all = Map::new();
    all.insert("server_name".into(), server.as_str().into());
    all.insert("verify_keys".into(), json!({ key.key_id(): { "key": key.public_base64() } }));
    all.insert("old_verify_keys".into(), json!({}));
    all.insert("valid_until_ts".into(), valid_until.into());
    sign::sign_json(&mut all, server, key);
    all
}
