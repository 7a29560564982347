//! From a path to its line in `ROUTES`, and from there through auth to the handler.

use std::sync::Arc;
use std::time::Instant;

use tiny_http::Method;

use super::auth::{Origin, Requester};
use super::reply::Reply;
use super::request::Request;
use crate::error::Result;
use crate::protocol::UserId;
use crate::service::Homeserver;

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
        Self { method, path, handler, rate, body: DEFAULT_BODY }
    }

    /// The same route, counted by another rate limit.
    #[must_use]
    pub const fn rate(self, rate: Rate) -> Self {
        Self { rate, ..self }
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
