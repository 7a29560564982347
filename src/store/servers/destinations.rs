//! What we owe other servers, and how far each one is (`schema.sql`, "Other servers").
//!
//! Owed are: our outgoing events in the rooms where the server resides, within the intervals of its residence; events
//! aimed at it (`owed_events`); durable ephemeral messages aimed at it (`owed_edus`); the device lists of those local
//! users who came into a room with it (`newly_shared_users`). All are in stream order. A server that was away for long
//! is not owed all of the events any more (`shorten_backlogs`).

use rusqlite::{OptionalExtension, params};

use crate::clock::Millis;
use crate::error::Result;
use crate::protocol::{EventId, ServerName};
use crate::store::{Db, RoomKey, Tx};

/// A server that we send to, as it is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Destination {
    /// Everything owed up to here is delivered.
    pub cursor: i64,
    /// Where the transaction ends that failed last, if one did.
    pub attempt_upto: Option<i64>,
    /// Failures in a row.
    pub failures: u32,
    /// Not to be tried before, unless it speaks to us.
    pub retry_ms: Millis,
    /// When the first of these failures was; 0: there is none.
    pub failing_since_ms: Millis,
    /// Behind which position it may lack receipts of local users, if it may.
    pub receipts_from: Option<i64>,
}

/// An event that a server is owed.
#[derive(Debug)]
pub struct OwedEvent {
    /// Its position.
    pub stream: i64,
    /// Its id.
    pub event_id: EventId,
    /// Its bytes.
    pub json: Vec<u8>,
}

