//! The requests of ACME (RFC 8555, 6 and 7): each signed with the account's key (JWS, ES256) over a nonce that the authority
//! gave, and only to where the authority's directory is, which the operator named. Everything that it answers is bounded:
//! in bytes and in time, and it leads nowhere else.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use ureq::{Agent, http};

use crate::clock::Clock;
use crate::error::{Error, Result, reason};
use crate::federation::client::agent::{self, WebResolver, base_config, roots};
use crate::federation::connections::Connections;
use crate::federation::discovery::address_guard::AddressGuard;
use crate::federation::discovery::names::Names;
use crate::protocol::certificates::acme::{retry_after, text, told_problem};
use crate::protocol::json::parse_object;

/// Time for one request and its answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest answer. A chain of three certificates has 6 KB.
const ANSWER_BYTES_MAX: u64 = 256 << 10;
/// Longest address that an answer may name.
const URL_BYTES_MAX: usize = 2048;
const NONCE_BYTES_MAX: usize = 1024;
/// How often a request is made again whose nonce was refused. Servers that forget nonces do so seldom; who refuses them all
/// is left alone.
const NONCE_TRIES_MAX: usize = 10;
/// The prefix of the types of errors (RFC 8555, 6.7).
const ERROR_TYPE: &str = "urn:ietf:params:acme:error:";

/// Why the authority gave nothing.
#[derive(Debug)]
pub struct AcmeError {
    /// For people.
    pub what: String,
    /// What it calls the error, without the prefix, if it answered with one; `elsewhere` if it leads there.
    pub kind: Option<String>,
    /// When it wants to be asked again.
    pub retry_after: Option<Duration>,
}

impl AcmeError {
    /// One of no kind, in words.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), kind: None, retry_after: None }
    }
}

impl From<Error> for AcmeError {
    fn from(e: Error) -> Self {
        Self::new(e.to_string())
    }
}

/// What a request gives.
pub type AcmeResult<T> = std::result::Result<T, AcmeError>;

/// The key of an account with an authority.
pub struct AccountKey {
    pair: EcdsaKeyPair,
    jwk: Value,
    thumbprint: String,
}

