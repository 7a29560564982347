//! Events that users have asked to be sent later.

use rusqlite::{OptionalExtension, Row, params};
use serde_json::{Map, Value, json};

use crate::clock::Millis;
use crate::error::{Error, Result};
use crate::protocol::json::object_tree;
use crate::protocol::{EventId, RoomId, UserId};
use crate::store::accounts::client_transactions::{ClientTxn, DelayedOutcome};
use crate::store::{Db, EventKey, Tx};

/// An event that is to be sent later.
#[derive(Debug, Clone, PartialEq)]
pub struct DelayedEvent {
    /// What it is known by to whoever may restart, cancel or send it.
    pub delay_id: String,
    /// Who sends it.
    pub user_id: UserId,
    /// Where.
    pub room_id: RoomId,
    /// Its type.
    pub event_type: String,
    /// Of a state event its state key.
    pub state_key: Option<String>,
    /// Its content.
    pub content: Map<String, Value>,
    /// How long after it was asked for, or restarted, it is sent.
    pub delay_ms: Millis,
    /// When it was asked for, or restarted.
    pub since_ms: Millis,
    /// When it is tried: `delay_ms` after `since_ms`, or later if it could not be sent then for a reason that passes.
    pub due_ms: Millis,
}

const DELAYED: &str = "SELECT delay_id, user_id, room_id, type, state_key, content, delay_ms, since_ms, due_ms FROM delayed_events";

fn delayed_of(row: &Row<'_>) -> Result<DelayedEvent> {
    Ok(DelayedEvent {
        delay_id: row.get(0)?,
        user_id: UserId::parse(&row.get::<_, String>(1)?)?,
        room_id: RoomId::parse(&row.get::<_, String>(2)?)?,
        event_type: row.get(3)?,
        state_key: row.get(4)?,
        content: object_tree(&row.get::<_, String>(5)?).map_err(Error::internal)?,
        delay_ms: row.get(6)?,
        since_ms: row.get(7)?,
        due_ms: row.get(8)?,
    })
}

impl Db<'_> {
    /// The delayed event of this id.
    pub fn delayed_event(&self, delay_id: &str) -> Result<Option<DelayedEvent>> {
        let mut statement = self.conn().prepare_cached(&format!("{DELAYED} WHERE delay_id = ?1"))?;
        let mut rows = statement.query([delay_id])?;
        rows.next()?.map(delayed_of).transpose()
    }

    /// All delayed events of a user, that which is due first first.
    pub fn delayed_events_of(&self, user: &UserId) -> Result<Vec<DelayedEvent>> {
        let mut statement =
            self.conn().prepare_cached(&format!("{DELAYED} WHERE user_id = ?1 ORDER BY due_ms, delay_id"))?;
        let mut rows = statement.query([user.as_str()])?;
        let mut events = Vec::new();
        while let Some(row) = rows.next()? {
            events.push(delayed_of(row)?);
        }
        Ok(events)
    }

    /// Whether there is a delayed event of this id.
    pub fn has_delayed_event(&self, delay_id: &str) -> Result<bool> {
        let mut statement = self.conn().prepare_cached("SELECT 1 FROM delayed_events WHERE delay_id = ?1")?;
        Ok(statement.exists([delay_id])?)
    }

    /// Of those that are due and are not these users', the one that has been longest: its id, and whose it is.
    pub fn first_due_delayed_event(
        &self,
        now: Millis,
        but_of: &[UserId],
    ) -> Result<Option<(String, UserId)>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT delay_id, user_id FROM delayed_events
             WHERE due_ms <= ?1 AND user_id NOT IN (SELECT value FROM json_each(?2)) ORDER BY due_ms LIMIT 1",
        )?;
        let row: Option<(String, String)> = statement
            .query_row(params![now, json!(but_of).to_string()], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        row.map(|(delay_id, user)| Ok((delay_id, UserId::parse(&user)?))).transpose()
    }

    /// When the next one is due.
    pub fn next_delayed_event_due(&self) -> Result<Option<Millis>> {
        let mut statement = self.conn().prepare_cached("SELECT min(due_ms) FROM delayed_events")?;
        Ok(statement.query_row([], |row| row.get(0))?)
    }
}

