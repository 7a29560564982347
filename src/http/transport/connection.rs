//! One connection: reads one request at a time, has it answered on this very thread, writes the reply, reads the
//! next. So there is no queue of pipelined requests, and one that waits delays nobody. While it waits, for news or for
//! the next request, the connection moves to a thread that does nothing else (see `pool`).
//!
//! What is read is bounded before it is read: the head in bytes, headers and time, the body by its route in bytes and
//! by a slowest rate. Framing that could be read in two ways is refused and the connection closed (RFC 9112, 6.3).
//! While nothing is under way, and while a request waits, the connection holds no buffer.

use std::io::{self, BufWriter, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustls::ServerConfig;
use tiny_http::{HTTPVersion, Header, Method, Response, StatusCode};

use crate::error::{ErrCode, Error};
use crate::http::router::{Outcome, Turn};
use crate::http::transport::bounds::{BodyMemory, Crowd, Permit};
use crate::http::transport::reply::{Body, Reply, is_for_browsers};
use crate::http::transport::request::Request;
use crate::http::transport::server::{Admission, Place, Wake};
use crate::http::transport::socket::Transport;
use crate::protocol::UserId;

/// Largest head (request line and headers), in bytes.
const MAX_HEAD: usize = 16 << 10;
/// Most headers of a request.
const MAX_HEADERS: usize = 100;
/// Most bytes that one read takes.
const READ: usize = 16 << 10;
/// Longest line of a chunk's size with its extensions, and most bytes of trailers behind the last chunk.
const MAX_CHUNK_LINE: usize = 512;
const MAX_TRAILERS: usize = 4 << 10;
/// The body of a request that is refused is read and dropped up to this size, so that the connection can be kept.
const MAX_DRAINED: usize = 64 << 10;
/// Room for a reply before it goes to the socket.
const WRITE: usize = 16 << 10;
/// How long a worker stays with a connection on which nothing comes.
const SHORT_WAIT: Duration = Duration::from_millis(20);
/// How long, and for how many bytes, what comes after our last reply is still read.
const CLOSE_TIME: Duration = Duration::from_secs(1);
const CLOSE_BYTES: usize = 1 << 20;

/// Numbers the 500s, so that a user's report can be found in the log.
static FAILURES: AtomicU64 = AtomicU64::new(1);

/// A connection that was accepted and counted.
pub(in crate::http) struct Connection {
    transport: Transport,
    place: Place,
    /// Bytes that were read and not used yet.
    pending: Vec<u8>,
    /// Since when nothing is under way.
    idle_since: Instant,
    /// The request that waits for news, if one does.
    waiting: Option<Box<Waiting>>,
}

/// A request whose handler has nothing to say yet.
struct Waiting {
    request: Request,
    manner: Manner,
    user: UserId,
    after: i64,
    until: Instant,
    /// Which call comes next, once it is known.
    turn: Turn,
    /// The turn among those that were woken.
    woken: Option<Permit>,
    _permit: Permit,
    _memory: BodyMemory,
}

/// What follows a step.
enum Next {
    /// Read a request.
    Request,
    /// Let a parker wait.
    Park,
    /// Enough.
    Close,
}

/// Why there is no (whole) request.
enum Broken {
    /// The other side is gone or silent, or the connection was given up: nobody to answer.
    Gone,
    /// Answer this, then close.
    Refused(Box<Error>),
}

impl From<io::Error> for Broken {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

fn refused(status: u16, errcode: ErrCode, message: &'static str) -> Broken {
    Broken::Refused(Box::new(Error::new(errcode, message).with_status(status)))
}

fn bad_request(message: &'static str) -> Broken {
    refused(400, ErrCode::Unknown, message)
}

fn too_large() -> Broken {
    refused(413, ErrCode::TooLarge, "The request's body is too large")
}

/// How the body is delimited.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Framing {
    /// This many bytes, which may be none.
    Length(u64),
    Chunked,
}

/// What the reply needs to know of the request.
#[derive(Clone, Copy)]
struct Manner {
    minor: u8,
    is_head: bool,
    keep_alive: bool,
    cors: bool,
}

/// For replies to what could not be read: nothing is known of it.
const UNREAD: Manner = Manner { minor: 1, is_head: false, keep_alive: false, cors: true };

struct Head {
    request: Request,
    framing: Framing,
    expects_continue: bool,
    manner: Manner,
}

impl Connection {
    pub(in crate::http) fn new(place: Place, tls: Option<Arc<ServerConfig>>) -> io::Result<Self> {
        let deadline = Instant::now() + place.shared.limits.head_time;
        let transport = Transport::new(place.peer.tcp.clone(), tls, deadline)?;
        Ok(Self { transport, place, pending: Vec::new(), idle_since: Instant::now(), waiting: None })
    }

    /// Serves requests until one side has enough (`None`) or there is something to wait for: then the connection is
    /// to be parked.
    pub(in crate::http) fn work(mut self) -> Option<Self> {
        loop {
            let step = match self.waiting.take() {
                Some(waiting) => self.look_again(*waiting),
                None => self.serve_one(),
            };
            match step {
                Ok(Next::Request) => {}
                Ok(Next::Park) => return Some(self),
                Ok(Next::Close) => break,
                Err(Broken::Gone) => return None,
                Err(Broken::Refused(error)) => {
                    log::debug!("a request from {} was refused: {error}", self.place.peer.address.ip());
                    if self.write(Reply::error(&error), UNREAD).is_err() {
                        return None;
                    }
                    break;
                }
            }
        }
        if !self.place.shared.is_stopping() {
            self.place.idle();
            self.transport.close_gently(CLOSE_TIME, CLOSE_BYTES);
        }
        None
    }

    /// Waits, holding next to nothing, until there is something to work on. `None`: there never will be.
    pub(in crate::http) fn park(mut self) -> Option<Self> {
        if self.pending.is_empty() {
            self.pending = Vec::new();
        }
        let shared = self.place.shared.clone();
        let Some(mut waiting) = self.waiting.take() else {
            let until = self.idle_since + shared.limits.idle_time;
            let readable = self.transport.wait_readable(until).unwrap_or(false);
            return (readable && !self.place.is_retired()).then_some(self);
        };
        waiting.turn = self.wait(&waiting);
        // Gone, or it has only closed its sending half and still listens: then this is an early answer.
        waiting.manner.keep_alive &= !(waiting.turn == Turn::Last && self.transport.is_gone());
        waiting.woken = Some(shared.bounds.permit_woken());
        self.waiting = Some(waiting);
        Some(self)
    }

    fn serve_one(&mut self) -> Result<Next, Broken> {
        let Some(head) = self.read_head()? else { return Ok(Next::Park) };
        let Head { mut request, framing, expects_continue, mut manner } = head;
        let shared = self.place.shared.clone();
        let admitted = catch_unwind(AssertUnwindSafe(|| shared.service.admit(&mut request)));
        let admitted = admitted.unwrap_or_else(|_| Err(failure(&request, &"the admission panicked")));
        let admission = match admitted {
            Ok(admission) => admission,
            Err(reply) => {
                let drained = Admission { body: MAX_DRAINED, crowd: Crowd::Uncounted };
                let mut memory = shared.bounds.body_memory(Crowd::Uncounted);
                manner.keep_alive &=
                    !expects_continue && self.read_body(framing, drained, &mut memory).is_ok();
                if !self.place.working() {
                    return Err(Broken::Gone);
                }
                return self.answer(reply, manner);
            }
        };
        if expects_continue && self.pending.is_empty() && framing != Framing::Length(0) {
            if matches!(framing, Framing::Length(n) if n > admission.body as u64) {
                return Err(too_large());
            }
            self.transport.set_deadline(Instant::now() + shared.limits.transfer_grace);
            self.transport.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            self.transport.flush()?;
        }
        let mut memory = shared.bounds.body_memory(admission.crowd);
        request.set_body(self.read_body(framing, admission, &mut memory)?);
        if !self.place.working() {
            return Err(Broken::Gone);
        }
        let Some(permit) = shared.bounds.permit(admission.crowd) else {
            let busy = Error::new(ErrCode::LimitExceeded, "The server is busy, try again in a moment");
            let reply = Reply::error(&busy.with_status(503).with_field("retry_after_ms", 1000));
            return self.answer(reply, manner);
        };
        match self.call(&request, Turn::First) {
            Outcome::Reply(reply) => {
                drop((request, permit, memory));
                self.answer(reply, manner)
            }
            Outcome::Wait { user, after, until } => {
                let (turn, woken) = (Turn::First, None);
                let waiting = Waiting {
                    request,
                    manner,
                    user,
                    after,
                    until,
                    turn,
                    woken,
                    _permit: permit,
                    _memory: memory,
                };
                self.waiting = Some(Box::new(waiting));
                Ok(Next::Park)
            }
        }
    }

    /// The next call of a handler that has waited.
    fn look_again(&mut self, mut waiting: Waiting) -> Result<Next, Broken> {
        let outcome = self.call(&waiting.request, waiting.turn);
        waiting.woken = None;
        match outcome {
            Outcome::Reply(reply) => {
                let manner = waiting.manner;
                drop(waiting);
                self.answer(reply, manner)
            }
            Outcome::Wait { user, after, until } => {
                self.waiting = Some(Box::new(Waiting { user, after, until, ..waiting }));
                Ok(Next::Park)
            }
        }
    }

    fn answer(&mut self, reply: Reply, mut manner: Manner) -> Result<Next, Broken> {
        manner.keep_alive &= !self.place.shared.is_stopping();
        self.write(reply, manner)?;
        if !manner.keep_alive {
            return Ok(Next::Close);
        }
        self.idle_since = Instant::now();
        if self.place.idle() { Ok(Next::Request) } else { Err(Broken::Gone) }
    }

    /// Calls the handler. A panic is a 500.
    fn call(&self, request: &Request, turn: Turn) -> Outcome {
        let service = &self.place.shared.service;
        match catch_unwind(AssertUnwindSafe(|| service.call(request, turn))) {
            Ok(Outcome::Wait { .. }) if turn == Turn::Last => {
                Outcome::Reply(failure(request, &"the handler wants to wait although its time is up"))
            }
            Ok(outcome) => outcome,
            Err(_) => Outcome::Reply(failure(request, &"the handler panicked")),
        }
    }

    /// Waits for news, looking now and then whether the client is still there.
    fn wait(&self, waiting: &Waiting) -> Turn {
        let shared = &self.place.shared;
        loop {
            let check = (Instant::now() + shared.limits.hang_up_check).min(waiting.until);
            let wake = shared.service.wait(&waiting.user, waiting.after, check);
            let over = wake == Wake::Over || Instant::now() >= waiting.until || shared.is_stopping();
            if over || self.transport.is_gone() {
                return Turn::Last;
            }
            if wake == Wake::News {
                return Turn::Again;
            }
        }
    }

    /// Reads a request's head. `None`: none has begun, so that the wait for it is a parker's.
    fn read_head(&mut self) -> Result<Option<Head>, Broken> {
        let limits = self.place.shared.limits.clone();
        if self.pending.is_empty() {
            if self.place.shared.is_stopping() {
                return Err(Broken::Gone);
            }
            // What follows at once is not worth a change of threads.
            if !self.transport.wait_readable(Instant::now() + SHORT_WAIT)? {
                return Ok(None);
            }
        }
        if !self.place.head() {
            return Err(Broken::Gone);
        }
        self.transport.set_deadline(Instant::now() + limits.head_time);
        let mut line_came = self.pending.contains(&b'\n');
        loop {
            // A head can only be complete when a line has ended, so bytes that trickle in are not parsed each time.
            if line_came && let Some((head, used)) = parse_head(&self.pending, &self.place)? {
                self.pending.drain(..used);
                return Ok(Some(head));
            }
            let had = self.pending.len();
            if had >= MAX_HEAD {
                let in_first_line = !self.pending.contains(&b'\n');
                return Err(if in_first_line {
                    refused(414, ErrCode::TooLarge, "The request's address is too long")
                } else {
                    refused(431, ErrCode::TooLarge, "The request's headers are too large")
                });
            }
            match self.fill(MAX_HEAD - had) {
                Ok(0) if had == 0 => return Err(Broken::Gone),
                Ok(0) => {
                    // What came after the last line has not been looked at; it may be no HTTP at all.
                    if self.pending.contains(&b'\n') {
                        parse_head(&self.pending, &self.place)?;
                    }
                    return Err(bad_request("The request is cut off"));
                }
                Ok(_) => line_came = self.pending[had..].contains(&b'\n'),
                Err(e) if e.kind() == io::ErrorKind::TimedOut && had > 0 => {
                    return Err(refused(408, ErrCode::Unknown, "The request took too long"));
                }
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Reads at most `most` more bytes to the end of `pending`. 0: the other side has closed.
    fn fill(&mut self, most: usize) -> io::Result<usize> {
        let had = self.pending.len();
        self.pending.resize(had + most.min(if had == 0 { 2048 } else { READ }), 0);
        let read = self.transport.read(&mut self.pending[had..]);
        self.pending.truncate(had + *read.as_ref().unwrap_or(&0));
        read
    }

    /// As `fill`, for bodies: the end is an error here, and so is a rate that is too slow for the bytes so far.
    fn fill_body(&mut self, started: Instant, so_far: usize) -> Result<(), Broken> {
        self.transport.set_deadline(transfer_deadline(&self.place, started, so_far));
        match self.fill(READ) {
            Ok(0) => Err(bad_request("The request's body is cut off")),
            Ok(_) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::TimedOut => {
                Err(refused(408, ErrCode::Unknown, "The request's body took too long"))
            }
            Err(_) => Err(Broken::Gone),
        }
    }

    fn read_body(
        &mut self,
        framing: Framing,
        admission: Admission,
        memory: &mut BodyMemory,
    ) -> Result<Vec<u8>, Broken> {
        match framing {
            Framing::Length(length) => {
                let length =
                    usize::try_from(length).ok().filter(|l| *l <= admission.body).ok_or_else(too_large)?;
                self.read_length(length, memory)
            }
            Framing::Chunked => self.read_chunks(admission.body, memory),
        }
    }

    fn read_length(&mut self, length: usize, memory: &mut BodyMemory) -> Result<Vec<u8>, Broken> {
        let started = Instant::now();
        // Grows with what has really come; what is only announced costs nothing.
        let mut body = Vec::new();
        loop {
            let take = self.pending.len().min(length - body.len());
            hold(memory, body.len() + take)?;
            body.extend(self.pending.drain(..take));
            if body.len() == length {
                return Ok(body);
            }
            self.fill_body(started, body.len())?;
        }
    }

    fn read_chunks(&mut self, most: usize, memory: &mut BodyMemory) -> Result<Vec<u8>, Broken> {
        let started = Instant::now();
        let mut body = Vec::new();
        loop {
            let size = parse_chunk_size(&self.read_line(started, body.len(), MAX_CHUNK_LINE)?)?;
            if size == 0 {
                break;
            }
            let end = usize::try_from(size).ok().and_then(|s| body.len().checked_add(s));
            let end = end.filter(|end| *end <= most).ok_or_else(too_large)?;
            loop {
                let take = self.pending.len().min(end - body.len());
                hold(memory, body.len() + take)?;
                body.extend(self.pending.drain(..take));
                if body.len() == end {
                    break;
                }
                self.fill_body(started, body.len())?;
            }
            if !self.read_line(started, body.len(), 2)?.is_empty() {
                return Err(bad_request("A chunk is longer than its size"));
            }
        }
        let mut trailers = MAX_TRAILERS;
        loop {
            let line = self.read_line(started, body.len(), trailers)?;
            if line.is_empty() {
                return Ok(body);
            }
            trailers = trailers.saturating_sub(line.len() + 2);
        }
    }

    /// A line without its CRLF, of at most `most` bytes with it.
    fn read_line(&mut self, started: Instant, so_far: usize, most: usize) -> Result<Vec<u8>, Broken> {
        loop {
            if let Some(end) = self.pending.iter().take(most).position(|b| *b == b'\n') {
                let mut line: Vec<u8> = self.pending.drain(..=end).collect();
                line.pop();
                // RFC 9112, 7.1: chunks end with CRLF; a bare LF is how two parsers come to disagree.
                return if line.pop() == Some(b'\r') {
                    Ok(line)
                } else {
                    Err(bad_request("Broken chunked body"))
                };
            }
            if self.pending.len() >= most {
                return Err(bad_request("Broken chunked body"));
            }
            self.fill_body(started, so_far)?;
        }
    }

    /// Writes a reply with tiny_http's writer, then flushes.
    fn write(&mut self, reply: Reply, manner: Manner) -> io::Result<()> {
        let (status, mut headers, body) = reply.into_parts();
        headers.extend(Header::from_bytes("Server", "Doorstep"));
        if manner.cors {
            headers.extend(crate::http::transport::reply::cors_headers());
        }
        let connection: &[u8] = match (manner.keep_alive, manner.minor) {
            (false, _) => b"Connection: close\r\n",
            (true, 0) => b"Connection: keep-alive\r\n",
            (true, _) => b"",
        };
        let (length, reader): (usize, Box<dyn Read + Send>) = match body {
            Body::Bytes(bytes) => (bytes.len(), Box::new(io::Cursor::new(bytes))),
            Body::Stream(length, reader) => (
                usize::try_from(length).map_err(io::Error::other)?,
                Box::new(Exactly { left: length, reader }),
            ),
        };
        let started = Instant::now();
        self.transport.set_deadline(transfer_deadline(&self.place, started, 0));
        let room = WRITE.min(length.saturating_add(1024));
        let paced = BufWriter::with_capacity(room, Paced { connection: self, started, written: 0 });
        let mut writer = SecondLine { inner: paced, line: Some(connection) };
        // Without a threshold, tiny_http would send larger bodies in chunks although their length is known.
        Response::new(StatusCode(status), headers, reader, Some(length), None)
            .with_chunked_threshold(usize::MAX)
            .raw_print(&mut writer, HTTPVersion(1, manner.minor), &[], manner.is_head, None)?;
        writer.flush()
    }
}

fn hold(memory: &mut BodyMemory, bytes: usize) -> Result<(), Broken> {
    if memory.grow_to(bytes) {
        return Ok(());
    }
    let error = Error::new(ErrCode::LimitExceeded, "Too many large requests at once, try again in a moment");
    Err(Broken::Refused(Box::new(error.with_status(503).with_field("retry_after_ms", 5000))))
}

fn transfer_deadline(place: &Place, started: Instant, so_far: usize) -> Instant {
    let limits = &place.shared.limits;
    started + limits.transfer_grace + Duration::from_secs((so_far / limits.transfer_rate.max(1)) as u64)
}

/// A 500 whose number is in the log with the cause.
pub(in crate::http) fn failure(request: &Request, cause: &dyn std::fmt::Display) -> Reply {
    let number = FAILURES.fetch_add(1, Ordering::Relaxed);
    log::error!("request {number}: {} {}: {cause}", request.method(), request.path());
    let message = format!("Internal server error (request {number} in the server's log)");
    Reply::error(&Error::new(ErrCode::Unknown, message))
}

/// Parses a head at the start of `bytes`. `None`: it is not complete.
fn parse_head(bytes: &[u8], place: &Place) -> Result<Option<(Head, usize)>, Broken> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let used = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(used)) => used,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => {
            return Err(refused(431, ErrCode::TooLarge, "The request has too many headers"));
        }
        Err(httparse::Error::Version) => {
            return Err(refused(505, ErrCode::Unrecognized, "This server speaks HTTP/1.1"));
        }
        Err(_) => return Err(bad_request("This is not an HTTP request")),
    };
    let (Some(method), Some(target), Some(minor)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(bad_request("This is not an HTTP request"));
    };
    let framing = framing(parsed.headers, minor)?;
    let one_host = parsed.headers.iter().filter(|h| h.name.eq_ignore_ascii_case("host")).count();
    // RFC 9112, 3.2: a request of HTTP/1.1 without Host, and any with two, is refused.
    if one_host > 1 || (one_host == 0 && minor > 0) {
        return Err(bad_request("A request has one Host header"));
    }
    let mut expects_continue = false;
    for expect in values(parsed.headers, "expect").filter(|_| minor > 0) {
        if !expect.eq_ignore_ascii_case(b"100-continue") {
            return Err(refused(417, ErrCode::Unrecognized, "Unknown expectation"));
        }
        expects_continue = true;
    }
    let method: Method = method.parse().map_err(|()| bad_request("Unknown method"))?;
    let target = origin_form(target)?;
    let keep_alive = match minor {
        0 => has_option(parsed.headers, "keep-alive"),
        _ => !has_option(parsed.headers, "close"),
    };
    let cors = is_for_browsers(target);
    let manner = Manner { minor, is_head: method == Method::Head, keep_alive, cors };
    let headers = parsed.headers.iter().map(|h| (h.name.to_owned(), text(h.value))).collect();
    let mut request = Request::new(method, target.to_owned(), headers, place.peer.address)
        .map_err(|e| Broken::Refused(Box::new(e)))?;
    request.set_socket(place.peer.tcp.clone());
    Ok(Some((Head { request, framing, expects_continue, manner }, used)))
}

/// RFC 9112, 3.2: path and query, of the absolute form too. `OPTIONS *` stays `*`.
fn origin_form(target: &str) -> Result<&str, Broken> {
    if target.starts_with('/') || target == "*" {
        return Ok(target);
    }
    let rest = target
        .split_once("://")
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https"));
    match rest.map(|(_, rest)| rest.find('/').map_or("/", |at| &rest[at..])) {
        Some(path) => Ok(path),
        None => Err(bad_request("The request's address is no path")),
    }
}

fn values<'h>(
    headers: &'h [httparse::Header<'h>],
    name: &'static str,
) -> impl Iterator<Item = &'h [u8]> + use<'h> {
    headers.iter().filter(move |h| h.name.eq_ignore_ascii_case(name)).map(|h| h.value.trim_ascii())
}

