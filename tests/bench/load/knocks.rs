//! A scripted server that knocks as fast as it is let: real signatures, real TLS, a new user for every knock.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use doorstep::protocol::ids::ServerName;
use doorstep::protocol::sign::SigningKey;
use doorstep::protocol::{hash, json, room_version, sign, x_matrix};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName as TlsName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Map, Value, json};

use crate::Result;
use crate::clock::Clock;
use crate::http::{Connection, encode};

/// The scripted server: its name, its key, whom it knocks at.
struct Peer {
    name: ServerName,
    key: SigningKey,
    target: ServerName,
    trust: Arc<ClientConfig>,
}

/// Knocks from all connections for the given time and tells how it went.
pub fn answer(given: &crate::Knocks) -> Result<Value> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|e| e.to_string())?;
    let peer = Peer {
        name: ServerName::parse(&format!("localhost:{}", given.port))?,
        key: SigningKey::generate(seed, "load"),
        target: ServerName::parse(&given.target)?,
        trust: client_config(&given.ca)?,
    };
    serve_keys(&peer, given)?;

    // One before the clock starts, so that the other side has fetched our key.
    peer.knock_for(Duration::ZERO, &given.room[0], given)?;
    let clock = Clock::start(given.pid)?;
    let ended: Vec<Result<Vec<Duration>>> = std::thread::scope(|scope| {
        let start = |number: usize| {
            let room = &given.room[number % given.room.len()];
            let peer = &peer;
            scope.spawn(move || peer.knock_for(Duration::from_secs(given.seconds), room, given))
        };
        let running: Vec<_> = (0..given.connections).map(start).collect();
        running.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err("a panic".into()))).collect()
    });
    let (mut times, mut broken) = (Vec::new(), Vec::new());
    for end in ended {
        match end {
            Ok(of_connection) => times.extend(of_connection),
            Err(e) => broken.push(e.to_string()),
        }
    }
    let mut figures = clock.stop(times)?;
    figures["broken"] = broken.into();
    Ok(figures)
}

impl Peer {
    /// Knocks one after the other until the time is over, at least once. Returns how long each took.
    fn knock_for(&self, time: Duration, room: &str, given: &crate::Knocks) -> Result<Vec<Duration>> {
        static USERS: AtomicU64 = AtomicU64::new(0);
        let version = room_version::room_version(&given.room_version).ok_or("an unknown room version")?;
        let mut connection = self.connect()?;
        let run = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
        let (mut times, begun) = (Vec::new(), Instant::now());
        loop {
            let user = format!("@k{run}-{}:{}", USERS.fetch_add(1, Ordering::Relaxed), self.name);
            let started = Instant::now();
            let uri = format!(
                "/_matrix/federation/v1/make_knock/{}/{}?ver={}",
                encode(room),
                encode(&user),
                given.room_version
            );
            let template = self.call(&mut connection, "GET", &uri, None)?;
            let mut template: Value = serde_json::from_slice(&template)?;
            let Value::Object(mut event) = template["event"].take() else { return Err("no template".into()) };
            self.complete(&mut event, version)?;
            let id = hash::event_id(&event, version)?;
            let uri = format!("/_matrix/federation/v1/send_knock/{}/{}", encode(room), encode(id.as_str()));
            self.call(&mut connection, "PUT", &uri, Some(&json::canonical_object(&event)))?;
            times.push(started.elapsed());
            if begun.elapsed() >= time {
                return Ok(times);
            }
        }
    }

    /// Makes the template ours: time, hash, signature.
    fn complete(&self, event: &mut Map<String, Value>, version: room_version::RoomVersion) -> Result<()> {
        let now = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
        event.insert("origin_server_ts".into(), now.into());
        event.insert("origin".into(), self.name.as_str().into());
        hash::add_content_hash(event);
        sign::sign_event(event, &self.name, &self.key, version);
        Ok(())
    }

    fn call(
        &self,
        connection: &mut Connection<StreamOwned<ClientConnection, TcpStream>>,
        method: &str,
        uri: &str,
        body: Option<&[u8]>,
    ) -> Result<Vec<u8>> {
        let authorization = x_matrix::build(method, uri, &self.name, &self.target, body, &self.key)?;
        connection.call(method, uri, &authorization, body)
    }

    fn connect(&self) -> Result<Connection<StreamOwned<ClientConnection, TcpStream>>> {
        let stream =
            TcpStream::connect(("127.0.0.1", self.target.port().ok_or("the target's name has no port")?))?;
        stream.set_nodelay(true)?;
        let tls = ClientConnection::new(Arc::clone(&self.trust), TlsName::try_from("localhost")?)?;
        Ok(Connection::new(StreamOwned::new(tls, stream), self.target.as_str()))
    }
}

fn client_config(ca: &Path) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca)? {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}

/// Answers every request with the scripted server's signed keys: nothing else is asked of a server that only knocks.
fn serve_keys(peer: &Peer, given: &crate::Knocks) -> Result<()> {
    let chain = CertificateDer::pem_file_iter(&given.certificate)?.collect::<std::result::Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_file(&given.key)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let config = Arc::new(config.with_no_client_auth().with_single_cert(chain, key)?);

    let until = SystemTime::now().duration_since(UNIX_EPOCH)? + Duration::from_secs(86_400);
    let Value::Object(mut keys) = json!({
        "server_name": peer.name.as_str(),
        "valid_until_ts": u64::try_from(until.as_millis())?,
        "verify_keys": { peer.key.key_id(): { "key": peer.key.public_base64() } },
        "old_verify_keys": {},
    }) else {
        unreachable!("it was written as an object")
    };
    sign::sign_json(&mut keys, &peer.name, &peer.key);
    let body = json::canonical_object(&keys);

    let listener = TcpListener::bind(("127.0.0.1", given.port))?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (config, body) = (Arc::clone(&config), body.clone());
            std::thread::spawn(move || answer_all(stream, config, &body));
        }
    });
    Ok(())
}

fn answer_all(stream: TcpStream, config: Arc<ServerConfig>, body: &[u8]) -> Result<()> {
    let mut stream = BufReader::new(StreamOwned::new(ServerConnection::new(config)?, stream));
    loop {
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            if stream.read_line(&mut line)? == 0 {
                return Ok(());
            }
        }
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.get_mut().write_all(&[head.as_bytes(), body].concat())?;
        stream.get_mut().flush()?;
    }
}
