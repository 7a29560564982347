//! The calls of the membership handshakes: `make_*`, `send_*`, invites.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::{
    LIST_ANSWER_BYTES_MAX, LONG_TIMEOUT, ORDINARY_TIMEOUT, QUICK_TIMEOUT, RawEvent, SMALL_ANSWER_BYTES_MAX,
    STATE_ANSWER_BYTES_MAX, STATE_EVENTS_MAX, array_in, enc, in_array, large_object_in, object, to_body,
};
use crate::error::Error;
use crate::federation::call_error::{CallError, CallResult};
use crate::federation::client::{Client, Response};
use crate::protocol::json::{AtMost, parse_object};
use crate::protocol::pdu::EVENT_AS_WRITTEN_BYTES_MAX;
use crate::protocol::room_version::RoomVersion;
use crate::protocol::{EventId, RoomId, ServerName, UserId};

/// Most entries of stripped state; a complete one has about ten.
const STRIPPED_STATE_MAX: usize = 500;

/// Which of the three sibling handshakes (`make_*`, `send_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandshakeKind {
    /// Joining rooms.
    Join,
    /// Knocking upon rooms.
    Knock,
    /// Leaving rooms, rejecting invites, withdrawing knocks.
    Leave,
}

impl HandshakeKind {
    fn word(self) -> &'static str {
        match self {
            Self::Join => "join",
            Self::Knock => "knock",
            Self::Leave => "leave",
        }
    }
}

/// The answer of `make_join`, `make_knock` and `make_leave`.
#[derive(Debug, Deserialize)]
pub struct Template {
    /// The room's version. Optional for joins and leaves, where its absence means version 1 (2 alike).
    #[serde(default = "first_version")]
    pub room_version: String,
    /// The unsigned event.
    #[serde(deserialize_with = "no_larger_than_an_event")]
    pub event: Map<String, Value>,
}

fn first_version() -> String {
    "1".into()
}

/// The answer of `send_join` as it came. It may be large, so what is read from it borrows from it.
pub struct JoinBody {
    response: Response,
    /// Whether it is wrapped in an array, as in version 1.
    in_array: bool,
}

/// The answer of `send_join`.
#[derive(Debug, Deserialize)]
pub struct JoinAnswer<'a> {
    /// Every event of the auth chain of `state`.
    #[serde(borrow)]
    pub auth_chain: AtMost<&'a RawValue, STATE_EVENTS_MAX>,
    /// The room's state before our join.
    #[serde(borrow)]
    pub state: AtMost<&'a RawValue, STATE_EVENTS_MAX>,
    /// Our join, with the resident server's signature added if the join is a restricted one.
    #[serde(borrow, default)]
    pub event: Option<&'a RawValue>,
    #[serde(default)]
    members_omitted: bool,
}

impl JoinBody {
    /// Reads the answer.
    pub fn read(&self) -> CallResult<JoinAnswer<'_>> {
        let body = self.response.body.as_slice();
        let answer: JoinAnswer<'_> = match self.in_array {
            true => large_object_in(array_in(body)?)?,
            false => large_object_in(body)?,
        };
        // We never ask for that, since we could not authorise events in a room of which we know half.
        if answer.members_omitted {
            return Err(CallError::bad("a room without its members"));
        }
        Ok(answer)
    }
}

/// A template is an event, or will be one, and no larger.
fn no_larger_than_an_event<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Map<String, Value>, D::Error> {
    let text = Box::<RawValue>::deserialize(d)?;
    let fits = text.get().len() <= EVENT_AS_WRITTEN_BYTES_MAX;
    let event = if fits { parse_object(text.get().as_bytes()) } else { Err(Error::bad_json("too large")) };
    event.map_err(|e| serde::de::Error::custom(e.message()))
}

impl Client {
    /// `GET make_join`, `make_knock` or `make_leave`: a template for that user's membership event. `versions` are
    /// those that we can take part in; a leave has no choice of version. The template is unchecked.
    pub fn make_membership(
        &self,
        peer: &ServerName,
        kind: HandshakeKind,
        room: &RoomId,
        user: &UserId,
        versions: &[RoomVersion],
        within: Duration,
    ) -> CallResult<Template> {
        let mut path = format!("/_matrix/federation/v1/make_{}/{}/{}", kind.word(), enc(room), enc(user));
        if kind != HandshakeKind::Leave {
            for (at, version) in versions.iter().enumerate() {
                path.push_str(if at == 0 { "?" } else { "&" });
                let _ = write!(path, "ver={}", enc(version.id));
            }
        }
        object(self.get(peer, path, QUICK_TIMEOUT.min(within), SMALL_ANSWER_BYTES_MAX)?)
    }

