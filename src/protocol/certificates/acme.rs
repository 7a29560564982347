//! How an authority is asked for a certificate by ACME (RFC 8555), as far as that is text: what it answers, read and bounded,
//! and what is proven to it. How the requests are made is in `federation/acme.rs`, in which order in `service/acme/`.

use serde_json::{Map, Value};

use crate::protocol::Millis;
use crate::protocol::certificates::calendar::{http_date, timestamp};

/// The ALPN protocol of the TLS-ALPN-01 challenge (RFC 8737, 6.2).
pub const TLS_PROTOCOL: &[u8] = b"acme-tls/1";
/// Longest token of a challenge. Those of Let's Encrypt have 43 characters.
const TOKEN_BYTES_MAX: usize = 256;
/// Of what an authority says, this much is told.
const TOLD_CHARS_MAX: usize = 500;
/// How much is told of each name, and of how many.
const SUBPROBLEMS_MAX: usize = 5;

/// The status of an order, an authorization or a challenge (RFC 8555, 7.1.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcmeStatus {
    /// It is ours to go on.
    Pending,
    /// Every name of the order is proven.
    Ready,
    /// It is the authority's to go on.
    Processing,
    /// It is done.
    Valid,
    /// It has failed, or is over.
    Invalid,
}

impl AcmeStatus {
    /// That of an object. What is unknown is over.
    pub fn of(object: &Map<String, Value>) -> Self {
        match text(object, "status") {
            Some("pending") => Self::Pending,
            Some("ready") => Self::Ready,
            Some("processing") => Self::Processing,
            Some("valid") => Self::Valid,
            _ => Self::Invalid,
        }
    }
}

/// How a name is proven to be ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChallengeKind {
    /// A page on port 80 (RFC 8555, 8.3).
    Http,
    /// A certificate on port 443 (RFC 8737).
    TlsAlpn,
}

impl ChallengeKind {
    /// Its name in challenges.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http-01",
            Self::TlsAlpn => "tls-alpn-01",
        }
    }
}

/// One way to prove a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// Which.
    pub kind: ChallengeKind,
    /// Where the authority is told to look.
    pub url: String,
    /// What the proof is made of.
    pub token: String,
    /// How far it is.
    pub status: AcmeStatus,
}

/// The text of a field.
pub fn text<'o>(object: &'o Map<String, Value>, field: &str) -> Option<&'o str> {
    object.get(field).and_then(Value::as_str)
}

/// The name that an authorization is for, in lower case. None: it is for none, or for all below one.
pub fn authorized_name(authorization: &Map<String, Value>) -> Option<String> {
    let identifier = authorization.get("identifier")?.as_object()?;
    let is_name = text(identifier, "type") == Some("dns");
    let is_wildcard = authorization.get("wildcard").and_then(Value::as_bool) == Some(true);
    text(identifier, "value").filter(|_| is_name && !is_wildcard).map(str::to_ascii_lowercase)
}

/// The challenge that is taken up: one that is under way, or else the first of these kinds that there is.
pub fn choose_challenge(authorization: &Map<String, Value>, kinds: &[ChallengeKind]) -> Option<Challenge> {
    let all = authorization.get("challenges")?.as_array()?;
    let of_kind = |kind: ChallengeKind| {
        all.iter().filter_map(Value::as_object).find_map(|challenge| {
            let token = text(challenge, "token").filter(|token| is_token(token))?;
            let url = text(challenge, "url")?;
            let status = AcmeStatus::of(challenge);
            let is_open = matches!(status, AcmeStatus::Pending | AcmeStatus::Processing);
            (text(challenge, "type") == Some(kind.as_str()) && is_open).then(|| Challenge {
                kind,
                url: url.to_owned(),
                token: token.to_owned(),
                status,
            })
        })
    };
    let found: Vec<Challenge> = kinds.iter().filter_map(|kind| of_kind(*kind)).collect();
    let under_way = found.iter().find(|challenge| challenge.status == AcmeStatus::Processing);
    under_way.or(found.first()).cloned()
}