impl Db<'_> {
    /// What is kept of a destination; a fresh one if nothing is.
    pub fn destination(&self, server: &ServerName) -> Result<Destination> {
        let mut statement = self.conn().prepare_cached(
            "SELECT cursor, attempt_upto, failures, retry_ms, failing_since_ms, receipts_from FROM destinations
             WHERE server = ?1",
        )?;
        let found = statement
            .query_row([server.as_str()], |row| {
                Ok(Destination {
                    cursor: row.get(0)?,
                    attempt_upto: row.get(1)?,
                    failures: row.get(2)?,
                    retry_ms: row.get(3)?,
                    failing_since_ms: row.get(4)?,
                    receipts_from: row.get(5)?,
                })
            })
            .optional()?;
        Ok(found.unwrap_or_default())
    }

    /// All destinations that failed last time.
    pub fn failing_destinations(&self) -> Result<Vec<(ServerName, Destination)>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT server, cursor, attempt_upto, failures, retry_ms, failing_since_ms, receipts_from FROM destinations
             WHERE failures > 0",
        )?;
        let rows = statement.query_map([], |row| {
            let destination = Destination {
                cursor: row.get(1)?,
                attempt_upto: row.get(2)?,
                failures: row.get(3)?,
                retry_ms: row.get(4)?,
                failing_since_ms: row.get(5)?,
                receipts_from: row.get(6)?,
            };
            Ok((row.get::<_, String>(0)?, destination))
        })?;
        let mut all = Vec::new();
        for row in rows {
            let (server, destination) = row?;
            // A name that a stricter grammar refuses nowadays cannot be sent to.
            all.extend(ServerName::parse(&server).ok().map(|server| (server, destination)));
        }
        Ok(all)
    }

    /// The names of all servers that are in a room with us, or to which something was sent, in their order.
    pub fn known_servers(&self) -> Result<Vec<ServerName>> {
        let all = "SELECT server FROM destinations WHERE server <> ?1
             UNION SELECT server FROM resident_servers WHERE server <> ?1 ORDER BY 1";
        let names = self.rows(all, &[&self.server_name().as_str()], |row| row.get::<_, String>(0))?;
        Ok(names.iter().filter_map(|name| ServerName::parse(name).ok()).collect())
    }

    /// Whether this is one of [`Db::known_servers`].
    pub fn knows_server(&self, server: &ServerName) -> Result<bool> {
        let mut statement = self.conn().prepare_cached(
            "SELECT ?1 <> ?2 AND (EXISTS (SELECT 1 FROM destinations WHERE server = ?1)
               OR EXISTS (SELECT 1 FROM resident_servers WHERE server = ?1))",
        )?;
        Ok(statement.query_row([server.as_str(), self.server_name().as_str()], |row| row.get(0))?)
    }

    /// A page of the rooms that a server is in, in their order or `backwards`: each with the position of our last event in it
    /// that it is sent, or of its coming if there is none; and how many there are in all.
    pub fn rooms_of_server(
        &self,
        server: &ServerName,
        backwards: bool,
        (from, limit): (i64, i64),
    ) -> Result<(Vec<(String, i64)>, i64)> {
        let name = server.as_str();
        let total = self
            .conn()
            .prepare_cached("SELECT count(*) FROM resident_servers WHERE server = ?1 AND until IS NULL")?
            .query_row([name], |row| row.get(0))?;
        let direction = if backwards { "DESC" } else { "ASC" };
        let page = format!(
            "SELECT r.room_id, coalesce(
               (SELECT max(e.stream) FROM events e WHERE e.room_key = s.room_key AND e.outgoing = 1), s.since)
             FROM resident_servers s JOIN rooms r USING (room_key) WHERE s.server = ?1 AND s.until IS NULL
             ORDER BY r.room_id {direction} LIMIT ?2 OFFSET ?3"
        );
        let rooms = self.rows(&page, params![name, limit, from], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok((rooms, total))
    }

    /// Whether there is any other server that might be owed something, or did not take it.
    pub fn may_owe_servers(&self) -> Result<bool> {
        let mut statement = self.conn().prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM destinations) OR EXISTS (SELECT 1 FROM owed_edus)
               OR EXISTS (SELECT 1 FROM owed_events) OR EXISTS (SELECT 1 FROM resident_servers WHERE server <> ?1)",
        )?;
        Ok(statement.query_row([self.server_name().as_str()], |row| row.get(0))?)
    }

    /// Every server that is owed anything, for the start. Of receipts that were lost with the memory of who sends them only where
    /// each local user has read last is looked at; the others come with what the server is sent next.
    pub fn owed_servers(&self) -> Result<Vec<ServerName>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT r.server FROM resident_servers r LEFT JOIN destinations d ON d.server = r.server
             WHERE r.server <> ?1 AND EXISTS (
               SELECT 1 FROM events e WHERE e.outgoing = 1 AND e.room_key = r.room_key
                 AND e.stream > max(r.since, r.left_out, coalesce(d.cursor, 0)) AND (r.until IS NULL OR e.stream < r.until))
             UNION SELECT r.server FROM memberships m CROSS JOIN resident_servers r ON r.room_key = m.room_key
               LEFT JOIN destinations d ON d.server = r.server
             WHERE m.joined_since IS NOT NULL AND r.server <> ?1 AND r.until IS NULL AND r.since < m.joined_since
               AND m.joined_since > coalesce(d.cursor, 0)
             UNION SELECT server FROM owed_events
             UNION SELECT server FROM owed_edus
             UNION SELECT server FROM destinations WHERE receipts_from IS NOT NULL
             UNION SELECT r.server FROM users u
               CROSS JOIN read_positions p ON p.user_id = u.user_id AND p.moved > 0 AND p.moved =
                 (SELECT max(moved) FROM read_positions WHERE user_id = u.user_id AND moved > 0)
               CROSS JOIN resident_servers r ON r.room_key = p.room_key AND r.until IS NULL AND r.server <> ?1
               CROSS JOIN destinations d ON d.server = r.server AND d.cursor < p.moved
             WHERE EXISTS (SELECT 1 FROM receipts c WHERE c.room_key = p.room_key AND c.user_id = u.user_id
               AND c.type = 'm.read' AND c.stream > max(d.cursor, r.since))",
        )?;
        let rows = statement.query_map([self.server_name().as_str()], |row| row.get::<_, String>(0))?;
        let mut all = Vec::new();
        for server in rows {
            all.extend(ServerName::parse(&server?).ok());
        }
        Ok(all)
    }

    /// The other servers that are in a room now, and those that have left it but may be owed something from before.
    pub fn destinations_of_room(&self, room: RoomKey) -> Result<Vec<ServerName>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT DISTINCT r.server FROM resident_servers r LEFT JOIN destinations d ON d.server = r.server
             WHERE r.room_key = ?1 AND r.server <> ?2 AND (r.until IS NULL OR r.until > coalesce(d.cursor, 0))",
        )?;
        let rows = statement.query_map((room, self.server_name().as_str()), |row| row.get::<_, String>(0))?;
        let mut all = Vec::new();
        for server in rows {
            all.extend(ServerName::parse(&server?).ok());
        }
        Ok(all)
    }

    /// The first events that a server is owed with positions in `(after, upto]`.
    pub fn owed_events(
        &self,
        server: &ServerName,
        after: i64,
        upto: i64,
        limit: usize,
    ) -> Result<Vec<OwedEvent>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT e.stream, e.event_id, e.json FROM (
               SELECT e.event_key, e.stream FROM resident_servers r JOIN events e ON e.room_key = r.room_key
                 WHERE r.server = ?1 AND e.outgoing = 1 AND e.stream > max(r.since, r.left_out, ?2) AND e.stream <= ?3
                   AND (r.until IS NULL OR e.stream < r.until)
               UNION
               SELECT event_key, stream FROM owed_events WHERE server = ?1 AND stream > ?2 AND stream <= ?3
               ORDER BY 2 LIMIT ?4) AS owed
             JOIN events e USING (event_key) ORDER BY owed.stream",
        )?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = statement.query_map((server.as_str(), after, upto, limit), |row| {
            Ok((row.get(0)?, row.get::<_, String>(1)?, row.get(2)?))
        })?;
        let mut all = Vec::new();
        for row in rows {
            let (stream, event_id, json) = row?;
            all.push(OwedEvent { stream, event_id: EventId::parse(&event_id)?, json });
        }
        Ok(all)
    }
}

