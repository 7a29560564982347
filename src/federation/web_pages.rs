//! Pages of the web and pictures in them, for previews. Which address is asked for is somebody's wish, so each hop is judged like the first: its
//! scheme, its port, and the addresses that its name has at that moment, which are those that are connected to.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use ureq::http;

use crate::federation::call_error::{CallError, CallResult};
use crate::federation::client::Client;
use crate::federation::client::exchange::ExchangeFailure;
use crate::protocol::media::web_url::WebUrl;

/// Most redirects that are followed.
const REDIRECTS_MAX: usize = 5;
/// Time for an answer to begin.
const HEAD_TIMEOUT: Duration = Duration::from_secs(8);
/// That this is no browser; some servers tell programs more, others less.
const USER_AGENT: &str = concat!("Doorstep/", env!("CARGO_PKG_VERSION"), " (bot; previews of links)");

/// What is fetched.
pub struct WebRequest<'a> {
    /// Where it begins.
    pub url: &'a WebUrl,
    /// The header.
    pub accept: &'a str,
    /// Until when all of it has to be read.
    pub until: Instant,
    /// Whether other ports than 80 and 443 are asked.
    pub any_port: bool,
}

/// An answer with status 200, whose body is still to be read.
pub struct WebAnswer {
    /// Where it was at last.
    pub url: WebUrl,
    /// The header, whatever it is.
    pub content_type: Option<String>,
    /// How long the body says it is.
    pub length: Option<u64>,
    body: ureq::BodyReader<'static>,
    until: Instant,
}

impl Read for WebAnswer {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if Instant::now() >= self.until {
            Err(io::ErrorKind::TimedOut.into())
        } else {
            self.body.read(buffer)
        }
    }
}

impl Client {
    /// Makes a `GET` that says nothing of who wants it, and follows where it leads. No cookies, no password of ours, no
    /// compression: what is counted is what is read.
    pub fn get_web(&self, request: &WebRequest<'_>) -> CallResult<WebAnswer> {
        let mut url = request.url.clone();
        for _ in 0..=REDIRECTS_MAX {
            let answer = self.one_hop(&url, request)?;
            let header = |name: &str| {
                answer.headers().get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
            };
            let status = answer.status();
            if matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
                let to = header("location").ok_or_else(|| CallError::bad("a redirect to nowhere"))?;
                url = url
                    .join(&to)
                    .ok_or_else(|| CallError::bad("a redirect to what is no address of the web"))?;
                continue;
            }
            if status.as_u16() != 200 {
                return Err(CallError::bad(format!("status {}", status.as_u16())));
            }
            if header("content-encoding")
                .is_some_and(|encoding| !encoding.trim().eq_ignore_ascii_case("identity"))
            {
                return Err(CallError::bad("an encoded answer, which nobody asked for"));
            }
            let content_type = header("content-type");
            let body = answer.into_body();
            let length = body.content_length();
            let body = body.into_with_config().limit(u64::MAX).reader();
            return Ok(WebAnswer { url, content_type, length, body, until: request.until });
        }
        Err(CallError::bad("too many redirects"))
    }

    fn one_hop(&self, url: &WebUrl, request: &WebRequest<'_>) -> CallResult<http::Response<ureq::Body>> {
        if !request.any_port && !url.has_usual_port() {
            return Err(CallError::bad("an address with a port of its own"));
        }
        let left = request.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(CallError::Unreachable("no answer in time".into()));
        }
        let built = http::Request::get(url.to_string())
            .header("Accept", request.accept)
            .header("Accept-Encoding", "identity")
            .header("User-Agent", USER_AGENT)
            .body(())
            .map_err(|e| CallError::bad(format!("no address to ask: {e}")))?;
        let config = self.pages.configure_request(built).timeout_global(Some(left));
        let config = config.timeout_recv_response(Some(HEAD_TIMEOUT));
        self.pages.run(config.build()).map_err(|e| ExchangeFailure::from_ureq(e).into_call_error())
    }
}
