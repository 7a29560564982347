//! The state of rooms by type and state key: now, at an event, and at a position of the stream.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use rusqlite::{OptionalExtension, params};

use crate::error::{Error, Result};
use crate::protocol::pdu::Membership;
use crate::protocol::state_res::{StateMap, StateTuple};
use crate::protocol::{EventId, Pdu, UserId};
use crate::store::rooms::memberships::MembershipChange;
use crate::store::rooms::snapshots::{Delta, LAST_OTHER_TUPLE_ID};
use crate::store::{Db, EventKey, RoomKey, SnapshotId, StateTupleId, Tx};

/// A difference between two states by names and ids.
pub type NamedDelta = BTreeMap<StateTuple, Option<EventId>>;

/// A room state: a snapshot, or what resolving several came to, as a difference to one of them.
#[derive(Debug, Clone)]
pub struct StateRef {
    /// The snapshot it is, or differs from.
    pub base: SnapshotId,
    /// How it differs.
    pub change: NamedDelta,
}

impl StateRef {
    /// A state that is a snapshot.
    pub fn snapshot(base: SnapshotId) -> Self {
        Self { base, change: NamedDelta::new() }
    }
}

/// A change of a room's current state under one type and state key over a range of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateChange {
    /// The event type.
    pub event_type: String,
    /// The state key.
    pub state_key: String,
    /// The event at the start of the range.
    pub before: Option<EventKey>,
    /// The event at its end. The same: it was redacted in between.
    pub after: Option<EventKey>,
}

