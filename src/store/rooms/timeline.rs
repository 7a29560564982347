//! What `/sync`, `/messages` and their kind read beyond events and state: what is new for a user, and what a room looks
//! like from their place.

use rusqlite::{OptionalExtension, params};

use crate::error::{Error, Result};
use crate::protocol::UserId;
use crate::protocol::pdu::Membership;
use crate::store::rooms::snapshots::LAST_OTHER_TUPLE_ID;
use crate::store::{Db, EventKey, RoomKey};

/// One change of what a room's current state has under one type and state key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateTupleChange {
    /// When.
    pub stream: i64,
    /// The event after the change; none if there is none any more.
    pub event: Option<EventKey>,
    /// The event before it. The same: it was redacted.
    pub previous: Option<EventKey>,
}

/// No more than this many changes of one entry are looked through.
const STATE_TUPLE_CHANGES_MAX: i64 = 1000;
/// No more than this many changes after a position are looked through for who changed.
const CHANGES_LOOKED_AT_MAX: i64 = 1000;

impl Db<'_> {
    /// The stream position of this snapshot: everything up to here is in it, and nothing behind.
    pub fn snapshot_position(&self) -> Result<i64> {
        Ok(self.conn().prepare_cached("SELECT stream FROM server")?.query_row([], |row| row.get(0))?)
    }

    /// Events of a room's timeline in the order of their own times: from a time (included) to later ones, or to earlier
    /// ones; at most `limit`, after the first `skip`.
    pub fn events_by_time(
        &self,
        room: RoomKey,
        (from, forwards): (i64, bool),
        skip: usize,
        limit: usize,
    ) -> Result<Vec<EventKey>> {
        let sql = if forwards {
            "SELECT event_key FROM events WHERE room_key = ?1 AND stream IS NOT NULL AND origin_server_ts >= ?2
             ORDER BY origin_server_ts, depth LIMIT ?3 OFFSET ?4"
        } else {
            "SELECT event_key FROM events WHERE room_key = ?1 AND stream IS NOT NULL AND origin_server_ts <= ?2
             ORDER BY origin_server_ts DESC, depth DESC LIMIT ?3 OFFSET ?4"
        };
        self.rows(sql, params![room, from, limit as i64, skip as i64], |row| row.get(0))
    }

    /// How one entry of a room's state changed, latest change first; the state with which a room came to us is no
    /// change.
    pub fn state_tuple_changes(
        &self,
        room: RoomKey,
        event_type: &str,
        state_key: &str,
    ) -> Result<Vec<StateTupleChange>> {
        let Some(tuple_id) = self.state_tuple_id(event_type, state_key)? else { return Ok(Vec::new()) };
        self.rows(
            "SELECT stream, event_key, previous FROM state_changes WHERE room_key = ?1 AND tuple_id = ?2
             ORDER BY stream DESC LIMIT ?3",
            params![room, tuple_id, STATE_TUPLE_CHANGES_MAX],
            |row| Ok(StateTupleChange { stream: row.get(0)?, event: row.get(1)?, previous: row.get(2)? }),
        )
    }

    /// The event that the state event of this type and key at this position replaced, if it changed the current state.
    pub fn replaced_at(
        &self,
        room: RoomKey,
        event_type: &str,
        state_key: &str,
        stream: i64,
    ) -> Result<Option<EventKey>> {
        let Some(tuple_id) = self.state_tuple_id(event_type, state_key)? else { return Ok(None) };
        let previous: Option<Option<EventKey>> = self
            .conn()
            .prepare_cached(
                "SELECT previous FROM state_changes WHERE room_key = ?1 AND tuple_id = ?2 AND stream = ?3",
            )?
            .query_row([room, tuple_id, stream], |row| row.get(0))
            .optional()?;
        Ok(previous.flatten())
    }

    /// The rows of a room's current state events, in no order; with `members` false, all but the memberships.
    pub fn current_state_keys(&self, room: RoomKey, members: bool) -> Result<Vec<EventKey>> {
        let mut statement = self
            .conn()
            .prepare_cached("SELECT event_key FROM current_state WHERE room_key = ?1 AND tuple_id <= ?2")?;
        let last = if members { i64::MAX } else { LAST_OTHER_TUPLE_ID };
        let rows = statement.query_map([room, last], |row| row.get(0))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The events of a room's current state by type and state key; with `members` false, all but the memberships.
    pub fn current_state_events(
        &self,
        room: RoomKey,
        members: bool,
        mut tell: impl FnMut(&str, &str, EventKey),
    ) -> Result<()> {
        let mut statement = self.conn().prepare_cached(
            "SELECT s.type, s.state_key, c.event_key FROM current_state c JOIN state_tuples s ON s.tuple_id = c.tuple_id
             WHERE c.room_key = ?1 AND c.tuple_id <= ?2",
        )?;
        let last = if members { i64::MAX } else { LAST_OTHER_TUPLE_ID };
        let mut rows = statement.query([room, last])?;
        while let Some(row) = rows.next()? {
            let text = |column| row.get_ref(column)?.as_str().map_err(Error::internal);
            tell(text(0)?, text(1)?, row.get(2)?);
        }
        Ok(())
    }

    /// The same as of a stream position.
    pub fn state_events_as_of(
        &self,
        room: RoomKey,
        stream: i64,
        members: bool,
        mut tell: impl FnMut(&str, &str, EventKey),
    ) -> Result<()> {
        for (tuple_id, event) in self.state_rows_as_of(room, stream)? {
            if members || tuple_id <= LAST_OTHER_TUPLE_ID {
                let (event_type, state_key) = self.state_tuple(tuple_id)?;
                tell(&event_type, &state_key, event);
            }
        }
        Ok(())
    }

    /// Whom a room without a name is called by, with their member events: joined users in the order in which they came,
    /// then invited ones; failing those the ones that left or are banned. One user is not among them. `end`: as of which
    /// position; `i64::MAX` for the present.
    pub fn hero_events(
        &self,
        room: RoomKey,
        but: &UserId,
        end: i64,
        limit: i64,
    ) -> Result<Vec<(UserId, EventKey)>> {
        let others = if end == i64::MAX { Vec::new() } else { self.members_changed_after(room, but, end)? };
        let mut heroes = Vec::new();
        for memberships in ["'join'", "'invite'", "'leave', 'ban'"] {
            if memberships.starts_with("'leave'") && !heroes.is_empty() || heroes.len() as i64 >= limit {
                break;
            }
            let mut statement = self.conn().prepare_cached(&format!(
                "SELECT user_id, event_key FROM memberships WHERE room_key = ?1 AND user_id <> ?2
                 AND membership IN ({memberships}) AND stream <= ?4 ORDER BY stream, user_id LIMIT ?3"
            ))?;
            let left = limit - heroes.len() as i64;
            let rows = statement.query_map(params![room, but.as_str(), left, end], |row| {
                Ok((row.get::<_, String>(0)?, row.get(1)?))
            })?;
            for row in rows {
                let (user, event) = row?;
                // A member event's state key need not be a user id that we would accept today.
                heroes.extend(UserId::parse(&user).ok().map(|user| (user, event)));
            }
            let of_these = others.iter().filter(|(membership, ..)| memberships.contains(membership.as_str()));
            let left = usize::try_from(limit).unwrap_or(0).saturating_sub(heroes.len());
            heroes.extend(of_these.take(left).map(|(_, user, event)| (user.clone(), *event)));
        }
        Ok(heroes)
    }

    /// Of users whose membership or profile changed first after a position, what they were at it; but for one user.
    fn members_changed_after(
        &self,
        room: RoomKey,
        but: &UserId,
        position: i64,
    ) -> Result<Vec<(Membership, UserId, EventKey)>> {
        let first: Vec<(String, Option<EventKey>, i64)> = self.rows(
            "SELECT s.state_key, c.previous, min(c.stream) AS first
             FROM (SELECT tuple_id, previous, stream FROM state_changes
                   WHERE room_key = ?1 AND stream > ?2 ORDER BY stream LIMIT ?4) c
               JOIN state_tuples s ON s.tuple_id = c.tuple_id
             WHERE s.type = 'm.room.member' AND s.state_key <> ?3 GROUP BY c.tuple_id ORDER BY first",
            params![room, position, but.as_str(), CHANGES_LOOKED_AT_MAX],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )?;
        let mut members = Vec::new();
        for (user, event, _) in first {
            if let (Ok(user), Some(event)) = (UserId::parse(&user), event) {
                let membership = self.pdu_by_key(event)?.membership();
                members.extend(membership.map(|membership| (membership, user, event)));
            }
        }
        Ok(members)
    }

    /// The first members of a room in stream order, but for one user: joined and invited ones, or failing those the
    /// ones that left or are banned. `alone`: it is known that nobody else is joined or invited.
    pub fn heroes(&self, room: RoomKey, but: &UserId, alone: bool, limit: i64) -> Result<Vec<UserId>> {
        for memberships in ["'join', 'invite'", "'leave', 'ban'"].into_iter().skip(usize::from(alone)) {
            let mut statement = self.conn().prepare_cached(&format!(
                "SELECT user_id FROM memberships WHERE room_key = ?1 AND user_id <> ?2
                 AND membership IN ({memberships}) ORDER BY stream, user_id LIMIT ?3"
            ))?;
            let rows =
                statement.query_map(params![room, but.as_str(), limit], |row| row.get::<_, String>(0))?;
            let mut heroes = Vec::new();
            for row in rows {
                // A member event's state key need not be a user id that we would accept today.
                heroes.extend(UserId::parse(&row?).ok());
            }
            if !heroes.is_empty() {
                return Ok(heroes);
            }
        }
        Ok(Vec::new())
    }
}
