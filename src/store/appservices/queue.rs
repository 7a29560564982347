//! What application services are still to be told: which events, and the transaction that each is being sent.

use rusqlite::{OptionalExtension, Row, params};

use crate::clock::Millis;
use crate::error::{Error, Result};
use crate::store::devices::to_device::LineKey;
use crate::store::{Db, EventKey, RoomKey, Tx};

/// The row id of an application service.
pub type ServiceKey = i64;

/// What is known of a service beyond its registration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceRow {
    /// Its row.
    pub key: ServiceKey,
    /// It is told what comes behind this position.
    pub since: i64,
    /// Up to where it was told whose devices changed.
    pub devices_upto: i64,
    /// How often in a row it has not taken what it was sent.
    pub failures: u32,
    /// When that is tried again, if it is put off.
    pub due_ms: Option<Millis>,
    /// When it last took something.
    pub taken_ms: Option<Millis>,
}

/// An event that a service is to be told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueuedEvent {
    /// Its position.
    pub stream: i64,
    /// The event; none of one in a room that this server is not in.
    pub key: Option<EventKey>,
    /// Of such a one, what is told.
    pub json: Option<String>,
}

/// A transaction that a service has not taken yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceTransaction {
    /// Its id, which is no other's.
    pub txn_id: String,
    /// When it was made: it says how old events were then.
    pub begun_ms: Millis,
    /// Up to which position the events that wait are in it. Which ones these are stays so; they are written as they are when it
    /// is sent, since what was redacted meanwhile is not to be told.
    pub events_upto: i64,
    /// The body without the events, which stays as it is.
    pub body: String,
}

/// What is put into a transaction, and so waits no more; the events do until it is taken.
#[derive(Debug, Default)]
pub struct Withdrawn {
    /// Up to which position the events are in it; 0: none.
    pub events_upto: i64,
    /// Up to which messages those of each line are.
    pub messages: Vec<(LineKey, i64)>,
    /// The same of lines of devices that fetch their messages by themselves: those stay.
    pub told: Vec<(LineKey, i64)>,
    /// Up to where it tells whose devices changed, if it does.
    pub devices_upto: Option<i64>,
}

/// What a start with some services found.
#[derive(Debug)]
pub struct BegunServices {
    /// Their rows, in their order.
    pub rows: Vec<ServiceRow>,
    /// Up to where it is decided who is told of what.
    pub progress: i64,
    /// The ids of those that are registered no more since now, and how many events wait for each.
    pub left: Vec<(String, i64)>,
}

const SERVICE: &str = "SELECT service, since, devices_upto, failures, due_ms, taken_ms FROM appservices";

fn service_of(row: &Row<'_>) -> rusqlite::Result<ServiceRow> {
    Ok(ServiceRow {
        key: row.get(0)?,
        since: row.get(1)?,
        devices_upto: row.get(2)?,
        failures: row.get(3)?,
        due_ms: row.get(4)?,
        taken_ms: row.get(5)?,
    })
}

