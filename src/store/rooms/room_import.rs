//! A room that comes to us with its state: entered in one transaction, with all of its events. What is too large to be
//! kept in memory until then lies in a table of its own, a few hundred events at a time, where it is nobody's: what another
//! server shows us of a room counts for nothing before the room is entered, and never if it is not.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};

use rusqlite::{OptionalExtension, params};

use crate::error::{Error, Result};
use crate::protocol::ids::server_of;
use crate::protocol::pdu::Membership;
use crate::protocol::room_version::EventIdFormat;
use crate::protocol::signatures::verify::Proof;
use crate::protocol::{EventId, Pdu, RoomVersion, UserId, VerifiedPdu};
use crate::store::rooms::snapshots::Delta;
use crate::store::rooms::state::NewStateTuples;
use crate::store::{Db, EventKey, RoomKey, SnapshotId, StateTupleId, Status, Tx};

/// The numbers of an import's events begin with its own, before so many bits.
const EVENT_BITS: u32 = 24;
/// So many staged events are looked at at once.
const STAGED_AT_ONCE: i64 = 1000;
/// No two imports of this process have the same number, nor one of before whose events are still here.
static LAST_IMPORT: AtomicI64 = AtomicI64::new(0);

/// The events of an import that were stored so far, by their numbers: from the first up to before the last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StagedEvents {
    first: i64,
    end: i64,
}

impl StagedEvents {
    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.first == self.end
    }

    /// The number of the first of them.
    pub fn first(self) -> i64 {
        self.first
    }

    /// Those before the one of this number.
    pub fn before(self, number: i64) -> Self {
        Self { end: self.end.min(number).max(self.first), ..self }
    }
}

/// An event of the state that a room will have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportedState {
    /// What it is the state of.
    tuple_id: StateTupleId,
    /// Its row.
    event: EventKey,
    /// Of a membership, whose and which.
    member: Option<(Box<str>, Membership)>,
}

/// What is read of a staged event of the state.
struct StagedRow {
    number: i64,
    event_type: String,
    state_key: Option<String>,
    membership: Option<String>,
}

impl Db<'_> {
    /// What is stored of imports, of all of them.
    pub fn all_staged_events(&self) -> Result<StagedEvents> {
        let mut ends = self.conn().prepare_cached(
            "SELECT coalesce((SELECT min(number) FROM staged_events), 0),
                    coalesce((SELECT max(number) FROM staged_events) + 1, 0)",
        )?;
        Ok(ends.query_row([], |row| Ok(StagedEvents { first: row.get(0)?, end: row.get(1)? }))?)
    }

    /// The create event among the staged events of a state.
    pub(in crate::store) fn staged_create_event(&self, staged: StagedEvents) -> Result<Option<EventId>> {
        let mut create = self.conn().prepare_cached(
            "SELECT event_id FROM staged_events
             WHERE number >= ?1 AND number < ?2 AND type = 'm.room.create' AND state_key = '' AND in_state = 1
             LIMIT 1",
        )?;
        let id = create.query_row([staged.first, staged.end], |row| row.get::<_, String>(0)).optional()?;
        id.map(|id| EventId::parse(&id)).transpose()
    }

    /// Tells of the ids of staged events, one after the other.
    pub(in crate::store) fn each_staged_id(
        &self,
        staged: StagedEvents,
        mut tell: impl FnMut(&str),
    ) -> Result<()> {
        let mut ids = self
            .conn()
            .prepare_cached("SELECT event_id FROM staged_events WHERE number >= ?1 AND number < ?2")?;
        let mut rows = ids.query([staged.first, staged.end])?;
        while let Some(row) = rows.next()? {
            tell(row.get_ref(0)?.as_str().map_err(Error::internal)?);
        }
        Ok(())
    }

    fn staged_rows(&self, from: i64, end: i64) -> Result<Vec<StagedRow>> {
        self.rows(
            "SELECT number, type, state_key, membership FROM staged_events
             WHERE number >= ?1 AND number < ?2 AND in_state = 1 ORDER BY number",
            params![from, end],
            |row| {
                Ok(StagedRow {
                    number: row.get(0)?,
                    event_type: row.get(1)?,
                    state_key: row.get(2)?,
                    membership: row.get(3)?,
                })
            },
        )
    }

    fn staged_pdu(&self, number: i64, version: RoomVersion) -> Result<VerifiedPdu> {
        let mut statement =
            self.conn().prepare_cached("SELECT event_id, json FROM staged_events WHERE number = ?1")?;
        let (id, json) =
            statement.query_row([number], |row| Ok((row.get::<_, String>(0)?, row.get::<_, Vec<u8>>(1)?)))?;
        Ok(VerifiedPdu::from_store(Pdu::trusted(EventId::parse(&id)?, json, version)?))
    }
}

