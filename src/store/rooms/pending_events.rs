//! Pending events: received from other servers, and not to be authorised yet; see `pending_events` in the schema.

use rusqlite::{OptionalExtension, Row, params};

use crate::clock::Millis;
use crate::error::{Error, Result};
use crate::protocol::json::CanonicalObject;
use crate::protocol::{EventId, Pdu, RoomVersion, ServerName, UserId, VerifiedPdu};
use crate::store::{Db, RoomKey, Tx};

/// The row id of a pending event.
pub type PendingKey = i64;

/// An event that cannot be authorised yet.
#[derive(Debug, Clone)]
pub struct PendingEvent {
    /// Its row.
    pub key: PendingKey,
    /// Its room.
    pub room: RoomKey,
    /// Its id.
    pub event_id: EventId,
    /// Who sent it to us.
    pub origin: ServerName,
    /// Whether its signatures were checked.
    pub verified: bool,
    /// When it came.
    pub received_ms: Millis,
    /// How often other servers were asked in vain for what it needs.
    pub attempts: u32,
    /// When they are asked next.
    pub retry_ms: Millis,
    /// The event.
    pub json: Vec<u8>,
}

impl PendingEvent {
    /// The event, if its signatures were checked. Errors: 500 if not.
    pub fn verified_pdu(&self, version: RoomVersion) -> Result<VerifiedPdu> {
        if !self.verified {
            return Err(Error::internal("an event that nobody has verified"));
        }
        Ok(VerifiedPdu::from_store(Pdu::trusted(self.event_id.clone(), self.json.clone(), version)?))
    }
}

/// An event that is to become a pending one.
#[derive(Debug, Clone)]
pub struct NewPendingEvent {
    /// Its room.
    pub room: RoomKey,
    /// Its id.
    pub event_id: EventId,
    verified: bool,
    /// Of a verified one: whether it has all of its content.
    whole: bool,
    /// What it waits for: event ids, or names of servers whose keys are lacking.
    pub needs: Vec<String>,
    /// How often other servers were asked in vain.
    pub attempts: u32,
    /// When they are asked next.
    pub retry_ms: Millis,
    /// The event.
    pub json: Vec<u8>,
    invitee: Option<UserId>,
}

impl NewPendingEvent {
    /// An invite of a local user that this server has signed; the room tells of it until then, or it is looked at.
    pub fn signed_invite(room: RoomKey, invite: &Pdu, invitee: &UserId, until: Millis) -> Self {
        let event = (invite.event_id().clone(), invite.json());
        Self { invitee: Some(invitee.clone()), ..Self::for_keys(room, event, &[], (0, until)) }
    }

    /// An event whose signatures could not be checked for want of these servers' keys (none: for another reason), with
    /// how often they were asked for and when that is done next.
    pub fn for_keys(
        room: RoomKey,
        (event_id, json): (EventId, &[u8]),
        servers: &[ServerName],
        (attempts, retry_ms): (u32, Millis),
    ) -> Self {
        let needs = servers.iter().map(ToString::to_string).collect();
        let json = json.to_vec();
        let (verified, whole, invitee) = (false, false, None);
        Self { room, event_id, verified, whole, needs, attempts, retry_ms, json, invitee }
    }

    /// A verified event that needs these events first, with how often they were asked for and when that is done next.
    pub fn for_events(
        room: RoomKey,
        event: &VerifiedPdu,
        needs: Vec<String>,
        (attempts, retry_ms): (u32, Millis),
    ) -> Self {
        let (event_id, json) = (event.event_id().clone(), event.json().to_vec());
        let (verified, whole, invitee) = (true, event.is_whole(), None);
        Self { room, event_id, verified, whole, needs, attempts, retry_ms, json, invitee }
    }

    /// Whether its signatures were checked.
    pub fn is_verified(&self) -> bool {
        self.verified
    }
}

