//! A certificate authority that speaks ACME (RFC 8555) over real TLS, looks at what a client does as closely as a real one,
//! and answers with whatever a test wants in between. It really connects to where the names lead, to see the proofs.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use doorstep::clock::Clock;
use doorstep::config::{AcmeSettings, TlsFiles};
use doorstep::internals::{
    Admission, BodyUse, Certificate, ConnectionLimits, ListenSpec, Outcome, Poll, Quota, Reply, Request,
    Server, Service,
};
use doorstep::protocol::UserId;
use doorstep::testing::certificates;
use rcgen::{
    BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData,
    SignatureAlgorithm,
};
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const ERROR: &str = "urn:ietf:params:acme:error:";
const DAY: Duration = Duration::from_secs(86_400);

/// What is answered in place of what would be; whatever it is, the request has been counted.
type Fault = Box<dyn FnMut() -> Option<Reply> + Send>;

struct Order {
    names: Vec<String>,
    status: &'static str,
    /// The status of the authorization of each name.
    proven: Vec<&'static str>,
    failure: Value,
    token: String,
    replaces: Option<String>,
    chain: Option<String>,
}

struct State {
    base: String,
    nonces: HashSet<String>,
    count: usize,
    /// The account's key, once there is one, and whom to write to.
    account: Option<(Value, Value)>,
    orders: Vec<Order>,
    faults: Vec<(&'static str, Fault)>,
    asked: Vec<String>,
    challenges: Vec<&'static str>,
    life: Duration,
    ports: [u16; 2],
    window: Option<Value>,
    issuer: Issuer<'static, KeyPair>,
    root: Vec<u8>,
}

/// The authority.
pub struct Authority {
    state: Arc<Mutex<State>>,
    /// Its clock, which a test moves together with that of its client.
    pub clock: Clock,
    _server: Server,
}

struct Answering(Arc<Mutex<State>>, Clock);

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Authority {
    /// Starts one that issues certificates for ninety days.
    pub fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let base = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap().der().to_vec();
        let state = Arc::new(Mutex::new(State {
            base,
            nonces: HashSet::new(),
            count: 0,
            account: None,
            orders: Vec::new(),
            faults: Vec::new(),
            asked: Vec::new(),
            challenges: vec!["http-01", "dns-01", "tls-alpn-01"],
            life: 90 * DAY,
            ports: [1, 1],
            window: None,
            issuer: Issuer::new(params, key),
            root,
        }));
        let files = certificates();
        let tls = TlsFiles { cert: files.cert.clone(), key: files.key.clone() };
        let listen = ListenSpec::bound(listener, Some(Certificate::Files(tls))).unwrap();
        let clock = Clock::new();
        let answering = Arc::new(Answering(state.clone(), clock.clone()));
        let server = Server::serve(answering, ConnectionLimits::default(), &[listen]).unwrap();
        Self { state, clock, _server: server }
    }

    /// What a client needs to know of it.
    pub fn settings(&self) -> AcmeSettings {
        AcmeSettings {
            is_on: true,
            names: vec!["localhost".to_owned()],
            contact: None,
            external_account: None,
            directory: format!("{}/dir", locked(&self.state).base),
            trust_ca: vec![certificates().ca.clone()],
        }
    }

    /// Where all names lead: the plain port and the TLS port.
    pub fn names_lead_to(&self, ports: [u16; 2]) {
        locked(&self.state).ports = ports;
    }

    /// The certificate that its own sign.
    pub fn root(&self) -> Vec<u8> {
        locked(&self.state).root.clone()
    }

