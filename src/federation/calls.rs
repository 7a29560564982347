//! The calls between servers, typed: what goes out, what comes back, each with its bounds. Events come back as
//! their exact bytes, unchecked: their format, hashes and signatures are the caller's to judge.

mod finding;
mod policy;

use std::fmt::Write as _;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

pub use finding::{HierarchyAnswer, PublicRoomsAnswer};

use super::client::{CallError, CallResult, Client, PeerRequest, Response};
use crate::error::Error;
use crate::federation::answer_memory::HeldMemory;
use crate::protocol::json::{
    AtMost, CanonicalObject, First, FirstMembers, is_object, parse_object, read, read_large, read_object,
};
use crate::protocol::pdu::EVENT_AS_WRITTEN_BYTES_MAX;
use crate::protocol::room_version::RoomVersion;
use crate::protocol::{EventId, RoomAlias, RoomId, ServerName, UserId};

/// An event as the peer sent it.
pub type RawEvent = Box<RawValue>;

/// Answers that are one event or a little information about one thing.
const SMALL_ANSWER_BYTES_MAX: u64 = 1 << 20;
/// A statement of keys, with whatever white space.
const STATEMENT_BYTES_MAX: u64 = 64 << 10;
/// The longest statement of keys that is looked at, in canonical form: room for two hundred keys and the signatures of
/// half of them.
pub const CANONICAL_STATEMENT_BYTES_MAX: usize = 32 << 10;
/// Answers that are a bounded list of events: 100 of the largest possible, and room for the rest.
const LIST_ANSWER_BYTES_MAX: u64 = 16 << 20;
/// Answers that are the whole state of a room, which may have hundreds of thousands of members.
const STATE_ANSWER_BYTES_MAX: u64 = 256 << 20;
/// Most events of a state or an auth chain.
const STATE_EVENTS_MAX: usize = 1_000_000;
/// Most entries of stripped state; a complete one has about ten.
const STRIPPED_STATE_MAX: usize = 500;
/// Most events asked for at once in `backfill` and `get_missing_events`, and most that the answer to the latter may have.
const EVENTS_ASKED_MAX: usize = 100;
const EVENTS_GIVEN_MAX: usize = 10_000;
/// Most statements of keys of one answer: four of each server that is asked about at once.
const STATEMENTS_MAX: usize = 400;
/// Most devices of one user that are looked at.
const DEVICES_MAX: usize = 1000;
/// Most server names believed from one answer.
const SERVERS_MAX: usize = 10_000;

const QUICK_TIMEOUT: Duration = Duration::from_secs(20);
const ORDINARY_TIMEOUT: Duration = Duration::from_secs(40);
/// For calls after which the peer has to work through a room.
const LONG_TIMEOUT: Duration = Duration::from_secs(180);
// Where somebody waits for the caller, it says `within` which time the call has to end.

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
        // We never ask for that, since we could not judge events in a room of which we know half.
        if answer.members_omitted {
            return Err(CallError::bad("a room without its members"));
        }
        Ok(answer)
    }
}

/// The answer of `state`.
#[derive(Deserialize)]
pub struct StateAnswer {
    /// Every event of the auth chain of `pdus`.
    pub auth_chain: AtMost<RawEvent, STATE_EVENTS_MAX>,
    /// The room's state before the event that was asked about.
    pub pdus: AtMost<RawEvent, STATE_EVENTS_MAX>,
    /// The memory that the answer takes.
    #[serde(skip)]
    pub held: HeldMemory,
}

/// The answer of `state_ids`.
#[derive(Debug, Deserialize)]
pub struct StateIdsAnswer {
    /// The ids of the auth chain.
    pub auth_chain_ids: AtMost<EventId, STATE_EVENTS_MAX>,
    /// The ids of the room's state before the event that was asked about.
    pub pdu_ids: AtMost<EventId, STATE_EVENTS_MAX>,
}

/// The answer of `query/directory`.
#[derive(Debug, Deserialize)]
pub struct DirectoryAnswer {
    /// The room behind the alias.
    pub room_id: RoomId,
    /// Servers that may know the room; what was not a server name is left out.
    #[serde(default, deserialize_with = "only_server_names")]
    pub servers: Vec<ServerName>,
}

/// The answer of `user/devices`.
#[derive(Debug, Deserialize)]
pub struct UserDevicesAnswer {
    /// The last update that is in it.
    pub stream_id: i64,
    /// The devices.
    pub devices: First<UserDevice, DEVICES_MAX>,
}

