//! What push gateways are sent (push gateway API): `POST /_matrix/push/v1/notify`. Users say where they are, so the same
//! holds for them as for all that strangers name: no way into our own network, no redirects, bounded answers and time.

use std::time::Duration;

use serde::Deserialize;
use ureq::http;

use crate::federation::answer_memory::HeldMemory;
use crate::federation::call_error::{CallError, CallResult};
use crate::federation::client::Client;
use crate::federation::client::exchange::{ExchangeFailure, read_answer};
use crate::federation::discovery::HostPort;
use crate::federation::discovery::address_guard::AddressGuard;
use crate::protocol::json::read_object;

const NOTIFY_TIMEOUT: Duration = Duration::from_secs(15);
/// One pushkey was sent, and comes back at most.
const NOTIFY_ANSWER_BYTES_MAX: u64 = 64 << 10;
/// "MUST be an HTTPS URL with a path of `/_matrix/push/v1/notify`."
const NOTIFY_PATH: &str = "/_matrix/push/v1/notify";
const URL_BYTES_MAX: usize = 2048;

/// Checks the URL of a push gateway as a user names it. Its host's name is looked up whenever something is sent; an address
/// can be judged now. `allow_private`: for closed networks, where there need not be TLS either. Errors: what is
/// wrong, the end of a sentence that begins with the URL.
pub fn check_gateway_url(url: &str, allow_private: bool) -> Result<(), &'static str> {
    if url.len() > URL_BYTES_MAX || url.contains('#') {
        return Err("is no URL of a push gateway");
    }
    let uri: http::Uri = url.parse().map_err(|_| "is no URL")?;
    match uri.scheme_str() {
        Some("https") => {}
        Some("http") if allow_private => {}
        Some("http") => return Err("should begin with https://"),
        _ => return Err("is no URL of a push gateway"),
    }
    let authority = uri.authority().filter(|authority| !authority.host().is_empty()).ok_or("has no host")?;
    if authority.as_str().contains('@') {
        return Err("should have no user name");
    }
    if uri.path() != NOTIFY_PATH {
        return Err("should have the path /_matrix/push/v1/notify");
    }
    let literal = HostPort { host: authority.host(), port: None }.ip();
    if literal.is_some_and(|ip| !AddressGuard { allow_private }.allows(ip)) {
        return Err("has an address that this server may not connect to");
    }
    Ok(())
}

/// The host that a gateway's URL names, with its port: those that are one are slow together.
pub fn gateway_host(url: &str) -> String {
    let uri: Option<http::Uri> = url.parse().ok();
    uri.and_then(|uri| Some(uri.authority()?.as_str().to_ascii_lowercase())).unwrap_or_default()
}

impl Client {
    /// Sends a notification. Which of the pushkeys in it are not valid (any more), as the gateway says. Errors: it was not
    /// taken, or perhaps not.
    pub fn notify_gateway(&self, url: &str, body: &str) -> CallResult<Vec<String>> {
        #[derive(Deserialize)]
        struct Answer {
            #[serde(default)]
            rejected: Vec<String>,
        }
        let request = http::Request::post(url)
            .header("Accept", "application/json")
            .header("Content-Type", "application/json")
            .body(body)
            .map_err(|e| CallError::bad(format!("our own request is not valid HTTP: {e}")))?;
        let request = self
            .web
            .configure_request(request)
            .https_only(!self.allows_plain_gateways)
            .timeout_global(Some(NOTIFY_TIMEOUT))
            .build();
        let answer = self
            .web
            .run(request)
            .map_err(ExchangeFailure::from_ureq)
            .and_then(|answer| read_answer(answer, NOTIFY_ANSWER_BYTES_MAX, HeldMemory::default()))
            .map_err(ExchangeFailure::into_call_error)?;
        let answer: Answer = read_object(&answer.body)
            .map_err(|e| CallError::bad(format!("an answer of another shape: {}", e.message())))?;
        Ok(answer.rejected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_is_an_https_url_with_the_one_path_and_no_way_into_our_own_network() {
        for good in [
            "https://push.example.org/_matrix/push/v1/notify",
            "https://push.example.org:8443/_matrix/push/v1/notify?key=a",
            "https://1.1.1.1/_matrix/push/v1/notify",
            "https://[2606:4700::1111]/_matrix/push/v1/notify",
        ] {
            assert_eq!(check_gateway_url(good, false), Ok(()), "{good}");
        }
        for bad in [
            "",
            "push.example.org/_matrix/push/v1/notify",
            "http://push.example.org/_matrix/push/v1/notify",
            "ftp://push.example.org/_matrix/push/v1/notify",
            "https:///_matrix/push/v1/notify",
            "https://push.example.org/_matrix/push/v1/notify/",
            "https://push.example.org/_matrix/push/v1/../v1/notify",
            "https://push.example.org/",
            "https://me:secret@push.example.org/_matrix/push/v1/notify",
            "https://push.example.org/_matrix/push/v1/notify#x",
            "https://127.0.0.1/_matrix/push/v1/notify",
            "https://[::1]:8448/_matrix/push/v1/notify",
            "https://169.254.169.254/_matrix/push/v1/notify",
            "https://10.0.0.7/_matrix/push/v1/notify",
            "https://[::ffff:10.0.0.7]/_matrix/push/v1/notify",
            "https://push example.org/_matrix/push/v1/notify",
        ] {
            assert!(check_gateway_url(bad, false).is_err(), "{bad}");
        }
        for closed in
            ["http://127.0.0.1:5000/_matrix/push/v1/notify", "https://10.0.0.7/_matrix/push/v1/notify"]
        {
            assert_eq!(check_gateway_url(closed, true), Ok(()), "{closed}");
        }
        assert!(check_gateway_url("http://224.0.0.1/_matrix/push/v1/notify", true).is_err());
    }

    #[test]
    fn gateways_are_told_apart_by_host_and_port() {
        let host = |url| gateway_host(url);
        assert_eq!(host("https://Push.Example.org/_matrix/push/v1/notify"), "push.example.org");
        assert_eq!(host("http://127.0.0.1:5000/_matrix/push/v1/notify"), "127.0.0.1:5000");
        assert_eq!(host("nothing"), "nothing");
    }
}
