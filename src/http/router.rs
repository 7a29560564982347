//! From a path to its line in `ROUTES`, and from there through auth to the handler.

use std::borrow::Cow;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Instant;

use tiny_http::Method;

use super::auth::{self, Requester};
use super::metrics::RequestCounts;
use super::rate_limit::{Counted, RateLimiter};
use super::route::{Handler, Route, administrator_of};
use super::routes::ROUTES;
use crate::error::{ErrCode, Error, Result};
use crate::http::page;
use crate::http::page::visit::{Visit, Visitor};
use crate::http::transport::bounds::{Quota, RequestOwner};
use crate::http::transport::failure::{failure, numbered_failure};
use crate::http::transport::reply::Reply;
use crate::http::transport::request::{Request, decode_segment};
use crate::http::transport::service::{
    Admission, BodySink, BodyUse, Call, Outcome, Poll, Service, Tell, WakeTurn,
};
use crate::locks::lock;
use crate::protocol::UserId;
use crate::service::Homeserver;
use crate::service::background::notifier::Woken;
use crate::service::media::upload::Upload;

/// A node of the table as a tree: one level for each path segment. Most have one child and none has many, so that a list is
/// made, and looked through, sooner than a map.
#[derive(Default)]
struct RouteNode {
    literal: Vec<(&'static str, RouteNode)>,
    param: Option<Box<RouteNode>>,
    /// A last parameter that may be empty.
    rest: Vec<&'static Route>,
    here: Vec<&'static Route>,
}

impl RouteNode {
    /// The child of this segment, made if need be. The lines of one subject follow each other: mostly it is the last.
    fn literal(&mut self, segment: &'static str) -> &mut Self {
        let known = self.literal.iter().rposition(|(name, _)| *name == segment);
        let at = known.unwrap_or_else(|| {
            self.literal.push((segment, Self::default()));
            self.literal.len() - 1
        });
        &mut self.literal[at].1
    }
}

/// The table, ready for matching.
struct RouteTable {
    root: RouteNode,
}

impl RouteTable {
    /// All of `ROUTES`: one for the process, of which each of a hundred servers of a test would have 70 KiB.
    fn of_all() -> &'static Self {
        static ALL: LazyLock<RouteTable> = LazyLock::new(|| RouteTable::new(ROUTES));
        &ALL
    }

    /// Builds the tree of a table.
    fn new(routes: &'static [Route]) -> Self {
        let mut root = RouteNode::default();
        for route in routes {
            let mut node = &mut root;
            // `/pushrules/` is written as the specification has it, and matched with and without the slash.
            for segment in segments(route.path.trim_end_matches('/')) {
                if segment.ends_with("?}") {
                    node.rest.push(route);
                } else if segment.starts_with('{') {
                    node = node.param.get_or_insert_default();
                } else {
                    node = node.literal(segment);
                }
            }
            // With `{name?}` this is the path without that segment.
            node.here.push(route);
        }
        Self { root }
    }

    /// The routes of this path, of whatever method. A slash at the end means nothing unless the last parameter may
    /// be empty, and then it means that it is empty. `r0` of older clients is `v3`, and for some of them so is
    /// `unstable`.
    fn find(&self, path: &str) -> &[&'static Route] {
        let mut parts: Vec<&str> = segments(path).collect();
        let versioned = matches!(
            parts.as_slice(),
            ["_matrix", "client", "r0", ..] | ["_matrix", "media", "r0" | "v1", ..]
        );
        let create = matches!(parts.as_slice(), ["_matrix", "media", "v1", "create"]);
        if versioned && !create {
            parts[2] = "v3";
        } else if let ["_matrix", "client", "unstable", rest @ ..] = parts.as_slice() {
            parts[2] = version_of_unstable(rest).unwrap_or("unstable");
        }
        let mut found = walk(&self.root, &parts);
        if found.is_empty() && parts.last() == Some(&"") {
            found = walk(&self.root, &parts[..parts.len() - 1]);
        }
        found
    }
}

