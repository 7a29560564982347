//! Answers that may be as large as a file: their heads are read, and then their bodies as they come, by whoever has a
//! place for them. A body may take as long as the request has time, but it may not fall silent; whether it comes too
//! slowly is for the reader to say.

use std::io::{self, Read};
use std::time::Duration;

use ureq::http;
use ureq::http::Uri;

use super::exchange::{ExchangeFailure, read_error};
use super::{Client, PeerRequest, Repeat, request_head, with_body};
use crate::federation::answer_memory::HeldMemory;
use crate::federation::call_error::{CallError, CallResult};
use crate::protocol::media::multipart::text_of;

/// Time for an answer's head, and for each piece of what follows.
const HEAD_TIMEOUT: Duration = Duration::from_secs(45);
const SILENCE_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest address of a web page, in bytes.
const URL_BYTES_MAX: usize = 4 << 10;

/// An answer whose body is still to be read. Its status is 200, or a redirect that says where to.
pub struct StreamedAnswer {
    /// The `Location` of a redirect.
    pub redirect: Option<String>,
    /// The header's value, whatever it is.
    pub content_type: Option<String>,
    pub disposition: Option<String>,
    /// How long the body says it is.
    pub length: Option<u64>,
    /// Whether the body ends before the connection does.
    pub is_framed: bool,
    body: ureq::BodyReader<'static>,
}

impl StreamedAnswer {
    /// Reads on. Errors: the answer broke off.
    pub fn read(&mut self, buffer: &mut [u8]) -> CallResult<usize> {
        loop {
            match self.body.read(buffer) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    let failure = ExchangeFailure::from_ureq(ureq::Error::from(e));
                    return Err(failure.into_call_error().after_success());
                }
                Ok(count) => return Ok(count),
            }
        }
    }
}

impl Client {
    /// Makes a `GET` to a server, signed or not, whose answer is read as it comes. The request's own bound is not looked
    /// at.
    pub fn stream(&self, request: &PeerRequest<'_>, is_signed: bool) -> CallResult<StreamedAnswer> {
        let authorization = if is_signed {
            Some(self.authorization(request)?)
        } else {
            self.check_peer(request.destination)?;
            None
        };
        self.reach(request, Repeat::OfLostConnections, |authority, within, new_connection| {
            let head = request_head(request, authority, authorization.as_deref(), "*/*");
            let config = self.agent.configure_request(with_body(head, ())?).timeout_global(Some(within));
            let config = if new_connection { config.max_idle_age(Duration::ZERO) } else { config };
            let config = config.timeout_per_read(Some(SILENCE_TIMEOUT));
            let config = config.timeout_recv_response(Some(HEAD_TIMEOUT));
            streamed(self.agent.run(config.build()))
        })
    }

    /// Makes a `GET` to a web server that another server named: by `https` only, to no address of our own network, and
    /// with nothing in it that says who asks.
    pub fn stream_from_web(&self, url: &str, within: Duration) -> CallResult<StreamedAnswer> {
        let uri = web_address(url).ok_or_else(|| CallError::bad("a Location that is no https address"))?;
        let request = http::Request::get(uri).header("Accept", "*/*");
        let request = with_body(request, ()).map_err(ExchangeFailure::into_call_error)?;
        let config = self.web.configure_request(request).timeout_global(Some(within));
        let config = config.timeout_per_read(Some(SILENCE_TIMEOUT)).timeout_recv_response(Some(HEAD_TIMEOUT));
        streamed(self.web.run(config.build())).map_err(ExchangeFailure::into_call_error)
    }
}

fn streamed(
    answer: Result<http::Response<ureq::Body>, ureq::Error>,
) -> Result<StreamedAnswer, ExchangeFailure> {
    let answer = answer.map_err(ExchangeFailure::from_ureq)?;
    let header = |name: &str| answer.headers().get(name).map(|value| text_of(value.as_bytes()));
    let status = answer.status();
    let bad = |why: String| ExchangeFailure::Answered(CallError::bad(why));
    if status.is_client_error() || status.is_server_error() {
        return Err(read_error(answer, HeldMemory::default()));
    }
    let redirect = header("location").filter(|_| status.is_redirection());
    if status.as_u16() != 200 && redirect.is_none() {
        return Err(bad(format!("an answer with status {status}")));
    }
    if header("content-encoding").is_some_and(|encoding| !encoding.eq_ignore_ascii_case("identity")) {
        return Err(bad("an encoded answer, which nobody asked for".into()));
    }
    let (content_type, disposition) = (header("content-type"), header("content-disposition"));
    let is_framed = header("content-length").is_some() || header("transfer-encoding").is_some();
    let body = answer.into_body();
    let length = body.content_length();
    let body = body.into_with_config().limit(u64::MAX).reader();
    Ok(StreamedAnswer { redirect, content_type, disposition, length, is_framed, body })
}

/// The address, if it is one of the web that we would go to.
fn web_address(url: &str) -> Option<Uri> {
    let uri: Uri = url.parse().ok().filter(|_| url.len() <= URL_BYTES_MAX)?;
    let authority = uri.authority()?.as_str();
    (uri.scheme_str() == Some("https") && !authority.contains('@')).then_some(uri)
}

/// Where a redirect leads from an address: to another, or to another path of the same server.
pub fn redirected(from: &str, to: &str) -> Option<String> {
    match web_address(to) {
        Some(_) => Some(to.to_owned()),
        None if to.starts_with('/') && !to.starts_with("//") => {
            Some(format!("https://{}{to}", web_address(from)?.authority()?))
        }
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_the_web_is_https_and_names_nobody() {
        for good in ["https://a.example/x?y=z", "https://a.example:8443/", "HTTPS://[::1]/x", "https://a"] {
            assert!(web_address(good).is_some(), "{good}");
        }
        let long = format!("https://a/{}", "x".repeat(URL_BYTES_MAX));
        for bad in [
            "",
            "/x",
            "//a/x",
            "http://a/",
            "https://",
            "https:///x",
            "https://u:p@a/",
            "file:///etc/passwd",
            "ftp://a/",
            "https://a/\r\nX: y",
            "https://a b/",
            "javascript:x",
            &long,
        ] {
            assert!(web_address(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_redirect_leads_to_an_address_or_a_path() {
        let from = "https://a.example:1/x/y";
        assert_eq!(redirected(from, "/z?q").as_deref(), Some("https://a.example:1/z?q"));
        assert_eq!(redirected(from, "https://b.example/z").as_deref(), Some("https://b.example/z"));
        for bad in ["z", "//b.example/z", "http://b.example/", ""] {
            assert_eq!(redirected(from, bad), None, "{bad}");
        }
    }
}