/// A room in which a server missed much: it is owed what comes after this position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LongBacklog {
    /// The room.
    pub room: RoomKey,
    /// Where the last few begin, exclusive.
    pub after: i64,
}

impl Db<'_> {
    /// The rooms that a server is in and in which it is owed more than `most` events beyond its cursor, each with the
    /// place where the last `few` of them begin. Rooms that it has left are not among them: there nobody answers its
    /// questions any more, and it needs what leads to its leave.
    pub fn long_backlogs(
        &self,
        server: &ServerName,
        cursor: i64,
        most: usize,
        few: usize,
    ) -> Result<Vec<LongBacklog>> {
        let mut rooms = self.conn().prepare_cached(
            "SELECT room_key, max(since, left_out, ?2) FROM resident_servers WHERE server = ?1 AND until IS NULL",
        )?;
        let mut nth_newest = self.conn().prepare_cached(
            "SELECT stream FROM events WHERE room_key = ?1 AND outgoing = 1 AND stream > ?2
             ORDER BY stream DESC LIMIT 1 OFFSET ?3",
        )?;
        let mut long = Vec::new();
        let found = rooms.query_map((server.as_str(), cursor), |row| Ok((row.get(0)?, row.get(1)?)))?;
        for row in found {
            let (room, after): (RoomKey, i64) = row?;
            let mut nth = |n: usize| {
                let n = i64::try_from(n).unwrap_or(i64::MAX);
                nth_newest.query_row((room, after, n), |row| row.get::<_, i64>(0)).optional()
            };
            if nth(most)?.is_some()
                && let Some(after) = nth(few)?
            {
                long.push(LongBacklog { room, after });
            }
        }
        Ok(long)
    }
}