fn has_option(headers: &[httparse::Header<'_>], option: &str) -> bool {
    let mut options = values(headers, "connection").flat_map(|value| value.split(|b| *b == b','));
    options.any(|o| o.trim_ascii().eq_ignore_ascii_case(option.as_bytes()))
}

/// How long the body is, refusing everything that two parsers could take differently (RFC 9112, 6.3).
fn framing(headers: &[httparse::Header<'_>], minor: u8) -> Result<Framing, Broken> {
    let mut length: Option<u64> = None;
    for value in values(headers, "content-length") {
        if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
            return Err(bad_request("Content-Length is not a number"));
        }
        // A number beyond 64 bits is a number, and too large.
        let number = std::str::from_utf8(value).ok().and_then(|v| v.parse().ok()).unwrap_or(u64::MAX);
        if length.is_some_and(|before| before != number) {
            return Err(bad_request("Two different Content-Length headers"));
        }
        length = Some(number);
    }
    let mut codings = values(headers, "transfer-encoding");
    let Some(coding) = codings.next() else { return Ok(Framing::Length(length.unwrap_or(0))) };
    if length.is_some() {
        return Err(bad_request("Both Content-Length and Transfer-Encoding"));
    }
    if minor == 0 {
        return Err(bad_request("HTTP/1.0 has no Transfer-Encoding"));
    }
    if codings.next().is_some() || !coding.eq_ignore_ascii_case(b"chunked") {
        return Err(refused(501, ErrCode::Unrecognized, "The only Transfer-Encoding is chunked"));
    }
    Ok(Framing::Chunked)
}

/// Hexadecimal digits, and extensions behind `;`, which mean nothing here.
fn parse_chunk_size(line: &[u8]) -> Result<u64, Broken> {
    let bad = || bad_request("Broken chunk size");
    let digits = line.split(|b| *b == b';').next().unwrap_or_default().trim_ascii_end();
    if digits.is_empty() || digits.len() > 16 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err(bad());
    }
    let digits = std::str::from_utf8(digits).map_err(|_| bad())?;
    u64::from_str_radix(digits, 16).map_err(|_| bad())
}

