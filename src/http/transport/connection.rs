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
use std::time::{Duration, Instant};

use rustls::ServerConfig;

use crate::allocator;
use crate::error::{ErrCode, Error};
use crate::http::transport::body::BodyBytes;
use crate::http::transport::bounds::{Permit, RequestOwner};
use crate::http::transport::failure::failure;
use crate::http::transport::framing::{
    BodyFraming, ReplyFraming, RequestError, RequestHead, UNREAD_REQUEST, bad_request, parse_head, refused,
    too_large,
};
use crate::http::transport::head::{BodyEnd, has_body, reply_head};
use crate::http::transport::large_bodies::{BodyMemory, Weigh, weight_of_whole};
use crate::http::transport::patience::Patience;
use crate::http::transport::registry::ConnectionSlot;
use crate::http::transport::reply::{Exactly, Reply, ReplyBody};
use crate::http::transport::request::Request;
use crate::http::transport::service::{Admission, BodyUse, Call, Outcome, Poll};
use crate::http::transport::socket::Transport;
use crate::http::transport::waits::{WaitPlace, Waiter};
use crate::protocol::UserId;

/// Largest head (request line and headers), in bytes.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Most bytes that one read takes; the first of a head, which is mostly all of it, fewer.
pub(super) const READ_BYTES: usize = 16 << 10;
const FIRST_READ_BYTES: usize = 2 << 10;
/// The body of a request that is refused is read and dropped up to this size, so that the connection can be kept.
const DRAINED_BYTES_MAX: usize = 64 << 10;
/// A body of at most so many bytes goes to the socket together with its head.
const JOINED_BYTES_MAX: usize = 16 << 10;
/// Room for what is read and sent piece by piece before it goes to the socket.
const WRITE_BUFFER_BYTES: usize = 16 << 10;
/// What is read of a stream, and goes out, at once: as much as TLS takes before it writes.
const STREAM_BUFFER_BYTES: usize = 64 << 10;
/// How long a worker stays with a connection on which nothing comes.
const NEXT_REQUEST_TIMEOUT: Duration = Duration::from_millis(20);
/// How long, and for how many bytes, what comes after our last reply is still read.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
const CLOSE_BYTES_MAX: usize = 1 << 20;

/// A connection that was accepted and counted.
pub(super) struct Connection {
    pub(super) transport: Transport,
    pub(super) slot: ConnectionSlot,
    /// Bytes that were read and not used yet.
    pub(super) pending: Vec<u8>,
    /// Since when nothing is under way.
    pub(super) idle_since: Instant,
    /// The request that waits for news, if one does.
    pub(super) waiting: Option<Box<WaitingRequest>>,
    /// For how long its replies may still wait to be read.
    pub(super) patience: Patience,
}

/// A request whose handler has nothing to say yet.
pub(super) struct WaitingRequest {
    pub(super) request: Request,
    call: Call,
    pub(super) reply_framing: ReplyFraming,
    pub(super) user: UserId,
    pub(super) after: i64,
    pub(super) until: Instant,
    /// Which call comes next, once it is known.
    pub(super) poll: Poll,
    /// Its permission to look again among those that were woken.
    pub(super) woken: Option<Permit>,
    /// Among those that wait.
    pub(super) place: Arc<WaitPlace>,
    _memory: BodyMemory,
}

/// What follows a step.
pub(super) enum NextStep {
    /// Read a request.
    Request,
    /// Let a parker wait.
    Park,
    /// Enough.
    Close,
}

/// How far a reply has come that was written without waiting.
pub(super) enum Written {
    /// It was not begun.
    Nothing(Reply, ReplyFraming),
    /// All but this is on its way.
    Upto { rest: Vec<u8>, rate: Option<usize>, reply_framing: ReplyFraming },
    /// The connection is of no use any more.
    Failed,
}