impl Tx<'_> {
    /// Stores more events of a room that is being imported, beside those that were before: nobody else finds them. Those that
    /// are part of the state come with `true`.
    pub fn stage_events(
        &mut self,
        before: StagedEvents,
        events: &[(VerifiedPdu, bool)],
    ) -> Result<StagedEvents> {
        let mut staged = before;
        if staged.is_empty() {
            let last = "SELECT coalesce(max(number) >> ?1, 0) FROM staged_events";
            let last = self.conn().prepare_cached(last)?.query_row([EVENT_BITS], |row| row.get(0))?;
            LAST_IMPORT.fetch_max(last, Ordering::Relaxed);
            let first = (LAST_IMPORT.fetch_add(1, Ordering::Relaxed) + 1) << EVENT_BITS;
            staged = StagedEvents { first, end: first };
        }
        let insert = "INSERT INTO staged_events (number, event_id, type, state_key, membership, in_state, vouched, depth,
             origin_server_ts, json) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
        for (pdu, in_state) in events {
            if staged.end - staged.first >= 1 << EVENT_BITS {
                return Err(Error::bad_gateway("The room has more events than anybody could have"));
            }
            self.execute(
                insert,
                params![
                    staged.end,
                    pdu.event_id().as_str(),
                    pdu.event_type(),
                    pdu.state_key(),
                    pdu.membership().map(Membership::as_str),
                    in_state,
                    pdu.proof() == Proof::Vouched,
                    pdu.depth(),
                    pdu.origin_server_ts(),
                    pdu.json(),
                ],
            )?;
            staged.end += 1;
        }
        Ok(staged)
    }

    /// Deletes so many staged events at most. Whether none is left.
    pub fn delete_staged_events(&mut self, staged: StagedEvents, most: usize) -> Result<bool> {
        let gone = self.execute(
            "DELETE FROM staged_events WHERE number IN
             (SELECT number FROM staged_events WHERE number >= ?1 AND number < ?2 LIMIT ?3)",
            params![staged.first, staged.end, most as i64],
        )?;
        Ok(gone < most)
    }

    /// Puts the events of an import into their room, as ones that are only referred to: those that were staged, and those at
    /// hand. All of them are allowed by what the room rests on: what we had rejected of the state the room has all the same.
    /// To others that we have nothing happens. Gives those of the state. In room versions 1 and 2, where a server chooses the
    /// ids of its events, one whose id another event has is left out.
    pub fn import_events(
        &mut self,
        room: RoomKey,
        staged: StagedEvents,
        held: &[(VerifiedPdu, bool)],
    ) -> Result<Vec<ImportedState>> {
        let (mut state, mut new) = (Vec::new(), NewStateTuples::default());
        let (from_number, known) = self.import_staged_events(room, staged)?;
        let mut from = staged.first;
        while from < staged.end {
            let end = staged.end.min(from + STAGED_AT_ONCE);
            for row in self.staged_rows(from, end)? {
                let event = known.get(&row.number).copied().unwrap_or(Some(from_number + row.number));
                let (Some(event), Some(state_key)) = (event, &row.state_key) else { continue };
                let tuple_id = self.make_state_tuple_of_many(&mut new, &row.event_type, state_key)?;
                let membership = row.membership.as_deref().and_then(Membership::parse);
                let member = membership.map(|membership| (state_key.as_str().into(), membership));
                state.push(ImportedState { tuple_id, event, member });
            }
            from = end;
        }
        for (pdu, in_state) in held {
            let event = match self.insert_outlier_unless_known(room, pdu, Status::Accepted)? {
                Some(event) => Some(event),
                None => self.import_known_event(room, pdu, pdu.proof())?,
            };
            if let (Some(event), true, Some(state_key)) = (event, in_state, pdu.state_key()) {
                let tuple_id = self.make_state_tuple_of_many(&mut new, pdu.event_type(), state_key)?;
                let member = pdu.membership().map(|membership| (state_key.into(), membership));
                state.push(ImportedState { tuple_id, event, member });
            }
        }
        Ok(state)
    }

    /// Puts staged events into their room, all at once: the row of each is what is given here and its number. Beside that,
    /// by their numbers, the rows of those that we have already; none if that is another event.
    fn import_staged_events(
        &mut self,
        room: RoomKey,
        staged: StagedEvents,
    ) -> Result<(EventKey, HashMap<i64, Option<EventKey>>)> {
        let mut known = HashMap::new();
        if staged.is_empty() {
            return Ok((0, known));
        }
        let next =
            "SELECT max(event_key, coalesce((SELECT max(event_key) FROM events), 0)) + 1 FROM retired_keys";
        let next: EventKey = self.conn().prepare_cached(next)?.query_row([], |row| row.get(0))?;
        let from_number = next - staged.first;
        let inserted = self.execute(
            "INSERT INTO events (event_key, room_key, event_id, depth, origin_server_ts, status, json)
             SELECT ?1 + number, ?2, event_id, depth, origin_server_ts, 0, json FROM staged_events
             WHERE number >= ?3 AND number < ?4 ON CONFLICT (event_id) DO NOTHING",
            params![from_number, room, staged.first, staged.end],
        )?;
        // Those that we had are in other rows.
        self.execute(
            "INSERT INTO vouched_events (room_key, event_key)
             SELECT ?2, e.event_key FROM staged_events s CROSS JOIN events e ON e.event_key = ?1 + s.number
             WHERE s.number >= ?3 AND s.number < ?4 AND s.vouched = 1 ON CONFLICT DO NOTHING",
            params![from_number, room, staged.first, staged.end],
        )?;
        if i64::try_from(inserted).is_ok_and(|inserted| inserted == staged.end - staged.first) {
            return Ok((from_number, known));
        }
        let there: Vec<(i64, bool)> = self.rows(
            "SELECT s.number, s.vouched FROM staged_events s CROSS JOIN events e ON e.event_id = s.event_id
             WHERE s.number >= ?2 AND s.number < ?3 AND e.event_key <> ?1 + s.number",
            params![from_number, staged.first, staged.end],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        let version = self.room_by_key(room)?.version;
        for (number, vouched) in there {
            let pdu = self.staged_pdu(number, version)?;
            let proof = if vouched { Proof::Vouched } else { Proof::Certain };
            known.insert(number, self.import_known_event(room, &pdu, proof)?);
        }
        Ok((from_number, known))
    }

    /// An event of an import that we have already, if it is that one.
    fn import_known_event(
        &mut self,
        room: RoomKey,
        pdu: &VerifiedPdu,
        proof: Proof,
    ) -> Result<Option<EventKey>> {
        let known = self
            .conn()
            .prepare_cached("SELECT event_key, room_key, status = 2 FROM events WHERE event_id = ?1")?
            .query_row([pdu.event_id().as_str()], |row| {
                Ok((row.get(0)?, row.get::<_, RoomKey>(1)?, row.get(2)?))
            })
            .optional()?;
        let Some((event, in_room, was_rejected)) = known else {
            return Err(Error::internal("an event went missing"));
        };
        let is_same = in_room == room
            && (pdu.version().event_id_format != EventIdFormat::InEvent || {
                let hash = |pdu: &Pdu| pdu.canonical().reference_hash(pdu.version());
                hash(pdu) == hash(&self.pdu_by_key(event)?)
            });
        if !is_same {
            log::warn!("{} is another event's id: left out", pdu.event_id());
            return Ok(None);
        }
        self.note_proof_of_known(room, event, proof)?;
        self.complete_event(pdu)?;
        // Others rest on no message: one that comes along was put there to be believed.
        if was_rejected && pdu.is_state() {
            self.accept_after_all(event, pdu.event_id())?;
        }
        Ok(Some(event))
    }

    /// Makes this the room's state, as of a stream position, and everything that follows the current state with it. A
    /// room that we have been in before changes by the difference, so that those local users who were there see it as
    /// that. Errors: 502 if two events are for one type and state key.
    pub fn import_state(
        &mut self,
        room: RoomKey,
        mut state: Vec<ImportedState>,
        at: i64,
    ) -> Result<SnapshotId> {
        state.sort_unstable_by_key(|row| (row.tuple_id, row.event));
        state.dedup();
        if state.windows(2).any(|pair| pair[0].tuple_id == pair[1].tuple_id) {
            return Err(Error::bad_gateway("The room's state has two events of one type and state key"));
        }
        let snapshot = match self.room_by_key(room)?.state {
            None => {
                let size = state.len();
                self.import_new_state(room, state, at)?;
                self.root_snapshot_of_current(room, size)?
            }
            Some(old) => {
                let change = difference(&self.db, room, &state)?;
                let snapshot = self.snapshot_after(old, &change)?;
                for user in self.move_current_state(room, &change, at, true)? {
                    self.wake_user(&user);
                }
                snapshot
            }
        };
        self.set_room_state(room, snapshot)?;
        Ok(snapshot)
    }

    /// Does what [`Tx::move_current_state`] does, for many events at once and without a history. Rows go in in the
    /// order of their keys, which is fastest and packs them best.
    fn import_new_state(&mut self, room: RoomKey, mut state: Vec<ImportedState>, at: i64) -> Result<()> {
        self.front_changed();
        let mut insert = self.conn().prepare_cached(
            "INSERT INTO current_state (room_key, tuple_id, event_key) VALUES (?1, ?2, ?3)",
        )?;
        for row in &state {
            insert.execute([room, row.tuple_id, row.event])?;
        }
        state.retain(|row| row.member.is_some());
        state.sort_unstable_by(|a, b| a.member.cmp(&b.member));
        let mut insert = self.conn().prepare_cached(
            "INSERT INTO memberships (room_key, user_id, membership, event_key, stream, local)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?;
        let (mut joined, mut invited) = (0, 0);
        let mut servers: HashMap<&str, i64> = HashMap::new();
        for row in &state {
            let Some((user, membership)) = &row.member else { continue };
            let is_ours = self.is_local(user);
            let local = is_ours && !self.is_from_before_us(room, row.event)?;
            if let (true, Ok(user)) = (local, UserId::parse(user)) {
                self.wake_user(&user);
            }
            insert.execute(params![room, user, membership.as_str(), row.event, at, local])?;
            match membership {
                Membership::Join => {
                    joined += 1;
                    if local || !is_ours {
                        *servers.entry(server_of(user)).or_default() += 1;
                    }
                }
                Membership::Invite => invited += 1,
                _ => {}
            }
        }
        self.count_members(room, joined, invited)?;
        for (server, users) in servers {
            self.count_resident(room, server, users, at)?;
        }
        self.remember(|cache| {
            cache.forget_audience(room);
            cache.forget_state(room);
        });
        Ok(())
    }
}

/// How a state, sorted by tuple id, differs from the room's current one.
fn difference(db: &Db<'_>, room: RoomKey, state: &[ImportedState]) -> Result<Delta> {
    let mut old = db.current_state_rows(room)?;
    let mut change = Delta::new();
    for row in state {
        if old.remove(&row.tuple_id) != Some(row.event) {
            change.insert(row.tuple_id, Some(row.event));
        }
    }
    change.extend(old.into_keys().map(|tuple_id| (tuple_id, None)));
    Ok(change)
}
