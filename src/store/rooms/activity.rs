//! When rooms moved last: what clients have their rooms in order by, and what tells a waiting client where to look without
//! looking into each of its rooms.

use rusqlite::{OptionalExtension, params};

use crate::error::{Error, Result};
use crate::protocol::pdu::Membership;
use crate::protocol::{RoomId, UserId};
use crate::store::rooms::memberships::{ROOM_OF_USER_COLUMNS, RoomOfUser, room_of_user};
use crate::store::{Db, RoomKey, Tx};

/// When something happened in a room.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RoomActivity {
    /// The position of the last event, or of the last change of the state.
    pub stream: i64,
    /// The position of the last event that says that something is going on; 0 if there was none since we are there.
    pub bump: i64,
}

/// The events by which clients have their rooms in order ("Proper activity" in MSC4186), under their older names too.
const BUMPING_TYPES: [&str; 9] = [
    "m.room.create",
    "m.room.message",
    "m.room.encrypted",
    "m.sticker",
    "m.call.invite",
    "m.poll.start",
    "org.matrix.msc3381.poll.start",
    "m.beacon_info",
    "org.matrix.msc3672.beacon_info",
];

/// As long as no more rooms than these moved, each is looked up among the user's; otherwise the user's rooms are gone
/// through.
const MOVED_ROOMS_MAX: usize = 200;

impl Db<'_> {
    /// When something happened in the room last.
    pub fn room_activity(&self, room: RoomKey) -> Result<RoomActivity> {
        let mut statement =
            self.conn().prepare_cached("SELECT stream, bump FROM room_activity WHERE room_key = ?1")?;
        let known = statement
            .query_row([room], |row| Ok(RoomActivity { stream: row.get(0)?, bump: row.get(1)? }))
            .optional()?;
        Ok(known.unwrap_or_default())
    }

    /// The rooms to which one of our users is joined and in which something happened after a position. What this costs
    /// depends on how many rooms moved, or on how many rooms the user has, whichever is less.
    pub fn joined_rooms_with_news(&self, user: &UserId, after: i64) -> Result<Vec<RoomKey>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT room_key FROM room_activity WHERE stream > ?1 ORDER BY stream DESC LIMIT ?2",
        )?;
        let rows = statement.query_map([after, MOVED_ROOMS_MAX as i64], |row| row.get::<_, RoomKey>(0))?;
        let mut moved = rows.collect::<rusqlite::Result<Vec<_>>>()?;
        if moved.len() < MOVED_ROOMS_MAX {
            let joined = |room: &RoomKey| Ok(self.membership(*room, user)? == Some(Membership::Join));
            let of_user: Vec<bool> = moved.iter().map(joined).collect::<Result<_>>()?;
            let mut of_user = of_user.into_iter();
            moved.retain(|_| of_user.next().unwrap_or(false));
            return Ok(moved);
        }
        self.rows(
            "SELECT m.room_key FROM memberships m CROSS JOIN room_activity a ON a.room_key = m.room_key
             WHERE m.local = 1 AND m.user_id = ?1 AND m.membership = 'join' AND a.stream > ?2",
            params![user.as_str(), after],
            |row| row.get(0),
        )
    }

    /// All rooms of one of our users, forgotten ones too, each with its activity.
    pub fn rooms_of_with_activity(&self, user: &UserId) -> Result<Vec<(RoomOfUser, RoomActivity)>> {
        let mut statement = self.conn().prepare_cached(&format!(
            "SELECT {ROOM_OF_USER_COLUMNS}, coalesce(a.stream, 0), coalesce(a.bump, 0)
             FROM memberships m JOIN rooms r ON r.room_key = m.room_key
               LEFT JOIN room_activity a ON a.room_key = m.room_key
             WHERE m.local = 1 AND m.user_id = ?1"
        ))?;
        let mut rows = statement.query([user.as_str()])?;
        let mut all = Vec::new();
        while let Some(row) = rows.next()? {
            all.push((room_of_user(row)?, RoomActivity { stream: row.get(6)?, bump: row.get(7)? }));
        }
        Ok(all)
    }

    /// The event with an empty state key in the current state of each of a user's rooms: for each room that has one,
    /// the JSON of the event.
    pub fn state_of_rooms(
        &self,
        user: &UserId,
        event_type: &str,
        mut tell: impl FnMut(RoomKey, &str) -> Result<()>,
    ) -> Result<()> {
        let Some(tuple_id) = self.state_tuple_id(event_type, "")? else { return Ok(()) };
        let mut statement = self.conn().prepare_cached(
            "SELECT m.room_key, e.json FROM memberships m
               JOIN current_state c ON c.room_key = m.room_key AND c.tuple_id = ?2
               JOIN events e ON e.event_key = c.event_key
             WHERE m.local = 1 AND m.user_id = ?1",
        )?;
        let mut rows = statement.query(params![user.as_str(), tuple_id])?;
        while let Some(row) = rows.next()? {
            let json = row.get_ref(1)?.as_blob().map_err(Error::internal)?;
            tell(row.get(0)?, std::str::from_utf8(json).map_err(Error::internal)?)?;
        }
        Ok(())
    }

    /// When something fleeting changed last in each of the rooms to which a user is joined.
    pub fn ephemeral_changes_of_rooms(&self, user: &UserId) -> Result<Vec<(RoomId, i64)>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT r.room_id, c.stream FROM memberships m
               JOIN ephemeral_changes c ON c.room_key = m.room_key JOIN rooms r ON r.room_key = m.room_key
             WHERE m.local = 1 AND m.user_id = ?1 AND m.membership = 'join'",
        )?;
        let rows = statement.query_map([user.as_str()], |row| Ok((row.get::<_, String>(0)?, row.get(1)?)))?;
        rows.map(|row| {
            let (room, stream) = row?;
            Ok((RoomId::parse(&room)?, stream))
        })
        .collect()
    }
}

impl Tx<'_> {
    /// Notes that something happened in a room at this position: an event of this type, if it was one.
    pub(in crate::store) fn note_activity(
        &mut self,
        room: RoomKey,
        stream: i64,
        event_type: Option<&str>,
    ) -> Result<()> {
        let bumps = event_type.is_some_and(|event_type| BUMPING_TYPES.contains(&event_type));
        let bump = if bumps { stream } else { 0 };
        self.execute(
            "INSERT INTO room_activity (room_key, stream, bump) VALUES (?1, ?2, ?3)
             ON CONFLICT DO UPDATE SET stream = excluded.stream, bump = max(bump, excluded.bump)",
            params![room, stream, bump],
        )?;
        Ok(())
    }
}
