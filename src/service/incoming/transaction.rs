//! `PUT /send`: the transactions of other servers.
//!
//! Each event goes through the checks on receipt in the specification's order (the head of `service/events/mod.rs` has
//! them). Every one that we answer for without an error is on disk: in its room, or pending (`pending.rs`) where what
//! it refers to, or the key of its signature, cannot be had while the sender waits for our answer.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::error::{ErrCode, Error, Result};
use crate::protocol::json::{self, AtMost, CanonicalObject};
use crate::protocol::pdu::{EVENT_AS_WRITTEN_BYTES_MAX, EVENT_BYTES_MAX};
use crate::protocol::{EventId, Pdu, RoomId, RoomVersion, ServerName, UserId, VerifiedPdu};
use crate::service::events::accept::{EventSource, Received};
use crate::service::events::fetch::Fetched;
use crate::service::events::server_acl::RoomAcl;
use crate::service::incoming::Incoming;
use crate::service::incoming::pending::{PENDING_BACKOFF, millis, names};
use crate::service::incoming::remote_member_events::{RemoteOutcome, remote_room_version};
use crate::service::keys::verify::Checked;
use crate::store::rooms::not_resident;
use crate::store::rooms::pending_events::NewPendingEvent;
use crate::store::{Room, Status};

/// "Must not include more than 50 PDUs."
const PDUS_MAX: usize = 50;
/// "Must not include more than 100 EDUs."
const EDUS_MAX: usize = 100;

/// For how long one transaction may make us fetch keys and what its events refer to (policy servers have a time of
/// their own): senders wait a minute for an answer. What is not there by then waits, and is fetched in the background.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);
/// When a server that sends too much at once should come again.
const RETRY_AFTER_MS: i64 = 2_000;

#[derive(Deserialize)]
struct TransactionBody<'a> {
    #[serde(borrow)]
    pdus: AtMost<&'a RawValue, PDUS_MAX>,
    #[serde(borrow, default)]
    edus: AtMost<&'a RawValue, EDUS_MAX>,
}

/// What is read of an event to know its room, before its room's version says how to read the rest.
#[derive(Deserialize)]
struct PduRoom {
    room_id: Option<RoomId>,
    event_id: Option<EventId>,
    state_key: Option<String>,
}

/// What became of each event, as the answer says it.
#[derive(Default)]
struct PduResults(Map<String, Value>);

impl PduResults {
    fn add(&mut self, id: &EventId, result: Result<()>) {
        let said = match result {
            Ok(()) => json!({}),
            Err(e) => json!({ "error": e.message() }),
        };
        self.0.insert(id.as_str().to_owned(), said);
    }
}

/// The events of one room in a transaction that become pending.
struct PendingInRoom<'a> {
    room: &'a Room,
    events: Vec<NewPendingEvent>,
    /// Other servers were asked in vain: they are not asked again while the sender waits.
    unanswered: bool,
}

/// The events of one room in a transaction.
struct RoomPdus {
    room: Room,
    /// Those that passed the first three checks.
    pdus: Vec<VerifiedPdu>,
    /// Those of which nothing can be said for want of a key.
    no_key: Vec<NewPendingEvent>,
}

