//! The signed request. One `Client` for the whole server: it keeps connections open, and bounds what a peer can do
//! to us: time in all, size of head and body, where its name may lead.
//!
//! - `agent`: the ways of web requests, TLS; `exchange`: what came of one; `streams`: answers that are read as they come.
//! - `offline`, `scripted`: a client that reaches nobody, and one for which a script plays everybody; `scripted_peer`: a
//!   server that answers unit tests over TLS; `neighbours`: servers of one process that need no name server to find each other.

pub(super) mod agent;
pub(super) mod exchange;
pub(super) mod neighbours;
mod offline;
pub(super) mod scripted;
#[cfg(test)]
pub(crate) mod scripted_peer;
pub(super) mod streams;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use serde_json::Map;
use ureq::Agent;
use ureq::config::Config;
use ureq::http;
use ureq::tls::RootCerts;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

use self::agent::{SystemLookups, WebResolver, base_config, no_route, roots, within};
use self::exchange::{ExchangeFailure, read_answer};
use self::neighbours::{NeighbourLookups, Neighbours};
use self::offline::Offline;
use self::scripted::{AnswerScript, ScriptedConnector, ScriptedLookups, ScriptedResolver};
use crate::clock::Clock;
use crate::error::{ErrCode, Result};
use crate::federation::answer_memory::{AnswerMemory, HeldMemory};
use crate::federation::call_error::{CallError, CallResult, PeerError};
use crate::federation::connections::Connections;
use crate::federation::discovery::address_guard::AddressGuard;
use crate::federation::discovery::names::Names;
use crate::federation::discovery::{Discovery, Lookups, NoRoute};
use crate::protocol::ServerName;
use crate::protocol::rooms::server_acl::ServerAcl;
use crate::protocol::signatures::sign::SigningKey;
use crate::protocol::signatures::x_matrix;

/// Time for a well-known answer, redirects and all.
const WELL_KNOWN_TIMEOUT: Duration = Duration::from_secs(10);

/// Idle connections kept, in all and to one server, and for how long.
const IDLE_CONNECTIONS_MAX: usize = 32;
const IDLE_CONNECTIONS_PER_SERVER_MAX: usize = 4;
const IDLE_CONNECTION_TIMEOUT: Duration = Duration::from_secs(50);
/// What all answers together may hold in memory: one of the largest, and some ordinary ones.
const ANSWERS_BYTES_MAX: usize = 384 << 20;

/// What a client needs to know.
pub struct ClientSettings {
    /// Our own name: the origin of every request.
    pub server_name: ServerName,
    /// PEM files with root certificates to trust besides Mozilla's.
    pub trust_ca: Vec<PathBuf>,
    /// Whether to connect to loopback and private ranges.
    pub allow_private_addresses: bool,
    /// Where some names lead, if not the system's resolver is to say so.
    pub names: Names,
    /// The clock by which discovery forgets.
    pub clock: Clock,
}

/// One request to another server.
pub struct PeerRequest<'a> {
    /// `GET`, `POST` or `PUT`.
    pub method: &'a str,
    /// The server name, before any delegation.
    pub destination: &'a ServerName,
    /// From `/_matrix` on, percent-encoded, with the query if there is one. Signed as it is.
    pub path_and_query: String,
    /// A JSON object.
    pub body: Option<&'a [u8]>,
    /// Time for everything together.
    pub timeout: Duration,
    /// Bound of the answer's body.
    pub max_bytes: u64,
}

/// A peer's answer with a 2xx status.
pub struct Response {
    /// The HTTP status.
    pub status: u16,
    /// The body, which is within the request's bound but not yet looked at.
    pub body: Vec<u8>,
    /// What the body holds of the memory for answers: keep it as long as the body, or what was read from it.
    pub held: HeldMemory,
}

/// Whether a request is made again where a connection ended before the answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    OfLostConnections,
    Never,
}

/// The log target of one line (level debug) for each request to another server: who asked whom what, and the outcome.
pub const HOPS: &str = "doorstep::hops";

/// Speaks to other servers. Shared by all threads.
pub struct Client {
    server_name: ServerName,
    key: Arc<ArcSwap<SigningKey>>,
    pub(super) agent: Agent,
    /// For what is no homeserver.
    pub(super) web: Agent,
    /// For pages that people link to.
    pub(super) pages: Agent,
    /// For application services, which are where whoever runs the server says that they are.
    pub(super) services: Agent,
    pub(super) discovery: Arc<Discovery>,
    /// Whether push gateways may do without TLS.
    pub(super) allows_plain_gateways: bool,
    connections: Connections,
    pub(super) names: Names,
    peers: ServerAcl,
    /// Whether the way to a server is cut, where somebody may cut it: a test.
    cut_off: Option<Box<IsCutOff>>,
    memory: Arc<AnswerMemory>,
}

