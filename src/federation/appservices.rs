//! What application services are asked and told (application service API, "Homeserver -> Application Service API"). Who runs this
//! server says where they are, so they may be in our own network; they are not followed elsewhere.

use std::fmt;
use std::io::Read as _;
use std::time::Duration;

use ureq::http;

use crate::federation::calls::enc;
use crate::federation::client::Client;
use crate::federation::client::exchange::ExchangeFailure;
use crate::protocol::appservice::Appservice;

/// An answer is read up to here: the largest is a list of third-party users or locations.
const ANSWER_BYTES_MAX: u64 = 4 << 20;

/// One request to a service.
#[derive(Debug)]
pub struct ServiceRequest<'r> {
    /// `GET`, `POST` or `PUT`.
    pub method: &'r str,
    /// From the slash on, percent-encoded, with the query if there is one.
    pub path: &'r str,
    /// Where services listened before the specification had versions: asked if they do not know the other.
    pub legacy_path: Option<&'r str>,
    /// A JSON object.
    pub body: Option<&'r str>,
    /// Time for everything together.
    pub timeout: Duration,
}

/// What a service answered.
#[derive(Debug)]
pub struct ServiceAnswer {
    /// The HTTP status.
    pub status: u16,
    /// The body, not looked at yet.
    pub body: Vec<u8>,
}

impl ServiceAnswer {
    /// Whether the service did what it was asked to.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// Why a service gave no answer.
#[derive(Debug)]
pub enum ServiceError {
    /// It has no URL: it is not to be sent anything.
    NoUrl,
    /// No connection, or one that ended.
    Connection(String),
    /// No answer in time.
    Late(String),
}

impl fmt::Display for ServiceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoUrl => f.write_str("it has no URL"),
            Self::Connection(why) | Self::Late(why) => f.write_str(why),
        }
    }
}

impl Client {
    /// Asks a service. Older ones look for the token in the query only, and at other paths: that is tried too where it helps.
    pub fn ask_service(
        &self,
        service: &Appservice,
        request: &ServiceRequest<'_>,
    ) -> Result<ServiceAnswer, ServiceError> {
        let url = service.url.as_deref().ok_or(ServiceError::NoUrl)?;
        let token = service.hs_token.expose();
        let answer = self.ask_service_at(&format!("{url}{}", request.path), token, request)?;
        let older = match (answer.status, request.legacy_path) {
            // "If the application service receives an HTTP status code that does not indicate success (i.e.: 404, 500, 501, etc)
            // then the homeserver should fall back": of those that say that there is no such endpoint.
            (404 | 405 | 501, Some(path)) => path,
            (401 | 403, Some(_)) => request.path,
            _ => return Ok(answer),
        };
        let (mark, query) = (if older.contains('?') { '&' } else { '?' }, enc(token));
        let asked = self.ask_service_at(&format!("{url}{older}{mark}access_token={query}"), token, request);
        Ok(asked.ok().filter(ServiceAnswer::is_success).unwrap_or(answer))
    }

    fn ask_service_at(
        &self,
        url: &str,
        token: &str,
        request: &ServiceRequest<'_>,
    ) -> Result<ServiceAnswer, ServiceError> {
        let ours =
            |e: http::Error| ServiceError::Connection(format!("our own request is not valid HTTP: {e}"));
        let head = http::Request::builder()
            .method(request.method)
            .uri(url)
            .header("Accept", "application/json")
            .header("Authorization", format!("Bearer {token}"));
        let timeout = Some(request.timeout);
        let answer = match request.body {
            Some(body) => {
                let request = head.header("Content-Type", "application/json").body(body).map_err(ours)?;
                self.services.run(self.services.configure_request(request).timeout_global(timeout).build())
            }
            None => {
                let request = head.body(()).map_err(ours)?;
                self.services.run(self.services.configure_request(request).timeout_global(timeout).build())
            }
        };
        let answer = answer.map_err(failed)?;
        let status = answer.status().as_u16();
        let mut body = Vec::new();
        let reader = answer.into_body().into_with_config().limit(ANSWER_BYTES_MAX).reader();
        // Of an answer that breaks off, the status says enough, unless somebody needs the rest.
        match reader.take(ANSWER_BYTES_MAX).read_to_end(&mut body) {
            Ok(_) => Ok(ServiceAnswer { status, body }),
            Err(e) => Err(match failed(ureq::Error::from(e)) {
                ServiceError::Connection(why) => {
                    ServiceError::Connection(format!("the answer broke off: {why}"))
                }
                late => late,
            }),
        }
    }
}

fn failed(e: ureq::Error) -> ServiceError {
    match ExchangeFailure::from_ureq(e) {
        ExchangeFailure::Late(why) => ServiceError::Late(why),
        other => ServiceError::Connection(other.into_call_error().to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::net::TcpListener;
    use std::sync::Arc;

    use arc_swap::ArcSwap;

    use super::*;
    use crate::clock::Clock;
    use crate::federation::ClientSettings;
    use crate::protocol::ServerName;
    use crate::protocol::appservice::Registration;
    use crate::protocol::signatures::sign::SigningKey;

    /// What is made of an answer that begins so, and then stands still, or ends.
    fn asked(begin: &'static str, ends: bool) -> ServiceError {
        let name = ServerName::parse("example.org").unwrap();
        let settings = ClientSettings {
            server_name: name.clone(),
            trust_ca: Vec::new(),
            allow_private_addresses: true,
            names: Default::default(),
            clock: Clock::new(),
        };
        let key = Arc::new(ArcSwap::from_pointee(SigningKey::generate([1; 32], "k1")));
        let client = Client::new(settings, key).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let peer = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
            stream.write_all(begin.as_bytes()).unwrap();
            if !ends {
                ended.recv().ok();
            }
        });
        let text = format!("id: b\nurl: {url}\nas_token: a\nhs_token: h\nsender_localpart: bot\n");
        let service = Appservice::new(Registration::parse(&text).unwrap(), &name).unwrap();
        let timeout = Duration::from_millis(if ends { 60_000 } else { 300 });
        let request = ServiceRequest { method: "GET", path: "/x", legacy_path: None, body: None, timeout };
        let error = client.ask_service(&service, &request).unwrap_err();
        drop(end);
        peer.join().unwrap();
        error
    }

    #[test]
    fn an_answer_whose_body_does_not_come_is_late_and_one_that_ends_before_is_broken_off() {
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n";
        let late = asked(head, false);
        assert!(matches!(late, ServiceError::Late(_)), "{late:?}");
        let broken = asked(head, true);
        assert!(matches!(&broken, ServiceError::Connection(why) if why.contains("broke off")), "{broken:?}");
        let late = asked("", false);
        assert!(matches!(late, ServiceError::Late(_)), "{late:?}");
    }
}
