//! Joins of local users whose knock was accepted, until they are made or found not to be wanted.

use rusqlite::{OptionalExtension, params};

use crate::clock::Millis;
use crate::error::Result;
use crate::protocol::pdu::Membership;
use crate::protocol::{EventId, RoomId, UserId};
use crate::store::rooms::memberships::MembershipChange;
use crate::store::{Db, EventKey, RoomKey, StateTupleId, Tx};

/// A join that is owed to somebody.
#[derive(Debug, Clone)]
pub struct OwedJoin {
    /// The room.
    pub room_id: RoomId,
    /// Who knocked, one of ours.
    pub user_id: UserId,
    /// The invite that answered the knock, or one that followed upon that.
    pub invite: EventId,
    /// How often it was tried in vain.
    pub attempts: u32,
}

impl Db<'_> {
    /// The join that is owed to somebody in a room.
    pub fn owed_join(&self, room: &RoomId, user: &UserId) -> Result<Option<OwedJoin>> {
        let mut statement = self
            .conn()
            .prepare_cached("SELECT invite, attempts FROM owed_joins WHERE room_id = ?1 AND user_id = ?2")?;
        let row: Option<(String, u32)> = statement
            .query_row([room.as_str(), user.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let Some((invite, attempts)) = row else { return Ok(None) };
        let invite = EventId::parse(&invite)?;
        Ok(Some(OwedJoin { room_id: room.clone(), user_id: user.clone(), invite, attempts }))
    }

    /// Joins that are due, the longest due first; of each user no more than so many.
    pub fn owed_joins_due(&self, now: Millis, of_user: usize, limit: usize) -> Result<Vec<(RoomId, UserId)>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT room_id, user_id FROM (
               SELECT room_id, user_id, due_ms,
                 row_number() OVER (PARTITION BY user_id ORDER BY due_ms) AS number
               FROM owed_joins WHERE due_ms <= ?1)
             WHERE number <= ?2 ORDER BY due_ms LIMIT ?3",
        )?;
        let rows = statement.query_map(params![now, of_user as i64, limit as i64], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
        })?;
        rows.map(|row| {
            let (room, user) = row?;
            Ok((RoomId::parse(&room)?, UserId::parse(&user)?))
        })
        .collect()
    }

    /// When the next one is due.
    pub fn next_owed_join_due(&self) -> Result<Option<Millis>> {
        let mut statement = self.conn().prepare_cached("SELECT min(due_ms) FROM owed_joins")?;
        Ok(statement.query_row([], |row| row.get(0))?)
    }

    /// Whether this knock was what the user was in the room when the invite was made, as this server knows the room:
    /// nothing came between the two.
    fn came_upon(&self, invite: EventKey, knock: EventKey, member: StateTupleId) -> Result<bool> {
        match self.event_by_key(invite)?.state_before {
            Some(before) => Ok(self.state_row_at(before, member)? == Some(knock)),
            None => Ok(false),
        }
    }
}

impl Tx<'_> {
    /// Follows what becomes of a local user in a room whose state this server has: an invite right upon their knock
    /// accepts it. `previous`: what their membership was in that room before, with its place in the state.
    pub(in crate::store) fn follow_knock(
        &mut self,
        room: RoomKey,
        change: &MembershipChange<'_>,
        (previous, member): (EventKey, StateTupleId),
    ) -> Result<()> {
        let Some((Membership::Invite, invite)) = change.new else { return Ok(()) };
        let user = UserId::parse(change.user).ok().filter(|user| self.is_local(user.as_str()));
        let Some(user) = user else { return Ok(()) };
        let room = || self.room_by_key(room).map(|room| room.room_id);
        match change.old {
            Some(Membership::Knock) if self.came_upon(invite, previous, member)? => {
                let (room, invite) = (room()?, self.event_id(invite)?);
                self.owe_join(&room, &user, &invite)
            }
            Some(Membership::Invite) => {
                let (room, old, new) = (room()?, self.event_id(previous)?, self.event_id(invite)?);
                self.owe_join_by(&room, &user, &old, &new)
            }
            _ => Ok(()),
        }
    }

    /// A user's knock was accepted by this invite. Whether they want to be joined is asked when it is due, which is at
    /// once.
    pub fn owe_join(&mut self, room: &RoomId, user: &UserId, invite: &EventId) -> Result<()> {
        self.execute(
            "INSERT OR REPLACE INTO owed_joins (room_id, user_id, invite, attempts, due_ms)
             VALUES (?1, ?2, ?3, 0, 0)",
            params![room.as_str(), user.as_str(), invite.as_str()],
        )?;
        self.wake_timer();
        Ok(())
    }

    /// Somebody whose join is owed was invited again: it is owed by the new invite.
    pub fn owe_join_by(&mut self, room: &RoomId, user: &UserId, old: &EventId, new: &EventId) -> Result<()> {
        self.execute(
            "UPDATE owed_joins SET invite = ?4 WHERE room_id = ?1 AND user_id = ?2 AND invite = ?3",
            params![room.as_str(), user.as_str(), old.as_str(), new.as_str()],
        )?;
        Ok(())
    }

    /// A join that is not owed any more, by this invite.
    pub fn end_owed_join(&mut self, room: &RoomId, user: &UserId, invite: &EventId) -> Result<()> {
        self.execute(
            "DELETE FROM owed_joins WHERE room_id = ?1 AND user_id = ?2 AND invite = ?3",
            params![room.as_str(), user.as_str(), invite.as_str()],
        )?;
        Ok(())
    }

    /// Puts a join off until then; `tried`: whether that counts as an attempt.
    pub fn put_off_owed_join(
        &mut self,
        room: &RoomId,
        user: &UserId,
        until: Millis,
        tried: bool,
    ) -> Result<()> {
        self.execute(
            "UPDATE owed_joins SET due_ms = ?3, attempts = attempts + ?4
             WHERE room_id = ?1 AND user_id = ?2",
            params![room.as_str(), user.as_str(), until, tried],
        )?;
        self.is_due(until);
        Ok(())
    }

    /// Makes a join due that is due later.
    pub fn hasten_owed_join(&mut self, room: &RoomId, user: &UserId, now: Millis) -> Result<()> {
        self.execute(
            "UPDATE owed_joins SET due_ms = ?3 WHERE room_id = ?1 AND user_id = ?2 AND due_ms > ?3",
            params![room.as_str(), user.as_str(), now],
        )?;
        self.is_due(now);
        Ok(())
    }
}
