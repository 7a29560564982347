//! From a path to its line in `ROUTES`, and from there through auth to the handler.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use tiny_http::Method;

use super::auth::{self, Origin, Requester};
use super::rate_limit::RateLimiter;
use super::routes::ROUTES;
use crate::error::{ErrCode, Error, Result};
use crate::http::transport::bounds::Crowd;
use crate::http::transport::connection::failure;
use crate::http::transport::reply::Reply;
use crate::http::transport::request::{Request, decode_segment};
use crate::http::transport::server::{Admission, Service, Wake};
use crate::protocol::UserId;
use crate::service::Homeserver;
use crate::service::notifier::Woken;

/// A handler; its kind is its auth. A handler that takes a `Requester` cannot be mounted without a token.
#[derive(Clone, Copy)]
pub enum Handler {
    /// No auth.
    Anyone(fn(&Arc<Homeserver>, &Request) -> Result<Reply>),
    /// Works without a token; a token that is sent must be valid.
    MaybeUser(fn(&Arc<Homeserver>, &Request, Option<&Requester>) -> Result<Reply>),
    /// Needs an access token: 401 `M_MISSING_TOKEN` or `M_UNKNOWN_TOKEN`.
    User(fn(&Arc<Homeserver>, &Request, &Requester) -> Result<Reply>),
    /// As `User`, and may ask to be called again when the stream has moved.
    UserWaiting(fn(&Arc<Homeserver>, &Request, &Requester, Turn) -> Result<Outcome>),
    /// As `User`, and the user must be an administrator: 403 `M_FORBIDDEN`.
    Admin(fn(&Arc<Homeserver>, &Request, &Requester) -> Result<Reply>),
    /// Needs an X-Matrix signature: 401 `M_UNAUTHORIZED`.
    Peer(fn(&Arc<Homeserver>, &Request, &Origin) -> Result<Reply>),
}

impl Handler {
    /// Who may call it, in a few words for `doorstep routes`.
    pub fn who(&self) -> &'static str {
        match self {
            Self::Anyone(_) => "anyone",
            Self::MaybeUser(_) => "anyone, or a user",
            Self::User(_) | Self::UserWaiting(_) => "a user",
            Self::Admin(_) => "an admin",
            Self::Peer(_) => "another server",
        }
    }
}

/// Which call of a waiting handler this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// The first call.
    First,
    /// The stream may have moved: look again.
    Again,
    /// Time is up (or the server stops): answer with what there is. A handler must not answer `Wait` now.
    Last,
}

/// What a waiting handler says.
pub enum Outcome {
    /// The answer.
    Reply(Reply),
    /// Nothing to say yet: call again when something for this user happened after this stream position, or at the
    /// deadline. Count the deadline from `Request::received`, so that it stays the same in every turn.
    Wait {
        /// Whose events are waited for.
        user: UserId,
        /// The stream position that the handler has looked at.
        after: i64,
        /// When to stop waiting.
        until: Instant,
    },
}

/// Which rate limit counts a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rate {
    /// Reading and everything cheap.
    Read,
    /// Sending events and changing things.
    Write,
    /// Joins, knocks, invites, new rooms: what reaches other servers.
    Join,
    /// Log in, and everything that checks a password.
    Login,
    /// New accounts.
    Register,
    /// Other servers' requests.
    Federation,
}

/// Largest body of a route that says nothing else, in bytes: an event is at most 64 KiB.
pub const DEFAULT_BODY: usize = 256 * 1024;

/// One line of the table of endpoints.
pub struct Route {
    /// The method; `Get` serves `HEAD` too.
    pub method: &'static Method,
    /// The path, with `{name}` for a parameter, and `{name?}` for a last parameter that may be empty or absent.
    pub path: &'static str,
    /// Who may call, and what is called.
    pub handler: Handler,
    /// Which rate limit counts it.
    pub rate: Rate,
    /// The largest body in bytes: 413 `M_TOO_LARGE` beyond.
    pub body: usize,
    /// Whether its handler does what it does by interactive authentication, and only so.
    pub interactive: bool,
}

// As constants, because a `Method` has a destructor and a constant function may not own one.
const GET: &Method = &Method::Get;
const POST: &Method = &Method::Post;
const PUT: &Method = &Method::Put;
const DELETE: &Method = &Method::Delete;

impl Route {
    const fn new(method: &'static Method, path: &'static str, handler: Handler) -> Self {
        let rate = match (&handler, &method) {
            (Handler::Peer(_), _) => Rate::Federation,
            (_, Method::Get) => Rate::Read,
            _ => Rate::Write,
        };
        Self { method, path, handler, rate, body: DEFAULT_BODY, interactive: false }
    }

    /// The same route, counted by another rate limit.
    #[must_use]
    pub const fn rate(self, rate: Rate) -> Self {
        Self { rate, ..self }
    }