/// Which version an endpoint has that was never asked for under `unstable` by the name of a proposal, by the path behind
/// that: clients that began with it then still do. None: it is an endpoint of its own, if any.
fn version_of_unstable(rest: &[&str]) -> Option<&'static str> {
    match rest {
        ["keys" | "room_keys" | "thirdparty" | "devices" | "delete_devices", ..]
        | ["user", _, "openid", ..] => Some("v3"),
        ["rooms", _, "relations", ..] => Some("v1"),
        _ => None,
    }
}

fn segments(path: &str) -> impl Iterator<Item = &str> {
    path.strip_prefix('/').unwrap_or(path).split('/')
}

fn walk<'n>(node: &'n RouteNode, parts: &[&str]) -> &'n [&'static Route] {
    let Some((&first, rest)) = parts.split_first() else { return &node.here };
    if let Some((_, next)) = node.literal.iter().find(|(name, _)| *name == first) {
        let found = walk(next, rest);
        if !found.is_empty() {
            return found;
        }
    }
    if let Some(next) = &node.param
        && !first.is_empty()
    {
        let found = walk(next, rest);
        if !found.is_empty() {
            return found;
        }
    }
    if rest.is_empty() { &node.rest } else { &[] }
}

/// The decoded parameters of a path that this route matched. Errors: 400 for what is not UTF-8.
fn params(route: &Route, path: &str) -> Result<Vec<(&'static str, String)>> {
    let mut all = Vec::new();
    for (name, value) in segments(route.path).zip(segments(path)) {
        if let Some(name) = name.strip_prefix('{') {
            let name = name.trim_end_matches(['}', '?']);
            all.push((name, decode_segment(value)?.into_owned()));
        }
    }
    Ok(all)
}

/// The homeserver's routes as a service for the connections.
pub struct Router {
    hs: Arc<Homeserver>,
    table: &'static RouteTable,
    requests: Option<Arc<RequestCounts>>,
    limiter: RateLimiter,
    /// Whether what comes to port 80 is sent on to HTTPS: that port is open for an authority that looks for a proof there,
    /// and no place for passwords.
    leads_to_https: bool,
}

/// Where browsers, and authorities that look for a proof, speak without TLS.
const PLAIN_PORT: u16 = 80;
/// What they look for there (RFC 8555, 8.3).
const PROOFS: &str = "/.well-known/acme-challenge/";

/// Where a request for this target at port 80 is served by HTTPS. None: it is served here.
fn https_instead(public_url: &str, target: &str) -> Option<String> {
    let is_served = target.starts_with(PROOFS) || !target.starts_with('/');
    (public_url.starts_with("https://") && !is_served).then(|| format!("{public_url}{target}"))
}

impl Router {
    /// All of `ROUTES` on this homeserver.
    pub fn new(hs: Arc<Homeserver>) -> Self {
        let leads_to_https = hs.config.acme.is_on;
        let requests = hs.metrics.as_ref().map(|_| Arc::new(RequestCounts::new(ROUTES)));
        Self { hs, table: RouteTable::of_all(), requests, limiter: RateLimiter::new(), leads_to_https }
    }

    /// What was counted, if it is.
    pub fn requests(&self) -> Option<Arc<RequestCounts>> {
        self.requests.clone()
    }

    /// Answers a request of the operator's that came over no socket. It does not wait.
    pub fn answer_operator(self: &Arc<Self>, mut request: Request) -> Reply {
        request.set_local();
        let admission = match self.admit_to_route(&mut request, &mut None) {
            Ok(admission) => admission,
            Err(reply) => return reply,
        };
        if let BodyUse::Handed(mut sink) = admission.body
            && let Err(e) = sink(request.body())
        {
            return failed(&request, &e);
        }
        match (admission.call)(&request, Poll::Last) {
            Outcome::Reply(reply) => reply,
            Outcome::Wait { .. } => failed(&request, &Error::internal("a handler waits that may not")),
        }
    }