/// How much is pending already.
#[derive(Debug, Clone, Copy, Default)]
pub struct PendingCounts {
    /// Events of one server, in all rooms that we are in.
    pub of_origin: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Those of the server in the room.
    pub of_origin_in_room: usize,
    /// Those of the server whose signatures were not checked, in all rooms that we are in.
    pub unverified: usize,
    /// Events of all servers in the room.
    pub in_room: usize,
}

const COLUMNS: &str = "pending, room_key, event_id, origin, verified, received_ms, attempts, retry_ms, json FROM pending_events";

fn count(row: &Row<'_>, column: usize) -> rusqlite::Result<usize> {
    Ok(usize::try_from(row.get::<_, i64>(column)?).unwrap_or(0))
}

fn pending_of(row: &Row<'_>) -> Result<PendingEvent> {
    Ok(PendingEvent {
        key: row.get(0)?,
        room: row.get(1)?,
        event_id: EventId::parse(&row.get::<_, String>(2)?)?,
        origin: ServerName::parse(&row.get::<_, String>(3)?)?,
        verified: row.get(4)?,
        received_ms: row.get(5)?,
        attempts: row.get(6)?,
        retry_ms: row.get(7)?,
        json: row.get(8)?,
    })
}

impl Db<'_> {
    /// Rooms that we are in with something due, the longest due first.
    pub fn rooms_with_due_pending(&self, now: Millis, limit: usize) -> Result<Vec<RoomKey>> {
        self.rows(
            "SELECT p.room_key FROM pending_events p JOIN rooms r ON r.room_key = p.room_key AND r.resident
             WHERE p.due_ms <= ?1 GROUP BY p.room_key ORDER BY min(p.due_ms) LIMIT ?2",
            params![now, i64::try_from(limit).unwrap_or(i64::MAX)],
            |r| r.get(0),
        )
    }

    /// Rooms that we are not in with something due, each with the server that sent what is due longest there; of each server no
    /// more than so many.
    pub fn remote_rooms_with_due_pending(
        &self,
        now: Millis,
        of_server: usize,
        limit: usize,
    ) -> Result<Vec<(RoomKey, ServerName)>> {
        // With a `min` the other columns are those of the row that has it.
        let mut statement = self.conn().prepare_cached(
            "SELECT room_key, origin FROM (
               SELECT room_key, origin, due_ms, row_number() OVER (PARTITION BY origin ORDER BY due_ms) AS number
               FROM (
                 SELECT p.room_key, p.origin, min(p.due_ms) AS due_ms
                 FROM pending_events p JOIN rooms r ON r.room_key = p.room_key AND NOT r.resident
                 WHERE p.due_ms <= ?1 GROUP BY p.room_key))
             WHERE number <= ?2 ORDER BY due_ms LIMIT ?3",
        )?;
        let most = [of_server, limit].map(|most| i64::try_from(most).unwrap_or(i64::MAX));
        let mut rows = statement.query(params![now, most[0], most[1]])?;
        let mut due = Vec::new();
        while let Some(row) = rows.next()? {
            due.push((row.get(0)?, ServerName::parse(&row.get::<_, String>(1)?)?));
        }
        Ok(due)
    }

    /// When the next one is due.
    pub fn next_pending_due(&self) -> Result<Option<Millis>> {
        let mut statement = self.conn().prepare_cached("SELECT min(due_ms) FROM pending_events")?;
        Ok(statement.query_row([], |row| row.get(0))?)
    }

    /// What is due of a room, what was tried least first, then in the order in which it came.
    pub fn due_pending(&self, room: RoomKey, now: Millis, limit: usize) -> Result<Vec<PendingEvent>> {
        let mut statement = self.conn().prepare_cached(&format!(
            "SELECT {COLUMNS} WHERE room_key = ?1 AND due_ms <= ?2 ORDER BY attempts, pending LIMIT ?3"
        ))?;
        let mut rows = statement.query(params![room, now, i64::try_from(limit).unwrap_or(i64::MAX)])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(pending_of(row)?);
        }
        Ok(found)
    }

    /// How much is pending that came from a server, and in a room.
    pub fn pending_counts(&self, room: RoomKey, origin: &ServerName) -> Result<PendingCounts> {
        let mut of_origin = self.conn().prepare_cached(
            "SELECT w.room_key, r.resident, count(*), sum(w.bytes), sum(w.verified = 0)
             FROM pending_events w CROSS JOIN rooms r USING (room_key) WHERE w.origin = ?1 GROUP BY w.room_key",
        )?;
        let mut queue = PendingCounts::default();
        let mut rows = of_origin.query([origin.as_str()])?;
        while let Some(row) = rows.next()? {
            let events = count(row, 2)?;
            if row.get::<_, RoomKey>(0)? == room {
                queue.of_origin_in_room = events;
            }
            if row.get(1)? {
                queue.of_origin += events;
                queue.bytes += count(row, 3)?;
                queue.unverified += count(row, 4)?;
            }
        }
        let mut in_room =
            self.conn().prepare_cached("SELECT count(*) FROM pending_events WHERE room_key = ?1")?;
        queue.in_room = in_room.query_row([room], |row| count(row, 0))?;
        Ok(queue)
    }

    /// What each server has pending in a room: so many events, of so many bytes.
    pub fn pending_shares(&self, room: RoomKey) -> Result<Vec<(ServerName, usize, usize)>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT origin, count(*), sum(bytes) FROM pending_events WHERE room_key = ?1 GROUP BY origin",
        )?;
        let mut rows = statement.query([room])?;
        let mut shares = Vec::new();
        while let Some(row) = rows.next()? {
            shares.push((ServerName::parse(&row.get::<_, String>(0)?)?, count(row, 1)?, count(row, 2)?));
        }
        Ok(shares)
    }

    /// The invites of a local user that this server has signed since then and that are pending still.
    pub fn pending_invites(&self, room: RoomKey, invitee: &UserId, since: Millis) -> Result<Vec<EventId>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT event_id FROM pending_events WHERE invitee = ?1 AND room_key = ?2 AND received_ms > ?3",
        )?;
        let ids =
            statement.query_map(params![invitee.as_str(), room, since], |row| row.get::<_, String>(0))?;
        ids.map(|id| EventId::parse(&id?)).collect()
    }

    /// Whether the event is pending here, checked.
    pub fn is_pending(&self, id: &EventId) -> Result<bool> {
        let mut statement = self
            .conn()
            .prepare_cached("SELECT 1 FROM pending_events WHERE event_id = ?1 AND verified = 1")?;
        Ok(statement.exists([id.as_str()])?)
    }

    /// Whether the event need not be kept once more: checked, or as this server sent it.
    pub fn is_pending_from(&self, id: &EventId, origin: &ServerName, verified: bool) -> Result<bool> {
        let mut statement = self.conn().prepare_cached(
            "SELECT 1 FROM pending_events WHERE event_id = ?1 AND (verified = 1 OR (origin = ?2 AND NOT ?3))",
        )?;
        Ok(statement.exists(params![id.as_str(), origin.as_str(), verified])?)
    }

    /// Whether the event has a place in the graph here.
    pub fn is_placed(&self, id: &EventId) -> Result<bool> {
        Ok(matches!(self.event_status(id)?, Some((_, false))))
    }

    /// Those of the events that have no place in the graph here: unknown ones, and outliers.
    pub fn unplaced(&self, ids: &[EventId]) -> Result<Vec<EventId>> {
        let mut unplaced = Vec::new();
        for id in ids {
            if !self.is_placed(id)? {
                unplaced.push(id.clone());
            }
        }
        Ok(unplaced)
    }
}

