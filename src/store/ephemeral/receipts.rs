//! Read receipts.

use rusqlite::{OptionalExtension, Row, params};

use crate::clock::Millis;
use crate::error::Result;
use crate::protocol::{EventId, RoomId, ServerName, UserId};
use crate::store::{Db, Place, RoomKey, Tx};

/// The type of the receipts that everybody in the room sees.
pub const READ: &str = "m.read";
/// The type of those that nobody else sees.
pub const PRIVATE: &str = "m.read.private";

/// Up to where somebody has read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// Whose receipt it is.
    pub user_id: String,
    /// `READ` or `PRIVATE`.
    pub receipt_type: String,
    /// `main` or the root of a thread; empty for a receipt that knows no threads.
    pub thread: String,
    /// The event read last.
    pub event_id: String,
    /// When, by the word of the user's server.
    pub ts: Millis,
}

/// Receipts of one user in one room for different threads; older ones go when there are more.
const THREADS_MAX: i64 = 500;

/// By the user, who has few in a room; not by the stream, where everybody's would be gone through.
const OWN_RECEIPTS_BETWEEN: &str = "SELECT user_id, type, thread, event_id, ts FROM receipts
     WHERE room_key = ?1 AND user_id = ?4 AND +stream > ?2 AND +stream <= ?3";

fn receipt_of(row: &Row<'_>) -> rusqlite::Result<Receipt> {
    Ok(Receipt {
        user_id: row.get(0)?,
        receipt_type: row.get(1)?,
        thread: row.get(2)?,
        event_id: row.get(3)?,
        ts: row.get(4)?,
    })
}

impl Db<'_> {
    /// The receipts of a room that came at positions in `(after, upto]` and that a user may see, latest first, at most
    /// `limit`. What the user has read is among them in any case.
    pub fn receipts_between(
        &self,
        room: RoomKey,
        (after, upto): (i64, i64),
        reader: &UserId,
        limit: usize,
    ) -> Result<Vec<Receipt>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT user_id, type, thread, event_id, ts FROM receipts
             WHERE room_key = ?1 AND stream > ?2 AND stream <= ?3 AND user_id <> ?4 AND type <> 'm.read.private'
             ORDER BY stream DESC LIMIT ?5",
        )?;
        let rows =
            statement.query_map(params![room, after, upto, reader.as_str(), limit as i64], receipt_of)?;
        let mut receipts = rows.collect::<rusqlite::Result<Vec<_>>>()?;
        let mut statement = self.conn().prepare_cached(OWN_RECEIPTS_BETWEEN)?;
        for receipt in statement.query_map(params![room, after, upto, reader.as_str()], receipt_of)? {
            receipts.push(receipt?);
        }
        Ok(receipts)
    }

    /// The receipts of a room that came at positions in `(after, upto]` and that everybody in the room may see, latest
    /// first, at most `limit`.
    pub fn public_receipts_between(
        &self,
        room: RoomKey,
        (after, upto): (i64, i64),
        limit: usize,
    ) -> Result<Vec<Receipt>> {
        self.rows(
            "SELECT user_id, type, thread, event_id, ts FROM receipts
             WHERE room_key = ?1 AND stream > ?2 AND stream <= ?3 AND type <> 'm.read.private'
             ORDER BY stream DESC LIMIT ?4",
            params![room, after, upto, limit as i64],
            receipt_of,
        )
    }

    /// The private ones of those.
    pub fn private_receipts_between(
        &self,
        room: RoomKey,
        (after, upto): (i64, i64),
        limit: usize,
    ) -> Result<Vec<Receipt>> {
        self.rows(
            "SELECT user_id, type, thread, event_id, ts FROM receipts
             WHERE room_key = ?1 AND stream > ?2 AND stream <= ?3 AND type = 'm.read.private'
             ORDER BY stream DESC LIMIT ?4",
            params![room, after, upto, limit as i64],
            receipt_of,
        )
    }

    /// The public receipts of local users that came behind a position, in rooms that this server is in with them: the last first,
    /// so many at most. Sought by the local users, of whom a room mostly has few.
    pub fn receipts_for_server(
        &self,
        server: &ServerName,
        after: i64,
        limit: usize,
    ) -> Result<Vec<(RoomId, Receipt)>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT c.user_id, c.type, c.thread, c.event_id, c.ts, rooms.room_id FROM resident_servers s
             CROSS JOIN memberships m ON m.room_key = s.room_key AND m.membership = 'join' AND m.local = 1
             CROSS JOIN receipts c ON c.room_key = s.room_key AND c.user_id = m.user_id AND c.type = 'm.read'
             JOIN rooms ON rooms.room_key = s.room_key
             WHERE s.server = ?1 AND s.until IS NULL AND c.stream > max(s.since, ?2)
             ORDER BY c.stream DESC LIMIT ?3",
        )?;
        let rows = statement.query_map(params![server.as_str(), after, limit as i64], |row| {
            Ok((row.get::<_, String>(5)?, receipt_of(row)?))
        })?;
        rows.map(|row| row.map_err(Into::into).and_then(|(room, of)| Ok((RoomId::parse(&room)?, of))))
            .collect()
    }

    /// The event that a receipt has reached.
    pub fn receipt(
        &self,
        room: RoomKey,
        user: &UserId,
        receipt_type: &str,
        thread: &str,
    ) -> Result<Option<String>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT event_id FROM receipts WHERE room_key = ?1 AND user_id = ?2 AND type = ?3 AND thread = ?4",
        )?;
        Ok(statement
            .query_row(params![room, user.as_str(), receipt_type, thread], |row| row.get(0))
            .optional()?)
    }
}