    /// Finds the route, checks who asks and counts the request.
    fn admit_to_route(
        &self,
        head: &mut Request,
        matched: &mut Option<&'static Route>,
    ) -> Result<Admission, Reply> {
        head.believe(&self.hs.config.trusted_proxies);
        if self.leads_to_https && head.port() == Some(PLAIN_PORT) {
            let there = https_instead(&self.hs.config.public_url, head.target());
            let sent_there = |url: String| Err(Reply::empty().with_status(308).with_header("Location", &url));
            there.map_or(Ok(()), sent_there)?;
        }
        let found = self.table.find(head.path());
        if *head.method() == Method::Options {
            return Err(Reply::empty());
        }
        let wanted = if *head.method() == Method::Head { &Method::Get } else { head.method() };
        let Some(route) = found.iter().copied().find(|r| r.method == wanted) else {
            return Err(self.unmatched(head, found));
        };
        let error = |e: Error| match route.handler.is_page() {
            true => failed_page(&self.hs, head, None, &e),
            false => failed(head, &e),
        };
        *matched = Some(route);
        let params = params(route, head.path()).map_err(error)?;
        let (call, user) = match route.handler.is_page() {
            true => self.page_call_for(route, head).map_err(error)?,
            false => self.call_for(route, head).map_err(error)?,
        };
        if let Some(counted) = &user {
            head.set_owner(RequestOwner::User(counted.user.clone()));
        }
        if self.hs.config.rate_limits && !head.is_local() {
            let now = Instant::now();
            self.limiter
                .count(route.rate_of(&params), user.as_ref(), head.client_ip(), now)
                .map_err(error)?;
        }
        head.set_params(params);
        let (body, call) = match call {
            RouteCall::Whole(call) => (self.body_of(route, head), call),
            RouteCall::Upload(begin) => {
                let (sink, call) = begin(head).map_err(|e| failed(head, &e))?;
                (BodyUse::Handed(sink), call)
            }
        };
        // The operator is answered however many others ask.
        let quota = if head.is_local() { Quota::Uncounted } else { route.quota() };
        Ok(Admission { body, quota, call })
    }

    /// What becomes of the body of a request that is read whole: much of it only if its sender is known, which may take asking
    /// for their key.
    fn body_of(&self, route: &'static Route, head: &Request) -> BodyUse {
        let is_by_server = matches!(route.handler, Handler::Peer(_) | Handler::PeerWaiting(_));
        if !is_by_server || !auth::has_large_body(head) {
            return BodyUse::Whole(route.body);
        }
        let (hs, requests) = (self.hs.clone(), self.requests.clone());
        let look = move |head: &Request| {
            let refused = |e: Error| {
                let reply = failed(head, &e);
                requests.iter().for_each(|requests| requests.refused(Some(route), head, &reply));
                reply
            };
            auth::expect_origin(&hs, head).map_err(refused)
        };
        BodyUse::Introduced(route.body, Box::new(look), route.weigh)
    }

