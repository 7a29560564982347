//! A room that comes to us with its state: stored a few hundred events at a time, which changes nothing that anybody
//! can see, and then made the room's state at once. What is kept of an event in between is a line, so that a room of
//! any size needs little memory.

use std::collections::HashMap;

use rusqlite::{OptionalExtension, params};

use crate::error::{Error, Result};
use crate::protocol::pdu::Membership;
use crate::protocol::room_version::EventIdFormat;
use crate::protocol::{EventId, Pdu, VerifiedPdu};
use crate::store::rooms::snapshots::Delta;
use crate::store::rooms::state::NewStateTuples;
use crate::store::{Db, EventKey, RoomKey, SnapshotId, StateTupleId, Status, Tx};

/// What was stored of a room that will be imported.
#[derive(Debug, Default)]
pub struct StagedRoom {
    /// The events of the state.
    pub state: Vec<StagedEvent>,
    /// Those state events, of this state or not, that we had rejected.
    pub rejected: Vec<(EventKey, EventId)>,
}

/// A stored event of the state that a room will have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StagedEvent {
    /// What it is the state of.
    pub tuple_id: StateTupleId,
    /// Its row.
    pub event: EventKey,
    /// Of a membership, whose and which.
    pub member: Option<(Box<str>, Membership)>,
}

impl Tx<'_> {
    /// Stores events of a room, all of which the authorisation rules allow by what the room rests on. To those that we have
    /// nothing happens, not even if we rejected them: the room may not be entered in the end. Gives a line for each of these, and
    /// for each that is part of the state (`true`). In room versions 1 and 2, where a server chooses the ids of its events, one whose id another event has
    /// is left out.
    pub fn stage_events(&mut self, room: RoomKey, events: &[(VerifiedPdu, bool)]) -> Result<StagedRoom> {
        let mut staged = StagedRoom::default();
        let mut new = NewStateTuples::default();
        for (pdu, in_state) in events {
            let Some((event, was_rejected)) = self.stage_event(room, pdu)? else { continue };
            // Others rest on no message: one that comes along was put there to be believed.
            if was_rejected && pdu.is_state() {
                staged.rejected.push((event, pdu.event_id().clone()));
            }
            if let (true, Some(state_key)) = (in_state, pdu.state_key()) {
                let tuple_id = self.make_state_tuple_of_many(&mut new, pdu.event_type(), state_key)?;
                let member = pdu.membership().map(|membership| (state_key.into(), membership));
                staged.state.push(StagedEvent { tuple_id, event, member });
            }
        }
        Ok(staged)
    }

    /// Gives its row, and whether we have rejected it.
    fn stage_event(&mut self, room: RoomKey, pdu: &VerifiedPdu) -> Result<Option<(EventKey, bool)>> {
        if let Some(key) = self.insert_outlier_unless_known(room, pdu, Status::Accepted)? {
            return Ok(Some((key, false)));
        }
        let known = self
            .conn()
            .prepare_cached("SELECT event_key, room_key, status = 2 FROM events WHERE event_id = ?1")?
            .query_row([pdu.event_id().as_str()], |row| {
                Ok((row.get(0)?, row.get::<_, RoomKey>(1)?, row.get(2)?))
            })
            .optional()?;
        let Some((key, in_room, was_rejected)) = known else {
            return Err(Error::internal("an event went missing"));
        };
        let is_same = in_room == room
            && (pdu.version().event_id_format != EventIdFormat::InEvent || {
                let hash = |pdu: &Pdu| pdu.canonical().reference_hash(pdu.version());
                hash(pdu) == hash(&self.pdu_by_key(key)?)
            });
        if !is_same {
            log::warn!("{} is another event's id: left out", pdu.event_id());
        } else {
            self.complete_event(pdu)?;
        }
        Ok(is_same.then_some((key, was_rejected)))
    }

    /// Makes this the room's state, as of a stream position, and everything that follows the current state with it. What we
    /// had rejected of it the room has all the same. A
    /// room that we have been in before changes by the difference, so that those local users who were there see it as
    /// that. Errors: 502 if two events are for one type and state key.
    pub fn import_state(&mut self, room: RoomKey, staged: StagedRoom, at: i64) -> Result<SnapshotId> {
        for (event, id) in &staged.rejected {
            self.accept_after_all(*event, id)?;
        }
        let mut state = staged.state;
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
    fn import_new_state(&mut self, room: RoomKey, mut state: Vec<StagedEvent>, at: i64) -> Result<()> {
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
            let local = self.is_local(user);
            insert.execute(params![room, user, membership.as_str(), row.event, at, local])?;
            match membership {
                Membership::Join => {
                    joined += 1;
                    *servers.entry(user.split_once(':').map_or("", |(_, server)| server)).or_default() += 1;
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
fn difference(db: &Db<'_>, room: RoomKey, state: &[StagedEvent]) -> Result<Delta> {
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