impl AccountKey {
    /// Reads a private key (PEM, P-256).
    pub fn read(key: &str) -> Result<Self> {
        let unusable =
            |e: &dyn std::fmt::Display| Error::internal(format!("the key of the account is of no use: {e}"));
        let key = rcgen::KeyPair::from_pem(key).map_err(|e| unusable(&e))?;
        let (kind, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let pair = EcdsaKeyPair::from_pkcs8(kind, key.serialized_der(), &random).map_err(|e| unusable(&e))?;
        // A point as it is, uncompressed: 4, x, y.
        let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
        let [x, y] = [x, y].map(|half| URL_SAFE_NO_PAD.encode(half));
        // The members that count, in this order (RFC 7638, 3).
        let canonical = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
        let thumbprint = URL_SAFE_NO_PAD.encode(Sha256::digest(canonical));
        Ok(Self { pair, jwk: json!({ "crv": "P-256", "kty": "EC", "x": x, "y": y }), thumbprint })
    }

    /// What a challenge with this token is answered with (RFC 8555, 8.1).
    pub fn authorize(&self, token: &str) -> String {
        format!("{token}.{}", self.thumbprint)
    }

    /// The proof that this key is an account's of a customer (RFC 8555, 7.3.4), for the authority's address for new accounts.
    fn bind(&self, customer: &ExternalAccount, url: &str) -> Value {
        let head = json!({ "alg": "HS256", "kid": customer.id, "url": url });
        let [head, payload] = [head, self.jwk.clone()].map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
        let signature = hmac::sign(&customer.key, format!("{head}.{payload}").as_bytes());
        json!({ "protected": head, "payload": payload, "signature": URL_SAFE_NO_PAD.encode(signature) })
    }

    /// A signed request (RFC 8555, 6.2).
    fn sign(&self, mut head: Map<String, Value>, payload: &str) -> AcmeResult<String> {
        head.insert("alg".to_owned(), "ES256".into());
        let head = URL_SAFE_NO_PAD.encode(Value::Object(head).to_string());
        let payload = URL_SAFE_NO_PAD.encode(payload);
        let signed = format!("{head}.{payload}");
        let signature = self.pair.sign(&SystemRandom::new(), signed.as_bytes());
        let signature = signature.map_err(|_| AcmeError::new("nothing can be signed here"))?;
        let signature = URL_SAFE_NO_PAD.encode(signature);
        Ok(json!({ "protected": head, "payload": payload, "signature": signature }).to_string())
    }
}

/// What an authority knows a customer by, from elsewhere (external account binding, RFC 8555, 7.3.4).
pub struct ExternalAccount {
    id: String,
    key: hmac::Key,
}

impl ExternalAccount {
    /// With the key in this file. Errors: sentences for the operator: it cannot be read, or has no key.
    pub fn read(id: &str, file: &Path) -> Result<Self> {
        let wrong = |why: &str| Error::invalid_param(format!("--acme-eab: {} {why}", file.display()));
        let text = fs::read_to_string(file).map_err(|e| wrong(&format!("cannot be read: {}", reason(&e))))?;
        // Some authorities write it in the other alphabet, or padded.
        let text = text.trim().trim_end_matches('=').replace('+', "-").replace('/', "_");
        let key = URL_SAFE_NO_PAD.decode(text).ok().filter(|key| !key.is_empty());
        let key = key.ok_or_else(|| wrong("has no key in base64url"))?;
        Ok(Self { id: id.to_owned(), key: hmac::Key::new(hmac::HMAC_SHA256, &key) })
    }
}

/// An authority, for as long as one attempt takes.
pub struct AcmeServer {
    agent: Agent,
    connections: Connections,
    clock: Clock,
    directory: http::Uri,
}

/// An answer with a 2xx status.
pub struct AcmeAnswer {
    /// The object that it is, empty if it is none.
    pub object: Map<String, Value>,
    /// Its bytes.
    pub body: Vec<u8>,
    /// Where what was made is.
    pub location: Option<String>,
    /// When to look again.
    pub retry_after: Option<Duration>,
}

impl AcmeServer {
    /// The authority whose directory is there, trusted by Mozilla's roots and those of these files. Errors: a file that
    /// cannot be read, or what is no https address.
    ///
    /// Its addresses may be of our own network: the operator named it, and nobody else can.
    pub fn new(directory: &str, trust: &[PathBuf], clock: Clock) -> Result<Self> {
        let wrong = || Error::invalid_param(format!("--acme-directory {directory:?} is no https address"));
        let directory: http::Uri = directory.parse().map_err(|_| wrong())?;
        if directory.scheme_str() != Some("https") || directory.host().is_none_or(str::is_empty) {
            return Err(wrong());
        }
        let config = base_config(roots("--acme-ca", trust, None)?)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_global(Some(REQUEST_TIMEOUT))
            .build();
        let connections = Connections::default();
        let guard = AddressGuard { allow_private: true };
        let agent = agent::agent(
            config,
            &connections,
            WebResolver { guard, names: Names::default(), connections: connections.clone() },
        );
        Ok(Self { agent, connections, clock, directory })
    }

    /// Ends every request that is under way, and lets none begin.
    pub fn shutdown(&self) {
        self.connections.cut();
    }

    /// Asks for its directory (RFC 8555, 7.1.1).
    pub fn connect<'s>(&'s self, key: &'s AccountKey) -> AcmeResult<AcmeSession<'s>> {
        let mut session =
            AcmeSession { server: self, key, endpoints: Map::new(), nonce: None, account: None };
        session.endpoints = session.get(&self.directory.to_string())?.object;
        Ok(session)
    }

