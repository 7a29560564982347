//! What is fleeting in rooms: who is typing, and where anything of the kind has changed.

use std::collections::HashMap;

use rusqlite::{OptionalExtension, params};

use crate::clock::Millis;
use crate::error::Result;
use crate::protocol::UserId;
use crate::protocol::pdu::Membership;
use crate::store::{Db, RoomKey, Tx};

/// What a word about typing came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TypingChange {
    /// The list of those who are typing is another one.
    pub changed: bool,
    /// Other servers were last told of it long enough ago to be told again.
    pub tell_again: bool,
}

/// If something fleeting changed in more rooms of the server than these, the user's are gone through instead.
const CHANGED_ROOMS_MAX: usize = 200;

impl Db<'_> {
    /// The rooms to which the user is joined and in which something fleeting changed after a position.
    pub fn joined_rooms_with_ephemeral(&self, user: &UserId, after: i64) -> Result<Vec<RoomKey>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT room_key FROM ephemeral_changes WHERE stream > ?1 ORDER BY stream LIMIT ?2",
        )?;
        let most = CHANGED_ROOMS_MAX as i64;
        let rows = statement.query_map([after, most], |row| row.get::<_, RoomKey>(0))?;
        let changed = rows.collect::<rusqlite::Result<Vec<_>>>()?;
        if changed.len() < CHANGED_ROOMS_MAX {
            let mut of_user = Vec::new();
            for room in changed {
                if self.membership(room, user)? == Some(Membership::Join) {
                    of_user.push(room);
                }
            }
            return Ok(of_user);
        }
        self.rows(
            "SELECT m.room_key FROM memberships m CROSS JOIN ephemeral_changes c ON c.room_key = m.room_key
             WHERE m.local = 1 AND m.user_id = ?1 AND m.membership = 'join' AND c.stream > ?2",
            params![user.as_str(), after],
            |row| row.get(0),
        )
    }

    /// When something fleeting changed in the room last, and when the list of those who are typing did.
    pub fn ephemeral_change(&self, room: RoomKey) -> Result<Option<(i64, i64)>> {
        let mut statement =
            self.conn().prepare_cached("SELECT stream, typing FROM ephemeral_changes WHERE room_key = ?1")?;
        Ok(statement.query_row([room], |row| Ok((row.get(0)?, row.get(1)?))).optional()?)
    }

    /// The same of all rooms to which a user is joined and in which there ever was anything fleeting.
    pub fn ephemeral_changes_of_user(&self, user: &UserId) -> Result<HashMap<RoomKey, (i64, i64)>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT m.room_key, c.stream, c.typing FROM memberships m
               CROSS JOIN ephemeral_changes c ON c.room_key = m.room_key
             WHERE m.local = 1 AND m.user_id = ?1 AND m.membership = 'join'",
        )?;
        let rows =
            statement.query_map([user.as_str()], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?))))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Who is typing in a room, as far as they are in it.
    pub fn typing_users(&self, room: RoomKey) -> Result<Vec<String>> {
        self.rows(
            "SELECT t.user_id FROM typing t JOIN memberships m USING (room_key, user_id)
             WHERE t.room_key = ?1 AND m.membership = 'join' ORDER BY t.user_id",
            params![room],
            |row| row.get(0),
        )
    }

    /// Who has been typing for longer than they said: at most `limit`.
    pub fn typing_expired(&self, now: Millis, limit: usize) -> Result<Vec<(RoomKey, String)>> {
        self.rows(
            "SELECT room_key, user_id FROM typing WHERE until_ms <= ?1 ORDER BY until_ms LIMIT ?2",
            params![now, limit as i64],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
    }

    /// When the next of those who are typing will have done so for long enough.
    pub fn next_typing_expiry(&self) -> Result<Option<Millis>> {
        let mut statement = self.conn().prepare_cached("SELECT min(until_ms) FROM typing")?;
        Ok(statement.query_row([], |row| row.get(0))?)
    }
}

