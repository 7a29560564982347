//! What other servers may read of a room: its state at an event, the events that it rests on, and what came before.
//! `large_answer`: one that is written while it is sent.

pub mod large_answer;

use std::collections::{BinaryHeap, HashMap, HashSet};

use crate::error::{Error, Result};
use crate::protocol::pdu::Membership;
use crate::protocol::rooms::visibility::{HistoryVisibility, server_may_see};
use crate::protocol::unchecked_event;
use crate::protocol::{EventId, Pdu, RoomId, RoomVersion, ServerName};
use crate::service::events::Events;
use crate::service::events::erasure::Erasure;
use crate::service::events::nearest_event::{TimestampQuery, nearest_event};
use crate::service::events::serve::large_answer::{BYTES_HELD_MAX, EVENTS_HELD_MAX, LargeAnswer};
use crate::service::events::server_acl::RoomAcl;
use crate::store::rooms::not_resident;
use crate::store::{Db, EventKey, Room, RoomKey, SnapshotId, StateTupleId, Status, StoredEvent};

/// How many events `backfill` and `get_missing_events` give at most.
const ANSWER_EVENTS_MAX: usize = 100;
/// How many event ids may be named in a question.
const NAMED_EVENTS_MAX: usize = 100;
/// Up to so many users of a server are looked up one by one in a state.
const USERS_LOOKED_UP_MAX: usize = 200;
/// How many events are looked at for an answer.
const VISITED_EVENTS_MAX: usize = 2000;

/// The room as a server needs it whose user has just joined.
pub struct JoinState {
    /// The state before the join; without most memberships if that was asked for.
    pub state: Vec<EventKey>,
    /// These events, from the first on: as many as are little, and none if they are many.
    pub state_events: Vec<Pdu>,
    /// Every event that the state rests on, the state's own among them where others rest on them.
    pub auth_chain: Vec<EventKey>,
    /// The servers in the room, the joining one among them.
    pub servers: Vec<ServerName>,
}

/// The members that the name of a nameless room is made of.
const HEROES_MAX: i64 = 5;
/// The events at hand among which one that others rest on is looked for.
const EVENTS_LOOKED_THROUGH_MAX: usize = 32;

/// The rows of every event that these events rest on: their auth events, and theirs, each once. The events themselves
/// are in it where others of them rest on them. `beside`: an event that counts as one of them. With the events themselves,
/// from the first on, as far as they are little; of many none is held.
fn auth_chain_keys(
    db: &Db<'_>,
    version: RoomVersion,
    of: &[EventKey],
    beside: Option<&Pdu>,
) -> Result<(Vec<EventKey>, Vec<Pdu>)> {
    let (mut chain, mut cited) = (Vec::new(), Cited::default());
    beside.into_iter().flat_map(Pdu::auth_events).for_each(|id| cited.add(id.as_str()));
    let (mut held, mut held_bytes): (Vec<Pdu>, usize) = (Vec::new(), 0);
    if of.len() > EVENTS_HELD_MAX {
        cited.add_those_of(db, version, of)?;
    } else {
        for key in of {
            let event = db.pdu_by_key(*key)?;
            // Most events of a state cite, in the same places, what the one before them cites.
            let known = held.last().map_or(&[][..], Pdu::auth_events);
            let ids = event.auth_events().iter().enumerate();
            ids.filter(|(at, id)| known.get(*at) != Some(*id)).for_each(|(_, id)| cited.add(id.as_str()));
            if held_bytes < BYTES_HELD_MAX {
                held_bytes += event.json().len();
                held.push(event);
            }
        }
    }
    while let Some(id) = cited.unread.pop() {
        // What is cited most comes first in a state.
        let mut at_hand = held.iter().zip(of).take(EVENTS_LOOKED_THROUGH_MAX);
        let key = match at_hand.find(|(event, _)| event.event_id().as_str() == &*id) {
            Some((_, key)) => Some(*key),
            None => EventId::parse(&id).ok().map(|id| db.event_key(&id)).transpose()?.flatten(),
        };
        let Some(key) = key else { continue };
        chain.push(key);
        match of.len() > EVENTS_HELD_MAX {
            true => cited.add_those_of(db, version, &[key])?,
            false => db.pdu_by_key(key)?.auth_events().iter().for_each(|id| cited.add(id.as_str())),
        }
    }
    Ok((chain, held))
}