/// Says whether there is no way to a server.
pub type IsCutOff = dyn Fn(&ServerName) -> bool + Send + Sync;

/// The answer that we give ourselves in place of a server that our settings keep us from talking to.
fn not_talked_to(server: &ServerName) -> CallError {
    let message = format!("This server does not talk to {server}");
    let errcode = Some(ErrCode::Forbidden.as_str().to_owned());
    CallError::Refused(Box::new(PeerError { status: 403, errcode, message, body: Map::new() }))
}

impl Client {
    /// A client that signs with whatever key is in `key` at the time. Errors: a file of root certificates that
    /// cannot be read, with its name.
    pub fn new(settings: ClientSettings, key: Arc<ArcSwap<SigningKey>>) -> Result<Self> {
        let roots = roots("--trust-ca", &settings.trust_ca, None)?;
        let guard = AddressGuard { allow_private: settings.allow_private_addresses };
        let lookups = SystemLookups::new(roots.clone(), guard, &settings.names, settings.clock.clone());
        Ok(Self::with_lookups(settings, key, roots, Box::new(lookups)))
    }

    /// [`Client::new`] for servers of one process, who know each other's names and trust one more authority, in PEM.
    pub(crate) fn among(
        settings: ClientSettings,
        key: Arc<ArcSwap<SigningKey>>,
        neighbours: Neighbours,
        authority: &str,
    ) -> Result<Self> {
        let roots = roots("--trust-ca", &settings.trust_ca, Some(authority))?;
        let guard = AddressGuard { allow_private: settings.allow_private_addresses };
        let others = SystemLookups::new(roots.clone(), guard, &settings.names, settings.clock.clone());
        let lookups = NeighbourLookups { neighbours, others };
        Ok(Self::with_lookups(settings, key, roots, Box::new(lookups)))
    }

    /// A client that reaches nobody, not even a name server: every request fails at once.
    pub(crate) fn offline(settings: ClientSettings, key: Arc<ArcSwap<SigningKey>>) -> Self {
        let roots = RootCerts::Specific(Arc::default());
        let agent = || {
            let config = base_config(roots.clone()).max_redirects(0).build();
            Agent::with_parts(config, DefaultConnector::default(), Offline)
        };
        let (services, agent, web, pages) = (agent(), agent(), agent(), agent());
        Self { agent, web, pages, services, ..Self::with_lookups(settings, key, roots, Box::new(Offline)) }
    }

    /// A client for which a script plays all other servers, in memory.
    pub(crate) fn to_script(
        settings: ClientSettings,
        key: Arc<ArcSwap<SigningKey>>,
        script: Arc<AnswerScript>,
    ) -> Self {
        let roots = RootCerts::Specific(Arc::default());
        let guard = AddressGuard { allow_private: settings.allow_private_addresses };
        let agent = |config: &Config| {
            Agent::with_parts(config.clone(), ScriptedConnector(script.clone()), ScriptedResolver)
        };
        let lookups =
            SystemLookups::new(roots.clone(), guard, &settings.names, settings.clock.clone()).by(agent);
        let new = Self::with_lookups(settings, key, roots, Box::new(ScriptedLookups(lookups)));
        let (own, web, pages, services) = (
            agent(new.agent.config()),
            agent(new.web.config()),
            agent(new.pages.config()),
            agent(new.services.config()),
        );
        Self { agent: own, web, pages, services, ..new }
    }