/// "MUST NOT contain any characters outside the base64url alphabet" (RFC 8555, 8.3).
fn is_token(token: &str) -> bool {
    let may_be = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    (1..=TOKEN_BYTES_MAX).contains(&token.len()) && token.bytes().all(may_be)
}

/// Whether an authority may be asked for a certificate for this name: one of the DNS, which is no pattern and no address.
pub fn is_certifiable(name: &str) -> bool {
    let is_label = |label: &str| {
        let may_be = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        (1..=63).contains(&label.len())
            && label.bytes().all(may_be)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is_number = |label: &str| label.bytes().all(|b| b.is_ascii_digit());
    name.len() <= 253 && name.split('.').all(is_label) && !name.rsplit('.').next().is_some_and(is_number)
}

/// What went wrong, as an object of the authority's tells it (RFC 8555, 6.7; RFC 9457), for people.
pub fn told_problem(problem: &Map<String, Value>) -> String {
    let mut told = one_problem(problem);
    let more = problem.get("subproblems").and_then(Value::as_array);
    for problem in more.into_iter().flatten().filter_map(Value::as_object).take(SUBPROBLEMS_MAX) {
        let name = problem.get("identifier").and_then(|identifier| identifier.get("value"));
        let name = name.and_then(Value::as_str).unwrap_or("?");
        told = format!("{told}; {name}: {}", one_problem(problem));
    }
    told.chars().filter(|c| !c.is_control()).take(TOLD_CHARS_MAX).collect()
}

fn one_problem(problem: &Map<String, Value>) -> String {
    let kind = text(problem, "type").unwrap_or("no reason");
    let kind = kind.strip_prefix("urn:ietf:params:acme:error:").unwrap_or(kind);
    match text(problem, "detail") {
        Some(detail) => format!("{detail} ({kind})"),
        None => kind.to_owned(),
    }
}

/// Why an authorization has failed: what the first challenge that has failed says.
pub fn told_failure(authorization: &Map<String, Value>) -> String {
    let all = authorization.get("challenges").and_then(Value::as_array);
    let mut errors = all.into_iter().flatten().filter_map(|challenge| challenge.get("error")?.as_object());
    errors.next().map_or_else(|| "it says nothing of why".to_owned(), told_problem)
}

/// For how long to wait by a `Retry-After` header: a number of seconds, or a date (RFC 9110, 10.2.3).
pub fn retry_after(header: &str, now: Millis) -> Option<Millis> {
    let header = header.trim();
    if let Ok(seconds) = header.parse::<u64>() {
        return Some(Millis::try_from(seconds).unwrap_or(Millis::MAX).saturating_mul(1000));
    }
    Some(http_date(header)?.saturating_sub(now).max(0))
}

/// When the authority suggests to renew (RFC 9773, 4.2): from one time until another, in this order.
pub fn suggested_window(renewal_info: &Map<String, Value>) -> Option<(Millis, Millis)> {
    let window = renewal_info.get("suggestedWindow")?.as_object()?;
    let time = |field| timestamp(text(window, field)?);
    Some((time("start")?, time("end")?)).filter(|(start, end)| start <= end)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn a_challenge_is_taken_up_by_preference_and_one_that_is_under_way_before_all() {
        use ChallengeKind::{Http, TlsAlpn};
        let challenge = |kind: &str, status: &str, token: &str| json!({ "type": kind, "status": status, "token": token, "url": kind });
        let chosen = |challenges: Value, kinds: &[ChallengeKind]| {
            choose_challenge(&object(json!({ "challenges": challenges })), kinds).map(|c| c.kind)
        };
        let both = json!([challenge("http-01", "pending", "a"), challenge("tls-alpn-01", "pending", "a")]);
        assert_eq!(chosen(both.clone(), &[TlsAlpn, Http]), Some(TlsAlpn));
        assert_eq!(chosen(both.clone(), &[Http, TlsAlpn]), Some(Http));
        assert_eq!(chosen(both, &[]), None);
        let one = json!([challenge("http-01", "processing", "a"), challenge("tls-alpn-01", "pending", "a")]);
        assert_eq!(chosen(one, &[TlsAlpn, Http]), Some(Http));
        for token in ["", "a/b", "a.b", "a\r\n", "é", &"a".repeat(257)] {
            assert_eq!(chosen(json!([challenge("http-01", "pending", token)]), &[Http]), None, "{token}");
        }
        for hopeless in [
            json!([challenge("http-01", "valid", "a")]),
            json!([challenge("http-01", "invalid", "a")]),
            json!([challenge("http-02", "pending", "a")]),
            json!([challenge("dns-01", "pending", "a"), 5, null, "http-01", {}]),
            json!({}),
            json!(null),
        ] {
            assert_eq!(chosen(hopeless.clone(), &[Http, TlsAlpn]), None, "{hopeless}");
        }
    }

    #[test]
    fn only_names_of_the_dns_can_be_certified() {
        for good in ["example.org", "localhost", "a.b-c.example", "1.example", "xn--bcher-kva.example"] {
            assert!(is_certifiable(good), "{good}");
        }
        let long = [&"a".repeat(64), ".example"].concat();
        for bad in [
            "",
            ".",
            "example.org.",
            ".example.org",
            "*.example.org",
            "Example.org",
            "a_b.example",
            "-a.example",
            "a-.example",
            "192.0.2.1",
            "[::1]",
            "::1",
            "example.org:8448",
            "bücher.example",
            "a b",
            &long,
            &"a.".repeat(130),
        ] {
            assert!(!is_certifiable(bad), "{bad}");
        }
    }

    #[test]
    fn what_an_authority_says_is_told_within_bounds() {
        let problem = json!({
            "type": "urn:ietf:params:acme:error:rateLimited", "detail": "too\nmany\u{1b}[2J",
            "subproblems": [{ "type": "x", "identifier": { "value": "a.example" } }, 5, { "detail": "no" }],
        });
        let told = told_problem(&object(problem));
        assert_eq!(told, "toomany[2J (rateLimited); a.example: x; ?: no (no reason)");
        assert_eq!(told_problem(&object(json!({}))), "no reason");
        let long = object(json!({ "detail": "é".repeat(9000), "subproblems": vec![json!({}); 900] }));
        assert_eq!(told_problem(&long).chars().count(), 500);
        let failed = json!({ "challenges": [{}, { "error": { "detail": "no A record", "type": "dns" } }] });
        assert_eq!(told_failure(&object(failed)), "no A record (dns)");
        assert_eq!(told_failure(&object(json!({ "challenges": 5 }))), "it says nothing of why");
    }

    #[test]
    fn a_pause_is_a_number_of_seconds_or_a_date() {
        let now = 784_111_777_000 - 60_000;
        let seconds = |header| retry_after(header, now).map(|wait| wait / 1000);
        assert_eq!(seconds("5"), Some(5));
        assert_eq!(seconds(" 0 "), Some(0));
        assert_eq!(seconds("Sun, 06 Nov 1994 08:49:37 GMT"), Some(60));
        assert_eq!(seconds("Sun, 06 Nov 1983 08:49:37 GMT"), Some(0));
        assert_eq!(retry_after("18446744073709551615", now), Some(Millis::MAX));
        for wrong in ["", "soon", "-1", "1.5", "18446744073709551616"] {
            assert_eq!(seconds(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_suggestion_is_a_window_that_begins_before_it_ends() {
        let window = |start: &str, end: &str| {
            suggested_window(&object(json!({ "suggestedWindow": { "start": start, "end": end } })))
        };
        let (one, other) = ("1970-01-01T00:00:01Z", "1970-01-01T00:00:02Z");
        assert_eq!(window(one, other), Some((1000, 2000)));
        assert_eq!(window(other, one), None);
        assert_eq!(window("soon", other), None);
        assert_eq!(suggested_window(&object(json!({ "suggestedWindow": [] }))), None);
    }
}