/// The ids of events that others rest on, each once.
#[derive(Default)]
struct Cited {
    all: HashSet<Box<str>>,
    /// Those of which it is not known yet what they rest on.
    unread: Vec<Box<str>>,
}

impl Cited {
    fn add(&mut self, id: &str) {
        if !self.all.contains(id) {
            self.all.insert(id.into());
            self.unread.push(id.into());
        }
    }

    /// What these events rest on, none of which is held.
    fn add_those_of(&mut self, db: &Db<'_>, version: RoomVersion, keys: &[EventKey]) -> Result<()> {
        db.each_event(keys.iter().copied(), |row| {
            let cited = unchecked_event::auth_events(row.json, version).unwrap_or_default();
            cited.iter().for_each(|id| self.add(id));
            Ok(())
        })
    }
}

/// The ids of events as a JSON array.
fn push_ids(out: &mut Vec<u8>, db: &Db<'_>, events: &[EventKey]) -> Result<()> {
    out.push(b'[');
    for (index, key) in events.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        serde_json::to_writer(&mut *out, &db.event_id(*key)?).map_err(Error::internal)?;
    }
    out.push(b']');
    Ok(())
}

/// Every event that these events rest on: their auth events, and theirs, each once. The events themselves are in it
/// where others of them rest on them.
pub(in crate::service) fn auth_chain<'p>(
    db: &Db<'_>,
    of: impl IntoIterator<Item = &'p Pdu>,
) -> Result<Vec<Pdu>> {
    let (mut seen, mut chain) = (HashSet::new(), Vec::new());
    let mut next: Vec<EventId> = Vec::new();
    // Most of what a state rests on is in it.
    let mut at_hand: HashMap<&EventId, &Pdu> = HashMap::new();
    for pdu in of {
        next.extend(pdu.auth_events().iter().filter(|id| seen.insert((*id).clone())).cloned());
        at_hand.insert(pdu.event_id(), pdu);
    }
    while let Some(id) = next.pop() {
        let pdu = match at_hand.get(&id) {
            Some(pdu) => Some((*pdu).clone()),
            None => db.pdu(&id)?,
        };
        let Some(pdu) = pdu else { continue };
        next.extend(pdu.auth_events().iter().filter(|id| seen.insert((*id).clone())).cloned());
        chain.push(pdu);
    }
    Ok(chain)
}

/// An event of the room with a place in its graph. Errors: 404 `M_NOT_FOUND`.
fn event_in(db: &Db<'_>, room: &Room, id: &EventId) -> Result<StoredEvent> {
    let event = db.event(id)?.filter(|event| event.room == room.key && !event.is_outlier());
    event.ok_or_else(|| Error::not_found(format!("Could not find event {id}")))
}

/// The answer to `send_join`: the state before the join, and everything that it and the join rest on. Without
/// memberships, if they are to be omitted, but for those of the users that a nameless room is named after.
pub(in crate::service) fn state_for_join(
    db: &Db<'_>,
    room: &Room,
    join: &Pdu,
    omit_members: bool,
) -> Result<JoinState> {
    let snapshot = db.state_before(room.key, join.event_id())?;
    let snapshot = snapshot.ok_or_else(|| Error::internal("an event without a state"))?;
    let mut state = match omit_members {
        true => db.state_events_but_members_at(snapshot)?,
        false => db.state_events_at(snapshot)?,
    };
    if omit_members && !has_name(db, snapshot)? {
        for hero in db.heroes(room.key, join.sender(), false, HEROES_MAX)? {
            if let Some(tuple_id) = db.state_tuple_id("m.room.member", hero.as_str())? {
                state.extend(db.state_row_at(snapshot, tuple_id)?);
            }
        }
    }
    let (auth_chain, state_events) = auth_chain_keys(db, room.version, &state, Some(join))?;
    Ok(JoinState { state, state_events, auth_chain, servers: db.resident_servers(room.key)? })
}