    /// A client that finds servers by these look-ups.
    pub(crate) fn with_lookups(
        settings: ClientSettings,
        key: Arc<ArcSwap<SigningKey>>,
        roots: RootCerts,
        lookups: Box<dyn Lookups>,
    ) -> Self {
        let guard = AddressGuard { allow_private: settings.allow_private_addresses };
        let allows_plain_gateways = guard.allow_private;
        let discovery = Arc::new(Discovery::new(lookups, guard, settings.clock));
        let web = base_config(roots.clone()).max_redirects(0).max_redirects_will_error(false);
        let web = web.max_idle_connections(0).build();
        let connections = Connections::default();
        let resolver =
            || WebResolver { guard, names: settings.names.clone(), connections: connections.clone() };
        let web = agent::agent(web, &connections, resolver());
        let pages = base_config(roots.clone()).https_only(false).max_redirects(0);
        let pages = pages.max_redirects_will_error(false).max_idle_connections(0).build();
        let plain = pages.clone();
        let pages = agent::agent(pages, &connections, resolver());
        let trusting = AddressGuard { allow_private: true };
        let services = agent::agent(plain, &connections, WebResolver { guard: trusting, ..resolver() });
        let config = base_config(roots)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .max_idle_connections(IDLE_CONNECTIONS_MAX)
            .max_idle_connections_per_host(IDLE_CONNECTIONS_PER_SERVER_MAX)
            .max_idle_age(IDLE_CONNECTION_TIMEOUT)
            .build();
        let resolver = MatrixResolver { discovery: discovery.clone(), names: settings.names.clone() };
        let agent = agent::agent(config, &connections, resolver);
        let (peers, memory) = (ServerAcl::from_lists(&[], &[]), AnswerMemory::new(ANSWERS_BYTES_MAX));
        Self {
            server_name: settings.server_name,
            key,
            agent,
            web,
            pages,
            services,
            discovery,
            allows_plain_gateways,
            connections,
            names: settings.names,
            peers,
            cut_off: None,
            memory,
        }
    }

    /// This client, which finds those servers unreachable for which this holds at the time.
    #[must_use]
    pub(crate) fn cut_off_where(mut self, cut_off: Box<IsCutOff>) -> Self {
        self.cut_off = Some(cut_off);
        self
    }

    /// This client, which then talks to these servers only.
    #[must_use]
    pub fn limited_to(mut self, peers: ServerAcl) -> Self {
        self.peers = peers;
        self
    }

    /// Our own name.
    pub fn server_name(&self) -> &ServerName {
        &self.server_name
    }

    /// Makes a request signed as ours (server-server API, "Request Authentication").
    pub fn request(&self, request: PeerRequest<'_>) -> CallResult<Response> {
        self.signed(&request, Repeat::OfLostConnections)
    }

    /// [`Client::request`] for what takes something away at the peer with each request: it is made once, on a connection
    /// of its own, whatever becomes of the answer.
    pub fn request_once(&self, request: PeerRequest<'_>) -> CallResult<Response> {
        self.signed(&request, Repeat::Never)
    }

    fn signed(&self, request: &PeerRequest<'_>, repeat: Repeat) -> CallResult<Response> {
        let authorization = self.authorization(request)?;
        self.perform(request, Some(&authorization), repeat)
    }

    /// Errors: a server that we do not talk to.
    pub(super) fn check_peer(&self, peer: &ServerName) -> CallResult<()> {
        if self.peers.allows(peer.as_str()) { Ok(()) } else { Err(not_talked_to(peer)) }
    }

    /// The header that says that the request is ours. Errors: it goes to a server that we do not talk to.
    pub(super) fn authorization(&self, request: &PeerRequest<'_>) -> CallResult<String> {
        self.check_peer(request.destination)?;
        x_matrix::build(
            request.method,
            &request.path_and_query,
            &self.server_name,
            request.destination,
            request.body,
            &self.key.load(),
        )
        .map_err(|e| CallError::bad(format!("our own request cannot be signed: {e}")))
    }

    /// Makes a request without a signature, for the key endpoints; also to servers that we do not talk to otherwise.
    pub fn request_unsigned(&self, request: PeerRequest<'_>) -> CallResult<Response> {
        self.perform(&request, None, Repeat::OfLostConnections)
    }

    /// Ends every connection and every attempt to make one, so that threads inside a request come back at once. Later
    /// requests fail.
    pub fn shutdown(&self) {
        self.connections.cut();
        self.discovery.cut();
    }

    fn perform(
        &self,
        request: &PeerRequest<'_>,
        authorization: Option<&str>,
        repeat: Repeat,
    ) -> CallResult<Response> {
        let attempt = |authority: &str, within, new_connection| {
            let head = request_head(request, authority, authorization, "application/json");
            let answer = match request.body {
                Some(body) => self.run(with_body(head, body)?, within, new_connection),
                None => self.run(with_body(head, ())?, within, new_connection),
            };
            let held = HeldMemory::nothing_of(&self.memory);
            read_answer(answer.map_err(ExchangeFailure::from_ureq)?, request.max_bytes, held)
        };
        self.reach(request, repeat, attempt)
    }

