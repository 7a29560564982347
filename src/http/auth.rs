//! Who asks: an access token becomes a `Requester`, an X-Matrix signature becomes an `Origin`.

use std::sync::Arc;

use crate::error::{ErrCode, Error, Result};
use crate::http::rate_limit::{Counted, Rate};
use crate::http::transport::request::Request;
use crate::protocol::appservice::Appservice;
use crate::protocol::{ServerName, UserId};
use crate::service::Homeserver;
use crate::service::accounts::moderation::locked;
use crate::service::limits::request_permits::{Asker, AskerId};
use crate::store::accounts::devices::Session;
use crate::store::accounts::{OwnRate, Standing};

/// The user behind an access token.
#[derive(Debug, Clone)]
pub struct Requester {
    /// Whose token it is.
    pub user_id: UserId,
    /// The device that the token belongs to; none for an application service that names none.
    pub device_id: Option<String>,
    /// Whether the user is an administrator of this server.
    pub admin: bool,
    /// What keeps the user from doing what others may.
    pub standing: Standing,
    /// How often the user may ask, if that is not as for everybody.
    pub own_rate: Option<OwnRate>,
    /// Whether the token has ended with something that was done lately and asked for proof: then only the answer to
    /// that can be had once more, where `http/client_server/accounts/interactive.rs` gives it.
    pub ended: bool,
    /// The application service that asks, as this user. It is no administrator, whoever the user is.
    pub appservice: Option<Arc<Appservice>>,
}

impl Requester {
    fn of(session: Session) -> Self {
        Self {
            user_id: session.user_id,
            device_id: Some(session.device_id),
            admin: session.admin,
            standing: session.standing,
            own_rate: session.own_rate,
            ended: false,
            appservice: None,
        }
    }

    /// Who is counted with their requests.
    pub(super) fn counted(&self) -> Counted {
        // "Whether requests from masqueraded users are rate-limited. The sender is excluded."
        let unlimited = |service: &Arc<Appservice>| !service.rate_limited || service.sender == self.user_id;
        Counted {
            user: self.user_id.clone(),
            own_rate: self.own_rate,
            is_unlimited: self.appservice.as_ref().is_some_and(unlimited),
        }
    }

    /// The device of the token. Errors: 400 `M_MISSING_PARAM` for an application service that has named none.
    pub fn device_id(&self) -> Result<&str> {
        let none = "This takes a device: name one of the user's as device_id in the query";
        self.device_id.as_deref().ok_or_else(|| Error::missing_param(none))
    }

    /// Whether an application service asks, which need not prove what its users would have to.
    pub fn is_service(&self) -> bool {
        self.appservice.is_some()
    }

    /// Errors unless this is the user that the path speaks of: 403 `M_FORBIDDEN`.
    pub fn must_be(&self, user: &UserId) -> Result<()> {
        if self.user_id == *user {
            Ok(())
        } else {
            Err(Error::forbidden("You cannot do this for another user"))
        }
    }
}

/// The server that signed a federation request.
#[derive(Debug, Clone)]
pub struct Origin(pub ServerName);

/// The requester, if the request carries a token. Errors: 401 `M_UNKNOWN_TOKEN`, 401 `M_USER_LOCKED`.
pub(super) fn requester(hs: &Homeserver, request: &Request) -> Result<Option<Requester>> {
    match requester_even_locked(hs, request)? {
        Some(requester) if requester.standing.locked => Err(locked()),
        requester => Ok(requester),
    }
}

/// [`requester_even_locked`] for who logs out of the token's own device, which also may who has a token that has expired: the
/// device would stay else. It is good for nothing else.
pub(super) fn requester_even_expired(hs: &Homeserver, request: &Request) -> Result<Option<Requester>> {
    let refusal = match requester_even_locked(hs, request) {
        Err(e) if e.field("soft_logout") == Some(&true.into()) => e,
        known => return known,
    };
    let Some(token) = request.token() else { return Err(refusal) };
    let session = hs.accounts().authenticate_even_expired(token, request.client_ip())?;
    Ok(Some(Requester::of(session)))
}

/// [`requester`], locked or not.
pub(super) fn requester_even_locked(hs: &Homeserver, request: &Request) -> Result<Option<Requester>> {
    let Some(token) = request.token() else { return Ok(None) };
    match hs.appservices.by_token(token) {
        Some(service) => masquerading(hs, request, service).map(Some),
        None => requester_of_token(hs, request, token).map(Some),
    }
}

/// The application service whose token the request has. Errors: 401 `M_MISSING_TOKEN`, 401 `M_UNKNOWN_TOKEN`.
pub(super) fn appservice<'h>(hs: &'h Homeserver, request: &Request) -> Result<&'h Arc<Appservice>> {
    let missing = || Error::new(ErrCode::MissingToken, "Missing access token");
    let unknown = || Error::new(ErrCode::UnknownToken, "This is the token of no application service");
    hs.appservices.by_token(request.token().ok_or_else(missing)?).ok_or_else(unknown)
}

