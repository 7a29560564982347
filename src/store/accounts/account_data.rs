//! Account data: what clients keep for themselves, global or of a room.

use rusqlite::{OptionalExtension, params};

use crate::error::{ErrCode, Error, Result};
use crate::protocol::ignored_users::Ignored;
use crate::protocol::{RoomId, UserId};
use crate::store::push::recipients::{IGNORED, RULES};
use crate::store::{Db, Tx};

/// One entry of account data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountData {
    /// The room it belongs to; none if it is global.
    pub room_id: Option<RoomId>,
    /// The event type.
    pub event_type: String,
    /// The content: a JSON object.
    pub content: String,
}

/// What one user keeps, push rules and tags included: one answer may have to tell all of it.
const BYTES_OF_USER_MAX: i64 = 8 << 20;
const ENTRIES_OF_USER_MAX: i64 = 20_000;
/// Small, and of rooms that the user was in: told in any case, so that reading goes on.
const FULLY_READ: &str = "m.fully_read";

/// By the room, of which there is little; not by the stream, where all of the user's rooms would be gone through.
const ACCOUNT_DATA_OF_ROOM_SINCE: &str = "SELECT type, content FROM account_data WHERE user_id = ? AND room_id = ? AND +stream > ? ORDER BY +stream";

/// How `room_id` is written for global account data.
fn room_key(room: Option<&RoomId>) -> &str {
    room.map_or("", RoomId::as_str)
}

impl Db<'_> {
    /// The content of one entry, global if no room is given.
    pub fn account_data(
        &self,
        user: &UserId,
        room: Option<&RoomId>,
        event_type: &str,
    ) -> Result<Option<String>> {
        Ok(self
            .conn()
            .prepare_cached(
                "SELECT content FROM account_data WHERE user_id = ? AND room_id = ? AND type = ?",
            )?
            .query_row([user.as_str(), room_key(room), event_type], |row| row.get(0))
            .optional()?)
    }

    /// The content of one type of entry in each of the user's rooms that has it.
    pub fn room_account_data_of_type(
        &self,
        user: &UserId,
        event_type: &str,
    ) -> Result<Vec<(RoomId, String)>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT room_id, content FROM account_data WHERE user_id = ? AND room_id <> '' AND type = ?",
        )?;
        let rows = statement
            .query_map([user.as_str(), event_type], |row| Ok((row.get::<_, String>(0)?, row.get(1)?)))?;
        rows.map(|row| {
            let (room, content) = row?;
            Ok((RoomId::parse(&room)?, content))
        })
        .collect()
    }

    /// The user's account data of one room that changed after a position, oldest change first.
    pub fn account_data_of_room_since(
        &self,
        user: &UserId,
        room: &RoomId,
        after: i64,
    ) -> Result<Vec<AccountData>> {
        self.rows(ACCOUNT_DATA_OF_ROOM_SINCE, params![user.as_str(), room.as_str(), after], |row| {
            let room_id = Some(room.clone());
            Ok(AccountData { room_id, event_type: row.get(0)?, content: row.get(1)? })
        })
    }

    /// When the user's account data of each of their rooms changed last.
    pub fn account_data_changes_of_rooms(&self, user: &UserId) -> Result<Vec<(RoomId, i64)>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT room_id, max(stream) FROM account_data WHERE user_id = ? AND room_id <> '' GROUP BY room_id",
        )?;
        let rows = statement.query_map([user.as_str()], |row| Ok((row.get::<_, String>(0)?, row.get(1)?)))?;
        rows.map(|row| {
            let (room, stream) = row?;
            Ok((RoomId::parse(&room)?, stream))
        })
        .collect()
    }

    /// Everything of the user that changed after position `after` and up to `upto`, oldest change first.
    pub fn account_data_since(&self, user: &UserId, after: i64, upto: i64) -> Result<Vec<AccountData>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT room_id, type, content FROM account_data WHERE user_id = ? AND stream > ? AND stream <= ?
             ORDER BY stream",
        )?;
        let rows = statement.query_map(params![user.as_str(), after, upto], |row| {
            Ok((row.get::<_, String>(0)?, row.get(1)?, row.get(2)?))
        })?;
        rows.map(|row| {
            let (room, event_type, content) = row?;
            let room_id = if room.is_empty() { None } else { Some(RoomId::parse(&room)?) };
            Ok(AccountData { room_id, event_type, content })
        })
        .collect()
    }
}