impl Tx<'_> {
    /// Moves a receipt, and wakes those who may see it; unless it is as far already, since another one was first. Whether
    /// it moved.
    pub fn set_receipt(&mut self, room: RoomKey, receipt: &Receipt) -> Result<bool> {
        let place = self.place_in(room, &receipt.event_id)?;
        if place.is_some() && place <= self.place_of_receipt(room, receipt)? {
            return Ok(false);
        }
        let stream = self.next_stream();
        let key = params![room, receipt.user_id, receipt.receipt_type];
        let threads: i64 = self
            .conn()
            .prepare_cached(
                "SELECT count(*) FROM receipts WHERE room_key = ?1 AND user_id = ?2 AND type = ?3",
            )?
            .query_row(key, |row| row.get(0))?;
        if threads >= THREADS_MAX {
            self.conn()
                .prepare_cached(
                    "DELETE FROM receipts WHERE room_key = ?1 AND user_id = ?2 AND type = ?3 AND thread =
                       (SELECT thread FROM receipts WHERE room_key = ?1 AND user_id = ?2 AND type = ?3
                        ORDER BY stream LIMIT 1)",
                )?
                .execute(key)?;
        }
        self.execute(
            "INSERT OR REPLACE INTO receipts (room_key, user_id, type, thread, event_id, ts, stream)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            params![
                room,
                receipt.user_id,
                receipt.receipt_type,
                receipt.thread,
                receipt.event_id,
                receipt.ts,
                stream,
            ],
        )?;
        self.note_ephemeral_change(room, stream)?;
        if self.is_local(&receipt.user_id)
            && let Ok(user) = UserId::parse(&receipt.user_id)
        {
            self.note_own_receipt(room, &user, receipt, place)?;
        }
        if receipt.receipt_type != PRIVATE {
            self.wake_room(room)?;
        }
        Ok(true)
    }

    /// Where an event of a room stands, if it is here.
    fn place_in(&self, room: RoomKey, event: &str) -> Result<Option<Place>> {
        let Ok(event) = EventId::parse(event) else { return Ok(None) };
        Ok(self.event(&event)?.filter(|event| event.room == room).and_then(|event| event.place))
    }

    /// Where the event stands that this receipt has reached so far.
    fn place_of_receipt(&self, room: RoomKey, receipt: &Receipt) -> Result<Option<Place>> {
        let Ok(user) = UserId::parse(&receipt.user_id) else { return Ok(None) };
        let before = self.receipt(room, &user, &receipt.receipt_type, &receipt.thread)?;
        before.map_or(Ok(None), |before| self.place_in(room, &before))
    }

    /// What a receipt of a local user is to themselves.
    fn note_own_receipt(
        &mut self,
        room: RoomKey,
        user: &UserId,
        receipt: &Receipt,
        place: Option<Place>,
    ) -> Result<()> {
        if let Some(place) = place {
            self.note_read(user, room, &receipt.thread, place)?;
        }
        if receipt.receipt_type == PRIVATE {
            self.changes.reads.insert((room, user.clone()));
            self.wake_user(user);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Location, Options, Store};

    #[test]
    fn what_one_user_has_read_in_a_room_is_sought_by_the_user() {
        let us = ServerName::parse("us.example").expect("a name");
        let options = Options { durable: false, readers: 1, ..Options::default() };
        let store = Store::open(Location::Memory, &us, Box::new(|_| ()), &options).expect("a store");
        let plan = store.read(|db| {
            let sql = format!("EXPLAIN QUERY PLAN {OWN_RECEIPTS_BETWEEN}");
            let of = params![7, 0, 9, "@bob:us.example"];
            Ok(db.conn().prepare(&sql)?.query_row(of, |row| row.get::<_, String>(3))?)
        });
        let plan = plan.expect("a plan");
        assert!(plan.contains("room_key=? AND user_id=?"), "{plan}");
    }
}
