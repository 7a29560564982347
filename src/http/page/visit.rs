//! Who stands before the page: by which cookie, with which form, and from where the form was sent.
//!
//! A session of the page is a device of its user, and its cookie an access token of that device, which ends as every
//! other does. Forms are taken from this page alone, three times over: the cookies are `SameSite=Strict`, the browser
//! says from where a form was sent, and each form carries a token that is made of the cookie and that no other page can
//! read.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use tiny_http::Method;

use crate::error::{ErrCode, Error, Result};
use crate::http::auth::{Requester, requester_of_token};
use crate::http::transport::reply::Reply;
use crate::http::transport::request::{Request, parse_query};
use crate::random;
use crate::service::Homeserver;
use crate::service::accounts::moderation::locked;
use crate::service::accounts::page_sessions::PAGE_COOKIE_LIFE_MS;

/// The cookie of a session, and that of who has none, which only their forms rest on.
const SESSION: &str = "doorstep";
const STRANGER: &str = "doorstep-form";

/// A cookie of this prefix can be set by this very host alone, and by HTTPS.
const HOST_PREFIX: &str = "__Host-";

/// The field of each form that has its token.
pub(super) const FORM_TOKEN: &str = "form";

/// Most fields of a form: none of ours has a dozen.
const FIELDS_MAX: usize = 32;

/// Who asks for a page, by the head of their request.
pub struct Visitor {
    /// Whose session the cookie is of; also of who is locked, or a guest.
    pub(super) requester: Option<Requester>,
    /// Why the cookie that was sent is no good.
    pub(super) refusal: Option<Error>,
    /// The access token of the cookie, good or not.
    session: Option<String>,
    /// What the tokens of the visitor's forms are made of.
    secret: String,
    /// Whether that was made just now, and has to be told.
    is_new: bool,
    /// Whether the browser came by HTTPS.
    by_https: bool,
}

impl Visitor {
    /// Who sent this head. Errors: 403 `M_FORBIDDEN` for a form that another site sent, and those of the store.
    pub fn of(hs: &Homeserver, head: &Request) -> Result<Self> {
        if *head.method() == Method::Post {
            check_sent_from_here(hs, head)?;
        }
        // To where a client leads, browsers go without the session's cookie, and send the form with it.
        let session = cookie(head, SESSION).filter(|_| !is_for_client(head.path()));
        let (requester, refusal) = match session.as_deref().map(|t| requester_of_token(hs, head, t)) {
            None => (None, None),
            Some(Ok(requester)) => (Some(requester), None),
            Some(Err(e)) if e.errcode() == ErrCode::UnknownToken => (None, Some(e)),
            Some(Err(e)) => return Err(e),
        };
        let known = if requester.is_some() { session.clone() } else { cookie(head, STRANGER) };
        let is_new = known.is_none();
        let secret = known.unwrap_or_else(random::token);
        Ok(Self { requester, refusal, session, secret, is_new, by_https: head.came_by_https() })
    }

    /// The user, for what only users do. Errors: 401 `M_MISSING_TOKEN`, 401 `M_UNKNOWN_TOKEN`, 401 `M_USER_LOCKED` unless
    /// that does not matter.
    pub fn user(&self, even_locked: bool) -> Result<Requester> {
        match (&self.requester, &self.refusal) {
            (Some(requester), _) if requester.standing.locked && !even_locked => Err(locked()),
            (Some(requester), _) => Ok(requester.clone()),
            (None, Some(_)) => Err(Error::new(ErrCode::UnknownToken, "Your session has ended")),
            (None, None) => Err(Error::new(ErrCode::MissingToken, "Please log in")),
        }
    }

    /// The access token that the visitor's cookie had, good or not.
    pub(super) fn session(&self) -> Option<&str> {
        self.session.as_deref()
    }

    /// What each form of the visitor's carries.
    pub(super) fn form_token(&self) -> String {
        URL_SAFE_NO_PAD.encode(hmac::sign(&self.key(), b"form"))
    }

    fn key(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, self.secret.as_bytes())
    }

    /// Errors: 403 `M_FORBIDDEN` for a form without the visitor's token. In constant time.
    fn check_form_token(&self, token: &str) -> Result<()> {
        let token = URL_SAFE_NO_PAD.decode(token).unwrap_or_default();
        hmac::verify(&self.key(), b"form", &token).map_err(|_| {
            Error::forbidden(
                "This form is of an earlier visit. Please go back, load the page anew and send it again",
            )
        })
    }

    /// The answer with what the browser has to remember for its next form.
    pub(super) fn remembered(&self, reply: Reply) -> Reply {
        if self.is_new {
            reply.with_header("Set-Cookie", &self.cookie(STRANGER, &self.secret, None))
        } else {
            reply
        }
    }

    /// The answer with the cookie of a new session.
    pub(super) fn logged_in(&self, reply: Reply, access_token: &str) -> Reply {
        let life_s = PAGE_COOKIE_LIFE_MS / 1000;
        reply.with_header("Set-Cookie", &self.cookie(SESSION, access_token, Some(life_s)))
    }

    /// The answer without a session from now on.
    pub(super) fn logged_out(&self, reply: Reply) -> Reply {
        reply.with_header("Set-Cookie", &self.cookie(SESSION, "", Some(0)))
    }

    fn cookie(&self, name: &str, value: &str, life_s: Option<i64>) -> String {
        let (prefix, secure) = if self.by_https { (HOST_PREFIX, "; Secure") } else { ("", "") };
        let life = life_s.map(|s| format!("; Max-Age={s}")).unwrap_or_default();
        format!("{prefix}{name}={value}; Path=/; HttpOnly; SameSite=Strict{secure}{life}")
    }
}