impl Tx<'_> {
    /// Owes a server no more than the last events of these rooms, and of the others those on which nothing rests yet:
    /// from them everything else can be found.
    pub fn shorten_backlogs(
        &mut self,
        server: &ServerName,
        cursor: i64,
        rooms: &[LongBacklog],
    ) -> Result<()> {
        for LongBacklog { room, after } in rooms {
            self.execute(
                "UPDATE resident_servers SET left_out = ?3 WHERE room_key = ?1 AND server = ?2 AND until IS NULL",
                params![room, server.as_str(), after],
            )?;
            self.execute(
                "INSERT OR IGNORE INTO owed_events (server, stream, event_key)
                 SELECT ?2, e.stream, e.event_key FROM extremities x JOIN events e USING (event_key)
                   WHERE x.room_key = ?1 AND e.outgoing = 1 AND e.stream > ?3 AND e.stream <= ?4",
                params![room, server.as_str(), cursor, after],
            )?;
        }
        Ok(())
    }

    /// Keeps how far a destination is. What was owed to it in particular up to the cursor, and ephemeral messages up to
    /// `edus_upto`, were delivered and go.
    pub fn save_destination(
        &mut self,
        server: &ServerName,
        destination: &Destination,
        edus_upto: i64,
    ) -> Result<()> {
        let name = server.as_str();
        self.execute(
            "INSERT INTO destinations
               (server, cursor, attempt_upto, failures, retry_ms, failing_since_ms, receipts_from)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
             ON CONFLICT (server) DO UPDATE SET cursor = max(cursor, excluded.cursor),
               attempt_upto = excluded.attempt_upto, failures = excluded.failures, retry_ms = excluded.retry_ms,
               failing_since_ms = excluded.failing_since_ms, receipts_from = excluded.receipts_from",
            params![
                name,
                destination.cursor,
                destination.attempt_upto,
                destination.failures,
                destination.retry_ms,
                destination.failing_since_ms,
                destination.receipts_from,
            ],
        )?;
        self.execute(
            "DELETE FROM owed_events WHERE server = ?1 AND stream <= ?2",
            params![name, destination.cursor],
        )?;
        self.execute("DELETE FROM owed_edus WHERE server = ?1 AND stream <= ?2", params![name, edus_upto])?;
        Ok(())
    }

    /// Forgets the servers that have failed for long, since before this time, and with which we have nothing to do any
    /// more. How many these were.
    pub fn forget_destinations(&mut self, before: Millis) -> Result<usize> {
        let forgotten = self.execute(
            "DELETE FROM destinations WHERE failures > 0 AND retry_ms < ?1
             AND NOT EXISTS (SELECT 1 FROM resident_servers r WHERE r.server = destinations.server
               AND (r.until IS NULL OR r.until > destinations.cursor))
             AND NOT EXISTS (SELECT 1 FROM owed_events o WHERE o.server = destinations.server)
             AND NOT EXISTS (SELECT 1 FROM owed_edus o WHERE o.server = destinations.server)",
            params![before],
        )?;
        Ok(forgotten)
    }
}

#[cfg(test)]
impl Tx<'_> {
    /// A room with these servers in it from now on, for tests of delivery.
    pub(crate) fn pretend_room(&mut self, room_id: &str, servers: &[&ServerName]) -> Result<RoomKey> {
        let since = self.next_stream();
        self.conn()
            .execute("INSERT INTO rooms (room_id, version, resident) VALUES (?1, '11', 1)", [room_id])?;
        let room = self.conn().last_insert_rowid();
        for server in servers {
            self.conn().execute(
                "INSERT INTO resident_servers (room_key, server, since, users) VALUES (?1, ?2, ?3, 1)",
                (room, server.as_str(), since),
            )?;
        }
        Ok(room)
    }

    /// Ends a server's residence now.
    pub(crate) fn pretend_departure(&mut self, room: RoomKey, server: &ServerName) -> Result<()> {
        let until = self.next_stream();
        self.conn().execute(
            "UPDATE resident_servers SET until = ?3 WHERE room_key = ?1 AND server = ?2",
            (room, server.as_str(), until),
        )?;
        Ok(())
    }

    /// An outgoing event of a room; nobody is woken. Gives its row and position.
    pub(crate) fn pretend_event(
        &mut self,
        room: RoomKey,
        event_id: &str,
        sender: &str,
    ) -> Result<(i64, i64)> {
        let stream = self.next_stream();
        let json = format!(r#"{{"type":"x","sender":"{sender}","event_id":"{event_id}"}}"#);
        self.conn().execute(
            "INSERT INTO events (room_key, event_id, stream, depth, origin_server_ts, status, outgoing, json) VALUES (?1, ?2, ?3, 1, 1, 0, 1, ?4)",
            (room, event_id, stream, json.as_bytes()),
        )?;
        Ok((self.conn().last_insert_rowid(), stream))
    }
}