impl Tx<'_> {
    /// Keeps an event to be sent later, and gives the id by which it is known: that of before if the request is a
    /// repeat, also if that one was sent or cancelled since. None: the user has `most` of them already.
    pub fn add_delayed_event(
        &mut self,
        event: &DelayedEvent,
        request: Option<&ClientTxn>,
        most: usize,
    ) -> Result<Option<String>> {
        if let Some(request) = request
            && let Some(known) = self.client_txn_delayed_event(request)?
        {
            return Ok(Some(known));
        }
        let there: i64 = self
            .conn()
            .prepare_cached("SELECT count(*) FROM delayed_events WHERE user_id = ?1")?
            .query_row([event.user_id.as_str()], |row| row.get(0))?;
        if usize::try_from(there).unwrap_or(usize::MAX) >= most {
            return Ok(None);
        }
        self.insert_delayed_event(event)?;
        if let Some(request) = request {
            self.add_client_txn_delayed(request, &event.delay_id, event.since_ms)?;
        }
        Ok(Some(event.delay_id.clone()))
    }

    /// Begins the delay anew. False: there is no such delayed event, any more.
    pub fn restart_delayed_event(&mut self, delay_id: &str, now: Millis) -> Result<bool> {
        let restarted = self.execute(
            "UPDATE delayed_events SET since_ms = ?2, due_ms = ?2 + delay_ms WHERE delay_id = ?1",
            params![delay_id, now],
        )?;
        Ok(restarted == 1)
    }

    /// Has a delayed event tried later that is still due as it was.
    pub fn put_off_delayed_event(&mut self, delay_id: &str, (due, later): (Millis, Millis)) -> Result<()> {
        self.execute(
            "UPDATE delayed_events SET due_ms = ?3 WHERE delay_id = ?1 AND due_ms = ?2",
            params![delay_id, due, later],
        )?;
        self.is_due(later);
        Ok(())
    }

    /// Takes a delayed event out, if it is still due at this time where one is said, and notes what became of it. False: it
    /// is not there, any more or so.
    pub fn finish_delayed_event(
        &mut self,
        delay_id: &str,
        due: Option<Millis>,
        (outcome, event): (DelayedOutcome, Option<EventKey>),
        now: Millis,
    ) -> Result<bool> {
        let was_there = self.take_delayed_event(delay_id, due)?;
        if was_there {
            self.note_delayed_outcome(delay_id, outcome, event, now)?;
        }
        Ok(was_there)
    }

    /// Takes a delayed event out without noting what became of it, which is not known yet. False: it is not there, any more or
    /// so.
    pub fn take_delayed_event(&mut self, delay_id: &str, due: Option<Millis>) -> Result<bool> {
        let deleted = self.execute(
            "DELETE FROM delayed_events WHERE delay_id = ?1 AND (?2 IS NULL OR due_ms = ?2)",
            params![delay_id, due],
        )?;
        Ok(deleted == 1)
    }

    /// A delayed event that was taken out is this event now.
    pub fn delayed_event_became(&mut self, delay_id: &str, event: &EventId, now: Millis) -> Result<()> {
        let event = self.event_key(event)?;
        self.note_delayed_outcome(delay_id, DelayedOutcome::Sent, event, now)
    }

    /// A delayed event that was taken out could not be sent.
    pub fn put_back_delayed_event(&mut self, event: &DelayedEvent) -> Result<()> {
        self.insert_delayed_event(event)
    }

    fn insert_delayed_event(&mut self, event: &DelayedEvent) -> Result<()> {
        self.remember(|cache| cache.keep_is_anything_delayed(None));
        self.execute(
            "INSERT INTO delayed_events (delay_id, user_id, room_id, type, state_key, content, delay_ms, since_ms,
             due_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            params![
                event.delay_id,
                event.user_id.as_str(),
                event.room_id.as_str(),
                event.event_type,
                event.state_key,
                Value::Object(event.content.clone()).to_string(),
                event.delay_ms,
                event.since_ms,
                event.due_ms,
            ],
        )?;
        self.is_due(event.due_ms);
        Ok(())
    }

    /// A state event came: those that others wanted to be sent under the same type and state key are not sent any more.
    pub(in crate::store) fn cancel_delayed_state(
        &mut self,
        room: &RoomId,
        (event_type, state_key): (&str, &str),
        sender: &UserId,
    ) -> Result<()> {
        if !self.is_anything_delayed()? {
            return Ok(());
        }
        let cancelled: Vec<(String, Millis)> = self.rows(
            "DELETE FROM delayed_events WHERE room_id = ?1 AND type = ?2 AND state_key = ?3 AND user_id <> ?4
             RETURNING delay_id, since_ms",
            params![room.as_str(), event_type, state_key, sender.as_str()],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        for (delay_id, since) in cancelled {
            self.note_delayed_outcome(&delay_id, DelayedOutcome::Cancelled, None, since)?;
        }
        Ok(())
    }

    /// Whether any event is to be sent later, or was lately: mostly there is none, and every change of state asks.
    fn is_anything_delayed(&self) -> Result<bool> {
        if let Some(known) = self.recall(|cache| cache.is_anything_delayed()) {
            return Ok(known);
        }
        let any = self.conn().prepare_cached("SELECT 1 FROM delayed_events LIMIT 1")?.exists([])?;
        self.remember(|cache| cache.keep_is_anything_delayed(Some(any)));
        Ok(any)
    }

    /// A user is gone: what they wanted to be sent is not.
    pub(in crate::store) fn delete_delayed_events_of(&mut self, user: &UserId) -> Result<()> {
        self.execute("DELETE FROM delayed_events WHERE user_id = ?1", params![user.as_str()])?;
        Ok(())
    }
}
