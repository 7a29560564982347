//! The contract between connections and what they serve: first a request's head is admitted, then the whole request is
//! answered, at once or after a wait.

use std::sync::Arc;
use std::time::Instant;

use crate::error::Error;
use crate::http::transport::bounds::Quota;
use crate::http::transport::large_bodies::Weigh;
use crate::http::transport::reply::Reply;
use crate::http::transport::request::Request;
use crate::protocol::UserId;

/// What the connections serve: the homeserver's router, or a test's stand-in.
pub trait Service: Send + Sync + 'static {
    /// Admits a request by its head, before the body is read: `Err` is the answer, `Ok` says what becomes of the body
    /// and who answers then.
    fn admit(self: Arc<Self>, head: &mut Request) -> Result<Admission, Reply>;
    /// Whether pages in a browser may read what this request target is answered.
    fn is_for_browsers(&self, _target: &str) -> bool {
        true
    }
    /// Blocks until something happened for `user` after the stream position `after` ([`Poll::Again`]), until the
    /// server stops ([`Poll::Last`]), or until the deadline (`None`).
    fn wait(&self, user: &UserId, after: i64, until: Instant) -> Option<Poll>;
    /// [`Service::wait`] for who does what they were woken for before the next of many who are woken by the same begin with
    /// theirs: with the turn, which ends when it is dropped. Who has a turn may call what the others gave to be told by, so
    /// that they need not be woken for that; it is not called any more when this has returned.
    fn wait_in_turn(
        &self,
        user: &UserId,
        after: i64,
        until: Instant,
        _tell: &Tell,
    ) -> (Option<Poll>, Option<WakeTurn>) {
        (self.wait(user, after, until), None)
    }
    /// Ends the [`Service::wait_in_turn`] for this user that was given this `tell`, as if its time was up; if it has not begun yet,
    /// it may be left as it is.
    fn end_wait(&self, _user: &UserId, _tell: &Tell) {}
    /// Ends every `wait` now.
    fn interrupt(&self);
    /// Ends what calls wait for elsewhere, so that they give their answers soon, whatever these are.
    fn hurry(&self) {}
}

/// The turn of somebody who was woken. To be dropped before anything that others could draw out.
pub type WakeTurn = Box<dyn Send>;

/// Tells somebody who waits what there is for them, without waiting for anything. False: they have to look for themselves.
pub type Tell = Arc<dyn Fn() -> bool + Send + Sync>;

/// Answers a whole request. May panic: that is a 500 and nothing more.
pub type Call = Box<dyn Fn(&Request, Poll) -> Outcome + Send>;

/// Takes a body's bytes as they come; its error is the answer. Dropped with what came if the body does not end well.
pub type BodySink = Box<dyn FnMut(&[u8]) -> Result<(), Error> + Send>;

/// Looks at a request's head once more before its body is read, and may take its time for that: it is counted with its quota
/// meanwhile, as a handler is. `Err` is the answer.
pub type Introduction = Box<dyn FnOnce(&Request) -> Result<(), Reply> + Send>;

/// What becomes of a request's body.
pub enum BodyUse {
    /// It is given to the call with the request, if it has at most so many bytes.
    Whole(usize),
    /// As `Whole`, if this has nothing against it; and how much may be built of it.
    Introduced(usize, Introduction, Weigh),
    /// It is handed on as it comes, however large it is, and the call is made when that was all.
    Handed(BodySink),
}

/// What `Service::admit` grants.
pub struct Admission {
    /// What becomes of the body.
    pub body: BodyUse,
    /// Whose requests this one is counted with.
    pub quota: Quota,
    /// Who answers when the body is there.
    pub call: Call,
}

/// Which call of a waiting handler this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Poll {
    /// The first call.
    First,
    /// The stream may have moved: look again.
    Again,
    /// Time is up (or the server stops): answer with what there is. A handler must not answer `Wait` now.
    Last,
}

/// What a waiting handler says.
pub enum Outcome {
    /// The answer.
    Reply(Reply),
    /// Nothing to say yet: call again when something for this user happened after this stream position, or at the
    /// deadline. Count the deadline from `Request::received`, so that it stays the same in every call.
    Wait {
        /// Whose events are waited for.
        user: UserId,
        /// The stream position that the handler has looked at.
        after: i64,
        /// When to stop waiting.
        until: Instant,
    },
}