    /// From now on only these challenges are offered.
    pub fn offer(&self, challenges: &[&'static str]) {
        locked(&self.state).challenges = challenges.to_vec();
    }

    /// How long the next certificates are good.
    pub fn set_life(&self, life: Duration) {
        locked(&self.state).life = life;
    }

    /// What it suggests of when to renew.
    pub fn suggest(&self, window: Value) {
        locked(&self.state).window = Some(window);
    }

    /// The next requests whose path begins so are answered by this, as long as it gives an answer. What was said last counts
    /// first.
    pub fn fault(&self, path: &'static str, answer: impl FnMut() -> Option<Reply> + Send + 'static) {
        locked(&self.state).faults.insert(0, (path, Box::new(answer)));
    }

    /// The same for one request.
    pub fn fault_once(&self, path: &'static str, answer: impl FnOnce() -> Reply + Send + 'static) {
        let mut answer = Some(answer);
        self.fault(path, move || answer.take().map(|answer| answer()));
    }

    /// There are no faults any more.
    pub fn mend(&self) {
        locked(&self.state).faults.clear();
    }

    /// How often it was asked for what begins so, by requests that it took for honest or answered by a fault.
    pub fn asked(&self, path: &str) -> usize {
        locked(&self.state).asked.iter().filter(|asked| asked.starts_with(path)).count()
    }

    /// Whom to write to, as the account says.
    pub fn contact(&self) -> Value {
        locked(&self.state).account.as_ref().map(|(_, contact)| contact.clone()).unwrap_or_default()
    }

    /// Which certificate each order replaces, the last order's last.
    pub fn replaced(&self) -> Vec<Option<String>> {
        locked(&self.state).orders.iter().map(|order| order.replaces.clone()).collect()
    }

    /// The chain that was given last.
    pub fn chain(&self) -> Option<String> {
        locked(&self.state).orders.iter().rev().find_map(|order| order.chain.clone())
    }

    /// A certificate for these names and this key, or another if there is none, that is good from then on for so long.
    pub fn issue(&self, names: &[String], key: Option<&[u8]>, life: Duration) -> String {
        let now = self.clock.now_ms() - 60_000;
        locked(&self.state).issue(names, key, now, life)
    }
}

/// An error as ACME has it.
pub fn problem(status: u16, kind: &str, detail: &str) -> Reply {
    Reply::json_status(status, &json!({ "type": format!("{ERROR}{kind}"), "detail": detail }))
}

impl Service for Answering {
    fn admit(self: Arc<Self>, _: &mut Request) -> Result<Admission, Reply> {
        let call = move |request: &Request, _: Poll| Outcome::Reply(self.answer(request));
        Ok(Admission { body: BodyUse::Whole(1 << 20), quota: Quota::Clients, call: Box::new(call) })
    }

    fn wait(&self, _: &UserId, _: i64, _: Instant) -> Option<Poll> {
        None
    }

    fn interrupt(&self) {}
}

impl Answering {
    fn answer(&self, request: &Request) -> Reply {
        let path = request.path().to_owned();
        // A fault may take its time, and others go on meanwhile. One that has nothing more to say is over.
        loop {
            let fault = {
                let mut state = locked(&self.0);
                let at = state.faults.iter().position(|(part, _)| path.starts_with(part));
                at.map(|at| state.faults.remove(at))
            };
            let Some((part, mut fault)) = fault else { break };
            if let Some(reply) = fault() {
                let mut state = locked(&self.0);
                state.asked.push(path);
                state.faults.insert(0, (part, fault));
                return reply.with_header("Replay-Nonce", &state.nonce());
            }
        }
        let mut state = locked(&self.0);
        let reply = match path.as_str() {
            "/dir" => Reply::json(&state.directory()),
            "/nonce" => Reply::empty(),
            _ if path.starts_with("/info/") => {
                let window = state.window.clone().unwrap_or_default();
                Reply::json(&json!({ "suggestedWindow": window })).with_header("Retry-After", "21600")
            }
            _ => match state.verified(request) {
                Ok(payload) => {
                    state.asked.push(path.clone());
                    if path.starts_with("/chall/") {
                        drop(state);
                        return self.challenge(&path);
                    }
                    state.post(&path, &payload, self.1.now_ms())
                }
                Err(refused) => refused,
            },
        };
        if matches!(path.as_str(), "/dir" | "/nonce") || path.starts_with("/info/") {
            state.asked.push(path);
        }
        let nonce = state.nonce();
        reply.with_header("Replay-Nonce", &nonce)
    }