/// Whether a room had a name or an alias to call it by.
fn has_name(db: &Db<'_>, state: SnapshotId) -> Result<bool> {
    for (event_type, field) in [("m.room.name", "name"), ("m.room.canonical_alias", "alias")] {
        let event = db.state_event_in(state, event_type, "")?;
        if event.and_then(|event| event.content_str(field)).is_some_and(|text| !text.is_empty()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The room, for a server that is in it and that its access list lets in. Errors: 404 `M_NOT_FOUND`, 403 `M_FORBIDDEN`.
fn room_for(db: &Db<'_>, origin: &ServerName, room_id: &RoomId) -> Result<Room> {
    let room = db.resident_room(room_id)?;
    let room = room.ok_or_else(not_resident)?;
    RoomAcl::of(db, &room)?.check(origin)?;
    if !db.is_resident(room.key, origin)? {
        return Err(Error::forbidden("Your server is not in the room"));
    }
    Ok(room)
}

/// What one server may read, each state looked at once.
struct ServerView<'a> {
    db: &'a Db<'a>,
    server: &'a ServerName,
    /// What of the events of erased users in the room is not for it.
    erasure: Erasure<'a>,
    states: HashMap<SnapshotId, bool>,
    /// The tuples of the server's users in the room that is looked at, once they are needed.
    users: Option<(RoomKey, HashSet<StateTupleId>)>,
}

impl<'a> ServerView<'a> {
    /// The eyes of a server in a room.
    fn new(db: &'a Db<'a>, room: &Room, server: &'a ServerName) -> Self {
        let erasure = Erasure::for_server(db, room.key, server);
        Self { db, server, erasure, states: HashMap::new(), users: None }
    }

    /// The event as the server may have it: in its redacted form if none of its users may see it, or it came after its
    /// sender was erased, so that it still has its place in the graph.
    fn shown(&mut self, event: StoredEvent) -> Result<Pdu> {
        let shown = (self.may_see(&event)? || self.has_anyway(&event)?) && !self.erasure.hides(&event)?;
        Ok(if shown { event.pdu } else { event.pdu.redacted()? })
    }

    /// Whether a user of the server may see the event, by the state before it or after it: one of them is enough for
    /// the event that brings them in, and the one that changes the rule.
    fn may_see(&mut self, event: &StoredEvent) -> Result<bool> {
        for state in [event.state_before, event.state_after].into_iter().flatten() {
            if self.sees(event.room, state)? {
                return Ok(true);
            }
        }
        // State that came with the room: whoever is in the room has it.
        Ok(event.is_outlier())
    }

    /// Whether the server needs the event whole whatever its users may see: the current state is what everybody joins
    /// with, and the keys of a third-party invite authorise others, which redaction would take away.
    fn has_anyway(&self, event: &StoredEvent) -> Result<bool> {
        let Some(state_key) = event.pdu.state_key() else { return Ok(false) };
        let event_type = event.pdu.event_type();
        Ok(event_type == "m.room.third_party_invite"
            || self.db.state_event_key(event.room, event_type, state_key)? == Some(event.key))
    }

    fn sees(&mut self, room: RoomKey, state: SnapshotId) -> Result<bool> {
        if let Some(known) = self.states.get(&state) {
            return Ok(*known);
        }
        let setting = self.db.state_event_in(state, "m.room.history_visibility", "")?;
        let visibility = HistoryVisibility::from_content(setting.map(|event| event.content()).as_ref());
        let sees = match visibility {
            HistoryVisibility::WorldReadable | HistoryVisibility::Shared => true,
            HistoryVisibility::Invited | HistoryVisibility::Joined => {
                let (joined, invited) = self.members_at(room, state)?;
                server_may_see(visibility, joined, invited)
            }
        };
        self.states.insert(state, sees);
        Ok(sees)
    }

    /// Whether the server had a joined user in a state, and whether an invited one.
    fn members_at(&mut self, room: RoomKey, state: SnapshotId) -> Result<(bool, bool)> {
        if self.users.as_ref().is_none_or(|(of, _)| *of != room) {
            self.users = Some((room, self.db.member_tuples_of_server(room, self.server)?));
        }
        let Some((_, users)) = &self.users else { return Ok((false, false)) };
        // A few are looked up; for many the whole state is put together, which costs more the larger the room is.
        let members: Vec<EventKey> = match users.len() <= USERS_LOOKED_UP_MAX {
            true => {
                let found = users.iter().map(|tuple_id| self.db.state_row_at(state, *tuple_id));
                found.filter_map(Result::transpose).collect::<Result<_>>()?
            }
            false => {
                let all = self.db.state_rows_at(state)?;
                all.into_iter().filter(|(tuple_id, _)| users.contains(tuple_id)).map(|(_, key)| key).collect()
            }
        };
        let mut invited = false;
        for key in members {
            match self.db.pdu_by_key(key)?.membership() {
                Some(Membership::Join) => return Ok((true, invited)),
                Some(Membership::Invite) => invited = true,
                _ => {}
            }
        }
        Ok((false, invited))
    }
}

/// Whether a server may have an event whole.
pub(super) fn may_be_shown_to(
    db: &Db<'_>,
    room: &Room,
    server: &ServerName,
    event: &StoredEvent,
) -> Result<bool> {
    let mut view = ServerView::new(db, room, server);
    Ok(view.may_see(event)? && !view.erasure.hides(event)?)
}

/// The rows of a room's state before an event, and of what it rests on.
fn state_keys(db: &Db<'_>, room: &Room, at: &EventId) -> Result<(Vec<EventKey>, Vec<EventKey>)> {
    let event = event_in(db, room, at)?;
    let snapshot = event.state_before.ok_or_else(|| Error::internal("an event without a state"))?;
    let state = db.state_events_at(snapshot)?;
    let (auth_chain, _) = auth_chain_keys(db, room.version, &state, None)?;
    Ok((state, auth_chain))
}

impl Events<'_> {
    /// [`state_for_join`], of a room as it is now.
    pub fn state_for_join(&self, room: &Room, join: &Pdu, omit_members: bool) -> Result<JoinState> {
        self.store.read(|db| state_for_join(db, room, join, omit_members))
    }

    /// `GET /event`. Errors: 404 `M_NOT_FOUND`, 403 `M_FORBIDDEN`.
    pub fn event_for_peer(&self, origin: &ServerName, id: &EventId) -> Result<Pdu> {
        self.store.read(|db| {
            let event = db.event(id)?.filter(|event| event.status != Status::Rejected);
            let event = event.ok_or_else(|| Error::not_found(format!("Could not find event {id}")))?;
            let room = room_for(db, origin, event.pdu.room_id())?;
            ServerView::new(db, &room, origin).shown(event)
        })
    }

    /// `GET /state`: the answer's JSON. Errors: 404 `M_NOT_FOUND`, 403 `M_FORBIDDEN`.
    pub fn state_for_peer(&self, origin: &ServerName, room_id: &RoomId, at: &EventId) -> Result<LargeAnswer> {
        self.store.read(|db| {
            let room = room_for(db, origin, room_id)?;
            let erasure = Erasure::for_server(db, room.key, origin);
            let (state, auth_chain) = state_keys(db, &room, at)?;
            let mut answer = LargeAnswer::default();
            answer.text("{\"auth_chain\":");
            let redacted = erasure.redacted_among(&auth_chain)?;
            answer.events(db, &auth_chain, redacted)?;
            answer.text(",\"pdus\":");
            let redacted = erasure.redacted_among(&state)?;
            answer.events(db, &state, redacted)?;
            answer.text("}");
            Ok(answer)
        })
    }

    /// `GET /state_ids`: the answer's JSON. Errors: 404 `M_NOT_FOUND`, 403 `M_FORBIDDEN`.
    pub fn state_ids_for_peer(&self, origin: &ServerName, room_id: &RoomId, at: &EventId) -> Result<Vec<u8>> {
        self.store.read(|db| {
            let (state, auth_chain) = state_keys(db, &room_for(db, origin, room_id)?, at)?;
            let mut body = b"{\"auth_chain_ids\":".to_vec();
            push_ids(&mut body, db, &auth_chain)?;
            body.extend_from_slice(b",\"pdu_ids\":");
            push_ids(&mut body, db, &state)?;
            body.push(b'}');
            Ok(body)
        })
    }

    /// `GET /event_auth`: every event that an event rests on. Errors: 404 `M_NOT_FOUND`, 403 `M_FORBIDDEN`.
    pub fn auth_chain_for_peer(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        id: &EventId,
    ) -> Result<Vec<Pdu>> {
        self.store.read(|db| {
            let room = room_for(db, origin, room_id)?;
            let event = db.event(id)?.filter(|event| event.room == room.key);
            let event = event.ok_or_else(|| Error::not_found(format!("Could not find event {id}")))?;
            let erasure = Erasure::for_server(db, room.key, origin);
            let shown = |pdu: Pdu| -> Result<Pdu> {
                if erasure.erased_at(pdu.sender().as_str())?.is_none() {
                    return Ok(pdu);
                }
                let stored = db.event(pdu.event_id())?;
                let hidden = stored.map(|event| erasure.hides(&event)).transpose()?;
                if hidden == Some(true) { pdu.redacted() } else { Ok(pdu) }
            };
            auth_chain(db, [&event.pdu])?.into_iter().map(shown).collect()
        })
    }

    /// `GET /backfill`: the named events and those before them, newest first, at most `limit`. Errors: 404
    /// `M_NOT_FOUND`, 403 `M_FORBIDDEN`, 400 `M_INVALID_PARAM`.
    pub fn backfill_for_peer(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        from: &[EventId],
        limit: usize,
    ) -> Result<Vec<Pdu>> {
        self.walk_back(origin, room_id, &BackwardWalk { from, not: &[], least_depth: i64::MIN, limit })
    }

    /// `POST /get_missing_events`: the events that lead from `earliest` to `latest`, oldest first, neither of them
    /// among them. Errors: 404 `M_NOT_FOUND`, 403 `M_FORBIDDEN`, 400 `M_INVALID_PARAM`.
    pub fn missing_events_for_peer(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        (earliest, latest): (&[EventId], &[EventId]),
        least_depth: i64,
        limit: usize,
    ) -> Result<Vec<Pdu>> {
        let named = latest.len();
        let limit = limit.min(ANSWER_EVENTS_MAX).saturating_add(named);
        let mut events = self.walk_back(
            origin,
            room_id,
            &BackwardWalk { from: latest, not: earliest, least_depth, limit },
        )?;
        events.retain(|event| !latest.contains(event.event_id()));
        events.truncate(limit - named);
        events.reverse();
        Ok(events)
    }

    /// `GET /timestamp_to_event`: the event nearest to a time that the server may see, and its own time. Errors: 404
    /// `M_NOT_FOUND`, 403 `M_FORBIDDEN`.
    pub fn event_near_for_peer(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        when: TimestampQuery,
    ) -> Result<(EventId, i64)> {
        let found = self.store.read(|db| {
            let room = room_for(db, origin, room_id)?;
            let mut view = ServerView::new(db, &room, origin);
            nearest_event(db, &room, when, |event| view.may_see(event))
        })?;
        found
            .map(|event| (event.pdu.event_id().clone(), event.pdu.origin_server_ts()))
            .ok_or_else(|| when.nothing())
    }

    fn walk_back(&self, origin: &ServerName, room_id: &RoomId, walk: &BackwardWalk<'_>) -> Result<Vec<Pdu>> {
        if walk.from.len() > NAMED_EVENTS_MAX || walk.not.len() > 10 * NAMED_EVENTS_MAX {
            return Err(Error::invalid_param("Too many events are named"));
        }
        self.store.read(|db| {
            let room = room_for(db, origin, room_id)?;
            walk.run(db, &room, &mut ServerView::new(db, &room, origin))
        })
    }
}

/// A walk from events to those before them, the deepest first, so that what is near comes before what is far.
struct BackwardWalk<'a> {
    from: &'a [EventId],
    not: &'a [EventId],
    least_depth: i64,
    limit: usize,
}