const MEMBER: &str = "m.room.member";
/// How many types [`Db::foresee_state`] asks for at most.
const FORESEEN_TYPES_MAX: usize = 10;
/// A room, an event type, and the event that the room's current state has of it under an empty state key.
pub(in crate::store) type ForeseenState = (RoomKey, &'static str, Option<EventKey>);

impl Db<'_> {
    /// The number of a (type, state key) tuple, if any state event ever had it.
    pub fn state_tuple_id(&self, event_type: &str, state_key: &str) -> Result<Option<StateTupleId>> {
        if let Some(known) = self.recall(|cache| cache.events.state_tuple_id(event_type, state_key)) {
            return Ok(known);
        }
        let known = self.epoch.and_then(|_| self.shared.tuple_ids.get(event_type, state_key));
        if known.is_some() {
            return Ok(known);
        }
        let mut statement = self
            .conn()
            .prepare_cached("SELECT tuple_id FROM state_tuples WHERE type = ?1 AND state_key = ?2")?;
        let tuple_id = statement.query_row([event_type, state_key], |r| r.get(0)).optional()?;
        self.remember(|cache| match tuple_id {
            Some(tuple_id) => cache.events.keep_state_tuple(tuple_id, event_type, state_key),
            None => cache.events.keep_absent_tuple(event_type, state_key),
        });
        if let Some(tuple_id) = tuple_id.filter(|_| self.epoch.is_some()) {
            self.shared.tuple_ids.keep(event_type, state_key, tuple_id);
        }
        Ok(tuple_id)
    }

    /// The type and state key that have this number.
    pub fn state_tuple(&self, tuple_id: StateTupleId) -> Result<StateTuple> {
        if let Some(name) = self.recall(|cache| cache.events.state_tuple(tuple_id)) {
            return Ok(name);
        }
        let mut statement =
            self.conn().prepare_cached("SELECT type, state_key FROM state_tuples WHERE tuple_id = ?1")?;
        let name: StateTuple = statement.query_row([tuple_id], |r| Ok((r.get(0)?, r.get(1)?)))?;
        self.remember(|cache| cache.events.keep_state_tuple(tuple_id, &name.0, &name.1));
        Ok(name)
    }

    /// The row of the event in the room's current state.
    pub fn state_event_key(
        &self,
        room: RoomKey,
        event_type: &str,
        state_key: &str,
    ) -> Result<Option<EventKey>> {
        let known = self.recall(|cache| cache.state_event_key(room, event_type, state_key));
        if let Some(known) = known.or_else(|| self.foreseen_state(room, event_type, state_key)) {
            return Ok(known);
        }
        let event = match self.state_tuple_id(event_type, state_key)? {
            Some(tuple_id) => self
                .conn()
                .prepare_cached("SELECT event_key FROM current_state WHERE room_key = ?1 AND tuple_id = ?2")?
                .query_row([room, tuple_id], |r| r.get(0))
                .optional()?,
            None => None,
        };
        self.remember(|cache| cache.keep_state_event_key(room, event_type, state_key, event));
        Ok(event)
    }

    /// The event in the room's current state.
    pub fn state_event(&self, room: RoomKey, event_type: &str, state_key: &str) -> Result<Option<Pdu>> {
        self.state_event_key(room, event_type, state_key)?.map(|key| self.pdu_by_key(key)).transpose()
    }

    /// Has a reader look up at once, by one question, what its snapshot has in the room's current state for these types, of
    /// which there are ten at most, and an empty state key: it will be asked for them one by one.
    pub fn foresee_state(&self, room: RoomKey, types: &[&'static str]) -> Result<()> {
        debug_assert!(types.len() <= FORESEEN_TYPES_MAX, "more types than the question has room for");
        if self.epoch.is_none() {
            return Ok(());
        }
        let mut statement = self.conn().prepare_cached(
            // A list for IN would be put into a table of its own each time.
            "SELECT t.column1, c.event_key
             FROM (VALUES (?2), (?3), (?4), (?5), (?6), (?7), (?8), (?9), (?10), (?11)) t
               CROSS JOIN state_tuples s ON s.type = t.column1 AND s.state_key = ''
               CROSS JOIN current_state c ON c.room_key = ?1 AND c.tuple_id = s.tuple_id",
        )?;
        let name = |at: usize| types.get(at).copied();
        let (a, b, c, d, e) = (name(0), name(1), name(2), name(3), name(4));
        let (f, g, h, i, j) = (name(5), name(6), name(7), name(8), name(9));
        let mut rows = statement.query(params![room, a, b, c, d, e, f, g, h, i, j])?;
        let asked = types.iter().take(FORESEEN_TYPES_MAX);
        let mut found: Vec<ForeseenState> = asked.map(|event_type| (room, *event_type, None)).collect();
        while let Some(row) = rows.next()? {
            let event_type = row.get_ref(0)?.as_str().map_err(Error::internal)?;
            for entry in found.iter_mut().filter(|entry| entry.1 == event_type) {
                entry.2 = Some(row.get(1)?);
            }
        }
        self.foreseen.replace(found);
        Ok(())
    }

    /// What was foreseen. The outer `None`: nothing.
    fn foreseen_state(&self, room: RoomKey, event_type: &str, state_key: &str) -> Option<Option<EventKey>> {
        if !state_key.is_empty() {
            return None;
        }
        let foreseen = self.foreseen.borrow();
        foreseen.iter().find(|entry| entry.0 == room && entry.1 == event_type).map(|entry| entry.2)
    }

    /// The state before an event of the room; none for outliers, and for what is not there.
    pub fn state_before(&self, room: RoomKey, event: &EventId) -> Result<Option<SnapshotId>> {
        let mut statement = self
            .conn()
            .prepare_cached("SELECT state_before FROM events WHERE event_id = ?1 AND room_key = ?2")?;
        let found = statement.query_row(params![event.as_str(), room], |row| row.get(0)).optional()?;
        Ok(found.flatten())
    }

    /// The event in a state.
    pub fn state_event_in(
        &self,
        state: SnapshotId,
        event_type: &str,
        state_key: &str,
    ) -> Result<Option<Pdu>> {
        let Some(tuple_id) = self.state_tuple_id(event_type, state_key)? else { return Ok(None) };
        self.state_row_at(state, tuple_id)?.map(|key| self.pdu_by_key(key)).transpose()
    }

    /// The id of the event in a state.
    pub fn state_id_in(
        &self,
        state: SnapshotId,
        event_type: &str,
        state_key: &str,
    ) -> Result<Option<EventId>> {
        let Some(tuple_id) = self.state_tuple_id(event_type, state_key)? else { return Ok(None) };
        self.state_row_at(state, tuple_id)?.map(|key| self.event_id(key)).transpose()
    }

    /// The room's whole current state as rows: type and state key → event.
    pub fn current_state_rows(&self, room: RoomKey) -> Result<BTreeMap<StateTupleId, EventKey>> {
        let rows = self.rows(
            "SELECT tuple_id, event_key FROM current_state WHERE room_key = ?1 ORDER BY tuple_id",
            params![room],
            |r| Ok((r.get(0)?, r.get(1)?)),
        )?;
        Ok(rows.into_iter().collect())
    }

    /// The room's whole current state.
    pub fn current_state(&self, room: RoomKey) -> Result<Vec<Pdu>> {
        self.current_state_rows(room)?.values().map(|key| self.pdu_by_key(*key)).collect()
    }

    /// The rows of the room's current state events of one type, by state key.
    pub fn state_of_type(&self, room: RoomKey, event_type: &str) -> Result<Vec<(String, EventKey)>> {
        self.rows(
            "SELECT s.state_key, c.event_key FROM state_tuples s JOIN current_state c ON c.room_key = ?1 AND c.tuple_id = s.tuple_id
             WHERE s.type = ?2",
            params![room, event_type],
            |r| Ok((r.get(0)?, r.get(1)?)),
        )
    }

    /// A whole state as state resolution wants it.
    pub fn state_map_at(&self, state: SnapshotId) -> Result<StateMap> {
        let rows = self.state_rows_at(state)?;
        let mut types: HashSet<Arc<str>> = HashSet::new();
        let mut map = StateMap::new();
        for (tuple_id, event) in rows {
            let (event_type, state_key) = self.state_tuple(tuple_id)?;
            // One copy of each type.
            types.insert(event_type.clone());
            let event_type = types.get(&event_type).cloned().unwrap_or(event_type);
            map.insert((event_type, state_key), self.event_id(event)?);
        }
        Ok(map)
    }

    /// The event that was in the room's current state as of a stream position.
    pub fn state_event_as_of(
        &self,
        room: RoomKey,
        event_type: &str,
        state_key: &str,
        stream: i64,
    ) -> Result<Option<EventKey>> {
        let Some(tuple_id) = self.state_tuple_id(event_type, state_key)? else { return Ok(None) };
        let mut statement = self.conn().prepare_cached(
            "SELECT previous FROM state_changes WHERE room_key = ?1 AND tuple_id = ?2 AND stream > ?3
             ORDER BY stream LIMIT 1",
        )?;
        match statement.query_row([room, tuple_id, stream], |r| r.get(0)).optional()? {
            Some(previous) => Ok(previous),
            None => self.state_event_key(room, event_type, state_key),
        }
    }

    /// The room's whole current state as of a stream position: type and state key → event.
    pub fn state_rows_as_of(&self, room: RoomKey, stream: i64) -> Result<BTreeMap<StateTupleId, EventKey>> {
        let mut state = self.current_state_rows(room)?;
        let mut statement = self.conn().prepare_cached(
            "SELECT tuple_id, previous FROM state_changes WHERE room_key = ?1 AND stream > ?2 ORDER BY stream DESC",
        )?;
        let mut rows = statement.query([room, stream])?;
        while let Some(row) = rows.next()? {
            match row.get::<_, Option<EventKey>>(1)? {
                Some(previous) => state.insert(row.get(0)?, previous),
                None => state.remove(&row.get(0)?),
            };
        }
        Ok(state)
    }

    /// What changed in the room's current state at positions in `(after, upto]`, one entry for each type and state key. That
    /// an event in it was redacted is a change, too.
    pub fn state_changes_between(&self, room: RoomKey, after: i64, upto: i64) -> Result<Vec<StateChange>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT tuple_id, event_key, previous FROM state_changes
             WHERE room_key = ?1 AND stream > ?2 AND stream <= ?3 ORDER BY stream",
        )?;
        let mut rows = statement.query([room, after, upto])?;
        let mut net: BTreeMap<StateTupleId, (Option<EventKey>, Option<EventKey>)> = BTreeMap::new();
        let (mut order, mut redacted) = (Vec::new(), HashSet::new());
        while let Some(row) = rows.next()? {
            let (tuple_id, event, previous) = (row.get(0)?, row.get(1)?, row.get(2)?);
            net.entry(tuple_id).and_modify(|(_, last)| *last = event).or_insert_with(|| {
                order.push(tuple_id);
                (previous, event)
            });
            if event == previous {
                redacted.extend(event);
            }
        }
        let mut changes = Vec::new();
        for tuple_id in order {
            let Some((before, after)) = net.remove(&tuple_id) else { continue };
            if before != after || after.is_some_and(|after| redacted.contains(&after)) {
                let (event_type, state_key) = self.state_tuple(tuple_id)?;
                let (event_type, state_key) = (event_type.to_string(), state_key.to_string());
                changes.push(StateChange { event_type, state_key, before, after });
            }
        }
        Ok(changes)
    }

    /// How the memberships of a room changed at positions in `(after, upto]`, in their order: where, whose, and the event by
    /// which it is so since.
    pub fn membership_changes_between(
        &self,
        room: RoomKey,
        (after, upto): (i64, i64),
    ) -> Result<Vec<(i64, String, Option<EventKey>)>> {
        let changes: Vec<(i64, StateTupleId, Option<EventKey>)> = self.rows(
            "SELECT stream, tuple_id, event_key FROM state_changes
             WHERE room_key = ?1 AND stream > ?2 AND stream <= ?3 ORDER BY stream",
            params![room, after, upto],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )?;
        let mut found = Vec::new();
        for (stream, tuple_id, event) in changes {
            let (event_type, user) = self.state_tuple(tuple_id)?;
            if &*event_type == MEMBER {
                found.push((stream, user.to_string(), event));
            }
        }
        Ok(found)
    }
}