    /// Finds the server and makes attempts to ask it: each is told the authority, its time, and whether it has to be on a
    /// new connection.
    pub(super) fn reach<T>(
        &self,
        request: &PeerRequest<'_>,
        repeat: Repeat,
        attempt: impl Fn(&str, Duration, bool) -> Result<T, ExchangeFailure>,
    ) -> CallResult<T> {
        if self.cut_off.as_ref().is_some_and(|cut_off| cut_off(request.destination)) {
            return Err(CallError::Unconnected("the way there is cut".to_owned()));
        }
        let deadline = Instant::now() + request.timeout;
        let left = || deadline.saturating_duration_since(Instant::now());
        let within = request.timeout.min(WELL_KNOWN_TIMEOUT);
        let authority = self.discovery.authority(request.destination, within).map_err(unroutable)?;
        let began = Instant::now();
        let answer = match attempt(&authority, left(), repeat == Repeat::Never) {
            // A connection that had been kept open may have been closed by the peer just now. Nearly all requests
            // between servers may be repeated, so one more try on a new connection.
            Err(failure)
                if repeat == Repeat::OfLostConnections
                    && failure.is_disconnect()
                    && Instant::now() < deadline
                    && began.elapsed() < Duration::from_secs(5) =>
            {
                attempt(&authority, left(), true).map_err(|second| {
                    if failure.is_after_success() { second.after_success() } else { second }
                })
            }
            other => other,
        };
        let answer = answer.map_err(|failure| {
            if failure.is_of_connection() {
                self.discovery.failed(request.destination, &authority);
            }
            failure.into_call_error()
        });
        self.log_hop(request, &answer);
        answer
    }

    fn log_hop<T>(&self, request: &PeerRequest<'_>, answer: &CallResult<T>) {
        let PeerRequest { method, destination, path_and_query, .. } = request;
        let (us, path) = (&self.server_name, path_and_query.split('?').next().unwrap_or_default());
        match answer {
            Ok(_) => log::debug!(target: HOPS, "{us} → {destination}: {method} {path} → 200"),
            Err(e) => log::debug!(target: HOPS, "{us} → {destination}: {method} {path} → {e}"),
        }
    }

    fn run(
        &self,
        request: http::Request<impl ureq::AsSendBody>,
        within: Duration,
        new_connection: bool,
    ) -> Result<http::Response<ureq::Body>, ureq::Error> {
        let config = self.agent.configure_request(request).timeout_global(Some(within));
        let config = if new_connection { config.max_idle_age(Duration::ZERO) } else { config };
        self.agent.run(config.build())
    }
}

/// The request but for its body.
pub(super) fn request_head(
    request: &PeerRequest<'_>,
    authority: &str,
    authorization: Option<&str>,
    accept: &str,
) -> http::request::Builder {
    let mut head = http::Request::builder()
        .method(request.method)
        .uri(format!("https://{authority}{}", request.path_and_query))
        // Said explicitly, because a port of 443 would be left out.
        .header("Host", authority)
        .header("Accept", accept);
    if let Some(authorization) = authorization {
        head = head.header("Authorization", authorization);
    }
    if request.body.is_some() {
        head = head.header("Content-Type", "application/json");
    }
    head
}

pub(super) fn with_body<B>(
    head: http::request::Builder,
    body: B,
) -> Result<http::Request<B>, ExchangeFailure> {
    head.body(body).map_err(|e| ExchangeFailure::ours(&e))
}

fn unroutable(no: NoRoute) -> CallError {
    CallError::Unconnected(no.0)
}

/// Gives ureq the addresses of a Matrix authority: discovery and the address guard in one place, so that what was
/// judged is what is connected to.
struct MatrixResolver {
    discovery: Arc<Discovery>,
    names: Names,
}

impl fmt::Debug for MatrixResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MatrixResolver")
    }
}

impl Resolver for MatrixResolver {
    fn resolve(
        &self,
        uri: &http::Uri,
        _: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let authority = uri.authority().map_or("", |a| a.as_str());
        let mut addresses = self.empty();
        if let Some(detour) = self.names.detour_of(authority) {
            addresses.push(detour);
            return Ok(addresses);
        }
        let found = self.discovery.socket_addresses(authority, within(timeout)).map_err(no_route)?;
        found.into_iter().for_each(|a| addresses.push(a));
        Ok(addresses)
    }
}

#[cfg(test)]
mod tests;