    /// Looks at the proof, as it was told to: `/chall/ORDER/NAME/KIND`.
    fn challenge(&self, path: &str) -> Reply {
        let parts: Vec<&str> = path.split('/').collect();
        let (order, name, kind) =
            (parts[2].parse::<usize>().unwrap(), parts[3].parse::<usize>().unwrap(), parts[4]);
        let (of, token, ports, key) = {
            let state = locked(&self.0);
            let found = &state.orders[order];
            let key = state.account.as_ref().unwrap().0.clone();
            (found.names[name].clone(), found.token.clone(), state.ports, key)
        };
        let canonical = format!(r#"{{"crv":"P-256","kty":"EC","x":{},"y":{}}}"#, key["x"], key["y"]);
        let expected = format!("{token}.{}", URL_SAFE_NO_PAD.encode(Sha256::digest(canonical)));
        let seen = match kind {
            "http-01" => see_page(ports[0], &of, &token, &expected),
            _ => see_certificate(ports[1], &of, &expected),
        };
        let mut state = locked(&self.0);
        let found = &mut state.orders[order];
        match seen {
            Ok(()) => found.proven[name] = "valid",
            Err(e) => {
                (found.proven[name], found.status) = ("invalid", "invalid");
                found.failure = json!({ "type": format!("{ERROR}connection"), "detail": e });
            }
        }
        if found.proven.iter().all(|status| *status == "valid") {
            found.status = "ready";
        }
        let nonce = state.nonce();
        Reply::json(&json!({ "status": "processing" })).with_header("Replay-Nonce", &nonce)
    }
}

impl State {
    fn nonce(&mut self) -> String {
        self.count += 1;
        let nonce = format!("nonce-{}", self.count);
        self.nonces.insert(nonce.clone());
        nonce
    }

    fn directory(&self) -> Value {
        let at = |path: &str| format!("{}/{path}", self.base);
        let mut directory = json!({
            "newNonce": at("nonce"), "newAccount": at("account"), "newOrder": at("order"), "revokeCert": at("no"),
            "meta": { "termsOfService": "https://terms.example/" },
        });
        if self.window.is_some() {
            directory["renewalInfo"] = at("info").into();
        }
        directory
    }

    /// The payload of a request that is signed as it should be (RFC 8555, 6).
    fn verified(&mut self, request: &Request) -> Result<Value, Reply> {
        let refuse = |kind: &str, why: &str| Err(problem(400, kind, why));
        if request.header("content-type") != Some("application/jose+json") {
            return refuse("malformed", "the content type");
        }
        let jws: Value = serde_json::from_slice(request.body()).unwrap_or_default();
        let part = |name: &str| jws[name].as_str().unwrap_or_default().to_owned();
        let decoded = |name: &str| URL_SAFE_NO_PAD.decode(part(name)).unwrap_or_default();
        let head: Value = serde_json::from_slice(&decoded("protected")).unwrap_or_default();
        if head["alg"] != "ES256" || head["url"] != format!("{}{}", self.base, request.path()) {
            return refuse("unauthorized", "the algorithm or the address");
        }
        let is_new = request.path() == "/account";
        let kid = head.get("kid").and_then(Value::as_str);
        let key = match (is_new, kid, &self.account) {
            (true, None, _) => head["jwk"].clone(),
            (false, Some(kid), Some((key, _))) if kid == format!("{}/account/1", self.base) => key.clone(),
            (false, Some(_), _) => return refuse("accountDoesNotExist", "who is that?"),
            _ => return refuse("malformed", "the key or its name"),
        };
        let half =
            |name: &str| URL_SAFE_NO_PAD.decode(key[name].as_str().unwrap_or_default()).unwrap_or_default();
        let point = [&[4][..], &half("x"), &half("y")].concat();
        let signed = format!("{}.{}", part("protected"), part("payload"));
        let verified = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
            .verify(signed.as_bytes(), &decoded("signature"));
        if verified.is_err() {
            return refuse("malformed", "the signature");
        }
        if !self.nonces.remove(head["nonce"].as_str().unwrap_or_default()) {
            return refuse("badNonce", "the nonce");
        }
        let payload = decoded("payload");
        let payload =
            if payload.is_empty() { Value::Null } else { serde_json::from_slice(&payload).unwrap() };
        if is_new {
            if payload["termsOfServiceAgreed"] != true {
                return refuse("userActionRequired", "the terms");
            }
            if self.account.as_ref().is_none_or(|(known, _)| *known != key) {
                self.account = Some((key, payload["contact"].clone()));
            }
        }
        Ok(payload)
    }