impl Tx<'_> {
    /// Takes the whole copy of a verified event that is pending in its redacted form, because whoever relayed it had
    /// altered its content.
    pub fn complete_pending(&mut self, event: &NewPendingEvent) -> Result<()> {
        if !event.whole {
            return Ok(());
        }
        let kept: Option<Vec<u8>> = self
            .conn()
            .prepare_cached("SELECT json FROM pending_events WHERE event_id = ?1 AND verified = 1")?
            .query_row([event.event_id.as_str()], |row| row.get(0))
            .optional()?;
        let is_whole = |json: &Vec<u8>| {
            CanonicalObject::read(json).is_ok_and(|(object, _)| object.content_hash_matches())
        };
        if kept.is_none_or(|kept| is_whole(&kept)) {
            return Ok(());
        }
        let bytes = i64::try_from(event.json.len()).unwrap_or(i64::MAX);
        self.execute(
            "UPDATE pending_events SET json = ?2, bytes = ?3 WHERE event_id = ?1 AND verified = 1",
            params![event.event_id.as_str(), event.json, bytes],
        )?;
        Ok(())
    }

    /// Keeps an event until what it needs is here. Nothing happens if it is pending already.
    pub fn add_pending(&mut self, event: &NewPendingEvent, origin: &ServerName, now: Millis) -> Result<()> {
        if event.verified && self.is_pending(&event.event_id)? {
            return Ok(());
        }
        // It may have come into its room since somebody looked.
        let mut due = if self.is_placed(&event.event_id)? { 0 } else { event.retry_ms };
        for id in event.needs.iter().filter_map(|need| EventId::parse(need).ok()) {
            // What came since somebody looked calls nobody any more.
            if self.event_key(&id)?.is_some() {
                due = 0;
            }
        }
        let key: Option<PendingKey> = self
            .conn()
            .prepare_cached(
                "INSERT INTO pending_events (room_key, event_id, origin, verified, received_ms, attempts, retry_ms,
                   due_ms, bytes, json, invitee) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)
                 ON CONFLICT (event_id, origin) DO UPDATE SET verified = 1, json = excluded.json,
                   bytes = excluded.bytes, retry_ms = excluded.retry_ms, due_ms = excluded.due_ms
                 WHERE excluded.verified AND NOT pending_events.verified
                 RETURNING pending",
            )?
            .query_row(
                params![
                    event.room,
                    event.event_id.as_str(),
                    origin.as_str(),
                    event.verified,
                    now,
                    event.attempts,
                    event.retry_ms,
                    due,
                    i64::try_from(event.json.len()).unwrap_or(i64::MAX),
                    event.json,
                    event.invitee.as_ref().map(UserId::as_str),
                ],
                |row| row.get(0),
            )
            .optional()?;
        if let Some(key) = key {
            self.set_needs(key, &event.event_id, &event.needs)?;
            self.wake_timer();
        }
        Ok(())
    }

    /// An event whose signatures could be checked at last, in the form that the checks left of it.
    pub fn pending_was_verified(&mut self, key: PendingKey, event: &VerifiedPdu) -> Result<()> {
        let json = event.json();
        self.execute(
            "UPDATE pending_events SET verified = 1, json = ?2, bytes = ?3, due_ms = 0 WHERE pending = ?1",
            params![key, json, i64::try_from(json.len()).unwrap_or(i64::MAX)],
        )?;
        self.wake_timer();
        Ok(())
    }

    /// Puts an event off; `needs` is what it waits for now. One that has come into its room meanwhile is due.
    pub fn put_off_pending(&mut self, event: &PendingEvent, needs: &[String]) -> Result<()> {
        let due = if self.is_placed(&event.event_id)? { 0 } else { event.retry_ms };
        self.execute(
            "UPDATE pending_events SET attempts = ?2, retry_ms = ?3, due_ms = ?4 WHERE pending = ?1",
            params![event.key, event.attempts, event.retry_ms, due],
        )?;
        self.is_due(due);
        self.set_needs(event.key, &event.event_id, needs)
    }

    /// Until then nobody is asked for what a room's events need that came from a server (from any, if none is named).
    /// What has been hastened is still looked at.
    pub fn retry_pending_later(
        &mut self,
        room: RoomKey,
        origin: Option<&ServerName>,
        until: Millis,
    ) -> Result<()> {
        self.execute(
            "UPDATE pending_events SET retry_ms = ?3, due_ms = CASE due_ms WHEN 0 THEN 0 ELSE ?3 END
             WHERE room_key = ?1 AND retry_ms < ?3 AND (?2 IS NULL OR origin = ?2)",
            params![room, origin.map(ServerName::as_str), until],
        )?;
        self.is_due(until);
        Ok(())
    }

    /// An event that is pending no longer.
    pub fn end_pending(&mut self, key: PendingKey) -> Result<()> {
        self.execute("DELETE FROM pending_events WHERE pending = ?1", params![key])?;
        Ok(())
    }

    /// What came first of what a server has pending in a room is so no longer. Returns its bytes; none if there is
    /// nothing.
    pub fn end_first_pending(&mut self, room: RoomKey, origin: &ServerName) -> Result<Option<usize>> {
        let mut statement = self.conn().prepare_cached(
            "DELETE FROM pending_events WHERE pending =
               (SELECT min(pending) FROM pending_events WHERE origin = ?1 AND room_key = ?2) RETURNING bytes",
        )?;
        Ok(statement.query_row(params![origin.as_str(), room], |row| count(row, 0)).optional()?)
    }

    /// What is pending in a room is looked at now: we have come in.
    pub(crate) fn hasten_pending_in(&mut self, room: RoomKey) -> Result<()> {
        let hastened =
            self.execute("UPDATE pending_events SET due_ms = 0 WHERE room_key = ?1", params![room])?;
        if hastened > 0 {
            self.wake_timer();
        }
        Ok(())
    }

    /// What waits for this is due now.
    pub(crate) fn hasten_pending_that_needs(&mut self, need: &str) -> Result<()> {
        // Every event that is stored asks this, and hardly ever does anything wait.
        let known = self.recall(|cache| cache.is_anything_pending());
        let any = match known {
            Some(any) => any,
            None => self.conn().prepare_cached("SELECT 1 FROM pending_needs LIMIT 1")?.exists([])?,
        };
        self.remember(|cache| cache.keep_is_anything_pending(Some(any)));
        if !any {
            return Ok(());
        }
        let anything =
            self.conn().prepare_cached("SELECT 1 FROM pending_needs WHERE need = ?1")?.exists([need])?;
        if anything {
            self.execute(
                "UPDATE pending_events SET due_ms = 0
                 WHERE pending IN (SELECT pending FROM pending_needs WHERE need = ?1)",
                params![need],
            )?;
            self.wake_timer();
            self.wake_awaiting(need)?;
        }
        Ok(())
    }

    /// Somebody may wait for an invite that has come, or that the room refuses.
    fn wake_awaiting(&mut self, event: &str) -> Result<()> {
        let invitees: Vec<String> = self.rows(
            "SELECT invitee FROM pending_events WHERE event_id = ?1 AND invitee IS NOT NULL",
            params![event],
            |row| row.get(0),
        )?;
        for invitee in invitees {
            self.wake_user(&UserId::parse(&invitee)?);
        }
        Ok(())
    }

    fn set_needs(&mut self, key: PendingKey, own: &EventId, needs: &[String]) -> Result<()> {
        self.execute("DELETE FROM pending_needs WHERE pending = ?1", params![key])?;
        self.remember(|cache| cache.keep_is_anything_pending(None));
        let mut insert = self
            .conn()
            .prepare_cached("INSERT OR IGNORE INTO pending_needs (need, pending) VALUES (?1, ?2)")?;
        for need in needs.iter().map(String::as_str).chain([own.as_str()]) {
            insert.execute(params![need, key])?;
        }
        Ok(())
    }
}
