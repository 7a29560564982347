//! Bans that a room is to have because the one that it replaces has them: more of them than come with a new room.

use rusqlite::{OptionalExtension, params};

use crate::clock::Millis;
use crate::error::Result;
use crate::order;
use crate::protocol::pdu::Membership;
use crate::protocol::{RoomId, UserId};
use crate::store::rooms::memberships::RoomMember;
use crate::store::{Db, RoomKey, Tx};

/// The bans that one room owes to another: those that came before a place in the order of [`Db::bans_before`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwedBans {
    /// The new room.
    pub room_id: RoomId,
    /// The room that it replaces.
    pub old_room_id: RoomId,
    /// Who bans: the user who upgraded the room.
    pub sender: UserId,
    /// The last one that was carried over: the position of the ban, and who is banned.
    pub stream: i64,
    /// See `stream`.
    pub user_id: String,
    /// How often the next one was tried in vain.
    pub attempts: u32,
}

impl Db<'_> {
    /// Who is banned from a room, the last ones first, behind this one in that order: so many at most.
    pub fn bans_before(
        &self,
        room: RoomKey,
        (stream, user): (i64, &str),
        most: usize,
    ) -> Result<Vec<RoomMember>> {
        let mut bans = self.members(room, Some(Membership::Ban))?;
        bans.retain(|ban| ban.stream < stream || ban.stream == stream && ban.user_id.as_str() > user);
        order::sort_by(&mut bans, |a, b| {
            b.stream.cmp(&a.stream).then_with(|| a.user_id.as_str().cmp(b.user_id.as_str()))
        });
        bans.truncate(most);
        Ok(bans)
    }

    /// What a room is owed.
    pub fn owed_bans(&self, room: &RoomId) -> Result<Option<OwedBans>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT old_room_id, sender, stream, user_id, attempts FROM owed_bans WHERE room_id = ?1",
        )?;
        let mut rows = statement.query([room.as_str()])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        Ok(Some(OwedBans {
            room_id: room.clone(),
            old_room_id: RoomId::parse(&row.get::<_, String>(0)?)?,
            sender: UserId::parse(&row.get::<_, String>(1)?)?,
            stream: row.get(2)?,
            user_id: row.get(3)?,
            attempts: row.get(4)?,
        }))
    }

    /// A room whose bans are due.
    pub fn due_owed_bans(&self, now: Millis) -> Result<Option<RoomId>> {
        let mut statement = self
            .conn()
            .prepare_cached("SELECT room_id FROM owed_bans WHERE due_ms <= ?1 ORDER BY due_ms LIMIT 1")?;
        let room: Option<String> = statement.query_row([now], |row| row.get(0)).optional()?;
        room.map(|room| RoomId::parse(&room)).transpose()
    }

    /// When the next ones are.
    pub fn next_owed_bans_due(&self) -> Result<Option<Millis>> {
        let mut statement = self.conn().prepare_cached("SELECT min(due_ms) FROM owed_bans")?;
        Ok(statement.query_row([], |row| row.get(0))?)
    }
}

impl Tx<'_> {
    /// Writes down that a new room is to have more bans of the room that it replaces.
    pub fn owe_bans(&mut self, owed: &OwedBans, now: Millis) -> Result<()> {
        self.conn()
            .prepare_cached(
                "INSERT OR REPLACE INTO owed_bans
                   (room_id, old_room_id, sender, stream, user_id, attempts, due_ms)
                 VALUES (?1, ?2, ?3, ?4, ?5, 0, ?6)",
            )?
            .execute(params![
                owed.room_id.as_str(),
                owed.old_room_id.as_str(),
                owed.sender.as_str(),
                owed.stream,
                owed.user_id,
                now
            ])?;
        self.is_due(now);
        Ok(())
    }

    /// One ban was carried over, or never will be: those behind it are owed yet.
    pub fn carried_ban(&mut self, room: &RoomId, (stream, user): (i64, &str)) -> Result<()> {
        self.conn()
            .prepare_cached(
                "UPDATE owed_bans SET stream = ?2, user_id = ?3, attempts = 0 WHERE room_id = ?1",
            )?
            .execute(params![room.as_str(), stream, user])?;
        Ok(())
    }

    /// Puts the bans of a room off until then; `tried`: whether the next one was tried in vain.
    pub fn put_off_owed_bans(&mut self, room: &RoomId, due: Millis, tried: bool) -> Result<()> {
        self.conn()
            .prepare_cached("UPDATE owed_bans SET due_ms = ?2, attempts = attempts + ?3 WHERE room_id = ?1")?
            .execute(params![room.as_str(), due, tried])?;
        self.is_due(due);
        Ok(())
    }

    /// A room is owed no bans any more.
    pub fn end_owed_bans(&mut self, room: &RoomId) -> Result<()> {
        self.conn().prepare_cached("DELETE FROM owed_bans WHERE room_id = ?1")?.execute([room.as_str()])?;
        Ok(())
    }
}