    fn post(&mut self, path: &str, payload: &Value, now: i64) -> Reply {
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let number = |at: usize| parts.get(at).and_then(|part| part.parse::<usize>().ok());
        let order = number(1).filter(|order| *order < self.orders.len());
        match (parts[0], order) {
            ("account", None) => {
                if let (Some((_, contact)), true) = (&mut self.account, payload["contact"].is_array())
                    && parts.len() > 1
                {
                    *contact = payload["contact"].clone();
                }
                let contact = self.account.as_ref().map(|(_, contact)| contact.clone());
                Reply::json(&json!({ "status": "valid", "contact": contact }))
                    .with_header("Location", &format!("{}/account/1", self.base))
            }
            ("order", None) if parts.len() == 1 => {
                let names: Vec<String> = payload["identifiers"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|identifier| {
                        assert_eq!(identifier["type"], "dns");
                        identifier["value"].as_str().unwrap().to_owned()
                    })
                    .collect();
                let (proven, token) = (vec!["pending"; names.len()], format!("token_{}-x", self.count));
                let replaces = payload["replaces"].as_str().map(str::to_owned);
                let (status, failure, chain) = ("pending", Value::Null, None);
                self.orders.push(Order { names, status, proven, failure, token, replaces, chain });
                self.tell(self.orders.len() - 1).with_status(201)
            }
            ("order", Some(order)) => self.tell(order),
            ("authz", Some(order)) => self.authorization(order, number(2).unwrap()),
            ("finalize", Some(order)) if self.orders[order].status == "ready" => {
                let request = URL_SAFE_NO_PAD.decode(payload["csr"].as_str().unwrap()).unwrap();
                let names = self.orders[order].names.clone();
                let chain = self.issue(&names, Some(&request), now - 60_000, self.life);
                (self.orders[order].chain, self.orders[order].status) = (Some(chain), "valid");
                self.tell(order)
            }
            ("finalize", Some(_)) => problem(403, "orderNotReady", "prove first"),
            ("cert", Some(order)) => {
                let chain = self.orders[order].chain.clone().unwrap();
                Reply::bytes("application/pem-certificate-chain", chain.into_bytes())
            }
            _ => problem(404, "malformed", "there is no such thing"),
        }
    }

    fn tell(&self, number: usize) -> Reply {
        let order = &self.orders[number];
        let authorizations: Vec<String> =
            (0..order.names.len()).map(|name| format!("{}/authz/{number}/{name}", self.base)).collect();
        let mut told = json!({
            "status": order.status, "authorizations": authorizations,
            "finalize": format!("{}/finalize/{number}", self.base),
        });
        if order.chain.is_some() {
            told["certificate"] = format!("{}/cert/{number}", self.base).into();
        }
        Reply::json(&told).with_header("Location", &format!("{}/order/{number}", self.base))
    }

    fn authorization(&self, number: usize, name: usize) -> Reply {
        let order = &self.orders[number];
        let challenges: Vec<Value> = self
            .challenges
            .iter()
            .map(|kind| {
                json!({
                    "type": kind, "status": order.proven[name], "token": order.token, "error": order.failure,
                    "url": format!("{}/chall/{number}/{name}/{kind}", self.base),
                })
            })
            .collect();
        Reply::json(&json!({
            "status": order.proven[name], "challenges": challenges,
            "identifier": { "type": "dns", "value": order.names[name] },
        }))
    }