    /// The same route, done by interactive authentication: the answer is also given to a token that ended with the deed.
    #[must_use]
    pub const fn interactive(self) -> Self {
        Self { interactive: true, ..self }
    }

    /// The same route with another largest body, in bytes.
    #[must_use]
    pub const fn body(self, body: usize) -> Self {
        Self { body, ..self }
    }
}

/// A `GET` (and `HEAD`) route.
pub const fn get(path: &'static str, handler: Handler) -> Route {
    Route::new(GET, path, handler)
}

/// A `POST` route.
pub const fn post(path: &'static str, handler: Handler) -> Route {
    Route::new(POST, path, handler)
}

/// A `PUT` route.
pub const fn put(path: &'static str, handler: Handler) -> Route {
    Route::new(PUT, path, handler)
}

/// A `DELETE` route.
pub const fn delete(path: &'static str, handler: Handler) -> Route {
    Route::new(DELETE, path, handler)
}

impl Route {
    /// Whose requests this one is counted with.
    fn crowd(&self) -> Crowd {
        // Our keys are what another server may need before it can answer the very request that we wait for; none of
        // these asks anybody else.
        const NEVER_ASK: [&str; 3] =
            ["/_matrix/key/v2/server", "/_matrix/federation/v1/version", "/.well-known/"];
        if NEVER_ASK.iter().any(|path| self.path.starts_with(path)) {
            Crowd::Uncounted
        } else if self.path.starts_with("/_matrix/federation/") || self.path.starts_with("/_matrix/key/") {
            Crowd::Servers
        } else {
            Crowd::Clients
        }
    }
}

/// A node of the table as a tree: one level for each path segment.
#[derive(Default)]
struct Node {
    literal: BTreeMap<&'static str, Node>,
    param: Option<Box<Node>>,
    /// A last parameter that may be empty.
    rest: Vec<&'static Route>,
    here: Vec<&'static Route>,
}

/// The table, ready for matching.
pub struct Table {
    root: Node,
}

impl Table {
    /// Builds the tree of a table.
    pub fn new(routes: &'static [Route]) -> Self {
        let mut root = Node::default();
        for route in routes {
            let mut node = &mut root;
            // `/pushrules/` is written as the specification has it, and matched with and without the slash.
            for segment in segments(route.path.trim_end_matches('/')) {
                if segment.ends_with("?}") {
                    node.rest.push(route);
                } else if segment.starts_with('{') {
                    node = node.param.get_or_insert_default();
                } else {
                    node = node.literal.entry(segment).or_default();
                }
            }
            // With `{name?}` this is the path without that segment.
            node.here.push(route);
        }
        Self { root }
    }

    /// The routes of this path, of whatever method. A slash at the end means nothing unless the last parameter may
    /// be empty, and then it means that it is empty. `r0` of older clients is `v3`.
    fn find(&self, path: &str) -> &[&'static Route] {
        let mut parts: Vec<&str> = segments(path).collect();
        let versioned = matches!(
            parts.as_slice(),
            ["_matrix", "client", "r0", ..] | ["_matrix", "media", "r0" | "v1", ..]
        );
        let create = matches!(parts.as_slice(), ["_matrix", "media", "v1", "create"]);
        if versioned && !create {
            parts[2] = "v3";
        }
        let mut found = walk(&self.root, &parts);
        if found.is_empty() && parts.last() == Some(&"") {
            found = walk(&self.root, &parts[..parts.len() - 1]);
        }
        found
    }
}

fn segments(path: &str) -> impl Iterator<Item = &str> {
    path.strip_prefix('/').unwrap_or(path).split('/')
}

fn walk<'n>(node: &'n Node, parts: &[&str]) -> &'n [&'static Route] {
    let Some((&first, rest)) = parts.split_first() else { return &node.here };
    if let Some(next) = node.literal.get(first) {
        let found = walk(next, rest);
        if !found.is_empty() {
            return found;
        }
    }
    if let Some(next) = &node.param
        && !first.is_empty()
    {
        let found = walk(next, rest);
        if !found.is_empty() {
            return found;
        }
    }
    if rest.is_empty() { &node.rest } else { &[] }
}

/// The decoded parameters of a path that this route matched. Errors: 400 for what is not UTF-8.
fn params(route: &Route, path: &str) -> Result<Vec<(&'static str, String)>> {
    let mut all = Vec::new();
    for (name, value) in segments(route.path).zip(segments(path)) {
        if let Some(name) = name.strip_prefix('{') {
            let name = name.trim_end_matches(['}', '?']);
            all.push((name, decode_segment(value)?.into_owned()));
        }
    }
    Ok(all)
}

