//! Who asks: an access token becomes a `Requester`, an X-Matrix signature becomes an `Origin`.

use crate::error::{ErrCode, Error, Result};
use crate::http::rate_limit::Counted;
use crate::http::transport::request::Request;
use crate::protocol::{ServerName, UserId};
use crate::service::Homeserver;
use crate::service::accounts::moderation::locked;
use crate::service::limits::request_permits::{Asker, AskerId};
use crate::store::accounts::{OwnRate, Standing};

/// The user behind an access token.
#[derive(Debug, Clone)]
pub struct Requester {
    /// Whose token it is.
    pub user_id: UserId,
    /// The device that the token belongs to; none for tokens without a device (application services).
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
}

impl Requester {
    /// Who is counted with their requests.
    pub(super) fn counted(&self) -> Counted {
        Counted { user: self.user_id.clone(), own_rate: self.own_rate }
    }

    /// The device of the token. Errors: 403 `M_FORBIDDEN` for a token without one.
    pub fn device_id(&self) -> Result<&str> {
        self.device_id.as_deref().ok_or_else(|| Error::forbidden("This access token belongs to no device"))
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

/// [`requester`] for what also who is locked may do: log out.
pub(super) fn requester_even_locked(hs: &Homeserver, request: &Request) -> Result<Option<Requester>> {
    request.token().map(|token| requester_of_token(hs, request, token)).transpose()
}

/// Whose access token this is, locked or not. Errors: 401 `M_UNKNOWN_TOKEN`.
pub(super) fn requester_of_token(hs: &Homeserver, request: &Request, token: &str) -> Result<Requester> {
    let session = hs.accounts().authenticate(token, request.client_ip())?;
    Ok(Requester {
        user_id: session.user_id,
        device_id: Some(session.device_id),
        admin: session.admin,
        standing: session.standing,
        own_rate: session.own_rate,
        ended: false,
    })
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
    Ok(Some(Requester { user_id, device_id: None, admin: false, standing, own_rate: None, ended: true }))
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

/// Checks the X-Matrix signature over method, target and body. A server that signs with several keys sends a header
/// for each, and one that verifies is enough. Errors: 401 `M_UNAUTHORIZED`.
pub(super) fn origin(hs: &Homeserver, request: &Request) -> Result<Origin> {
    let is_signature =
        |value: &&str| value.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("x-matrix"));
    let body = Some(request.body()).filter(|body| !body.is_empty());
    let mut refusal = Error::new(ErrCode::Unauthorized, "The request is not signed");
    for signature in request.header_all("authorization").filter(is_signature).take(SIGNATURES_MAX) {
        let asker = asker(request, None);
        match hs.keys().verify_request(signature, request.method().as_str(), request.target(), body, &asker) {
            Ok(server) => return Ok(Origin(server)),
            Err(e) => refusal = e,
        }
    }
    Err(refusal)
}