    /// The call of the route's handler on behalf of whoever asks, and which user that is. Errors: those of the
    /// handler's kind.
    fn call_for(&self, route: &'static Route, head: &Request) -> Result<(RouteCall, Option<Counted>)> {
        let hs = self.hs.clone();
        Ok(match route.handler {
            Handler::Anyone(handler) => {
                let by = auth::unlimited_service(&hs, head, route.rate);
                (at_once(move |request| handler(&hs, request)), by)
            }
            Handler::MaybeUser(handler) => {
                let requester = route.requester(&hs, head)?;
                let user = requester.as_ref().map(Requester::counted);
                let call = move |request: &Request| {
                    let requester = by_now(request, &requester, || route.requester(&hs, request))?;
                    handler(&hs, request, requester.as_ref().as_ref())
                };
                (at_once(call), user)
            }
            Handler::User(handler) => {
                let requester = route.user(&hs, head)?;
                let user = Some(requester.counted());
                let call = move |request: &Request| {
                    let requester = by_now(request, &requester, || route.user(&hs, request))?;
                    handler(&hs, request, &requester)
                };
                (at_once(call), user)
            }
            Handler::Admin(handler) => {
                let requester = route.requester(&hs, head)?;
                let user = requester.as_ref().map(Requester::counted);
                let admin = administrator_of(requester, head)?;
                let call = move |request: &Request| {
                    let admin = by_now(request, &admin, || route.administrator(&hs, request))?;
                    handler(&hs, request, &admin)
                };
                (at_once(call), user)
            }
            Handler::UserWaiting(handler) => {
                let requester = route.user(&hs, head)?;
                let user = Some(requester.counted());
                let device = requester.device_id.as_deref().unwrap_or_default();
                head.set_wait_place(format!("{device} {}", route.path));
                let call = move |request: &Request, poll| {
                    if poll == Poll::First {
                        by_now(request, &requester, || route.user(&hs, request))?;
                    }
                    let outcome = handler(&hs, request, &requester, poll)?;
                    if poll != Poll::First && matches!(outcome, Outcome::Reply(_)) {
                        // Whose session was ended while they waited is told no more than that.
                        auth::requester(&hs, request)?;
                    }
                    Ok(outcome)
                };
                (RouteCall::Whole(or_error(call)), user)
            }
            Handler::UserUpload(begin, finish) => {
                let requester = route.user(&hs, head)?;
                let user = Some(requester.counted());
                // However long the body took: it is theirs who may still send it.
                let finish = move |hs: &Arc<Homeserver>, request: &Request, upload| {
                    route.user(hs, request)?;
                    finish(hs, request, upload)
                };
                (upload(move |head| begin(&hs, head, &requester), self.hs.clone(), finish), user)
            }
            Handler::Peer(handler) => {
                let call = move |request: &Request| handler(&hs, request, &auth::origin(&hs, request)?);
                (at_once(call), None)
            }
            Handler::PeerWaiting(handler) => {
                let call = move |request: &Request, poll| {
                    let origin = auth::origin(&hs, request)?;
                    request.set_owner(RequestOwner::Server(origin.0.clone()));
                    handler(&hs, request, &origin, poll)
                };
                (RouteCall::Whole(or_error(call)), None)
            }
            Handler::Page(_) | Handler::UserPage(_) | Handler::AdminPage(_) => {
                return Err(Error::internal("a page has a call of its own"));
            }
        })
    }

    /// [`Router::call_for`] for the pages: who asks is told by a cookie. Errors: those of the handler's kind.
    fn page_call_for(&self, route: &'static Route, head: &Request) -> Result<(RouteCall, Option<Counted>)> {
        let hs = self.hs.clone();
        let visitor = Visitor::of(&hs, head)?;
        let user = route.page_user(&visitor)?;
        let counted = user.as_ref().map(Requester::counted);
        let answer = move |request: &Request| {
            let look =
                || Visitor::of(&hs, request).and_then(|visitor| Ok((route.page_user(&visitor)?, visitor)));
            let anew = match request.body().is_empty() {
                true => None,
                false => match look() {
                    Ok(anew) => Some(anew),
                    Err(e) => return Ok(failed_page(&hs, request, None, &e)),
                },
            };
            let (user, visitor) = anew.as_ref().map_or((&user, &visitor), |(user, visitor)| (user, visitor));
            Visit::of(request, visitor)
                .and_then(|visit| match (route.handler, user) {
                    (Handler::Page(handler), _) => handler(&hs, &visit),
                    (Handler::UserPage(handler) | Handler::AdminPage(handler), Some(user)) => {
                        handler(&hs, &visit, user)
                    }
                    _ => Err(Error::internal("a page without who may see it")),
                })
                .or_else(|e| Ok(failed_page(&hs, request, Some(visitor), &e)))
        };
        Ok((at_once(answer), counted))
    }