impl Db<'_> {
    /// A service.
    pub fn appservice(&self, service: ServiceKey) -> Result<Option<ServiceRow>> {
        let mut statement = self.conn().prepare_cached(&format!("{SERVICE} WHERE service = ?1"))?;
        Ok(statement.query_row([service], service_of).optional()?)
    }

    /// Up to where it is decided who is told of what.
    pub fn appservice_progress(&self) -> Result<Option<i64>> {
        let mut statement = self.conn().prepare_cached("SELECT stream FROM appservice_progress")?;
        Ok(statement.query_row([], |row| row.get(0)).optional()?)
    }

    /// The rooms in which something happened after a position.
    pub fn rooms_moved_after(&self, after: i64) -> Result<Vec<RoomKey>> {
        self.rows("SELECT room_key FROM room_activity WHERE stream > ?1", params![after], |row| row.get(0))
    }

    /// The live events of a room at positions in `(after, upto]`, in their order.
    pub fn live_events_between(
        &self,
        room: RoomKey,
        (after, upto): (i64, i64),
    ) -> Result<Vec<(i64, EventKey)>> {
        self.rows(
            "SELECT stream, event_key FROM events
             WHERE room_key = ?1 AND stream > ?2 AND stream <= ?3 AND sub = 0 ORDER BY stream",
            params![room, after, upto],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
    }

    /// Whether a room's state changed behind a position.
    pub fn has_state_changed_after(&self, room: RoomKey, after: i64) -> Result<bool> {
        let mut statement = self
            .conn()
            .prepare_cached("SELECT 1 FROM state_changes WHERE room_key = ?1 AND stream > ?2 LIMIT 1")?;
        Ok(statement.exists([room, after])?)
    }

    /// The rooms in which something fleeting changed after a position.
    pub fn rooms_with_ephemeral_after(&self, after: i64) -> Result<Vec<RoomKey>> {
        self.rows("SELECT room_key FROM ephemeral_changes WHERE stream > ?1", params![after], |row| {
            row.get(0)
        })
    }

    /// The first events that a service is to be told of.
    pub fn appservice_events(&self, service: ServiceKey, limit: usize) -> Result<Vec<QueuedEvent>> {
        self.rows(
            "SELECT stream, event_key, event FROM appservice_events WHERE service = ?1 ORDER BY stream LIMIT ?2",
            params![service, limit as i64],
            |row| Ok(QueuedEvent { stream: row.get(0)?, key: row.get(1)?, json: row.get(2)? }),
        )
    }

    /// The events that are in the transaction that a service is being sent.
    pub fn appservice_events_upto(&self, service: ServiceKey, upto: i64) -> Result<Vec<QueuedEvent>> {
        self.rows(
            "SELECT stream, event_key, event FROM appservice_events
             WHERE service = ?1 AND stream <= ?2 ORDER BY stream",
            params![service, upto],
            |row| Ok(QueuedEvent { stream: row.get(0)?, key: row.get(1)?, json: row.get(2)? }),
        )
    }

    /// The transaction that a service is being sent, the first one if it has come to parts.
    pub fn appservice_transaction(&self, service: ServiceKey) -> Result<Option<ServiceTransaction>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT txn_id, begun_ms, events_upto, body FROM appservice_transactions WHERE service = ?1
             ORDER BY place LIMIT 1",
        )?;
        let read = statement.query_row([service], |row| {
            Ok(ServiceTransaction {
                txn_id: row.get(0)?,
                begun_ms: row.get(1)?,
                events_upto: row.get(2)?,
                body: row.get(3)?,
            })
        });
        Ok(read.optional()?)
    }

    /// The services that are to be tried again now.
    pub fn due_appservices(&self, now: Millis) -> Result<Vec<ServiceKey>> {
        self.rows("SELECT service FROM appservices WHERE due_ms <= ?1", params![now], |row| row.get(0))
    }

    /// When the next ones are, or one is to be forgotten.
    pub fn next_appservice_due(&self) -> Result<Option<Millis>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT min(at) FROM (SELECT min(due_ms) AS at FROM appservices UNION ALL SELECT min(forget_due_ms) FROM appservices)",
        )?;
        Ok(statement.query_row([], |row| row.get(0))?)
    }

    /// Whether anything is kept for services that only a start with services needs, or one without ends.
    pub fn knows_appservices(&self) -> Result<bool> {
        let mut statement = self.conn().prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM appservice_progress)
               OR EXISTS (SELECT 1 FROM appservices WHERE forget_due_ms IS NULL)",
        )?;
        Ok(statement.query_row([], |row| row.get(0))?)
    }

    /// The services that are to be forgotten now, with their ids.
    pub fn forgotten_appservices(&self, now: Millis) -> Result<Vec<(ServiceKey, String)>> {
        let sql = "SELECT service, id FROM appservices WHERE forget_due_ms <= ?1";
        self.rows(sql, params![now], |row| Ok((row.get(0)?, row.get(1)?)))
    }
}