    /// `PUT /v2/send_join`, or v1 where the peer knows no v2: hands our signed join in and gets the room. `within`: how long
    /// the peer may take over it, if that is less than it may take at all.
    pub fn send_join(
        &self,
        peer: &ServerName,
        room: &RoomId,
        id: &EventId,
        event: &[u8],
        within: Duration,
    ) -> CallResult<JoinBody> {
        let until = Instant::now() + within.min(LONG_TIMEOUT);
        let put = |path| {
            self.put(
                peer,
                path,
                event,
                until.saturating_duration_since(Instant::now()),
                STATE_ANSWER_BYTES_MAX,
            )
        };
        match put(format!("/_matrix/federation/v2/send_join/{}/{}", enc(room), enc(id))) {
            Err(e) if e.is_unrecognized() => {
                let path = format!("/_matrix/federation/v1/send_join/{}/{}", enc(room), enc(id));
                Ok(JoinBody { response: put(path)?, in_array: true })
            }
            other => Ok(JoinBody { response: other?, in_array: false }),
        }
    }

    /// `PUT send_knock`: hands our signed knock in and gets `knock_room_state`. An answer that is of no use says all
    /// the same whether the knock was taken ([`CallError::is_after_success`]).
    pub fn send_knock(
        &self,
        peer: &ServerName,
        room: &RoomId,
        id: &EventId,
        event: &[u8],
    ) -> CallResult<Vec<RawEvent>> {
        #[derive(Deserialize)]
        struct KnockAnswer {
            knock_room_state: AtMost<RawEvent, STRIPPED_STATE_MAX>,
        }
        let path = format!("/_matrix/federation/v1/send_knock/{}/{}", enc(room), enc(id));
        let response = self.put(peer, path, event, ORDINARY_TIMEOUT, LIST_ANSWER_BYTES_MAX)?;
        let answer: KnockAnswer = object(response).map_err(CallError::after_success)?;
        Ok(answer.knock_room_state.0)
    }

    /// `PUT /v2/send_leave`, or v1 where the peer knows no v2: hands our signed leave in. What comes with a yes does
    /// not matter.
    pub fn send_leave(&self, peer: &ServerName, room: &RoomId, id: &EventId, event: &[u8]) -> CallResult<()> {
        let path = format!("/_matrix/federation/v2/send_leave/{}/{}", enc(room), enc(id));
        let answer = match self.put(peer, path, event, ORDINARY_TIMEOUT, SMALL_ANSWER_BYTES_MAX) {
            Err(e) if e.is_unrecognized() => {
                let path = format!("/_matrix/federation/v1/send_leave/{}/{}", enc(room), enc(id));
                self.put(peer, path, event, ORDINARY_TIMEOUT, SMALL_ANSWER_BYTES_MAX)
            }
            other => other,
        };
        match answer {
            Err(e) if !e.is_after_success() => Err(e),
            _ => Ok(()),
        }
    }

    /// `PUT /v2/invite`: asks the invitee's server to sign our invite. `room_state` are stripped state entries.
    /// Gives the event with their signature, which is the caller's to compare with what was sent.
    pub fn invite_v2(
        &self,
        peer: &ServerName,
        room: &RoomId,
        id: &EventId,
        version: RoomVersion,
        event: &RawValue,
        room_state: &[RawEvent],
    ) -> CallResult<RawEvent> {
        let path = format!("/_matrix/federation/v2/invite/{}/{}", enc(room), enc(id));
        let body = to_body(&InviteBody { room_version: version.id, event, invite_room_state: room_state })?;
        let answer: EventAnswer =
            object(self.put(peer, path, &body, ORDINARY_TIMEOUT, SMALL_ANSWER_BYTES_MAX)?)?;
        Ok(answer.event)
    }

    /// `PUT /v1/invite`, for room versions 1 and 2 with servers that know no v2: the event is the whole body, with
    /// the stripped state in its `unsigned`.
    pub fn invite_v1(
        &self,
        peer: &ServerName,
        room: &RoomId,
        id: &EventId,
        event: &[u8],
    ) -> CallResult<RawEvent> {
        let path = format!("/_matrix/federation/v1/invite/{}/{}", enc(room), enc(id));
        let answer: EventAnswer =
            in_array(self.put(peer, path, event, ORDINARY_TIMEOUT, SMALL_ANSWER_BYTES_MAX)?)?;
        Ok(answer.event)
    }

    /// `PUT exchange_third_party_invite`: asks the inviter's server to make an invite of a third-party invite.
    /// `event` is a partial `m.room.member` event.
    pub fn exchange_third_party_invite(
        &self,
        peer: &ServerName,
        room: &RoomId,
        event: &Value,
        within: Duration,
    ) -> CallResult<()> {
        let path = format!("/_matrix/federation/v1/exchange_third_party_invite/{}", enc(room));
        let _: IgnoredAny =
            object(self.put(peer, path, &to_body(event)?, within, SMALL_ANSWER_BYTES_MAX)?)?;
        Ok(())
    }
}

#[derive(serde::Serialize)]
struct InviteBody<'a> {
    room_version: &'a str,
    event: &'a RawValue,
    invite_room_state: &'a [RawEvent],
}

#[derive(Deserialize)]
pub(super) struct EventAnswer {
    pub(super) event: RawEvent,
}