/// One device of a user of another server.
#[derive(Debug, Deserialize)]
pub struct UserDevice {
    /// Its id.
    pub device_id: String,
    /// What its user calls it.
    pub device_display_name: Option<String>,
    /// Its identity keys.
    pub keys: Option<Box<RawValue>>,
}

fn only_server_names<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Vec<ServerName>, D::Error> {
    let First(texts) = First::<Box<RawValue>, SERVERS_MAX>::deserialize(d)?;
    Ok(texts.iter().filter_map(|text| read(text.get().as_bytes()).ok()).collect())
}

/// A template is an event, or will be one, and no larger.
fn no_larger_than_an_event<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Map<String, Value>, D::Error> {
    let text = Box::<RawValue>::deserialize(d)?;
    let fits = text.get().len() <= EVENT_AS_WRITTEN_BYTES_MAX;
    let event = if fits { parse_object(text.get().as_bytes()) } else { Err(Error::bad_json("too large")) };
    event.map_err(|e| serde::de::Error::custom(e.message()))
}

/// What the peer says of each event of a transaction: the ids that it could not process, with its reason.
pub type TransactionAnswer = Vec<(String, String)>;

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
    ) -> CallResult<Template> {
        let mut path = format!("/_matrix/federation/v1/make_{}/{}/{}", kind.word(), enc(room), enc(user));
        if kind != HandshakeKind::Leave {
            for (at, version) in versions.iter().enumerate() {
                path.push_str(if at == 0 { "?" } else { "&" });
                let _ = write!(path, "ver={}", enc(version.id));
            }
        }
        object(self.get(peer, path, QUICK_TIMEOUT, SMALL_ANSWER_BYTES_MAX)?)
    }

    /// `PUT /v2/send_join`, or v1 where the peer knows no v2: hands our signed join in and gets the room.
    pub fn send_join(
        &self,
        peer: &ServerName,
        room: &RoomId,
        id: &EventId,
        event: &[u8],
    ) -> CallResult<JoinBody> {
        let path = format!("/_matrix/federation/v2/send_join/{}/{}", enc(room), enc(id));
        match self.put(peer, path, event, LONG_TIMEOUT, STATE_ANSWER_BYTES_MAX) {
            Err(e) if e.is_unrecognized() => {
                let path = format!("/_matrix/federation/v1/send_join/{}/{}", enc(room), enc(id));
                Ok(JoinBody {
                    response: self.put(peer, path, event, LONG_TIMEOUT, STATE_ANSWER_BYTES_MAX)?,
                    in_array: true,
                })
            }
            other => Ok(JoinBody { response: other?, in_array: false }),
        }
    }

    /// `PUT send_knock`: hands our signed knock in and gets `knock_room_state`. An answer that is of no use says all the
    /// same whether the knock was taken ([`CallError::is_after_success`]).
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

    /// `PUT /v2/send_leave`, or v1 where the peer knows no v2: hands our signed leave in. What comes with a yes does not
    /// matter.
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

    /// `PUT exchange_third_party_invite`: asks the inviter's server to make an invite of a third-party invite. `event` is
    /// a partial `m.room.member` event.
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

    /// `PUT /send/{txnId}`: delivers a transaction, which is the whole body. Gives the events that the peer could
    /// not process; it has taken responsibility for all others.
    pub fn send_transaction(
        &self,
        peer: &ServerName,
        txn_id: &str,
        body: &[u8],
        within: Duration,
    ) -> CallResult<TransactionAnswer> {
        let path = format!("/_matrix/federation/v1/send/{}", enc(txn_id));
        #[derive(Deserialize)]
        struct SendAnswer {
            // Servers of old answered an empty transaction with an empty object.
            #[serde(default)]
            pdus: Option<Box<RawValue>>,
        }
        #[derive(Deserialize)]
        struct PduResult {
            error: String,
        }
        let answer: SendAnswer = object(self.put(peer, path, body, within, SMALL_ANSWER_BYTES_MAX)?)?;
        let pdus = answer.pdus.as_ref().and_then(|pdus| read(pdus.get().as_bytes()).ok());
        let pdus: FirstMembers<String, &RawValue, EVENTS_ASKED_MAX> = pdus.unwrap_or_default();
        let failed = pdus.0.into_iter().filter_map(|(id, said)| {
            let PduResult { error } = read_object(said.get().as_bytes()).ok()?;
            Some((id, error))
        });
        Ok(failed.collect())
    }

    /// `POST get_missing_events`: the events between `earliest` (exclusive) and `latest` (exclusive), at most
    /// `limit`, oldest first.
    pub fn get_missing_events(
        &self,
        peer: &ServerName,
        room: &RoomId,
        earliest: &[EventId],
        latest: &[EventId],
        limit: usize,
        within: Duration,
    ) -> CallResult<Vec<RawEvent>> {
        #[derive(Deserialize)]
        struct Missing {
            events: AtMost<RawEvent, EVENTS_GIVEN_MAX>,
        }
        let path = format!("/_matrix/federation/v1/get_missing_events/{}", enc(room));
        let limit = limit.min(EVENTS_ASKED_MAX);
        let body = to_body(&json!({
            "earliest_events": earliest, "latest_events": latest, "limit": limit, "min_depth": 0,
        }))?;
        let request = PeerRequest {
            method: "POST",
            destination: peer,
            path_and_query: path,
            body: Some(&body),
            timeout: ORDINARY_TIMEOUT.min(within),
            max_bytes: LIST_ANSWER_BYTES_MAX,
        };
        let Missing { events: AtMost(mut events) } = object(self.request(request)?)?;
        // The newest are the ones that connect to what we have been given.
        let surplus = events.len().saturating_sub(limit);
        events.drain(..surplus);
        Ok(events)
    }

    /// `GET state_ids`: the ids of the room's state before an event, and of its auth chain.
    pub fn state_ids(
        &self,
        peer: &ServerName,
        room: &RoomId,
        at: &EventId,
        within: Duration,
    ) -> CallResult<StateIdsAnswer> {
        let path = format!("/_matrix/federation/v1/state_ids/{}?event_id={}", enc(room), enc(at));
        large_object_in(&self.get(peer, path, LONG_TIMEOUT.min(within), STATE_ANSWER_BYTES_MAX / 4)?.body)
    }

    /// `GET state`: the events of the room's state before an event, and of its auth chain.
    pub fn state(
        &self,
        peer: &ServerName,
        room: &RoomId,
        at: &EventId,
        within: Duration,
    ) -> CallResult<StateAnswer> {
        let path = format!("/_matrix/federation/v1/state/{}?event_id={}", enc(room), enc(at));
        let response = self.get(peer, path, LONG_TIMEOUT.min(within), STATE_ANSWER_BYTES_MAX)?;
        let mut answer: StateAnswer = large_object_in(&response.body)?;
        answer.held = response.held;
        Ok(answer)
    }

    /// `GET event`: one event.
    pub fn event(&self, peer: &ServerName, id: &EventId, within: Duration) -> CallResult<RawEvent> {
        #[derive(Deserialize)]
        struct OneEvent {
            pdus: First<RawEvent, 2>,
        }
        let path = format!("/_matrix/federation/v1/event/{}", enc(id));
        let answer: OneEvent =
            object(self.get(peer, path, QUICK_TIMEOUT.min(within), SMALL_ANSWER_BYTES_MAX)?)?;
        let mut events = answer.pdus.0.into_iter();
        match (events.next(), events.next()) {
            (Some(event), None) => Ok(event),
            _ => Err(CallError::bad("not exactly one event")),
        }
    }

    /// `GET event_auth`: the complete auth chain of an event.
    pub fn event_auth(
        &self,
        peer: &ServerName,
        room: &RoomId,
        id: &EventId,
        within: Duration,
    ) -> CallResult<Vec<RawEvent>> {
        #[derive(Deserialize)]
        struct Chain {
            auth_chain: AtMost<RawEvent, STATE_EVENTS_MAX>,
        }
        let path = format!("/_matrix/federation/v1/event_auth/{}/{}", enc(room), enc(id));
        let answer: Chain = large_object_in(
            &self.get(peer, path, ORDINARY_TIMEOUT.min(within), STATE_ANSWER_BYTES_MAX / 4)?.body,
        )?;
        Ok(answer.auth_chain.0)
    }

    /// `GET backfill`: the given events and those before them, at most `limit` (and at most 100).
    pub fn backfill(
        &self,
        peer: &ServerName,
        room: &RoomId,
        from: &[EventId],
        limit: usize,
        within: Duration,
    ) -> CallResult<Vec<RawEvent>> {
        #[derive(Deserialize)]
        struct Backfilled {
            pdus: First<RawEvent, EVENTS_ASKED_MAX>,
        }
        let limit = limit.min(EVENTS_ASKED_MAX);
        let mut path = format!("/_matrix/federation/v1/backfill/{}?limit={limit}", enc(room));
        for id in from {
            let _ = write!(path, "&v={}", enc(id));
        }
        let Backfilled { pdus: First(mut pdus) } =
            object(self.get(peer, path, ORDINARY_TIMEOUT.min(within), LIST_ANSWER_BYTES_MAX)?)?;
        pdus.truncate(limit);
        Ok(pdus)
    }

    /// `GET query/directory`: the room behind an alias of the peer's.
    pub fn query_directory(
        &self,
        peer: &ServerName,
        alias: &RoomAlias,
        within: Duration,
    ) -> CallResult<DirectoryAnswer> {
        let path = format!("/_matrix/federation/v1/query/directory?room_alias={}", enc(alias));
        object(self.get(peer, path, within, SMALL_ANSWER_BYTES_MAX)?)
    }

    /// `GET query/profile`: the profile of a user of the peer's, or one field of it.
    pub fn query_profile(
        &self,
        peer: &ServerName,
        user: &UserId,
        field: Option<&str>,
        within: Duration,
    ) -> CallResult<Map<String, Value>> {
        let mut path = format!("/_matrix/federation/v1/query/profile?user_id={}", enc(user));
        if let Some(field) = field {
            let _ = write!(path, "&field={}", enc(field));
        }
        object(self.get(peer, path, within, SMALL_ANSWER_BYTES_MAX)?)
    }

    /// `GET user/devices/{userId}`: the devices of a user of the peer's that have identity keys.
    pub fn user_devices(&self, peer: &ServerName, user: &UserId) -> CallResult<UserDevicesAnswer> {
        let path = format!("/_matrix/federation/v1/user/devices/{}", enc(user));
        object(self.get(peer, path, QUICK_TIMEOUT, SMALL_ANSWER_BYTES_MAX)?)
    }

    /// `GET /_matrix/key/v2/server`: the peer's own statement of its keys, unchecked.
    pub fn server_keys(&self, peer: &ServerName, within: Duration) -> CallResult<CanonicalObject> {
        let request = PeerRequest {
            method: "GET",
            destination: peer,
            path_and_query: "/_matrix/key/v2/server".into(),
            body: None,
            timeout: QUICK_TIMEOUT.min(within),
            max_bytes: STATEMENT_BYTES_MAX,
        };
        let answer = self.request_unsigned(request)?;
        statement(&answer.body).ok_or_else(|| CallError::bad("no statement of keys, or one that is too long"))
    }

    /// `POST /_matrix/key/v2/query`: what a notary knows of other servers' keys. `query` is the value of
    /// `server_keys` in the request: server → key id → criteria. Those that are none, or too long, are left out;
    /// all are unchecked.
    pub fn notary_query(
        &self,
        notary: &ServerName,
        query: &Map<String, Value>,
        within: Duration,
    ) -> CallResult<Vec<CanonicalObject>> {
        #[derive(Deserialize)]
        struct Notarised {
            server_keys: First<Box<RawValue>, STATEMENTS_MAX>,
        }
        let body = to_body(&json!({ "server_keys": query }))?;
        let request = PeerRequest {
            method: "POST",
            destination: notary,
            path_and_query: "/_matrix/key/v2/query".into(),
            body: Some(&body),
            // The notary may have to ask others in turn.
            timeout: ORDINARY_TIMEOUT.min(within),
            max_bytes: LIST_ANSWER_BYTES_MAX,
        };
        let answer: Notarised = object(self.request_unsigned(request)?)?;
        let texts = answer.server_keys.0;
        Ok(texts.iter().filter_map(|text| statement(text.get().as_bytes())).collect())
    }

    fn get(
        &self,
        peer: &ServerName,
        path: String,
        timeout: Duration,
        max_bytes: u64,
    ) -> CallResult<Response> {
        let request = PeerRequest {
            method: "GET",
            destination: peer,
            path_and_query: path,
            body: None,
            timeout,
            max_bytes,
        };
        self.request(request)
    }

    fn put(
        &self,
        peer: &ServerName,
        path: String,
        body: &[u8],
        timeout: Duration,
        max: u64,
    ) -> CallResult<Response> {
        self.request(PeerRequest {
            method: "PUT",
            destination: peer,
            path_and_query: path,
            body: Some(body),
            timeout,
            max_bytes: max,
        })
    }
}