impl Tx<'_> {
    /// Somebody is typing until then. No more than `most` do so in one room, and `most_of_server` of one server;
    /// further ones are passed over.
    pub fn start_typing(
        &mut self,
        room: RoomKey,
        user: &str,
        (now, until): (Millis, Millis),
        tell_every: Millis,
        (most, most_of_server): (usize, usize),
    ) -> Result<TypingChange> {
        let told: Option<Millis> = self
            .conn()
            .prepare_cached("SELECT told_ms FROM typing WHERE room_key = ?1 AND user_id = ?2")?
            .query_row(params![room, user], |row| row.get(0))
            .optional()?;
        if let Some(told) = told {
            let tell_again = now - told >= tell_every;
            let told = if tell_again { now } else { told };
            self.execute(
                "UPDATE typing SET until_ms = ?3, told_ms = ?4 WHERE room_key = ?1 AND user_id = ?2",
                params![room, user, until, told],
            )?;
            return Ok(TypingChange { changed: false, tell_again });
        }
        let (already, of_server): (i64, i64) = self
            .conn()
            .prepare_cached(
                "SELECT count(*), coalesce(sum(substr(user_id, instr(user_id, ':')) = substr(?2, instr(?2, ':'))), 0)
                 FROM typing WHERE room_key = ?1",
            )?
            .query_row(params![room, user], |row| Ok((row.get(0)?, row.get(1)?)))?;
        if already >= most as i64 || of_server >= most_of_server as i64 {
            return Ok(TypingChange { changed: false, tell_again: false });
        }
        self.execute(
            "INSERT INTO typing (room_key, user_id, until_ms, told_ms) VALUES (?1, ?2, ?3, ?4)",
            params![room, user, until, now],
        )?;
        self.typing_changed(room)?;
        Ok(TypingChange { changed: true, tell_again: false })
    }

    /// Somebody does not type any more. Whether they did.
    pub fn stop_typing(&mut self, room: RoomKey, user: &str) -> Result<bool> {
        let stopped =
            self.execute("DELETE FROM typing WHERE room_key = ?1 AND user_id = ?2", params![room, user])?;
        if stopped > 0 {
            self.typing_changed(room)?;
        }
        Ok(stopped > 0)
    }

    /// The same, if they have not said anything new in the meantime.
    pub fn let_typing_expire(&mut self, room: RoomKey, user: &str, now: Millis) -> Result<bool> {
        let stopped = self.execute(
            "DELETE FROM typing WHERE room_key = ?1 AND user_id = ?2 AND until_ms <= ?3",
            params![room, user, now],
        )?;
        if stopped > 0 {
            self.typing_changed(room)?;
        }
        Ok(stopped > 0)
    }

    fn typing_changed(&mut self, room: RoomKey) -> Result<()> {
        let stream = self.next_stream();
        self.execute(
            "INSERT INTO ephemeral_changes (room_key, stream, typing) VALUES (?1, ?2, ?2)
             ON CONFLICT DO UPDATE SET stream = excluded.stream, typing = excluded.typing",
            params![room, stream],
        )?;
        self.wake_room(room)
    }

    /// Something fleeting other than typing changed in the room at this position.
    pub(crate) fn note_ephemeral_change(&mut self, room: RoomKey, stream: i64) -> Result<()> {
        self.execute(
            "INSERT INTO ephemeral_changes (room_key, stream) VALUES (?1, ?2)
             ON CONFLICT DO UPDATE SET stream = excluded.stream",
            params![room, stream],
        )?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ServerName;
    use crate::store::{Location, Options, Store};

    #[test]
    fn one_server_whose_users_all_type_leaves_places_to_the_others() {
        let us = ServerName::parse("us.example").expect("a name");
        let options = Options { durable: false, readers: 1, ..Options::default() };
        let store = Store::open(Location::Memory, &us, Box::new(|_| ()), &options).expect("a store");
        let typing = store.write(|tx| {
            let room = tx.pretend_room("!r:us.example", &[])?;
            let mut start = |user: String, most| -> Result<bool> {
                Ok(tx.start_typing(room, &user, (0, 9), 9, most)?.changed)
            };
            let mut count = |server: &str, most| -> Result<usize> {
                let mut began = 0;
                for n in 0..200 {
                    began += usize::from(start(format!("@u{n}:{server}"), most)?);
                }
                Ok(began)
            };
            let (greedy, other) = (count("a.example", (100, 20))?, count("b.example:8448", (100, 20))?);
            Ok((greedy, other, count("us.example", (150, 50))?))
        });
        assert_eq!(typing.expect("written"), (20, 20, 50));
    }
}
