//! What is judged of that which a server answered: its well-known pages, its statement of keys, its certificate.

use serde_json::{Map, Value};

use super::{Report, State};
use crate::clock::{Clock, Millis};
use crate::federation::discovery::HostPort;
use crate::federation::inspect::Page;
use crate::protocol::ServerName;
use crate::protocol::certificates::CertificateFacts;
use crate::protocol::json::{CanonicalObject, parse_object};
use crate::service::keys::ring::read_statement;

const DAY_MS: Millis = 24 * 3_600_000;
/// Of the time that a certificate is good, the part before whose beginning it should have been renewed.
const RENEWAL_PART: Millis = 6;

/// What a well-known page says to other servers.
pub(super) enum Delegation {
    /// Where they are to go.
    To(String),
    /// There is none, as there need not be.
    None,
    /// It is of no use, and why.
    Bad(String),
}

/// What a page of `/.well-known/matrix/server` says.
pub(super) fn delegation(page: &Page) -> Delegation {
    match page.status {
        200 => {}
        404 | 410 => return Delegation::None,
        status => return Delegation::Bad(format!("{} answers with status {status}", page.url)),
    }
    let body = match object(page) {
        Ok(body) => body,
        Err(why) => return Delegation::Bad(why),
    };
    match body.get("m.server") {
        Some(Value::String(to)) if HostPort::parse(to).is_some() => Delegation::To(to.clone()),
        Some(other) => {
            Delegation::Bad(format!("{} says that m.server is {other}, which is no host[:port]", page.url))
        }
        None => Delegation::Bad(format!("{} has no m.server", page.url)),
    }
}

/// The `base_url` on a page of `/.well-known/matrix/client`. Errors: why there is none.
pub(super) fn base_url(page: &Page) -> Result<String, String> {
    if page.status != 200 {
        return Err(format!("{} answers with status {}", page.url, page.status));
    }
    let body = object(page)?;
    let url = body.get("m.homeserver").and_then(|server| server.get("base_url")).and_then(Value::as_str);
    let url = url.filter(|url| url.starts_with("https://") || url.starts_with("http://"));
    url.map(str::to_owned)
        .ok_or_else(|| format!("{} has no m.homeserver with a base_url that is an address", page.url))
}

/// The versions on a page of `/_matrix/client/versions`. Errors: why there are none.
pub(super) fn versions(page: &Page) -> Result<usize, String> {
    if page.status != 200 {
        return Err(format!("{} answers with status {}", page.url, page.status));
    }
    let body = object(page)?;
    let versions = body.get("versions").and_then(Value::as_array).filter(|versions| !versions.is_empty());
    versions.map(Vec::len).ok_or_else(|| format!("{} names no versions", page.url))
}

/// What keeps browsers from reading a page, if anything does.
pub(super) fn cors_fault(page: &Page) -> Option<String> {
    match page.allowed_origin.as_deref() {
        Some("*") => None,
        None => Some(format!("{} lacks the header Access-Control-Allow-Origin: *", page.url)),
        Some(other) => {
            Some(format!("{} has Access-Control-Allow-Origin: {other}, which is not one *", page.url))
        }
    }
}

/// The page's JSON object. Errors: that it is none.
pub(super) fn object(page: &Page) -> Result<Map<String, Value>, String> {
    parse_object(&page.body).map_err(|_| {
        let start = page.body.iter().find(|b| !b.is_ascii_whitespace());
        let what = if start == Some(&b'<') { "HTML" } else { "something else" };
        format!("{} is {what} and not a JSON object", page.url)
    })
}

/// A server's statement of its keys, not checked.
pub(super) fn key_statement(body: &[u8]) -> Option<CanonicalObject> {
    CanonicalObject::read(body).ok().map(|(statement, _)| statement)
}