#[derive(serde::Serialize)]
struct InviteBody<'a> {
    room_version: &'a str,
    event: &'a RawValue,
    invite_room_state: &'a [RawEvent],
}

#[derive(Deserialize)]
struct EventAnswer {
    event: RawEvent,
}

/// A statement of keys as it came, in canonical form; no tree is made of it. None if it is no object, or too long.
fn statement(text: &[u8]) -> Option<CanonicalObject> {
    let (object, _) = CanonicalObject::read(text).ok()?;
    (object.as_bytes().len() <= CANONICAL_STATEMENT_BYTES_MAX).then_some(object)
}

fn to_body(value: &impl serde::Serialize) -> CallResult<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| CallError::bad(format!("our own request is not JSON: {e}")))
}

/// The answer as the object that it has to be.
fn object<T: DeserializeOwned>(response: Response) -> CallResult<T> {
    object_in(&response.body)
}

fn object_in<'a, T: Deserialize<'a>>(body: &'a [u8]) -> CallResult<T> {
    // Derived structs would also be read from an array.
    if !is_object(body) {
        return Err(not_json(body));
    }
    read(body).map_err(another_shape)
}

/// The same of an answer that tells of a whole room.
fn large_object_in<'a, T: Deserialize<'a>>(body: &'a [u8]) -> CallResult<T> {
    if !is_object(body) {
        return Err(not_json(body));
    }
    read_large(body).map_err(another_shape)
}