    fn issue(&self, names: &[String], request: Option<&[u8]>, from: i64, life: Duration) -> String {
        let mut params = CertificateParams::new(names).unwrap();
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        params.not_before = epoch + Duration::from_millis(u64::try_from(from).unwrap());
        params.not_after = params.not_before + life;
        params.use_authority_key_identifier_extension = true;
        let leaf = match request {
            Some(request) => params.signed_by(&Point(point_of(request)), &self.issuer),
            None => params.signed_by(&KeyPair::generate().unwrap(), &self.issuer),
        };
        leaf.unwrap().pem()
    }
}

/// A public key on P-256, uncompressed.
struct Point(Vec<u8>);

impl PublicKeyData for Point {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

/// The key of a request: the one bit string of 65 bytes in it that begins as a point does.
fn point_of(request: &[u8]) -> Vec<u8> {
    const BEFORE: [u8; 4] = [0x03, 0x42, 0x00, 0x04];
    let at = request.windows(4).position(|window| window == BEFORE).expect("a request with a key on P-256");
    request[at + 3..at + 3 + 65].to_vec()
}

/// HTTP-01 (RFC 8555, 8.3).
fn see_page(port: u16, name: &str, token: &str, expected: &str) -> Result<(), String> {
    let mut tcp = TcpStream::connect(("127.0.0.1", port)).map_err(|e| e.to_string())?;
    tcp.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let ask = format!(
        "GET /.well-known/acme-challenge/{token} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n"
    );
    tcp.write_all(ask.as_bytes()).map_err(|e| e.to_string())?;
    let mut page = String::new();
    tcp.read_to_string(&mut page).map_err(|e| e.to_string())?;
    let is_proof = page.starts_with("HTTP/1.1 200 ") && page.ends_with(&format!("\r\n\r\n{expected}"));
    if is_proof { Ok(()) } else { Err(format!("another page: {page}")) }
}

/// TLS-ALPN-01 (RFC 8737, 3).
fn see_certificate(port: u16, name: &str, expected: &str) -> Result<(), String> {
    let (mut tls, served) = speak(port, name, &[b"acme-tls/1"])?;
    if tls.conn.alpn_protocol() != Some(b"acme-tls/1") {
        return Err("another protocol".to_owned());
    }
    // id-pe-acmeIdentifier, critical, an octet string within an octet string.
    let extension = [
        &[0x06, 0x08, 0x2b, 6, 1, 5, 5, 7, 1, 0x1f, 1, 1, 0xff, 4, 0x22, 4, 0x20][..],
        &Sha256::digest(expected)[..],
    ]
    .concat();
    if !served.windows(extension.len()).any(|window| window == extension) {
        return Err("another certificate".to_owned());
    }
    let names = [&[0x82, u8::try_from(name.len()).unwrap()], name.as_bytes()].concat();
    if !served.windows(names.len()).any(|window| window == names) {
        return Err("a certificate for another name".to_owned());
    }
    // Nothing else is to be had on such a connection.
    let asked =
        tls.write_all(b"GET /_matrix/client/versions HTTP/1.1\r\nHost: x\r\n\r\n").and_then(|()| tls.flush());
    let mut more = Vec::new();
    let _ = asked.and_then(|()| tls.read_to_end(&mut more).map(drop));
    if more.is_empty() { Ok(()) } else { Err("it goes on after the proof".to_owned()) }
}

/// A connection over TLS to whoever it is, with one of these protocols, and the certificate that is served.
pub fn speak(
    port: u16,
    name: &str,
    protocols: &[&[u8]],
) -> Result<(StreamOwned<ClientConnection, TcpStream>, Vec<u8>), String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Whoever))
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let tcp = TcpStream::connect(("127.0.0.1", port)).map_err(|e| e.to_string())?;
    tcp.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let server_name = ServerName::try_from(name.to_owned()).unwrap();
    let mut tls = StreamOwned::new(ClientConnection::new(Arc::new(config), server_name).unwrap(), tcp);
    while tls.conn.is_handshaking() {
        tls.conn.complete_io(&mut tls.sock).map_err(|e| e.to_string())?;
    }
    let served = tls.conn.peer_certificates().and_then(|all| all.first()).expect("a certificate").to_vec();
    Ok((tls, served))
}

#[derive(Debug)]
struct Whoever;

impl ServerCertVerifier for Whoever {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