/// The keys of a statement that its server signed and that is still good: ids and keys in base64, those in use.
pub(super) fn signed_keys(page: &Page, name: &ServerName) -> Result<Vec<(String, String)>, String> {
    if page.status != 200 {
        return Err(format!("{} answers with status {}", page.url, page.status));
    }
    let statement =
        key_statement(&page.body).ok_or_else(|| format!("{} is no statement of keys", page.url))?;
    let now = Clock::new().now_ms();
    let keys =
        read_statement(&statement, name, now).map_err(|why| match statement.string("server_name") {
            Some(other) if other != name.as_str() => format!("{other} answers there, and not {name}"),
            _ => format!("the statement of keys at {} cannot be believed: {why}", page.url),
        })?;
    if keys.iter().any(|key| !key.retired && key.valid_until_ms < now) {
        return Err(format!("the statement of keys at {} is out of date: is a clock wrong?", page.url));
    }
    Ok(keys.into_iter().filter(|key| !key.retired).map(|key| (key.key_id, key.public_key)).collect())
}

/// Tells of a certificate that is good now for how long it still is.
pub(super) fn days_left(
    about: &'static str,
    place: &str,
    facts: &CertificateFacts,
    chain: usize,
    report: &mut Report<'_>,
) {
    let left = facts.not_after - Clock::new().now_ms();
    let days = left.div_euclid(DAY_MS);
    let names = match facts.names.as_slice() {
        [] => "nobody".to_owned(),
        names if names.len() > 4 => format!("{} and {} others", names[..4].join(", "), names.len() - 4),
        names => names.join(", "),
    };
    let found =
        format!("{place}: for {names}, by {}, {chain} in the chain, good for {days} days", facts.issuer);
    let due = left < (facts.not_after - facts.not_before) / RENEWAL_PART;
    let state = if due { State::Note } else { State::Fine };
    report.add(about, state, found, due.then(|| "renew it: whatever does that by itself did not".into()));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(status: u16, body: &str) -> Page {
        let url = "https://example.org/x".into();
        Page { url, status, allowed_origin: None, date: None, body: body.into() }
    }

    #[test]
    fn a_delegation_is_told_from_none_and_from_nonsense() {
        let to = |status, body: &str| match delegation(&page(status, body)) {
            Delegation::To(to) => to,
            Delegation::None => "none".into(),
            Delegation::Bad(why) => format!("bad: {why}"),
        };
        assert_eq!(to(200, r#"{"m.server":"matrix.example.org:443"}"#), "matrix.example.org:443");
        assert_eq!(to(404, "<html>"), "none");
        for (status, body, word) in [
            (200, "<html>", "HTML"),
            (200, "[]", "JSON"),
            (200, "", "JSON"),
            (200, "{}", "no m.server"),
            (200, r#"{"m.server":"https://matrix.example.org"}"#, "no host"),
            (200, r#"{"m.server":5}"#, "no host"),
            (500, "{}", "500"),
            (403, "{}", "403"),
        ] {
            let said = to(status, body);
            assert!(said.starts_with("bad") && said.contains(word), "{status} {body}: {said}");
        }
    }

    #[test]
    fn a_page_that_a_browser_may_not_read_is_told_from_one_that_it_may() {
        let with =
            |origin: Option<&str>| Page { allowed_origin: origin.map(str::to_owned), ..page(200, "{}") };
        assert_eq!(cors_fault(&with(Some("*"))), None);
        for wrong in [None, Some("*, *"), Some("https://app.example"), Some("")] {
            assert!(cors_fault(&with(wrong)).is_some(), "{wrong:?}");
        }
    }

    #[test]
    fn an_address_for_clients_has_to_be_one() {
        assert_eq!(
            base_url(&page(200, r#"{"m.homeserver":{"base_url":"https://a.example"}}"#)).as_deref(),
            Ok("https://a.example")
        );
        for body in [
            "{}",
            r#"{"m.homeserver":{}}"#,
            r#"{"m.homeserver":{"base_url":"a.example"}}"#,
            r#"{"m.homeserver":7}"#,
            "<p>",
        ] {
            assert!(base_url(&page(200, body)).is_err(), "{body}");
        }
        assert!(base_url(&page(404, "{}")).is_err());
        assert_eq!(versions(&page(200, r#"{"versions":["v1.1"]}"#)), Ok(1));
        assert!(versions(&page(200, r#"{"versions":[]}"#)).is_err() && versions(&page(502, "{}")).is_err());
    }
}
