//! The calls that carry events: transactions, and what is asked for when some are lacking.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::{
    LIST_ANSWER_BYTES_MAX, LONG_TIMEOUT, ORDINARY_TIMEOUT, QUICK_TIMEOUT, RawEvent, SMALL_ANSWER_BYTES_MAX,
    STATE_ANSWER_BYTES_MAX, STATE_EVENTS_MAX, enc, large_object_in, object, to_body,
};
use crate::federation::answer_memory::HeldMemory;
use crate::federation::call_error::{CallError, CallResult};
use crate::federation::client::{Client, PeerRequest};
use crate::protocol::json::{AtMost, First, FirstMembers, read, read_object};
use crate::protocol::{EventId, RoomId, ServerName};

/// Most events asked for at once in `backfill` and `get_missing_events`, and most that the answer to the latter may
/// have.
const EVENTS_ASKED_MAX: usize = 100;
const EVENTS_GIVEN_MAX: usize = 10_000;

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

/// What the peer says of each event of a transaction: the ids that it could not process, with its reason.
pub type TransactionAnswer = Vec<(String, String)>;

impl Client {
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
        struct MissingEventsAnswer {
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
        let MissingEventsAnswer { events: AtMost(mut events) } = object(self.request(request)?)?;
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
}