    /// 404 for an unknown path, 405 for a known one.
    fn unmatched(&self, request: &Request, found: &[&'static Route]) -> Reply {
        if found.is_empty() {
            let unknown = Error::new(ErrCode::Unrecognized, "Unknown endpoint");
            return match page::is_of_page(request.target()) {
                true => failed_page(&self.hs, request, None, &unknown),
                false => failed(request, &unknown),
            };
        }
        let mut methods: Vec<&str> = found.iter().map(|r| r.method.as_str()).collect();
        if methods.contains(&"GET") {
            methods.push("HEAD");
        }
        methods.push("OPTIONS");
        let error =
            Error::new(ErrCode::Unrecognized, "This endpoint does not know this method").with_status(405);
        let reply = match found.iter().any(|route| route.handler.is_page()) {
            true => failed_page(&self.hs, request, None, &error),
            false => failed(request, &error),
        };
        reply.with_header("Allow", &methods.join(", "))
    }
}

/// Who asks by the time that the request is there as a whole: the body may have taken its time, and their session or their rights
/// may have ended meanwhile.
fn by_now<'k, T: Clone>(
    request: &Request,
    at_head: &'k T,
    look: impl FnOnce() -> Result<T>,
) -> Result<Cow<'k, T>> {
    if request.body().is_empty() { Ok(Cow::Borrowed(at_head)) } else { look().map(Cow::Owned) }
}

/// How a route is called.
enum RouteCall {
    /// With the whole request.
    Whole(Call),
    /// With the head first, which gives where the body goes, and what is called then.
    Upload(BeginUpload),
}

/// Begins an upload by the request's head.
type BeginUpload = Box<dyn FnOnce(&Request) -> Result<(BodySink, Call)>>;

/// The call of a handler that never waits.
fn at_once(handler: impl Fn(&Request) -> Result<Reply> + Send + 'static) -> RouteCall {
    RouteCall::Whole(or_error(move |request, _| handler(request).map(Outcome::Reply)))
}

/// The calls of a handler whose body is handed on: what is written down of it before it ends is dropped with either of them.
fn upload(
    begin: impl FnOnce(&Request) -> Result<Upload> + 'static,
    hs: Arc<Homeserver>,
    finish: impl Fn(&Arc<Homeserver>, &Request, Upload) -> Result<Reply> + Send + 'static,
) -> RouteCall {
    RouteCall::Upload(Box::new(move |head| {
        let begun = Arc::new(Mutex::new(Some(begin(head)?)));
        let over = || Error::internal("an upload that was over already");
        let (target, writing) = (head.path().to_owned(), begun.clone());
        let sink = move |bytes: &[u8]| {
            let written = lock(&writing).as_mut().ok_or_else(over).and_then(|upload| upload.write(bytes));
            // A refusal goes to the log where it is answered; why something of ours failed, here.
            written.inspect_err(|e| {
                if e.is_own_failure() {
                    log::log!(e.level(log::Level::Error), "{target}: {e}");
                }
            })
        };
        let call = or_error(move |request, _| {
            let upload = lock(&begun).take().ok_or_else(over)?;
            finish(&hs, request, upload).map(Outcome::Reply)
        });
        Ok((Box::new(sink) as BodySink, call))
    }))
}

/// The call of a handler, its errors told as replies.
fn or_error(handler: impl Fn(&Request, Poll) -> Result<Outcome> + Send + 'static) -> Call {
    Box::new(move |request, poll| {
        handler(request, poll).unwrap_or_else(|e| Outcome::Reply(failed(request, &e)))
    })
}

/// An error as a reply, and logged, once, here. Whoever probes a server fills no log: a refusal is worth a line only to
/// who looks for it, and other servers' failures are what an operator wants to know. Those of ours go to the log with
/// their cause, and are told as a number only. (The path without the query, which may hold a token.)
fn failed(request: &Request, error: &Error) -> Reply {
    if error.status() == 500 {
        return failure(request, error);
    }
    log_refusal(request, error);
    Reply::error(error)
}

/// [`failed`] for people.
fn failed_page(hs: &Homeserver, request: &Request, visitor: Option<&Visitor>, error: &Error) -> Reply {
    if error.status() == 500 {
        return page::failure_page(hs, visitor, &numbered_failure(request, error));
    }
    log_refusal(request, error);
    page::failure_page(hs, visitor, error)
}

