//! One HTTP request as handlers see it: complete, bounded and decoded. How it came in is `connection`'s business.

use std::any::Any;
use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tiny_http::Method;

use crate::address::{self, TrustedProxies, group};
use crate::error::{Error, Result};
use crate::http::transport::bounds::RequestOwner;
use crate::http::transport::large_bodies::TreeMemory;
use crate::http::transport::reply::Reply;
use crate::http::transport::socket::is_gone;
use crate::locks::lock;
use crate::protocol::json::{parse_object, read_object};

/// A request whose head and body were read whole.
pub struct Request {
    method: Method,
    target: String,
    path_len: usize,
    query: Vec<(String, String)>,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    peer: SocketAddr,
    client: IpAddr,
    is_by_proxy: bool,
    socket: Option<Arc<TcpStream>>,
    is_local: bool,
    came_by_tls: bool,
    received: Instant,
    params: Vec<(&'static str, String)>,
    owner: OnceLock<RequestOwner>,
    wait_place: OnceLock<String>,
    waits: Mutex<WaitingNotes>,
    trees: Option<Arc<TreeMemory>>,
}

/// What a handler keeps with a request that waits.
#[derive(Default)]
struct WaitingNotes {
    memo: Option<Box<dyn Any + Send>>,
    light: Option<LightAnswer>,
}

/// Answers a request that waited, if that costs next to nothing: little time, no look into the database, a shallow stack.
pub type LightAnswer = Box<dyn Fn(&Request) -> Option<Reply> + Send>;

impl Request {
    /// A request from its parts. `target` is the request target in origin form (path and query as sent). Errors:
    /// 400 `M_INVALID_PARAM` for a query that is not UTF-8 after percent-decoding.
    pub fn new(
        method: Method,
        target: String,
        headers: Vec<(String, String)>,
        peer: SocketAddr,
    ) -> Result<Self> {
        let path_len = target.find('?').unwrap_or(target.len());
        let query = match target.get(path_len + 1..) {
            Some(query) => parse_query(query)?,
            None => Vec::new(),
        };
        Ok(Self {
            method,
            target,
            path_len,
            query,
            headers,
            body: Vec::new(),
            peer,
            client: peer.ip().to_canonical(),
            is_by_proxy: false,
            socket: None,
            is_local: false,
            came_by_tls: false,
            received: Instant::now(),
            params: Vec::new(),
            owner: OnceLock::new(),
            wait_place: OnceLock::new(),
            waits: Mutex::default(),
            trees: None,
        })
    }

    /// Keeps something for the next call of the handler, in place of what it kept before.
    pub(in crate::http) fn keep_memo<T: Clone + Send + 'static>(&self, memo: T) {
        lock(&self.waits).memo = Some(Box::new(memo));
    }