fn another_shape(e: Error) -> CallError {
    CallError::bad(format!("an answer of another shape: {}", e.message()))
}

/// The answer of version 1 calls that are arrays `[200, {…}]` by an accident of history.
fn in_array<T: DeserializeOwned>(response: Response) -> CallResult<T> {
    object_in(array_in(&response.body)?)
}

fn array_in(body: &[u8]) -> CallResult<&[u8]> {
    let (_, inside): (u16, &RawValue) = read(body).map_err(|_| not_json(body))?;
    Ok(inside.get().as_bytes())
}

fn not_json(body: &[u8]) -> CallError {
    let start = body.iter().find(|b| !b.is_ascii_whitespace());
    CallError::bad(if start == Some(&b'<') {
        "HTML instead of JSON"
    } else {
        "not the JSON that was asked for"
    })
}

/// Percent-encodes everything but the unreserved characters (RFC 3986), for a path segment or a query value.
pub(crate) fn enc(text: impl AsRef<str>) -> String {
    let mut out = String::with_capacity(text.as_ref().len() + 16);
    for byte in text.as_ref().bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(text: &str) -> Response {
        Response { status: 200, body: text.into(), held: HeldMemory::default() }
    }

    #[test]
    fn identifiers_are_encoded_in_paths() {
        assert_eq!(enc("!a/b?c:x.org"), "%21a%2Fb%3Fc%3Ax.org");
        assert_eq!(enc("$abc-_.~é"), "%24abc-_.~%C3%A9");
    }

    #[test]
    fn an_answer_that_is_not_the_asked_json_is_a_bad_answer() {
        for (body, word) in [
            ("<html>hello</html>", "HTML"),
            ("", "not the JSON"),
            ("[200, {}]", "not the JSON"),
            ("null", "not the JSON"),
            ("{\"event\": 1", "shape"),
            ("{\"room_version\": 3, \"event\": {}}", "shape"),
            ("{\"room_version\": \"9\"}", "shape"),
        ] {
            let e = object::<Template>(answer(body)).expect_err(body);
            assert!(matches!(&e, CallError::BadAnswer(why) if why.contains(word)), "{body}: {e}");
        }
        assert_eq!(object::<Template>(answer(" {\"event\":{}}")).expect("a template").room_version, "1");
    }

    #[test]
    fn an_array_of_version_1_is_unwrapped() {
        let event =
            in_array::<EventAnswer>(answer("[200, {\"event\": {\"a\":1.0}}]")).expect("an event").event;
        assert_eq!(event.get(), "{\"a\":1.0}");
        assert!(in_array::<EventAnswer>(answer("{\"event\": {}}")).is_err());
        assert!(in_array::<EventAnswer>(answer("[200]")).is_err());
    }

    #[test]
    fn servers_in_a_directory_answer_that_are_no_names_are_left_out() {
        let body = r#"{"room_id":"!a:b","servers":["good.org", 5, "", null]}"#;
        let found: DirectoryAnswer = object(answer(body)).expect("an answer");
        assert_eq!(found.servers.len(), 1);
        assert!(object::<DirectoryAnswer>(answer(r#"{"room_id":"nonsense","servers":[]}"#)).is_err());
    }
}