impl Incoming<'_> {
    /// Receives a transaction and gives the answer to it; the stored answer if it was answered before. Every event is
    /// on disk, or refused for good, when this returns. Errors: 400 `M_BAD_JSON`, `M_NOT_JSON` for the transaction as
    /// a whole; 429 `M_LIMIT_EXCEEDED` if the server sends more than we receive, and 500 if something of ours failed,
    /// so that it repeats the transaction. `keeps` is told, before anything is waited for, how many bytes there will be at once
    /// of what is built of the body.
    pub fn receive_transaction(
        &self,
        origin: &ServerName,
        txn_id: &str,
        body: &[u8],
        keeps: &dyn Fn(usize),
    ) -> Result<Value> {
        let answer = self.answer_transaction(origin, txn_id, body, keeps);
        self.count_ending(|metrics| &metrics.transactions_in, &answer);
        answer
    }

    fn answer_transaction(
        &self,
        origin: &ServerName,
        txn_id: &str,
        body: &[u8],
        keeps: &dyn Fn(usize),
    ) -> Result<Value> {
        let Some(_slot) = self.transaction_slots.enter(origin, txn_id) else {
            return Err(Error::new(ErrCode::LimitExceeded, "Too many transactions at once")
                .with_field("retry_after_ms", RETRY_AFTER_MS));
        };
        if let Some(answer) = self.store.read(|db| db.transaction_answer(origin, txn_id))? {
            return json::read(&answer).map_err(Error::internal);
        }
        let TransactionBody { pdus: AtMost(pdus), edus: AtMost(edus) } =
            json::read_object(body).map_err(|e| not_a_transaction(e.message()))?;
        // Large ones are read now, since much is built of them, and that is not to be so while the events wait.
        let edus_received = are_large(&edus).then(|| self.receive_edus(origin, &edus));
        // Each event's text twice. What one of them says is built and dropped again within moments, as for every small request.
        keeps(2 * body.len());
        let mut results = PduResults::default();
        let until = self.clock.instant() + TRANSACTION_TIMEOUT;
        let mut rooms = Vec::new();
        for (room, events) in self.by_room((origin, until), &pdus, &mut results)? {
            rooms.extend(self.check_room_pdus((origin, until), room, &events, &mut results)?);
        }
        // One wait for all rooms.
        let mut all: Vec<_> = rooms.iter_mut().map(|r| (&r.room, r.pdus.as_mut_slice())).collect();
        self.events().with_policy_signatures(&mut all, None)?;
        for room_pdus in rooms {
            self.receive_room_pdus((origin, until), room_pdus, &mut results)?;
        }
        edus_received.unwrap_or_else(|| self.receive_edus(origin, &edus))?;
        let answer = json!({ "pdus": results.0 });
        if !pdus.is_empty() {
            // Ephemeral messages alone are cheaper to receive twice than to remember.
            let (origin, txn_id, now) = (origin.clone(), txn_id.to_owned(), self.clock.now_ms());
            let bytes = answer.to_string().into_bytes();
            // The events are on disk. Should a power cut take this with it, a repeat finds them known.
            self.store.write_lightly(move |tx| tx.save_transaction_answer(&origin, &txn_id, &bytes, now))?;
        }
        Ok(answer)
    }

    /// Sorts the events of a transaction by room, each room's in their order. Events of rooms that we are not in have
    /// their answer at once.
    fn by_room<'a>(
        &self,
        (origin, until): (&ServerName, Instant),
        pdus: &[&'a RawValue],
        results: &mut PduResults,
    ) -> Result<Vec<(Room, Vec<&'a RawValue>)>> {
        let mut rooms: Vec<(Room, Vec<&RawValue>)> = Vec::new();
        let mut index: HashMap<RoomId, usize> = HashMap::new();
        for pdu in pdus {
            // What is far too large for an event is none, and nobody looks for its room. Without a room nobody knows
            // how to read it: "otherwise it is dropped".
            let is_event = pdu.get().len() <= EVENT_AS_WRITTEN_BYTES_MAX;
            let read = is_event.then(|| json::read_object(pdu.get().as_bytes()).ok()).flatten();
            let Some(PduRoom { room_id: Some(room_id), event_id, state_key }) = read else {
                log::debug!("{origin} sent an event without a room");
                continue;
            };
            if let Some(index) = index.get(&room_id) {
                rooms[*index].1.push(pdu);
                continue;
            }
            match self.store.read(|db| db.resident_room(&room_id))? {
                Some(room) => {
                    index.insert(room_id, rooms.len());
                    rooms.push((room, vec![pdu]));
                }
                None => self.receive_remote(
                    (origin, until),
                    PduRoom { room_id: Some(room_id), event_id, state_key },
                    pdu,
                    results,
                )?,
            }
        }
        Ok(rooms)
    }

    /// An event of a room that we are not in: of interest if it says what became of a local user there, or if one is
    /// joining right now.
    fn receive_remote(
        &self,
        (origin, until): (&ServerName, Instant),
        event: PduRoom,
        pdu: &RawValue,
        results: &mut PduResults,
    ) -> Result<()> {
        let PduRoom { room_id: Some(room_id), event_id, state_key } = event else { return Ok(()) };
        let user = state_key.and_then(|key| UserId::parse(&key).ok()).filter(|user| self.is_local(user));
        let json = pdu.get().as_bytes();
        let (version, joining) = self.store.read(|db| {
            // We may have come in since its events were sorted, and then nothing says any more that somebody was joining.
            if let Some(room) = db.resident_room(&room_id)? {
                return Ok((Some(room.version), true));
            }
            let joining = db.joining_version(&room_id)?;
            // What a room is like that we were in is known, whatever those say through whom somebody joins.
            let known = db.room(&room_id)?.filter(|room| room.state.is_some()).map(|room| room.version);
            // Of others we read an event only to join with it.
            let version = match &user {
                Some(user) => remote_room_version(db, &room_id, user, json)?,
                None => joining,
            };
            Ok((version.map(|version| known.unwrap_or(version)), joining.is_some()))
        })?;
        let id = version.map_or(event_id, |version| id_of(json, version));
        // Nobody can name it, and so nobody can be told.
        let Some(id) = id else { return Ok(()) };
        let within = until.saturating_duration_since(self.clock.instant());
        let heard = match user {
            Some(_) => self.remote_member_event(origin, &room_id, json, within),
            None => Err(not_resident()),
        };
        let outcome = match (heard, version) {
            (Err(e), _) if e.is_own_failure() => return Err(e),
            (Ok(RemoteOutcome::NoKey(servers)), Some(version)) => {
                self.keep_pending_remote(origin, (&room_id, version), (id.clone(), json), &servers)
            }
            // Whatever it was to us so far, the room that we come into has its own view of it.
            (_, Some(version)) if joining => {
                self.keep_pending_remote(origin, (&room_id, version), (id.clone(), json), &[])
            }
            (heard, _) => heard.map(drop),
        };
        // Anybody can fill what is kept of such a room. Whatever has no place in it, the rest of the transaction is
        // not to suffer for it.
        match outcome {
            Err(e) if e.is_own_failure() => return Err(e),
            outcome => results.add(&id, outcome),
        }
        Ok(())
    }

    /// Asks the room's server ACL and takes the first three checks with the events of one room. None if the room keeps the sender out.
    fn check_room_pdus(
        &self,
        (origin, until): (&ServerName, Instant),
        room: Room,
        events: &[&RawValue],
        results: &mut PduResults,
    ) -> Result<Option<RoomPdus>> {
        let bytes: Vec<&[u8]> = events.iter().map(|event| event.get().as_bytes()).collect();
        if !self.store.read(|db| RoomAcl::of(db, &room))?.allows(origin) {
            for id in bytes.iter().filter_map(|event| id_of(event, room.version)) {
                results.add(&id, Err(Error::forbidden("The room's server ACL keeps your server out")));
            }
            return Ok(None);
        }
        let left = until.saturating_duration_since(self.clock.instant());
        let (mut pdus, mut no_key) = (Vec::with_capacity(bytes.len()), Vec::new());
        for (event, checked) in
            bytes.iter().zip(self.keys().check_received(origin, &bytes, room.version, left))
        {
            let pdu: Option<(&Pdu, bool)> = match &checked {
                Checked::Passed(pdu) => Some((pdu, true)),
                Checked::NoKey(pdu, _) => Some((pdu, false)),
                Checked::Dropped(_) => None,
            };
            if let Some((pdu, is_signed)) = pdu
                && let Err(e) = self.knock_budget.count_knock_from(self, origin, &room, pdu, is_signed)
            {
                if e.is_own_failure() {
                    return Err(e);
                }
                results.add(pdu.event_id(), Err(e));
                continue;
            }
            match checked {
                Checked::Passed(pdu) => pdus.push(pdu),
                Checked::NoKey(pdu, servers) => {
                    let next = (1, self.clock.now_ms() + PENDING_BACKOFF.pause_ms(1));
                    let event = (pdu.event_id().clone(), *event);
                    no_key.push(NewPendingEvent::for_keys(room.key, event, &servers, next));
                }
                Checked::Dropped(e) => {
                    // What nobody can name nobody can be told of.
                    if let Some(id) = id_of(event, room.version) {
                        results.add(&id, Err(e));
                    }
                }
            }
        }
        Ok(Some(RoomPdus { room, pdus, no_key }))
    }

    /// The rest of the steps, and what has to wait.
    fn receive_room_pdus(
        &self,
        from: (&ServerName, Instant),
        room_pdus: RoomPdus,
        results: &mut PduResults,
    ) -> Result<()> {
        let RoomPdus { room, pdus, no_key } = room_pdus;
        let mut pending = PendingInRoom { room: &room, events: no_key, unanswered: false };
        self.receive_all(from, &pdus, &mut pending, results)?;
        for event in &pending.events {
            results.add(&event.event_id, Ok(()));
        }
        self.keep_pending(from.0, &room, pending.events)
    }

    /// As many as possible in one commit; what has to wait for other servers or for a resolution, on its own.
    fn receive_all(
        &self,
        from: (&ServerName, Instant),
        pdus: &[VerifiedPdu],
        pending: &mut PendingInRoom<'_>,
        results: &mut PduResults,
    ) -> Result<()> {
        let mut rest = pdus;
        while !rest.is_empty() {
            let received = self.events().receive_batch(rest)?;
            let (done, left) = rest.split_at(received.len().min(rest.len()));
            for (pdu, received) in done.iter().zip(received) {
                results.add(pdu.event_id(), self.unless_we_left(pdu, outcome(received)?));
            }
            let Some((single, left)) = left.split_first() else { break };
            if let Some(received) = self.receive_single(from, single, pending)? {
                results.add(single.event_id(), self.unless_we_left(single, outcome(received)?));
            }
            rest = left;
        }
        Ok(())
    }

    /// An event that needs a resolution, or others that are not here. None if it has to wait for them. They are asked
    /// for while the sender waits, unless that was in vain once in this room.
    fn receive_single(
        &self,
        (origin, until): (&ServerName, Instant),
        pdu: &VerifiedPdu,
        pending: &mut PendingInRoom<'_>,
    ) -> Result<Option<Result<Received>>> {
        let needs = match self.events().receive_event(pdu, EventSource::Transaction, None) {
            Ok(Received::NeedsAuth(ids)) => ids,
            Ok(Received::NeedsPrev) => self.store.read(|db| db.unplaced(pdu.prev_events()))?,
            Ok(Received::NeedsTime(rest)) => {
                pending.events.push(self.pending_event(pending.room, pdu, &[], rest));
                return Ok(None);
            }
            received => return Ok(Some(received)),
        };
        if !pending.unanswered && self.clock.instant() < until && !self.is_pending_already(&needs, pending)? {
            // Who vouches for the event. Others are asked in the background, where nobody can make us bother them
            // often.
            let mut servers = self.events().servers_to_ask(pending.room, (origin, pdu), 0)?;
            servers.retain(|server| server == origin || *server == pdu.sender().server());
            match self.events().receive_with_missing(&servers, pdu, until)? {
                Fetched::Received(Ok(Received::NeedsTime(rest))) => {
                    pending.events.push(self.pending_event(pending.room, pdu, &[], rest));
                    return Ok(None);
                }
                Fetched::Received(received) => return Ok(Some(received)),
                Fetched::Nothing { .. } => {}
            }
            pending.unanswered = true;
        }
        pending.events.push(self.pending_event(pending.room, pdu, &needs, Duration::ZERO));
        Ok(None)
    }

    /// A checked event that waits for others, or for the next attempt alone.
    fn pending_event(
        &self,
        room: &Room,
        pdu: &VerifiedPdu,
        needs: &[EventId],
        pause: Duration,
    ) -> NewPendingEvent {
        NewPendingEvent::for_events(room.key, pdu, names(needs), (0, self.clock.now_ms() + millis(pause)))
    }

    /// Whether one of these events is itself waiting: then it is being looked after.
    fn is_pending_already(&self, needs: &[EventId], pending: &PendingInRoom<'_>) -> Result<bool> {
        if pending.events.iter().any(|event| needs.contains(&event.event_id)) {
            return Ok(true);
        }
        self.store.read(|db| {
            for id in needs {
                if db.is_pending(id)? {
                    return Ok(true);
                }
            }
            Ok(false)
        })
    }

    /// The last local user may have left the room since its events were sorted: then what becomes of one there is news
    /// of a room that we are not in.
    fn unless_we_left(&self, pdu: &Pdu, outcome: Result<()>) -> Result<()> {
        match outcome {
            Err(e) if e.status() == 404 && pdu.event_type() == "m.room.member" => {
                // Its key was at hand a moment ago.
                match self.remote_member_event(
                    &pdu.sender().server(),
                    pdu.room_id(),
                    pdu.json(),
                    Duration::ZERO,
                )? {
                    RemoteOutcome::Settled => Ok(()),
                    RemoteOutcome::NoKey(_) => Err(e),
                }
            }
            outcome => outcome,
        }
    }
}