    /// What the handler kept in its last call.
    pub(in crate::http) fn memo<T: Clone + 'static>(&self) -> Option<T> {
        lock(&self.waits).memo.as_ref()?.downcast_ref::<T>().cloned()
    }

    /// Keeps a way to answer when the wait is over, to be tried before the handler is called again.
    pub(in crate::http) fn keep_light_answer(&self, light: Option<LightAnswer>) {
        lock(&self.waits).light = light;
    }

    /// The answer of the way that was kept, if it has one.
    pub(super) fn light_answer(&self) -> Option<Reply> {
        let light = lock(&self.waits).light.take()?;
        light(self)
    }

    /// Tells somebody of the light answer that was kept, when it is given.
    pub(crate) fn watch_light_answer(&self, told: impl Fn(&Reply) + Send + 'static) {
        let mut waits = lock(&self.waits);
        if let Some(light) = waits.light.take() {
            waits.light = Some(Box::new(move |request| light(request).inspect(|reply| told(reply))));
        }
    }

    /// This request with a body.
    #[must_use]
    pub fn with_body(mut self, body: Vec<u8>) -> Self {
        self.body = body;
        self
    }

    pub(super) fn set_body(&mut self, body: Vec<u8>) {
        self.body = body;
    }

    /// What may be built of its body, if it is large.
    pub(super) fn set_trees(&mut self, trees: Option<Arc<TreeMemory>>) {
        self.trees = trees;
    }

    /// Its body has been read: of what is built of it no more than so many bytes will be there at once from now on. Whoever waits
    /// for other servers then says so before, so that the rest is for others meanwhile.
    pub(in crate::http) fn keeps(&self, bytes_max: usize) {
        self.trees.iter().for_each(|trees| trees.shrink(bytes_max));
    }

    /// The connection that it came over.
    pub(super) fn set_socket(&mut self, socket: Arc<TcpStream>, is_tls: bool) {
        self.socket = Some(socket);
        self.came_by_tls = is_tls;
    }

    /// The port of ours that it came to; none for a request that came over no socket of the network.
    pub(in crate::http) fn port(&self) -> Option<u16> {
        Some(self.socket.as_ref()?.local_addr().ok()?.port())
    }

    /// It came by the local socket, or is made in this very process.
    pub(in crate::http) fn set_local(&mut self) {
        self.is_local = true;
    }

    /// Whether it came by the local socket: whoever can open that operates this server.
    pub(in crate::http) fn is_local(&self) -> bool {
        self.is_local
    }

    /// The parameters of its path, decoded, by the names that they have in the route.
    pub(in crate::http) fn set_params(&mut self, params: Vec<(&'static str, String)>) {
        self.params = params;
    }

    /// Whom it is made for, which is known now.
    pub(in crate::http) fn set_owner(&self, owner: RequestOwner) {
        let _ = self.owner.set(owner);
    }

    /// Whom it is made for, as far as that is known.
    pub(super) fn owner(&self) -> RequestOwner {
        self.owner.get().cloned().unwrap_or_else(|| RequestOwner::Address(group(self.client)))
    }

    /// Where it waits, if it does: few wait there for the same owner.
    pub(in crate::http) fn set_wait_place(&self, place: String) {
        let _ = self.wait_place.set(place);
    }

    pub(super) fn wait_place(&self) -> Option<String> {
        self.wait_place.get().cloned()
    }

    /// A way to find out whether whoever asked has hung up; none for a request that came over no socket.
    pub(in crate::http) fn hung_up(&self) -> Option<impl Fn() -> bool + Send + Sync + use<>> {
        let socket = self.socket.clone()?;
        Some(move || is_gone(&socket))
    }

    /// The method; `HEAD` is served by the handlers of `GET`.
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// Path and query exactly as sent: what X-Matrix signs as `uri`.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// The path exactly as sent, percent-encoded.
    pub fn path(&self) -> &str {
        &self.target[..self.path_len]
    }

    /// The body's bytes; empty if there is none.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// Reads what reverse proxies say of whom they speak for, as far as they are believed.
    pub(in crate::http) fn believe(&mut self, proxies: &TrustedProxies) {
        self.is_by_proxy = proxies.trusts(self.peer.ip());
        self.client = address::client(self.peer.ip(), proxies, self.header_all("x-forwarded-for"));
    }

    /// Who holds the other end of the socket, or the client that a reverse proxy speaks for which is believed
    /// (`X-Forwarded-For`).
    pub fn client_ip(&self) -> IpAddr {
        self.client
    }

    /// Whether whoever asks did so by HTTPS, of us or of a reverse proxy that says so and is believed
    /// (`X-Forwarded-Proto`).
    pub fn came_by_https(&self) -> bool {
        let forwarded = || self.header_all("x-forwarded-proto").next_back();
        let is_https = |protocol: &str| protocol.trim().eq_ignore_ascii_case("https");
        self.came_by_tls || (self.is_by_proxy && forwarded().is_some_and(is_https))
    }

    /// Whether the other end of the socket is a reverse proxy that is believed.
    pub fn is_by_proxy(&self) -> bool {
        self.is_by_proxy
    }

    /// When the head was complete: the start of a long poll's time-out.
    pub fn received(&self) -> Instant {
        self.received
    }

    /// A path parameter, percent-decoded, by the name it has in the route (`{roomId}`). Empty if the route has none
    /// of that name.
    pub fn param(&self, name: &str) -> &str {
        self.params.iter().find(|(n, _)| *n == name).map_or("", |(_, v)| v)
    }

    /// The first query parameter of this name, decoded.
    pub fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// All query parameters, decoded, in the order sent.
    pub fn query_pairs(&self) -> &[(String, String)] {
        &self.query
    }

    /// All query parameters of this name, decoded, in the order sent (`via`, `server_name`, `ver`).
    pub fn query_all<'r>(&'r self, name: &'r str) -> impl Iterator<Item = &'r str> {
        self.query.iter().filter(move |(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// A query parameter that must be there. Errors: 400 `M_MISSING_PARAM`.
    pub fn required_query(&self, name: &str) -> Result<&str> {
        self.query(name).ok_or_else(|| Error::missing_param(format!("Missing query parameter {name}")))
    }

    /// A query parameter as a whole number. Errors: 400 `M_INVALID_PARAM` if it is there and is none.
    pub fn query_int(&self, name: &str) -> Result<Option<i64>> {
        let wrong = || Error::invalid_param(format!("Query parameter {name} must be an integer"));
        self.query(name).map(|v| v.parse().map_err(|_| wrong())).transpose()
    }

    /// A query parameter as `true` or `false`; absent is `None`. Errors: 400 `M_INVALID_PARAM`.
    pub fn query_bool(&self, name: &str) -> Result<Option<bool>> {
        match self.query(name) {
            None => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(_) => Err(Error::invalid_param(format!("Query parameter {name} must be true or false"))),
        }
    }

    /// The first header of this name (any case). Bytes that are not UTF-8 were read as Latin-1.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// All headers of this name (any case), in the order sent.
    pub fn header_all<'r>(&'r self, name: &'r str) -> impl DoubleEndedIterator<Item = &'r str> {
        self.headers.iter().filter(move |(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// The access token: `Authorization: Bearer` or, deprecated but still required of servers, `?access_token=`.
    pub fn token(&self) -> Option<&str> {
        let bearer = self.header_all("authorization").find_map(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        });
        bearer.or_else(|| self.query("access_token")).filter(|token| !token.is_empty())
    }

    /// The body as a JSON object of this shape. Errors: 400 `M_NOT_JSON`, 400 `M_BAD_JSON` for JSON of another shape.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        read_object(&self.body)
    }

    /// The body as a JSON object. Errors: 400 `M_NOT_JSON`, 400 `M_BAD_JSON` if it is JSON but no object, or nested too
    /// deeply.
    pub fn json_object(&self) -> Result<Map<String, Value>> {
        parse_object(&self.body)
    }

    /// As `json_object`, with no body at all taken for `{}`, as several clients send it where nothing is required.
    pub fn json_object_or_empty(&self) -> Result<Map<String, Value>> {
        if self.body.is_empty() { Ok(Map::new()) } else { self.json_object() }
    }

    /// As `json`, with no body at all taken for `{}`.
    pub fn json_or_empty<T: DeserializeOwned>(&self) -> Result<T> {
        read_object(if self.body.is_empty() { b"{}" } else { &self.body })
    }

    /// A GET from nowhere in particular, for tests.
    #[cfg(test)]
    pub fn for_test(method: Method, target: &str) -> Self {
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        Self::new(method, target.to_owned(), Vec::new(), nowhere).expect("a test's request is well-formed")
    }
}

/// Percent-decodes one path segment. Errors: 400 `M_INVALID_PARAM` for a broken escape or bytes that are not UTF-8.
pub(crate) fn decode_segment(text: &str) -> Result<Cow<'_, str>> {
    if !text.contains('%') {
        return Ok(Cow::Borrowed(text));
    }
    decode(text, false).map(Cow::Owned)
}

/// The fields of a form or a query, decoded, in the order sent. Errors: 400 `M_INVALID_PARAM` for a broken escape or bytes
/// that are not UTF-8.
pub(in crate::http) fn parse_query(query: &str) -> Result<Vec<(String, String)>> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decode(name, true)?, decode(value, true)?))
        })
        .collect()
}