/// UTF-8, or else Latin-1, in which every byte means something.
fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().map(|b| char::from(*b)).collect(),
    }
}

/// Lets a long reply have its time: each part that went out extends the deadline by the slowest rate.
struct Paced<'c> {
    connection: &'c mut Connection,
    started: Instant,
    written: usize,
}

impl Write for Paced<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let deadline = transfer_deadline(&self.connection.place, self.started, self.written);
        self.connection.transport.set_deadline(deadline);
        let n = self.connection.transport.write(buf)?;
        self.written += n;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.connection.transport.flush()
    }
}

/// Puts one line behind the status line: tiny_http drops a `Connection` header, which it leaves to its own server.
struct SecondLine<'l, W> {
    inner: W,
    line: Option<&'l [u8]>,
}

impl<W: Write> Write for SecondLine<'_, W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let Some(line) = self.line else { return self.inner.write(buf) };
        match buf.iter().position(|b| *b == b'\n') {
            None => self.inner.write(buf),
            Some(end) => {
                self.line = None;
                self.inner.write_all(&buf[..=end])?;
                self.inner.write_all(line)?;
                Ok(end + 1)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// A reader of a known length; ending early is an error, because the length is already on the wire.
struct Exactly {
    left: u64,
    reader: Box<dyn Read + Send>,
}

impl Read for Exactly {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buf.len());
        if most == 0 {
            return Ok(0);
        }
        let n = self.reader.read(&mut buf[..most])?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= n as u64;
        Ok(n)
    }
}