impl Tx<'_> {
    /// Begins anew with these services: one that was not registered before, or not lately, is told what comes from now on. What
    /// is put off of others is so for as long as nobody asks for it, and of those that are registered no more everything is
    /// forgotten later.
    pub fn begin_appservices(&mut self, ids: &[String], forget_due: Millis) -> Result<BegunServices> {
        let now = self.stream();
        let known = serde_json::to_string(ids).map_err(Error::internal)?;
        if ids.is_empty() {
            self.execute("DELETE FROM appservice_progress", params![])?;
        } else {
            self.execute(
                "INSERT OR IGNORE INTO appservice_progress (one, stream) VALUES (1, ?1)",
                params![now],
            )?;
        }
        let left: Vec<(String, i64)> = self.rows(
            "SELECT id, (SELECT count(*) FROM appservice_events e WHERE e.service = s.service) FROM appservices s
             WHERE forget_due_ms IS NULL AND id NOT IN (SELECT value FROM json_each(?1))",
            params![known],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        if !left.is_empty() {
            self.execute(
                "UPDATE appservices SET forget_due_ms = ?2
                 WHERE forget_due_ms IS NULL AND id NOT IN (SELECT value FROM json_each(?1))",
                params![known, forget_due],
            )?;
            self.is_due(forget_due);
        }
        self.execute("UPDATE appservices SET due_ms = NULL WHERE due_ms IS NOT NULL", params![])?;
        let mut rows = Vec::new();
        for id in ids {
            self.execute(
                "INSERT OR IGNORE INTO appservices (id, since, devices_upto) VALUES (?1, ?2, ?2)",
                params![id, now],
            )?;
            // Whose devices changed meanwhile it has to know all the same.
            self.execute(
                "UPDATE appservices SET since = ?2, forget_due_ms = NULL WHERE id = ?1 AND forget_due_ms IS NOT NULL",
                params![id, now],
            )?;
            let mut statement = self.conn().prepare_cached(&format!("{SERVICE} WHERE id = ?1"))?;
            rows.push(statement.query_row([id], service_of)?);
        }
        let progress = self.appservice_progress()?.unwrap_or(now);
        Ok(BegunServices { rows, progress, left })
    }

    /// Forgets a service that is registered no more, with so many at most of the events that wait for it. Whether there is more.
    pub fn forget_appservice(&mut self, service: ServiceKey, most: usize) -> Result<bool> {
        let gone = self.execute(
            "DELETE FROM appservice_events WHERE service = ?1
               AND stream IN (SELECT stream FROM appservice_events WHERE service = ?1 ORDER BY stream LIMIT ?2)",
            params![service, most as i64],
        )?;
        if gone == most {
            return Ok(true);
        }
        self.execute("DELETE FROM appservice_transactions WHERE service = ?1", params![service])?;
        self.execute("DELETE FROM appservices WHERE service = ?1", params![service])?;
        Ok(false)
    }

    /// Services are to be told of these events; it is decided so up to this position.
    pub fn queue_for_appservices(&mut self, queued: &[(ServiceKey, QueuedEvent)], upto: i64) -> Result<()> {
        for (service, QueuedEvent { stream, key, json }) in queued {
            self.execute(
                "INSERT OR IGNORE INTO appservice_events (service, stream, event_key, event) VALUES (?1, ?2, ?3, ?4)",
                params![service, stream, key, json],
            )?;
        }
        self.execute("UPDATE appservice_progress SET stream = ?1", params![upto])?;
        Ok(())
    }

    /// Puts what is withdrawn into a transaction, of this body beside the events. Its id is given out once.
    pub fn begin_appservice_transaction(
        &mut self,
        service: ServiceKey,
        body: String,
        withdrawn: &Withdrawn,
        now: Millis,
    ) -> Result<ServiceTransaction> {
        let transaction = self.put_appservice_transaction(service, 0, (withdrawn.events_upto, body), now)?;
        for (line, upto) in &withdrawn.messages {
            self.shorten_line(*line, *upto)?;
        }
        for (line, upto) in &withdrawn.told {
            self.execute("UPDATE to_device_lines SET told = ?2 WHERE line = ?1", params![line, upto])?;
        }
        if let Some(upto) = withdrawn.devices_upto {
            self.execute(
                "UPDATE appservices SET devices_upto = ?2 WHERE service = ?1",
                params![service, upto],
            )?;
        }
        Ok(transaction)
    }

    /// Puts these in the place of a transaction that is sent no more: its parts, each with up to where events are in it, in their
    /// order. If there are none, its events are left out.
    pub fn replace_appservice_transaction(
        &mut self,
        service: ServiceKey,
        replaced: &ServiceTransaction,
        parts: Vec<(i64, String)>,
        now: Millis,
    ) -> Result<()> {
        let place: Option<i64> = self
            .conn()
            .prepare_cached("SELECT place FROM appservice_transactions WHERE service = ?1 AND txn_id = ?2")?
            .query_row(params![service, replaced.txn_id], |row| row.get(0))
            .optional()?;
        let Some(place) = place else { return Ok(()) };
        self.execute(
            "DELETE FROM appservice_transactions WHERE service = ?1 AND place = ?2",
            params![service, place],
        )?;
        if parts.is_empty() {
            self.drop_appservice_events(service, replaced.events_upto)?;
        }
        // It was the first one: before it nothing has a place.
        for (before, part) in (1..).zip(parts.into_iter().rev()) {
            self.put_appservice_transaction(service, place - before, part, now)?;
        }
        Ok(())
    }

    fn put_appservice_transaction(
        &mut self,
        service: ServiceKey,
        place: i64,
        (events_upto, body): (i64, String),
        now: Millis,
    ) -> Result<ServiceTransaction> {
        let txn_id = format!("{now}.{}", self.next_stream());
        self.execute(
            "INSERT INTO appservice_transactions (service, place, txn_id, begun_ms, events_upto, body)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![service, place, txn_id, now, events_upto, body],
        )?;
        Ok(ServiceTransaction { txn_id, begun_ms: now, events_upto, body })
    }

    /// The events of a service up to this position wait no more.
    pub fn drop_appservice_events(&mut self, service: ServiceKey, upto: i64) -> Result<()> {
        self.execute(
            "DELETE FROM appservice_events WHERE service = ?1 AND stream <= ?2",
            params![service, upto],
        )?;
        Ok(())
    }

    /// A service has taken its transaction, in which these are the events.
    pub fn appservice_took(
        &mut self,
        service: ServiceKey,
        (txn_id, events_upto): (&str, i64),
        now: Millis,
    ) -> Result<()> {
        let taken = self.execute(
            "DELETE FROM appservice_transactions WHERE service = ?1 AND txn_id = ?2",
            params![service, txn_id],
        )?;
        if taken > 0 {
            self.drop_appservice_events(service, events_upto)?;
        }
        self.execute(
            "UPDATE appservices SET failures = 0, due_ms = NULL, taken_ms = ?2 WHERE service = ?1",
            params![service, now],
        )?;
        Ok(())
    }

    /// A service has not taken its transaction, so often in a row: it is tried again then.
    pub fn appservice_failed(&mut self, service: ServiceKey, failures: u32, due: Millis) -> Result<()> {
        self.execute(
            "UPDATE appservices SET failures = ?2, due_ms = ?3 WHERE service = ?1",
            params![service, failures, due],
        )?;
        self.is_due(due);
        Ok(())
    }

    /// What is put off of a service is tried now.
    pub fn take_up_appservice(&mut self, service: ServiceKey) -> Result<()> {
        self.execute("UPDATE appservices SET due_ms = NULL WHERE service = ?1", params![service])?;
        Ok(())
    }
}
