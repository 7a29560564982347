//! Notifications that nobody needs any more: those that were read, some time ago. They are found on a snapshot, a portion at
//! a time, and taken out by their places, since what was read stays so: read positions only ever move on.
//!
//! What counts as unread for anybody stays, however old it is.

use rusqlite::params;

use crate::clock::Millis;
use crate::error::Result;
use crate::protocol::UserId;
use crate::protocol::pdu::Membership;
use crate::store::push::unread::ReadPositions;
use crate::store::{Db, RoomKey, Tx};

/// For so long what was read is listed by `GET /notifications`: a month.
pub const READ_KEPT_MS: Millis = 30 * 24 * 3_600_000;

/// From where on the rows are gone through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SweepPlace {
    /// What is the same for all members of rooms, behind this room and position.
    OfRooms(RoomKey, i64),
    /// What is some users' own, behind this user, room and position.
    OfUsers(String, RoomKey, i64),
}

impl SweepPlace {
    /// Before everything.
    pub const START: Self = Self::OfRooms(RoomKey::MIN, i64::MIN);
}

/// Some of the rows, looked at.
#[derive(Debug, Default)]
pub struct SweptPortion {
    /// Those that nobody needs.
    of_rooms: Vec<(RoomKey, i64)>,
    of_users: Vec<(String, RoomKey, i64)>,
    /// Where the next portion begins; none: these were the last.
    pub next: Option<SweepPlace>,
}

impl SweptPortion {
    /// Whether all of it is needed.
    pub fn is_empty(&self) -> bool {
        self.of_rooms.is_empty() && self.of_users.is_empty()
    }
}

/// What somebody is to a room, remembered while the rows of both come one after the other.
enum Standing {
    Joined(ReadPositions),
    /// Their invite came at this position.
    Invited(i64),
    Out,
}