/// What is known of the numbers of tuples to be given out, for the time of one transaction.
#[derive(Default)]
pub(in crate::store) struct NewStateTuples {
    /// One that no membership has.
    next_member: Option<StateTupleId>,
}

impl Tx<'_> {
    /// The number of a (type, state key) tuple, given out if need be.
    pub(crate) fn make_state_tuple(&mut self, event_type: &str, state_key: &str) -> Result<StateTupleId> {
        if let Some(tuple_id) = self.state_tuple_id(event_type, state_key)? {
            return Ok(tuple_id);
        }
        let known = self.recall(|cache| cache.events.next_member_tuple()).filter(|_| event_type == MEMBER);
        let tuple_id = known.map_or_else(|| self.free_tuple_id(event_type), Ok)?;
        self.execute(
            "INSERT INTO state_tuples (tuple_id, type, state_key) VALUES (?1, ?2, ?3)",
            params![tuple_id, event_type, state_key],
        )?;
        self.remember(|cache| {
            cache.events.keep_state_tuple(tuple_id, event_type, state_key);
            if event_type == MEMBER {
                cache.events.keep_next_member_tuple(Some(tuple_id + 1));
            }
        });
        Ok(tuple_id)
    }

    /// The same for one of many, of which most are memberships of users that we have not heard of.
    pub(in crate::store) fn make_state_tuple_of_many(
        &mut self,
        new: &mut NewStateTuples,
        event_type: &str,
        state_key: &str,
    ) -> Result<StateTupleId> {
        if event_type != MEMBER {
            return self.make_state_tuple(event_type, state_key);
        }
        let tuple_id = match new.next_member {
            Some(tuple_id) => tuple_id,
            None => self.free_tuple_id(event_type)?,
        };
        let insert = "INSERT INTO state_tuples (tuple_id, type, state_key) VALUES (?1, ?2, ?3)
             ON CONFLICT (type, state_key) DO NOTHING";
        let inserted = self.execute(insert, params![tuple_id, event_type, state_key])?;
        self.remember(|cache| {
            cache.events.forget_absent_tuple();
            cache.events.keep_next_member_tuple(None);
        });
        new.next_member = Some(tuple_id + i64::from(inserted == 1));
        if inserted == 1 { Ok(tuple_id) } else { self.make_state_tuple(event_type, state_key) }
    }

    /// The number after the largest so far, which is found at the end of the table, or of its first part.
    fn free_tuple_id(&self, event_type: &str) -> Result<StateTupleId> {
        let next = match event_type == MEMBER {
            true => "SELECT max(coalesce(max(tuple_id), 0), ?1) + 1 FROM state_tuples",
            false => "SELECT coalesce(max(tuple_id), 0) + 1 FROM state_tuples WHERE tuple_id <= ?1",
        };
        Ok(self.conn().prepare_cached(next)?.query_row([LAST_OTHER_TUPLE_ID], |row| row.get(0))?)
    }

    /// Moves the room's current state by a difference, and with it everything that follows the current state. `at` is
    /// the position of the event that brought it about. `history`: whether to keep what was before (not for the state
    /// with which a room first comes to us). Returns those local users whose own membership changed.
    pub(crate) fn move_current_state(
        &mut self,
        room: RoomKey,
        change: &Delta,
        at: i64,
        history: bool,
    ) -> Result<Vec<UserId>> {
        let mut ours = Vec::new();
        for (tuple_id, event) in change {
            let (event_type, state_key) = self.state_tuple(*tuple_id)?;
            let known = self.recall(|cache| cache.state_event_key(room, &event_type, &state_key));
            let previous: Option<EventKey> = match known {
                Some(previous) => previous,
                None => self
                    .conn()
                    .prepare_cached(
                        "SELECT event_key FROM current_state WHERE room_key = ?1 AND tuple_id = ?2",
                    )?
                    .query_row([room, *tuple_id], |r| r.get(0))
                    .optional()?,
            };
            if previous == *event {
                continue;
            }
            match event {
                Some(event) => self.execute(
                    "INSERT OR REPLACE INTO current_state (room_key, tuple_id, event_key) VALUES (?1, ?2, ?3)",
                    params![room, *tuple_id, *event],
                )?,
                None => self.execute(
                    "DELETE FROM current_state WHERE room_key = ?1 AND tuple_id = ?2",
                    params![room, *tuple_id],
                )?,
            };
            if history {
                // Two changes of a tuple at one position (a room imported anew) are one.
                self.execute(
                    "INSERT INTO state_changes (room_key, tuple_id, stream, event_key, previous)
                     VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO UPDATE SET event_key = excluded.event_key",
                    params![room, tuple_id, at, event, previous],
                )?;
            }
            self.remember(|cache| cache.forget_state_event(room, &event_type, &state_key));
            if &*event_type != MEMBER {
                self.front_changed();
            }
            if &*event_type == "m.room.guest_access" && state_key.is_empty() {
                self.guest_access_changed(room, *event)?;
            }
            if &*event_type == "m.room.tombstone"
                && state_key.is_empty()
                && let Some(event) = event
            {
                self.owe_upgrade(*event)?;
            }
            if &*event_type == "m.room.member" {
                // Whom the state did not speak of had no membership.
                let old = match previous {
                    Some(_) => self.stored_membership(room, &state_key)?,
                    None => None,
                };
                let new = match event {
                    Some(event) => {
                        // A member event without a valid membership is in no accepted state; if it were, nobody is a
                        // member by it.
                        self.pdu_by_key(*event)?.membership().map(|membership| (membership, *event))
                    }
                    None => None,
                };
                let change = MembershipChange { user: &state_key, old, new, stream: at };
                if let Some(previous) = previous {
                    self.follow_knock(room, &change, (previous, *tuple_id))?;
                }
                self.owe_to_who_waited(room, &change, previous)?;
                let (was, is_now) = (change.old, change.new.map(|(membership, _)| membership));
                if self.change_membership(room, &change)?
                    && let Ok(user) = UserId::parse(&state_key)
                {
                    if let (Some(Membership::Join), None, Some(join)) = (was, is_now, previous) {
                        self.rejoin_if_out(room, join)?;
                    }
                    ours.push(user);
                }
            }
        }
        Ok(ours)
    }

    /// An event was redacted: if it is in the room's current state, that is another one now to whoever has it from there, also
    /// if they are not told of the redaction.
    pub(crate) fn note_redacted_state(&mut self, room: RoomKey, event: EventKey, pdu: &Pdu) -> Result<()> {
        let Some(state_key) = pdu.state_key() else { return Ok(()) };
        if self.state_event_key(room, pdu.event_type(), state_key)? != Some(event) {
            return Ok(());
        }
        let tuple_id = self.make_state_tuple(pdu.event_type(), state_key)?;
        let at = self.next_stream();
        self.execute(
            "INSERT INTO state_changes (room_key, tuple_id, stream, event_key, previous) VALUES (?1, ?2, ?3, ?4, ?4)",
            params![room, tuple_id, at, event],
        )?;
        self.note_activity(room, at, None)?;
        self.room_changed(room)
    }

    /// A difference given by names and ids, as row ids. All its events must be stored.
    pub(crate) fn delta_of(&mut self, named: &NamedDelta) -> Result<Delta> {
        let mut delta = Delta::new();
        for ((event_type, state_key), event) in named {
            let tuple_id = self.make_state_tuple(event_type, state_key)?;
            let key = match event {
                Some(id) => Some(
                    self.event_key(id)?
                        .ok_or_else(|| Error::internal(format!("no event {id} for a state")))?,
                ),
                None => None,
            };
            delta.insert(tuple_id, key);
        }
        Ok(delta)
    }
}
