//! What application services are still to be told: which events, and the transaction that each is being sent.

use rusqlite::{OptionalExtension, Row, params};

use crate::clock::Millis;
use crate::error::Result;
use crate::protocol::UserId;
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

/// A message that waits for a device of a service's user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceMessage {
    /// The line in which it waits.
    pub line: LineKey,
    /// Whose device it is.
    pub user_id: String,
    /// Its id.
    pub device_id: String,
    /// The position of the message.
    pub stream: i64,
    /// The event: a JSON object.
    pub message: String,
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
    /// Up to where it tells whose devices changed, if it does.
    pub devices_upto: Option<i64>,
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

    /// The first messages that wait for devices of users whom a service has made, oldest first.
    pub fn to_device_of_service(&self, id: &str, limit: usize) -> Result<Vec<ServiceMessage>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT l.line, l.user_id, l.device_id, t.stream, t.message FROM to_device_lines l
               CROSS JOIN users u ON u.user_id = l.user_id JOIN to_device t ON t.line = l.line
             WHERE l.messages > 0 AND u.appservice = ?1 ORDER BY t.stream LIMIT ?2",
        )?;
        let rows = statement.query_map(params![id, limit as i64], |row| {
            Ok(ServiceMessage {
                line: row.get(0)?,
                user_id: row.get(1)?,
                device_id: row.get(2)?,
                stream: row.get(3)?,
                message: row.get(4)?,
            })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The users whom a service has made and that have devices with end-to-end keys.
    pub fn encrypting_users_of_service(&self, id: &str) -> Result<Vec<UserId>> {
        let users = self.rows(
            "SELECT u.user_id FROM users u WHERE u.appservice = ?1
               AND EXISTS (SELECT 1 FROM device_keys d WHERE d.user_id = u.user_id)",
            params![id],
            |row| row.get::<_, String>(0),
        )?;
        users.iter().map(|user| UserId::parse(user)).collect()
    }

    /// The devices with end-to-end keys of users whom a service has made, so many at most: those with the fewest one-time keys.
    pub fn devices_of_service(&self, id: &str, limit: usize) -> Result<Vec<(UserId, String)>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT d.user_id, d.device_id FROM users u JOIN device_keys d ON d.user_id = u.user_id
             WHERE u.appservice = ?1
             ORDER BY (SELECT coalesce(sum(last - issued), 0) FROM one_time_key_pools p
                       WHERE p.user_id = d.user_id AND p.device_id = d.device_id), 1, 2
             LIMIT ?2",
        )?;
        let rows = statement
            .query_map(params![id, limit as i64], |row| Ok((row.get::<_, String>(0)?, row.get(1)?)))?;
        rows.map(|row| {
            let (user, device) = row?;
            Ok((UserId::parse(&user)?, device))
        })
        .collect()
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

    /// The transaction that a service is being sent.
    pub fn appservice_transaction(&self, service: ServiceKey) -> Result<Option<ServiceTransaction>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT txn_id, begun_ms, events_upto, body FROM appservice_transactions WHERE service = ?1",
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

    /// When the next ones are.
    pub fn next_appservice_due(&self) -> Result<Option<Millis>> {
        let mut statement = self.conn().prepare_cached("SELECT min(due_ms) FROM appservices")?;
        Ok(statement.query_row([], |row| row.get(0))?)
    }
}

impl Tx<'_> {
    /// The rows of these services, made where there are none; and up to where it is decided who is told of what. What is put off
    /// of others is so for as long as nobody asks for it.
    pub fn begin_appservices(&mut self, ids: &[String]) -> Result<(Vec<ServiceRow>, i64)> {
        let now = self.stream();
        self.execute("INSERT OR IGNORE INTO appservice_progress (one, stream) VALUES (1, ?1)", params![now])?;
        self.execute("UPDATE appservices SET due_ms = NULL WHERE due_ms IS NOT NULL", params![])?;
        let mut rows = Vec::new();
        for id in ids {
            self.execute(
                "INSERT OR IGNORE INTO appservices (id, since, devices_upto) VALUES (?1, ?2, ?2)",
                params![id, now],
            )?;
            let mut statement = self.conn().prepare_cached(&format!("{SERVICE} WHERE id = ?1"))?;
            rows.push(statement.query_row([id], service_of)?);
        }
        let progress = self.appservice_progress()?.unwrap_or(now);
        Ok((rows, progress))
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
        let (txn_id, events_upto) = (format!("{now}.{}", self.next_stream()), withdrawn.events_upto);
        self.execute(
            "INSERT INTO appservice_transactions (service, txn_id, begun_ms, events_upto, body)
             VALUES (?1, ?2, ?3, ?4, ?5)",
            params![service, txn_id, now, events_upto, body],
        )?;
        for (line, upto) in &withdrawn.messages {
            self.shorten_line(*line, *upto)?;
        }
        if let Some(upto) = withdrawn.devices_upto {
            self.execute(
                "UPDATE appservices SET devices_upto = ?2 WHERE service = ?1",
                params![service, upto],
            )?;
        }
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