/// Whether a page is for who comes from a client, which is another site: see [`super::fallback`].
fn is_for_client(path: &str) -> bool {
    path.trim_start_matches('/').starts_with("_matrix/")
}

/// A cookie of ours. Who comes by HTTPS has those only that nobody else can have set.
fn cookie(head: &Request, name: &str) -> Option<String> {
    let named = |wanted: &str| {
        let pairs = head.header_all("cookie").flat_map(|header| header.split(';'));
        let mut found = pairs.filter_map(|pair| pair.trim().split_once('='));
        found.find(|(name, value)| *name == wanted && !value.is_empty()).map(|(_, value)| value.to_owned())
    };
    named(&format!("{HOST_PREFIX}{name}")).or_else(|| named(name).filter(|_| !head.came_by_https()))
}

/// Whether a form was sent from a page of ours, as the browser tells. (`Sec-Fetch-Site` it sends only by HTTPS and to this
/// machine. `Origin` is `null` for a form of a page that hides from where it sends, as ours does not.) Errors: 403
/// `M_FORBIDDEN`.
fn check_sent_from_here(hs: &Homeserver, head: &Request) -> Result<()> {
    let is_ours = match (head.header("sec-fetch-site"), head.header("origin")) {
        (Some(site), _) => site == "same-origin",
        (None, Some(origin)) => is_our_origin(hs, head, origin),
        (None, None) => false,
    };
    let elsewhere = || {
        Error::forbidden(
            "This form was sent from another site. (Or a proxy on the way does not hand on the Host header.)",
        )
    };
    if is_ours { Ok(()) } else { Err(elsewhere()) }
}

fn is_our_origin(hs: &Homeserver, head: &Request, origin: &str) -> bool {
    let Some((_, authority)) = origin.split_once("://") else { return false };
    let forwarded = head.header("x-forwarded-host").filter(|_| head.is_by_proxy());
    let asked_for = [head.header("host"), forwarded].into_iter().flatten();
    let is_public = hs.config.public_url.split_once("://").is_some_and(|(_, rest)| {
        rest.split('/').next().is_some_and(|public| public.eq_ignore_ascii_case(authority))
    });
    is_public || { asked_for }.any(|host| host.eq_ignore_ascii_case(authority))
}

/// One request for a page: who makes it, and the form that came with it.
pub struct Visit<'r> {
    /// The request.
    pub(super) request: &'r Request,
    /// Who makes it.
    pub(super) visitor: &'r Visitor,
    fields: Vec<(String, String)>,
}

impl<'r> Visit<'r> {
    /// Reads the form. Errors: 400 `M_INVALID_PARAM` for what is none, 403 `M_FORBIDDEN` without its token.
    pub fn of(request: &'r Request, visitor: &'r Visitor) -> Result<Self> {
        let mut visit = Self { request, visitor, fields: Vec::new() };
        if *request.method() == Method::Post {
            let kind = request.header("content-type").and_then(|kind| kind.split(';').next());
            let is_form = kind
                .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/x-www-form-urlencoded"));
            let no_form = || Error::invalid_param("This is no form");
            let text = std::str::from_utf8(request.body()).ok().filter(|_| is_form).ok_or_else(no_form)?;
            visit.fields = parse_query(text)?;
            if visit.fields.len() > FIELDS_MAX {
                return Err(no_form());
            }
            visitor.check_form_token(visit.field(FORM_TOKEN))?;
        }
        Ok(visit)
    }

    /// A field of the form; empty if it is not there.
    pub(super) fn field(&self, name: &str) -> &str {
        self.fields.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value.as_str())
    }

    /// A field of the form without blanks around it; none if there is nothing else.
    pub(super) fn given(&self, name: &str) -> Option<&str> {
        Some(self.field(name).trim()).filter(|value| !value.is_empty())
    }

    /// The fields of the form but its token and what is named, to be asked for once more.
    pub(super) fn fields_but<'v>(&'v self, left_out: &'v [&str]) -> impl Iterator<Item = (&'v str, &'v str)> {
        let kept = |name: &str| name != FORM_TOKEN && !left_out.contains(&name);
        self.fields
            .iter()
            .filter(move |(name, _)| kept(name))
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Whether what cannot be undone was confirmed.
    pub(super) fn is_confirmed(&self) -> bool {
        self.field("confirmed") == "yes"
    }
}