/// The path as the log has it: a registration token in it is a secret.
fn path_for_log(request: &Request) -> &str {
    const BEFORE_TOKEN: &str = "/registration_tokens/";
    let path = request.path();
    path.find(BEFORE_TOKEN).map_or(path, |at| &path[..at + BEFORE_TOKEN.len()])
}

fn log_refusal(request: &Request, error: &Error) {
    let level = if error.status() < 500 { log::Level::Debug } else { error.level(log::Level::Info) };
    log::log!(level, "{} {} from {}: {error}", request.method(), path_for_log(request), request.client_ip());
}

/// Which call of a handler follows a wait; none if only its time is up.
fn poll_of(woken: Woken) -> Option<Poll> {
    match woken {
        Woken::News => Some(Poll::Again),
        Woken::TimedOut => None,
        Woken::Stopping => Some(Poll::Last),
    }
}

impl Service for Router {
    fn admit(self: Arc<Self>, head: &mut Request) -> Result<Admission, Reply> {
        let mut route = None;
        let admitted = self.admit_to_route(head, &mut route);
        let Some(requests) = &self.requests else { return admitted };
        match admitted {
            Ok(Admission { body, quota, call }) => {
                Ok(Admission { body, quota, call: requests.counted(route, head, call) })
            }
            Err(reply) => {
                requests.refused(route, head, &reply);
                Err(reply)
            }
        }
    }

    /// All but what only servers ask (client-server API, "Web Browser Clients"), and our own page, which no other may read.
    fn is_for_browsers(&self, target: &str) -> bool {
        let of_servers = target.starts_with("/_matrix/federation/") || target.starts_with("/_matrix/key/");
        !of_servers && !page::is_of_page(target)
    }

    fn wait(&self, user: &UserId, after: i64, until: Instant) -> Option<Poll> {
        poll_of(self.hs.notifier.wait(user, after, until, None).0)
    }

    fn wait_in_turn(
        &self,
        user: &UserId,
        after: i64,
        until: Instant,
        tell: &Tell,
    ) -> (Option<Poll>, Option<WakeTurn>) {
        let (woken, turn) = self.hs.notifier.wait(user, after, until, Some(tell));
        (poll_of(woken), turn.map(|turn| -> WakeTurn { Box::new(turn) }))
    }

    fn end_wait(&self, user: &UserId, tell: &Tell) {
        self.hs.notifier.end_wait(user, tell);
    }

    fn interrupt(&self) {
        self.hs.notifier.stop();
    }

    fn hurry(&self) {
        self.hs.federation.shutdown();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::route::{get, put};

    fn nothing(_: &Arc<Homeserver>, _: &Request) -> Result<Reply> {
        Ok(Reply::empty())
    }

    const fn at(path: &'static str) -> Route {
        get(path, Handler::Anyone(nothing))
    }

    static TABLE: &[Route] = &[
        at("/_matrix/client/versions"),
        at("/_matrix/client/v3/rooms/{roomId}/state"),
        at("/_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey?}"),
        put("/_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey?}", Handler::Anyone(nothing)),
        at("/_matrix/client/v3/pushrules/"),
        at("/_matrix/client/v3/pushrules/global/{kind}/{ruleId}"),
        at("/_matrix/federation/v1/query/directory"),
        at("/_matrix/federation/v1/query/{queryType}"),
        at("/_matrix/media/v1/create"),
        at("/_matrix/media/v3/config"),
    ];

    fn found(path: &str) -> Option<&'static str> {
        RouteTable::new(TABLE).find(path).first().map(|r| r.path)
    }

    #[test]
    fn a_literal_segment_wins_over_a_parameter_and_gives_way_where_it_leads_nowhere() {
        assert_eq!(
            found("/_matrix/federation/v1/query/directory"),
            Some("/_matrix/federation/v1/query/directory")
        );
        assert_eq!(
            found("/_matrix/federation/v1/query/profile"),
            Some("/_matrix/federation/v1/query/{queryType}")
        );
        assert_eq!(found("/_matrix/federation/v1/query/directory/x"), None);
    }