    /// Errors: it is not where the directory is. No authority that is known sends its clients elsewhere, and who may send
    /// us anywhere may send us where only we can go.
    fn check_address(&self, url: &str) -> AcmeResult<()> {
        let place = |uri: &http::Uri| {
            let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'))?;
            Some((authority.host().to_ascii_lowercase(), authority.port_u16().unwrap_or(443)))
        };
        let uri = url.parse::<http::Uri>().ok().filter(|_| url.len() <= URL_BYTES_MAX);
        let is_there = uri.is_some_and(|uri| {
            uri.scheme_str() == Some("https")
                && place(&uri).is_some()
                && place(&uri) == place(&self.directory)
        });
        let kind = Some("elsewhere".to_owned());
        let elsewhere = AcmeError { kind, ..AcmeError::new("it names an address that is not its own") };
        if is_there { Ok(()) } else { Err(elsewhere) }
    }
}

/// An attempt under way.
pub struct AcmeSession<'s> {
    server: &'s AcmeServer,
    key: &'s AccountKey,
    endpoints: Map<String, Value>,
    nonce: Option<String>,
    account: Option<String>,
}

impl AcmeSession<'_> {
    /// The address that the directory has for this.
    fn endpoint(&self, name: &str) -> AcmeResult<String> {
        let url = text(&self.endpoints, name).map(str::to_owned);
        url.ok_or_else(|| AcmeError::new(format!("its directory has no {name}")))
    }

    /// Finds the account of the key, or makes one, agreeing to the terms of service (RFC 8555, 7.3), as that of a customer if
    /// there is one.
    pub fn log_in(&mut self, contact: Option<&str>, customer: Option<&ExternalAccount>) -> AcmeResult<()> {
        let contact: Vec<String> = contact.iter().map(|address| format!("mailto:{address}")).collect();
        let mut wanted = json!({ "termsOfServiceAgreed": true });
        if !contact.is_empty() {
            wanted["contact"] = json!(contact);
        }
        let url = self.endpoint("newAccount")?;
        if let Some(customer) = customer {
            wanted["externalAccountBinding"] = self.key.bind(customer, &url);
        }
        let answer = self.post(&url, &wanted.to_string()).map_err(|mut e| {
            if e.kind.as_deref() == Some("externalAccountRequired") {
                e.what.push_str(". It is given by --acme-eab");
            }
            e
        })?;
        let account =
            answer.location.ok_or_else(|| AcmeError::new("it does not say which account is ours"))?;
        self.account = Some(account.clone());
        // An account that was there keeps the contact that it had.
        let known = answer.object.get("contact");
        if !contact.is_empty() && known.is_some_and(|known| *known != json!(contact)) {
            self.post(&account, &json!({ "contact": contact }).to_string())?;
        }
        Ok(())
    }

    /// Orders a certificate for these names, in place of the one with this identifier if the authority knows what that
    /// means (RFC 8555, 7.4; RFC 9773, 5): the address of the order, and how it is.
    pub fn order(&mut self, names: &[String], replaces: Option<&str>) -> AcmeResult<(String, AcmeAnswer)> {
        let identifiers: Vec<Value> =
            names.iter().map(|name| json!({ "type": "dns", "value": name })).collect();
        let mut wanted = json!({ "identifiers": identifiers });
        if let Some(id) = replaces.filter(|_| self.endpoints.contains_key("renewalInfo")) {
            wanted["replaces"] = id.into();
        }
        let answer = self.post(&self.endpoint("newOrder")?, &wanted.to_string())?;
        let order = answer.location.clone();
        let order = order.ok_or_else(|| AcmeError::new("it does not say where the order is"))?;
        self.server.check_address(&order)?;
        Ok((order, answer))
    }

    /// How something of ours is ("POST-as-GET", RFC 8555, 6.3).
    pub fn look(&mut self, url: &str) -> AcmeResult<AcmeAnswer> {
        self.post(url, "")
    }

    /// When the authority suggests to renew a certificate with this identifier (RFC 9773, 4): none if it says nothing.
    pub fn renewal_info(&mut self, id: &str) -> AcmeResult<Option<AcmeAnswer>> {
        match self.endpoint("renewalInfo") {
            Ok(url) => self.get(&format!("{url}/{id}")).map(Some),
            Err(_) => Ok(None),
        }
    }

    /// Makes a signed request. One whose nonce is refused is made again with another.
    pub fn post(&mut self, url: &str, payload: &str) -> AcmeResult<AcmeAnswer> {
        let mut tries = 0;
        loop {
            tries += 1;
            let nonce = match self.nonce.take() {
                Some(nonce) => nonce,
                None => self.new_nonce()?,
            };
            let mut head = Map::new();
            head.insert("nonce".to_owned(), nonce.into());
            head.insert("url".to_owned(), url.into());
            match &self.account {
                Some(account) => head.insert("kid".to_owned(), account.clone().into()),
                None => head.insert("jwk".to_owned(), self.key.jwk.clone()),
            };
            let body = self.key.sign(head, payload)?;
            match self.exchange(http::Method::POST, url, Some(body)) {
                Err(e) if e.kind.as_deref() == Some("badNonce") && tries < NONCE_TRIES_MAX => {}
                answer => return answer,
            }
        }
    }

    fn get(&mut self, url: &str) -> AcmeResult<AcmeAnswer> {
        self.exchange(http::Method::GET, url, None)
    }

    fn new_nonce(&mut self) -> AcmeResult<String> {
        let url = self.endpoint("newNonce")?;
        self.exchange(http::Method::HEAD, &url, None)?;
        self.nonce.take().ok_or_else(|| AcmeError::new("it gives no nonce"))
    }

    fn exchange(&mut self, method: http::Method, url: &str, body: Option<String>) -> AcmeResult<AcmeAnswer> {
        self.server.check_address(url)?;
        let ours = |e: http::Error| AcmeError::new(format!("our own request is not valid HTTP: {e}"));
        let request = http::Request::builder().method(method).uri(url);
        let agent = &self.server.agent;
        let answer = match body {
            Some(body) => {
                let request = request.header("Content-Type", "application/jose+json");
                agent.run(request.body(body).map_err(ours)?)
            }
            None => agent.run(request.body(()).map_err(ours)?),
        };
        let answer = answer.map_err(|e| AcmeError::new(format!("it cannot be reached: {e}")))?;
        let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
        self.nonce = header("replay-nonce").filter(|nonce| is_nonce(nonce)).map(str::to_owned);
        let now = self.server.clock.now_ms();
        let retry_after = header("retry-after").and_then(|value| retry_after(value, now));
        let retry_after = retry_after.map(|wait| Duration::from_millis(wait.unsigned_abs()));
        let location = header("location").map(str::to_owned);
        let status = answer.status();
        let body = answer.into_body().into_with_config().limit(ANSWER_BYTES_MAX).read_to_vec();
        let body = body.map_err(|e| AcmeError::new(format!("its answer breaks off: {e}")))?;
        let object = parse_object(&body).unwrap_or_default();
        if status.is_success() {
            return Ok(AcmeAnswer { object, body, location, retry_after });
        }
        let kind = text(&object, "type").and_then(|kind| kind.strip_prefix(ERROR_TYPE)).map(str::to_owned);
        let what = match object.is_empty() {
            true => format!("it answers with status {}", status.as_u16()),
            false => format!("it answers with status {}: {}", status.as_u16(), told_problem(&object)),
        };
        Err(AcmeError { what, kind, retry_after })
    }
}

/// "MUST be a string of base64url" (RFC 8555, 6.5.1).
fn is_nonce(nonce: &str) -> bool {
    let may_be = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    (1..=NONCE_BYTES_MAX).contains(&nonce.len()) && nonce.bytes().all(may_be)
}