/// What is built at once at most of a transaction's body: of an event, and of ephemeral messages together if they are large.
pub fn weight_max_of_transaction(body: &[u8]) -> usize {
    if body.len() <= EVENT_BYTES_MAX {
        // Not worth a look.
        return json::weight_max(body.len());
    }
    let in_parts = 2 * body.len() + json::weight_max(EVENT_BYTES_MAX);
    match json::read_object::<TransactionBody<'_>>(body) {
        Ok(TransactionBody { edus: AtMost(edus), .. }) if !are_large(&edus) => in_parts,
        _ => json::weight_max(body.len()).max(in_parts),
    }
}

fn are_large(edus: &[&RawValue]) -> bool {
    edus.iter().map(|edu| edu.get().len()).sum::<usize>() > EVENT_BYTES_MAX
}

fn not_a_transaction(why: &str) -> Error {
    Error::bad_json(format!("Not a transaction: {why}"))
}

fn id_of(event: &[u8], version: RoomVersion) -> Option<EventId> {
    CanonicalObject::read(event).ok()?.0.event_id(version).ok()
}

/// What the sender is told; the outer error is a failure of ours.
fn outcome(received: Result<Received>) -> Result<Result<()>> {
    match received {
        Ok(Received::Stored { status: Status::Rejected, reason, .. }) => {
            Ok(Err(reason.unwrap_or_else(|| Error::forbidden("The event was rejected before"))))
        }
        Ok(_) => Ok(Ok(())),
        Err(e) if e.is_own_failure() => Err(e),
        Err(e) => Ok(Err(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::config::Config;
    use crate::protocol::room_version;
    use crate::service::Homeserver;
    use crate::service::rooms::create::CreateRoom;

    #[test]
    fn what_comes_at_the_moment_in_which_we_come_into_its_room_is_kept_for_it() {
        let name = |name: &str| ServerName::parse(name).expect("a name");
        let hs = Homeserver::open(Config::for_name(name("here.example")), Clock::new()).expect("a server");
        let alice = UserId::parse("@alice:here.example").expect("a user id");
        let version = room_version::room_version("12").expect("a version");
        let public: CreateRoom = serde_json::from_value(json!({ "preset": "public_chat" })).expect("a room");
        let events = public.plan(&alice, &Map::new(), version, None).expect("its events");
        let room = hs.rooms().create_room_with(version, &alice, &events, |_, _| Ok(())).expect("made");
        // Nobody was in the room when the transaction was sorted; now somebody is.
        for (n, state_key) in
            [json!(null), json!("@alice:here.example"), json!("@bob:there.example")].into_iter().enumerate()
        {
            let mut event = json!({
                "type": "m.room.member", "room_id": room, "sender": "@bob:there.example", "depth": n,
                "content": { "membership": "join" }, "auth_events": [], "prev_events": [],
                "origin_server_ts": 1, "hashes": { "sha256": "" }, "signatures": {},
            });
            if !state_key.is_null() {
                event["state_key"] = state_key;
            }
            let text = event.to_string();
            let pdu: &RawValue = serde_json::from_str(&text).expect("JSON");
            let head: PduRoom = serde_json::from_str(&text).expect("a head");
            let (mut results, until) = (PduResults::default(), hs.clock.instant());
            hs.incoming()
                .receive_remote((&name("there.example"), until), head, pdu, &mut results)
                .expect("done");
            let id = id_of(text.as_bytes(), version).expect("an id");
            assert_eq!(results.0.get(id.as_str()), Some(&json!({})), "{event}");
            let (waiting, now) =
                (hs.store.read(|db| db.resident_room(&room)).expect("read"), hs.clock.now_ms());
            let key = waiting.expect("the room").key;
            let due = hs.store.read(|db| db.due_pending(key, now, 10)).expect("read");
            assert!(due.iter().any(|waiting| waiting.event_id == id), "{event}");
        }
    }
}