/// The homeserver's routes as a service for the connections.
pub struct Router {
    hs: Arc<Homeserver>,
    table: Table,
    limiter: RateLimiter,
}

impl Router {
    /// All of `ROUTES` on this homeserver.
    pub fn new(hs: Arc<Homeserver>) -> Self {
        Self { hs, table: Table::new(ROUTES), limiter: RateLimiter::new() }
    }

    fn judge(&self, head: &mut Request) -> Result<Admission, Reply> {
        let found = self.table.find(head.path());
        if *head.method() == Method::Options {
            return Err(Reply::empty());
        }
        let wanted = if *head.method() == Method::Head { &Method::Get } else { head.method() };
        let Some(route) = found.iter().copied().find(|r| r.method == wanted) else {
            return Err(self.unmatched(head, found));
        };
        let error = |e: Error| self.failed(head, &e);
        let params = params(route, head.path()).map_err(error)?;
        let look = if route.interactive { auth::requester_or_ended } else { auth::requester };
        let requester = match route.handler {
            Handler::Anyone(_) | Handler::Peer(_) => None,
            Handler::MaybeUser(_) => look(&self.hs, head).map_err(error)?,
            Handler::User(_) | Handler::UserWaiting(_) | Handler::Admin(_) => {
                let requester = look(&self.hs, head).map_err(error)?;
                let missing = || error(Error::new(ErrCode::MissingToken, "Missing access token"));
                Some(requester.ok_or_else(missing)?)
            }
        };
        if matches!(route.handler, Handler::Admin(_)) && !requester.as_ref().is_some_and(|r| r.admin) {
            return Err(error(Error::forbidden("Only administrators of this server may do this")));
        }
        if self.hs.config.rate_limits {
            let who = requester.as_ref().map(|r| &r.user_id);
            self.limiter.count(route.rate, who, head.client_ip(), Instant::now()).map_err(error)?;
        }
        head.params = params;
        head.route = Some(route);
        head.requester = requester;
        Ok(Admission { body: route.body, crowd: route.crowd() })
    }

    fn dispatch(&self, request: &Request, turn: Turn) -> Result<Outcome> {
        let hs = &self.hs;
        let unadmitted = || Error::internal("a request came to the handlers without admission");
        let requester = || request.requester.as_ref().ok_or_else(unadmitted);
        let reply = match request.route.ok_or_else(unadmitted)?.handler {
            Handler::Anyone(handler) => handler(hs, request),
            Handler::MaybeUser(handler) => handler(hs, request, request.requester.as_ref()),
            Handler::User(handler) | Handler::Admin(handler) => handler(hs, request, requester()?),
            Handler::UserWaiting(handler) => {
                let outcome = handler(hs, request, requester()?, turn)?;
                if turn != Turn::First && matches!(outcome, Outcome::Reply(_)) {
                    // Whose session was ended while they waited is told no more than that.
                    auth::requester(hs, request)?;
                }
                return Ok(outcome);
            }
            Handler::Peer(handler) => handler(hs, request, &auth::origin(hs, request)?),
        };
        reply.map(Outcome::Reply)
    }

    /// 404 for an unknown path, 405 for a known one.
    fn unmatched(&self, request: &Request, found: &[&'static Route]) -> Reply {
        if found.is_empty() {
            return self.failed(request, &Error::new(ErrCode::Unrecognized, "Unknown endpoint"));
        }
        let mut methods: Vec<&str> = found.iter().map(|r| r.method.as_str()).collect();
        if methods.contains(&"GET") {
            methods.push("HEAD");
        }
        methods.push("OPTIONS");
        let error = Error::new(ErrCode::Unrecognized, "This endpoint does not know this method");
        self.failed(request, &error.with_status(405)).with_header("Allow", &methods.join(", "))
    }

    /// An error as a reply, and logged, once, here. Whoever probes a server fills no log: a refusal is worth a line only to
    /// who looks for it, and other servers' failures are what an operator wants to know. Those of ours go to the log with their cause, and are told as a
    /// number only. (The path without the query, which may hold a token.)
    fn failed(&self, request: &Request, error: &Error) -> Reply {
        if error.status() == 500 {
            return failure(request, error);
        }
        let level = if error.status() < 500 { log::Level::Debug } else { error.level(log::Level::Info) };
        log::log!(level, "{} {} from {}: {error}", request.method(), request.path(), request.client_ip());
        Reply::error(error)
    }
}

impl Service for Router {
    fn admit(&self, head: &mut Request) -> Result<Admission, Reply> {
        self.judge(head)
    }

    fn call(&self, request: &Request, turn: Turn) -> Outcome {
        self.dispatch(request, turn).unwrap_or_else(|e| Outcome::Reply(self.failed(request, &e)))
    }