    #[test]
    fn an_empty_state_key_may_be_a_slash_or_nothing() {
        let path = "/_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey?}";
        for (address, key) in
            [("m.room.name", ""), ("m.room.name/", ""), ("m.x/%2Fa%20b", "/a b"), ("m.x/@a:b", "@a:b")]
        {
            let address = format!("/_matrix/client/v3/rooms/!r:s/state/{address}");
            let table = RouteTable::new(TABLE);
            let routes = table.find(&address);
            assert_eq!(routes.len(), 2, "{address}");
            assert_eq!(routes[0].path, path);
            let params = params(routes[0], &address).unwrap();
            let state_key = params.iter().find(|(n, _)| *n == "stateKey").map_or("", |(_, v)| v);
            assert_eq!(state_key, key, "{address}");
        }
        assert_eq!(
            found("/_matrix/client/v3/rooms/!r:s/state"),
            Some("/_matrix/client/v3/rooms/{roomId}/state")
        );
        assert_eq!(
            found("/_matrix/client/v3/rooms/!r:s/state/"),
            Some("/_matrix/client/v3/rooms/{roomId}/state")
        );
        assert_eq!(found("/_matrix/client/v3/rooms//state"), None);
    }

    #[test]
    fn a_slash_at_the_end_means_nothing_elsewhere() {
        for path in ["/_matrix/client/v3/pushrules/", "/_matrix/client/v3/pushrules"] {
            assert_eq!(found(path), Some("/_matrix/client/v3/pushrules/"), "{path}");
        }
        assert_eq!(found("/_matrix/client/versions/"), Some("/_matrix/client/versions"));
        assert_eq!(found("/_matrix/client/versions//"), None);
        assert_eq!(found("/"), None);
        assert_eq!(found("*"), None);
    }

    #[test]
    fn older_clients_reach_v3_by_r0() {
        assert!(found("/_matrix/client/r0/rooms/!r/state").is_some());
        assert!(found("/_matrix/media/r0/config").is_some());
        assert!(found("/_matrix/media/v1/config").is_some());
        assert!(found("/_matrix/media/v1/create").is_some());
        assert!(found("/_matrix/federation/r0/query/x").is_none());
    }

    #[test]
    fn parameters_are_decoded_one_segment_at_a_time() {
        let route = at("/a/{roomId}/{eventId}");
        let params = params(&route, "/a/%21r%2F1%3As/%24e+%C3%A9").unwrap();
        assert_eq!(params, [("roomId", "!r/1:s".to_owned()), ("eventId", "$e+é".to_owned())]);
        assert_eq!(super::params(&route, "/a/%ff/x").unwrap_err().status(), 400);
    }

    #[test]
    fn whoever_comes_without_tls_is_sent_where_it_is_spoken_but_for_who_looks_for_a_proof() {
        let sent = https_instead;
        let url = "https://m.example.org:8443";
        assert_eq!(sent(url, "/"), Some(format!("{url}/")));
        assert_eq!(sent(url, "//b.example/?a=1"), Some(format!("{url}//b.example/?a=1")));
        let versions = "/_matrix/client/versions?x=%0d%0a";
        assert_eq!(sent(url, versions), Some(format!("{url}{versions}")));
        for served in ["/.well-known/acme-challenge/token", "*", "@b.example/", "b.example:443"] {
            assert_eq!(sent(url, served), None, "{served}");
        }
        assert_eq!(sent("http://127.0.0.1:8008", "/"), None);
    }

    #[test]
    fn no_two_lines_of_the_table_are_the_same_endpoint() {
        let mut seen = std::collections::HashSet::new();
        for route in ROUTES {
            assert!(seen.insert((route.method.as_str(), route.path)), "{} {}", route.method, route.path);
        }
    }
}