/// The application service behind a request without a user that is not limited in rate: the users that it makes are as many as
/// there are elsewhere, and how often it logs them in is for its registration to say.
pub(super) fn unlimited_service(hs: &Homeserver, request: &Request, rate: Rate) -> Option<Counted> {
    let service = match rate {
        Rate::Register => appservice(hs, request).ok(),
        Rate::Login => appservice(hs, request).ok().filter(|service| !service.rate_limited),
        _ => None,
    };
    service.map(|service| Counted { user: service.sender.clone(), own_rate: None, is_unlimited: true })
}

/// An application service, as the user and on the device that it names in the query. Errors: those of
/// [`Homeserver::masquerade`].
fn masquerading(hs: &Homeserver, request: &Request, service: &Arc<Appservice>) -> Result<Requester> {
    // Of both names of the device the stable one counts.
    let device = request.query("device_id").or_else(|| request.query("org.matrix.msc3202.device_id"));
    let masquerade = hs.masquerade(service, request.query("user_id"), device)?;
    Ok(Requester {
        user_id: masquerade.user_id,
        device_id: masquerade.device_id,
        admin: false,
        standing: masquerade.standing,
        own_rate: masquerade.own_rate,
        ended: false,
        appservice: Some(Arc::clone(service)),
    })
}

/// Whose access token this is, locked or not. Errors: 401 `M_UNKNOWN_TOKEN`.
pub(super) fn requester_of_token(hs: &Homeserver, request: &Request, token: &str) -> Result<Requester> {
    hs.accounts().authenticate(token, request.client_ip()).map(Requester::of)
}

/// As [`requester`], where a client may ask again for something that ended its own token and whose answer it did not
/// get.
pub(super) fn requester_or_ended(hs: &Homeserver, request: &Request) -> Result<Option<Requester>> {
    let unknown = match requester(hs, request) {
        Err(e) if e.field("soft_logout") == Some(&false.into()) => e,
        known => return known,
    };
    let ended = request.token().and_then(|token| hs.uia_sessions.ended_token(token, hs.clock.steady()));
    let user_id = ended.ok_or(unknown)?;
    let standing = Standing::default();
    let (own_rate, appservice) = (None, None);
    Ok(Some(Requester {
        user_id,
        device_id: None,
        admin: false,
        standing,
        own_rate,
        ended: true,
        appservice,
    }))
}

/// On whose behalf a request is made, and a way to find out whether they still wait for the answer.
pub(super) fn asker(request: &Request, requester: Option<&Requester>) -> Asker {
    let asker = Asker::new(match requester {
        Some(requester) => AskerId::User(requester.user_id.clone()),
        None => AskerId::Address(request.client_ip()),
    });
    match request.hung_up() {
        Some(gone) => asker.until(gone),
        None => asker,
    }
}

/// Most signatures of one request that are looked at: each may mean asking a server for its keys.
const SIGNATURES_MAX: usize = 3;

/// Bodies of servers up to so much are read before anything is known of who sends them.
const UNKNOWN_BODY_BYTES_MAX: u64 = 16 << 10;

/// Whether a request's body is large, or as long as it will be: before it is read somebody we know has to answer for it.
pub(super) fn has_large_body(head: &Request) -> bool {
    let length = head.header("content-length").and_then(|length| length.trim().parse::<u64>().ok());
    length.unwrap_or(0) > UNKNOWN_BODY_BYTES_MAX || head.header("transfer-encoding").is_some()
}

/// Whether a request says that it comes from a server whose key we have, or can have: nobody makes us keep and read much by a
/// name that is not theirs. Errors: those of [`origin`].
pub(super) fn expect_origin(hs: &Homeserver, head: &Request) -> Result<()> {
    by_any_signature(head, |signature| hs.keys().expect_request(signature, &asker(head, None)))
}

/// Checks the X-Matrix signature over method, target and body. A server that signs with several keys sends a header
/// for each, and one that verifies is enough. Errors: 401 `M_UNAUTHORIZED`.
pub(super) fn origin(hs: &Homeserver, request: &Request) -> Result<Origin> {
    let body = Some(request.body()).filter(|body| !body.is_empty());
    let (method, target) = (request.method().as_str(), request.target());
    by_any_signature(request, |signature| {
        hs.keys().verify_request(signature, method, target, body, &asker(request, None)).map(Origin)
    })
}

/// What is made of the first signature of which it can be. Errors: the last one's.
fn by_any_signature<T>(request: &Request, look: impl Fn(&str) -> Result<T>) -> Result<T> {
    let is_signature =
        |value: &&str| value.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("x-matrix"));
    let mut refusal = Error::new(ErrCode::Unauthorized, "The request is not signed");
    for signature in request.header_all("authorization").filter(is_signature).take(SIGNATURES_MAX) {
        match look(signature) {
            Ok(found) => return Ok(found),
            Err(e) => refusal = e,
        }
    }
    Err(refusal)
}