impl Connection {
    pub(super) fn new(slot: ConnectionSlot, tls: Option<Arc<ServerConfig>>) -> io::Result<Self> {
        let deadline = Instant::now() + slot.shared.limits.head_timeout;
        let transport = Transport::new(slot.peer.tcp.clone(), tls, deadline)?;
        let patience = Patience::new(slot.shared.limits.transfer_grace);
        Ok(Self { transport, slot, pending: Vec::new(), idle_since: Instant::now(), waiting: None, patience })
    }

    /// Serves requests until one side has enough (`None`) or there is something to wait for: then the connection is
    /// to be parked.
    pub(super) fn work(mut self) -> Option<Self> {
        loop {
            let step = match self.waiting.take() {
                Some(waiting) => self.look_again(*waiting),
                None => self.serve_one(),
            };
            match step {
                Ok(NextStep::Request) => {}
                Ok(NextStep::Park) => return Some(self),
                Ok(NextStep::Close) => break,
                Err(RequestError::Gone) => return None,
                Err(RequestError::Refused(error)) => {
                    log::debug!("a request from {} was refused: {error}", self.slot.peer.address.ip());
                    if self.write(Reply::error(&error), UNREAD_REQUEST).is_err() {
                        return None;
                    }
                    break;
                }
            }
        }
        self.end();
        None
    }

    /// Says good-bye.
    pub(super) fn end(&mut self) {
        if !self.slot.shared.is_stopping() {
            self.slot.idle();
            self.transport.close_gently(CLOSE_TIMEOUT, CLOSE_BYTES_MAX);
        }
    }

    fn serve_one(&mut self) -> Result<NextStep, RequestError> {
        let Some(head) = self.read_head()? else { return Ok(NextStep::Park) };
        let RequestHead { mut request, framing, expects_continue, mut reply_framing } = head;
        let shared = self.slot.shared.clone();
        request.set_socket(self.slot.peer.tcp.clone(), self.transport.is_tls());
        if self.slot.peer.is_local {
            request.set_local();
        }
        reply_framing.cors = shared.service.is_for_browsers(request.target());
        let admitted = catch_unwind(AssertUnwindSafe(|| shared.service.clone().admit(&mut request)));
        let admitted = admitted.unwrap_or_else(|_| Err(failure(&request, &"the admission panicked")));
        self.slot.belongs_to(request.owner());
        let share = Some(request.owner()).filter(|owner| shared.has_share(owner));
        let introduced = admitted.and_then(|admission| self.introduce(&request, admission, share.clone()));
        let (admission, weigh) = match introduced {
            Ok(introduced) => introduced,
            Err(reply) => return self.refuse(reply, reply_framing, (framing, expects_continue)),
        };
        let socket = Some(self.slot.peer.tcp.clone());
        let mut memory = shared.bounds.body_memory(admission.quota, share.clone(), socket);
        self.read_admitted(&mut request, admission.body, (framing, expects_continue), &mut memory)?;
        memory.has_come();
        if !self.slot.working() {
            return Err(RequestError::Gone);
        }
        let gone = request.hung_up();
        let is_wanted = || !gone.as_ref().is_some_and(|gone| gone());
        if let Err(refusal) = memory.take_turn(request.body(), weigh, is_wanted) {
            return self.answer(Reply::error(&refusal), reply_framing);
        }
        request.set_trees(memory.trees());
        let Some(permit) = shared.bounds.permit(admission.quota, share) else {
            return self.answer(busy(), reply_framing);
        };
        match answer_of(&admission.call, &request, Poll::First) {
            Outcome::Reply(reply) => {
                drop((request, admission.call, permit, memory));
                self.answer(reply, reply_framing)
            }
            Outcome::Wait { user, after, until } => {
                drop(permit);
                memory.end_turn();
                let (poll, woken) = (Poll::First, None);
                let (owner, place) = (request.owner(), request.wait_place());
                let has_share = shared.has_share(&owner);
                let waiter = Waiter { owner, place, has_share, user: user.clone() };
                let Some(place) = shared.waits.begin(waiter, &*shared.service).map(Arc::new) else {
                    return self.answer(busy(), reply_framing);
                };
                let waiting = WaitingRequest {
                    request,
                    call: admission.call,
                    reply_framing,
                    user,
                    after,
                    until,
                    poll,
                    woken,
                    place,
                    _memory: memory,
                };
                self.waiting = Some(Box::new(waiting));
                Ok(NextStep::Park)
            }
        }
    }