impl BackwardWalk<'_> {
    fn run(&self, db: &Db<'_>, room: &Room, view: &mut ServerView<'_>) -> Result<Vec<Pdu>> {
        let mut seen: HashSet<EventId> = self.not.iter().cloned().collect();
        let mut next: BinaryHeap<(i64, i64)> = BinaryHeap::new();
        let mut queue = |db: &Db<'_>, id: &EventId, next: &mut BinaryHeap<(i64, i64)>| -> Result<()> {
            if seen.len() < VISITED_EVENTS_MAX + self.not.len()
                && seen.insert(id.clone())
                && let Some(key) = db.event_key(id)?
            {
                next.push((db.event_by_key(key)?.pdu.depth(), key));
            }
            Ok(())
        };
        for id in self.from {
            queue(db, id, &mut next)?;
        }
        let mut found = Vec::new();
        while let Some((depth, key)) = next.pop() {
            let event = db.event_by_key(key)?;
            // Outliers have no place in the graph that we could lead on from.
            if found.len() >= self.limit.min(ANSWER_EVENTS_MAX * 2)
                || event.room != room.key
                || event.is_outlier()
            {
                continue;
            }
            for id in event.pdu.prev_events() {
                queue(db, id, &mut next)?;
            }
            if depth >= self.least_depth && event.status != Status::Rejected {
                found.push(view.shown(event)?);
            }
        }
        Ok(found)
    }
}