impl Db<'_> {
    /// Goes through the next rows behind a place, so many at most, for those that were read and whose events say that they
    /// are older than `before`.
    pub fn notifications_to_sweep(
        &self,
        from: &SweepPlace,
        before: Millis,
        most: usize,
    ) -> Result<SweptPortion> {
        let mut portion = SweptPortion::default();
        let mut left = most;
        let from = match from {
            SweepPlace::OfRooms(room, stream) => {
                left -= self.read_by_all((*room, *stream), before, most, &mut portion)?;
                ("", RoomKey::MIN, i64::MIN)
            }
            SweepPlace::OfUsers(user, room, stream) => (user.as_str(), *room, *stream),
        };
        if left > 0 {
            self.read_by_their_users(from, before, left, &mut portion)?;
        }
        Ok(portion)
    }

    /// Gives the number of rows that it has looked at.
    fn read_by_all(
        &self,
        from: (RoomKey, i64),
        before: Millis,
        most: usize,
        portion: &mut SweptPortion,
    ) -> Result<usize> {
        let mut statement = self.conn().prepare_cached(
            "SELECT n.room_key, n.stream, n.thread, e.origin_server_ts
             FROM notifications n CROSS JOIN events e ON e.event_key = n.event_key
             WHERE (n.room_key, n.stream) > (?1, ?2) ORDER BY n.room_key, n.stream LIMIT ?3",
        )?;
        let mut rows = statement.query(params![from.0, from.1, most as i64])?;
        let (mut looked_at, mut at) = (0, from);
        let mut members: Option<(RoomKey, Vec<ReadPositions>)> = None;
        while let Some(row) = rows.next()? {
            looked_at += 1;
            at = (row.get(0)?, row.get(1)?);
            if row.get::<_, Millis>(3)? >= before {
                continue;
            }
            if members.as_ref().is_none_or(|(room, _)| *room != at.0) {
                members = Some((at.0, self.read_positions_of_all(at.0)?));
            }
            let thread: Option<String> = row.get(2)?;
            let has_read = |read: &ReadPositions| read.has_read(thread.as_deref(), at.1);
            if members.iter().flat_map(|(_, members)| members).all(has_read) {
                portion.of_rooms.push(at);
            }
        }
        portion.next = (looked_at == most).then_some(SweepPlace::OfRooms(at.0, at.1));
        Ok(looked_at)
    }

    fn read_positions_of_all(&self, room: RoomKey) -> Result<Vec<ReadPositions>> {
        let mut all = Vec::new();
        for user in self.audience(room)?.iter() {
            all.extend(self.read_positions(room, user)?);
        }
        Ok(all)
    }

    fn read_by_their_users(
        &self,
        from: (&str, RoomKey, i64),
        before: Millis,
        most: usize,
        portion: &mut SweptPortion,
    ) -> Result<()> {
        let mut statement = self.conn().prepare_cached(
            "SELECT n.user_id, n.room_key, n.stream, n.thread, n.room_id,
               (SELECT e.origin_server_ts FROM events e WHERE e.event_key = n.event_key)
             FROM notifications_of_users n
             WHERE (n.user_id, n.room_key, n.stream) > (?1, ?2, ?3)
             ORDER BY n.user_id, n.room_key, n.stream LIMIT ?4",
        )?;
        let mut rows = statement.query(params![from.0, from.1, from.2, most as i64])?;
        let mut looked_at = 0;
        let mut at = (from.0.to_owned(), from.1, from.2);
        let mut known: Option<((String, RoomKey), Standing)> = None;
        while let Some(row) = rows.next()? {
            looked_at += 1;
            at = (row.get(0)?, row.get(1)?, row.get(2)?);
            let room_id: Option<String> = row.get(4)?;
            if at.1 == 0 {
                if !self.is_standing_invite(&at.0, room_id.as_deref())? {
                    portion.of_users.push(at.clone());
                }
                continue;
            }
            if known.as_ref().is_none_or(|((user, room), _)| (user, room) != (&at.0, &at.1)) {
                known = Some(((at.0.clone(), at.1), self.standing(&at.0, at.1)?));
            }
            let thread: Option<String> = row.get(3)?;
            let is_old = row.get::<_, Option<Millis>>(5)?.is_none_or(|ts| ts < before);
            let goes = match known.as_ref().map(|(_, standing)| standing) {
                Some(Standing::Joined(read)) => is_old && read.has_read(thread.as_deref(), at.2),
                Some(Standing::Invited(since)) => at.2 < *since,
                Some(Standing::Out) | None => true,
            };
            if goes {
                portion.of_users.push(at.clone());
            }
        }
        portion.next = (looked_at == most).then_some(SweepPlace::OfUsers(at.0, at.1, at.2));
        Ok(())
    }

    fn standing(&self, user: &str, room: RoomKey) -> Result<Standing> {
        let user = UserId::parse(user)?;
        if let Some(read) = self.read_positions(room, &user)? {
            return Ok(Standing::Joined(read));
        }
        let member = self.member(room, &user)?.filter(|member| member.membership == Membership::Invite);
        Ok(member.map_or(Standing::Out, |member| Standing::Invited(member.stream)))
    }

    /// Whether an invite to a room that this server is not in still waits for an answer.
    fn is_standing_invite(&self, user: &str, room: Option<&str>) -> Result<bool> {
        let Some(room) = room else { return Ok(false) };
        let mut statement = self.conn().prepare_cached(
            "SELECT 1 FROM remote_memberships
             WHERE room_id = ?1 AND user_id = ?2 AND state = 'invited'",
        )?;
        Ok(statement.exists([room, user])?)
    }
}

impl Tx<'_> {
    /// Takes out what nobody needs. It counts nowhere.
    pub fn sweep_notifications(&mut self, portion: &SweptPortion) -> Result<()> {
        for (room, stream) in &portion.of_rooms {
            self.conn()
                .prepare_cached("DELETE FROM notifications WHERE room_key = ?1 AND stream = ?2")?
                .execute(params![room, stream])?;
        }
        for (user, room, stream) in &portion.of_users {
            self.conn()
                .prepare_cached(
                    "DELETE FROM notifications_of_users WHERE user_id = ?1 AND room_key = ?2 AND stream = ?3",
                )?
                .execute(params![user, room, stream])?;
        }
        Ok(())
    }
}