    /// Has a request looked at once more that is to be before its body is read. Also says how much may be built of that. Errors:
    /// the answer.
    fn introduce(
        &self,
        request: &Request,
        admission: Admission,
        share: Option<RequestOwner>,
    ) -> Result<(Admission, Weigh), Reply> {
        let Admission { body: BodyUse::Introduced(bytes_max, look, weigh), quota, call } = admission else {
            return Ok((admission, weight_of_whole));
        };
        let _permit = self.slot.shared.bounds.permit(quota, share).ok_or_else(busy)?;
        let looked = catch_unwind(AssertUnwindSafe(|| look(request)));
        looked.unwrap_or_else(|_| Err(failure(request, &"the introduction panicked")))?;
        Ok((Admission { body: BodyUse::Whole(bytes_max), quota, call }, weigh))
    }

    /// Answers a request whose body nobody wants.
    fn refuse(
        &mut self,
        reply: Reply,
        mut reply_framing: ReplyFraming,
        (framing, expects_continue): (BodyFraming, bool),
    ) -> Result<NextStep, RequestError> {
        let mut dropped = BodyBytes::Dropped { bytes_max: DRAINED_BYTES_MAX };
        reply_framing.keep_alive &= !expects_continue && self.read_body(framing, &mut dropped).is_ok();
        if !self.slot.working() {
            return Err(RequestError::Gone);
        }
        self.answer(reply, reply_framing)
    }

    /// Reads the body of a request that was admitted.
    fn read_admitted(
        &mut self,
        request: &mut Request,
        body: BodyUse,
        (framing, expects_continue): (BodyFraming, bool),
        memory: &mut BodyMemory,
    ) -> Result<(), RequestError> {
        if expects_continue && self.pending.is_empty() && framing != BodyFraming::Length(0) {
            if let (BodyFraming::Length(length), BodyUse::Whole(bytes_max)) = (framing, &body)
                && length > *bytes_max as u64
            {
                return Err(too_large());
            }
            let grace = self.slot.shared.limits.transfer_grace;
            self.transport.set_deadline(Instant::now() + grace);
            self.transport.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            self.transport.flush()?;
        }
        let mut bytes = match body {
            BodyUse::Whole(bytes_max) | BodyUse::Introduced(bytes_max, ..) => {
                BodyBytes::Kept { body: Vec::new(), bytes_max, memory }
            }
            BodyUse::Handed(sink) => BodyBytes::Handed(sink),
        };
        self.read_body(framing, &mut bytes)?;
        if let BodyBytes::Kept { body, .. } = bytes {
            allocator::has(body.len());
            request.set_body(body);
        }
        Ok(())
    }

    /// The next call of a handler that has waited.
    fn look_again(&mut self, mut waiting: WaitingRequest) -> Result<NextStep, RequestError> {
        let outcome = answer_of(&waiting.call, &waiting.request, waiting.poll);
        waiting.woken = None;
        match outcome {
            Outcome::Reply(reply) => {
                let reply_framing = waiting.reply_framing;
                drop(waiting);
                self.answer(reply, reply_framing)
            }
            Outcome::Wait { user, after, until } => {
                self.waiting = Some(Box::new(WaitingRequest { user, after, until, ..waiting }));
                Ok(NextStep::Park)
            }
        }
    }