fn decode(text: &str, plus_is_space: bool) -> Result<String> {
    let broken =
        || Error::invalid_param("The request's address has a broken percent-encoding or is not UTF-8");
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16));
                let (high, low) = (digit().ok_or_else(broken)?, digit().ok_or_else(broken)?);
                u8::try_from(high * 16 + low).map_err(|_| broken())?
            }
            b'+' if plus_is_space => b' ',
            other => other,
        });
    }
    String::from_utf8(out).map_err(|_| broken())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrCode;

    #[test]
    fn a_query_is_decoded_with_plus_as_space_and_repeated_names_kept() {
        let request = Request::for_test(Method::Get, "/x?via=a.org&via=b%3A8448&q=a+b%2B&empty&=&");
        assert_eq!(request.path(), "/x");
        assert_eq!(request.query_all("via").collect::<Vec<_>>(), ["a.org", "b:8448"]);
        assert_eq!(request.query("q"), Some("a b+"));
        assert_eq!(request.query("empty"), Some(""));
        assert_eq!(request.query("none"), None);
    }

    #[test]
    fn a_path_segment_keeps_its_plus_and_must_be_utf_8() {
        assert_eq!(decode_segment("a+b%2Fc%C3%A9").unwrap(), "a+b/cé");
        for bad in ["%", "%4", "%zz", "%ff", "%C3", "%+4"] {
            assert_eq!(decode_segment(bad).unwrap_err().status(), 400, "{bad}");
        }
    }

    #[test]
    fn a_token_comes_from_the_header_before_the_query() {
        let peer = SocketAddr::from(([127, 0, 0, 1], 0));
        let headers = vec![("authorization".to_owned(), "bearer  abc".to_owned())];
        let request = Request::new(Method::Get, "/x?access_token=q".into(), headers, peer).unwrap();
        assert_eq!(request.token(), Some("abc"));
        assert_eq!(Request::for_test(Method::Get, "/x?access_token=q").token(), Some("q"));
        assert_eq!(Request::for_test(Method::Get, "/x?access_token=").token(), None);
    }

    #[test]
    fn a_body_that_is_no_json_and_json_of_another_shape_differ_in_errcode() {
        let with = |body: &str| Request::for_test(Method::Post, "/x").with_body(body.into());
        assert_eq!(with("{").json_object().unwrap_err().errcode(), ErrCode::NotJson);
        assert_eq!(with("").json_object().unwrap_err().errcode(), ErrCode::NotJson);
        assert_eq!(with("[]").json_object().unwrap_err().errcode(), ErrCode::BadJson);
        assert!(with("").json_object_or_empty().unwrap().is_empty());
        assert_eq!(with("{\"a\":1}").json_object().unwrap().len(), 1);
    }
}