impl Tx<'_> {
    /// Sets one entry and wakes the user's clients. Errors: 413 `M_TOO_LARGE` for what makes the user's more than there may be.
    pub fn set_account_data(
        &mut self,
        user: &UserId,
        room: Option<&RoomId>,
        event_type: &str,
        content: &str,
    ) -> Result<()> {
        if room.is_none() && event_type == IGNORED {
            let before = self.account_data(user, None, IGNORED)?;
            let before = before.map(|before| Ignored::listed(&before, user)).unwrap_or_default();
            let added = Ignored::listed(content, user).without(&before);
            if !added.is_empty() {
                self.forget_unread_of_ignored(user, &added)?;
            }
        }
        if event_type != FULLY_READ {
            self.check_account_data_fits((user, room, event_type), content)?;
        }
        let stream = self.next_stream();
        self.execute(
            "INSERT OR REPLACE INTO account_data (user_id, room_id, type, content, stream)
             VALUES (?, ?, ?, ?, ?)",
            params![user.as_str(), room_key(room), event_type, content, stream],
        )?;
        if room.is_none() && [RULES, IGNORED].contains(&event_type) {
            self.remember(|cache| cache.forget_push_settings(user));
        }
        self.wake_user(user);
        Ok(())
    }

    /// All that the user has is counted only for what is new or becomes longer.
    fn check_account_data_fits(
        &self,
        (user, room, event_type): (&UserId, Option<&RoomId>, &str),
        content: &str,
    ) -> Result<()> {
        let before: Option<i64> = self
            .conn()
            .prepare_cached(
                "SELECT octet_length(content) FROM account_data WHERE user_id = ? AND room_id = ? AND type = ?",
            )?
            .query_row([user.as_str(), room_key(room), event_type], |row| row.get(0))
            .optional()?;
        let content_bytes = i64::try_from(content.len()).unwrap_or(i64::MAX);
        if before.is_some_and(|before| content_bytes <= before) {
            return Ok(());
        }
        let (entries, bytes): (i64, i64) = self
            .conn()
            .prepare_cached(
                "SELECT count(*), coalesce(sum(octet_length(content)), 0) FROM account_data WHERE user_id = ?",
            )?
            .query_row([user.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let bytes = (bytes - before.unwrap_or(0)).saturating_add(content_bytes);
        if bytes > BYTES_OF_USER_MAX || before.is_none() && entries >= ENTRIES_OF_USER_MAX {
            return Err(Error::new(ErrCode::TooLarge, "There is too much account data of this user"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ServerName;
    use crate::store::{Location, Options, Store};

    #[test]
    fn the_data_of_one_room_is_sought_by_the_room() {
        let us = ServerName::parse("us.example").expect("a name");
        let options = Options { durable: false, readers: 1, ..Options::default() };
        let store = Store::open(Location::Memory, &us, Box::new(|_| ()), &options).expect("a store");
        let plan = store.read(|db| {
            let sql = format!("EXPLAIN QUERY PLAN {ACCOUNT_DATA_OF_ROOM_SINCE}");
            let of = ["@bob:us.example", "!r:us.example", "7"];
            Ok(db.conn().prepare(&sql)?.query_row(of, |row| row.get::<_, String>(3))?)
        });
        let plan = plan.expect("a plan");
        assert!(plan.contains("user_id=? AND room_id=?"), "{plan}");
    }
}