    fn answer(&mut self, reply: Reply, mut reply_framing: ReplyFraming) -> Result<NextStep, RequestError> {
        // Only chunks tell where a body of unknown length ends, and HTTP/1.0 has none.
        let has_an_end = reply.is_measured() || reply_framing.minor > 0;
        reply_framing.keep_alive &= has_an_end && !self.slot.shared.is_stopping();
        self.write(reply, reply_framing)?;
        self.answered(reply_framing)
    }

    /// What follows a reply that was written.
    fn answered(&mut self, reply_framing: ReplyFraming) -> Result<NextStep, RequestError> {
        if !reply_framing.keep_alive {
            return Ok(NextStep::Close);
        }
        self.idle_since = Instant::now();
        if self.slot.idle() { Ok(NextStep::Request) } else { Err(RequestError::Gone) }
    }

    /// Reads a request's head. `None`: none has begun, so that the wait for it is a parker's.
    fn read_head(&mut self) -> Result<Option<RequestHead>, RequestError> {
        let limits = self.slot.shared.limits.clone();
        if self.pending.is_empty() {
            if self.slot.shared.is_stopping() {
                return Err(RequestError::Gone);
            }
            // What follows at once is not worth a change of threads. But of the workers some must be there for those
            // whose request has come.
            let lingers = self.slot.shared.lingering();
            let patience = if lingers.is_some() { NEXT_REQUEST_TIMEOUT } else { Duration::ZERO };
            if !self.transport.wait_readable(Instant::now() + patience)? {
                return Ok(None);
            }
        }
        if !self.slot.head() {
            return Err(RequestError::Gone);
        }
        self.transport.set_deadline(Instant::now() + limits.head_timeout);
        let mut line_came = self.pending.contains(&b'\n');
        loop {
            // A head can only be complete when a line has ended, so bytes that trickle in are not parsed each time.
            if line_came && let Some((head, used)) = parse_head(&self.pending, self.slot.peer.address)? {
                self.pending.drain(..used);
                return Ok(Some(head));
            }
            let had = self.pending.len();
            if had >= HEAD_BYTES_MAX {
                let in_first_line = !self.pending.contains(&b'\n');
                return Err(if in_first_line {
                    refused(414, ErrCode::TooLarge, "The request's address is too long")
                } else {
                    refused(431, ErrCode::TooLarge, "The request's headers are too large")
                });
            }
            let most = if had == 0 { FIRST_READ_BYTES } else { READ_BYTES };
            match self.fill(most.min(HEAD_BYTES_MAX - had)) {
                Ok(0) if had == 0 => return Err(RequestError::Gone),
                Ok(0) => {
                    // What came after the last line has not been looked at; it may be no HTTP at all.
                    if self.pending.contains(&b'\n') {
                        parse_head(&self.pending, self.slot.peer.address)?;
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
    pub(super) fn fill(&mut self, most: usize) -> io::Result<usize> {
        let had = self.pending.len();
        self.pending.resize(had + most, 0);
        let read = self.transport.read(&mut self.pending[had..]);
        self.pending.truncate(had + *read.as_ref().unwrap_or(&0));
        read
    }

    /// Writes as much of a reply as goes out without waiting. A stream is not begun.
    pub(super) fn write_now(&mut self, reply: Reply, mut reply_framing: ReplyFraming) -> Written {
        reply_framing.keep_alive &= !self.slot.shared.is_stopping();
        if reply.body_bytes().is_none() || reply_framing.is_head || !has_body(reply.status()) {
            return Written::Nothing(reply, reply_framing);
        }
        let rate = reply.slowest_rate();
        let (status, headers, body) = reply.into_parts();
        let ReplyBody::Bytes(body) = body else { return Written::Failed };
        let (end, now) = (BodyEnd::Length(body.len() as u64), self.slot.shared.clock.now_ms());
        let mut bytes = reply_head(status, &headers, reply_framing, (end, body.len()), now);
        bytes.extend_from_slice(&body);
        match self.transport.write_now(&bytes) {
            Ok(sent) => {
                bytes.drain(..sent);
                Written::Upto { rest: bytes, rate, reply_framing }
            }
            Err(_) => Written::Failed,
        }
    }

    /// Writes what [`Connection::write_now`] has left.
    pub(super) fn write_rest(&mut self, written: Written) -> Result<NextStep, RequestError> {
        match written {
            Written::Nothing(reply, reply_framing) => self.answer(reply, reply_framing),
            Written::Upto { rest, rate, reply_framing } => {
                let mut writer = Paced { connection: self, rate };
                writer.write_all(&rest)?;
                writer.flush()?;
                drop(rest);
                self.answered(reply_framing)
            }
            Written::Failed => Err(RequestError::Gone),
        }
    }

    /// Writes a reply: one that is small with a single write.
    fn write(&mut self, reply: Reply, reply_framing: ReplyFraming) -> io::Result<()> {
        let rate = reply.slowest_rate();
        let (status, headers, body) = reply.into_parts();
        let has_body = !reply_framing.is_head && has_body(status);
        let (end, room) = match &body {
            ReplyBody::Bytes(bytes) => (BodyEnd::Length(bytes.len() as u64), bytes.len()),
            ReplyBody::Stream(length, _) => (BodyEnd::Length(*length), 0),
            ReplyBody::Unmeasured(_) if reply_framing.minor > 0 => (BodyEnd::Chunked, 0),
            ReplyBody::Unmeasured(_) => (BodyEnd::Connection, 0),
        };
        allocator::has(room);
        let joins = has_body && (1..=JOINED_BYTES_MAX).contains(&room);
        let now = self.slot.shared.clock.now_ms();
        let mut head = reply_head(status, &headers, reply_framing, (end, if joins { room } else { 0 }), now);
        let mut writer = Paced { connection: self, rate };
        match body {
            _ if !has_body => writer.write_all(&head)?,
            ReplyBody::Bytes(bytes) if joins => {
                head.extend_from_slice(&bytes);
                drop(bytes);
                writer.write_all(&head)?;
            }
            ReplyBody::Bytes(bytes) => {
                writer.write_all(&head)?;
                writer.write_all(&bytes)?;
            }
            ReplyBody::Stream(length, reader) => {
                let most = usize::try_from(length).map_err(io::Error::other)?;
                write_stream(&mut writer, head, &mut Exactly::new(length, reader), most)?;
            }
            ReplyBody::Unmeasured(mut reader) => {
                let chunked = matches!(end, BodyEnd::Chunked);
                let mut writer = BufWriter::with_capacity(WRITE_BUFFER_BYTES, writer);
                writer.write_all(&head)?;
                write_body(&mut writer, &mut reader, chunked, WRITE_BUFFER_BYTES)?;
                return writer.flush();
            }
        }
        writer.flush()
    }
}

/// A head, and behind it all that a reader has, of which there is so much at most: in pieces that are filled before they go out,
/// the head with the first.
fn write_stream(
    writer: &mut impl Write,
    head: Vec<u8>,
    reader: &mut dyn Read,
    bytes_max: usize,
) -> io::Result<()> {
    let (mut filled, mut piece) = (head.len(), head);
    piece.resize(filled.saturating_add(bytes_max).min(STREAM_BUFFER_BYTES).max(filled), 0);
    loop {
        while filled < piece.len() {
            match reader.read(&mut piece[filled..])? {
                0 => return writer.write_all(&piece[..filled]),
                read => filled += read,
            }
        }
        writer.write_all(&piece)?;
        filled = 0;
    }
}

/// All that a reader has, in chunks or as it is, so much of it at a time.
fn write_body(
    writer: &mut impl Write,
    reader: &mut dyn Read,
    chunked: bool,
    piece_bytes: usize,
) -> io::Result<()> {
    let mut buffer = vec![0; piece_bytes];
    loop {
        let read = reader.read(&mut buffer)?;
        if chunked {
            write!(writer, "{read:x}\r\n")?;
        }
        writer.write_all(&buffer[..read])?;
        if chunked {
            writer.write_all(b"\r\n")?;
        }
        if read == 0 {
            return Ok(());
        }
    }
}

/// There is no turn, and no place.
fn busy() -> Reply {
    let busy = Error::new(ErrCode::LimitExceeded, "The server is busy, try again in a moment");
    Reply::error(&busy.with_status(503).with_field("retry_after_ms", 1000))
}

/// Calls the handler. A panic is a 500.
fn answer_of(call: &Call, request: &Request, poll: Poll) -> Outcome {
    match catch_unwind(AssertUnwindSafe(|| call(request, poll))) {
        Ok(Outcome::Wait { .. }) if poll == Poll::Last => {
            Outcome::Reply(failure(request, &"the handler wants to wait although its time is up"))
        }
        Ok(outcome) => outcome,
        Err(_) => Outcome::Reply(failure(request, &"the handler panicked")),
    }
}

/// Lets a long reply have its time, at the slowest rate that there is for all, or its own if it has one. While a piece of it
/// waits to be read the connection may be given up for another's sake.
struct Paced<'c> {
    connection: &'c mut Connection,
    rate: Option<usize>,
}

impl Paced<'_> {
    fn piece(&mut self, write: impl FnOnce(&mut Transport) -> io::Result<usize>) -> io::Result<usize> {
        let Connection { transport, slot, patience, .. } = &mut *self.connection;
        let given_up = || io::Error::from(io::ErrorKind::ConnectionAborted);
        let began = Instant::now();
        transport.set_deadline(patience.deadline(began));
        if !slot.begin_piece() {
            return Err(given_up());
        }
        let written = write(transport);
        let blocked = began.elapsed();
        if !slot.end_piece(blocked) {
            return Err(given_up());
        }
        let bytes = *written.as_ref().unwrap_or(&0);
        patience.waited(blocked, bytes, self.rate.unwrap_or(slot.shared.limits.transfer_rate));
        written
    }
}

impl Write for Paced<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.piece(|transport| transport.write(buf))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.piece(|transport| transport.flush().map(|()| 0)).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was written, and how much each time.
    #[derive(Default)]
    struct Written(Vec<u8>, Vec<usize>);

    impl Write for Written {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            self.0.extend_from_slice(buf);
            self.1.push(buf.len());
            Ok(buf.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Gives seven bytes at a time.
    struct Sevens(io::Cursor<Vec<u8>>);

    impl Read for Sevens {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let most = buf.len().min(7);
            self.0.read(&mut buf[..most])
        }
    }

    #[test]
    fn the_head_of_a_stream_goes_out_with_what_comes_first_and_each_piece_is_filled_before_it_goes() {
        let sizes = |length: usize| {
            let (head, body) = (b"head".to_vec(), (0..length).map(|n| n as u8).collect::<Vec<_>>());
            let mut reader = Exactly::new(length as u64, Box::new(Sevens(io::Cursor::new(body.clone()))));
            let mut out = Written::default();
            write_stream(&mut out, head, &mut reader, length).expect("memory takes it");
            assert_eq!(out.0, [b"head".as_slice(), &body].concat());
            out.1
        };
        assert_eq!(sizes(0), [4]);
        assert_eq!(sizes(100), [104]);
        assert_eq!(sizes(STREAM_BUFFER_BYTES - 4), [STREAM_BUFFER_BYTES]);
        assert_eq!(sizes(2 * STREAM_BUFFER_BYTES), [STREAM_BUFFER_BYTES, STREAM_BUFFER_BYTES, 4]);
        let mut short = Exactly::new(8, Box::new(Sevens(io::Cursor::new(vec![0; 7]))));
        let ended = write_stream(&mut Written::default(), Vec::new(), &mut short, 8);
        assert_eq!(ended.expect_err("it ended early").kind(), io::ErrorKind::UnexpectedEof);
    }
}