    fn wait(&self, user: &UserId, after: i64, until: Instant) -> Wake {
        match self.hs.notifier.wait(user, after, until) {
            Woken::News => Wake::News,
            Woken::TimedOut => Wake::Quiet,
            Woken::Stopping => Wake::Over,
        }
    }

    fn interrupt(&self) {
        self.hs.notifier.stop();
    }

    fn hurry(&self) {
        self.hs.federation.shutdown();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing(_: &Arc<Homeserver>, _: &Request) -> Result<Reply> {
        Ok(Reply::empty())
    }

    const fn at(path: &'static str) -> Route {
        get(path, Handler::Anyone(nothing))
    }

    static TABLE: &[Route] = &[
        at("/_matrix/client/versions"),
        at("/_matrix/client/v3/rooms/{roomId}/state"),
        at("/_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey?}"),
        put("/_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey?}", Handler::Anyone(nothing)),
        at("/_matrix/client/v3/pushrules/"),
        at("/_matrix/client/v3/pushrules/global/{kind}/{ruleId}"),
        at("/_matrix/federation/v1/query/directory"),
        at("/_matrix/federation/v1/query/{queryType}"),
        at("/_matrix/media/v1/create"),
        at("/_matrix/media/v3/config"),
    ];

    fn found(path: &str) -> Option<&'static str> {
        Table::new(TABLE).find(path).first().map(|r| r.path)
    }

    #[test]
    fn a_literal_segment_wins_over_a_parameter_and_gives_way_where_it_leads_nowhere() {
        assert_eq!(
            found("/_matrix/federation/v1/query/directory"),
            Some("/_matrix/federation/v1/query/directory")
        );
        assert_eq!(
            found("/_matrix/federation/v1/query/profile"),
            Some("/_matrix/federation/v1/query/{queryType}")
        );
        assert_eq!(found("/_matrix/federation/v1/query/directory/x"), None);
    }

    #[test]
    fn an_empty_state_key_may_be_a_slash_or_nothing() {
        let path = "/_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey?}";
        for (address, key) in
            [("m.room.name", ""), ("m.room.name/", ""), ("m.x/%2Fa%20b", "/a b"), ("m.x/@a:b", "@a:b")]
        {
            let address = format!("/_matrix/client/v3/rooms/!r:s/state/{address}");
            let table = Table::new(TABLE);
            let routes = table.find(&address);
            assert_eq!(routes.len(), 2, "{address}");
            assert_eq!(routes[0].path, path);
            let params = params(routes[0], &address).unwrap();
            let state_key = params.iter().find(|(n, _)| *n == "stateKey").map_or("", |(_, v)| v);
            assert_eq!(state_key, key, "{address}");
        }
        assert_eq!(
            found("/_matrix/client/v3/rooms/!r:s/state"),
            Some("/_matrix/client/v3/rooms/{roomId}/state")
        );
        assert_eq!(
            found("/_matrix/client/v3/rooms/!r:s/state/"),
            Some("/_matrix/client/v3/rooms/{roomId}/state")
        );
        assert_eq!(found("/_matrix/client/v3/rooms//state"), None);
    }

    #[test]
    fn a_slash_at_the_end_means_nothing_elsewhere() {
        for path in ["/_matrix/client/v3/pushrules/", "/_matrix/client/v3/pushrules"] {
            assert_eq!(found(path), Some("/_matrix/client/v3/pushrules/"), "{path}");
        }
        assert_eq!(found("/_matrix/client/versions/"), Some("/_matrix/client/versions"));
        assert_eq!(found("/_matrix/client/versions//"), None);
        assert_eq!(found("/"), None);
        assert_eq!(found("*"), None);
    }

    #[test]
    fn older_clients_reach_v3_by_r0() {
        assert!(found("/_matrix/client/r0/rooms/!r/state").is_some());
        assert!(found("/_matrix/media/r0/config").is_some());
        assert!(found("/_matrix/media/v1/config").is_some());
        assert!(found("/_matrix/media/v1/create").is_some());
        assert!(found("/_matrix/federation/r0/query/x").is_none());
    }

    #[test]
    fn parameters_are_decoded_one_segment_at_a_time() {
        let route = at("/a/{roomId}/{eventId}");
        let params = params(&route, "/a/%21r%2F1%3As/%24e+%C3%A9").unwrap();
        assert_eq!(params, [("roomId", "!r/1:s".to_owned()), ("eventId", "$e+é".to_owned())]);
        assert_eq!(super::params(&route, "/a/%ff/x").unwrap_err().status(), 400);
    }

    #[test]
    fn no_two_lines_of_the_table_are_the_same_endpoint() {
        let mut seen = std::collections::HashSet::new();
        for route in ROUTES {
            assert!(seen.insert((route.method.as_str(), route.path)), "{} {}", route.method, route.path);
        }
    }
}
