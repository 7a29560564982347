//! The scripted server that puts load on another one: real signatures, real TLS, users that were never seen before.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use doorstep::protocol::ids::ServerName;
use doorstep::protocol::json::CanonicalObject;
use doorstep::protocol::room_version::RoomVersion;
use doorstep::protocol::signatures::sign::SigningKey;
use doorstep::protocol::signatures::{hash, sign, x_matrix};
use doorstep::protocol::{json, room_version};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName as TlsName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Map, Value, json};

use crate::http::{Connection, encode};
use crate::{Peering, Result};

/// A connection to the server under test.
pub type Tls = Connection<StreamOwned<ClientConnection, TcpStream>>;

/// The scripted server: its name, its key, whom it speaks to.
pub struct Peer {
    pub name: ServerName,
    key: SigningKey,
    target: ServerName,
    pub version: RoomVersion,
    trust: Arc<ClientConfig>,
    run: u128,
    users: AtomicU64,
}

impl Peer {
    /// Listens too: the other side wants the key, and may tell what happens in its rooms.
    pub fn start(given: &Peering) -> Result<Self> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|e| e.to_string())?;
        let peer = Self {
            name: ServerName::parse(&format!("localhost:{}", given.port))?,
            key: SigningKey::generate(seed, "load"),
            target: ServerName::parse(&given.target)?,
            version: room_version::room_version(&given.room_version).ok_or("an unknown room version")?,
            trust: client_config(given)?,
            run: SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis(),
            users: AtomicU64::new(0),
        };
        peer.serve_keys(given)?;
        Ok(peer)
    }

    /// A user that nobody has seen.
    pub fn fresh_user(&self) -> String {
        format!("@u{}-{}:{}", self.run, self.users.fetch_add(1, Ordering::Relaxed), self.name)
    }

    /// `make_X` and `send_X` for a user, with `what` one of `join`, `knock`. Returns the answer of the latter.
    pub fn handshake(
        &self,
        connection: &mut Tls,
        what: &str,
        room: &str,
        user: &str,
    ) -> Result<(Map<String, Value>, Vec<u8>)> {
        let (room, user, known) = (encode(room), encode(user), self.version.id);
        let uri = format!("/_matrix/federation/v1/make_{what}/{room}/{user}?ver={known}");
        let template = self.call(connection, "GET", &uri, None)?;
        let mut template: Value = serde_json::from_slice(&template)?;
        let Value::Object(mut event) = template["event"].take() else { return Err("no template".into()) };
        event.insert("origin_server_ts".into(), now_ms()?.into());
        event.insert("origin".into(), self.name.as_str().into());
        self.sign(&mut event);
        let id = CanonicalObject::of(&event).event_id(self.version)?;
        let api = if what == "knock" { "v1" } else { "v2" };
        let uri = format!("/_matrix/federation/{api}/send_{what}/{room}/{}", encode(id.as_str()));
        let answer = self.call(connection, "PUT", &uri, Some(&json::canonical_object(&event)))?;
        Ok((event, answer))
    }

    /// Adds hash and signature to an event.
    pub fn sign(&self, event: &mut Map<String, Value>) {
        hash::add_content_hash(event);
        sign::sign_event(event, &self.name, &self.key, self.version);
    }

    /// The header that a request needs.
    pub fn authorization(&self, method: &str, uri: &str, body: Option<&[u8]>) -> Result<String> {
        Ok(x_matrix::build(method, uri, &self.name, &self.target, body, &self.key)?)
    }

    fn call(&self, connection: &mut Tls, method: &str, uri: &str, body: Option<&[u8]>) -> Result<Vec<u8>> {
        let authorization = self.authorization(method, uri, body)?;
        connection.call(method, uri, &authorization, body)
    }

    pub fn connect(&self) -> Result<Tls> {
        let stream =
            TcpStream::connect(("127.0.0.1", self.target.port().ok_or("the target's name has no port")?))?;
        stream.set_nodelay(true)?;
        let tls = ClientConnection::new(Arc::clone(&self.trust), TlsName::try_from("localhost")?)?;
        Ok(Connection::new(StreamOwned::new(tls, stream), self.target.as_str()))
    }

    /// Answers every request with this server's signed keys: nothing else that it is asked matters.
    fn serve_keys(&self, given: &Peering) -> Result<()> {
        let chain =
            CertificateDer::pem_file_iter(&given.certificate)?.collect::<std::result::Result<_, _>>()?;
        let key = PrivateKeyDer::from_pem_file(&given.key)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let config = Arc::new(config.with_no_client_auth().with_single_cert(chain, key)?);

        let Value::Object(mut keys) = json!({
            "server_name": self.name.as_str(),
            "valid_until_ts": now_ms()? + 86_400_000,
            "verify_keys": { self.key.key_id(): { "key": self.key.public_base64() } },
            "old_verify_keys": {},
        }) else {
            unreachable!("it was written as an object")
        };
        sign::sign_json(&mut keys, &self.name, &self.key);
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
}

/// Milliseconds since the Unix epoch.
pub fn now_ms() -> Result<u64> {
    Ok(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?)
}

fn client_config(given: &Peering) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(&given.ca)? {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}

fn answer_all(stream: TcpStream, config: Arc<ServerConfig>, body: &[u8]) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(600)))?;
    let mut stream = BufReader::new(StreamOwned::new(ServerConnection::new(config)?, stream));
    loop {
        let (mut line, mut length) = (String::new(), 0);
        while line != "\r\n" {
            line.clear();
            if stream.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
        }
        std::io::copy(&mut std::io::Read::take(&mut stream, length), &mut std::io::sink())?;
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.get_mut().write_all(&[head.as_bytes(), body].concat())?;
        stream.get_mut().flush()?;
    }
}
