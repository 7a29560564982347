//! A line of the table of endpoints: method, path, handler, and what bounds its requests.

use std::sync::Arc;

use tiny_http::Method;

use crate::error::{ErrCode, Error, Result};
use crate::http::auth::{self, Origin, Requester};
use crate::http::page::visit::{Visit, Visitor};
use crate::http::rate_limit::Rate;
use crate::http::transport::bounds::Quota;
use crate::http::transport::large_bodies::Weigh;
use crate::http::transport::large_bodies::weight_of_whole;
use crate::http::transport::reply::Reply;
use crate::http::transport::request::Request;
use crate::http::transport::service::{Outcome, Poll};
use crate::service::Homeserver;
use crate::service::accounts::moderation::{Administrator, not_for_guests, suspended};
use crate::service::media::upload::Upload;

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
    UserWaiting(fn(&Arc<Homeserver>, &Request, &Requester, Poll) -> Result<Outcome>),
    /// As `User`, and the body is handed on as it comes, however large it is. The first is called with the head, before
    /// anything of the body is read, and begins; the second when it has come whole.
    UserUpload(
        fn(&Arc<Homeserver>, &Request, &Requester) -> Result<Upload>,
        fn(&Arc<Homeserver>, &Request, Upload) -> Result<Reply>,
    ),
    /// As `User`, and the user must be an administrator: 403 `M_FORBIDDEN`. Without a token, by the local socket, it is
    /// the operator who asks.
    Admin(fn(&Arc<Homeserver>, &Request, &Administrator) -> Result<Reply>),
    /// Needs an X-Matrix signature: 401 `M_UNAUTHORIZED`.
    Peer(fn(&Arc<Homeserver>, &Request, &Origin) -> Result<Reply>),
    /// As `Peer`, and may ask to be called again when the stream has moved.
    PeerWaiting(fn(&Arc<Homeserver>, &Request, &Origin, Poll) -> Result<Outcome>),
    /// A page for people, whoever they are; a `POST` is a form of it (see `http/page/visit.rs`). Errors are pages too.
    Page(fn(&Arc<Homeserver>, &Visit<'_>) -> Result<Reply>),
    /// As `Page`, for who is logged in there: 401.
    UserPage(fn(&Arc<Homeserver>, &Visit<'_>, &Requester) -> Result<Reply>),
    /// As `UserPage`, and the user must be an administrator: 403.
    AdminPage(fn(&Arc<Homeserver>, &Visit<'_>, &Requester) -> Result<Reply>),
}

impl Handler {
    /// Who may call it, in a few words for `doorstep routes`.
    pub fn who(&self) -> &'static str {
        match self {
            Self::Anyone(_) => "anyone",
            Self::MaybeUser(_) => "anyone, or a user",
            Self::User(_) | Self::UserWaiting(_) | Self::UserUpload(..) => "a user",
            Self::Admin(_) => "an admin",
            Self::Peer(_) | Self::PeerWaiting(_) => "another server",
            Self::Page(_) => "anyone, in a browser",
            Self::UserPage(_) => "a user, in a browser",
            Self::AdminPage(_) => "an admin, in a browser",
        }
    }

    /// Whether what it answers is for people, its errors too.
    pub(super) fn is_page(&self) -> bool {
        matches!(self, Self::Page(_) | Self::UserPage(_) | Self::AdminPage(_))
    }
}

/// Largest body of a route that says nothing else, in bytes: an event is at most 64 KiB.
const DEFAULT_BODY_BYTES_MAX: usize = 256 * 1024;
/// And of one for whoever comes, of whom nothing is known while they send it.
const ANYBODYS_BODY_BYTES_MAX: usize = 64 * 1024;
/// What only reads reads no body. Some clients send an empty object with whatever they ask.
const UNREAD_BODY_BYTES_MAX: usize = 1024;

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
    /// Which one does if what is sent is a membership, where that is another.
    member_rate: Option<Rate>,
    /// The largest body in bytes: 413 `M_TOO_LARGE` beyond.
    pub body: usize,
    /// How much may be built of a body that another server sends, where it is large.
    pub(super) weigh: Weigh,
    /// Whether its handler does what it does by interactive authentication, and only so.
    pub interactive: bool,
    /// Whether also users may call it whose account is locked.
    pub even_locked: bool,
    /// Whether it may also be called with a token that has expired.
    pub even_expired: bool,
    /// Whether also users may call it whose account is suspended: what reads, and what is marked so. What writes refuses
    /// them unless it was thought about.
    pub even_suspended: bool,
    /// Whether guests may call it too ("Guest Access").
    pub guests: bool,
}

// As constants, because a `Method` has a destructor and a constant function may not own one.
const GET: &Method = &Method::Get;
const POST: &Method = &Method::Post;
const PUT: &Method = &Method::Put;
const DELETE: &Method = &Method::Delete;

impl Route {
    const fn new(method: &'static Method, path: &'static str, handler: Handler) -> Self {
        let rate = match (&handler, &method) {
            (Handler::Peer(_) | Handler::PeerWaiting(_), _) => Rate::Federation,
            (_, Method::Get) => Rate::Read,
            _ => Rate::Write,
        };
        let even_suspended = matches!(method, Method::Get);
        let body = match (&handler, &method) {
            (_, Method::Get) => UNREAD_BODY_BYTES_MAX,
            (Handler::Anyone(_) | Handler::MaybeUser(_) | Handler::Page(_), _) => ANYBODYS_BODY_BYTES_MAX,
            _ => DEFAULT_BODY_BYTES_MAX,
        };
        let (interactive, even_locked, even_expired) = (false, false, false);
        // What anybody may read without an account, a guest may too.
        let guests = even_suspended && matches!(handler, Handler::MaybeUser(_));
        let member_rate = None;
        Self {
            method,
            path,
            handler,
            rate,
            member_rate,
            body,
            weigh: weight_of_whole,
            interactive,
            even_locked,
            even_expired,
            even_suspended,
            guests,
        }
    }

    /// This route, counted by another rate limit.
    #[must_use]
    pub const fn rate(self, rate: Rate) -> Self {
        Self { rate, ..self }
    }

    /// This route, counted by another rate limit if its `eventType` is `m.room.member`: that does what endpoints of their
    /// own do.
    #[must_use]
    pub const fn member_rate(self, rate: Rate) -> Self {
        Self { member_rate: Some(rate), ..self }
    }

    /// Which rate limit counts a request with these parameters in its path.
    pub(super) fn rate_of(&self, params: &[(&'static str, String)]) -> Rate {
        let is_member = params.iter().any(|(name, value)| *name == "eventType" && value == "m.room.member");
        self.member_rate.filter(|_| is_member).unwrap_or(self.rate)
    }

    /// This route, done by interactive authentication: the answer is also given to a token that ended with the deed.
    #[must_use]
    pub const fn interactive(self) -> Self {
        Self { interactive: true, ..self }
    }

    /// This route, also for users whose account is locked.
    #[must_use]
    pub const fn even_locked(self) -> Self {
        Self { even_locked: true, even_suspended: true, ..self }
    }

    /// This route, also for users whose account is locked, and by a token that has expired: what ends only that token's device.
    #[must_use]
    pub const fn even_expired(self) -> Self {
        Self { even_expired: true, ..self.even_locked() }
    }

    /// This route, also for users whose account is suspended ("Account suspension").
    #[must_use]
    pub const fn even_suspended(self) -> Self {
        Self { even_suspended: true, ..self }
    }

    /// This route, also for guests.
    #[must_use]
    pub const fn guests(self) -> Self {
        Self { guests: true, ..self }
    }

    /// This route with another largest body, in bytes.
    #[must_use]
    pub const fn body(self, body: usize) -> Self {
        Self { body, ..self }
    }

    /// This route, of whose body no more is built at once than this says.
    #[must_use]
    pub const fn weigh(self, weigh: Weigh) -> Self {
        Self { weigh, ..self }
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

/// Who asks, as the handler's kind wants them.
impl Route {
    /// Whoever has sent a token. Errors: 401 `M_UNKNOWN_TOKEN`, 401 `M_USER_LOCKED`, those of [`Route::check_standing`].
    pub(super) fn requester(&self, hs: &Homeserver, request: &Request) -> Result<Option<Requester>> {
        let requester = match self {
            Self { interactive: true, .. } => auth::requester_or_ended(hs, request),
            Self { even_expired: true, .. } => auth::requester_even_expired(hs, request),
            Self { even_locked: true, .. } => auth::requester_even_locked(hs, request),
            _ => auth::requester(hs, request),
        }?;
        requester.iter().try_for_each(|requester| self.check_standing(requester))?;
        Ok(requester)
    }

    /// The user. Errors: 401 `M_MISSING_TOKEN`, and those of [`Route::requester`].
    pub(super) fn user(&self, hs: &Homeserver, request: &Request) -> Result<Requester> {
        self.requester(hs, request)?.ok_or_else(missing_token)
    }

    /// The administrator. Errors: 403 `M_FORBIDDEN`, and those of [`Route::user`].
    pub(super) fn administrator(&self, hs: &Homeserver, request: &Request) -> Result<Administrator> {
        administrator_of(self.requester(hs, request)?, request)
    }

    /// Who stands before a page that is not for everybody. Errors: 401, 403 `M_FORBIDDEN`, and those of
    /// [`Route::check_standing`].
    pub(super) fn page_user(&self, visitor: &Visitor) -> Result<Option<Requester>> {
        if matches!(self.handler, Handler::Page(_)) {
            return Ok(None);
        }
        let user = visitor.user(self.even_locked)?;
        self.check_standing(&user)?;
        match self.handler {
            Handler::AdminPage(_) if !user.admin => Err(no_administrator()),
            _ => Ok(Some(user)),
        }
    }
}

/// Whoever has sent a token as an administrator, if they are one, or the operator. Errors: those of [`Route::administrator`].
pub(super) fn administrator_of(requester: Option<Requester>, request: &Request) -> Result<Administrator> {
    match requester {
        None if request.is_local() => Ok(Administrator::Operator),
        None => Err(missing_token()),
        Some(requester) if requester.admin => Ok(Administrator::User(requester.user_id)),
        Some(_) => Err(no_administrator()),
    }
}

fn missing_token() -> Error {
    Error::new(ErrCode::MissingToken, "Missing access token")
}

fn no_administrator() -> Error {
    Error::forbidden("Only administrators of this server may do this")
}

impl Route {
    /// Whether a user may call it whose account is as it is. Errors: 403 `M_USER_SUSPENDED`, 403
    /// `M_GUEST_ACCESS_FORBIDDEN`. Who is locked was refused
    /// before.
    pub(super) fn check_standing(&self, requester: &Requester) -> Result<()> {
        if requester.standing.suspended && !self.even_suspended {
            return Err(suspended());
        }
        if requester.standing.guest && !self.guests {
            return Err(not_for_guests("Guests cannot do this"));
        }
        Ok(())
    }

    /// Whose requests this one is counted with.
    pub(super) fn quota(&self) -> Quota {
        // Our keys are what another server may need before it can answer the very request that we wait for; and who asks
        // whether we are well would end us if we were only busy. None of these asks anybody else.
        const NEVER_ASK: [&str; 4] =
            ["/_matrix/key/v2/server", "/_matrix/federation/v1/version", "/.well-known/", "/health"];
        if NEVER_ASK.iter().any(|path| self.path.starts_with(path)) {
            Quota::Uncounted
        } else if self.path.starts_with("/_matrix/federation/") || self.path.starts_with("/_matrix/key/") {
            Quota::Servers
        } else {
            Quota::Clients
        }
    }
}
